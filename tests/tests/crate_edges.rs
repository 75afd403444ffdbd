//! The architecture's crate edges hold: which crate of the workspace may use which.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use cargo_metadata::{DependencyKind, MetadataCommand, Package};

/// Each crate with those of ours that it may depend on, in builds and in tests alike.
const ALLOWED: [(&str, &[&str]); 7] = [
    ("cachemir-ir", &[]),
    ("cachemir-compiler", &["cachemir-ir"]),
    ("cachemir-hal", &[]),
    ("cachemir-ckks", &["cachemir-hal", "cachemir-ir"]),
    // The compiler for the program `cachemir-run` alone, whose `eval` compares with an exact model from an ONNX file.
    ("cachemir-runtime", &["cachemir-ckks", "cachemir-compiler", "cachemir-hal", "cachemir-ir"]),
    ("cachemir-demo", &["cachemir-compiler", "cachemir-runtime"]),
    ("cachemir-tests", &["cachemir-ckks", "cachemir-compiler", "cachemir-hal", "cachemir-ir", "cachemir-runtime"]),
];

/// Crates that nothing but the engine and what stands on it may use, so that the compiler links no cryptography.
const CRYPTOGRAPHY: [&str; 3] = ["tfhe-ntt", "cachemir-ckks", "cachemir-hal"];

fn packages() -> Vec<Package> {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let metadata = MetadataCommand::new().manifest_path(manifest).no_deps().exec().expect("cargo metadata runs");
    metadata.packages
}

#[test]
fn crates_use_only_what_the_map_allows() {
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.into_iter().collect();
    for package in packages() {
        let name = package.name.as_str();
        let permitted = allowed.get(name).unwrap_or_else(|| panic!("{name} is not in the map of crates"));
        let ours = package.dependencies.iter().filter(|dependency| dependency.name.starts_with("cachemir"));
        for dependency in ours {
            assert!(
                permitted.contains(&dependency.name.as_str()),
                "{name} must not depend on {}; it may use {permitted:?}",
                dependency.name
            );
        }
    }
}

#[test]
fn the_compiler_links_no_cryptography() {
    let packages = packages();
    let uses = |name: &str| -> BTreeSet<String> {
        let package = packages.iter().find(|package| package.name.as_str() == name);
        let dependencies = package.into_iter().flat_map(|package| &package.dependencies);
        dependencies
            .filter(|dependency| dependency.kind != DependencyKind::Development)
            .map(|dependency| dependency.name.clone())
            .collect()
    };
    let mut reached: BTreeSet<String> = BTreeSet::new();
    let mut next = vec!["cachemir-compiler".to_owned()];
    while let Some(name) = next.pop() {
        for used in uses(&name) {
            if reached.insert(used.clone()) {
                next.push(used);
            }
        }
    }
    assert!(reached.contains("cachemir-ir"));
    for name in CRYPTOGRAPHY {
        assert!(!reached.contains(name), "the compiler reaches {name}");
    }
}

#[test]
fn the_workspace_has_the_members_of_the_map() {
    let names: BTreeSet<String> = packages().iter().map(|package| package.name.to_string()).collect();
    let expected: BTreeSet<String> = ALLOWED.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names, expected);
}

#[test]
fn every_crate_has_its_licence() {
    for package in packages() {
        assert_eq!(package.license.as_deref(), Some("MIT OR Apache-2.0"), "{}", package.name);
        for (file, begin) in [("LICENSE-MIT", "MIT License"), ("LICENSE-APACHE", "Apache License")] {
            let path = package.manifest_path.with_file_name(file);
            let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert!(text.trim_start().starts_with(begin), "{path}");
        }
    }
}

/// All Rust code below a folder of a package, without comments.
fn code(folder: &Path, found: &mut Vec<(String, String)>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            code(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            found.push((path.display().to_string(), lines.collect::<Vec<_>>().join("\n")));
        }
    }
}

/// Whether code names a crate, as a path that begins with it or in the attributes of an item.
fn names(code: &str, dependency: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(dependency).any(|(at, _)| {
        let (before, after) = (code[..at].chars().next_back(), code[at + dependency.len()..].chars().next());
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    })
}

/// A library takes no dependency that only its package's program names: those belong to a feature. Nothing is declared that
/// nothing names.
#[test]
fn dependencies_are_used_by_what_declares_them() {
    for package in packages() {
        let folder = package.manifest_path.parent().expect("a folder").as_std_path();
        let of = |folders: &[&str]| {
            let mut found = Vec::new();
            for name in folders {
                code(&folder.join(name), &mut found);
            }
            found
        };
        // The tests' own library is no library for others.
        let is_tests = package.name.as_str() == "cachemir-tests";
        let library: Vec<(String, String)> =
            of(&["src"]).into_iter().filter(|(path, _)| !path.contains("/src/bin/")).collect();
        let program = of(&["src"]);
        let development = of(&["src", "tests", "examples", "benches"]);
        for dependency in &package.dependencies {
            let (name, users) = (
                dependency.name.replace('-', "_"),
                match dependency.kind {
                    DependencyKind::Development => &development,
                    _ if is_tests => &development,
                    _ if dependency.optional => &program,
                    _ => &library,
                },
            );
            assert!(
                users.iter().any(|(_, code)| names(code, &name)),
                "{} declares {} and does not name it where it could (optional: {}, {:?})",
                package.name,
                dependency.name,
                dependency.optional,
                dependency.kind
            );
        }
    }
}
