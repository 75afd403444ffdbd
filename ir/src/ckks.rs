//! The ckks stage: typed ciphertexts, with every rescale, level drop and bootstrap explicit.
//!
//! A ciphertext at level ℓ has limbs q_0..q_ℓ. Every level has one canonical scale Δ_ℓ with Δ_{ℓ-1} = Δ_ℓ²/q_ℓ, so the
//! type needs no scale but one bit: `product` is true between a product (scale Δ_ℓ²) and its rescale (level ℓ-1, scale
//! Δ_{ℓ-1}). Plaintext factors are encoded at Δ_ℓ, summands at the scale of the ciphertext. [`infer`] is the only place
//! that knows how ops change levels and scales; builder, verifier, interpreter and executor call it.

use crate::Error;
use crate::expression::{Integer, Vector};
use crate::graph::{Graph, OpId};
use crate::linear::Linear;
use crate::slots::{Chebyshev, Layout, StateId, WriteMode};

/// Type of a ciphertext.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CiphertextType {
    /// Index of the last limb of Q.
    pub level: u32,
    /// Whether a rescale is due: the scale is Δ² instead of Δ.
    pub product: bool,
    /// Where the vector's entries are.
    pub layout: Layout,
    /// A bound on the absolute value of real and imaginary part over all slots, junk included.
    pub max_abs: f64,
}

/// What a bootstrap does besides refreshing.
#[derive(Clone, Debug, PartialEq)]
pub struct Bootstrap {
    /// Whether slots are complex; a real bootstrap drops imaginary parts.
    pub complex: bool,
    /// Slots to keep: the others become 0. Folded into the SlotsToCoeffs matrices.
    pub keep: Option<Integer>,
    /// The result is the input times this, folded into the same matrices.
    pub factor: f64,
    /// Every kept slot times `factor` is at most 2^this, in real and imaginary part.
    pub log2_magnitude: u32,
}

/// An operation on ciphertexts.
#[derive(Clone, Debug, PartialEq)]
pub enum CkksOp {
    /// (a, b) → a + b, equal levels and scales
    Add,
    /// (a, b) → a − b, equal levels and scales
    Subtract,
    /// (a, b) → a·b with relinearisation, a product
    Multiply,
    /// (a) → a·plain, a product
    MultiplyPlain {
        /// The factor.
        plain: Vector,
    },
    /// (a) → a·factor for a scalar, a product
    MultiplyScalar {
        /// The factor.
        factor: f64,
    },
    /// (a) → a·factor for an integer, without a change of scale
    MultiplyInteger {
        /// The factor.
        factor: i64,
    },
    /// (a) → a + plain
    AddPlain {
        /// The summand.
        plain: Vector,
    },
    /// (a) → one result for each matrix, one level lower
    Linear(Linear),
    /// (a) → a·i, without a change of scale
    MultiplyByI,
    /// (a) → a, one level lower, no longer a product
    Rescale,
    /// (a) → a at a lower level and its canonical scale
    DropLevels {
        /// The new level.
        to: u32,
    },
    /// (a) → a rotated to the left
    Rotate {
        /// By how many slots; may be negative.
        by: Integer,
    },
    /// (a) → a, to which for each step in turn its rotation to the left by the step is added; see [`crate::rotations`]
    RotateAndSum {
        /// By how many slots; may be negative.
        steps: Vec<Integer>,
    },
    /// (a) → the slots' complex conjugates
    Conjugate,
    /// (a) → polynomial(a)·mask for slots in [-1, 1], `depth(degree)` levels lower
    Polynomial {
        /// What is evaluated; its interval is [-1, 1].
        polynomial: Chebyshev,
        /// Factor of all coefficients, 1 where absent.
        mask: Option<Vector>,
    },
    /// (a) → a·factor in the kept slots, 0 elsewhere, at the bootstrap's output level
    Bootstrap(Bootstrap),
    /// () → element `index` of a state array
    StateRead {
        /// The array.
        state: StateId,
        /// Which element.
        index: Integer,
    },
    /// (a) → (): element `index` of a state array takes the value
    StateWrite {
        /// The array.
        state: StateId,
        /// Which element.
        index: Integer,
        /// Replace or add.
        mode: WriteMode,
    },
    /// () → the sum, over `counter` in 0..count, of what the body yields
    Sum {
        /// Number of the loop's counter, unique in the program.
        counter: u32,
        /// How often the body runs.
        count: Integer,
    },
}

