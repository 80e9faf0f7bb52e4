//! How the agent begins: everything that can fail fails here, before it says that it is ready.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::Context as _;
use mcp_guard_core::{Core, audit::Record, effect::End, policy::Mode};
use tokio::{
    io::Interest,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use super::{
    ASK_AGAIN, Agent, Options, QUEUE, Sources, limits::News, notify::Notify, reader::Reader,
};
use crate::{
    audit::Audit,
    control::{lock, server, wire::EngineState},
    executor::{Confirmed, Executor},
    host::{
        bpf::Kernel,
        clock,
        layout::Layout,
        observer::Observer,
        poll::{self, Alarm},
    },
    wanted::Limits,
};

impl Agent {
    pub(super) async fn start(options: Options) -> anyhow::Result<(Self, Sources)> {
        let layout = Layout::read().context("reading the cgroup layout")?;
        let audit = Audit::open(&options.audit)
            .with_context(|| format!("the audit log {}", options.audit.display()))?;
        let (executor, confirmed) = Executor::new(audit, layout.clone());
        let engines = options.engines;
        let kernel = Kernel::start(options.bpf)?;
        let now = clock::now();
        // At most one answer for each guard is under way.
        let (news, answered) = mpsc::unbounded_channel();
        let limits = Limits::new(&options.state_dir);
        let observer = Observer::start();
        let reader = Reader::start(engines.clone(), limits.clone(), observer.clone(), news.clone())
            .context("a thread that reads facts")?;
        let mut agent = Self {
            core: Core::new(options.policy),
            executor,
            kernel,
            layout,
            engine_state: match engines.is_empty() {
                true => EngineState::None,
                false => EngineState::Connecting,
            },
            engines,
            described: BTreeMap::new(),
            free: (0..mcp_guard_common::MAX_GUARDS).collect(),
            by_hand: BTreeMap::new(),
            unguardable: BTreeMap::new(),
            unfound: BTreeSet::new(),
            keeps: BTreeMap::new(),
            limits,
            questions: 0,
            reader,
            observer,
            news,
            askers: BTreeMap::new(),
            losses: BTreeMap::new(),
            notify: Notify::from_environment(),
            dropped: 0,
            behind_a_loss: false,
            started: now,
            next_tick: now,
            next_look: now,
            next_untold: now,
        };
        let mode = agent.begin().await;
        let sources = agent.listen(&options.run_dir, confirmed, answered)?;
        tracing::info!(%mode, "mcp-guard {} is watching", env!("CARGO_PKG_VERSION"));
        Ok((agent, sources))
    }

    /// Opens all that can wake the loop.
    fn listen(
        &self,
        run_dir: &Path,
        confirmed: mpsc::UnboundedReceiver<Confirmed>,
        news: mpsc::UnboundedReceiver<News>,
    ) -> anyhow::Result<Sources> {
        let (to_loop, calls) = mpsc::channel(QUEUE);
        let (to_changes, changes) = mpsc::channel(QUEUE);
        let listener = server::listen(&lock::socket(run_dir)).context("control socket")?;
        tokio::spawn(server::serve(listener, to_loop));
        self.engines.watch(&to_changes, ASK_AGAIN);
        Ok(Sources {
            ring: poll::register(self.kernel.readiness()?, Interest::READABLE)?,
            confirmed,
            calls,
            changes,
            news,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            alarm: Alarm::new()?,
        })
    }

    async fn begin(&mut self) -> Mode {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let mode = self.core.policy().mode;
        self.executor.audit.write(Record::AgentStart { version, mode });
        // What an agent left that was killed.
        self.release_orphans(End::Reconcile).await;
        mode
    }
}
