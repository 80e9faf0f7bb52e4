//! The servers of one guard that are ended alone: those that nobody can reach, and those that an operator names.

use super::{Guard, findings::FRESH};
use crate::{
    Time,
    detect::disconnected,
    effect::{Action, Outbox},
    evidence::{Contact, Quiescence},
    id::RequestId,
    incident::{Cause, Detector},
    policy::{Applied, Mode, Policy, ServerResponse},
    registry::LiveServer,
    server::Naming,
    server_order::{self, ServersOrder, ServersRequest},
};

impl Guard {
    /// Has those servers ended that nobody can reach.
    pub(super) fn reap(&mut self, now: Time, policy: &Policy, out: &mut Outbox<'_>) {
        let is_forbidden = self.leaves || self.refusal.is_some();
        if is_forbidden || self.reaps.is_outdated() {
            self.reaps.give_up(self.id, out);
        }
        if is_forbidden || !self.reaps.begins(now, &self.registry) {
            return;
        }
        let registry = &self.registry;
        let (woke, scope) = (self.woke.unwrap_or_default(), policy.scope(self.terms.rule));
        let fresh = FRESH * policy.evidence.every;
        let mut due = Vec::new();
        for (applied, servers) in self.variants.groups(scope, registry.unreachable()) {
            let Applied { detect, respond, .. } = applied;
            if respond.servers < ServerResponse::Reap {
                continue;
            }
            let may = |server: &LiveServer<'_>| self.reaps.may(now, server.id);
            let servers = servers.into_iter().filter(may);
            due.extend(disconnected::to_reap((now, woke), fresh, servers, &detect.disconnected));
        }
        let longest = due.iter().filter_map(|one| one.known.contact_for(now, fresh)).max();
        let all = u64::try_from(due.len()).unwrap_or(u64::MAX);
        due.truncate(server_order::MOST);
        let servers = registry.targets(&due);
        if servers.is_empty() {
            return;
        }
        let numbers = [("due", all), ("longest_s", longest.unwrap_or_default().as_secs())];
        let cause = Cause {
            detector: Some(Detector::Disconnected),
            numbers: numbers.map(|(name, number)| (name.to_owned(), number)).into(),
            ..Cause::default()
        };
        let ids = servers.iter().map(|one| one.server).collect();
        let ticket =
            out.act(self.id, Action::Reap(ServersOrder { servers, mode: self.terms.mode, cause }));
        self.reaps.ordered(ticket, ids);
    }

    /// Has the servers ended that an operator names. Nothing is ordered if none of them is as it was listed.
    pub(super) fn reap_for(
        &mut self,
        now: Time,
        (id, request): (RequestId, &ServersRequest),
        policy: &Policy,
        out: &mut Outbox<'_>,
    ) {
        let fresh = FRESH * policy.evidence.every;
        let may_end = |server: &LiveServer<'_>| {
            let known = server.known;
            let is_at_rest = match known.contact {
                Contact::Disconnected => known.is_abandoned(),
                Contact::Connected => known.quiescence == Quiescence::Quiescent,
                Contact::Unknown | Contact::NoStdio | Contact::Closing => false,
            };
            // A client of containers passes SIGTERM on.
            is_at_rest && server.naming != Naming::Image && known.contact_for(now, fresh).is_some()
        };
        if let Some(order) = self.order_for(request, may_end) {
            out.act_for(self.id, Some(id), Action::Reap(order));
        }
    }

    /// Returns an order about those servers that an operator names and that an order may act on.
    pub(super) fn order_for(
        &self,
        request: &ServersRequest,
        may: impl Fn(&LiveServer<'_>) -> bool,
    ) -> Option<ServersOrder> {
        let live: Vec<_> = self.registry.servers().collect();
        let eldest = self.registry.eldest(&live);
        let is_named = |server: &LiveServer<'_>| request.names(server, eldest.get(&server.id));
        let chosen = live.into_iter().filter(|one| is_named(one) && may(one));
        let chosen: Vec<_> = chosen.take(server_order::MOST).collect();
        let servers = self.registry.targets(&chosen);
        let mode = if request.dry_run { Mode::Observe } else { Mode::Enforce };
        let cause = Cause::operator();
        (!servers.is_empty()).then_some(ServersOrder { servers, mode, cause })
    }
}
