//! The negacyclic transform on 512-bit vectors with 52-bit multiply-add.
//!
//! **Order of work.** Cooley–Tukey in place, natural order in, bit-reversed order out; the block
//! with number i of m takes the twiddle at position m + i of the table ψ^rev. Stages at distances
//! of 256 and more pass over the whole row, up to four stages at a time in registers. What
//! remains, chunk by chunk of 256 words, stays in the first cache level.
//!
//! **Small tables.** The last three stages would need seven eighths of all twiddles, a megabyte a
//! modulus at N = 2^16, which costs more to fetch than to avoid. They work on groups of 8 words,
//! that is modulo X^8 − γ^8 with γ = ψ^(1+2·rev(c)) for group c. The substitution X = γ·Y, a
//! multiplication of word t by γ^t, makes them cyclic transforms of length 8 with three fixed
//! twiddles. With c = 32·b + j, γ^t splits into a factor for the chunk b and one for the place j
//! in it, both short tables.
//!
//! **Arithmetic.** Montgomery products with R = 2^52: for y < 2^52, w' = w·R mod q and
//! w'' = w'·q^-1 mod R, the difference of high halves ⌊y·w'/R⌋ − ⌊(y·w'' mod R)·q/R⌋ is congruent to
//! y·w and lies in (−q, q). Going forward, words may grow as far as they fit 52 bits; going back
//! they stay canonical.

#[allow(clippy::wildcard_imports)]
use std::arch::x86_64::*;

use super::ifma::{Lanes, load, splat, store};
use super::transform::below;
use crate::Modulus;
use crate::tables::reverse_bits;

/// Words of a chunk.
const CHUNK: usize = 256;
/// Words of a vector, and of a group of the last three stages.
const LANES: usize = 8;
/// Groups of a chunk.
const GROUPS: usize = CHUNK / LANES;
/// Smallest ring degree.
pub(crate) const MINIMUM_DEGREE: usize = 2 * CHUNK;

/// A constant in Montgomery form w' and w''.
#[derive(Debug, Clone, Copy, Default)]
struct Factor {
    scaled: u64,
    quotient: u64,
}

/// Eight constants.
#[derive(Debug, Clone, Copy, Default)]
struct Factors {
    scaled: [u64; LANES],
    quotient: [u64; LANES],
}

/// Turns residues into [`Factor`]s.
#[derive(Debug, Clone, Copy)]
struct Montgomery {
    modulus: Modulus,
    /// R modulo q.
    radix: u64,
    /// q^-1 modulo R.
    inverse: u64,
}

impl Montgomery {
    fn new(modulus: Modulus) -> Self {
        let q = modulus.value();
        // Newton's iteration doubles the number of right bits, of which q itself has three.
        let inverse = (0..5).fold(q, |x, _| x.wrapping_mul(2_u64.wrapping_sub(q.wrapping_mul(x))));
        Self { modulus, radix: (1 << 52) % q, inverse: inverse & ((1 << 52) - 1) }
    }

    fn factor(&self, w: u64) -> Factor {
        let scaled = self.modulus.mul(w, self.radix);
        Factor { scaled, quotient: scaled.wrapping_mul(self.inverse) & ((1 << 52) - 1) }
    }

    /// base^t for t = 0, 1, …, 7.
    fn powers(&self, base: u64) -> Factors {
        let mut factors = Factors::default();
        let mut power = 1;
        for t in 0..LANES {
            let factor = self.factor(power);
            factors.scaled[t] = factor.scaled;
            factors.quotient[t] = factor.quotient;
            power = self.modulus.mul(power, base);
        }
        factors
    }
}

/// Constants of one direction.
#[derive(Debug)]
struct Direction {
    /// ψ^±rev(i), for the stages at distances of 8 and more.
    twiddles: Vec<Factor>,
    /// ψ^(±(1+2·rev(b))·t) for chunk b.
    chunks: Vec<Factors>,
    /// The rest of γ^±t for group j of a chunk.
    places: Vec<Factors>,
    /// ψ^±(N/2), ψ^±(N/4), ψ^±(3N/4).
    last: [Factor; 3],
}

