//! The passes of the transform in double precision, and bounds on its values.
//!
//! Values are integers held exactly, that is of magnitude at most 2^53, which is 6.06q for the largest
//! moduli. Going forward, (x, y) ↦ (x + w·y, x − w·y) adds the bound of a product: q/2 and the error
//! of its quotient, which grows with y. [`Plan`] follows the bound, and has the left halves
//! reduced in front of a pass only where it would otherwise overflow. Going back, (x, y) ↦
//! (x + y, w·(x − y)) doubles the bound of left halves, so that reductions are needed in fixed
//! places; the test of this file adds them up.

/// Stages on a tile.
pub(super) const TILE_STAGES: usize = 5;

/// One or two stages that go over the row together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pass {
    pub(super) stages: usize,
    /// Forward: whether left halves are reduced first.
    pub(super) reduce: bool,
}

/// The passes in front of the tiles, and whether tiles reduce left halves after their first stage.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) passes: Vec<Pass>,
    pub(super) tile_reduces: bool,
}

/// Largest magnitude of exact integers.
const LIMIT: f64 = (1_u64 << 53) as f64;

impl Plan {
    pub(super) fn new(degree: usize, q: u64) -> Self {
        Self::with_bound(degree, q).0
    }

    /// The plan, and a bound on all values of the forward transform.
    fn with_bound(degree: usize, q: u64) -> (Self, f64) {
        let q = q as f64;
        let stages = degree.ilog2() as usize - TILE_STAGES;
        let lengths = std::iter::repeat_n(1, stages % 2).chain(std::iter::repeat_n(2, stages / 2));
        let lengths: Vec<usize> = lengths.collect();
        let grow = |left: f64, right: f64, stages: usize| {
            let first = left + scaled(right, q);
            (1..stages).fold(first, |bound, _| bound + scaled(bound, q))
        };
        let (mut passes, mut bound, mut highest) = (Vec::new(), q, q);
        for (i, &stages) in lengths.iter().enumerate() {
            let ahead = if i + 1 == lengths.len() { stages + 1 } else { stages };
            let reduce = grow(bound, bound, ahead) > LIMIT;
            bound = grow(if reduce { reduced(q) } else { bound }, bound, stages);
            highest = highest.max(bound);
            passes.push(Pass { stages, reduce });
        }
        let tile = |reduce: bool| {
            let first = grow(bound, bound, 1);
            let second = grow(if reduce { reduced(q) } else { first }, first, 1);
            (0..3).fold(second, |bound, _| bound + multiplied(bound, q)).max(first)
        };
        let tile_reduces = tile(false) > LIMIT;
        (Self { passes, tile_reduces }, highest.max(tile(tile_reduces)))
    }
}

/// Bound of [`Ring::reduce`](super::avx2::Ring::reduce).
fn reduced(q: f64) -> f64 {
    q / 2.0 + 3.0
}

/// Bound of [`Ring::scale`](super::avx2::Ring::scale) on values up to y: the quotient's error is
/// that of w/q, times y, and half a unit in the last place of numbers up to y/2.
fn scaled(y: f64, q: f64) -> f64 {
    let half_unit = ((y / 2.0).log2().floor() - 53.0).exp2();
    q * (0.5 + y * (-55.0_f64).exp2() + half_unit)
}

/// Bound of [`Ring::product`](super::avx2::Ring::product) of values up to y with a twiddle that
/// is stored or multiplied out.
fn multiplied(y: f64, q: f64) -> f64 {
    let twiddle = scaled(q / 2.0, q);
    q * (0.5 + 3.0 * (-53.0_f64).exp2() * y * (twiddle / q))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::primes::MODULUS_BOUND;

    #[test]
    fn forward_values_are_exact() {
        for log2_degree in TILE_STAGES + 1..=17 {
            for q in [1 << 10, 1 << 20, 1 << 46, 1 << 49, 1 << 50, MODULUS_BOUND] {
                let (plan, bound) = Plan::with_bound(1 << log2_degree, q);
                assert!(bound <= LIMIT, "{plan:?}: {}", bound / q as f64);
            }
        }
        let (plan, _) = Plan::with_bound(1 << 17, 1 << 46);
        assert!(!plan.tile_reduces && plan.passes.iter().all(|pass| !pass.reduce));
    }

    /// Bounds in the order of the inverse transform's code, by position in a butterfly group.
    #[test]
    fn inverse_values_are_exact() {
        for q in [1 << 10, 1 << 20, 1 << 46, 1 << 50, MODULUS_BOUND] {
            let q = q as f64;
            let check = |y: f64| {
                assert!(y <= LIMIT, "{} q", y / q);
                y
            };
            let highest = |bounds: &[f64]| bounds.iter().copied().fold(0.0, f64::max);
            // Three stages on groups. Residues are not negative: their differences are below q,
            // those of their sums below 2q.
            let right = multiplied(q, q);
            check(4.0 * q);
            let second = [reduced(q), 2.0 * right, multiplied(2.0 * q, q), multiplied(2.0 * right, q)];
            let third = second.map(|y| multiplied(check(2.0 * y), q));
            let groups = highest(&[2.0 * second[0], reduced(q), highest(&third)]);
            // Two stages of a tile or a pass, whose left halves are reduced, or scaled to residues.
            let two = |y: f64| {
                let right = scaled(check(2.0 * y), q);
                let (left, right) = (check(4.0 * y), check(2.0 * right));
                assert!(scaled(left, q) < q && scaled(right, q) < q);
                highest(&[reduced(q), scaled(left, q), scaled(right, q)])
            };
            let tile = two(groups);
            assert!(scaled(check(2.0 * tile), q) < q);
            assert!(two(tile) <= tile && two(two(tile)) <= tile);
        }
    }
}
