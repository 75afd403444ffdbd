//! The transform in its plainest form (Cooley–Tukey and Gentleman–Sande butterflies, ψ merged
//! into the twiddles; Longa and Naehrig, ePrint 2016/504).

use crate::Modulus;
use crate::tables::reverse_bits;

/// Negacyclic transform of one modulus: natural order in, bit-reversed order out.
#[derive(Debug)]
pub(crate) struct ScalarTransform {
    modulus: Modulus,
    /// ψ^rev(i).
    twiddles: Vec<u64>,
    /// ψ^-rev(i).
    inverse_twiddles: Vec<u64>,
    degree_inverse: u64,
}

impl ScalarTransform {
    /// Tables for a primitive 2·`degree`-th root of unity.
    pub(crate) fn new(modulus: Modulus, root: u64, degree: usize) -> Self {
        let powers = |root| {
            let mut table = vec![0; degree];
            let mut power = 1;
            for i in 0..degree {
                table[reverse_bits(i, degree.ilog2())] = power;
                power = modulus.mul(power, root);
            }
            table
        };
        Self {
            modulus,
            twiddles: powers(root),
            inverse_twiddles: powers(modulus.inv(root)),
            degree_inverse: modulus.inv(degree as u64),
        }
    }

    pub(crate) fn forward(&self, row: &mut [u64]) {
        let q = &self.modulus;
        let mut half = row.len() / 2;
        let mut blocks = 1;
        while half > 0 {
            for (block, twiddle) in row.chunks_mut(2 * half).zip(&self.twiddles[blocks..]) {
                let (left, right) = block.split_at_mut(half);
                for (a, b) in left.iter_mut().zip(right) {
                    let product = q.mul(*b, *twiddle);
                    *b = q.sub(*a, product);
                    *a = q.add(*a, product);
                }
            }
            half /= 2;
            blocks *= 2;
        }
    }

    /// Normalised.
    pub(crate) fn inverse(&self, row: &mut [u64]) {
        let q = &self.modulus;
        let mut half = 1;
        let mut blocks = row.len() / 2;
        while blocks > 0 {
            for (block, twiddle) in row.chunks_mut(2 * half).zip(&self.inverse_twiddles[blocks..]) {
                let (left, right) = block.split_at_mut(half);
                for (a, b) in left.iter_mut().zip(right) {
                    let difference = q.sub(*a, *b);
                    *a = q.add(*a, *b);
                    *b = q.mul(difference, *twiddle);
                }
            }
            half *= 2;
            blocks /= 2;
        }
        for x in row {
            *x = q.mul(*x, self.degree_inverse);
        }
    }
}
