//! Plaintext formulas prepared for repeated evaluation.
//!
//! Integer expressions are interned, so that equal subexpressions of a graph's formulas are one node. A node that depends
//! on the slot alone is evaluated once; one that depends on no slot is a number; only what mixes both is evaluated slot
//! by slot in each call. The meaning is that of [`Vector::evaluate`].

use std::collections::HashMap;
use std::sync::Arc;

use crate::Error;
use crate::expression::{Environment, Integer, Operator, Variable, Vector};
use crate::table::Table;

/// An interned expression.
#[derive(Clone, Debug)]
enum Node {
    Fixed(Integer),
    Slot,
    Binary(Operator, usize, usize),
    Select(usize, usize, usize),
}

/// A plaintext vector over interned expressions.
#[derive(Clone, Debug)]
pub(super) enum Plain {
    Scalar(f64),
    Table(usize, usize),
    Mask(usize, Box<Plain>),
    Sum(Box<Plain>, Box<Plain>),
    Product(Box<Plain>, Box<Plain>),
}

/// The value of an expression: one number, or one for each slot.
enum Values {
    Number(i64),
    Slots(Arc<Vec<i64>>),
}

/// All formulas of a graph.
#[derive(Clone, Debug, Default)]
pub(super) struct Formulas {
    slots: usize,
    nodes: Vec<Node>,
    /// Values of nodes that depend on the slot alone; `None` for nodes that depend on more.
    known: Vec<Option<Arc<Vec<i64>>>>,
    ids: HashMap<Integer, usize>,
}

impl Formulas {
    pub(super) fn new(slots: usize) -> Self {
        Self { slots, ..Self::default() }
    }

    /// Prepares an expression.
    pub(super) fn integer(&mut self, integer: &Integer) -> usize {
        if let Some(&id) = self.ids.get(integer) {
            return id;
        }
        let (node, children) = match integer {
            _ if !integer.mentions(Variable::Slot) => (Node::Fixed(integer.clone()), vec![]),
            Integer::Constant(_) | Integer::Variable(_) => (Node::Slot, vec![]),
            Integer::Binary(operator, a, b) => {
                let (a, b) = (self.integer(a), self.integer(b));
                (Node::Binary(*operator, a, b), vec![a, b])
            }
            Integer::Select(condition, then, otherwise) => {
                let [a, b, c] = [condition, then, otherwise].map(|part| self.integer(part));
                (Node::Select(a, b, c), vec![a, b, c])
            }
        };
        let constant = |id: &usize| match &self.nodes[*id] {
            Node::Fixed(integer) => matches!(integer, Integer::Constant(_)),
            _ => self.known[*id].is_some(),
        };
        let slot_alone = !matches!(node, Node::Fixed(_)) && children.iter().all(constant);
        let known = slot_alone.then(|| match self.node(&node, &Environment::default()) {
            Values::Slots(values) => values,
            Values::Number(value) => Arc::new(vec![value; self.slots]),
        });
        let id = self.nodes.len();
        self.nodes.push(node);
        self.known.push(known);
        self.ids.insert(integer.clone(), id);
        id
    }

    /// Prepares a vector.
    pub(super) fn vector(&mut self, vector: &Vector) -> Plain {
        match vector {
            Vector::Scalar(value) => Plain::Scalar(*value),
            Vector::Table(table, index) => Plain::Table(table.0 as usize, self.integer(index)),
            Vector::Mask(condition, inner) => Plain::Mask(self.integer(condition), Box::new(self.vector(inner))),
            Vector::Sum(a, b) => Plain::Sum(Box::new(self.vector(a)), Box::new(self.vector(b))),
            Vector::Product(a, b) => Plain::Product(Box::new(self.vector(a)), Box::new(self.vector(b))),
        }
    }

    fn values(&self, id: usize, environment: &Environment) -> Values {
        match &self.known[id] {
            Some(values) => Values::Slots(values.clone()),
            None => self.node(&self.nodes[id], environment),
        }
    }

    fn node(&self, node: &Node, environment: &Environment) -> Values {
        match node {
            Node::Fixed(integer) => Values::Number(integer.evaluate(environment)),
            Node::Slot => Values::Slots(Arc::new((0..self.slots as i64).collect())),
            Node::Binary(operator, a, b) => match (self.values(*a, environment), self.values(*b, environment)) {
                (Values::Number(a), Values::Number(b)) => Values::Number(operator.apply(a, b)),
                (Values::Slots(a), Values::Number(b)) => Values::Slots(Arc::new(by_number(*operator, &a, b))),
                (Values::Number(a), Values::Slots(b)) => {
                    Values::Slots(Arc::new(b.iter().map(|&b| operator.apply(a, b)).collect()))
                }
                (Values::Slots(a), Values::Slots(b)) => Values::Slots(Arc::new(by_slots(*operator, &a, &b))),
            },
            Node::Select(condition, then, otherwise) => {
                let at = |values: &Values, slot: usize| match values {
                    Values::Number(value) => *value,
                    Values::Slots(values) => values[slot],
                };
                let [condition, then, otherwise] = [condition, then, otherwise].map(|id| self.values(*id, environment));
                let pick = |slot: usize| if at(&condition, slot) == 0 { at(&otherwise, slot) } else { at(&then, slot) };
                Values::Slots(Arc::new((0..self.slots).map(pick).collect()))
            }
        }
    }

    /// The condition in every slot.
    pub(super) fn condition(&self, id: usize, environment: &Environment) -> Vec<bool> {
        match self.values(id, environment) {
            Values::Number(value) => vec![value != 0; self.slots],
            Values::Slots(values) => values.iter().map(|&value| value != 0).collect(),
        }
    }

