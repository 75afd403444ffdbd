//! Public integers and plaintext vectors as expressions.
//!
//! A plan holds parametric programs: the position of a token decides rotation amounts, loop counts, cache indices and
//! masks. All of these are [`Integer`] expressions over the [`Variable`]s of an entry point. A plaintext operand is a
//! [`Vector`]: a formula for the value in slot `s`, which looks weights up in the program's tables, so that weights are
//! stored once and a layout is visible as the formula of its index. Comparisons give 1 or 0; division and remainder
//! round towards minus infinity, so `a % m` lies in `0..m` for positive `m`.

use std::collections::BTreeSet;
use std::ops;

use crate::Error;
use crate::table::Table;

/// An integer known to the server when it runs an entry point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Variable {
    /// The slot index inside a [`Vector`]; `s` in text.
    Slot,
    /// Position of the call's first token; `pos` in text.
    Position,
    /// Number of tokens in the call; `count` in text.
    Count,
    /// The counter of an enclosing loop, by the loop's own number; `i0`, `i1`, … in text.
    Loop(u32),
}

/// Values of the variables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// Position of the call's first token.
    pub position: i64,
    /// Number of tokens in the call.
    pub count: i64,
    /// Loop counters by loop number.
    pub loops: Vec<i64>,
}

impl Environment {
    /// The environment of a call for `count` tokens from `position` on, outside all loops.
    pub fn new(position: i64, count: i64) -> Self {
        Self { position, count, loops: Vec::new() }
    }

    /// Sets a loop counter.
    pub fn set_loop(&mut self, number: u32, value: i64) {
        let index = number as usize;
        if self.loops.len() <= index {
            self.loops.resize(index + 1, 0);
        }
        self.loops[index] = value;
    }

    fn get(&self, variable: Variable) -> i64 {
        match variable {
            Variable::Slot => 0,
            Variable::Position => self.position,
            Variable::Count => self.count,
            Variable::Loop(number) => self.loops.get(number as usize).copied().unwrap_or(0),
        }
    }
}

/// Operators of two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    /// `+`
    Add,
    /// `-`
    Subtract,
    /// `*`
    Multiply,
    /// `/`, rounded towards minus infinity; by zero gives 0.
    Divide,
    /// `%`, with the sign of the divisor; by zero gives 0.
    Remainder,
    /// `<`
    Less,
    /// `<=`
    LessEqual,
    /// `==`
    Equal,
    /// `&`: 1 where both operands are not 0.
    And,
}

impl Operator {
    pub(crate) fn apply(self, a: i64, b: i64) -> i64 {
        match self {
            Self::Add => a.wrapping_add(b),
            Self::Subtract => a.wrapping_sub(b),
            Self::Multiply => a.wrapping_mul(b),
            Self::Divide if b == 0 => 0,
            Self::Divide => a.wrapping_sub(Self::Remainder.apply(a, b)).wrapping_div(b),
            Self::Remainder if b == 0 => 0,
            Self::Remainder => {
                let r = a.wrapping_rem(b);
                if r != 0 && (r < 0) != (b < 0) { r + b } else { r }
            }
            Self::Less => i64::from(a < b),
            Self::LessEqual => i64::from(a <= b),
            Self::Equal => i64::from(a == b),
            Self::And => i64::from(a != 0 && b != 0),
        }
    }
}

/// An integer expression.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Integer {
    /// A literal.
    Constant(i64),
    /// A variable.
    Variable(Variable),
    /// An operator applied to two operands.
    Binary(Operator, Box<Integer>, Box<Integer>),
    /// `condition ? then : otherwise`.
    Select(Box<Integer>, Box<Integer>, Box<Integer>),
}

impl From<i64> for Integer {
    fn from(value: i64) -> Self {
        Self::Constant(value)
    }
}

impl From<i32> for Integer {
    fn from(value: i32) -> Self {
        Self::Constant(i64::from(value))
    }
}

impl From<u32> for Integer {
    fn from(value: u32) -> Self {
        Self::Constant(i64::from(value))
    }
}

impl From<usize> for Integer {
    fn from(value: usize) -> Self {
        Self::Constant(value as i64)
    }
}

impl Integer {
    /// The slot index `s`.
    pub fn slot() -> Self {
        Self::Variable(Variable::Slot)
    }

    /// The position `pos` of the call's first token.
    pub fn position() -> Self {
        Self::Variable(Variable::Position)
    }

    /// The number `count` of tokens in the call.
    pub fn count() -> Self {
        Self::Variable(Variable::Count)
    }

    /// The counter of loop `number`.
    pub fn counter(number: u32) -> Self {
        Self::Variable(Variable::Loop(number))
    }

