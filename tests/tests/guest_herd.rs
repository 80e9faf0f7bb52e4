//! Containers that have lost their clients, in the Docker and the Podman of a distribution.

#![allow(clippy::unwrap_used, reason = "a test fails by its panic")]

use mcp_guard_tests::{
    docker::{Engine, podman::PodmanService},
    herd::{five_are_one_herd, innocents_are_left_out},
};

#[test]
fn docker_has_one_herd_of_five_containers_whose_clients_were_killed() {
    five_are_one_herd(Engine::Docker).unwrap();
}

#[test]
fn docker_keeps_containers_with_a_client_or_without_the_need_of_one() {
    innocents_are_left_out(Engine::Docker).unwrap();
}

#[test]
fn podman_has_one_herd_of_five_containers_whose_clients_were_killed() {
    let _service = PodmanService::start().unwrap();
    five_are_one_herd(Engine::Podman).unwrap();
}

#[test]
fn podman_keeps_containers_with_a_client_or_without_the_need_of_one() {
    let _service = PodmanService::start().unwrap();
    innocents_are_left_out(Engine::Podman).unwrap();
}
