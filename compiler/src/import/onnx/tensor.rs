//! Tensors stored with a model: in the file itself, as raw bytes or typed fields, or in a region of another file.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use cachemir_ir::weights::{DataFile, Region};

use super::proto::tensor_proto::DataLocation;
use super::proto::{SparseTensorProto, StringStringEntryProto, TensorProto};
use crate::Error;
use crate::import::dense::{self, Data, Dense, Kind, strides};

/// Most entries of a tensor that a file may declare.
const MOST_ENTRIES: usize = 1 << 48;

/// Most entries of a sparse tensor, which is written out.
const MOST_SPARSE_ENTRIES: usize = 1 << 24;

/// Where an initialiser's values are.
#[derive(Clone, Debug)]
enum Source {
    /// In the model file, as raw bytes, and where these lie in the file; or as typed fields.
    Inline(Arc<TensorProto>, Option<(Arc<DataFile>, u64)>),
    /// In a region of another file; without a length, as long as the shape asks.
    External { file: Arc<DataFile>, offset: u64, length: Option<u64> },
    /// At hand.
    Values(Arc<Dense>),
}

/// An initialiser: a tensor stored with the model. Its values are decoded when they are asked for.
#[derive(Clone, Debug)]
pub(in crate::import) struct Initializer {
    pub(in crate::import) name: String,
    pub(in crate::import) shape: Vec<usize>,
    pub(in crate::import) kind: Kind,
    data_type: i32,
    source: Source,
}

/// The model's file, and the data files in its folder.
pub(super) struct Files {
    folder: PathBuf,
    model: Arc<DataFile>,
    /// Where in memory the model's bytes are, which raw values are parts of.
    memory: Range<usize>,
    data: RefCell<BTreeMap<PathBuf, Arc<DataFile>>>,
}

impl Files {
    /// Those of a model with these bytes.
    pub(super) fn of(model: &Path, bytes: &Bytes) -> Self {
        let start = bytes.as_ptr().addr();
        Self {
            folder: model.parent().unwrap_or_else(|| Path::new("")).to_owned(),
            model: DataFile::new(model),
            memory: start..start + bytes.len(),
            data: RefCell::default(),
        }
    }

    /// Where raw values lie in the model's file.
    fn place(&self, raw: &Bytes) -> Option<(Arc<DataFile>, u64)> {
        let start = raw.as_ptr().addr();
        let inside = self.memory.contains(&start) && start + raw.len() <= self.memory.end;
        inside.then(|| (Arc::clone(&self.model), (start - self.memory.start) as u64))
    }

    fn data(&self, relative: &Path) -> Arc<DataFile> {
        let path = self.folder.join(relative);
        Arc::clone(self.data.borrow_mut().entry(path).or_insert_with_key(|path| DataFile::new(path)))
    }
}

fn bad(tensor: &str, message: impl Into<String>) -> Error {
    Error::BadTensor { tensor: tensor.to_owned(), message: message.into() }
}

/// Extents as a shape with a number of entries that a machine could hold.
fn shape(name: &str, dims: &[i64]) -> Result<Vec<usize>, Error> {
    let shape = dims.iter().map(|&extent| usize::try_from(extent).ok()).collect::<Option<Vec<_>>>();
    let fits = |shape: &Vec<usize>| {
        // Strides too must not overflow, whatever extent is zero.
        let count = shape.iter().try_fold(1_usize, |product, &extent| product.checked_mul(extent.max(1)));
        count.is_some_and(|count| count <= MOST_ENTRIES)
    };
    shape.filter(fits).ok_or_else(|| bad(name, format!("its extents are {dims:?}")))
}

impl Initializer {
    /// A tensor of a model, under a name for messages.
    pub(super) fn new(name: String, tensor: TensorProto, files: &Files) -> Result<Self, Error> {
        let shape = shape(&name, &tensor.dims)?;
        let data_type = tensor.data_type();
        let kind =
            Kind::of_onnx(data_type).ok_or_else(|| bad(&name, format!("element type {data_type} is not supported")))?;
        let source = if tensor.data_location() == DataLocation::External {
            external(&name, &tensor, files)?
        } else {
            let place = tensor.raw_data.as_ref().and_then(|raw| files.place(raw));
            Source::Inline(Arc::new(tensor), place)
        };
        Ok(Self { name, shape, kind, data_type, source })
    }

