//! Lowers the tensor stage to the slots stage: packs a decoder into ciphertexts of n slots.
//!
//! A [`Survey`] chooses the squarings of each softmax from calibration text in the tensor stage ([`calibrate`]). It prices
//! packings by a [`Sketch`], and [`Survey::lower`] makes a program with the entry points `decode` and `prefill` over the K
//! and V caches of all layers. It
//! 1. builds the program with exact functions in place of polynomials and runs calibration text through it, to see the
//!    range of every slot at every non-linear function, junk slots included,
//! 2. chooses polynomials and normalising constants on those ranges ([`plan`]) and builds the program again,
//! 3. runs calibration text through it once more, to check intervals and to record magnitudes.
//!
//! Layouts are described in [`shape`], linear layers in [`linear`], attention in [`decode`] and [`prefill`].

mod assumed;
mod builder;
mod calibrate;
mod checks;
mod counts;
mod decode;
mod derived;
mod entry;
mod linear;
mod plan;
mod prefill;
mod prefix;
mod reference;
mod roles;
mod shape;
mod softmax;
mod tables;
#[cfg(test)]
mod tests;

pub use counts::{Counts, counts};
pub use shape::Shape;

use std::fmt;

use cachemir_ir::expression::Vector;
use cachemir_ir::graph::OpId;
use cachemir_ir::program::{Entry, EntryKind, Placement, Program, State};
use cachemir_ir::slots::{Chebyshev, Fill, SlotOp, SlotType};
use cachemir_ir::table::Table;
use cachemir_ir::tensor::{Hyperparameters, TensorModel};

use crate::Error;
use crate::approximate::Target;
use crate::calibration::{Calibration, excerpt};
use crate::progress::{Observer, Pass};
use builder::layout;
use calibrate::TensorRanges;
use entry::SiteUse;
use plan::{Plan, SoftmaxPlan, Step};
use prefix::Prefix;
use roles::Roles;

/// A program of the slots stage.
pub type SlotProgram = Program<SlotOp, SlotType>;

/// Choices of a lowering.
#[derive(Clone, Debug, PartialEq)]
pub struct LowerOptions {
    /// Ranges seen in calibration are widened by this fraction.
    pub margin: f64,
    /// Ranges beyond those of text are widened by this fraction.
    pub further_margin: f64,
    /// Magnitudes of values are those seen times one plus this fraction.
    pub magnitude_margin: f64,
    /// Relative error of inverse square roots.
    pub norm_error: Target,
    /// By which fraction inverse square roots stay sane beyond all mean squares that were seen.
    pub sane_margin: f64,
    /// Error of exponentials, relative to the smallest sum of a row.
    pub exponential_error: Target,
    /// Relative error of the softmax's final reciprocal.
    pub softmax_error: f64,
    /// Relative error of rough reciprocals, which cancels.
    pub rough_error: f64,
    /// Absolute error of SiLU.
    pub silu_error: Target,
    /// Standard deviation of the error that encryption adds to a slot at each rescale; 0 leaves it out of account.
    pub rounding: f64,
    /// Largest ratio of row sums that a rough reciprocal has to cover; decides the number of squarings.
    pub rough_ratio: f64,
    /// Tokens of calibration text that are run through the slots stage, at most.
    pub calibration_tokens: usize,
}

impl Default for LowerOptions {
    fn default() -> Self {
        Self {
            margin: 0.3,
            further_margin: 0.1,
            magnitude_margin: 1.0,
            norm_error: Target { needed: 1e-3, wished: 3e-5 },
            sane_margin: 0.25,
            exponential_error: Target { needed: 1e-2, wished: 1e-4 },
            softmax_error: 1e-3,
            rough_error: 0.4,
            silu_error: Target { needed: 2e-3, wished: 1e-4 },
            rounding: 0.0,
            rough_ratio: 2000.0,
            calibration_tokens: 512,
        }
    }
}

/// A place whose range decides an approximation or a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Site {
    /// Mean square at a norm: two a layer and the last one.
    Norm {
        /// Number of the norm.
        index: usize,
    },
    /// Scaled scores.
    Scores {
        /// Layer.
        layer: usize,
    },
    /// Row sums ahead of a squaring.
    Sum {
        /// Layer.
        layer: usize,
        /// Squarings before it.
        stage: usize,
    },
    /// Row sums by which the mix is divided.
    Denominator {
        /// Layer.
        layer: usize,
    },
    /// The gate's entries.
    Gate {
        /// Layer.
        layer: usize,
    },
    /// The up-projection's entries.
    Up {
        /// Layer.
        layer: usize,
    },
}

