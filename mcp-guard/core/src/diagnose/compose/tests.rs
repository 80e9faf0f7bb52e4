use proptest::prelude::*;

use super::*;

fn says(files: &[&str], version: Option<(u32, u32, u32)>) -> Says {
    says_by(files, environment(files), Tool::Docker(version))
}

/// Judges facts that were saved and read back.
fn says_by(files: &[&str], variables: Variables, tool: Tool) -> Says {
    let content = Content::Read { files: taken(files), variables };
    let saved = serde_json::to_string(&content).unwrap();
    assert!(!saved.contains("hunter2"), "a secret is saved: {saved}");
    let read: Content = serde_json::from_str(&saved).unwrap();
    assert_eq!(read, content);
    super::says(&read, tool)
}

fn taken(files: &[&str]) -> Vec<ComposeFile> {
    let names = ["a.yml", "b.yml", "c.yml"];
    let file = |(text, path): (&&str, &str)| ComposeFile {
        path: path.to_owned(),
        keys: keys(text, "web"),
    };
    files.iter().zip(names).map(file).collect()
}

/// The variables of an env file that these files use.
fn environment(files: &[&str]) -> Variables {
    let all = [("LIMIT", "30"), ("WORD", "hunter2"), ("ZERO", "0"), ("OTHER", "7")];
    let all = all.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    Variables { values: used_variables(&taken(files), &all), ..Variables::default() }
}

/// Returns a limit as `VALUE FILE:LINE`.
#[track_caller]
fn limit(files: &[&str]) -> String {
    let found = says(files, Some((2, 20, 0)));
    let Says::Limit { value, file, line, .. } = found else { panic!("{found:?}") };
    format!("{value} {file}:{line}")
}

#[test]
fn both_spellings_are_read_with_their_line() {
    assert_eq!(limit(&["services:\n  web:\n    pids_limit: 25\n"]), "25 a.yml:3");
    assert_eq!(limit(&["services: {web: {pids_limit: \"25\"}}"]), "25 a.yml:1");
    let deploy =
        "services:\n  web:\n    deploy:\n      resources:\n        limits:\n          pids: 9\n";
    assert_eq!(limit(&[deploy]), "9 a.yml:6");
    assert_eq!(limit(&["services: {web: {pids_limit: -1}}"]), "-1 a.yml:1");
}

#[test]
fn the_later_file_wins() {
    let one = "services:\n  web:\n    pids_limit: 25\n";
    assert_eq!(limit(&[one, "services: {web: {pids_limit: 40}}"]), "40 b.yml:1");
    assert_eq!(limit(&[one, "services: {web: {image: x}}", ""]), "25 a.yml:3");
    // Compose treats 0 as not set.
    let off = says(&[one, "services: {web: {pids_limit: 0}}"], None);
    assert!(matches!(off, Says::Nothing { .. }), "{off:?}");
}

#[test]
fn merged_anchors_are_followed() {
    let merged = "x-base: &base\n  pids_limit: 25\nservices:\n  web:\n    <<: *base\n";
    assert_eq!(limit(&[merged]), "25 a.yml:2");
    let list = "x-a: &a {image: x}\nx-b: &b {pids_limit: 7}\nservices: {web: {<<: [*a, *b]}}";
    assert_eq!(limit(&[list]), "7 a.yml:2");
    let own = "x-b: &b {pids_limit: 7}\nservices: {web: {<<: *b, pids_limit: 8}}";
    assert_eq!(limit(&[own]), "8 a.yml:2");
    let whole = "services:\n  base: &base\n    pids_limit: 5\n  web: *base\n";
    assert_eq!(limit(&[whole]), "5 a.yml:3");
}

#[test]
fn a_limit_of_another_service_or_extension_is_not_the_services_own() {
    let text =
        "x-base:\n  pids_limit: 25\nservices:\n  db:\n    pids_limit: 9\n  web:\n    image: x\n";
    let Says::Nothing { elsewhere } = says(&[text], None) else { panic!("a limit") };
    assert_eq!(elsewhere, ["a.yml:5 (service db)", "a.yml:2 (extension x-base)"]);
}

