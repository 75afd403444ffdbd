//! What ops cost: a table of measured times as data, and predictions from it.
//!
//! A [`CostTable`] gives each [`CostKind`] at a few levels in nanoseconds on one thread; between two levels the cost is
//! interpolated linearly, beyond the ends it continues their slope. Tables are written by `cachemir-run bench ops` and say
//! where they come from; regenerate one when kernels or parameters change.
//!
//! The built-in table was measured for the preset `n16` (`cost/n16.json` says on which machine); other parameters count by
//! their ring degree. [`CostTable::transform_ns`] carries a table over to other machines.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::ckks::{CiphertextType, CkksGraph, CkksOp};
use crate::expression::{Environment, Integer, Variable, Vector};
use crate::graph::{OpId, Region};
use crate::linear::{Linear, Step};
use crate::parameters::Parameters;
use crate::program::{Entry, Program};
use crate::rotations;

/// Version of the table's JSON form.
pub const COST_TABLE_VERSION: u32 = 2;

/// The measured table of the preset `n16`.
const MEASURED_N16: &str = include_str!("cost/n16.json");

/// What is timed by level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CostKind {
    /// Sum or difference of two ciphertexts, or a product with an integer or i.
    Add,
    /// Product of two ciphertexts, with relinearisation and without rescale.
    Multiply,
    /// Product with an encoded plaintext.
    MultiplyPlain,
    /// Encoding of a plaintext.
    Encode,
    /// Rescale.
    Rescale,
    /// Rotation or conjugation.
    Rotate,
}

impl CostKind {
    /// All kinds.
    pub const ALL: [Self; 6] =
        [Self::Add, Self::Multiply, Self::MultiplyPlain, Self::Encode, Self::Rescale, Self::Rotate];
}

/// A measured point.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CostPoint {
    /// Level of the operands.
    pub level: u32,
    /// Time in nanoseconds.
    pub ns: f64,
}

/// A measured bootstrap.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BootstrapCost {
    /// Whether slots are complex.
    pub complex: bool,
    /// log2 of the number of slots.
    pub log2_slots: u32,
    /// Time in nanoseconds.
    pub ns: f64,
}

/// Times of all ops for one parameter set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CostTable {
    /// [`COST_TABLE_VERSION`]
    pub format_version: u32,
    /// Where the numbers come from: machine, backend, date, or the model that they follow.
    pub provenance: String,
    /// Name of the parameter set.
    pub parameters: String,
    /// One forward number-theoretic transform of the ring's degree by the same kernels, in nanoseconds on one thread: what the
    /// times of two machines, or of two kinds of kernels, compare by.
    pub transform_ns: f64,
    /// By kind: points in ascending order of level.
    pub by_level: BTreeMap<CostKind, Vec<CostPoint>>,
    /// Bootstraps, in ascending order of slots for each variant.
    pub bootstraps: Vec<BootstrapCost>,
    /// Whether weights are encoded at each use, as there are too many to be held encoded.
    #[serde(skip)]
    pub weights_streamed: bool,
}

/// Most weights of linear maps that are taken to be held encoded: at about 100 bytes each, 16 for each of six primes, they
/// take 8 GiB.
const MOST_WEIGHTS_HELD: u64 = 80_000_000;

/// Straight lines through points in ascending order; the ends' lines continue, but not below zero.
fn interpolate(points: &[(f64, f64)], at: f64) -> f64 {
    match points {
        [] => 0.0,
        [(_, only)] => *only,
        _ => {
            let upper = points.iter().position(|(x, _)| *x >= at).unwrap_or(points.len() - 1).max(1);
            let ((x0, y0), (x1, y1)) = (points[upper - 1], points[upper]);
            (y0 + (y1 - y0) * (at - x0) / (x1 - x0)).max(0.0)
        }
    }
}

