//! Architecture invariants that can be read off the sources: where `unsafe` may stand, who prints, who may name a secret key.

use std::path::{Path, PathBuf};

/// The workspace's folder.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All Rust sources below a folder, with their contents, in order of their paths.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "{folder} has no sources");
    found
}

fn is_test(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str().to_string_lossy().contains("tests"))
}

/// A file's lines ahead of its test module, without comments.
fn code(text: &str) -> impl Iterator<Item = &str> {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    text[..end].lines().filter(|line| !line.trim_start().starts_with("//"))
}

#[test]
fn unsafe_code_lives_in_the_kernels_only() {
    for root_file in ["compiler/src/lib.rs", "ir/src/lib.rs", "runtime/src/lib.rs", "runtime/ckks/src/lib.rs"] {
        let text = std::fs::read_to_string(root().join(root_file)).unwrap();
        assert!(text.contains("#![forbid(unsafe_code)]"), "{root_file} does not forbid unsafe code");
    }
    for (path, text) in sources("runtime/hal/src") {
        let lines: Vec<&str> = text.lines().collect();
        for (index, line) in lines.iter().enumerate().filter(|(_, line)| line.trim_start().starts_with("unsafe {")) {
            let explained = lines[..index].iter().rev().take(12).any(|line| line.contains("SAFETY:"));
            assert!(explained, "{}:{}: {line} has no SAFETY comment", path.display(), index + 1);
        }
    }
}

#[test]
fn libraries_do_not_print() {
    for folder in ["compiler/src", "ir/src", "runtime/src", "runtime/ckks/src", "runtime/hal/src"] {
        let libraries = sources(folder)
            .into_iter()
            .filter(|(path, _)| !is_test(path) && !path.components().any(|part| part.as_os_str() == "bin"));
        for (path, text) in libraries {
            for line in code(&text) {
                let prints = ["println!", "print!(", "dbg!("].iter().any(|print| line.contains(print));
                assert!(!prints, "{} prints: {line}", path.display());
            }
        }
    }
}

#[test]
fn what_the_server_runs_cannot_name_a_secret_key() {
    for folder in ["runtime/src/server", "runtime/src/executor"] {
        for (path, text) in sources(folder).into_iter().filter(|(path, _)| !is_test(path)) {
            for line in code(&text) {
                for name in ["SecretKey", "Decryptor", "client::"] {
                    assert!(!line.contains(name), "{} names {name}: {line}", path.display());
                }
            }
        }
    }
}

/// What plays the client's and the server's roles reads plans and no models: only the program around it does.
#[test]
fn the_runtime_library_does_not_use_the_compiler() {
    let library =
        sources("runtime/src").into_iter().filter(|(path, _)| !path.components().any(|part| part.as_os_str() == "bin"));
    for (path, text) in library {
        assert!(code(&text).all(|line| !line.contains("cachemir_compiler")), "{} uses the compiler", path.display());
    }
}

/// Builder, verifier and executor all ask `ckks::infer` for levels and scales.
#[test]
fn levels_are_inferred_in_one_place() {
    for user in ["ir/src/verify.rs", "compiler/src/placement/emit.rs"] {
        let text = std::fs::read_to_string(root().join(user)).unwrap();
        assert!(text.contains("infer("), "{user} does not ask for levels");
    }
    let calls = sources("runtime/src/executor").iter().any(|(_, text)| text.contains("infer("));
    assert!(calls, "the executor does not ask for levels");
}
