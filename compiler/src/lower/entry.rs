//! What decoding and prefill share: norms, rotary embeddings, polynomial sites, the gated layer and the output head.

use cachemir_ir::expression::{Integer, Vector};
use cachemir_ir::graph::{OpId, Origin, ValueId};
use cachemir_ir::linear::{Features, Matrix, Order};
use cachemir_ir::program::{EmbeddingForm, RangeCheck};
use cachemir_ir::slots::{Fill, Layout, Purpose, SlotGraph, StateId};

use super::Site;
use super::builder::{Builder, doubling, layout};
use super::checks::{Checks, SumPlaces, Sums};
use super::linear::{Layer, linear};
use super::plan::{Plan, Step};
use super::roles::Roles;
use super::shape::{Shape, both};
use super::tables::{self, Map};
use crate::approximate::{Affine, Function};

/// A place of the program whose operand's range decides an approximation.
#[derive(Clone, Debug)]
pub(super) struct SiteUse {
    /// The op: a polynomial, or the definition of the value that is watched.
    pub(super) op: OpId,
    /// Which of its results is watched; the operand of a polynomial is.
    pub(super) result: usize,
    /// The site.
    pub(super) site: Site,
    /// The exact function, for polynomials.
    pub(super) function: Option<Function>,
    /// From slot values to the function's argument.
    pub(super) affine: Affine,
    /// Slots that matter; all where absent.
    pub(super) meaningful: Option<Integer>,
}

/// An entry point under construction.
pub(super) struct EntryBuilder<'a> {
    /// Emits the ops.
    pub(super) builder: Builder,
    /// Sizes.
    pub(super) shape: &'a Shape,
    /// Ops of the tensor graph.
    pub(super) roles: &'a Roles,
    /// Approximations.
    pub(super) plan: &'a Plan,
    /// Sites so far.
    pub(super) uses: Vec<SiteUse>,
    /// Arguments shown to the client so far.
    checks: Checks,
}

/// A finished entry point.
pub(super) struct BuiltEntry {
    /// Its graph.
    pub(super) graph: SlotGraph,
    /// Its sites.
    pub(super) uses: Vec<SiteUse>,
    /// What the client checks.
    pub(super) checks: Vec<RangeCheck>,
    /// First number of a loop counter that it does not use.
    pub(super) next_counter: u32,
}

/// What the inputs of both entry points hold. The first norm acts on the embedding alone, whose mean square varies by
/// four orders of magnitude between tokens: no polynomial of small degree covers that, and the client knows it.
pub(super) fn input_forms(roles: &Roles, plan: &Plan) -> Vec<EmbeddingForm> {
    let epsilon = roles.norms[0].epsilon;
    vec![EmbeddingForm::scaled(plan.residual_scale(0)), EmbeddingForm { scale: 1.0, norm_epsilon: Some(epsilon) }]
}

/// State array of a layer's K cache.
pub(super) fn key_state(layer: usize) -> StateId {
    StateId(2 * layer as u32)
}

/// State array of a layer's V cache.
pub(super) fn value_state(layer: usize) -> StateId {
    StateId(2 * layer as u32 + 1)
}

/// 1 where the condition holds.
pub(super) fn indicator(condition: Integer) -> Vector {
    Vector::Scalar(1.0).masked(condition)
}

impl<'a> EntryBuilder<'a> {
    /// An empty entry point for calls of up to `unit` tokens.
    pub(super) fn new(shape: &'a Shape, roles: &'a Roles, plan: &'a Plan, unit: usize, first_counter: u32) -> Self {
        let builder = Builder::new(shape.slots, first_counter);
        Self { builder, shape, roles, plan, uses: Vec::new(), checks: Checks::new(unit) }
    }

    /// The inputs of a call, in the order of [`input_forms`]: the residual stream σ·x, and the result of the first norm.
    pub(super) fn inputs(&mut self, layout: Layout) -> [ValueId; 2] {
        ["embedding", "normed_embedding"].map(|name| self.builder.input(name, layout))
    }

    /// The finished entry point, given the logits.
    pub(super) fn finish(mut self, mut outputs: Vec<ValueId>) -> BuiltEntry {
        let next_counter = self.builder.next_counter();
        let (shown, checks) = self.checks.finish(&mut self.builder);
        outputs.extend(shown);
        BuiltEntry { graph: self.builder.finish(outputs), uses: self.uses, checks, next_counter }
    }

    /// Ops from here on come from this node.
    pub(super) fn origin(&mut self, origin: Option<&Origin>) {
        self.builder.set_origin(origin.cloned());
    }