impl Direction {
    fn new(m: &Montgomery, root: u64, degree: usize) -> Self {
        let chunks = degree / CHUNK;
        let (chunk_bits, place_bits) = (chunks.ilog2(), GROUPS.ilog2());
        let power = |exponent: usize| m.modulus.pow(root, exponent as u64);
        let reversed = |i: usize, bits: u32| reverse_bits(i, bits);
        let mut twiddles = vec![Factor::default(); degree / LANES];
        let (step, mut twiddle) = (power(LANES), 1);
        for exponent in (0..degree).step_by(LANES) {
            twiddles[reversed(exponent, degree.ilog2())] = m.factor(twiddle);
            twiddle = m.modulus.mul(twiddle, step);
        }
        Self {
            twiddles,
            chunks: (0..chunks).map(|b| m.powers(power(1 + 2 * reversed(b, chunk_bits)))).collect(),
            places: (0..GROUPS).map(|j| m.powers(power(2 * chunks * reversed(j, place_bits)))).collect(),
            last: [degree / 2, degree / 4, 3 * degree / 4].map(|e| m.factor(power(e))),
        }
    }
}

/// Transform of one modulus below 2^50.4, for ring degrees of [`MINIMUM_DEGREE`] and more.
#[derive(Debug)]
pub(crate) struct IfmaTransform {
    montgomery: Montgomery,
    degree: usize,
    forward: Direction,
    inverse: Direction,
}

impl IfmaTransform {
    /// Tables for a primitive 2·`degree`-th root of unity. The processor must have AVX512F,
    /// AVX512DQ and AVX512IFMA; otherwise there is no transform.
    pub(crate) fn new(modulus: Modulus, root: u64, degree: usize) -> Option<Self> {
        if degree < MINIMUM_DEGREE || !super::Isa::Avx512Ifma.is_available() {
            return None;
        }
        let montgomery = Montgomery::new(modulus);
        Some(Self {
            montgomery,
            degree,
            forward: Direction::new(&montgomery, root, degree),
            inverse: Direction::new(&montgomery, modulus.inv(root), degree),
        })
    }

    /// Canonical residues in natural order to canonical values in bit-reversed order.
    pub(crate) fn forward(&self, row: &mut [u64]) {
        assert_eq!(row.len(), self.degree);
        // SAFETY: `new` found the features.
        unsafe {
            match self.montgomery.modulus.bits() {
                ..=46 => forward::<AMPLE>(self, row),
                47..=50 => forward::<SOME>(self, row),
                _ => forward::<LITTLE>(self, row),
            }
        }
    }

    /// The inverse of [`Self::forward`], normalised, times the residue `factor`, of `source` where there is one, otherwise of
    /// the row itself.
    pub(crate) fn inverse_scaled(&self, row: &mut [u64], source: Option<&[u64]>, factor: u64) {
        assert_eq!(row.len(), self.degree);
        assert!(source.is_none_or(|source| source.len() == self.degree));
        let q = &self.montgomery.modulus;
        let factor = self.montgomery.factor(q.mul(factor, q.inv(self.degree as u64)));
        // SAFETY: `new` found the features.
        unsafe { inverse(self, row, source, factor) }
    }
}

/// Headroom of moduli below 2^50.4: words stay below 3q, x is made canonical in every stage.
const LITTLE: u32 = 0;
/// Headroom of moduli below 2^50: words stay below 4q, x is brought below 2q in every stage.
const SOME: u32 = 1;
/// Headroom of moduli below 2^46: words grow by 2q a stage, hence to less than 2^6·q in all.
const AMPLE: u32 = 2;

type Vector = __m512i;
/// Constants of the modulus, and the arithmetic on vectors.
#[derive(Clone, Copy)]
struct Ring {
    q: Vector,
    twice_q: Vector,
    /// R = 2^52, which an accumulator of low halves may hold in place of zero.
    radix: Vector,
}

