//! Single servers, for people.

use mcp_guard_core::{
    escape::visible,
    evidence::Contact,
    status::{ClientStatus, ServerStatus},
};

use crate::control::wire::{GuardServers, Servers};

/// The reason why a server is not quiescent stands below it.
const HEAD: &str =
    "  process     age    idle   memory  state                               client\n";

/// A list that is at least so many seconds old is said to be.
const OLD: u64 = 5;

#[must_use]
pub fn servers(servers: &Servers) -> String {
    let mut text: String = servers.guards.iter().map(of_guard).collect();
    if servers.guards.is_empty() {
        text += "nothing is guarded\n";
    }
    if servers.left_out > 0 {
        text += &format!(
            "\n{} more servers are not shown; name a target, or one identity with --server\n",
            servers.left_out
        );
    }
    if servers.age_seconds >= OLD {
        text += &format!(
            "\nthis list is {} old, because the agent was making others\n",
            short(servers.age_seconds)
        );
    }
    text
}

fn of_guard(guard: &GuardServers) -> String {
    let mut text = format!("{}\n  cgroup {} id {}\n", guard.name, guard.cgroup, guard.cgroup_id);
    if guard.servers.is_empty() {
        return text + "  no servers\n";
    }
    text += HEAD;
    // The oldest comes first in each group.
    let mut all: Vec<&ServerStatus> = guard.servers.iter().collect();
    all.sort_by(|a, b| a.identity.cmp(&b.identity));
    let mut before = "";
    for server in all {
        if before != server.identity {
            text += &format!("  {}\n", visible(&server.identity));
            before = &server.identity;
        }
        text += &line(server);
    }
    text
}

fn line(server: &ServerStatus) -> String {
    let ServerStatus { pid, age_seconds, idle_seconds, memory_bytes, contact, orphaned, .. } =
        server;
    let age = short(*age_seconds);
    let idle = idle_seconds.map_or_else(|| "-".to_owned(), short);
    let memory = memory_bytes.map_or_else(|| "-".to_owned(), mebibytes);
    let mut state = contact.to_string();
    if *orphaned == Some(true) {
        state += ", orphaned";
    }
    state += match server.quiescent {
        Some(true) => ", quiescent",
        Some(false) => ", not quiescent",
        None => "",
    };
    state += match server.abandoned {
        Some(true) => ", abandoned",
        Some(false) => ", perhaps at work",
        None => "",
    };
    if server.suspended_seconds.is_some() {
        state += ", suspended";
    } else if server.stopped {
        state += ", stopped";
    }
    let client = match &server.client {
        // The process that started it is gone, and has left the other end to this process.
        Some(client) if *orphaned == Some(true) && client.holds_stdio => {
            format!("held by {}", named(client))
        }
        Some(client) if client.holds_stdio => named(client),
        // The client is not known, and this process started the server.
        Some(starter) => format!("started by {}", named(starter)),
        // Somebody has the other end of all others, and was not found in time.
        None if *orphaned == Some(true)
            && matches!(contact, Contact::Disconnected | Contact::NoStdio) =>
        {
            "gone".to_owned()
        }
        None => "unknown".to_owned(),
    };
    let at_work = server.at_work.as_deref().map(|why| format!("{:>36}  {}\n", "", visible(why)));
    let old = old_look(server.look_age_seconds);
    format!(
        "{pid:>9} {age:>7} {idle:>7} {memory:>8}  {state:<34}  {client}{old}\n{}",
        at_work.unwrap_or_default()
    )
}

fn named(client: &ClientStatus) -> String {
    let name = client.name.as_ref().map(|name| format!("{}, ", visible(name))).unwrap_or_default();
    let session = client.session.as_ref().map(|session| format!(", session {}", visible(session)));
    format!("{name}pid {}{}", client.pid, session.unwrap_or_default())
}

/// Returns a time in its largest unit, rounded down.
pub(super) fn short(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

pub(super) fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

/// Tells that what is shown is not of the present.
pub(super) fn old_look(age: Option<u64>) -> String {
    age.map_or_else(String::new, |age| format!("  (last look {} ago)", short(age)))
}

#[cfg(test)]
mod tests {
    use mcp_guard_core::{id::Pid, status::StarterStatus};

    use super::*;

    fn server() -> ServerStatus {
        ServerStatus {
            identity: "a".to_owned(),
            pid: Pid(7),
            processes: 1,
            age_seconds: 7200,
            idle_seconds: Some(60),
            contact_seconds: None,
            started_boot_ns: 0,
            contact: Contact::Connected,
            quiescent: None,
            at_work: None,
            abandoned: None,
            stopped: false,
            suspended_seconds: None,
            orphaned: None,
            memory_bytes: Some(5 << 20),
            look_age_seconds: None,
            client: None,
            starter: None,
        }
    }

    #[test]
    fn an_old_look_is_told() {
        let mut server = server();
        let now =
            "        7     2 h    60 s    5 MiB  connected                           unknown\n";
        assert_eq!(line(&server), now);
        server.look_age_seconds = Some(300);
        assert!(line(&server).ends_with("unknown  (last look 5 min ago)\n"));
        server.orphaned = Some(true);
        for (contact, client) in [
            (Contact::Unknown, "unknown"),
            (Contact::Connected, "unknown"),
            (Contact::Closing, "unknown"),
            (Contact::NoStdio, "gone"),
            (Contact::Disconnected, "gone"),
        ] {
            server.contact = contact;
            let line = line(&server);
            assert!(line.contains(&format!("  {client}  (last")), "{line}");
        }
    }

    #[test]
    fn the_age_of_a_list_that_has_waited_is_told() {
        let list = |age_seconds| Servers { guards: Vec::new(), left_out: 0, age_seconds };
        assert_eq!(servers(&list(4)), "nothing is guarded\n");
        let old = servers(&list(12));
        assert!(old.ends_with("\nthis list is 12 s old, because the agent was making others\n"));
    }

    #[test]
    fn a_process_that_only_started_the_server_is_not_called_its_client() {
        let (name, session) = (Some("gateway".to_owned()), None);
        let starter = StarterStatus { pid: Pid(812), name, session };
        let mut server = ServerStatus { starter: Some(starter.clone()), ..server() };
        server.client = Some(starter.clone().into());
        assert!(line(&server).ends_with("  started by gateway, pid 812\n"), "{}", line(&server));
        server.client = Some(ClientStatus { holds_stdio: true, ..starter.into() });
        assert!(line(&server).ends_with("  gateway, pid 812\n"), "{}", line(&server));
    }

    #[test]
    fn a_client_is_told_with_its_session() {
        let mut client = ClientStatus {
            pid: Pid(812),
            name: Some("claude".to_owned()),
            session: Some("4".to_owned()),
            holds_stdio: true,
        };
        assert_eq!(named(&client), "claude, pid 812, session 4");
        client.session = None;
        assert_eq!(named(&client), "claude, pid 812");
        client.name = None;
        assert_eq!(named(&client), "pid 812");
        client.name = Some("a\n\u{1b}[31m".to_owned());
        assert_eq!(named(&client), "a\\n\\u{1b}[31m, pid 812");
    }

    #[test]
    fn a_time_has_one_unit() {
        for (seconds, text) in [
            (0, "0 s"),
            (119, "119 s"),
            (120, "2 min"),
            (7199, "119 min"),
            (7200, "2 h"),
            (172_799, "47 h"),
            (172_800, "2 d"),
        ] {
            assert_eq!(short(seconds), text);
        }
    }
}
