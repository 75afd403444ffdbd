//! The mask of an attention: which tokens each new token sees.

use super::diagnose::Part;
use super::{Recogniser, Value};
use crate::Error;
use crate::import::dense::{Dense, Kind};
use crate::import::evaluate::{cast_kind, is_view};
use crate::import::onnx::Name;
use crate::import::specialise::{Sizes, Specialised};

/// What an additive mask has at most where it hides a token: the exponential of it is 0 in every float.
const HIDES: f64 = -9.9e3;

/// A step that hides tokens from new ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::import) enum MaskStep {
    /// A constant is added to the scores, times a factor.
    Added { node: usize, mask: Name, factor: f64 },
    /// Scores are kept where a condition holds, or where it does not.
    Kept { node: usize, condition: Name, where_true: bool },
    /// New token t sees tokens 0 to t, whatever is in the cache.
    UpperLeft { node: usize },
    /// The token itself and those ahead of it; with a window only the last so many.
    Causal { node: usize, window: Option<usize> },
}

impl MaskStep {
    /// The node that does the step.
    pub(in crate::import) fn node(self) -> usize {
        match self {
            Self::Added { node, .. }
            | Self::Kept { node, .. }
            | Self::UpperLeft { node }
            | Self::Causal { node, .. } => node,
        }
    }
}

/// Scores ahead of a softmax.
pub(super) struct Scores {
    /// The product of queries and keys.
    pub(super) product: usize,
    /// Factor of the product.
    pub(super) scale: f64,
    pub(super) masks: Vec<MaskStep>,
}

impl Recogniser<'_, '_> {
    /// From a softmax back to the product of queries and keys.
    pub(super) fn scores(self, softmax: usize) -> Result<Scores, Error> {
        let mut found = Scores { product: softmax, scale: 1.0, masks: Vec::new() };
        let mut at = (softmax, 0);
        loop {
            let (user, input) = at;
            let name = self.node(user).input(input).ok_or_else(|| self.fail(user, "an operand is missing"))?;
            if matches!(self.specialised.value(name), Value::Signal(signal) if signal.map.is_some()) {
                return Err(self.fail(user, "attention scores are rearranged"));
            }
            let Some((node, _)) = self.specialised.producer(name) else {
                return Err(self.fail(user, "it reads an input of the graph instead of attention scores"));
            };
            let onnx = self.node(node);
            let constant = |input: usize| match self.operand(node, input) {
                Value::Constant(constant) => Some(constant),
                _ => None,
            };
            let factor = |input: usize| constant(input).and_then(|constant| constant.factor());
            let name = |input: usize| onnx.input(input).ok_or_else(|| self.fail(node, "an operand is missing"));
            let masked_after = found.scale;
            at = match onnx.op_type.as_str() {
                "MatMul" | "com.microsoft::FusedMatMul" => {
                    found.product = node;
                    return Ok(found);
                }
                "Mul" | "Div" if factor(1).is_some() => {
                    let factor = factor(1).unwrap_or(1.0);
                    found.scale *= if onnx.op_type == "Mul" { factor } else { 1.0 / factor };
                    (node, 0)
                }
                "Mul" if factor(0).is_some() => {
                    found.scale *= factor(0).unwrap_or(1.0);
                    (node, 1)
                }
                "Add" | "Sub" if constant(1).is_some() => {
                    let factor = if onnx.op_type == "Sub" { -masked_after } else { masked_after };
                    found.masks.push(MaskStep::Added { node, mask: name(1)?, factor });
                    (node, 0)
                }
                "Add" if constant(0).is_some() => {
                    found.masks.push(MaskStep::Added { node, mask: name(0)?, factor: masked_after });
                    (node, 1)
                }
                "Where" if constant(0).is_some() => {
                    let hides = |input: usize| {
                        let all = |constant: &Dense| constant.to_f64().iter().all(|&x| x * masked_after <= HIDES);
                        constant(input).is_some_and(|constant| all(constant))
                    };
                    let (kept, where_true) = match (hides(1), hides(2)) {
                        (true, false) => (2, false),
                        (false, true) => (1, true),
                        _ => return Err(self.fail(node, "expected a mask that hides tokens from attention")),
                    };
                    found.masks.push(MaskStep::Kept { node, condition: name(0)?, where_true });
                    (node, kept)
                }
                view if is_view(view) => (node, 0),
                // Between floats of different widths; a cast to integers would round.
                "Cast" if cast_kind(onnx).is_ok_and(Kind::is_float) => (node, 0),
                _ => {
                    return Err(self.unexpected(
                        Part::Other,
                        node,
                        "attention scores with a scale and a constant mask",
                    ));
                }
            };
        }
    }
}

/// What a mask does that a causal one does not.
enum Fault {
    Bias(f64),
    Future,
    /// So many tokens are visible; a context of `fits` tokens has none that are not.
    Window {
        visible: usize,
        fits: usize,
    },
    Past,
}

