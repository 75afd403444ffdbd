//! Build script of both programs: their version with the commit that they were built from, `0.1.0 (1a2b3c4d5e)`, as
//! `CACHEMIR_VERSION`; the version alone where there is no repository or no git.

// Printing is how a build script speaks to cargo.
#![allow(clippy::print_stdout)]

use std::env;
use std::path::Path;
use std::process::Command;

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

fn main() {
    let version = env::var("CARGO_PKG_VERSION").expect("cargo sets it");
    // A copy of the sources may lie in somebody else's repository, which would give a commit that says nothing.
    let ours = git(&["ls-files", "--error-unmatch", "Cargo.toml"]).is_some();
    let commit = git(&["rev-parse", "--short=10", "HEAD"]).filter(|_| ours);
    match commit {
        Some(commit) => println!("cargo::rustc-env=CACHEMIR_VERSION={version} ({commit})"),
        None => println!("cargo::rustc-env=CACHEMIR_VERSION={version}"),
    }
    // Cargo looks at what is named and at nothing else. The log of HEAD changes with every commit.
    println!("cargo::rerun-if-changed=../ir/version.rs");
    for name in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--git-path", name]).filter(|path| Path::new(path).exists()) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
}
