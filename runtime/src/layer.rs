//! One decoder layer of a plan, run by itself and measured part by part.
//!
//! A [`Workload`] is a layer cut out of the plan ([`cachemir_ir::layer`]) with something to do: its inputs and its caches
//! just before a token at some position, in the clear. Where the plan has weights, they are those of a text that the whole
//! program has taken in in the clear. Where it was compiled from shapes alone, weights, inputs and caches are random, of the
//! sizes that the plan assumes. The layer then runs in the clear, which gives what every op should give, and under
//! encryption, which is measured and held against it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use cachemir_ir::ckks::{CkksOp, Levels};
use cachemir_ir::cost::{CostTable, for_each_execution};
use cachemir_ir::graph::ValueId;
use cachemir_ir::layer::{Layer, Part};
use cachemir_ir::manifest::KeyManifest;
use cachemir_ir::plan::Plan;
use cachemir_ir::program::{EntryPoint, pack};
use cachemir_ir::table::{Contents, Table};
use cachemir_ir::text::TextOp;
use cachemir_ir::weights::Weights;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::Error;
use crate::check::{RangeCheck, precision_bits};
use crate::client::Cipher;
use crate::executor::{Algebra, CkksProgram, Clear, ClearCiphertext, Executor, Observer, Site, States};

/// The entry point that layers are cut out of.
const DECODE: EntryPoint = EntryPoint::Decode;

/// Which layer, and what it has to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The layer; one in the middle where absent.
    pub layer: Option<u32>,
    /// Position of the token: as many are in the caches. The last one of the context where absent.
    pub position: Option<u32>,
    /// Decides random weights, inputs and caches.
    pub seed: u64,
}

/// A layer with its inputs and its caches, in the clear.
#[derive(Debug)]
pub struct Workload {
    /// The layer, with weights.
    pub layer: Layer,
    /// Its number.
    pub number: u32,
    /// Number of layers of the plan.
    pub layers: u32,
    /// Position of the token.
    pub position: u32,
    levels: Levels,
    inputs: Vec<ClearCiphertext>,
    states: States<ClearCiphertext>,
    parts: Vec<Part>,
}

/// What every op of a layer gives in the clear, in the order of execution.
#[derive(Debug)]
pub struct Exact {
    results: Vec<Vec<ClearCiphertext>>,
    outputs: Vec<ClearCiphertext>,
    /// Whether values kept to the ranges of polynomials and bootstraps.
    pub ranges: RangeCheck,
}

impl Exact {
    /// What the layer hands on, in the order of its outputs.
    pub fn outputs(&self) -> &[ClearCiphertext] {
        &self.outputs
    }

    /// Number of executions of ops.
    pub fn operations(&self) -> usize {
        self.results.len()
    }
}

/// What was measured of one kind of op in one part of a layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// Executions.
    pub count: u64,
    /// Time that they took.
    pub seconds: f64,
    /// Time that the cost table predicts for them, on one thread.
    pub predicted_seconds: f64,
    /// Precision of what they gave; `None` where all of it is next to zero.
    pub precision: Option<Precision>,
}

/// How far values are from exact ones, as −log2 of the error relative to the largest slot of the value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Precision {
    /// Of the largest error of any slot of any value.
    pub bits_min: f64,
    /// Of the mean error of a value's slots, in the mean over values.
    pub bits_mean: f64,
    values: usize,
}

impl Precision {
    fn with(known: Option<Self>, (worst, mean): (f64, f64)) -> Self {
        let Self { bits_min, bits_mean, values } =
            known.unwrap_or(Self { bits_min: f64::INFINITY, bits_mean: 0.0, values: 0 });
        let values = values + 1;
        Self { bits_min: bits_min.min(worst), bits_mean: bits_mean + (mean - bits_mean) / values as f64, values }
    }

    /// Of values that both are of.
    fn joined(self, other: Self) -> Self {
        let values = self.values + other.values;
        let share = other.values as f64 / values.max(1) as f64;
        let bits_mean = self.bits_mean + share * (other.bits_mean - self.bits_mean);
        Self { bits_min: self.bits_min.min(other.bits_min), bits_mean, values }
    }
}