impl Site {
    /// The same site where these layers are all that is left of so many.
    fn within(self, layers: &[usize], all: usize) -> Option<Self> {
        let place = |layer: usize| layers.iter().position(|&kept| kept == layer);
        Some(match self {
            Self::Norm { index } if index == 2 * all => Self::Norm { index: 2 * layers.len() },
            Self::Norm { index } => Self::Norm { index: 2 * place(index / 2)? + index % 2 },
            Self::Scores { layer } => Self::Scores { layer: place(layer)? },
            Self::Sum { layer, stage } => Self::Sum { layer: place(layer)?, stage },
            Self::Denominator { layer } => Self::Denominator { layer: place(layer)? },
            Self::Gate { layer } => Self::Gate { layer: place(layer)? },
            Self::Up { layer } => Self::Up { layer: place(layer)? },
        })
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Norm { index } => write!(f, "norm {index}"),
            Self::Scores { layer } => write!(f, "layer {layer} exponential"),
            Self::Sum { layer, stage } => write!(f, "layer {layer} rough reciprocal {stage}"),
            Self::Denominator { layer } => write!(f, "layer {layer} reciprocal"),
            Self::Gate { layer } => write!(f, "layer {layer} silu"),
            Self::Up { layer } => write!(f, "layer {layer} up"),
        }
    }
}

/// What a lowering did.
#[derive(Clone, Debug, PartialEq)]
pub struct LowerReport {
    /// Slots n.
    pub slots: usize,
    /// Tokens of a prefill.
    pub chunk: usize,
    /// Tokens in a ciphertext of the K cache.
    pub tokens_per_key_ciphertext: usize,
    /// Ciphertexts of a layer's V cache.
    pub value_ciphertexts: usize,
    /// Tokens of calibration text seen by the slots stage.
    pub calibration_tokens: usize,
    /// Approximations in the order of the decoder.
    pub approximations: Vec<cachemir_ir::plan::Approximation>,
    /// Deeper polynomials that would reach further.
    pub further: Vec<Further>,
}

impl LowerReport {
    /// √(h/m) of the last norm, whose polynomial is accurate on mean squares from m on and sane up to 2·h: how much longer
    /// than the shortest the residual stream may be that is packed for it.
    pub(crate) fn last_stretch(&self) -> f64 {
        // The last norm is the decoder's last approximation.
        self.approximations.last().map_or(1.0, |norm| (0.5 * norm.sane[1] / norm.accurate[0]).sqrt())
    }

    /// Reports the deeper polynomial instead of that of its site.
    pub(crate) fn replace(&mut self, further: &Further) {
        for known in self.approximations.iter_mut().filter(|known| known.site == further.reported.site) {
            *known = further.reported.clone();
        }
    }
}

/// A polynomial that is deeper than that of its site, and accurate on more.
#[derive(Clone, Debug, PartialEq)]
pub struct Further {
    /// The share of everyday prompts that it brings in.
    pub(crate) gained_prompts: f64,
    polynomial: Chebyshev,
    reported: cachemir_ir::plan::Approximation,
    /// By entry point: the polynomials of the site.
    ops: [Vec<OpId>; 2],
}

impl Further {
    /// By entry point: the ops that it changes.
    pub(crate) fn ops(&self) -> &[Vec<OpId>] {
        &self.ops
    }

    /// Puts the polynomial into a program.
    pub(crate) fn apply(&self, program: &mut SlotProgram) {
        for (entry, ops) in program.entries.iter_mut().zip(&self.ops) {
            for op in ops {
                if let SlotOp::Polynomial { polynomial, .. } = &mut entry.graph.nodes[op.index()].op {
                    polynomial.clone_from(&self.polynomial);
                }
            }
            for check in entry.checks.iter_mut().filter(|check| check.site == self.reported.site) {
                check.interval = self.reported.accurate;
            }
        }
    }
}

/// What is known of a model before it is packed, which is the same for any number of slots.
pub struct Survey<'m> {
    model: &'m TensorModel,
    roles: Roles,
    prefix: Prefix,
    /// Calibration text; nothing without the model's weights.
    text: &'m [Vec<u32>],
    seen: TensorRanges,
}

/// A packed program for prices alone: a few of a model's layers stand for all, and there are no weights.
pub struct Sketch {
    /// The program.
    pub program: SlotProgram,
    /// How many layers of the model one of its layers stands for.
    pub layers_per_layer: f64,
}

