//! What a repair came to: looked at anew, said, and remembered or forgotten.

use mcp_guard_core::{
    diagnose::{facts::Facts, report::Place},
    effect::LimitRequest,
    limits::requests::LeftRequest,
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
                out::answer(&format!("  NOT repaired: {why}"));
                if self.leave_request(false)? == LeftRequest::Ours {
                    out::answer("  the request stays: an agent that starts goes on with it");
                }
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
        self.leave_request(true)?;
        let edit = repair::edit(&facts, self.plan().limit);
        out::answer(&render::repair::lasts(self.plan(), edit.as_deref()));
        Ok(Exit::Done)
    }

    /// What every place says. `patient`: until all say the same, for a while.
    async fn prove(&mut self, patient: bool) -> Result<(Facts, bool, Vec<Place>), Failure> {
        let mut look = 0;
        loop {
            look += 1;
            let proved = self.facts().await.map(|facts| {
                let (holds, places) = self.plan().proof(&facts);
                (facts, holds, places)
            });
            let holds = matches!(proved, Ok((_, true, _)));
            if holds || !patient || look >= PROOFS || self.ends.within(LOOK).await.is_some() {
                return proved;
            }
        }
    }

    /// Removes the request where it is over.
    fn leave_request(&self, proved: bool) -> Result<LeftRequest, Failure> {
        let Some(id) = &self.id else { return Ok(LeftRequest::Other) };
        let policy = self.agent.guarded().and_then(|one| one.pids_policy);
        let left = self.limits.left_request(proved, policy, self.former, self.requests.get(id));
        let done = match left {
            LeftRequest::Ours | LeftRequest::Other => Ok(()),
            LeftRequest::Nothing => self.requests.remove(id),
            LeftRequest::Former(LimitRequest { limit, policy, .. }) => {
                self.requests.put(id, limit, &self.host.docker, policy).map(drop)
            }
        };
        done.map(|()| left).map_err(Failure::could_not)
    }
}
