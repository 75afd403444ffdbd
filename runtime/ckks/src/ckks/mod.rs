//! Approximate arithmetic on slots (ePrint 2016/421, 2018/931).
//!
//! # Scales
//! A ciphertext carries its exact scale. Sums want equal scales (relative difference at most
//! [`SCALE_TOLERANCE`](evaluator::SCALE_TOLERANCE)); products multiply scales; a rescale divides by the prime that it
//! consumes. A ciphertext at its level's canonical scale stays canonical through every operation that says so; circuits
//! may use any other scale.
//!
//! # Slots
//! n slots fill the subring of X^{N/2n}: as N/2 slots, the same polynomial is the vector repeated with period n.
//! `slots` is therefore a reading of the ciphertext, not a property of its data; binary operations take the larger
//! number of both operands.

pub mod ciphertext;
mod embedding;
pub mod encoder;
pub mod encryption;
pub mod evaluator;
mod hoisting;
mod scalars;
pub mod serialization;
#[cfg(test)]
pub(crate) mod tests;
