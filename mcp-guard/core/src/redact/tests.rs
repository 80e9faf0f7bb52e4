use proptest::prelude::*;

use super::*;

/// Strings in the form of real tokens. None is a real one.
const TOKENS: [&str; 22] = [
    "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
    "github_pat_11ABCDEFG0abcdefghijkl_MNOPqrstuvWXYZ0123456789abcdefghij",
    "glpat-x9Yq3Lw7Kd2Tn5Vb8Zc1",
    "sk-proj-4f9Qx0Lm3Vt8Zp2Kd7Wn5Yb1Hc6Rj",
    "sk-ant-api03-Ab3dEf6hIj9lMn2pQr5tUv8xYz1-QA",
    "xoxb-263594206564-FGqddMF8t08v8N7Oq4i57vs1",
    "AKIAIOSFODNN7EXAMPLE",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
    "npm_aB3dE6fG9hI2jK5lM8nO1pQ4rS7tU0vW3xY6",
    "pypi-AgEIcHlwaS5vcmcCJDk3ZTQ1Y2Y2LTFj",
    "AIzaSyA1bC2dE3fG4hI5jK6lM7nO8pQ9rS0tU1v",
    "hf_aB3dE6fG9hI2jK5lM8nO1pQ4rS7tU0vW3x",
    "dop_v1_5b1f0a9c3e7d2846f0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f607",
    "SG.x9Yq3Lw7Kd2Tn5Vb8Zc1Qw.A1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6",
    "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",
    "figd_x9Yq3Lw7Kd2Tn5Vb8Zc1QwErTy",
    "lin_api_x9Yq3Lw7Kd2Tn5Vb8Zc1QwErTyUi",
    "sntrys_x9Yq3Lw7Kd2Tn5Vb8Zc1QwErTyUiOp",
    "secret_x9Yq3Lw7Kd2Tn5Vb8Zc1QwErTyUiOp",
    "sk_live_51H8xYzAbCdEfGhIjKlMnOpQr",
    "5b1f0a9c3e7d2846f0a1b2c3d4e5f60718293a4b",
    "3f2504e0-4f89-41d3-9a0c-0305e82c3301",
];

/// Returns whether a secret does not appear in a masked command line.
fn hides(secret: &str, argv: &[&str]) -> bool {
    !words(argv.iter().copied()).join(" ").contains(secret)
}

#[test]
fn tokens_of_services_are_masked_wherever_they_stand() {
    for token in TOKENS {
        for argv in [
            vec![token],
            vec!["--whatever", token],
            vec!["-y", &format!("git+https://oauth2:{token}@example.org/a/b.git")],
            vec![&format!("https://example.org/x.tgz?auth={token}&v=1")],
            vec![&format!("{{\"headers\":{{\"x\":\"{token}\"}}}}")],
            vec!["-H", &format!("Authorization: Bearer {token}")],
            vec![&format!("--header=X-Api-Key: {token}")],
            vec![&format!("a,{token},b")],
        ] {
            assert!(hides(token, &argv), "{argv:?}: {:?}", words(argv.iter().copied()));
        }
    }
}

#[test]
fn a_secret_of_any_form_is_masked_behind_its_name() {
    let secret = "hunter2";
    for argv in [
        vec!["--api-key", secret],
        vec!["--apiKey=hunter2"],
        vec!["GITHUB_TOKEN=hunter2"],
        vec!["-e", "DB_PASSWORD=hunter2"],
        vec!["--password", secret],
        vec!["-u", "me:hunter2"],
        vec!["postgres://me:hunter2@db/app"],
        vec!["redis://:hunter2@cache:6379/0"],
        vec!["postgres://me:a/hunter2@db/app"],
        vec!["postgres://me:hunter2/a@db/app"],
        vec!["postgres://me:a?hunter2@db/app"],
        vec!["postgres://me:hunter2#a@db/app"],
        vec!["redis://:9#hunter2@cache:6379/0"],
        vec!["--header", "Cookie: hunter2"],
        vec!["{\"accessToken\": \"hunter2\"}"],
        vec!["https://example.org/mcp?key=hunter2"],
        vec!["sh", "-c", "SECRET=hunter2 npx x"],
        vec!["AWS_SECRET_ACCESS_KEY=hunter2/hunter2+x"],
    ] {
        assert!(hides(secret, &argv), "{argv:?}: {:?}", words(argv.iter().copied()));
    }
}

#[test]
fn what_is_no_secret_stays() {
    for argv in [
        vec!["npx", "-y", "@modelcontextprotocol/server-everything", "--port", "3000"],
        vec!["node", "/app/node_modules/.bin/figma-mcp", "--stdio"],
        vec!["uvx", "--from", "git+https://github.com/acme/mcp.git@v1.2.3", "mcp-server"],
        vec!["docker", "run", "-i", "ghcr.io/acme/mcp-server:1.2.3-alpine3.20"],
        vec!["java", "-jar", "/opt/mcp/server-1.10.2-SNAPSHOT-all.jar"],
        vec!["--keyboard", "us", "--author", "me", "--passthrough", "x", "--monkey", "y"],
        vec!["postgres://db/app", "http://localhost:3000/sse"],
        vec!["https://h.example/x@y", "http://localhost:3000/x@y", "http://[::1]/x@y"],
        vec!["/nix/store/aaaa/bin/node", "--max-old-space-size=4096"],
    ] {
        assert_eq!(words(argv.iter().copied()), argv);
    }
}

