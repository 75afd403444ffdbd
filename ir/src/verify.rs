//! Invariants of the slots and ckks stages, beyond those of every graph ([`Graph::verify_structure`]):
//!
//! - every op has the number of operands and results that it needs, and a body exactly if it repeats one;
//! - tables and state arrays that are named exist; a table has as many entries as its shape says, or only a shape;
//! - a loop's counter is used by that loop alone, and only inside it; the slot index occurs only where a value for every
//!   slot is asked for: in plaintext vectors and masks;
//! - numbers are finite; a polynomial's interval is not empty, and is [-1, 1] in the ckks stage;
//! - strides lie in 1..=n; bounds are not negative and, from calibration on, finite;
//! - ckks: level and scale of every value are what [`crate::ckks::infer`] says; what enters a polynomial is at most 1, and
//!   what enters a bootstrap is at most the bootstrap's magnitude in the slots that are kept.

use std::collections::BTreeSet;
use std::fmt;

use crate::Error;
use crate::ckks::{self, CiphertextType, CkksOp, Levels};
use crate::expression::{Integer, Variable, Vector};
use crate::graph::{Definition, Graph, OpId, Region, ValueId};
use crate::linear::Linear;
use crate::program::{EntryPoint, Program, State};
use crate::slots::{Chebyshev, Layout, SlotOp, SlotType, StateId};
use crate::table::Contents;
use crate::text::TextOp;

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The entry point's name, if the problem is in one.
    pub entry: Option<EntryPoint>,
    /// The op, if the problem is at one.
    pub op: Option<OpId>,
    /// The ONNX node that the op was made from.
    pub origin: Option<String>,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(entry) = self.entry {
            write!(f, "{entry}: ")?;
        }
        if let Some(op) = self.op {
            write!(f, "{op}: ")?;
        }
        f.write_str(&self.message)?;
        match &self.origin {
            Some(origin) => write!(f, " ({origin})"),
            None => Ok(()),
        }
    }
}

/// Checks a program of the slots stage. Bounds may be infinite unless it is said to be calibrated.
pub fn slots(program: &Program<SlotOp, SlotType>, calibrated: bool) -> Result<(), Error> {
    refuse("slots", &slots_problems(program, calibrated))
}

/// Checks a program of the ckks stage for parameters with these levels.
pub fn ckks(program: &Program<CkksOp, CiphertextType>, levels: Levels) -> Result<(), Error> {
    refuse("ckks", &ckks_problems(program, levels))
}

fn refuse(stage: &'static str, problems: &[Problem]) -> Result<(), Error> {
    match problems {
        [] => Ok(()),
        _ => Err(Error::Invalid { stage, problems: problems.iter().map(ToString::to_string).collect() }),
    }
}

/// All problems of a program of the slots stage.
pub fn slots_problems(program: &Program<SlotOp, SlotType>, calibrated: bool) -> Vec<Problem> {
    problems(program, calibrated, |_, _, _| Vec::new())
}

/// All problems of a program of the ckks stage.
pub fn ckks_problems(program: &Program<CkksOp, CiphertextType>, levels: Levels) -> Vec<Problem> {
    let mut found = problems(program, true, |graph, op, states| ckks_op(graph, op, states, levels));
    for state in &program.states {
        if state.level.is_none_or(|level| level > levels.output) {
            let level = state.level.map_or("none".to_owned(), |level| level.to_string());
            found.push(whole(format!("state array `{}` is kept at level {level} of {}", state.name, levels.output)));
        }
    }
    for entry in &program.entries {
        for input in &entry.graph.inputs {
            if let Some(ty) = entry.graph.values.get(input.index()).map(|value| &value.ty)
                && (ty.level > levels.output || ty.product)
            {
                let message = format!("input {input} is no fresh ciphertext up to level {}", levels.output);
                found.push(Problem { entry: Some(entry.kind.entry()), op: None, origin: None, message });
            }
        }
    }
    found
}

fn whole(message: String) -> Problem {
    Problem { entry: None, op: None, origin: None, message }
}

