//! The special Fourier transform of CKKS as a product of sparse matrices.
//!
//! With `n` slots the message polynomial lives in `X^(N/2n)` and has coefficients `p_0 … p_{2n-1}`; put
//! `w_j = p_j + i·p_{j+n}`. Slot `k` is `z_k = Σ_j w_j ζ^(j·5^k)` with `ζ = exp(2πi / 4n)`, and Cooley–Tukey gives
//! `z = B_m ⋯ B_2 B_1 R w`, `m = log2 n`, `R` the bit reversal and `B_l` the butterflies of length `2^l` (ePrint 2018/1043).
//!
//! SlotsToCoeffs applies `B_m ⋯ B_1` to a slot vector `v` (the coefficients then hold `R v`), CoeffsToSlots applies the
//! inverse, and `R` never has to be computed. Consecutive butterflies are multiplied into a few factors (ePrint 2018/1073).
//!
//! A factor of `g` butterflies of stride `s` has diagonals at the multiples of `s` from `-(2^g - 1)s` to `(2^g - 1)s`
//! (the factor that holds `B_m` wraps around to `2^g`). Rotations are pushed into the neighbouring factor of larger
//! stride, so that offsets run from `0` or `s` upwards: baby steps and giant steps are then shared among factors.

use super::linear::DiagonalMatrix;
use num_complex::Complex64;
use std::f64::consts::PI;

/// `ζ^(5^j)`-type twiddle of butterfly `j` at length `length`: `exp(2πi (5^j mod 4·length) / (4·length))`.
fn twiddles(length: usize) -> Vec<Complex64> {
    let order = 4 * length;
    let mut power = 1;
    (0..length / 2)
        .map(|_| {
            let twiddle = Complex64::from_polar(1.0, 2.0 * PI * power as f64 / order as f64);
            power = power * 5 % order;
            twiddle
        })
        .collect()
}

/// Butterflies of length `length` on `slots` slots: `(u, v) ↦ (u + τv, u - τv)`.
fn forward_butterflies(slots: usize, length: usize) -> DiagonalMatrix {
    let (half, twiddles) = (length / 2, twiddles(length));
    let one = Complex64::new(1.0, 0.0);
    let mut matrix = DiagonalMatrix::zero(slots);
    for start in (0..slots).step_by(length) {
        for (j, &twiddle) in twiddles.iter().enumerate() {
            let (first, second) = (start + j, start + j + half);
            matrix.add_entry(0, first, one);
            matrix.add_entry(half as i64, first, twiddle);
            matrix.add_entry(0, second, -twiddle);
            matrix.add_entry(-(half as i64), second, one);
        }
    }
    matrix
}

/// Inverse of [`forward_butterflies`]: `(u, v) ↦ ((u + v) / 2, (u - v) / 2τ)`.
fn inverse_butterflies(slots: usize, length: usize) -> DiagonalMatrix {
    let (half, twiddles) = (length / 2, twiddles(length));
    let one_half = Complex64::new(0.5, 0.0);
    let mut matrix = DiagonalMatrix::zero(slots);
    for start in (0..slots).step_by(length) {
        for (j, &twiddle) in twiddles.iter().enumerate() {
            let (first, second) = (start + j, start + j + half);
            let inverse = twiddle.conj() * 0.5;
            matrix.add_entry(0, first, one_half);
            matrix.add_entry(half as i64, first, one_half);
            matrix.add_entry(0, second, -inverse);
            matrix.add_entry(-(half as i64), second, inverse);
        }
    }
    matrix
}

/// How many butterflies each factor multiplies together, smallest stride first: `m` split into `factors` nearly equal parts
/// (fewer where `m < factors`). The factor of largest stride takes the larger part, for it wraps around and has half
/// as many diagonals.
pub fn radix_split(log2_slots: usize, factors: usize) -> Vec<usize> {
    let factors = factors.min(log2_slots).max(1);
    (0..factors).map(|f| (log2_slots + f) / factors).collect()
}

/// Factors of SlotsToCoeffs on `slots` slots in the order in which they are applied (smallest stride first).
pub fn slots_to_coefficients(slots: usize, factors: usize) -> Vec<DiagonalMatrix> {
    let mut result = Vec::new();
    let mut level = 0;
    for group in radix_split(slots.trailing_zeros() as usize, factors) {
        let product = (level..level + group)
            .map(|l| forward_butterflies(slots, 2 << l))
            .fold(DiagonalMatrix::identity(slots), |inner, outer| outer.compose(&inner));
        result.push(product);
        level += group;
    }
    // Factor f's output rotates by the stride of factor f + 1, which undoes it on its input.
    let mut stride = 1i64;
    let groups = radix_split(slots.trailing_zeros() as usize, factors);
    for f in 0..result.len().saturating_sub(1) {
        stride <<= groups[f];
        result[f] = result[f].rotate_output(stride);
        result[f + 1] = result[f + 1].rotate_input(stride);
    }
    result
}

