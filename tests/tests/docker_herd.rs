//! Containers that have lost their clients, in Docker.

#![allow(clippy::unwrap_used, reason = "a test fails by its panic")]

use mcp_guard_tests::{
    docker::Engine,
    herd::{ATTACHED, STARTED, five_are_one_herd, innocents_are_left_out},
};

#[test]
fn five_containers_whose_clients_were_killed_are_one_herd() {
    five_are_one_herd(Engine::Docker).unwrap();
}

#[test]
fn containers_with_a_client_or_without_the_need_of_one_are_left_out() {
    innocents_are_left_out(Engine::Docker, &[STARTED, ATTACHED].concat()).unwrap();
}
