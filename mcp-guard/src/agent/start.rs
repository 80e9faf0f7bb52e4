//! Starts the agent. Everything that can fail fails here, before the agent reports that it is ready.

use std::path::Path;

use anyhow::Context as _;
use mcp_guard_core::{Core, audit::Record, effect::Input, incident::End, policy::Mode};
use tokio::{
    io::Interest,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use super::{
    ASK_AGAIN, Agent, AgentOptions, QUEUE, Sources,
    answers::Answers,
    askers::Askers,
    clients::Clients,
    counting::Counting,
    evidence::Lookers,
    herd::HerdLooker,
    known::KnownEngines,
    lanes::Sighted,
    limits::Upkeep,
    notify::Notify,
    reader::{FactsReader, News},
    recordings::Recordings,
    reload::{PolicyRead, Reloads},
    rescan::{Reading, Rescans},
    standing::{Looked, Standings},
    turn::Turns,
    unguarded::Unguarded,
};
use crate::{
    audit::Audit,
    control::{lock, server},
    executor::{Executor, reconcile::Unsigned},
    guards::Guards,
    host::{
        bpf::Kernel,
        clock,
        evidence::Freezers,
        facts::LookThread,
        kernel,
        layout::Layout,
        observer::Observer,
        poll::{self, Alarm},
    },
    policy_files::ReadPolicy,
    requests::Requests,
};

/// The answers of the agent's own threads.
struct FromThreads {
    news: mpsc::UnboundedReceiver<News>,
    readings: mpsc::UnboundedReceiver<Reading>,
    looked: mpsc::UnboundedReceiver<Looked>,
    evidence: mpsc::UnboundedReceiver<Sighted>,
    policies: mpsc::UnboundedReceiver<PolicyRead>,
}

impl Agent {
    pub(super) async fn start(options: AgentOptions) -> anyhow::Result<(Self, Sources)> {
        let layout = Layout::read().context("cannot read the cgroup layout")?;
        let audit = Audit::open(&options.audit)
            .with_context(|| format!("cannot open the audit log {}", options.audit.display()))?;
        let unsigned = Unsigned::decide().context("cannot make the key for marks")?;
        let engines = options.engines;
        let looks = LookThread::start().context("cannot start the thread that looks at cgroups")?;
        let executor = Executor::new(audit, layout.clone(), engines.clone());
        let executor = executor.with_looks(looks.clone()).with_server_threads()?;
        let kernel = Kernel::start(options.bpf)?;
        let now = clock::now();
        // Bounded by the number of guards: at most one answer per guard is under way.
        let (to_news, news) = mpsc::unbounded_channel();
        let requests = Requests::new(&options.state_dir);
        let observer = Observer::start();
        let (asked, seen_by) = (engines.clone(), observer.clone());
        let reader = FactsReader::start(asked, requests.clone(), seen_by, to_news.clone())
            .context("cannot start the thread that reads facts")?;
        // One reading at a time is under way.
        let (read, readings) = mpsc::unbounded_channel();
        // At most one look per guard.
        let (to_looked, looked) = mpsc::unbounded_channel();
        let rescans = Rescans::start(observer.clone(), read)
            .context("cannot start the thread that reads processes after a loss")?;
        // One guard per lane, in parts, one batch, and one look per engine are under way.
        let (to_evidence, evidence) = mpsc::unbounded_channel();
        let lookers = Lookers::start(now, Freezers::of(&layout), &to_evidence)
            .context("cannot start the threads that look at servers")?;
        let clients = Clients::start(observer.clone())
            .context("cannot start the thread that looks for clients")?;
        // One reading at a time is under way.
        let (to_policies, policies) = mpsc::unbounded_channel();
        let ReadPolicy { policy, sources } = options.policy;
        let reloads = Reloads::start(now, options.policy_file, sources, to_policies)
            .context("cannot start the thread that reads the policy again")?;
        let herd_looker = HerdLooker::start(now, observer.clone(), to_evidence)
            .context("cannot start the thread that looks at the clients of containers")?;
        let mut agent = Self {
            core: Core::new(policy),
            guards: Guards::new(),
            executor,
            counting: Counting::new(kernel, now),
            rescans,
            lookers,
            herd_looker,
            engines: KnownEngines::new(engines),
            upkeep: Upkeep { requests, reader, to_news },
            askers: Askers::default(),
            answers: Answers::default(),
            clients,
            reloads,
            recordings: Recordings::default(),
            standings: Standings::new(looks, to_looked),
            unguarded: Unguarded::default(),
            layout,
            observer,
            notify: Notify::from_environment(),
            turns: Turns::since(now),
        };
        let mode = agent.begin(unsigned).await;
        let from_threads = FromThreads { news, readings, looked, evidence, policies };
        let sources = agent.listen(&options.run_dir, from_threads)?;
        tracing::info!(%mode, "mcp-guard {} is watching", env!("CARGO_PKG_VERSION"));
        Ok((agent, sources))
    }

    /// Opens all sources that can wake the loop.
    fn listen(&self, run_dir: &Path, from_threads: FromThreads) -> anyhow::Result<Sources> {
        let FromThreads { news, readings, looked, evidence, policies } = from_threads;
        let (to_loop, calls) = mpsc::channel(QUEUE);
        let (to_events, engine_events) = mpsc::channel(QUEUE);
        let listener =
            server::listen(&lock::socket(run_dir)).context("cannot create the control socket")?;
        tokio::spawn(server::serve(listener, to_loop));
        self.engines.all.watch(&to_events, ASK_AGAIN);
        Ok(Sources {
            ring: poll::register(self.counting.kernel.readiness()?, Interest::READABLE)?,
            calls,
            engine_events,
            news,
            readings,
            looked,
            evidence,
            policies,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            alarm: Alarm::new()?,
        })
    }

    async fn begin(&mut self, unsigned: Unsigned) -> Mode {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let mode = self.core.policy().mode;
        self.executor.audit.write(Record::AgentStart { version, mode });
        if let Some(most) = kernel::most_tasks() {
            self.step(Input::HostTasks { most });
        }
        // Holds that a killed agent left behind.
        self.release_orphans(End::Reconcile, unsigned, None).await;
        mode
    }
}
