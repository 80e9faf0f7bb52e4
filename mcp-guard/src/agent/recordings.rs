//! Records guards for clients. The inputs of the core go to them in parts, in a bounded queue. The loop never waits
//! for a client: an input that has no room in the queue is left out, and counted in the trace.

use std::time::Duration;

use mcp_guard_core::{
    Core, Time,
    effect::Input,
    id::GuardId,
    trace::{EndOfTrace, Recorder, TraceEvent},
};
use tokio::sync::mpsc::{Sender, error::TrySendError};

use super::{
    Agent,
    askers::{ReplyTo, send_reply},
};
use crate::{
    control::wire::{RecordTrace, Reply, TracePart, failed},
    host::clock,
};

/// Most recordings at a time. Each may keep a queue of parts in memory.
const MOST: usize = 4;
/// Size of a part in bytes, at which it is sent at once.
const PART: usize = 64 << 10;
/// Longest recording.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

#[derive(Default)]
pub(super) struct Recordings(Vec<Recording>);

struct Recording {
    recorder: Recorder,
    until: Time,
    to: Sender<String>,
    /// Lines that are not sent yet, and their number.
    part: String,
    lines: u64,
    /// Lines that had no room.
    lost: u64,
    is_over: bool,
}

impl Recording {
    fn write(&mut self, event: &TraceEvent) {
        // A map with strings as keys always has a text.
        if let Ok(line) = serde_json::to_string(event) {
            self.part.push_str(&line);
            self.part.push('\n');
            self.lines += 1;
        }
    }

    /// Sends the lines so far, if there is room. Returns whether earlier ones were lost, so that the guard must be
    /// read again.
    fn send(&mut self, now: Time) -> bool {
        if self.part.is_empty() {
            return false;
        }
        match self.to.try_reserve() {
            Ok(place) => {
                let lost = std::mem::take(&mut self.lost);
                let mut part = std::mem::take(&mut self.part);
                self.lines = 0;
                if lost > 0
                    && let Ok(line) = serde_json::to_string(&self.recorder.lost(now, lost))
                {
                    part.insert_str(0, &format!("{line}\n"));
                }
                place.send(part);
                lost > 0
            }
            Err(TrySendError::Full(())) => {
                if self.part.len() >= PART {
                    self.lost += std::mem::take(&mut self.lines);
                    self.part.clear();
                }
                false
            }
            Err(TrySendError::Closed(())) => {
                self.is_over = true;
                false
            }
        }
    }

    fn end(&mut self, now: Time, why: EndOfTrace) {
        let end = self.recorder.end(now, why);
        self.write(&end);
        self.send(now);
        self.is_over = true;
    }
}

impl Recordings {
    /// Takes note of an input, before the core does.
    pub fn note(&mut self, now: Time, input: &Input, core: &Core) {
        for one in &mut self.0 {
            for event in one.recorder.events(now, input, core) {
                one.write(&event);
                if one.part.len() >= PART {
                    one.send(now);
                }
            }
            if matches!(input, Input::Released { guard } if *guard == one.recorder.guard()) {
                one.end(now, EndOfTrace::GuardEnded);
            }
        }
        self.0.retain(|one| !one.is_over);
    }

    /// Sends what was recorded since the last turn, and ends what has lasted long enough. Returns the guards that must
    /// be read again, because lines were lost.
    pub fn turn(&mut self, now: Time) -> Vec<GuardId> {
        let mut again = Vec::new();
        for one in &mut self.0 {
            if now >= one.until {
                one.end(now, EndOfTrace::Time);
            } else if one.send(now) {
                again.push(one.recorder.guard());
            }
        }
        self.0.retain(|one| !one.is_over && !one.to.is_closed());
        again
    }
}

impl Agent {
    /// Begins a recording. The processes that live are read, and come as a baseline.
    pub(super) fn record(
        &mut self,
        asked: &RecordTrace,
        reply: ReplyTo,
        parts: Option<Sender<String>>,
    ) {
        match self.begin_recording(asked, parts) {
            Ok(header) => {
                let part = TracePart { lines: header };
                let parameters = serde_json::to_value(part).unwrap_or_default();
                let continues = Some(true);
                send_reply(reply, Reply { error: None, parameters, continues });
            }
            Err(reason) => send_reply(reply, failed(reason)),
        }
    }

