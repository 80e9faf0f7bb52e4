//! O: servers stay although nobody can write to them or read from them any more.
//!
//! It catches servers that outlive their client: a gateway that was killed, a session that ended. A server of a
//! launcher or an image that is disconnected and does nothing causes a warning soon. Work can look the same: a job has
//! got all of its input, and its client waits for the result or is gone on purpose. So a server that is only closing,
//! that is at work, or that is another program causes a warning much later, and an unknown state causes none.
//!
//! It ends what certainly is an MCP server and has been left at rest for longer. None of this
//! is true of work: nobody can write to it or read from it, it has no connection, no thread that runs
//! or waits for a disk or a lock, and it has read and written nothing since its client went.
//!
//! The numbers: a well-behaved server ends within a second when its client is gone, and a slow one within the ten
//! seconds that MCP clients wait before they send signals.

use std::{collections::BTreeMap, time::Duration};

use super::{Detection, count};
use crate::{
    Time,
    evidence::Contact,
    incident::Detector,
    policy::Disconnected,
    registry::{LiveServer, OTHER_IDENTITIES},
    server::Naming,
};

/// The servers of one identity that stay.
#[derive(Clone, Copy, Default)]
struct Left {
    abandoned: usize,
    others: usize,
    longest: Duration,
}

/// Returns the detections of a guard. `woke`: when the host last woke. `fresh`: how old a look may be.
pub fn look<'a>(
    (now, woke): (Time, Time),
    fresh: Duration,
    servers: impl Iterator<Item = LiveServer<'a>>,
    limits: &Disconnected,
) -> Vec<Detection> {
    let mut all: BTreeMap<&str, Left> = BTreeMap::new();
    for server in servers {
        match server.known.contact {
            Contact::Closing | Contact::Disconnected => {}
            Contact::Unknown | Contact::NoStdio | Contact::Connected => continue,
        }
        let Some(time) = server.known.contact_for(now, fresh) else { continue };
        let time = time.min(now.since(woke));
        let is_abandoned = server.known.is_abandoned() && is_server(&server, limits);
        let age = if is_abandoned { limits.age } else { limits.other_age };
        if time < age || server.identity == OTHER_IDENTITIES {
            continue;
        }
        let left = all.entry(server.identity).or_default();
        if is_abandoned {
            left.abandoned += 1
        } else {
            left.others += 1
        }
        left.longest = left.longest.max(time);
    }
    let detection = |(identity, left): (&str, Left)| {
        let numbers = [
            ("abandoned", count(left.abandoned)),
            ("other", count(left.others)),
            ("longest_s", left.longest.as_secs()),
        ];
        Detection::new(Detector::Disconnected, Some(identity), &numbers, None)
    };
    all.into_iter().map(detection).collect()
}

/// Returns the servers of one group of identities that are to be ended, the longest disconnected first. The times are
/// those of [`look`].
pub fn to_reap<'a>(
    (now, woke): (Time, Time),
    fresh: Duration,
    servers: impl Iterator<Item = LiveServer<'a>>,
    limits: &Disconnected,
) -> Vec<LiveServer<'a>> {
    let time = |server: &LiveServer<'_>| {
        let time = server.known.contact_for(now, fresh)?.min(now.since(woke));
        (time >= limits.act_age).then_some(time)
    };
    let is_due = |server: LiveServer<'a>| {
        let is_it = server.known.is_left_at_rest() && is_mcp_server(&server, limits);
        Some((time(&server)?, server)).filter(|_| is_it)
    };
    let mut due: Vec<_> = servers.filter_map(is_due).collect();
    due.sort_by_key(|(time, server)| (std::cmp::Reverse(*time), server.id));
    due.into_iter().map(|(_, server)| server).collect()
}

/// Whether it is certainly an MCP server. A launcher's package may be a job as well: `uvx` also starts schedulers,
/// and an `ssh` that ended leaves one as an MCP client leaves a server. A container's client passes SIGTERM on.
fn is_mcp_server(server: &LiveServer<'_>, limits: &Disconnected) -> bool {
    // As a word: `mcprotocol` is for machines.
    let is_by_name = || {
        let mut words = server.identity.split(|one: char| !one.is_ascii_alphanumeric());
        words.any(|word| matches!(word, "mcp" | "modelcontextprotocol"))
    };
    let is_named = || limits.servers.iter().any(|name| name.matches(server.identity));
    match server.naming {
        Naming::Package | Naming::Cached => is_by_name() || is_named(),
        Naming::Script | Naming::Program | Naming::Unclear => is_named(),
        Naming::Image => false,
    }
}