/// Layers of a [`Sketch`].
const SKETCHED_LAYERS: usize = 3;

impl<'m> Survey<'m> {
    /// Runs calibration text through the model. Without sequences, or without the model's weights, ranges are assumed. The
    /// observer sees [`Pass::ModelRanges`].
    pub fn new(
        model: &'m TensorModel,
        calibration: &'m Calibration,
        options: &LowerOptions,
        observer: &dyn Observer,
    ) -> Result<Self, Error> {
        let roles = Roles::new(model)?;
        let prefix = Prefix::new(model, &calibration.prefix)?;
        let calibrated = model.has_values() && calibration.sequences().any(|sequence| !sequence.is_empty());
        let (text, seen) = if calibrated {
            let seen = calibrate::tensor_ranges(model, &roles, calibration, options, observer)?;
            (calibration.text.as_slice(), seen)
        } else {
            (&[][..], TensorRanges::assumed(roles.layers.len()))
        };
        Ok(Self { model, roles, prefix, text, seen })
    }

    /// The packings that the model fits into, by their number of slots up to `most_slots`.
    pub fn shapes(&self, most_slots: usize) -> Result<Vec<Shape>, Error> {
        Shape::fitting(&self.model.hyperparameters, most_slots)
    }

    /// The first layer, one in the middle and the last one, packed in each of these ways, with polynomials for the ranges in
    /// the model.
    pub fn sketches(&self, shapes: &[Shape], options: &LowerOptions) -> Vec<Sketch> {
        let all = self.roles.layers.len();
        let mut layers: Vec<usize> = (0..SKETCHED_LAYERS).map(|k| k * (all - 1) / (SKETCHED_LAYERS - 1)).collect();
        layers.dedup();
        let model = Hyperparameters { layers: layers.len(), ..self.model.hyperparameters.clone() };
        let norms = layers.iter().flat_map(|layer| [2 * layer, 2 * layer + 1]).chain([2 * all]);
        let roles = Roles {
            norms: norms.map(|index| self.roles.norms[index].clone()).collect(),
            layers: layers.iter().map(|&layer| self.roles.layers[layer].clone()).collect(),
            head: self.roles.head.clone(),
        };
        let softmaxes: Vec<SoftmaxPlan> = layers.iter().map(|&layer| self.seen.softmaxes[layer].clone()).collect();
        let ranges = self.seen.ranges.iter();
        let ranges = ranges.filter_map(|(site, range)| Some((site.within(&layers, all)?, *range))).collect();
        let plan = Plan::new(&model, &roles, &softmaxes, &ranges, &[], options);
        let sketch = |shape: &Shape| {
            let shape = Shape { model: model.clone(), ..shape.clone() };
            let (program, _) = build(&shape, &roles, &plan, &Prefix::default(), Vec::new());
            Sketch { program, layers_per_layer: all as f64 / layers.len() as f64 }
        };
        shapes.iter().map(sketch).collect()
    }

    /// Packs the model. The observer sees the passes from [`Pass::SlotRanges`] to [`Pass::Magnitudes`], which are
    /// assumed without calibration text.
    pub fn lower(
        &self,
        shape: &Shape,
        options: &LowerOptions,
        observer: &dyn Observer,
    ) -> Result<(SlotProgram, LowerReport), Error> {
        let Self { model, roles, prefix, text, seen } = self;
        let context = model.hyperparameters.context;
        let sequences = excerpt(text, prefix.tokens.len(), context, options.calibration_tokens);
        let calibrated = !sequences.is_empty();
        let pack = |plan: &Plan| -> Result<_, Error> {
            Ok(build(shape, roles, plan, prefix, tables::tables(model, roles, plan)?))
        };
        let mut ranges = seen.ranges.clone();
        if calibrated {
            let (program, uses) = pack(&Plan::provisional(&model.hyperparameters, roles, &seen.softmaxes))?;
            ranges = calibrate::site_ranges(model, shape, &program, &uses, &sequences, ranges, observer)?;
            derived::add(model, roles, &seen.softmaxes, &mut ranges)?;
        }
        observer.begin(Pass::Approximate);
        let plan = Plan::new(&model.hyperparameters, roles, &seen.softmaxes, &ranges, &seen.everyday, options);
        if let Some(step) = plan.steps().into_iter().find(|step| step.approximation.error > step.tolerated) {
            return Err(imprecise(step, roles));
        }
        let (mut program, uses) = pack(&plan)?;
        if calibrated {
            calibrate::magnitudes(model, shape, &mut program, &sequences, options, observer).map_err(|error| {
                match error {
                    Error::Ir(cachemir_ir::Error::Execution(message)) => Error::Unsettled { message },
                    other => other,
                }
            })?;
        } else {
            assumed::magnitudes(&mut program, roles.layers.len());
        }
        let further = plan.further().map(|(step, gained_prompts)| Further {
            gained_prompts: *gained_prompts,
            polynomial: step.approximation.polynomial.clone(),
            reported: plan.describe(step),
            ops: uses
                .each_ref()
                .map(|uses| uses.iter().filter(|used| used.site == step.site).map(|used| used.op).collect()),
        });
        let report = LowerReport {
            slots: shape.slots,
            chunk: shape.chunk,
            tokens_per_key_ciphertext: shape.tokens(),
            value_ciphertexts: shape.blocks,
            calibration_tokens: sequences.iter().map(|sequence| sequence.len() - prefix.tokens.len()).sum(),
            approximations: plan.report(),
            further: further.collect(),
        };
        Ok((program, report))
    }
}

