//! Uniform residues from a public seed: the halves of keys that need no storing.
//!
//! The seed holds an AES-128 key k and a tweak (u, v) of two 64-bit words. Coefficients 2i and 2i+1 of
//! polynomial d modulo the prime q of table index m come from the two words of
//! `AES_k(u ⊕ (attempt + 2^16·m + 2^32·d), v ⊕ i)`, little-endian. With x the low 52 bits of a word, the residue is
//! ⌊x·q / 2^52⌋, unless x·q modulo 2^52 is below 2^52 modulo q: then the same word of the next
//! attempt is taken, so that residues are exactly uniform (arXiv 1805.10941). Every residue depends on its place
//! alone, so that any part of a row can be expanded by itself. Refusals are rare, and expansion fast, for primes
//! below 2^42 and for those just below a power of two.
//!
//! Seeds are public. AES is used as FrodoKEM does for its public matrix, as an ideal cipher: nothing is secret here
//! but everything must look random.

use aes::Aes128;
use aes::cipher::{Array, BlockCipherEncrypt, KeyInit};

use crate::kernels::UniformKernel;

/// What uniform residues are expanded from.
pub type Seed = [u8; 32];

/// Bits of a word that are used.
pub(crate) const WORD_BITS: u32 = 52;
/// Rounds of AES-128.
pub(crate) const ROUNDS: usize = 10;
/// Blocks that are encrypted together.
const BLOCKS: usize = 32;

/// The rows that a seed stands for.
pub(crate) struct Expander {
    cipher: Aes128,
    tweak: [u64; 2],
    /// The round keys, for the kernel.
    pub(crate) round_keys: [[u64; 2]; ROUNDS + 1],
    kernel: Option<&'static UniformKernel>,
}

/// One row, and its modulus.
#[derive(Clone, Copy)]
pub(crate) struct UniformRow {
    /// First word of a block's plaintext at attempt 0.
    pub(crate) first: u64,
    /// Second word of the plaintext of block 0.
    pub(crate) second: u64,
    pub(crate) q: u64,
    /// 2^52 modulo q.
    pub(crate) surplus: u64,
}

impl UniformRow {
    /// The residue of a word, unless it is one too many.
    pub(crate) fn residue(&self, word: u64) -> Option<u64> {
        let product = u128::from(word & ((1 << WORD_BITS) - 1)) * u128::from(self.q);
        let low = product as u64 & ((1 << WORD_BITS) - 1);
        (low >= self.surplus).then_some((product >> WORD_BITS) as u64)
    }
}

impl Expander {
    pub(crate) fn new(seed: &Seed, kernel: Option<&'static UniformKernel>) -> Self {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| seed[at + i]));
        let key: [u8; 16] = std::array::from_fn(|i| seed[i]);
        let round_keys = kernel.map_or_else(Default::default, |kernel| (kernel.schedule)(&key));
        Self { cipher: Aes128::new(&Array(key)), tweak: [word(16), word(24)], round_keys, kernel }
    }

    /// Polynomial `polynomial` modulo the prime `q` of table index `limb`.
    pub(crate) fn row(&self, polynomial: usize, limb: usize, q: u64) -> UniformRow {
        let place = (polynomial as u64) << 32 | (limb as u64) << 16;
        UniformRow { first: self.tweak[0] ^ place, second: self.tweak[1], q, surplus: (1 << WORD_BITS) % q }
    }

    /// The coefficients of a row from number `start` on; both `start` and the length are multiples of eight.
    pub(crate) fn fill(&self, row: UniformRow, start: usize, residues: &mut [u64]) {
        self.fill_before(row, start, residues, &[]);
    }

    /// As [`fill`](Self::fill). What is read after that, as long as `residues`, may be fetched meanwhile: encryption waits
    /// for no memory.
    pub(crate) fn fill_before(&self, row: UniformRow, start: usize, residues: &mut [u64], upcoming: &[&[u64]]) {
        match self.kernel {
            Some(kernel) => (kernel.fill)(self, row, start, residues, upcoming),
            None => self.fill_portably(row, start, residues),
        }
    }

