//! The text form of every stage: one op a line, read back exactly.
//!
//! ```text
//! cachemir slots
//! slots 4096
//! context 256
//! input scale 1.0
//! embedding token_stride 1 slots 0:64:64
//! logits token_stride 0 slots 0:8:512
//! table t0 layers.0.self_attn.q_proj [64, 64] blake3 …
//! state c0 layers.0.k_cache of 4 : zero stride 64
//!
//! entry decode (%0 x : zero stride 64 max 4.0) {
//!   %1 = rotate %0 by (pos % 8 < 4 ? -4 : 4) : junk stride 64 max 4.0  ; @0 !0 MatMul /model/q_proj/MatMul
//!   %4 = sum i0 in 0..(pos / 64 + 1) : junk stride 64 max 9.5 {  ; @3
//!     %2 = state_read c0[i0] : zero stride 64 max 2.0  ; @1
//!     %3 = multiply %2, %1 : junk stride 64 max 8.0  ; @2
//!     yield %3
//!   }
//!   yield %4
//! }
//! check "norm 1" from 0.01 to 3.5 centre 2.0 half 2.0 at token_stride 1 slots 4096:0:1
//! ```
//!
//! A line holds results with their names, `=`, mnemonic, operands, attributes, `:`, the results' types and, behind `;`,
//! the op's id and the ONNX node it was made from. Slots of placements are runs `first:step:number`. A line that starts with
//! `;` is a comment; problems found by a verifier are printed as such below their op. Weights appear as hashes of their
//! stored form: reading asks the caller for them.

// Appending formatted pieces to a string reads better than `write!`, whose error cannot occur here.
#![allow(clippy::format_push_string)]

mod ckks_ops;
pub mod cursor;
pub mod expression;
mod linear;
mod parse;
mod print;
mod slot_ops;
mod stage;
mod tensor_ops;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod types;

pub use parse::{FindWeights, parse, parse_model};
pub use print::{print, print_model, print_with_problems};
pub use stage::{TextOp, TextType};

use crate::table::Table;
use crate::weights::Weights;

/// A number for people: three significant digits.
pub fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if (1e-3..1e5).contains(&size) => {
            let decimals = (2.0 - size.log10().floor()).max(0.0) as usize;
            format!("{value:.decimals$}")
        }
        _ => format!("{value:.2e}"),
    }
}

/// So many of a thing, in words: `1 token`, `2 tokens`.
pub fn counted(count: usize, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

/// A number of bytes for people, in binary units.
pub fn format_bytes(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if bytes < 1024 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

/// Finds entries among tables, for [`parse`].
pub fn weights_of(tables: &[Table]) -> impl Fn(&[u8; 32]) -> Option<Weights> {
    let known: Vec<_> = tables.iter().filter_map(Table::weights).map(|weights| (weights.hash(), weights)).collect();
    move |hash| known.iter().find(|(known, _)| known == hash).map(|(_, weights)| (*weights).clone())
}
