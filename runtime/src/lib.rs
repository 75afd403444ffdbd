//! Executes Cachemir plans: client, server, generation.
//!
//! - [`executor`]: runs a plan's programs over any representation of ciphertexts.
//! - [`server`]: entry points and sessions. Sees ciphertexts and positions only.
//! - [`client`]: tokenizer, packing, encryption, sampling. Owns the secret key.
//! - [`generation`]: the loop between the two.
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
pub mod setup;

pub use error::Error;
