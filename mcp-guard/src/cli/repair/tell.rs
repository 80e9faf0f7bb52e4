//! What a repair came to: looked at anew, said, and remembered or forgotten.

use mcp_guard_core::{
    diagnose::{facts::Facts, report::Place},
    effect::LimitRequest,
    repair,
};

use super::{LOOK, Repair, RepairEnd};
use crate::{
    cli::{Exit, Failure, out},
    render,
};

/// Whoever writes last may write to several places.
const PROOFS: u32 = 5;

impl Repair<'_> {
    /// Looks again at every place, and says what is there.
    pub(super) async fn tell(&mut self, reached: RepairEnd) -> Result<Exit, Failure> {
        let proved = self.prove(matches!(reached, RepairEnd::End)).await;
        let holds = matches!(proved, Ok((_, true, _)));
        match &reached {
            RepairEnd::End if holds => {}
            RepairEnd::End if proved.is_err() => {
                out::answer("  written, and NOT proved: it cannot be read back");
            }
            RepairEnd::End => out::answer("  NOT repaired: not every place says so"),
            RepairEnd::Failed(why) => {
                self.unwant()?;
                out::answer(&format!("  NOT repaired: {why}"));
            }
            RepairEnd::Stopped(signal) => {
                let goes_on = match (&self.id, self.agent.goes_on_now()) {
                    (_, true) => "the agent goes on",
                    (Some(_), false) => {
                        "run it again to go on; an agent that starts goes on by itself"
                    }
                    (None, false) => "run it again to go on",
                };
                out::answer(&format!("  half-way ({signal}): {goes_on}"));
            }
        }
        let (facts, _, places) = proved?;
        out::answer(&render::repair::places(&places));
        if !holds || !matches!(reached, RepairEnd::End) {
            return Ok(Exit::Wrong);
        }
        self.settle()?;
        let edit = repair::edit(&facts, self.plan.limit);
        out::answer(&render::repair::lasts(&self.plan, edit.as_deref()));
        Ok(Exit::Done)
    }

    /// What every place says. `patient`: until all say the same, for a while.
    async fn prove(&mut self, patient: bool) -> Result<(Facts, bool, Vec<Place>), Failure> {
        let mut look = 0;
        loop {
            look += 1;
            let proved = self.facts().await.map(|facts| {
                let (holds, places) = self.plan.proof(&facts);
                (facts, holds, places)
            });
            let holds = matches!(proved, Ok((_, true, _)));
            if holds || !patient || look >= PROOFS || self.ends.within(LOOK).await.is_some() {
                return proved;
            }
        }
    }

    /// Whether nobody has asked for another number since.
    fn is_still_wanted(&self, id: &str) -> bool {
        self.requests.get(id).map(|request| request.limit) == Some(self.plan.limit)
    }

    /// Forgets what its owner keeps, but where it stands against an agent's policy.
    fn settle(&self) -> Result<(), Failure> {
        let policy = self.agent.guarded().and_then(|one| one.pids_policy);
        let is_over =
            policy.is_none_or(|limit| limit == self.plan.limit) && self.plan.is_kept_by_its_owner();
        match &self.id {
            Some(id) if is_over && self.is_still_wanted(id) => {
                self.requests.remove(id).map_err(Failure::could_not)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// What could not even be begun is not wanted any more.
    fn unwant(&self) -> Result<(), Failure> {
        let is_begun = self.limits.step().is_some();
        let id = self.id.as_ref().filter(|id| !is_begun && self.is_still_wanted(id));
        let Some(id) = id else { return Ok(()) };
        let done = match self.former {
            Some(LimitRequest { limit, policy, .. }) => {
                self.requests.put(id, limit, &self.host.docker, policy).map(drop)
            }
            None => self.requests.remove(id),
        };
        done.map_err(Failure::could_not)
    }
}
