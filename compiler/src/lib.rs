//! Compiles an ONNX Llama decoder to a CKKS execution plan.
//!
//! [`compile::compile`] is the whole pipeline: [`import`] reads the ONNX file and recognises the decoder, [`lower`] packs it
//! into slots with the polynomials of [`approximate`], [`placement`] puts bootstraps and levels, and the plan is written.
#![forbid(unsafe_code)]

pub mod approximate;
pub mod calibration;
pub mod compile;
mod deepen;
pub mod dump;
pub mod error;
pub mod guard;
pub mod import;
pub mod locate;
pub mod lower;
mod packing;
pub mod placement;
pub mod progress;
pub mod summary;

pub use error::Error;
