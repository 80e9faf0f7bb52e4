//! `leaderless`: a process whose first thread has ended, while another one sleeps. Prints a line once that is
//! so.

#![allow(clippy::unwrap_used, reason = "the test that started it notices if it panics")]
#![allow(clippy::print_stdout, reason = "the line is for the test")]

use std::{fs, thread, time::Duration};

fn main() {
    thread::spawn(|| {
        let first = format!("/proc/self/task/{}/stat", std::process::id());
        while !fs::read_to_string(&first).unwrap().contains(") Z ") {
            thread::yield_now();
        }
        println!("the first thread has ended");
        thread::sleep(Duration::from_secs(600));
    });
    // SAFETY: the call ends this thread alone, and nothing that the other one uses is on its stack.
    #[allow(unsafe_code, reason = "no safe wrapper ends one thread without its process")]
    unsafe {
        libc::syscall(libc::SYS_exit, 0);
    }
}