impl Ring {
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    fn new(q: u64) -> Self {
        Self { q: splat(q), twice_q: splat(2 * q), radix: splat(1 << 52) }
    }

    /// y·w in (−q, q). Both high halves are accumulated onto q, so that no register has to be
    /// cleared.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    fn product(self, y: Vector, scaled: Vector, quotient: Vector) -> Vector {
        let high = _mm512_madd52hi_epu64(self.q, y, scaled);
        let m = _mm512_madd52lo_epu64(self.radix, y, quotient);
        _mm512_sub_epi64(high, _mm512_madd52hi_epu64(self.q, m, self.q))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    fn product_by(self, y: Vector, w: Factor) -> Vector {
        self.product(y, splat(w.scaled), splat(w.quotient))
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

    /// Takes [0, 4q) to [0, q).
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    fn canonical(self, x: Vector) -> Vector {
        self.subtract_once(self.subtract_twice_once(x))
    }

    /// Forward butterfly (x, y) ↦ (x + w·y, x − w·y). What it does about growth: see [`LITTLE`],
    /// [`SOME`] and [`AMPLE`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    fn butterfly<const HEADROOM: u32>(self, x: Vector, y: Vector, w: Factor) -> (Vector, Vector) {
        let x = if HEADROOM < AMPLE { self.subtract_twice_once(x) } else { x };
        let x = if HEADROOM < SOME { self.subtract_once(x) } else { x };
        // Both high halves are accumulated onto x, which cancels in their difference.
        let x = _mm512_add_epi64(x, self.q);
        let high = _mm512_madd52hi_epu64(x, y, splat(w.scaled));
        let m = _mm512_madd52lo_epu64(self.radix, y, splat(w.quotient));
        let product = _mm512_sub_epi64(high, _mm512_madd52hi_epu64(x, m, self.q));
        (_mm512_add_epi64(x, product), _mm512_sub_epi64(x, product))
    }

    /// Inverse butterfly (x, y) ↦ (x + y, w·(x − y)) on canonical words.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    fn inverse_butterfly(self, x: Vector, y: Vector, w: Factor) -> (Vector, Vector) {
        let difference = _mm512_sub_epi64(_mm512_add_epi64(x, self.q), y);
        (self.subtract_once(_mm512_add_epi64(x, y)), self.add_if_negative(self.product_by(difference, w)))
    }

    /// (x + y, x − y) on canonical words.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    fn sum_and_difference(self, x: Vector, y: Vector) -> (Vector, Vector) {
        (self.subtract_once(_mm512_add_epi64(x, y)), self.add_if_negative(_mm512_sub_epi64(x, y)))
    }
}

/// Transposes an 8 × 8 matrix of words.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
fn transpose(r: &[Vector; 8]) -> [Vector; 8] {
    const EVEN: i32 = 0x88;
    const ODD: i32 = 0xdd;
    let (t0, t1) = (_mm512_unpacklo_epi64(r[0], r[1]), _mm512_unpackhi_epi64(r[0], r[1]));
    let (t2, t3) = (_mm512_unpacklo_epi64(r[2], r[3]), _mm512_unpackhi_epi64(r[2], r[3]));
    let (t4, t5) = (_mm512_unpacklo_epi64(r[4], r[5]), _mm512_unpackhi_epi64(r[4], r[5]));
    let (t6, t7) = (_mm512_unpacklo_epi64(r[6], r[7]), _mm512_unpackhi_epi64(r[6], r[7]));
    let (a0, a1) = (_mm512_shuffle_i64x2::<EVEN>(t0, t2), _mm512_shuffle_i64x2::<ODD>(t0, t2));
    let (a2, a3) = (_mm512_shuffle_i64x2::<EVEN>(t4, t6), _mm512_shuffle_i64x2::<ODD>(t4, t6));
    let (b0, b1) = (_mm512_shuffle_i64x2::<EVEN>(t1, t3), _mm512_shuffle_i64x2::<ODD>(t1, t3));
    let (b2, b3) = (_mm512_shuffle_i64x2::<EVEN>(t5, t7), _mm512_shuffle_i64x2::<ODD>(t5, t7));
    [
        _mm512_shuffle_i64x2::<EVEN>(a0, a2),
        _mm512_shuffle_i64x2::<EVEN>(b0, b2),
        _mm512_shuffle_i64x2::<EVEN>(a1, a3),
        _mm512_shuffle_i64x2::<EVEN>(b1, b3),
        _mm512_shuffle_i64x2::<ODD>(a0, a2),
        _mm512_shuffle_i64x2::<ODD>(b0, b2),
        _mm512_shuffle_i64x2::<ODD>(a1, a3),
        _mm512_shuffle_i64x2::<ODD>(b1, b3),
    ]
}

