//! The negacyclic transform on 512-bit vectors with 52-bit multiply-add.
//!
//! **Order of work.** Cooley–Tukey in place, natural order in, bit-reversed order out; the block
//! with number i of m takes the twiddle at position m + i of the table ψ^rev. Stages at distances
//! of 256 and more pass over the whole row, up to four stages at a time in registers. What
//! remains, chunk by chunk of 256 words, stays in the first cache level.
//!
//! **Small tables.** The last three stages would need seven eighths of all twiddles, a megabyte a
//! modulus at N = 2^16, which costs more to fetch than to avoid. They work on groups of 8 words,
//! that is modulo X^8 − γ^8 with γ = ψ^(1+2·rev(c)) for group c. With c = 32·b + j, γ = δ·ω, where
//! δ depends on the chunk b only and ω on the place j in it. The substitution X = δ·Y, a
//! multiplication of word t by δ^t, makes the group one modulo Y^8 − ω^8, whose twiddles are the
//! same in all chunks. Eight groups at a time are transposed for these stages.
//!
//! **Two at a time.** Transpositions occupy one of the two vector ports. Two times eight groups pass
//! through the same stages half a step apart, so that products of one fill the other port.

#[allow(clippy::wildcard_imports)]
use std::arch::x86_64::*;

use super::Reduction;
use super::ifma::{Lanes, load, splat, store};
use super::ifma_plan::{CHUNK, Direction, Factor, Factors, GROUPS, LANES, MINIMUM_DEGREE, Montgomery};
use super::ifma_ring::{AMPLE, LITTLE, Ring, SOME, Vector, loaded, spread};
use super::transform::below;
use crate::Modulus;

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

    /// The words that [`forward`](Self::forward) takes.
    pub(crate) fn takes(&self) -> Reduction {
        if self.montgomery.modulus.bits() <= 50 { Reduction::Lazy } else { Reduction::Full }
    }

    /// Residues in natural order to canonical values in bit-reversed order.
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
        unsafe {
            match q.bits() {
                ..=50 => inverse::<SOME>(self, row, source, factor),
                _ => inverse::<LITTLE>(self, row, source, factor),
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
fn load_all(block: &[Lanes]) -> [Vector; LANES] {
    std::array::from_fn(|k| load(&block[k]))
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
    debug_assert!((2..=512).contains(&chunks));
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

/// Splits a block into `COUNT` parts.
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
    ($butterfly:path, $ring:ident, $x:ident, $twiddle:path, $w:ident; $($stage:literal: $(($a:literal, $b:literal, $j:literal))+;)+) => {
        $($(
            ($x[$a], $x[$b]) = $butterfly($ring, $x[$a], $x[$b], $twiddle(&$w[(1 << $stage) - 1 + $j]));
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
                butterflies!(Ring::butterfly::<HEADROOM>, ring, x, spread, w; 0: (0, 1, 0););
            });
        }
        2 => {
            let w = below::<_, 3>(w, block);
            over_parts!(4, vectors, x => {
                butterflies!(Ring::butterfly::<HEADROOM>, ring, x, spread, w;
                    0: (0, 2, 0) (1, 3, 0);
                    1: (0, 1, 0) (2, 3, 1););
            });
        }
        3 => {
            let w = below::<_, 7>(w, block);
            over_parts!(8, vectors, x => {
                butterflies!(Ring::butterfly::<HEADROOM>, ring, x, spread, w;
                    0: (0, 4, 0) (1, 5, 0) (2, 6, 0) (3, 7, 0);
                    1: (0, 2, 0) (1, 3, 0) (4, 6, 1) (5, 7, 1);
                    2: (0, 1, 0) (2, 3, 1) (4, 5, 2) (6, 7, 3););
            });
        }
        _ => {
            let w = below::<_, 15>(w, block);
            over_parts!(16, vectors, x => {
                butterflies!(Ring::butterfly::<HEADROOM>, ring, x, spread, w;
                    0: (0, 8, 0) (1, 9, 0) (2, 10, 0) (3, 11, 0) (4, 12, 0) (5, 13, 0) (6, 14, 0) (7, 15, 0);
                    1: (0, 4, 0) (1, 5, 0) (2, 6, 0) (3, 7, 0) (8, 12, 1) (9, 13, 1) (10, 14, 1) (11, 15, 1);
                    2: (0, 2, 0) (1, 3, 0) (4, 6, 1) (5, 7, 1) (8, 10, 2) (9, 11, 2) (12, 14, 3) (13, 15, 3);
                    3: (0, 1, 0) (2, 3, 1) (4, 5, 2) (6, 7, 3) (8, 9, 4) (10, 11, 5) (12, 13, 6) (14, 15, 7););
            });
        }
    }
}

/// The inverse of [`forward_block`] but for a factor 2 a stage. The last block leaves canonical words.
#[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
fn inverse_block<const HEADROOM: u32>(
    ring: Ring,
    vectors: &mut [Lanes],
    w: &[Factor],
    block: usize,
    stages: usize,
    last: bool,
) {
    match stages {
        1 => {
            let w = below::<_, 1>(w, block);
            over_parts!(2, vectors, x => {
                butterflies!(Ring::inverse_butterfly::<HEADROOM>, ring, x, spread, w; 0: (0, 1, 0););
                ring.finish::<HEADROOM>(&mut x, last);
            });
        }
        2 => {
            let w = below::<_, 3>(w, block);
            over_parts!(4, vectors, x => {
                butterflies!(Ring::inverse_butterfly::<HEADROOM>, ring, x, spread, w;
                    1: (0, 1, 0) (2, 3, 1);
                    0: (0, 2, 0) (1, 3, 0););
                ring.finish::<HEADROOM>(&mut x, last);
            });
        }
        3 => {
            let w = below::<_, 7>(w, block);
            over_parts!(8, vectors, x => {
                butterflies!(Ring::inverse_butterfly::<HEADROOM>, ring, x, spread, w;
                    2: (0, 1, 0) (2, 3, 1) (4, 5, 2) (6, 7, 3);
                    1: (0, 2, 0) (1, 3, 0) (4, 6, 1) (5, 7, 1);
                    0: (0, 4, 0) (1, 5, 0) (2, 6, 0) (3, 7, 0););
                ring.finish::<HEADROOM>(&mut x, last);
            });
        }
        _ => {
            let w = below::<_, 15>(w, block);
            over_parts!(16, vectors, x => {
                butterflies!(Ring::inverse_butterfly::<HEADROOM>, ring, x, spread, w;
                    3: (0, 1, 0) (2, 3, 1) (4, 5, 2) (6, 7, 3) (8, 9, 4) (10, 11, 5) (12, 13, 6) (14, 15, 7);
                    2: (0, 2, 0) (1, 3, 0) (4, 6, 1) (5, 7, 1) (8, 10, 2) (9, 11, 2) (12, 14, 3) (13, 15, 3);
                    1: (0, 4, 0) (1, 5, 0) (2, 6, 0) (3, 7, 0) (8, 12, 1) (9, 13, 1) (10, 14, 1) (11, 15, 1);
                    0: (0, 8, 0) (1, 9, 0) (2, 10, 0) (3, 11, 0) (4, 12, 0) (5, 13, 0) (6, 14, 0) (7, 15, 0););
                ring.finish::<HEADROOM>(&mut x, last);
            });
        }
    }
}

/// Stages on eight vectors: near ones at distances of 16 and 8 words; then, when the vectors are transposed, far,
/// middle and last ones at distances of 4, 2 and 1.
impl Ring {
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    fn forward_near<const HEADROOM: u32>(self, block: &[Lanes], twiddles: &[Factor], first: usize) -> [Vector; LANES] {
        let mut x = load_all(block);
        let w: [Factor; 3] = below(twiddles, first);
        let v: [Factor; 3] = below(twiddles, first + 1);
        butterflies!(Ring::butterfly::<HEADROOM>, self, x, spread, w;
            0: (0, 2, 0) (1, 3, 0);
            1: (0, 1, 0) (2, 3, 1););
        butterflies!(Ring::butterfly::<HEADROOM>, self, x, spread, v;
            0: (4, 6, 0) (5, 7, 0);
            1: (4, 5, 0) (6, 7, 1););
        x
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    fn forward_far<const HEADROOM: u32>(self, mut x: [Vector; LANES], w: &[Factors; 7]) -> [Vector; LANES] {
        butterflies!(Ring::butterfly::<HEADROOM>, self, x, loaded, w; 0: (0, 4, 0) (1, 5, 0) (2, 6, 0) (3, 7, 0););
        x
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    fn forward_middle<const HEADROOM: u32>(self, mut x: [Vector; LANES], w: &[Factors; 7]) -> [Vector; LANES] {
        butterflies!(Ring::butterfly::<HEADROOM>, self, x, loaded, w; 1: (0, 2, 0) (1, 3, 0) (4, 6, 1) (5, 7, 1););
        x
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    fn forward_last<const HEADROOM: u32>(self, mut x: [Vector; LANES], w: &[Factors; 7]) -> [Vector; LANES] {
        butterflies!(Ring::butterfly::<HEADROOM>, self, x, loaded, w; 2: (0, 1, 0) (2, 3, 1) (4, 5, 2) (6, 7, 3););
        std::array::from_fn(|k| self.canonical::<HEADROOM>(x[k]))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    fn inverse_last<const HEADROOM: u32>(self, mut x: [Vector; LANES], w: &[Factors; 7]) -> [Vector; LANES] {
        butterflies!(Ring::inverse_butterfly::<HEADROOM>, self, x, loaded, w;
            2: (0, 1, 0) (2, 3, 1) (4, 5, 2) (6, 7, 3););
        x
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    fn inverse_middle<const HEADROOM: u32>(self, mut x: [Vector; LANES], w: &[Factors; 7]) -> [Vector; LANES] {
        butterflies!(Ring::inverse_butterfly::<HEADROOM>, self, x, loaded, w;
            1: (0, 2, 0) (1, 3, 0) (4, 6, 1) (5, 7, 1););
        x
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    fn inverse_far<const HEADROOM: u32>(self, mut x: [Vector; LANES], w: &[Factors; 7]) -> [Vector; LANES] {
        butterflies!(Ring::inverse_butterfly::<HEADROOM>, self, x, loaded, w;
            0: (0, 4, 0) (1, 5, 0) (2, 6, 0) (3, 7, 0););
        x
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    fn inverse_near<const HEADROOM: u32>(
        self,
        mut x: [Vector; LANES],
        block: &mut [Lanes],
        twiddles: &[Factor],
        first: usize,
    ) {
        let w: [Factor; 3] = below(twiddles, first);
        let v: [Factor; 3] = below(twiddles, first + 1);
        butterflies!(Ring::inverse_butterfly::<HEADROOM>, self, x, spread, w;
            1: (0, 1, 0) (2, 3, 1);
            0: (0, 2, 0) (1, 3, 0););
        butterflies!(Ring::inverse_butterfly::<HEADROOM>, self, x, spread, v;
            1: (4, 5, 0) (6, 7, 1);
            0: (4, 6, 0) (5, 7, 0););
        for (lanes, x) in block.iter_mut().zip(x) {
            store(lanes, x);
        }
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
    for (b, chunk) in vectors.chunks_exact_mut(GROUPS).enumerate() {
        forward_block::<HEADROOM>(ring, chunk, &direction.twiddles, chunks + b, 3);
        let powers = loaded(&direction.chunks[b]);
        let pairs = chunk.chunks_exact_mut(2 * LANES).zip(direction.places.chunks_exact(2));
        for (i, (pair, places)) in pairs.enumerate() {
            let first = 8 * (chunks + b) + 4 * i;
            let (left, right) = pair.split_at_mut(LANES);
            let mut x = ring.forward_near::<HEADROOM>(left, &direction.twiddles, first);
            let mut y = ring.forward_near::<HEADROOM>(right, &direction.twiddles, first + 2);
            x = transpose(&ring.positive_products(&x, powers));
            y = ring.positive_products(&y, powers);
            x = ring.forward_far::<HEADROOM>(x, &places[0]);
            y = transpose(&y);
            x = ring.forward_middle::<HEADROOM>(x, &places[0]);
            y = ring.forward_far::<HEADROOM>(y, &places[1]);
            x = ring.forward_last::<HEADROOM>(x, &places[0]);
            y = ring.forward_middle::<HEADROOM>(y, &places[1]);
            x = transpose(&x);
            y = ring.forward_last::<HEADROOM>(y, &places[1]);
            for (lanes, x) in left.iter_mut().zip(x) {
                store(lanes, x);
            }
            for (lanes, y) in right.iter_mut().zip(transpose(&y)) {
                store(lanes, y);
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
fn inverse<const HEADROOM: u32>(transform: &IfmaTransform, row: &mut [u64], source: Option<&[u64]>, factor: Factor) {
    let ring = Ring::new(transform.montgomery.modulus.value());
    let modulus_inverse = splat(transform.montgomery.inverse);
    let direction = &transform.inverse;
    let (vectors, _) = row.as_chunks_mut::<LANES>();
    let chunks = transform.degree / CHUNK;
    let source = source.map(|source| source.as_chunks::<LANES>().0);
    let factor = spread(&factor);
    for (b, chunk) in vectors.chunks_exact_mut(GROUPS).enumerate() {
        let powers = ring.scaled(loaded(&direction.chunks[b]), factor, modulus_inverse);
        let pairs = chunk.chunks_exact_mut(2 * LANES).zip(direction.places.chunks_exact(2));
        for (i, (pair, places)) in pairs.enumerate() {
            let first = b * GROUPS + 2 * LANES * i;
            let input = source.map_or(&*pair, |source| &source[first..first + 2 * LANES]);
            let (mut x, mut y) = (load_all(&input[..LANES]), load_all(&input[LANES..]));
            x = transpose(&x);
            x = ring.inverse_last::<HEADROOM>(x, &places[0]);
            y = transpose(&y);
            x = ring.inverse_middle::<HEADROOM>(x, &places[0]);
            y = ring.inverse_last::<HEADROOM>(y, &places[1]);
            x = ring.inverse_far::<HEADROOM>(x, &places[0]);
            y = ring.inverse_middle::<HEADROOM>(y, &places[1]);
            x = transpose(&x);
            y = ring.inverse_far::<HEADROOM>(y, &places[1]);
            x = ring.inverse_products::<HEADROOM>(&x, powers);
            y = transpose(&y);
            let first = 8 * (chunks + b) + 4 * i;
            let (left, right) = pair.split_at_mut(LANES);
            ring.inverse_near::<HEADROOM>(x, left, &direction.twiddles, first);
            y = ring.inverse_products::<HEADROOM>(&y, powers);
            ring.inverse_near::<HEADROOM>(y, right, &direction.twiddles, first + 2);
        }
        inverse_block::<HEADROOM>(ring, chunk, &direction.twiddles, chunks + b, 3, false);
    }
    let mut blocks = chunks;
    for stages in passes(chunks).iter().rev() {
        blocks >>= stages;
        let length = vectors.len() / blocks;
        for (i, block) in vectors.chunks_exact_mut(length).enumerate() {
            inverse_block::<HEADROOM>(ring, block, &direction.twiddles, blocks + i, *stages, blocks == 1);
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
                if transform.takes() == Reduction::Lazy {
                    let lazy = |i: usize, x: &u64| x + i as u64 % 4 * q.value();
                    let mut row: Vec<u64> = original.iter().enumerate().map(|(i, x)| lazy(i, x)).collect();
                    transform.forward(&mut row);
                    assert_eq!(row, expected, "forward of words below 4q, N = {degree}, q = {}", q.value());
                    let (mut most, mut least) = (vec![4 * q.value() - 1; degree], vec![q.value() - 1; degree]);
                    transform.forward(&mut most);
                    plain.forward(&mut least);
                    assert_eq!(most, least, "forward of 4q − 1, N = {degree}, q = {}", q.value());
                }
                transform.inverse_scaled(&mut row, None, 1);
                assert_eq!(row, original, "inverse, N = {degree}, q = {}", q.value());
                transform.inverse_scaled(&mut row, Some(&expected), 1);
                assert_eq!(row, original, "inverse, N = {degree}, q = {}", q.value());
            }
        }
    }
}
