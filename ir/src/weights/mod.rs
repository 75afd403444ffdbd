//! Weights as they are stored: in the narrow form in which their exporter wrote them, read when they are used.
//!
//! A [`Weights`] says where the bytes of a matrix are ([`Region`]: memory, or a range of a file), how they encode numbers
//! ([`Encoding`]), how the matrix lies in them, and what is folded in while they are read. Nothing of it holds the matrix
//! in single precision; [`Weights::load`] makes that, for as long as its caller keeps it. With s the stored number of
//! output o and input i, the entry is, row-major as `[out][in]`,
//!
//! ```text
//! w = s where the scale is one, else f32(s·scale)          the exporter's matrix
//! entry = w where nothing is folded, else f32(w·γ_i·factor)
//! ```
//!
//! with products of double precision in this order, so that the entries are the same to the bit wherever the bytes are.
//!
//! **Hashes.** Each region has the BLAKE3 hash of its bytes. It is checked when the region is read for the first time, and
//! again only where its file was written to since. A file is opened once and stays open, so that one that is replaced
//! under its name while a program runs changes nothing for that program.
//!
//! **No memory maps.** They need `unsafe`, which only the cryptographic kernels have, and a file that is cut off
//! under a map ends the process by a signal. Reads at a position give an error, which names the file and says what to do.

mod decode;
mod kept;
mod region;
#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};

pub use kept::Kept;
pub use region::{DataFile, Region};

use crate::Error;

/// A kind of floating-point numbers, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of single precision.
    Bf16,
}

impl Float {
    /// Bytes of one number.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// Floating-point numbers that belong to an encoding.
#[derive(Clone, Debug, PartialEq)]
pub struct Floats {
    /// Their bytes.
    pub region: Region,
    /// Their kind.
    pub kind: Float,
}

/// What is subtracted from integers ahead of their scale.
#[derive(Clone, Debug, PartialEq)]
pub enum Zeros {
    /// The same number everywhere.
    All(i32),
    /// An integer for each block, stored as the matrix is.
    Integers {
        /// Its bytes.
        region: Region,
        /// Integers from one row of blocks to the next.
        row_length: usize,
    },
    /// A number for each block.
    Floats(Floats),
}

/// Integers in blocks: `(integer − zero)·scale`, rounded to single precision.
#[derive(Clone, Debug, PartialEq)]
pub struct Integers {
    /// Bits of an integer, 4 or 8. Of two to a byte, the low half is the first.
    pub bits: u32,
    /// Whether integers are of two's complement.
    pub signed: bool,
    /// Integers from one stored row to the next.
    pub row_length: usize,
    /// Stored rows and columns of a block.
    pub block: [usize; 2],
    /// A scale for each block, row-major.
    pub scales: Floats,
    /// Zero points.
    pub zeros: Zeros,
}

/// How bytes encode a matrix's numbers.
#[derive(Clone, Debug, PartialEq)]
pub enum Encoding {
    /// One after the other.
    Float(Float),
    /// Integers with scales.
    Integers(Integers),
}

/// Which way a stored matrix lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Orientation {
    /// `[out][in]`
    OutputsFirst,
    /// `[in][out]`
    InputsFirst,
}

/// A matrix, or some of its outputs, as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// The bytes of the numbers.
    pub region: Region,
    /// How they encode numbers.
    pub encoding: Encoding,
    /// Rows and columns as they are stored.
    pub extents: [usize; 2],
    /// Whether rows are outputs or inputs.
    pub orientation: Orientation,
    /// The outputs that are used, in order, at most as many as there are; all where absent.
    pub outputs: Option<Vec<u32>>,
    /// The exporter's factor of all entries.
    pub scale: f64,
}

/// What is multiplied in while entries are read.
#[derive(Clone, Debug, PartialEq)]
struct Fold {
    /// γ, for each input.
    columns: Option<Region>,
    factor: f64,
}

