//! What a client keeps between two processes that share a session.
//!
//! The file holds the seed of the secret key, so whoever has it can decrypt the session: it is created readable by its
//! owner only and must not be given to the server. Evaluation keys are made anew from the secret; they differ from the
//! first ones in their randomness only, and ciphertexts made under either are under the same secret.

use std::fmt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::Error;
use crate::error::SessionFault;
use crate::files::{self, Kind, Reader, push_string};

const KIND: Kind = Kind { magic: SavedClient::MAGIC, version: 1 };

/// A client's part of a saved session.
#[derive(Clone, PartialEq, Eq)]
pub struct SavedClient {
    /// Hash of the plan.
    pub plan_hash: [u8; 32],
    /// Hash of the server's file of the same session, [`SavedClient::hash_of`].
    pub session_hash: [u8; 32],
    /// Seed of the secret key; all zero for a session in the clear.
    pub seed: Zeroizing<[u8; 32]>,
    /// The session's tokens so far: the prompt, then what was generated.
    pub tokens: Vec<u32>,
    /// How many of the tokens were generated.
    pub generated: u32,
}

impl fmt::Debug for SavedClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SavedClient({} tokens, {} generated)", self.tokens.len(), self.generated)
    }
}

impl SavedClient {
    /// What such a file begins with.
    pub const MAGIC: [u8; 8] = *b"CMIRSKEY";

    /// The client's file beside a session's: its name with `.key` added.
    pub fn path(session: &Path) -> PathBuf {
        let mut name = session.as_os_str().to_owned();
        name.push(".key");
        name.into()
    }

    /// The hash of a session's file, by which the two files of a session know each other.
    pub fn hash_of(session: &Path) -> Result<[u8; 32], Error> {
        let fail = |source| Error::SessionInvalid { path: session.to_owned(), fault: SessionFault::Unreadable(source) };
        let mut hasher = blake3::Hasher::new();
        std::io::copy(&mut std::fs::File::open(session).map_err(fail)?, &mut hasher).map_err(fail)?;
        Ok(*hasher.finalize().as_bytes())
    }

    /// Writes the file.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        // Without room for all of it, growing would leave copies of the seed behind.
        let room = 128 + self.plan_hash.len() + self.seed.len() + 4 * self.tokens.len();
        let mut payload = Zeroizing::new(Vec::with_capacity(room));
        payload.extend(self.plan_hash);
        payload.extend(self.session_hash);
        payload.extend(self.seed.iter());
        payload.extend(self.generated.to_le_bytes());
        let tokens: Vec<u8> = self.tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        push_string(&mut payload, &tokens);
        files::write(KIND, &payload, path, true)
    }

    /// Reads the file.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let fail = |message: String| Error::SessionKey { path: path.to_owned(), message };
        let payload = Zeroizing::new(files::read(KIND, path).map_err(|fault| fail(fault.to_string()))?);
        Self::parse(&payload).ok_or_else(|| fail("its contents make no sense".to_owned()))
    }

    fn parse(payload: &[u8]) -> Option<Self> {
        let mut reader = Reader(payload);
        let plan_hash = reader.array()?;
        let session_hash = reader.array()?;
        let seed = Zeroizing::new(reader.array()?);
        let generated = reader.u32()?;
        let (tokens, []) = reader.string()?.as_chunks::<4>() else { return None };
        let tokens: Vec<u32> = tokens.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        let sound = reader.is_empty() && generated as usize <= tokens.len();
        sound.then_some(Self { plan_hash, session_hash, seed, tokens, generated })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved() -> SavedClient {
        let seed = Zeroizing::new([9; 32]);
        SavedClient { plan_hash: [7; 32], session_hash: [8; 32], seed, tokens: vec![0, 5, 511], generated: 2 }
    }

    #[test]
    fn a_file_comes_back_and_only_its_owner_can_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = SavedClient::path(&folder.path().join("session"));
        assert!(path.ends_with("session.key"));
        saved().write(&path).unwrap();
        assert_eq!(SavedClient::read(&path).unwrap(), saved());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert!(!format!("{:?}", saved()).contains('9'), "the seed is not printed");
    }

    #[test]
    fn a_damaged_file_is_refused_with_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("session.key");
        saved().write(&path).unwrap();
        let good = std::fs::read(&path).unwrap();
        let refused = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let error = SavedClient::read(&path).unwrap_err();
            assert_eq!(error.code(), "CMR-R032");
            error.to_string()
        };
        for length in 0..good.len() {
            refused(&good[..length]);
        }
        for position in 0..good.len() {
            let mut altered = good.clone();
            altered[position] ^= 1;
            refused(&altered);
        }
        let mut newer = good.clone();
        newer[8] = 2;
        assert!(refused(&newer).contains("version 2"));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(SavedClient::read(&path).unwrap_err().code(), "CMR-R032");
    }
}
