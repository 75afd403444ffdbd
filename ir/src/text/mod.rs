//! The text form of every stage: one op a line, read back exactly.
pub mod cursor;
pub mod expression;
mod stage;

pub use stage::{TextOp, TextType};