    /// A tensor whose values are at hand.
    pub(super) fn of_values(name: String, values: Dense) -> Self {
        let (shape, kind) = (values.shape.clone(), values.kind());
        Self { name, shape, kind, data_type: 0, source: Source::Values(Arc::new(values)) }
    }

    /// A sparse tensor, written out.
    pub(super) fn sparse(name: String, tensor: SparseTensorProto, files: &Files) -> Result<Self, Error> {
        let shape = shape(&name, &tensor.dims)?;
        let count: usize = shape.iter().product();
        if count > MOST_SPARSE_ENTRIES {
            return Err(bad(&name, format!("a sparse tensor of shape {shape:?} is too large")));
        }
        let (Some(values), Some(indices)) = (tensor.values, tensor.indices) else {
            return Err(bad(&name, "a sparse tensor has no values or indices"));
        };
        let values = Self::new(name.clone(), values, files)?.decode()?;
        let indices = Self::new(name.clone(), indices, files)?.decode()?;
        let wrong = || bad(&name, "indices and values of a sparse tensor do not fit");
        // Positions in order, or a row of coordinates for each value.
        let strides = match *indices.shape.as_slice() {
            [stored] if stored == values.len() => vec![1],
            [stored, rank] if stored == values.len() && rank == shape.len() => strides(&shape),
            _ => return Err(wrong()),
        };
        let mut dense = vec![0.0; count];
        let rows = indices.to_ints();
        for (row, value) in rows.chunks_exact(strides.len().max(1)).zip(values.to_f64()) {
            let position = row.iter().zip(&strides).try_fold(0_usize, |sum, (&index, &stride)| {
                usize::try_from(index).ok()?.checked_mul(stride)?.checked_add(sum)
            });
            *position.and_then(|position| dense.get_mut(position)).ok_or_else(wrong)? = value;
        }
        Ok(Self::of_values(name, Dense::from_f64(shape, values.kind(), dense)))
    }

    /// Bytes of the values that a copy of the message would copy.
    pub(super) fn copied_bytes(&self) -> u64 {
        match &self.source {
            Source::Inline(tensor, _) => {
                let wide = tensor.double_data.len() + tensor.int64_data.len() + tensor.uint64_data.len();
                8 * (wide + tensor.dims.len()) as u64 + 4 * (tensor.float_data.len() + tensor.int32_data.len()) as u64
            }
            Source::Values(values) => 8 * values.len() as u64,
            Source::External { .. } => 0,
        }
    }

    /// Number of entries.
    pub(in crate::import) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// The data file that the values lie in and that cannot be opened, if so.
    pub(in crate::import) fn missing_file(&self) -> Option<&Path> {
        match &self.source {
            Source::External { file, .. } if !file.path().is_file() => Some(file.path()),
            _ => None,
        }
    }

    /// Decodes the values.
    pub(in crate::import) fn decode(&self) -> Result<Dense, Error> {
        let bad = |message: String| bad(&self.name, message);
        match &self.source {
            Source::Values(values) => Ok(values.as_ref().clone()),
            Source::Inline(tensor, _) => match &tensor.raw_data {
                Some(raw) if !raw.is_empty() => Dense::from_raw(self.shape.clone(), self.data_type, raw).map_err(bad),
                _ => self.decode_fields(tensor).map_err(bad),
            },
            Source::External { file, offset, length } => {
                let length = self.check_external(file, *offset, *length)?;
                let failed = |source| Error::Read { path: file.path().to_owned(), source };
                let mut source = File::open(file.path()).map_err(failed)?;
                source.seek(SeekFrom::Start(*offset)).map_err(failed)?;
                let mut bytes = vec![0; length as usize];
                source.read_exact(&mut bytes).map_err(failed)?;
                Dense::from_raw(self.shape.clone(), self.data_type, &bytes).map_err(bad)
            }
        }
    }

