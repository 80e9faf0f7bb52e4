//! The interface in Varlink's own language, generated from the types that are sent and read.

use std::fmt::Write as _;

use mcp_guard_core::{
    evidence::Contact,
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

use super::{
    varlink::{Fields, Types, fields, named, plain, words},
    wire::{
        Answer, EngineState, Failed, Freeze, GetPolicy, GetServers, GetStatus, GuardServers,
        INTERFACE, Kill, Method, PolicyInForce, PolicyStatus, Reap, RecordTrace, ReloadPolicy,
        Reloaded, Resume, Servers, Status, Suspend, TargetCgroup, Thaw, TracePart, WatchedStatus,
    },
};

/// Returns the description of [`INTERFACE`].
#[must_use]
pub fn description() -> String {
    let mut types = Types::new();
    let methods = [
        "# The agent's status, as `mcp-guard status --json` prints it.".to_owned(),
        method::<GetStatus>(&mut types),
        "\n# The live servers, as `mcp-guard status --servers --json` prints them.".to_owned(),
        method::<GetServers>(&mut types),
        "\n# Records what happens in a guard, as `mcp-guard record` writes it. Called with `more`; \
         each reply has some lines."
            .to_owned(),
        method::<RecordTrace>(&mut types),
        "\n# Reads the policy again. With `error`, the old one stays in force.".to_owned(),
        method::<ReloadPolicy>(&mut types),
        "\n# The policy that the agent runs, and the file from which a reload reads it.".to_owned(),
        method::<GetPolicy>(&mut types),
        "\n# The target is a cgroup of the unified tree, given by path and id; the two must still match."
            .to_owned(),
        method::<Freeze>(&mut types),
        method::<Thaw>(&mut types),
        method::<Kill>(&mut types),
        method::<Suspend>(&mut types),
        method::<Resume>(&mut types),
        method::<Reap>(&mut types),
        format!("\nerror Failed {}", list::<Failed>(&mut types)),
    ];
    let mut text = format!(
        "# Guards and holds of mcp-guard. Times are in milliseconds.\ninterface {INTERFACE}\n\n"
    );
    for (name, definition) in types {
        let _ = writeln!(text, "type {name} {definition}\n");
    }
    text + &methods.join("\n") + "\n"
}

fn method<M: Method + Fields>(types: &mut Types) -> String
where
    M::Reply: Fields,
{
    format!("method {}{} -> {}", M::NAME, list::<M>(types), list::<M::Reply>(types))
}

fn list<T: Fields>(types: &mut Types) -> String {
    format!("({})", T::fields(types).join(", "))
}

fields!(GetStatus {});
fields!(GetServers { cgroup_id, identity });
fields!(Servers { guards, left_out, age_seconds });
fields!(GuardServers { name, cgroup, cgroup_id, servers });
fields!(ServerStatus {
    identity,
    pid,
    processes,
    started_boot_ns,
    age_seconds,
    idle_seconds,
    contact,
    contact_seconds,
    quiescent,
    at_work,
    abandoned,
    stopped,
    suspended_seconds,
    orphaned,
    memory_bytes,
    look_age_seconds,
    client,
    starter,
});
fields!(ClientStatus { pid, name, session, holds_stdio });
fields!(StarterStatus { pid, name, session });
fields!(Freeze { target: flattened, lease_ms, dry_run: optional, despite });
fields!(Thaw { target: flattened });
fields!(Kill { target: flattened, dry_run: optional, despite });
fields!(Suspend { target: flattened, servers, dry_run: optional });
fields!(Resume { target: flattened, servers });
fields!(Reap { target: flattened, servers, dry_run: optional });
fields!(ListedServer { pid, started_boot_ns });
fields!(Despite { pid, start_ticks });
fields!(TargetCgroup { cgroup, cgroup_id, name, paused: optional });
fields!(Answer { outcome, detail });
fields!(Failed { reason });
fields!(Status {
    version,
    pid,
    uptime_ms,
    mode,
    guards,
    losses,
    audit_lost,
    unguarded,
    longest_turn_us,
    herds,
    clients_unseen,
    engine,
    policy
});
fields!(PolicyStatus { files, error });
fields!(RecordTrace { cgroup_id, for_ms });
fields!(TracePart { lines });
fields!(ReloadPolicy {});
fields!(GetPolicy {});
fields!(PolicyInForce { file, age_ms, sources });
fields!(PolicySource { name, text });
fields!(Reloaded { files, changes, error });
fields!(HerdStatus {
    engine,
    identity,
    abandoned,
    ended,
    containers,
    dead_connections,
    living_connections,
    longest_seconds,
});
fields!(UnseenClients { engine, seconds });
fields!(WatchedStatus {
    guard: flattened,
    cgroup,
    cgroup_id,
    container,
    paused,
    stopping,
    by_hand,
    pids_max,
    pids_current,
    pids_wanted,
    pids_policy,
    pids_left,
});
fields!(GuardStatus {
    guard,
    name,
    mode,
    highest,
    state,
    refused,
    processes,
    pids,
    not_kept,
    identities,
    totals,
    forks_per_second,
    execs_per_second,
    starts_per_second,
});
fields!(IdentityStatus {
    starts,
    live,
    live_peak,
    oldest_seconds,
    starts_per_second,
    used,
    idle,
    suspended,
    disconnected,
    orphaned,
    memory_bytes,
    look_age_seconds,
});
fields!(TotalsStatus {
    process_forks,
    thread_forks,
    execs,
    process_exits,
    thread_exits,
    arrivals,
    departures,
    dropped,
});

named! { ListedServer => "ListedServer", PolicyStatus => "Policy", PolicySource => "PolicyFile", Despite => "Despite", WatchedStatus => "Guard", GuardServers => "GuardServers", ServerStatus => "Server", ClientStatus => "Client", StarterStatus => "Starter", HerdStatus => "Herd", UnseenClients => "UnseenClients", IdentityStatus => "Identity", TotalsStatus => "Totals" }

words!(Mode { Observe, Enforce });
words!(Response { Record, Clamp, Freeze, Kill });

plain! {
    // A map by window, because "10s" is not a valid field name in Varlink.
    PerSecond => "[string]float",
    // Strings, because Varlink does not allow such words in an enum: "not-ours", "frozen, clamped",
    // "away: WHY".
    Outcome => "string",
    GuardState => "string",
    Contact => "string",
    EngineState => "string",
}
