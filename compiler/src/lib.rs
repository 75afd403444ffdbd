//! Compiles an ONNX Llama decoder to a CKKS execution plan.
//!
//! ```
//! use cachemir_compiler::{CompileOptions, compile};
//!
//! let options = CompileOptions { context: Some(32), ..CompileOptions::default() };
//! let compiled = compile("../models/tinystories2l_bounded/onnx/optimum/model.onnx", &options)?;
//! assert_eq!(compiled.plan.parameters.security_bits(), Some(128));
//! # let folder = std::env::temp_dir().join("cachemir-compiler-doctest");
//! # std::fs::create_dir_all(&folder).unwrap();
//! # let path = folder.join("plan.bin");
//! compiled.plan.write(&path)?; // and the client's part beside it
//! # Ok::<(), cachemir_compiler::Error>(())
//! ```
//!
//! [`compile()`] is the whole pipeline: [`import`] reads the ONNX file and recognises the decoder, [`lower`] packs it
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

pub use compile::{Compilation, CompileOptions, PublicPrefix, compile};
pub use error::Error;
