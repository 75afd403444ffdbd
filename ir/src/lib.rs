//! Graphs, types, layouts and the plan format of Cachemir.
//!
//! One generic [`graph::Graph`] is instantiated three times: [`tensor`] (the recognised model), [`slots`] (packed
//! vectors without level or scale) and [`ckks`] (typed ciphertexts). A [`program::Program`] bundles the entry points
//! of a stage with the state they share. Integers that are public at run time (position, token count) appear as
//! [`expression::Integer`] expressions, plaintext vectors as [`expression::Vector`] expressions over the slot index.
//!
//! ```
//! use cachemir_ir::program::EntryPoint;
//! use cachemir_ir::slots::SlotOp;
//! use cachemir_ir::slots_interpreter::Interpreter;
//! use cachemir_ir::{text, verify};
//!
//! // Each token is appended to a cache, and the sum of all is taken: for token n, slot s holds x₀[s] + … + xₙ[s].
//! let source = "\
//! cachemir slots
//! slots 2
//! context 8
//! input scale 1.0
//! embedding token_stride 0 slots 0:1:2
//! logits token_stride 0 slots 0:1:2
//! state c0 cache of 8 : junk stride 1
//!
//! entry decode (%0 x : junk stride 1 max 4.0) {
//!   state_write %0 to c0[pos] replace  ; @0
//!   %2 total = sum i0 in 0..(pos + 1) : junk stride 1 max 32.0 {  ; @2
//!     %1 = state_read c0[i0] : junk stride 1 max 4.0  ; @1
//!     yield %1
//!   }
//!   yield %2
//! }
//! ";
//! let program = text::parse::<SlotOp>(source, &|_hash| None)?;
//! verify::slots(&program, true)?;
//! assert_eq!(text::print(&program), source);
//!
//! let mut interpreter = Interpreter::new(&program);
//! interpreter.call(EntryPoint::Decode, 0, 1, &[vec![1.0, 2.0]])?;
//! assert_eq!(interpreter.call(EntryPoint::Decode, 1, 1, &[vec![0.5, -2.0]])?, [[1.5, 0.0]]);
//! # Ok::<(), cachemir_ir::Error>(())
//! ```
#![forbid(unsafe_code)]

pub mod chat;
pub mod chebyshev;
pub mod ckks;
pub mod cost;
pub mod diagnostics;
pub mod error;
pub mod expression;
pub mod files;
pub mod graph;
pub mod hashes;
pub mod json;
pub mod layer;
pub mod linear;
pub mod manifest;
pub mod operations;
pub mod panics;
pub mod parameters;
pub mod plan;
pub mod program;
pub mod rotations;
pub mod slots;
pub mod slots_interpreter;
pub mod table;
pub mod tensor;
pub mod text;
#[cfg(feature = "tokenizer")]
pub mod tokenizer;
pub mod verify;
pub mod weights;

pub use error::Error;
