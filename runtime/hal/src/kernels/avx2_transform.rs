//! The negacyclic transform on 256-bit vectors, in double precision (see [`super::avx2`]).
//!
//! **Order of work.** Cooley–Tukey in place, natural order in, bit-reversed order out; the block
//! with number i of m takes the twiddle at position m + i of the table ψ^rev. Stages at distances
//! of 32 words and more go over the row by twos; a block that fits the first cache level is
//! finished before the next one is begun. The last five stages work on tiles of 32 words in
//! registers, transposed for the last three, so that a register holds the same position of four
//! groups of 8 words. The first pass reads words, the last one writes words; in between, the
//! row holds the bits of doubles.
//!
//! **Few stages at a time.** What limits is not memory but how far the processor looks ahead: the
//! operations of a butterfly form a chain. Three stages in registers were slower than two.
//!
//! **Small tables.** The last three stages would need seven eighths of all twiddles. Group c, that is
//! the residue modulo X^8 − γ^8, takes γ^4, then γ^2 and i·γ^2, then γ, i·γ, ζ·γ and i·ζ·γ with fixed
//! i = ψ^(N/2) and ζ = ψ^(N/4): three are stored, four are multiplied out, at no loss of time, and
//! tables of all moduli, which a key switch goes through in turn, stay in the last cache level.
//!
//! **Growth** of values: see [`super::avx2_plan`].

#[allow(clippy::wildcard_imports)]
use std::arch::x86_64::*;

use super::avx2::{Factor, Factors, Lanes, Ring, Vector, doubles, load, store};
use super::avx2_plan::{Pass, Plan, TILE_STAGES};
use super::transform::below;
use crate::Modulus;
use crate::tables::reverse_bits;

/// Words of a vector.
const LANES: usize = 4;
/// Words of a group.
const GROUP: usize = 8;
/// Vectors of a tile.
const TILE: usize = 8;
/// Vectors of a block that is finished at once: 16 KiB.
const BLOCK: usize = 1 << 9;
/// Smallest ring degree: there is a pass in front of the tiles.
const MINIMUM_DEGREE: usize = 2 << TILE_STAGES;

/// γ^±4, γ^±2 and γ^±1 of four groups.
#[derive(Debug)]
struct GroupTwiddles([[f64; LANES]; 3]);

impl GroupTwiddles {
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn load(&self) -> [Vector; 3] {
        // SAFETY: the arrays cover 32 readable bytes.
        let [a, b, c] = self.0.each_ref().map(|lanes| unsafe { _mm256_loadu_pd(lanes.as_ptr()) });
        [a, b, c]
    }
}

/// Constants of one direction.
#[derive(Debug)]
struct Direction {
    /// ψ^±rev(i), for the stages at distances of 8 and more.
    twiddles: Vec<Factor>,
    /// For each four groups, that is each tile.
    groups: Vec<GroupTwiddles>,
    /// ψ^±(N/2), ψ^±(N/4), ψ^±(3N/4).
    fixed: [Factor; 3],
    /// ψ^±(N/2) as a residue.
    first: u64,
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
                .map(|c| [1, 2, 4].map(|step| std::array::from_fn(|lane| at(step * (groups + c + lane)))))
                .map(GroupTwiddles)
                .collect(),
            fixed: [1, 2, 3].map(|i| powers[i]),
            first: modulus.pow(root, degree as u64 / 2),
            twiddles: powers[..groups].to_vec(),
        }
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
        let last = [left, q.mul(left, self.inverse.first)].map(|w| Factor::new(w, q.value()));
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
fn to_positions(v: [Vector; TILE]) -> [Vector; TILE] {
    let [a, b, c, d] = transpose([v[0], v[2], v[4], v[6]]);
    let [e, f, g, h] = transpose([v[1], v[3], v[5], v[7]]);
    [a, b, c, d, e, f, g, h]
}

