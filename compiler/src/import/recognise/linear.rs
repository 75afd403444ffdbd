//! Linear layers: a product with a constant matrix, in the forms that exporters write it.

use super::diagnose::Part;
use super::order::{Order, order_of_operand};
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

/// What is added to a linear layer's outputs.
#[derive(Clone, Debug, PartialEq)]
struct Bias {
    /// The constant: an entry for each row of the stored matrix, or a single one.
    name: Name,
    /// Entries that are used, in order; `None` for all.
    rows: Option<Vec<usize>>,
    scale: f64,
}

/// A linear layer, or some of its rows: scale·W·x + Σ biases.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::import) struct Linear {
    pub(in crate::import) node: usize,
    /// The constant that holds the matrix.
    pub(in crate::import) weight: Name,
    pub(in crate::import) orientation: Orientation,
    pub(in crate::import) inputs: usize,
    /// Outputs of the stored matrix.
    pub(super) stored_outputs: usize,
    /// Outputs that are used, in order; `None` for all.
    pub(super) rows: Option<Vec<usize>>,
    /// Factor of the matrix.
    pub(super) scale: f64,
    biases: Vec<Bias>,
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

    /// Multiplies the outputs by a factor.
    pub(in crate::import) fn scale_by(&mut self, factor: f64) {
        self.scale *= factor;
        self.biases.iter_mut().for_each(|bias| bias.scale *= factor);
    }

    /// Adds a constant with an entry for each output.
    pub(super) fn add_bias(&mut self, name: Name) {
        self.biases.push(Bias { name, rows: None, scale: 1.0 });
    }

    pub(in crate::import) fn has_bias(&self) -> bool {
        !self.biases.is_empty()
    }

    /// The weights as `[out, in]`, row-major, with their factor.
    pub(super) fn values(&self, specialised: &Specialised<'_>) -> Result<Vec<f32>, Error> {
        let stored = match self.orientation {
            Orientation::Quantised { bits, block, first, scales, zero } => {
                self.dequantised(specialised, (bits, block), [first, scales, zero])?
            }
            _ => specialised.resolve(self.weight)?,
        };
        let mut values = stored.into_f32();
        let (inputs, outputs) = (self.inputs, self.stored_outputs);
        if values.len() != inputs * outputs {
            return Err(specialised.not_llama(self.node, "the weight has another size than its shape says"));
        }
        if self.scale != 1.0 {
            for value in &mut values {
                *value = (f64::from(*value) * self.scale) as f32;
            }
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

    /// The sum of the biases, `[out]`, if there are any.
    pub(in crate::import) fn bias_values(&self, specialised: &Specialised<'_>) -> Result<Option<Vec<f32>>, Error> {
        let mut sums = vec![0.0; self.outputs()];
        for Bias { name, rows, scale } in &self.biases {
            let values = specialised.resolve(*name)?.to_f64();
            for (output, sum) in sums.iter_mut().enumerate() {
                let row = rows.as_ref().map_or(output, |rows| rows[output]);
                let value = if values.len() == 1 { values.first() } else { values.get(row) };
                let value = value.ok_or_else(|| specialised.not_llama(self.node, "its bias has too few entries"))?;
                *sum += scale * value;
            }
        }
        let sums = sums.into_iter().map(|sum| sum as f32);
        Ok((!self.biases.is_empty()).then(|| sums.collect()))
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
    /// Whether a signal is the output of a linear layer, with or without a bias.
    pub(super) fn is_layer(self, signal: &Signal) -> bool {
        self.specialised.producer(signal.base).is_some_and(|(node, _)| {
            is_linear(&self.node(node).op_type) && self.is_constant(node, 1)
                || self.biased(node).is_some_and(|(inner, _)| self.is_layer(&inner))
        })
    }

    fn is_constant(self, node: usize, input: usize) -> bool {
        matches!(self.operand(node, input), Value::Constant(_) | Value::Parameter { .. })
            // Quantised weights are several operands.
            && self.node(node).input(input).is_some()
    }

    /// What a sum adds a constant to, and which operand that is.
    fn biased(self, node: usize) -> Option<(Signal, usize)> {
        if self.node(node).op_type != "Add" {
            return None;
        }
        match (self.operand(node, 0), self.operand(node, 1)) {
            (Value::Signal(signal), Value::Constant(_) | Value::Parameter { .. }) => Some((signal.clone(), 1)),
            (Value::Constant(_) | Value::Parameter { .. }, Value::Signal(signal)) => Some((signal.clone(), 0)),
            _ => None,
        }
    }

    /// The linear layer that a signal, or some features of it in this order, is the output of, and the layer's input;
    /// `user` reads it.
    pub(super) fn linear(
        self,
        signal: &Signal,
        order: Order,
        user: usize,
        expected: &str,
    ) -> Result<(Linear, Signal), Error> {
        let (node, _) = self.base_node(signal, user, expected)?;
        let onnx = self.node(node);
        if let Some((inner, bias)) = self.biased(node).filter(|(inner, _)| self.is_layer(inner)) {
            let misfit = || self.fail(node, format!("expected {expected}: it adds a constant that is no bias"));
            let name = onnx.input(bias).ok_or_else(misfit)?;
            let constant = self.operand(node, bias).shape();
            let single = constant.iter().product::<usize>() == 1;
            let inner_order = match order_of_operand(constant, &inner.shape, self.tokens(), false, None) {
                Some(found) => found,
                None if single => Order::Tokens,
                None => return Err(misfit()),
            };
            let features = self.features(signal, order, inner_order).ok_or_else(|| self.mixed(node, expected))?;
            let (mut linear, input) = self.linear(&inner, inner_order, node, expected)?;
            linear.rows = features.of(linear.rows.as_ref());
            for known in &mut linear.biases {
                known.rows = features.of(known.rows.as_ref());
            }
            linear.biases.push(Bias { name, rows: features.of(None), scale: 1.0 });
            linear.scale_by(signal.scale);
            return Ok((linear, input));
        }
        if !is_linear(&onnx.op_type) {
            return Err(self.unexpected(Part::Other, node, expected));
        }
        let flag = |name: &str| onnx.flag(name);
        if flag("transA") || flag("transBatchA") || flag("transBatchB") {
            return Err(self.fail(node, format!("expected {expected}, not a transposed input")));
        }
        // Operations without it have no factor.
        let number = |name: &str| onnx.float(name).unwrap_or(1.0);
        let bias = match onnx.op_type.as_str() {
            "Gemm" => onnx.input(2).map(|name| (2, name, number("beta"))),
            "com.microsoft::MatMulNBits" => onnx.input(5).map(|name| (5, name, 1.0)),
            _ => None,
        };
        let extent = |name: &str| onnx.extent(name).map_err(|message| self.fail(node, message));
        let weight = onnx.input(1).ok_or_else(|| self.fail(node, "it has no weight"))?;
        let (orientation, inputs, stored_outputs) = if onnx.op_type == "com.microsoft::MatMulNBits" {
            if onnx.input(4).is_some() {
                return Err(self.fail(node, "weights in a permuted order (g_idx) are not supported"));
            }
            let orientation = Orientation::Quantised {
                bits: extent("bits")?,
                block: extent("block_size")?,
                first: 1,
                scales: 2,
                zero: 3,
            };
            (orientation, extent("K")?, extent("N")?)
        } else {
            if !self.is_constant(node, 1) {
                return Err(self.fail(node, format!("expected {expected}: a product with a constant matrix")));
            }
            match *self.operand(node, 1).shape() {
                [outputs, inputs] if flag("transB") => (Orientation::OutputsFirst, inputs, outputs),
                [inputs, outputs] => (Orientation::InputsFirst, inputs, outputs),
                _ => return Err(self.fail(node, format!("expected {expected}: a product with one matrix"))),
            }
        };
        let mut input = self.signal(node, 0)?;
        let tokens = input.len().checked_div(inputs).unwrap_or(0);
        if tokens == 0 || tokens * inputs != input.len() || tokens * stored_outputs != signal.base_len {
            return Err(self.fail(node, format!("its input has {} entries instead of {inputs}", input.len())));
        }
        let mut biases = Vec::new();
        if let Some((index, name, scale)) = bias {
            let shape = self.operand(node, index).shape();
            let length: usize = shape.iter().product();
            let fits = length == 1 || (length == stored_outputs && shape.last() == Some(&length));
            if !fits || !self.is_constant(node, index) {
                return Err(self.fail(node, format!("expected {expected} with a bias of {stored_outputs} entries")));
            }
            biases.push(Bias { name, rows: None, scale });
        }
        let features = super::order::features(signal, tokens, order, Order::Tokens);
        let features = features.ok_or_else(|| self.mixed(node, expected))?;
        for bias in &mut biases {
            bias.rows = features.of(None);
        }
        let scale = number("alpha") * input.scale;
        input.scale = 1.0;
        let rows = features.of(None);
        let mut linear = Linear { node, weight, orientation, inputs, stored_outputs, rows, scale, biases };
        linear.scale_by(signal.scale);
        Ok((linear, input))
    }

    /// An error for a linear layer whose outputs are not read token by token.
    fn mixed(self, node: usize, expected: &str) -> Error {
        self.fail(node, format!("expected {expected}, with the same outputs for each token and none of them negated"))
    }

    /// The matrix `[vocabulary, hidden]` that an embedding looks rows up in.
    pub(super) fn embedding_weight(self, node: usize, signal: &Signal, quantised: bool) -> Result<Linear, Error> {
        let onnx = self.node(node);
        let weight = onnx.input(0).ok_or_else(|| self.fail(node, "it has no weight"))?;
        let hidden = signal.len() / self.tokens().max(1);
        let stored_outputs = match self.operand(node, 0).shape() {
            [rows, columns] if quantised || *columns == hidden => *rows,
            shape => return Err(self.fail(node, format!("an embedding of shape {shape:?} gives {hidden} entries"))),
        };
        let orientation = if quantised {
            let extent = |name: &str| onnx.extent(name).map_err(|message| self.fail(node, message));
            if onnx.int("quantize_axis") != Some(1) {
                return Err(self.fail(node, "embeddings quantised along the vocabulary are not supported"));
            }
            Orientation::Quantised { bits: extent("bits")?, block: extent("block_size")?, first: 0, scales: 2, zero: 3 }
        } else {
            Orientation::OutputsFirst
        };
        let scale = signal.scale;
        let (rows, biases) = (None, Vec::new());
        Ok(Linear { node, weight, orientation, inputs: hidden, stored_outputs, rows, scale, biases })
    }
}
