//! Clear execution of the ckks stage.
//!
//! Every value is a vector of n complex numbers with the level that the ciphertext would have; there is no noise. Levels
//! and scales follow [`crate::ckks::infer`] and must be those of the types. A rescale or a level drop changes no value; a
//! bootstrap multiplies by its factor, clears the slots that it does not keep and, if it is real, the imaginary parts. In
//! check mode, every slot must lie in its polynomial's interval, every kept slot within its bootstrap's magnitude, and
//! every value within its type's bound.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::Error;
use crate::ckks::{self, Bootstrap, CiphertextType, CkksGraph, CkksOp, Levels};
use crate::expression::{Environment, Integer, Variable, Vector};
use crate::graph::{OpId, Region, ValueId};
use crate::program::Program;
use crate::slots::{Chebyshev, WriteMode};

/// Relative slack of the checks, for rounding.
const SLACK: f64 = 1e-6;

/// The slots of a ciphertext.
#[derive(Clone, Debug, PartialEq)]
pub struct ClearSlots {
    /// Real parts.
    pub real: Vec<f64>,
    /// Imaginary parts; all zero where absent.
    pub imaginary: Option<Vec<f64>>,
}

impl ClearSlots {
    /// Real slots.
    pub fn real(values: Vec<f64>) -> Self {
        Self { real: values, imaginary: None }
    }

    /// The largest absolute value of a slot; infinite if any is not a number.
    pub fn max_abs(&self) -> f64 {
        match &self.imaginary {
            None => largest(self.real.iter().map(|x| x.abs())),
            Some(imaginary) => largest(self.real.iter().chain(imaginary).map(|x| x.abs())),
        }
    }

    fn map(&self, change: impl Fn(&[f64]) -> Vec<f64>) -> Self {
        Self { real: change(&self.real), imaginary: self.imaginary.as_deref().map(change) }
    }

    fn combine(&self, other: &Self, f: fn(f64, f64) -> f64) -> Self {
        let zip = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| f(*x, *y)).collect::<Vec<_>>();
        let imaginary = match (&self.imaginary, &other.imaginary) {
            (None, None) => None,
            (Some(a), None) => Some(a.iter().map(|x| f(*x, 0.0)).collect()),
            (None, Some(b)) => Some(b.iter().map(|y| f(0.0, *y)).collect()),
            (Some(a), Some(b)) => Some(zip(a, b)),
        };
        Self { real: zip(&self.real, &other.real), imaginary }
    }

    fn scaled(&self, factor: f64) -> Self {
        self.map(|part| part.iter().map(|x| x * factor).collect())
    }

    fn times(&self, factors: &[f64]) -> Self {
        self.map(|part| part.iter().zip(factors).map(|(x, factor)| x * factor).collect())
    }

    fn product(&self, other: &Self) -> Self {
        let Some(b) = &other.imaginary else { return self.times(&other.real) };
        let Some(a) = &self.imaginary else { return other.times(&self.real) };
        let parts = self.real.iter().zip(a).zip(other.real.iter().zip(b));
        let (real, imaginary) = parts.map(|((a, b), (c, d))| (a * c - b * d, a * d + b * c)).unzip();
        Self { real, imaginary: Some(imaginary) }
    }

    fn rotated(&self, by: usize) -> Self {
        self.map(|part| [&part[by..], &part[..by]].concat())
    }
}

fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |most, x| if x.is_nan() { f64::INFINITY } else { x.max(most) })
}

/// Sees every result of every op after it ran.
pub type Probe<'h> = &'h mut dyn FnMut(OpId, &ClearSlots);

#[derive(Clone)]
struct Held {
    slots: ClearSlots,
    level: u32,
    product: bool,
}

/// Plaintext vectors that depend on loop counters only, by op and the counters' values.
type Plains = BTreeMap<(OpId, Vec<i64>), Rc<Vec<f64>>>;

