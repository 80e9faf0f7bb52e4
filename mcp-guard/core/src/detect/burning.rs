//! K: a disconnected server uses much of a CPU.
//!
//! It catches a server whose event loop spins on the end of its stdin or on an error of its stdout: nobody will ever
//! read what it computes. It must not be raised by a server that somebody can reach, however busy it is, nor by a
//! short burst: the end of a client often makes a server tidy up. It only warns, because a disconnected process may
//! be a job whose result is a file.
//!
//! The number: a loop that spins uses a whole CPU, if there is one.

use std::{collections::BTreeMap, time::Duration};

use super::{Detection, count};
use crate::{
    Time,
    evidence::Contact,
    incident::Detector,
    policy::Burning,
    registry::{LiveServer, OTHER_IDENTITIES},
};

/// Returns the detections of a guard. `fresh`: how old a look may be.
pub fn look<'a>(
    now: Time,
    fresh: Duration,
    servers: impl Iterator<Item = LiveServer<'a>>,
    limits: &Burning,
) -> Vec<Detection> {
    let mut all: BTreeMap<&str, (usize, Duration)> = BTreeMap::new();
    for server in servers {
        let is_left = server.known.contact == Contact::Disconnected
            && server.known.contact_for(now, fresh).is_some()
            && server.identity != OTHER_IDENTITIES;
        let burns = server.known.burns().filter(|time| is_left && *time >= limits.age);
        if let Some(time) = burns {
            let (servers, longest) = all.entry(server.identity).or_default();
            (*servers, *longest) = (*servers + 1, time.max(*longest));
        }
    }
    let detection = |(identity, (servers, longest)): (&str, (usize, Duration))| {
        let numbers = [("servers", count(servers)), ("longest_s", longest.as_secs())];
        Detection::new(Detector::Burning, Some(identity), &numbers, None)
    };
    all.into_iter().map(detection).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        evidence::{Activity, Known, ServerSeen},
        server::Naming,
    };

    /// Whether a server is told that uses so many clock ticks between looks, 30 s apart.
    fn is_told(contact: Contact, ticks: &[u64]) -> bool {
        let (mut known, mut now, mut cpu) = (Known::default(), Time(0), 0);
        for more in ticks {
            (now, cpu) = (now.after(Duration::from_secs(30)), cpu + more);
            let activity = Some(Activity { cpu, ..Activity::default() });
            known.take(now, &ServerSeen { activity, contact, ..ServerSeen::default() });
        }
        let server = LiveServer::example("a", Naming::Program, &known);
        let found =
            look(now, Duration::from_secs(120), std::iter::once(server), &Burning::default());
        assert!(found.iter().all(|one| one.act.is_none()));
        !found.is_empty()
    }

    #[test]
    fn a_minute_at_half_a_cpu_is_told_if_nobody_can_reach_the_server() {
        assert!(is_told(Contact::Disconnected, &[0, 3000, 3000]));
        assert!(is_told(Contact::Disconnected, &[0, 0, 1500, 1500]));
        assert!(!is_told(Contact::Disconnected, &[0, 3000]), "half a minute");
        assert!(!is_told(Contact::Disconnected, &[0, 3000, 3000, 100]), "it has ended");
        assert!(!is_told(Contact::Disconnected, &[0, 1400, 1400, 1400]));
        for other in [Contact::Connected, Contact::Closing, Contact::NoStdio, Contact::Unknown] {
            assert!(!is_told(other, &[0, 3000, 3000, 3000]), "{other}");
        }
    }
}
