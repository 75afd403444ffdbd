//! Kernels on 256-bit vectors: modular arithmetic in double precision with fused multiply-add.
//!
//! AVX2 multiplies integers of at most 32 bits, but doubles of 53 bits (van der Hoeven, Lecerf,
//! Quintin, "Modular SIMD arithmetic in Mathemagix", 2016). All values are integers held exactly,
//! that is of magnitude at most 2^53; moduli are below 2^50.4, so that 2^53 > 6q.
//!
//! **Products.** With h = y·w rounded and l = y·w − h, which one fused operation gives exactly, and
//! k an integer near y·w/q, the residue y·w − k·q = (h − k·q) + l is exact: both differences are
//! integers below 2^53. It is as small as k is good:
//! - For a constant w, |w| ≤ q/2, k is y·(w/q) rounded twice, where w/q was rounded once. For
//!   |y| < 2^53 the error of k is below 1/2 + |y|·2^-55 + 2^-2, half a unit of numbers below 2^52:
//!   the result is always in (−q, q), and close to (−q/2, q/2) for small y.
//! - In general k is h·(1/q) after three roundings: the error is below 1/2 + 3·2^-53·|y·w|/q, that
//!   is below 0.995 for residues y and w, hence the result in (−q, q).
//!
//! **Reduction.** For |x| ≤ 2^53 and k = x·(1/q) rounded, the error of k is at most 1/2 + 2/q, and
//! |x − k·q| < q/2 + 3.
//!
//! **Words and doubles.** A word below 2^52 becomes a double by setting the exponent bits of 2^52
//! and subtracting 2^52, and back. No operation here yields −0, whose sign would mislead
//! [`Ring::to_words`]: sums are −0 only of two terms that are.

#[allow(clippy::wildcard_imports)]
use std::arch::x86_64::*;

use super::{Kernels, Multiplier, Pairs, Reduction, RowModulus};
use crate::permutation::{GROUP, Gather};

// SAFETY: this table is handed out only after the processor was found to have AVX2 and FMA.
pub(super) static KERNELS: Kernels = kernel_table!();

/// The words of a vector.
pub(super) type Lanes = [u64; 4];
/// Four doubles.
pub(super) type Vector = __m256d;

/// 2^52, whose bits turn words into doubles.
const WORD: f64 = (1_u64 << 52) as f64;
/// 3·2^51, which does the same for signed words of magnitude up to 2^51.
const SIGNED_WORD: f64 = (3_u64 << 51) as f64;

fn vectors(row: &[u64]) -> &[Lanes] {
    let (vectors, rest) = row.as_chunks();
    debug_assert!(rest.is_empty());
    vectors
}

fn vectors_mut(row: &mut [u64]) -> &mut [Lanes] {
    let (vectors, rest) = row.as_chunks_mut();
    debug_assert!(rest.is_empty());
    vectors
}

#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn load(lanes: &Lanes) -> __m256i {
    // SAFETY: the reference covers 32 readable bytes.
    unsafe { _mm256_loadu_si256(lanes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn store(lanes: &mut Lanes, x: __m256i) {
    // SAFETY: the reference covers 32 writable bytes.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), x) }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn splat_word(x: u64) -> __m256i {
    _mm256_set1_epi64x(x.cast_signed())
}

#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn splat(x: f64) -> Vector {
    _mm256_set1_pd(x)
}

/// Words below 2^52 as doubles.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn doubles(words: __m256i) -> Vector {
    let word = splat(WORD);
    _mm256_sub_pd(_mm256_or_pd(_mm256_castsi256_pd(words), word), word)
}

/// Signed words of magnitude up to 2^51 as doubles.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn signed_doubles(words: __m256i) -> Vector {
    let word = splat(SIGNED_WORD);
    _mm256_sub_pd(_mm256_castsi256_pd(_mm256_add_epi64(words, _mm256_castpd_si256(word))), word)
}

