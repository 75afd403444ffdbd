//! Executes Cachemir plans: client, server, generation.
//!
//! ```no_run
//! use cachemir_runtime::{GenerateOptions, Plans, Session};
//!
//! let plans = Plans::read("plan.bin")?; // what `cachemirc compile` wrote
//! let mut session = Session::encrypted(&plans)?;
//! session.prompt("Once upon a time")?;
//! let options = GenerateOptions { max_tokens: 8, ..GenerateOptions::default() };
//! let made = session.generate(&options, &mut |piece: &str| eprint!("{piece}"))?;
//! assert!(made.generated <= 8);
//! # Ok::<(), cachemir_runtime::Error>(())
//! ```
//!
//! Kernels run on rayon's threads. They begin at once where the session is used on one of them, inside
//! `rayon::ThreadPool::install`; every other thread first wakes one, thousands of times a second.
//!
//! - [`executor`]: runs a plan's programs over any representation of ciphertexts.
//! - [`server`]: entry points and sessions. Sees ciphertexts and positions only.
//! - [`client`]: tokenizer, packing, encryption, sampling. Owns the secret key.
//! - [`session`]: both in one process, a prompt in and text out.
//! - [`generation`]: what a generation is made of.
//! - [`setup`]: from a plan to both roles, with the memory that they need known in advance.
//! - [`layer`]: one decoder layer by itself, measured part by part.
//! - [`check`]: ranges and precision, for `--check`.
//!
//! The executor and the server cannot name a secret key: the only type that holds one is [`client::SecretCipher`], and
//! neither module uses the client's.
#![forbid(unsafe_code)]

pub mod check;
pub mod client;
pub mod error;
pub mod executor;
mod files;
pub mod generation;
pub mod layer;
pub mod memory;
pub mod server;
pub mod session;
pub mod setup;

pub use cachemir_ckks::UniformHalves;
pub use client::Prompt;
pub use client::sampling::Sampling;
pub use error::Error;
pub use generation::{GenerateOptions, Generation, Listener, Stop};
pub use session::{Backend, Session, SessionOptions};
pub use setup::Plans;
