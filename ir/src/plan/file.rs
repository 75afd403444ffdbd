//! Plans as files, written whole or not at all.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::{ClientPlan, Plan};
use crate::Error;

/// The client's file beside a server's: `plan.bin` → `plan.client`.
pub fn client_path(plan: &Path) -> PathBuf {
    plan.with_extension("client")
}

fn failed(action: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::File { action, path: path.to_owned(), source }
}

/// Writes beside the target, then renames, so that the target is never seen half written.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.partial", std::process::id()));
    let partial = path.with_file_name(name);
    let written = File::create(&partial)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&partial, path));
    written.map_err(|source| {
        // What is left of a failed attempt is of no use; the error that matters is the first.
        let _ = std::fs::remove_file(&partial);
        failed("write", path, source)
    })
}

impl Plan {
    /// Writes the server's file and, beside it, the client's ([`client_path`]).
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let bytes = self.to_bytes()?;
        let client = self.client(Self::hash_of(&bytes)?).to_bytes()?;
        replace(path, &bytes)?;
        replace(&client_path(path), &client)
    }

    /// Reads and checks a server's file.
    pub fn read(path: &Path) -> Result<Self, Error> {
        Self::from_bytes(&std::fs::read(path).map_err(|source| failed("read", path, source))?)
    }
}

impl ClientPlan {
    /// Reads and checks a client's file.
    pub fn read(path: &Path) -> Result<Self, Error> {
        Self::from_bytes(&std::fs::read(path).map_err(|source| failed("read", path, source))?)
    }
}
