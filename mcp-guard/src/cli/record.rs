//! `record`: writes what happens in a guard to a trace, which `replay` reads.

use std::{
    fs::{self, File, OpenOptions},
    future::pending,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use mcp_guard_core::{
    Time,
    trace::{EndOfTrace, TraceEvent, TraceHeader},
};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Exit, Failure, HostOptions, out, resolve::resolve, runtime, status::unanswered};
use crate::{
    control::{client::TraceParts, lock, wire::RecordTrace},
    host::{clock, proc::status::ignores},
};

/// Room for the last line.
const END: u64 = 128;
/// Largest trace. `replay` reads no larger one.
const LARGEST: u64 = 1 << 30;
const SMALLEST: u64 = 4 << 10;

#[derive(Debug, Args)]
pub struct Arguments {
    /// A guarded container: name, id or id prefix; docker:NAME, unit:NAME, cgroup:/path or pid:N.
    target: String,
    /// File to create. It gets no secrets: a command line is cut to what names its server.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Longest time, up to 1day. Ctrl-C ends the recording earlier.
    #[arg(long = "for", value_name = "DURATION", value_parser = lasts, default_value = "10min")]
    lasts: Duration,
    /// Largest size of the file, 4KiB to 1GiB.
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "64MiB")]
    max_size: u64,
}

fn lasts(text: &str) -> Result<Duration, String> {
    let lasts = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if lasts < Duration::from_secs(1) || lasts > Duration::from_secs(86_400) {
        return Err("must be between 1s and 1day".to_owned());
    }
    Ok(lasts)
}

fn size(text: &str) -> Result<u64, String> {
    let units = [("KiB", 10), ("MiB", 20), ("GiB", 30)];
    let unit = units.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)));
    let (number, shift) = unit.unwrap_or((text, 0));
    let number: Option<u64> = number.trim().parse().ok();
    let bytes = number.and_then(|number| number.checked_mul(1 << shift));
    let bytes = bytes.ok_or("must be a number of bytes, or end in KiB, MiB or GiB")?;
    if !(SMALLEST..=LARGEST).contains(&bytes) {
        return Err("must be between 4KiB and 1GiB".to_owned());
    }
    Ok(bytes)
}

pub fn record(host: &HostOptions, arguments: &Arguments) -> Result<Exit, Failure> {
    if arguments.output.symlink_metadata().is_ok() {
        return Err(uncreated(&arguments.output, &io::ErrorKind::AlreadyExists.into()));
    }
    let (trace, ended) = runtime()?.block_on(recorded(host, arguments))?;
    let TraceFile { kept, events, lost, .. } = trace;
    let file = arguments.output.display();
    let mut text =
        format!("recorded {events} events to {file} ({kept} bytes): {}\n", shown(&ended));
    if lost > 0 {
        text += &format!(
            "incomplete: {lost} lines are missing, because they could not be taken in time\n"
        );
    }
    out::answer(&text);
    let is_whole = matches!(ended, RecordingEnd::Said(why) if why != EndOfTrace::Cut) && lost == 0;
    Ok(if is_whole { Exit::Done } else { Exit::Wrong })
}

/// How a recording ended.
enum RecordingEnd {
    Said(EndOfTrace),
    /// The file could not be written any more. It ends with its last whole line.
    Unwritten(io::Error),
}

fn shown(ended: &RecordingEnd) -> String {
    let text = match ended {
        RecordingEnd::Said(EndOfTrace::Time) => "the time is over",
        RecordingEnd::Said(EndOfTrace::Size) => "the file has its largest size",
        RecordingEnd::Said(EndOfTrace::Stopped) => "stopped",
        RecordingEnd::Said(EndOfTrace::GuardEnded) => {
            "the target has ended, or is no longer guarded"
        }
        RecordingEnd::Said(EndOfTrace::Cut) => {
            "cut: the agent has ended, or waited too long for this command"
        }
        RecordingEnd::Unwritten(error) => {
            return format!("cut: cannot write more ({error}); all lines before it are kept");
        }
    };
    text.to_owned()
}

