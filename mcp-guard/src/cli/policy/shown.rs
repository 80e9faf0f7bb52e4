//! Chooses the policy that is shown: the one that the agent runs, or that of the files.

use std::path::Path;

use mcp_guard_core::policy::Policy;

use super::super::{Failure, HostOptions, diagnose::DEFAULT_POLICY, run::read_policy};
use crate::{
    control::{
        client, lock,
        wire::{GetPolicy, PolicyInForce},
    },
    policy_files,
    render::{PolicyFrom, ShownPolicy},
};

/// Most changes that are counted.
const MOST_CHANGES: usize = 1000;

pub(super) struct Chosen {
    pub policy: Policy,
    pub about: ShownPolicy,
}

/// Chooses the files that the caller names; else the policy that the agent runs; else, without an agent, the files of
/// the service.
pub(super) fn choose(host: &HostOptions, file: Option<&Path>) -> Result<Chosen, Failure> {
    let agent = client::call(&lock::socket(&host.run_dir), &GetPolicy {});
    let path = file.unwrap_or_else(|| Path::new(DEFAULT_POLICY));
    match (agent, file) {
        (Ok(agent), None) => of_agent(&agent),
        (Ok(agent), Some(_)) => of_files_beside(path, &agent),
        (Err(client::Error::NoAgent(_)), _) => of_files(path, None, None),
        (Err(error), _) => {
            let why = format!(
                "this is the policy of {}; it is not known whether the agent runs it: {error}",
                path.display()
            );
            of_files(path, None, Some(why))
        }
    }
}

fn of_files(path: &Path, differs: Option<bool>, note: Option<String>) -> Result<Chosen, Failure> {
    let policy = read_policy(path)?;
    Ok(Chosen { policy, about: ShownPolicy { from: PolicyFrom::Files, differs, note } })
}

/// The caller named files, and an agent runs.
fn of_files_beside(path: &Path, agent: &PolicyInForce) -> Result<Chosen, Failure> {
    let policy = read_policy(path)?;
    let running = load(agent)?;
    let differs = !policy.means_the_same_as(&running);
    let note = differs.then(|| {
        format!(
            "this is the policy of {}; the agent runs another one, read {} ago ({}); without --policy, the agent's is \
             shown",
            path.display(),
            age(agent),
            differences(&running, &policy)
        )
    });
    Ok(Chosen {
        policy,
        about: ShownPolicy { from: PolicyFrom::Files, differs: Some(differs), note },
    })
}

/// The policy that the agent runs, with a note if its files would give another one.
fn of_agent(agent: &PolicyInForce) -> Result<Chosen, Failure> {
    let running = load(agent)?;
    let about = |differs, note| ShownPolicy { from: PolicyFrom::Agent, differs, note };
    let Some(file) = &agent.file else {
        let note = "the agent was started without --policy, and so runs the defaults";
        return Ok(Chosen { policy: running, about: about(None, Some(note.to_owned())) });
    };
    let still = || format!("the agent still runs this policy, read {} ago", age(agent));
    match policy_files::read(Path::new(file)) {
        // Its lines are those that the caller finds in the files.
        Ok(read) if read.policy.means_the_same_as(&running) => {
            Ok(Chosen { policy: read.policy, about: about(Some(false), None) })
        }
        Ok(read) => {
            let note = format!(
                "{}; its files have changed since ({}); `mcp-guard policy reload` applies them",
                still(),
                differences(&running, &read.policy)
            );
            Ok(Chosen { policy: running, about: about(Some(true), Some(note)) })
        }
        Err(error) => {
            let why = error.text.lines().next().unwrap_or_default();
            let note = format!(
                "{}; its files cannot be applied now: {why}; `mcp-guard policy check {file}` shows \
                 the error",
                still()
            );
            Ok(Chosen { policy: running, about: about(Some(true), Some(note)) })
        }
    }
}

fn load(agent: &PolicyInForce) -> Result<Policy, Failure> {
    Policy::load(&agent.sources).map_err(|error| {
        Failure::could_not(format!(
            "the agent runs a policy that this version of mcp-guard does not read: {error}\nrestart the \
             agent, or give --policy FILE"
        ))
    })
}

fn age(agent: &PolicyInForce) -> humantime::FormattedDuration {
    humantime::format_duration(std::time::Duration::from_secs(agent.age_ms / 1000))
}

fn differences(before: &Policy, after: &Policy) -> String {
    match before.changes(after, MOST_CHANGES).len() {
        0 => "in the order of their entries".to_owned(),
        1 => "1 difference".to_owned(),
        count if count > MOST_CHANGES => format!("more than {MOST_CHANGES} differences"),
        count => format!("{count} differences"),
    }
}
