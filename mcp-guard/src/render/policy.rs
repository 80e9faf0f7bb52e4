//! The text of `policy explain`.

use mcp_guard_core::{
    escape::visible,
    incident::Cause,
    policy::{Explained, ExplainedServer, PlacedRule, PlacedValue, Policy, Response},
};
use serde::Serialize;

/// Column at which the origins begin.
const COLUMN: usize = 44;

/// Where a policy comes from that is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyFrom {
    /// The agent runs it.
    Agent,
    Files,
}

/// Which policy is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShownPolicy {
    pub from: PolicyFrom,
    /// Whether the files differ from the policy that the agent runs. `None`: no agent runs, or that is not known.
    pub differs: Option<bool>,
    /// In words, with what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// A container or a cgroup, and what the policy says about it.
#[derive(Debug, Serialize)]
pub struct ExplainedTarget {
    /// The policy that is explained.
    pub source: ShownPolicy,
    pub name: String,
    pub cgroup: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    #[serde(flatten)]
    pub policy: Explained,
    /// Its processes, as they are now.
    pub processes: usize,
    /// Its live servers by identity.
    pub servers_live: Vec<(String, usize)>,
    /// Why it is not known whether a bystander rule forbids acting on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forbidden_unknown: Option<String>,
    pub decisions: Vec<Decision>,
}

/// A decision that the detectors would make now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// `None` for a warning.
    pub response: Option<Response>,
    /// As in the audit log.
    pub cause: Cause,
    /// Why it is not carried out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// The policy as one file. A note about it is a comment in the first line.
#[must_use]
pub fn shown(about: &ShownPolicy, policy: &Policy) -> String {
    let note = about.note.as_ref().map(|note| format!("# {}\n\n", visible(note)));
    note.unwrap_or_default() + &policy.show()
}

#[must_use]
pub fn explained(target: &ExplainedTarget) -> String {
    let ExplainedTarget { name, cgroup, image, policy, processes, .. } = target;
    let note = target.source.note.as_ref().map(|note| format!("note: {}\n", visible(note)));
    let image =
        image.as_ref().map_or_else(String::new, |image| format!(", image {}", visible(image)));
    let mut text = note.unwrap_or_default();
    text += &format!("{}{image}\n  cgroup {cgroup}\n", visible(name));
    text += &rules(policy);
    if !policy.is_guarded {
        return text;
    }
    text += "\nset for it; every other key has its default\n";
    policy.values.iter().for_each(|one| text += &value(one));
    let servers = &policy.servers;
    if !servers.is_empty() {
        text += "\nservers with terms of their own\n";
    }
    servers.iter().for_each(|one| text += &server(one));
    let plural = if *processes == 1 { "" } else { "es" };
    text += &format!("\nnow: {processes} process{plural}{}\n", live(&target.servers_live));
    if let Some(why) = &target.forbidden_unknown {
        text += &format!(
            "  NOT KNOWN whether anything forbids acting on it, because its processes could not be \
             read: {}\n",
            visible(why)
        );
    }
    for decision in &target.decisions {
        text += &decided(decision);
    }
    if target.decisions.is_empty() {
        text += "  no detector would warn or act\n";
    } else {
        text += "  This is what would follow if none of the servers is in use; an agent knows whether they are.\n";
    }
    text
}

fn rules(policy: &Explained) -> String {
    let place = |rule: &PlacedRule| {
        format!("rule {}, {} ({})", rule.number, visible(&rule.matches), visible(&rule.origin))
    };
    let mut text = match (&policy.rule, policy.is_guarded) {
        (Some(rule), _) => format!("  {} applies\n", place(rule)),
        (None, true) => "  watched, as every container is: the policy has no rules\n".to_owned(),
        (None, false) => "  NOT WATCHED: no rule matches it\n".to_owned(),
    };
    for rule in &policy.shadowed {
        text +=
            &format!("  {} matches too, and does not apply: the first match wins\n", place(rule));
    }
    text
}

fn value(PlacedValue { key, value, origin }: &PlacedValue) -> String {
    let set = visible(&format!("{key} = {value}"));
    format!("  {set:<COLUMN$}  {}\n", visible(origin))
}

fn server(server: &ExplainedServer) -> String {
    let ignored = if server.ignore { ", ignored" } else { "" };
    let entries = server.entries.iter().map(|entry| visible(entry)).collect::<Vec<_>>();
    let mut text =
        format!("  {}{ignored}: {}\n", visible(&server.identity), entries.join(", then "));
    server.values.iter().for_each(|one| text += &format!("  {}", value(one)));
    text
}

fn live(servers: &[(String, usize)]) -> String {
    let mut all: Vec<_> = servers.iter().collect();
    all.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    let shown: Vec<String> =
        all.iter().take(10).map(|(name, count)| format!("{count} {}", visible(name))).collect();
    let more = all.len().saturating_sub(shown.len());
    match (shown.is_empty(), more) {
        (true, _) => String::new(),
        (false, 0) => format!("; servers: {}", shown.join(", ")),
        (false, more) => format!("; servers: {}, and {more} more", shown.join(", ")),
    }
}

fn decided(Decision { response, cause, refused }: &Decision) -> String {
    let numbers: Vec<String> =
        cause.numbers.iter().map(|(name, value)| format!("{name} {value}")).collect();
    let found: Vec<String> = cause
        .detector
        .map(|detector| detector.to_string())
        .into_iter()
        .chain(cause.identity.as_ref().map(|identity| visible(identity)))
        .collect();
    let verb =
        response.map_or_else(|| "would warn".to_owned(), |response| format!("would {response}"));
    let refused =
        refused.as_ref().map_or_else(String::new, |why| format!("; REFUSED: {}", visible(why)));
    format!("  {verb}: {} ({}){refused}\n", found.join(" "), numbers.join(", "))
}
