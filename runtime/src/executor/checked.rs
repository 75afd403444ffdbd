//! Encrypted and clear execution side by side, for `--check`.

use cachemir_ir::ckks::{Bootstrap, CiphertextType};
use cachemir_ir::slots::Chebyshev;

use super::Algebra;
use crate::Error;

/// The same operations on two representations: the left one decides levels, the right one follows.
#[derive(Debug)]
pub struct Checked<L, R> {
    left: L,
    right: R,
}

impl<L: Algebra, R: Algebra> Checked<L, R> {
    /// Both algebras have the same number of slots.
    pub fn new(left: L, right: R) -> Self {
        Self { left, right }
    }
}

/// Bytes of the left part's length, at the beginning of a pair's bytes.
const LENGTH_BYTES: usize = 8;

impl<L: Algebra, R: Algebra> Algebra for Checked<L, R> {
    type Ciphertext = (L::Ciphertext, R::Ciphertext);
    type Decomposition = (L::Decomposition, R::Decomposition);
    type Plaintext = (L::Plaintext, R::Plaintext);
    type Extended = (L::Extended, R::Extended);

    fn slots(&self) -> usize {
        self.left.slots()
    }

    fn level(&self, a: &Self::Ciphertext) -> (u32, bool) {
        self.left.level(&a.0)
    }

    fn duplicate(&self, a: &Self::Ciphertext) -> Result<Self::Ciphertext, Error> {
        Ok((self.left.duplicate(&a.0)?, self.right.duplicate(&a.1)?))
    }

    fn zero(&self, ty: &CiphertextType) -> Result<Self::Ciphertext, Error> {
        Ok((self.left.zero(ty)?, self.right.zero(ty)?))
    }

    fn add_assign(&self, a: &mut Self::Ciphertext, b: &Self::Ciphertext) -> Result<(), Error> {
        self.left.add_assign(&mut a.0, &b.0)?;
        self.right.add_assign(&mut a.1, &b.1)
    }

    fn subtract_assign(&self, a: &mut Self::Ciphertext, b: &Self::Ciphertext) -> Result<(), Error> {
        self.left.subtract_assign(&mut a.0, &b.0)?;
        self.right.subtract_assign(&mut a.1, &b.1)
    }

    fn multiply(&self, a: &Self::Ciphertext, b: &Self::Ciphertext) -> Result<Self::Ciphertext, Error> {
        Ok((self.left.multiply(&a.0, &b.0)?, self.right.multiply(&a.1, &b.1)?))
    }

    fn encode_factor(&self, values: &[f64], level: u32) -> Result<Self::Plaintext, Error> {
        Ok((self.left.encode_factor(values, level)?, self.right.encode_factor(values, level)?))
    }

    fn encode_complex_factor(&self, real: &[f64], imaginary: &[f64], level: u32) -> Result<Self::Plaintext, Error> {
        let left = self.left.encode_complex_factor(real, imaginary, level)?;
        Ok((left, self.right.encode_complex_factor(real, imaginary, level)?))
    }

    fn encode_summand(&self, values: &[f64], level: u32, product: bool) -> Result<Self::Plaintext, Error> {
        Ok((self.left.encode_summand(values, level, product)?, self.right.encode_summand(values, level, product)?))
    }

    fn plaintext_bytes(&self, plain: &Self::Plaintext) -> usize {
        self.left.plaintext_bytes(&plain.0) + self.right.plaintext_bytes(&plain.1)
    }

    fn multiply_plain(&self, a: &Self::Ciphertext, plain: &Self::Plaintext) -> Result<Self::Ciphertext, Error> {
        Ok((self.left.multiply_plain(&a.0, &plain.0)?, self.right.multiply_plain(&a.1, &plain.1)?))
    }

    fn multiply_plain_accumulate(
        &self,
        sum: &mut Self::Ciphertext,
        terms: &[(&Self::Ciphertext, &Self::Plaintext)],
    ) -> Result<(), Error> {
        let (left, right): (Vec<_>, Vec<_>) =
            terms.iter().map(|(a, plain)| ((&a.0, &plain.0), (&a.1, &plain.1))).unzip();
        self.left.multiply_plain_accumulate(&mut sum.0, &left)?;
        self.right.multiply_plain_accumulate(&mut sum.1, &right)
    }

    fn add_plain_assign(&self, a: &mut Self::Ciphertext, plain: &Self::Plaintext) -> Result<(), Error> {
        self.left.add_plain_assign(&mut a.0, &plain.0)?;
        self.right.add_plain_assign(&mut a.1, &plain.1)
    }

    fn multiply_scalar(&self, a: &Self::Ciphertext, factor: f64) -> Result<Self::Ciphertext, Error> {
        Ok((self.left.multiply_scalar(&a.0, factor)?, self.right.multiply_scalar(&a.1, factor)?))
    }

