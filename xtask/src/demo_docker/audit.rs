//! The agent's audit log, as the demo shows and checks it.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::container;

/// The audit of one agent, from its start to its end.
pub struct Audit {
    pub lines: Vec<String>,
}

impl Audit {
    /// Checks that the leak was attributed to its package, that each outcome follows its intent, and
    /// that a freeze was released.
    pub fn check(&self, response: &str) -> Result<()> {
        let records = self.lines.iter().map(|line| {
            serde_json::from_str(line)
                .with_context(|| format!("a line of the audit is not JSON: {line}"))
        });
        let records: Vec<Value> = records.collect::<Result<_>>()?;
        check_order(&records)?;
        let named = |record: &&Value| record["cause"]["identity"] == container::IDENTITY;
        if !records.iter().filter(named).any(|record| record["response"] == response) {
            bail!("the audit has no {response} for {}", container::IDENTITY);
        }
        let released = records
            .iter()
            .any(|record| record["event"] == "release" && record["outcome"] == "done");
        if response == "freeze" && !released {
            bail!("the agent ended without releasing the freeze");
        }
        Ok(())
    }
}

fn check_order(records: &[Value]) -> Result<()> {
    let mut intents = Vec::new();
    for record in records {
        if record["event"] == "intent" {
            intents.push(&record["incident"]);
        } else if record["event"] == "outcome" && !intents.contains(&&record["incident"]) {
            bail!("the audit has an outcome without an intent before it: {record}");
        }
    }
    if intents.is_empty() {
        bail!("the audit has no intent");
    }
    Ok(())
}

/// Returns whether a line reports that the response was carried out.
pub fn says_done(line: &str, response: &str) -> bool {
    serde_json::from_str::<Value>(line).is_ok_and(|line| {
        line["event"] == "outcome" && line["response"] == response && line["outcome"] == "done"
    })
}

/// Returns a line in words, or None for lines that the demo does not show.
pub fn told(line: &str) -> Option<String> {
    let line: Value = serde_json::from_str(line).ok()?;
    let word = |field: &str| line[field].as_str().unwrap_or("?").to_owned();
    match line["event"].as_str()? {
        "warning" => Some(format!("audit: warning, {}", cause(&line["cause"]))),
        "intent" => {
            Some(format!("audit: about to {}, {}", word("response"), cause(&line["cause"])))
        }
        "outcome" => {
            let after = line["timing"]["confirmed_us"].as_u64().unwrap_or(0) as f64 / 1000.0;
            let (response, outcome) = (word("response"), word("outcome"));
            let detail = word("detail");
            Some(format!("audit: {response} {outcome} after {after:.1} ms: {detail}"))
        }
        _ => None,
    }
}

fn cause(cause: &Value) -> String {
    let number = |name: &str| cause["numbers"][name].as_u64().unwrap_or(0);
    let text = |name: &str| cause[name].as_str().unwrap_or("?").to_owned();
    format!(
        "detector {}: {} live servers of {}, {} of them {} ms old or older (threshold {})",
        text("detector"),
        number("live"),
        text("identity"),
        number("aged"),
        number("age_ms"),
        number("threshold")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn audit(lines: &[&str]) -> Audit {
        Audit { lines: lines.iter().map(|line| (*line).to_owned()).collect() }
    }

    const INTENT: &str = r#"{"event":"intent","incident":"1","response":"freeze",
        "cause":{"detector":"D","identity":"@21st-dev/magic","numbers":{"live":8,"aged":8}}}"#;
    const OUTCOME: &str =
        r#"{"event":"outcome","incident":"1","response":"freeze","outcome":"done"}"#;
    const RELEASE: &str = r#"{"event":"release","incident":"2","outcome":"done"}"#;

    #[test]
    fn an_outcome_needs_its_intent_first() {
        assert!(audit(&[INTENT, OUTCOME, RELEASE]).check("freeze").is_ok());
        assert!(audit(&[OUTCOME, INTENT, RELEASE]).check("freeze").is_err());
    }

    #[test]
    fn a_freeze_must_be_released_and_be_for_the_package() {
        assert!(audit(&[INTENT, OUTCOME]).check("freeze").is_err());
        assert!(audit(&[INTENT, OUTCOME, RELEASE]).check("kill").is_err());
        let other = INTENT.replace("@21st-dev/magic", "node");
        assert!(audit(&[&other, OUTCOME, RELEASE]).check("freeze").is_err());
    }

    #[test]
    fn a_line_is_shown_in_words() {
        let told = told(INTENT).unwrap();
        assert!(told.contains("about to freeze") && told.contains("8 live servers"), "{told}");
        assert!(says_done(OUTCOME, "freeze") && !says_done(OUTCOME, "kill"));
    }
}
