//! The negacyclic transform on 256-bit vectors, in double precision (see [`super::avx2`]).
//!
//! **Order of work.** Cooley–Tukey in place, natural order in, bit-reversed order out; the block
//! with number i of m takes the twiddle at position m + i of the table ψ^rev. The stages at
//! distances of 32 words and more are grouped into passes of up to three that work on eight
//! registers; a block that fits the first cache level is finished before the next one is begun.
//! The last five stages work on a tile of 32 words in registers, transposed for the last three
//! so that a register holds the same position of four groups of 8 words. The first pass reads
//! words, the last writes words; in between, the row holds the bits of doubles.
//!
//! **Small tables.** The last three stages would need seven eighths of all twiddles. Group c, that is
//! the residue modulo X^8 − γ^8, takes γ^4, then γ^2 and i·γ^2, then γ, i·γ, ζ·γ and i·ζ·γ with fixed
//! i = ψ^(N/2) and ζ = ψ^(N/4): three are stored, four are multiplied out. That is cheaper than
//! fetching them, for a key switch goes through the tables of all moduli in turn.
//!
//! **Growth.** Values are bounded as multiples of q, of which a double holds 6.06. Forward, (x, y) ↦
//! (x + w·y, x − w·y) adds the bound of a product: little more than q/2, but growing with that of y.
//! [`Plan`] follows the bound and has the left halves reduced in front of a pass only when it
//! would overflow. Backward, (x, y) ↦ (x + y, w·(x − y)) doubles the bound of the left half: see
//! [`inverse_block`].

#[allow(clippy::wildcard_imports)]
use std::arch::x86_64::*;

use super::avx2::{Factor, Factors, Lanes, Ring, Vector, doubles, load, store};
use crate::Modulus;
use crate::tables::reverse_bits;

/// Words of a vector.
const LANES: usize = 4;
/// Words of a group.
const GROUP: usize = 8;
/// Vectors of a tile.
const TILE: usize = 8;
/// Stages on a tile.
const TILE_STAGES: usize = 5;
/// Vectors of a block that is finished at once: 16 KiB.
const BLOCK: usize = 1 << 9;
/// Smallest ring degree: a pass reads words, another writes them.
const MINIMUM_DEGREE: usize = 2 * LANES * TILE;

/// Constants of one direction.
#[derive(Debug)]
struct Direction {
    /// ψ^±rev(i), for the stages at distances of 8 and more.
    twiddles: Vec<Factor>,
    /// γ^±4, γ^±2 and γ^±1 for each four groups.
    groups: Vec<[[f64; LANES]; 3]>,
    /// ψ^±(N/2), ψ^±(N/4), ψ^±(3N/4).
    fixed: [Factor; 3],
}

impl Direction {
    fn new(modulus: &Modulus, root: u64, degree: usize) -> Self {
        let q = modulus.value();
        let mut powers = vec![Factor::default(); degree];
        let mut power = 1;
        for i in 0..degree {
            powers[reverse_bits(i, degree.ilog2())] = Factor::new(power, q);
            power = modulus.mul(power, root);
        }
        let at = |i: usize| powers[i].value;
        let groups = degree / GROUP;
        Self {
            groups: (0..groups)
                .step_by(LANES)
                .map(|first| [1, 2, 4].map(|step| std::array::from_fn(|lane| at(step * (groups + first + lane)))))
                .collect(),
            fixed: [1, 2, 3].map(|i| powers[i]),
            twiddles: powers[..groups].to_vec(),
        }
    }
}

/// Stages that go over the row together.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Pass {
    stages: usize,
    /// Forward: whether left halves are reduced first.
    reduce: bool,
}

/// The forward passes in front of the tiles, and whether the tiles reduce.
#[derive(Debug)]
struct Plan {
    passes: Vec<Pass>,
    tile_reduces: bool,
    /// A bound on all values that arise.
    #[cfg_attr(not(test), allow(dead_code))]
    bound: f64,
}

impl Plan {
    const LIMIT: f64 = (1_u64 << 53) as f64;