    fn binary(operator: Operator, a: Self, b: Self) -> Self {
        match (operator, &a, &b) {
            (_, Self::Constant(x), Self::Constant(y)) => Self::Constant(operator.apply(*x, *y)),
            (Operator::Add | Operator::Subtract, _, Self::Constant(0))
            | (Operator::Multiply | Operator::Divide, _, Self::Constant(1)) => a,
            (Operator::Add, Self::Constant(0), _) | (Operator::Multiply, Self::Constant(1), _) => b,
            (Operator::Multiply, Self::Constant(0), _) | (Operator::Multiply, _, Self::Constant(0)) => {
                Self::Constant(0)
            }
            (Operator::Remainder, _, Self::Constant(1)) => Self::Constant(0),
            _ => Self::Binary(operator, Box::new(a), Box::new(b)),
        }
    }

    /// 1 where `self < other`.
    pub fn less(self, other: impl Into<Self>) -> Self {
        Self::binary(Operator::Less, self, other.into())
    }

    /// 1 where `self <= other`.
    pub fn less_equal(self, other: impl Into<Self>) -> Self {
        Self::binary(Operator::LessEqual, self, other.into())
    }

    /// 1 where `self == other`.
    pub fn equal(self, other: impl Into<Self>) -> Self {
        Self::binary(Operator::Equal, self, other.into())
    }

    /// 1 where both operands are not 0.
    pub fn and(self, other: impl Into<Self>) -> Self {
        Self::binary(Operator::And, self, other.into())
    }

    /// `self != 0 ? then : otherwise`.
    pub fn select(self, then: impl Into<Self>, otherwise: impl Into<Self>) -> Self {
        match self {
            Self::Constant(0) => otherwise.into(),
            Self::Constant(_) => then.into(),
            condition => Self::Select(Box::new(condition), Box::new(then.into()), Box::new(otherwise.into())),
        }
    }

    /// `self / divisor` rounded up.
    pub fn divide_up(self, divisor: i64) -> Self {
        (self + (divisor - 1)) / divisor
    }

    /// The value for given variables; the slot index counts as 0.
    pub fn evaluate(&self, environment: &Environment) -> i64 {
        match self {
            Self::Constant(value) => *value,
            Self::Variable(variable) => environment.get(*variable),
            Self::Binary(operator, a, b) => operator.apply(a.evaluate(environment), b.evaluate(environment)),
            Self::Select(condition, then, otherwise) => {
                if condition.evaluate(environment) == 0 { otherwise } else { then }.evaluate(environment)
            }
        }
    }

    /// Whether the variable occurs.
    pub fn mentions(&self, variable: Variable) -> bool {
        match self {
            Self::Constant(_) => false,
            Self::Variable(own) => *own == variable,
            Self::Binary(_, a, b) => a.mentions(variable) || b.mentions(variable),
            Self::Select(a, b, c) => [a, b, c].into_iter().any(|part| part.mentions(variable)),
        }
    }

    /// Adds the variables that occur.
    pub fn collect_variables(&self, found: &mut BTreeSet<Variable>) {
        match self {
            Self::Constant(_) => {}
            Self::Variable(variable) => {
                found.insert(*variable);
            }
            Self::Binary(_, a, b) => [a, b].into_iter().for_each(|part| part.collect_variables(found)),
            Self::Select(a, b, c) => [a, b, c].into_iter().for_each(|part| part.collect_variables(found)),
        }
    }

    /// The values in slots `0..slots`.
    pub fn evaluate_slots(&self, environment: &Environment, slots: usize) -> Vec<i64> {
        if !self.mentions(Variable::Slot) {
            return vec![self.evaluate(environment); slots];
        }
        match self {
            Self::Constant(_) => unreachable!("a literal mentions no variable"),
            Self::Variable(_) => (0..slots as i64).collect(),
            Self::Binary(operator, a, b) => {
                let mut left = a.evaluate_slots(environment, slots);
                if b.mentions(Variable::Slot) {
                    let right = b.evaluate_slots(environment, slots);
                    for (x, y) in left.iter_mut().zip(right) {
                        *x = operator.apply(*x, y);
                    }
                } else {
                    let right = b.evaluate(environment);
                    for x in &mut left {
                        *x = operator.apply(*x, right);
                    }
                }
                left
            }
            Self::Select(condition, then, otherwise) => {
                let mut values = then.evaluate_slots(environment, slots);
                let conditions = condition.evaluate_slots(environment, slots);
                let others = otherwise.evaluate_slots(environment, slots);
                for ((value, condition), other) in values.iter_mut().zip(conditions).zip(others) {
                    if condition == 0 {
                        *value = other;
                    }
                }
                values
            }
        }
    }
}

macro_rules! integer_operator {
    ($trait:ident, $method:ident) => {
        impl<T: Into<Integer>> ops::$trait<T> for Integer {
            type Output = Integer;

            fn $method(self, other: T) -> Integer {
                Integer::binary(integer_operator!(@ $trait), self, other.into())
            }
        }
    };
    (@ Add) => { Operator::Add };
    (@ Sub) => { Operator::Subtract };
    (@ Mul) => { Operator::Multiply };
    (@ Div) => { Operator::Divide };
    (@ Rem) => { Operator::Remainder };
}
integer_operator!(Add, add);
integer_operator!(Sub, sub);
integer_operator!(Mul, mul);
integer_operator!(Div, div);
integer_operator!(Rem, rem);