/// What the stages' ops have in common, as far as the verifier is concerned.
trait Checked: TextOp {
    /// Least and largest number of operands.
    fn arity(&self) -> (usize, usize);
    /// Whether the op has a result.
    fn has_result(&self) -> bool;
    fn vectors(&self) -> Vec<&Vector>;
    /// Expressions with one value a call.
    fn integers(&self) -> Vec<&Integer>;
    /// Conditions with a value a slot.
    fn masks(&self) -> Vec<&Integer>;
    fn numbers(&self) -> Vec<f64>;
    fn state(&self) -> Option<StateId>;
    fn counter(&self) -> Option<u32>;
    fn polynomial(&self) -> Option<&Chebyshev>;
    fn linear(&self) -> Option<&Linear>;
}

impl Checked for SlotOp {
    fn arity(&self) -> (usize, usize) {
        match self {
            Self::Add | Self::Subtract | Self::Multiply => (2, 2),
            Self::Refresh { .. } => (1, 2),
            Self::StateRead { .. } | Self::Sum { .. } => (0, 0),
            _ => (1, 1),
        }
    }

    fn has_result(&self) -> bool {
        !matches!(self, Self::StateWrite { .. })
    }

    fn vectors(&self) -> Vec<&Vector> {
        match self {
            Self::MultiplyPlain { plain, .. } | Self::AddPlain { plain } => vec![plain],
            Self::Polynomial { mask, .. } => mask.iter().collect(),
            _ => Vec::new(),
        }
    }

    fn integers(&self) -> Vec<&Integer> {
        match self {
            Self::Rotate { by } => vec![by],
            Self::RotateAndSum { steps } => steps.iter().collect(),
            Self::StateRead { index, .. } | Self::StateWrite { index, .. } => vec![index],
            Self::Sum { count, .. } => vec![count],
            _ => Vec::new(),
        }
    }

    fn masks(&self) -> Vec<&Integer> {
        match self {
            Self::Refresh { keep, .. } => keep.iter().collect(),
            _ => Vec::new(),
        }
    }

    fn numbers(&self) -> Vec<f64> {
        match self {
            Self::Refresh { factor, .. } => vec![*factor],
            _ => Vec::new(),
        }
    }

    fn state(&self) -> Option<StateId> {
        match self {
            Self::StateRead { state, .. } | Self::StateWrite { state, .. } => Some(*state),
            _ => None,
        }
    }

    fn counter(&self) -> Option<u32> {
        match self {
            Self::Sum { counter, .. } => Some(*counter),
            _ => None,
        }
    }

    fn polynomial(&self) -> Option<&Chebyshev> {
        match self {
            Self::Polynomial { polynomial, .. } => Some(polynomial),
            _ => None,
        }
    }

    fn linear(&self) -> Option<&Linear> {
        match self {
            Self::Linear(linear) => Some(linear),
            _ => None,
        }
    }
}

impl Checked for CkksOp {
    fn arity(&self) -> (usize, usize) {
        match self {
            Self::Add | Self::Subtract | Self::Multiply => (2, 2),
            Self::StateRead { .. } | Self::Sum { .. } => (0, 0),
            _ => (1, 1),
        }
    }

    fn has_result(&self) -> bool {
        !matches!(self, Self::StateWrite { .. })
    }

    fn vectors(&self) -> Vec<&Vector> {
        match self {
            Self::MultiplyPlain { plain } | Self::AddPlain { plain } => vec![plain],
            Self::Polynomial { mask, .. } => mask.iter().collect(),
            _ => Vec::new(),
        }
    }

    fn integers(&self) -> Vec<&Integer> {
        match self {
            Self::Rotate { by } => vec![by],
            Self::RotateAndSum { steps } => steps.iter().collect(),
            Self::StateRead { index, .. } | Self::StateWrite { index, .. } => vec![index],
            Self::Sum { count, .. } => vec![count],
            _ => Vec::new(),
        }
    }

    fn masks(&self) -> Vec<&Integer> {
        match self {
            Self::Bootstrap(bootstrap) => bootstrap.keep.iter().collect(),
            _ => Vec::new(),
        }
    }

    fn numbers(&self) -> Vec<f64> {
        match self {
            Self::MultiplyScalar { factor } => vec![*factor],
            Self::Bootstrap(bootstrap) => vec![bootstrap.factor],
            _ => Vec::new(),
        }
    }

    fn state(&self) -> Option<StateId> {
        match self {
            Self::StateRead { state, .. } | Self::StateWrite { state, .. } => Some(*state),
            _ => None,
        }
    }

