//! Reads the policy again, on a thread of its own: its files may be on a file server that does not answer. Until a good
//! one is read, the old one stays in force.

use std::{
    io, mem,
    path::{self, PathBuf},
    sync::mpsc,
    time::Duration,
};

use mcp_guard_core::{Time, audit::Record, effect::Input, policy::PolicySource};
use tokio::sync::mpsc::UnboundedSender;

use super::{
    Agent,
    askers::{ReplyTo, send, send_reply},
};
use crate::{
    control::wire::{PolicyInForce, PolicyStatus, Reloaded, failed},
    host::clock,
    policy_files::{BadPolicy, ReadPolicy, read},
};

/// How long a reading may take before those who wait for it are answered.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most changes that are listed.
const MOST_CHANGES: usize = 100;

pub(super) type PolicyRead = Result<ReadPolicy, BadPolicy>;

/// A reading under way, and who waits for it.
struct ReadUnderWay {
    since: Time,
    waiting: Vec<ReplyTo>,
    /// Its lateness has been reported.
    is_late: bool,
}

pub(super) struct Reloads {
    /// `None` if the agent was started without a policy.
    asks: Option<mpsc::Sender<()>>,
    under_way: Option<ReadUnderWay>,
    /// Those who asked while a reading was under way. It may have begun before their change.
    next: Option<Vec<ReplyTo>>,
    file: Option<PathBuf>,
    /// The policy in force as it was read.
    sources: Vec<PolicySource>,
    read_at: Time,
    /// Why the policy in the files is not in force.
    error: Option<String>,
}

impl Reloads {
    /// # Errors
    /// The thread cannot be created.
    pub fn start(
        now: Time,
        file: Option<PathBuf>,
        sources: Vec<PolicySource>,
        answers: UnboundedSender<PolicyRead>,
    ) -> io::Result<Self> {
        let asks = file.clone().map(|file| reader(file, answers)).transpose()?;
        let (under_way, next, error) = (None, None, None);
        Ok(Self { asks, under_way, next, file, sources, read_at: now, error })
    }

    /// Whether there is a file to read.
    pub fn has_file(&self) -> bool {
        self.asks.is_some()
    }

    /// Whether the present content of the files is not in force.
    pub fn is_rejected(&self) -> bool {
        self.error.is_some()
    }

    /// Whether a reading is under way that takes too long.
    fn is_late(&self) -> bool {
        self.under_way.as_ref().is_some_and(|one| one.is_late)
    }

    fn ask(&mut self, now: Time, waiting: Vec<ReplyTo>) {
        if let Some(is_late) = self.under_way.as_ref().map(|one| one.is_late) {
            let next = self.next.get_or_insert_default();
            if is_late {
                self.refused(&late(), waiting);
            } else {
                next.extend(waiting);
            }
        } else if let Some(asks) = &self.asks {
            // The thread never ends.
            let _ = asks.send(());
            self.under_way = Some(ReadUnderWay { since: now, waiting, is_late: false });
        } else {
            let why = "the agent was started without --policy: there is no file to read";
            waiting.into_iter().for_each(|reply| send_reply(reply, failed(why)));
        }
    }

    fn took(
        &mut self,
        now: Time,
        sources: Vec<PolicySource>,
        changes: &[String],
        waiting: Vec<ReplyTo>,
    ) {
        (self.sources, self.read_at, self.error) = (sources, now, None);
        for reply in waiting {
            let (files, changes) = (self.files(), changes.to_vec());
            send(reply, Reloaded { files, changes, error: None });
        }
    }

    fn refused(&mut self, error: &str, waiting: Vec<ReplyTo>) {
        self.error = Some(error.to_owned());
        for reply in waiting {
            let (files, changes, error) = (Vec::new(), Vec::new(), Some(error.to_owned()));
            send(reply, Reloaded { files, changes, error });
        }
    }

