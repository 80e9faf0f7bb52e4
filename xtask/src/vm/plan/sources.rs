//! Finds the end-to-end tests in their sources, because building them takes minutes.

use std::fs;
use std::path::Path;

use guest_runner::Test;

use crate::workspace;

/// Returns every test of every program.
pub fn tests() -> Vec<Test> {
    let folder = workspace::root().join("tests/tests");
    let mut all = Vec::new();
    for (program, file) in modules(&folder) {
        add(&mut all, &program, "", &file);
    }
    let entries = fs::read_dir(&folder).unwrap().flatten().map(|entry| entry.path());
    for folder in entries.filter(|path| path.join("main.rs").exists()) {
        let program = folder.file_name().unwrap().to_string_lossy().into_owned();
        for (module, file) in modules(&folder) {
            let path = if module == "main" { String::new() } else { format!("{module}::") };
            add(&mut all, &program, &path, &file);
        }
    }
    all
}

/// Returns the Rust files of a folder, with their names.
fn modules(folder: &Path) -> Vec<(String, std::path::PathBuf)> {
    let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let rust = files.filter(|file| file.extension().is_some_and(|end| end == "rs"));
    rust.map(|file| (file.file_stem().unwrap().to_string_lossy().into_owned(), file)).collect()
}

fn add(all: &mut Vec<Test>, program: &str, module: &str, file: &Path) {
    let text = fs::read_to_string(file).unwrap();
    for (_, rest) in text.match_indices("#[test]\n").map(|(at, _)| text.split_at(at)) {
        let name = rest.split_once("fn ").unwrap().1.split('(').next().unwrap();
        all.push(Test { program: program.to_owned(), name: format!("{module}{name}") });
    }
}