    /// x/half with the step's shift where `rows` holds, or everywhere: the argument u of the step's polynomial.
    pub(super) fn argument(&mut self, step: &Step, value: ValueId, rows: Option<Integer>) -> ValueId {
        let shift = step.affine.shift();
        if shift == 0.0 {
            return value;
        }
        let plain = Vector::Scalar(shift);
        self.builder.add_plain(
            value,
            match rows {
                Some(condition) => plain.masked(condition),
                None => plain,
            },
        )
    }

    /// The step's polynomial of its argument u, times `factor`, where `mask` holds and 0 elsewhere. `meaningful` are the
    /// slots that matter, those of the mask where absent.
    pub(super) fn polynomial(
        &mut self,
        step: &Step,
        argument: ValueId,
        mask: Option<Integer>,
        factor: Option<Vector>,
        meaningful: Option<Integer>,
    ) -> ValueId {
        let polynomial = step.approximation.polynomial.clone();
        let vector = match (mask.clone(), factor) {
            (Some(condition), factor) => Some(factor.unwrap_or(Vector::Scalar(1.0)).masked(condition)),
            (None, factor) => factor,
        };
        let result = self.builder.polynomial(argument, polynomial, vector);
        let (op, _) = self.builder.definition(result).expect("a polynomial is an op");
        self.uses.push(SiteUse {
            op,
            result: 0,
            site: step.site,
            function: Some(step.function),
            affine: step.affine,
            meaningful: meaningful.or(mask),
        });
        result
    }

    /// The rough reciprocal of a softmax's row sums, by which y_stage is normalised, where `rows` holds and 0 elsewhere.
    /// Where several squarings follow one another, or the reciprocal is deep, the sums may be refreshed.
    pub(super) fn rough_reciprocal(
        &mut self,
        layer: usize,
        stage: usize,
        sum: ValueId,
        places: SumPlaces,
        rows: Integer,
        position: Integer,
    ) -> ValueId {
        let plan = self.plan;
        let steps = &plan.layers[layer].rough;
        let mut argument = self.argument(&steps[stage], sum, None);
        if steps.len() > 1 || steps[stage].approximation.polynomial.degree() > 7 {
            argument = self.builder.refresh(argument);
        }
        let sums = Sums { layer, stage, places };
        self.checks.sums(&mut self.builder, self.shape, plan, sums, &steps[stage], argument);
        let scale = self.softmax_scale(layer, stage + 1, position);
        self.polynomial(&steps[stage], argument, Some(rows), scale, None)
    }

    /// y_0 of a softmax of shifted scores in the slots that the mask holds, zero elsewhere.
    pub(super) fn exponential(&mut self, layer: usize, scores: ValueId, known: Integer, position: Integer) -> ValueId {
        let exponential = &self.plan.layers[layer].exponential;
        let scale = self.softmax_scale(layer, 0, position);
        let mut y = self.polynomial(&exponential.step, scores, Some(known), scale, None);
        for _ in 0..exponential.doublings {
            y = self.builder.multiply(y, y);
        }
        y
    }

    /// The factor of what makes y_stage of a softmax, at a position given for each slot; `None` if it is 1.
    pub(super) fn softmax_scale(&self, layer: usize, stage: usize, position: Integer) -> Option<Vector> {
        let plan = self.plan;
        let offset = tables::scale_offset(plan, layer, stage, self.shape.model.context);
        let table = tables::scale_table(self.roles.layers.len());
        (plan.layers[layer].softmax.exponents[stage] != 0.0).then(|| Vector::Table(table, position + offset))
    }

    /// x/(√d·rms(x)) for σ·x, with the norm's σ, in the slots where `rows` holds and zeros elsewhere. The mask, if any, rides on the
    /// coefficients and leaves only the slots where it holds.
    pub(super) fn norm(&mut self, index: usize, x: ValueId, rows: Integer, mask: Option<Integer>) -> ValueId {
        let (plan, shape) = (self.plan, self.shape);
        let step = plan.norm(index);
        self.origin(self.roles.norms[index].gamma.origin.as_ref());
        let square = self.builder.multiply(x, x);
        // σ²·d times the mean square, that is 1/half times it.
        let sum = self.builder.fold(square, doubling(shape.stride(), shape.slots));
        let argument = self.argument(step, sum, Some(rows.clone()));
        self.checks.norm(&mut self.builder, shape, step, index, argument);
        let inverse = self.polynomial(step, argument, mask, None, Some(rows));
        let result = self.builder.multiply(x, inverse);
        self.builder.set_layout(result, layout(shape.stride(), Fill::Zero));
        self.builder.refresh(result)
    }