    fn new(degree: usize, q: u64) -> Self {
        let q = q as f64;
        let stages = degree.ilog2() as usize - TILE_STAGES;
        let lengths = match stages % 3 {
            _ if stages == 1 => vec![1],
            0 => vec![3; stages / 3],
            1 => [vec![3; stages / 3 - 1], vec![2, 2]].concat(),
            _ => [vec![3; stages / 3], vec![2]].concat(),
        };
        let grow = |left: f64, right: f64, stages: usize| {
            let first = left + Self::scaled(right, q);
            (1..stages).fold(first, |bound, _| bound + Self::scaled(bound, q))
        };
        let (mut passes, mut bound, mut highest) = (Vec::new(), q, q);
        for (i, &stages) in lengths.iter().enumerate() {
            // Tiles reduce after one stage only.
            let ahead = if i + 1 == lengths.len() { stages + 1 } else { stages };
            let reduce = grow(bound, bound, ahead) > Self::LIMIT;
            bound = grow(if reduce { q / 2.0 + 3.0 } else { bound }, bound, stages);
            highest = highest.max(bound);
            passes.push(Pass { stages, reduce });
        }
        let tile = |reduce: bool| {
            let first = grow(bound, bound, 1);
            let second = grow(if reduce { q / 2.0 + 3.0 } else { first }, first, 1);
            (0..3).fold(second, |bound, _| bound + Self::multiplied(bound, q)).max(first)
        };
        let tile_reduces = tile(false) > Self::LIMIT;
        Self { passes, tile_reduces, bound: highest.max(tile(tile_reduces)) }
    }

    /// Bound of [`Ring::scale`] on values up to y: y/2 is a bound of what is rounded.
    fn scaled(y: f64, q: f64) -> f64 {
        let half_unit = ((y / 2.0).log2().floor() - 53.0).exp2();
        q * (0.5 + y * (-55.0_f64).exp2() + half_unit)
    }

    /// Bound of [`Ring::product`] with a twiddle that is stored or multiplied out.
    fn multiplied(y: f64, q: f64) -> f64 {
        let twiddle = Self::scaled(q / 2.0, q);
        q * (0.5 + 3.0 * (-53.0_f64).exp2() * y * twiddle / q)
    }
}

/// Transform of one modulus below 2^50.4, for ring degrees of [`MINIMUM_DEGREE`] and more.
#[derive(Debug)]
pub(crate) struct Avx2Transform {
    modulus: Modulus,
    degree: usize,
    plan: Plan,
    forward: Direction,
    inverse: Direction,
}

impl Avx2Transform {
    /// Tables for a primitive 2·`degree`-th root of unity. The processor must have AVX2 and FMA;
    /// otherwise there is no transform.
    pub(crate) fn new(modulus: Modulus, root: u64, degree: usize) -> Option<Self> {
        if degree < MINIMUM_DEGREE || !super::Isa::Avx2.is_available() {
            return None;
        }
        Some(Self {
            modulus,
            degree,
            plan: Plan::new(degree, modulus.value()),
            forward: Direction::new(&modulus, root, degree),
            inverse: Direction::new(&modulus, modulus.inv(root), degree),
        })
    }

    /// Canonical residues in natural order to canonical values in bit-reversed order.
    pub(crate) fn forward(&self, row: &mut [u64]) {
        assert_eq!(row.len(), self.degree);
        let (vectors, _) = row.as_chunks_mut();
        // SAFETY: `new` found the features.
        unsafe { forward(self, Ring::new(self.modulus.value()), vectors, 1, 0) }
    }

    /// The inverse of [`Self::forward`], normalised, times the residue `factor`.
    pub(crate) fn inverse_scaled(&self, row: &mut [u64], factor: u64) {
        assert_eq!(row.len(), self.degree);
        let q = &self.modulus;
        let left = q.mul(factor, q.inv(self.degree as u64));
        let value = self.inverse.twiddles[1].value;
        let twiddle = if value < 0.0 { q.value() - (-value) as u64 } else { value as u64 };
        let last = [left, q.mul(left, twiddle)].map(|w| Factor::new(w, q.value()));
        let (vectors, _) = row.as_chunks_mut();
        // SAFETY: `new` found the features.
        unsafe { inverse(self, Ring::new(q.value()), vectors, 1, 0, last) }
    }
}