/// Non-negative integers below 2^52 as words.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn words(x: Vector) -> __m256i {
    let word = splat(WORD);
    _mm256_castpd_si256(_mm256_xor_pd(_mm256_add_pd(x, word), word))
}

/// `x` where it is non-negative, `y` elsewhere.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn unless_negative(x: __m256i, y: __m256i) -> __m256i {
    let [x, y] = [x, y].map(|v| _mm256_castsi256_pd(v));
    _mm256_castpd_si256(_mm256_blendv_pd(x, y, x))
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_words(a: __m256i, b: __m256i, q: __m256i) -> __m256i {
    let sum = _mm256_add_epi64(a, b);
    unless_negative(_mm256_sub_epi64(sum, q), sum)
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn sub_words(a: __m256i, b: __m256i, q: __m256i) -> __m256i {
    let difference = _mm256_sub_epi64(a, b);
    unless_negative(difference, _mm256_add_epi64(difference, q))
}

/// A constant w of magnitude at most q/2, with w/q.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Factor {
    pub(super) value: f64,
    pub(super) quotient: f64,
}

impl Factor {
    /// The factor congruent to a residue.
    pub(super) fn new(residue: u64, q: u64) -> Self {
        let value = if residue > q / 2 { -((q - residue) as f64) } else { residue as f64 };
        Self { value, quotient: value / q as f64 }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn splat(self) -> Factors {
        Factors { value: splat(self.value), quotient: splat(self.quotient) }
    }
}

/// Four [`Factor`]s.
#[derive(Clone, Copy)]
pub(super) struct Factors {
    value: Vector,
    quotient: Vector,
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn nearest(x: Vector) -> Vector {
    _mm256_round_pd::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x)
}

/// Arithmetic modulo q.
#[derive(Clone, Copy)]
pub(super) struct Ring {
    q: Vector,
    inverse: Vector,
}

impl Ring {
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn new(q: u64) -> Self {
        Self { q: splat(q as f64), inverse: splat(1.0 / q as f64) }
    }

    /// y·w by a constant, in (−q, q) for any |y| < 2^53.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn scale(self, y: Vector, w: Factors) -> Vector {
        let high = _mm256_mul_pd(y, w.value);
        let quotient = _mm256_mul_pd(y, w.quotient);
        let low = _mm256_fmsub_pd(y, w.value, high);
        let k = nearest(quotient);
        _mm256_add_pd(_mm256_fnmadd_pd(k, self.q, high), low)
    }

    /// y·w, of magnitude below (1/2 + 3·2^-53·|y·w|/q)·q.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn product(self, y: Vector, w: Vector) -> Vector {
        let high = _mm256_mul_pd(y, w);
        let low = _mm256_fmsub_pd(y, w, high);
        let k = nearest(_mm256_mul_pd(high, self.inverse));
        _mm256_add_pd(_mm256_fnmadd_pd(k, self.q, high), low)
    }

    /// Takes any |x| ≤ 2^53 to magnitude below q/2 + 3.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn reduce(self, x: Vector) -> Vector {
        _mm256_fnmadd_pd(nearest(_mm256_mul_pd(x, self.inverse)), self.q, x)
    }

    /// Canonical words of x in (−q, q).
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn to_words(self, x: Vector) -> __m256i {
        let word = splat(WORD);
        let lifted = _mm256_blendv_pd(word, _mm256_add_pd(word, self.q), x);
        _mm256_castpd_si256(_mm256_xor_pd(_mm256_add_pd(x, lifted), word))
    }
}

#[target_feature(enable = "avx2,fma")]
fn add(dst: &mut [u64], src: &[u64], q: u64) {
    let q = splat_word(q);
    for (d, s) in vectors_mut(dst).iter_mut().zip(vectors(src)) {
        store(d, add_words(load(d), load(s), q));
    }
}

#[target_feature(enable = "avx2,fma")]
fn sub(dst: &mut [u64], src: &[u64], q: u64) {
    let q = splat_word(q);
    for (d, s) in vectors_mut(dst).iter_mut().zip(vectors(src)) {
        store(d, sub_words(load(d), load(s), q));
    }
}