    /// The length of a region of a data file, which has to be there.
    fn check_external(&self, file: &DataFile, offset: u64, length: Option<u64>) -> Result<u64, Error> {
        let path = file.path();
        let missing = |_| Error::MissingExternalData { tensor: self.name.clone(), path: path.to_owned() };
        let size = std::fs::metadata(path).map_err(missing)?.len();
        let wanted = dense::byte_count(self.data_type, self.len());
        let length = length.unwrap_or(wanted);
        if length != wanted {
            return Err(bad(&self.name, format!("{length} bytes of external data for {} values", self.len())));
        }
        if offset.checked_add(length).is_none_or(|end| end > size) {
            let message =
                format!("its region of {length} bytes at {offset} exceeds {} of {size} bytes", path.display());
            return Err(bad(&self.name, message));
        }
        Ok(length)
    }

    /// The number of the element type in `TensorProto.DataType`; 0 for values that were not read from a file.
    pub(in crate::import) fn data_type(&self) -> i32 {
        self.data_type
    }

    /// The raw bytes of the values, where they are in the model's file or in a data file; `None` for others.
    pub(in crate::import) fn region(&self) -> Result<Option<Region>, Error> {
        match &self.source {
            Source::Values(_) => Ok(None),
            Source::Inline(tensor, place) => {
                let raw = tensor.raw_data.as_ref().filter(|raw| !raw.is_empty());
                Ok(raw.map(|raw| Region::of_bytes(raw.clone(), place.clone())))
            }
            Source::External { file, offset, length } => {
                let length = self.check_external(file, *offset, *length)?;
                let failed = |source| Error::Read { path: file.path().to_owned(), source };
                Region::of_file(Arc::clone(file), *offset, length).map(Some).map_err(failed)
            }
        }
    }

    /// Decodes the typed fields that a tensor without raw bytes has.
    fn decode_fields(&self, tensor: &TensorProto) -> Result<Dense, String> {
        let words = &tensor.int32_data;
        let data = match self.data_type {
            1 => Data::F32(tensor.float_data.clone()),
            11 => Data::F64(tensor.double_data.clone()),
            7 => Data::Int(tensor.int64_data.clone()),
            9 => Data::Bool(words.iter().map(|&word| word != 0).collect()),
            10 => Data::F32(words.iter().map(|&word| half::f16::from_bits(word as u16).to_f32()).collect()),
            16 => Data::F32(words.iter().map(|&word| half::bf16::from_bits(word as u16).to_f32()).collect()),
            2 => Data::Bytes(words.iter().map(|&word| word as u8).collect()),
            12 | 13 => Data::Int(tensor.uint64_data.iter().map(|&word| word as i64).collect()),
            3..=6 => Data::Int(words.iter().map(|&word| i64::from(word)).collect()),
            // Two to a byte, as in raw data.
            21 | 22 => {
                let bytes: Vec<u8> = words.iter().map(|&word| word as u8).collect();
                return Dense::from_raw(self.shape.clone(), self.data_type, &bytes);
            }
            other => return Err(format!("element type {other} without raw bytes is not supported")),
        };
        if data.len() != self.len() {
            return Err(format!("{} values for the shape {:?}", data.len(), self.shape));
        }
        Ok(Dense { shape: self.shape.clone(), data })
    }
}

/// The place of a tensor in another file of the model's folder.
fn external(name: &str, tensor: &TensorProto, files: &Files) -> Result<Source, Error> {
    let field =
        |key: &str| tensor.external_data.iter().find(|entry| entry.key() == key).map(StringStringEntryProto::value);
    let number = |key: &str| match field(key).map(str::parse::<u64>) {
        None => Ok(None),
        Some(Ok(number)) => Ok(Some(number)),
        Some(Err(_)) => Err(bad(name, format!("the {key} of its external data is not a number"))),
    };
    let location = field("location").ok_or_else(|| bad(name, "its external data has no location"))?;
    let relative = Path::new(location);
    if !relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(bad(name, format!("its external data `{location}` is outside the model's folder")));
    }
    let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
    Ok(Source::External { file: files.data(relative), offset, length })
}
