//! Which slots of which output show the client the arguments of approximations.
//!
//! Mean squares of norms and row sums of softmaxes have copies in many slots of their ciphertexts, so one copy of each,
//! from a place of its own, is enough, and all of them share few outputs:
//! - norm number i shows the copy at position i mod P of the residual stream's P positions, in output i div P;
//! - softmax sums show the copies in the lanes that are left of the last of these outputs, g lanes a site (see
//!   [`super::shape`]), and in further outputs.

use cachemir_ir::expression::Integer;
use cachemir_ir::graph::ValueId;
use cachemir_ir::program::{Placement, RangeCheck};

use super::builder::Builder;
use super::plan::{Plan, Step};
use super::shape::Shape;

/// Where the sums of a softmax's rows lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SumPlaces {
    /// Member l mod g in lane l, in the first slot of each head.
    Lanes,
    /// Each member in its own place of each head, token by token, alike in all lanes that are multiples of g.
    Places,
}

/// Which sums of which softmax, and where they lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sums {
    /// The layer.
    pub(super) layer: usize,
    /// Squarings before them.
    pub(super) stage: usize,
    /// Where the rows lie.
    pub(super) places: SumPlaces,
}

/// The outputs that show arguments, and what the client finds there.
#[derive(Debug)]
pub(super) struct Checks {
    /// Most tokens of a call.
    unit: usize,
    /// What each output is the sum of.
    parts: Vec<Vec<ValueId>>,
    found: Vec<RangeCheck>,
}

impl Checks {
    /// No checks yet, for calls of up to `unit` tokens.
    pub(super) fn new(unit: usize) -> Self {
        Self { unit, parts: Vec::new(), found: Vec::new() }
    }

    /// The mean square at a norm, in every position of the stream.
    pub(super) fn norm(&mut self, builder: &mut Builder, shape: &Shape, step: &Step, index: usize, argument: ValueId) {
        let (output, position) = ((index - 1) / shape.hidden, (index - 1) % shape.hidden);
        let stride = shape.stride();
        let condition = (Integer::slot() / stride).equal(position).and((Integer::slot() % stride).less(self.unit));
        self.show(builder, shape, step, argument, output, condition, vec![position * stride]);
    }

    /// The row sums ahead of a squaring of a layer's softmax, or those that it is divided by.
    pub(super) fn sums(
        &mut self,
        builder: &mut Builder,
        shape: &Shape,
        plan: &Plan,
        sums: Sums,
        step: &Step,
        argument: ValueId,
    ) {
        let Sums { layer, stage, places } = sums;
        let (tokens, place, lane_slots, group) = (shape.tokens(), shape.query_stride(), shape.lane(), shape.group);
        let norms = 2 * plan.layers.len();
        let norm_outputs = norms.div_ceil(shape.hidden);
        let last_norms = norms - (norm_outputs - 1) * shape.hidden;
        let taken = (last_norms * shape.stride()).div_ceil(lane_slots).next_multiple_of(group);
        let before: usize = plan.layers[..layer].iter().map(|layer| layer.softmax.exponents.len()).sum();
        let place_of = taken + (before + stage) * group;
        let (output, lane) = (norm_outputs - 1 + place_of / shape.head_dim, place_of % shape.head_dim);
        let inner = Integer::slot() % tokens;
        let condition = match places {
            SumPlaces::Lanes => (shape.lane_of_slot() / group).equal(lane / group).and(inner.equal(0)),
            SumPlaces::Places => shape.lane_of_slot().equal(lane).and((inner % place).less(self.unit)),
        };
        let slot = |head: usize, member: usize| match places {
            SumPlaces::Lanes => (lane + member) * lane_slots + head * tokens,
            SumPlaces::Places => lane * lane_slots + head * tokens + member * place,
        };
        let members = shape.model.group();
        let slots = (0..shape.model.kv_heads).flat_map(|head| (0..members).map(move |member| slot(head, member)));
        self.show(builder, shape, step, argument, output, condition, slots.collect());
    }

    #[allow(clippy::too_many_arguments)]
    fn show(
        &mut self,
        builder: &mut Builder,
        shape: &Shape,
        step: &Step,
        argument: ValueId,
        output: usize,
        condition: Integer,
        slots: Vec<usize>,
    ) {
        let part = builder.mask(argument, condition, "arguments shown to the client");
        if self.parts.len() <= output {
            self.parts.resize(output + 1, Vec::new());
        }
        self.parts[output].push(part);
        let first = shape.model.vocabulary.div_ceil(shape.slots) + output;
        let index_to_slot = slots.into_iter().map(|slot| (first * shape.slots + slot) as u32).collect();
        let placement = Placement { index_to_slot, token_stride: 1 };
        let interval = step.approximation.accurate;
        self.found.push(RangeCheck { site: step.site.to_string(), placement, interval, map: step.affine });
    }

    /// The outputs, and the checks on them.
    pub(super) fn finish(self, builder: &mut Builder) -> (Vec<ValueId>, Vec<RangeCheck>) {
        (self.parts.into_iter().map(|parts| builder.add_all(parts)).collect(), self.found)
    }
}
