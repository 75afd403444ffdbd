//! Kernels on 512-bit vectors with 52-bit multiply-add (AVX-512 IFMA).
//!
//! A product of two words below 2^52 comes as two 52-bit halves. Sums of products keep both
//! halves apart in 64-bit lanes and are reduced once: with S = h·2^52 + l, after the carry of l
//! went to h, the residue is that of h·[2^52]_q + l, by two constant multiplications. Base conversions,
//! whose constants are known, are divided by 2^52 instead (Montgomery).

#[allow(clippy::wildcard_imports)]
use std::arch::x86_64::*;

use super::{Kernels, Multiplier, Pairs, Reduction, RowModulus};
use crate::permutation::{GROUP, Gather};

// SAFETY: this table is handed out only after the processor was found to have AVX512F, AVX512DQ
// and AVX512IFMA.
pub(super) static KERNELS: Kernels = kernel_table!();

/// The words of a vector.
pub(super) type Lanes = [u64; 8];

/// Products below 2^100.8 whose high halves certainly sum to less than 2^52.
const TERMS: usize = 8;

/// Products below 2^50.4·q whose sum divided by 2^52 is below 3q.
const FEW_TERMS: usize = 9;

/// Below this, four times a modulus fits a word.
const SMALL_MODULUS: u64 = 1 << 50;

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
#[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
pub(super) fn load(lanes: &Lanes) -> __m512i {
    // SAFETY: the reference covers 64 readable bytes.
    unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
pub(super) fn store(lanes: &mut Lanes, x: __m512i) {
    // SAFETY: the reference covers 64 writable bytes.
    unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), x) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
pub(super) fn splat(x: u64) -> __m512i {
    _mm512_set1_epi64(x.cast_signed())
}

/// A modulus in vector registers.
#[derive(Clone, Copy)]
struct Modulus {
    q: __m512i,
    twice_q: __m512i,
    /// 2^52 − q: adding a multiple of it subtracts one of q, modulo 2^52.
    minus_q: __m512i,
    mask: __m512i,
}

impl Modulus {
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    fn new(q: u64) -> Self {
        Self { q: splat(q), twice_q: splat(2 * q), minus_q: splat((1 << 52) - q), mask: splat((1 << 52) - 1) }
    }

    /// Takes [0, 2q) to [0, q).
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    fn subtract_once(self, x: __m512i) -> __m512i {
        _mm512_min_epu64(x, _mm512_sub_epi64(x, self.q))
    }

    /// Takes [0, 4q) to [0, q).
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    fn subtract_thrice(self, x: __m512i) -> __m512i {
        self.subtract_once(_mm512_min_epu64(x, _mm512_sub_epi64(x, self.twice_q)))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    fn add(self, a: __m512i, b: __m512i) -> __m512i {
        self.subtract_once(_mm512_add_epi64(a, b))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    fn sub(self, a: __m512i, b: __m512i) -> __m512i {
        let d = _mm512_sub_epi64(a, b);
        _mm512_min_epu64(d, _mm512_add_epi64(d, self.q))
    }

    /// x·w in [0, 2q) for x < 2^52.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    fn scale(self, x: __m512i, factor: __m512i, quotient: __m512i) -> __m512i {
        let zero = _mm512_setzero_si512();
        let estimate = _mm512_madd52hi_epu64(zero, x, quotient);
        let low = _mm512_madd52lo_epu64(zero, x, factor);
        _mm512_and_si512(_mm512_madd52lo_epu64(low, estimate, self.minus_q), self.mask)
    }
}

/// The modulus and the constants that reduce sums of products.
#[derive(Clone, Copy)]
struct SumReducer {
    modulus: Modulus,
    word: __m512i,
    word_quotient: __m512i,
    one_quotient: __m512i,
}

impl SumReducer {
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    fn new(m: &RowModulus) -> Self {
        Self {
            modulus: Modulus::new(m.q),
            word: splat(m.word.factor),
            word_quotient: splat(m.word.quotient),
            one_quotient: splat(m.one.quotient),
        }
    }

    /// Moves the carry of the low half to the high half.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    fn carry(self, high: __m512i, low: __m512i) -> (__m512i, __m512i) {
        (_mm512_add_epi64(high, _mm512_srli_epi64::<52>(low)), _mm512_and_si512(low, self.modulus.mask))
    }

