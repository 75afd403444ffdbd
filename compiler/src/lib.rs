//! Compiles an ONNX Llama decoder to a CKKS execution plan.
#![forbid(unsafe_code)]

pub mod placement;
