//! Linear maps in text and JSON.
//!
//! ```text
//! linear %3 from 64 plain 64 unit 1 of 1 to {t0 at 64 query kv_heads 2/2 members 2/2 head_dim 16/16, t1 + t8 and t2 at 32
//!   key_value kv_heads 2/2 head_dim 16/16 landing (pos % 128)}
//! ```
//!
//! (on one line): the operand's positions and features, its unit and how many of it hold vectors, and the outputs: matrices
//! with their biases behind `+`, joined by `and` where two are one complex matrix, then positions and features. Numbers
//! before and behind a slash are how many there are and how many places they take.

use serde_json::{Map, Value};

use super::cursor::Cursor;
use super::expression::read_integer;
use crate::Error;
use crate::expression::TableId;
use crate::json::{self, fields};
use crate::linear::{Features, Heads, Linear, Matrix, Order, Output, Padded};

fn features_name(features: &Features) -> &'static str {
    match features {
        Features::Plain { .. } => "plain",
        Features::KeyValue(_) => "key_value",
        Features::Query(_) => "query",
        Features::RotatedQuery(_) => "rotated_query",
    }
}

fn write_order(out: &mut String, order: &Order) {
    out.push_str(&format!("{} {}", order.positions, features_name(&order.features)));
    match &order.features {
        Features::Plain { width, offset: 0 } => out.push_str(&format!(" {width}")),
        Features::Plain { width, offset } => out.push_str(&format!(" {width} from {offset}")),
        Features::KeyValue(heads) | Features::Query(heads) | Features::RotatedQuery(heads) => {
            for (name, Padded { real, places }) in
                [("kv_heads", heads.kv_heads), ("members", heads.members), ("head_dim", heads.head_dim)]
            {
                out.push_str(&format!(" {name} {real}/{places}"));
            }
        }
    }
}

fn read_padded(cursor: &mut Cursor<'_>, name: &str) -> Result<Padded, Error> {
    cursor.expect_word(name)?;
    let real = cursor.integer()?;
    cursor.expect("/")?;
    let places = cursor.integer()?;
    if real == 0 || real > places {
        return Err(cursor.error(format!("{real} {name} in {places} places")));
    }
    Ok(Padded { real, places })
}

fn read_heads(cursor: &mut Cursor<'_>) -> Result<Heads, Error> {
    let kv_heads = read_padded(cursor, "kv_heads")?;
    let members = read_padded(cursor, "members")?;
    let head_dim = read_padded(cursor, "head_dim")?;
    if head_dim.real % 2 == 1 || head_dim.places % 2 == 1 {
        return Err(cursor.error("a head has an even number of entries"));
    }
    let product = [kv_heads, members, head_dim].into_iter().try_fold(1_u32, |all, part| all.checked_mul(part.places));
    if product.is_none_or(|product| product > MOST_POSITIONS) {
        return Err(cursor.error(format!("the heads have more than {MOST_POSITIONS} positions")));
    }
    Ok(Heads { kv_heads, members, head_dim })
}

/// More positions than any ciphertext has slots.
const MOST_POSITIONS: u32 = 1 << 24;

fn read_order(cursor: &mut Cursor<'_>) -> Result<Order, Error> {
    let positions = cursor.integer()?;
    if positions > MOST_POSITIONS {
        return Err(cursor.error(format!("more than {MOST_POSITIONS} positions")));
    }
    let features = match cursor.peek_word() {
        "plain" => {
            cursor.word()?;
            let width: u32 = cursor.integer()?;
            let offset = if cursor.eat_word("from") { cursor.integer()? } else { 0 };
            if width == 0 || width > MOST_POSITIONS || width.checked_add(offset).is_none() {
                return Err(cursor.error(format!("{width} entries from {offset} on")));
            }
            Features::Plain { width, offset }
        }
        "key_value" => {
            cursor.word()?;
            Features::KeyValue(read_heads(cursor)?)
        }
        "query" => {
            cursor.word()?;
            Features::Query(read_heads(cursor)?)
        }
        "rotated_query" => {
            cursor.word()?;
            Features::RotatedQuery(read_heads(cursor)?)
        }
        _ => return Err(cursor.expected("features: plain, key_value, query or rotated_query")),
    };
    Ok(Order { positions, features })
}

