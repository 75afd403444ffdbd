//! Public and evaluation keys as bytes. Secret keys have no such form.
//!
//! # Public key
//! After the [header](crate::ring::serialization), whose number of special primes is 0:
//!
//! | offset | type | meaning |
//! |---|---|---|
//! | 24 | 32 bytes | the seed of the a-half |
//! | 56 | rows | the b-half: `[level + 1]` |
//!
//! # Switching key
//! After the header:
//!
//! | offset | type | meaning |
//! |---|---|---|
//! | 24 | u32 | limbs of a digit |
//! | 28 | 32 bytes | the seed of the a-half |
//! | 60 | rows | the b-half: `[digits][level + 1 + special primes]` |
//!
//! # Evaluation keys
//! The header's level and number of special primes are 0. Then the manifest:
//!
//! | offset | type | meaning |
//! |---|---|---|
//! | 24 | u32 | number of keys |
//! | 28 | 3 · u32 each | what it is for (0 relinearisation, 1 conjugation, 2 the way to the ephemeral secret, 3 a rotation out of it, 4 a rotation), its rotation or 0, its level |
//!
//! Then the keys, in the order of the manifest, which is that of [`KeyManifest::keys`].

use std::io::{Read, Write};

use cachemir_hal::Backend;

use crate::error::CkksError;
use crate::gadget::Gadget;
use crate::parameters::Parameters;
use crate::ring::sampling::Seed;
use crate::ring::serialization::{HEADER_BYTES, Kind, Reader, Writer, read_whole, row_bytes};
use crate::ring::{Ring, UniformHalves};
use crate::rlwe::keys::{EvaluationKeys, KeyManifest, KeyRole, KeySwitchKey, PublicKey, RequiredKey};
use crate::rlwe::pairs::seeded_pair;

/// Bytes of a serialised key-switching key that reaches `level`.
pub fn serialised_switching_key_bytes(parameters: &Parameters, level: usize, gadget: Gadget) -> u64 {
    let special: Vec<u64> = parameters.special_moduli(gadget.special).collect();
    let row_bytes = row_bytes(parameters, parameters.primes()[..=level].iter().chain(&special));
    (HEADER_BYTES + size_of::<u32>() + size_of::<Seed>() + gadget.digits(level) * row_bytes) as u64
}

/// Bytes of the serialised evaluation keys of a manifest.
pub fn serialised_evaluation_keys_bytes(parameters: &Parameters, manifest: &KeyManifest) -> u64 {
    let keys = manifest.keys(parameters);
    (HEADER_BYTES + (1 + 3 * keys.len()) * size_of::<u32>()) as u64
        + keys.iter().map(|key| serialised_switching_key_bytes(parameters, key.level, key.gadget)).sum::<u64>()
}

impl<B: Backend> PublicKey<B> {
    /// Writes the key.
    pub fn write_to(&self, ring: &Ring<B>, sink: impl Write) -> Result<(), CkksError> {
        let mut writer = Writer::new(ring, Kind::PublicKey, sink);
        writer.header(Kind::PublicKey, self.level, 0)?;
        writer.bytes(&self.seed)?;
        writer.rows(&self.pair, 1, ring.chain(self.level))
    }

    /// Reads what [`write_to`](Self::write_to) wrote and refuses anything else with [`CkksError::Format`] or
    /// [`CkksError::LevelOutOfRange`]: other versions and parameters, missing bytes, residues that are not reduced.
    pub fn read_from(ring: &Ring<B>, source: impl Read) -> Result<Self, CkksError> {
        let mut reader = Reader::new(ring, Kind::PublicKey, source);
        let (level, _) = reader.header(Kind::PublicKey, 0..=0)?;
        let seed = reader.array()?;
        let b = reader.rows(1, ring.chain(level))?;
        Ok(Self { pair: seeded_pair(ring, &b, &seed, level)?, seed, level })
    }

    /// What [`write_to`](Self::write_to) writes.
    pub fn to_bytes(&self, ring: &Ring<B>) -> Result<Vec<u8>, CkksError> {
        let mut bytes = Vec::new();
        self.write_to(ring, &mut bytes)?;
        Ok(bytes)
    }

    /// As [`read_from`](Self::read_from); `bytes` must end with the key.
    pub fn from_bytes(ring: &Ring<B>, bytes: &[u8]) -> Result<Self, CkksError> {
        read_whole(Kind::PublicKey, bytes, |source| Self::read_from(ring, source))
    }
}