    fn counter(&self) -> Option<u32> {
        match self {
            Self::Sum { counter, .. } => Some(*counter),
            _ => None,
        }
    }

    fn polynomial(&self) -> Option<&Chebyshev> {
        match self {
            Self::Polynomial { polynomial, .. } => Some(polynomial),
            _ => None,
        }
    }

    fn linear(&self) -> Option<&Linear> {
        match self {
            Self::Linear(linear) => Some(linear),
            _ => None,
        }
    }
}

/// What the stages' types have in common.
trait Bounded {
    fn layout(&self) -> Layout;
    fn max_abs(&self) -> f64;
}

impl Bounded for SlotType {
    fn layout(&self) -> Layout {
        self.layout
    }

    fn max_abs(&self) -> f64 {
        self.max_abs
    }
}

impl Bounded for CiphertextType {
    fn layout(&self) -> Layout {
        self.layout
    }

    fn max_abs(&self) -> f64 {
        self.max_abs
    }
}

fn problems<O: Checked<Type: Bounded>>(
    program: &Program<O, O::Type>,
    calibrated: bool,
    check_op: impl Fn(&Graph<O, O::Type>, OpId, &[State]) -> Vec<String>,
) -> Vec<Problem> {
    let mut found = Vec::new();
    for table in program.tables.iter() {
        let (name, shape) = (&table.name, &table.shape);
        match &table.contents {
            Contents::Stored(weights) if table.entries() == Some(weights.entries()) => {}
            Contents::Stored(weights) => {
                let length = weights.entries();
                found.push(whole(format!("table `{name}` of shape {shape:?} has {length} entries")));
            }
            Contents::Unknown { deviation } => {
                if table.entries().is_none() || !deviation.is_finite() || *deviation < 0.0 {
                    found.push(whole(format!("table `{name}` of shape {shape:?} has the deviation {deviation}")));
                }
            }
        }
    }
    for state in &program.states {
        if !(1..=program.slots).contains(&state.layout.stride) || state.capacity == 0 {
            found.push(whole(format!("state array `{}` is empty, or its stride is out of range", state.name)));
        }
        let mut messages = Vec::new();
        let known = |variable: &Variable| [Variable::Slot, State::INDEX].contains(variable);
        state.initial.iter().for_each(|vector| check_vector(vector, program.tables.len(), &known, &mut messages));
        let of_state = |message| whole(format!("what state array `{}` holds initially: {message}", state.name));
        found.extend(messages.into_iter().map(of_state));
    }
    if program.prefix.len() >= program.context as usize {
        let (prefix, context) = (program.prefix.len(), program.context);
        found.push(whole(format!("a prefix of {prefix} tokens leaves no room in a context of {context}")));
    }
    for entry in &program.entries {
        let graph = &entry.graph;
        let name = Some(entry.kind.entry());
        let structure = graph.verify_structure();
        if !structure.is_empty() {
            let problem = |message| Problem { entry: name, op: None, origin: None, message };
            found.extend(structure.into_iter().map(problem));
            continue;
        }
        let mut messages = Vec::new();
        let mut scope = Scope { program, graph, counters: BTreeSet::new(), open: Vec::new(), found: &mut messages };
        scope.block(&graph.body);
        graph.for_each_op(|op, _| messages.extend(check_op(graph, op, &program.states).into_iter().map(|m| (op, m))));
        messages.sort_by_key(|(op, _)| *op);
        found.extend(messages.into_iter().map(|(op, message)| Problem {
            entry: name,
            op: Some(op),
            origin: graph.node(op).origin.map(|_| graph.origin_text(op)),
            message: format!("{}: {message}", graph.node(op).op.mnemonic()),
        }));
        for (index, value) in graph.values.iter().enumerate() {
            let (stride, bound) = (value.ty.layout().stride, value.ty.max_abs());
            let op = match value.definition {
                Definition::Input(_) => None,
                Definition::Result(op, _) => Some(op),
            };
            let origin = op.filter(|op| graph.node(*op).origin.is_some()).map(|op| graph.origin_text(op));
            if !(1..=program.slots).contains(&stride) {
                let message = format!("%{index} has stride {stride} in {} slots", program.slots);
                found.push(Problem { entry: name, op, origin: origin.clone(), message });
            }
            if bound.is_nan() || bound < 0.0 || (calibrated && bound.is_infinite()) {
                let message = format!("%{index} has the bound {bound}");
                found.push(Problem { entry: name, op, origin, message });
            }
        }
    }
    found
}

