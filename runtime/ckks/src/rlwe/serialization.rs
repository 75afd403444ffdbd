//! Public and evaluation keys as bytes. Secret keys have no such form.
//!
//! # Public key and switching key
//! After the [header](crate::ring::serialization), whose number of special primes is 0 for a public key and α for a
//! switching key:
//!
//! | offset | type | meaning |
//! |---|---|---|
//! | 24 | 32 bytes | the seed of the a-half |
//! | 56 | rows | the b-half: `[level + 1]`, or `[digits][level + 1 + α]` with ⌈(level + 1)/α⌉ digits |
//!
//! # Evaluation keys
//! The header's level is the highest of all keys, 0 if there are none; its number of special primes is that of the
//! parameters. Then the manifest:
//!
//! | offset | type | meaning |
//! |---|---|---|
//! | 24 | u32 | highest level of a relinearisation plus 1, or 0 if there is no such key |
//! | 28 | u32 | the same of a conjugation |
//! | 32 | u32 | 1 if the two keys of encapsulation are there, otherwise 0 |
//! | 36 | u32 | number of rotations, below N/2 |
//! | 40 | 2 · u32 each | rotation in 1 .. N/2, ascending, and its highest level |
//!
//! Then the keys, each with a header and seed of its own as above: relinearisation, conjugation, to and from the
//! ephemeral secret (level 0 with one special prime, highest level), rotations in the order of the manifest.

use std::io::{Read, Write};

use cachemir_hal::Backend;

use crate::error::CkksError;
use crate::parameters::Parameters;
use crate::ring::sampling::Seed;
use crate::ring::serialization::{HEADER_BYTES, Kind, Reader, Writer, read_whole, row_bytes};
use crate::ring::{Ring, UniformHalves};
use crate::rlwe::generator::seeded_pair;
use crate::rlwe::keys::{EvaluationKeys, KeyManifest, KeySwitchKey, PublicKey, RequiredKey};

/// Bytes of a serialised key-switching key with `special` special primes that reaches `level`.
pub fn serialised_switching_key_bytes(parameters: &Parameters, level: usize, special: usize) -> u64 {
    let primes = parameters.primes()[..=level].iter().chain(&parameters.special_primes()[..special]);
    let digits = (level + 1).div_ceil(special);
    (HEADER_BYTES + size_of::<Seed>() + digits * row_bytes(parameters, primes)) as u64
}

/// Bytes of the serialised evaluation keys of a manifest.
pub fn serialised_evaluation_keys_bytes(parameters: &Parameters, manifest: &KeyManifest) -> u64 {
    let keys = manifest.keys(parameters);
    let words = 4 + 2 * manifest.rotations.len();
    (HEADER_BYTES + words * size_of::<u32>()) as u64
        + keys.iter().map(|key| serialised_switching_key_bytes(parameters, key.level, key.special)).sum::<u64>()
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
        let (level, special) = key_header(&mut reader)?;
        key_body(&mut reader, level, special)
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
            writer.key(self.find(role, level)?)?;
        }
        Ok(())
    }

    /// Reads what [`write_to`](Self::write_to) wrote and refuses anything else with [`CkksError::Format`] or
    /// [`CkksError::LevelOutOfRange`]: other versions and parameters, rotations twice or out of range, keys that the
    /// manifest does not announce, missing bytes, residues that are not reduced.
    pub fn read_from(ring: &Ring<B>, source: impl Read) -> Result<Self, CkksError> {
        let mut reader = Reader::new(ring, Kind::EvaluationKeys, source);
        let manifest = read_manifest(&mut reader)?;
        let mut keys = Self::none();
        for RequiredKey { role, level, special } in manifest.keys(ring.parameters()) {
            let found = key_header(&mut reader)?;
            if found != (level, special) {
                return Err(reader.malformed(format!(
                    "the key for {role} has level {} and {} special primes, the manifest says {level} and {special}",
                    found.0, found.1
                )));
            }
            keys.insert(role, key_body(&mut reader, level, special)?);
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
        let mut writer = Writer::new(ring, Kind::EvaluationKeys, sink);
        for &rotation in manifest.rotations.keys() {
            check_rotation(ring, rotation).map_err(|problem| Kind::EvaluationKeys.malformed(problem))?;
        }
        writer.header(Kind::EvaluationKeys, highest_level(ring, manifest), ring.parameters().digit_limbs())?;
        let plus_one = |level: Option<usize>| level.map_or(0, |level| level + 1);
        let fixed = [
            plus_one(manifest.relinearisation),
            plus_one(manifest.conjugation),
            usize::from(manifest.encapsulation),
            manifest.rotations.len(),
        ];
        let rotations = manifest.rotations.iter().flat_map(|(&rotation, &level)| [rotation, level]);
        let words: Vec<u8> = fixed.into_iter().chain(rotations).flat_map(|word| (word as u32).to_le_bytes()).collect();
        writer.bytes(&words)?;
        Ok(Self(writer))
    }

    pub(crate) fn key(&mut self, key: &KeySwitchKey<B>) -> Result<(), CkksError> {
        write_key(&mut self.0, key)
    }
}