/// Checks that all past tokens and the new one itself are visible, and future ones hidden. A refusal
/// compares what is visible with the context that was asked for.
pub(in crate::import) fn check(
    specialised: &Specialised<'_>,
    masks: &[MaskStep],
    attention: usize,
    asked: usize,
) -> Result<(), Error> {
    let Sizes { past, sequence } = specialised.sizes;
    let total = past + sequence;
    let mut hidden = vec![false; sequence * total];
    let mut last = attention;
    for &step in masks {
        let node = match step {
            MaskStep::Added { node, mask, factor } => {
                let mask = specialised.resolve(mask)?;
                let fault = by_entry(&mask, (sequence, total), |index, entry| {
                    let entry = entry * factor;
                    if entry <= HIDES {
                        hidden[index] = true;
                    } else if entry != 0.0 {
                        return Some(Fault::Bias(entry));
                    }
                    None
                });
                if let Some(fault) = fault.map_err(|message| specialised.not_llama(node, message))? {
                    return Err(refusal(specialised, node, &fault, asked));
                }
                node
            }
            MaskStep::Kept { node, condition, where_true } => {
                let condition = specialised.resolve(condition)?;
                by_entry(&condition, (sequence, total), |index, entry| {
                    hidden[index] |= (entry != 0.0) != where_true;
                    None
                })
                .map_err(|message| specialised.not_llama(node, message))?;
                node
            }
            MaskStep::UpperLeft { node } => {
                (0..sequence * total).for_each(|index| hidden[index] |= index % total > index / total);
                node
            }
            MaskStep::Causal { node, window } => {
                for (index, hidden) in hidden.iter_mut().enumerate() {
                    let (row, column) = (past + index / total, index % total);
                    *hidden |= column > row || window.is_some_and(|window| column + window <= row);
                }
                node
            }
        };
        last = node;
    }
    for (row, hidden) in hidden.chunks_exact(total.max(1)).enumerate() {
        let own = past + row;
        if hidden[own + 1..].iter().any(|&hidden| !hidden) {
            return Err(refusal(specialised, last, &Fault::Future, asked));
        }
        let Some(latest) = hidden[..=own].iter().rposition(|&hidden| hidden) else { continue };
        let visible = own - latest;
        let fault = if visible > 0 && hidden[..latest].iter().all(|&hidden| hidden) {
            Fault::Window { visible, fits: if row > 0 { own } else { visible } }
        } else {
            Fault::Past
        };
        return Err(refusal(specialised, last, &fault, asked));
    }
    Ok(())
}

/// Visits the entries of a mask that is broadcast to `[…, rows, columns]`, with their place in the latter; stops at the
/// first fault.
fn by_entry(
    mask: &Dense,
    (rows, columns): (usize, usize),
    mut visit: impl FnMut(usize, f64) -> Option<Fault>,
) -> Result<Option<Fault>, String> {
    let (height, width) = match mask.shape.as_slice() {
        [] => (1, 1),
        [width] => (1, *width),
        [.., height, width] => (*height, *width),
    };
    if (height != 1 && !height.is_multiple_of(rows)) || (width != 1 && width != columns) {
        return Err(format!("a mask of shape {:?} does not fit {rows} new tokens of {columns}", mask.shape));
    }
    for (index, entry) in mask.to_f64().into_iter().enumerate() {
        let (row, column) = (index / width % height, index % width);
        let row_range = if height == 1 { 0..rows } else { row % rows..row % rows + 1 };
        for row in row_range {
            let column_range = if width == 1 { 0..columns } else { column..column + 1 };
            for column in column_range {
                if let Some(fault) = visit(row * columns + column, entry) {
                    return Ok(Some(fault));
                }
            }
        }
    }
    Ok(None)
}

fn refusal(specialised: &Specialised<'_>, node: usize, fault: &Fault, asked: usize) -> Error {
    let message = match fault {
        Fault::Bias(entry) => format!(
            "it adds {entry} to scores by the tokens' positions (as ALiBi does), which is not supported; a mask adds 0 or a \
             large negative number"
        ),
        Fault::Future => "the causal mask is missing: a token sees those that follow it, as in an encoder".to_owned(),
        Fault::Window { visible, fits } if visible < fits => format!(
            "a mask in chunks of {fits} tokens, shorter than the context of {asked}, is not supported; with --context \
             {fits} no token is out of the first chunk"
        ),
        Fault::Window { visible, .. } => format!(
            "a sliding window of {visible} tokens (or a mask in chunks), shorter than the context of {asked}, is not \
             supported; with --context {visible} no token is out of it"
        ),
        Fault::Past => format!("the mask hides past tokens within a context of {asked}, which is not supported"),
    };
    specialised.not_llama(node, message)
}