/// A walk through the blocks of a graph that knows which loops are open.
struct Scope<'p, O: Checked> {
    program: &'p Program<O, O::Type>,
    graph: &'p Graph<O, O::Type>,
    counters: BTreeSet<u32>,
    open: Vec<u32>,
    found: &'p mut Vec<(OpId, String)>,
}

impl<O: Checked> Scope<'_, O> {
    fn block(&mut self, block: &Region) {
        for &op in &block.ops {
            let node = self.graph.node(op);
            let (least, most) = node.op.arity();
            if !(least..=most).contains(&node.inputs.len()) {
                let needed = if least == most { least.to_string() } else { format!("{least} to {most}") };
                self.problem(op, format!("it has {} operands and needs {needed}", node.inputs.len()));
            }
            let results = node.results.len();
            let fits = match (node.op.has_result(), least, most) {
                (false, ..) => results == 0,
                // A loop has a result for each value that its body yields, a refresh of two operands one for each.
                (true, ..) if node.op.has_body() => results > 0,
                (true, 1, 2) => results == node.inputs.len(),
                (true, ..) if let Some(linear) = node.op.linear() => results == linear.results(),
                (true, ..) => results == 1,
            };
            if !fits {
                self.problem(op, format!("it has {results} results"));
            }
            if node.op.has_body() != node.region.is_some() {
                self.problem(op, "a body is missing, or there is one too many".to_owned());
            }
            self.expressions(op);
            if let (Some(region), counter) = (&node.region, node.op.counter()) {
                if let Some(counter) = counter
                    && !self.counters.insert(counter)
                {
                    self.problem(op, format!("the counter i{counter} belongs to another loop too"));
                }
                let depth = self.open.len();
                self.open.extend(counter);
                self.block(region);
                self.open.truncate(depth);
            }
        }
    }

    fn problem(&mut self, op: OpId, message: String) {
        self.found.push((op, message));
    }

    fn expressions(&mut self, op: OpId) {
        let node = self.graph.node(op);
        let tables = self.program.tables.len();
        let mut messages = Vec::new();
        let outside = |variable: &Variable| match variable {
            Variable::Position | Variable::Count => true,
            Variable::Loop(counter) => self.open.contains(counter),
            Variable::Slot => false,
        };
        let in_slots = |variable: &Variable| *variable == Variable::Slot || outside(variable);
        node.op.integers().into_iter().for_each(|integer| check_integer(integer, &outside, &mut messages));
        node.op.masks().into_iter().for_each(|mask| check_integer(mask, &in_slots, &mut messages));
        node.op.vectors().into_iter().for_each(|vector| check_vector(vector, tables, &in_slots, &mut messages));
        if let Some(linear) = node.op.linear() {
            let landings = linear.outputs.iter().filter_map(|output| output.landing.as_ref());
            landings.chain([&linear.vectors]).for_each(|integer| check_integer(integer, &outside, &mut messages));
            messages.extend(linear.problems(self.program.slots, &self.program.tables));
        }
        self.found.extend(messages.into_iter().map(|message| (op, message)));
        for number in node.op.numbers() {
            self.finite(op, number);
        }
        if let Some(state) = node.op.state()
            && state.0 as usize >= self.program.states.len()
        {
            self.problem(op, format!("there is no state array c{}", state.0));
        }
        if let Some(polynomial) = node.op.polynomial() {
            polynomial.coefficients.iter().chain(&polynomial.interval).for_each(|number| self.finite(op, *number));
            let [low, high] = polynomial.interval;
            if low >= high || polynomial.coefficients.is_empty() {
                self.problem(op, "a polynomial on an empty interval, or without coefficients".to_owned());
            }
        }
    }

    fn finite(&mut self, op: OpId, number: f64) {
        if !number.is_finite() {
            self.problem(op, format!("the number {number}"));
        }
    }
}

