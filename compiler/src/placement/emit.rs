//! Emission of the ckks stage for a given assignment. Decides nothing, and says what does not fit.
//!
//! Rescales are late: a product is rescaled only when something other than a sum of equal products uses it. Operands of
//! different levels meet at the lower one. Conversions of a value (rescale, level drop) are made once, in the block that
//! defines it, so that a loop never repeats them.

use std::collections::{BTreeMap, BTreeSet};

use cachemir_ir::ckks::{self, Bootstrap, CiphertextType, CkksGraph, CkksOp, Levels};
use cachemir_ir::expression::{Integer, Vector};
use cachemir_ir::graph::{Node, OpId, OriginId, Region, ValueId};
use cachemir_ir::slots::{Chebyshev, Domain, Fill, Layout, SlotGraph, SlotOp, SlotType};

/// What is decided for one entry point.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Assignment {
    /// Candidates that become bootstraps.
    pub(super) bootstraps: BTreeSet<OpId>,
    /// By op: the level to which its operands are dropped. Sums take their operands as they are.
    pub(super) executed: Vec<u32>,
    /// By value: the level to which it is dropped at once if it is an input or a bootstrap's result.
    pub(super) needed: Vec<u32>,
}

/// Why an assignment cannot be emitted: an op that does not fit.
#[derive(Clone, Debug)]
pub(super) struct Misfit {
    /// The op of the slots stage.
    pub(super) op: OpId,
    /// What is missing, for people.
    pub(super) message: String,
}

/// Emits the ckks stage of one entry point, with state arrays at the given levels.
pub(super) fn emit(
    slots: &SlotGraph,
    assignment: &Assignment,
    levels: Levels,
    states: &[u32],
) -> Result<CkksGraph, Misfit> {
    let mut emitter = Emitter {
        slots,
        assignment,
        levels,
        states,
        out: CkksGraph { origins: slots.origins.clone(), ..CkksGraph::default() },
        depth: Vec::new(),
        blocks: vec![Vec::new()],
        mapped: vec![None; slots.values.len()],
        conversions: BTreeMap::new(),
        op: OpId(0),
        origin: None,
        layer: None,
    };
    for &input in &slots.inputs {
        let value = &slots.values[input.index()];
        let ty = ciphertext(value.ty, assignment.needed[input.index()], false);
        let id = emitter.out.add_input(&value.name, ty);
        emitter.depth.push(0);
        emitter.mapped[input.index()] = Some(id);
    }
    emitter.block(&slots.body)?;
    let mut yields = Vec::new();
    for &value in &slots.body.yields {
        let mapped = emitter.get(value);
        yields.push(emitter.canonical(mapped)?);
    }
    emitter.out.body = Region { ops: emitter.blocks.pop().unwrap_or_default(), yields };
    Ok(emitter.out)
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Conversion {
    Rescale,
    Drop(u32),
}

struct Emitter<'a> {
    slots: &'a SlotGraph,
    assignment: &'a Assignment,
    levels: Levels,
    states: &'a [u32],
    out: CkksGraph,
    /// Block depth of every emitted value.
    depth: Vec<usize>,
    /// Ops of the open blocks, outermost first.
    blocks: Vec<Vec<OpId>>,
    mapped: Vec<Option<ValueId>>,
    conversions: BTreeMap<(ValueId, Conversion), ValueId>,
    /// The op of the slots stage that is being emitted.
    op: OpId,
    origin: Option<OriginId>,
    layer: Option<u32>,
}

fn ciphertext(ty: SlotType, level: u32, product: bool) -> CiphertextType {
    CiphertextType { level, product, layout: ty.layout, max_abs: ty.max_abs }
}

