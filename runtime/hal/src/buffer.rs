//! The CPU's buffer: one 64-byte-aligned allocation.

use aligned_vec::{AVec, ConstAlign};

use crate::{HalError, Shape};

/// Residues `[polynomials][limbs][N]` in one allocation aligned to cache lines.
#[derive(Debug)]
pub struct CpuBuffer {
    words: AVec<u64, ConstAlign<64>>,
    shape: Shape,
    degree: usize,
}

impl CpuBuffer {
    /// A buffer of zeros, or [`HalError::OutOfMemory`].
    pub(crate) fn zeros(polynomials: usize, limbs: usize, degree: usize) -> Result<Self, HalError> {
        let length = polynomials
            .checked_mul(limbs)
            .and_then(|n| n.checked_mul(degree))
            .filter(|n| *n <= isize::MAX as usize / 8)
            .ok_or(HalError::OutOfMemory { bytes: usize::MAX })?;
        let mut words = AVec::new(64);
        words
            .try_reserve_exact(length)
            .map_err(|_| HalError::OutOfMemory { bytes: 8 * length })?;
        words.resize(length, 0);
        Ok(Self {
            words,
            shape: Shape { polynomials, limbs },
            degree,
        })
    }

    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    pub(crate) fn words(&self) -> &[u64] {
        &self.words
    }

    pub(crate) fn words_mut(&mut self) -> &mut [u64] {
        &mut self.words
    }

    /// One limb of one polynomial.
    pub(crate) fn row(&self, polynomial: usize, position: usize) -> &[u64] {
        let start = (polynomial * self.shape.limbs + position) * self.degree;
        &self.words[start..start + self.degree]
    }

    /// One limb of one polynomial, to be written.
    pub(crate) fn row_mut(&mut self, polynomial: usize, position: usize) -> &mut [u64] {
        let start = (polynomial * self.shape.limbs + position) * self.degree;
        &mut self.words[start..start + self.degree]
    }
}