/// Random letters and digits, as in the path of a webhook.
#[test]
fn a_random_segment_of_a_path_is_masked() {
    for secret in [
        "aB3dE5fG7hI9jK1lM3nO5pQ7",
        "XdN2qVb7Kt9wLm4RzPy6Hc1J",
        "K8sQ2mZ0pL5vT9xB3nR7",
        "9Fh2kLq8Vw3XzB6nTy1Rm5Pc0Js4",
        "7f3kq9zt2m8xw4vb6n1p",
        "507f1f77bcf86cd799439011",
    ] {
        for word in [
            format!("https://hooks.example.com/services/T0AB1CD2E/B0AB1CD2E/{secret}"),
            format!("https://example.org/v1/{secret}/mcp"),
            format!("https://example.org/{secret}-1.tgz"),
            secret.to_owned(),
        ] {
            assert!(hides(secret, &[&word]), "{word}");
            assert!(!name(&word).contains(secret), "{word}");
        }
    }
}

#[test]
fn a_long_name_is_not_taken_for_random() {
    for word in [
        "modelcontextprotocol",
        "modelcontextprotocol2025",
        "server-sequential-thinking",
        "mcp-server-playwright-v1208",
        "Base64UrlEncoder2024Test",
        "X509CertificateManager2Impl",
        "Utf8JsonStreamReader2Test",
        "OAuth2AuthorizationServer",
        "Sha256WithRsaEncryption",
        "Win32NTServiceController",
        "ISO8601DateTimeFormatter",
        "MD5MessageDigestProvider",
        "Http2ServerConnection4Test",
        "Vector3DTransformMatrix4x4",
        "Neo4jGraphDatabaseServer5",
        "kubernetes1x29controller",
        "elasticsearch8client2024",
        "postgresql16vector0server",
        "react18next13server2demo",
        "internationalization18n",
        "AbstractSingletonProxyFactoryBean",
        "getUserAccountsByOrganization",
        "supercalifragilisticexpialidocious",
        "SUPERCALIFRAGILISTICEXPIALI2024",
        "x86_64-unknown-linux-gnu",
        "aarch64-apple-darwin24.1.0",
        "server-1.10.2-SNAPSHOT-all.jar",
        "v0.0.0-20191109021931-daa7c04131f5",
        "20240115T103000Z20240116T103000Z",
        "1234567890123456789012345",
        "node-v22.11.0-linux-x64-musl",
        "python3.12-site-packages-cp312-abi3",
        "@anthropic-ai/claude-code-linux-x64",
        "com.example.mcp.Application2Main",
        "2024-11-05T10:00:00.000Z",
        "tools_mcp_server_2_go_x64_v2",
        "chatgpt4o-mini-2024-07-18",
        "llama3.1-70b-instruct-q4_k_m",
        "Qwen2.5-Coder-32B-Instruct-GGUF",
    ] {
        for word in [word.to_owned(), format!("https://example.org/a/{word}/mcp")] {
            assert_eq!(text(&word), word);
        }
    }
}

#[test]
fn equal_secrets_stay_recognisable_and_a_mask_is_not_masked_again() {
    let argv = ["--token", "hunter2", "TOKEN=hunter2", "--token", "hunter3"];
    let once = words(argv);
    assert_eq!(once[1], once[2].trim_start_matches("TOKEN="));
    assert_ne!(once[1], once[4]);
    assert_eq!(words(once.iter().map(String::as_str)), once);
}

#[test]
fn a_name_has_no_user_no_query_and_no_fragment() {
    for (spec, expected) in [
        ("git+https://oauth2:ghp_x@github.com/acme/mcp.git", "git+https://github.com/acme/mcp.git"),
        ("https://r.example/f.tgz?17", "https://r.example/f.tgz"),
        ("https://r.example/f.tgz#egg=x", "https://r.example/f.tgz"),
        ("@21st-dev/magic", "@21st-dev/magic"),
        ("git@github.com:acme/mcp.git", "git@github.com:acme/mcp.git"),
    ] {
        assert_eq!(name(spec), expected);
    }
}

proptest! {
    #[test]
    fn no_token_is_ever_shown(
        token in prop::sample::select(&TOKENS[..]),
        before in "[ -~]{0,20}[ /=:\"]",
        after in "[ \"',&}][ -~]{0,20}",
        option in "--[a-z]{1,8}",
    ) {
        let word = format!("{before}{token}{after}");
        prop_assert!(hides(token, &[&option, &word]), "{:?}", words([option.as_str(), &word]));
    }

    #[test]
    fn it_ends_and_stays_the_same_the_second_time(argv in prop::collection::vec("\\PC{0,40}", 0..6)) {
        let once = words(argv.iter().map(String::as_str));
        let twice = words(once.iter().map(String::as_str));
        prop_assert!(twice.join(" ").len() < 100_000);
        prop_assert_eq!(once.len(), twice.len());
    }
}
