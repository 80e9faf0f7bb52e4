//! The core as a state machine: any sequence of inputs, on a host that carries out what is ordered, in any
//! order and with any outcome.
#![no_main]

mod host;

use libfuzzer_sys::fuzz_target;

use self::host::{Event, Host};

/// Most processes that one run starts. More than the detectors and tables need to fill up.
const MOST_PROCESSES: usize = 6000;

fuzz_target!(|events: Vec<Event>| {
    let mut host = Host::new();
    for event in events {
        if host.started() > MOST_PROCESSES {
            break;
        }
        host.happens(event);
        host.check();
    }
    host.comes_to_rest();
});
