//! Tests of the check for cycles, on small trees.

use super::cycles;
use crate::modules::Tree;

fn found(files: &[(&str, &str)]) -> Vec<String> {
    let files: Vec<(String, String)> =
        files.iter().map(|&(path, text)| (path.to_owned(), text.to_owned())).collect();
    cycles(&Tree::read(&files))
}

/// Returns the only cycle of a tree.
fn only(files: &[(&str, &str)]) -> String {
    let found = found(files);
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].clone()
}

const AB: (&str, &str) = ("lib.rs", "mod a; mod b;");

#[test]
fn two_modules_that_use_each_other_form_a_cycle() {
    let cycle = only(&[AB, ("a.rs", "\nuse crate::b::B;"), ("b.rs", "use crate::a::{A};")]);
    let expected = "cycle in crate: a -> b -> a\n    \
                    a.rs:2 -> b.rs (use crate::b::B)\n    \
                    b.rs:1 -> a.rs (use crate::a::A)\n";
    assert_eq!(cycle, expected);
}

#[test]
fn a_cycle_of_three_is_found_at_a_deeper_level() {
    let cycle = only(&[
        ("main.rs", "mod top;"),
        ("top.rs", "mod a; mod b; mod c;"),
        ("top/a.rs", "use super::b::inner::B;"),
        ("top/b.rs", "mod inner;"),
        ("top/b/inner.rs", "use crate::top::c;"),
        ("top/c.rs", "use super::a::A;"),
    ]);
    assert!(cycle.starts_with("cycle in top: a -> b -> c -> a\n"), "{cycle}");
    assert!(cycle.contains("top/a.rs:1 -> top/b/inner.rs (use super::b::inner::B)"), "{cycle}");
    assert!(cycle.contains("top/b/inner.rs:1 -> top/c.rs (use crate::top::c)"), "{cycle}");
}

#[test]
fn a_cycle_through_a_name_that_the_root_re_exports_is_found() {
    let root = ("lib.rs", "mod a; mod b; pub use self::{a::A, b::B as Renamed};");
    let cycle = only(&[root, ("a.rs", "use crate::Renamed;"), ("b.rs", "use super::A;")]);
    assert!(cycle.contains("a.rs:1 -> b.rs (use crate::Renamed)"), "{cycle}");
    assert!(cycle.contains("b.rs:1 -> a.rs (use super::A)"), "{cycle}");
}

#[test]
fn a_re_export_of_another_branch_leads_to_both() {
    let files = [
        ("lib.rs", "mod a; mod b; mod c;"),
        ("a.rs", "use crate::b::C;"),
        ("b.rs", "pub use crate::c::C;"),
        ("c.rs", "use crate::a::A;"),
    ];
    let found = found(&files);
    assert!(found.iter().any(|cycle| cycle.contains("a -> c -> a")), "{found:?}");
    assert!(found.iter().any(|cycle| cycle.contains("b -> c -> a -> b")), "{found:?}");
}

#[test]
fn a_cycle_in_nested_groups_is_found() {
    let a =
        ("a.rs", "use crate::{\n  x::Y,\n  b::{\n    self as other, deep::{B, C as D},\n  },\n};");
    let b = ("b.rs", "pub mod deep;");
    let cycle = only(&[AB, a, b, ("b/deep.rs", "use crate::{a::{self}};")]);
    assert!(cycle.contains("a.rs:4 -> b/deep.rs (use crate::b::deep::C)"), "{cycle}");
    assert!(cycle.contains("b/deep.rs:1 -> a.rs (use crate::a)"), "{cycle}");
}

#[test]
fn a_cycle_by_paths_in_code_is_found() {
    let cycle = only(&[
        AB,
        ("a.rs", "fn f() -> u8 { crate::b::f() }"),
        ("b.rs", "use crate as root; impl T for super::a::A { const X: u8 = root::a::X; }"),
    ]);
    assert!(cycle.contains("a.rs:1 -> b.rs (crate::b::f)"), "{cycle}");
    assert!(cycle.contains("b.rs:1 -> a.rs (super::a::A)"), "{cycle}");
    assert!(cycle.contains("b.rs:1 -> a.rs (root::a::X)"), "{cycle}");
}

#[test]
fn a_cycle_by_an_import_without_crate_or_super_is_found() {
    let files = [
        ("lib.rs", "mod top;"),
        ("top.rs", "mod a; mod b; use a::A; mod inside { use super::b::B; }"),
        ("top/a.rs", "use super::inside;"),
        ("top/b.rs", "use super::A;"),
    ];
    assert!(only(&files).starts_with("cycle in top: a -> inside -> b -> a\n"));
}

#[test]
fn parents_and_children_may_use_each_other() {
    let files = [
        ("lib.rs", "mod a; use a::b::B; pub struct Root;"),
        ("a.rs", "mod b; mod c; use self::b::B; pub struct A; fn f() { c::C; }"),
        ("a/b.rs", "use super::A; use crate::Root; use super::super::Root as Same;"),
        ("a/c.rs", "use crate::a::{A, b::B};"),
    ];
    assert_eq!(found(&files), [""; 0]);
}

#[test]
fn tests_comments_strings_and_other_crates_do_not_count() {
    let a = "use crate::b::B; use ::b::X; use std::fs; fn f() { fs::read(\"crate::b\"); }";
    let b = "// use crate::a::A;\nconst TEXT: &str = \"crate::a::A\";\n\
             #[cfg(test)]\nmod tests { use crate::a::A; fn t() { crate::a::f(); } }\n\
             #[cfg(test)]\nmod more;";
    let more = ("b/more.rs", "use crate::a::A;");
    assert_eq!(found(&[AB, ("a.rs", a), ("b.rs", b), more]), [""; 0]);
}

#[test]
#[should_panic(expected = "a.rs: use crate::b::* hides which names are used")]
fn a_glob_import_of_a_module_is_refused() {
    found(&[AB, ("a.rs", "use crate::b::*;"), ("b.rs", "")]);
}