impl Row {
    fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.seconds += other.seconds;
        self.predicted_seconds += other.predicted_seconds;
        self.precision = match (self.precision, other.precision) {
            (Some(a), Some(b)) => Some(a.joined(b)),
            (a, b) => a.or(b),
        };
    }
}

/// What was measured of a layer.
#[derive(Clone, Debug)]
pub struct Measured {
    /// By part and by mnemonic of the op.
    pub rows: BTreeMap<(Part, &'static str), Row>,
    /// Precision of what the layer hands on.
    pub outputs: Option<Precision>,
}

/// Time of a token, by extrapolation from one layer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Token {
    /// In all layers.
    pub layers_seconds: f64,
    /// Before and after them.
    pub rest_seconds: f64,
    /// Of both, as the cost table predicts it on one thread.
    pub predicted_seconds: f64,
}

impl Token {
    /// Of the whole token.
    pub fn seconds(&self) -> f64 {
        self.layers_seconds + self.rest_seconds
    }
}

impl Measured {
    /// By part.
    pub fn parts(&self) -> BTreeMap<Part, Row> {
        let mut parts: BTreeMap<Part, Row> = BTreeMap::new();
        for ((part, _), row) in &self.rows {
            parts.entry(*part).or_default().add(row);
        }
        parts
    }

    /// What a token of the layer's whole program takes at a position, by extrapolation: each kind of op is taken to stand to
    /// what is predicted of it as it does in this layer.
    pub fn extrapolated(&self, program: &CkksProgram, position: u32, costs: &CostTable) -> Token {
        let ratio = |row: &Row| row.seconds / row.predicted_seconds.max(f64::MIN_POSITIVE);
        let mut kinds: BTreeMap<&str, Row> = BTreeMap::new();
        for ((_, op), row) in &self.rows {
            kinds.entry(*op).or_default().add(row);
        }
        let overall = ratio(&self.total());
        let mut token = Token::default();
        for_each_execution(program, DECODE, position.into(), 1, &mut |graph, op, _| {
            let node = graph.node(op);
            let predicted_seconds = costs.node_ns(graph, op, program.slots) / 1e9;
            let kind = kinds.get(node.op.mnemonic()).filter(|row| row.predicted_seconds > 0.0);
            let seconds = predicted_seconds * kind.map_or(overall, ratio);
            token.predicted_seconds += predicted_seconds;
            *(if node.layer.is_some() { &mut token.layers_seconds } else { &mut token.rest_seconds }) += seconds;
        });
        token
    }

    /// Everything together.
    pub fn total(&self) -> Row {
        let mut total = Row::default();
        self.rows.values().for_each(|row| total.add(row));
        total
    }
}

impl Workload {
    /// A layer of a plan with something to do. `tokens` are the text that a plan with weights takes in, from its beginning
    /// on, so far as it is needed; `progress` is told how many of the tokens were taken in.
    ///
    /// # Errors
    /// A layer or a position that the plan does not have, fewer tokens than the position asks for, and those of execution.
    pub fn new(
        plan: &Plan,
        options: &Options,
        tokens: &[u32],
        progress: &mut dyn FnMut(usize) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        let program = &plan.program;
        let layers = program.layers();
        let number = options.layer.unwrap_or(layers / 2);
        let layer = program.layer(number).ok_or_else(|| Error::BadOption {
            option: "--layer",
            message: match layers {
                0 => "the plan's program has no decoder layers".to_owned(),
                _ => format!("there is no layer {number}: the plan has layers 0 to {}", layers - 1),
            },
        })?;
        let (first, last) = (program.prefix.len() as u32, program.context - 1);
        let position = options.position.unwrap_or(last);
        if !(first..=last).contains(&position) {
            let message = format!("{position} is not among the plan's positions, {first} to {last}");
            return Err(Error::BadOption { option: "--position", message });
        }
        let states = States::new(&layer.program);
        let parts = layer.parts();
        let levels = plan.levels();
        let mut workload = Self { layer, number, layers, position, levels, inputs: Vec::new(), states, parts };
        if plan.has_weights() {
            workload.take_in(plan, tokens, progress)?;
        } else {
            workload.make_up(plan, options.seed);
        }
        Ok(workload)
    }

