//! The one error type of the crate.

use cachemir_hal::HalError;

use crate::parameters::ParameterError;

/// What can go wrong in CKKS arithmetic; every variant carries the quantities that disagree.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CkksError {
    /// The parameter literal is not usable.
    #[error(transparent)]
    Parameters(#[from] ParameterError),
    /// The backend failed.
    #[error("backend: {0}")]
    Backend(#[from] HalError),
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// The operating system's random generator failed.
    #[error("the operating system's random generator failed: {0}")]
    Randomness(String),
    /// Operands of a sum have different scales.
    #[error(
        "{operation}: the scales 2^{log2_left:.9} and 2^{log2_right:.9} differ by {relative:.1e}, more than {tolerance:.0e}"
    )]
    ScaleMismatch {
        /// The operation.
        operation: &'static str,
        /// log2 of the left operand's scale.
        log2_left: f64,
        /// log2 of the right operand's scale.
        log2_right: f64,
        /// Relative difference.
        relative: f64,
        /// Largest relative difference accepted.
        tolerance: f64,
    },
    /// The operation needs more levels than the ciphertext has.
    #[error("{operation}: needs level {needed} or higher, the operand is at level {level}")]
    LevelExhausted {
        /// The operation.
        operation: &'static str,
        /// Level of the operand.
        level: usize,
        /// Lowest level at which the operation is possible.
        needed: usize,
    },
    /// Digits or operands modulo Q·P, where limbs cannot be left out, have different levels.
    #[error("{operation}: the levels must be equal, found {left} and {right}")]
    LevelMismatch {
        /// The operation.
        operation: &'static str,
        /// Level of the accumulator.
        left: usize,
        /// Level of the other operand.
        right: usize,
    },
    /// A level above the top of the chain.
    #[error("level {level} is above the top of the chain, {maximum}")]
    LevelOutOfRange {
        /// The level asked for.
        level: usize,
        /// The chain's top level.
        maximum: usize,
    },
    /// A key was not generated.
    #[error("no evaluation key for {key}")]
    MissingKey {
        /// The key, in words.
        key: String,
    },
    /// A key exists, but not for this level.
    #[error("evaluation keys for {key} reach down from level {}, none of them serves level {level}", join(key_levels))]
    KeyLevel {
        /// The key, in words.
        key: String,
        /// Highest levels of the keys of that name, each of which serves some levels below.
        key_levels: Vec<usize>,
        /// Level of the ciphertext.
        level: usize,
    },
    /// The number of slots is no power of two up to N/2.
    #[error("{slots} slots: must be a power of two up to {maximum}")]
    Slots {
        /// The number of slots.
        slots: usize,
        /// N/2.
        maximum: usize,
    },
    /// The operation takes ciphertexts of fewer polynomials.
    #[error("{operation}: the ciphertext has {found} polynomials instead of {expected}; relinearise it first")]
    Polynomials {
        /// The operation.
        operation: &'static str,
        /// Number of polynomials expected.
        expected: usize,
        /// Number of polynomials of the operand.
        found: usize,
    },
    /// An encoded coefficient does not fit the modulus or the integers used for encoding.
    #[error("a coefficient of 2^{log2_coefficient:.1} exceeds the limit 2^{log2_limit:.1} of level {level}")]
    EncodingOverflow {
        /// log2 of the largest coefficient's absolute value.
        log2_coefficient: f64,
        /// log2 of the limit.
        log2_limit: f64,
        /// The level encoded for.
        level: usize,
    },
    /// A number is no finite value or lies outside its range.
    #[error("{what} = {value}: must be finite and {condition}")]
    Value {
        /// The quantity.
        what: &'static str,
        /// Its value.
        value: f64,
        /// What is required.
        condition: &'static str,
    },
    /// The parameters' primes do not fit a bootstrap's depth.
    #[error(
        "parameters `{name}`: bootstrapping takes {eval_mod} primes for EvalMod and at least one each for SlotsToCoeffs and CoeffsToSlots, found {eval_mod_found}, {slots_to_coeffs_found} and {coeffs_to_slots_found}"
    )]
    BootstrapLevels {
        /// Name of the parameters.
        name: String,
        /// Primes that EvalMod consumes.
        eval_mod: usize,
        /// Primes for EvalMod in the parameters.
        eval_mod_found: usize,
        /// Primes for SlotsToCoeffs.
        slots_to_coeffs_found: usize,
        /// Primes for CoeffsToSlots.
        coeffs_to_slots_found: usize,
    },
    /// Serialised data is not what it should be.
    #[error("serialised {object}: {problem}")]
    Format {
        /// What was being read.
        object: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A stream that serialised data are read from or written to failed.
    #[error("{action} {object}: {problem}")]
    Io {
        /// Reading or writing.
        action: &'static str,
        /// What was being read or written.
        object: &'static str,
        /// The kind of failure.
        kind: std::io::ErrorKind,
        /// The failure in words.
        problem: String,
    },
}

fn join(levels: &[usize]) -> String {
    levels.iter().map(usize::to_string).collect::<Vec<_>>().join(" and ")
}