/// The inverse of [`to_positions`].
#[inline]
#[target_feature(enable = "avx2,fma")]
fn to_groups(x: [Vector; TILE]) -> [Vector; TILE] {
    let [a, c, e, g] = transpose([x[0], x[1], x[2], x[3]]);
    let [b, d, f, h] = transpose([x[4], x[5], x[6], x[7]]);
    [a, b, c, d, e, f, g, h]
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

/// `stages` forward stages on each of `blocks` blocks, whose twiddles are numbers `first`,
/// `first` + 1, ….
#[target_feature(enable = "avx2,fma")]
fn forward_pass<const FIRST: bool, const REDUCE: bool>(
    ring: Ring,
    vectors: &mut [Lanes],
    w: &[Factor],
    first: usize,
    blocks: usize,
    stages: usize,
) {
    let length = vectors.len() / blocks;
    for (vectors, block) in vectors.chunks_exact_mut(length).zip(first..) {
        if stages == 1 {
            let w = below::<_, 1>(w, block);
            over_parts!(2, vectors, from words: FIRST, to words: false, ring, x => {
                if REDUCE {
                    reduce!(ring, x; 0);
                }
                butterflies!(Ring::butterfly, ring, x, w; 0: (0, 1, 0););
            });
        } else {
            let w = below::<_, 3>(w, block);
            over_parts!(4, vectors, from words: FIRST, to words: false, ring, x => {
                if REDUCE {
                    reduce!(ring, x; 0 1);
                }
                butterflies!(Ring::butterfly, ring, x, w;
                    0: (0, 2, 0) (1, 3, 0);
                    1: (0, 1, 0) (2, 3, 1););
            });
        }
    }
}

/// Loads the vectors of a tile that hold doubles.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn load_tile(tile: &[Lanes; TILE]) -> [Vector; TILE] {
    let mut x = [_mm256_setzero_pd(); TILE];
    for (x, lanes) in x.iter_mut().zip(tile) {
        *x = _mm256_castsi256_pd(load(lanes));
    }
    x
}

/// Stores doubles.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn store_tile(tile: &mut [Lanes; TILE], x: [Vector; TILE]) {
    for (lanes, x) in tile.iter_mut().zip(x) {
        store(lanes, _mm256_castpd_si256(x));
    }
}

/// The forward stages at distances of 16 and 8 words, on tiles whose twiddles are numbers `first`,
/// `first` + 1, ….
#[target_feature(enable = "avx2,fma")]
fn forward_tiles<const REDUCE: bool>(ring: Ring, tiles: &mut [[Lanes; TILE]], w: &[Factor], first: usize) {
    for (tile, block) in tiles.iter_mut().zip(first..) {
        let mut x = load_tile(tile);
        let w = below::<_, 3>(w, block);
        butterflies!(Ring::butterfly, ring, x, w; 0: (0, 4, 0) (1, 5, 0) (2, 6, 0) (3, 7, 0););
        if REDUCE {
            reduce!(ring, x; 0 1 4 5);
        }
        butterflies!(Ring::butterfly, ring, x, w; 1: (0, 2, 0) (1, 3, 0) (4, 6, 1) (5, 7, 1););
        store_tile(tile, x);
    }
}

/// The last three forward stages.
#[target_feature(enable = "avx2,fma")]
fn forward_groups(ring: Ring, tiles: &mut [[Lanes; TILE]], twiddles: &[GroupTwiddles], fixed: [Factor; 3]) {
    for (tile, w) in tiles.iter_mut().zip(twiddles) {
        let mut x = to_positions(load_tile(tile));
        let [w4, w2, w1] = w.load();
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
        for (lanes, x) in tile.iter_mut().zip(to_groups(x)) {
            store(lanes, ring.to_words(x));
        }
    }
}

/// The forward passes from number `depth` on, on the block with number `block`.
#[target_feature(enable = "avx2,fma")]
fn forward(transform: &Avx2Transform, ring: Ring, vectors: &mut [Lanes], block: usize, depth: usize) {
    let Avx2Transform { forward: direction, plan, .. } = transform;
    let pass = |vectors: &mut [Lanes], first: usize, blocks: usize, depth: usize| {
        let (Pass { stages, reduce }, w) = (plan.passes[depth], &direction.twiddles);
        match (depth, reduce) {
            (0, _) => forward_pass::<true, false>(ring, vectors, w, first, blocks, stages),
            (_, true) => forward_pass::<false, true>(ring, vectors, w, first, blocks, stages),
            (_, false) => forward_pass::<false, false>(ring, vectors, w, first, blocks, stages),
        }
    };
    if vectors.len() > BLOCK {
        pass(vectors, block, 1, depth);
        let parts = 1 << plan.passes[depth].stages;
        let length = vectors.len() / parts;
        for (i, part) in vectors.chunks_exact_mut(length).enumerate() {
            forward(transform, ring, part, block * parts + i, depth + 1);
        }
        return;
    }
    let mut blocks = 1;
    for (depth, Pass { stages, .. }) in plan.passes.iter().enumerate().skip(depth) {
        pass(vectors, block * blocks, blocks, depth);
        blocks <<= stages;
    }
    let (tiles, _) = vectors.as_chunks_mut();
    let first = block * blocks;
    if plan.tile_reduces {
        forward_tiles::<true>(ring, tiles, &direction.twiddles, first);
    } else {
        forward_tiles::<false>(ring, tiles, &direction.twiddles, first);
    }
    let all = direction.groups.len();
    forward_groups(ring, tiles, &direction.groups[first - all..], direction.fixed);
}