/// Work of a transform of degree N, relative to 2^16: N·log2 N.
fn relative_transform(log2_degree: u32) -> f64 {
    let log2_degree = f64::from(log2_degree);
    (log2_degree - 16.0).exp2() * log2_degree / 16.0
}

impl CostTable {
    /// The built-in table for a parameter set.
    #[allow(clippy::missing_panics_doc)]
    pub fn built_in(parameters: &Parameters) -> Self {
        let measured = Self::from_json(MEASURED_N16).expect("a test reads the built-in table");
        let relative = relative_transform(parameters.log2_degree);
        let provenance = if relative == 1.0 {
            measured.provenance.clone()
        } else {
            format!("{}, by N·log2 N from `{}`", measured.provenance, measured.parameters)
        };
        Self { provenance, parameters: parameters.name.clone(), ..measured.scaled(relative) }
    }

    /// The same table for programs whose linear maps have so many weights.
    #[must_use]
    pub fn for_weights(self, weights: u64) -> Self {
        Self { weights_streamed: weights > MOST_WEIGHTS_HELD, ..self }
    }

    /// The built-in table for a program.
    pub fn of_program(parameters: &Parameters, program: &Program<CkksOp, CiphertextType>) -> Self {
        Self::built_in(parameters).for_weights(program.table_entries())
    }

    /// The same table for a machine on which a transform of the ring's degree takes so many nanoseconds.
    #[must_use]
    pub fn carried_over(self, transform_ns: f64) -> Self {
        let factor = transform_ns / self.transform_ns;
        self.scaled(factor)
    }

    /// All times multiplied.
    fn scaled(mut self, factor: f64) -> Self {
        self.transform_ns *= factor;
        for point in self.by_level.values_mut().flatten() {
            point.ns *= factor;
        }
        for row in &mut self.bootstraps {
            row.ns *= factor;
        }
        self
    }

    /// Reads and checks a table's JSON form.
    pub fn from_json(text: &str) -> Result<Self, Error> {
        let table: Self = serde_json::from_str(text).map_err(|error| Error::CostTable(error.to_string()))?;
        if table.format_version != COST_TABLE_VERSION {
            let found = table.format_version;
            return Err(Error::CostTable(format!("its version is {found}, and {COST_TABLE_VERSION} is understood")));
        }
        if let Some(kind) = CostKind::ALL.iter().find(|kind| !table.by_level.contains_key(kind)) {
            return Err(Error::CostTable(format!("it has no times for {kind:?}")));
        }
        if [false, true].iter().any(|complex| table.bootstraps.iter().all(|row| row.complex != *complex)) {
            return Err(Error::CostTable("it lacks a real or a complex bootstrap".to_owned()));
        }
        for (kind, points) in &table.by_level {
            if points.is_empty() || points.windows(2).any(|pair| pair[0].level >= pair[1].level) {
                return Err(Error::CostTable(format!("the levels of {kind:?} are not in ascending order")));
            }
        }
        if !table.transform_ns.is_finite() || table.transform_ns <= 0.0 {
            return Err(Error::CostTable("the time of a transform is not positive".to_owned()));
        }
        let times = table.by_level.values().flatten().map(|point| point.ns);
        if times.chain(table.bootstraps.iter().map(|row| row.ns)).any(|ns| !ns.is_finite() || ns < 0.0) {
            return Err(Error::CostTable("a time is negative".to_owned()));
        }
        Ok(table)
    }

    /// The table's JSON form.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }

    /// Time of one kind at a level, in nanoseconds.
    pub fn ns(&self, kind: CostKind, level: f64) -> f64 {
        let points = self.by_level.get(&kind).map_or(&[][..], |points| points);
        let points: Vec<_> = points.iter().map(|point| (f64::from(point.level), point.ns)).collect();
        interpolate(&points, level)
    }

    /// Time of a bootstrap, in nanoseconds.
    pub fn bootstrap_ns(&self, complex: bool, slots: u32) -> f64 {
        let rows = self.bootstraps.iter().filter(|row| row.complex == complex);
        let points: Vec<_> = rows.map(|row| (f64::from(row.log2_slots), row.ns)).collect();
        interpolate(&points, f64::from(slots.max(1)).log2())
    }

