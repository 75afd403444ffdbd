//! Clear execution of the slots stage.
//!
//! Every value is a vector of n real numbers; ops do exactly what [`crate::slots`] says, junk slots included: nothing is
//! cleared that the program does not clear, so a missing mask shows up as a wrong answer. The interpreter keeps the
//! state arrays between calls (elements never written are what the program says), checks that every slot of a polynomial's operand lies in
//! the polynomial's interval, and records for each value the largest absolute value over all slots of all calls.

mod formulas;

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use crate::Error;
use crate::chebyshev;
use crate::expression::{Environment, Integer, Variable, Vector};
use crate::graph::{OpId, Region, ValueId};
use crate::program::{EntryPoint, Program};
use crate::rotations::{plus_rotated, rotated};
use crate::slots::{Chebyshev, SlotGraph, SlotOp, SlotType, StateId, WriteMode};
use crate::weights::Kept;
use formulas::{Formulas, Plain};

/// A program of the slots stage with all its entry points.
pub type SlotProgram = Program<SlotOp, SlotType>;

/// A polynomial's operand may leave the interval by this fraction of its width, for rounding.
const INTERVAL_TOLERANCE: f64 = 1e-9;

/// What a caller of [`Interpreter::call_with`] wants to see or to replace.
pub trait Hooks {
    /// The result of a polynomial op ahead of its mask, or `None` to evaluate the polynomial, with its interval checked.
    fn polynomial(&mut self, op: OpId, environment: &Environment, operand: &[f64]) -> Option<Vec<f64>> {
        let _ = (op, environment, operand);
        None
    }

    /// Sees the results of every op after it ran.
    fn observe(&mut self, op: OpId, results: &[&[f64]]) {
        let _ = (op, results);
    }
}

/// Hooks that neither see nor replace anything.
pub struct NoHooks;

impl Hooks for NoHooks {}

type Slots = Rc<Vec<f64>>;

/// What interpreters of one program share, on any thread.
pub struct Prepared<'p> {
    program: &'p SlotProgram,
    entries: Vec<PreparedEntry>,
    /// Entries of matrices, which every call uses.
    matrices: Kept,
}

impl<'p> Prepared<'p> {
    /// Prepares a program.
    pub fn new(program: &'p SlotProgram) -> Self {
        let entry = |entry: &crate::program::Entry<SlotOp, SlotType>| prepare(&entry.graph, program.slots as usize);
        Self { program, entries: program.entries.iter().map(entry).collect(), matrices: Kept::default() }
    }
}

/// What is known about a graph ahead of its calls.
struct PreparedEntry {
    /// By op: values of the op's own block that nothing uses after it.
    releases: Vec<Vec<ValueId>>,
    /// By op: its plaintext vector with the variables in it, other than the slot.
    plains: Vec<Option<(Plain, Vec<Variable>)>>,
    /// By op: the condition of a refresh.
    keeps: Vec<Option<usize>>,
    /// What plaintext vectors and conditions are made of.
    formulas: Formulas,
}

/// Executes the entry points of a program on vectors of real numbers and owns their state.
pub struct Interpreter<'p> {
    state: Vec<Vec<Option<Slots>>>,
    prepared: Arc<Prepared<'p>>,
    max_abs: Vec<Vec<f64>>,
    plains: Vec<HashMap<(OpId, Vec<i64>), Slots>>,
}

impl<'p> Interpreter<'p> {
    /// An interpreter at the beginning of a session.
    pub fn new(program: &'p SlotProgram) -> Self {
        Self::of(Arc::new(Prepared::new(program)))
    }

    /// An interpreter of a prepared program, at the beginning of a session.
    pub fn of(prepared: Arc<Prepared<'p>>) -> Self {
        let program = prepared.program;
        Self {
            state: program.states.iter().map(|state| vec![None; state.capacity as usize]).collect(),
            prepared,
            max_abs: program.entries.iter().map(|entry| vec![0.0; entry.graph.values.len()]).collect(),
            plains: program.entries.iter().map(|_| HashMap::new()).collect(),
        }
    }

    /// Forgets all that was written, as at the beginning of a session.
    pub fn reset(&mut self) {
        self.state.iter_mut().flatten().for_each(|element| *element = None);
    }