    /// The same residue in one word below 2^53, for high < 2^52 after the carry.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    fn fold(self, high: __m512i, low: __m512i) -> __m512i {
        let (high, low) = self.carry(high, low);
        _mm512_add_epi64(self.modulus.scale(high, self.word, self.word_quotient), low)
    }

    /// The canonical residue, for high < 2^52 after the carry and q < 2^50: the quotients of both halves
    /// are subtracted at once, which leaves less than 4q.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    fn reduce_small(self, high: __m512i, low: __m512i) -> __m512i {
        let high = _mm512_add_epi64(high, _mm512_srli_epi64::<52>(low));
        let estimate = _mm512_madd52hi_epu64(_mm512_setzero_si512(), low, self.one_quotient);
        let estimate = _mm512_madd52hi_epu64(estimate, high, self.word_quotient);
        let sum = _mm512_madd52lo_epu64(low, high, self.word);
        let r = _mm512_madd52lo_epu64(sum, estimate, self.modulus.minus_q);
        self.modulus.subtract_thrice(_mm512_and_si512(r, self.modulus.mask))
    }

    /// The canonical residue, for high < 2^52 after the carry.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
    fn reduce(self, high: __m512i, low: __m512i) -> __m512i {
        let (high, low) = self.carry(high, low);
        let zero = _mm512_setzero_si512();
        let estimate = _mm512_madd52hi_epu64(zero, low, self.one_quotient);
        let low = _mm512_and_si512(_mm512_madd52lo_epu64(low, estimate, self.modulus.minus_q), self.modulus.mask);
        let high = self.modulus.scale(high, self.word, self.word_quotient);
        self.modulus.subtract_thrice(_mm512_add_epi64(high, low))
    }
}

#[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
fn add(dst: &mut [u64], src: &[u64], q: u64) {
    let m = Modulus::new(q);
    for (d, s) in vectors_mut(dst).iter_mut().zip(vectors(src)) {
        store(d, m.add(load(d), load(s)));
    }
}

#[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
fn sub(dst: &mut [u64], src: &[u64], q: u64) {
    let m = Modulus::new(q);
    for (d, s) in vectors_mut(dst).iter_mut().zip(vectors(src)) {
        store(d, m.sub(load(d), load(s)));
    }
}

#[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
fn neg(dst: &mut [u64], q: u64) {
    let m = Modulus::new(q);
    for d in vectors_mut(dst) {
        store(d, m.sub(_mm512_setzero_si512(), load(d)));
    }
}

#[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
fn mul(dst: &mut [u64], src: &[u64], modulus: &RowModulus) {
    let m = Modulus::new(modulus.q);
    let barrett = splat(modulus.barrett);
    let down = _mm_cvtsi32_si128(modulus.shift.cast_signed());
    let up = _mm_cvtsi32_si128(52 - modulus.shift.cast_signed());
    let zero = _mm512_setzero_si512();
    for (d, s) in vectors_mut(dst).iter_mut().zip(vectors(src)) {
        let (a, b) = (load(d), load(s));
        let high = _mm512_madd52hi_epu64(zero, a, b);
        let low = _mm512_madd52lo_epu64(zero, a, b);
        let shifted = _mm512_or_si512(_mm512_srl_epi64(low, down), _mm512_sll_epi64(high, up));
        let estimate = _mm512_madd52hi_epu64(zero, shifted, barrett);
        let r = _mm512_and_si512(_mm512_madd52lo_epu64(low, estimate, m.minus_q), m.mask);
        store(d, m.subtract_thrice(r));
    }
}

#[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
fn dot(acc: &mut [u64], pairs: &Pairs<'_>, accumulate: bool, modulus: &RowModulus) {
    let r = SumReducer::new(modulus);
    let acc = vectors_mut(acc);
    for (a, b) in pairs {
        assert!(vectors(a).len() == acc.len() && vectors(b).len() == acc.len());
    }
    if modulus.q < SMALL_MODULUS {
        dot_with::<true>(acc, pairs, accumulate, &r);
    } else {
        dot_with::<false>(acc, pairs, accumulate, &r);
    }
}

/// [`dot`] of rows with as many vectors as `acc`.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
fn dot_with<const SMALL: bool>(acc: &mut [Lanes], pairs: &Pairs<'_>, accumulate: bool, r: &SumReducer) {
    for (i, acc) in acc.iter_mut().enumerate() {
        let mut high = _mm512_setzero_si512();
        let mut low = if accumulate { load(acc) } else { high };
        let mut chunks = pairs.chunks(TERMS);
        let mut chunk = chunks.next().unwrap_or_default();
        loop {
            for (a, b) in chunk {
                // SAFETY: all rows were found to have as many vectors as `acc`.
                let (a, b) = unsafe { (vectors(a).get_unchecked(i), vectors(b).get_unchecked(i)) };
                let (a, b) = (load(a), load(b));
                high = _mm512_madd52hi_epu64(high, a, b);
                low = _mm512_madd52lo_epu64(low, a, b);
            }
            let Some(next) = chunks.next() else { break };
            chunk = next;
            low = r.fold(high, low);
            high = _mm512_setzero_si512();
        }
        store(acc, if SMALL { r.reduce_small(high, low) } else { r.reduce(high, low) });
    }
}

