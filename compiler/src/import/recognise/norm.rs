//! Root-mean-square norms, fused or written out, and products of several factors.

use super::diagnose::Part;
use super::{Recogniser, Signal, Stream, Value, same_entries};
use crate::Error;
use crate::import::evaluate::axis_index;
use crate::import::onnx::Name;

/// A norm: x ↦ γ ∘ x / sqrt(mean(x²) + ε).
#[derive(Clone, Debug, PartialEq)]
pub(in crate::import) struct Norm {
    pub(in crate::import) node: usize,
    /// The constant γ.
    pub(in crate::import) gamma: Name,
    pub(in crate::import) epsilon: f64,
}

/// A factor of a product.
#[derive(Clone, Debug)]
pub(super) enum Factor {
    Constant(Name),
    Signal(Signal),
    /// 1/sqrt of the signal.
    InverseRoot(Signal),
}

impl Factor {
    pub(super) fn signal(&self) -> Option<&Signal> {
        match self {
            Self::Signal(signal) => Some(signal),
            _ => None,
        }
    }
}

impl Recogniser<'_, '_> {
    /// The factors of a signal, down to operations that are not products.
    pub(super) fn factors(self, signal: &Signal) -> Result<Vec<Factor>, Error> {
        let mut factors = Vec::new();
        self.collect_factors(signal, &mut factors)?;
        Ok(factors)
    }

    fn collect_factors(self, signal: &Signal, factors: &mut Vec<Factor>) -> Result<(), Error> {
        let producer = self.specialised.producer(signal.base).filter(|_| signal.is_whole());
        let Some((node, _)) = producer else {
            factors.push(Factor::Signal(signal.clone()));
            return Ok(());
        };
        match self.node(node).op_type.as_str() {
            "Mul" => {
                self.collect_operand(node, 0, factors)?;
                self.collect_operand(node, 1, factors)
            }
            "Div" => {
                let one = matches!(self.operand(node, 0), Value::Constant(constant) if constant.scalar() == Some(1.0));
                if !one {
                    self.collect_operand(node, 0, factors)?;
                }
                self.inverse(node, 1, factors)
            }
            "Reciprocal" => self.inverse(node, 0, factors),
            "Pow" if matches!(self.operand(node, 1), Value::Constant(constant) if constant.scalar() == Some(-0.5)) => {
                factors.push(Factor::InverseRoot(self.signal(node, 0)?));
                Ok(())
            }
            _ => {
                factors.push(Factor::Signal(signal.clone()));
                Ok(())
            }
        }
    }

    fn collect_operand(self, node: usize, input: usize, factors: &mut Vec<Factor>) -> Result<(), Error> {
        match (self.operand(node, input), self.node(node).input(input)) {
            (Value::Signal(signal), _) => self.collect_factors(signal, factors),
            (_, Some(name)) => {
                factors.push(Factor::Constant(name));
                Ok(())
            }
            _ => Err(self.fail(node, "an operand is missing")),
        }
    }

    /// The inverse of an operand that is a square root.
    fn inverse(self, node: usize, input: usize, factors: &mut Vec<Factor>) -> Result<(), Error> {
        let signal = self.signal(node, input)?;
        let (root, _) = self.whole_node(&signal, node, "a square root")?;
        if self.node(root).op_type != "Sqrt" {
            return Err(self.fail(root, "expected the square root of a norm"));
        }
        factors.push(Factor::InverseRoot(self.signal(root, 0)?));
        Ok(())
    }

