//! What a plan says about itself, for people: nothing of it is executed.

use serde::Serialize;

use crate::operations::{Call, Operations};

/// What a call of an entry point executes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallCounts {
    /// The call.
    pub call: Call,
    /// What it executes.
    pub operations: Operations,
    /// Why masks are left that no other constant carries.
    pub masks: Vec<MaskCount>,
    /// Time by the compiler's cost table, in nanoseconds on one thread.
    pub predicted_ns: u64,
}

/// Products by a mask, left for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MaskCount {
    /// The reason.
    pub reason: String,
    /// Products in a call.
    pub count: u64,
}

/// How an error is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// |p − f|
    Absolute,
    /// |p − f| / |f|
    Relative,
}

/// A non-linear function of the model, and what stands for it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Approximation {
    /// Where, e.g. `layer 0 silu`.
    pub site: String,
    /// The function of x, in text.
    pub function: String,
    /// How it was approximated, e.g. `minimax`.
    pub method: String,
    /// Range of x on which the error is stated.
    pub accurate: [f64; 2],
    /// Range of x on which the polynomial stays bounded by a small multiple of its values.
    pub sane: [f64; 2],
    /// Range of x that the weights alone allow in slots that hold values of the model, where it is known.
    pub derived: Option<[f64; 2]>,
    /// Degree of the polynomial.
    pub degree: u32,
    /// Levels that it takes.
    pub depth: u32,
    /// Largest error on the accurate range.
    pub max_error: f64,
    /// How that error is measured.
    pub measure: Measure,
    /// Whether that error is a common factor of a row, which a later approximation divides out.
    pub cancels: bool,
    /// Whether no input at all can leave the sane range.
    pub escape_proof: bool,
    /// Whether the client sees the argument, and refuses the step where it lies beyond the accurate range.
    pub checked: bool,
}
