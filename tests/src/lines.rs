//! Reads a child's output with a deadline: a child that hangs fails its test instead of blocking it.

use std::{
    io::{BufRead as _, BufReader, Read},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
};

use anyhow::{Result, bail};

use crate::agent::DEADLINE;

/// The lines of a stream, as they arrive.
pub struct Lines(Receiver<String>);

impl Lines {
    pub fn of(stream: impl Read + Send + 'static) -> Self {
        let (sender, lines) = channel();
        // Ends with the stream, or when the receiver is dropped.
        std::thread::spawn(move || {
            let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
            lines.try_for_each(|line| sender.send(line))
        });
        Self(lines)
    }

    /// Returns the next line, or None at the end of the stream.
    pub fn next(&self) -> Result<Option<String>> {
        match self.0.recv_timeout(DEADLINE) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => bail!("no output within {DEADLINE:?}"),
        }
    }

    /// Returns all remaining lines, up to the end of the stream.
    pub fn rest(&self) -> Result<String> {
        let mut text = String::new();
        while let Some(line) = self.next()? {
            text.push_str(&line);
            text.push('\n');
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_arrive_in_order_until_the_stream_ends() -> Result<()> {
        let lines = Lines::of("a\nb\nc".as_bytes());
        assert_eq!(lines.next()?.as_deref(), Some("a"));
        assert_eq!(lines.rest()?, "b\nc\n");
        assert_eq!(lines.next()?, None);
        Ok(())
    }
}
