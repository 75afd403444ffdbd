//! How key-switching keys cut polynomials into digits.
//!
//! A key for level ℓ may divide by any prime that q_0 ⋯ q_ℓ leaves over: security depends on the product of all. So keys for
//! lower levels take the highest primes of the chain besides the special ones, which allows larger and therefore fewer
//! digits: the lower half of a long chain needs two. Levels share a [`Gadget`], and a rotation its
//! key, as long as the common one is hardly worse than each level's own.
//!
//! Which gadgets a parameter set has is part of the set, as data; a cost model proposes them for a new set
//! ([`Parameters::tuned`](crate::parameters::Parameters::tuned)).

use cachemir_ir::parameters::KeyGadget;

use crate::cost::OperationCosts;
use crate::parameters::log2_product;

/// How a key-switching key cuts polynomials into digits, and by what its products are divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gadget {
    /// Consecutive limbs of Q in a digit.
    pub digit_limbs: usize,
    /// Number of primes in P ([`Parameters::special_indices`]).
    pub special: usize,
}

impl Gadget {
    /// One digit of all limbs, up to so many, and one special prime: for polynomials of which all limbs come from one.
    pub fn single_digit(limbs: usize) -> Self {
        Self { digit_limbs: limbs, special: 1 }
    }

    /// Number of digits of a ciphertext at `level`.
    pub fn digits(self, level: usize) -> usize {
        (level + 1).div_ceil(self.digit_limbs)
    }
}

/// What a key switch costs, a fourth of its decomposition not counted: rotations often share it.
fn cost(gadget: Gadget, level: usize, degree: usize) -> f64 {
    let costs = OperationCosts::with_gadget(level, gadget, degree);
    0.75 * costs.decompose().ntt_units() + (costs.inner_product() + costs.mod_down(2, false)).ntt_units()
}

/// How much dearer than a level's own gadget a shared one may be: by a fraction, or by so many transforms.
const SHARED_GADGET_EXCESS: (f64, f64) = (0.08, 12.0);

/// The gadgets that rows of a parameter set give to levels; the table ends where its rows do, or with the last of `levels`.
pub(crate) fn by_level(rows: &[KeyGadget], levels: usize) -> Vec<Gadget> {
    let mut gadgets = Vec::new();
    for row in rows {
        let gadget = Gadget { digit_limbs: row.digit_limbs as usize, special: row.special as usize };
        let end = (row.up_to_level as usize).saturating_add(1).min(levels);
        gadgets.resize(gadgets.len().max(end), gadget);
    }
    gadgets
}

/// Rows of a parameter set that give each level its gadget.
pub(crate) fn rows(gadgets: &[Gadget]) -> Vec<KeyGadget> {
    let mut rows: Vec<KeyGadget> = Vec::new();
    for (level, gadget) in gadgets.iter().enumerate() {
        let row = KeyGadget {
            up_to_level: level as u32,
            digit_limbs: gadget.digit_limbs as u32,
            special: gadget.special as u32,
        };
        match rows.last_mut() {
            Some(last) if (last.digit_limbs, last.special) == (row.digit_limbs, row.special) => *last = row,
            _ => rows.push(row),
        }
    }
    rows
}

/// The gadget that the cost model proposes for every level. That of the top level for use is not shared with levels above, and
/// that of the highest level with none: hardly more than raised ciphertexts live there.
pub(crate) fn proposed(degree: usize, primes: &[u64], special_primes: &[u64], use_top: usize) -> Vec<Gadget> {
    let cost = |gadget, level| cost(gadget, level, degree);
    let best: Vec<Gadget> = (0..primes.len()).map(|level| best_gadget(primes, special_primes, level, cost)).collect();
    let mut gadgets = best.clone();
    for level in (0..primes.len() - 1).rev() {
        let (own, shared) = (cost(best[level], level), cost(gadgets[level + 1], level));
        let (fraction, transforms) = SHARED_GADGET_EXCESS;
        if level != use_top && level + 2 < primes.len() && shared - own <= transforms.max(fraction * own) {
            gadgets[level] = gadgets[level + 1];
        }
    }
    gadgets
}

/// The cheapest gadget whose digits are at most twice as large as P.
fn best_gadget(primes: &[u64], special_primes: &[u64], level: usize, cost: impl Fn(Gadget, usize) -> f64) -> Gadget {
    let spare: Vec<u64> = special_primes.iter().chain(primes[level + 1..].iter().rev()).copied().collect();
    (1..=level + 1)
        .filter_map(|digit_limbs| {
            let digits = primes[..=level].chunks(digit_limbs);
            let needed = digits.map(log2_product).fold(0.0, f64::max) - 1.0;
            let special = (1..=spare.len()).find(|&special| log2_product(&spare[..special]) >= needed)?;
            Some(Gadget { digit_limbs, special })
        })
        .min_by(|a, b| cost(*a, level).total_cmp(&cost(*b, level)))
        .unwrap_or(Gadget { digit_limbs: 1, special: special_primes.len() })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use cachemir_ir::parameters::PRESETS;

    use super::*;
    use crate::parameters::Parameters;

    #[test]
    fn presets_have_the_gadgets_that_the_cost_model_proposes() {
        for preset in PRESETS {
            let literal = (preset.parameters)();
            let proposed = Parameters::tuned(literal.clone()).unwrap().literal().gadgets.clone();
            let table: Vec<_> = proposed.iter().map(|row| [row.up_to_level, row.digit_limbs, row.special]).collect();
            // A new table changes what keys mean: stored keys of the set are refused from then on.
            assert_eq!(literal.gadgets, proposed, "{}: the cost model proposes {table:?}", preset.name);
        }
    }

    #[test]
    fn rows_are_read_up_to_the_top() {
        let row = |up_to_level, digit_limbs, special| KeyGadget { up_to_level, digit_limbs, special };
        let gadgets = by_level(&[row(1, 2, 2), row(1, 9, 9), row(99, 3, 1)], 4);
        let expected = [(2, 2), (2, 2), (3, 1), (3, 1)].map(|(digit_limbs, special)| Gadget { digit_limbs, special });
        assert_eq!(gadgets, expected);
        assert_eq!(rows(&gadgets), [row(1, 2, 2), row(3, 3, 1)]);
        assert!(by_level(&[], 4).is_empty());
    }

    #[test]
    fn digits_grow_where_the_chain_has_primes_to_spare() {
        let parameters = Parameters::preset("n16").unwrap();
        let digits = |limbs: usize| parameters.gadget(limbs - 1).digits(limbs - 1);
        assert_eq!([30, 29, 28, 25, 17, 9, 4].map(digits), [5, 4, 3, 2, 2, 1, 1]);
        for level in 0..=parameters.maximum_level() {
            let Gadget { digit_limbs, special } = parameters.gadget(level);
            let divisors: Vec<u64> = parameters.special_moduli(special).collect();
            assert!(divisors.iter().all(|prime| !parameters.primes()[..=level].contains(prime)), "level {level}");
            for digit in parameters.primes()[..=level].chunks(digit_limbs) {
                assert!(log2_product(digit) <= log2_product(&divisors) + 1.0, "level {level}");
            }
        }
        let distinct: BTreeSet<Gadget> = (0..17).map(|level| parameters.gadget(level)).collect();
        assert!(distinct.len() <= 4, "a rotation at all levels for use needs few keys: {distinct:?}");
        // One digit modulo q_0 ⋯ q_29 · p_0.
        assert_eq!(parameters.raised_gadget().digits(29), 1);
        assert_eq!(parameters.special_indices(1), 30..31);
    }
}