#[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
fn scale(dst: &mut [u64], w: Multiplier, q: u64) {
    let m = Modulus::new(q);
    let (factor, quotient) = (splat(w.factor), splat(w.quotient));
    for d in vectors_mut(dst) {
        store(d, m.subtract_once(m.scale(load(d), factor, quotient)));
    }
}

#[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
fn scale_add(acc: &mut [u64], src: &[u64], w: Multiplier, q: u64) {
    let m = Modulus::new(q);
    let (factor, quotient) = (splat(w.factor), splat(w.quotient));
    for (d, s) in vectors_mut(acc).iter_mut().zip(vectors(src)) {
        let product = m.scale(load(s), factor, quotient);
        store(d, m.subtract_thrice(_mm512_add_epi64(product, load(d))));
    }
}

#[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
fn sub_scale(dst: &mut [u64], src: &[u64], w: Multiplier, q: u64) {
    let m = Modulus::new(q);
    let (factor, quotient) = (splat(w.factor), splat(w.quotient));
    for (d, s) in vectors_mut(dst).iter_mut().zip(vectors(src)) {
        // In (0, 2q), which the multiplication takes as well as a residue.
        let difference = _mm512_sub_epi64(_mm512_add_epi64(load(s), m.q), load(d));
        store(d, m.subtract_once(m.scale(difference, factor, quotient)));
    }
}

#[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
fn add_constant(dst: &mut [u64], c: u64, q: u64) {
    let m = Modulus::new(q);
    let c = splat(c);
    for d in vectors_mut(dst) {
        store(d, m.add(load(d), c));
    }
}

/// The vector of `src` that a word of the permutation names, in its inner order.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
fn permuted(src: &[Lanes], word: u32, orders: &[Lanes; GROUP]) -> __m512i {
    let order = load(&orders[word as usize % GROUP]);
    _mm512_permutexvar_epi64(order, load(&src[word as usize / GROUP]))
}

#[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
fn permute(dst: &mut [u64], src: &[u64], gather: Gather<'_>) {
    let (src, orders) = (vectors(src), gather.orders());
    for (d, word) in vectors_mut(dst).iter_mut().zip(gather.groups()) {
        store(d, permuted(src, *word, orders));
    }
}

#[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
fn permute_add(dst: &mut [u64], src: &[u64], gather: Gather<'_>, q: u64) {
    let m = Modulus::new(q);
    let (src, orders) = (vectors(src), gather.orders());
    for (d, word) in vectors_mut(dst).iter_mut().zip(gather.groups()) {
        store(d, m.add(load(d), permuted(src, *word, orders)));
    }
}

#[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
fn overflow(dst: &mut [u64], sources: &[&[u64]], reciprocals: &[f64]) {
    for (i, d) in vectors_mut(dst).iter_mut().enumerate() {
        let mut sum = _mm512_set1_pd(0.5);
        for (source, reciprocal) in sources.iter().zip(reciprocals) {
            let x = _mm512_cvtepu64_pd(load(&vectors(source)[i]));
            sum = _mm512_add_pd(sum, _mm512_mul_pd(x, _mm512_set1_pd(*reciprocal)));
        }
        store(d, _mm512_cvttpd_epu64(sum));
    }
}

#[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
fn combine(dst: &mut [u64], sources: &[&[u64]], constants: &[u64], next: &[u64], reduction: Reduction, m: &RowModulus) {
    let dst = vectors_mut(dst);
    for source in sources {
        assert!(vectors(source).len() == dst.len());
    }
    assert!(sources.len() == constants.len());
    match sources.len() {
        1 => combine_few::<1>(dst, sources, constants, next, reduction, m),
        2 => combine_few::<2>(dst, sources, constants, next, reduction, m),
        3 => combine_few::<3>(dst, sources, constants, next, reduction, m),
        4 => combine_few::<4>(dst, sources, constants, next, reduction, m),
        5 => combine_few::<5>(dst, sources, constants, next, reduction, m),
        6 => combine_few::<6>(dst, sources, constants, next, reduction, m),
        7 => combine_few::<7>(dst, sources, constants, next, reduction, m),
        8 => combine_few::<8>(dst, sources, constants, next, reduction, m),
        9 => combine_few::<9>(dst, sources, constants, next, reduction, m),
        10 => combine_few::<10>(dst, sources, constants, next, reduction, m),
        11 => combine_few::<11>(dst, sources, constants, next, reduction, m),
        12 => combine_few::<12>(dst, sources, constants, next, reduction, m),
        13 => combine_few::<13>(dst, sources, constants, next, reduction, m),
        14 => combine_few::<14>(dst, sources, constants, next, reduction, m),
        15 => combine_few::<15>(dst, sources, constants, next, reduction, m),
        16 => combine_few::<16>(dst, sources, constants, next, reduction, m),
        _ => combine_many(dst, sources, constants, &SumReducer::new(m)),
    }
}

