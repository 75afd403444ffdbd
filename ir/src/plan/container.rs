//! The outer shape of plan files: magic, version, checksum, header, blobs.
//!
//! | offset | bytes | contents |
//! |---|---|---|
//! | 0 | 8 | magic, by [`Kind`] |
//! | 8 | 4 | format version, little-endian like all numbers here |
//! | 12 | 4 | zero |
//! | 16 | 8 | length of the file |
//! | 24 | 8 | length of the header |
//! | 32 | 32 | BLAKE3 of the bytes ahead of it and of the header |
//! | 64 | | header: a protobuf message whose field 1 lists the blobs |
//! | behind the header | | blobs, one after the other |
//!
//! The header has the hash of each blob, so that the checksum stands for all bytes. Opening a file reads and checks the
//! header alone; a blob's hash is checked when it is read ([`Region`]). Every blob is used by the header, and no byte is
//! outside of header and blobs: a file is sound as a whole where all that its plan uses is.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::wire::{self, Header};
use crate::Error;
use crate::weights::{DataFile, Region};

/// The version of the format that is written, and the only one that is read.
pub const FORMAT_VERSION: u32 = 12;

const FIXED_LENGTH: usize = 64;

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

/// Blobs to be written; equal ones once.
#[derive(Default)]
pub(super) struct Blobs {
    contents: Vec<Region>,
    by_hash: BTreeMap<[u8; 32], u32>,
    /// The folder from which on files are named that regions lie in; without it, regions are embedded.
    referring_from: Option<PathBuf>,
}

impl Blobs {
    /// Blobs that stay in the files that they lie in, for a plan in this folder.
    pub(super) fn referring(folder: PathBuf) -> Self {
        Self { referring_from: Some(folder), ..Self::default() }
    }

    /// Adds a blob and returns its index.
    pub(super) fn add(&mut self, region: &Region) -> u32 {
        let next = self.contents.len() as u32;
        let index = *self.by_hash.entry(region.hash()).or_insert(next);
        if index == next {
            self.contents.push(region.clone());
        }
        index
    }

    /// Adds bytes.
    pub(super) fn add_bytes(&mut self, bytes: Vec<u8>) -> u32 {
        self.add(&Region::of_bytes(bytes.into(), None))
    }

    /// Adds numbers as little-endian bytes.
    pub(super) fn add_floats(&mut self, values: &[f32]) -> u32 {
        self.add(&Region::of_numbers(values))
    }
}

/// How the path of a file is written into a plan in a folder: relative where both have a folder in common.
fn reference(folder: &Path, file: &Path) -> Result<String, Error> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::File { action: "read", path, source }
    };
    let folder = folder.canonicalize().map_err(failed(folder))?;
    let found = file.canonicalize().map_err(failed(file))?;
    let common = folder.components().zip(found.components()).take_while(|(a, b)| a == b).count();
    // The root alone, or a drive, is nothing in common.
    let written: PathBuf =
        if folder.components().take(common).any(|part| matches!(part, std::path::Component::Normal(_))) {
            let up = folder.components().skip(common).map(|_| std::path::Component::ParentDir);
            up.chain(found.components().skip(common)).collect()
        } else {
            found
        };
    written.to_str().map(str::to_owned).ok_or_else(|| {
        Error::Plan(format!("the path {} is no text, by which it could refer to it; embed the weights", file.display()))
    })
}

/// A file that is ready to be written.
pub(super) struct Sealed {
    /// All bytes ahead of the blobs.
    head: Vec<u8>,
    /// Blobs that follow.
    embedded: Vec<Region>,
    /// The length of all.
    length: u64,
}

/// Puts a file together, but for the bytes of its blobs.
pub(super) fn seal<H: Header>(kind: Kind, mut header: H, blobs: &Blobs) -> Result<Sealed, Error> {
    let mut list = Vec::with_capacity(blobs.contents.len());
    let mut embedded = Vec::new();
    for region in &blobs.contents {
        let (length, hash) = (region.length(), region.hash().to_vec());
        list.push(match (&blobs.referring_from, region.file()) {
            (Some(folder), Some((file, offset))) => {
                wire::Blob { length, hash, file: Some(reference(folder, file.path())?), offset }
            }
            _ => {
                embedded.push(region.clone());
                wire::Blob { length, hash, file: None, offset: 0 }
            }
        });
    }
    header.set_blobs(list);
    let encoded = header.encode_to_vec();
    let length = (FIXED_LENGTH + encoded.len()) as u64 + embedded.iter().map(Region::length).sum::<u64>();
    let mut head = Vec::with_capacity(FIXED_LENGTH + encoded.len());
    head.extend_from_slice(&kind.magic());
    head.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    head.resize(16, 0);
    head.extend_from_slice(&length.to_le_bytes());
    head.extend_from_slice(&(encoded.len() as u64).to_le_bytes());
    head.resize(FIXED_LENGTH, 0);
    head.extend_from_slice(&encoded);
    let sum = computed_checksum(&head);
    head[32..64].copy_from_slice(&sum);
    Ok(Sealed { head, embedded, length })
}