/// Stored numbers, cheap to clone. Two are equal where they are stored alike and their bytes have the same hashes,
/// wherever those are.
#[derive(Clone, Debug)]
pub struct Weights {
    stored: Arc<Stored>,
    fold: Option<Fold>,
    /// Entries of [`Weights::values`].
    kept: Arc<OnceLock<Arc<[f32]>>>,
}

impl PartialEq for Weights {
    fn eq(&self, other: &Self) -> bool {
        self.stored == other.stored && self.fold == other.fold
    }
}

/// Numbers in memory, as one row.
impl From<Vec<f32>> for Weights {
    fn from(values: Vec<f32>) -> Self {
        Self::of_values(values)
    }
}

impl Weights {
    /// Numbers in memory.
    pub fn of_values(values: impl Into<Arc<[f32]>>) -> Self {
        let values = values.into();
        let columns = values.len();
        Self::of_matrix(values, columns)
    }

    /// A matrix in memory, row-major, in rows of so many columns; one row where they do not divide it.
    pub fn of_matrix(values: impl Into<Arc<[f32]>>, columns: usize) -> Self {
        let values = values.into();
        let divides = columns > 0 && values.len().is_multiple_of(columns);
        let extents = if divides { [values.len() / columns, columns] } else { [1, values.len()] };
        Self::unchecked(Stored {
            region: Region::of_numbers(values),
            encoding: Encoding::Float(Float::F32),
            extents,
            orientation: Orientation::OutputsFirst,
            outputs: None,
            scale: 1.0,
        })
    }

    /// A stored matrix.
    ///
    /// # Errors
    /// What does not fit, in words: regions of other lengths than the extents ask for, outputs that there are not, …
    pub fn new(stored: Stored) -> Result<Self, String> {
        decode::check(&stored)?;
        Ok(Self::unchecked(stored))
    }

    fn unchecked(stored: Stored) -> Self {
        Self { stored: Arc::new(stored), fold: None, kept: Arc::default() }
    }

    /// The same with each input's entries multiplied by its γ, if there are some, and all by a factor. Replaces what was
    /// folded in before.
    ///
    /// # Errors
    /// Where γ has not a number for each input, or the factor is not finite; in words.
    pub fn folded(&self, columns: Option<Region>, factor: f64) -> Result<Self, String> {
        if let Some(columns) = &columns {
            let inputs = self.stored.inputs();
            if Some(columns.length()) != (inputs as u64).checked_mul(4) {
                return Err(format!("{} bytes of factors for {inputs} inputs", columns.length()));
            }
        }
        if !factor.is_finite() {
            return Err(format!("a factor of {factor}"));
        }
        let fold = (columns.is_some() || factor != 1.0).then_some(Fold { columns, factor });
        Ok(Self { stored: Arc::clone(&self.stored), fold, kept: Arc::default() })
    }

    /// How the matrix is stored.
    pub fn stored(&self) -> &Stored {
        &self.stored
    }

    /// The bytes of γ, single precision, where it is folded in.
    pub fn columns(&self) -> Option<&Region> {
        self.fold.as_ref()?.columns.as_ref()
    }

    /// The factor that is folded in.
    pub fn factor(&self) -> f64 {
        self.fold.as_ref().map_or(1.0, |fold| fold.factor)
    }

    /// Number of entries.
    pub fn entries(&self) -> usize {
        self.stored.outputs() * self.stored.inputs()
    }

    /// All regions, each once for each use.
    pub fn regions(&self) -> impl Iterator<Item = &Region> {
        let (scales, zeros) = match &self.stored.encoding {
            Encoding::Float(_) => (None, None),
            Encoding::Integers(Integers { scales, zeros, .. }) => {
                let zeros = match zeros {
                    Zeros::All(_) => None,
                    Zeros::Integers { region, .. } | Zeros::Floats(Floats { region, .. }) => Some(region),
                };
                (Some(&scales.region), zeros)
            }
        };
        [Some(&self.stored.region), scales, zeros, self.columns()].into_iter().flatten()
    }

