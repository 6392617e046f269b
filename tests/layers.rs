//! The house keeps its order: a file imports only from rows above its own, and each of the outside
//! worlds (kernel, network, command line, environment) has few doors.
//!
//! The order is the table in `src/lib.rs`; there is no second copy of it here.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A module's place: row, and position among the "then"s of the row.
type Place = (usize, usize);

/// What only some modules, and what is below them, may name.
const DOORS: [(&str, &[&str]); 7] = [
    ("fuser", &["fuse", "mount"]),
    ("reqwest", &["source::http"]),
    ("clap", &["cli"]),
    ("clap_complete", &["cli"]),
    ("clap_mangen", &["cli"]),
    ("tracing_subscriber", &["cli"]),
    ("std::env", &["paths", "config", "credentials"]),
];

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Reads lines such as ``//! | 5 | [`paths`], then [`config`] |``.
fn table(text: &str) -> BTreeMap<String, Place> {
    let mut places = BTreeMap::new();
    for line in text.lines() {
        let cells = line
            .strip_prefix("//! | ")
            .and_then(|cells| cells.split_once(" | "));
        let Some((row, modules)) = cells else {
            continue;
        };
        let Ok(row) = row.trim().parse() else {
            continue;
        };
        for (position, group) in modules.split(", then ").enumerate() {
            for name in group.split('`').skip(1).step_by(2) {
                // A link that says which kind of thing it means: `reference` is a type, too.
                let name = name.trim_start_matches("mod@");
                let before = places.insert(name.to_owned(), (row, position));
                assert_eq!(before, None, "{name} is in the table twice");
            }
        }
    }
    places
}

/// A source file's words, `::`s and single characters; without comments, strings and characters.
fn tokens(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let hashes_at = |i: usize| (i..).take_while(|i| at(*i) == '#').count();
    let mut tokens = Vec::new();
    let mut i = 0;
    while i < chars.len() {
        let c = at(i);
        if c == '/' && at(i + 1) == '/' {
            while i < chars.len() && at(i) != '\n' {
                i += 1;
            }
        } else if c == '/' && at(i + 1) == '*' {
            let mut depth = 0;
            loop {
                match (at(i), at(i + 1)) {
                    ('/', '*') => (depth, i) = (depth + 1, i + 2),
                    ('*', '/') => (depth, i) = (depth - 1, i + 2),
                    _ => i += 1,
                }
                if depth == 0 || i >= chars.len() {
                    break;
                }
            }
        } else if c == 'r' && at(i + 1 + hashes_at(i + 1)) == '"' {
            let hashes = hashes_at(i + 1);
            i += hashes + 2;
            while i < chars.len() && (at(i) != '"' || hashes_at(i + 1) < hashes) {
                i += 1;
            }
            i += hashes + 1;
        } else if c == '"' {
            i += 1;
            while i < chars.len() && at(i) != '"' {
                i += if at(i) == '\\' { 2 } else { 1 };
            }
            i += 1;
        } else if c == '\'' && at(i + 1) == '\\' {
            i += 3;
            while i < chars.len() && at(i) != '\'' {
                i += 1;
            }
            i += 1;
        } else if c == '\'' && at(i + 2) == '\'' {
            i += 3;
        } else if c.is_alphabetic() || c == '_' {
            let start = i;
            while at(i).is_alphanumeric() || at(i) == '_' {
                i += 1;
            }
            tokens.push(chars[start..i].iter().collect());
        } else if c == ':' && at(i + 1) == ':' {
            tokens.push("::".to_owned());
            i += 2;
        } else {
            if !c.is_whitespace() {
                tokens.push(c.to_string());
            }
            i += 1;
        }
    }
    tokens
}

fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// All paths in a file; `use a::{b, c::d}` is `a::b` and `a::c::d`.
fn paths(tokens: &[String]) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        if is_word(&tokens[i]) {
            i = path(tokens, i, &[], &mut found);
        } else {
            i += 1;
        }
    }
    found
}

/// Reads the path at `i`, which continues `prefix`; returns where it ends.
fn path(tokens: &[String], mut i: usize, prefix: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let mut so_far = prefix.to_vec();
    loop {
        match tokens.get(i) {
            Some(word) if is_word(word) => so_far.push(word.clone()),
            // Only after `::`: a lone `{` never gets here.
            Some(open) if open == "{" => {
                i += 1;
                while let Some(token) = tokens.get(i) {
                    if token == "}" {
                        return i + 1;
                    }
                    i = if is_word(token) {
                        path(tokens, i, &so_far, found)
                    } else {
                        i + 1
                    };
                }
                return i;
            }
            _ => break,
        }
        i += 1;
        if tokens.get(i).is_some_and(|token| token == "::") {
            i += 1;
        } else {
            break;
        }
    }
    found.push(so_far);
    i
}

