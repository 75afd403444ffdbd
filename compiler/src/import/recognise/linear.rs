//! Linear layers: a product with a constant matrix, in the forms that exporters write it.

use super::{Recogniser, Signal, Value};
use crate::Error;
use crate::import::dense::Dense;
use crate::import::evaluate::dequantise;
use crate::import::onnx::Name;
use crate::import::specialise::Specialised;

/// How a stored matrix lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::import) enum Orientation {
    /// `[in, out]`
    InputsFirst,
    /// `[out, in]`
    OutputsFirst,
    /// Blocks of integers with scales, `[out, in]`, as inputs `first`, `first + 1` and optionally `zero` of the node.
    Quantised { bits: usize, block: usize, first: usize, scales: usize, zero: usize },
}

/// A linear layer, or some of its rows.
#[derive(Clone, Debug)]
pub(in crate::import) struct Linear {
    pub(in crate::import) node: usize,
    /// The constant that holds the matrix.
    pub(in crate::import) weight: Name,
    pub(in crate::import) orientation: Orientation,
    pub(in crate::import) inputs: usize,
    /// Outputs of the stored matrix.
    stored_outputs: usize,
    /// Outputs that are used, in order; `None` for all.
    rows: Option<Vec<usize>>,
    /// The layer's input.
    pub(in crate::import) input: Signal,
    /// Factor of the outputs.
    pub(in crate::import) scale: f64,
}

/// Whether an operation can be a linear layer.
pub(super) fn is_linear(op_type: &str) -> bool {
    matches!(op_type, "MatMul" | "Gemm" | "com.microsoft::FusedMatMul" | "com.microsoft::MatMulNBits")
}

impl Linear {
    /// Number of outputs that are used.
    pub(in crate::import) fn outputs(&self) -> usize {
        self.rows.as_ref().map_or(self.stored_outputs, Vec::len)
    }

    /// The weights as `[out, in]`, row-major.
    pub(in crate::import) fn values(&self, specialised: &Specialised<'_>) -> Result<Vec<f32>, Error> {
        let stored = match self.orientation {
            Orientation::Quantised { bits, block, first, scales, zero } => {
                self.dequantised(specialised, (bits, block), [first, scales, zero])?
            }
            _ => specialised.resolve(self.weight)?,
        };
        let values = stored.into_f32();
        let (inputs, outputs) = (self.inputs, self.stored_outputs);
        if values.len() != inputs * outputs {
            return Err(specialised.not_llama(self.node, "the weight has another size than its shape says"));
        }
        let transposed = self.orientation == Orientation::InputsFirst;
        if !transposed && self.rows.is_none() {
            return Ok(values);
        }
        let mut result = Vec::with_capacity(self.outputs() * inputs);
        for row in 0..self.outputs() {
            let row = self.rows.as_ref().map_or(row, |rows| rows[row]);
            if transposed {
                result.extend(values[row..].iter().step_by(outputs).take(inputs));
            } else {
                result.extend_from_slice(&values[row * inputs..(row + 1) * inputs]);
            }
        }
        Ok(result)
    }

    fn dequantised(
        &self,
        specialised: &Specialised<'_>,
        format: (usize, usize),
        [first, scales, zero]: [usize; 3],
    ) -> Result<Dense, Error> {
        let node = &specialised.graph.nodes[self.node];
        let read = |index: usize| node.input(index).map(|name| specialised.resolve(name)).transpose();
        let (Some(packed), Some(scales)) = (read(first)?, read(scales)?) else {
            return Err(specialised.not_llama(self.node, "quantised weights or their scales are missing"));
        };
        let zero_points = read(zero)?;
        dequantise(&packed, &scales, zero_points.as_ref(), [self.stored_outputs, self.inputs], format)
            .map_err(|message| specialised.not_llama(self.node, message))
    }
}

