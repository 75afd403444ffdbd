//! Infix syntax of [`Integer`] and [`Vector`] expressions.
//!
//! ```text
//! integer := binary | binary ? integer : integer
//! binary  := operands joined by, from loose to tight,  &   < <= ==   + -   * / %      (all left-associative)
//! operand := number | s | pos | count | i0, i1, … | ( integer )
//! vector  := product + product …        product := factor * factor …                 (both left-associative)
//! factor  := number | t0[integer], t1[integer], … | mask(integer, vector) | ( vector )
//! ```
//!
//! Reading what was written gives the same tree, with the same bits in every number. Trees deeper than
//! [`MAXIMUM_DEPTH`] are refused, so that no text can exhaust the stack of whoever walks them.

use std::fmt;

use super::cursor::{Cursor, write_float};
use crate::Error;
use crate::expression::{Integer, Operator, TableId, Variable, Vector};

/// Deepest tree that is read.
pub const MAXIMUM_DEPTH: usize = 400;

fn symbol(operator: Operator) -> &'static str {
    match operator {
        Operator::And => "&",
        Operator::Less => "<",
        Operator::LessEqual => "<=",
        Operator::Equal => "==",
        Operator::Add => "+",
        Operator::Subtract => "-",
        Operator::Multiply => "*",
        Operator::Divide => "/",
        Operator::Remainder => "%",
    }
}

fn binding(operator: Operator) -> u8 {
    match operator {
        Operator::And => 1,
        Operator::Less | Operator::LessEqual | Operator::Equal => 2,
        Operator::Add | Operator::Subtract => 3,
        Operator::Multiply | Operator::Divide | Operator::Remainder => 4,
    }
}

/// Symbols longest first, so that `<=` is not read as `<`.
const OPERATORS: [Operator; 9] = [
    Operator::LessEqual,
    Operator::Equal,
    Operator::Less,
    Operator::And,
    Operator::Add,
    Operator::Subtract,
    Operator::Multiply,
    Operator::Divide,
    Operator::Remainder,
];

impl fmt::Display for Variable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slot => f.write_str("s"),
            Self::Position => f.write_str("pos"),
            Self::Count => f.write_str("count"),
            Self::Loop(number) => write!(f, "i{number}"),
        }
    }
}

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t{}", self.0)
    }
}

/// Writes an expression as an operand of an operator that binds with strength `least`; 0 for a place that takes anything.
fn write_integer(f: &mut fmt::Formatter<'_>, expression: &Integer, least: u8) -> fmt::Result {
    match expression {
        Integer::Constant(value) => write!(f, "{value}"),
        Integer::Variable(variable) => write!(f, "{variable}"),
        Integer::Binary(operator, a, b) => {
            let strength = binding(*operator);
            let open = strength < least;
            f.write_str(if open { "(" } else { "" })?;
            write_integer(f, a, strength)?;
            write!(f, " {} ", symbol(*operator))?;
            write_integer(f, b, strength + 1)?;
            f.write_str(if open { ")" } else { "" })
        }
        Integer::Select(condition, then, otherwise) => {
            f.write_str(if least > 0 { "(" } else { "" })?;
            write_integer(f, condition, 1)?;
            f.write_str(" ? ")?;
            write_integer(f, then, 1)?;
            f.write_str(" : ")?;
            write_integer(f, otherwise, 0)?;
            f.write_str(if least > 0 { ")" } else { "" })
        }
    }
}

impl fmt::Display for Integer {
    /// The infix form. In the alternate form (`{:#}`) a selection is in parentheses, so that it can stand before a colon.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_integer(f, self, u8::from(f.alternate()))
    }
}

fn write_vector(f: &mut fmt::Formatter<'_>, vector: &Vector, least: u8) -> fmt::Result {
    let mut binary = |strength: u8, symbol: &str, a: &Vector, b: &Vector| {
        let open = strength < least;
        f.write_str(if open { "(" } else { "" })?;
        write_vector(f, a, strength)?;
        write!(f, " {symbol} ")?;
        write_vector(f, b, strength + 1)?;
        f.write_str(if open { ")" } else { "" })
    };
    match vector {
        Vector::Sum(a, b) => binary(1, "+", a, b),
        Vector::Product(a, b) => binary(2, "*", a, b),
        Vector::Scalar(value) => {
            let mut text = String::new();
            write_float(&mut text, *value);
            f.write_str(&text)
        }
        Vector::Table(table, index) => write!(f, "{table}[{index}]"),
        Vector::Mask(condition, inner) => {
            write!(f, "mask({condition}, ")?;
            write_vector(f, inner, 0)?;
            f.write_str(")")
        }
    }
}

