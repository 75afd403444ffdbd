//! Emission of the ckks stage for given decisions.
//!
//! Rescales are late: a product is rescaled only when something other than a sum of equal products uses it. Operands of
//! different levels meet at the lower one. Conversions of a value (rescale, level drop) are made once, in the block that
//! defines it, so that a loop never repeats them.

use std::collections::{BTreeMap, BTreeSet};

use cachemir_ir::ckks::{self, Bootstrap, CiphertextType, CkksGraph, CkksOp, Levels};
use cachemir_ir::expression::{Integer, Vector};
use cachemir_ir::graph::{OpId, OriginId, Region, ValueId};
use cachemir_ir::slots::{Chebyshev, Domain, Layout, SlotGraph, SlotOp, SlotType};

/// What the search decides for one entry point.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Decisions {
    /// Refreshes that become bootstraps, with the level to which their result is dropped at once.
    pub(super) bootstraps: BTreeMap<OpId, u32>,
    /// Inputs that are encrypted at another level than the highest.
    pub(super) inputs: BTreeMap<ValueId, u32>,
}

/// The levels that there are.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    /// Those of the parameters.
    pub(super) levels: Levels,
    /// By state array: its level.
    pub(super) states: Vec<u32>,
    /// By state array: the lowest level at which a value may be written.
    pub(super) floors: Vec<u32>,
}

/// Why decisions are infeasible: an op that does not fit.
#[derive(Clone, Debug)]
pub(super) struct Misfit {
    /// The op of the slots stage.
    pub(super) op: OpId,
    /// The operand whose level is too low.
    pub(super) operand: ValueId,
    /// What is missing, for people.
    pub(super) message: String,
    /// Levels that are missing.
    pub(super) missing: u32,
    /// State arrays that the operand depends on through no bootstrap, once no candidate is left.
    pub(super) reads: Vec<usize>,
}

/// An emitted entry point and what it asks of the state arrays.
#[derive(Clone, Debug)]
pub(super) struct Emitted {
    /// The graph of the ckks stage.
    pub(super) graph: CkksGraph,
    /// By state: the lowest level of a value that is written.
    pub(super) written: BTreeMap<u32, u32>,
    /// By state: the highest level at which a read element is used.
    pub(super) used: BTreeMap<u32, u32>,
}

/// Emits the ckks stage of one entry point.
pub(super) fn emit(slots: &SlotGraph, decisions: &Decisions, budget: &Budget) -> Result<Emitted, Misfit> {
    let mut emitter = Emitter {
        slots,
        decisions,
        budget,
        out: CkksGraph { origins: slots.origins.clone(), ..CkksGraph::default() },
        depth: Vec::new(),
        blocks: vec![Vec::new()],
        mapped: vec![None; slots.values.len()],
        conversions: BTreeMap::new(),
        reads: BTreeMap::new(),
        written: BTreeMap::new(),
        used: BTreeMap::new(),
        origin: None,
        layer: None,
    };
    for &input in &slots.inputs {
        let value = &slots.values[input.index()];
        let level = decisions.inputs.get(&input).copied().unwrap_or(budget.levels.output);
        let ty = ciphertext(value.ty, level, false);
        let id = emitter.out.add_input(&value.name, ty);
        emitter.depth.push(0);
        emitter.mapped[input.index()] = Some(id);
    }
    emitter.block(&slots.body)?;
    let mut yields = Vec::new();
    for &value in &slots.body.yields {
        let mapped = emitter.get(value);
        yields.push(emitter.canonical(mapped));
    }
    emitter.out.body = Region { ops: emitter.blocks.pop().unwrap_or_default(), yields };
    Ok(Emitted { graph: emitter.out, written: emitter.written, used: emitter.used })
}

/// An operand's number, what needs levels, the level that it needs, and the level that is left.
type Lack = (usize, &'static str, u32, u32);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Conversion {
    Rescale,
    Drop(u32),
}