    /// Linear layers of the model's layer `layer` that share an operand, in vectors of `unit` tokens, of which the first
    /// `tokens` are in use. Keys and values land in the given inner slot.
    pub(super) fn project<const N: usize>(
        &mut self,
        layer: usize,
        maps: [Map; N],
        x: ValueId,
        unit: usize,
        tokens: &Integer,
        landing: Option<&Integer>,
    ) -> [ValueId; N] {
        let shape = self.shape;
        let heads = shape.heads();
        let input = match maps[0] {
            Map::Query | Map::Key | Map::Value | Map::Gate | Map::Up => shape.hidden_order(),
            Map::Output if unit == 1 => Order::of(Features::RotatedQuery(heads)),
            Map::Output => Order::of(Features::Query(heads)),
            Map::Down => shape.mlp_order(),
        };
        let layers = maps.map(|map| {
            let order = match map {
                Map::Query => Order::of(Features::Query(heads)),
                Map::Key | Map::Value => Order::of(Features::KeyValue(heads)),
                Map::Output | Map::Down => shape.hidden_order(),
                Map::Gate | Map::Up => shape.mlp_order(),
            };
            let matrix =
                Matrix { weights: tables::map_table(layer, map), bias: tables::bias_table(self.roles, layer, map) };
            let landing = landing.filter(|_| matches!(map, Map::Key | Map::Value)).cloned();
            Layer { matrix, order, landing }
        });
        self.origin(self.roles.layers[layer].linears[maps[0] as usize].origin.as_ref());
        let results = linear(&mut self.builder, input, unit, tokens, &layers, x);
        results.try_into().expect("each layer has a result")
    }

    /// Cosines and sines, the latter with the sign of rotate-half, at a position given for each slot, where the
    /// condition holds and 0 elsewhere.
    fn rotary_constants(&self, position: &Integer, condition: Integer, factor: f64) -> (Vector, Vector) {
        let shape = self.shape;
        let layers = self.roles.layers.len();
        let (half, pairs) = (shape.head_dim / 2, shape.model.head_dim / 2);
        let pair = shape.lane_of_slot() % half;
        let condition = if pairs < half { condition.and(pair.clone().less(pairs)) } else { condition };
        let index = position.clone() * pairs + pair;
        let cosine = Vector::Table(tables::cosine_table(layers), index.clone()).masked(condition.clone()).times(factor);
        let first = shape.lane_of_slot().less(half);
        let second = Integer::from(half).less_equal(shape.lane_of_slot());
        let sign = Vector::Scalar(-factor).masked(first).plus(Vector::Scalar(factor).masked(second));
        let sine = Vector::Table(tables::sine_table(layers), index).masked(condition).times(sign);
        (cosine, sine)
    }

    /// factor·R_p(a) where the condition holds and 0 elsewhere: the partner of each entry lies n/2 slots away.
    pub(super) fn rope(&mut self, a: ValueId, position: &Integer, condition: Integer, factor: f64) -> ValueId {
        let (cosine, sine) = self.rotary_constants(position, condition, factor);
        let partner = self.builder.rotate(a, self.shape.slots / 2);
        let straight = self.builder.multiply_plain(a, cosine, Purpose::Rope);
        let crossed = self.builder.multiply_plain(partner, sine, Purpose::Rope);
        self.builder.add(straight, crossed)
    }

    /// A token's rotated keys, which are zero but where the condition holds, less the reference keys of the layer there.
    pub(super) fn less_reference_keys(&mut self, layer: usize, keys: ValueId, condition: Integer) -> ValueId {
        let Some(table) = tables::reference_table(self.roles, self.plan, layer) else { return keys };
        let (entry, real) = self.shape.key_entry();
        let references = Vector::Table(table, entry).masked(both(condition, real)).times(-1.0);
        self.builder.add_plain(keys, references)
    }

    /// The factor of scores: their scale, over half the width of the exponential's interval.
    pub(super) fn score_factor(&self, layer: usize) -> f64 {
        self.roles.layers[layer].scale / self.plan.layers[layer].exponential.step.affine.half
    }

