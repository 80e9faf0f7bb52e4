//! The compose labels of a container.

use std::{sync::Arc, time::Duration};

use mcp_guard_core::{
    diagnose::facts::{Compose, ComposeFile, Content, Keys, Variables},
    escape::{escape, visible_within},
};

use super::{Reach, Snapshot, compose};
use crate::{engine::Details, host::patience::within};

/// The time limit for reading the files of a container. A label may lead to a dead file server.
const PATIENCE: Duration = Duration::from_secs(3);
/// Most bytes kept of a label's text.
const MAX_LABEL: usize = 1024;
/// Most bytes kept of a path, or of a message about one.
const MAX_PATH: usize = 4096;

impl Snapshot {
    /// Returns the compose labels, with the content of the files that they name.
    pub(super) fn compose(&self, details: &Details) -> Option<Compose> {
        let mut found = details.compose.clone()?;
        match self.has_list() {
            _ if self.reach == Reach::Limits => {}
            true => {
                let unread = found.clone();
                let volumes = Arc::clone(&self.list.volumes);
                let (folder, environment) =
                    (details.working_dir.clone(), details.environment_file.clone());
                let read = move || compose::read(found, &folder, environment.as_deref(), &volumes);
                found = within(PATIENCE, read).unwrap_or_else(|late| Compose {
                    content: Some(Content::Unread { why: format!("not read: {late}") }),
                    ..unread
                });
            }
            // A container could have written the file that its label names.
            false => {
                let why = "not read: it is not known where containers can write";
                found.content = Some(Content::Unread { why: why.to_owned() });
            }
        }
        Some(shown(found))
    }
}

/// Escapes and shortens labels and texts from their files, because labels come from images.
fn shown(compose: Compose) -> Compose {
    let label = |text: &str| escape(text.as_bytes(), MAX_LABEL);
    // Some of these were escaped when they were read.
    let path = |text: &String| visible_within(text, MAX_PATH);
    Compose {
        project: label(&compose.project),
        service: label(&compose.service),
        version: compose.version.as_deref().map(label),
        files: compose.files.iter().map(path).collect(),
        content: compose.content.map(shown_content),
        ..compose
    }
}

/// Escapes paths and messages about them. Values and names were escaped before.
fn shown_content(content: Content) -> Content {
    let path = |text: &str| visible_within(text, MAX_PATH);
    match content {
        Content::Unread { why } => Content::Unread { why: path(&why) },
        Content::Read { files, variables } => {
            let shown = |file: ComposeFile| {
                let keys = match file.keys {
                    Keys::Unread { why } => Keys::Unread { why: path(&why) },
                    keys @ (Keys::Broken { .. } | Keys::Read { .. }) => keys,
                };
                ComposeFile { path: path(&file.path), keys }
            };
            let unread = variables.unread.as_deref().map(path);
            let files = files.into_iter().map(shown).collect();
            Content::Read { files, variables: Variables { unread, ..variables } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_from_labels_are_escaped_and_shortened() {
        let hostile = "\x1b[2J".to_owned() + &"x".repeat(100_000);
        let found = shown(Compose {
            project: hostile.clone(),
            service: "a\\b".to_owned(),
            version: Some(hostile.clone()),
            files: vec![hostile.clone()],
            content: Some(Content::Read {
                files: vec![ComposeFile {
                    path: hostile.clone(),
                    keys: Keys::Unread { why: hostile.clone() },
                }],
                variables: Variables { unread: Some(hostile), ..Variables::default() },
            }),
            ..Compose::default()
        });
        let Some(Content::Read { files, variables }) = &found.content else { panic!("{found:?}") };
        let Keys::Unread { why } = &files[0].keys else { panic!("{files:?}") };
        let of_file = [&files[0].path, why, variables.unread.as_ref().unwrap()];
        let labels = [&found.project, found.version.as_ref().unwrap(), &found.files[0]];
        for text in labels.into_iter().chain(of_file) {
            assert!(text.starts_with("\\u{1b}[2J") && text.len() <= MAX_PATH, "{text}");
        }
        assert_eq!(found.service, "a\\\\b");
    }
}