/// The error about a step that no polynomial is good enough for.
fn imprecise(step: &Step, roles: &Roles) -> Error {
    let origin = match step.site {
        Site::Norm { index } => &roles.norms[index].gamma.origin,
        Site::Scores { layer } | Site::Sum { layer, .. } | Site::Denominator { layer } => &roles.layers[layer].softmax,
        Site::Gate { layer } | Site::Up { layer } => &roles.layers[layer].silu,
    };
    Error::Imprecise {
        site: step.site.to_string(),
        node: origin.as_ref().map(|origin| origin.node.clone()).unwrap_or_default(),
        range: [-1.0, 1.0].map(|end| step.affine.argument(end)),
        degree: step.approximation.polynomial.degree(),
        error: step.approximation.error,
        tolerated: step.tolerated,
    }
}

/// Builds decode, and prefill where it takes several tokens; the sites are those of the two.
fn build(
    shape: &Shape,
    roles: &Roles,
    plan: &Plan,
    prefix: &Prefix,
    tables: Vec<Table>,
) -> (SlotProgram, [Vec<SiteUse>; 2]) {
    let decode = decode::decode(shape, roles, plan, 0);
    let mut entries = vec![Entry { kind: EntryKind::Decode, graph: decode.graph, checks: decode.checks }];
    let mut uses = [decode.uses, Vec::new()];
    // A prefill of one token is a decode step.
    if shape.chunk > 1 {
        let prefill = prefill::prefill(shape, roles, plan, decode.next_counter);
        let kind = EntryKind::Prefill { chunk: shape.chunk as u32 };
        entries.push(Entry { kind, graph: prefill.graph, checks: prefill.checks });
        uses[1] = prefill.uses;
    }
    let cache = layout(shape.tokens(), Fill::Tokens);
    let state = |name: String, capacity: usize, initial: Option<Vector>| State {
        name,
        capacity: capacity as u32,
        layout: cache,
        level: None,
        initial,
    };
    let states = (0..roles.layers.len())
        .flat_map(|layer| {
            let [keys, values] = prefix.initial(shape, layer, tables::prefix_table(roles, plan));
            [
                state(format!("layers.{layer}.k_cache"), shape.key_capacity(), keys),
                state(format!("layers.{layer}.v_cache"), shape.blocks, values),
            ]
        })
        .collect();
    let hidden = shape.model.hidden as u32;
    let stride = shape.stride() as u32;
    let program = Program {
        slots: shape.slots as u32,
        context: shape.model.context as u32,
        tables: tables.into_iter().chain(prefix.tables(shape, plan)).collect::<Vec<_>>().into(),
        states,
        prefix: prefix.tokens.clone(),
        entries,
        embedding: Placement { index_to_slot: (0..hidden).map(|index| index * stride).collect(), token_stride: 1 },
        inputs: entry::input_forms(roles, plan),
        logits: Placement { index_to_slot: logit_slots(shape), token_stride: 0 },
    };
    (program, uses)
}

/// Slot of each logit; slot s of the k-th output counts as k·n + s.
fn logit_slots(shape: &Shape) -> Vec<u32> {
    let vocabulary = shape.model.vocabulary;
    (0..vocabulary)
        .map(|token| {
            let part = token / shape.slots;
            let width = (vocabulary - part * shape.slots).min(shape.slots);
            let stride = shape.slots / width.next_power_of_two();
            (part * shape.slots + token % shape.slots * stride) as u32
        })
        .collect()
}