    /// Bytes of the layer's weights as they are stored.
    pub fn weight_bytes(&self) -> u64 {
        self.layer.program.tables.iter().filter_map(Table::weights).map(Weights::stored_bytes).sum()
    }

    /// The keys that the layer needs.
    pub fn keys(&self) -> KeyManifest {
        KeyManifest::of(&self.layer.program)
    }

    /// Takes the text in in the clear, up to the token whose call is measured, and keeps what crosses into the layer then.
    fn take_in(
        &mut self,
        plan: &Plan,
        tokens: &[u32],
        progress: &mut dyn FnMut(usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let program = &plan.program;
        let executor = Executor::new(Clear::new(program.slots as usize, self.levels), program, self.levels, 0)?;
        let graph = &program.entry(DECODE).ok_or_else(|| Error::execution("the plan does not decode"))?.graph;
        let mut states = States::new(program);
        let mut crossing = Crossing { wanted: &self.layer.inputs, found: BTreeMap::new() };
        for position in program.prefix.len()..=self.position as usize {
            let token = *tokens.get(position).ok_or(Error::EmptyPrompt)?;
            let vocabulary = plan.model.vocabulary;
            let embedding = plan.model.embedding_of(token)?.ok_or(Error::NoSuchToken { token, vocabulary })?;
            let packed = pack(&program.inputs, &program.embedding, program.slots as usize, &[embedding]);
            let packed = packed.ok_or_else(|| Error::execution("an embedding has no room in its slots"))?;
            let fresh = |(slots, &value): (&Vec<f64>, &ValueId)| ClearCiphertext::fresh(slots, graph.ty(value).level);
            let inputs: Vec<ClearCiphertext> = packed.iter().zip(&graph.inputs).map(fresh).collect();
            if position == self.position as usize {
                for (array, state) in self.states.arrays_mut().iter_mut().zip(&self.layer.states) {
                    array.clone_from(&states.arrays()[state.0 as usize]);
                }
                for (&value, input) in graph.inputs.iter().zip(&inputs) {
                    crossing.found.insert(value, input.clone());
                }
                executor.call(DECODE, position, 1, inputs, &mut states, &mut crossing)?;
            } else {
                executor.call(DECODE, position, 1, inputs, &mut states, &mut ())?;
            }
            progress(position + 1)?;
        }
        let found = self.layer.inputs.iter().map(|value| crossing.found.get(value).cloned());
        self.inputs =
            found.collect::<Option<_>>().ok_or_else(|| Error::execution("an input of the layer was not seen"))?;
        Ok(())
    }

    /// Makes up weights, inputs and caches of the sizes that a plan without weights assumes.
    fn make_up(&mut self, plan: &Plan, seed: u64) {
        /// The program holds the residual stream so that the sum of its squares is at most two; this is an ordinary one.
        const SQUARES: f64 = 0.4;
        /// Bounds of assumed values are so many standard deviations.
        const BOUND: f64 = 8.0;
        // Of the whole plan's tables, which have shapes only, the layer has copies.
        let tables = Arc::make_mut(&mut self.layer.program.tables);
        tables.par_iter_mut().enumerate().for_each(|(index, table)| fill(table, seed, index as u64));
        let slots = plan.program.slots as usize;
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let places = &plan.program.embedding.index_to_slot;
        let deviation = (SQUARES / places.len().max(1) as f64).sqrt();
        let graph = self.layer.graph();
        for &input in &graph.inputs {
            let mut values = vec![0.0; slots];
            let numbers = uniform(deviation, &mut random).take(places.len());
            places.iter().zip(numbers).for_each(|(&slot, number)| values[slot as usize] = number);
            self.inputs.push(ClearCiphertext::fresh(&values, graph.ty(input).level));
        }
        let mut bounds = vec![0.0; self.layer.states.len()];
        graph.for_each_op(|op, _| {
            let node = graph.node(op);
            if let (CkksOp::StateRead { state, .. }, Some(&result)) = (&node.op, node.results.first()) {
                bounds[state.0 as usize] = graph.ty(result).max_abs;
            }
        });
        let arrays = self.states.arrays_mut().iter_mut().zip(&self.layer.program.states).zip(bounds);
        for ((array, state), bound) in arrays {
            for element in array {
                let values: Vec<f64> = uniform(bound / BOUND, &mut random).take(slots).collect();
                *element = Some(Arc::new(ClearCiphertext::fresh(&values, state.level.unwrap_or(0))));
            }
        }
    }

    /// Runs the layer in the clear.
    pub fn exact(&self) -> Result<Exact, Error> {
        let program = &self.layer.program;
        let algebra = Clear::new(program.slots as usize, self.levels);
        let executor = Executor::new(algebra, program, self.levels, 0)?;
        let mut watch = (RangeCheck::default(), Recorder::default());
        let mut states = self.states.clone();
        let outputs = executor.call(DECODE, self.position as usize, 1, self.inputs.clone(), &mut states, &mut watch)?;
        let (ranges, recorder) = watch;
        Ok(Exact { results: recorder.results, outputs, ranges })
    }

    /// Runs the layer twice by an executor of its program. The first run leaves memory and what is kept in it as the layers
    /// before this one would; the second is measured and compared with exact results, which takes a decryption of each.
    /// `progress` is told the predicted time of what is done of both, in nanoseconds.
    pub fn measure<A, C>(
        &self,
        executor: &Executor<'_, A>,
        cipher: &C,
        exact: &Exact,
        costs: &CostTable,
        interrupt: &AtomicBool,
        progress: &mut dyn FnMut(f64),
    ) -> Result<Measured, Error>
    where
        A: Algebra,
        C: Cipher<Ciphertext = A::Ciphertext>,
    {
        let encrypt = |clear: &ClearCiphertext| {
            let slots: Vec<f64> = clear.slots.iter().map(|slot| slot.re).collect();
            cipher.encrypt(&slots, clear.level)
        };
        let run = |watch: &mut dyn Observer<A::Ciphertext>| {
            let inputs = self.inputs.iter().map(encrypt).collect::<Result<_, _>>()?;
            let mut states = States::new(&self.layer.program);
            for (array, exact) in states.arrays_mut().iter_mut().zip(self.states.arrays()) {
                for (element, exact) in array.iter_mut().zip(exact) {
                    *element = exact.as_ref().map(|exact| encrypt(exact).map(Arc::new)).transpose()?;
                }
            }
            executor.call(DECODE, self.position as usize, 1, inputs, &mut states, watch)
        };
        let mut pace = Pace { slots: self.layer.program.slots, costs, interrupt, progress, done_ns: 0.0 };
        run(&mut pace)?;
        let (rows, exact_results) = (BTreeMap::new(), exact.results.iter());
        let mut watch =
            Stopwatch { pace, parts: &self.parts, cipher, exact: exact_results, rows, mark: Instant::now() };
        let outputs = run(&mut watch)?;
        let mut precision = None;
        for (output, exact) in outputs.iter().zip(&exact.outputs) {
            if let Some(found) = precision_bits(&cipher.decrypt(output)?, &exact.slots) {
                precision = Some(Precision::with(precision, found));
            }
        }
        Ok(Measured { rows: watch.rows, outputs: precision })
    }

    /// Predicted time of the layer by a cost table, in nanoseconds on one thread.
    pub fn predicted_ns(&self, costs: &CostTable) -> f64 {
        costs.predict(&self.layer.program, DECODE, self.position.into())
    }
}

/// Gives a table of which only the shape is known entries of its deviation.
fn fill(table: &mut Table, seed: u64, number: u64) {
    let (&Contents::Unknown { deviation }, Some(entries)) = (&table.contents, table.entries()) else { return };
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(1 + number);
    let values: Vec<f32> = uniform(deviation, &mut random).take(entries).map(|number| number as f32).collect();
    *table = Table::new(std::mem::take(&mut table.name), std::mem::take(&mut table.shape), values);
}

/// Independent numbers around zero with this standard deviation.
fn uniform<R: Rng>(deviation: f64, random: &mut R) -> impl Iterator<Item = f64> {
    let most = deviation * 3.0_f64.sqrt();
    random.random_iter::<f32>().map(move |share| most * (2.0 * f64::from(share) - 1.0))
}

/// Keeps the values that are wanted.
struct Crossing<'w> {
    wanted: &'w [ValueId],
    found: BTreeMap<ValueId, ClearCiphertext>,
}