impl<B: Backend> KeySwitchKey<B> {
    /// Writes the key: [`serialised_switching_key_bytes`] of them.
    pub fn write_to(&self, ring: &Ring<B>, sink: impl Write) -> Result<(), CkksError> {
        write_key(&mut Writer::new(ring, Kind::SwitchingKey, sink), self)
    }

    /// Reads what [`write_to`](Self::write_to) wrote and refuses anything else with [`CkksError::Format`] or
    /// [`CkksError::LevelOutOfRange`]: other versions and parameters, missing bytes, residues that are not reduced.
    pub fn read_from(ring: &Ring<B>, source: impl Read) -> Result<Self, CkksError> {
        let mut reader = Reader::new(ring, Kind::SwitchingKey, source);
        let (level, gadget) = key_header(&mut reader)?;
        key_body(&mut reader, level, gadget)
    }

    /// What [`write_to`](Self::write_to) writes.
    pub fn to_bytes(&self, ring: &Ring<B>) -> Result<Vec<u8>, CkksError> {
        let mut bytes = Vec::new();
        self.write_to(ring, &mut bytes)?;
        Ok(bytes)
    }

    /// As [`read_from`](Self::read_from); `bytes` must end with the key.
    pub fn from_bytes(ring: &Ring<B>, bytes: &[u8]) -> Result<Self, CkksError> {
        read_whole(Kind::SwitchingKey, bytes, |source| Self::read_from(ring, source))
    }
}

impl<B: Backend> EvaluationKeys<B> {
    /// Writes the keys: [`serialised_evaluation_keys_bytes`] of their manifest. Their maker need not hold them:
    /// [`KeyGenerator::write_evaluation_keys`](crate::KeyGenerator::write_evaluation_keys) writes the same.
    pub fn write_to(&self, ring: &Ring<B>, sink: impl Write) -> Result<(), CkksError> {
        let manifest = self.manifest();
        let mut writer = EvaluationKeysWriter::begin(ring, &manifest, sink)?;
        for RequiredKey { role, level, .. } in manifest.keys(ring.parameters()) {
            writer.key(self.find(ring.parameters(), role, level)?)?;
        }
        Ok(())
    }

    /// Reads what [`write_to`](Self::write_to) wrote and refuses anything else with [`CkksError::Format`] or
    /// [`CkksError::LevelOutOfRange`]: other versions and parameters, keys twice, out of range or that the
    /// manifest does not announce, missing bytes, residues that are not reduced.
    pub fn read_from(ring: &Ring<B>, source: impl Read) -> Result<Self, CkksError> {
        let mut reader = Reader::new(ring, Kind::EvaluationKeys, source);
        let manifest = read_manifest(&mut reader)?;
        let mut keys = Self::none();
        for RequiredKey { role, level, gadget } in manifest.keys(ring.parameters()) {
            let found = key_header(&mut reader)?;
            if found != (level, gadget) {
                return Err(reader.malformed(format!(
                    "the key for {role} has level {} and {:?}, the manifest says {level} and {gadget:?}",
                    found.0, found.1
                )));
            }
            keys.insert(role, key_body(&mut reader, level, gadget)?);
        }
        Ok(keys)
    }

    /// As [`read_from`](Self::read_from); `bytes` must end with the keys.
    pub fn from_bytes(ring: &Ring<B>, bytes: &[u8]) -> Result<Self, CkksError> {
        read_whole(Kind::EvaluationKeys, bytes, |source| Self::read_from(ring, source))
    }
}

/// Writes a manifest and then its keys, which must come in the manifest's order.
pub(crate) struct EvaluationKeysWriter<'a, B: Backend, W>(Writer<'a, B, W>);

impl<'a, B: Backend, W: Write> EvaluationKeysWriter<'a, B, W> {
    /// Writes nothing if the manifest asks for what the parameters do not have.
    pub(crate) fn begin(ring: &'a Ring<B>, manifest: &KeyManifest, sink: W) -> Result<Self, CkksError> {
        manifest.check(ring.parameters())?;
        let mut writer = Writer::new(ring, Kind::EvaluationKeys, sink);
        writer.header(Kind::EvaluationKeys, 0, 0)?;
        let keys = manifest.keys(ring.parameters());
        let words = keys.iter().flat_map(|key| {
            let (kind, rotation) = role_words(key.role);
            [kind, rotation as u32, key.level as u32]
        });
        let words: Vec<u8> = std::iter::once(keys.len() as u32).chain(words).flat_map(u32::to_le_bytes).collect();
        writer.bytes(&words)?;
        Ok(Self(writer))
    }