/// A program of the ckks stage, for one entry point.
pub type CkksGraph = Graph<CkksOp, CiphertextType>;

impl CkksGraph {
    /// The level at which an op is executed: that of its operands, or of its result where it has none.
    pub fn level(&self, op: OpId) -> u32 {
        let node = self.node(op);
        node.inputs.first().or(node.results.first()).map_or(0, |value| self.ty(*value).level)
    }
}

/// The levels that a parameter set offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Levels {
    /// Level of fresh ciphertexts and of a bootstrap's output.
    pub output: u32,
    /// Least level of a bootstrap's input.
    pub bootstrap_input: u32,
}

/// Levels that a polynomial of this degree takes, by baby-step giant-step evaluation: ⌈log2(degree + 1)⌉.
pub fn polynomial_depth(degree: usize) -> u32 {
    usize::BITS - degree.leading_zeros()
}

/// Level and scale of an op's result from those of its operands: `(level, product)` pairs. `state_level` is the level at
/// which the op's state array is kept, for reads and writes. All results of an op have the same; ops without a result give
/// `None`.
pub fn infer(
    op: &CkksOp,
    operands: &[(u32, bool)],
    levels: Levels,
    state_level: Option<u32>,
) -> Result<Option<(u32, bool)>, Error> {
    let fail = |message: String| Error::Execution(message);
    let one = || operands.first().copied().ok_or_else(|| Error::Execution("an operand is missing".into()));
    let canonical = || match one()? {
        (_, true) => Err(fail("the operand is a product that was not rescaled".into())),
        (level, false) => Ok(level),
    };
    Ok(Some(match op {
        CkksOp::Add | CkksOp::Subtract => match operands {
            [a, b] if a == b => *a,
            _ => {
                return Err(fail(format!("operands differ in level or scale: {operands:?}")));
            }
        },
        CkksOp::Multiply => match operands {
            [(a, false), (b, false)] if a == b && *a > 0 => (*a, true),
            _ => {
                return Err(fail(format!(
                    "operands of a product must be rescaled and of one level above 0: {operands:?}"
                )));
            }
        },
        CkksOp::MultiplyPlain { .. } | CkksOp::MultiplyScalar { .. } => match canonical()? {
            0 => return Err(fail("a product needs a level above 0".into())),
            level => (level, true),
        },
        CkksOp::Linear(_) => match canonical()? {
            0 => return Err(fail("a linear map needs a level above 0".into())),
            level => (level - 1, false),
        },
        CkksOp::MultiplyInteger { .. }
        | CkksOp::AddPlain { .. }
        | CkksOp::MultiplyByI
        | CkksOp::Rotate { .. }
        | CkksOp::RotateAndSum { .. }
        | CkksOp::Conjugate => one()?,
        CkksOp::Rescale => match one()? {
            (level, true) if level > 0 => (level - 1, false),
            (level, product) => {
                return Err(fail(format!("nothing to rescale at level {level} (product: {product})")));
            }
        },
        CkksOp::DropLevels { to } => match canonical()? {
            level if *to <= level => (*to, false),
            level => return Err(fail(format!("cannot drop from level {level} to {to}"))),
        },
        CkksOp::Polynomial { polynomial, .. } => {
            let (level, depth) = (canonical()?, polynomial_depth(polynomial.degree()));
            match level.checked_sub(depth) {
                Some(left) => (left, false),
                None => {
                    return Err(fail(format!("a polynomial of depth {depth} does not fit level {level}")));
                }
            }
        }
        CkksOp::Bootstrap(_) => match canonical()? {
            level if level >= levels.bootstrap_input => (levels.output, false),
            level => {
                return Err(fail(format!("a bootstrap needs level {}, its input has {level}", levels.bootstrap_input)));
            }
        },
        CkksOp::StateRead { .. } => match state_level {
            Some(level) => (level, false),
            None => return Err(fail("the state array has no level".into())),
        },
        CkksOp::StateWrite { .. } => match (canonical()?, state_level) {
            (level, Some(kept)) if level == kept => return Ok(None),
            (level, kept) => {
                return Err(fail(format!("a value of level {level} is written to state kept at {kept:?}")));
            }
        },
        CkksOp::Sum { .. } => one()?,
    }))
}