impl Ring {
    /// Forward butterfly (x, y) ↦ (x + w·y, x − w·y).
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn butterfly(self, x: Vector, y: Vector, w: Factors) -> (Vector, Vector) {
        let product = self.scale(y, w);
        (_mm256_add_pd(x, product), _mm256_sub_pd(x, product))
    }

    /// Inverse butterfly (x, y) ↦ (x + y, w·(x − y)).
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn inverse_butterfly(self, x: Vector, y: Vector, w: Factors) -> (Vector, Vector) {
        (_mm256_add_pd(x, y), self.scale(_mm256_sub_pd(x, y), w))
    }

    /// [`Ring::butterfly`] with a twiddle of each lane.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn butterfly_each(self, x: Vector, y: Vector, w: Vector) -> (Vector, Vector) {
        let product = self.product(y, w);
        (_mm256_add_pd(x, product), _mm256_sub_pd(x, product))
    }

    /// [`Ring::inverse_butterfly`] with a twiddle of each lane.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn inverse_butterfly_each(self, x: Vector, y: Vector, w: Vector) -> (Vector, Vector) {
        (_mm256_add_pd(x, y), self.product(_mm256_sub_pd(x, y), w))
    }
}

/// Transposes a 4 × 4 matrix.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn transpose(r: [Vector; 4]) -> [Vector; 4] {
    const LOW: i32 = 0x20;
    const HIGH: i32 = 0x31;
    let (a, b) = (_mm256_unpacklo_pd(r[0], r[1]), _mm256_unpackhi_pd(r[0], r[1]));
    let (c, d) = (_mm256_unpacklo_pd(r[2], r[3]), _mm256_unpackhi_pd(r[2], r[3]));
    [
        _mm256_permute2f128_pd::<LOW>(a, c),
        _mm256_permute2f128_pd::<LOW>(b, d),
        _mm256_permute2f128_pd::<HIGH>(a, c),
        _mm256_permute2f128_pd::<HIGH>(b, d),
    ]
}

/// Eight vectors that hold groups 0, 0, 1, 1, …, 3, 3 to eight that hold positions 0, 1, …, 7.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn positions(v: [Vector; TILE]) -> [Vector; TILE] {
    let [a, b, c, d] = transpose([v[0], v[2], v[4], v[6]]);
    let [e, f, g, h] = transpose([v[1], v[3], v[5], v[7]]);
    [a, b, c, d, e, f, g, h]
}

/// The inverse of [`positions`].
#[inline]
#[target_feature(enable = "avx2,fma")]
fn groups(x: [Vector; TILE]) -> [Vector; TILE] {
    let [a, c, e, g] = transpose([x[0], x[1], x[2], x[3]]);
    let [b, d, f, h] = transpose([x[4], x[5], x[6], x[7]]);
    [a, b, c, d, e, f, g, h]
}

/// The twiddles of all stages below block number `block`, stage after stage.
#[allow(clippy::inline_always)]
#[inline(always)]
fn below<const COUNT: usize>(twiddles: &[Factor], block: usize) -> [Factor; COUNT] {
    std::array::from_fn(|k| {
        let stage = (k + 1).ilog2();
        twiddles[(block << stage) + k + 1 - (1 << stage)]
    })
}

/// Butterflies on named words of an array, with the twiddle of sub-block `$j` of stage `$stage`.
macro_rules! butterflies {
    ($butterfly:path, $ring:ident, $x:ident, $w:ident; $($stage:literal: $(($a:literal, $b:literal, $j:literal))+;)+) => {
        $($(
            ($x[$a], $x[$b]) = $butterfly($ring, $x[$a], $x[$b], $w[(1 << $stage) - 1 + $j].splat());
        )+)+
    };
}

/// Reduces named words of an array.
macro_rules! reduce {
    ($ring:ident, $x:ident; $($k:literal)+) => {
        $($x[$k] = $ring.reduce($x[$k]);)+
    };
}