#[test]
fn variables_are_filled_in_as_compose_does() {
    let with =
        |word: &str| says(&[&format!("services: {{web: {{pids_limit: \"{word}\"}}}}")], None);
    for (word, value) in
        [("${LIMIT}", 30), ("$LIMIT", 30), ("${LIMIT:-5}", 30), ("${NO:-5}", 5), ("${NO-6}", 6)]
    {
        let found = with(word);
        assert!(
            matches!(found, Says::Limit { value: got, filled: true, .. } if got == value),
            "{word} {found:?}"
        );
    }
    for word in ["${NO}", "$NO", "${NO:?must}", "${LIMIT:+1}", "${LIMIT"] {
        assert!(matches!(with(word), Says::Unknown { .. }), "{word}");
    }
    assert!(matches!(with("$$5"), Says::Invalid { .. }));
    assert!(matches!(with("25"), Says::Limit { filled: false, .. }));
}

#[test]
fn a_variables_value_is_neither_relied_upon_nor_printed() {
    let limit = |word: &str| format!("services: {{web: {{pids_limit: \"{word}\"}}}}");
    let long = "deploy: {resources: {limits: {pids: 25}}}";
    let beside = format!("services: {{web: {{pids_limit: \"$LIMIT\", {long}}}}}");
    for text in [limit("$WORD"), limit("${NO:-many}"), limit("$ZERO"), limit("${NO:-0}"), beside] {
        let found = says(&[&text], None);
        assert!(matches!(&found, Says::Unknown { why } if !why.contains("hunter2")), "{found:?}");
    }
    // An env file that could not be read may override a default.
    let unread =
        Variables { unread: Some("/srv/.env: not read".to_owned()), ..Variables::default() };
    for (text, known) in [(limit("${NO:-5}"), false), (limit("25"), true)] {
        let found = says_by(&[&text], unread.clone(), Tool::Podman);
        assert_eq!(matches!(found, Says::Limit { .. }), known, "{found:?}");
        assert!(known || matches!(&found, Says::Unknown { why } if why.contains("/srv/.env")));
    }
}

#[test]
fn features_that_only_compose_resolves_make_the_limit_unknown() {
    for text in [
        "include: [other.yml]\nservices: {web: {pids_limit: 25}}",
        "services: {web: {extends: {service: base}, pids_limit: 25}}",
        "services: {web: {profiles: [a], pids_limit: 25}}",
        "services: {web: {pids_limit: !reset null}}",
        "services: {web: {pids_limit: 25, deploy: !reset null}}",
        "services: {web: {deploy: {resources: !override {limits: {pids: 25}}}}}",
        "services: {web: {deploy: {resources: {limits: !override {pids: 25}}}}}",
        "services: {web: !override {image: x}}",
        "services: !reset {web: {image: x}}",
    ] {
        let found = says(&[text], None);
        assert!(matches!(found, Says::Unknown { .. }), "{text}: {found:?}");
    }
}

#[test]
fn two_spellings_that_disagree_are_invalid() {
    let both = "services: {web: {pids_limit: 25, deploy: {resources: {limits: {pids: 25}}}}}";
    let memory = "services: {web: {pids_limit: 25, deploy: {resources: {limits: {memory: 1g}}}}}";
    for version in [None, Some((2, 26, 0)), Some((5, 0, 0))] {
        assert!(matches!(says(&[both], version), Says::Limit { value: 25, .. }));
        assert!(matches!(says(&[memory], version), Says::Invalid { .. }));
    }
    assert!(matches!(says(&[memory], Some((2, 25, 9))), Says::Limit { value: 25, .. }));
}

