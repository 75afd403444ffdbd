//! Small dense tensors of the kinds that ONNX graphs compute with.

use std::ops::RangeInclusive;
use std::sync::Arc;

use super::evaluate::View;

/// Entries of a tensor. Half-precision floats are held as single precision, integers of all widths as 64 bits.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Data {
    F32(Vec<f32>),
    F64(Vec<f64>),
    Int(Vec<i64>),
    Bool(Vec<bool>),
    Bytes(Vec<u8>),
}

/// The kinds of [`Data`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    F32,
    F64,
    Int,
    Bool,
    Bytes,
}

impl Kind {
    /// The kind that holds an ONNX element type, by its number in `TensorProto.DataType`.
    pub(super) fn of_onnx(data_type: i32) -> Option<Self> {
        match data_type {
            1 | 10 | 16 => Some(Self::F32),
            11 => Some(Self::F64),
            3..=7 | 12 | 13 | 21 | 22 => Some(Self::Int),
            2 => Some(Self::Bytes),
            9 => Some(Self::Bool),
            _ => None,
        }
    }

    pub(super) fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64)
    }
}

/// A tensor in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Dense {
    pub(super) shape: Vec<usize>,
    pub(super) data: Data,
}

impl Data {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F64(values) => values.len(),
            Self::Int(values) => values.len(),
            Self::Bool(values) => values.len(),
            Self::Bytes(values) => values.len(),
        }
    }

    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::F32(_) => Kind::F32,
            Self::F64(_) => Kind::F64,
            Self::Int(_) => Kind::Int,
            Self::Bool(_) => Kind::Bool,
            Self::Bytes(_) => Kind::Bytes,
        }
    }

    /// No entries of a kind.
    pub(super) fn empty(kind: Kind) -> Self {
        match kind {
            Kind::F32 => Self::F32(Vec::new()),
            Kind::F64 => Self::F64(Vec::new()),
            Kind::Int => Self::Int(Vec::new()),
            Kind::Bool => Self::Bool(Vec::new()),
            Kind::Bytes => Self::Bytes(Vec::new()),
        }
    }

    /// Appends `length` entries of other data of the same kind.
    pub(super) fn append(&mut self, from: &Self, start: usize, length: usize) {
        match (self, from) {
            (Self::F32(data), Self::F32(from)) => data.extend_from_slice(&from[start..start + length]),
            (Self::F64(data), Self::F64(from)) => data.extend_from_slice(&from[start..start + length]),
            (Self::Int(data), Self::Int(from)) => data.extend_from_slice(&from[start..start + length]),
            (Self::Bool(data), Self::Bool(from)) => data.extend_from_slice(&from[start..start + length]),
            (Self::Bytes(data), Self::Bytes(from)) => data.extend_from_slice(&from[start..start + length]),
            (data, from) => debug_assert_eq!(data.kind(), from.kind()),
        }
    }

    /// Replaces `length` entries by those of other data of the same kind.
    pub(super) fn overwrite(&mut self, at: usize, from: &Self, start: usize, length: usize) {
        match (self, from) {
            (Self::F32(data), Self::F32(from)) => data[at..at + length].copy_from_slice(&from[start..start + length]),
            (Self::F64(data), Self::F64(from)) => data[at..at + length].copy_from_slice(&from[start..start + length]),
            (Self::Int(data), Self::Int(from)) => data[at..at + length].copy_from_slice(&from[start..start + length]),
            (Self::Bool(data), Self::Bool(from)) => {
                data[at..at + length].copy_from_slice(&from[start..start + length]);
            }
            (Self::Bytes(data), Self::Bytes(from)) => {
                data[at..at + length].copy_from_slice(&from[start..start + length]);
            }
            (data, from) => debug_assert_eq!(data.kind(), from.kind()),
        }
    }

    /// The entries that a view reads.
    fn viewed(&self, view: &View) -> Self {
        fn read<T: Copy>(values: &[T], view: &View) -> Vec<T> {
            let mut result = Vec::with_capacity(view.shape.iter().product());
            read_into(&mut result, values, &view.shape, &view.strides, view.start);
            result
        }
        fn read_into<T: Copy>(result: &mut Vec<T>, values: &[T], shape: &[usize], strides: &[isize], start: usize) {
            match (shape, strides) {
                ([], _) | (_, []) => result.push(values[start]),
                (&[extent], [1]) => result.extend_from_slice(&values[start..start + extent]),
                (&[extent], &[stride]) => {
                    result.extend((0..extent as isize).map(|i| values[start.wrapping_add_signed(i * stride)]));
                }
                (&[extent, ref shape @ ..], &[stride, ref strides @ ..]) => {
                    for i in 0..extent as isize {
                        read_into(result, values, shape, strides, start.wrapping_add_signed(i * stride));
                    }
                }
            }
        }
        if view.shape.contains(&0) {
            return Self::empty(self.kind());
        }
        match self {
            Self::F32(values) => Self::F32(read(values, view)),
            Self::F64(values) => Self::F64(read(values, view)),
            Self::Int(values) => Self::Int(read(values, view)),
            Self::Bool(values) => Self::Bool(read(values, view)),
            Self::Bytes(values) => Self::Bytes(read(values, view)),
        }
    }
}

