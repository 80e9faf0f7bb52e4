//! A policy changes while something is held, or while an order is under way.

use super::*;

/// A policy that enforces, with these leases and more of its keys.
fn policy(act: u32, response: &str, lease: &str, more: &str) -> String {
    format!(
        "mode = \"enforce\"\n[detect.duplicates]\nwarn = 2\nwarn_age = \"1s\"\nact = {act}\nact_age = \"2s\"\n\
         response = \"{response}\"\n[respond]\nclamp_lease = \"{lease}\"\nfreeze_lease = \"{lease}\"\n{more}"
    )
}

fn change(story: &mut Story, text: &str) {
    story.step(Input::Policy(Box::new(Policy::parse(text).expect("valid"))));
}

/// Returns the orders since the last call that end or renew a hold.
fn endings(story: &mut Story) -> Vec<Action> {
    let ends = |action: &Action| matches!(action, Action::Release { .. } | Action::Renew { .. });
    story.take().into_iter().filter(ends).collect()
}

/// Three servers for which the policy has ordered a hold, which has no outcome yet.
fn ordered(response: Response, word: &str) -> Story {
    let mut story = guarded_by_policy(&policy(3, word, "20s", ""));
    for _ in 0..3 {
        story.server("a");
    }
    story.wait(3);
    assert_eq!(story.contained(), [(Detector::Duplicates, response)]);
    story.others.clear();
    story
}

const HOLDS: [(Response, Hold, &str, &str); 2] = [
    (Response::Clamp, Hold::Clamp, "clamp", "clamped"),
    (Response::Freeze, Hold::Freeze, "freeze", "frozen"),
];

/// The changes that leave a guard its rule, each as the new policy.
fn changes() -> Vec<String> {
    let rule = |keys: &str| format!("[[guard]]\nname = \"gateway\"\n{keys}");
    vec![
        policy(30, "clamp", "1h", ""),
        policy(30, "record", "1s", ""),
        policy(30, "freeze", "1h", &rule("")),
        policy(30, "freeze", "1h", &rule("highest = \"record\"\n")),
        policy(30, "freeze", "1h", &rule("mode = \"observe\"\n")),
        policy(3, "freeze", "1h", "[server.a]\nignore = true\n"),
    ]
}

/// A hold that was ordered, or is in force, keeps the lease that it began with. It ends then, because no detector asks
/// for it any more.
#[test]
fn a_hold_keeps_its_lease_when_thresholds_responses_or_rules_change() {
    for (response, hold, word, state) in HOLDS {
        for text in changes() {
            for is_settled in [false, true] {
                let mut story = ordered(response, word);
                if is_settled {
                    story.settle(response, Outcome::Done);
                }
                change(&mut story, &text);
                if !is_settled {
                    story.settle(response, Outcome::Done);
                }
                story.wait(18);
                assert_eq!(endings(&mut story), [], "{word} {is_settled} {text}");
                assert_eq!(story.state(), state, "{word} {is_settled} {text}");
                story.wait(3);
                let release = Action::Release { hold, end: End::LeaseOver };
                assert_eq!(endings(&mut story), [release], "{word} {is_settled} {text}");
                assert_eq!(story.state(), "free", "{word} {is_settled} {text}");
                let unguard = Effect::Unguard { guard: GUARD };
                assert!(!story.others.contains(&unguard), "{word} {is_settled} {text}");
            }
        }
    }
}

/// A clamp for which a detector still asks is renewed, with the lease of the policy of that time.
#[test]
fn a_clamp_is_renewed_with_the_new_lease() {
    for mode in ["enforce", "observe"] {
        let mut story = ordered(Response::Clamp, "clamp");
        story.settle(Response::Clamp, Outcome::Done);
        change(&mut story, &policy(3, "clamp", "50s", "").replace("enforce", mode));
        story.wait(21);
        let lease = Duration::from_secs(50);
        assert_eq!(endings(&mut story), [Action::Renew { lease }], "{mode}");
        story.wait(40);
        assert_eq!((endings(&mut story), story.state().as_str()), (vec![], "clamped"), "{mode}");
    }
}

/// The rule goes away, or the container is renamed so that it does not match any more.
fn lose_the_rule(story: &mut Story, is_renamed: bool) {
    let rule = policy(3, "clamp", "20s", "[[guard]]\nname = \"other\"\n");
    if is_renamed {
        let workload = Workload { name: "renamed".to_owned(), ..Workload::default() };
        let (name, workload) = (workload.name.clone(), Box::new(workload));
        story.step(Input::Described { guard: GUARD, name, workload });
    } else {
        change(story, &rule);
    }
}

#[test]
fn a_guard_whose_rule_is_gone_gives_back_what_is_held_or_ordered() {
    for (response, hold, word, _) in HOLDS {
        for (is_renamed, is_settled) in [(false, false), (false, true), (true, false), (true, true)]
        {
            let case = format!("{word}, renamed: {is_renamed}, settled: {is_settled}");
            let mut story = ordered(response, word);
            change(&mut story, &policy(3, word, "20s", "[[guard]]\nname = \"gateway\"\n"));
            if is_settled {
                story.settle(response, Outcome::Done);
            }
            story.others.clear();
            lose_the_rule(&mut story, is_renamed);
            story.wait(5);
            let release = Action::Release { hold, end: End::Unguarded };
            assert_eq!(endings(&mut story), [release], "{case}: once");
            let ticket = story.last.expect("ordered");
            assert_eq!(story.others, [], "{case}: not before it is given back");
            if !is_settled {
                story.settle(response, Outcome::NotNeeded);
            }
            story.step(Input::Settled(settled(ticket, Outcome::Done)));
            assert_eq!(story.others, [Effect::Unguard { guard: GUARD }], "{case}");
            let status = &story.core.status(story.now)[0];
            assert_eq!((status.mode, status.highest), (Mode::Observe, Response::Record), "{case}");
            for _ in 0..3 {
                story.server("b");
            }
            story.wait(5);
            assert_eq!(story.contained(), [], "{case}: the old rule applies no more");
        }
    }
}

/// A rule that comes back before the hold is given back leaves the guard in place.
#[test]
fn a_guard_whose_rule_returns_stays() {
    let mut story = ordered(Response::Clamp, "clamp");
    story.settle(Response::Clamp, Outcome::Done);
    story.others.clear();
    lose_the_rule(&mut story, false);
    let ticket = story.last.expect("ordered");
    change(&mut story, &policy(3, "clamp", "20s", ""));
    story.step(Input::Settled(settled(ticket, Outcome::Done)));
    story.wait(1);
    assert_eq!(story.others, []);
}
