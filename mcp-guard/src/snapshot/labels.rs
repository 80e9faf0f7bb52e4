//! What the labels of a container say of compose.

use mcp_guard_core::{
    diagnose::facts::{Compose, Says},
    escape::{escape, visible_within},
};

use super::{Reach, Snapshot, compose};
use crate::engine::Details;

/// Bytes of a text that a label brought.
const MAX_LABEL: usize = 1024;
/// The same of a path, and of what is said of one.
const MAX_PATH: usize = 4096;

impl Snapshot {
    /// What the labels of compose say, and the files that they name.
    pub(super) fn compose(&self, details: &Details) -> Option<Compose> {
        let mut found = details.compose.clone()?;
        match self.listed.as_ref().map(|list| &list.volumes) {
            _ if self.reach == Reach::Limits => {}
            Some(volumes) => {
                let environment = details.environment_file.as_deref();
                found = compose::read(found, &details.working_dir, environment, volumes);
            }
            // A container could have written what a label of it names.
            None => {
                let why = "not read: where containers can write is not known";
                found.says = Says::Unknown { why: why.to_owned() };
            }
        }
        Some(shown(found))
    }
}

/// Labels come from images, and texts with them.
fn shown(compose: Compose) -> Compose {
    let label = |text: &str| escape(text.as_bytes(), MAX_LABEL);
    // Of these some were escaped where they were read.
    let path = |text: &String| visible_within(text, MAX_PATH);
    Compose {
        project: label(&compose.project),
        service: label(&compose.service),
        version: compose.version.as_deref().map(label),
        files: compose.files.iter().map(path).collect(),
        says: match compose.says {
            Says::Limit { value, key, file, line, filled } => {
                Says::Limit { value, key, file: path(&file), line, filled }
            }
            Says::Nothing { elsewhere } => {
                Says::Nothing { elsewhere: elsewhere.iter().map(path).collect() }
            }
            Says::Invalid { why } => Says::Invalid { why: path(&why) },
            Says::Unknown { why } => Says::Unknown { why: path(&why) },
            Says::NotAsked => Says::NotAsked,
        },
        ..compose
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_labels_bring_is_shown_and_cut() {
        let hostile = "\x1b[2J".to_owned() + &"x".repeat(100_000);
        let found = shown(Compose {
            project: hostile.clone(),
            service: "a\\b".to_owned(),
            version: Some(hostile.clone()),
            files: vec![hostile.clone()],
            says: Says::Unknown { why: hostile },
            ..Compose::default()
        });
        let Says::Unknown { why } = &found.says else { panic!("{:?}", found.says) };
        for text in [&found.project, found.version.as_ref().unwrap(), &found.files[0], why] {
            assert!(text.starts_with("\\u{1b}[2J") && text.len() <= MAX_PATH, "{text}");
        }
        assert_eq!(found.service, "a\\\\b");
    }
}
