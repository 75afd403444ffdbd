//! Linear maps of slot vectors as sums of diagonals.
//!
//! A map of `C^n` is `(M v)[k] = Σ_o d_o[k] · v[(k + o) mod n]`: diagonal `d_o` meets the vector rotated left by `o`.
//! Maps with few diagonals (the factors of the special Fourier transform, banded or permuted weight matrices) stay cheap
//! under composition, and a rotation of their input or output only renames or rotates diagonals.

use num_complex::Complex64;
use std::collections::BTreeMap;

/// A linear map of `C^n` by its non-zero diagonals.
#[derive(Clone, Debug, PartialEq)]
pub struct DiagonalMatrix {
    slots: usize,
    diagonals: BTreeMap<usize, Vec<Complex64>>,
}

impl DiagonalMatrix {
    /// The zero map of `C^slots`; `slots` is a power of two.
    pub fn zero(slots: usize) -> Self {
        assert!(slots.is_power_of_two(), "slot counts are powers of two");
        Self { slots, diagonals: BTreeMap::new() }
    }

    /// The identity of `C^slots`.
    pub fn identity(slots: usize) -> Self {
        let mut identity = Self::zero(slots);
        identity.diagonals.insert(0, vec![Complex64::new(1.0, 0.0); slots]);
        identity
    }

    /// The map with the given dense rows (`rows[k][j]` multiplies `v[j]` in output `k`).
    pub fn from_rows(rows: &[Vec<Complex64>]) -> Self {
        let mut matrix = Self::zero(rows.len());
        for (k, row) in rows.iter().enumerate() {
            for (j, value) in row.iter().enumerate() {
                if *value != Complex64::ZERO {
                    matrix.add_entry(j as i64 - k as i64, k, *value);
                }
            }
        }
        matrix
    }

    /// Dimension `n`.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// The non-zero diagonals by offset, in increasing order.
    pub fn diagonals(&self) -> &BTreeMap<usize, Vec<Complex64>> {
        &self.diagonals
    }

    /// Adds `value` to entry `k` of the diagonal of `offset` (taken modulo `n`).
    pub fn add_entry(&mut self, offset: i64, k: usize, value: Complex64) {
        let offset = offset.rem_euclid(self.slots as i64) as usize;
        let slots = self.slots;
        self.diagonals.entry(offset).or_insert_with(|| vec![Complex64::ZERO; slots])[k] += value;
    }

    /// `M v` in the clear.
    pub fn apply(&self, vector: &[Complex64]) -> Vec<Complex64> {
        assert_eq!(vector.len(), self.slots, "vector length");
        let mut result = vec![Complex64::ZERO; self.slots];
        for (offset, diagonal) in &self.diagonals {
            for (k, d) in diagonal.iter().enumerate() {
                result[k] += d * vector[(k + offset) % self.slots];
            }
        }
        result
    }

    /// The composition `self ∘ inner`.
    #[must_use]
    pub fn compose(&self, inner: &Self) -> Self {
        assert_eq!(self.slots, inner.slots, "dimensions of a composition");
        let n = self.slots;
        let mut result = Self::zero(n);
        for (o, outer) in &self.diagonals {
            for (p, inner) in &inner.diagonals {
                let target = result.diagonals.entry((o + p) % n).or_insert_with(|| vec![Complex64::ZERO; n]);
                for (k, value) in target.iter_mut().enumerate() {
                    *value += outer[k] * inner[(k + o) % n];
                }
            }
        }
        result
    }

    /// The map `v ↦ M (rotation of v to the left by -shift)`: offsets move down by `shift`.
    #[must_use]
    pub fn rotate_input(&self, shift: i64) -> Self {
        let n = self.slots as i64;
        let diagonals =
            self.diagonals.iter().map(|(&o, d)| ((o as i64 - shift).rem_euclid(n) as usize, d.clone())).collect();
        Self { slots: self.slots, diagonals }
    }

    /// The map `v ↦ (M v) rotated left by shift`: offsets move up by `shift`, diagonals rotate with the output.
    #[must_use]
    pub fn rotate_output(&self, shift: i64) -> Self {
        let n = self.slots as i64;
        let turn = shift.rem_euclid(n) as usize;
        let diagonals = self
            .diagonals
            .iter()
            .map(|(&o, d)| {
                let mut d = d.clone();
                d.rotate_left(turn);
                ((o as i64 + shift).rem_euclid(n) as usize, d)
            })
            .collect();
        Self { slots: self.slots, diagonals }
    }

