//! Graphs, types, layouts and the plan format of Cachemir.
//!
//! One generic [`graph::Graph`] is instantiated three times: [`tensor`] (the recognised model), [`slots`] (packed
//! vectors without level or scale) and [`ckks`] (typed ciphertexts). A [`program::Program`] bundles the entry points
//! of a stage with the state they share. Integers that are public at run time (position, token count) appear as
//! [`expression::Integer`] expressions, plaintext vectors as [`expression::Vector`] expressions over the slot index.
#![forbid(unsafe_code)]

pub mod chat;
pub mod ckks;
pub mod cost;
pub mod diagnostics;
pub mod error;
pub mod expression;
pub mod files;
pub mod graph;
pub mod json;
pub mod layer;
pub mod linear;
pub mod manifest;
pub mod operations;
pub mod panics;
pub mod parameters;
pub mod plan;
pub mod program;
pub mod slots;
pub mod slots_interpreter;
pub mod tensor;
pub mod text;
pub mod verify;

pub use error::Error;