impl Dense {
    pub(super) fn ints(shape: Vec<usize>, values: Vec<i64>) -> Self {
        Self { shape, data: Data::Int(values) }
    }

    /// A vector of integers.
    pub(super) fn int_vector(values: Vec<i64>) -> Self {
        Self { shape: vec![values.len()], data: Data::Int(values) }
    }

    pub(super) fn len(&self) -> usize {
        self.data.len()
    }

    pub(super) fn kind(&self) -> Kind {
        self.data.kind()
    }

    /// The entries as double-precision floats, truth as 1 or 0.
    pub(super) fn to_f64(&self) -> Vec<f64> {
        self.iter_f64().collect()
    }

    /// The entries as double-precision floats one by one.
    pub(super) fn iter_f64(&self) -> Box<dyn Iterator<Item = f64> + '_> {
        match &self.data {
            Data::F32(values) => Box::new(values.iter().map(|&value| f64::from(value))),
            Data::F64(values) => Box::new(values.iter().copied()),
            Data::Int(values) => Box::new(values.iter().map(|&value| value as f64)),
            Data::Bool(values) => Box::new(values.iter().map(|&value| f64::from(u8::from(value)))),
            Data::Bytes(values) => Box::new(values.iter().map(|&value| f64::from(value))),
        }
    }

    /// The entries as single-precision floats.
    pub(super) fn into_f32(self) -> Vec<f32> {
        match self.data {
            Data::F32(values) => values,
            _ => self.iter_f64().map(|value| value as f32).collect(),
        }
    }

    /// The entries as integers, truncated.
    pub(super) fn to_ints(&self) -> Vec<i64> {
        match &self.data {
            Data::F32(values) => values.iter().map(|&value| value as i64).collect(),
            Data::F64(values) => values.iter().map(|&value| value as i64).collect(),
            Data::Int(values) => values.clone(),
            Data::Bool(values) => values.iter().map(|&value| i64::from(value)).collect(),
            Data::Bytes(values) => values.iter().map(|&value| i64::from(value)).collect(),
        }
    }

    /// The entries as truth values: not zero.
    pub(super) fn to_bools(&self) -> Vec<bool> {
        match &self.data {
            Data::Bool(values) => values.clone(),
            _ => self.iter_f64().map(|value| value != 0.0).collect(),
        }
    }

    /// A tensor of the given kind from double-precision floats, each rounded to it.
    pub(super) fn from_f64(shape: Vec<usize>, kind: Kind, values: impl IntoIterator<Item = f64>) -> Self {
        let values = values.into_iter();
        let data = match kind {
            Kind::F32 => Data::F32(values.map(|value| value as f32).collect()),
            Kind::F64 => Data::F64(values.collect()),
            Kind::Int => Data::Int(values.map(|value| value as i64).collect()),
            Kind::Bool => Data::Bool(values.map(|value| value != 0.0).collect()),
            Kind::Bytes => Data::Bytes(values.map(|value| value as u8).collect()),
        };
        Self { shape, data }
    }

    /// The only entry as a float.
    pub(super) fn scalar(&self) -> Option<f64> {
        if self.len() == 1 { self.iter_f64().next() } else { None }
    }

    /// What a view of this tensor is.
    pub(super) fn viewed(&self, view: View) -> Self {
        Self { data: self.data.viewed(&view), shape: view.shape }
    }

    /// The number that all entries are, of a tensor with one entry for each token or vector.
    pub(super) fn factor(&self) -> Option<f64> {
        if self.len() > 1 && self.shape.last() != Some(&1) {
            return None;
        }
        let values = self.to_f64();
        values.first().copied().filter(|first| values.iter().all(|value| value == first))
    }

    /// The tensor with other extents of the same product.
    pub(super) fn reshaped(self, shape: Vec<usize>) -> Self {
        debug_assert_eq!(shape.iter().product::<usize>(), self.len());
        Self { shape, data: self.data }
    }

    /// Reads entry after entry from raw little-endian bytes of an ONNX element type.
    pub(super) fn from_raw(shape: Vec<usize>, data_type: i32, bytes: &[u8]) -> Result<Self, String> {
        fn words<const N: usize, T>(bytes: &[u8], convert: impl Fn([u8; N]) -> T) -> Vec<T> {
            let (chunks, _) = bytes.as_chunks::<N>();
            chunks.iter().map(|chunk| convert(*chunk)).collect()
        }
        let count: usize = shape.iter().product();
        let width = onnx_width(data_type).ok_or_else(|| format!("element type {data_type} is not supported"))?;
        let expected = count.checked_mul(width).map(|bits| bits.div_ceil(8));
        if expected != Some(bytes.len()) {
            return Err(format!("{} bytes for {count} values of {width} bits", bytes.len()));
        }
        let data = match data_type {
            1 => Data::F32(words(bytes, f32::from_le_bytes)),
            10 => Data::F32(words(bytes, |word| half::f16::from_le_bytes(word).to_f32())),
            16 => Data::F32(words(bytes, |word| half::bf16::from_le_bytes(word).to_f32())),
            11 => Data::F64(words(bytes, f64::from_le_bytes)),
            3 => Data::Int(words(bytes, |word| i64::from(i8::from_le_bytes(word)))),
            4 => Data::Int(words(bytes, |word| i64::from(u16::from_le_bytes(word)))),
            5 => Data::Int(words(bytes, |word| i64::from(i16::from_le_bytes(word)))),
            6 => Data::Int(words(bytes, |word| i64::from(i32::from_le_bytes(word)))),
            7 => Data::Int(words(bytes, i64::from_le_bytes)),
            12 => Data::Int(words(bytes, |word| i64::from(u32::from_le_bytes(word)))),
            13 => Data::Int(words(bytes, |word| u64::from_le_bytes(word) as i64)),
            9 => Data::Bool(bytes.iter().map(|&byte| byte != 0).collect()),
            _ => Data::Bytes(bytes.to_vec()),
        };
        // Four-bit elements come two a byte, the low half first.
        if matches!(data_type, 21 | 22) {
            let sign = if data_type == 22 { 8 } else { 0 };
            let nibbles = bytes.iter().flat_map(|byte| [byte & 15, byte >> 4]).take(count);
            return Ok(Self {
                shape,
                data: Data::Int(nibbles.map(|n| i64::from(n ^ sign) - i64::from(sign)).collect()),
            });
        }
        Ok(Self { shape, data })
    }
}

