//! Containers that have lost their clients, in the Podman of a distribution. The cases in which a client attaches
//! later have a test each: under emulation, all of them together take longer than a test may.

#![allow(clippy::unwrap_used, reason = "a test fails by its panic")]

use mcp_guard_tests::{
    docker::{Engine, podman::PodmanService},
    herd::{ATTACHED, STARTED, five_are_one_herd, innocents_are_left_out},
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

#[test]
fn a_container_of_podman_with_an_open_stdin_and_no_client_is_left_out() {
    let _service = PodmanService::start().unwrap();
    innocents_are_left_out(Engine::Podman, &ATTACHED[0..=0]).unwrap();
}

#[test]
fn a_container_of_podman_that_is_attached_again_is_left_out() {
    let _service = PodmanService::start().unwrap();
    innocents_are_left_out(Engine::Podman, &ATTACHED[1..=1]).unwrap();
}

#[test]
fn a_container_of_podman_that_is_attached_after_its_client_was_killed_is_left_out() {
    let _service = PodmanService::start().unwrap();
    innocents_are_left_out(Engine::Podman, &ATTACHED[2..=2]).unwrap();
}

#[test]
fn a_container_of_podman_that_is_attached_late_beside_one_without_a_client_is_left_out() {
    let _service = PodmanService::start().unwrap();
    innocents_are_left_out(Engine::Podman, &ATTACHED[3..=3]).unwrap();
}