/// A source file's module path, such as `["source", "http"]`; empty for the crate's root.
fn module(file: &Path) -> Vec<String> {
    let inside = file.strip_prefix(src()).unwrap().with_extension("");
    let parts = inside.iter().map(|part| part.to_str().unwrap().to_owned());
    parts
        .filter(|part| part != "lib" && part != "main")
        .collect()
}

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The top-level module that `path`, written in `module`, leads to, if it is in the table.
fn target<'a>(
    path: &'a [String],
    module: &[String],
    places: &BTreeMap<String, Place>,
) -> Option<&'a str> {
    let name = match path.first()?.as_str() {
        "crate" | "musherfs" => path.get(1)?,
        "super" => {
            let supers = path.iter().take_while(|part| *part == "super").count();
            if supers < module.len() {
                return None;
            }
            path.get(supers)?
        }
        _ => return None,
    };
    places.contains_key(name).then_some(name)
}

/// What is wrong with one file.
fn violations(module: &[String], text: &str, places: &BTreeMap<String, Place>) -> Vec<String> {
    let mut wrong = Vec::new();
    let here = module.first().and_then(|top| places.get(top));
    let name_here = module.join("::");
    for path in paths(&tokens(text)) {
        let spelt = path.join("::");
        if let (Some(here), Some(name)) = (here, target(&path, module, places))
            && module[0] != name
            && places[name] >= *here
        {
            wrong.push(format!("{name_here} imports {spelt}"));
        }
        for (world, doors) in DOORS {
            let below = |name: &str, top: &str| {
                name == top || name.starts_with(top) && name[top.len()..].starts_with("::")
            };
            // A lone word may be a variable; a crate is named in a path, or by `use`.
            let is_path = || path.len() > 1 || text.contains(&format!("use {world};"));
            if below(&spelt, world)
                && !doors.iter().any(|door| below(&name_here, door))
                && is_path()
            {
                wrong.push(format!("{name_here} uses {spelt}; only {doors:?} may"));
            }
        }
    }
    wrong
}

fn sources() -> Vec<PathBuf> {
    let mut files = Vec::new();
    rust_files(&src(), &mut files);
    files
}

#[test]
fn no_file_imports_upwards_or_uses_a_door_that_is_not_its_own() {
    let places = table(&fs::read_to_string(src().join("lib.rs")).unwrap());
    let mut wrong = Vec::new();
    for file in sources() {
        let text = fs::read_to_string(&file).unwrap();
        wrong.extend(violations(&module(&file), &text, &places));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_module_has_its_place_in_the_table() {
    let text = fs::read_to_string(src().join("lib.rs")).unwrap();
    let places = table(&text);
    let mut on_disk: Vec<_> = sources()
        .iter()
        .filter_map(|file| module(file).first().cloned())
        .collect();
    on_disk.sort();
    on_disk.dedup();
    assert_eq!(on_disk, places.keys().cloned().collect::<Vec<_>>());
    for name in &on_disk {
        assert!(text.contains(&format!("pub mod {name};")), "{name}");
    }
}

#[test]
fn the_binary_is_only_a_door_to_the_library() {
    let text = fs::read_to_string(src().join("main.rs")).unwrap();
    assert!(text.contains("musherfs::cli::main()"));
    assert!(text.lines().count() < 20);
}

#[test]
fn the_check_itself_sees_what_it_should() {
    let places = table(
        "//! | 1 | [`low`], [`other`] |\n\
         //! | 2 | [`mid`], then [`next`] |\n\
         //! | 3 | [`high`] |\n",
    );
    let check = |module: &str, text: &str| {
        let module: Vec<_> = module.split("::").map(str::to_owned).collect();
        violations(&module, text, &places)
    };
    for (module, text) in [
        ("mid", "use crate::high::Thing;"),
        ("mid", "use crate::{low::A, high::{B, C}};"),
        ("mid", "use crate::{low, next};"),
        ("mid::part", "fn f() { super::super::high::call() }"),
        ("mid", "fn f() { let s = \"//\"; crate::high::call() }"),
        (
            "mid",
            "const C: char = '\"'; fn f() { crate::high::call('\\'') }",
        ),
        ("low", "use super::other::Sibling;"),
        ("low", "use reqwest::Client;"),
        ("low", "use clap;"),
        ("low", "use std::{env, fs};"),
        ("low", "fn f() { std::env::var(\"X\"); }"),
        ("source::api", "use reqwest::Client;"),
    ] {
        assert!(!check(module, text).is_empty(), "{module}: {text}");
    }
    for (module, text) in [
        ("high", "use crate::{low, mid::part, next::X};"),
        ("next", "use crate::mid::Thing;"),
        ("mid", "use crate::mid::part; use super::low;"),
        ("mid::part", "use super::high;"),
        (
            "mid",
            "// use crate::high;\n/* crate::high /* nested */ crate::high */",
        ),
        (
            "mid",
            "const R: &str = r#\"\" crate::high \"#; const S: &str = \"crate::high\";",
        ),
        (
            "mid",
            "fn f<'a>(x: &'a str) -> &'a str { let clap = x; clap }",
        ),
        ("low", "const V: &str = env!(\"CARGO_PKG_VERSION\");"),
        ("source::http::body", "use reqwest::Client;"),
    ] {
        assert_eq!(
            check(module, text),
            Vec::<String>::new(),
            "{module}: {text}"
        );
    }
}