fn read_manifest<B: Backend, R: Read>(reader: &mut Reader<'_, B, R>) -> Result<KeyManifest, CkksError> {
    let ring = reader.ring();
    let special = ring.parameters().digit_limbs();
    let (highest, _) = reader.header(Kind::EvaluationKeys, special..=special)?;
    let mut manifest = KeyManifest {
        relinearisation: reader.word32()?.checked_sub(1),
        conjugation: reader.word32()?.checked_sub(1),
        ..KeyManifest::default()
    };
    manifest.encapsulation = match reader.word32()? {
        0 => false,
        1 => true,
        other => return Err(reader.malformed(format!("flag {other} for encapsulation, expected 0 or 1"))),
    };
    let count = reader.word32()?;
    if count >= ring.parameters().maximum_slots() {
        return Err(
            reader.malformed(format!("{count} rotations, but there are {} slots", ring.parameters().maximum_slots()))
        );
    }
    let mut previous = 0;
    for _ in 0..count {
        let (rotation, level) = (reader.word32()?, reader.word32()?);
        check_rotation(ring, rotation).map_err(|problem| reader.malformed(problem))?;
        if rotation <= previous {
            return Err(reader.malformed(format!("rotation by {rotation} after {previous}: twice or out of order")));
        }
        manifest.rotations.insert(rotation, level);
        previous = rotation;
    }
    let found = highest_level(ring, &manifest);
    ring.check_level(found)?;
    if found != highest {
        return Err(reader.malformed(format!("the highest level is {found}, the header says {highest}")));
    }
    Ok(manifest)
}

fn highest_level<B: Backend>(ring: &Ring<B>, manifest: &KeyManifest) -> usize {
    manifest.keys(ring.parameters()).iter().map(|key| key.level).max().unwrap_or(0)
}

fn check_rotation<B: Backend>(ring: &Ring<B>, rotation: usize) -> Result<(), String> {
    let slots = ring.parameters().maximum_slots();
    if (1..slots).contains(&rotation) {
        Ok(())
    } else {
        Err(format!("rotation by {rotation}, expected 1 to {}", slots - 1))
    }
}

fn write_key<B: Backend, W: Write>(writer: &mut Writer<'_, B, W>, key: &KeySwitchKey<B>) -> Result<(), CkksError> {
    let (level, special) = (key.level, key.special);
    writer.header(Kind::SwitchingKey, level, special)?;
    writer.bytes(&key.seed)?;
    let limbs = writer.ring().extended(level, special);
    writer.rows(&key.b, (level + 1).div_ceil(special), &limbs)
}

/// The level and the number of special primes.
fn key_header<B: Backend, R: Read>(reader: &mut Reader<'_, B, R>) -> Result<(usize, usize), CkksError> {
    let special = reader.ring().parameters().digit_limbs();
    reader.header(Kind::SwitchingKey, 1..=special)
}

fn key_body<B: Backend, R: Read>(
    reader: &mut Reader<'_, B, R>,
    level: usize,
    special: usize,
) -> Result<KeySwitchKey<B>, CkksError> {
    let ring = reader.ring();
    let limbs = ring.extended(level, special);
    let digits = (level + 1).div_ceil(special);
    let seed = reader.array()?;
    let b = reader.rows(digits, &limbs)?;
    let a = match ring.uniform_halves() {
        UniformHalves::Stored => Some(ring.backend().expand_uniform(&seed, digits, &limbs)?),
        UniformHalves::Seeded => None,
    };
    Ok(KeySwitchKey { b, a, seed, level, special })
}
