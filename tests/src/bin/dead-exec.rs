//! `dead-exec FILE`: executes a program with FILE open, which is closed then. Its server, in `dead_mount`, does not
//! answer.

#![allow(clippy::unwrap_used, reason = "the test that started it notices if it panics")]

use std::{fs::File, os::unix::process::CommandExt as _, process::Command};

fn main() {
    let _open = File::open(std::env::args().nth(1).unwrap()).unwrap();
    panic!("{}", Command::new("sleep").arg("1000").exec());
}