impl Observer<ClearCiphertext> for Crossing<'_> {
    fn after(&mut self, site: Site<'_>, results: &[&ClearCiphertext]) -> Result<(), Error> {
        for (value, &result) in site.graph.node(site.op).results.iter().zip(results) {
            if self.wanted.contains(value) {
                self.found.insert(*value, result.clone());
            }
        }
        Ok(())
    }
}

/// Keeps what every op gives.
#[derive(Default)]
struct Recorder {
    results: Vec<Vec<ClearCiphertext>>,
}

impl Observer<ClearCiphertext> for Recorder {
    fn after(&mut self, _: Site<'_>, results: &[&ClearCiphertext]) -> Result<(), Error> {
        self.results.push(results.iter().copied().cloned().collect());
        Ok(())
    }
}

/// Tells how much is done, and stops when asked to.
struct Pace<'a> {
    slots: u32,
    costs: &'a CostTable,
    interrupt: &'a AtomicBool,
    progress: &'a mut dyn FnMut(f64),
    done_ns: f64,
}

impl Pace<'_> {
    fn check(&self) -> Result<(), Error> {
        if self.interrupt.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// The predicted time of an op that is done, in nanoseconds.
    fn advance(&mut self, site: Site<'_>) -> f64 {
        let predicted_ns = self.costs.node_ns(site.graph, site.op, self.slots);
        self.done_ns += predicted_ns;
        (self.progress)(self.done_ns);
        predicted_ns
    }
}