    /// The norm that a signal is the output of, and the stream that it reads.
    pub(super) fn norm(self, signal: &Signal, user: usize) -> Result<(Norm, Stream), Error> {
        let signal = &self.all_tokens(signal);
        let (node, output) = self.whole_node(signal, user, "a norm's output")?;
        let onnx = self.node(node);
        let epsilon = || onnx.float("epsilon").ok_or_else(|| self.fail(node, "it has no ε"));
        match (onnx.op_type.as_str(), output) {
            ("RMSNormalization" | "SimplifiedLayerNormalization", 0) => {
                let rank = self.operand(node, 0).shape().len();
                if onnx.integer("axis").and_then(|axis| axis_index(axis, rank)) != Ok(rank.saturating_sub(1)) {
                    return Err(self.fail(node, "the norm is not over the last axis"));
                }
                let norm = Norm { node, gamma: self.gamma(node, 1)?, epsilon: epsilon()? };
                Ok((norm, Stream::Value(self.all_tokens(&self.signal(node, 0)?))))
            }
            ("com.microsoft::SkipSimplifiedLayerNormalization", 0) => {
                Ok((Norm { node, gamma: self.gamma(node, 2)?, epsilon: epsilon()? }, Stream::Sum(node)))
            }
            ("Mul", _) => self.written_out_norm(node, signal),
            _ => Err(self.unexpected(Part::Other, node, "a root-mean-square norm")),
        }
    }

    fn gamma(self, node: usize, input: usize) -> Result<Name, Error> {
        match (self.operand(node, input), self.node(node).input(input)) {
            (Value::Constant(_) | Value::Parameter { .. }, Some(name)) => Ok(name),
            _ => Err(self.fail(node, "the norm's factors are not constant")),
        }
    }

    /// γ, x and 1/sqrt(mean(x²) + ε) multiplied in any order.
    fn written_out_norm(self, node: usize, signal: &Signal) -> Result<(Norm, Stream), Error> {
        let unexpected =
            || self.unexpected(Part::Other, node, "a root-mean-square norm: factors times the input over a root");
        let (mut gamma, mut x, mut under) = (None, None, None);
        for factor in self.factors(signal)? {
            let taken = match factor {
                Factor::Constant(name) => gamma.replace(name).is_some(),
                Factor::Signal(signal) => x.replace(signal).is_some(),
                Factor::InverseRoot(signal) => under.replace(signal).is_some(),
            };
            if taken {
                return Err(unexpected());
            }
        }
        let (Some(gamma), Some(x), Some(under)) = (gamma, x, under) else {
            return Err(unexpected());
        };
        let (sum, _) = self.whole_node(&under, node, "a mean square and ε")?;
        let constant = |input: usize| match self.operand(sum, input) {
            Value::Constant(constant) => constant.scalar(),
            _ => None,
        };
        let (epsilon, mean) = match (self.node(sum).op_type.as_str(), constant(0), constant(1)) {
            ("Add", None, Some(epsilon)) => (epsilon, self.signal(sum, 0)?),
            ("Add", Some(epsilon), None) => (epsilon, self.signal(sum, 1)?),
            _ => return Err(self.fail(sum, "expected a mean square plus ε")),
        };
        let (mean, _) = self.whole_node(&mean, sum, "a mean square")?;
        let operand = self.signal(mean, 0)?;
        let averages = operand.len().checked_div(self.mean_len(mean)) == operand.shape.last().copied();
        if self.node(mean).op_type != "ReduceMean" || !averages {
            return Err(self.fail(mean, "expected a mean over the last axis"));
        }
        let (square, _) = self.whole_node(&operand, mean, "a square")?;
        let of_x =
            |input: usize| matches!(self.operand(square, input), Value::Signal(signal) if same_entries(signal, &x));
        let squared = match self.node(square).op_type.as_str() {
            "Pow" => {
                of_x(0) && matches!(self.operand(square, 1), Value::Constant(power) if power.scalar() == Some(2.0))
            }
            "Mul" => of_x(0) && of_x(1),
            _ => false,
        };
        if !squared {
            return Err(self.fail(square, "expected the square of the norm's input"));
        }
        Ok((Norm { node, gamma, epsilon }, Stream::Value(self.all_tokens(&x))))
    }

    /// Entries of a node's first output.
    fn mean_len(self, node: usize) -> usize {
        let output = self.node(node).outputs.first().copied().flatten();
        output.map_or(0, |name| self.specialised.value(name).shape().iter().product())
    }
}