    fn begin_recording(
        &mut self,
        asked: &RecordTrace,
        parts: Option<Sender<String>>,
    ) -> Result<String, &'static str> {
        let lasts = Duration::from_millis(asked.for_ms);
        if lasts.is_zero() || lasts > LONGEST {
            return Err("a recording lasts between 1 ms and a day");
        }
        if self.recordings.0.len() >= MOST {
            return Err("4 recordings are under way, and there can be no more at a time");
        }
        let is_watched = |guard: &GuardId| !self.guards.is_by_hand(*guard);
        let guard = self.guards.of_cgroup(asked.cgroup_id).filter(is_watched);
        let not_guarded = "the target is not guarded, and only what is guarded can be recorded; \
                           name it in the policy, in mode observe if nothing is to be done there";
        let guard = guard.ok_or(not_guarded)?;
        let to = parts.ok_or("the caller takes only one reply")?;
        let now = clock::now();
        let recorder = Recorder::new(guard, now);
        let header = recorder.header(&self.core).ok_or(not_guarded)?;
        let header = serde_json::to_string(&header).map_err(|_| "the header cannot be written")?;
        let (part, until) = (String::new(), now.after(lasts));
        let recording = Recording { recorder, until, to, part, lines: 0, lost: 0, is_over: false };
        self.recordings.0.push(recording);
        self.rescans.want(guard);
        Ok(header + "\n")
    }
}

#[cfg(test)]
mod tests {
    use mcp_guard_core::{
        id::Pid,
        policy::{Mode, Policy, Response, Terms},
    };
    use tokio::sync::mpsc::{Receiver, channel};

    use super::*;

    const GUARD: GuardId = GuardId(3);

    fn recorded(room: usize) -> (Core, Recordings, Receiver<String>) {
        let mut core = Core::new(Policy::default());
        let terms = Terms::new(Mode::Observe, Response::Freeze);
        let (name, workload, refusal) = ("a".to_owned(), None, None);
        let guarded = Input::Guarded { guard: GUARD, name, terms, workload, refusal };
        core.step(Time(0), guarded, &mut Vec::new());
        let (to, parts) = channel(room);
        let recorder = Recorder::new(GUARD, Time(0));
        let (part, until) = (String::new(), Time(100));
        let recording = Recording { recorder, until, to, part, lines: 0, lost: 0, is_over: false };
        (core, Recordings(vec![recording]), parts)
    }

    fn exit(pid: u32) -> Input {
        Input::Exit { guard: GUARD, pid: Pid(pid), code: 0 }
    }

    #[test]
    fn lines_without_room_are_left_out_and_counted() {
        let (core, mut recordings, mut parts) = recorded(1);
        recordings.note(Time(5), &exit(1), &core);
        assert_eq!(recordings.turn(Time(5)), []);
        // The client takes nothing. A small part waits.
        recordings.note(Time(5), &exit(2), &core);
        assert_eq!(recordings.turn(Time(5)), []);
        assert_eq!(parts.try_recv().unwrap(), line(1));
        recordings.turn(Time(5));
        let mut lines = 0;
        while recordings.0[0].lost == 0 {
            recordings.note(Time(5), &exit(3), &core);
            lines += 1;
        }
        recordings.note(Time(5), &exit(4), &core);
        assert_eq!(parts.try_recv().unwrap(), line(2));
        assert_eq!(recordings.turn(Time(6)), [GUARD], "what was lost is read again");
        let lost = format!("{{\"e\":\"lost\",\"t\":6,\"lines\":{lines}}}\n");
        assert_eq!(parts.try_recv().unwrap(), lost + &line(4));
        recordings.turn(Time(7));
        assert!(parts.try_recv().is_err(), "nothing is sent twice");
    }

    fn line(pid: u32) -> String {
        format!("{{\"e\":\"exit\",\"t\":5,\"p\":{pid}}}\n")
    }

    #[test]
    fn a_recording_ends_with_its_time_its_guard_or_its_client() {
        let (core, mut recordings, mut parts) = recorded(9);
        recordings.turn(Time(99));
        recordings.note(Time(100), &exit(1), &core);
        recordings.turn(Time(100));
        assert!(parts.try_recv().unwrap().ends_with("\"why\":\"time\"}\n"));
        assert!(recordings.0.is_empty());

        let (core, mut recordings, mut parts) = recorded(9);
        recordings.note(Time(5), &Input::Released { guard: GuardId(4) }, &core);
        recordings.note(Time(5), &Input::Released { guard: GUARD }, &core);
        assert!(parts.try_recv().unwrap().ends_with("\"why\":\"guard-ended\"}\n"));
        assert!(recordings.0.is_empty());

        let (_, mut recordings, parts) = recorded(9);
        drop(parts);
        recordings.turn(Time(5));
        assert!(recordings.0.is_empty());
    }
}