impl Sealed {
    /// The checksum that the file carries.
    pub(super) fn checksum(&self) -> [u8; 32] {
        number(&self.head, 32)
    }

    /// All bytes.
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::with_capacity(usize::try_from(self.length).unwrap_or(0));
        bytes.extend_from_slice(&self.head);
        for region in &self.embedded {
            bytes.extend_from_slice(&region.read("plan")?);
        }
        Ok(bytes)
    }

    /// Writes all bytes, with one blob at a time in memory. `failed` makes an error of what writing fails with.
    pub(super) fn write(&self, to: &mut dyn Write, failed: impl Fn(io::Error) -> Error) -> Result<(), Error> {
        to.write_all(&self.head).map_err(&failed)?;
        for region in &self.embedded {
            to.write_all(&region.read("plan")?).map_err(&failed)?;
        }
        Ok(())
    }
}

/// The checksum of a file that begins with these bytes, up to the end of its header.
fn computed_checksum(head: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&head[..32]);
    hasher.update(&head[FIXED_LENGTH..]);
    *hasher.finalize().as_bytes()
}

fn number<const N: usize>(file: &[u8], offset: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&file[offset..offset + N]);
    bytes
}

/// A file to be read.
pub(super) enum Source {
    /// Its contents.
    Memory(Bytes),
    /// The file.
    File(Arc<DataFile>),
}

impl Source {
    fn failed(file: &DataFile) -> impl FnOnce(io::Error) -> Error {
        let path = file.path().to_owned();
        move |source| Error::File { action: "read", path, source }
    }

    fn length(&self) -> Result<u64, Error> {
        match self {
            Self::Memory(bytes) => Ok(bytes.len() as u64),
            Self::File(file) => Ok(file.state().map_err(Self::failed(file))?.0),
        }
    }

    /// Bytes that are there.
    fn read(&self, offset: u64, length: u64) -> Result<Bytes, Error> {
        match self {
            Self::Memory(bytes) => Ok(bytes.slice(offset as usize..(offset + length) as usize)),
            Self::File(file) => Ok(file.read(offset, length).map_err(Self::failed(file))?.0.into()),
        }
    }

    fn region(&self, offset: u64, length: u64, hash: [u8; 32]) -> Region {
        match self {
            Self::Memory(bytes) => Region::promised(bytes.slice(offset as usize..(offset + length) as usize), hash),
            Self::File(file) => Region::in_file(Arc::clone(file), offset, length, hash),
        }
    }

    /// The folder from which on the file names others.
    fn folder(&self) -> &Path {
        match self {
            Self::Memory(_) => Path::new(""),
            Self::File(file) => file.path().parent().unwrap_or(Path::new("")),
        }
    }
}

/// Checks magic, version and length of a file of which this is the beginning, and returns what is ahead of the header.
fn fixed(kind: Kind, begin: &[u8], length: u64) -> Result<[u8; FIXED_LENGTH], Error> {
    let name = kind.name();
    if !begin.starts_with(&kind.magic()[..kind.magic().len().min(begin.len())]) || begin.is_empty() {
        return Err(Error::NotAPlan { expected: name });
    }
    let Some(begin) = begin.first_chunk::<FIXED_LENGTH>() else {
        return Err(Error::PlanLength { kind: name, expected: FIXED_LENGTH as u64, found: length });
    };
    let version = u32::from_le_bytes(number(begin, 8));
    if version != FORMAT_VERSION {
        return Err(Error::PlanVersion { kind: name, found: version, supported: FORMAT_VERSION });
    }
    let expected = u64::from_le_bytes(number(begin, 16));
    if expected != length {
        return Err(Error::PlanLength { kind: name, expected, found: length });
    }
    Ok(*begin)
}