async fn recorded(
    host: &HostOptions,
    arguments: &Arguments,
) -> Result<(TraceFile<File>, RecordingEnd), Failure> {
    let Arguments { target, output, lasts, max_size } = arguments;
    let cgroup_id = resolve(host, target).await?.cgroup.id();
    let for_ms = u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX);
    let mut stops = Stops::listen().map_err(Failure::could_not)?;
    let asked = RecordTrace { cgroup_id, for_ms };
    let begun = TraceParts::begin(&lock::socket(&host.run_dir), &asked).await;
    let (header, mut parts) = begun.map_err(unanswered)?;
    let start: TraceHeader = serde_json::from_str(&header).map_err(Failure::could_not)?;
    let mut trace = TraceFile::create(output, *max_size)?;
    let mut next = Ok(Some(header));
    let why = loop {
        match next {
            Ok(Some(lines)) => match trace.append(&lines) {
                Ok(true) => {}
                Ok(false) => break EndOfTrace::Size,
                Err(error) => return Ok((trace, RecordingEnd::Unwritten(error))),
            },
            Ok(None) | Err(_) => break EndOfTrace::Cut,
        }
        if let Some(why) = trace.ended {
            return Ok((trace, RecordingEnd::Said(why)));
        }
        next = tokio::select! {
            next = parts.next() => next,
            () = stops.any() => break EndOfTrace::Stopped,
        };
    };
    let t = clock::now().0.saturating_sub(Time(start.boot_ns).0);
    Ok(match trace.end(t, why) {
        Ok(()) => (trace, RecordingEnd::Said(why)),
        Err(error) => (trace, RecordingEnd::Unwritten(error)),
    })
}

/// Signals that end a recording.
struct Stops {
    interrupt: Signal,
    terminate: Signal,
    /// The terminal is gone. Below nohup(1), the recording goes on.
    hangup: Option<Signal>,
}

impl Stops {
    fn listen() -> io::Result<Self> {
        let hangup = SignalKind::hangup();
        let own = fs::read("/proc/self/status").unwrap_or_default();
        let is_taken = !ignores(&own, hangup.as_raw_value());
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: is_taken.then(|| signal(hangup)).transpose()?,
        })
    }

    async fn any(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = hangup => {}
        }
    }
}

/// A file of whole lines.
struct TraceFile<F> {
    file: F,
    max: u64,
    /// Bytes of the whole lines.
    kept: u64,
    /// Lines behind the header.
    events: u64,
    /// Lines that the agent could not send.
    lost: u64,
    ended: Option<EndOfTrace>,
}

/// A file that can be cut.
trait Cut: Write {
    fn cut(&mut self, length: u64) -> io::Result<()>;
}

impl Cut for File {
    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }
}

impl TraceFile<File> {
    fn create(path: &Path, max: u64) -> Result<Self, Failure> {
        // Nobody else may see what runs in a container.
        let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(path);
        let file = file.map_err(|error| uncreated(path, &error))?;
        Ok(Self::new(file, max))
    }
}

impl<F: Cut> TraceFile<F> {
    fn new(file: F, max: u64) -> Self {
        Self { file, max, kept: 0, events: 0, lost: 0, ended: None }
    }

    /// Appends lines. Returns false if they had no room: then as many are kept as fit.
    fn append(&mut self, lines: &str) -> io::Result<bool> {
        let room = usize::try_from(self.max.saturating_sub(self.kept + END)).unwrap_or(usize::MAX);
        let fits = lines.len() <= room;
        let whole = match fits {
            true => lines,
            false => {
                let end = lines.floor_char_boundary(room);
                &lines[..lines[..end].rfind('\n').map_or(0, |last| last + 1)]
            }
        };
        self.write(whole)?;
        Ok(fits)
    }

    fn end(&mut self, t: u64, why: EndOfTrace) -> io::Result<()> {
        let line = serde_json::to_string(&TraceEvent::End { t, why })?;
        self.write(&format!("{line}\n"))
    }

    /// Writes whole lines. If there is no room for all of them, as many are kept as fit.
    fn write(&mut self, lines: &str) -> io::Result<()> {
        let Err(error) = self.write_all(lines) else { return Ok(()) };
        for line in lines.split_inclusive('\n') {
            if self.write_all(line).is_err() {
                break;
            }
        }
        Err(error)
    }

