//! Ciphertexts as bytes.
//!
//! Little-endian: magic `CMCT`, format version (u16), number of polynomials (u16), parameter fingerprint (u64), level
//! (u32), slots (u32), scale (f64), then the residues as u64 in the order [polynomial][limb][N]. Nothing may follow.

use cachemir_hal::Backend;

use crate::ckks::ciphertext::Ciphertext;
use crate::error::CkksError;
use crate::ring::Ring;

const MAGIC: [u8; 4] = *b"CMCT";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 32;

fn malformed(problem: String) -> CkksError {
    CkksError::Format { object: "ciphertext", problem }
}

/// Bytes of a serialised ciphertext.
pub fn ciphertext_bytes(degree: usize, polynomials: usize, level: usize) -> usize {
    HEADER_BYTES + polynomials * (level + 1) * degree * size_of::<u64>()
}

impl<B: Backend> Ciphertext<B> {
    /// Serialises, leaving out limbs above the level.
    pub fn to_bytes(&self, ring: &Ring<B>) -> Result<Vec<u8>, CkksError> {
        let polynomials = self.polynomials(ring);
        let compact = ring.backend().select(&self.buffer, 0..polynomials, ring.chain(self.level))?;
        let mut bytes = Vec::with_capacity(ciphertext_bytes(ring.degree(), polynomials, self.level));
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((polynomials as u16).to_le_bytes());
        bytes.extend(ring.parameters().fingerprint().to_le_bytes());
        bytes.extend((self.level as u32).to_le_bytes());
        bytes.extend((self.slots as u32).to_le_bytes());
        bytes.extend(self.scale.to_le_bytes());
        bytes.extend(ring.backend().download(&compact)?.into_iter().flat_map(u64::to_le_bytes));
        Ok(bytes)
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote, and refuses anything else: other versions and parameters, wrong
    /// lengths, residues that are not reduced.
    pub fn from_bytes(ring: &Ring<B>, bytes: &[u8]) -> Result<Self, CkksError> {
        let Some((header, body)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            return Err(malformed(format!("{} bytes are too few for the header of {HEADER_BYTES}", bytes.len())));
        };
        let word16 = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let word32 = |at: usize| u32::from(word16(at)) | u32::from(word16(at + 2)) << 16;
        let word64 = |at: usize| u64::from(word32(at)) | u64::from(word32(at + 4)) << 32;
        if header[..4] != MAGIC {
            return Err(malformed("the magic number is missing".to_owned()));
        }
        if word16(4) != VERSION {
            return Err(malformed(format!("format version {}, expected {VERSION}", word16(4))));
        }
        let (polynomials, fingerprint) = (usize::from(word16(6)), word64(8));
        let (level, slots) = (word32(16) as usize, word32(20) as usize);
        let scale = f64::from_bits(word64(24));
        if fingerprint != ring.parameters().fingerprint() {
            return Err(malformed(format!(
                "made for parameters {fingerprint:016x}, not for `{}` ({:016x})",
                ring.parameters().name(),
                ring.parameters().fingerprint()
            )));
        }
        ring.check_level(level)?;
        ring.check_slots(slots)?;
        if !(2..=3).contains(&polynomials) {
            return Err(malformed(format!("{polynomials} polynomials, expected 2 or 3")));
        }
        if !scale.is_finite() || scale <= 0.0 {
            return Err(malformed(format!("scale {scale}")));
        }
        let expected = ciphertext_bytes(ring.degree(), polynomials, level);
        if bytes.len() != expected {
            return Err(malformed(format!("{} bytes, expected {expected}", bytes.len())));
        }
        let residues: Vec<u64> = body
            .chunks_exact(8)
            .map(|word| word.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
            .collect();
        for (row, residues) in residues.chunks_exact(ring.degree()).enumerate() {
            let modulus = ring.modulus(row % (level + 1)).value();
            if let Some(residue) = residues.iter().find(|&&residue| residue >= modulus) {
                return Err(malformed(format!("residue {residue} is not below its modulus {modulus}")));
            }
        }
        let buffer = ring.backend().upload(&residues, polynomials, level + 1)?;
        Ok(Self { buffer, level, scale, slots })
    }
}