/// The checksum that a file with these contents carries. Magic, version and length are checked.
pub(super) fn checksum(kind: Kind, file: &[u8]) -> Result<[u8; 32], Error> {
    Ok(number(&fixed(kind, file, file.len() as u64)?, 32))
}

impl Source {
    /// What is ahead of the header, with magic, version and length checked.
    fn fixed(&self, kind: Kind) -> Result<[u8; FIXED_LENGTH], Error> {
        let length = self.length()?;
        fixed(kind, &self.read(0, length.min(FIXED_LENGTH as u64))?, length)
    }

    /// The checksum that the file carries. Magic, version and length are checked.
    pub(super) fn checksum(&self, kind: Kind) -> Result<[u8; 32], Error> {
        Ok(number(&self.fixed(kind)?, 32))
    }
}

/// The blobs of a file, and which of them were used.
pub(super) struct BlobsRead(Vec<(Region, Cell<bool>)>);

impl BlobsRead {
    /// The blob of an index.
    pub(super) fn get(&self, index: u32) -> Result<&Region, Error> {
        let found = self.0.get(index as usize);
        let (region, used) =
            found.ok_or_else(|| Error::Plan(format!("it names blob {index} and has {}", self.0.len())))?;
        used.set(true);
        Ok(region)
    }

    /// The bytes of a blob, checked.
    pub(super) fn bytes(&self, index: u32, name: &str) -> Result<Bytes, Error> {
        self.get(index)?.read(name)
    }

    /// The numbers in a blob, of which there must be `expected`.
    pub(super) fn floats(&self, index: u32, expected: u64, name: &str) -> Result<Vec<f32>, Error> {
        let length = self.get(index)?.length();
        if Some(length) != expected.checked_mul(4) {
            return Err(Error::Plan(format!("blob {index} has {length} bytes for {expected} numbers")));
        }
        let bytes = self.bytes(index, name)?;
        let (words, _) = bytes.as_chunks::<4>();
        Ok(words.iter().map(|word| f32::from_le_bytes(*word)).collect())
    }

    /// Fails where a blob was not asked for.
    pub(super) fn check_used(&self) -> Result<(), Error> {
        match self.0.iter().position(|(_, used)| !used.get()) {
            Some(index) => Err(Error::Plan(format!("nothing uses its blob {index}"))),
            None => Ok(()),
        }
    }
}

/// Reads the header of a file, and checks everything about the file that depends neither on what its header means nor on
/// what is in its blobs.
pub(super) fn read<H: Header>(kind: Kind, source: &Source) -> Result<(H, BlobsRead), Error> {
    let begin = source.fixed(kind)?;
    let length = u64::from_le_bytes(number(&begin, 16));
    let malformed = || Error::Plan("its parts do not fill the file".to_owned());
    let mut end = u64::from_le_bytes(number(&begin, 24))
        .checked_add(FIXED_LENGTH as u64)
        .filter(|end| *end <= length)
        .ok_or(Error::PlanAltered { kind: kind.name() })?;
    let head = source.read(0, end)?;
    if number::<32>(&head, 32) != computed_checksum(&head) {
        return Err(Error::PlanAltered { kind: kind.name() });
    }
    let header = H::decode(&head[FIXED_LENGTH..])
        .map_err(|error| Error::Plan(format!("its header cannot be decoded: {error}")))?;
    let mut blobs = Vec::with_capacity(header.blobs().len());
    let mut files: BTreeMap<String, Arc<DataFile>> = BTreeMap::new();
    for wire::Blob { length: size, hash, file, offset } in header.blobs() {
        let hash = hash.as_slice().try_into().map_err(|_| Error::Plan("a blob has no 32-byte hash".to_owned()))?;
        let region = match file {
            Some(path) => {
                let file = files.entry(path.clone()).or_insert_with(|| DataFile::new(source.folder().join(path)));
                Region::in_file(Arc::clone(file), *offset, *size, hash)
            }
            None => {
                let start = end;
                end = start.checked_add(*size).filter(|end| *end <= length).ok_or_else(malformed)?;
                source.region(start, *size, hash)
            }
        };
        blobs.push((region, Cell::new(false)));
    }
    if end != length {
        return Err(malformed());
    }
    Ok((header, BlobsRead(blobs)))
}