impl fmt::Display for Vector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_vector(f, self, 0)
    }
}

/// A tree and its depth.
type Deep<E> = (E, usize);

fn deeper(cursor: &Cursor<'_>, depths: &[usize]) -> Result<usize, Error> {
    match 1 + depths.iter().copied().max().unwrap_or(0) {
        depth if depth <= MAXIMUM_DEPTH => Ok(depth),
        _ => Err(cursor.error(format!("an expression is more than {MAXIMUM_DEPTH} operators deep"))),
    }
}

/// Reads an integer expression.
pub fn read_integer(cursor: &mut Cursor<'_>) -> Result<Integer, Error> {
    Ok(read_select(cursor)?.0)
}

fn read_select(cursor: &mut Cursor<'_>) -> Result<Deep<Integer>, Error> {
    cursor.nested(|cursor| {
        let (condition, depth) = read_binary(cursor, 1)?;
        if !cursor.eat("?") {
            return Ok((condition, depth));
        }
        let (then, then_depth) = read_select(cursor)?;
        cursor.expect(":")?;
        let (otherwise, otherwise_depth) = read_select(cursor)?;
        let depth = deeper(cursor, &[depth, then_depth, otherwise_depth])?;
        Ok((Integer::Select(Box::new(condition), Box::new(then), Box::new(otherwise)), depth))
    })
}

fn read_binary(cursor: &mut Cursor<'_>, least: u8) -> Result<Deep<Integer>, Error> {
    let (mut left, mut depth) = read_operand(cursor)?;
    loop {
        let operator = OPERATORS.into_iter().find(|operator| cursor.rest().starts_with(symbol(*operator)));
        let Some(operator) = operator.filter(|operator| binding(*operator) >= least) else {
            return Ok((left, depth));
        };
        cursor.expect(symbol(operator))?;
        let (right, right_depth) = read_binary(cursor, binding(operator) + 1)?;
        depth = deeper(cursor, &[depth, right_depth])?;
        left = Integer::Binary(operator, Box::new(left), Box::new(right));
    }
}

fn read_operand(cursor: &mut Cursor<'_>) -> Result<Deep<Integer>, Error> {
    if cursor.eat("(") {
        let inner = read_select(cursor)?;
        cursor.expect(")")?;
        return Ok(inner);
    }
    if cursor.rest().starts_with(|c: char| c.is_ascii_digit() || c == '-') {
        return Ok((Integer::Constant(cursor.integer()?), 1));
    }
    let variable = match cursor.peek_word() {
        "s" => Variable::Slot,
        "pos" => Variable::Position,
        "count" => Variable::Count,
        word => {
            let number = word.strip_prefix('i').and_then(|digits| digits.parse().ok());
            Variable::Loop(number.ok_or_else(|| cursor.expected("a number or one of s, pos, count, i0, i1, …"))?)
        }
    };
    cursor.word()?;
    Ok((Integer::Variable(variable), 1))
}

/// Reads a vector expression.
pub fn read_vector(cursor: &mut Cursor<'_>) -> Result<Vector, Error> {
    Ok(read_sum(cursor)?.0)
}

fn read_sum(cursor: &mut Cursor<'_>) -> Result<Deep<Vector>, Error> {
    cursor.nested(|cursor| {
        let (mut left, mut depth) = read_product(cursor)?;
        while cursor.eat("+") {
            let (right, right_depth) = read_product(cursor)?;
            depth = deeper(cursor, &[depth, right_depth])?;
            left = Vector::Sum(Box::new(left), Box::new(right));
        }
        Ok((left, depth))
    })
}

fn read_product(cursor: &mut Cursor<'_>) -> Result<Deep<Vector>, Error> {
    let (mut left, mut depth) = read_factor(cursor)?;
    while cursor.eat("*") {
        let (right, right_depth) = read_factor(cursor)?;
        depth = deeper(cursor, &[depth, right_depth])?;
        left = Vector::Product(Box::new(left), Box::new(right));
    }
    Ok((left, depth))
}