    /// The elements of the state arrays; `None` where nothing was written.
    pub fn state(&self) -> Vec<Vec<Option<Vec<f64>>>> {
        let element = |element: &Option<Slots>| element.as_ref().map(|slots| slots.as_ref().clone());
        self.state.iter().map(|array| array.iter().map(element).collect()).collect()
    }

    /// By value of an entry point: the largest absolute value of any slot in any call so far.
    pub fn max_abs(&self, entry: EntryPoint) -> &[f64] {
        self.index(entry).map_or(&[], |index| &self.max_abs[index])
    }

    fn index(&self, entry: EntryPoint) -> Option<usize> {
        self.prepared.program.entries.iter().position(|known| known.kind.entry() == entry)
    }

    /// Runs an entry point for `count` tokens from `position` on; returns the graph's outputs.
    pub fn call(
        &mut self,
        entry: EntryPoint,
        position: i64,
        count: i64,
        inputs: &[Vec<f64>],
    ) -> Result<Vec<Vec<f64>>, Error> {
        self.call_with(entry, position, count, inputs, &mut NoHooks)
    }

    /// [`Interpreter::call`], with hooks.
    pub fn call_with(
        &mut self,
        entry: EntryPoint,
        position: i64,
        count: i64,
        inputs: &[Vec<f64>],
        hooks: &mut dyn Hooks,
    ) -> Result<Vec<Vec<f64>>, Error> {
        let index = self.index(entry).ok_or_else(|| Error::Execution(format!("there is no entry point {entry}")))?;
        let program = self.prepared.program;
        let graph = &program.entries[index].graph;
        let slots = program.slots as usize;
        if inputs.len() != graph.inputs.len() || inputs.iter().any(|input| input.len() != slots) {
            return Err(Error::Execution(format!(
                "{entry} takes {} inputs of {slots} slots each, got lengths {:?}",
                graph.inputs.len(),
                inputs.iter().map(Vec::len).collect::<Vec<_>>()
            )));
        }
        let mut run = Run {
            program,
            graph,
            prepared: &self.prepared.entries[index],
            matrices: &self.prepared.matrices,
            state: &mut self.state,
            max_abs: &mut self.max_abs[index],
            plains: &mut self.plains[index],
            values: vec![None; graph.values.len()],
            environment: Environment::new(position, count),
            hooks,
        };
        for (&id, input) in graph.inputs.iter().zip(inputs) {
            run.set(id, Rc::new(input.clone()));
        }
        run.block(&graph.body)?;
        graph.body.yields.iter().map(|&id| Ok(run.get(id)?.as_ref().clone())).collect()
    }
}

/// Variables other than the slot in an expression.
fn variables_of(integer: &Integer, found: &mut Vec<Variable>) {
    match integer {
        Integer::Constant(_) | Integer::Variable(Variable::Slot) => {}
        Integer::Variable(variable) => {
            if !found.contains(variable) {
                found.push(*variable);
            }
        }
        Integer::Binary(_, a, b) => {
            variables_of(a, found);
            variables_of(b, found);
        }
        Integer::Select(a, b, c) => [a, b, c].into_iter().for_each(|part| variables_of(part, found)),
    }
}

fn variables_of_vector(vector: &Vector, found: &mut Vec<Variable>) {
    match vector {
        Vector::Scalar(_) => {}
        Vector::Table(_, index) => variables_of(index, found),
        Vector::Mask(condition, inner) => {
            variables_of(condition, found);
            variables_of_vector(inner, found);
        }
        Vector::Sum(a, b) | Vector::Product(a, b) => {
            variables_of_vector(a, found);
            variables_of_vector(b, found);
        }
    }
}

fn plain_of(op: &SlotOp) -> Option<&Vector> {
    match op {
        SlotOp::MultiplyPlain { plain, .. } | SlotOp::AddPlain { plain } => Some(plain),
        SlotOp::Polynomial { mask, .. } => mask.as_ref(),
        _ => None,
    }
}

