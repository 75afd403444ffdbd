//! The outer shape of plan files: magic, version, checksum, header, aligned blobs.
//!
//! | offset | bytes | contents |
//! |---|---|---|
//! | 0 | 8 | magic, by [`Kind`] |
//! | 8 | 4 | format version, little-endian like all numbers here |
//! | 12 | 4 | zero |
//! | 16 | 8 | length of the file |
//! | 24 | 8 | length of the header |
//! | 32 | 32 | BLAKE3 of all bytes of the file but these 32 |
//! | 64 | | header: a protobuf message whose field 1 lists the blobs |
//! | multiples of 64 | | blobs, with zeros between |

use std::collections::BTreeMap;

use prost::Message;

use super::wire;
use crate::Error;

/// The version of the format that is written, and the only one that is read.
pub const FORMAT_VERSION: u32 = 11;

const FIXED_LENGTH: usize = 64;
const ALIGNMENT: usize = 64;

/// What a plan's file begins with.
pub const PLAN_MAGIC: [u8; 8] = *b"CMIRPLAN";
/// What a client's file begins with.
pub const CLIENT_MAGIC: [u8; 8] = *b"CMIRCLNT";

/// Which of the two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `plan.bin`
    Server,
    /// `plan.client`
    Client,
}

impl Kind {
    fn magic(self) -> [u8; 8] {
        match self {
            Self::Server => PLAN_MAGIC,
            Self::Client => CLIENT_MAGIC,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Server => "plan",
            Self::Client => "client plan",
        }
    }
}

/// A header message, with the list of blobs as its first field.
pub(super) trait Header: Message + Default {
    /// Where the blobs are.
    fn blobs(&self) -> &[wire::Blob];

    /// Sets where the blobs are.
    fn set_blobs(&mut self, blobs: Vec<wire::Blob>);
}

/// Blobs to be written; equal ones once.
#[derive(Default)]
pub(super) struct Blobs {
    contents: Vec<Vec<u8>>,
    by_hash: BTreeMap<[u8; 32], u32>,
}

impl Blobs {
    /// Adds a blob and returns its index.
    pub(super) fn add(&mut self, bytes: Vec<u8>) -> u32 {
        let next = self.contents.len() as u32;
        let index = *self.by_hash.entry(*blake3::hash(&bytes).as_bytes()).or_insert(next);
        if index == next {
            self.contents.push(bytes);
        }
        index
    }

    /// Adds numbers as little-endian bytes.
    pub(super) fn add_floats(&mut self, values: &[f32]) -> u32 {
        self.add(values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(ALIGNMENT)
}

/// The file's bytes.
pub(super) fn write<H: Header>(kind: Kind, mut header: H, blobs: &Blobs) -> Vec<u8> {
    // Offsets count from the first blob, so that they do not depend on the header's length.
    let mut offset = 0;
    let mut list = Vec::with_capacity(blobs.contents.len());
    for bytes in &blobs.contents {
        let hash = blake3::hash(bytes).as_bytes().to_vec();
        list.push(wire::Blob { offset: offset as u64, length: bytes.len() as u64, hash });
        offset = aligned(offset + bytes.len());
    }
    header.set_blobs(list);
    let encoded = header.encode_to_vec();
    let mut file = Vec::with_capacity(aligned(FIXED_LENGTH + encoded.len()) + offset);
    file.extend_from_slice(&kind.magic());
    file.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    file.resize(FIXED_LENGTH, 0);
    file.extend_from_slice(&encoded);
    for bytes in &blobs.contents {
        file.resize(aligned(file.len()), 0);
        file.extend_from_slice(bytes);
    }
    let length = file.len() as u64;
    file[16..24].copy_from_slice(&length.to_le_bytes());
    file[24..32].copy_from_slice(&(encoded.len() as u64).to_le_bytes());
    let sum = computed_checksum(&file);
    file[32..64].copy_from_slice(&sum);
    file
}

fn computed_checksum(file: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&file[..32]);
    hasher.update(&file[FIXED_LENGTH..]);
    *hasher.finalize().as_bytes()
}

fn number<const N: usize>(file: &[u8], offset: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&file[offset..offset + N]);
    bytes
}

/// Checks magic, version and length, and returns the checksum that the file carries.
pub(super) fn checksum(kind: Kind, file: &[u8]) -> Result<[u8; 32], Error> {
    let name = kind.name();
    if !file.starts_with(&kind.magic()[..kind.magic().len().min(file.len())]) || file.is_empty() {
        return Err(Error::NotAPlan { expected: name });
    }
    if file.len() < FIXED_LENGTH {
        return Err(Error::PlanLength { kind: name, expected: FIXED_LENGTH as u64, found: file.len() as u64 });
    }
    let version = u32::from_le_bytes(number(file, 8));
    if version != FORMAT_VERSION {
        return Err(Error::PlanVersion { kind: name, found: version, supported: FORMAT_VERSION });
    }
    let expected = u64::from_le_bytes(number(file, 16));
    if expected != file.len() as u64 {
        return Err(Error::PlanLength { kind: name, expected, found: file.len() as u64 });
    }
    Ok(number(file, 32))
}

/// The blobs of a file.
pub(super) struct BlobsRead<'f>(Vec<&'f [u8]>);

impl BlobsRead<'_> {
    /// The blob of an index.
    pub(super) fn get(&self, index: u32) -> Result<&[u8], Error> {
        let found = self.0.get(index as usize).copied();
        found.ok_or_else(|| Error::Plan(format!("it names blob {index} and has {}", self.0.len())))
    }

    /// The numbers in a blob, of which there must be `expected`.
    pub(super) fn floats(&self, index: u32, expected: u64) -> Result<Vec<f32>, Error> {
        let bytes = self.get(index)?;
        if Some(bytes.len() as u64) != expected.checked_mul(4) {
            return Err(Error::Plan(format!("blob {index} has {} bytes for {expected} numbers", bytes.len())));
        }
        Ok(bytes.chunks_exact(4).map(|word| f32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect())
    }
}

/// Checks everything about a file that does not depend on what its header means.
pub(super) fn read<H: Header>(kind: Kind, file: &[u8]) -> Result<(H, BlobsRead<'_>), Error> {
    let stored = checksum(kind, file)?;
    if stored != computed_checksum(file) {
        return Err(Error::PlanAltered { kind: kind.name() });
    }
    let malformed = || Error::Plan("its parts overlap or lie outside the file".to_owned());
    let end = usize::try_from(u64::from_le_bytes(number(file, 24)))
        .ok()
        .and_then(|length| length.checked_add(FIXED_LENGTH))
        .filter(|end| *end <= file.len())
        .ok_or_else(malformed)?;
    let header = H::decode(&file[FIXED_LENGTH..end])
        .map_err(|error| Error::Plan(format!("its header cannot be decoded: {error}")))?;
    let first = aligned(end);
    let mut blobs = Vec::with_capacity(header.blobs().len());
    for blob in header.blobs() {
        let start = usize::try_from(blob.offset).ok().and_then(|offset| offset.checked_add(first));
        let range = start.and_then(|start| Some(start..start.checked_add(usize::try_from(blob.length).ok()?)?));
        let bytes = range.and_then(|range| file.get(range)).ok_or_else(malformed)?;
        if blob.hash != blake3::hash(bytes).as_bytes() {
            return Err(Error::PlanAltered { kind: kind.name() });
        }
        blobs.push(bytes);
    }
    Ok((header, BlobsRead(blobs)))
}