impl Recogniser<'_, '_> {
    /// The linear layer that a signal is the output of, or some outputs of; `user` reads it.
    pub(super) fn linear(self, signal: &Signal, user: usize, expected: &str) -> Result<Linear, Error> {
        let (node, _) = self.base_node(signal, user, expected)?;
        let onnx = self.node(node);
        if !is_linear(&onnx.op_type) {
            return Err(self.fail(node, format!("expected {expected}: a linear layer without bias")));
        }
        let flag = |name: &str| onnx.int(name).unwrap_or(0) != 0;
        if flag("transA") || flag("transBatchA") || flag("transBatchB") {
            return Err(self.fail(node, format!("expected {expected}, not a transposed input")));
        }
        let bias = match onnx.op_type.as_str() {
            "Gemm" => onnx.input(2),
            "com.microsoft::MatMulNBits" => onnx.input(5),
            _ => None,
        };
        if bias.is_some() {
            return Err(self.fail(node, format!("expected {expected} without bias")));
        }
        let extent = |name: &str| onnx.int(name).and_then(|value| usize::try_from(value).ok()).unwrap_or(0);
        let weight = onnx.input(1).ok_or_else(|| self.fail(node, "it has no weight"))?;
        let (orientation, inputs, stored_outputs) = if onnx.op_type == "com.microsoft::MatMulNBits" {
            if onnx.input(4).is_some() {
                return Err(self.fail(node, "weights in a permuted order (g_idx) are not supported"));
            }
            let orientation = Orientation::Quantised {
                bits: extent("bits"),
                block: extent("block_size"),
                first: 1,
                scales: 2,
                zero: 3,
            };
            (orientation, extent("K"), extent("N"))
        } else {
            match self.operand(node, 1) {
                Value::Constant(_) | Value::Parameter { .. } => {}
                _ => return Err(self.fail(node, format!("expected {expected}: a product with a constant matrix"))),
            }
            match *self.operand(node, 1).shape() {
                [outputs, inputs] if flag("transB") => (Orientation::OutputsFirst, inputs, outputs),
                [inputs, outputs] => (Orientation::InputsFirst, inputs, outputs),
                _ => return Err(self.fail(node, format!("expected {expected}: a product with one matrix"))),
            }
        };
        let input = self.signal(node, 0)?;
        if input.len() != inputs {
            return Err(self.fail(node, format!("its input has {} entries instead of {inputs}", input.len())));
        }
        let rows = match signal.map.as_deref() {
            None => None,
            Some(map) => {
                let rows = map.iter().map(|&index| usize::try_from(index - 1).ok()).collect::<Option<Vec<_>>>();
                Some(rows.ok_or_else(|| self.fail(node, "some of its outputs are negated"))?)
            }
        };
        let alpha = f64::from(onnx.float("alpha").unwrap_or(1.0));
        let scale = signal.scale * alpha;
        Ok(Linear { node, weight, orientation, inputs, stored_outputs, rows, input, scale })
    }

    /// The matrix `[vocabulary, hidden]` that an embedding looks rows up in.
    pub(super) fn embedding_weight(self, node: usize, signal: &Signal, quantised: bool) -> Result<Linear, Error> {
        let onnx = self.node(node);
        let weight = onnx.input(0).ok_or_else(|| self.fail(node, "it has no weight"))?;
        let hidden = signal.len();
        let stored_outputs = match self.operand(node, 0).shape() {
            [rows, columns] if quantised || *columns == hidden => *rows,
            shape => return Err(self.fail(node, format!("an embedding of shape {shape:?} gives {hidden} entries"))),
        };
        let orientation = if quantised {
            let extent = |name: &str, or: i64| usize::try_from(onnx.int(name).unwrap_or(or)).unwrap_or(0);
            if onnx.int("quantize_axis").unwrap_or(1) != 1 {
                return Err(self.fail(node, "embeddings quantised along the vocabulary are not supported"));
            }
            Orientation::Quantised {
                bits: extent("bits", 4),
                block: extent("block_size", 128),
                first: 0,
                scales: 2,
                zero: 3,
            }
        } else {
            Orientation::OutputsFirst
        };
        let input = signal.clone();
        Ok(Linear { node, weight, orientation, inputs: hidden, stored_outputs, rows: None, input, scale: 1.0 })
    }
}
