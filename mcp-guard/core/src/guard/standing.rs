//! Whether a bystander rule forbids acting on a guard, and when such a refusal begins and ends.

use std::time::Duration;

use super::Guard;
use super::episodes::Count;
use crate::{
    Time,
    effect::{Action, Outbox},
    refusal::Refusal,
};

/// A refusal ends when its reason was not found for this time. A reason that comes and goes would
/// otherwise fill the audit log.
const SILENCE: Duration = Duration::from_secs(10);

impl Guard {
    /// Takes the result of a check. Once no rule forbids acting, refused responses are decided again.
    /// `asked`: an operator waits, and a reason that is gone has ended at once.
    pub fn standing(
        &mut self,
        now: Time,
        found: Option<Refusal>,
        asked: bool,
        out: &mut Outbox<'_>,
    ) {
        let lasts = found.is_none() && !asked && now.since(self.refused_at) < SILENCE;
        if self.refusal.is_some() && lasts {
            return;
        }
        if found.is_some() {
            self.refused_at = now;
        }
        // A guard that only an operator acts on tells the operator.
        let is_recorded = self.workload.is_some();
        match (&self.refusal, &found) {
            (None, Some(refusal)) if is_recorded => {
                out.act(self.id, Action::RefusalBegins { refusal: refusal.clone() });
            }
            (Some(_), None) => {
                if is_recorded {
                    out.act(self.id, Action::RefusalEnds);
                }
                self.episodes.act_again(Count::BeginsAgain, |_| true);
                self.look_at_all_again();
            }
            (None | Some(_), _) => {}
        }
        self.refusal = found;
    }
}
