//! Plaintexts and ciphertexts: a buffer with a level, a scale and a number of slots.

use cachemir_hal::Backend;

use crate::error::CkksError;
use crate::ring::Ring;

/// An encoded vector modulo q_0 ⋯ q_level, in the NTT domain.
#[derive(Debug)]
pub struct Plaintext<B: Backend> {
    pub(crate) buffer: B::Buffer,
    pub(crate) level: usize,
    pub(crate) scale: f64,
    pub(crate) slots: usize,
}

/// An encoded vector modulo q_0 ⋯ q_level · P, in the NTT domain, for products before the division by P (double
/// hoisting).
#[derive(Debug)]
pub struct ExtendedPlaintext<B: Backend> {
    pub(crate) buffer: B::Buffer,
    pub(crate) level: usize,
    pub(crate) scale: f64,
    pub(crate) slots: usize,
}

/// An encryption modulo q_0 ⋯ q_level, in the NTT domain: two polynomials, or three before relinearisation. Buffers may
/// have more limbs than the level says; those above are ignored.
#[derive(Debug)]
pub struct Ciphertext<B: Backend> {
    pub(crate) buffer: B::Buffer,
    pub(crate) level: usize,
    pub(crate) scale: f64,
    pub(crate) slots: usize,
}

/// P times an encryption, modulo q_0 ⋯ q_level · P, in the NTT domain: what a key switch is before its division by P.
/// `scale` is the scale after that division.
#[derive(Debug)]
pub struct ExtendedCiphertext<B: Backend> {
    pub(crate) buffer: B::Buffer,
    pub(crate) level: usize,
    /// Number of primes in P.
    pub(crate) special: usize,
    pub(crate) scale: f64,
    pub(crate) slots: usize,
}

/// What ModRaise makes of a ciphertext of level 0 under the ephemeral secret: its two polynomials with coefficients
/// below q_0 / 2, modulo q_0 ⋯ q_level · p_0, in the NTT domain. Keys take it to the main secret.
#[derive(Debug)]
pub struct RaisedCiphertext<B: Backend> {
    /// The polynomial that meets no secret.
    pub(crate) constant: B::Buffer,
    /// The polynomial that meets the ephemeral secret: the only digit.
    pub(crate) digit: B::Buffer,
    pub(crate) level: usize,
    pub(crate) scale: f64,
    pub(crate) slots: usize,
}

macro_rules! accessors {
    ($type:ident) => {
        impl<B: Backend> $type<B> {
            /// The residues, in the NTT domain.
            pub fn buffer(&self) -> &B::Buffer {
                &self.buffer
            }

            /// The residues, to be changed.
            pub fn buffer_mut(&mut self) -> &mut B::Buffer {
                &mut self.buffer
            }

            /// Index of the highest limb in use.
            pub fn level(&self) -> usize {
                self.level
            }

            /// The factor between slots and encoded integers.
            pub fn scale(&self) -> f64 {
                self.scale
            }

            /// Reinterprets the encoded integers: the slots are divided by `scale / self.scale()`.
            pub fn set_scale(&mut self, scale: f64) {
                self.scale = scale;
            }

            /// The number of slots, a power of two up to N/2.
            pub fn slots(&self) -> usize {
                self.slots
            }

            /// Reinterprets the vector as one of `slots` slots, of which it must be periodic.
            pub fn set_slots(&mut self, slots: usize) {
                self.slots = slots;
            }

            /// A copy in new memory.
            pub fn duplicate(&self, ring: &Ring<B>) -> Result<Self, CkksError> {
                Ok(Self { buffer: ring.backend().duplicate(&self.buffer)?, ..*self })
            }
        }
    };
}

macro_rules! from_parts {
    ($type:ident) => {
        impl<B: Backend> $type<B> {
            /// Assembles the parts; the buffer must be in the NTT domain and have the limbs that `level` says, or more.
            pub fn from_parts(buffer: B::Buffer, level: usize, scale: f64, slots: usize) -> Self {
                Self { buffer, level, scale, slots }
            }
        }
    };
}

from_parts!(Plaintext);
from_parts!(Ciphertext);
accessors!(Plaintext);
accessors!(ExtendedPlaintext);
accessors!(Ciphertext);
accessors!(ExtendedCiphertext);

impl<B: Backend> Ciphertext<B> {
    /// Number of polynomials: two, or three before relinearisation.
    pub fn polynomials(&self, ring: &Ring<B>) -> usize {
        ring.backend().shape(&self.buffer).polynomials
    }
}