/// Loads vector i of all parts, as words or as doubles, runs `$body` on the array, and stores it.
macro_rules! over_parts {
    ($parts:literal, $vectors:ident, from words: $from:expr, to words: $to:expr, $ring:ident, $x:ident => $body:block) => {
        assert!($vectors.len() % $parts == 0);
        let length = $vectors.len() / $parts;
        let start = $vectors.as_mut_ptr();
        for i in 0..length {
            let mut $x = [_mm256_setzero_pd(); $parts];
            for k in 0..$parts {
                // SAFETY: k < parts and i < length, hence the place is one of the vectors.
                let vector = unsafe { &*start.add(k * length + i) };
                let x = load(vector);
                $x[k] = if $from { doubles(x) } else { _mm256_castsi256_pd(x) };
            }
            $body
            for k in 0..$parts {
                // SAFETY: as above; no other reference is alive.
                let vector = unsafe { &mut *start.add(k * length + i) };
                store(vector, if $to { $ring.to_words($x[k]) } else { _mm256_castpd_si256($x[k]) });
            }
        }
    };
}

/// `stages` forward stages on one block, whose twiddle is number `block`.
#[target_feature(enable = "avx2,fma")]
fn forward_block<const FIRST: bool, const REDUCE: bool>(
    ring: Ring,
    vectors: &mut [Lanes],
    w: &[Factor],
    block: usize,
    stages: usize,
) {
    match stages {
        1 => {
            let w = below::<1>(w, block);
            over_parts!(2, vectors, from words: FIRST, to words: false, ring, x => {
                if REDUCE {
                    reduce!(ring, x; 0);
                }
                butterflies!(Ring::butterfly, ring, x, w; 0: (0, 1, 0););
            });
        }
        2 => {
            let w = below::<3>(w, block);
            over_parts!(4, vectors, from words: FIRST, to words: false, ring, x => {
                if REDUCE {
                    reduce!(ring, x; 0 1);
                }
                butterflies!(Ring::butterfly, ring, x, w;
                    0: (0, 2, 0) (1, 3, 0);
                    1: (0, 1, 0) (2, 3, 1););
            });
        }
        _ => {
            let w = below::<7>(w, block);
            over_parts!(8, vectors, from words: FIRST, to words: false, ring, x => {
                if REDUCE {
                    reduce!(ring, x; 0 1 2 3);
                }
                butterflies!(Ring::butterfly, ring, x, w;
                    0: (0, 4, 0) (1, 5, 0) (2, 6, 0) (3, 7, 0);
                    1: (0, 2, 0) (1, 3, 0) (4, 6, 1) (5, 7, 1);
                    2: (0, 1, 0) (2, 3, 1) (4, 5, 2) (6, 7, 3););
            });
        }
    }
}

