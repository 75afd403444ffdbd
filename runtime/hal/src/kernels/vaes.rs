//! Expansion of seeds by AES on 512-bit vectors (VAES): four blocks, hence eight coefficients, a vector.

#[allow(clippy::wildcard_imports)]
use std::arch::x86_64::*;

use super::UniformKernel;
use super::ifma::{Lanes, splat, store};
use crate::uniform::{Expander, ROUNDS, UniformRow, WORD_BITS};

/// Vectors that are encrypted together, to hide the latency of a round.
const TOGETHER: usize = 8;

/// To be handed out where [`is_available`].
pub(super) static KERNEL: UniformKernel = UniformKernel { schedule, fill };

/// Whether the processor has what is needed besides AVX512F, AVX512DQ and AVX512IFMA.
pub(super) fn is_available() -> bool {
    std::arch::is_x86_feature_detected!("vaes") && std::arch::is_x86_feature_detected!("aes")
}

fn schedule(key: &[u8; 16]) -> [[u64; 2]; ROUNDS + 1] {
    // SAFETY: the kernel is handed out only after the processor was found to have AES.
    unsafe { round_keys(key) }
}

/// [`Expander::fill_before`].
fn fill(expander: &Expander, row: UniformRow, start: usize, residues: &mut [u64], upcoming: &[&[u64]]) {
    let (vectors, rest) = residues.as_chunks_mut();
    assert!(rest.is_empty() && start.is_multiple_of(8));
    let keys = &expander.round_keys;
    // SAFETY: the kernel is handed out only after the processor was found to have the features.
    unsafe {
        for (group, vectors) in vectors.chunks_mut(TOGETHER).enumerate() {
            let first = start + group * TOGETHER * 8;
            for words in upcoming {
                for line in 0..TOGETHER {
                    let line = words.as_ptr().wrapping_add((group * TOGETHER + line) * 8);
                    _mm_prefetch::<_MM_HINT_T1>(line.cast());
                }
            }
            let refused = match vectors.as_chunks_mut::<TOGETHER>() {
                ([whole], _) => expand(keys, row, first / 2, whole),
                _ => {
                    let mut whole = [Lanes::default(); TOGETHER];
                    let refused = expand(keys, row, first / 2, &mut whole);
                    vectors.copy_from_slice(&whole[..vectors.len()]);
                    refused & (u64::MAX >> (64 - 8 * vectors.len()))
                }
            };
            if refused != 0 {
                for (k, residue) in vectors.as_flattened_mut().iter_mut().enumerate() {
                    if refused >> k & 1 == 1 {
                        *residue = expander.retry(row, first + k);
                    }
                }
            }
        }
    }
}

/// The round keys of AES-128 (FIPS 197, section 5.2).
#[target_feature(enable = "aes")]
fn round_keys(key: &[u8; 16]) -> [[u64; 2]; ROUNDS + 1] {
    // SAFETY: the reference covers 16 readable bytes.
    let mut keys = [unsafe { _mm_loadu_si128(key.as_ptr().cast()) }; ROUNDS + 1];
    macro_rules! next {
        ($($round:literal: $constant:literal),+) => {
            $(keys[$round] = {
                let previous = keys[$round - 1];
                let word = _mm_shuffle_epi32::<0xff>(_mm_aeskeygenassist_si128::<$constant>(previous));
                let sum = _mm_xor_si128(previous, _mm_slli_si128::<4>(previous));
                let sum = _mm_xor_si128(sum, _mm_slli_si128::<8>(sum));
                _mm_xor_si128(sum, word)
            };)+
        };
    }
    next!(1: 0x01, 2: 0x02, 3: 0x04, 4: 0x08, 5: 0x10, 6: 0x20, 7: 0x40, 8: 0x80, 9: 0x1b, 10: 0x36);
    keys.map(|key| [_mm_cvtsi128_si64(key), _mm_cvtsi128_si64(_mm_unpackhi_epi64(key, key))].map(i64::cast_unsigned))
}

/// The coefficients of consecutive blocks, and a bit for each that was refused.
#[target_feature(enable = "avx512f,avx512dq,avx512ifma,vaes")]
fn expand(keys: &[[u64; 2]; ROUNDS + 1], row: UniformRow, block: usize, vectors: &mut [Lanes; TOGETHER]) -> u64 {
    let [first, second] = [row.first, row.second].map(u64::cast_signed);
    let plain = _mm512_set_epi64(second, first, second, first, second, first, second, first);
    let mut blocks = _mm512_add_epi64(splat(block as u64), _mm512_set_epi64(3, 0, 2, 0, 1, 0, 0, 0));
    blocks = _mm512_maskz_mov_epi64(0b1010_1010, blocks);
    let four = _mm512_set_epi64(4, 0, 4, 0, 4, 0, 4, 0);
    let mut state = [_mm512_setzero_si512(); TOGETHER];
    let splat_key = |[low, high]: [u64; 2]| {
        let (low, high) = (low.cast_signed(), high.cast_signed());
        _mm512_set_epi64(high, low, high, low, high, low, high, low)
    };
    let key = splat_key(keys[0]);
    for x in &mut state {
        *x = _mm512_xor_si512(_mm512_xor_si512(plain, blocks), key);
        blocks = _mm512_add_epi64(blocks, four);
    }
    for key in &keys[1..ROUNDS] {
        let key = splat_key(*key);
        for x in &mut state {
            *x = _mm512_aesenc_epi128(*x, key);
        }
    }
    let key = splat_key(keys[ROUNDS]);
    let (q, surplus) = (splat(row.q), splat(row.surplus));
    let mask = splat((1 << WORD_BITS) - 1);
    let zero = _mm512_setzero_si512();
    let mut refused = 0;
    for (k, (x, vector)) in state.iter().zip(vectors).enumerate() {
        // The multiplication takes the low 52 bits.
        let word = _mm512_aesenclast_epi128(*x, key);
        let low = _mm512_and_si512(_mm512_madd52lo_epu64(zero, word, q), mask);
        refused |= u64::from(_mm512_cmplt_epu64_mask(low, surplus)) << (8 * k);
        store(vector, _mm512_madd52hi_epu64(zero, word, q));
    }
    refused
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_portable_expansion() {
        if !is_available() || !super::super::Isa::Avx512Ifma.is_available() {
            return;
        }
        let seed = std::array::from_fn(|i| (i * i) as u8);
        let (fast, portable) = (Expander::new(&seed, Some(&KERNEL)), Expander::new(&seed, None));
        // The last modulus refuses nearly half of all words.
        for q in [(1 << 41) + 1, (1 << 50) - 27, 97, (1 << 51) + 1] {
            for (start, length) in [(0, 8), (0, 64), (8, 24), (1 << 12, 4096)] {
                let row = portable.row(2, 9, q);
                let (mut a, mut b) = (vec![0; length], vec![1; length]);
                fast.fill(row, start, &mut a);
                portable.fill(row, start, &mut b);
                assert_eq!(a, b, "q = {q}, {length} from {start}");
            }
        }
    }
}
