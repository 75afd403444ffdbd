//! Tables of the negacyclic transform on 512-bit vectors ([`ifma_transform`](super::ifma_transform)), in the Montgomery form
//! that [`ifma_ring`](super::ifma_ring) defines.

use super::inverse_modulo_word;
use crate::Modulus;
use crate::tables::reverse_bits;

/// Words of a chunk.
pub(super) const CHUNK: usize = 256;
/// Words of a vector, and of a group of the last three stages.
pub(super) const LANES: usize = 8;
/// Groups of a chunk.
pub(super) const GROUPS: usize = CHUNK / LANES;
/// Smallest ring degree.
pub(super) const MINIMUM_DEGREE: usize = 2 * CHUNK;

/// A constant in Montgomery form w' and w''.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Factor {
    pub(super) scaled: u64,
    pub(super) quotient: u64,
}

/// Eight constants.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Factors {
    pub(super) scaled: [u64; LANES],
    pub(super) quotient: [u64; LANES],
}

/// Turns residues into [`Factor`]s.
#[derive(Debug, Clone, Copy)]
pub(super) struct Montgomery {
    pub(super) modulus: Modulus,
    /// R modulo q.
    radix: u64,
    /// q^-1 modulo R.
    pub(super) inverse: u64,
}

impl Montgomery {
    pub(super) fn new(modulus: Modulus) -> Self {
        let q = modulus.value();
        Self { modulus, radix: (1 << 52) % q, inverse: inverse_modulo_word(q) }
    }

    pub(super) fn factor(&self, w: u64) -> Factor {
        let scaled = self.modulus.mul(w, self.radix);
        Factor { scaled, quotient: scaled.wrapping_mul(self.inverse) & ((1 << 52) - 1) }
    }

    fn factors(&self, words: impl IntoIterator<Item = u64>) -> Factors {
        let mut factors = Factors::default();
        for (lane, w) in words.into_iter().take(LANES).enumerate() {
            let factor = self.factor(w);
            factors.scaled[lane] = factor.scaled;
            factors.quotient[lane] = factor.quotient;
        }
        factors
    }
}

/// Constants of one direction; for the inverse with ψ^-1 in place of ψ.
#[derive(Debug)]
pub(super) struct Direction {
    /// ψ^rev(i), for the stages at distances of 8 and more.
    pub(super) twiddles: Vec<Factor>,
    /// δ^t for word t of a group, δ = ψ^(1+2·rev(b)) for chunk b.
    pub(super) chunks: Vec<Factors>,
    /// The twiddles of the last three stages for eight groups at a time, one, two and four of them.
    pub(super) places: [[Factors; 7]; GROUPS / LANES],
}

impl Direction {
    pub(super) fn new(m: &Montgomery, root: u64, degree: usize) -> Self {
        let chunks = degree / CHUNK;
        let power = |exponent: usize| m.modulus.pow(root, exponent as u64);
        let mut twiddles = vec![Factor::default(); degree / LANES];
        let (step, mut twiddle) = (power(LANES), 1);
        for exponent in (0..degree).step_by(LANES) {
            twiddles[reverse_bits(exponent, degree.ilog2())] = m.factor(twiddle);
            twiddle = m.modulus.mul(twiddle, step);
        }
        let lanes = |b: usize| {
            let base = power(1 + 2 * reverse_bits(b, chunks.ilog2()));
            m.factors(std::iter::successors(Some(1), |w| Some(m.modulus.mul(*w, base))))
        };
        // Twiddle k of a group, counted stage after stage.
        let place = |i: usize, k: usize| {
            let stage = (k + 1).ilog2();
            let turn = reverse_bits(k + 1 - (1 << stage), stage) * (degree >> stage);
            let exponent = |j: usize| 2 * chunks * reverse_bits(j, GROUPS.ilog2());
            m.factors((0..LANES).map(|lane| power((exponent(LANES * i + lane) << (2 - stage)) + turn)))
        };
        Self {
            twiddles,
            chunks: (0..chunks).map(lanes).collect(),
            places: std::array::from_fn(|i| std::array::from_fn(|k| place(i, k))),
        }
    }
}