#[target_feature(enable = "avx2,fma")]
fn neg(dst: &mut [u64], q: u64) {
    let q = splat_word(q);
    for d in vectors_mut(dst) {
        store(d, sub_words(_mm256_setzero_si256(), load(d), q));
    }
}

#[target_feature(enable = "avx2,fma")]
fn mul(dst: &mut [u64], src: &[u64], m: &RowModulus) {
    let ring = Ring::new(m.q);
    for (d, s) in vectors_mut(dst).iter_mut().zip(vectors(src)) {
        store(d, ring.to_words(ring.product(doubles(load(d)), doubles(load(s)))));
    }
}

/// A sum of up to [`TERMS`] products of words below 2^50.4, kept as high + low parts.
///
/// The high part starts at 2^104 and stays below 2^105, so that it is a multiple of 2^52. What
/// rounding each product into it loses is an exact integer of at most 2^51. Four such fit a
/// double, hence two low parts, filled in turn.
#[derive(Clone, Copy)]
struct Sum {
    high: Vector,
    low: [Vector; 2],
}

/// Products below 2^100.8 that a [`Sum`] holds.
const TERMS: usize = 8;
/// Products that are cheaper to reduce one by one.
const FEW_TERMS: usize = 4;

impl Sum {
    const START: f64 = WORD * WORD;

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn new() -> Self {
        Self { high: splat(Self::START), low: [_mm256_setzero_pd(); 2] }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn add(self, a: Vector, b: Vector) -> Self {
        let high = _mm256_fmadd_pd(a, b, self.high);
        let part = _mm256_sub_pd(high, self.high);
        let [next, last] = self.low;
        Self { high, low: [last, _mm256_add_pd(next, _mm256_fmsub_pd(a, b, part))] }
    }

    /// The sum plus x, for x of magnitude at most q, reduced as by [`Ring::reduce`]: the high part, at
    /// most 2^103.8, leaves a remainder below 3.7q, and each low part one of about q/2.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn reduce(self, ring: Ring, x: Vector) -> Vector {
        let high = ring.reduce(_mm256_sub_pd(self.high, splat(Self::START)));
        let [a, b] = self.low;
        let low = _mm256_add_pd(ring.reduce(a), ring.reduce(b));
        ring.reduce(_mm256_add_pd(_mm256_add_pd(high, low), x))
    }
}

/// Two vectors, worked on together so that the chains of their sums overlap.
type Pair = [Lanes; 2];

fn vector_pairs(row: &[u64]) -> &[Pair] {
    vectors(row).as_chunks().0
}

#[target_feature(enable = "avx2,fma")]
fn dot(acc: &mut [u64], pairs: &Pairs<'_>, accumulate: bool, m: &RowModulus) {
    let ring = Ring::new(m.q);
    for (a, b) in pairs {
        assert!(a.len() == acc.len() && b.len() == acc.len());
    }
    let (acc, _) = vectors_mut(acc).as_chunks_mut::<2>();
    if pairs.len() <= FEW_TERMS {
        dot_few(acc, pairs, accumulate, ring);
    } else {
        dot_many(acc, pairs, accumulate, ring);
    }
}

/// [`dot`] of up to [`FEW_TERMS`] rows as long as `acc`: each product is reduced to (−q, q), and the
/// sum stays below 5q.
#[target_feature(enable = "avx2,fma")]
fn dot_few(acc: &mut [Pair], pairs: &Pairs<'_>, accumulate: bool, ring: Ring) {
    for (i, acc) in acc.iter_mut().enumerate() {
        for (k, acc) in acc.iter_mut().enumerate() {
            let mut sum = if accumulate { doubles(load(acc)) } else { _mm256_setzero_pd() };
            for (a, b) in pairs {
                // SAFETY: all rows are as long as `acc`.
                let (a, b) = unsafe { (vector_pairs(a).get_unchecked(i), vector_pairs(b).get_unchecked(i)) };
                sum = _mm256_add_pd(sum, ring.product(doubles(load(&a[k])), doubles(load(&b[k]))));
            }
            store(acc, ring.to_words(ring.reduce(sum)));
        }
    }
}