    /// Bytes that are stored.
    pub fn stored_bytes(&self) -> u64 {
        self.regions().map(Region::length).sum()
    }

    /// The entries, if they are numbers in memory just as they are.
    fn at_hand(&self) -> Option<&Arc<[f32]>> {
        let Stored { encoding, orientation, outputs, scale, .. } = &*self.stored;
        let plain = *encoding == Encoding::Float(Float::F32) && *orientation == Orientation::OutputsFirst;
        let whole = outputs.is_none() && *scale == 1.0 && self.fold.is_none();
        self.stored.region.numbers().filter(|_| plain && whole)
    }

    /// The entries, row-major as `[out][in]`: read, and dropped with the last copy of what is returned. `name` is the
    /// table's, for messages.
    ///
    /// # Errors
    /// [`Error::WeightsUnreadable`] where bytes cannot be read, [`Error::WeightsChanged`] where they are others than those
    /// that were hashed.
    pub fn load(&self, name: &str) -> Result<Arc<[f32]>, Error> {
        match self.at_hand().or_else(|| self.kept.get()) {
            Some(known) => Ok(Arc::clone(known)),
            None => decode::load(self, name),
        }
    }

    /// The entries as [`Weights::load`] gives them, kept from the first use on: for small tables.
    ///
    /// # Errors
    /// Those of [`Weights::load`].
    pub fn values(&self, name: &str) -> Result<&[f32], Error> {
        if let Some(known) = self.at_hand().or_else(|| self.kept.get()) {
            return Ok(known);
        }
        let loaded = decode::load(self, name)?;
        Ok(self.kept.get_or_init(|| loaded))
    }

    /// Reads all bytes and checks their hashes.
    ///
    /// # Errors
    /// Those of [`Weights::load`].
    pub fn check(&self, name: &str) -> Result<(), Error> {
        self.regions().try_for_each(|region| region.read(name).map(drop))
    }

    /// A hash of what is stored: of the bytes alone where they are the entries as single precision, else of their hashes
    /// and of all else that the entries follow from. Nothing is read for it.
    pub fn hash(&self) -> [u8; 32] {
        let Stored { region, encoding, extents, orientation, outputs, scale } = &*self.stored;
        let plain = *encoding == Encoding::Float(Float::F32) && *orientation == Orientation::OutputsFirst;
        if plain && outputs.is_none() && *scale == 1.0 && self.fold.is_none() {
            return region.hash();
        }
        let mut hasher = blake3::Hasher::new();
        for region in self.regions() {
            hasher.update(&region.hash());
        }
        let encoding = match encoding {
            Encoding::Float(kind) => format!("{kind:?}"),
            Encoding::Integers(Integers { bits, signed, row_length, block, scales, zeros }) => {
                let zeros = match zeros {
                    Zeros::All(zero) => format!("{zero}"),
                    Zeros::Integers { row_length, .. } => format!("integers {row_length}"),
                    Zeros::Floats(zeros) => format!("{:?}", zeros.kind),
                };
                format!("{bits} {signed} {row_length} {block:?} {:?} {zeros}", scales.kind)
            }
        };
        let folded = (self.columns().is_some(), self.factor());
        hasher.update(format!("{encoding} {extents:?} {orientation:?} {outputs:?} {scale:?} {folded:?}").as_bytes());
        *hasher.finalize().as_bytes()
    }
}

impl Stored {
    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        match self.orientation {
            Orientation::OutputsFirst => self.extents[1],
            Orientation::InputsFirst => self.extents[0],
        }
    }

    /// Number of outputs that are stored, used or not.
    fn stored_outputs(&self) -> usize {
        match self.orientation {
            Orientation::OutputsFirst => self.extents[0],
            Orientation::InputsFirst => self.extents[1],
        }
    }

    /// Number of outputs that are used.
    pub fn outputs(&self) -> usize {
        self.outputs.as_ref().map_or_else(|| self.stored_outputs(), Vec::len)
    }
}
