//! Arithmetic of the negacyclic transform on 512-bit vectors ([`ifma_transform`](super::ifma_transform)).
//!
//! Montgomery products with R = 2^52: for y < 2^52, w' = w·R mod q and w'' = w'·q^-1 mod R, the
//! difference of high halves ⌊y·w'/R⌋ − ⌊(y·w'' mod R)·q/R⌋ is congruent to y·w and lies in (−q, q).
//! Going forward, words may grow as far as they fit 52 bits; going back they stay below 2q, or
//! canonical where 4q does not fit.

#[allow(clippy::wildcard_imports)]
use std::arch::x86_64::*;

use super::ifma::{load, splat};
use super::ifma_plan::{Factor, Factors, LANES};

/// Headroom of moduli below 2^50.4: words stay below 3q, x is made canonical in every stage.
pub(super) const LITTLE: u32 = 0;
/// Headroom of moduli below 2^50: words stay below 4q, x is brought below 2q in every stage.
pub(super) const SOME: u32 = 1;
/// Headroom of moduli below 2^46: words grow by 2q a stage, hence from 4q to less than 2^6·q before they
/// are multiplied by powers of δ, and from 2q to 8q after that.
pub(super) const AMPLE: u32 = 2;

pub(super) type Vector = __m512i;

/// A [`Factor`] in all lanes, or [`Factors`].
#[derive(Clone, Copy)]
pub(super) struct Twiddle {
    scaled: Vector,
    quotient: Vector,
}

#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
pub(super) fn spread(w: &Factor) -> Twiddle {
    Twiddle { scaled: splat(w.scaled), quotient: splat(w.quotient) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
pub(super) fn loaded(w: &Factors) -> Twiddle {
    Twiddle { scaled: load(&w.scaled), quotient: load(&w.quotient) }
}

/// Constants of the modulus, and the arithmetic on vectors.
#[derive(Clone, Copy)]
pub(super) struct Ring {
    q: Vector,
    twice_q: Vector,
    /// R = 2^52, which an accumulator of low halves may hold in place of zero.
    radix: Vector,
}

impl Ring {
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    pub(super) fn new(q: u64) -> Self {
        Self { q: splat(q), twice_q: splat(2 * q), radix: splat(1 << 52) }
    }

    /// y·w in (−q, q). Both high halves are accumulated, so that no register has to be cleared.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    fn product(self, y: Vector, w: Twiddle) -> Vector {
        self.product_above(self.q, y, w)
    }

    /// y·w in (0, 2q).
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    fn positive_product(self, y: Vector, w: Twiddle) -> Vector {
        self.product_above(self.twice_q, y, w)
    }

    /// y·w in (start − 2q, start).
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    fn product_above(self, start: Vector, y: Vector, w: Twiddle) -> Vector {
        let high = _mm512_madd52hi_epu64(start, y, w.scaled);
        let m = _mm512_madd52lo_epu64(self.radix, y, w.quotient);
        _mm512_sub_epi64(high, _mm512_madd52hi_epu64(self.q, m, self.q))
    }

    /// Takes (−q, q) to [0, q).
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    fn add_if_negative(self, x: Vector) -> Vector {
        _mm512_min_epu64(x, _mm512_add_epi64(x, self.q))
    }

    /// Takes [0, 2q) to [0, q).
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    fn subtract_once(self, x: Vector) -> Vector {
        _mm512_min_epu64(x, _mm512_sub_epi64(x, self.q))
    }

    /// Takes [0, 4q) to [0, 2q).
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    fn subtract_twice_once(self, x: Vector) -> Vector {
        _mm512_min_epu64(x, _mm512_sub_epi64(x, self.twice_q))
    }

    /// Takes what the forward stages leave to [0, q).
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    pub(super) fn canonical<const HEADROOM: u32>(self, x: Vector) -> Vector {
        let x = if HEADROOM == AMPLE {
            _mm512_min_epu64(x, _mm512_sub_epi64(x, _mm512_add_epi64(self.twice_q, self.twice_q)))
        } else {
            x
        };
        self.subtract_once(self.subtract_twice_once(x))
    }

    /// Forward butterfly (x, y) ↦ (x + w·y, x − w·y). What it does about growth: see [`LITTLE`],
    /// [`SOME`] and [`AMPLE`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    pub(super) fn butterfly<const HEADROOM: u32>(self, x: Vector, y: Vector, w: Twiddle) -> (Vector, Vector) {
        let x = if HEADROOM < AMPLE { self.subtract_twice_once(x) } else { x };
        let x = if HEADROOM < SOME { self.subtract_once(x) } else { x };
        // Both high halves are accumulated onto x, which cancels in their difference.
        let x = _mm512_add_epi64(x, self.q);
        let high = _mm512_madd52hi_epu64(x, y, w.scaled);
        let m = _mm512_madd52lo_epu64(self.radix, y, w.quotient);
        let product = _mm512_sub_epi64(high, _mm512_madd52hi_epu64(x, m, self.q));
        (_mm512_add_epi64(x, product), _mm512_sub_epi64(x, product))
    }

    /// Inverse butterfly (x, y) ↦ (x + y, w·(x − y)) on words below 2q (below q with [`LITTLE`]).
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    pub(super) fn inverse_butterfly<const HEADROOM: u32>(self, x: Vector, y: Vector, w: Twiddle) -> (Vector, Vector) {
        let sum = _mm512_add_epi64(x, y);
        if HEADROOM < SOME {
            let difference = _mm512_sub_epi64(_mm512_add_epi64(x, self.q), y);
            (self.subtract_once(sum), self.add_if_negative(self.product(difference, w)))
        } else {
            let difference = _mm512_sub_epi64(_mm512_add_epi64(x, self.twice_q), y);
            (self.subtract_twice_once(sum), self.positive_product(difference, w))
        }
    }

    /// Products as inverse stages take them: below 2q (below q with [`LITTLE`]).
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    pub(super) fn inverse_products<const HEADROOM: u32>(self, x: &[Vector; LANES], w: Twiddle) -> [Vector; LANES] {
        std::array::from_fn(|k| match HEADROOM {
            LITTLE => self.add_if_negative(self.product(x[k], w)),
            _ => self.positive_product(x[k], w),
        })
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    pub(super) fn positive_products(self, x: &[Vector; LANES], w: Twiddle) -> [Vector; LANES] {
        std::array::from_fn(|k| self.positive_product(x[k], w))
    }

    /// Makes the words of the last inverse stage canonical.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    pub(super) fn finish<const HEADROOM: u32>(self, x: &mut [Vector], last: bool) {
        if last && HEADROOM >= SOME {
            for x in x {
                *x = self.subtract_once(*x);
            }
        }
    }

    /// w·factor. `inverse` is q^-1 modulo R.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    pub(super) fn scaled(self, w: Twiddle, factor: Twiddle, inverse: Vector) -> Twiddle {
        let scaled = self.add_if_negative(self.product(w.scaled, factor));
        Twiddle { scaled, quotient: _mm512_madd52lo_epu64(_mm512_setzero_si512(), scaled, inverse) }
    }
}