/// Executes the entry points of a program in the clear and owns their state.
pub struct Interpreter<'p> {
    program: &'p Program<CkksOp, CiphertextType>,
    levels: Levels,
    check: bool,
    state: Vec<Vec<Option<ClearSlots>>>,
    /// By entry and op: values that nothing uses after the op.
    releases: Vec<Vec<Vec<ValueId>>>,
    plains: Vec<Plains>,
}

impl<'p> Interpreter<'p> {
    /// An interpreter whose state is zero, for parameters with these levels.
    pub fn new(program: &'p Program<CkksOp, CiphertextType>, levels: Levels) -> Self {
        Self {
            program,
            levels,
            check: false,
            state: program.states.iter().map(|state| vec![None; state.capacity as usize]).collect(),
            releases: program.entries.iter().map(|entry| releases(&entry.graph)).collect(),
            plains: program.entries.iter().map(|_| Plains::new()).collect(),
        }
    }

    /// Turns the checks of intervals, magnitudes and bounds on or off.
    #[must_use]
    pub fn checking(mut self, check: bool) -> Self {
        self.check = check;
        self
    }

    /// Sets all state to zero, as at the beginning of a session.
    pub fn reset(&mut self) {
        self.state.iter_mut().flatten().for_each(|element| *element = None);
    }

    /// The elements of the state arrays; `None` is zero.
    pub fn state(&self) -> &[Vec<Option<ClearSlots>>] {
        &self.state
    }

    /// Runs an entry point for `count` tokens from `position` on; returns the outputs' real parts.
    pub fn call(
        &mut self,
        entry: &str,
        position: i64,
        count: i64,
        inputs: &[Vec<f64>],
    ) -> Result<Vec<Vec<f64>>, Error> {
        self.call_with(entry, position, count, inputs, &mut |_, _| {})
    }

    /// [`Interpreter::call`], with a probe.
    pub fn call_with(
        &mut self,
        entry: &str,
        position: i64,
        count: i64,
        inputs: &[Vec<f64>],
        probe: Probe<'_>,
    ) -> Result<Vec<Vec<f64>>, Error> {
        let program = self.program;
        let index = program.entries.iter().position(|known| known.kind.name() == entry);
        let index = index.ok_or_else(|| Error::Execution(format!("there is no entry point {entry}")))?;
        let graph = &program.entries[index].graph;
        let slots = program.slots as usize;
        if inputs.len() != graph.inputs.len() || inputs.iter().any(|input| input.len() != slots) {
            return Err(Error::Execution(format!("{entry} takes {} inputs of {slots} slots", graph.inputs.len())));
        }
        let mut run = Run {
            program,
            graph,
            levels: self.levels,
            check: self.check,
            releases: &self.releases[index],
            plains: &mut self.plains[index],
            state: &mut self.state,
            values: std::iter::repeat_with(|| None).take(graph.values.len()).collect(),
            environment: Environment::new(position, count),
            probe,
        };
        for (id, input) in graph.inputs.iter().zip(inputs) {
            let ty = graph.ty(*id);
            let held = Held { slots: ClearSlots::real(input.clone()), level: ty.level, product: ty.product };
            run.values[id.index()] = Some(held);
        }
        run.block(&graph.body)?;
        graph.body.yields.iter().map(|id| Ok(run.get(*id)?.slots.real.clone())).collect()
    }
}

/// By op: values of its own block whose last use it is.
fn releases(graph: &CkksGraph) -> Vec<Vec<ValueId>> {
    fn walk(graph: &CkksGraph, block: &Region, used_later: &mut BTreeSet<ValueId>, releases: &mut [Vec<ValueId>]) {
        let own: BTreeSet<ValueId> = block.ops.iter().flat_map(|op| &graph.node(*op).results).copied().collect();
        used_later.extend(&block.yields);
        for op in block.ops.iter().rev() {
            let node = graph.node(*op);
            let mut used: BTreeSet<ValueId> = node.inputs.iter().chain(&node.results).copied().collect();
            if let Some(region) = &node.region {
                walk(graph, region, &mut used, releases);
            }
            for value in used {
                if used_later.insert(value) && own.contains(&value) {
                    releases[op.index()].push(value);
                }
            }
        }
    }
    let mut releases = vec![Vec::new(); graph.nodes.len()];
    walk(graph, &graph.body, &mut BTreeSet::new(), &mut releases);
    releases
}