    fn files(&self) -> Vec<String> {
        self.sources.iter().map(|source| source.name.clone()).collect()
    }

    pub fn status(&self) -> PolicyStatus {
        PolicyStatus { files: self.files(), error: self.error.clone() }
    }

    pub fn in_force(&self, now: Time) -> PolicyInForce {
        PolicyInForce {
            // As the command line sees it, which may be in another directory.
            file: self.file.as_ref().map(|file| {
                path::absolute(file).unwrap_or_else(|_| file.clone()).display().to_string()
            }),
            age_ms: u64::try_from(now.since(self.read_at).as_millis()).unwrap_or(u64::MAX),
            sources: self.sources.clone(),
        }
    }
}

fn late() -> String {
    format!(
        "policy: its files could not be read within {PATIENCE:?}; the policy is applied when they can \
         be read; if their file server is gone for good, restart the agent"
    )
}

/// Starts the thread. It is created at the start, because a host that is full of processes refuses one later.
fn reader(path: PathBuf, answers: UnboundedSender<PolicyRead>) -> io::Result<mpsc::Sender<()>> {
    // One question at a time is under way.
    let (asks, waiting) = mpsc::channel();
    std::thread::Builder::new().name("policy".to_owned()).spawn(move || {
        while waiting.recv().is_ok() {
            let _ = answers.send(read(&path));
        }
    })?;
    Ok(asks)
}

impl Agent {
    /// Has the policy read again. `reply`: who waits for it.
    pub(super) fn reload(&mut self, reply: Option<ReplyTo>) {
        if self.reloads.has_file() {
            self.notify.reloading();
        }
        self.reloads.ask(clock::now(), reply.into_iter().collect());
        if self.reloads.is_late() {
            // It was refused. systemd waits for an end.
            self.notify.reloaded();
        }
    }

    /// Applies the policy that was read, or says why it is not applied.
    pub(super) fn policy_read(&mut self, read: PolicyRead) {
        let waiting = self.reloads.under_way.take().map_or_else(Vec::new, |one| one.waiting);
        match read {
            Ok(read) => {
                let files = read.files();
                let ReadPolicy { policy, sources } = read;
                let changes = self.core.policy().changes(&policy, MOST_CHANGES);
                tracing::info!(changes = changes.len(), "the policy was read again");
                self.executor.audit.write(Record::PolicyReloaded {
                    mode: policy.mode,
                    files,
                    changes: changes.clone(),
                });
                self.step(Input::Policy(Box::new(policy)));
                self.look_for_named();
                self.reloads.took(clock::now(), sources, &changes, waiting);
            }
            Err(bad) => self.keep_policy(&bad.text, waiting),
        }
        match self.reloads.next.take() {
            Some(waiting) => self.reloads.ask(clock::now(), waiting),
            None => self.notify.reloaded(),
        }
    }

    fn keep_policy(&mut self, error: &str, waiting: Vec<ReplyTo>) {
        tracing::error!("the policy is not applied, and the old one stays in force: {error}");
        let error = error.to_owned();
        self.executor.audit.write(Record::PolicyRejected { reason: error.clone() });
        self.reloads.refused(&error, waiting);
    }

    /// Looks for what the new policy names.
    fn look_for_named(&mut self) {
        self.unguarded.try_again(clock::now());
        self.guard_named_cgroups();
        self.engines.all.ask_again();
    }

    /// Answers those who wait for a reading that does not end.
    pub(super) fn check_reload(&mut self, now: Time) {
        let Some(under_way) = &mut self.reloads.under_way else { return };
        if under_way.is_late || now.since(under_way.since) < PATIENCE {
            return;
        }
        under_way.is_late = true;
        let mut waiting = mem::take(&mut under_way.waiting);
        waiting.extend(self.reloads.next.as_mut().map(mem::take).unwrap_or_default());
        self.keep_policy(&late(), waiting);
        // systemd waits for it, too.
        self.notify.reloaded();
    }
}
