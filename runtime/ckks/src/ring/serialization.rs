//! Bytes of objects made of residues: what ciphertexts and keys have in common.
//!
//! # Layout
//! All numbers are little-endian. Every object begins with a header of [`HEADER_BYTES`]:
//!
//! | offset | type | meaning |
//! |---|---|---|
//! | 0 | 4 bytes | magic `CMCK` |
//! | 4 | u16 | format version, [`FORMAT_VERSION`] |
//! | 6 | u16 | kind: 1 ciphertext, 2 public key, 3 switching key, 4 evaluation keys |
//! | 8 | u64 | [fingerprint of the parameters](crate::parameters::Parameters::fingerprint) |
//! | 16 | u32 | level |
//! | 20 | u32 | number of special primes, 0 where none are involved |
//!
//! What follows is described by [`ckks::serialization`](crate::ckks::serialization) and
//! [`rlwe::serialization`](crate::rlwe::serialization). Its bulk is *rows*: the N residues of a polynomial modulo one
//! prime q, in the NTT domain and in the reference backend's order, each in as many bits as q has. Residue i takes the
//! bits from i·bits on, where bit k is bit k mod 8 of byte k / 8. N is a multiple of 8, so rows are whole bytes.
//!
//! A *seed* of 32 bytes stands for uniform polynomials, as [`Backend::expand_uniform`] expands it; table indices are
//! those of the chain's primes, then of the special ones.
//!
//! # Streams
//! One polynomial modulo all its primes is in memory at a time besides the object. Reads and writes are of a row each
//! but for a few short fields, so readers and writers need no buffer. Reading stops at the object's last byte.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::ops::RangeInclusive;

use cachemir_hal::Backend;

use crate::error::CkksError;
use crate::parameters::Parameters;
use crate::ring::Ring;

/// The one format version that is written and read.
pub const FORMAT_VERSION: u16 = 3;
/// Bytes of the header.
pub const HEADER_BYTES: usize = 24;

const MAGIC: [u8; 4] = *b"CMCK";

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Ciphertext = 1,
    PublicKey = 2,
    SwitchingKey = 3,
    EvaluationKeys = 4,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Ciphertext, Self::PublicKey, Self::SwitchingKey, Self::EvaluationKeys];

    fn name(self) -> &'static str {
        match self {
            Self::Ciphertext => "ciphertext",
            Self::PublicKey => "public key",
            Self::SwitchingKey => "switching key",
            Self::EvaluationKeys => "evaluation keys",
        }
    }

    pub(crate) fn malformed(self, problem: impl fmt::Display) -> CkksError {
        CkksError::Format { object: self.name(), problem: problem.to_string() }
    }

    fn failed(self, action: &'static str, error: &std::io::Error) -> CkksError {
        CkksError::Io { action, object: self.name(), kind: error.kind(), problem: error.to_string() }
    }
}

/// Bits of a residue modulo a prime.
fn width(prime: u64) -> u32 {
    u64::BITS - prime.leading_zeros()
}

/// Bytes of a row of each of these primes.
pub(crate) fn row_bytes<'a>(parameters: &Parameters, primes: impl IntoIterator<Item = &'a u64>) -> usize {
    primes.into_iter().map(|&prime| parameters.degree() * width(prime) as usize / 8).sum()
}

fn pack(residues: &[u64], width: u32, bytes: &mut Vec<u8>) {
    let (mut pending, mut filled) = (0_u128, 0);
    for &residue in residues {
        pending |= u128::from(residue) << filled;
        filled += width;
        if filled >= u64::BITS {
            bytes.extend((pending as u64).to_le_bytes());
            pending >>= u64::BITS;
            filled -= u64::BITS;
        }
    }
    bytes.extend(&pending.to_le_bytes()[..filled as usize / 8]);
}

fn unpack(bytes: &[u8], width: u32, residues: &mut Vec<u64>) {
    let mask = u64::MAX >> (u64::BITS - width);
    let (mut pending, mut filled) = (0_u128, 0);
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        pending |= u128::from(u64::from_le_bytes(word)) << filled;
        filled += 8 * chunk.len() as u32;
        while filled >= width {
            residues.push(pending as u64 & mask);
            pending >>= width;
            filled -= width;
        }
    }
}

/// Writes the parts of an object.
pub(crate) struct Writer<'a, B: Backend, W> {
    ring: &'a Ring<B>,
    object: Kind,
    sink: W,
}

impl<'a, B: Backend, W: Write> Writer<'a, B, W> {
    /// Errors will name `object`.
    pub(crate) fn new(ring: &'a Ring<B>, object: Kind, sink: W) -> Self {
        Self { ring, object, sink }
    }

    pub(crate) fn ring(&self) -> &'a Ring<B> {
        self.ring
    }

    pub(crate) fn header(&mut self, kind: Kind, level: usize, special: usize) -> Result<(), CkksError> {
        self.ring.check_level(level)?;
        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.extend(MAGIC);
        header.extend(FORMAT_VERSION.to_le_bytes());
        header.extend((kind as u16).to_le_bytes());
        header.extend(self.ring.parameters().fingerprint().to_le_bytes());
        header.extend((level as u32).to_le_bytes());
        header.extend((special as u32).to_le_bytes());
        self.bytes(&header)
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<(), CkksError> {
        self.sink.write_all(bytes).map_err(|error| self.object.failed("writing", &error))
    }

    /// The first polynomials of a buffer whose first limbs are those of the given table indices.
    pub(crate) fn rows(&mut self, buffer: &B::Buffer, polynomials: usize, limbs: &[usize]) -> Result<(), CkksError> {
        let (ring, backend) = (self.ring, self.ring.backend());
        let positions: Vec<usize> = (0..limbs.len()).collect();
        let mut packed = Vec::new();
        for polynomial in 0..polynomials {
            let words = backend.download(&backend.select(buffer, polynomial..polynomial + 1, &positions)?)?;
            for (row, &limb) in words.chunks_exact(ring.degree()).zip(limbs) {
                packed.clear();
                pack(row, width(ring.modulus(limb).value()), &mut packed);
                self.bytes(&packed)?;
            }
        }
        Ok(())
    }
}