/// [`dot`] of any number of rows as long as `acc`.
#[target_feature(enable = "avx2,fma")]
fn dot_many(acc: &mut [Pair], pairs: &Pairs<'_>, accumulate: bool, ring: Ring) {
    for (i, acc) in acc.iter_mut().enumerate() {
        let mut totals = [_mm256_setzero_pd(); 2];
        if accumulate {
            totals = [doubles(load(&acc[0])), doubles(load(&acc[1]))];
        }
        let mut chunks = pairs.chunks(TERMS);
        let mut chunk = chunks.next().unwrap_or_default();
        loop {
            let mut sums = [Sum::new(); 2];
            for (a, b) in chunk {
                // SAFETY: all rows are as long as `acc`.
                let (a, b) = unsafe { (vector_pairs(a).get_unchecked(i), vector_pairs(b).get_unchecked(i)) };
                for k in 0..2 {
                    sums[k] = sums[k].add(doubles(load(&a[k])), doubles(load(&b[k])));
                }
            }
            totals = [sums[0].reduce(ring, totals[0]), sums[1].reduce(ring, totals[1])];
            let Some(next) = chunks.next() else { break };
            chunk = next;
        }
        for k in 0..2 {
            store(&mut acc[k], ring.to_words(totals[k]));
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn scale(dst: &mut [u64], w: Multiplier, q: u64) {
    let (ring, w) = (Ring::new(q), Factor::new(w.factor, q).splat());
    for d in vectors_mut(dst) {
        store(d, ring.to_words(ring.scale(doubles(load(d)), w)));
    }
}

#[target_feature(enable = "avx2,fma")]
fn scale_add(acc: &mut [u64], src: &[u64], w: Multiplier, q: u64) {
    let (ring, w, q) = (Ring::new(q), Factor::new(w.factor, q).splat(), splat_word(q));
    for (d, s) in vectors_mut(acc).iter_mut().zip(vectors(src)) {
        let product = ring.to_words(ring.scale(doubles(load(s)), w));
        store(d, add_words(load(d), product, q));
    }
}

#[target_feature(enable = "avx2,fma")]
fn sub_scale(dst: &mut [u64], src: &[u64], w: Multiplier, q: u64) {
    let (ring, w) = (Ring::new(q), Factor::new(w.factor, q).splat());
    for (d, s) in vectors_mut(dst).iter_mut().zip(vectors(src)) {
        let difference = signed_doubles(_mm256_sub_epi64(load(s), load(d)));
        store(d, ring.to_words(ring.scale(difference, w)));
    }
}

#[target_feature(enable = "avx2,fma")]
fn add_constant(dst: &mut [u64], c: u64, q: u64) {
    let (c, q) = (splat_word(c), splat_word(q));
    for d in vectors_mut(dst) {
        store(d, add_words(load(d), c, q));
    }
}

/// The inner orders of a permutation, for shuffles of vectors.
///
/// Positions of a group that differ in their low two bits come from one half of a group: their
/// exponents differ by multiples of N/2, which an odd factor leaves such.
struct Orders {
    /// For each order and half of the destination: the 32-bit words of its source.
    lanes: [[[u32; 8]; 2]; GROUP],
    /// For each order: the half that the lower half comes from.
    lower: [usize; GROUP],
}

impl Orders {
    fn new(gather: Gather<'_>) -> Self {
        let orders = gather.orders();
        let lane =
            |order: usize, half: usize, i: usize| 2 * (orders[order][4 * half + i / 2] % 4) as u32 + i as u32 % 2;
        Self {
            lanes: std::array::from_fn(|order| {
                std::array::from_fn(|half| std::array::from_fn(|i| lane(order, half, i)))
            }),
            lower: orders.map(|order| order[0] as usize / 4),
        }
    }

    /// Both halves of the group of `src` that a word of the permutation names, in its order.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn permuted(&self, src: &[[Lanes; 2]], word: u32) -> [__m256i; 2] {
        let order = word as usize % GROUP;
        let group = &src[word as usize / GROUP];
        let [mut lower, mut upper] = self.lanes[order];
        // SAFETY: the arrays cover 32 readable bytes.
        let [lower, upper] = [&mut lower, &mut upper].map(|lanes| unsafe { _mm256_loadu_si256(lanes.as_ptr().cast()) });
        [
            _mm256_permutevar8x32_epi32(load(&group[self.lower[order]]), lower),
            _mm256_permutevar8x32_epi32(load(&group[1 - self.lower[order]]), upper),
        ]
    }
}

#[target_feature(enable = "avx2,fma")]
fn permute(dst: &mut [u64], src: &[u64], gather: Gather<'_>) {
    let orders = Orders::new(gather);
    let (src, _) = vectors(src).as_chunks();
    let (dst, _) = vectors_mut(dst).as_chunks_mut();
    for ([lower, upper], word) in dst.iter_mut().zip(gather.groups()) {
        let [a, b] = orders.permuted(src, *word);
        store(lower, a);
        store(upper, b);
    }
}

#[target_feature(enable = "avx2,fma")]
fn permute_add(dst: &mut [u64], src: &[u64], gather: Gather<'_>, q: u64) {
    let q = splat_word(q);
    let orders = Orders::new(gather);
    let (src, _) = vectors(src).as_chunks();
    let (dst, _) = vectors_mut(dst).as_chunks_mut();
    for ([lower, upper], word) in dst.iter_mut().zip(gather.groups()) {
        let [a, b] = orders.permuted(src, *word);
        store(lower, add_words(load(lower), a, q));
        store(upper, add_words(load(upper), b, q));
    }
}

// Two roundings a term, as the definition says: no fused operation.
#[target_feature(enable = "avx2,fma")]
fn overflow(dst: &mut [u64], sources: &[&[u64]], reciprocals: &[f64]) {
    for (i, d) in vectors_mut(dst).iter_mut().enumerate() {
        let mut sum = splat(0.5);
        for (source, reciprocal) in sources.iter().zip(reciprocals) {
            let x = doubles(load(&vectors(source)[i]));
            sum = _mm256_add_pd(sum, _mm256_mul_pd(x, splat(*reciprocal)));
        }
        store(d, words(_mm256_floor_pd(sum)));
    }
}

#[target_feature(enable = "avx2,fma")]
fn combine(
    dst: &mut [u64],
    sources: &[&[u64]],
    constants: &[u64],
    next: &[u64],
    _reduction: Reduction,
    m: &RowModulus,
) {
    let ring = Ring::new(m.q);
    let dst = vectors_mut(dst);
    for source in sources {
        assert!(vectors(source).len() == dst.len());
    }
    assert!(sources.len() == constants.len());
    match sources.len() {
        1 => combine_few::<1>(dst, sources, constants, next, ring),
        2 => combine_few::<2>(dst, sources, constants, next, ring),
        3 => combine_few::<3>(dst, sources, constants, next, ring),
        4 => combine_few::<4>(dst, sources, constants, next, ring),
        5 => combine_few::<5>(dst, sources, constants, next, ring),
        6 => combine_few::<6>(dst, sources, constants, next, ring),
        7 => combine_few::<7>(dst, sources, constants, next, ring),
        8 => combine_few::<8>(dst, sources, constants, next, ring),
        9 => combine_few::<9>(dst, sources, constants, next, ring),
        10 => combine_few::<10>(dst, sources, constants, next, ring),
        11 => combine_few::<11>(dst, sources, constants, next, ring),
        12 => combine_few::<12>(dst, sources, constants, next, ring),
        13 => combine_few::<13>(dst, sources, constants, next, ring),
        14 => combine_few::<14>(dst, sources, constants, next, ring),
        15 => combine_few::<15>(dst, sources, constants, next, ring),
        16 => combine_few::<16>(dst, sources, constants, next, ring),
        _ => combine_many(dst, sources, constants, ring),
    }
}

/// [`combine`] with the constants spread over vectors once. `COUNT` rows, each with as many vectors as
/// `dst`.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn combine_few<const COUNT: usize>(dst: &mut [Lanes], sources: &[&[u64]], constants: &[u64], next: &[u64], ring: Ring) {
    let next = next.as_ptr();
    let (dst, _) = dst.as_chunks_mut::<2>();
    let mut factors = [_mm256_setzero_pd(); COUNT];
    let mut rows: [&[Pair]; COUNT] = [&[]; COUNT];
    for k in 0..COUNT {
        factors[k] = splat(constants[k] as f64);
        rows[k] = &vector_pairs(sources[k])[..dst.len()];
    }
    for (i, d) in dst.iter_mut().enumerate() {
        _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(8 * i).cast());
        let mut sums = [Sum::new(); 2];
        let mut totals = [_mm256_setzero_pd(); 2];
        for k in 0..COUNT {
            if k > 0 && k % TERMS == 0 {
                for (sum, total) in sums.iter_mut().zip(&mut totals) {
                    *total = std::mem::replace(sum, Sum::new()).reduce(ring, *total);
                }
            }
            // SAFETY: each row was cut to the length of `dst`.
            let x = unsafe { rows[k].get_unchecked(i) };
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum = sum.add(doubles(load(x)), factors[k]);
            }
        }
        for ((d, sum), total) in d.iter_mut().zip(sums).zip(totals) {
            store(d, ring.to_words(sum.reduce(ring, total)));
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn combine_many(dst: &mut [Lanes], sources: &[&[u64]], constants: &[u64], ring: Ring) {
    for (i, d) in dst.iter_mut().enumerate() {
        let mut total = _mm256_setzero_pd();
        for (sources, constants) in sources.chunks(TERMS).zip(constants.chunks(TERMS)) {
            let mut sum = Sum::new();
            for (source, constant) in sources.iter().zip(constants) {
                sum = sum.add(doubles(load(&vectors(source)[i])), splat(*constant as f64));
            }
            total = sum.reduce(ring, total);
        }
        store(d, ring.to_words(total));
    }
}

#[target_feature(enable = "avx2,fma")]
fn recentre(dst: &mut [u64], src: &[u64], source: u64, m: &RowModulus) {
    let ring = Ring::new(m.q);
    let (whole, half) = (splat(source as f64), splat_word(source / 2));
    for (d, s) in vectors_mut(dst).iter_mut().zip(vectors(src)) {
        let x = load(s);
        let upper = _mm256_castsi256_pd(_mm256_cmpgt_epi64(x, half));
        let centred = _mm256_sub_pd(doubles(x), _mm256_and_pd(upper, whole));
        store(d, ring.to_words(ring.reduce(centred)));
    }
}

/// x = a·2^32 + b with a signed and 0 ≤ b < 2^32.
#[target_feature(enable = "avx2,fma")]
fn lift(dst: &mut [u64], src: &[i64], m: &RowModulus) {
    const SIGN: u64 = 1 << 31;
    let ring = Ring::new(m.q);
    let shift = Factor::new((1 << 32) % m.q, m.q).splat();
    let (mask, sign) = (splat_word((1 << 32) - 1), splat_word(SIGN));
    for (d, s) in vectors_mut(dst).iter_mut().zip(src.as_chunks::<4>().0) {
        // SAFETY: the reference covers 32 readable bytes.
        let x = unsafe { _mm256_loadu_si256(s.as_ptr().cast()) };
        let biased = _mm256_xor_si256(_mm256_srli_epi64::<32>(x), sign);
        let high = _mm256_sub_pd(doubles(biased), splat(SIGN as f64));
        let low = doubles(_mm256_and_si256(x, mask));
        let sum = _mm256_add_pd(ring.scale(high, shift), low);
        store(d, ring.to_words(ring.reduce(sum)));
    }
}
