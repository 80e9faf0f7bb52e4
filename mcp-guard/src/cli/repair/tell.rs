//! The end of a repair: reads every place again, reports the result, and keeps or removes the request.

use mcp_guard_core::{
    diagnose::{facts::Facts, report::Place},
    limits::requests::LeftRequest,
    repair,
};

use super::{LOOK, Repair, RepairEnd};
use crate::{
    cli::{Exit, Failure},
    render,
};

/// Attempts at the proof. The owner of the limit may write to several places, one after the other.
const PROOFS: u32 = 5;

impl Repair<'_> {
    /// Reads every place again and reports what it shows.
    pub(super) async fn tell(&mut self, reached: RepairEnd) -> Result<Exit, Failure> {
        let proved = self.prove(matches!(reached, RepairEnd::End)).await;
        let holds = matches!(proved, Ok((_, true, _)));
        match &reached {
            RepairEnd::End if holds => {}
            RepairEnd::End if proved.is_err() => {
                self.terminal.answer("  written, but NOT proved: it cannot be read back");
            }
            RepairEnd::End => {
                self.terminal.answer("  NOT repaired: not every place shows the limit")
            }
            RepairEnd::Failed(why) if holds => {
                self.terminal.answer(&format!("  {why}; but every place shows the limit"));
            }
            RepairEnd::Failed(why) => self.terminal.answer(&format!("  NOT repaired: {why}")),
            RepairEnd::Stopped(signal) => {
                let goes_on = match (&self.id, self.agent.goes_on_now(self.plan().limit)) {
                    (_, true) => "the agent continues",
                    (Some(_), false) => {
                        "run it again to continue, or start an agent, which continues it"
                    }
                    (None, false) => "run it again to continue",
                };
                self.terminal.answer(&format!("  stopped before the end ({signal}): {goes_on}"));
            }
        }
        let kept =
            proved.as_ref().ok().and_then(|(facts, ..)| facts.container.as_ref()?.pids_limit);
        let left = self.leave_request(holds, kept.and_then(|kept| kept.try_into().ok()))?;
        let is_unfinished = !holds && !matches!(reached, RepairEnd::Stopped(_));
        if is_unfinished && left == LeftRequest::Ours {
            self.terminal.answer("  the request is kept: an agent in enforce mode continues it");
        }
        let (facts, _, places) = proved?;
        self.terminal.answer(&render::repair::places(&places));
        if !holds || matches!(reached, RepairEnd::Stopped(_)) {
            return Ok(Exit::Wrong);
        }
        let edit = repair::edit(&facts, self.plan().limit);
        self.terminal.answer(&render::repair::lasts(self.plan(), edit.as_deref()));
        Ok(Exit::Done)
    }

    /// Reads every place. If `patient`, repeats this at most [`PROOFS`] times until all show the limit.
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

    /// Keeps the request, removes it, or restores the former one. `kept`: the limit that the engine
    /// stores now.
    fn leave_request(&self, proved: bool, kept: Option<u64>) -> Result<LeftRequest, Failure> {
        let Some(id) = &self.id else { return Ok(LeftRequest::Other) };
        let policy = self.agent.guarded().and_then(|one| one.pids_policy);
        let now = self.requests.get(id);
        let left = self.limits.left_request(proved, policy, (self.former, now), kept);
        let done = match (left, now) {
            (LeftRequest::Nothing, Some(now)) => self.requests.remove_as_of(id, now.at),
            (LeftRequest::Former(former), _) => {
                self.requests.restore(id, former, &self.host.docker)
            }
            (LeftRequest::Ours | LeftRequest::Other, _) | (LeftRequest::Nothing, None) => Ok(()),
        };
        done.map(|()| left).map_err(Failure::could_not)
    }
}
