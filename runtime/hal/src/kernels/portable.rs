//! Kernels in portable Rust, on 64- and 128-bit integers.

use super::{Kernels, Multiplier, Pairs, Reduction, RowModulus};
use crate::permutation::Gather;

pub(super) static KERNELS: Kernels = Kernels {
    add,
    sub,
    neg,
    mul,
    dot,
    scale,
    scale_add,
    sub_scale,
    add_constant,
    permute,
    permute_add,
    overflow,
    combine,
    recentre,
    lift,
};

/// Terms below 2^100.8 that a 128-bit sum certainly holds.
const TERMS: usize = 1 << 24;

#[inline]
fn subtract_once(x: u64, q: u64) -> u64 {
    x.min(x.wrapping_sub(q))
}

/// Reduces any x < 2^52 · 2^52.
#[inline]
fn reduce_wide(x: u128, m: &RowModulus) -> u64 {
    const MASK: u128 = (1 << 52) - 1;
    let high = product((x >> 52) as u64, m.word, m.q);
    let low = product((x & MASK) as u64, m.one, m.q);
    subtract_once(subtract_once(high + low, 2 * m.q), m.q)
}

/// x·w in [0, 2q) for x < 2^52.
#[inline]
fn product(x: u64, w: Multiplier, q: u64) -> u64 {
    let quotient = ((u128::from(x) * u128::from(w.quotient)) >> 52) as u64;
    x.wrapping_mul(w.factor).wrapping_sub(quotient.wrapping_mul(q))
}

#[inline]
fn add_mod(a: u64, b: u64, q: u64) -> u64 {
    subtract_once(a + b, q)
}

#[inline]
fn sub_mod(a: u64, b: u64, q: u64) -> u64 {
    let d = a.wrapping_sub(b);
    d.min(d.wrapping_add(q))
}

fn add(dst: &mut [u64], src: &[u64], q: u64) {
    for (d, s) in dst.iter_mut().zip(src) {
        *d = add_mod(*d, *s, q);
    }
}

fn sub(dst: &mut [u64], src: &[u64], q: u64) {
    for (d, s) in dst.iter_mut().zip(src) {
        *d = sub_mod(*d, *s, q);
    }
}

fn neg(dst: &mut [u64], q: u64) {
    for d in dst {
        *d = subtract_once(q - *d, q);
    }
}

fn mul(dst: &mut [u64], src: &[u64], m: &RowModulus) {
    for (d, s) in dst.iter_mut().zip(src) {
        *d = reduce_wide(u128::from(*d) * u128::from(*s), m);
    }
}

/// Splits a sum of up to [`TERMS`] products so that [`reduce_wide`] applies.
#[inline]
fn reduce_sum(sum: u128, m: &RowModulus) -> u64 {
    if sum >> 104 == 0 { reduce_wide(sum, m) } else { (sum % u128::from(m.q)) as u64 }
}

fn dot(acc: &mut [u64], pairs: &Pairs<'_>, accumulate: bool, m: &RowModulus) {
    debug_assert!(pairs.len() <= TERMS);
    for (i, acc) in acc.iter_mut().enumerate() {
        let start = if accumulate { u128::from(*acc) } else { 0 };
        let sum = pairs.iter().fold(start, |sum, (a, b)| sum + u128::from(a[i]) * u128::from(b[i]));
        *acc = reduce_sum(sum, m);
    }
}

fn scale(dst: &mut [u64], w: Multiplier, q: u64) {
    for d in dst {
        *d = subtract_once(product(*d, w, q), q);
    }
}

fn scale_add(acc: &mut [u64], src: &[u64], w: Multiplier, q: u64) {
    for (d, s) in acc.iter_mut().zip(src) {
        *d = add_mod(*d, subtract_once(product(*s, w, q), q), q);
    }
}

fn sub_scale(dst: &mut [u64], src: &[u64], w: Multiplier, q: u64) {
    for (d, s) in dst.iter_mut().zip(src) {
        *d = subtract_once(product(sub_mod(*s, *d, q), w, q), q);
    }
}

fn add_constant(dst: &mut [u64], c: u64, q: u64) {
    for d in dst {
        *d = add_mod(*d, c, q);
    }
}

fn permute(dst: &mut [u64], src: &[u64], gather: Gather<'_>) {
    for (block, d) in dst.iter_mut().enumerate() {
        *d = src[gather.source(block)];
    }
}

fn permute_add(dst: &mut [u64], src: &[u64], gather: Gather<'_>, q: u64) {
    for (i, d) in dst.iter_mut().enumerate() {
        *d = add_mod(*d, src[gather.source(i)], q);
    }
}

fn overflow(dst: &mut [u64], sources: &[&[u64]], reciprocals: &[f64]) {
    for (i, d) in dst.iter_mut().enumerate() {
        let mut sum = 0.5;
        for (source, reciprocal) in sources.iter().zip(reciprocals) {
            sum += source[i] as f64 * reciprocal;
        }
        *d = sum as u64;
    }
}

fn combine(
    dst: &mut [u64],
    sources: &[&[u64]],
    constants: &[u64],
    _next: &[u64],
    _reduction: Reduction,
    m: &RowModulus,
) {
    for (i, d) in dst.iter_mut().enumerate() {
        let sum =
            sources.iter().zip(constants).fold(0, |sum, (source, c)| sum + u128::from(source[i]) * u128::from(*c));
        *d = reduce_sum(sum, m);
    }
}

fn recentre(dst: &mut [u64], src: &[u64], source: u64, m: &RowModulus) {
    let offset = subtract_once(product(source, m.one, m.q), m.q);
    for (d, s) in dst.iter_mut().zip(src) {
        let r = subtract_once(product(*s, m.one, m.q), m.q);
        *d = if *s > source / 2 { sub_mod(r, offset, m.q) } else { r };
    }
}

fn lift(dst: &mut [u64], src: &[i64], m: &RowModulus) {
    for (d, s) in dst.iter_mut().zip(src) {
        let r = reduce_wide(u128::from(s.unsigned_abs()), m);
        *d = if *s < 0 { subtract_once(m.q - r, m.q) } else { r };
    }
}