    /// numerator/denominator: the pair is refreshed, then the reciprocal, with a Newton step if planned. The denominator
    /// is 0 outside `rows`, and so is the result: where the numerator is not, the reciprocal is to be `masked`.
    pub(super) fn divide(
        &mut self,
        layer: usize,
        numerator: ValueId,
        denominator: ValueId,
        rows: Integer,
        masked: bool,
    ) -> ValueId {
        let plan = &self.plan.layers[layer];
        let step = &plan.reciprocal;
        let argument = self.argument(step, denominator, Some(rows.clone()));
        let (numerator, argument) = self.builder.refresh_pair(numerator, argument);
        let sums = Sums { layer, stage: plan.softmax.squarings(), places: SumPlaces::Places };
        self.checks.sums(&mut self.builder, self.shape, self.plan, sums, step, argument);
        let mask = masked.then(|| rows.clone());
        let inverse = self.polynomial(step, argument, mask, None, Some(rows.clone()));
        let quotient = self.builder.multiply(numerator, inverse);
        if !plan.newton {
            return quotient;
        }
        let back = Vector::Scalar(-step.affine.shift()).masked(rows);
        let denominator = self.builder.add_plain(argument, back);
        let product = self.builder.multiply(denominator, inverse);
        // quotient·(2 − a·y), as quotient + quotient − quotient·(a·y)
        let twice = self.builder.add(quotient, quotient);
        let error = self.builder.multiply(quotient, product);
        self.builder.subtract(twice, error)
    }

    /// The first or second residual sum of a layer and its refresh, named `layers.N.attention_output` or `layers.N.output`, on
    /// which the stream goes from one norm's σ to that of the next. `rows` are the slots that the stream uses.
    pub(super) fn residual(
        &mut self,
        layer: usize,
        which: usize,
        x: ValueId,
        update: ValueId,
        rows: Integer,
    ) -> ValueId {
        self.origin(self.roles.layers[layer].sums[which].as_ref());
        let sum = self.builder.add(x, update);
        self.builder.set_layout(sum, layout(self.shape.stride(), Fill::Junk));
        let norm = 2 * layer + which;
        let factor = self.plan.residual_scale(norm + 1) / self.plan.residual_scale(norm);
        let kept = self.builder.refresh_masked(sum, rows, factor);
        self.builder.set_layout(kept, layout(self.shape.stride(), Fill::Zero));
        let part = ["attention_output", "output"][which];
        self.builder.set_name(kept, format!("layers.{layer}.{part}"));
        kept
    }

    /// The gated layer with its norm and residual sum. `rows` are the slots of the residual stream, `tokens` how many
    /// of each group of slots hold tokens.
    pub(super) fn gated(&mut self, layer: usize, x: ValueId, unit: usize, tokens: &Integer) -> ValueId {
        let shape = self.shape;
        let normed = self.norm(2 * layer + 1, x, (Integer::slot() % shape.stride()).less(tokens.clone()), None);
        let [gate, up] = self.project(layer, [Map::Gate, Map::Up], normed, unit, tokens, None);
        let real = (shape.model.mlp < shape.mlp).then(|| (Integer::slot() / shape.wide_stride()).less(shape.model.mlp));
        let rows = both((Integer::slot() % shape.wide_stride()).less(tokens.clone()), real);
        let (op, result) = self.builder.definition(up).expect("a projection is an op");
        let bound = self.plan.layers[layer].up_bound;
        let affine = Affine { centre: 0.0, half: bound };
        self.uses.push(SiteUse {
            op,
            result,
            site: Site::Up { layer },
            function: None,
            affine,
            meaningful: Some(rows.clone()),
        });
        let (gate, up) = self.builder.refresh_pair(gate, up);
        self.origin(self.roles.layers[layer].silu.as_ref());
        let plan = self.plan;
        let activated = self.polynomial(&plan.layers[layer].silu, gate, Some(rows), None, None);
        self.origin(self.roles.layers[layer].product.as_ref());
        let product = self.builder.multiply(activated, up);
        self.builder.set_layout(product, layout(shape.wide_stride(), Fill::Zero));
        let product = self.builder.refresh(product);
        let [update] = self.project(layer, [Map::Down], product, unit, tokens, None);
        self.residual(layer, 1, x, update, (Integer::slot() % shape.stride()).less(unit))
    }

    /// Logits of the last norm's result at stride t, one ciphertext for each n positions of the vocabulary.
    pub(super) fn head(&mut self, normed: ValueId) -> Vec<ValueId> {
        let shape = self.shape;
        self.origin(self.roles.head.origin.as_ref());
        let (vocabulary, table) = (shape.model.vocabulary, tables::head_table(self.roles.layers.len()));
        let parts = (0..vocabulary.div_ceil(shape.slots)).map(|part| {
            let offset = part * shape.slots;
            let width = (vocabulary - offset).min(shape.slots);
            let order = Order::of(Features::Plain { width: width as u32, offset: offset as u32 });
            Layer { matrix: Matrix { weights: table, bias: None }, order, landing: None }
        });
        let layers: Vec<Layer> = parts.collect();
        linear(&mut self.builder, shape.hidden_order(), 1, &Integer::from(1_i64), &layers, normed)
    }
}