/// Whether it is certainly started by a client and for it alone.
fn is_server(server: &LiveServer<'_>, limits: &Disconnected) -> bool {
    let is_by_name = match server.naming {
        Naming::Package | Naming::Cached | Naming::Image => true,
        Naming::Script | Naming::Program | Naming::Unclear => false,
    };
    is_by_name || limits.servers.iter().any(|name| name.matches(server.identity))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        evidence::{Activity, Known, ServerSeen},
        policy::Policy,
    };

    const SECOND: u64 = 1_000_000_000;

    /// A server that is looked at every 30 s, for `seconds`.
    fn known(contact: Contact, is_busy: Option<bool>, seconds: u64) -> Known {
        let mut known = Known::default();
        for at in 0..=seconds / 30 {
            let activity = Some(Activity::default());
            let seen = ServerSeen { contact, is_busy, activity, ..ServerSeen::default() };
            known.take(Time(at * 30 * SECOND), &seen);
        }
        known
    }

    fn found(naming: Naming, known: &Known, now: u64, limits: &Disconnected) -> Option<(u64, u64)> {
        let server = LiveServer::example("a-mcp", naming, known);
        let fresh = Duration::from_secs(120);
        let all = look((Time(now * SECOND), Time(0)), fresh, std::iter::once(server), limits);
        let one = all.first()?;
        assert_eq!(one.act, None);
        Some((one.cause.numbers["abandoned"], one.cause.numbers["other"]))
    }

    #[test]
    fn what_is_abandoned_is_told_soon_and_all_else_late() {
        use Contact::{Closing, Connected, Disconnected, NoStdio, Unknown};
        let (soon, late) = (Some((1, 0)), Some((0, 1)));
        // The warnings after 30 s, 60 s, 9 min and 10 min.
        for (naming, contact, is_busy, expected) in [
            (Naming::Package, Disconnected, Some(false), [None, soon, soon, soon]),
            (Naming::Cached, Disconnected, Some(false), [None, soon, soon, soon]),
            (Naming::Image, Disconnected, Some(false), [None, soon, soon, soon]),
            (Naming::Script, Disconnected, Some(false), [None, None, None, late]),
            (Naming::Program, Disconnected, Some(false), [None, None, None, late]),
            // A `psql` that waits for its reply.
            (Naming::Package, Disconnected, Some(true), [None, None, None, late]),
            (Naming::Package, Disconnected, None, [None, None, None, late]),
            // `echo job | docker exec -i`.
            (Naming::Package, Closing, None, [None, None, None, late]),
            (Naming::Package, Connected, None, [None; 4]),
            (Naming::Package, NoStdio, None, [None; 4]),
            (Naming::Package, Unknown, Some(false), [None; 4]),
        ] {
            let told = [30, 60, 540, 600].map(|seconds| {
                let known = known(contact, is_busy, seconds);
                found(naming, &known, seconds, &Default::default())
            });
            assert_eq!(told, expected, "{naming:?} {contact} {is_busy:?}");
        }
    }

    #[test]
    fn a_program_that_the_policy_names_is_a_server_too() {
        let limits = Policy::parse("[detect.disconnected]\nservers = [\"a-*\"]")
            .unwrap()
            .detect()
            .disconnected
            .clone();
        let known = known(Contact::Disconnected, Some(false), 60);
        assert_eq!(found(Naming::Program, &known, 60, &limits), Some((1, 0)));
    }

    #[test]
    fn an_old_look_or_a_host_that_slept_proves_nothing() {
        let known = known(Contact::Disconnected, Some(false), 60);
        assert_eq!(found(Naming::Package, &known, 180, &Default::default()), Some((1, 0)));
        assert_eq!(found(Naming::Package, &known, 181, &Default::default()), None);
        let server = LiveServer::example("a", Naming::Package, &known);
        let now = (Time(70 * SECOND), Time(60 * SECOND));
        let all = look(now, Duration::MAX, std::iter::once(server), &Default::default());
        assert_eq!(all, []);
    }
}
