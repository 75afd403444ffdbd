//! The three steps of a hybrid key switch on buffers in the NTT domain.

use cachemir_hal::{Addend, Backend, HoistedRotation};

use crate::error::CkksError;
use crate::gadget::Gadget;
use crate::ring::Ring;
use crate::rlwe::keys::{EvaluationKeys, KeyRole, KeySwitchKey};

/// The digits of one polynomial modulo q_0 ⋯ q_level, extended to P: `[digits][level + 1 + special][N]`.
pub(crate) fn decompose<B: Backend>(
    ring: &Ring<B>,
    source: &B::Buffer,
    polynomial: usize,
    level: usize,
    gadget: Gadget,
) -> Result<B::Buffer, CkksError> {
    let (limbs, special) = (ring.chain(level), ring.special(gadget.special));
    Ok(ring.backend().decompose(source, polynomial, limbs, special, gadget.digit_limbs)?)
}

/// P·(φ(c_0) + u_0, φ(c_1) + u_1) modulo Q·P, where (u_0, u_1) is φ of the polynomial whose digits are given, key-switched,
/// and c_i is polynomial i of `source` for i < `polynomials`, zero otherwise; φ: X ↦ X^`element`.
pub(crate) fn inner_product<B: Backend>(
    ring: &Ring<B>,
    digits: &B::Buffer,
    key: &KeySwitchKey<B>,
    source: &B::Buffer,
    polynomials: usize,
    level: usize,
    element: usize,
) -> Result<B::Buffer, CkksError> {
    let special = key.gadget().special;
    let limbs = ring.extended(level, special);
    let factors = ring.special_product(special, ring.chain(level));
    let addend = Addend { source, polynomials, factors: &factors };
    Ok(ring.backend().inner_product(digits, &key.view(level), Some(&addend), element, &limbs)?)
}

/// The key of a role at `level` with its automorphism, for sums of hoisted rotations. Rotation by zero needs no key.
pub(crate) fn hoisted_rotation<'k, B: Backend>(
    ring: &Ring<B>,
    keys: &'k EvaluationKeys<B>,
    role: KeyRole,
    level: usize,
) -> Result<HoistedRotation<'k, B::Buffer>, CkksError> {
    let key = if role == KeyRole::Rotation(0) { None } else { Some(keys.find(ring.parameters(), role, level)?) };
    Ok(HoistedRotation { key: key.map(|key| key.view(level)), galois_element: role.galois_element(ring) })
}

/// accumulator ← accumulator + P·source modulo Q (P·source being zero modulo P), on the first `polynomials`.
pub(crate) fn accumulate_times_special<B: Backend>(
    ring: &Ring<B>,
    accumulator: &mut B::Buffer,
    source: &B::Buffer,
    polynomials: usize,
    level: usize,
    special: usize,
) -> Result<(), CkksError> {
    let limbs = ring.chain(level);
    let factors = ring.special_product(special, limbs);
    Ok(ring.backend().mul_scalar_accumulate(accumulator, source, polynomials, &factors, limbs)?)
}

/// Division by P, from modulo q_0 ⋯ q_level · P to modulo q_0 ⋯ q_level.
pub(crate) fn mod_down<B: Backend>(
    ring: &Ring<B>,
    source: &B::Buffer,
    level: usize,
    special: usize,
) -> Result<B::Buffer, CkksError> {
    Ok(ring.backend().mod_down(source, ring.chain(level), ring.special(special))?)
}

/// Division by q_level · P in one step, from modulo q_0 ⋯ q_level · P to modulo q_0 ⋯ q_{level-1}.
pub(crate) fn mod_down_and_rescale<B: Backend>(
    ring: &Ring<B>,
    source: &B::Buffer,
    level: usize,
    special: usize,
) -> Result<B::Buffer, CkksError> {
    let limbs = ring.extended(level, special);
    let (keep, drop) = limbs.split_at(level);
    Ok(ring.backend().mod_down(source, keep, drop)?)
}