    fn fill_portably(&self, row: UniformRow, start: usize, residues: &mut [u64]) {
        let mut blocks = [Array([0_u8; 16]); BLOCKS];
        for (chunk, residues) in residues.chunks_mut(2 * BLOCKS).enumerate() {
            let chunk_start = start + chunk * 2 * BLOCKS;
            let blocks = &mut blocks[..residues.len() / 2];
            for (i, block) in (chunk_start / 2..).zip(blocks.iter_mut()) {
                *block = plaintext(row, i, 0);
            }
            self.cipher.encrypt_blocks(blocks);
            for (k, residue) in residues.iter_mut().enumerate() {
                let word = word(&blocks[k / 2], k % 2);
                *residue = row.residue(word).unwrap_or_else(|| self.retry(row, chunk_start + k));
            }
        }
    }

    /// The coefficient at a place whose first attempt was refused.
    pub(crate) fn retry(&self, row: UniformRow, place: usize) -> u64 {
        let mut attempts = (1..).map(|attempt| {
            let mut block = plaintext(row, place / 2, attempt);
            self.cipher.encrypt_block(&mut block);
            row.residue(word(&block, place % 2))
        });
        attempts.find_map(|residue| residue).unwrap_or_default()
    }
}

type Block = Array<u8, aes::cipher::consts::U16>;

fn plaintext(row: UniformRow, block: usize, attempt: u64) -> Block {
    let [first, second] = [row.first ^ attempt, row.second ^ block as u64].map(u64::to_le_bytes);
    Array(std::array::from_fn(|i| if i < 8 { first[i] } else { second[i - 8] }))
}

fn word(block: &Block, index: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| block[8 * index + i]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first vector of FIPS 197, appendix C, tells that the cipher is AES-128.
    #[test]
    fn the_cipher_is_the_standard_one() {
        let mut seed = [0; 32];
        for (i, byte) in seed.iter_mut().enumerate() {
            *byte = i as u8;
        }
        let mut block: Block = Array(std::array::from_fn(|i| 0x11 * i as u8));
        Expander::new(&seed, None).cipher.encrypt_block(&mut block);
        assert_eq!(&block[..4], &[0x69, 0xc4, 0xe0, 0xd8]);
    }

    #[test]
    fn residues_are_uniform_and_depend_on_their_place_alone() {
        let expander = Expander::new(&[7; 32], None);
        for q in [(1 << 41) + 1, (1 << 50) - 27, 3 << 50 >> 1, 97] {
            let row = expander.row(3, 5, q);
            let mut residues = vec![0; 1 << 14];
            expander.fill(row, 0, &mut residues);
            assert!(residues.iter().all(|x| *x < q));
            let mean = residues.iter().map(|x| *x as f64).sum::<f64>() / residues.len() as f64;
            assert!((mean / ((q - 1) as f64 / 2.0) - 1.0).abs() < 0.02, "{mean}");
            let mut part = vec![0; 64];
            expander.fill(row, 1024, &mut part);
            assert_eq!(part, residues[1024..1088]);
            let mut other = vec![0; 64];
            for (polynomial, limb) in [(3, 6), (4, 5)] {
                expander.fill(expander.row(polynomial, limb, q), 1024, &mut other);
                assert_ne!(part, other);
            }
        }
    }

    /// A modulus just above a power of two refuses nearly as many words as any can.
    #[test]
    fn refused_words_are_drawn_again() {
        let q = (1 << 51) + 1;
        let expander = Expander::new(&[1; 32], None);
        let row = expander.row(0, 0, q);
        let mut residues = vec![0; 1 << 12];
        expander.fill(row, 0, &mut residues);
        assert!(residues.iter().all(|x| *x < q));
        let upper = residues.iter().filter(|x| **x > q / 2).count() as f64 / residues.len() as f64;
        assert!((upper - 0.5).abs() < 0.04, "{upper}");
    }
}
