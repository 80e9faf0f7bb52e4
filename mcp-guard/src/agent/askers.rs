//! Clients that wait for the end of an operator's request.

use std::collections::{BTreeMap, BTreeSet};

use mcp_guard_core::{
    effect::{Order, Settled},
    id::{GuardId, RequestId, Ticket},
    incident::Outcome,
};
use serde::Serialize;
use tokio::sync::oneshot;

use crate::{
    control::wire::{Answer, Reply, failed},
    executor::together,
};

pub(super) type ReplyTo = oneshot::Sender<Reply>;

struct Asker {
    guard: GuardId,
    reply: ReplyTo,
    /// Orders of the request that have not ended.
    expected: BTreeSet<Ticket>,
    ended: Vec<(Outcome, String)>,
}

#[derive(Default)]
pub(super) struct Askers {
    waiting: BTreeMap<RequestId, Asker>,
    requests: u64,
}

impl Askers {
    pub fn begin(&mut self, guard: GuardId, reply: ReplyTo) -> RequestId {
        self.requests += 1;
        let id = RequestId(self.requests);
        let (expected, ended) = (BTreeSet::new(), Vec::new());
        self.waiting.insert(id, Asker { guard, reply, expected, ended });
        id
    }

    /// Notes an order that may belong to a request.
    pub fn ordered(&mut self, order: &Order) {
        if let Some(asker) = order.asked_by.and_then(|id| self.waiting.get_mut(&id)) {
            asker.expected.insert(order.ticket);
        }
    }

    /// Notes the end of an order. Answers the client if it was the last order of its request.
    pub fn settled(&mut self, settled: &Settled) {
        let mut asked = self.waiting.iter_mut();
        let Some((&id, asker)) = asked
            .find_map(|(id, asker)| asker.expected.remove(&settled.ticket).then_some((id, asker)))
        else {
            return;
        };
        asker.ended.push((settled.outcome, settled.detail.clone()));
        if asker.expected.is_empty()
            && let Some(asker) = self.waiting.remove(&id)
            && let Some((outcome, detail)) = together(asker.ended)
        {
            send(asker.reply, Answer { outcome, detail });
        }
    }

    /// Notes that the core has decided the request. If no order followed, answers the client with `nothing`.
    pub fn decided(&mut self, id: RequestId, nothing: &str) {
        if self.waiting.get(&id).is_some_and(|asker| asker.expected.is_empty())
            && let Some(asker) = self.waiting.remove(&id)
        {
            let (outcome, detail) = (Outcome::NotOurs, nothing.to_owned());
            send(asker.reply, Answer { outcome, detail });
        }
    }

    /// Returns whether a client waits for the end of a request for this guard.
    pub fn wait_for(&self, guard: GuardId) -> bool {
        self.waiting.values().any(|asker| asker.guard == guard)
    }
}

pub(super) fn send(reply: ReplyTo, answer: impl Serialize) {
    let answer = match serde_json::to_value(answer) {
        Ok(parameters) => Reply { parameters, ..Reply::default() },
        Err(error) => failed(&error.to_string()),
    };
    send_reply(reply, answer);
}

/// Sends the reply. A client that has closed its connection loses it.
pub(super) fn send_reply(reply: ReplyTo, answer: Reply) {
    let _ = reply.send(answer);
}

#[cfg(test)]
mod tests {
    use mcp_guard_core::{
        effect::Action,
        id::Tickets,
        incident::{End, Hold},
    };

    use super::*;

    const GUARD: GuardId = GuardId(3);

    fn order(ticket: Ticket, id: RequestId, hold: Hold) -> Order {
        let action = Action::Release { hold, end: End::Operator };
        Order { ticket, guard: GUARD, asked_by: Some(id), action }
    }

    fn settled(ticket: Ticket, outcome: Outcome, detail: &str) -> Settled {
        Settled { ticket, guard: GUARD, outcome, detail: detail.to_owned(), remark: None }
    }

    #[test]
    fn a_request_of_several_orders_is_answered_once_with_the_worst() {
        let (mut askers, mut tickets) = (Askers::default(), Tickets::default());
        let (reply, mut answer) = oneshot::channel();
        let id = askers.begin(GUARD, reply);
        let [first, second, other] = [(); 3].map(|()| tickets.draw());
        askers.ordered(&order(first, id, Hold::Freeze));
        askers.ordered(&order(second, id, Hold::Clamp));
        askers.decided(id, "nothing");
        askers.settled(&settled(other, Outcome::Done, "of another request"));
        askers.settled(&settled(first, Outcome::Failed, "one"));
        assert!(answer.try_recv().is_err() && askers.wait_for(GUARD));
        askers.settled(&settled(second, Outcome::Done, "two"));
        let reply = answer.try_recv().unwrap();
        assert_eq!(
            (&reply.parameters["outcome"], &reply.parameters["detail"]),
            (&"failed".into(), &"one; two".into())
        );
        assert!(!askers.wait_for(GUARD));
    }

    #[test]
    fn a_request_without_orders_is_answered_at_once() {
        let mut askers = Askers::default();
        let (reply, mut answer) = oneshot::channel();
        let id = askers.begin(GUARD, reply);
        askers.decided(id, "nothing is held");
        assert_eq!(answer.try_recv().unwrap().parameters["detail"], "nothing is held");
    }
}
