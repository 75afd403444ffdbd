//! The one error type of the crate.

/// What can go wrong in a backend.
///
/// Shape errors mean that the caller broke a precondition stated at the primitive; they are
/// detected before any data is touched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HalError {
    /// The ring degree is no power of two, or outside of the supported interval.
    #[error("ring degree {degree} is not a power of two between {minimum} and {maximum}")]
    Degree {
        /// The refused degree.
        degree: usize,
        /// The smallest supported degree.
        minimum: usize,
        /// The largest supported degree.
        maximum: usize,
    },
    /// A modulus cannot serve: not prime, not 1 modulo 2N, too large, or listed twice.
    #[error("modulus {modulus} cannot be used: {reason}")]
    Modulus {
        /// The refused modulus.
        modulus: u64,
        /// The property that it lacks.
        reason: &'static str,
    },
    /// Fewer primes of the wanted form exist than were asked for.
    #[error("only {found} of {wanted} primes of {bits} bits congruent to 1 modulo {step} exist")]
    PrimesExhausted {
        /// Bit size asked for.
        bits: u32,
        /// The primes are 1 modulo this number.
        step: u64,
        /// How many were asked for.
        wanted: usize,
        /// How many were found.
        found: usize,
    },
    /// A limb list names a modulus that the table does not hold, or is empty.
    #[error("{operation}: limb list {limbs:?} does not fit a table of {moduli} moduli")]
    Limbs {
        /// The primitive that refused.
        operation: &'static str,
        /// The refused list.
        limbs: Vec<usize>,
        /// Size of the table of moduli.
        moduli: usize,
    },
    /// A buffer or slice is too small, or of an unexpected shape.
    #[error("{operation}: {what}: expected {expected}, found {found}")]
    Shape {
        /// The primitive that refused.
        operation: &'static str,
        /// Which quantity disagrees.
        what: &'static str,
        /// What the primitive needs.
        expected: usize,
        /// What it was given.
        found: usize,
    },
    /// A Galois element is even, or not below 2N.
    #[error("Galois element {element} is not an odd number below {bound}")]
    GaloisElement {
        /// The refused element.
        element: usize,
        /// 2N.
        bound: usize,
    },
    /// The allocator refused.
    #[error("out of memory: {bytes} bytes were refused")]
    OutOfMemory {
        /// Size of the refused allocation.
        bytes: usize,
    },
    /// `CACHEMIR_ISA` names no instruction set, or one that this machine lacks.
    #[error("CACHEMIR_ISA={requested}: {reason}")]
    Isa {
        /// Value of the environment variable.
        requested: String,
        /// Why it cannot be used.
        reason: &'static str,
    },
    /// A device reported a failure at a synchronisation point.
    #[error("device failure: {0}")]
    Device(String),
}