    /// Time of one execution of an op at its operands' level, in nanoseconds. Loops cost what their bodies cost.
    /// Plaintexts that depend on position or count are encoded at each execution, and weights of linear maps where they are
    /// [streamed](Self::weights_streamed); others are held encoded.
    pub fn op_ns(&self, op: &CkksOp, level: u32, slots: u32) -> f64 {
        let at = f64::from(level);
        let plain_ns = |plain: &Vector, kind: CostKind| {
            let varies = plain.mentions(Variable::Position) || plain.mentions(Variable::Count);
            self.ns(kind, at) + if varies { self.ns(CostKind::Encode, at) } else { 0.0 }
        };
        match op {
            CkksOp::Add
            | CkksOp::Subtract
            | CkksOp::MultiplyInteger { .. }
            | CkksOp::MultiplyByI
            | CkksOp::StateWrite { .. } => self.ns(CostKind::Add, at),
            CkksOp::Multiply => self.ns(CostKind::Multiply, at),
            CkksOp::MultiplyPlain { plain } => plain_ns(plain, CostKind::MultiplyPlain),
            CkksOp::AddPlain { plain } => plain_ns(plain, CostKind::Add),
            CkksOp::MultiplyScalar { .. } => self.ns(CostKind::MultiplyPlain, at),
            CkksOp::Linear(linear) => self.linear_ns(linear, level, slots),
            CkksOp::Rescale => self.ns(CostKind::Rescale, at),
            CkksOp::DropLevels { to } if *to < level => self.ns(CostKind::Rescale, f64::from(to + 1)),
            CkksOp::Rotate { by: Integer::Constant(0) }
            | CkksOp::DropLevels { .. }
            | CkksOp::StateRead { .. }
            | CkksOp::Sum { .. } => 0.0,
            CkksOp::RotateAndSum { steps } => {
                rotations::relative_cost(steps.len()) * self.ns(CostKind::Rotate, at)
                    + steps.len().div_ceil(2) as f64 * self.ns(CostKind::Add, at)
            }
            CkksOp::Rotate { .. } | CkksOp::Conjugate => self.ns(CostKind::Rotate, at),
            CkksOp::Polynomial { polynomial, mask } => {
                let (products, depth) = polynomial_products(polynomial.degree());
                let middle = (at - f64::from(depth) / 2.0).max(1.0);
                let product = self.ns(CostKind::Multiply, middle) + self.ns(CostKind::Rescale, middle);
                let terms = polynomial.coefficients.len() as f64;
                let encodings = if mask.is_some() { terms * self.ns(CostKind::Encode, middle) } else { 0.0 };
                products * product + terms * self.ns(CostKind::MultiplyPlain, middle) + encodings
            }
            CkksOp::Bootstrap(bootstrap) => self.bootstrap_ns(bootstrap.complex, slots),
        }
    }

    /// [`op_ns`](Self::op_ns) of an op of a graph, at its own level.
    pub fn node_ns(&self, graph: &CkksGraph, op: OpId, slots: u32) -> f64 {
        self.op_ns(&graph.node(op).op, graph.level(op), slots)
    }

    /// Time of a linear map whose operand has this level, in nanoseconds.
    pub fn linear_ns(&self, linear: &Linear, level: u32, slots: u32) -> f64 {
        let mut total = 0.0;
        linear.for_each_step(slots, &Environment::new(0, 1), &mut |step, below| {
            let (kind, part) = match step {
                Step::Rotate { sharing, .. } => (CostKind::Rotate, sharing.relative_cost()),
                Step::Conjugate => (CostKind::Rotate, 1.0),
                Step::MultiplyPlain => (CostKind::MultiplyPlain, 1.0),
                Step::Rescale => (CostKind::Rescale, 1.0),
                Step::Add | Step::AddPlain => (CostKind::Add, 1.0),
            };
            let at = f64::from(level.saturating_sub(below));
            total += part * self.ns(kind, at);
            if self.weights_streamed && step == Step::MultiplyPlain {
                total += self.ns(CostKind::Encode, at);
            }
        });
        total
    }

