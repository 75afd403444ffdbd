//! Public and evaluation keys, and the manifest that says which of them a program needs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use cachemir_hal::{Backend, KeyView, UniformHalf};

use crate::error::CkksError;
use crate::gadget::Gadget;
use crate::parameters::Parameters;
use crate::ring::sampling::Seed;
use crate::ring::{Ring, UniformHalves};

/// What an evaluation key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyRole {
    /// From s² to s.
    Relinearisation,
    /// From s to its conjugate.
    Conjugation,
    /// From s to the ephemeral sparse secret of a bootstrap, modulo q_0·p_0 only.
    DenseToSparse,
    /// From the ephemeral secret to s, with a rotation to the left by an amount in 0 .. N/2: for results of ModRaise, which
    /// are one small digit.
    Raised(usize),
    /// Rotation to the left by an amount in 1 .. N/2.
    Rotation(usize),
}

impl fmt::Display for KeyRole {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Relinearisation => formatter.write_str("relinearisation"),
            Self::Conjugation => formatter.write_str("conjugation"),
            Self::DenseToSparse => formatter.write_str("the switch to the ephemeral secret"),
            Self::Raised(rotation) => write!(formatter, "rotation by {rotation} out of the ephemeral secret"),
            Self::Rotation(rotation) => write!(formatter, "rotation by {rotation}"),
        }
    }
}

impl KeyRole {
    /// g of the automorphism φ: X ↦ X^g that the key goes with, 1 where there is none.
    pub(crate) fn galois_element<B: Backend>(self, ring: &Ring<B>) -> usize {
        match self {
            Self::Relinearisation | Self::DenseToSparse => 1,
            Self::Conjugation => ring.conjugation_element(),
            Self::Raised(rotation) | Self::Rotation(rotation) => ring.galois_element(rotation),
        }
    }

    /// How the key for a ciphertext at `level` cuts it into digits.
    pub fn gadget(self, parameters: &Parameters, level: usize) -> Gadget {
        match self {
            Self::DenseToSparse => Gadget::single_digit(1),
            Self::Raised(_) => parameters.raised_gadget(),
            Self::Relinearisation | Self::Conjugation | Self::Rotation(_) => parameters.gadget(level),
        }
    }
}

/// The evaluation keys that a program needs, each with the levels at which it is used. Levels of one [`Gadget`] share a key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyManifest {
    levels: BTreeMap<KeyRole, BTreeSet<usize>>,
}

impl KeyManifest {
    pub(crate) fn require(&mut self, role: KeyRole, levels: impl IntoIterator<Item = usize>) {
        self.levels.entry(role).or_default().extend(levels);
    }

    /// Asks for a rotation at some levels; rotation 0 needs no key.
    pub fn require_rotation(&mut self, rotation: usize, levels: impl IntoIterator<Item = usize>) {
        if rotation != 0 {
            self.require(KeyRole::Rotation(rotation), levels);
        }
    }

    /// Asks for conjugation at some levels.
    pub fn require_conjugation(&mut self, levels: impl IntoIterator<Item = usize>) {
        self.require(KeyRole::Conjugation, levels);
    }

    /// Asks for relinearisation at some levels.
    pub fn require_relinearisation(&mut self, levels: impl IntoIterator<Item = usize>) {
        self.require(KeyRole::Relinearisation, levels);
    }

    /// Asks for the way to the ephemeral secret, and for rotations out of it after ModRaise to `level`.
    pub fn require_encapsulation(&mut self, rotations: impl IntoIterator<Item = usize>, level: usize) {
        self.require(KeyRole::DenseToSparse, [0]);
        for rotation in rotations {
            self.require(KeyRole::Raised(rotation), [level]);
        }
    }

    /// Everything that either of two manifests asks for.
    pub fn merge(&mut self, other: &Self) {
        for (&role, levels) in &other.levels {
            self.require(role, levels.iter().copied());
        }
    }

    /// The levels at which a key is used.
    pub fn levels(&self, role: KeyRole) -> impl Iterator<Item = usize> + '_ {
        self.levels.get(&role).into_iter().flatten().copied()
    }

    /// Whether no key is needed.
    pub fn is_empty(&self) -> bool {
        self.levels.values().all(BTreeSet::is_empty)
    }

    /// Refuses levels above the chain, rotations by N/2 or more, and a way to the ephemeral secret above level 0.
    pub fn check(&self, parameters: &Parameters) -> Result<(), CkksError> {
        for (&role, levels) in &self.levels {
            let maximum = if role == KeyRole::DenseToSparse { 0 } else { parameters.maximum_level() };
            if let Some(&level) = levels.last().filter(|&&level| level > maximum) {
                return Err(CkksError::LevelOutOfRange { level, maximum });
            }
            if let KeyRole::Rotation(rotation) | KeyRole::Raised(rotation) = role
                && rotation >= parameters.maximum_slots()
            {
                let (value, condition) = (rotation as f64, "less than the number of slots, N/2");
                return Err(CkksError::Value { what: "rotation of a key", value, condition });
            }
        }
        Ok(())
    }

    /// Bytes of memory that the keys take, if the parameters have the levels.
    pub fn key_bytes(&self, parameters: &Parameters, halves: UniformHalves) -> u64 {
        self.keys(parameters).iter().map(|key| switching_key_bytes(parameters, key.level, key.gadget, halves)).sum()
    }

    /// The keys, in the order in which they are made and serialised.
    pub fn keys(&self, parameters: &Parameters) -> Vec<RequiredKey> {
        let mut keys = Vec::new();
        for (&role, levels) in &self.levels {
            // Ascending, so that each gadget keeps its highest level.
            let highest: BTreeMap<Gadget, usize> =
                levels.iter().map(|&level| (role.gadget(parameters, level), level)).collect();
            keys.extend(highest.into_iter().map(|(gadget, level)| RequiredKey { role, level, gadget }));
        }
        keys
    }
}