/// Numbers of stages that pass over the row together, for 2 to 512 chunks.
fn passes(chunks: usize) -> &'static [usize] {
    match chunks.ilog2() {
        1 => &[1],
        2 => &[2],
        3 => &[3],
        4 => &[4],
        5 => &[3, 2],
        6 => &[3, 3],
        7 => &[4, 3],
        8 => &[4, 4],
        _ => &[3, 3, 3],
    }
}

/// Splits a block of 2^`STAGES` parts into its parts.
#[allow(clippy::inline_always)]
#[inline(always)]
fn parts<const COUNT: usize>(block: &mut [Lanes]) -> [&mut [Lanes]; COUNT] {
    let length = block.len() / COUNT;
    let mut rest = block;
    std::array::from_fn(|_| {
        let (part, after) = std::mem::take(&mut rest).split_at_mut(length);
        rest = after;
        part
    })
}

/// Butterflies on named words of an array, with the twiddle of sub-block `$j` of stage `$stage`.
macro_rules! butterflies {
    ($butterfly:path, $ring:ident, $x:ident, $w:ident; $($stage:literal: $(($a:literal, $b:literal, $j:literal))+;)+) => {
        $($(
            ($x[$a], $x[$b]) = $butterfly($ring, $x[$a], $x[$b], $w[(1 << $stage) - 1 + $j]);
        )+)+
    };
}

/// Loads word i of all parts, runs `$body` on the array, and stores it.
macro_rules! over_parts {
    ($parts:literal, $vectors:ident, $x:ident => $body:block) => {
        let mut parts = parts::<$parts>($vectors);
        let length = parts[0].len();
        for part in &mut parts {
            assert!(part.len() == length);
        }
        for i in 0..length {
            // SAFETY: all parts have `length` vectors.
            let mut $x: [Vector; $parts] = std::array::from_fn(|k| unsafe {
                _mm512_loadu_si512(parts[k].as_ptr().add(i).cast())
            });
            $body
            for k in 0..$parts {
                // SAFETY: all parts have `length` vectors.
                unsafe { _mm512_storeu_si512(parts[k].as_mut_ptr().add(i).cast(), $x[k]) };
            }
        }
    };
}

