//! What the executor asks of a representation of ciphertexts.

use cachemir_ir::ckks::{Bootstrap, CiphertextType};
use cachemir_ir::linear::Factor;
use cachemir_ir::slots::Chebyshev;
use rayon::prelude::*;

use crate::Error;

/// The arithmetic of the ckks stage over one representation: encrypted, in the clear, or both side by side.
///
/// Levels and scales are the callers' business: an operation is only asked for where [`cachemir_ir::ckks::infer`] allows
/// it, and an implementation may fail, but must not repair, where they do not fit. Rotation amounts lie in `1..slots`
/// and are to the left.
pub trait Algebra: Sync {
    /// A ciphertext.
    type Ciphertext;
    /// A ciphertext's second half, decomposed once for any number of rotations (hoisting, ePrint 2018/244).
    type Decomposition;
    /// An encoded plaintext vector.
    type Plaintext: Send + Sync;
    /// A sum of rotations ahead of their division by P (double hoisting, ePrint 2020/1203).
    type Extended;

    /// Number n of slots.
    fn slots(&self) -> usize;

    /// Level of a ciphertext, and whether it is a product that awaits its rescale.
    fn level(&self, a: &Self::Ciphertext) -> (u32, bool);

    /// A copy.
    fn duplicate(&self, a: &Self::Ciphertext) -> Result<Self::Ciphertext, Error>;

    /// A ciphertext of zeros, transparent: where state is begun that was not yet written.
    fn zero(&self, ty: &CiphertextType) -> Result<Self::Ciphertext, Error>;

    /// a ← a + b
    fn add_assign(&self, a: &mut Self::Ciphertext, b: &Self::Ciphertext) -> Result<(), Error>;

    /// a ← a − b
    fn subtract_assign(&self, a: &mut Self::Ciphertext, b: &Self::Ciphertext) -> Result<(), Error>;

    /// a·b, relinearised
    fn multiply(&self, a: &Self::Ciphertext, b: &Self::Ciphertext) -> Result<Self::Ciphertext, Error>;

    /// Encodes a factor of ciphertexts of the given level, at the level's canonical scale.
    fn encode_factor(&self, values: &[f64], level: u32) -> Result<Self::Plaintext, Error>;

    /// As [`encode_factor`](Self::encode_factor), for complex values.
    fn encode_complex_factor(&self, real: &[f64], imaginary: &[f64], level: u32) -> Result<Self::Plaintext, Error>;

    /// Encodes a diagonal of a linear map whose operand has the given level.
    fn encode_weights(&self, factor: &Factor, level: u32) -> Result<Self::Plaintext, Error> {
        let wide = |part: &[f32]| part.iter().copied().map(f64::from).collect::<Vec<_>>();
        match &factor.imaginary {
            None => self.encode_factor(&wide(&factor.real), level),
            Some(imaginary) => self.encode_complex_factor(&wide(&factor.real), &wide(imaginary), level),
        }
    }

    /// Encodes diagonals of a linear map, on all cores.
    fn encode_all(&self, factors: &[Factor], level: u32) -> Result<Vec<Self::Plaintext>, Error> {
        factors.par_iter().map(|factor| self.encode_weights(factor, level)).collect()
    }

    /// Σ a·plain over one or more terms of one level, a product.
    fn sum_of_products(&self, terms: &[(&Self::Ciphertext, &Self::Plaintext)]) -> Result<Self::Ciphertext, Error> {
        let ((first, plain), rest) = terms.split_first().ok_or_else(|| Error::execution("a sum of no products"))?;
        let mut sum = self.multiply_plain(first, plain)?;
        self.multiply_plain_accumulate(&mut sum, rest)?;
        Ok(sum)
    }

    /// Σ a·diagonal, for as many diagonals of a linear map, which are used once, as operands of the given level.
    fn sum_of_weights(
        &self,
        operands: &[&Self::Ciphertext],
        factors: &[Factor],
        level: u32,
    ) -> Result<Self::Ciphertext, Error> {
        let plains = self.encode_all(factors, level)?;
        self.sum_of_products(&operands.iter().copied().zip(&plains).collect::<Vec<_>>())
    }

    /// Encodes a summand of ciphertexts of the given level and scale.
    fn encode_summand(&self, values: &[f64], level: u32, product: bool) -> Result<Self::Plaintext, Error>;

