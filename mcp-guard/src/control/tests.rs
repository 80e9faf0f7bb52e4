//! Compares the description with the messages that are really sent and parsed.

use std::collections::{BTreeMap, BTreeSet};

use mcp_guard_core::{
    evidence::Contact,
    id::{CgroupId, Pid, Ticks},
    incident::Outcome,
    policy::{Mode, PolicySource, Response},
    rates::PerSecond,
    refusal::Despite,
    server_order::ListedServer,
    status::{
        ClientStatus, GuardState, GuardStatus, HerdStatus, IdentityStatus, ServerStatus,
        StarterStatus, TotalsStatus, UnseenClients,
    },
};
use serde_json::{Value, json};

use super::{
    description::description,
    request::{Asked, read},
    wire::{
        Answer, EngineState, Freeze, GetPolicy, GetServers, GetStatus, GuardServers, INTERFACE,
        Kill, Method, PolicyInForce, PolicyStatus, Reap, RecordTrace, ReloadPolicy, Reloaded,
        Resume, Servers, Status, Suspend, TargetCgroup, Thaw, TracePart, WatchedStatus, failed,
    },
};

/// A parsed description: the definitions of the types, and for each method its parameters and reply.
struct Read {
    types: BTreeMap<String, String>,
    methods: BTreeMap<String, (String, String)>,
    errors: BTreeMap<String, String>,
}

fn read_description() -> Read {
    let text = description();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let text = lines.map(str::trim).collect::<Vec<_>>().join(" ");
    let text = text.trim().strip_prefix("interface io.mcpguard").unwrap().to_owned();
    let mut found =
        Read { types: BTreeMap::new(), methods: BTreeMap::new(), errors: BTreeMap::new() };
    let mut rest = text.trim();
    while let Some((word, after)) = rest.split_once(' ') {
        let open = after.find('(').unwrap();
        let name = after[..open].trim().to_owned();
        let (first, after) = in_parentheses(&after[open..]);
        rest = after.trim();
        match word {
            "type" => drop(found.types.insert(name, first.to_owned())),
            "error" => drop(found.errors.insert(name, first.to_owned())),
            "method" => {
                let (reply, after) = in_parentheses(rest.strip_prefix("-> ").unwrap());
                found.methods.insert(name, (first.to_owned(), reply.to_owned()));
                rest = after.trim();
            }
            other => panic!("{other:?} is not a member of an interface"),
        }
    }
    found
}

/// Splits a text that begins with parentheses into their content and the rest.
fn in_parentheses(text: &str) -> (&str, &str) {
    let end = text.find(')').unwrap();
    assert!(text.starts_with('(') && !text[1..end].contains('('), "nested: {text}");
    (&text[1..end], &text[end + 1..])
}

fn fields(list: &str) -> BTreeMap<&str, &str> {
    let fields = list.split(',').map(str::trim).filter(|field| !field.is_empty());
    let fields: Vec<_> = fields.map(|field| field.split_once(": ").unwrap()).collect();
    let by_name: BTreeMap<_, _> = fields.iter().copied().collect();
    assert_eq!(by_name.len(), fields.len(), "a field twice: {list}");
    by_name
}

impl Read {
    /// Asserts that an object has exactly the described fields, each of its type.
    fn check_fields(&self, value: &Value, list: &str, place: &str) {
        let (described, object) = (fields(list), value.as_object().unwrap());
        let names: BTreeSet<&str> = described.keys().copied().collect();
        let keys: BTreeSet<&str> = object.keys().map(String::as_str).collect();
        assert_eq!(keys, names, "{place}: sent, described");
        for (name, kind) in described {
            self.check(&object[name], kind, &format!("{place}.{name}"));
        }
    }