/// The last five forward stages on one tile, whose twiddle is number `block`.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn forward_tile<const REDUCE: bool>(
    ring: Ring,
    tile: &mut [Lanes; TILE],
    direction: &Direction,
    block: usize,
    i: usize,
) {
    let mut x = [_mm256_setzero_pd(); TILE];
    for k in 0..TILE {
        x[k] = _mm256_castsi256_pd(load(&tile[k]));
    }
    let w = below::<3>(&direction.twiddles, block);
    butterflies!(Ring::butterfly, ring, x, w; 0: (0, 4, 0) (1, 5, 0) (2, 6, 0) (3, 7, 0););
    if REDUCE {
        reduce!(ring, x; 0 1 4 5);
    }
    butterflies!(Ring::butterfly, ring, x, w; 1: (0, 2, 0) (1, 3, 0) (4, 6, 1) (5, 7, 1););
    let mut x = positions(x);
    let [w4, w2, w1] = twiddles_of_groups(&direction.groups[i]);
    let fixed = direction.fixed;
    for t in 0..4 {
        (x[t], x[t + 4]) = ring.butterfly_each(x[t], x[t + 4], w4);
    }
    (x[0], x[2]) = ring.butterfly_each(x[0], x[2], w2);
    (x[1], x[3]) = ring.butterfly_each(x[1], x[3], w2);
    let i2 = ring.scale(w2, fixed[0].splat());
    (x[4], x[6]) = ring.butterfly_each(x[4], x[6], i2);
    (x[5], x[7]) = ring.butterfly_each(x[5], x[7], i2);
    (x[0], x[1]) = ring.butterfly_each(x[0], x[1], w1);
    (x[2], x[3]) = ring.butterfly_each(x[2], x[3], ring.scale(w1, fixed[0].splat()));
    (x[4], x[5]) = ring.butterfly_each(x[4], x[5], ring.scale(w1, fixed[1].splat()));
    (x[6], x[7]) = ring.butterfly_each(x[6], x[7], ring.scale(w1, fixed[2].splat()));
    reduce!(ring, x; 0 1 2 3 4 5 6 7);
    let x = groups(x);
    for k in 0..TILE {
        store(&mut tile[k], ring.to_words(x[k]));
    }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn twiddles_of_groups(groups: &[[f64; LANES]; 3]) -> [Vector; 3] {
    let mut w = [_mm256_setzero_pd(); 3];
    for (w, lanes) in w.iter_mut().zip(groups) {
        // SAFETY: the reference covers 32 readable bytes.
        *w = unsafe { _mm256_loadu_pd(lanes.as_ptr()) };
    }
    w
}

/// The forward passes from number `depth` on, on the block with number `block`.
#[target_feature(enable = "avx2,fma")]
fn forward(transform: &Avx2Transform, ring: Ring, vectors: &mut [Lanes], block: usize, depth: usize) {
    let direction = &transform.forward;
    let w = &direction.twiddles;
    let passes = &transform.plan.passes;
    let pass = |vectors: &mut [Lanes], block: usize, depth: usize| {
        let Pass { stages, reduce } = passes[depth];
        match (depth, reduce) {
            (0, _) => forward_block::<true, false>(ring, vectors, w, block, stages),
            (_, true) => forward_block::<false, true>(ring, vectors, w, block, stages),
            (_, false) => forward_block::<false, false>(ring, vectors, w, block, stages),
        }
    };
    if vectors.len() > BLOCK && depth < passes.len() {
        pass(vectors, block, depth);
        let parts = 1 << passes[depth].stages;
        let length = vectors.len() / parts;
        for (i, part) in vectors.chunks_exact_mut(length).enumerate() {
            forward(transform, ring, part, block * parts + i, depth + 1);
        }
        return;
    }
    let mut blocks = 1;
    for (depth, Pass { stages, .. }) in passes.iter().enumerate().skip(depth) {
        let length = vectors.len() / blocks;
        for (i, part) in vectors.chunks_exact_mut(length).enumerate() {
            pass(part, block * blocks + i, depth);
        }
        blocks <<= stages;
    }
    let (tiles, _) = vectors.as_chunks_mut();
    let (first, all) = (block * blocks, transform.degree / (LANES * TILE));
    for (tile, block) in tiles.iter_mut().zip(first..) {
        if transform.plan.tile_reduces {
            forward_tile::<true>(ring, tile, direction, block, block - all);
        } else {
            forward_tile::<false>(ring, tile, direction, block, block - all);
        }
    }
}

/// The inverse of [`forward_block`] but for a factor 2 a stage; if `LAST`, with the factors `last`
/// of the last stage: for left halves, and for right halves in place of the twiddle.
///
/// With values up to 1.45q and products up to (1/2 + 0.124·b)q for b·q, three stages make of
/// position 0 four times its bound, hence it is reduced before it doubles again; 1 and 2 reach
/// 3.5q and 2.5q, and are reduced at the end; 3 stays below 1.45q, what the last stage multiplied
/// below q. Two stages are the same without the third.
#[target_feature(enable = "avx2,fma")]
fn inverse_block<const LAST: bool>(
    ring: Ring,
    vectors: &mut [Lanes],
    w: &[Factor],
    block: usize,
    stages: usize,
    last: [Factor; 2],
) {
    match stages {
        1 => {
            let mut w = below::<1>(w, block);
            if LAST {
                w[0] = last[1];
            }
            over_parts!(2, vectors, from words: false, to words: LAST, ring, x => {
                butterflies!(Ring::inverse_butterfly, ring, x, w; 0: (0, 1, 0););
                if LAST {
                    x[0] = ring.scale(x[0], last[0].splat());
                } else {
                    reduce!(ring, x; 0);
                }
            });
        }
        2 => {
            let mut w = below::<3>(w, block);
            if LAST {
                w[0] = last[1];
            }
            over_parts!(4, vectors, from words: false, to words: LAST, ring, x => {
                butterflies!(Ring::inverse_butterfly, ring, x, w;
                    1: (0, 1, 0) (2, 3, 1);
                    0: (0, 2, 0) (1, 3, 0););
                if LAST {
                    for x in &mut x[..2] {
                        *x = ring.scale(*x, last[0].splat());
                    }
                } else {
                    reduce!(ring, x; 0 1);
                }
            });
        }
        _ => {
            let mut w = below::<7>(w, block);
            if LAST {
                w[0] = last[1];
            }
            over_parts!(8, vectors, from words: false, to words: LAST, ring, x => {
                butterflies!(Ring::inverse_butterfly, ring, x, w;
                    2: (0, 1, 0) (2, 3, 1) (4, 5, 2) (6, 7, 3);
                    1: (0, 2, 0) (1, 3, 0) (4, 6, 1) (5, 7, 1););
                reduce!(ring, x; 0 4);
                butterflies!(Ring::inverse_butterfly, ring, x, w;
                    0: (0, 4, 0) (1, 5, 0) (2, 6, 0) (3, 7, 0););
                if LAST {
                    for x in &mut x[..4] {
                        *x = ring.scale(*x, last[0].splat());
                    }
                } else {
                    reduce!(ring, x; 1 2);
                }
            });
        }
    }
}

/// The inverse of [`forward_tile`] but for a factor 2 a stage. From values below q, two stages lead
/// to 4q at position 0, and the third to 3.2q, 2.2q and 1.9q at positions 1 to 3; these are
/// reduced, and 1.3q remains. The other two stages lead to 5.2q and 1.7q on the left, which are
/// reduced, and to 1.2q on the right.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn inverse_tile(ring: Ring, tile: &mut [Lanes; TILE], direction: &Direction, block: usize, i: usize) {
    let mut x = [_mm256_setzero_pd(); TILE];
    for k in 0..TILE {
        x[k] = doubles(load(&tile[k]));
    }
    let mut x = positions(x);
    let [w4, w2, w1] = twiddles_of_groups(&direction.groups[i]);
    let fixed = direction.fixed;
    (x[0], x[1]) = ring.inverse_butterfly_each(x[0], x[1], w1);
    (x[2], x[3]) = ring.inverse_butterfly_each(x[2], x[3], ring.scale(w1, fixed[0].splat()));
    (x[4], x[5]) = ring.inverse_butterfly_each(x[4], x[5], ring.scale(w1, fixed[1].splat()));
    (x[6], x[7]) = ring.inverse_butterfly_each(x[6], x[7], ring.scale(w1, fixed[2].splat()));
    (x[0], x[2]) = ring.inverse_butterfly_each(x[0], x[2], w2);
    (x[1], x[3]) = ring.inverse_butterfly_each(x[1], x[3], w2);
    let i2 = ring.scale(w2, fixed[0].splat());
    (x[4], x[6]) = ring.inverse_butterfly_each(x[4], x[6], i2);
    (x[5], x[7]) = ring.inverse_butterfly_each(x[5], x[7], i2);
    reduce!(ring, x; 0 4);
    for t in 0..4 {
        (x[t], x[t + 4]) = ring.inverse_butterfly_each(x[t], x[t + 4], w4);
    }
    reduce!(ring, x; 1 2 3);
    let mut x = groups(x);
    let w = below::<3>(&direction.twiddles, block);
    butterflies!(Ring::inverse_butterfly, ring, x, w;
        1: (0, 2, 0) (1, 3, 0) (4, 6, 1) (5, 7, 1);
        0: (0, 4, 0) (1, 5, 0) (2, 6, 0) (3, 7, 0););
    reduce!(ring, x; 0 1 2 3);
    for k in 0..TILE {
        store(&mut tile[k], _mm256_castpd_si256(x[k]));
    }
}