fn prepare(graph: &SlotGraph, slots: usize) -> PreparedEntry {
    fn uses(graph: &SlotGraph, op: OpId, used: &mut Vec<ValueId>) {
        let node = graph.node(op);
        used.extend(&node.inputs);
        if let Some(region) = &node.region {
            region.ops.iter().for_each(|&inner| uses(graph, inner, used));
            used.extend(&region.yields);
        }
    }
    fn block(graph: &SlotGraph, region: &Region, releases: &mut [Vec<ValueId>]) {
        let mut pending: HashMap<ValueId, bool> =
            region.ops.iter().flat_map(|&op| graph.node(op).results.iter().map(|&value| (value, true))).collect();
        for value in &region.yields {
            pending.insert(*value, false);
        }
        let mut used = Vec::new();
        for &op in region.ops.iter().rev() {
            if let Some(inner) = &graph.node(op).region {
                block(graph, inner, releases);
            }
            used.clear();
            uses(graph, op, &mut used);
            used.extend(&graph.node(op).results);
            for value in &used {
                if pending.get(value) == Some(&true) {
                    pending.insert(*value, false);
                    releases[op.index()].push(*value);
                }
            }
        }
    }
    let mut releases = vec![Vec::new(); graph.nodes.len()];
    block(graph, &graph.body, &mut releases);
    let mut formulas = Formulas::new(slots);
    let plains = graph.nodes.iter().map(|node| {
        plain_of(&node.op).map(|plain| {
            let mut found = Vec::new();
            variables_of_vector(plain, &mut found);
            (formulas.vector(plain), found)
        })
    });
    let plains = plains.collect();
    let keeps = graph.nodes.iter().map(|node| match &node.op {
        SlotOp::Refresh { keep: Some(keep), .. } => Some(formulas.integer(keep)),
        _ => None,
    });
    let keeps = keeps.collect();
    PreparedEntry { releases, plains, keeps, formulas }
}

/// One call in progress.
struct Run<'r> {
    program: &'r SlotProgram,
    graph: &'r SlotGraph,
    prepared: &'r PreparedEntry,
    matrices: &'r Kept,
    state: &'r mut Vec<Vec<Option<Slots>>>,
    max_abs: &'r mut Vec<f64>,
    plains: &'r mut HashMap<(OpId, Vec<i64>), Slots>,
    values: Vec<Option<Slots>>,
    environment: Environment,
    hooks: &'r mut dyn Hooks,
}