    fn multiply_integer_assign(&self, a: &mut Self::Ciphertext, factor: i64) -> Result<(), Error> {
        self.left.multiply_integer_assign(&mut a.0, factor)?;
        self.right.multiply_integer_assign(&mut a.1, factor)
    }

    fn multiply_by_i_assign(&self, a: &mut Self::Ciphertext) -> Result<(), Error> {
        self.left.multiply_by_i_assign(&mut a.0)?;
        self.right.multiply_by_i_assign(&mut a.1)
    }

    fn rescale_assign(&self, a: &mut Self::Ciphertext) -> Result<(), Error> {
        self.left.rescale_assign(&mut a.0)?;
        self.right.rescale_assign(&mut a.1)
    }

    fn drop_levels(&self, a: &Self::Ciphertext, to: u32) -> Result<Self::Ciphertext, Error> {
        Ok((self.left.drop_levels(&a.0, to)?, self.right.drop_levels(&a.1, to)?))
    }

    fn rotate(&self, a: &Self::Ciphertext, by: usize) -> Result<Self::Ciphertext, Error> {
        Ok((self.left.rotate(&a.0, by)?, self.right.rotate(&a.1, by)?))
    }

    fn decompose(&self, a: &Self::Ciphertext) -> Result<Self::Decomposition, Error> {
        Ok((self.left.decompose(&a.0)?, self.right.decompose(&a.1)?))
    }

    fn rotate_decomposed(
        &self,
        a: &Self::Ciphertext,
        decomposition: &Self::Decomposition,
        by: usize,
    ) -> Result<Self::Ciphertext, Error> {
        let left = self.left.rotate_decomposed(&a.0, &decomposition.0, by)?;
        Ok((left, self.right.rotate_decomposed(&a.1, &decomposition.1, by)?))
    }

    fn add_rotations(&self, a: &Self::Ciphertext, by: &[usize]) -> Result<Self::Ciphertext, Error> {
        Ok((self.left.add_rotations(&a.0, by)?, self.right.add_rotations(&a.1, by)?))
    }

    fn extend(&self, a: Self::Ciphertext) -> Result<Self::Extended, Error> {
        Ok((self.left.extend(a.0)?, self.right.extend(a.1)?))
    }

    fn add_rotated(&self, sum: &mut Self::Extended, a: &Self::Ciphertext, by: usize) -> Result<(), Error> {
        self.left.add_rotated(&mut sum.0, &a.0, by)?;
        self.right.add_rotated(&mut sum.1, &a.1, by)
    }

    fn rescale_extended(&self, sum: Self::Extended) -> Result<Self::Ciphertext, Error> {
        Ok((self.left.rescale_extended(sum.0)?, self.right.rescale_extended(sum.1)?))
    }

    fn conjugate(&self, a: &Self::Ciphertext) -> Result<Self::Ciphertext, Error> {
        Ok((self.left.conjugate(&a.0)?, self.right.conjugate(&a.1)?))
    }

    fn polynomial(
        &self,
        a: &Self::Ciphertext,
        polynomial: &Chebyshev,
        mask: Option<&[f64]>,
    ) -> Result<Self::Ciphertext, Error> {
        Ok((self.left.polynomial(&a.0, polynomial, mask)?, self.right.polynomial(&a.1, polynomial, mask)?))
    }

    fn bootstrap(
        &self,
        a: &Self::Ciphertext,
        variant: &Bootstrap,
        keep: Option<&[bool]>,
    ) -> Result<Self::Ciphertext, Error> {
        Ok((self.left.bootstrap(&a.0, variant, keep)?, self.right.bootstrap(&a.1, variant, keep)?))
    }

    fn to_bytes(&self, a: &Self::Ciphertext) -> Result<Vec<u8>, Error> {
        let left = self.left.to_bytes(&a.0)?;
        let length = (left.len() as u64).to_le_bytes();
        Ok([length.as_slice(), &left, &self.right.to_bytes(&a.1)?].concat())
    }

    fn restore(&self, bytes: &[u8]) -> Result<Self::Ciphertext, Error> {
        let malformed = || Error::execution("the bytes are not those of a pair");
        let (length, rest) = bytes.split_first_chunk::<LENGTH_BYTES>().ok_or_else(malformed)?;
        let length = usize::try_from(u64::from_le_bytes(*length)).ok().filter(|&length| length <= rest.len());
        let (left, right) = rest.split_at(length.ok_or_else(malformed)?);
        Ok((self.left.restore(left)?, self.right.restore(right)?))
    }

    fn name(&self) -> &'static str {
        super::CHECKED
    }
}