    /// Writes all of the lines, or nothing of them.
    fn write_all(&mut self, lines: &str) -> io::Result<()> {
        if let Err(error) = self.file.write_all(lines.as_bytes()) {
            self.file.cut(self.kept)?;
            return Err(error);
        }
        self.kept += u64::try_from(lines.len()).unwrap_or(u64::MAX);
        lines.lines().for_each(|line| self.note(line));
        Ok(())
    }

    fn note(&mut self, line: &str) {
        self.events += u64::from(line.starts_with("{\"e\":"));
        // Only these say something about the recording.
        if !["{\"e\":\"lost\"", "{\"e\":\"end\""].iter().any(|start| line.starts_with(start)) {
            return;
        }
        match serde_json::from_str(line) {
            Ok(TraceEvent::Lost { lines, .. }) => self.lost = self.lost.saturating_add(lines),
            Ok(TraceEvent::End { why, .. }) => self.ended = Some(why),
            Ok(_) | Err(_) => {}
        }
    }
}

fn uncreated(path: &Path, error: &io::Error) -> Failure {
    let file = path.display();
    Failure::could_not(if error.kind() == io::ErrorKind::AlreadyExists {
        format!("{file} exists; name another file, or remove it first")
    } else {
        format!("cannot create {file}: {error}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with room for so many bytes.
    struct SmallDisk(Vec<u8>, usize);

    impl Write for SmallDisk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let some = bytes.len().min(self.1 - self.0.len());
            self.0.extend(&bytes[..some]);
            if some == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(some) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Cut for SmallDisk {
        fn cut(&mut self, length: u64) -> io::Result<()> {
            self.0.truncate(usize::try_from(length).unwrap());
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_terminal_that_hangs_up_stops_the_recording() {
        let mut stops = Stops::listen().unwrap();
        if stops.hangup.is_none() {
            // The tests run below nohup(1).
            return;
        }
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::HUP)
            .unwrap();
        tokio::time::timeout(Duration::from_secs(10), stops.any()).await.unwrap();
    }

    const EXIT: &str = "{\"e\":\"exit\",\"t\":1,\"p\":2}\n";

    #[test]
    fn a_full_disk_leaves_whole_lines() {
        let mut trace = TraceFile::new(SmallDisk(Vec::new(), EXIT.len() * 3 + 4), LARGEST);
        assert!(trace.append(&EXIT.repeat(2)).unwrap());
        let error = trace.append(&EXIT.repeat(2)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!((trace.events, trace.file.0), (3, EXIT.repeat(3).into_bytes()));
    }

    #[test]
    fn the_largest_size_is_kept_with_the_last_line() {
        let max = END + 3 * EXIT.len() as u64 + 5;
        let mut trace = TraceFile::new(SmallDisk(Vec::new(), 1 << 20), max);
        assert!(!trace.append(&EXIT.repeat(9)).unwrap());
        trace.end(7, EndOfTrace::Size).unwrap();
        let text = String::from_utf8(trace.file.0).unwrap();
        assert_eq!(text, EXIT.repeat(3) + "{\"e\":\"end\",\"t\":7,\"why\":\"size\"}\n");
        assert!(text.len() as u64 <= max && trace.ended == Some(EndOfTrace::Size));
    }

    #[test]
    fn missing_lines_are_counted() {
        let mut trace = TraceFile::new(SmallDisk(Vec::new(), 1 << 20), LARGEST);
        trace.append("{\"e\":\"lost\",\"t\":1,\"lines\":5}\n").unwrap();
        assert_eq!((trace.lost, trace.events, trace.ended), (5, 1, None));
    }

    #[test]
    fn sizes_have_units_and_bounds() {
        for (text, bytes) in [
            ("64MiB", Some(64 << 20)),
            ("1GiB", Some(LARGEST)),
            ("4096", Some(4096)),
            ("2GiB", None),
            ("1", None),
            ("9999999999999GiB", None),
            ("many", None),
        ] {
            assert_eq!(size(text).ok(), bytes, "{text}");
        }
    }
}