/// What is wrong with a vector over so many tables in which the variables that are `known` mean something.
fn check_vector(vector: &Vector, tables: usize, known: &dyn Fn(&Variable) -> bool, found: &mut Vec<String>) {
    match vector {
        Vector::Scalar(value) if value.is_finite() => {}
        Vector::Scalar(value) => found.push(format!("the number {value}")),
        Vector::Table(table, index) => {
            if table.0 as usize >= tables {
                found.push(format!("there is no table {table}"));
            }
            check_integer(index, known, found);
        }
        Vector::Mask(condition, inner) => {
            check_integer(condition, known, found);
            check_vector(inner, tables, known, found);
        }
        Vector::Sum(a, b) | Vector::Product(a, b) => {
            check_vector(a, tables, known, found);
            check_vector(b, tables, known, found);
        }
    }
}

fn check_integer(integer: &Integer, known: &dyn Fn(&Variable) -> bool, found: &mut Vec<String>) {
    match integer {
        Integer::Constant(_) => {}
        Integer::Variable(variable) if known(variable) => {}
        Integer::Variable(variable) => found.push(format!("`{variable}` means nothing here")),
        Integer::Binary(_, a, b) => [a, b].into_iter().for_each(|part| check_integer(part, known, found)),
        Integer::Select(a, b, c) => [a, b, c].into_iter().for_each(|part| check_integer(part, known, found)),
    }
}

/// Relative slack for bounds that were computed in floating point.
const SLACK: f64 = 1.0 + 1e-9;

fn ckks_op(graph: &Graph<CkksOp, CiphertextType>, op: OpId, states: &[State], levels: Levels) -> Vec<String> {
    let mut found = Vec::new();
    let node = graph.node(op);
    let pairs = |values: &[ValueId]| values.iter().map(|value| state_of(graph.ty(*value))).collect::<Vec<_>>();
    // Each result of a loop follows from the value that is yielded for it.
    let calls: Vec<(Vec<_>, Option<ValueId>)> = match &node.region {
        Some(region) => region.yields.iter().zip(&node.results).map(|(y, r)| (pairs(&[*y]), Some(*r))).collect(),
        None if node.results.is_empty() => vec![(pairs(&node.inputs), None)],
        None => node.results.iter().map(|result| (pairs(&node.inputs), Some(*result))).collect(),
    };
    let state_level = node.op.state().and_then(|state| states.get(state.0 as usize)).and_then(|state| state.level);
    for (operands, result) in calls {
        match ckks::infer(&node.op, &operands, levels, state_level) {
            Ok(expected) => {
                let stated = result.map(|result| state_of(graph.ty(result)));
                if expected != stated {
                    let describe = |state: Option<(u32, bool)>| state.map_or("no result".to_owned(), describe);
                    found.push(format!("the result has {}, and the op gives {}", describe(stated), describe(expected)));
                }
            }
            Err(error) => found.push(error.to_string()),
        }
    }
    let (Some(input), Some(result)) = (node.inputs.first(), node.results.first()) else { return found };
    let (input, result) = (graph.ty(*input).max_abs, graph.ty(*result).max_abs);
    match &node.op {
        CkksOp::Polynomial { polynomial, .. } => {
            if !polynomial.is_normalised() {
                found.push(format!("the interval is {:?}, not [-1, 1]", polynomial.interval));
            }
            if input > SLACK {
                found.push(format!("slots of up to {input} leave the interval [-1, 1]"));
            }
        }
        CkksOp::Bootstrap(bootstrap) => {
            // The bound is on real and imaginary part, so a complex slot may be √2 times larger.
            let part = if bootstrap.complex { std::f64::consts::SQRT_2 } else { 1.0 };
            let most = part * f64::from(bootstrap.log2_magnitude).exp2();
            let kept = if bootstrap.keep.is_some() { result } else { result.max(input * bootstrap.factor.abs()) };
            if kept > most * SLACK {
                found.push(format!("kept slots of up to {kept} exceed the magnitude 2^{}", bootstrap.log2_magnitude));
            }
        }
        _ => {}
    }
    found
}

fn state_of(ty: &CiphertextType) -> (u32, bool) {
    (ty.level, ty.product)
}

fn describe((level, product): (u32, bool)) -> String {
    format!("level {level}{}", if product { " before its rescale" } else { "" })
}