/// `stages` forward stages on one block, whose twiddle is number `block`.
#[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
fn forward_block<const HEADROOM: u32>(ring: Ring, vectors: &mut [Lanes], w: &[Factor], block: usize, stages: usize) {
    match stages {
        1 => {
            let w = below::<_, 1>(w, block);
            over_parts!(2, vectors, x => {
                butterflies!(Ring::butterfly::<HEADROOM>, ring, x, w; 0: (0, 1, 0););
            });
        }
        2 => {
            let w = below::<_, 3>(w, block);
            over_parts!(4, vectors, x => {
                butterflies!(Ring::butterfly::<HEADROOM>, ring, x, w;
                    0: (0, 2, 0) (1, 3, 0);
                    1: (0, 1, 0) (2, 3, 1););
            });
        }
        3 => {
            let w = below::<_, 7>(w, block);
            over_parts!(8, vectors, x => {
                butterflies!(Ring::butterfly::<HEADROOM>, ring, x, w;
                    0: (0, 4, 0) (1, 5, 0) (2, 6, 0) (3, 7, 0);
                    1: (0, 2, 0) (1, 3, 0) (4, 6, 1) (5, 7, 1);
                    2: (0, 1, 0) (2, 3, 1) (4, 5, 2) (6, 7, 3););
            });
        }
        _ => {
            let w = below::<_, 15>(w, block);
            over_parts!(16, vectors, x => {
                butterflies!(Ring::butterfly::<HEADROOM>, ring, x, w;
                    0: (0, 8, 0) (1, 9, 0) (2, 10, 0) (3, 11, 0) (4, 12, 0) (5, 13, 0) (6, 14, 0) (7, 15, 0);
                    1: (0, 4, 0) (1, 5, 0) (2, 6, 0) (3, 7, 0) (8, 12, 1) (9, 13, 1) (10, 14, 1) (11, 15, 1);
                    2: (0, 2, 0) (1, 3, 0) (4, 6, 1) (5, 7, 1) (8, 10, 2) (9, 11, 2) (12, 14, 3) (13, 15, 3);
                    3: (0, 1, 0) (2, 3, 1) (4, 5, 2) (6, 7, 3) (8, 9, 4) (10, 11, 5) (12, 13, 6) (14, 15, 7););
            });
        }
    }
}

/// The inverse of [`forward_block`] but for a factor 2 a stage.
#[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
fn inverse_block(ring: Ring, vectors: &mut [Lanes], w: &[Factor], block: usize, stages: usize, scale: Option<Factor>) {
    match stages {
        1 => {
            let w = below::<_, 1>(w, block);
            over_parts!(2, vectors, x => {
                butterflies!(Ring::inverse_butterfly, ring, x, w; 0: (0, 1, 0););
                ring.scale(&mut x, scale);
            });
        }
        2 => {
            let w = below::<_, 3>(w, block);
            over_parts!(4, vectors, x => {
                butterflies!(Ring::inverse_butterfly, ring, x, w;
                    1: (0, 1, 0) (2, 3, 1);
                    0: (0, 2, 0) (1, 3, 0););
                ring.scale(&mut x, scale);
            });
        }
        3 => {
            let w = below::<_, 7>(w, block);
            over_parts!(8, vectors, x => {
                butterflies!(Ring::inverse_butterfly, ring, x, w;
                    2: (0, 1, 0) (2, 3, 1) (4, 5, 2) (6, 7, 3);
                    1: (0, 2, 0) (1, 3, 0) (4, 6, 1) (5, 7, 1);
                    0: (0, 4, 0) (1, 5, 0) (2, 6, 0) (3, 7, 0););
                ring.scale(&mut x, scale);
            });
        }
        _ => {
            let w = below::<_, 15>(w, block);
            over_parts!(16, vectors, x => {
                butterflies!(Ring::inverse_butterfly, ring, x, w;
                    3: (0, 1, 0) (2, 3, 1) (4, 5, 2) (6, 7, 3) (8, 9, 4) (10, 11, 5) (12, 13, 6) (14, 15, 7);
                    2: (0, 2, 0) (1, 3, 0) (4, 6, 1) (5, 7, 1) (8, 10, 2) (9, 11, 2) (12, 14, 3) (13, 15, 3);
                    1: (0, 4, 0) (1, 5, 0) (2, 6, 0) (3, 7, 0) (8, 12, 1) (9, 13, 1) (10, 14, 1) (11, 15, 1);
                    0: (0, 8, 0) (1, 9, 0) (2, 10, 0) (3, 11, 0) (4, 12, 0) (5, 13, 0) (6, 14, 0) (7, 15, 0););
                ring.scale(&mut x, scale);
            });
        }
    }
}

impl Ring {
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    fn scale(self, x: &mut [Vector], scale: Option<Factor>) {
        if let Some(w) = scale {
            for x in x {
                *x = self.add_if_negative(self.product_by(*x, w));
            }
        }
    }

