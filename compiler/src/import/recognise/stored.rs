//! Where the matrix of a linear layer is stored, if its bytes are in a file as they are: transposed or not, in floating-point
//! numbers or in integers with scales. Matrices that nodes compute are not.

use cachemir_ir::weights::{Encoding, Float, Floats, Integers, Orientation as Lying, Region, Stored, Weights, Zeros};

use super::linear::{Linear, Orientation};
use crate::Error;
use crate::import::dense::Kind;
use crate::import::evaluate::cast_kind;
use crate::import::onnx::{Initializer, Name, OnnxNode};
use crate::import::specialise::Specialised;

impl Linear {
    /// The weights as `[out, in]`: where they are stored if they are stored as such, else in memory.
    pub(in crate::import) fn weights(&self, specialised: &Specialised<'_>) -> Result<Weights, Error> {
        if let Some(weights) = stored(self, specialised)?.and_then(|stored| Weights::new(stored).ok()) {
            return Ok(weights);
        }
        Ok(Weights::of_matrix(self.values(specialised)?, self.inputs))
    }
}

/// The stored matrix of a layer; `None` where it has to be computed, or where something about it is odd.
fn stored(linear: &Linear, specialised: &Specialised<'_>) -> Result<Option<Stored>, Error> {
    let (outputs, inputs) = (linear.stored_outputs, linear.inputs);
    let found = match linear.orientation {
        Orientation::Quantised { bits, block, first, scales, zero } => {
            let node = &specialised.graph.nodes[linear.node];
            let reader = Reader { specialised, node };
            reader.blocks([outputs, inputs], (bits, block), [first, scales, zero])?
        }
        orientation => {
            let lying = match orientation {
                Orientation::InputsFirst => Lying::InputsFirst,
                _ => Lying::OutputsFirst,
            };
            matrix(specialised, linear.weight, lying)?
        }
    };
    let rows = match &linear.rows {
        None => None,
        Some(rows) if rows.len() <= outputs => Some(rows.iter().map(|&row| row as u32).collect()),
        // Repeated ones are written out.
        Some(_) => return Ok(None),
    };
    let Some((region, encoding, extents, orientation)) = found else { return Ok(None) };
    let stored = Stored { region, encoding, extents, orientation, outputs: rows, scale: linear.scale };
    let expected = match orientation {
        Lying::OutputsFirst => [outputs, inputs],
        Lying::InputsFirst => [inputs, outputs],
    };
    Ok(Some(stored).filter(|stored| stored.extents == expected))
}

/// Bytes, their meaning, extents, and which way the matrix lies.
type Found = Option<(Region, Encoding, [usize; 2], Lying)>;

/// The matrix that a value is, if it is a stored one, cast or transposed.
fn matrix(specialised: &Specialised<'_>, mut name: Name, mut lying: Lying) -> Result<Found, Error> {
    loop {
        if let Some(initializer) = specialised.graph.initializers.get(&name) {
            let (Some(kind), &[rows, columns]) = (float(initializer), initializer.shape.as_slice()) else {
                return Ok(None);
            };
            let region = initializer.region()?;
            return Ok(region.map(|region| (region, Encoding::Float(kind), [rows, columns], lying)));
        }
        let Some((node, 0)) = specialised.producer(name) else { return Ok(None) };
        let node = &specialised.graph.nodes[node];
        let Some(input) = node.input(0) else { return Ok(None) };
        match node.op_type.as_str() {
            "Identity" => {}
            // Half precision is not rounded to.
            "Cast" if specialised.value(input).kind() == Kind::F32 && cast_kind(node) == Ok(Kind::F32) => {}
            "Transpose" if matches!(node.ints("perm"), None | Some([1, 0])) => {
                lying = match lying {
                    Lying::InputsFirst => Lying::OutputsFirst,
                    Lying::OutputsFirst => Lying::InputsFirst,
                };
            }
            "DequantizeLinear" | "com.microsoft::DequantizeLinear" => {
                let found = Reader { specialised, node }.dequantised()?;
                return Ok(found.map(|(region, encoding, extents)| (region, encoding, extents, lying)));
            }
            _ => return Ok(None),
        }
        name = input;
    }
}

/// The kind of an initialiser's floating-point numbers.
fn float(initializer: &Initializer) -> Option<Float> {
    match initializer.data_type() {
        1 => Some(Float::F32),
        10 => Some(Float::F16),
        16 => Some(Float::Bf16),
        _ => None,
    }
}

/// Bits and sign of an initialiser's integers.
fn integers(initializer: &Initializer) -> Option<(u32, bool)> {
    match initializer.data_type() {
        2 => Some((8, false)),
        3 => Some((8, true)),
        21 => Some((4, false)),
        22 => Some((4, true)),
        _ => None,
    }
}