struct Emitter<'a> {
    slots: &'a SlotGraph,
    decisions: &'a Decisions,
    budget: &'a Budget,
    out: CkksGraph,
    /// Block depth of every emitted value.
    depth: Vec<usize>,
    /// Ops of the open blocks, outermost first.
    blocks: Vec<Vec<OpId>>,
    mapped: Vec<Option<ValueId>>,
    conversions: BTreeMap<(ValueId, Conversion), ValueId>,
    /// Emitted values that are state elements.
    reads: BTreeMap<ValueId, u32>,
    written: BTreeMap<u32, u32>,
    used: BTreeMap<u32, u32>,
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

    /// Adds an op to the graph, not yet to a block.
    fn node(
        &mut self,
        op: CkksOp,
        inputs: Vec<ValueId>,
        types: Vec<CiphertextType>,
        region: Option<Region>,
    ) -> (OpId, Vec<ValueId>) {
        let (id, results) = self.out.add_node(op, inputs, types, self.origin, region);
        self.out.nodes[id.index()].layer = self.layer;
        (id, results)
    }

    /// Pushes an op at the given block depth; its result has the layout and bound of `like`.
    fn push_at(&mut self, depth: usize, op: CkksOp, inputs: Vec<ValueId>, like: SlotType) -> ValueId {
        let operands: Vec<(u32, bool)> =
            inputs.iter().map(|&value| (self.out.ty(value).level, self.out.ty(value).product)).collect();
        let state_level = match &op {
            CkksOp::StateRead { state, .. } | CkksOp::StateWrite { state, .. } => {
                self.budget.states.get(state.0 as usize).copied()
            }
            _ => None,
        };
        let (level, product) = ckks::infer(&op, &operands, self.budget.levels, state_level)
            .expect("the emitter checks levels before it emits")
            .expect("the op has a result");
        let ty = ciphertext(like, level, product);
        let (id, results) = self.node(op, inputs, vec![ty], None);
        self.depth.push(depth);
        self.blocks[depth].push(id);
        results[0]
    }

    fn push(&mut self, op: CkksOp, inputs: Vec<ValueId>, like: SlotType) -> ValueId {
        self.push_at(self.blocks.len() - 1, op, inputs, like)
    }

    fn convert(&mut self, value: ValueId, conversion: Conversion, op: CkksOp) -> ValueId {
        if let Some(&known) = self.conversions.get(&(value, conversion)) {
            return known;
        }
        let ty = *self.out.ty(value);
        let like = SlotType { layout: ty.layout, max_abs: ty.max_abs };
        let converted = self.push_at(self.depth[value.index()], op, vec![value], like);
        self.conversions.insert((value, conversion), converted);
        converted
    }

    /// The value, rescaled if it is a product.
    fn canonical(&mut self, value: ValueId) -> ValueId {
        if self.out.ty(value).product { self.convert(value, Conversion::Rescale, CkksOp::Rescale) } else { value }
    }

    /// The value at a level no higher than its own.
    fn at_level(&mut self, value: ValueId, to: u32) -> ValueId {
        let value = self.canonical(value);
        if let Some(&state) = self.reads.get(&value) {
            let used = self.used.entry(state).or_insert(to);
            *used = (*used).max(to);
        }
        if self.level(value) == to {
            value
        } else {
            self.convert(value, Conversion::Drop(to), CkksOp::DropLevels { to })
        }
    }

    /// Marks a state element as used at its own level.
    fn use_as_is(&mut self, value: ValueId) -> ValueId {
        let value = self.canonical(value);
        self.at_level(value, self.level(value))
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
        (self.origin, self.layer) = (node.origin, node.layer);
        let operands: Vec<ValueId> = node.inputs.iter().map(|&value| self.get(value)).collect();
        let like = node.results.first().map(|&result| *slots.ty(result));
        let misfit = |(operand, what, needed, left): Lack| Misfit {
            op: id,
            operand: node.inputs[operand],
            message: format!("{what} needs level {needed}, {left} are left"),
            missing: needed - left,
            reads: Vec::new(),
        };
        let result = match (&node.op, like) {
            (SlotOp::Add, Some(like)) => self.sum(CkksOp::Add, &operands, like),
            (SlotOp::Subtract, Some(like)) => self.sum(CkksOp::Subtract, &operands, like),
            (SlotOp::Multiply, Some(like)) => {
                let (a, b) = (self.canonical(operands[0]), self.canonical(operands[1]));
                let level = self.level(a).min(self.level(b));
                if level == 0 {
                    let lower = usize::from(self.level(b) < self.level(a));
                    return Err(misfit((lower, "a product", 1, 0)));
                }
                let (a, b) = (self.at_level(a, level), self.at_level(b, level));
                self.push(CkksOp::Multiply, vec![a, b], like)
            }
            (SlotOp::MultiplyPlain { plain, .. }, Some(like)) => {
                let a = self.use_as_is(operands[0]);
                if self.level(a) == 0 {
                    return Err(misfit((0, "a product", 1, 0)));
                }
                self.multiply_plain(a, plain, like)
            }
            (SlotOp::AddPlain { plain }, Some(like)) => {
                let a = if self.out.ty(operands[0]).product { operands[0] } else { self.use_as_is(operands[0]) };
                self.push(CkksOp::AddPlain { plain: plain.clone() }, vec![a], like)
            }
            (SlotOp::Rotate { by }, Some(like)) => {
                let a = self.use_as_is(operands[0]);
                self.push(CkksOp::Rotate { by: by.clone() }, vec![a], like)
            }
            (SlotOp::Polynomial { polynomial, mask }, Some(like)) => {
                let a = self.use_as_is(operands[0]);
                let depth = super::polynomial_levels(polynomial);
                if self.level(a) < depth {
                    return Err(misfit((0, "a polynomial", depth, self.level(a))));
                }
                self.polynomial(a, polynomial, mask.as_ref(), like)
            }
            (SlotOp::Linear(linear), Some(_)) => {
                let a = self.use_as_is(operands[0]);
                let level = self.level(a);
                if level == 0 {
                    return Err(misfit((0, "a linear layer", 1, 0)));
                }
                let types = node.results.iter().map(|&result| ciphertext(*slots.ty(result), level - 1, false));
                let op = CkksOp::Linear(linear.clone());
                let (op, results) = self.node(op, vec![a], types.collect(), None);
                let depth = self.blocks.len() - 1;
                self.depth.resize(self.out.values.len(), depth);
                self.blocks[depth].push(op);
                for (&result, value) in node.results.iter().zip(results) {
                    self.mapped[result.index()] = Some(value);
                }
                return Ok(());
            }
            (SlotOp::Refresh { keep, factor }, Some(_)) => {
                self.refresh(id, keep.as_ref(), *factor, &operands).map_err(misfit)?;
                return Ok(());
            }
            (SlotOp::StateRead { state, index }, Some(like)) => {
                let value = self.push(CkksOp::StateRead { state: *state, index: index.clone() }, Vec::new(), like);
                self.reads.insert(value, state.0);
                value
            }
            (SlotOp::StateWrite { state, index, mode }, _) => {
                let value = self.canonical(operands[0]);
                let kept = self.budget.states[state.0 as usize];
                let floor = self.budget.floors[state.0 as usize];
                if self.level(value) < floor {
                    return Err(misfit((0, "what reads the cache", floor, self.level(value))));
                }
                let written = self.written.entry(state.0).or_insert(self.budget.levels.output);
                *written = (*written).min(self.out.ty(value).level);
                // A level too high for the value is lowered by the caller, which reads `written`.
                let to = kept.min(self.level(value));
                let value = self.at_level(value, to);
                let op = CkksOp::StateWrite { state: *state, index: index.clone(), mode: *mode };
                let (op, _) = self.node(op, vec![value], Vec::new(), None);
                self.blocks.last_mut().expect("a block is open").push(op);
                return Ok(());
            }
            (SlotOp::Sum { counter, count }, _) => return self.sum_loop(id, *counter, count),
            (op, None) => unreachable!("{op:?} has a result"),
        };
        self.mapped[node.results[0].index()] = Some(result);
        Ok(())
    }

    fn sum(&mut self, op: CkksOp, operands: &[ValueId], like: SlotType) -> ValueId {
        let (mut a, mut b) = (operands[0], operands[1]);
        let (left, right) = (self.out.ty(a), self.out.ty(b));
        if !(left.product && right.product && left.level == right.level) {
            (a, b) = (self.canonical(a), self.canonical(b));
            let level = self.level(a).min(self.level(b));
            (a, b) = (self.at_level(a, level), self.at_level(b, level));
        }
        self.push(op, vec![a, b], like)
    }

    fn multiply_plain(&mut self, a: ValueId, plain: &Vector, like: SlotType) -> ValueId {
        let op = match plain {
            Vector::Scalar(factor) => CkksOp::MultiplyScalar { factor: *factor },
            _ => CkksOp::MultiplyPlain { plain: plain.clone() },
        };
        self.push(op, vec![a], like)
    }

    fn polynomial(&mut self, a: ValueId, polynomial: &Chebyshev, mask: Option<&Vector>, like: SlotType) -> ValueId {
        let mut u = a;
        if !polynomial.is_normalised() {
            let [low, high] = polynomial.interval;
            let unit = SlotType { max_abs: 1.0, ..like };
            let scaled = self.push(CkksOp::MultiplyScalar { factor: 2.0 / (high - low) }, vec![u], unit);
            let shift = -(low + high) / (high - low);
            u = if shift == 0.0 {
                scaled
            } else {
                self.push(CkksOp::AddPlain { plain: Vector::Scalar(shift) }, vec![scaled], unit)
            };
            u = self.canonical(u);
        }
        let polynomial = Chebyshev { coefficients: polynomial.coefficients.clone(), interval: [-1.0, 1.0] };
        self.push(CkksOp::Polynomial { polynomial, mask: mask.cloned() }, vec![u], like)
    }

    fn refresh(&mut self, id: OpId, keep: Option<&Integer>, factor: f64, operands: &[ValueId]) -> Result<(), Lack> {
        let slots = self.slots;
        let node = slots.node(id);
        let types: Vec<SlotType> = node.results.iter().map(|&result| *slots.ty(result)).collect();
        let Some(&to) = self.decisions.bootstraps.get(&id) else {
            for (index, &operand) in operands.iter().enumerate() {
                let plain = match keep {
                    None if factor == 1.0 => None,
                    None => Some(Vector::Scalar(factor)),
                    Some(condition) => Some(Vector::Scalar(factor).masked(condition.clone())),
                };
                let value = match plain {
                    None => operand,
                    Some(plain) => {
                        let a = self.use_as_is(operand);
                        if self.level(a) == 0 {
                            return Err((index, "a mask", 1, 0));
                        }
                        self.multiply_plain(a, &plain, types[index])
                    }
                };
                self.mapped[node.results[index].index()] = Some(value);
            }
            return Ok(());
        };
        let needed = self.budget.levels.bootstrap_input;
        let mut lowered = Vec::new();
        for (index, &operand) in operands.iter().enumerate() {
            let operand = self.canonical(operand);
            if self.level(operand) < needed {
                return Err((index, "a bootstrap", needed, self.level(operand)));
            }
            lowered.push(self.at_level(operand, needed));
        }
        let max_abs = types.iter().map(|ty| ty.max_abs).fold(0.0, f64::max);
        let refreshed = match lowered[..] {
            [a] => {
                let op = bootstrap(false, keep, factor, max_abs);
                vec![self.push(op, vec![a], types[0])]
            }
            [a, b] => {
                let complex = |max_abs: f64, ty: SlotType| SlotType {
                    layout: Layout { domain: Domain::Complex, ..ty.layout },
                    max_abs,
                };
                let packed = complex(max_abs, types[0]);
                let imaginary = self.push(CkksOp::MultiplyByI, vec![b], complex(max_abs, types[1]));
                let both = self.push(CkksOp::Add, vec![a, imaginary], packed);
                // Halving in the bootstrap makes up for the doubling of z + z̄ and z̄ − z.
                let halved = complex(max_abs / 2.0, types[0]);
                let half = self.push(bootstrap(true, keep, factor / 2.0, max_abs / 2.0), vec![both], halved);
                let conjugate = self.push(CkksOp::Conjugate, vec![half], halved);
                let real = self.push(CkksOp::Add, vec![half, conjugate], types[0]);
                let difference = self.push(CkksOp::Subtract, vec![conjugate, half], packed);
                vec![real, self.push(CkksOp::MultiplyByI, vec![difference], types[1])]
            }
            _ => unreachable!("the slots verifier allows one or two operands"),
        };
        for (index, value) in refreshed.into_iter().enumerate() {
            let value = self.at_level(value, to);
            self.mapped[node.results[index].index()] = Some(value);
        }
        Ok(())
    }

    fn sum_loop(&mut self, id: OpId, counter: u32, count: &Integer) -> Result<(), Misfit> {
        let slots = self.slots;
        let node = slots.node(id);
        let region = node.region.as_ref().expect("a sum has a body");
        let (origin, layer) = (self.origin, self.layer);
        self.blocks.push(Vec::new());
        self.block(region)?;
        let yields: Vec<ValueId> = region.yields.iter().map(|&value| self.get(value)).collect();
        (self.origin, self.layer) = (origin, layer);
        let ops = self.blocks.pop().unwrap_or_default();
        let depth = self.blocks.len() - 1;
        let closed: BTreeSet<ValueId> = (0..self.depth.len())
            .filter(|&index| self.depth[index] > depth)
            .map(|index| ValueId(index as u32))
            .collect();
        self.conversions.retain(|(value, _), _| !closed.contains(value));
        let types = node
            .results
            .iter()
            .zip(&yields)
            .map(|(&result, &value)| {
                let ty = self.out.ty(value);
                ciphertext(*slots.ty(result), ty.level, ty.product)
            })
            .collect();
        let op = CkksOp::Sum { counter, count: count.clone() };
        let (op, results) = self.node(op, Vec::new(), types, Some(Region { ops, yields }));
        self.depth.resize(self.out.values.len(), depth);
        self.blocks[depth].push(op);
        for (&result, value) in node.results.iter().zip(results) {
            self.mapped[result.index()] = Some(value);
        }
        Ok(())
    }
}

fn bootstrap(complex: bool, keep: Option<&Integer>, factor: f64, max_abs: f64) -> CkksOp {
    let log2_magnitude = max_abs.max(1.0).log2().ceil() as u32;
    CkksOp::Bootstrap(Bootstrap { complex, keep: keep.cloned(), factor, log2_magnitude })
}
