//! `policy`: checks, shows and explains the policy, and has the agent read it again.

mod check;
mod explain;
mod shown;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::{Exit, Failure, HostOptions, diagnose::DEFAULT_POLICY, out};
use crate::{
    control::{client, lock, wire::ReloadPolicy},
    render,
};

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    verb: PolicyVerb,
}

#[derive(Debug, Subcommand)]
enum PolicyVerb {
    /// Check a policy: its files, and whether each rule matches something that runs on this host.
    Check {
        /// Policy file; the files in the folder beside it are checked too.
        #[arg(value_name = "FILE", default_value = DEFAULT_POLICY)]
        file: PathBuf,
        /// Check the files alone, for another host.
        #[arg(long)]
        offline: bool,
    },
    /// Show the policy that the agent runs, as one file, with the origin of each value.
    Show {
        /// Policy file to show instead. Without an agent, it is /etc/mcp-guard/policy.toml.
        #[arg(long, value_name = "FILE")]
        policy: Option<PathBuf>,
    },
    /// Explain which rule applies to a target, where each value comes from, and what would be done
    /// about what runs there now.
    Explain {
        /// Container name, id or id prefix; docker:NAME, unit:NAME, cgroup:/path or pid:N.
        target: String,
        /// Policy file to explain instead of the policy that the agent runs. Without an agent, it
        /// is /etc/mcp-guard/policy.toml.
        #[arg(long, value_name = "FILE")]
        policy: Option<PathBuf>,
        /// Print JSON instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Have the agent read its policy again. A bad policy changes nothing.
    Reload,
}

pub fn policy(host: &HostOptions, arguments: &Arguments) -> Result<Exit, Failure> {
    match &arguments.verb {
        PolicyVerb::Check { file, offline } => check::check(host, file, *offline),
        PolicyVerb::Show { policy } => show(host, policy.as_deref()),
        PolicyVerb::Explain { target, policy, json } => {
            explain::explain(host, target, policy.as_deref(), *json)
        }
        PolicyVerb::Reload => reload(host),
    }
}

fn show(host: &HostOptions, file: Option<&Path>) -> Result<Exit, Failure> {
    let chosen = shown::choose(host, file)?;
    out::answer(&render::shown(&chosen.about, &chosen.policy));
    Ok(Exit::Done)
}

fn reload(host: &HostOptions) -> Result<Exit, Failure> {
    let answer = client::call(&lock::socket(&host.run_dir), &ReloadPolicy {});
    let answer = answer.map_err(|error| {
        if !matches!(error, client::Error::NoAgent(_)) {
            return Failure::could_not(error);
        }
        Failure::could_not(format!(
            "{error}, so there is nothing to reload: `systemctl start mcp-guard` starts one, which reads the \
             policy then; `mcp-guard policy check` tests the files without an agent"
        ))
    })?;
    if let Some(error) = answer.error {
        return Err(Failure::data(format!("{error}\nthe old policy stays in force")));
    }
    let mut text = format!("read {}\n", answer.files.join(", "));
    answer.changes.iter().for_each(|change| text += &format!("  {change}\n"));
    if answer.changes.is_empty() {
        text += "nothing has changed\n";
    }
    out::answer(&text);
    Ok(Exit::Done)
}
