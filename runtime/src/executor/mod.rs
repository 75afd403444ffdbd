//! Runs the entry points of a ckks program over any [`Algebra`].
//!
//! A plan holds parametric graphs; a call supplies the position and the number of tokens, from which rotation amounts,
//! loop counts, state indices and plaintext vectors follow. The executor keeps control flow and memory: it evaluates
//! those expressions, frees a value after its last use, decomposes a value once when it is rotated more than once,
//! keeps encoded plaintexts between decode steps, and adds a loop's products to their sum without storing them. Levels and
//! scales are those of the types, and every op is checked against [`ckks::infer`].
//!
//! Nothing here can name a secret key: an [`Algebra`] has no operation that needs one.

mod algebra;
mod checked;
mod clear;
mod encrypted;
mod linear;
mod noisy;
mod plaintexts;
mod schedule;
mod state;

use std::sync::{Arc, Mutex, PoisonError};

use cachemir_ir::ckks::{self, CiphertextType, CkksGraph, CkksOp, Levels};
use cachemir_ir::expression::{Environment, Integer, Variable, Vector};
use cachemir_ir::graph::{OpId, Region, ValueId};
use cachemir_ir::linear::Linear;
use cachemir_ir::program::{EntryKind, EntryPoint, Program, State};
use cachemir_ir::rotations::additions_at;
use cachemir_ir::slots::{StateId, WriteMode};

pub use algebra::Algebra;
pub use checked::Checked;
pub use clear::{Clear, ClearCiphertext, ClearPlaintext};
pub use encrypted::{Encrypted, slot_kind};
pub use noisy::Noisy;
pub use state::States;

use crate::Error;
use linear::Running;
use plaintexts::{Key, Part, Plaintexts};
pub(crate) use schedule::Schedule;

/// Name of [`Clear`].
pub const CLEAR: &str = "clear";
/// Name of [`Noisy`].
pub const NOISY: &str = "noisy";
/// Name of [`Encrypted`].
pub const ENCRYPTED: &str = "encrypted";
/// Name of [`Checked`].
pub const CHECKED: &str = "checked";

/// A program of the ckks stage with its entry points.
pub type CkksProgram = Program<CkksOp, CiphertextType>;

/// An op that is being executed.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// The entry point's graph.
    pub graph: &'a CkksGraph,
    /// The op.
    pub op: OpId,
    /// Values of the variables.
    pub environment: &'a Environment,
}

/// Follows an execution op by op: for progress, statistics and checks. An error ends the execution.
pub trait Observer<C> {
    /// Called before an op runs.
    fn before(&mut self, site: Site<'_>, operands: &[&C]) -> Result<(), Error> {
        let _ = (site, operands);
        Ok(())
    }

    /// Called after an op without a body has run. There is no result of products that were added to a loop's sum directly.
    fn after(&mut self, site: Site<'_>, results: &[&C]) -> Result<(), Error> {
        let _ = (site, results);
        Ok(())
    }
}

/// Observes nothing.
impl<C> Observer<C> for () {}

/// Two observers, one after the other.
impl<C, P: Observer<C>, Q: Observer<C>> Observer<C> for (P, Q) {
    fn before(&mut self, site: Site<'_>, operands: &[&C]) -> Result<(), Error> {
        self.0.before(site, operands)?;
        self.1.before(site, operands)
    }

    fn after(&mut self, site: Site<'_>, results: &[&C]) -> Result<(), Error> {
        self.0.after(site, results)?;
        self.1.after(site, results)
    }
}

/// A program made ready to run over an algebra.
pub struct Executor<'p, A: Algebra> {
    algebra: A,
    program: &'p CkksProgram,
    levels: Levels,
    schedules: Vec<Schedule>,
    plaintexts: Mutex<Plaintexts<A::Plaintext>>,
}

impl<'p, A: Algebra> Executor<'p, A> {
    /// Prepares a program; encoded plaintexts are kept up to `plaintext_budget_bytes`.
    pub fn new(
        algebra: A,
        program: &'p CkksProgram,
        levels: Levels,
        plaintext_budget_bytes: usize,
    ) -> Result<Self, Error> {
        if algebra.slots() != program.slots as usize {
            let message = format!("the program has {} slots, the algebra {}", program.slots, algebra.slots());
            return Err(Error::execution(message));
        }
        if !program.has_weights() {
            return Err(Error::NoWeights);
        }
        for entry in &program.entries {
            let problems = entry.graph.verify_structure();
            if !problems.is_empty() {
                return Err(Error::execution(format!("{}: {}", entry.kind.entry(), problems.join("; "))));
            }
        }
        let schedules = program.entries.iter().map(|entry| Schedule::new(&entry.graph)).collect();
        let plaintexts = Mutex::new(Plaintexts::new(plaintext_budget_bytes));
        Ok(Self { algebra, program, levels, schedules, plaintexts })
    }

