//! The slots stage: packed real vectors and what is done to them. Neither level nor scale exists here.
//!
//! All ciphertexts of a program have the same number n of slots. Rotations are cyclic over the n slots and to the left
//! for positive amounts. A [`SlotOp::Refresh`] marks a place where a bootstrap may go: in the clear it multiplies by its
//! mask or does nothing; the placement decides whether it becomes a bootstrap (which carries the mask for free, and two
//! real operands as one complex ciphertext), a masking product, or nothing.

use crate::chebyshev;
use crate::expression::{Integer, Vector};
use crate::graph::Graph;
use crate::linear::Linear;

/// Index of a state array in [`crate::program::Program::states`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StateId(pub u32);

/// What fills the slots off the stride of a packed vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fill {
    /// Exactly zero.
    Zero,
    /// A copy of the group's value.
    Replica,
    /// Anything; nothing may depend on it.
    Junk,
    /// Values of other tokens: every slot is meaningful.
    Tokens,
}

/// Whether slots hold real numbers or pairs of them as complex numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Domain {
    /// The imaginary parts are zero.
    Real,
    /// Real and imaginary part are two real vectors.
    Complex,
}

/// How a vector lies in the slots of a ciphertext (DESIGN section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Entry i of the vector starts at slot i·stride.
    pub stride: u32,
    /// What the other slots hold.
    pub fill: Fill,
    /// Real or complex slots.
    pub domain: Domain,
}

/// Type of a value of the slots stage.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlotType {
    /// Where the vector's entries are.
    pub layout: Layout,
    /// A bound on the absolute value over all slots, junk included, and all positions; infinite until calibrated.
    pub max_abs: f64,
}

/// Why a program multiplies by a plaintext.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Cosines or sines of a rotary embedding; a mask may ride along.
    Rope,
    /// A constant factor.
    Scale,
    /// A mask that no other constant can carry, with the reason.
    Mask(String),
}

/// A polynomial in Chebyshev form, applied to each slot.
#[derive(Clone, Debug, PartialEq)]
pub struct Chebyshev {
    /// c_0, c_1, …: the value at x is Σ c_k·T_k(u), where u maps `interval` to [-1, 1] linearly (c_0 is not halved).
    pub coefficients: Vec<f64>,
    /// The approximation holds for x in this interval, and every slot must lie in it.
    pub interval: [f64; 2],
}

impl Chebyshev {
    /// The value at x.
    pub fn evaluate(&self, x: f64) -> f64 {
        let [low, high] = self.interval;
        let u = (2.0 * x - low - high) / (high - low);
        chebyshev::value(&self.coefficients, u)
    }

    /// About how much larger the error of the value is than that of each rounding on the way, if the polynomial is
    /// evaluated by products of T_j: twice the root of the sum of all c_k². Large coefficients that cancel leave it.
    pub fn rounding_gain(&self) -> f64 {
        2.0 * self.coefficients.iter().map(|c| c * c).sum::<f64>().sqrt()
    }

    /// The polynomial's degree.
    pub fn degree(&self) -> usize {
        self.coefficients.len().saturating_sub(1)
    }

    /// Whether the interval is [-1, 1], so that no change of variable is needed.
    pub fn is_normalised(&self) -> bool {
        self.interval == [-1.0, 1.0]
    }
}

/// How a state array's element takes a new value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WriteMode {
    /// The value replaces the element.
    Replace,
    /// The value is added to the element.
    Accumulate,
}

/// An operation on packed vectors.
#[derive(Clone, Debug, PartialEq)]
pub enum SlotOp {
    /// (a, b) → a + b
    Add,
    /// (a, b) → a − b
    Subtract,
    /// (a, b) → a·b, slot by slot
    Multiply,
    /// (a) → a·plain
    MultiplyPlain {
        /// The factor.
        plain: Vector,
        /// What the factor is for.
        purpose: Purpose,
    },
    /// (a) → a + plain
    AddPlain {
        /// The summand.
        plain: Vector,
    },
    /// (a) → one result for each matrix
    Linear(Linear),
    /// (a) → a rotated to the left
    Rotate {
        /// By how many slots; may be negative.
        by: Integer,
    },
    /// (a) → a, to which for each step in turn its rotation to the left by the step is added
    RotateAndSum {
        /// By how many slots; may be negative.
        steps: Vec<Integer>,
    },
    /// (a) → polynomial(a)·mask. The mask rides on the coefficients.
    Polynomial {
        /// What is evaluated.
        polynomial: Chebyshev,
        /// Factor of all coefficients, 1 where absent.
        mask: Option<Vector>,
    },
    /// (a) → (a·factor) or (a, b) → (a·factor, b·factor) in the kept slots, 0 elsewhere: a place for a bootstrap.
    Refresh {
        /// Slots to keep: where the condition is 0 the slot becomes 0. All are kept where absent.
        keep: Option<Integer>,
        /// The factor, which a bootstrap or a mask carries at no cost.
        factor: f64,
    },
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
    /// () → the sum, over `counter` in 0..count, of what the body yields. The count is at least 1.
    Sum {
        /// Number of the loop's counter, unique in the program.
        counter: u32,
        /// How often the body runs.
        count: Integer,
    },
}

/// A program of the slots stage, for one entry point.
pub type SlotGraph = Graph<SlotOp, SlotType>;
