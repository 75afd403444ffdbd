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

/// Contents written beside a target, to be renamed, so that the target is never seen half written. Removed where it is
/// dropped instead.
struct Partial<'p> {
    target: &'p Path,
    path: PathBuf,
}

impl<'p> Partial<'p> {
    fn write(target: &'p Path, bytes: &[u8]) -> Result<Self, Error> {
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.partial", std::process::id()));
        let partial = Self { target, path: target.with_file_name(name) };
        File::create(&partial.path)
            .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
            .map_err(|source| failed("write", target, source))?;
        Ok(partial)
    }

    fn rename(self) -> Result<(), Error> {
        std::fs::rename(&self.path, self.target).map_err(|source| failed("write", self.target, source))
    }
}

impl Drop for Partial<'_> {
    fn drop(&mut self) {
        // Gone after a rename; else what is left of a failed attempt is of no use.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Plan {
    /// Writes the server's file and, beside it, the client's ([`client_path`]).
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let bytes = self.to_bytes()?;
        let client = self.client(Self::hash_of(&bytes)?).to_bytes()?;
        let client_file = client_path(path);
        let written = [Partial::write(path, &bytes)?, Partial::write(&client_file, &client)?];
        written.into_iter().try_for_each(Partial::rename)
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
