//! The login session of a process: of its cgroup, as logind names it (logind.conf(5)), or of its audit session
//! (`/proc/PID/sessionid`), whose number logind takes over.

/// Returns the session of a process in this cgroup. Users make cgroups of their own only below their sessions and
/// their manager, so the first session on the path is the system's.
pub fn of_cgroup(path: &[u8]) -> Option<&str> {
    let path = std::str::from_utf8(path).ok()?;
    let mut names = path.strip_prefix("/user.slice/user-")?.split('/').skip(1);
    let session = names.next()?.strip_prefix("session-")?.strip_suffix(".scope")?;
    let is_name = !session.is_empty() && session.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_name.then_some(session)
}

/// Returns the session in the text of `/proc/PID/sessionid`. A process outside all sessions has the highest number.
pub fn of_audit(text: &str) -> Option<String> {
    let number: u32 = text.trim().parse().ok()?;
    (number != u32::MAX).then(|| number.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_the_one_that_the_system_has_named() {
        for (path, expected) in [
            ("/user.slice/user-1000.slice/session-4.scope", Some("4")),
            ("/user.slice/user-0.slice/session-c1.scope/a", Some("c1")),
            ("/user.slice/user-1000.slice/user@1000.service/session-9.scope", None),
            ("/user.slice/user-1000.slice", None),
            ("/system.slice/user.slice/user-1.slice/session-4.scope", None),
            ("/user.slice/user-1000.slice/session-.scope", None),
            ("/user.slice/user-1000.slice/session-4\n.scope", None),
            ("/", None),
        ] {
            assert_eq!(of_cgroup(path.as_bytes()), expected, "{path}");
        }
        assert_eq!(of_cgroup(b"/user.slice/user-1.slice/session-\xff.scope"), None);
    }

    #[test]
    fn a_process_outside_all_sessions_has_none() {
        assert_eq!(of_audit("4"), Some("4".to_owned()));
        assert_eq!(of_audit("4294967295"), None);
        assert_eq!(of_audit(""), None);
    }
}