    /// Memory that an encoded plaintext holds, in bytes.
    fn plaintext_bytes(&self, plain: &Self::Plaintext) -> usize;

    /// a·plain
    fn multiply_plain(&self, a: &Self::Ciphertext, plain: &Self::Plaintext) -> Result<Self::Ciphertext, Error>;

    /// sum ← sum + Σ a·plain
    fn multiply_plain_accumulate(
        &self,
        sum: &mut Self::Ciphertext,
        terms: &[(&Self::Ciphertext, &Self::Plaintext)],
    ) -> Result<(), Error> {
        terms.iter().try_for_each(|(a, plain)| self.add_assign(sum, &self.multiply_plain(a, plain)?))
    }

    /// a ← a + plain
    fn add_plain_assign(&self, a: &mut Self::Ciphertext, plain: &Self::Plaintext) -> Result<(), Error>;

    /// a·factor, a product
    fn multiply_scalar(&self, a: &Self::Ciphertext, factor: f64) -> Result<Self::Ciphertext, Error>;

    /// a ← a·factor for an integer
    fn multiply_integer_assign(&self, a: &mut Self::Ciphertext, factor: i64) -> Result<(), Error>;

    /// a ← a·i
    fn multiply_by_i_assign(&self, a: &mut Self::Ciphertext) -> Result<(), Error>;

    /// a ← a, one level lower and no longer a product
    fn rescale_assign(&self, a: &mut Self::Ciphertext) -> Result<(), Error>;

    /// a at a lower level and that level's canonical scale
    fn drop_levels(&self, a: &Self::Ciphertext, to: u32) -> Result<Self::Ciphertext, Error>;

    /// a rotated to the left by `by` slots
    fn rotate(&self, a: &Self::Ciphertext, by: usize) -> Result<Self::Ciphertext, Error>;

    /// Prepares a ciphertext for several rotations.
    fn decompose(&self, a: &Self::Ciphertext) -> Result<Self::Decomposition, Error>;

    /// a rotated to the left by `by` slots, given its decomposition
    fn rotate_decomposed(
        &self,
        a: &Self::Ciphertext,
        decomposition: &Self::Decomposition,
        by: usize,
    ) -> Result<Self::Ciphertext, Error>;

    /// a plus its rotations to the left by the amounts, of which there are few.
    fn add_rotations(&self, a: &Self::Ciphertext, by: &[usize]) -> Result<Self::Ciphertext, Error> {
        let mut sum = self.duplicate(a)?;
        by.iter().try_for_each(|&by| self.add_assign(&mut sum, &self.rotate(a, by)?))?;
        Ok(sum)
    }

    /// Begins a sum of rotations with a product as it is.
    fn extend(&self, a: Self::Ciphertext) -> Result<Self::Extended, Error>;

    /// sum ← sum + a rotated to the left by `by` slots, for a product of the same level
    fn add_rotated(&self, sum: &mut Self::Extended, a: &Self::Ciphertext, by: usize) -> Result<(), Error>;

    /// The sum, rescaled.
    fn rescale_extended(&self, sum: Self::Extended) -> Result<Self::Ciphertext, Error>;

    /// The slots' complex conjugates.
    fn conjugate(&self, a: &Self::Ciphertext) -> Result<Self::Ciphertext, Error>;

    /// polynomial(a)·mask for slots in [-1, 1]
    fn polynomial(
        &self,
        a: &Self::Ciphertext,
        polynomial: &Chebyshev,
        mask: Option<&[f64]>,
    ) -> Result<Self::Ciphertext, Error>;

    /// a times the variant's factor at the level of fresh ciphertexts, 0 where `keep` is false. `keep` is the variant's
    /// condition for all slots.
    fn bootstrap(
        &self,
        a: &Self::Ciphertext,
        variant: &Bootstrap,
        keep: Option<&[bool]>,
    ) -> Result<Self::Ciphertext, Error>;

    /// What is needed to restore a ciphertext in another process.
    fn to_bytes(&self, a: &Self::Ciphertext) -> Result<Vec<u8>, Error>;

    /// The ciphertext that [`to_bytes`](Self::to_bytes) wrote. Any bytes give a ciphertext or an error.
    fn restore(&self, bytes: &[u8]) -> Result<Self::Ciphertext, Error>;

    /// Name of the representation, kept in saved sessions.
    fn name(&self) -> &'static str;
}
