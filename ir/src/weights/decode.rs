//! From stored bytes to entries of single precision, on all cores.

use std::sync::Arc;

use bytes::Bytes;
use half::{bf16, f16};
use rayon::prelude::*;

use super::{Encoding, Float, Floats, Integers, Orientation, Region, Stored, Weights, Zeros};
use crate::Error;

/// Outputs that one core makes at a time: where inputs are stored first, neighbouring outputs lie side by side.
const OUTPUTS: usize = 16;

fn require(condition: bool, message: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(message()) }
}

/// Whether a region has the bytes of so many numbers.
fn require_numbers(what: &str, region: &Region, count: Option<usize>, bits: usize) -> Result<(), String> {
    let expected = count.and_then(|count| count.checked_mul(bits)).map(|bits| bits.div_ceil(8) as u64);
    require(expected == Some(region.length()), || {
        format!(
            "{what} of {} bytes, where {} numbers of {bits} bits belong",
            region.length(),
            count.unwrap_or(usize::MAX)
        )
    })
}

/// Whether all parts of a stored matrix fit.
pub(super) fn check(stored: &Stored) -> Result<(), String> {
    let [rows, columns] = stored.extents;
    let entries = rows.checked_mul(columns);
    match &stored.encoding {
        Encoding::Float(kind) => require_numbers("weights", &stored.region, entries, 8 * kind.bytes())?,
        Encoding::Integers(integers) => {
            let Integers { bits, row_length, block, scales, zeros, .. } = integers;
            let [block_rows, block_columns] = *block;
            require(matches!(bits, 4 | 8) && block_rows > 0 && block_columns > 0 && *row_length >= columns, || {
                format!("integers of {bits} bits, {row_length} to a row of {columns}, in blocks of {block:?}")
            })?;
            let bits = *bits as usize;
            require_numbers("weights", &stored.region, rows.checked_mul(*row_length), bits)?;
            let (down, across) = (rows.div_ceil(block_rows), columns.div_ceil(block_columns));
            let floats = |what: &str, floats: &Floats| {
                require_numbers(what, &floats.region, down.checked_mul(across), 8 * floats.kind.bytes())
            };
            floats("scales", scales)?;
            match zeros {
                Zeros::All(_) => {}
                Zeros::Floats(zeros) => floats("zero points", zeros)?,
                Zeros::Integers { region, row_length } => {
                    require(*row_length >= across, || format!("{row_length} zero points for {across} blocks"))?;
                    require_numbers("zero points", region, down.checked_mul(*row_length), bits)?;
                }
            }
        }
    }
    let known = stored.stored_outputs();
    if let Some(outputs) = &stored.outputs {
        let inside = outputs.len() <= known && outputs.iter().all(|output| (*output as usize) < known);
        require(inside, || format!("{} outputs of {known} are out of range", outputs.len()))?;
    }
    require(stored.scale.is_finite(), || format!("a scale of {}", stored.scale))
}

/// The number of a kind at a place.
fn float(kind: Float, bytes: &[u8], index: usize) -> f32 {
    let at = |at: usize| bytes[at];
    match kind {
        Float::F32 => f32::from_le_bytes([at(4 * index), at(4 * index + 1), at(4 * index + 2), at(4 * index + 3)]),
        Float::F16 => f16::from_le_bytes([at(2 * index), at(2 * index + 1)]).to_f32(),
        Float::Bf16 => bf16::from_le_bytes([at(2 * index), at(2 * index + 1)]).to_f32(),
    }
}

fn floats(floats: &Floats, name: &str) -> Result<Vec<f64>, Error> {
    let bytes = floats.region.read(name)?;
    let count = bytes.len() / floats.kind.bytes();
    Ok((0..count).map(|index| f64::from(float(floats.kind, &bytes, index))).collect())
}

/// Integers of a matrix.
struct Packed {
    bytes: Bytes,
    bits: u32,
    signed: bool,
}

impl Packed {
    fn get(&self, index: usize) -> i32 {
        match (self.bits, self.signed) {
            (4, signed) => {
                let nibble = i32::from(self.bytes[index / 2] >> (4 * (index % 2)) & 15);
                if signed { (nibble ^ 8) - 8 } else { nibble }
            }
            (_, true) => i32::from(self.bytes[index] as i8),
            (_, false) => i32::from(self.bytes[index]),
        }
    }
}

