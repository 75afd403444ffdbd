//! Stored weights as protobuf messages.

use super::container::{Blobs, BlobsRead};
use super::wire;
use crate::Error;
use crate::weights::{Encoding, Float, Floats, Integers, Orientation, Stored, Weights, Zeros};

/// The number of a kind in messages.
fn number(kind: Float) -> u32 {
    match kind {
        Float::F32 => 1,
        Float::F16 => 2,
        Float::Bf16 => 3,
    }
}

fn kind(number: u32) -> Result<Float, String> {
    match number {
        1 => Ok(Float::F32),
        2 => Ok(Float::F16),
        3 => Ok(Float::Bf16),
        other => Err(format!("numbers of an unknown kind, {other}")),
    }
}

pub(super) fn weights_to_wire(weights: &Weights, blobs: &mut Blobs) -> wire::Weights {
    let Stored { region, encoding, extents: [rows, columns], orientation, outputs, scale } = weights.stored();
    let blob = blobs.add(region);
    let (kind, integers) = match encoding {
        Encoding::Float(kind) => (number(*kind), None),
        Encoding::Integers(integers) => (0, Some(integers_to_wire(integers, blobs))),
    };
    wire::Weights {
        blob,
        kind,
        integers,
        rows: *rows as u64,
        columns: *columns as u64,
        inputs_first: *orientation == Orientation::InputsFirst,
        outputs: outputs.clone().map(|outputs| wire::Outputs { outputs }),
        scale: *scale,
        factor: weights.factor(),
        gamma_blob: weights.columns().map(|gamma| blobs.add(gamma)),
    }
}

fn integers_to_wire(integers: &Integers, blobs: &mut Blobs) -> wire::Integers {
    let Integers { bits, signed, row_length, block: [block_rows, block_columns], scales, zeros } = integers;
    let scales_blob = blobs.add(&scales.region);
    let (zero, zeros_blob, zeros_kind, zeros_row_length) = match zeros {
        Zeros::All(zero) => (*zero, None, 0, 0),
        Zeros::Integers { region, row_length } => (0, Some(blobs.add(region)), 0, *row_length),
        Zeros::Floats(zeros) => (0, Some(blobs.add(&zeros.region)), number(zeros.kind), 0),
    };
    wire::Integers {
        bits: *bits,
        signed: *signed,
        row_length: *row_length as u64,
        block_rows: *block_rows as u64,
        block_columns: *block_columns as u64,
        scales_blob,
        scales_kind: number(scales.kind),
        zero,
        zeros_blob,
        zeros_kind,
        zeros_row_length: zeros_row_length as u64,
    }
}

/// The weights of a table of this name.
pub(super) fn weights_from_wire(weights: wire::Weights, name: &str, blobs: &BlobsRead) -> Result<Weights, Error> {
    let misfit = |message: String| Error::Plan(format!("the weights of `{name}` make no sense: {message}"));
    let size = |number: u64| usize::try_from(number).map_err(|_| misfit(format!("a size of {number}")));
    let floats = |blob: u32, number: u32| -> Result<Floats, Error> {
        Ok(Floats { region: blobs.get(blob)?.clone(), kind: kind(number).map_err(misfit)? })
    };
    let encoding = match weights.integers {
        None => Encoding::Float(kind(weights.kind).map_err(misfit)?),
        Some(integers) => {
            let zeros = match (integers.zeros_blob, integers.zeros_kind) {
                (None, _) => Zeros::All(integers.zero),
                (Some(blob), 0) => {
                    Zeros::Integers { region: blobs.get(blob)?.clone(), row_length: size(integers.zeros_row_length)? }
                }
                (Some(blob), kind) => Zeros::Floats(floats(blob, kind)?),
            };
            Encoding::Integers(Integers {
                bits: integers.bits,
                signed: integers.signed,
                row_length: size(integers.row_length)?,
                block: [size(integers.block_rows)?, size(integers.block_columns)?],
                scales: floats(integers.scales_blob, integers.scales_kind)?,
                zeros,
            })
        }
    };
    let stored = Stored {
        region: blobs.get(weights.blob)?.clone(),
        encoding,
        extents: [size(weights.rows)?, size(weights.columns)?],
        orientation: if weights.inputs_first { Orientation::InputsFirst } else { Orientation::OutputsFirst },
        outputs: weights.outputs.map(|outputs| outputs.outputs),
        scale: weights.scale,
    };
    let gamma = weights.gamma_blob.map(|blob| blobs.get(blob).cloned()).transpose()?;
    Weights::new(stored).and_then(|stored| stored.folded(gamma, weights.factor)).map_err(misfit)
}
