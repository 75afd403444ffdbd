//! Pairs (b, a) of polynomials put together.

use cachemir_hal::Backend;

use crate::error::CkksError;
use crate::ring::Ring;
use crate::ring::sampling::Seed;

/// The pair (b, a) of two single polynomials.
pub(crate) fn pair<B: Backend>(
    ring: &Ring<B>,
    b: &B::Buffer,
    a: &B::Buffer,
    limbs: usize,
) -> Result<B::Buffer, CkksError> {
    let mut pair = ring.backend().zeros(2, limbs)?;
    ring.backend().copy_into(&mut pair, 0, 0, b, 0..1, 0..limbs)?;
    ring.backend().copy_into(&mut pair, 1, 0, a, 0..1, 0..limbs)?;
    Ok(pair)
}

/// The pair (b, a) modulo q_0 ⋯ q_level of which a is expanded from a public seed.
pub(crate) fn seeded_pair<B: Backend>(
    ring: &Ring<B>,
    b: &B::Buffer,
    seed: &Seed,
    level: usize,
) -> Result<B::Buffer, CkksError> {
    pair(ring, b, &ring.backend().expand_uniform(seed, 1, ring.chain(level))?, level + 1)
}
