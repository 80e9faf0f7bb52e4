//! `restless A B THREADS`: threads that rename themselves and move between the threaded cgroups A and B as
//! fast as they can, until stdin ends. Prints the number of moves.

#![allow(clippy::unwrap_used, reason = "the test that started it notices if it panics")]
#![allow(clippy::print_stdout, reason = "the number is the result")]

use std::{
    ffi::CString,
    fs::File,
    io::{Read as _, Write as _},
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let doors = [&words[0], &words[1]].map(|cgroup| {
        File::options().write(true).open(Path::new(cgroup).join("cgroup.threads")).unwrap()
    });
    let count: u64 = words[2].parse().unwrap();
    let (stop, moves) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for number in 0..count {
            let (doors, stop, moves) = (&doors, &stop, &moves);
            scope.spawn(move || {
                let names = [number, number + count].map(|name| CString::new(name.to_string()));
                while !stop.load(Ordering::Relaxed) {
                    for (mut door, name) in doors.iter().zip(&names) {
                        rustix::thread::set_name(name.as_ref().unwrap()).unwrap();
                        // The thread that writes.
                        door.write_all(b"0").unwrap();
                        moves.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let _ = std::io::stdin().read(&mut [0]);
        stop.store(true, Ordering::Relaxed);
    });
    println!("{}", moves.load(Ordering::Relaxed));
}