    /// Predicted time of a call from `position` on, in nanoseconds on one thread: a decode step, or a prefill of a whole
    /// chunk; 0 for an entry point that the program does not have.
    pub fn predict(&self, program: &Program<CkksOp, CiphertextType>, entry: &str, position: i64) -> f64 {
        self.predict_layers(program, entry, position).values().sum()
    }

    /// [`predict`](Self::predict) by decoder layer; what belongs to none under `None`.
    pub fn predict_layers(
        &self,
        program: &Program<CkksOp, CiphertextType>,
        entry: &str,
        position: i64,
    ) -> BTreeMap<Option<u32>, f64> {
        self.priced(program, entry).map_or_else(BTreeMap::new, |entry| entry.layers(position))
    }

    fn priced<'p>(&self, program: &'p Program<CkksOp, CiphertextType>, entry: &str) -> Option<PricedEntry<'p>> {
        let entry = program.entry(entry)?;
        let graph = &entry.graph;
        let price = |index: usize| {
            let op = OpId(index as u32);
            let pass = match graph.node(op).op {
                CkksOp::Sum { .. } => self.ns(CostKind::Add, f64::from(graph.level(op))),
                _ => 0.0,
            };
            self.node_ns(graph, op, program.slots) + pass
        };
        Some(PricedEntry { program, entry, ns: (0..graph.nodes.len()).map(price).collect() })
    }

    /// For each multiple of the chunk: from how many tokens on a prefill there is predicted to be faster than decoding
    /// them one by one, from 2 to the chunk's length, and one more than that where it never is. The prefill is priced
    /// with a whole chunk, than which fewer tokens are hardly cheaper. Empty for a program without prefill.
    pub fn prefill_pays(&self, program: &Program<CkksOp, CiphertextType>) -> Vec<u32> {
        let [decode, prefill] = ["decode", "prefill"].map(|name| self.priced(program, name));
        let (Some(decode), Some(prefill)) = (decode, prefill) else { return Vec::new() };
        let chunk = prefill.entry.kind.chunk().unwrap_or(1).max(1);
        let least = |start: u32| {
            let (end, prefill_ns) = (program.context.min(start + chunk), prefill.call_ns(start.into()));
            let mut decode_ns = 0.0;
            let pays = (start..end).find(|&position| {
                decode_ns += decode.call_ns(position.into());
                position > start && prefill_ns < decode_ns
            });
            pays.map_or(chunk, |last| last - start) + 1
        };
        (0..program.context).step_by(chunk as usize).map(least).collect()
    }
}

/// An entry point and the predicted time of an execution of each of its ops, in nanoseconds.
struct PricedEntry<'p> {
    program: &'p Program<CkksOp, CiphertextType>,
    entry: &'p Entry<CkksOp, CiphertextType>,
    ns: Vec<f64>,
}

impl PricedEntry<'_> {
    /// Time of a call from `position` on by decoder layer. A prefill takes a whole chunk if the context has room for it.
    fn layers(&self, position: i64) -> BTreeMap<Option<u32>, f64> {
        let Self { program, entry, ns } = self;
        let room = i64::from(program.context) - position;
        let count = entry.kind.chunk().map_or(1, |chunk| i64::from(chunk).min(room));
        let mut layers = BTreeMap::new();
        for_each_execution(program, entry.kind.name(), position, count, &mut |graph, op, _| {
            *layers.entry(graph.node(op).layer).or_insert(0.0) += ns[op.index()];
        });
        layers
    }

    fn call_ns(&self, position: i64) -> f64 {
        self.layers(position).values().sum()
    }
}