impl<C> Observer<C> for Pace<'_> {
    fn before(&mut self, _: Site<'_>, _: &[&C]) -> Result<(), Error> {
        self.check()
    }

    fn after(&mut self, site: Site<'_>, _: &[&C]) -> Result<(), Error> {
        self.advance(site);
        Ok(())
    }
}

/// Takes the time of every op, and then compares what it gave.
struct Stopwatch<'a, C> {
    pace: Pace<'a>,
    parts: &'a [Part],
    cipher: &'a C,
    exact: std::slice::Iter<'a, Vec<ClearCiphertext>>,
    rows: BTreeMap<(Part, &'static str), Row>,
    /// Since when the next op is paid for.
    mark: Instant,
}

impl<C: Cipher> Observer<C::Ciphertext> for Stopwatch<'_, C> {
    fn before(&mut self, _: Site<'_>, _: &[&C::Ciphertext]) -> Result<(), Error> {
        self.pace.check()
    }

    fn after(&mut self, site: Site<'_>, results: &[&C::Ciphertext]) -> Result<(), Error> {
        let seconds = self.mark.elapsed().as_secs_f64();
        let predicted_ns = self.pace.advance(site);
        let mut row = Row { count: 1, seconds, predicted_seconds: predicted_ns / 1e9, precision: None };
        for (result, exact) in results.iter().zip(self.exact.next().into_iter().flatten()) {
            if let Some(found) = precision_bits(&self.cipher.decrypt(result)?, &exact.slots) {
                row.precision = Some(Precision::with(row.precision, found));
            }
        }
        let mnemonic = site.graph.node(site.op).op.mnemonic();
        self.rows.entry((self.parts[site.op.index()], mnemonic)).or_default().add(&row);
        self.mark = Instant::now();
        Ok(())
    }
}