    fn check(&self, value: &Value, kind: &str, place: &str) {
        if let Some(kind) = kind.strip_prefix('?') {
            return if value.is_null() {
            } else {
                self.check(value, kind, place)
            };
        }
        if let Some(kind) = kind.strip_prefix("[]") {
            let all = value.as_array().unwrap();
            assert!(!all.is_empty(), "{place}: nothing to compare");
            return all.iter().for_each(|one| self.check(one, kind, place));
        }
        if let Some(kind) = kind.strip_prefix("[string]") {
            let all = value.as_object().unwrap();
            assert!(!all.is_empty(), "{place}: nothing to compare");
            return all.values().for_each(|one| self.check(one, kind, place));
        }
        match kind {
            "bool" => assert!(value.is_boolean(), "{place}: {value}"),
            "int" => assert!(value.is_u64(), "{place}: {value}"),
            "float" => assert!(value.is_f64(), "{place}: {value}"),
            "string" => assert!(value.is_string(), "{place}: {value}"),
            name => match self.types[name].as_str() {
                fields if fields.contains(':') => self.check_fields(value, fields, place),
                words => {
                    let word = value.as_str().unwrap();
                    assert!(words.split(", ").any(|one| one == word), "{place}: {word}: {words}");
                }
            },
        }
    }

    fn check_call<M: Method>(&self, parameters: &M, replies: &[M::Reply]) {
        let (described, reply) = &self.methods[M::NAME];
        let parameters = serde_json::to_value(parameters).unwrap();
        self.check_fields(&parameters, described, M::NAME);
        assert!(is_read::<M>(&parameters), "{}", M::NAME);
        for (name, kind) in fields(described) {
            let mut fewer = parameters.clone();
            fewer.as_object_mut().unwrap().remove(name);
            assert_eq!(is_read::<M>(&fewer), kind.starts_with('?'), "{} without {name}", M::NAME);
        }
        for value in replies {
            self.check_fields(&serde_json::to_value(value).unwrap(), reply, M::NAME);
        }
    }
}

fn is_read<M: Method>(parameters: &Value) -> bool {
    let method = format!("{INTERFACE}.{}", M::NAME);
    let message = json!({ "method": method, "parameters": parameters, "more": true });
    matches!(read(message.to_string().as_bytes()), Asked::Call(_))
}

fn per_second() -> PerSecond {
    PerSecond { one: 1.5, ten: 0.5, sixty: 0.0 }
}

fn guard(mode: Mode, highest: Response, state: GuardState) -> WatchedStatus {
    let identity = IdentityStatus {
        starts: 4,
        live: 2,
        live_peak: 3,
        oldest_seconds: Some(60),
        starts_per_second: per_second(),
        used: Some(1),
        idle: Some(1),
        suspended: 1,
        disconnected: Some(1),
        orphaned: Some(0),
        memory_bytes: Some(4096),
        look_age_seconds: Some(61),
    };
    let totals = TotalsStatus {
        process_forks: 1,
        thread_forks: 2,
        execs: 3,
        process_exits: 4,
        thread_exits: 5,
        arrivals: 6,
        departures: 7,
        dropped: 8,
    };
    let guard = GuardStatus {
        guard: mcp_guard_core::id::GuardId(0),
        name: "gateway".to_owned(),
        mode,
        highest,
        state,
        refused: Some("it holds PID 1".to_owned()),
        processes: 2,
        pids: [7, 8].map(Pid).to_vec(),
        not_kept: 0,
        identities: BTreeMap::from([("@acme/server".to_owned(), identity)]),
        totals,
        forks_per_second: per_second(),
        execs_per_second: per_second(),
        starts_per_second: per_second(),
    };
    WatchedStatus {
        guard,
        cgroup: "/docker/a".to_owned(),
        cgroup_id: CgroupId(u64::MAX),
        container: Some("a".to_owned()),
        paused: false,
        stopping: Some(3),
        by_hand: false,
        pids_max: Some("max".to_owned()),
        pids_current: Some(12),
        pids_wanted: Some(100),
        pids_policy: Some(100),
        pids_left: false,
    }
}