/// Products of two ciphertexts that a polynomial takes by baby steps and giant steps, and its depth.
pub fn polynomial_products(degree: usize) -> (f64, u32) {
    let depth = crate::ckks::polynomial_depth(degree);
    let baby = 1_u32 << depth.div_ceil(2);
    let giant = (1_u32 << depth) / baby;
    // T_2, …, T_{baby-1}; if there are giant steps, T_baby, T_{2·baby}, … by squaring, and a product for each step.
    let squarings = depth - depth.div_ceil(2);
    (f64::from(baby.saturating_sub(2) + squarings + giant.saturating_sub(1)), depth)
}

/// Sees a graph, one of its ops, and the variables at its execution.
pub type Visit<'v> = &'v mut dyn FnMut(&CkksGraph, OpId, &Environment);

/// Visits every op of a call as often as it is executed; a loop once for each pass through its body. A rotation by a
/// multiple of the number of slots does nothing, and is not visited.
pub fn for_each_execution(
    program: &Program<CkksOp, CiphertextType>,
    entry: &str,
    position: i64,
    count: i64,
    visit: Visit<'_>,
) {
    fn block(graph: &CkksGraph, region: &Region, slots: i64, environment: &mut Environment, visit: Visit<'_>) {
        for op in &region.ops {
            let node = graph.node(*op);
            match (&node.op, &node.region) {
                (CkksOp::Sum { counter, count }, Some(body)) => {
                    for value in 0..count.evaluate(environment) {
                        environment.set_loop(*counter, value);
                        visit(graph, *op, environment);
                        block(graph, body, slots, environment, visit);
                    }
                }
                (CkksOp::Rotate { by }, _) if by.evaluate(environment).rem_euclid(slots) == 0 => {}
                _ => visit(graph, *op, environment),
            }
        }
    }
    if let Some(entry) = program.entry(entry) {
        let mut environment = Environment::new(position, count);
        block(&entry.graph, &entry.graph.body, i64::from(program.slots.max(1)), &mut environment, visit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expression::TableId;
    use crate::linear::{Features, Matrix, Order, Output};

    #[test]
    fn costs_are_interpolated_and_continued() {
        let points = [(2.0, 10.0), (4.0, 30.0), (8.0, 40.0)];
        for (at, expected) in [(2.0, 10.0), (3.0, 20.0), (4.0, 30.0), (6.0, 35.0), (10.0, 45.0), (1.0, 0.0), (0.0, 0.0)]
        {
            assert_eq!(interpolate(&points, at), expected, "at {at}");
        }
        assert_eq!(interpolate(&points[..1], 7.0), 10.0);
    }

    #[test]
    fn tables_round_trip_and_are_checked() {
        let table = CostTable::built_in(&Parameters::n16());
        assert_eq!(CostTable::from_json(&table.to_json()).unwrap(), table);
        let newer = table.to_json().replace("\"format_version\": 2", "\"format_version\": 3");
        assert!(CostTable::from_json(&newer).unwrap_err().to_string().contains("version is 3"));
        assert!(CostTable::from_json("{}").is_err());
        let timeless = CostTable { transform_ns: 0.0, ..table.clone() };
        assert!(CostTable::from_json(&timeless.to_json()).is_err());
        let incomplete = CostTable { bootstraps: Vec::new(), ..table.clone() };
        assert!(CostTable::from_json(&incomplete.to_json()).unwrap_err().to_string().contains("bootstrap"));
        let mut incomplete = table;
        incomplete.by_level.remove(&CostKind::Rotate);
        assert!(CostTable::from_json(&incomplete.to_json()).unwrap_err().to_string().contains("Rotate"));
    }

    #[test]
    fn the_built_in_table_is_carried_over_to_other_rings_and_machines() {
        let measured = CostTable::built_in(&Parameters::n16());
        assert_eq!(measured.parameters, "n16");
        let half = CostTable::built_in(&Parameters::preset("n15").unwrap());
        let (ratio, expected) = (half.transform_ns / measured.transform_ns, 15.0 / 32.0);
        assert!((ratio - expected).abs() < 1e-9);
        assert!((half.bootstrap_ns(true, 1 << 14) / measured.bootstrap_ns(true, 1 << 14) - expected).abs() < 1e-9);
        let fast = measured.clone().carried_over(measured.transform_ns / 2.0);
        assert!((fast.ns(CostKind::Rotate, 9.0) / measured.ns(CostKind::Rotate, 9.0) - 0.5).abs() < 1e-9);
    }

    #[test]
    fn weights_that_are_not_held_are_encoded_at_each_use() {
        let table = CostTable::built_in(&Parameters::n16());
        let order = Order::of(Features::Plain { width: 64, offset: 0 });
        let matrices = vec![Matrix { weights: TableId(0), bias: None }];
        let outputs = vec![Output { matrices, order, landing: None }];
        let linear = Linear { input: order, unit: 1, vectors: Integer::from(1_i64), outputs };
        let ns = |weights| table.clone().for_weights(weights).linear_ns(&linear, 5, 1024);
        // Four products.
        let encodings = ns(1 << 30) - ns(1 << 20);
        assert!((encodings / table.ns(CostKind::Encode, 5.0) - 4.0).abs() < 1e-9, "{encodings}");
    }

    #[test]
    fn predictions_follow_loops_and_positions() {
        let plan = crate::plan::tests::example();
        let program = &plan.program;
        let reads = |position| {
            let mut reads = 0;
            for_each_execution(program, "decode", position, 1, &mut |graph, op, _| {
                reads += u32::from(matches!(graph.node(op).op, CkksOp::StateRead { .. }));
            });
            reads
        };
        assert_eq!((reads(0), reads(15)), (1, 2));
        let table = CostTable::built_in(&plan.parameters);
        assert!(table.predict(program, "decode", 0) > table.bootstrap_ns(false, program.slots));
        assert!(table.predict(program, "decode", 15) > table.predict(program, "decode", 0));
        assert_eq!(table.predict(program, "prefill", 0), 0.0);
    }

    #[test]
    fn prefill_pays_from_as_many_tokens_on_as_it_costs_decode_steps() {
        let plan = crate::plan::tests::with_prefill();
        let table = CostTable::built_in(&plan.parameters);
        // As much as one decode step; then as much as several and a bootstrap, which is less than one more.
        let pays = |context: u32, steps: usize, bootstraps: usize| {
            let mut program = plan.program.clone();
            program.context = context;
            let graph = &mut program.entries[1].graph;
            let bootstrap = graph.nodes.iter().position(|node| matches!(node.op, CkksOp::Bootstrap(_))).unwrap();
            let mut ops = graph.body.ops.repeat(steps);
            ops.extend(vec![OpId(bootstrap as u32); bootstraps]);
            graph.body.ops = ops;
            table.prefill_pays(&program)
        };
        assert_eq!(pays(16, 1, 0), [2; 4]);
        assert_eq!(pays(16, 2, 1), [3; 4]);
        assert_eq!(pays(16, 3, 1), [4; 4]);
        assert_eq!(pays(16, 4, 1), [5; 4]);
        // The last chunk has room for one token, or for three.
        assert_eq!(pays(13, 1, 0), [2, 2, 2, 5]);
        assert_eq!(pays(15, 3, 1), [4, 4, 4, 5]);
        assert!(table.prefill_pays(&crate::plan::tests::example().program).is_empty());
    }

    #[test]
    fn polynomials_take_baby_and_giant_steps() {
        // Degree 3: T_2 and one giant step. Degree 31: T_2 … T_7, then T_8 and T_16, and three giant steps.
        let expected = [(1, (0.0, 1)), (3, (2.0, 2)), (31, (11.0, 5))];
        for (degree, products) in expected {
            assert_eq!(polynomial_products(degree), products, "degree {degree}");
        }
    }
}