impl Run<'_> {
    fn set(&mut self, id: ValueId, slots: Slots) {
        let magnitude = &mut self.max_abs[id.index()];
        *magnitude = magnitude.max(largest(&slots));
        self.values[id.index()] = Some(slots);
    }

    fn get(&self, id: ValueId) -> Result<&Slots, Error> {
        self.values[id.index()].as_ref().ok_or_else(|| Error::Execution(format!("{id} is used before its definition")))
    }

    fn slots(&self) -> usize {
        self.program.slots as usize
    }

    /// The op's plaintext operand, if it has one. Those that depend on neither position nor count are kept between calls.
    fn plain(&mut self, op: OpId) -> Result<Option<Slots>, Error> {
        let Some((plain, variables)) = &self.prepared.plains[op.index()] else { return Ok(None) };
        let keep = variables.iter().all(|variable| matches!(variable, Variable::Loop(_)));
        let number = |variable: &Variable| Integer::Variable(*variable).evaluate(&self.environment);
        let key = (op, if keep { variables.iter().map(number).collect() } else { Vec::new() });
        if keep && let Some(known) = self.plains.get(&key) {
            return Ok(Some(known.clone()));
        }
        let formulas = &self.prepared.formulas;
        let values = Rc::new(formulas.evaluate(plain, &self.environment, None, &self.program.tables)?);
        if keep {
            self.plains.insert(key, values.clone());
        }
        Ok(Some(values))
    }

    /// An element as it was written last, or as it is initially; `None` for zeros.
    fn kept(&self, state: StateId, index: usize) -> Result<Option<Slots>, Error> {
        match &self.state[state.0 as usize][index] {
            Some(element) => Ok(Some(Rc::clone(element))),
            None => Ok(self.program.initial(state, index as i64)?.map(Rc::new)),
        }
    }

    fn element(&self, state: usize, index: &Integer) -> Result<usize, Error> {
        let value = index.evaluate(&self.environment);
        let capacity = self.state.get(state).map_or(0, Vec::len);
        usize::try_from(value).ok().filter(|&index| index < capacity).ok_or_else(|| {
            Error::Execution(format!("element {value} of state array {state}, which has {capacity}, does not exist"))
        })
    }

    fn block(&mut self, region: &Region) -> Result<(), Error> {
        for &op in &region.ops {
            let results = self.op(op).map_err(|error| match error {
                Error::Execution(message) => {
                    Error::Execution(format!("{op} ({}): {message}", self.graph.origin_text(op)))
                }
                other => other,
            })?;
            let ids = &self.graph.node(op).results;
            let views: Vec<&[f64]> = results.iter().map(|result| result.as_slice()).collect();
            self.hooks.observe(op, &views);
            for (&id, result) in ids.iter().zip(results) {
                self.set(id, result);
            }
            for &value in &self.prepared.releases[op.index()] {
                self.values[value.index()] = None;
            }
        }
        Ok(())
    }

    fn op(&mut self, op: OpId) -> Result<Vec<Slots>, Error> {
        let graph = self.graph;
        let node = graph.node(op);
        let operand = |run: &Self, index: usize| -> Result<Slots, Error> {
            let id = node.inputs.get(index).ok_or_else(|| Error::Execution("an operand is missing".into()))?;
            run.get(*id).cloned()
        };
        match &node.op {
            SlotOp::Add | SlotOp::Subtract | SlotOp::Multiply => {
                let (a, b) = (operand(self, 0)?, operand(self, 1)?);
                let pairs = a.iter().zip(b.iter());
                Ok(vec![Rc::new(match node.op {
                    SlotOp::Add => pairs.map(|(x, y)| x + y).collect(),
                    SlotOp::Subtract => pairs.map(|(x, y)| x - y).collect(),
                    _ => pairs.map(|(x, y)| x * y).collect(),
                })])
            }
            SlotOp::MultiplyPlain { .. } | SlotOp::AddPlain { .. } => {
                let a = operand(self, 0)?;
                let plain = self.plain(op)?.ok_or_else(|| Error::Execution("a plaintext is missing".into()))?;
                let pairs = a.iter().zip(plain.iter());
                Ok(vec![Rc::new(match node.op {
                    SlotOp::AddPlain { .. } => pairs.map(|(x, y)| x + y).collect(),
                    _ => pairs.map(|(x, y)| x * y).collect(),
                })])
            }
            SlotOp::Linear(linear) => {
                let a = operand(self, 0)?;
                let results = linear.evaluate(&a, &self.program.tables, &self.environment, self.matrices)?;
                Ok(results.into_iter().map(Rc::new).collect())
            }
            SlotOp::Rotate { by } => {
                let a = operand(self, 0)?;
                Ok(vec![Rc::new(rotated(&a, by.evaluate(&self.environment)))])
            }
            SlotOp::RotateAndSum { steps } => {
                let mut sum = operand(self, 0)?;
                for step in steps {
                    sum = Rc::new(plus_rotated(&sum, step.evaluate(&self.environment)));
                }
                Ok(vec![sum])
            }
            SlotOp::Polynomial { polynomial, .. } => {
                let a = operand(self, 0)?;
                let mask = self.plain(op)?;
                let values = match self.hooks.polynomial(op, &self.environment, &a) {
                    Some(mut values) => {
                        if let Some(mask) = mask {
                            values.iter_mut().zip(mask.iter()).for_each(|(value, factor)| *value *= factor);
                        }
                        values
                    }
                    None => evaluate_polynomial(polynomial, &a, mask.as_ref().map(|mask| mask.as_slice()))?,
                };
                Ok(vec![Rc::new(values)])
            }
            SlotOp::Refresh { factor, .. } => {
                let operands = (0..node.inputs.len()).map(|index| operand(self, index));
                let kept = self.prepared.keeps[op.index()]
                    .map(|keep| self.prepared.formulas.condition(keep, &self.environment));
                let refreshed = |a: Slots| match &kept {
                    None if *factor == 1.0 => a,
                    None => Rc::new(a.iter().map(|x| factor * x).collect()),
                    Some(kept) => {
                        Rc::new(a.iter().zip(kept).map(|(x, &keep)| if keep { factor * x } else { 0.0 }).collect())
                    }
                };
                operands.map(|operand| operand.map(refreshed)).collect()
            }
            SlotOp::StateRead { state, index } => {
                let index = self.element(state.0 as usize, index)?;
                Ok(vec![self.kept(*state, index)?.unwrap_or_else(|| Rc::new(vec![0.0; self.slots()]))])
            }
            SlotOp::StateWrite { state, index, mode } => {
                let a = operand(self, 0)?;
                let index = self.element(state.0 as usize, index)?;
                let old = match mode {
                    WriteMode::Accumulate => self.kept(*state, index)?,
                    WriteMode::Replace => None,
                };
                let new = old.map(|old| Rc::new(old.iter().zip(a.iter()).map(|(x, y)| x + y).collect()));
                self.state[state.0 as usize][index] = Some(new.unwrap_or(a));
                Ok(Vec::new())
            }
            SlotOp::Sum { counter, count } => {
                let region = node.region.as_ref().ok_or_else(|| Error::Execution("a loop has no body".into()))?;
                let mut sums: Vec<Vec<f64>> = vec![vec![0.0; self.slots()]; node.results.len()];
                for value in 0..count.evaluate(&self.environment) {
                    self.environment.set_loop(*counter, value);
                    self.block(region)?;
                    for (sum, &id) in sums.iter_mut().zip(&region.yields) {
                        sum.iter_mut().zip(self.get(id)?.iter()).for_each(|(x, y)| *x += y);
                    }
                }
                Ok(sums.into_iter().map(Rc::new).collect())
            }
        }
    }
}

