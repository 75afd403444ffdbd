//! Each program under `filetests/` does what its own comments say. `CACHEMIR_BLESS=1` rewrites what they expect.

use std::path::{Path, PathBuf};

use cachemir_tests::filetests::rerun;
use cachemir_tests::golden_difference;

#[test]
fn files_mean_what_they_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("filetests");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    let failure = |path: &PathBuf| -> Option<String> {
        if path.extension().is_none_or(|extension| extension != "cmir") {
            return Some(format!("{} is no .cmir file", path.display()));
        }
        let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        match rerun(&text) {
            Ok(found) => golden_difference(path, &found),
            Err(message) => Some(format!("{}: {message}", path.display())),
        }
    };
    let failures: Vec<String> = paths.iter().filter_map(failure).collect();
    assert!(failures.is_empty(), "{} of {} files fail:\n{}", failures.len(), paths.len(), failures.join("\n"));
}