fn status(engine: EngineState) -> Status {
    Status {
        version: "0.1.0".to_owned(),
        pid: Pid(7),
        uptime_ms: 1000,
        mode: Mode::Observe,
        guards: vec![
            guard(Mode::Observe, Response::Record, GuardState::Free),
            guard(Mode::Enforce, Response::Clamp, GuardState::Clamped),
            guard(Mode::Enforce, Response::Freeze, GuardState::Frozen),
            guard(Mode::Enforce, Response::Kill, GuardState::FrozenAndClamped),
        ],
        losses: BTreeMap::from([("ring-full".to_owned(), 0)]),
        audit_lost: 0,
        unguarded: 0,
        longest_turn_us: 0,
        herds: vec![HerdStatus {
            engine: "/var/run/docker.sock".to_owned(),
            identity: "mcp/time".to_owned(),
            abandoned: 3,
            ended: 4,
            containers: vec!["a".to_owned()],
            dead_connections: 3,
            living_connections: 1,
            longest_seconds: 60,
        }],
        clients_unseen: vec![UnseenClients { engine: "/run/other.sock".to_owned(), seconds: 90 }],
        engine,
        policy: PolicyStatus {
            files: vec!["/etc/mcp-guard/policy.toml".to_owned()],
            error: Some("line 3".to_owned()),
        },
    }
}

fn servers(contact: Contact) -> Servers {
    let server = ServerStatus {
        identity: "@acme/server".to_owned(),
        pid: Pid(7),
        processes: 2,
        age_seconds: 60,
        idle_seconds: Some(5),
        contact_seconds: Some(7),
        started_boot_ns: 7,
        contact,
        quiescent: Some(false),
        at_work: Some("it has not read all of its stdin".to_owned()),
        abandoned: Some(true),
        stopped: false,
        suspended_seconds: None,
        orphaned: Some(false),
        look_age_seconds: Some(61),
        memory_bytes: Some(4096),
        client: Some(ClientStatus {
            pid: Pid(1),
            name: Some("gateway".to_owned()),
            session: Some("4".to_owned()),
            holds_stdio: true,
        }),
        starter: Some(StarterStatus {
            pid: Pid(1),
            name: Some("gateway".to_owned()),
            session: Some("4".to_owned()),
        }),
    };
    let guard = GuardServers {
        name: "gateway".to_owned(),
        cgroup: "/docker/a".to_owned(),
        cgroup_id: CgroupId(7),
        servers: vec![server],
    };
    Servers { guards: vec![guard], left_out: 0, age_seconds: 3 }
}

fn check_calls_that_act(described: &Read) {
    let target = || TargetCgroup {
        cgroup: "/x".into(),
        cgroup_id: CgroupId(7),
        name: "x".into(),
        paused: true,
    };
    let outcomes = [
        Outcome::Done,
        Outcome::Requested,
        Outcome::NotNeeded,
        Outcome::WouldDo,
        Outcome::Refused,
        Outcome::NotOurs,
        Outcome::Failed,
    ];
    let answers = outcomes.map(|outcome| Answer { outcome, detail: "frozen 1".to_owned() });
    let despite = Some(Despite { pid: Pid(7), start_ticks: Ticks(70) });
    let freeze = Freeze { target: target(), lease_ms: 5, dry_run: true, despite };
    described.check_call(&freeze, &answers);
    described.check_call(&Thaw { target: target() }, &answers);
    described.check_call(&Kill { target: target(), dry_run: true, despite }, &answers);
    let servers = vec![ListedServer { pid: Pid(7), started_boot_ns: 70 }];
    let suspend = Suspend { target: target(), servers: servers.clone(), dry_run: true };
    described.check_call(&suspend, &answers);
    described.check_call(&Resume { target: target(), servers: servers.clone() }, &answers);
    let reap = Reap { target: target(), servers, dry_run: true };
    described.check_call(&reap, &answers);
}