/// One call in progress.
struct Run<'r> {
    program: &'r Program<CkksOp, CiphertextType>,
    graph: &'r CkksGraph,
    levels: Levels,
    check: bool,
    releases: &'r [Vec<ValueId>],
    plains: &'r mut Plains,
    state: &'r mut [Vec<Option<ClearSlots>>],
    values: Vec<Option<Held>>,
    environment: Environment,
    probe: Probe<'r>,
}

impl Run<'_> {
    fn get(&self, id: ValueId) -> Result<&Held, Error> {
        self.values[id.index()].as_ref().ok_or_else(|| Error::Execution(format!("{id} is used before its definition")))
    }

    fn block(&mut self, block: &Region) -> Result<(), Error> {
        for op in &block.ops {
            self.op(*op).map_err(|error| match error {
                Error::Execution(message) => {
                    Error::Execution(format!("{op} ({}): {message}", self.graph.origin_text(*op)))
                }
                other => other,
            })?;
            for value in &self.releases[op.index()] {
                self.values[value.index()] = None;
            }
        }
        Ok(())
    }

    fn op(&mut self, id: OpId) -> Result<(), Error> {
        let graph = self.graph;
        let node = graph.node(id);
        if let (CkksOp::Sum { counter, count }, Some(region)) = (&node.op, &node.region) {
            for (result, sum) in node.results.iter().zip(self.sum(*counter, count, region)?) {
                let inferred = ckks::infer(&node.op, &[(sum.level, sum.product)], self.levels, None)?;
                self.define(id, *result, sum.slots, inferred)?;
            }
            return Ok(());
        }
        let mut operands = Vec::new();
        for input in &node.inputs {
            let held = self.get(*input)?;
            operands.push((held.level, held.product));
        }
        let slots = self.evaluate(id, &node.op, &node.inputs)?;
        let state_level = match &node.op {
            CkksOp::StateRead { state, .. } | CkksOp::StateWrite { state, .. } => self.program.state(*state).level,
            _ => None,
        };
        let inferred = ckks::infer(&node.op, &operands, self.levels, state_level)?;
        match (node.results.first(), slots) {
            (Some(result), Some(slots)) => self.define(id, *result, slots, inferred),
            _ => Ok(()),
        }
    }

    /// Sets a value, after a comparison with its type.
    fn define(
        &mut self,
        op: OpId,
        value: ValueId,
        slots: ClearSlots,
        inferred: Option<(u32, bool)>,
    ) -> Result<(), Error> {
        let ty = self.graph.ty(value);
        if inferred != Some((ty.level, ty.product)) {
            let found = inferred.map_or("none".to_owned(), |(level, _)| level.to_string());
            return Err(Error::Execution(format!("{value} has level {found}, its type {}", ty.level)));
        }
        let most = if self.check { slots.max_abs() } else { 0.0 };
        if most > ty.max_abs * (1.0 + SLACK) + SLACK {
            return Err(Error::Execution(format!("a slot of {value} holds {most}, above the bound {}", ty.max_abs)));
        }
        (self.probe)(op, &slots);
        self.values[value.index()] = Some(Held { slots, level: ty.level, product: ty.product });
        Ok(())
    }

    /// The sum of each value that a body yields.
    fn sum(&mut self, counter: u32, count: &Integer, region: &Region) -> Result<Vec<Held>, Error> {
        let mut sums: Vec<Held> = Vec::new();
        for value in 0..count.evaluate(&self.environment) {
            self.environment.set_loop(counter, value);
            self.block(region)?;
            for (index, yielded) in region.yields.iter().enumerate() {
                let term = self.get(*yielded)?;
                match sums.get_mut(index) {
                    None => sums.push(term.clone()),
                    Some(sum) if (sum.level, sum.product) == (term.level, term.product) => {
                        sum.slots = sum.slots.combine(&term.slots, |x, y| x + y);
                    }
                    Some(_) => return Err(Error::Execution("the terms of a sum differ in level or scale".into())),
                }
            }
        }
        if sums.is_empty() {
            return Err(Error::Execution("a loop ran no times".into()));
        }
        Ok(sums)
    }

    /// What the op gives, except for loops.
    fn evaluate(&mut self, id: OpId, op: &CkksOp, inputs: &[ValueId]) -> Result<Option<ClearSlots>, Error> {
        let count = self.program.slots as usize;
        let plain = match op {
            CkksOp::MultiplyPlain { plain }
            | CkksOp::AddPlain { plain }
            | CkksOp::Polynomial { mask: Some(plain), .. } => Some(self.plain(id, plain)?),
            _ => None,
        };
        let operand = |index: usize| -> Result<&ClearSlots, Error> {
            let id = inputs.get(index).ok_or_else(|| Error::Execution("an operand is missing".into()))?;
            Ok(&self.get(*id)?.slots)
        };
        Ok(Some(match op {
            CkksOp::Add => operand(0)?.combine(operand(1)?, |x, y| x + y),
            CkksOp::Subtract => operand(0)?.combine(operand(1)?, |x, y| x - y),
            CkksOp::Multiply => operand(0)?.product(operand(1)?),
            CkksOp::MultiplyPlain { .. } => operand(0)?.times(plain.as_deref().map_or(&[], |plain| plain)),
            CkksOp::AddPlain { .. } => {
                let summand = plain.as_deref().map_or(&[][..], |plain| plain);
                let real = operand(0)?.real.iter().zip(summand).map(|(x, y)| x + y).collect();
                ClearSlots { real, imaginary: operand(0)?.imaginary.clone() }
            }
            CkksOp::MultiplyScalar { factor } => operand(0)?.scaled(*factor),
            CkksOp::MultiplyInteger { factor } => operand(0)?.scaled(*factor as f64),
            CkksOp::MultiplyByI => {
                let a = operand(0)?;
                let real = match &a.imaginary {
                    None => vec![0.0; count],
                    Some(imaginary) => imaginary.iter().map(|y| -y).collect(),
                };
                ClearSlots { real, imaginary: Some(a.real.clone()) }
            }
            CkksOp::Conjugate => {
                let a = operand(0)?;
                let imaginary = a.imaginary.as_ref().map(|part| part.iter().map(|y| -y).collect());
                ClearSlots { real: a.real.clone(), imaginary }
            }
            CkksOp::Rescale | CkksOp::DropLevels { .. } => operand(0)?.clone(),
            CkksOp::Rotate { by } => {
                operand(0)?.rotated(by.evaluate(&self.environment).rem_euclid(count as i64) as usize)
            }
            CkksOp::Polynomial { polynomial, .. } => {
                let result = self.polynomial(polynomial, operand(0)?)?;
                plain.map_or(result.clone(), |mask| result.times(&mask))
            }
            CkksOp::Bootstrap(bootstrap) => self.bootstrap(bootstrap, operand(0)?)?,
            CkksOp::StateRead { state, index } => {
                let element = self.element(state.0 as usize, index)?;
                let zero = || ClearSlots::real(vec![0.0; count]);
                self.state[state.0 as usize][element].clone().unwrap_or_else(zero)
            }
            CkksOp::StateWrite { state, index, mode } => {
                let value = operand(0)?.clone();
                let element = self.element(state.0 as usize, index)?;
                let place = &mut self.state[state.0 as usize][element];
                *place = Some(match (mode, place.take()) {
                    (WriteMode::Accumulate, Some(old)) => old.combine(&value, |x, y| x + y),
                    _ => value,
                });
                return Ok(None);
            }
            CkksOp::Sum { .. } => return Err(Error::Execution("a loop has no body".into())),
        }))
    }

    fn element(&self, state: usize, index: &Integer) -> Result<usize, Error> {
        let value = index.evaluate(&self.environment);
        let capacity = self.state.get(state).map_or(0, Vec::len);
        usize::try_from(value).ok().filter(|index| *index < capacity).ok_or_else(|| {
            Error::Execution(format!("element {value} of state array c{state}, which has {capacity}, does not exist"))
        })
    }

    fn plain(&mut self, id: OpId, vector: &Vector) -> Result<Rc<Vec<f64>>, Error> {
        let mut variables = BTreeSet::new();
        vector.collect_variables(&mut variables);
        let keep = variables.iter().all(|variable| matches!(variable, Variable::Loop(_) | Variable::Slot));
        let number = |variable: &Variable| Integer::Variable(*variable).evaluate(&self.environment);
        let key = (id, variables.iter().map(number).collect());
        if let Some(known) = self.plains.get(&key).filter(|_| keep) {
            return Ok(Rc::clone(known));
        }
        let slots = self.program.slots as usize;
        let values = Rc::new(vector.evaluate(&self.environment, slots, &self.program.tables)?);
        if keep {
            self.plains.insert(key, Rc::clone(&values));
        }
        Ok(values)
    }

    fn polynomial(&self, polynomial: &Chebyshev, operand: &ClearSlots) -> Result<ClearSlots, Error> {
        let [low, high] = polynomial.interval;
        let slack = SLACK * (high - low);
        let outside = |x: &&f64| !(low - slack..=high + slack).contains(*x);
        if self.check
            && let Some(x) = operand.real.iter().find(outside)
        {
            return Err(Error::Execution(format!("a slot holds {x}, outside {low} … {high}")));
        }
        Ok(match &operand.imaginary {
            None => ClearSlots::real(operand.real.iter().map(|x| polynomial.evaluate(*x)).collect()),
            Some(imaginary) => {
                let points = operand.real.iter().zip(imaginary);
                let (real, imaginary) = points.map(|(x, y)| evaluate_complex(polynomial, *x, *y)).unzip();
                ClearSlots { real, imaginary: Some(imaginary) }
            }
        })
    }

    fn bootstrap(&self, bootstrap: &Bootstrap, operand: &ClearSlots) -> Result<ClearSlots, Error> {
        let mut result = operand.scaled(bootstrap.factor);
        if !bootstrap.complex {
            result.imaginary = None;
        }
        if let Some(keep) = &bootstrap.keep {
            let kept = keep.evaluate_slots(&self.environment, operand.real.len());
            result =
                result.map(|part| part.iter().zip(&kept).map(|(x, keep)| if *keep == 0 { 0.0 } else { *x }).collect());
        }
        let most = f64::from(bootstrap.log2_magnitude).exp2() * (1.0 + SLACK);
        let parts = result.real.iter().chain(result.imaginary.iter().flatten());
        let found = largest(parts.map(|x| x.abs()));
        if self.check && found > most {
            return Err(Error::Execution(format!(
                "a kept slot holds {found}, above the bootstrap's magnitude 2^{}",
                bootstrap.log2_magnitude
            )));
        }
        Ok(result)
    }
}

