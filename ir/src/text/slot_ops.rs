//! Ops of the slots stage in text and JSON.

use serde_json::{Map, Value};

use super::TextOp;
use super::cursor::{Cursor, write_name};
use super::expression::{read_integer, read_vector};
use super::linear::{json_linear, read_linear, write_linear};
use super::types::{
    json_kept, json_polynomial, json_state, json_sum, json_write, read_kept, read_polynomial, read_state, read_steps,
    read_sum, read_write, write_kept, write_polynomial, write_state, write_steps, write_sum, write_write,
};
use crate::Error;
use crate::json::{self, fields};
use crate::slots::{Purpose, SlotOp, SlotType};

fn purpose_name(purpose: &Purpose) -> &'static str {
    match purpose {
        Purpose::Rope => "rope",
        Purpose::Scale => "scale",
        Purpose::Mask(_) => "mask",
    }
}

fn read_purpose(cursor: &mut Cursor<'_>) -> Result<Purpose, Error> {
    let purpose = match cursor.peek_word() {
        "rope" => Purpose::Rope,
        "scale" => Purpose::Scale,
        "mask" => {
            cursor.word()?;
            return cursor.name().map(Purpose::Mask);
        }
        _ => return Err(cursor.expected("a purpose: rope, scale or mask")),
    };
    cursor.word()?;
    Ok(purpose)
}

impl TextOp for SlotOp {
    type Type = SlotType;

    const STAGE: &'static str = "slots";

    fn mnemonic(&self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Subtract => "subtract",
            Self::Multiply => "multiply",
            Self::MultiplyPlain { .. } => "multiply_plain",
            Self::AddPlain { .. } => "add_plain",
            Self::Linear(_) => "linear",
            Self::Rotate { .. } => "rotate",
            Self::RotateAndSum { .. } => "rotate_and_sum",
            Self::Polynomial { .. } => "polynomial",
            Self::Refresh { .. } => "refresh",
            Self::StateRead { .. } => "state_read",
            Self::StateWrite { .. } => "state_write",
            Self::Sum { .. } => "sum",
        }
    }

    fn write_attributes(&self, out: &mut String) {
        match self {
            Self::Add | Self::Subtract | Self::Multiply => {}
            Self::MultiplyPlain { plain, purpose } => {
                out.push_str(&format!(" by {plain} for {}", purpose_name(purpose)));
                if let Purpose::Mask(reason) = purpose {
                    out.push(' ');
                    write_name(out, reason);
                }
            }
            Self::AddPlain { plain } => out.push_str(&format!(" by {plain}")),
            Self::Linear(linear) => write_linear(out, linear),
            Self::Rotate { by } => out.push_str(&format!(" by {by:#}")),
            Self::RotateAndSum { steps } => write_steps(out, steps),
            Self::Polynomial { polynomial, mask } => write_polynomial(out, polynomial, mask.as_ref()),
            Self::Refresh { keep, factor } => write_kept(out, *factor, keep.as_ref()),
            Self::StateRead { state, index } => write_state(out, *state, index),
            Self::StateWrite { state, index, mode } => write_write(out, *state, index, *mode),
            Self::Sum { counter, count } => write_sum(out, *counter, count),
        }
    }

    fn read_attributes(mnemonic: &str, cursor: &mut Cursor<'_>) -> Result<Self, Error> {
        Ok(match mnemonic {
            "add" => Self::Add,
            "subtract" => Self::Subtract,
            "multiply" => Self::Multiply,
            "multiply_plain" => {
                cursor.expect_word("by")?;
                let plain = read_vector(cursor)?;
                cursor.expect_word("for")?;
                Self::MultiplyPlain { plain, purpose: read_purpose(cursor)? }
            }
            "add_plain" => {
                cursor.expect_word("by")?;
                Self::AddPlain { plain: read_vector(cursor)? }
            }
            "linear" => Self::Linear(read_linear(cursor)?),
            "rotate" => {
                cursor.expect_word("by")?;
                Self::Rotate { by: read_integer(cursor)? }
            }
            "rotate_and_sum" => Self::RotateAndSum { steps: read_steps(cursor)? },
            "polynomial" => {
                let (polynomial, mask) = read_polynomial(cursor)?;
                Self::Polynomial { polynomial, mask }
            }
            "refresh" => {
                let (factor, keep) = read_kept(cursor)?;
                Self::Refresh { keep, factor }
            }
            "state_read" => {
                let (state, index) = read_state(cursor)?;
                Self::StateRead { state, index }
            }
            "state_write" => {
                let (state, index, mode) = read_write(cursor)?;
                Self::StateWrite { state, index, mode }
            }
            "sum" => {
                let (counter, count) = read_sum(cursor)?;
                Self::Sum { counter, count }
            }
            _ => return Err(cursor.error(format!("`{mnemonic}` is no op of the slots stage"))),
        })
    }

    fn has_body(&self) -> bool {
        matches!(self, Self::Sum { .. })
    }

    fn json_attributes(&self) -> Map<String, Value> {
        match self {
            Self::Add | Self::Subtract | Self::Multiply => Map::new(),
            Self::MultiplyPlain { plain, purpose } => {
                let mut object = fields([("plain", json::vector(plain)), ("purpose", purpose_name(purpose).into())]);
                if let Purpose::Mask(reason) = purpose {
                    object.insert("reason".to_owned(), reason.as_str().into());
                }
                object
            }
            Self::AddPlain { plain } => fields([("plain", json::vector(plain))]),
            Self::Linear(linear) => json_linear(linear),
            Self::Rotate { by } => fields([("by_slots", json::integer(by))]),
            Self::RotateAndSum { steps } => fields([("steps_slots", steps.iter().map(json::integer).collect())]),
            Self::Polynomial { polynomial, mask } => json_polynomial(polynomial, mask.as_ref()),
            Self::Refresh { keep, factor } => json_kept(*factor, keep.as_ref()),
            Self::StateRead { state, index } => json_state(*state, index),
            Self::StateWrite { state, index, mode } => json_write(*state, index, *mode),
            Self::Sum { counter, count } => json_sum(*counter, count),
        }
    }
}
