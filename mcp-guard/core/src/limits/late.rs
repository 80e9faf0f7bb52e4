//! Writes of ours that nobody waits for any more. Their owner did not answer, and may still make them.

use std::{collections::BTreeMap, time::Duration};

use crate::{Time, id::Ticket};

/// How long a write without an answer is expected.
const EXPECTED: Duration = Duration::from_secs(3600);
/// How long a write is expected that its owner has confirmed: until the limit was surely read again.
const CONFIRMED: Duration = Duration::from_secs(10);
/// Most writes that are remembered. An owner that does not answer is asked again every minute at most.
const MOST: usize = 64;

#[derive(Clone, Copy, Debug)]
struct LateWrite {
    limit: u64,
    until: Time,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Late(BTreeMap<Ticket, LateWrite>);

impl Late {
    /// Records that nobody waits for this write any more.
    pub fn expect(&mut self, now: Time, ticket: Ticket, limit: u64) {
        self.0.retain(|_, write| now < write.until);
        if self.0.len() == MOST {
            self.0.pop_first();
        }
        self.0.insert(ticket, LateWrite { limit, until: now.after(EXPECTED) });
    }

    /// Records the owner's answer.
    pub fn answered(&mut self, now: Time, ticket: Ticket, is_made: bool) {
        match self.0.get_mut(&ticket) {
            Some(write) if is_made => write.until = write.until.min(now.after(CONFIRMED)),
            Some(_) => drop(self.0.remove(&ticket)),
            None => {}
        }
    }

    /// Returns whether one of these writes has put this limit in force, and expects it no longer.
    pub fn arrives(&mut self, now: Time, limit: u64) -> bool {
        let is_it = |write: &LateWrite| write.limit == limit && now < write.until;
        let found = self.0.iter().find(|(_, write)| is_it(write)).map(|(ticket, _)| *ticket);
        found.is_some_and(|ticket| self.0.remove(&ticket).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Tickets;

    fn at(seconds: u64) -> Time {
        Time(seconds * 1_000_000_000)
    }

    #[test]
    fn each_write_arrives_once_and_within_an_hour() {
        let (mut late, mut tickets) = (Late::default(), Tickets::default());
        late.expect(at(0), tickets.draw(), 90);
        late.expect(at(0), tickets.draw(), 90);
        assert!(!late.arrives(at(1), 80), "a limit of another program");
        assert!(late.arrives(at(1), 90) && late.arrives(at(3000), 90));
        assert!(!late.arrives(at(3001), 90));
        late.expect(at(4000), tickets.draw(), 90);
        assert!(!late.arrives(at(7600), 90));
    }

    #[test]
    fn an_answer_says_that_it_has_arrived_or_never_will() {
        let (mut late, mut tickets) = (Late::default(), Tickets::default());
        let [made, refused] = [tickets.draw(), tickets.draw()];
        late.expect(at(0), made, 90);
        late.expect(at(0), refused, 80);
        late.answered(at(10), made, true);
        late.answered(at(10), refused, false);
        assert!(!late.arrives(at(11), 80));
        assert!(late.clone().arrives(at(11), 90) && !late.arrives(at(20), 90));
    }

    #[test]
    fn the_oldest_are_forgotten_first() {
        let (mut late, mut tickets) = (Late::default(), Tickets::default());
        for limit in 0..=MOST as u64 {
            late.expect(at(0), tickets.draw(), limit);
        }
        assert!(!late.arrives(at(1), 0) && late.arrives(at(1), 1));
    }
}