/// The entries of weights whose parts fit.
pub(super) fn load(weights: &Weights, name: &str) -> Result<Arc<[f32]>, Error> {
    let stored = &*weights.stored;
    // Of a matrix without entries, one extent may be anything.
    if weights.entries() == 0 {
        return Ok(Arc::default());
    }
    let gamma: Option<Vec<f64>> = weights
        .columns()
        .map(|columns| match columns.numbers() {
            Some(numbers) => Ok(numbers.iter().map(|&number| f64::from(number)).collect()),
            None => floats(&Floats { region: columns.clone(), kind: Float::F32 }, name),
        })
        .transpose()?;
    let fold = weights.fold.as_ref().map(|fold| (gamma.as_deref(), fold.factor));
    if let Some(numbers) = stored.region.numbers() {
        return Ok(laid_out(stored, fold, |row, column| numbers[row * stored.extents[1] + column]));
    }
    let bytes = stored.region.read(name)?;
    let columns = stored.extents[1];
    match &stored.encoding {
        Encoding::Float(Float::F32) => {
            let (words, _) = bytes.as_chunks::<4>();
            Ok(laid_out(stored, fold, |row, column| f32::from_le_bytes(words[row * columns + column])))
        }
        Encoding::Float(Float::F16) => {
            let (words, _) = bytes.as_chunks::<2>();
            Ok(laid_out(stored, fold, |row, column| f16::from_le_bytes(words[row * columns + column]).to_f32()))
        }
        Encoding::Float(Float::Bf16) => {
            let (words, _) = bytes.as_chunks::<2>();
            Ok(laid_out(stored, fold, |row, column| bf16::from_le_bytes(words[row * columns + column]).to_f32()))
        }
        Encoding::Integers(integers) => {
            let Integers { bits, signed, row_length, block: [block_rows, block_columns], ref scales, ref zeros } =
                *integers;
            let (down, across) = (stored.extents[0].div_ceil(block_rows), columns.div_ceil(block_columns));
            let scales = floats(scales, name)?;
            let zeros: Vec<f64> = match zeros {
                Zeros::All(zero) => vec![f64::from(*zero); down * across],
                Zeros::Floats(zeros) => floats(zeros, name)?,
                Zeros::Integers { region, row_length } => {
                    let packed = Packed { bytes: region.read(name)?, bits, signed };
                    let at = |block: usize| block / across * row_length + block % across;
                    (0..down * across).map(|block| f64::from(packed.get(at(block)))).collect()
                }
            };
            let packed = Packed { bytes, bits, signed };
            // Quotients for every entry would take longer than all else.
            let first_of_row: Vec<usize> = (0..stored.extents[0]).map(|row| row / block_rows * across).collect();
            let in_row: Vec<usize> = (0..columns).map(|column| column / block_columns).collect();
            Ok(laid_out(stored, fold, |row, column| {
                let block = first_of_row[row] + in_row[column];
                ((f64::from(packed.get(row * row_length + column)) - zeros[block]) * scales[block]) as f32
            }))
        }
    }
}

/// γ and the factor, where something is folded in.
type Folded<'g> = Option<(Option<&'g [f64]>, f64)>;

/// All entries as `[out][in]`; `number` gives those of the stored matrix by row and column.
fn laid_out(stored: &Stored, fold: Folded<'_>, number: impl Fn(usize, usize) -> f32 + Sync) -> Arc<[f32]> {
    let (outputs, inputs) = (stored.outputs(), stored.inputs());
    let finish = |value: f32, input: usize| {
        let value = if stored.scale == 1.0 { value } else { (f64::from(value) * stored.scale) as f32 };
        match fold {
            None => value,
            Some((None, factor)) => (f64::from(value) * factor) as f32,
            Some((Some(gamma), factor)) => (f64::from(value) * gamma[input] * factor) as f32,
        }
    };
    let output = |index: usize| stored.outputs.as_ref().map_or(index, |outputs| outputs[index] as usize);
    let mut entries: Arc<[f32]> = std::iter::repeat_n(0.0, outputs * inputs).collect();
    let block = |(block, entries): (usize, &mut [f32])| {
        let (first, count) = (block * OUTPUTS, entries.len() / inputs);
        match stored.orientation {
            Orientation::OutputsFirst => {
                for (place, row) in (first..).zip(entries.chunks_exact_mut(inputs)) {
                    let stored_row = output(place);
                    row.iter_mut().enumerate().for_each(|(input, entry)| {
                        *entry = finish(number(stored_row, input), input);
                    });
                }
            }
            Orientation::InputsFirst => {
                for input in 0..inputs {
                    for place in 0..count {
                        let entry = &mut entries[place * inputs + input];
                        *entry = finish(number(input, output(first + place)), input);
                    }
                }
            }
        }
    };
    if let Some(entries) = Arc::get_mut(&mut entries) {
        entries.par_chunks_mut((OUTPUTS * inputs).max(1)).enumerate().for_each(block);
    }
    entries
}