impl Emitter<'_> {
    fn get(&self, value: ValueId) -> ValueId {
        self.mapped[value.index()].expect("operands are emitted before their users")
    }

    fn level(&self, value: ValueId) -> u32 {
        self.out.ty(value).level
    }

    /// Adds an op with results of these types to the block of the given depth.
    fn add(
        &mut self,
        depth: usize,
        op: CkksOp,
        inputs: Vec<ValueId>,
        types: Vec<CiphertextType>,
        region: Option<Region>,
    ) -> Vec<ValueId> {
        let (id, results) = self.out.add_node(op, inputs, types, self.origin, region);
        self.out.nodes[id.index()].layer = self.layer;
        self.depth.resize(self.out.values.len(), depth);
        self.blocks[depth].push(id);
        results
    }

    /// Adds an op whose results have the layouts and bounds of `like` to the block of the given depth.
    fn push_all(
        &mut self,
        depth: usize,
        op: CkksOp,
        inputs: Vec<ValueId>,
        like: &[SlotType],
    ) -> Result<Vec<ValueId>, Misfit> {
        let operands: Vec<(u32, bool)> =
            inputs.iter().map(|&value| (self.out.ty(value).level, self.out.ty(value).product)).collect();
        let state_level = match &op {
            CkksOp::StateRead { state, .. } | CkksOp::StateWrite { state, .. } => {
                self.states.get(state.0 as usize).copied()
            }
            _ => None,
        };
        let result = ckks::infer(&op, &operands, self.levels, state_level)
            .map_err(|error| Misfit { op: self.op, message: error.to_string() })?;
        let types =
            result.iter().flat_map(|&(level, product)| like.iter().map(move |&like| ciphertext(like, level, product)));
        Ok(self.add(depth, op, inputs, types.collect(), None))
    }

    /// Pushes an op of one result to the open block.
    fn push(&mut self, op: CkksOp, inputs: Vec<ValueId>, like: SlotType) -> Result<ValueId, Misfit> {
        Ok(self.push_all(self.blocks.len() - 1, op, inputs, &[like])?[0])
    }

    fn convert(&mut self, value: ValueId, conversion: Conversion, op: CkksOp) -> Result<ValueId, Misfit> {
        if let Some(&known) = self.conversions.get(&(value, conversion)) {
            return Ok(known);
        }
        let ty = *self.out.ty(value);
        let like = SlotType { layout: ty.layout, max_abs: ty.max_abs };
        let converted = self.push_all(self.depth[value.index()], op, vec![value], &[like])?[0];
        self.conversions.insert((value, conversion), converted);
        Ok(converted)
    }

    /// The value, rescaled if it is a product.
    fn canonical(&mut self, value: ValueId) -> Result<ValueId, Misfit> {
        if self.out.ty(value).product { self.convert(value, Conversion::Rescale, CkksOp::Rescale) } else { Ok(value) }
    }

    /// The value at a level no higher than its own.
    fn at_level(&mut self, value: ValueId, to: u32) -> Result<ValueId, Misfit> {
        let value = self.canonical(value)?;
        if self.level(value) == to {
            return Ok(value);
        }
        self.convert(value, Conversion::Drop(to), CkksOp::DropLevels { to })
    }

    fn block(&mut self, block: &Region) -> Result<(), Misfit> {
        for &op in &block.ops {
            self.op(op)?;
        }
        Ok(())
    }

    fn op(&mut self, id: OpId) -> Result<(), Misfit> {
        let slots = self.slots;
        let node = slots.node(id);
        (self.op, self.origin, self.layer) = (id, node.origin, node.layer);
        let operands: Vec<ValueId> = node.inputs.iter().map(|&value| self.get(value)).collect();
        let like: Vec<SlotType> = node.results.iter().map(|&result| *slots.ty(result)).collect();
        let at = self.assignment.executed[id.index()];
        let results = match &node.op {
            SlotOp::Add => vec![self.sum(CkksOp::Add, &operands, like[0])?],
            SlotOp::Subtract => vec![self.sum(CkksOp::Subtract, &operands, like[0])?],
            SlotOp::Multiply => {
                let (a, b) = (self.at_level(operands[0], at)?, self.at_level(operands[1], at)?);
                vec![self.push(CkksOp::Multiply, vec![a, b], like[0])?]
            }
            SlotOp::MultiplyPlain { plain, .. } => {
                let a = self.at_level(operands[0], at)?;
                vec![self.multiply_plain(a, plain, like[0])?]
            }
            SlotOp::AddPlain { plain } => {
                vec![self.push(CkksOp::AddPlain { plain: plain.clone() }, operands, like[0])?]
            }
            SlotOp::Rotate { by } => {
                let a = self.at_level(operands[0], at)?;
                vec![self.push(CkksOp::Rotate { by: by.clone() }, vec![a], like[0])?]
            }
            SlotOp::RotateAndSum { steps } => {
                let a = self.at_level(operands[0], at)?;
                vec![self.push(CkksOp::RotateAndSum { steps: steps.clone() }, vec![a], like[0])?]
            }
            SlotOp::Polynomial { polynomial, mask } => {
                let a = self.at_level(operands[0], at)?;
                vec![self.polynomial(a, polynomial, mask.as_ref(), like[0])?]
            }
            SlotOp::Linear(linear) => {
                let a = self.at_level(operands[0], at)?;
                self.push_all(self.blocks.len() - 1, CkksOp::Linear(linear.clone()), vec![a], &like)?
            }
            SlotOp::Refresh { keep, factor } if self.assignment.bootstraps.contains(&id) => {
                self.bootstrap(node, keep.as_ref(), *factor, &operands, &like)?
            }
            SlotOp::Refresh { keep: None, factor: 1.0 } => operands,
            SlotOp::Refresh { keep, factor } => {
                let factor = Vector::Scalar(*factor);
                let plain = match keep {
                    None => factor,
                    Some(condition) => factor.masked(condition.clone()),
                };
                let mask = |(operand, like): (ValueId, &SlotType)| {
                    let a = self.at_level(operand, at)?;
                    self.multiply_plain(a, &plain, *like)
                };
                operands.into_iter().zip(&like).map(mask).collect::<Result<_, _>>()?
            }
            SlotOp::StateRead { state, index } => {
                vec![self.push(CkksOp::StateRead { state: *state, index: index.clone() }, Vec::new(), like[0])?]
            }
            SlotOp::StateWrite { state, index, mode } => {
                let value = self.at_level(operands[0], self.states[state.0 as usize])?;
                let op = CkksOp::StateWrite { state: *state, index: index.clone(), mode: *mode };
                self.push_all(self.blocks.len() - 1, op, vec![value], &[])?
            }
            SlotOp::Sum { counter, count } => self.sum_loop(node, *counter, count, &like)?,
        };
        for (&result, value) in node.results.iter().zip(results) {
            self.mapped[result.index()] = Some(value);
        }
        Ok(())
    }

    fn sum(&mut self, op: CkksOp, operands: &[ValueId], like: SlotType) -> Result<ValueId, Misfit> {
        let (mut a, mut b) = (operands[0], operands[1]);
        let (left, right) = (self.out.ty(a), self.out.ty(b));
        if !(left.product && right.product && left.level == right.level) {
            (a, b) = (self.canonical(a)?, self.canonical(b)?);
            let level = self.level(a).min(self.level(b));
            (a, b) = (self.at_level(a, level)?, self.at_level(b, level)?);
        }
        self.push(op, vec![a, b], like)
    }

    fn multiply_plain(&mut self, a: ValueId, plain: &Vector, like: SlotType) -> Result<ValueId, Misfit> {
        let op = match plain {
            Vector::Scalar(factor) => CkksOp::MultiplyScalar { factor: *factor },
            _ => CkksOp::MultiplyPlain { plain: plain.clone() },
        };
        self.push(op, vec![a], like)
    }

    fn polynomial(
        &mut self,
        a: ValueId,
        polynomial: &Chebyshev,
        mask: Option<&Vector>,
        like: SlotType,
    ) -> Result<ValueId, Misfit> {
        let mut u = a;
        if !polynomial.is_normalised() {
            let [low, high] = polynomial.interval;
            let unit = SlotType { max_abs: 1.0, ..like };
            u = self.push(CkksOp::MultiplyScalar { factor: 2.0 / (high - low) }, vec![u], unit)?;
            let shift = -(low + high) / (high - low);
            if shift != 0.0 {
                u = self.push(CkksOp::AddPlain { plain: Vector::Scalar(shift) }, vec![u], unit)?;
            }
            u = self.canonical(u)?;
        }
        let polynomial = Chebyshev { coefficients: polynomial.coefficients.clone(), interval: [-1.0, 1.0] };
        self.push(CkksOp::Polynomial { polynomial, mask: mask.cloned() }, vec![u], like)
    }

    fn bootstrap(
        &mut self,
        node: &Node<SlotOp>,
        keep: Option<&Integer>,
        factor: f64,
        operands: &[ValueId],
        types: &[SlotType],
    ) -> Result<Vec<ValueId>, Misfit> {
        let lowered = operands.iter().map(|&operand| self.at_level(operand, self.levels.bootstrap_input));
        let lowered = lowered.collect::<Result<Vec<_>, _>>()?;
        let needed: Vec<u32> = node.results.iter().map(|result| self.assignment.needed[result.index()]).collect();
        let to = needed.iter().copied().max().unwrap_or(0);
        let max_abs = types.iter().map(|ty| ty.max_abs).fold(0.0, f64::max);
        let refreshed = match lowered[..] {
            [a] => vec![self.push(bootstrap(false, keep, factor, max_abs), vec![a], types[0])?],
            [a, b] => {
                let complex = |layout: Layout, max_abs: f64| SlotType {
                    layout: Layout { domain: Domain::Complex, ..layout },
                    max_abs,
                };
                // Ahead of the bootstrap nothing is scaled or cleared yet.
                let (left, right) = (*self.out.ty(a), *self.out.ty(b));
                let fill = if left.layout.fill == right.layout.fill { left.layout.fill } else { Fill::Junk };
                let packed = complex(Layout { fill, ..left.layout }, left.max_abs.max(right.max_abs));
                let imaginary = self.push(CkksOp::MultiplyByI, vec![b], packed)?;
                let both = self.push(CkksOp::Add, vec![a, imaginary], packed)?;
                // Halving in the bootstrap makes up for the doubling of z + z̄ and z̄ − z.
                let halved = complex(types[0].layout, max_abs / 2.0);
                let half = self.push(bootstrap(true, keep, factor / 2.0, max_abs / 2.0), vec![both], halved)?;
                let half = self.at_level(half, to)?;
                let conjugate = self.push(CkksOp::Conjugate, vec![half], halved)?;
                let real = self.push(CkksOp::Add, vec![half, conjugate], types[0])?;
                let difference = complex(types[0].layout, max_abs);
                let difference = self.push(CkksOp::Subtract, vec![conjugate, half], difference)?;
                vec![real, self.push(CkksOp::MultiplyByI, vec![difference], types[1])?]
            }
            _ => unreachable!("the slots verifier allows one or two operands"),
        };
        refreshed.into_iter().zip(needed).map(|(value, needed)| self.at_level(value, needed)).collect()
    }

    fn sum_loop(
        &mut self,
        node: &Node<SlotOp>,
        counter: u32,
        count: &Integer,
        like: &[SlotType],
    ) -> Result<Vec<ValueId>, Misfit> {
        let region = node.region.as_ref().expect("a sum has a body");
        let op = self.op;
        self.blocks.push(Vec::new());
        self.block(region)?;
        (self.op, self.origin, self.layer) = (op, node.origin, node.layer);
        let yields: Vec<ValueId> = region.yields.iter().map(|&value| self.get(value)).collect();
        let ops = self.blocks.pop().unwrap_or_default();
        let depth = self.blocks.len() - 1;
        self.conversions.retain(|(value, _), _| self.depth[value.index()] <= depth);
        let types = like.iter().zip(&yields).map(|(&like, &value)| {
            let ty = self.out.ty(value);
            ciphertext(like, ty.level, ty.product)
        });
        let op = CkksOp::Sum { counter, count: count.clone() };
        let types = types.collect();
        Ok(self.add(depth, op, Vec::new(), types, Some(Region { ops, yields })))
    }
}

fn bootstrap(complex: bool, keep: Option<&Integer>, factor: f64, max_abs: f64) -> CkksOp {
    let log2_magnitude = max_abs.max(1.0).log2().ceil() as u32;
    CkksOp::Bootstrap(Bootstrap { complex, keep: keep.cloned(), factor, log2_magnitude })
}
