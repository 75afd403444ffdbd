//! Ops of the ckks stage in text and JSON.

use serde_json::{Map, Value};

use super::TextOp;
use super::cursor::{Cursor, write_float};
use super::expression::{read_integer, read_vector};
use super::linear::{json_linear, read_linear, write_linear};
use super::types::{
    json_kept, json_polynomial, json_state, json_sum, json_write, read_kept, read_polynomial, read_state, read_steps,
    read_sum, read_write, write_kept, write_polynomial, write_state, write_steps, write_sum, write_write,
};
use crate::Error;
use crate::ckks::{Bootstrap, CiphertextType, CkksOp};
use crate::json::{self, fields};

fn read_bootstrap(cursor: &mut Cursor<'_>) -> Result<Bootstrap, Error> {
    let complex = match cursor.peek_word() {
        "real" => false,
        "complex" => true,
        _ => return Err(cursor.expected("`real` or `complex`")),
    };
    cursor.word()?;
    cursor.expect_word("magnitude")?;
    let log2_magnitude = cursor.id("2^", "a power of two such as 2^3")?;
    let (factor, keep) = read_kept(cursor)?;
    Ok(Bootstrap { complex, keep, factor, log2_magnitude })
}

impl TextOp for CkksOp {
    type Type = CiphertextType;

    const STAGE: &'static str = "ckks";

    fn mnemonic(&self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Subtract => "subtract",
            Self::Multiply => "multiply",
            Self::MultiplyPlain { .. } => "multiply_plain",
            Self::MultiplyScalar { .. } => "multiply_scalar",
            Self::MultiplyInteger { .. } => "multiply_integer",
            Self::AddPlain { .. } => "add_plain",
            Self::MultiplyByI => "multiply_by_i",
            Self::Rescale => "rescale",
            Self::DropLevels { .. } => "drop_levels",
            Self::Linear(_) => "linear",
            Self::Rotate { .. } => "rotate",
            Self::RotateAndSum { .. } => "rotate_and_sum",
            Self::Conjugate => "conjugate",
            Self::Polynomial { .. } => "polynomial",
            Self::Bootstrap(_) => "bootstrap",
            Self::StateRead { .. } => "state_read",
            Self::StateWrite { .. } => "state_write",
            Self::Sum { .. } => "sum",
        }
    }

    fn write_attributes(&self, out: &mut String) {
        match self {
            Self::Add | Self::Subtract | Self::Multiply | Self::MultiplyByI | Self::Rescale | Self::Conjugate => {}
            Self::MultiplyPlain { plain } | Self::AddPlain { plain } => out.push_str(&format!(" by {plain}")),
            Self::MultiplyScalar { factor } => {
                out.push_str(" by ");
                write_float(out, *factor);
            }
            Self::MultiplyInteger { factor } => out.push_str(&format!(" by {factor}")),
            Self::DropLevels { to } => out.push_str(&format!(" to {to}")),
            Self::Linear(linear) => write_linear(out, linear),
            Self::Rotate { by } => out.push_str(&format!(" by {by:#}")),
            Self::RotateAndSum { steps } => write_steps(out, steps),
            Self::Polynomial { polynomial, mask } => write_polynomial(out, polynomial, mask.as_ref()),
            Self::Bootstrap(Bootstrap { complex, keep, factor, log2_magnitude }) => {
                let domain = if *complex { "complex" } else { "real" };
                out.push_str(&format!(" {domain} magnitude 2^{log2_magnitude}"));
                write_kept(out, *factor, keep.as_ref());
            }
            Self::StateRead { state, index } => write_state(out, *state, index),
            Self::StateWrite { state, index, mode } => write_write(out, *state, index, *mode),
            Self::Sum { counter, count } => write_sum(out, *counter, count),
        }
    }

    fn read_attributes(mnemonic: &str, cursor: &mut Cursor<'_>) -> Result<Self, Error> {
        let by = matches!(mnemonic, "multiply_plain" | "multiply_scalar" | "multiply_integer" | "add_plain" | "rotate");
        if by {
            cursor.expect_word("by")?;
        }
        Ok(match mnemonic {
            "add" => Self::Add,
            "subtract" => Self::Subtract,
            "multiply" => Self::Multiply,
            "multiply_plain" => Self::MultiplyPlain { plain: read_vector(cursor)? },
            "multiply_scalar" => Self::MultiplyScalar { factor: cursor.float()? },
            "multiply_integer" => Self::MultiplyInteger { factor: cursor.integer()? },
            "add_plain" => Self::AddPlain { plain: read_vector(cursor)? },
            "multiply_by_i" => Self::MultiplyByI,
            "rescale" => Self::Rescale,
            "drop_levels" => {
                cursor.expect_word("to")?;
                Self::DropLevels { to: cursor.integer()? }
            }
            "linear" => Self::Linear(read_linear(cursor)?),
            "rotate" => Self::Rotate { by: read_integer(cursor)? },
            "rotate_and_sum" => Self::RotateAndSum { steps: read_steps(cursor)? },
            "conjugate" => Self::Conjugate,
            "polynomial" => {
                let (polynomial, mask) = read_polynomial(cursor)?;
                Self::Polynomial { polynomial, mask }
            }
            "bootstrap" => Self::Bootstrap(read_bootstrap(cursor)?),
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
            _ => return Err(cursor.error(format!("`{mnemonic}` is no op of the ckks stage"))),
        })
    }

    fn has_body(&self) -> bool {
        matches!(self, Self::Sum { .. })
    }

    fn json_attributes(&self) -> Map<String, Value> {
        match self {
            Self::Add | Self::Subtract | Self::Multiply | Self::MultiplyByI | Self::Rescale | Self::Conjugate => {
                Map::new()
            }
            Self::MultiplyPlain { plain } | Self::AddPlain { plain } => fields([("plain", json::vector(plain))]),
            Self::MultiplyScalar { factor } => fields([("factor", json::float(*factor))]),
            Self::MultiplyInteger { factor } => fields([("factor", (*factor).into())]),
            Self::DropLevels { to } => fields([("to_level", (*to).into())]),
            Self::Linear(linear) => json_linear(linear),
            Self::Rotate { by } => fields([("by_slots", json::integer(by))]),
            Self::RotateAndSum { steps } => fields([("steps_slots", steps.iter().map(json::integer).collect())]),
            Self::Polynomial { polynomial, mask } => json_polynomial(polynomial, mask.as_ref()),
            Self::Bootstrap(Bootstrap { complex, keep, factor, log2_magnitude }) => {
                let domain = if *complex { "complex" } else { "real" };
                let mut object = fields([("variant", domain.into()), ("log2_magnitude", (*log2_magnitude).into())]);
                object.extend(json_kept(*factor, keep.as_ref()));
                object
            }
            Self::StateRead { state, index } => json_state(*state, index),
            Self::StateWrite { state, index, mode } => json_write(*state, index, *mode),
            Self::Sum { counter, count } => json_sum(*counter, count),
        }
    }
}