/// The inverse of [`forward_pass`] but for a factor 2 a stage; if `LAST`, with the factors `last`
/// of the last stage: for left halves, and for right halves in place of the twiddle.
///
/// Left halves are reduced, for their bounds double a stage.
#[target_feature(enable = "avx2,fma")]
fn inverse_pass<const LAST: bool>(
    ring: Ring,
    vectors: &mut [Lanes],
    w: &[Factor],
    first: usize,
    blocks: usize,
    stages: usize,
    last: [Factor; 2],
) {
    let length = vectors.len() / blocks;
    for (vectors, block) in vectors.chunks_exact_mut(length).zip(first..) {
        if stages == 1 {
            let mut w = below::<_, 1>(w, block);
            if LAST {
                w[0] = last[1];
            }
            over_parts!(2, vectors, from words: false, to words: LAST, ring, x => {
                butterflies!(Ring::inverse_butterfly, ring, x, w; 0: (0, 1, 0););
                x[0] = if LAST { ring.scale(x[0], last[0].splat()) } else { ring.reduce(x[0]) };
            });
        } else {
            let mut w = below::<_, 3>(w, block);
            if LAST {
                w[0] = last[1];
            }
            over_parts!(4, vectors, from words: false, to words: LAST, ring, x => {
                butterflies!(Ring::inverse_butterfly, ring, x, w;
                    1: (0, 1, 0) (2, 3, 1);
                    0: (0, 2, 0) (1, 3, 0););
                for x in &mut x[..2] {
                    *x = if LAST { ring.scale(*x, last[0].splat()) } else { ring.reduce(*x) };
                }
            });
        }
    }
}

/// The inverse of [`forward_tiles`] but for a factor 2 a stage. Left halves are reduced.
#[target_feature(enable = "avx2,fma")]
fn inverse_tiles(ring: Ring, tiles: &mut [[Lanes; TILE]], w: &[Factor], first: usize) {
    for (tile, block) in tiles.iter_mut().zip(first..) {
        let mut x = load_tile(tile);
        let w = below::<_, 3>(w, block);
        butterflies!(Ring::inverse_butterfly, ring, x, w;
            1: (0, 2, 0) (1, 3, 0) (4, 6, 1) (5, 7, 1);
            0: (0, 4, 0) (1, 5, 0) (2, 6, 0) (3, 7, 0););
        reduce!(ring, x; 0 1 2 3);
        store_tile(tile, x);
    }
}

/// The inverse of [`forward_groups`] but for a factor 2 a stage. Of what doubles in two stages and of
/// left halves, all that would overflow later is reduced.
#[target_feature(enable = "avx2,fma")]
fn inverse_groups(ring: Ring, tiles: &mut [[Lanes; TILE]], twiddles: &[GroupTwiddles], fixed: [Factor; 3]) {
    for (tile, w) in tiles.iter_mut().zip(twiddles) {
        let mut x = [_mm256_setzero_pd(); TILE];
        for (x, lanes) in x.iter_mut().zip(&*tile) {
            *x = doubles(load(lanes));
        }
        let mut x = to_positions(x);
        let [w4, w2, w1] = w.load();
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
        store_tile(tile, to_groups(x));
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
    let Avx2Transform { inverse: direction, plan, .. } = transform;
    let pass = |vectors: &mut [Lanes], first: usize, blocks: usize, depth: usize| {
        let (stages, w) = (plan.passes[depth].stages, &direction.twiddles);
        if depth == 0 {
            inverse_pass::<true>(ring, vectors, w, first, blocks, stages, last);
        } else {
            inverse_pass::<false>(ring, vectors, w, first, blocks, stages, last);
        }
    };
    if vectors.len() > BLOCK {
        let parts = 1 << plan.passes[depth].stages;
        let length = vectors.len() / parts;
        for (i, part) in vectors.chunks_exact_mut(length).enumerate() {
            inverse(transform, ring, part, block * parts + i, depth + 1, last);
        }
        pass(vectors, block, 1, depth);
        return;
    }
    let mut blocks = vectors.len() / TILE;
    let (tiles, _) = vectors.as_chunks_mut();
    let (first, all) = (block * blocks, direction.groups.len());
    inverse_groups(ring, tiles, &direction.groups[first - all..], direction.fixed);
    inverse_tiles(ring, tiles, &direction.twiddles, first);
    for depth in (depth..plan.passes.len()).rev() {
        blocks >>= plan.passes[depth].stages;
        pass(vectors, block * blocks, blocks, depth);
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
}