/// The polynomial at x + i·y, by Clenshaw's recurrence.
fn evaluate_complex(polynomial: &Chebyshev, x: f64, y: f64) -> (f64, f64) {
    let [low, high] = polynomial.interval;
    let (u, v) = ((2.0 * x - low - high) / (high - low), 2.0 * y / (high - low));
    let (mut next, mut after) = ((0.0, 0.0), (0.0, 0.0));
    let times = |(a, b): (f64, f64)| (a * u - b * v, a * v + b * u);
    for &c in polynomial.coefficients.iter().skip(1).rev() {
        let product = times(next);
        (next, after) = ((2.0 * product.0 - after.0 + c, 2.0 * product.1 - after.1), next);
    }
    let product = times(next);
    let constant = polynomial.coefficients.first().copied().unwrap_or(0.0);
    (product.0 - after.0 + constant, product.1 - after.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::{EmbeddingForm, Entry, EntryKind, Placement, State};
    use crate::slots::{Domain, Fill, Layout, StateId};

    const LEVELS: Levels = Levels { output: 16, bootstrap_input: 3 };

    fn ty(level: u32, product: bool, max_abs: f64) -> CiphertextType {
        let layout = Layout { stride: 1, fill: Fill::Junk, domain: Domain::Complex };
        CiphertextType { level, product, layout, max_abs }
    }

    fn program(graph: CkksGraph) -> Program<CkksOp, CiphertextType> {
        let placement = Placement { index_to_slot: vec![], token_stride: 1 };
        let layout = Layout { stride: 1, fill: Fill::Junk, domain: Domain::Real };
        Program {
            slots: 4,
            context: 8,
            tables: vec![],
            states: vec![State { name: "cache".into(), capacity: 2, layout, level: Some(5) }],
            entries: vec![Entry { kind: EntryKind::Decode, graph, checks: vec![] }],
            embedding: placement.clone(),
            inputs: vec![EmbeddingForm::scaled(1.0)],
            logits: placement,
        }
    }

    fn push(graph: &mut CkksGraph, op: CkksOp, inputs: &[ValueId], ty: CiphertextType) -> ValueId {
        let (id, values) = graph.add_node(op, inputs.to_vec(), vec![ty], None, None);
        graph.body.ops.push(id);
        values[0]
    }

    /// Two real vectors as one complex one, bootstrapped together and split by conjugation.
    #[test]
    fn one_complex_bootstrap_serves_two_vectors() {
        let mut graph = CkksGraph::default();
        let a = graph.add_input("a", ty(3, false, 1.0));
        let b = graph.add_input("b", ty(3, false, 1.0));
        let ib = push(&mut graph, CkksOp::MultiplyByI, &[b], ty(3, false, 1.0));
        let z = push(&mut graph, CkksOp::Add, &[a, ib], ty(3, false, 2.0));
        let keep = Some(Integer::slot().less(3));
        let bootstrap = Bootstrap { complex: true, keep, factor: 0.5, log2_magnitude: 0 };
        let z = push(&mut graph, CkksOp::Bootstrap(bootstrap), &[z], ty(16, false, 1.0));
        let conjugate = push(&mut graph, CkksOp::Conjugate, &[z], ty(16, false, 1.0));
        let real = push(&mut graph, CkksOp::Add, &[z, conjugate], ty(16, false, 2.0));
        let difference = push(&mut graph, CkksOp::Subtract, &[conjugate, z], ty(16, false, 2.0));
        let imaginary = push(&mut graph, CkksOp::MultiplyByI, &[difference], ty(16, false, 2.0));
        graph.body.yields = vec![real, imaginary];
        let program = program(graph);
        let mut interpreter = Interpreter::new(&program, LEVELS).checking(true);
        let inputs = [vec![0.5, -0.25, 1.0, 1.0], vec![1.0, 0.75, -0.125, 0.5]];
        let mut seen = 0;
        let outputs = interpreter.call_with("decode", 0, 1, &inputs, &mut |_, _| seen += 1).unwrap();
        assert_eq!(outputs, [[0.5, -0.25, 1.0, 0.0], [1.0, 0.75, -0.125, 0.0]]);
        assert_eq!(seen, 7);
        let large = [vec![2.5, 0.0, 0.0, 0.0], vec![0.0; 4]];
        let message = interpreter.call("decode", 0, 1, &large).unwrap_err().to_string();
        assert!(message.contains("above"), "{message}");
        assert!(Interpreter::new(&program, LEVELS).call("decode", 0, 1, &large).is_ok());
    }

    #[test]
    fn loops_read_the_state_that_earlier_calls_wrote() {
        let mut graph = CkksGraph::default();
        let x = graph.add_input("x", ty(5, false, 9.0));
        let (state, mode) = (StateId(0), WriteMode::Accumulate);
        let write = CkksOp::StateWrite { state, index: Integer::position() / 2, mode };
        let (write, _) = graph.add_node(write, vec![x], vec![], None, None);
        graph.body.ops.push(write);
        let read = CkksOp::StateRead { state, index: Integer::counter(0) };
        let (read, values) = graph.add_node(read, vec![], vec![ty(5, false, 99.0)], None, None);
        let by = Integer::counter(0);
        let (rotate, rotated) = graph.add_node(CkksOp::Rotate { by }, values, vec![ty(5, false, 99.0)], None, None);
        let region = Region { ops: vec![read, rotate], yields: rotated };
        let op = CkksOp::Sum { counter: 0, count: Integer::position() / 2 + 1 };
        let (sum, total) = graph.add_node(op, vec![], vec![ty(5, false, 99.0)], None, Some(region));
        graph.body.ops.push(sum);
        graph.body.yields = total;
        let program = program(graph);
        crate::verify::ckks(&program, LEVELS).unwrap();
        let mut interpreter = Interpreter::new(&program, LEVELS).checking(true);
        let mut step = |position: i64, x: [f64; 4]| interpreter.call("decode", position, 1, &[x.to_vec()]);
        assert_eq!(step(0, [1.0, 2.0, 3.0, 4.0]).unwrap(), [[1.0, 2.0, 3.0, 4.0]]);
        assert_eq!(step(1, [1.0; 4]).unwrap(), [[2.0, 3.0, 4.0, 5.0]]);
        assert_eq!(step(2, [5.0, 6.0, 7.0, 8.0]).unwrap(), [[8.0, 10.0, 12.0, 10.0]]);
        assert!(step(4, [0.0; 4]).is_err());
    }

    #[test]
    fn levels_are_inferred_and_compared() {
        let mut graph = CkksGraph::default();
        let x = graph.add_input("x", ty(5, false, 1.0));
        let square = push(&mut graph, CkksOp::Multiply, &[x, x], ty(5, true, 1.0));
        graph.body.yields = vec![push(&mut graph, CkksOp::Rescale, &[square], ty(5, false, 1.0))];
        let program = program(graph);
        let message = Interpreter::new(&program, LEVELS).call("decode", 0, 1, &[vec![0.5; 4]]).unwrap_err().to_string();
        assert!(message.contains("level 4, its type 5"), "{message}");
        assert!(crate::verify::ckks(&program, LEVELS).is_err());
    }

    #[test]
    fn complex_polynomials_agree_with_powers() {
        // T_2(z) = 2z² − 1, T_3(z) = 4z³ − 3z.
        let polynomial = Chebyshev { coefficients: vec![0.5, -1.0, 0.25, 2.0], interval: [-1.0, 1.0] };
        let (x, y) = (0.3_f64, -0.7_f64);
        let square = (x * x - y * y, 2.0 * x * y);
        let cube = (square.0 * x - square.1 * y, square.0 * y + square.1 * x);
        let real = 0.5 - x + 0.25 * (2.0 * square.0 - 1.0) + 2.0 * (4.0 * cube.0 - 3.0 * x);
        let imaginary = -y + 0.5 * square.1 + 2.0 * (4.0 * cube.1 - 3.0 * y);
        let found = evaluate_complex(&polynomial, x, y);
        assert!((found.0 - real).abs() < 1e-12 && (found.1 - imaginary).abs() < 1e-12);
    }
}