/// The integers of an ONNX element type, as they are held; `None` for other types. Those of 64 bits are held as signed
/// ones whether they are or not.
pub(super) fn integers(data_type: i32) -> Option<RangeInclusive<i64>> {
    let bits = match data_type {
        2..=7 | 12 | 13 | 21 | 22 => onnx_width(data_type)?,
        _ => return None,
    };
    Some(match data_type {
        7 | 13 => i64::MIN..=i64::MAX,
        2 | 4 | 12 | 21 => 0..=(1 << bits) - 1,
        _ => -(1 << (bits - 1))..=(1 << (bits - 1)) - 1,
    })
}

/// Bits of one entry of an ONNX element type.
fn onnx_width(data_type: i32) -> Option<usize> {
    match data_type {
        1 | 6 | 12 => Some(32),
        7 | 11 | 13 => Some(64),
        4 | 5 | 10 | 16 => Some(16),
        2 | 3 | 9 => Some(8),
        21 | 22 => Some(4),
        _ => None,
    }
}

/// Bytes of `count` entries of an ONNX element type.
pub(super) fn byte_count(data_type: i32, count: usize) -> u64 {
    (onnx_width(data_type).unwrap_or(0) as u64 * count as u64).div_ceil(8)
}

/// The shape that numpy's broadcasting rules give two shapes.
pub(super) fn broadcast_shapes(left: &[usize], right: &[usize]) -> Result<Vec<usize>, String> {
    let rank = left.len().max(right.len());
    let extent = |shape: &[usize], axis: usize| (axis + shape.len()).checked_sub(rank).map_or(1, |index| shape[index]);
    (0..rank)
        .map(|axis| match (extent(left, axis), extent(right, axis)) {
            (a, b) if a == b => Ok(a),
            (1, b) => Ok(b),
            (a, 1) => Ok(a),
            _ => Err(format!("shapes {left:?} and {right:?} do not broadcast")),
        })
        .collect()
}

/// For each entry of a tensor of shape `target`, the position in a tensor of shape `source` that broadcasting reads.
pub(super) fn broadcast_indices(source: &[usize], target: &[usize]) -> Vec<usize> {
    let offset = target.len() - source.len();
    let mut strides = vec![0; target.len()];
    let mut stride = 1;
    for axis in (0..source.len()).rev() {
        if source[axis] != 1 {
            strides[axis + offset] = stride;
        }
        stride *= source[axis];
    }
    strided_indices(target, &strides, 0)
}

/// Positions `start + Σ i_k·stride_k` for all index tuples of a shape, in row-major order.
pub(super) fn strided_indices(shape: &[usize], strides: &[usize], start: usize) -> Vec<usize> {
    let mut indices = vec![start];
    for (&extent, &stride) in shape.iter().zip(strides) {
        indices = indices.iter().flat_map(|&base| (0..extent).map(move |i| base + i * stride)).collect();
    }
    indices
}

/// Row-major strides of a shape.
pub(super) fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    strides
}

/// A shared tensor.
pub(super) type Shared = Arc<Dense>;
