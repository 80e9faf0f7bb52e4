//! A guard, what the looks at its servers show, and the orders about them.

use mcp_guard_core::{
    Core, Time,
    effect::{Action, Effect, Input, OperatorRequest, Order, Remark, Settled},
    evidence::{Activity, Channel, Channels, Contact, ServerSeen, StdioAtExec},
    id::{GuardId, Pid, RequestId, Ticket},
    incident::Outcome,
    policy::{Mode, Policy, Response, Terms},
    registry::{LiveServer, TreeId},
    server_order::ServersOrder,
};

pub const GUARD: GuardId = GuardId(3);
pub const EVERY: u64 = 30;
pub const STDIO: StdioAtExec =
    StdioAtExec::Are(Channels { stdin: Channel::Pipe(1), stdout: Channel::Pipe(2) });

/// A guard, and the orders about single servers.
pub struct Story {
    pub core: Core,
    pub seconds: u64,
    /// The pids of the servers of each order, and when it came.
    pub reaps: Vec<(u64, Vec<u32>)>,
    pub suspends: Vec<(u64, Vec<u32>)>,
    pub resumed: Vec<TreeId>,
    pub clamps: usize,
    pub warnings: usize,
    pub given_up: usize,
    pub last: Option<(Ticket, ServersOrder)>,
}

impl Story {
    pub fn new(policy: &str, mode: Mode) -> Self {
        let core = Core::new(Policy::parse(policy).expect("valid"));
        let mut story = Self {
            core,
            seconds: 1000,
            reaps: Vec::new(),
            suspends: Vec::new(),
            resumed: Vec::new(),
            clamps: 0,
            warnings: 0,
            given_up: 0,
            last: None,
        };
        let terms = Terms::new(mode, Response::Clamp);
        let (name, workload) = ("story".to_owned(), Some(Box::default()));
        story.step(Input::Guarded { guard: GUARD, name, terms, workload, refusal: None });
        story
    }

    pub fn now(&self) -> Time {
        Time(self.seconds * 1_000_000_000)
    }

    pub fn step(&mut self, input: Input) {
        let mut effects = Vec::new();
        self.core.step(self.now(), input, &mut effects);
        for effect in effects {
            let Effect::Act(Order { ticket, action, .. }) = effect else { continue };
            match action {
                Action::Reap(order) => {
                    self.reaps.push((self.seconds, roots(&order)));
                    self.last = Some((ticket, order));
                }
                Action::Suspend(order) => {
                    self.suspends.push((self.seconds, roots(&order)));
                    self.last = Some((ticket, order));
                }
                Action::Resume { servers, .. } => self.resumed.extend(servers),
                Action::GiveUpServers { .. } => self.given_up += 1,
                Action::Contain(_) => self.clamps += 1,
                Action::Warn { .. } => self.warnings += 1,
                Action::RefusalBegins { .. }
                | Action::RefusalEnds
                | Action::Refuse { .. }
                | Action::Renew { .. }
                | Action::Loosen { .. }
                | Action::Release { .. }
                | Action::Disown { .. }
                | Action::WriteLimit { .. }
                | Action::GiveUpLimit { .. }
                | Action::LeaveLimit { .. } => {}
            }
        }
    }

    pub fn start(&mut self, pid: u32, command: &[u8]) {
        let (born, pid) = (self.now(), Pid(pid));
        self.step(Input::Fork { guard: GUARD, born, child: pid, parent: Pid(1) });
        self.step(Input::Exec { guard: GUARD, born, pid, command: command.to_vec().into() });
    }

    pub fn package(&mut self, pid: u32, name: &str) {
        self.start(pid, format!("npx\0-y\0{name}\0").as_bytes());
    }

    /// Looks at all servers, as often as there are looks in this time.
    pub fn look(&mut self, seconds: u64, seen: impl Fn(u32, u64) -> ServerSeen) {
        for _ in 0..seconds / EVERY {
            self.seconds += EVERY;
            let registry = &self.core.guard(GUARD).expect("it is guarded").registry;
            let one =
                |server: LiveServer<'_>| (server.id, self.now(), seen(server.root.0, self.seconds));
            let awake = registry.servers().filter(|server| server.asleep.is_none());
            let servers = awake.map(one).collect();
            self.step(Input::Looked { guard: GUARD, servers });
        }
    }

    pub fn settle(&mut self, outcome: Outcome) {
        let (ticket, _) = self.last.take().expect("there was an order");
        self.settle_with(ticket, outcome, None);
    }

    pub fn settle_with(&mut self, ticket: Ticket, outcome: Outcome, remark: Option<Remark>) {
        let detail = String::new();
        self.step(Input::Settled(Settled { ticket, guard: GUARD, outcome, detail, remark }));
    }

    /// The order has suspended all its servers. Returns its ticket and the servers.
    pub fn fall_asleep(&mut self) -> (Ticket, Vec<TreeId>) {
        let (ticket, order) = self.last.take().expect("there was an order");
        let servers: Vec<TreeId> = order.servers.iter().map(|one| one.server).collect();
        self.settle_with(ticket, Outcome::Done, Some(Remark::Suspended(servers.clone())));
        (ticket, servers)
    }

    pub fn by_hand(&mut self, request: OperatorRequest) {
        self.step(Input::Operator { guard: GUARD, id: RequestId(1), request });
    }
}

fn roots(order: &ServersOrder) -> Vec<u32> {
    order.servers.iter().map(|one| one.root.0).collect()
}

pub fn seen(contact: Contact, is_busy: Option<bool>, io: u64) -> ServerSeen {
    let activity = Some(Activity { processes: 1, io, ..Activity::default() });
    ServerSeen { stdio: STDIO, contact, activity, is_busy, ..ServerSeen::default() }
}

pub fn left(_: u32, _: u64) -> ServerSeen {
    seen(Contact::Disconnected, Some(false), 7)
}
