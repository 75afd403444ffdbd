//! Ciphertexts as bytes.
//!
//! After the [header](crate::ring::serialization), with 0 special primes:
//!
//! | offset | type | meaning |
//! |---|---|---|
//! | 24 | u32 | slots |
//! | 28 | u32 | polynomials that follow as rows: 2 or 3, or 1 if a seed stands for the second of two |
//! | 32 | f64 | scale |
//! | 40 | 32 bytes | the seed; absent if there are 2 or 3 polynomials |
//! | then | rows | `[polynomials][level + 1]` |

use std::io::{Read, Write};

use cachemir_hal::Backend;

use crate::ckks::ciphertext::Ciphertext;
use crate::error::CkksError;
use crate::parameters::Parameters;
use crate::ring::Ring;
use crate::ring::sampling::Seed;
use crate::ring::serialization::{HEADER_BYTES, Kind, Reader, Writer, read_whole, row_bytes};
use crate::rlwe::pairs::seeded_pair;

const FIELD_BYTES: usize = 16;

/// Bytes of a serialised ciphertext.
pub fn ciphertext_bytes(parameters: &Parameters, polynomials: usize, level: usize) -> usize {
    HEADER_BYTES + FIELD_BYTES + polynomials * row_bytes(parameters, &parameters.primes()[..=level])
}

impl<B: Backend> Ciphertext<B> {
    /// Writes the ciphertext, leaving out limbs above the level.
    pub fn write_to(&self, ring: &Ring<B>, sink: impl Write) -> Result<(), CkksError> {
        self.write_parts(ring, None, sink)
    }

    /// Reads what [`write_to`](Self::write_to) or [`Encryptor::encrypt_to_bytes`](crate::Encryptor::encrypt_to_bytes)
    /// wrote and refuses anything else with [`CkksError::Format`], [`CkksError::LevelOutOfRange`] or
    /// [`CkksError::Slots`]: other versions and parameters, missing bytes, residues that are not reduced.
    pub fn read_from(ring: &Ring<B>, source: impl Read) -> Result<Self, CkksError> {
        let mut reader = Reader::new(ring, Kind::Ciphertext, source);
        let (level, _) = reader.header(Kind::Ciphertext, 0..=0)?;
        let slots = reader.word32()?;
        ring.check_slots(slots)?;
        let polynomials = reader.word32()?;
        let scale = f64::from_bits(reader.word64()?);
        if !scale.is_finite() || scale <= 0.0 {
            return Err(reader.malformed(format!("scale {scale}")));
        }
        let limbs = ring.chain(level);
        let buffer = match polynomials {
            1 => {
                let seed = reader.array()?;
                seeded_pair(ring, &reader.rows(1, limbs)?, &seed, level)?
            }
            2 | 3 => reader.rows(polynomials, limbs)?,
            _ => return Err(reader.malformed(format!("{polynomials} polynomials, expected 1 to 3"))),
        };
        Ok(Self { buffer, level, scale, slots })
    }

    /// What [`write_to`](Self::write_to) writes.
    pub fn to_bytes(&self, ring: &Ring<B>) -> Result<Vec<u8>, CkksError> {
        let mut bytes = Vec::with_capacity(ciphertext_bytes(ring.parameters(), self.polynomials(ring), self.level));
        self.write_to(ring, &mut bytes)?;
        Ok(bytes)
    }

    /// As [`read_from`](Self::read_from); `bytes` must end with the ciphertext.
    pub fn from_bytes(ring: &Ring<B>, bytes: &[u8]) -> Result<Self, CkksError> {
        read_whole(Kind::Ciphertext, bytes, |source| Self::read_from(ring, source))
    }

    /// The bytes of a ciphertext whose second and last polynomial is expanded from `seed`.
    pub(crate) fn to_bytes_with_seed(&self, ring: &Ring<B>, seed: &Seed) -> Result<Vec<u8>, CkksError> {
        let mut bytes = Vec::with_capacity(ciphertext_bytes(ring.parameters(), 1, self.level) + seed.len());
        self.write_parts(ring, Some(seed), &mut bytes)?;
        Ok(bytes)
    }

    fn write_parts(&self, ring: &Ring<B>, seed: Option<&Seed>, sink: impl Write) -> Result<(), CkksError> {
        let polynomials = if seed.is_some() { 1 } else { self.polynomials(ring) };
        let mut writer = Writer::new(ring, Kind::Ciphertext, sink);
        writer.header(Kind::Ciphertext, self.level, 0)?;
        writer.bytes(&(self.slots as u32).to_le_bytes())?;
        writer.bytes(&(polynomials as u32).to_le_bytes())?;
        writer.bytes(&self.scale.to_le_bytes())?;
        if let Some(seed) = seed {
            writer.bytes(seed)?;
        }
        writer.rows(&self.buffer, polynomials, ring.chain(self.level))
    }
}