    pub(crate) fn key(&mut self, key: &KeySwitchKey<B>) -> Result<(), CkksError> {
        write_key(&mut self.0, key)
    }
}

fn role_words(role: KeyRole) -> (u32, usize) {
    match role {
        KeyRole::Relinearisation => (0, 0),
        KeyRole::Conjugation => (1, 0),
        KeyRole::DenseToSparse => (2, 0),
        KeyRole::Raised(rotation) => (3, rotation),
        KeyRole::Rotation(rotation) => (4, rotation),
    }
}

fn read_manifest<B: Backend, R: Read>(reader: &mut Reader<'_, B, R>) -> Result<KeyManifest, CkksError> {
    let parameters = reader.ring().parameters();
    let (level, _) = reader.header(Kind::EvaluationKeys, 0..=0)?;
    if level != 0 {
        return Err(reader.malformed(format!("level {level} in the header, expected 0")));
    }
    let (mut manifest, mut announced) = (KeyManifest::default(), Vec::new());
    let count = reader.word32()?;
    let most = (2 * parameters.maximum_slots() + 2) * parameters.primes().len();
    if count > most {
        return Err(reader.malformed(format!("{count} keys, but there are at most {most}")));
    }
    for _ in 0..count {
        let [kind, rotation, level] = [reader.word32()?, reader.word32()?, reader.word32()?];
        let role = match kind {
            0 => KeyRole::Relinearisation,
            1 => KeyRole::Conjugation,
            2 => KeyRole::DenseToSparse,
            3 => KeyRole::Raised(rotation),
            4 if rotation != 0 => KeyRole::Rotation(rotation),
            _ => return Err(reader.malformed(format!("a key of kind {kind} with rotation {rotation}"))),
        };
        manifest.require(role, [level]);
        announced.push((role_words(role).1 == rotation, role, level));
    }
    manifest.check(parameters).map_err(|error| match error {
        CkksError::LevelOutOfRange { .. } => error,
        other => reader.malformed(other),
    })?;
    let keys = manifest.keys(parameters).into_iter().map(|key| (true, key.role, key.level));
    if !keys.eq(announced) {
        return Err(reader.malformed("keys are announced twice or out of order"));
    }
    Ok(manifest)
}

fn write_key<B: Backend, W: Write>(writer: &mut Writer<'_, B, W>, key: &KeySwitchKey<B>) -> Result<(), CkksError> {
    let (level, gadget) = (key.level, key.gadget);
    writer.header(Kind::SwitchingKey, level, gadget.special)?;
    writer.bytes(&(gadget.digit_limbs as u32).to_le_bytes())?;
    writer.bytes(&key.seed)?;
    let limbs = writer.ring().extended(level, gadget.special);
    writer.rows(&key.b, gadget.digits(level), &limbs)
}

/// The level, and how polynomials are cut into digits.
fn key_header<B: Backend, R: Read>(reader: &mut Reader<'_, B, R>) -> Result<(usize, Gadget), CkksError> {
    let parameters = reader.ring().parameters();
    let primes = parameters.primes().len() + parameters.special_primes().len();
    let (level, special) = reader.header(Kind::SwitchingKey, 1..=primes - 1)?;
    let gadget = Gadget { digit_limbs: reader.word32()?, special };
    parameters.check_gadget(level, gadget).map_err(|error| reader.malformed(error))?;
    Ok((level, gadget))
}

fn key_body<B: Backend, R: Read>(
    reader: &mut Reader<'_, B, R>,
    level: usize,
    gadget: Gadget,
) -> Result<KeySwitchKey<B>, CkksError> {
    let ring = reader.ring();
    let limbs = ring.extended(level, gadget.special);
    let digits = gadget.digits(level);
    let seed = reader.array()?;
    let b = reader.rows(digits, &limbs)?;
    let a = match ring.uniform_halves() {
        UniformHalves::Stored => Some(ring.backend().expand_uniform(&seed, digits, &limbs)?),
        UniformHalves::Seeded => None,
    };
    Ok(KeySwitchKey { b, a, seed, level, gadget })
}
