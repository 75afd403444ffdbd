//! The text form of every stage: one op a line, read back exactly.

mod ckks_ops;
pub mod cursor;
pub mod expression;
mod slot_ops;
mod stage;
mod types;

pub use stage::{TextOp, TextType};
