//! A change that mcp-guard itself made to a limit is not reported as a cause.

use super::*;

fn clamped(mut facts: Facts, wrote: u64) -> Facts {
    let found = facts.chain[0].max.unwrap();
    let wrote = Limit::Tasks(wrote);
    facts.clamp = Some(Clamp { incident: "i-7".into(), found, wrote, beside_freeze: false });
    facts.chain[0].max = Some(wrote);
    facts
}

#[test]
fn a_clamp_is_named_and_not_repaired() {
    let engine_only = clamped(limited(500), 320);
    let with_systemd = clamped(scoped(limited(500), Limit::Tasks(500), 252), 320);
    for facts in [engine_only, with_systemd] {
        let report = judge(&facts);
        assert_eq!((codes(&report), report.verdict), (vec![], Verdict::Enforced));
        assert_eq!((report.declared, report.effective_limit), (Some(500), Some(320)));
        let note = "mcp-guard has clamped the limit to 320 for incident i-7; it was 500; \
                    `mcp-guard thaw web` releases the clamp";
        assert!(report.notes.contains(&note.to_owned()), "{:?}", report.notes);
    }
    // Another process has written another number since, so it is not our clamp.
    let mut facts = clamped(limited(500), 320);
    facts.chain[0].max = Some(Limit::Tasks(900));
    let report = only(&facts, Code::RawWrite, Proved);
    assert!(report.notes.iter().all(|note| !note.contains("clamp")), "{:?}", report.notes);
}

#[test]
fn the_limit_beside_a_freeze_is_not_called_a_clamp() {
    let mut facts = clamped(limited(500), 320);
    facts.clamp.as_mut().unwrap().beside_freeze = true;
    let note = "mcp-guard has lowered the limit to 320 while it freezes the target for incident i-7; \
                it was 500; `mcp-guard thaw web` ends the freeze";
    let notes = judge(&facts).notes;
    assert!(notes.contains(&note.to_owned()), "{notes:?}");
}

#[test]
fn the_limit_before_a_clamp_is_still_judged() {
    // The limit had been removed before the incident.
    let mut raw = limited(25);
    (raw.chain[0].max, raw.chain[0].denials) = (Some(Limit::Max), Some(4));
    let report = only(&clamped(raw, 320), Code::RawWrite, Proved);
    assert_eq!(report.verdict, Verdict::NotEnforced);
    assert!(report.findings[0].title.contains("max"), "{}", report.findings[0].title);
    // No limit is declared. The clamp ends with the incident, so no repair suggests its number.
    let unlimited = scoped(unlimited(), Limit::Max, 252);
    let report = only(&clamped(unlimited, 320), Code::ExplicitUnlimited, Proved);
    assert_eq!((report.verdict, report.effective_limit), (Verdict::NotEnforced, Some(320)));
    assert!(!report.findings[0].repair.command.contains("320"));
}

#[test]
fn the_command_that_releases_a_clamp_is_quoted() {
    let mut facts = clamped(limited(500), 320);
    facts.target.kind = SubjectKind::Cgroup;
    facts.target.name = "/a b;reboot".into();
    let notes = judge(&facts).notes;
    assert!(notes.iter().any(|note| note.contains("thaw 'cgroup:/a b;reboot'`")), "{notes:?}");
}