    /// Multiplies word t of each vector by γ^t. Canonical out.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    fn twist(self, x: Vector, chunk: &Factors, place: &Factors) -> Vector {
        let x = self.product(x, load(&place.scaled), load(&place.quotient));
        let x = _mm512_add_epi64(x, self.q);
        self.add_if_negative(self.product(x, load(&chunk.scaled), load(&chunk.quotient)))
    }
}

#[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
fn forward<const HEADROOM: u32>(transform: &IfmaTransform, row: &mut [u64]) {
    let ring = Ring::new(transform.montgomery.modulus.value());
    let direction = &transform.forward;
    let (vectors, _) = row.as_chunks_mut::<LANES>();
    let chunks = transform.degree / CHUNK;
    let mut blocks = 1;
    for stages in passes(chunks) {
        let length = vectors.len() / blocks;
        for (i, block) in vectors.chunks_exact_mut(length).enumerate() {
            forward_block::<HEADROOM>(ring, block, &direction.twiddles, blocks + i, *stages);
        }
        blocks <<= stages;
    }
    let [w2, w4, w34] = direction.last;
    for (b, chunk) in vectors.chunks_exact_mut(GROUPS).enumerate() {
        forward_block::<HEADROOM>(ring, chunk, &direction.twiddles, chunks + b, 3);
        let factors = &direction.chunks[b];
        let places = direction.places.chunks_exact(8);
        for (i, (block, places)) in chunk.chunks_exact_mut(8).zip(places).enumerate() {
            let mut x: [Vector; 8] = std::array::from_fn(|k| load(&block[k]));
            let w: [Factor; 3] = below(&direction.twiddles, 8 * (chunks + b) + 2 * i);
            let v: [Factor; 3] = below(&direction.twiddles, 8 * (chunks + b) + 2 * i + 1);
            butterflies!(Ring::butterfly::<HEADROOM>, ring, x, w;
                0: (0, 2, 0) (1, 3, 0);
                1: (0, 1, 0) (2, 3, 1););
            butterflies!(Ring::butterfly::<HEADROOM>, ring, x, v;
                0: (4, 6, 0) (5, 7, 0);
                1: (4, 5, 0) (6, 7, 1););
            for k in 0..8 {
                x[k] = ring.twist(x[k], factors, &places[k]);
            }
            let mut x = transpose(&x);
            for t in 0..4 {
                (x[t], x[t + 4]) = ring.sum_and_difference(x[t], x[t + 4]);
            }
            (x[0], x[2]) = ring.sum_and_difference(x[0], x[2]);
            (x[1], x[3]) = ring.sum_and_difference(x[1], x[3]);
            (x[4], x[6]) = ring.butterfly::<LITTLE>(x[4], x[6], w2);
            (x[5], x[7]) = ring.butterfly::<LITTLE>(x[5], x[7], w2);
            (x[0], x[1]) = ring.sum_and_difference(x[0], x[1]);
            (x[2], x[3]) = ring.butterfly::<LITTLE>(x[2], x[3], w2);
            (x[4], x[5]) = ring.butterfly::<LITTLE>(x[4], x[5], w4);
            (x[6], x[7]) = ring.butterfly::<LITTLE>(x[6], x[7], w34);
            for x in &mut x[2..] {
                *x = ring.canonical(*x);
            }
            for (lanes, x) in block.iter_mut().zip(transpose(&x)) {
                store(lanes, x);
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
fn inverse(transform: &IfmaTransform, row: &mut [u64], source: Option<&[u64]>, factor: Factor) {
    let ring = Ring::new(transform.montgomery.modulus.value());
    let direction = &transform.inverse;
    let (vectors, _) = row.as_chunks_mut::<LANES>();
    let chunks = transform.degree / CHUNK;
    let [w2, w4, w34] = direction.last;
    let source = source.map(|source| source.as_chunks::<LANES>().0);
    for (b, chunk) in vectors.chunks_exact_mut(GROUPS).enumerate() {
        let factors = &direction.chunks[b];
        let places = direction.places.chunks_exact(8);
        for (i, (block, places)) in chunk.chunks_exact_mut(8).zip(places).enumerate() {
            let first = b * GROUPS + 8 * i;
            let input = source.map_or(&*block, |source| &source[first..first + 8]);
            let mut x = transpose(&std::array::from_fn(|k| load(&input[k])));
            (x[0], x[1]) = ring.sum_and_difference(x[0], x[1]);
            (x[2], x[3]) = ring.inverse_butterfly(x[2], x[3], w2);
            (x[4], x[5]) = ring.inverse_butterfly(x[4], x[5], w4);
            (x[6], x[7]) = ring.inverse_butterfly(x[6], x[7], w34);
            (x[0], x[2]) = ring.sum_and_difference(x[0], x[2]);
            (x[1], x[3]) = ring.sum_and_difference(x[1], x[3]);
            (x[4], x[6]) = ring.inverse_butterfly(x[4], x[6], w2);
            (x[5], x[7]) = ring.inverse_butterfly(x[5], x[7], w2);
            for t in 0..4 {
                (x[t], x[t + 4]) = ring.sum_and_difference(x[t], x[t + 4]);
            }
            let mut x = transpose(&x);
            for k in 0..8 {
                x[k] = ring.twist(x[k], factors, &places[k]);
            }
            let w: [Factor; 3] = below(&direction.twiddles, 8 * (chunks + b) + 2 * i);
            let v: [Factor; 3] = below(&direction.twiddles, 8 * (chunks + b) + 2 * i + 1);
            butterflies!(Ring::inverse_butterfly, ring, x, w;
                1: (0, 1, 0) (2, 3, 1);
                0: (0, 2, 0) (1, 3, 0););
            butterflies!(Ring::inverse_butterfly, ring, x, v;
                1: (4, 5, 0) (6, 7, 1);
                0: (4, 6, 0) (5, 7, 0););
            for (lanes, x) in block.iter_mut().zip(x) {
                store(lanes, x);
            }
        }
        inverse_block(ring, chunk, &direction.twiddles, chunks + b, 3, None);
    }
    let mut blocks = chunks;
    for stages in passes(chunks).iter().rev() {
        blocks >>= stages;
        let length = vectors.len() / blocks;
        let scale = (blocks == 1).then_some(factor);
        for (i, block) in vectors.chunks_exact_mut(length).enumerate() {
            inverse_block(ring, block, &direction.twiddles, blocks + i, *stages, scale);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ntt::ScalarTransform;
    use crate::primes::{MODULUS_BOUND, primes_near};
    use crate::tables::Tables;

    #[test]
    fn agrees_with_the_plain_transform_at_every_degree() {
        for log2_degree in 9..=17 {
            let degree = 1 << log2_degree;
            let mut moduli = Vec::new();
            for target in [1 << 30, 1 << 41, 1 << 46, (1 << 50) - (1 << 24), 1 << 50, MODULUS_BOUND - (1 << 24)] {
                moduli.extend(primes_near(target, degree, 1, &moduli).unwrap());
            }
            let (tables, _) = Tables::new(degree, &moduli).unwrap();
            for (q, root) in tables.moduli.iter().zip(&tables.roots) {
                let Some(transform) = IfmaTransform::new(*q, *root, degree) else { return };
                let plain = ScalarTransform::new(*q, *root, degree);
                let mut row: Vec<u64> =
                    (0..degree as u64).map(|i| q.value() - 1 - i.wrapping_mul(i) * (i % 7) % q.value()).collect();
                let original = row.clone();
                let mut expected = row.clone();
                transform.forward(&mut row);
                plain.forward(&mut expected);
                assert_eq!(row, expected, "forward, N = {degree}, q = {}", q.value());
                transform.inverse_scaled(&mut row, None, 1);
                assert_eq!(row, original, "inverse, N = {degree}, q = {}", q.value());
                transform.inverse_scaled(&mut row, Some(&expected), 1);
                assert_eq!(row, original, "inverse, N = {degree}, q = {}", q.value());
            }
        }
    }
}
