use super::*;

fn mark() -> Mark {
    Mark {
        incident: "i-1".into(),
        reason: "Duplicates of figma-mcp".to_owned(),
        deadline: Time(7),
        boot_id: "b".to_owned(),
        holder: Pid(1),
        holder_start: Ticks(2),
        found: Some("max".to_owned()),
        wrote: Some("50".to_owned()),
        before: None,
        freeze: None,
        of_a_server: false,
    }
}

fn key() -> Key {
    Key::prepare(tempfile::tempdir().unwrap().path()).unwrap()
}

fn text() -> Vec<u8> {
    serde_json::to_vec(&mark()).unwrap()
}

#[test]
fn a_signed_mark_is_ours_and_that_of_another_hold_cgroup_or_key_is_forged() {
    let (key, other) = (key(), self::key());
    let value = sign(&key, Hold::Clamp, 7, text());
    assert_eq!(judge(Some(&key), Hold::Clamp, 7, &value), MarkFound::Ours(mark()));
    for forged in [
        judge(Some(&key), Hold::Freeze, 7, &value),
        judge(Some(&key), Hold::Clamp, 8, &value),
        judge(Some(&other), Hold::Clamp, 7, &value),
        judge(None, Hold::Clamp, 7, &value),
    ] {
        assert_eq!(forged, MarkFound::Forged);
    }
}

#[test]
fn no_byte_of_a_signed_mark_can_be_changed() {
    let key = key();
    let value = sign(&key, Hold::Clamp, 7, text());
    for at in 0..value.len() {
        let mut changed = value.clone();
        changed[at] ^= 1;
        let found = judge(Some(&key), Hold::Clamp, 7, &changed);
        assert!(!matches!(found, MarkFound::Ours(_)), "byte {at}: {found:?}");
    }
}

#[test]
fn an_older_version_reads_a_signed_mark_and_we_read_its_own() {
    let value = sign(&key(), Hold::Freeze, 7, text());
    assert_eq!(serde_json::from_slice::<Mark>(&value).unwrap(), mark());
    assert_eq!(judge(Some(&key()), Hold::Freeze, 7, &text()), MarkFound::Unsigned(mark()));
}

#[test]
fn what_is_no_mark_is_forged() {
    for value in [&b""[..], b"{}", b"\"}", b"{\"mac\":\"\"}", b"\xff", &[b'0'; MAX]] {
        assert_eq!(judge(Some(&key()), Hold::Freeze, 7, value), MarkFound::Forged);
    }
}

#[test]
fn words_of_an_unknown_writer_are_bounded() {
    let mark =
        Mark { incident: "\n".repeat(900).as_str().into(), reason: "\x1b".repeat(900), ..mark() };
    let found = judge(None, Hold::Freeze, 7, &serde_json::to_vec(&mark).unwrap());
    let MarkFound::Unsigned(mark) = found else { panic!("{found:?}") };
    assert!(mark.incident.as_str().len() <= MAX_INCIDENT && mark.reason.len() <= MAX_REASON);
    assert!(!mark.reason.contains('\x1b') && !mark.incident.as_str().contains('\n'));
}
