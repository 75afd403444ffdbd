//! Expressions as JSON trees: a constant is a number, everything else an object that says what it is.

use serde_json::{Value, json};

use super::float;
use crate::expression::{Integer, Operator, Variable, Vector};

fn operator_name(operator: Operator) -> &'static str {
    match operator {
        Operator::Add => "add",
        Operator::Subtract => "subtract",
        Operator::Multiply => "multiply",
        Operator::Divide => "floor_divide",
        Operator::Remainder => "remainder",
        Operator::Less => "less",
        Operator::LessEqual => "less_equal",
        Operator::Equal => "equal",
        Operator::And => "and",
    }
}

/// An integer expression.
pub(crate) fn integer(expression: &Integer) -> Value {
    match expression {
        Integer::Constant(value) => (*value).into(),
        Integer::Variable(Variable::Slot) => json!({"variable": "slot"}),
        Integer::Variable(Variable::Position) => json!({"variable": "position"}),
        Integer::Variable(Variable::Count) => json!({"variable": "count"}),
        Integer::Variable(Variable::Loop(counter)) => json!({"counter": counter}),
        Integer::Binary(operator, a, b) => {
            json!({"operator": operator_name(*operator), "operands": [integer(a), integer(b)]})
        }
        Integer::Select(condition, then, otherwise) => {
            json!({"if": integer(condition), "then": integer(then), "else": integer(otherwise)})
        }
    }
}

/// A vector expression.
pub(crate) fn vector(expression: &Vector) -> Value {
    match expression {
        Vector::Scalar(value) => float(*value),
        Vector::Table(table, index) => json!({"table": table.0, "index": integer(index)}),
        Vector::Mask(condition, inner) => json!({"where": integer(condition), "then": vector(inner)}),
        Vector::Sum(a, b) => json!({"operator": "add", "operands": [vector(a), vector(b)]}),
        Vector::Product(a, b) => json!({"operator": "multiply", "operands": [vector(a), vector(b)]}),
    }
}