/// One key of a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequiredKey {
    /// What it is for.
    pub role: KeyRole,
    /// The highest level at which it is used.
    pub level: usize,
    /// How it cuts polynomials into digits.
    pub gadget: Gadget,
}

/// Bytes of memory of one key-switching key that reaches `level`.
pub fn switching_key_bytes(parameters: &Parameters, level: usize, gadget: Gadget, halves: UniformHalves) -> u64 {
    let kept = match halves {
        UniformHalves::Stored => 2,
        UniformHalves::Seeded => 1,
    };
    (kept * gadget.digits(level) * (level + 1 + gadget.special) * parameters.degree() * size_of::<u64>()) as u64
}

/// A hybrid key-switching key: for each digit a pair (b_d, a_d) modulo q_0 ⋯ q_level · P, in the NTT domain.
#[derive(Debug)]
pub struct KeySwitchKey<B: Backend> {
    pub(crate) b: B::Buffer,
    /// `None` where they are expanded as they are used.
    pub(crate) a: Option<B::Buffer>,
    pub(crate) seed: Seed,
    pub(crate) level: usize,
    pub(crate) gadget: Gadget,
}

impl<B: Backend> KeySwitchKey<B> {
    /// The b-halves, `[digits][level + 1 + special][N]`.
    pub fn b(&self) -> &B::Buffer {
        &self.b
    }

    /// The a-halves, of the same shape, where they are stored ([`UniformHalves`]).
    pub fn a(&self) -> Option<&B::Buffer> {
        self.a.as_ref()
    }

    /// The public seed that the a-halves are expanded from.
    pub fn seed(&self) -> &Seed {
        &self.seed
    }

    /// The highest level at which the key can be used.
    pub fn level(&self) -> usize {
        self.level
    }

    /// How it cuts polynomials into digits.
    pub fn gadget(&self) -> Gadget {
        self.gadget
    }

    /// The key for operations modulo q_0 ⋯ q_level · P.
    pub(crate) fn view(&self, level: usize) -> KeyView<'_, B::Buffer> {
        let positions = (0..=level).chain(self.level + 1..=self.level + self.gadget.special).collect();
        let a = self.a.as_ref().map_or(UniformHalf::Seeded(&self.seed), UniformHalf::Stored);
        KeyView { b: &self.b, a, positions }
    }
}

/// An encryption of zero under a secret, with which anyone can encrypt up to its level.
#[derive(Debug)]
pub struct PublicKey<B: Backend> {
    /// (b, a), in the NTT domain.
    pub(crate) pair: B::Buffer,
    pub(crate) seed: Seed,
    pub(crate) level: usize,
}

impl<B: Backend> PublicKey<B> {
    /// The public seed that a is expanded from.
    pub fn seed(&self) -> &Seed {
        &self.seed
    }

    /// The highest level that can be encrypted to.
    pub fn level(&self) -> usize {
        self.level
    }
}

/// The keys that a server needs to execute a program.
#[derive(Debug)]
pub struct EvaluationKeys<B: Backend> {
    keys: BTreeMap<KeyRole, Vec<KeySwitchKey<B>>>,
}

impl<B: Backend> EvaluationKeys<B> {
    pub(crate) fn none() -> Self {
        Self { keys: BTreeMap::new() }
    }

    pub(crate) fn insert(&mut self, role: KeyRole, key: KeySwitchKey<B>) {
        self.keys.entry(role).or_default().push(key);
    }

    /// The key of a role for ciphertexts at `level`. Fails with [`CkksError::MissingKey`] if there is none of the role,
    /// with [`CkksError::KeyLevel`] if those that there are do not serve the level.
    pub fn find(&self, parameters: &Parameters, role: KeyRole, level: usize) -> Result<&KeySwitchKey<B>, CkksError> {
        let keys = self.keys.get(&role).ok_or_else(|| CkksError::MissingKey { key: role.to_string() })?;
        let gadget = role.gadget(parameters, level);
        keys.iter().find(|key| key.gadget == gadget && key.level >= level).ok_or_else(|| {
            let key_levels = keys.iter().map(KeySwitchKey::level).collect();
            CkksError::KeyLevel { key: role.to_string(), key_levels, level }
        })
    }

    /// What these keys can do: for each key its highest level.
    pub fn manifest(&self) -> KeyManifest {
        let levels = |keys: &Vec<KeySwitchKey<B>>| keys.iter().map(KeySwitchKey::level).collect();
        KeyManifest { levels: self.keys.iter().map(|(&role, keys)| (role, levels(keys))).collect() }
    }
}
