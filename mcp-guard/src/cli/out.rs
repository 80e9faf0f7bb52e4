//! The only functions that write to the terminal.

use std::{
    io::{self, Write},
    sync::mpsc::{Sender, SyncSender, channel, sync_channel},
    thread,
    time::{Duration, Instant},
};

use mcp_guard_core::escape::visible;

/// Most texts that wait to be printed. More are dropped.
const WAITING: usize = 4096;
/// How long the end of the program waits for the last of them.
const LAST_TEXTS: Duration = Duration::from_secs(1);

/// Prints the answer to stdout. Its view has already escaped untrusted text. A closed pipe (`| head`) is
/// not an error.
pub fn answer(text: &str) {
    print(io::stdout(), answered(text).as_bytes());
}

/// Prints an error to stderr, escaped: its text may come from an engine or a file.
pub fn error(text: &str) {
    Complaints(Printer::Errors).error(text);
}

/// The terminal of a verb that may hold something. Its texts are printed by threads of their own: a terminal that
/// stands still (Ctrl-S), a pipe that nobody reads or a stopped journal must not hold up the end of a freeze.
pub struct Terminal {
    answers: Printer,
    errors: Printer,
}

impl Terminal {
    /// The terminal of a verb that may wait for it.
    pub fn that_may_wait() -> Self {
        Self { answers: Printer::Answers, errors: Printer::Errors }
    }

    /// The terminal of the agent, which has no answers.
    pub fn of_the_agent() -> Self {
        Self {
            answers: Printer::Answers,
            errors: Printer::behind("log", io::stderr(), Printer::Errors),
        }
    }

    pub fn that_never_waits() -> Self {
        let answers = Printer::behind("answers", io::stdout(), Printer::Answers);
        Self { answers, ..Self::of_the_agent() }
    }

    /// Prints an answer, as [`answer`] does.
    pub fn answer(&self, text: &str) {
        self.answers.print(answered(text).into_bytes());
    }

    pub fn complaints(&self) -> Complaints {
        Complaints(self.errors.clone())
    }

    /// Waits until all is printed, but not for a terminal that stands still.
    pub fn finish(&self) {
        let end = Instant::now() + LAST_TEXTS;
        self.answers.finish(end);
        self.errors.finish(end);
    }
}

/// The way to stderr. A line of the log is written to it as it is.
#[derive(Clone)]
pub struct Complaints(Printer);

impl Complaints {
    /// Prints an error, as [`error`] does.
    pub fn error(&self, text: &str) {
        self.0.print(format!("mcp-guard: {}\n", lines(text)).into_bytes());
    }
}

impl Write for Complaints {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.print(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Clone)]
enum Printer {
    /// Writes to stdout, or to stderr, itself.
    Answers,
    Errors,
    /// Has a thread write.
    Behind(SyncSender<PrintJob>),
}

enum PrintJob {
    Print(Vec<u8>),
    /// Tell that all before it is printed.
    Tell(Sender<()>),
}

impl Printer {
    /// Starts a thread that prints. `or`: the printer of a host without room for a thread, because to wait is better
    /// than to say nothing.
    fn behind(name: &str, mut to: impl Write + Send + 'static, or: Self) -> Self {
        let (sender, jobs) = sync_channel(WAITING);
        let work = move || {
            for job in jobs {
                match job {
                    PrintJob::Print(text) => print(&mut to, &text),
                    PrintJob::Tell(all) => drop(all.send(())),
                }
            }
        };
        let started = thread::Builder::new().name(name.to_owned()).spawn(work);
        started.map_or(or, |_| Self::Behind(sender))
    }

    fn print(&self, text: Vec<u8>) {
        match self {
            Self::Answers => print(io::stdout(), &text),
            Self::Errors => print(io::stderr(), &text),
            Self::Behind(jobs) => drop(jobs.try_send(PrintJob::Print(text))),
        }
    }

    fn finish(&self, end: Instant) {
        let Self::Behind(jobs) = self else { return };
        let (all, told) = channel();
        if jobs.try_send(PrintJob::Tell(all)).is_ok() {
            let _ = told.recv_timeout(end.saturating_duration_since(Instant::now()));
        }
    }
}

fn print(mut to: impl Write, text: &[u8]) {
    let _ = to.write_all(text).and_then(|()| to.flush());
}

fn answered(text: &str) -> String {
    format!("{}\n", text.trim_end_matches('\n'))
}

/// Escapes control characters and keeps line breaks.
fn lines(text: &str) -> String {
    text.split('\n').map(visible).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn line_breaks_are_kept_and_control_characters_are_escaped() {
        assert_eq!(lines("a\n  b\x1b[2J\r\n"), "a\n  b\\u{1b}[2J\\r\n");
    }

    #[test]
    fn texts_are_printed_in_their_order_and_a_reader_that_sleeps_holds_up_nobody() {
        let (mut reader, writer) = io::pipe().unwrap();
        let printer = Printer::behind("test", writer, Printer::Errors);
        printer.print(b"first ".to_vec());
        printer.print(b"second".to_vec());
        printer.finish(Instant::now() + Duration::from_secs(60));
        let mut read = [0; 12];
        reader.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"first second");
        // More than the pipe and the queue have room for.
        (0..2 * WAITING).for_each(|_| printer.print(vec![b'x'; 1024]));
        let before = Instant::now();
        printer.finish(before + Duration::from_millis(50));
        assert!(before.elapsed() < Duration::from_secs(10));
    }
}
