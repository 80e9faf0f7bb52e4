//! Waits for answers that may never come, such as that of a dead file server.

use std::{io, sync::mpsc, thread, time::Duration};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    #[error("no answer within {0:?}")]
    Late(Duration),
    #[error("no thread can be started: {0}")]
    NoThread(#[from] io::Error),
}

/// Has a question answered on a thread of its own. If the answer is late, the thread is left behind.
///
/// # Errors
/// If there is no answer in time.
pub fn within<T: Send + 'static>(
    patience: Duration,
    answer: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NoAnswer> {
    let (answers, answered) = mpsc::channel();
    thread::Builder::new().name("patience".to_owned()).spawn(move || {
        let _ = answers.send(answer());
    })?;
    answered.recv_timeout(patience).map_err(|_| NoAnswer::Late(patience))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_does_not_come_is_not_waited_for() {
        assert_eq!(within(Duration::from_secs(60), || 7).unwrap(), 7);
        let never = || -> u8 {
            loop {
                thread::park();
            }
        };
        let late = within(Duration::from_millis(1), never).unwrap_err();
        assert_eq!(late.to_string(), "no answer within 1ms");
    }
}