fn read_factor(cursor: &mut Cursor<'_>) -> Result<Deep<Vector>, Error> {
    if cursor.eat("(") {
        let inner = read_sum(cursor)?;
        cursor.expect(")")?;
        return Ok(inner);
    }
    if cursor.eat_word("mask") {
        cursor.expect("(")?;
        let (condition, depth) = read_select(cursor)?;
        cursor.expect(",")?;
        let (inner, inner_depth) = read_sum(cursor)?;
        cursor.expect(")")?;
        return Ok((Vector::Mask(condition, Box::new(inner)), deeper(cursor, &[depth, inner_depth])?));
    }
    let table = cursor.peek_word().strip_prefix('t').and_then(|digits| digits.parse().ok());
    if let Some(number) = table {
        cursor.word()?;
        cursor.expect("[")?;
        let (index, depth) = read_select(cursor)?;
        cursor.expect("]")?;
        return Ok((Vector::Table(TableId(number), index), deeper(cursor, &[depth])?));
    }
    Ok((Vector::Scalar(cursor.float()?), 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn integers() -> impl Strategy<Value = Integer> {
        let leaf = prop_oneof![
            any::<i64>().prop_map(Integer::Constant),
            (-70_i64..70).prop_map(Integer::Constant),
            Just(Integer::slot()),
            Just(Integer::position()),
            Just(Integer::count()),
            (0_u32..4).prop_map(Integer::counter),
        ];
        leaf.prop_recursive(6, 40, 3, |inner| {
            prop_oneof![
                (0..OPERATORS.len(), inner.clone(), inner.clone()).prop_map(|(k, a, b)| Integer::Binary(
                    OPERATORS[k],
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

    fn vectors() -> impl Strategy<Value = Vector> {
        let leaf = prop_oneof![
            any::<f64>().prop_map(Vector::Scalar),
            (0_u32..9, integers()).prop_map(|(id, index)| Vector::Table(TableId(id), index)),
        ];
        leaf.prop_recursive(5, 30, 2, |inner| {
            prop_oneof![
                (integers(), inner.clone()).prop_map(|(c, v)| Vector::Mask(c, Box::new(v))),
                (inner.clone(), inner.clone()).prop_map(|(a, b)| Vector::Sum(Box::new(a), Box::new(b))),
                (inner.clone(), inner).prop_map(|(a, b)| Vector::Product(Box::new(a), Box::new(b))),
            ]
        })
    }

    fn read<R>(text: &str, read: fn(&mut Cursor<'_>) -> Result<R, Error>) -> Result<R, Error> {
        let mut cursor = Cursor::new(text, 1);
        let result = read(&mut cursor)?;
        cursor.finish()?;
        Ok(result)
    }

    proptest! {
        #[test]
        fn integers_round_trip(expression in integers()) {
            prop_assert_eq!(&read(&expression.to_string(), read_integer).unwrap(), &expression);
            prop_assert_eq!(&read(&format!("{expression:#}"), read_integer).unwrap(), &expression);
        }

        #[test]
        fn vectors_round_trip(vector in vectors()) {
            prop_assert_eq!(read(&vector.to_string(), read_vector).unwrap(), vector);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[-s0-9ipt()?:*+%<=& .,\\[\\]maskcoun]{0,60}") {
            let _ = read(&text, read_integer);
            let _ = read(&text, read_vector);
        }
    }

    #[test]
    fn precedence_is_the_usual_one() {
        let s = Integer::slot;
        let pos = Integer::position;
        assert_eq!(read("s + pos * 2", read_integer).unwrap(), s() + pos() * 2);
        assert_eq!(read("s - pos - -2", read_integer).unwrap(), s() - pos() - -2);
        assert_eq!(read("s - (pos - 2)", read_integer).unwrap(), s() - (pos() - 2));
        let text = "pos % 128 < 64 & s <= 3 ? -64 : 64";
        let expression = (pos() % 128).less(64).and(s().less_equal(3)).select(-64, 64);
        assert_eq!(read(text, read_integer).unwrap(), expression);
        assert_eq!(expression.to_string(), text);
        assert_eq!(format!("{expression:#}"), format!("({text})"));
    }

    #[test]
    fn special_numbers_survive() {
        for value in [0.0, -0.0, f64::INFINITY, f64::NEG_INFINITY, f64::MIN_POSITIVE, 5e-324, f64::MAX, 0.1 + 0.2] {
            let Vector::Scalar(back) = read(&Vector::Scalar(value).to_string(), read_vector).unwrap() else { panic!() };
            assert_eq!(back.to_bits(), value.to_bits());
        }
        let extreme = Integer::Constant(i64::MIN);
        assert_eq!(read(&extreme.to_string(), read_integer).unwrap(), extreme);
    }

    #[test]
    fn depth_is_bounded() {
        let chain = format!("s{}", " + 1".repeat(100_000));
        assert!(read(&chain, read_integer).unwrap_err().to_string().contains("deep"));
        assert!(read(&"(".repeat(100_000), read_integer).is_err());
        assert!(read(&"(".repeat(100_000), read_vector).is_err());
        assert!(read(&format!("1.0{}", " * 1.0".repeat(100_000)), read_vector).is_err());
        assert!(read(&"s ? 1 : ".repeat(100_000), read_integer).is_err());
    }
}
