//! Bytes with their hash, in memory or in a file.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;

use crate::Error;
use crate::hashes::{hash_of, hexadecimal};

/// A file that regions lie in, opened when the first of them is read.
#[derive(Debug)]
pub struct DataFile {
    path: PathBuf,
    opened: OnceLock<File>,
}

impl DataFile {
    /// A file that need not exist until it is read.
    pub fn new(path: impl Into<PathBuf>) -> Arc<Self> {
        Arc::new(Self { path: path.into(), opened: OnceLock::new() })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn opened(&self) -> io::Result<&File> {
        if let Some(file) = self.opened.get() {
            return Ok(file);
        }
        // Opening a pipe would wait for its other end.
        if !std::fs::metadata(&self.path)?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file"));
        }
        let file = File::open(&self.path)?;
        Ok(self.opened.get_or_init(|| file))
    }

    /// Length in bytes, and when it was written to last.
    pub(crate) fn state(&self) -> io::Result<(u64, Option<SystemTime>)> {
        let state = self.opened()?.metadata()?;
        Ok((state.len(), state.modified().ok()))
    }

    /// Some bytes, and when the file was written to last.
    pub(crate) fn read(&self, offset: u64, length: u64) -> io::Result<(Vec<u8>, Option<SystemTime>)> {
        let (size, modified) = self.state()?;
        if offset.checked_add(length).is_none_or(|end| end > size) {
            let message = format!("it is {size} bytes long, and {length} bytes at {offset} are asked for");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
        }
        let length = usize::try_from(length).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let mut bytes = vec![0; length];
        read_at(self.opened()?, &mut bytes, offset)?;
        Ok((bytes, modified))
    }
}

#[cfg(unix)]
fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(windows)]
fn read_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => (bytes, offset) = (&mut bytes[count..], offset + count as u64),
        }
    }
    Ok(())
}

/// What of a region is in memory.
#[derive(Clone, Debug)]
enum Held {
    Nothing,
    Bytes(Bytes),
    /// Single precision; the bytes are made when they are asked for.
    Numbers(Arc<[f32]>),
}

/// When a file was written to last, as far as its system knows; bytes in memory never were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Written(Option<SystemTime>);

#[derive(Debug)]
struct Inner {
    held: Held,
    /// Where the bytes are in a file, whether they are in memory too or not.
    file: Option<(Arc<DataFile>, u64)>,
    length: u64,
    hash: OnceLock<[u8; 32]>,
    /// When the file was written to last, at the time at which its hash was found right.
    checked: Mutex<Option<Written>>,
}

/// Bytes with their hash; cheap to clone. Two are equal where length and hash are.
#[derive(Clone, Debug)]
pub struct Region(Arc<Inner>);

impl PartialEq for Region {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || (self.length() == other.length() && self.hash() == other.hash())
    }
}

impl Region {
    fn new(held: Held, file: Option<(Arc<DataFile>, u64)>, length: u64, hash: Option<[u8; 32]>) -> Self {
        Self(Arc::new(Inner {
            held,
            file,
            length,
            hash: hash.map_or_else(OnceLock::new, OnceLock::from),
            checked: Mutex::default(),
        }))
    }

    /// Numbers in memory, of single precision.
    pub fn of_numbers(numbers: impl Into<Arc<[f32]>>) -> Self {
        let numbers = numbers.into();
        let length = 4 * numbers.len() as u64;
        Self::new(Held::Numbers(numbers), None, length, None)
    }

    /// Bytes in memory, which may be those of a file at an offset, too.
    pub fn of_bytes(bytes: Bytes, file: Option<(Arc<DataFile>, u64)>) -> Self {
        let (length, hash) = (bytes.len() as u64, *blake3::hash(&bytes).as_bytes());
        let region = Self::new(Held::Bytes(bytes), file, length, Some(hash));
        region.set_checked(None);
        region
    }

    /// Bytes in memory that have a hash if they are sound.
    pub fn promised(bytes: Bytes, hash: [u8; 32]) -> Self {
        let length = bytes.len() as u64;
        Self::new(Held::Bytes(bytes), None, length, Some(hash))
    }

    /// Bytes of a file that have a hash if they are sound.
    pub fn in_file(file: Arc<DataFile>, offset: u64, length: u64, hash: [u8; 32]) -> Self {
        Self::new(Held::Nothing, Some((file, offset)), length, Some(hash))
    }

    /// Bytes of a file as it is now, which are read for their hash.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn of_file(file: Arc<DataFile>, offset: u64, length: u64) -> io::Result<Self> {
        let (bytes, modified) = file.read(offset, length)?;
        let region = Self::in_file(file, offset, length, *blake3::hash(&bytes).as_bytes());
        region.set_checked(modified);
        Ok(region)
    }

    /// Number of bytes.
    pub fn length(&self) -> u64 {
        self.0.length
    }

    /// BLAKE3 hash of the bytes, as they should be.
    pub fn hash(&self) -> [u8; 32] {
        *self.0.hash.get_or_init(|| match &self.0.held {
            Held::Numbers(numbers) => hash_of(numbers),
            Held::Bytes(bytes) => *blake3::hash(bytes).as_bytes(),
            Held::Nothing => [0; 32],
        })
    }

    /// The file that the bytes are in, and at which offset, if they are in one.
    pub fn file(&self) -> Option<(&Arc<DataFile>, u64)> {
        self.0.file.as_ref().map(|(file, offset)| (file, *offset))
    }

    /// The numbers, where they are in memory as such.
    pub(super) fn numbers(&self) -> Option<&Arc<[f32]>> {
        match &self.0.held {
            Held::Numbers(numbers) => Some(numbers),
            _ => None,
        }
    }

    fn set_checked(&self, modified: Option<SystemTime>) {
        *self.0.checked.lock().unwrap_or_else(PoisonError::into_inner) = Some(Written(modified));
    }

    /// The bytes. Their hash is checked the first time, and again where the file was written to since. `name` is what
    /// messages call them.
    ///
    /// # Errors
    /// [`Error::WeightsUnreadable`] where they cannot be read, [`Error::WeightsChanged`] where they are other bytes.
    pub fn read(&self, name: &str) -> Result<Bytes, Error> {
        let (bytes, modified) = match (&self.0.held, &self.0.file) {
            (Held::Numbers(numbers), _) => {
                return Ok(numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>().into());
            }
            (Held::Bytes(bytes), _) => (bytes.clone(), None),
            (Held::Nothing, Some((file, offset))) => match file.read(*offset, self.0.length) {
                Ok((bytes, modified)) => (bytes.into(), modified),
                Err(source) => {
                    let hash = hexadecimal(&self.hash());
                    let (name, path) = (name.to_owned(), file.path().to_owned());
                    return Err(Error::WeightsUnreadable { name, path, offset: *offset, hash, source });
                }
            },
            (Held::Nothing, None) => (Bytes::new(), None),
        };
        let known = *self.0.checked.lock().unwrap_or_else(PoisonError::into_inner);
        if known != Some(Written(modified)) {
            let found = *blake3::hash(&bytes).as_bytes();
            if found != self.hash() {
                let place = match &self.0.file {
                    Some((file, offset)) => format!("{} at {offset}", file.path().display()),
                    None => "memory".to_owned(),
                };
                let [expected, found] = [self.hash(), found].map(|hash| hexadecimal(&hash));
                return Err(Error::WeightsChanged { name: name.to_owned(), place, expected, found });
            }
            self.set_checked(modified);
        }
        Ok(bytes)
    }
}