    /// The algebra.
    pub fn algebra(&self) -> &A {
        &self.algebra
    }

    /// The program.
    pub fn program(&self) -> &'p CkksProgram {
        self.program
    }

    /// A state element that was not written yet, encrypted under no key: zeros, or what the public prefix left there.
    fn initial(&self, state: StateId, index: i64) -> Result<A::Ciphertext, Error> {
        match self.prefix_of(state, index)? {
            Some(element) => Ok(element),
            None => self.unwritten(state),
        }
    }

    fn unwritten(&self, state: StateId) -> Result<A::Ciphertext, Error> {
        let State { level, layout, .. } = *self.program.state(state);
        let level = level.ok_or_else(|| Error::execution("a state array has no level"))?;
        self.algebra.zero(&CiphertextType { level, product: false, layout, max_abs: 0.0 })
    }

    /// What the public prefix left in a state element, encrypted under no key; `None` for zeros.
    fn prefix_of(&self, state: StateId, index: i64) -> Result<Option<A::Ciphertext>, Error> {
        let Some(slots) = self.program.initial(state, index)? else { return Ok(None) };
        let mut element = self.unwritten(state)?;
        let (level, product) = self.algebra.level(&element);
        self.algebra.add_plain_assign(&mut element, &self.algebra.encode_summand(&slots, level, product)?)?;
        Ok(Some(element))
    }

    /// Bytes of encoded plaintexts that are kept for later calls.
    pub fn plaintext_bytes(&self) -> usize {
        self.plaintexts.lock().unwrap_or_else(PoisonError::into_inner).used_bytes()
    }

    /// Runs the entry point of the given name for `count` tokens from `position` on, and returns its outputs.
    ///
    /// When the call fails or is interrupted, the states are as they were before it.
    pub fn call(
        &self,
        entry: EntryPoint,
        position: usize,
        count: usize,
        inputs: Vec<A::Ciphertext>,
        states: &mut States<A::Ciphertext>,
        observer: &mut dyn Observer<A::Ciphertext>,
    ) -> Result<Vec<A::Ciphertext>, Error> {
        let index = self
            .program
            .entries
            .iter()
            .position(|candidate| candidate.kind.entry() == entry)
            .ok_or_else(|| Error::execution(format!("the plan has no entry point {entry}")))?;
        let graph = &self.program.entries[index].graph;
        if inputs.len() != graph.inputs.len() {
            let message = format!("{entry} takes {} inputs, {} were given", graph.inputs.len(), inputs.len());
            return Err(Error::execution(message));
        }
        let mut call = Call {
            executor: self,
            entry: index,
            graph,
            schedule: &self.schedules[index],
            environment: Environment::new(position as i64, count as i64),
            values: graph.values.iter().map(|_| None).collect(),
            decompositions: graph.values.iter().map(|_| None).collect(),
            states: states.clone(),
            observer,
        };
        for (&value, input) in graph.inputs.iter().zip(inputs) {
            call.define(value, Arc::new(input)).map_err(|error| error.at(|| format!("input {value} of {entry}")))?;
        }
        let result = call.run();
        let new_states = call.states;
        // A prompt is taken in once, but decode steps follow each other.
        let repeats = self.program.entries[index].kind == EntryKind::Decode;
        self.plaintexts.lock().unwrap_or_else(PoisonError::into_inner).end_call(index, repeats);
        let outputs = result?;
        *states = new_states;
        Ok(outputs)
    }
}

/// One execution of an entry point.
struct Call<'a, 'p, A: Algebra> {
    executor: &'a Executor<'p, A>,
    entry: usize,
    graph: &'a CkksGraph,
    schedule: &'a Schedule,
    environment: Environment,
    values: Vec<Option<Arc<A::Ciphertext>>>,
    decompositions: Vec<Option<A::Decomposition>>,
    states: States<A::Ciphertext>,
    observer: &'a mut dyn Observer<A::Ciphertext>,
}