/// Reads the parts of an object and refuses what no [`Writer`] wrote.
pub(crate) struct Reader<'a, B: Backend, R> {
    ring: &'a Ring<B>,
    object: Kind,
    source: R,
    /// Bytes read so far.
    position: u64,
}

impl<'a, B: Backend, R: Read> Reader<'a, B, R> {
    /// Errors will name `object`.
    pub(crate) fn new(ring: &'a Ring<B>, object: Kind, source: R) -> Self {
        Self { ring, object, source, position: 0 }
    }

    pub(crate) fn ring(&self) -> &'a Ring<B> {
        self.ring
    }

    pub(crate) fn malformed(&self, problem: impl fmt::Display) -> CkksError {
        self.object.malformed(problem)
    }

    /// The level and the number of special primes, which must lie in `special`.
    pub(crate) fn header(&mut self, kind: Kind, special: RangeInclusive<usize>) -> Result<(usize, usize), CkksError> {
        let parameters = self.ring.parameters();
        if self.array()? != MAGIC {
            return Err(self.malformed("the magic number is missing"));
        }
        let version = u16::from_le_bytes(self.array()?);
        if version != FORMAT_VERSION {
            return Err(self.malformed(format!("format version {version}, expected {FORMAT_VERSION}")));
        }
        let found = u16::from_le_bytes(self.array()?);
        if found != kind as u16 {
            let name = Kind::ALL.into_iter().find(|&kind| kind as u16 == found).map_or("unknown", Kind::name);
            return Err(self.malformed(format!("kind {found} ({name}), expected {} ({})", kind as u16, kind.name())));
        }
        let fingerprint = self.word64()?;
        if fingerprint != parameters.fingerprint() {
            return Err(self.malformed(format!(
                "made for parameters {fingerprint:016x}, not for `{}` ({:016x})",
                parameters.name(),
                parameters.fingerprint()
            )));
        }
        let level = self.word32()?;
        self.ring.check_level(level)?;
        let count = self.word32()?;
        if !special.contains(&count) {
            let (least, most) = special.into_inner();
            return Err(self.malformed(format!("{count} special primes, expected {least} to {most}")));
        }
        Ok((level, count))
    }

    pub(crate) fn array<const LENGTH: usize>(&mut self) -> Result<[u8; LENGTH], CkksError> {
        let mut bytes = [0; LENGTH];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    pub(crate) fn word32(&mut self) -> Result<usize, CkksError> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }

    pub(crate) fn word64(&mut self) -> Result<u64, CkksError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Polynomials modulo the primes of the given table indices, all residues reduced.
    pub(crate) fn rows(&mut self, polynomials: usize, limbs: &[usize]) -> Result<B::Buffer, CkksError> {
        let (ring, backend) = (self.ring, self.ring.backend());
        let mut buffer = backend.zeros(polynomials, limbs.len())?;
        let mut words = Vec::with_capacity(limbs.len() * ring.degree());
        let mut packed = Vec::new();
        for polynomial in 0..polynomials {
            words.clear();
            for &limb in limbs {
                let prime = ring.modulus(limb).value();
                packed.resize(row_bytes(ring.parameters(), [&prime]), 0);
                self.fill(&mut packed)?;
                let start = words.len();
                unpack(&packed, width(prime), &mut words);
                if let Some(residue) = words[start..].iter().find(|&&residue| residue >= prime) {
                    return Err(self.malformed(format!("residue {residue} is not below its prime {prime}")));
                }
            }
            let part = backend.upload(&words, 1, limbs.len())?;
            backend.copy_into(&mut buffer, polynomial, 0, &part, 0..1, 0..limbs.len())?;
        }
        Ok(buffer)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), CkksError> {
        let end = self.position + bytes.len() as u64;
        self.source.read_exact(bytes).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => self.malformed(format!("the data end before byte {end}")),
            _ => self.object.failed("reading", &error),
        })?;
        self.position = end;
        Ok(())
    }
}

/// Reads an object from the whole of `bytes`.
pub(crate) fn read_whole<T>(
    kind: Kind,
    mut bytes: &[u8],
    read: impl FnOnce(&mut &[u8]) -> Result<T, CkksError>,
) -> Result<T, CkksError> {
    let object = read(&mut bytes)?;
    match bytes.len() {
        0 => Ok(object),
        surplus => Err(kind.malformed(format!("{surplus} bytes follow its end"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::sampling;
    use rand::RngCore;

    #[test]
    fn packed_rows_are_the_residues_side_by_side() {
        let mut bytes = Vec::new();
        pack(&[0x1ff, 0, 0x101, 0, 0, 0, 0, 0x100], 9, &mut bytes);
        assert_eq!(bytes, [0xff, 0x01, 0x04, 0x04, 0, 0, 0, 0, 0x80]);
        for width in 5..=64 {
            let mut generator = sampling::stream(&[1; 32], 0);
            let mut residues: Vec<u64> = (0..96).map(|_| generator.next_u64() >> (64 - width)).collect();
            residues[7] = u64::MAX >> (64 - width);
            let (mut bytes, mut back) = (Vec::new(), Vec::new());
            pack(&residues, width, &mut bytes);
            assert_eq!(bytes.len(), 96 * width as usize / 8);
            unpack(&bytes, width, &mut back);
            assert_eq!(back, residues, "{width} bits");
        }
    }
}