/// Factors of CoeffsToSlots on `slots` slots in the order in which they are applied (largest stride first), each of so many
/// butterflies as `groups` says, smallest stride first.
pub fn coefficients_to_slots(slots: usize, groups: &[usize]) -> Vec<DiagonalMatrix> {
    let mut result = Vec::new();
    let mut level = 0;
    for &group in groups {
        let product = (level..level + group)
            .map(|l| inverse_butterflies(slots, 2 << l))
            .fold(DiagonalMatrix::identity(slots), |outer, inner| outer.compose(&inner));
        result.push(product);
        level += group;
    }
    let mut stride = 1i64;
    for f in 0..result.len().saturating_sub(1) {
        stride <<= groups[f];
        result[f] = result[f].rotate_input(-stride);
        result[f + 1] = result[f + 1].rotate_output(-stride);
    }
    result.reverse();
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(n: usize) -> Vec<Complex64> {
        (0..n).map(|k| Complex64::new((k as f64 * 0.7).sin(), (k as f64 * 1.3).cos())).collect()
    }

    fn bit_reversed<T: Copy>(v: &[T]) -> Vec<T> {
        let bits = v.len().trailing_zeros();
        (0..v.len()).map(|k| v[if bits == 0 { k } else { k.reverse_bits() >> (usize::BITS - bits) }]).collect()
    }

    fn apply(factors: &[DiagonalMatrix], v: &[Complex64]) -> Vec<Complex64> {
        factors.iter().fold(v.to_vec(), |v, m| m.apply(&v))
    }

    fn close(a: &[Complex64], b: &[Complex64]) {
        for (x, y) in a.iter().zip(b) {
            assert!((x - y).norm() < 1e-9, "{x} {y}");
        }
    }

    #[test]
    fn slots_to_coefficients_evaluates_the_bit_reversed_polynomial() {
        for log_n in 1..=8 {
            let n = 1usize << log_n;
            let v = vector(n);
            let w = bit_reversed(&v);
            let mut power = 1usize;
            let expected: Vec<Complex64> = (0..n)
                .map(|_| {
                    let value = (0..n)
                        .map(|j| {
                            let angle = 2.0 * PI * (power * j % (4 * n)) as f64 / (4 * n) as f64;
                            w[j] * Complex64::from_polar(1.0, angle)
                        })
                        .sum();
                    power = power * 5 % (4 * n);
                    value
                })
                .collect();
            for factors in 1..=3 {
                close(&apply(&slots_to_coefficients(n, factors), &v), &expected);
            }
        }
    }

    #[test]
    fn coefficients_to_slots_inverts_slots_to_coefficients() {
        for log_n in 1..=10 {
            let n = 1usize << log_n;
            let v = vector(n);
            for factors in 1..=4 {
                let there = apply(&slots_to_coefficients(n, factors), &v);
                close(&apply(&coefficients_to_slots(n, &radix_split(log_n, factors)), &there), &v);
            }
        }
    }

    #[test]
    fn factors_are_sparse_and_their_offsets_multiples_of_the_stride() {
        for factors in [slots_to_coefficients(4096, 3), {
            let mut f = coefficients_to_slots(4096, &[4, 4, 4]);
            f.reverse();
            f
        }] {
            assert_eq!(factors.len(), 3);
            for (f, matrix) in factors.iter().enumerate() {
                let stride = 16usize.pow(f as u32);
                let offsets: Vec<usize> = matrix.diagonals().keys().copied().collect();
                let first = usize::from(f == 0);
                let count = if f == 2 { 16 } else { 31 };
                let expected: Vec<usize> = (first..first + count).map(|o| o * stride).collect();
                assert_eq!(offsets, expected);
            }
        }
    }

    #[test]
    fn split_is_balanced() {
        assert_eq!(radix_split(15, 3), vec![5, 5, 5]);
        assert_eq!(radix_split(11, 3), vec![3, 4, 4]);
        assert_eq!(radix_split(2, 3), vec![1, 1]);
        assert_eq!(radix_split(1, 3), vec![1]);
    }
}