/// Index of a table in [`crate::program::Program::tables`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableId(pub u32);

/// A plaintext vector: a formula for the real value in slot `s`.
#[derive(Clone, Debug, PartialEq)]
pub enum Vector {
    /// The same value in every slot.
    Scalar(f64),
    /// The table's entry at the index, which must be in range in every slot that is not masked away.
    Table(TableId, Integer),
    /// The inner vector where the condition is not 0, and 0 elsewhere; the inner vector is not looked up there.
    Mask(Integer, Box<Vector>),
    /// Slot-wise sum.
    Sum(Box<Vector>, Box<Vector>),
    /// Slot-wise product.
    Product(Box<Vector>, Box<Vector>),
}

impl From<f64> for Vector {
    fn from(value: f64) -> Self {
        Self::Scalar(value)
    }
}

impl Vector {
    /// This vector where the condition is not 0, and 0 elsewhere.
    pub fn masked(self, condition: Integer) -> Self {
        Self::Mask(condition, Box::new(self))
    }

    /// Slot-wise product.
    pub fn times(self, other: impl Into<Self>) -> Self {
        match (self, other.into()) {
            (Self::Scalar(a), Self::Scalar(b)) => Self::Scalar(a * b),
            (a, Self::Scalar(1.0)) => a,
            (Self::Scalar(1.0), b) => b,
            (a, b) => Self::Product(Box::new(a), Box::new(b)),
        }
    }

    /// Slot-wise sum.
    pub fn plus(self, other: impl Into<Self>) -> Self {
        Self::Sum(Box::new(self), Box::new(other.into()))
    }

    /// Whether the variable occurs.
    pub fn mentions(&self, variable: Variable) -> bool {
        match self {
            Self::Scalar(_) => false,
            Self::Table(_, index) => index.mentions(variable),
            Self::Mask(condition, inner) => condition.mentions(variable) || inner.mentions(variable),
            Self::Sum(a, b) | Self::Product(a, b) => a.mentions(variable) || b.mentions(variable),
        }
    }

    /// Adds the variables that occur.
    pub fn collect_variables(&self, found: &mut BTreeSet<Variable>) {
        match self {
            Self::Scalar(_) => {}
            Self::Table(_, index) => index.collect_variables(found),
            Self::Mask(condition, inner) => {
                condition.collect_variables(found);
                inner.collect_variables(found);
            }
            Self::Sum(a, b) | Self::Product(a, b) => [a, b].into_iter().for_each(|part| part.collect_variables(found)),
        }
    }

    /// The values in slots `0..slots`; `tables[id]` is table `id`.
    pub fn evaluate(&self, environment: &Environment, slots: usize, tables: &[Table]) -> Result<Vec<f64>, Error> {
        self.evaluate_active(environment, &vec![true; slots], tables)
    }

    fn evaluate_active(&self, environment: &Environment, active: &[bool], tables: &[Table]) -> Result<Vec<f64>, Error> {
        let slots = active.len();
        let binary = |a: &Self, b: &Self, combine: fn(f64, f64) -> f64| -> Result<Vec<f64>, Error> {
            let left = a.evaluate_active(environment, active, tables)?;
            let right = b.evaluate_active(environment, active, tables)?;
            Ok(left.into_iter().zip(right).map(|(x, y)| combine(x, y)).collect())
        };
        match self {
            Self::Scalar(value) => Ok(active.iter().map(|&on| if on { *value } else { 0.0 }).collect()),
            Self::Table(id, index) => {
                let table = tables
                    .get(id.0 as usize)
                    .ok_or_else(|| Error::Execution(format!("there is no table {}", id.0)))?
                    .values()?;
                let lookup = |(slot, (&on, index)): (usize, (&bool, i64))| match usize::try_from(index) {
                    _ if !on => Ok(0.0),
                    Ok(position) if position < table.len() => Ok(f64::from(table[position])),
                    _ => Err(Error::Execution(format!(
                        "slot {slot} reads entry {index} of table {}, which has {}",
                        id.0,
                        table.len()
                    ))),
                };
                active.iter().zip(index.evaluate_slots(environment, slots)).enumerate().map(lookup).collect()
            }
            Self::Mask(condition, inner) => {
                let kept = condition.evaluate_slots(environment, slots);
                let still: Vec<bool> = active.iter().zip(kept).map(|(&on, keep)| on && keep != 0).collect();
                let mut values = inner.evaluate_active(environment, &still, tables)?;
                values.iter_mut().zip(&still).for_each(|(value, &on)| {
                    if !on {
                        *value = 0.0;
                    }
                });
                Ok(values)
            }
            Self::Sum(a, b) => binary(a, b, |x, y| x + y),
            Self::Product(a, b) => binary(a, b, |x, y| x * y),
        }
    }
}
