//! Containers that have lost their clients, in the Podman of a distribution. The cases in which a client attaches
//! later are tested with Docker: under emulation, they take longer than a test may.

#![allow(clippy::unwrap_used, reason = "a test fails by its panic")]

use mcp_guard_tests::{
    docker::{Engine, podman::PodmanService},
    herd::{STARTED, five_are_one_herd, innocents_are_left_out},
};

#[test]
fn podman_has_one_herd_of_five_containers_whose_clients_were_killed() {
    let _service = PodmanService::start().unwrap();
    five_are_one_herd(Engine::Podman).unwrap();
}

#[test]
fn containers_of_podman_whose_client_has_started_them_are_left_out() {
    let _service = PodmanService::start().unwrap();
    innocents_are_left_out(Engine::Podman, &STARTED).unwrap();
}