#[test]
fn messages_have_exactly_the_described_fields() {
    let described = read_description();
    let away = EngineState::Away("no such file".to_owned());
    let engines = [EngineState::None, EngineState::Connecting, EngineState::Connected, away];
    described.check_call(&GetStatus {}, &engines.map(status));
    let asked = GetServers { cgroup_id: Some(CgroupId(7)), identity: Some("a".to_owned()) };
    let contacts = [
        Contact::Unknown,
        Contact::NoStdio,
        Contact::Connected,
        Contact::Closing,
        Contact::Disconnected,
    ];
    described.check_call(&asked, &contacts.map(servers));
    check_calls_that_act(&described);
    let texts = || vec!["a".to_owned()];
    let reloaded = Reloaded { files: texts(), changes: texts(), error: Some("why".to_owned()) };
    described.check_call(&ReloadPolicy {}, &[reloaded]);
    let sources = vec![PolicySource { name: "a".to_owned(), text: "b".to_owned() }];
    let in_force = PolicyInForce { file: Some("a".to_owned()), age_ms: 7, sources };
    described.check_call(&GetPolicy {}, &[in_force]);
    let record = RecordTrace { cgroup_id: CgroupId(7), for_ms: 1000 };
    described.check_call(&record, &[TracePart { lines: "{}\n".to_owned() }]);
    let failure = failed("why");
    assert_eq!(failure.error.as_deref(), Some("io.mcpguard.Failed"));
    described.check_fields(&failure.parameters, &described.errors["Failed"], "Failed");
    // The description has no other methods and errors.
    let names: Vec<&str> = described.methods.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "Freeze",
            "Kill",
            "PolicyInForce",
            "Reap",
            "RecordTrace",
            "ReloadPolicy",
            "Resume",
            "Servers",
            "Status",
            "Suspend",
            "Thaw"
        ]
    );
    assert_eq!(described.errors.len(), 1);
}

/// A field that is null here is optional in the description, and no other field is.
#[test]
fn fields_that_may_be_missing_are_described_as_optional() {
    let described = read_description();
    let mut empty = guard(Mode::Observe, Response::Record, GuardState::Free);
    (empty.guard.refused, empty.container, empty.pids_max) = (None, None, None);
    (empty.pids_current, empty.pids_wanted, empty.pids_policy) = (None, None, None);
    empty.stopping = None;
    let mut empty_identities = empty.guard.identities.clone();
    assert!(!empty_identities.is_empty());
    let sent = serde_json::to_value(empty).unwrap();
    let is_missing = |name: &str| sent.get(name).is_none_or(Value::is_null);
    for (name, kind) in fields(&described.types["Guard"]) {
        assert_eq!(is_missing(name), kind.starts_with('?'), "{name}: {kind}");
    }
    for one in empty_identities.values_mut() {
        (one.used, one.idle, one.disconnected, one.orphaned) = (None, None, None, None);
        (one.memory_bytes, one.oldest_seconds, one.look_age_seconds) = (None, None, None);
        let sent = serde_json::to_value(one).unwrap();
        for (name, kind) in fields(&described.types["Identity"]) {
            assert_eq!(sent[name].is_null(), kind.starts_with('?'), "{name}: {kind}");
        }
    }
    let mut unknown = servers(Contact::Unknown).guards.remove(0).servers.remove(0);
    (unknown.idle_seconds, unknown.orphaned, unknown.memory_bytes) = (None, None, None);
    (unknown.client, unknown.quiescent, unknown.at_work) = (None, None, None);
    (unknown.abandoned, unknown.starter) = (None, None);
    (unknown.look_age_seconds, unknown.contact_seconds) = (None, None);
    let sent = serde_json::to_value(unknown).unwrap();
    for (name, kind) in fields(&described.types["Server"]) {
        assert_eq!(sent[name].is_null(), kind.starts_with('?'), "{name}: {kind}");
    }
}

/// Varlink's grammar: a letter first, and underscores only between letters and digits.
#[test]
fn all_names_are_allowed_by_varlink() {
    let described = read_description();
    let is_name = |name: &str| {
        let parts_are_plain = name
            .split('_')
            .all(|part| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric()));
        name.starts_with(|c: char| c.is_ascii_alphabetic()) && parts_are_plain
    };
    for (name, definition) in &described.types {
        assert!(name.starts_with(|c: char| c.is_ascii_uppercase()) && is_name(name), "{name}");
        for member in definition.split(',') {
            let member = member.split(':').next().unwrap_or_default().trim();
            assert!(is_name(member), "{name}: {member}");
        }
    }
}
