//! What looks like a cause and is none, or is less sure than it looks.

use super::*;

fn filled(mut facts: Facts) -> Facts {
    let compose = facts.compose.as_mut().unwrap();
    if let Says::Limit { filled, .. } = &mut compose.says {
        *filled = true;
    }
    facts
}

#[test]
fn a_limit_from_a_variable_proves_nothing() {
    only(&filled(composed(unlimited(), 25, 10)), Code::NotRecreated, Possible);
    only(&filled(composed(unlimited(), -1, 10)), Code::ExplicitUnlimited, Possible);
    for newer_by in [10, -10] {
        // The shell had 500, and that is what holds.
        let report = judge(&filled(composed(limited(500), 25, newer_by)));
        assert_eq!((report.verdict, report.declared), (Verdict::Enforced, Some(500)));
        let finding = &report.findings[0];
        assert!(finding.certainty == Possible && !finding.repair.possible, "{finding:#?}");
        assert!(report.places.iter().all(|place| !place.breaks), "{:#?}", report.places);
    }
    assert_eq!(codes(&judge(&filled(composed(limited(25), 25, 10)))), []);
}