/// [`combine`] with the constants in registers. `COUNT` rows, each with as many vectors as `dst`.
///
/// The sum S = H·R + L of products with constants times R = 2^52 is divided by R (Montgomery): with
/// the quotient m = L·q^-1 mod R the difference H − ⌊m·q/R⌋ is exactly (S − m·q)/R. Each product is below 2^50.4·q, hence H
/// below COUNT·q/3, and the result below COUNT·q/3 + q if q is added.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
fn combine_few<const COUNT: usize>(
    dst: &mut [Lanes],
    sources: &[&[u64]],
    constants: &[u64],
    next: &[u64],
    reduction: Reduction,
    modulus: &RowModulus,
) {
    let m = Modulus::new(modulus.q);
    let inverse = splat(modulus.inverse);
    let (word, word_quotient) = (splat(modulus.word.factor), splat(modulus.word.quotient));
    let four_q = splat(4 * modulus.q);
    let zero = _mm512_setzero_si512();
    let next = next.as_ptr();
    let mut factors = [zero; COUNT];
    let mut rows: [&[Lanes]; COUNT] = [&[]; COUNT];
    for k in 0..COUNT {
        factors[k] = m.subtract_once(m.scale(splat(constants[k]), word, word_quotient));
        rows[k] = &vectors(sources[k])[..dst.len()];
    }
    let lazy = reduction == Reduction::Lazy;
    for (i, d) in dst.iter_mut().enumerate() {
        _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(8 * i).cast());
        let (mut high, mut low) = (m.q, zero);
        for k in 0..COUNT {
            // SAFETY: each row was cut to the number of vectors of `dst`.
            let x = load(unsafe { rows[k].get_unchecked(i) });
            high = _mm512_madd52hi_epu64(high, x, factors[k]);
            low = _mm512_madd52lo_epu64(low, x, factors[k]);
        }
        let quotient = _mm512_madd52lo_epu64(zero, low, inverse);
        let high = _mm512_add_epi64(high, _mm512_srli_epi64::<52>(low));
        let mut sum = _mm512_sub_epi64(high, _mm512_madd52hi_epu64(zero, quotient, m.q));
        if COUNT > FEW_TERMS {
            sum = _mm512_min_epu64(sum, _mm512_sub_epi64(sum, four_q));
        }
        store(d, if lazy { sum } else { m.subtract_thrice(sum) });
    }
}

#[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
fn combine_many(dst: &mut [Lanes], sources: &[&[u64]], constants: &[u64], r: &SumReducer) {
    for (i, d) in dst.iter_mut().enumerate() {
        let mut high = _mm512_setzero_si512();
        let mut low = high;
        for (k, (source, constant)) in sources.iter().zip(constants).enumerate() {
            if k > 0 && k % TERMS == 0 {
                low = r.fold(high, low);
                high = _mm512_setzero_si512();
            }
            let (x, c) = (load(&vectors(source)[i]), splat(*constant));
            high = _mm512_madd52hi_epu64(high, x, c);
            low = _mm512_madd52lo_epu64(low, x, c);
        }
        store(d, r.reduce(high, low));
    }
}

#[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
fn recentre(dst: &mut [u64], src: &[u64], source: u64, modulus: &RowModulus) {
    let m = Modulus::new(modulus.q);
    let (one, quotient) = (splat(1), splat(modulus.one.quotient));
    let offset = m.subtract_once(m.scale(splat(source), one, quotient));
    let half = splat(source / 2);
    for (d, s) in vectors_mut(dst).iter_mut().zip(vectors(src)) {
        let x = load(s);
        let residue = m.subtract_once(m.scale(x, one, quotient));
        let upper = _mm512_cmpgt_epu64_mask(x, half);
        let difference = _mm512_mask_sub_epi64(residue, upper, residue, offset);
        store(d, _mm512_min_epu64(difference, _mm512_add_epi64(difference, m.q)));
    }
}

#[target_feature(enable = "avx512f,avx512dq,avx512ifma")]
fn lift(dst: &mut [u64], src: &[i64], modulus: &RowModulus) {
    let r = SumReducer::new(modulus);
    let zero = _mm512_setzero_si512();
    for (d, s) in vectors_mut(dst).iter_mut().zip(src.as_chunks::<8>().0) {
        // SAFETY: the reference covers 64 readable bytes.
        let x = unsafe { _mm512_loadu_si512(s.as_ptr().cast()) };
        let residue = r.reduce(zero, _mm512_abs_epi64(x));
        let negative = _mm512_movepi64_mask(x);
        store(d, _mm512_mask_mov_epi64(residue, negative, r.modulus.sub(zero, residue)));
    }
}