pub(super) fn write_linear(out: &mut String, linear: &Linear) {
    out.push_str(if linear.complex_operand { " complex from " } else { " from " });
    write_order(out, &linear.input);
    out.push_str(&format!(" unit {} of {:#} to {{", linear.unit, linear.vectors));
    for (index, output) in linear.outputs.iter().enumerate() {
        out.push_str(if index > 0 { ", " } else { "" });
        for (index, matrix) in output.matrices.iter().enumerate() {
            out.push_str(if index > 0 { " and " } else { "" });
            out.push_str(&matrix.weights.to_string());
            if let Some(bias) = matrix.bias {
                out.push_str(&format!(" + {bias}"));
            }
        }
        out.push_str(" at ");
        write_order(out, &output.order);
        if let Some(landing) = &output.landing {
            out.push_str(&format!(" landing {landing:#}"));
        }
    }
    out.push('}');
}

fn read_table(cursor: &mut Cursor<'_>) -> Result<TableId, Error> {
    cursor.id("t", "a table such as t0").map(TableId)
}

pub(super) fn read_linear(cursor: &mut Cursor<'_>) -> Result<Linear, Error> {
    let complex_operand = cursor.eat_word("complex");
    cursor.expect_word("from")?;
    let input = read_order(cursor)?;
    cursor.expect_word("unit")?;
    let unit = cursor.integer()?;
    cursor.expect_word("of")?;
    let vectors = read_integer(cursor)?;
    cursor.expect_word("to")?;
    cursor.expect("{")?;
    let mut outputs = Vec::new();
    loop {
        let mut matrices = Vec::new();
        loop {
            let weights = read_table(cursor)?;
            let bias = if cursor.eat("+") { Some(read_table(cursor)?) } else { None };
            matrices.push(Matrix { weights, bias });
            if !cursor.eat_word("and") {
                break;
            }
        }
        cursor.expect_word("at")?;
        let order = read_order(cursor)?;
        let landing = if cursor.eat_word("landing") { Some(read_integer(cursor)?) } else { None };
        outputs.push(Output { matrices, order, landing });
        if !cursor.eat(",") {
            break;
        }
    }
    cursor.expect("}")?;
    Ok(Linear { input, unit, vectors, complex_operand, outputs })
}

fn json_order(order: &Order) -> Value {
    let mut object =
        fields([("positions", order.positions.into()), ("features", features_name(&order.features).into())]);
    match &order.features {
        Features::Plain { width, offset } => {
            object.insert("width".to_owned(), (*width).into());
            object.insert("offset".to_owned(), (*offset).into());
        }
        Features::KeyValue(heads) | Features::Query(heads) | Features::RotatedQuery(heads) => {
            for (name, padded) in
                [("kv_heads", heads.kv_heads), ("members", heads.members), ("head_dim", heads.head_dim)]
            {
                let padded = fields([("real", padded.real.into()), ("places", padded.places.into())]);
                object.insert(name.to_owned(), padded.into());
            }
        }
    }
    object.into()
}

pub(super) fn json_linear(linear: &Linear) -> Map<String, Value> {
    let matrix = |matrix: &Matrix| {
        let mut object = fields([("weights_table", matrix.weights.0.into())]);
        object.extend(matrix.bias.map(|bias| ("bias_table".to_owned(), bias.0.into())));
        object
    };
    let output = |output: &Output| {
        let matrices: Vec<_> = output.matrices.iter().map(matrix).collect();
        let mut object = fields([("matrices", matrices.into()), ("order", json_order(&output.order))]);
        object.extend(output.landing.as_ref().map(|landing| ("landing".to_owned(), json::integer(landing))));
        object
    };
    let outputs: Vec<_> = linear.outputs.iter().map(output).collect();
    fields([
        ("input", json_order(&linear.input)),
        ("unit_slots", linear.unit.into()),
        ("vectors", json::integer(&linear.vectors)),
        ("complex_operand", linear.complex_operand.into()),
        ("outputs", outputs.into()),
    ])
}
