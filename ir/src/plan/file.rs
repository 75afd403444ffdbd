//! Plans as files, written whole or not at all.

use std::path::{Path, PathBuf};

use super::{ClientPlan, Plan};
use crate::Error;
use crate::files::Partial;

/// The client's file beside a server's: `plan.bin` → `plan.client`.
pub fn client_path(plan: &Path) -> PathBuf {
    plan.with_extension("client")
}

fn failed(action: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::File { action, path: path.to_owned(), source }
}

impl Plan {
    /// Writes the server's file and, beside it, the client's ([`client_path`]).
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let bytes = self.to_bytes()?;
        let client = self.client(Self::hash_of(&bytes)?).to_bytes()?;
        let client_file = client_path(path);
        let server = Partial::write(path, &[&bytes], false).map_err(|source| failed("write", path, source))?;
        let beside =
            Partial::write(&client_file, &[&client], false).map_err(|source| failed("write", &client_file, source))?;
        server.rename().map_err(|source| failed("write", path, source))?;
        beside.rename().map_err(|source| failed("write", &client_file, source))
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