/// The largest absolute value.
fn largest(values: &[f64]) -> f64 {
    const LANES: usize = 16;
    let larger = |a: f64, b: f64| if b > a { b } else { a };
    let mut most = [0.0; LANES];
    let blocks = values.chunks_exact(LANES);
    let rest = blocks.remainder().iter().fold(0.0, |most, x| larger(most, x.abs()));
    for block in blocks {
        most.iter_mut().zip(block).for_each(|(most, x)| *most = larger(*most, x.abs()));
    }
    most.into_iter().fold(rest, larger)
}

/// The polynomial in every slot that the mask keeps, by blocks of slots; the interval is checked in all slots.
fn evaluate_polynomial(polynomial: &Chebyshev, operand: &[f64], mask: Option<&[f64]>) -> Result<Vec<f64>, Error> {
    const BLOCK: usize = 32;
    let [low, high] = polynomial.interval;
    let tolerance = INTERVAL_TOLERANCE * (high - low);
    let outside = |x: f64| !(low - tolerance..=high + tolerance).contains(&x);
    if let Some(slot) = operand.iter().position(|&x| outside(x)) {
        return Err(Error::Execution(format!(
            "slot {slot} holds {}, outside the interval {low} … {high} of a polynomial",
            operand[slot]
        )));
    }
    let kept: Vec<usize> = (0..operand.len()).filter(|&slot| mask.is_none_or(|mask| mask[slot] != 0.0)).collect();
    let mut result = vec![0.0; operand.len()];
    for slots in kept.chunks(BLOCK) {
        let mut u = [0.0; BLOCK];
        for (u, &slot) in u.iter_mut().zip(slots) {
            *u = (2.0 * operand[slot] - low - high) / (high - low);
        }
        let values = chebyshev::values(&polynomial.coefficients, u);
        for (value, &slot) in values.into_iter().zip(slots) {
            result[slot] = mask.map_or(value, |mask| value * mask[slot]);
        }
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::{EmbeddingForm, Entry, EntryKind, Placement, State};
    use crate::slots::{Domain, Fill, Layout, StateId};

    const TYPE: SlotType =
        SlotType { layout: Layout { stride: 1, fill: Fill::Junk, domain: Domain::Real }, max_abs: f64::INFINITY };

    fn program(graph: SlotGraph) -> SlotProgram {
        let placement = Placement { index_to_slot: vec![], token_stride: 1 };
        Program {
            slots: 4,
            context: 8,
            tables: Arc::default(),
            states: vec![State { name: "cache".into(), capacity: 2, layout: TYPE.layout, level: None, initial: None }],
            prefix: vec![],
            entries: vec![Entry { kind: EntryKind::Decode, graph, checks: vec![] }],
            embedding: placement.clone(),
            inputs: vec![EmbeddingForm::scaled(1.0)],
            logits: placement,
        }
    }

    fn push(graph: &mut SlotGraph, op: SlotOp, inputs: Vec<ValueId>, results: usize) -> Vec<ValueId> {
        let (id, values) = graph.add_node(op, inputs, vec![TYPE; results], None, None);
        graph.body.ops.push(id);
        values
    }

    #[test]
    fn loops_state_and_masks_follow_the_position() {
        let mut graph = SlotGraph::default();
        let x = graph.add_input("x", TYPE);
        // Σ_{i < pos + 1} rotate(x, i), written to element pos / 4 and read back with slot 1 dropped.
        let (rotate, rotated) =
            graph.add_node(SlotOp::Rotate { by: Integer::counter(0) }, vec![x], vec![TYPE], None, None);
        let region = Region { ops: vec![rotate], yields: rotated };
        let (sum, total) = graph.add_node(
            SlotOp::Sum { counter: 0, count: Integer::position() + 1 },
            vec![],
            vec![TYPE],
            None,
            Some(region),
        );
        graph.body.ops.push(sum);
        let (state, index) = (StateId(0), Integer::position() / 4);
        push(&mut graph, SlotOp::StateWrite { state, index: index.clone(), mode: WriteMode::Accumulate }, total, 0);
        let read = push(&mut graph, SlotOp::StateRead { state, index }, vec![], 1);
        let keep = Some(Integer::from(1i64) - Integer::slot().equal(1));
        let out = push(&mut graph, SlotOp::Refresh { keep, factor: 1.0 }, read, 1);
        graph.body.yields = out;
        assert!(graph.verify_structure().is_empty());
        let program = program(graph);
        let mut interpreter = Interpreter::new(&program);
        let x = vec![1.0, 2.0, 3.0, 4.0];
        assert_eq!(
            interpreter.call(EntryPoint::Decode, 0, 1, std::slice::from_ref(&x)).unwrap(),
            [[1.0, 0.0, 3.0, 4.0]]
        );
        assert_eq!(
            interpreter.call(EntryPoint::Decode, 1, 1, std::slice::from_ref(&x)).unwrap(),
            [[4.0, 0.0, 10.0, 9.0]]
        );
        assert_eq!(
            interpreter.call(EntryPoint::Decode, 4, 1, std::slice::from_ref(&x)).unwrap(),
            [[11.0, 0.0, 13.0, 14.0]]
        );
        assert_eq!(interpreter.max_abs(EntryPoint::Decode)[2], 14.0);
        assert!(interpreter.call(EntryPoint::Decode, 8, 1, &[x]).is_err());
    }

    #[test]
    fn a_slot_outside_the_interval_is_an_error() {
        let mut graph = SlotGraph::default();
        let x = graph.add_input("x", TYPE);
        let polynomial = Chebyshev { coefficients: vec![0.5, 0.25, 0.125], interval: [-2.0, 2.0] };
        let mask = Some(Vector::Scalar(1.0).masked(Integer::slot().less(2)));
        graph.body.yields = push(&mut graph, SlotOp::Polynomial { polynomial: polynomial.clone(), mask }, vec![x], 1);
        let program = program(graph);
        let mut interpreter = Interpreter::new(&program);
        let got = interpreter.call(EntryPoint::Decode, 0, 1, &[vec![1.0, -1.5, 2.0, 0.0]]).unwrap();
        let want = [polynomial.evaluate(1.0), polynomial.evaluate(-1.5), 0.0, 0.0];
        assert!(got[0].iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-12));
        assert!(interpreter.call(EntryPoint::Decode, 0, 1, &[vec![1.0, 1.0, 2.1, 0.0]]).is_err());
    }
}