/// The inverse of [`forward`].
#[target_feature(enable = "avx2,fma")]
fn inverse(
    transform: &Avx2Transform,
    ring: Ring,
    vectors: &mut [Lanes],
    block: usize,
    depth: usize,
    last: [Factor; 2],
) {
    let direction = &transform.inverse;
    let w = &direction.twiddles;
    let passes = &transform.plan.passes;
    let pass = |vectors: &mut [Lanes], block: usize, depth: usize| {
        let stages = passes[depth].stages;
        if depth == 0 {
            inverse_block::<true>(ring, vectors, w, block, stages, last);
        } else {
            inverse_block::<false>(ring, vectors, w, block, stages, last);
        }
    };
    if vectors.len() > BLOCK && depth < passes.len() {
        let parts = 1 << passes[depth].stages;
        let length = vectors.len() / parts;
        for (i, part) in vectors.chunks_exact_mut(length).enumerate() {
            inverse(transform, ring, part, block * parts + i, depth + 1, last);
        }
        pass(vectors, block, depth);
        return;
    }
    let mut blocks = vectors.len() / TILE;
    let (tiles, _) = vectors.as_chunks_mut();
    let (first, all) = (block * blocks, transform.degree / (LANES * TILE));
    for (tile, block) in tiles.iter_mut().zip(first..) {
        inverse_tile(ring, tile, direction, block, block - all);
    }
    for depth in (depth..passes.len()).rev() {
        blocks >>= passes[depth].stages;
        let length = vectors.len() / blocks;
        for (i, part) in vectors.chunks_exact_mut(length).enumerate() {
            pass(part, block * blocks + i, depth);
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
        for log2_degree in MINIMUM_DEGREE.ilog2()..=17 {
            let degree = 1 << log2_degree;
            let mut moduli = Vec::new();
            for target in [1 << 20, 1 << 30, 1 << 41, 1 << 46, 1 << 50, MODULUS_BOUND - (1 << 24)] {
                moduli.extend(primes_near(target, degree, 1, &moduli).unwrap());
            }
            let (tables, _) = Tables::new(degree, &moduli).unwrap();
            for (modulus, root) in tables.moduli.iter().zip(&tables.roots) {
                let q = modulus.value();
                let Some(transform) = Avx2Transform::new(*modulus, *root, degree) else { return };
                let plain = ScalarTransform::new(*modulus, *root, degree);
                let mixed = |i: u64| q - 1 - i.wrapping_mul(i) * (i % 7) % q;
                let rows: [&dyn Fn(u64) -> u64; 4] = [&mixed, &|_| 0, &|_| q - 1, &|i| u64::from(i == 3)];
                for (k, row) in rows.into_iter().enumerate() {
                    let original: Vec<u64> = (0..degree as u64).map(row).collect();
                    let (mut row, mut expected) = (original.clone(), original.clone());
                    transform.forward(&mut row);
                    plain.forward(&mut expected);
                    assert!(row == expected, "forward of row {k}, N = {degree}, q = {q}");
                    transform.inverse_scaled(&mut row, 1);
                    assert!(row == original, "inverse of row {k}, N = {degree}, q = {q}");
                    plain.inverse(&mut expected);
                    let factor = q / 3;
                    let mut row = original.clone();
                    transform.inverse_scaled(&mut row, factor);
                    let mut expected = original;
                    plain.inverse(&mut expected);
                    assert!(
                        row.iter().zip(&expected).all(|(x, y)| *x == modulus.mul(*y, factor)),
                        "factor, N = {degree}"
                    );
                }
            }
        }
    }

    #[test]
    fn forward_values_fit_doubles() {
        for log2_degree in MINIMUM_DEGREE.ilog2()..=17 {
            for q in [1 << 20, 1 << 46, 1 << 49, 1 << 50, MODULUS_BOUND] {
                let plan = Plan::new(1 << log2_degree, q);
                assert!(plan.bound <= Plan::LIMIT, "{plan:?}");
            }
        }
    }
}