#[test]
fn the_keys_that_are_rejected_depend_on_the_tool() {
    let long = "services: {web: {deploy: {resources: {limits: {pids: 25}}}}}";
    assert!(matches!(says(&[long], Some((1, 29, 2))), Says::Invalid { .. }));
    assert!(matches!(says(&[long], Some((2, 0, 0))), Says::Limit { value: 25, .. }));
    let short = "services: {web: {pids_limit: 25, deploy: {resources: {limits: {memory: 1g}}}}}";
    let found = says_by(&[short], Variables::default(), Tool::Podman);
    assert!(matches!(found, Says::Limit { value: 25, .. }), "{found:?}");
}

#[test]
fn hostile_files_are_bounded() {
    let bomb: String = (1..60)
        .map(|n| format!("x-{n}: &a{n} [*a{0}, *a{0}, *a{0}]\n", n - 1))
        .fold("x-0: &a0 {pids_limit: 1}\n".to_owned(), |all, line| all + &line);
    let bomb = bomb + "services: {web: {<<: *a59, pids_limit: 25}}";
    assert!(matches!(says(&[&bomb], None), Says::Limit { value: 25, .. }));
    let merges: String = (1..60)
        .map(|n| format!("x-{n}: &a{n} {{<<: [*a{0}, *a{0}, *a{0}]}}\n", n - 1))
        .fold("x-0: &a0 {image: x}\n".to_owned(), |all, line| all + &line);
    let merges = merges + "services: {web: {<<: *a59}}";
    assert!(matches!(says(&[&merges], None), Says::Nothing { .. }));
    let own = "services: {web: &a {<<: *a, image: x}}";
    assert!(matches!(says(&[own], None), Says::Nothing { .. }));
    let deep = "[".repeat(100_000);
    assert!(matches!(says(&[&deep], None), Says::Invalid { .. }));
    let wide = "- a\n".repeat(200_000);
    assert!(matches!(says(&[&wide], None), Says::Invalid { .. }));
}

#[test]
fn only_keys_that_a_limit_depends_on_are_kept() {
    let text = "x-a: &a {secret: hunter2}\nservices:\n  db: {pids_limit: hunter2}\n  web:\n    <<: *a\n    \
                environment: {PASSWORD: hunter2}\n    pids_limit: \"${LIMIT:-5}\"\n";
    assert!(matches!(says(&[text], None), Says::Limit { value: 30, line: 7, .. }));
    let values = environment(&[text]).values;
    assert_eq!(values.keys().collect::<Vec<_>>(), ["LIMIT"], "OTHER is not used");
}

#[test]
fn an_unread_file_in_any_position_makes_the_limit_unknown() {
    let mut files = taken(&["services: {web: {pids_limit: 25}}", "{", ""]);
    let why = "not read: there is no such file".to_owned();
    files[2].keys = Keys::Unread { why };
    let content = Content::Read { files, variables: Variables::default() };
    let found = super::says(&content, Tool::Podman);
    assert_eq!(found, Says::Unknown { why: "c.yml: not read: there is no such file".to_owned() });
}

#[test]
fn a_limit_from_a_variable_is_as_new_as_its_env_file() {
    let judged_with = |text: &str| {
        let variables = Variables { modified: Some(9), ..environment(&[text]) };
        let content = Content::Read { files: taken(&[text]), variables };
        judged(&Compose { modified: Some(5), content: Some(content), ..Compose::default() })
    };
    let limit = |word: &str| format!("services: {{web: {{pids_limit: \"{word}\"}}}}");
    assert_eq!(judged_with(&limit("$LIMIT")).modified, Some(9));
    assert_eq!(judged_with(&limit("25")).modified, Some(5));
}

proptest! {
    #[test]
    fn no_text_panics(text in ".{0,200}") {
        says(&[&text], None);
    }

    #[test]
    fn no_text_like_a_compose_file_panics(
        words in prop::collection::vec(
            prop::sample::select(vec![
                "services:", "web:", "pids_limit:", "<<:", "*a", "&a", "{", "}", "[", "]", "${X", "\n",
                "\n  ", "\n    ", "25", ",", "!reset", "-", "deploy:", "\"", "'", "|",
            ]),
            0..40,
        ),
    ) {
        says(&[&words.join(" ")], None);
    }
}