    /// The vector in every slot, 0 where `active` is false.
    pub(super) fn evaluate(
        &self,
        plain: &Plain,
        environment: &Environment,
        active: Option<&[bool]>,
        tables: &[Table],
    ) -> Result<Vec<f64>, Error> {
        let binary = |a: &Plain, b: &Plain, combine: fn(f64, f64) -> f64| -> Result<Vec<f64>, Error> {
            let mut left = self.evaluate(a, environment, active, tables)?;
            let right = self.evaluate(b, environment, active, tables)?;
            left.iter_mut().zip(right).for_each(|(x, y)| *x = combine(*x, y));
            Ok(left)
        };
        match plain {
            Plain::Scalar(value) => Ok(match active {
                Some(active) => active.iter().map(|&on| if on { *value } else { 0.0 }).collect(),
                None => vec![*value; self.slots],
            }),
            Plain::Table(id, index) => {
                let table =
                    tables.get(*id).ok_or_else(|| Error::Execution(format!("there is no table {id}")))?.values()?;
                let index = match self.values(*index, environment) {
                    Values::Number(value) => Arc::new(vec![value; self.slots]),
                    Values::Slots(values) => values,
                };
                let mut result = vec![0.0; self.slots];
                for (slot, (result, &index)) in result.iter_mut().zip(index.iter()).enumerate() {
                    if active.is_some_and(|active| !active[slot]) {
                        continue;
                    }
                    let Some(&value) = usize::try_from(index).ok().and_then(|index| table.get(index)) else {
                        let length = table.len();
                        let message = format!("slot {slot} reads entry {index} of table {id}, which has {length}");
                        return Err(Error::Execution(message));
                    };
                    *result = f64::from(value);
                }
                Ok(result)
            }
            Plain::Mask(condition, inner) => {
                let mut kept = self.condition(*condition, environment);
                if let Some(active) = active {
                    kept.iter_mut().zip(active).for_each(|(kept, &on)| *kept &= on);
                }
                self.evaluate(inner, environment, Some(&kept), tables)
            }
            Plain::Sum(a, b) => binary(a, b, |x, y| x + y),
            Plain::Product(a, b) => binary(a, b, |x, y| x * y),
        }
    }
}

fn by_number(operator: Operator, a: &[i64], b: i64) -> Vec<i64> {
    let map = |f: &dyn Fn(i64) -> i64| -> Vec<i64> { a.iter().map(|&x| f(x)).collect() };
    match operator {
        Operator::Add => a.iter().map(|x| x.wrapping_add(b)).collect(),
        Operator::Subtract => a.iter().map(|x| x.wrapping_sub(b)).collect(),
        Operator::Multiply => a.iter().map(|x| x.wrapping_mul(b)).collect(),
        // Shifts and masks round towards minus infinity.
        Operator::Divide if b > 0 && b.count_ones() == 1 => a.iter().map(|x| x >> b.trailing_zeros()).collect(),
        Operator::Remainder if b > 0 && b.count_ones() == 1 => a.iter().map(|x| x & (b - 1)).collect(),
        Operator::Less => a.iter().map(|&x| i64::from(x < b)).collect(),
        Operator::LessEqual => a.iter().map(|&x| i64::from(x <= b)).collect(),
        Operator::Equal => a.iter().map(|&x| i64::from(x == b)).collect(),
        Operator::Divide | Operator::Remainder | Operator::And => map(&|x| operator.apply(x, b)),
    }
}

fn by_slots(operator: Operator, a: &[i64], b: &[i64]) -> Vec<i64> {
    let pairs = a.iter().zip(b);
    match operator {
        Operator::Add => pairs.map(|(x, y)| x.wrapping_add(*y)).collect(),
        Operator::And => pairs.map(|(&x, &y)| i64::from(x != 0 && y != 0)).collect(),
        _ => pairs.map(|(&x, &y)| operator.apply(x, y)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expression::TableId;
    use proptest::prelude::*;

    fn integers() -> impl Strategy<Value = Integer> {
        let leaf = prop_oneof![
            (-9i64..9).prop_map(Integer::Constant),
            Just(Integer::slot()),
            Just(Integer::position()),
            Just(Integer::counter(1)),
        ];
        let operators = prop::sample::select(vec![
            Operator::Add,
            Operator::Subtract,
            Operator::Multiply,
            Operator::Divide,
            Operator::Remainder,
            Operator::Less,
            Operator::LessEqual,
            Operator::Equal,
            Operator::And,
        ]);
        leaf.prop_recursive(4, 24, 3, move |inner| {
            prop_oneof![
                (operators.clone(), inner.clone(), inner.clone()).prop_map(|(operator, a, b)| Integer::Binary(
                    operator,
                    Box::new(a),
                    Box::new(b)
                )),
                (inner.clone(), inner.clone(), inner).prop_map(|(a, b, c)| Integer::Select(
                    Box::new(a),
                    Box::new(b),
                    Box::new(c)
                )),
            ]
        })
    }

    proptest! {
        #[test]
        fn prepared_formulas_mean_the_same(condition in integers(), index in integers(), position in 0i64..20) {
            let vector = Vector::Table(TableId(0), index % 4)
                .masked(condition.clone())
                .plus(Vector::Scalar(0.5).times(Vector::Scalar(3.0).masked(condition)));
            let tables = [Table::new("t", [4], vec![1.0, 2.0, 4.0, 8.0])];
            let mut environment = Environment::new(position, 1);
            environment.set_loop(1, 3);
            let mut formulas = Formulas::new(16);
            let plain = formulas.vector(&vector);
            let got = formulas.evaluate(&plain, &environment, None, &tables).unwrap();
            prop_assert_eq!(got, vector.evaluate(&environment, 16, &tables).unwrap());
        }
    }
}
