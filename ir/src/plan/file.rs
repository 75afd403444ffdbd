//! Plans as files, written whole or not at all.

use std::path::{Path, PathBuf};

use super::container::{self, Blobs, Kind, Source};
use super::{ClientPlan, Plan, Storage};
use crate::Error;
use crate::files::{Partial, folder_of};
use crate::weights::DataFile;

/// The client's file beside a server's: `plan.bin` → `plan.client`.
pub fn client_path(plan: &Path) -> PathBuf {
    plan.with_extension("client")
}

fn failed(action: &'static str, path: &Path) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::File { action, path: path.to_owned(), source }
}

fn written<'p>(path: &'p Path, sealed: &container::Sealed) -> Result<Partial<'p>, Error> {
    let failed = failed("write", path);
    let mut partial = Partial::create(path, false).map_err(&failed)?;
    sealed.write(&mut partial, &failed)?;
    partial.finish().map_err(failed)
}

impl Plan {
    /// Writes the server's file, weights inside, and, beside it, the client's ([`client_path`]).
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        self.write_with(path, Storage::Embed)
    }

    /// Writes the server's file with its weights where they are asked for, and, beside it, the client's ([`client_path`]),
    /// which has its embedding inside. One blob at a time is in memory.
    pub fn write_with(&self, path: &Path, storage: Storage) -> Result<(), Error> {
        let blobs = match storage {
            Storage::Embed => Blobs::default(),
            Storage::Reference => Blobs::referring(folder_of(path).to_owned()),
        };
        let sealed = self.sealed(blobs)?;
        let client = self.client(sealed.checksum()).sealed()?;
        let client_file = client_path(path);
        let server = written(path, &sealed)?;
        let beside = written(&client_file, &client)?;
        server.rename().map_err(failed("write", path))?;
        beside.rename().map_err(failed("write", &client_file))
    }

    /// Opens a server's file: reads its header, and checks all but the bytes of weights ([`Plan::check_all`]).
    pub fn read(path: &Path) -> Result<Self, Error> {
        Self::open(&Source::File(DataFile::new(path)))
    }

    /// The hash of a server's file: the checksum that it carries.
    pub fn hash_of_file(path: &Path) -> Result<[u8; 32], Error> {
        Source::File(DataFile::new(path)).checksum(Kind::Server)
    }
}

impl ClientPlan {
    /// Opens a client's file: reads its header, and checks all but the bytes of the embedding ([`ClientPlan::check_all`]).
    pub fn read(path: &Path) -> Result<Self, Error> {
        Self::open(&Source::File(DataFile::new(path)))
    }
}