/// Reads what a node with integers and scales is given.
struct Reader<'s, 'g> {
    specialised: &'s Specialised<'g>,
    node: &'s OnnxNode,
}

impl<'s> Reader<'s, '_> {
    /// An input that is stored.
    fn stored(&self, index: usize) -> Option<&'s Initializer> {
        self.specialised.graph.initializers.get(&self.node.input(index)?)
    }

    /// Whether an input is given that is not stored.
    fn is_computed(&self, index: usize) -> bool {
        self.node.input(index).is_some() && self.stored(index).is_none()
    }

    /// Floating-point numbers of an initialiser; those that have no bytes of their own as single precision.
    fn floats(initializer: &Initializer) -> Result<Option<Floats>, Error> {
        let Some(kind) = float(initializer) else { return Ok(None) };
        Ok(Some(match initializer.region()? {
            Some(region) => Floats { region, kind },
            None => Floats { region: Region::of_numbers(initializer.decode()?.into_f32()), kind: Float::F32 },
        }))
    }

    /// The weights of an operation with blocks of inputs, `[out, in]`.
    fn blocks(
        &self,
        extents: [usize; 2],
        (bits, block): (usize, usize),
        [first, scales, zero]: [usize; 3],
    ) -> Result<Found, Error> {
        let (Some(packed), Some(scales), false) = (self.stored(first), self.stored(scales), self.is_computed(zero))
        else {
            return Ok(None);
        };
        let Some((width, signed)) = integers(packed) else { return Ok(None) };
        // Bytes hold integers of fewer bits, around the middle of their range; integers of a type of their own are themselves.
        let in_bytes = packed.data_type() == 2;
        let bits = if in_bytes { bits as u32 } else { width };
        let per_row = |count: usize| {
            let integers = count * if in_bytes && bits == 4 { 2 } else { 1 };
            Some(integers / extents[0].max(1)).filter(|row| row * extents[0] == integers)
        };
        let row_length = per_row(packed.len());
        let zeros = match self.stored(zero) {
            None => Some(Zeros::All(if in_bytes { 1 << (bits.clamp(1, 8) - 1) } else { 0 })),
            Some(zeros) if zeros.kind.is_float() => Self::floats(zeros)?.map(Zeros::Floats),
            Some(zeros) if zeros.data_type() == packed.data_type() => zeros
                .region()?
                .zip(per_row(zeros.len()))
                .map(|(region, row_length)| Zeros::Integers { region, row_length }),
            Some(_) => None,
        };
        let (Some(region), Some(row_length), Some(scales), Some(zeros)) =
            (packed.region()?, row_length, Self::floats(scales)?, zeros)
        else {
            return Ok(None);
        };
        let integers = Integers { bits, signed, row_length, block: [1, block], scales, zeros };
        Ok(Some((region, Encoding::Integers(integers), extents, Lying::OutputsFirst)))
    }

    /// The matrix that a `DequantizeLinear` gives: with one scale, one for each row or column, or one for each block of such.
    fn dequantised(&self) -> Result<Option<(Region, Encoding, [usize; 2])>, Error> {
        let (Some(x), Some(scales), false) = (self.stored(0), self.stored(1), self.is_computed(2)) else {
            return Ok(None);
        };
        let (Some((bits, signed)), &[rows, columns]) = (integers(x), x.shape.as_slice()) else { return Ok(None) };
        let number = |name: &str| self.node.integer(name).ok();
        let (Some(block), Some(axis)) = (number("block_size"), number("axis")) else { return Ok(None) };
        let block = match (usize::try_from(block), axis) {
            (Ok(0), _) if scales.len() == 1 => [rows.max(1), columns.max(1)],
            (Ok(0), 0 | -2) if scales.shape == [rows] => [1, columns.max(1)],
            (Ok(0), 1 | -1) if scales.shape == [columns] => [rows.max(1), 1],
            (Ok(block), 0 | -2) if block > 0 && scales.shape == [rows.div_ceil(block), columns] => [block, 1],
            (Ok(block), 1 | -1) if block > 0 && scales.shape == [rows, columns.div_ceil(block)] => [1, block],
            _ => return Ok(None),
        };
        let zeros = match self.stored(2) {
            None => Some(Zeros::All(0)),
            Some(zeros) if zeros.data_type() == x.data_type() && zeros.len() == scales.len() => {
                let row_length = columns.div_ceil(block[1]);
                zeros.region()?.map(|region| Zeros::Integers { region, row_length })
            }
            Some(_) => None,
        };
        let (Some(region), Some(scales), Some(zeros)) = (x.region()?, Self::floats(scales)?, zeros) else {
            return Ok(None);
        };
        let integers = Integers { bits, signed, row_length: columns, block, scales, zeros };
        Ok(Some((region, Encoding::Integers(integers), [rows, columns])))
    }
}
