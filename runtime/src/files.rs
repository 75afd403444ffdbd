//! Small versioned files with a checksum, for saved sessions.
//!
//! `magic (8 bytes) · version (u32) · payload · BLAKE3 of all that (32 bytes)`. A file is written beside its target and
//! then renamed, so that the target is never seen half written.

use std::path::Path;

use crate::Error;
use crate::error::SessionFault;

const HASH_BYTES: usize = 32;

/// What identifies a kind of file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub(crate) magic: [u8; 8],
    pub(crate) version: u32,
}

/// Writes a file; a secret one can be read by its owner only.
pub(crate) fn write(kind: Kind, payload: &[u8], path: &Path, secret: bool) -> Result<(), Error> {
    let version = kind.version.to_le_bytes();
    let mut hasher = blake3::Hasher::new();
    for part in [kind.magic.as_slice(), &version, payload] {
        hasher.update(part);
    }
    let hash = *hasher.finalize().as_bytes();
    replace(path, &[kind.magic.as_slice(), &version, payload, &hash], secret)
}

/// Writes a text file, which is never seen half written.
pub(crate) fn write_text(path: &Path, text: &str) -> Result<(), Error> {
    replace(path, &[text.as_bytes()], false)
}

/// Writes the parts beside the target, then renames.
fn replace(path: &Path, parts: &[&[u8]], secret: bool) -> Result<(), Error> {
    cachemir_ir::files::replace(path, parts, secret)
        .map_err(|source| Error::Unwritable { path: path.to_owned(), source })
}

/// The payload of a file, or what is wrong with it.
pub(crate) fn read(kind: Kind, path: &Path) -> Result<Vec<u8>, SessionFault> {
    let damaged = |message: &str| SessionFault::Damaged(message.to_owned());
    let mut bytes = std::fs::read(path).map_err(SessionFault::Unreadable)?;
    let Some((head, _)) = bytes.split_first_chunk::<12>() else { return Err(damaged("it is too short")) };
    if head[..8] != kind.magic {
        return Err(damaged("it is not a file of this kind"));
    }
    let version = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
    if version != kind.version {
        let message = format!("it has version {version}, and this release reads version {}", kind.version);
        return Err(SessionFault::Damaged(message));
    }
    let Some(end) = bytes.len().checked_sub(HASH_BYTES).filter(|&end| end >= 12) else {
        return Err(damaged("it is truncated"));
    };
    if *blake3::hash(&bytes[..end]).as_bytes() != bytes[end..] {
        return Err(damaged("it is truncated or altered: its hash does not match"));
    }
    bytes.truncate(end);
    bytes.drain(..12);
    Ok(bytes)
}

/// Reads numbers and byte strings off the front of a payload.
#[derive(Debug)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// A byte string after its length.
    pub(crate) fn string(&mut self) -> Option<&'a [u8]> {
        let length = u64::from_le_bytes(self.array()?);
        self.bytes(usize::try_from(length).ok()?)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Appends a byte string after its length.
pub(crate) fn push_string(payload: &mut Vec<u8>, bytes: &[u8]) {
    payload.extend((bytes.len() as u64).to_le_bytes());
    payload.extend(bytes);
}