impl<'a, A: Algebra> Call<'a, '_, A> {
    fn run(&mut self) -> Result<Vec<A::Ciphertext>, Error> {
        let graph = self.graph;
        self.run_block(&graph.body, &mut [])?;
        graph.body.yields.iter().map(|&value| self.value(value).and_then(|value| self.owned(value))).collect()
    }

    /// Runs a block's ops; products that only feed a sum which has a value already are added to it.
    fn run_block(&mut self, block: &'a Region, sums: &mut [Option<A::Ciphertext>]) -> Result<(), Error> {
        let (graph, schedule) = (self.graph, self.schedule);
        for &op in &block.ops {
            let sum = schedule.accumulates(op).and_then(|index| sums.get_mut(index)).and_then(Option::as_mut);
            self.run_op(op, sum).map_err(|error| error.at(|| graph.origin_text(op)))?;
            for value in schedule.dead_after(op) {
                self.values[value.index()] = None;
                self.decompositions[value.index()] = None;
            }
        }
        Ok(())
    }

    fn run_op(&mut self, op: OpId, sum: Option<&mut A::Ciphertext>) -> Result<(), Error> {
        let (graph, algebra) = (self.graph, &self.executor.algebra);
        let node = graph.node(op);
        let expected = self.check_levels(op)?;
        {
            let operands: Vec<_> = node.inputs.iter().map(|&value| self.value(value)).collect::<Result<_, _>>()?;
            let operands: Vec<&A::Ciphertext> = operands.iter().map(Arc::as_ref).collect();
            self.observer.before(Site { graph, op, environment: &self.environment }, &operands)?;
        }
        if let (CkksOp::MultiplyPlain { plain }, Some(sum)) = (&node.op, sum) {
            let operand = self.operand(node.inputs[0])?;
            let plain = self.plaintext(op, plain, |values| algebra.encode_factor(values, operand.1))?;
            algebra.multiply_plain_accumulate(sum, &[(&operand.0, &plain)])?;
            return self.observer.after(Site { graph, op, environment: &self.environment }, &[]);
        }
        if let CkksOp::Linear(linear) = &node.op {
            return self.run_linear(op, linear);
        }
        if let CkksOp::Sum { counter, count } = &node.op {
            return self.run_sum(op, *counter, count);
        }
        let result = self.compute(op)?;
        self.observer.after(Site { graph, op, environment: &self.environment }, result.as_deref().as_slice())?;
        if let (Some(result), Some(&value)) = (result, node.results.first()) {
            if let Some(expected) = expected
                && algebra.level(&result) != expected
            {
                let message = format!("the result is at {:?}, expected {expected:?}", algebra.level(&result));
                return Err(Error::execution(message));
            }
            self.define(value, result)?;
        }
        Ok(())
    }

    /// Executes an op without a body, and returns its result.
    fn compute(&mut self, op: OpId) -> Result<Option<Arc<A::Ciphertext>>, Error> {
        let (graph, algebra) = (self.graph, &self.executor.algebra);
        let node = graph.node(op);
        let first = || node.inputs.first().copied().ok_or_else(|| Error::execution("an operand is missing"));
        let second = || node.inputs.get(1).copied().ok_or_else(|| Error::execution("an operand is missing"));
        Ok(Some(match &node.op {
            CkksOp::Add | CkksOp::Subtract => {
                let b = self.value(second()?)?;
                let mut a = self.consume(op, first()?)?;
                match node.op {
                    CkksOp::Add => algebra.add_assign(&mut a, &b)?,
                    _ => algebra.subtract_assign(&mut a, &b)?,
                }
                Arc::new(a)
            }
            CkksOp::Multiply => Arc::new(algebra.multiply(&*self.value(first()?)?, &*self.value(second()?)?)?),
            CkksOp::MultiplyPlain { plain } => {
                let (a, level) = self.operand(first()?)?;
                let plain = self.plaintext(op, plain, |values| algebra.encode_factor(values, level))?;
                Arc::new(algebra.multiply_plain(&a, &plain)?)
            }
            CkksOp::MultiplyScalar { factor } => Arc::new(algebra.multiply_scalar(&*self.value(first()?)?, *factor)?),
            CkksOp::MultiplyInteger { factor } => {
                let mut a = self.consume(op, first()?)?;
                algebra.multiply_integer_assign(&mut a, *factor)?;
                Arc::new(a)
            }
            CkksOp::AddPlain { plain } => {
                let (level, product) = algebra.level(&*self.value(first()?)?);
                let plain = self.plaintext(op, plain, |values| algebra.encode_summand(values, level, product))?;
                let mut a = self.consume(op, first()?)?;
                algebra.add_plain_assign(&mut a, &plain)?;
                Arc::new(a)
            }
            CkksOp::MultiplyByI => {
                let mut a = self.consume(op, first()?)?;
                algebra.multiply_by_i_assign(&mut a)?;
                Arc::new(a)
            }
            CkksOp::Rescale => {
                let mut a = self.consume(op, first()?)?;
                algebra.rescale_assign(&mut a)?;
                Arc::new(a)
            }
            CkksOp::DropLevels { to } => {
                let (a, level) = self.operand(first()?)?;
                if level == *to { a } else { Arc::new(algebra.drop_levels(&a, *to)?) }
            }
            CkksOp::Rotate { by } => self.rotate(first()?, by)?,
            CkksOp::RotateAndSum { steps } => {
                let mut sum = self.value(first()?)?;
                for amounts in additions_at(steps, self.executor.program.slots, &self.environment) {
                    sum = Arc::new(self.add_rotations(&sum, &amounts)?);
                }
                sum
            }
            CkksOp::Conjugate => Arc::new(algebra.conjugate(&*self.value(first()?)?)?),
            CkksOp::Polynomial { polynomial, mask } => {
                let mask = mask.as_ref().map(|mask| self.evaluate(mask)).transpose()?;
                Arc::new(algebra.polynomial(&*self.value(first()?)?, polynomial, mask.as_deref())?)
            }
            CkksOp::Bootstrap(variant) => {
                let keep = variant.keep.as_ref().map(|keep| {
                    let slots = keep.evaluate_slots(&self.environment, algebra.slots());
                    slots.into_iter().map(|condition| condition != 0).collect::<Vec<bool>>()
                });
                Arc::new(algebra.bootstrap(&*self.value(first()?)?, variant, keep.as_deref())?)
            }
            CkksOp::StateRead { state, index } => {
                let index = index.evaluate(&self.environment);
                match self.states.element(state.0 as usize, index)? {
                    Some(element) => Arc::clone(element),
                    None => Arc::new(self.executor.initial(*state, index)?),
                }
            }
            CkksOp::StateWrite { state, index, mode } => {
                let index = index.evaluate(&self.environment);
                let value = self.value(first()?)?;
                let element = self.states.element(state.0 as usize, index)?;
                let old = match (mode, element.take()) {
                    (WriteMode::Replace, _) => None,
                    (WriteMode::Accumulate, Some(old)) => {
                        Some(Arc::try_unwrap(old).or_else(|shared| algebra.duplicate(&shared))?)
                    }
                    (WriteMode::Accumulate, None) => self.executor.prefix_of(*state, index)?,
                };
                *element = Some(match old {
                    None => value,
                    Some(mut sum) => {
                        algebra.add_assign(&mut sum, &value)?;
                        Arc::new(sum)
                    }
                });
                return Ok(None);
            }
            CkksOp::Linear(_) | CkksOp::Sum { .. } => return Err(Error::execution("the op has no direct result")),
        }))
    }

    fn run_linear(&mut self, op: OpId, linear: &'a Linear) -> Result<(), Error> {
        let node = self.graph.node(op);
        let operand = node.inputs.first().ok_or_else(|| Error::execution("an operand is missing"))?;
        let x = self.value(*operand)?;
        let slots = self.executor.program.slots;
        // Matrices are dropped with it.
        let results = {
            let mut running = Running { call: self, op, linear, matrices: None };
            linear.apply(slots, &self.environment, &mut running, &*x)?
        };
        let site = Site { graph: self.graph, op, environment: &self.environment };
        self.observer.after(site, &results.iter().collect::<Vec<_>>())?;
        for (&value, result) in node.results.iter().zip(results) {
            self.define(value, Arc::new(result))?;
        }
        Ok(())
    }

    fn run_sum(&mut self, op: OpId, counter: u32, count: &Integer) -> Result<(), Error> {
        let graph = self.graph;
        let node = graph.node(op);
        let region = node.region.as_ref().ok_or_else(|| Error::execution("a loop has no body"))?;
        let count = count.evaluate(&self.environment);
        if count < 1 {
            return Err(Error::execution(format!("a loop of {count} iterations")));
        }
        let mut sums: Vec<Option<A::Ciphertext>> = region.yields.iter().map(|_| None).collect();
        for iteration in 0..count {
            self.environment.set_loop(counter, iteration);
            self.run_block(region, &mut sums)?;
            // What was accumulated has no value. A value of an enclosing block stays, one of the body is given up.
            let yielded: Vec<_> = region.yields.iter().map(|value| self.values[value.index()].clone()).collect();
            for &value in &region.yields {
                if self.is_defined_in(value, region) {
                    self.values[value.index()] = None;
                    self.decompositions[value.index()] = None;
                }
            }
            for (sum, yielded) in sums.iter_mut().zip(yielded) {
                match (sum.as_mut(), yielded) {
                    (Some(sum), Some(yielded)) => self.executor.algebra.add_assign(sum, &yielded)?,
                    (None, Some(yielded)) => *sum = Some(self.owned(yielded)?),
                    (_, None) => {}
                }
            }
        }
        self.environment.set_loop(counter, 0);
        for (&value, sum) in node.results.iter().zip(sums) {
            let sum = sum.ok_or_else(|| Error::execution("a loop yielded nothing"))?;
            self.define(value, Arc::new(sum))?;
        }
        Ok(())
    }

    fn rotate(&mut self, operand: ValueId, by: &Integer) -> Result<Arc<A::Ciphertext>, Error> {
        let algebra = &self.executor.algebra;
        let slots = algebra.slots();
        let by = by.evaluate(&self.environment).rem_euclid(slots as i64) as usize;
        let a = self.value(operand)?;
        if by == 0 {
            return Ok(a);
        }
        if !self.schedule.is_hoisted(operand) {
            return Ok(Arc::new(algebra.rotate(&a, by)?));
        }
        let slot = &mut self.decompositions[operand.index()];
        let decomposition = match slot {
            Some(known) => known,
            None => slot.insert(algebra.decompose(&a)?),
        };
        Ok(Arc::new(algebra.rotate_decomposed(&a, decomposition, by)?))
    }

    /// a plus its rotations by the amounts.
    fn add_rotations(&self, a: &A::Ciphertext, by: &[i64]) -> Result<A::Ciphertext, Error> {
        let algebra = &self.executor.algebra;
        let amounts: Vec<usize> = by.iter().map(|by| by.rem_euclid(algebra.slots() as i64) as usize).collect();
        algebra.add_rotations(a, &amounts)
    }

    /// The level that the op's result must have; fails where the operands do not fit the op.
    fn check_levels(&self, op: OpId) -> Result<Option<(u32, bool)>, Error> {
        let node = self.graph.node(op);
        let mut operands = Vec::with_capacity(node.inputs.len());
        for &value in &node.inputs {
            operands.push(self.executor.algebra.level(&*self.value(value)?));
        }
        let state_level = match &node.op {
            CkksOp::StateRead { state, .. } | CkksOp::StateWrite { state, .. } => {
                self.executor.program.states.get(state.0 as usize).and_then(|state| state.level)
            }
            CkksOp::Sum { .. } => return Ok(None),
            _ => None,
        };
        Ok(ckks::infer(&node.op, &operands, self.executor.levels, state_level)?)
    }

    /// Gives a value its ciphertext; the level must be that of its type.
    fn define(&mut self, value: ValueId, ciphertext: Arc<A::Ciphertext>) -> Result<(), Error> {
        let ty = self.graph.ty(value);
        let level = self.executor.algebra.level(&ciphertext);
        if level != (ty.level, ty.product) {
            let message = format!("{value} is at {level:?}, but its type says {:?}", (ty.level, ty.product));
            return Err(Error::execution(message));
        }
        self.values[value.index()] = Some(ciphertext);
        self.decompositions[value.index()] = None;
        Ok(())
    }

    fn value(&self, value: ValueId) -> Result<Arc<A::Ciphertext>, Error> {
        let known = self.values[value.index()].as_ref();
        known.map(Arc::clone).ok_or_else(|| Error::execution(format!("{value} is used where it has no value")))
    }

    /// A value with its level.
    fn operand(&self, value: ValueId) -> Result<(Arc<A::Ciphertext>, u32), Error> {
        let ciphertext = self.value(value)?;
        let (level, _) = self.executor.algebra.level(&ciphertext);
        Ok((ciphertext, level))
    }

    /// The value as a ciphertext of one's own: itself where the op is its last user, else a copy.
    fn consume(&mut self, op: OpId, value: ValueId) -> Result<A::Ciphertext, Error> {
        let shared = self.value(value)?;
        if self.schedule.dead_after(op).contains(&value) {
            self.values[value.index()] = None;
        }
        self.owned(shared)
    }

    fn owned(&self, shared: Arc<A::Ciphertext>) -> Result<A::Ciphertext, Error> {
        Arc::try_unwrap(shared).or_else(|shared| self.executor.algebra.duplicate(&shared))
    }

    fn is_defined_in(&self, value: ValueId, region: &Region) -> bool {
        region.ops.iter().any(|&op| self.graph.node(op).results.contains(&value))
    }

    fn evaluate(&self, vector: &Vector) -> Result<Vec<f64>, Error> {
        Ok(vector.evaluate(&self.environment, self.executor.algebra.slots(), &self.executor.program.tables)?)
    }

    fn plaintext(
        &self,
        op: OpId,
        vector: &Vector,
        encode: impl FnOnce(&[f64]) -> Result<A::Plaintext, Error>,
    ) -> Result<Arc<A::Plaintext>, Error> {
        self.kept_one(op, Part::Whole, |variable| vector.mentions(variable), || encode(&self.evaluate(vector)?))
    }

    /// A plaintext of an op, of a formula that mentions some of the variables; encoded unless it was kept.
    fn kept_one(
        &self,
        op: OpId,
        part: Part,
        mentions: impl Fn(Variable) -> bool,
        encode: impl FnOnce() -> Result<A::Plaintext, Error>,
    ) -> Result<Arc<A::Plaintext>, Error> {
        Ok(self.kept(op, &[part], mentions, |_| Ok(vec![encode()?]))?.remove(0))
    }

    /// Whether plaintexts of an op that mention no variables are to be encoded whole: they are kept already, some of them at
    /// least, or there may be room for them and another call that uses them.
    fn keeps(&self, op: OpId, parts: &[Part]) -> bool {
        let known = self.executor.plaintexts.lock().unwrap_or_else(PoisonError::into_inner);
        let repeats = self.executor.program.entries[self.entry].kind == EntryKind::Decode;
        let key = |&part: &Part| Key::new(self.entry, op, part, |_| false, &self.environment);
        repeats && !known.is_full() || parts.iter().any(|part| known.get(&key(part)).is_some())
    }

    /// Several plaintexts of an op, of formulas that mention the same variables. `encode` is given the places of those
    /// that were not kept, if there are any.
    fn kept(
        &self,
        op: OpId,
        parts: &[Part],
        mentions: impl Fn(Variable) -> bool,
        encode: impl FnOnce(&[usize]) -> Result<Vec<A::Plaintext>, Error>,
    ) -> Result<Vec<Arc<A::Plaintext>>, Error> {
        let key = |&part: &Part| Key::new(self.entry, op, part, &mentions, &self.environment);
        let keys: Vec<Key> = parts.iter().map(key).collect();
        let lock = || self.executor.plaintexts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found: Vec<Option<Arc<A::Plaintext>>> = {
            let known = lock();
            keys.iter().map(|key| known.get(key)).collect()
        };
        let missing: Vec<usize> = (0..found.len()).filter(|&place| found[place].is_none()).collect();
        if !missing.is_empty() {
            // A prefill runs once for many tokens; its plaintexts would only displace those of every step.
            let repeats = self.executor.program.entries[self.entry].kind == EntryKind::Decode;
            for (&place, plain) in missing.iter().zip(encode(&missing)?) {
                let plain = Arc::new(plain);
                if repeats {
                    lock().offer(keys[place].clone(), &plain, self.executor.algebra.plaintext_bytes(&plain));
                }
                found[place] = Some(plain);
            }
        }
        found.into_iter().map(|plain| plain.ok_or_else(|| Error::execution("a plaintext was not encoded"))).collect()
    }
}

#[cfg(test)]
mod encrypted_tests;
#[cfg(test)]
mod tests;