    /// The map `v ↦ factor · M v`.
    #[must_use]
    pub fn scale(&self, factor: f64) -> Self {
        let mut scaled = self.clone();
        scaled.diagonals.values_mut().flatten().for_each(|d| *d *= factor);
        scaled
    }

    /// The map `v ↦ M (mask ∘ v)`: what the mask zeroes never enters, whatever its size.
    #[must_use]
    pub fn mask_input(&self, mask: &[f64]) -> Self {
        assert_eq!(mask.len(), self.slots, "mask length");
        let mut masked = self.clone();
        for (offset, diagonal) in &mut masked.diagonals {
            for (k, d) in diagonal.iter_mut().enumerate() {
                *d *= mask[(k + offset) % self.slots];
            }
        }
        masked
    }

    /// The map `C^n → C^{2n}, v ↦ (M v, factor · M v)` written as a map of `C^{2n}` on vectors of period `n`.
    #[must_use]
    pub fn stack(&self, factor: Complex64) -> Self {
        let diagonals = self
            .diagonals
            .iter()
            .map(|(&o, d)| (o, d.iter().copied().chain(d.iter().map(|d| d * factor)).collect()))
            .collect();
        Self { slots: 2 * self.slots, diagonals }
    }

    /// For a map with offsets below `n/2`, the map `v ↦ M (v + v rotated by n/2)`.
    #[must_use]
    pub fn fold_input(&self) -> Self {
        let half = self.slots / 2;
        let diagonals = self.diagonals.iter().flat_map(|(&o, d)| [(o, d.clone()), (o + half, d.clone())]).collect();
        Self { slots: self.slots, diagonals }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matrix(n: usize, seed: u64) -> DiagonalMatrix {
        let mut state = seed;
        let mut next = move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f64 / f64::from(1 << 24) - 0.5
        };
        let mut m = DiagonalMatrix::zero(n);
        for offset in 0..n as i64 {
            if next() > 0.0 {
                for k in 0..n {
                    m.add_entry(offset, k, Complex64::new(next(), next()));
                }
            }
        }
        m
    }

    fn close(a: &[Complex64], b: &[Complex64]) {
        for (x, y) in a.iter().zip(b) {
            assert!((x - y).norm() < 1e-12, "{x} {y}");
        }
    }

    proptest! {
        #[test]
        fn composition_and_rotations_agree_with_application(seed in any::<u64>(), log_n in 1u32..5, shift in -40i64..40) {
            let n = 1usize << log_n;
            let (a, b) = (matrix(n, seed), matrix(n, seed ^ 0xabcd));
            let v: Vec<_> = (0..n).map(|k| Complex64::new(k as f64, 1.0 / (k + 1) as f64)).collect();
            close(&a.compose(&b).apply(&v), &a.apply(&b.apply(&v)));
            let left = |v: &[Complex64], by: i64| {
                let mut v = v.to_vec();
                v.rotate_left(by.rem_euclid(n as i64) as usize);
                v
            };
            close(&a.rotate_output(shift).apply(&v), &left(&a.apply(&v), shift));
            close(&a.rotate_input(shift).apply(&v), &a.apply(&left(&v, -shift)));
            let mask: Vec<f64> = (0..n).map(|k| (k % 2) as f64).collect();
            let masked: Vec<_> = v.iter().zip(&mask).map(|(v, m)| v * m).collect();
            close(&a.mask_input(&mask).apply(&v), &a.apply(&masked));
            let twice: Vec<_> = v.iter().chain(&v).copied().collect();
            let i = Complex64::I;
            let stacked = a.stack(i).apply(&twice);
            close(&stacked[..n], &a.apply(&v));
            close(&stacked[n..], &a.apply(&v).iter().map(|x| x * i).collect::<Vec<_>>());
        }

        #[test]
        fn dense_rows_round_trip(seed in any::<u64>()) {
            let m = matrix(8, seed);
            let rows: Vec<Vec<Complex64>> = (0..8)
                .map(|k| (0..8).map(|j| m.diagonals().get(&((j + 8 - k) % 8)).map_or(Complex64::ZERO, |d| d[k])).collect())
                .collect();
            prop_assert_eq!(DiagonalMatrix::from_rows(&rows), m);
        }
    }
}
