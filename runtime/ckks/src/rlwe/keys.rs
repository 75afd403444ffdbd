//! Public and evaluation keys, and the manifest that says which of them a program needs.

use std::collections::BTreeMap;
use std::fmt;

use cachemir_hal::{Backend, KeyView, UniformHalf};

use crate::error::CkksError;
use crate::parameters::Parameters;
use crate::ring::UniformHalves;
use crate::ring::sampling::Seed;

/// The evaluation keys that a program needs, each with the highest level at which it is used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyManifest {
    /// Rotation to the left, in 1 .. N/2, → highest level.
    pub rotations: BTreeMap<usize, usize>,
    /// Highest level of a conjugation.
    pub conjugation: Option<usize>,
    /// Highest level of a relinearisation.
    pub relinearisation: Option<usize>,
    /// Whether the two keys to and from the ephemeral sparse secret of a bootstrap are needed.
    pub encapsulation: bool,
}

impl KeyManifest {
    /// Asks for a rotation at a level; rotation 0 needs no key.
    pub fn require_rotation(&mut self, rotation: usize, level: usize) {
        if rotation != 0 {
            let highest = self.rotations.entry(rotation).or_default();
            *highest = level.max(*highest);
        }
    }

    /// Asks for conjugation at a level.
    pub fn require_conjugation(&mut self, level: usize) {
        self.conjugation = self.conjugation.max(Some(level));
    }

    /// Asks for relinearisation at a level.
    pub fn require_relinearisation(&mut self, level: usize) {
        self.relinearisation = self.relinearisation.max(Some(level));
    }

    /// Everything that either of two manifests asks for.
    pub fn merge(&mut self, other: &Self) {
        for (&rotation, &level) in &other.rotations {
            self.require_rotation(rotation, level);
        }
        self.conjugation = self.conjugation.max(other.conjugation);
        self.relinearisation = self.relinearisation.max(other.relinearisation);
        self.encapsulation |= other.encapsulation;
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.rotations.len()
            + usize::from(self.conjugation.is_some())
            + usize::from(self.relinearisation.is_some())
            + 2 * usize::from(self.encapsulation)
    }

    /// Whether no key is needed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of memory that the keys take.
    pub fn key_bytes(&self, parameters: &Parameters, halves: UniformHalves) -> u64 {
        self.keys(parameters).iter().map(|key| switching_key_bytes(parameters, key.level, key.special, halves)).sum()
    }

    /// The keys, in the order in which they are made and serialised.
    pub(crate) fn keys(&self, parameters: &Parameters) -> Vec<RequiredKey> {
        let special = parameters.digit_limbs();
        let mut keys = Vec::with_capacity(self.len());
        let mut push = |role, level, special| keys.push(RequiredKey { role, level, special });
        if let Some(level) = self.relinearisation {
            push(KeyRole::Relinearisation, level, special);
        }
        if let Some(level) = self.conjugation {
            push(KeyRole::Conjugation, level, special);
        }
        if self.encapsulation {
            push(KeyRole::DenseToSparse, 0, 1);
            push(KeyRole::SparseToDense, parameters.maximum_level(), special);
        }
        for (&rotation, &level) in &self.rotations {
            push(KeyRole::Rotation(rotation), level, special);
        }
        keys
    }
}

/// What an evaluation key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyRole {
    Relinearisation,
    Conjugation,
    DenseToSparse,
    SparseToDense,
    Rotation(usize),
}

impl fmt::Display for KeyRole {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Relinearisation => formatter.write_str("relinearisation"),
            Self::Conjugation => formatter.write_str("conjugation"),
            Self::DenseToSparse => formatter.write_str("the switch to the ephemeral secret"),
            Self::SparseToDense => formatter.write_str("the switch back from the ephemeral secret"),
            Self::Rotation(rotation) => write!(formatter, "rotation by {rotation}"),
        }
    }
}

/// One key of a manifest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequiredKey {
    pub(crate) role: KeyRole,
    pub(crate) level: usize,
    pub(crate) special: usize,
}

/// Bytes of memory of one key-switching key with `special` special primes that reaches `level`.
pub fn switching_key_bytes(parameters: &Parameters, level: usize, special: usize, halves: UniformHalves) -> u64 {
    let digits = (level + 1).div_ceil(special);
    let kept = match halves {
        UniformHalves::Stored => 2,
        UniformHalves::Seeded => 1,
    };
    (kept * digits * (level + 1 + special) * parameters.degree() * size_of::<u64>()) as u64
}

/// A hybrid key-switching key: for each digit a pair (b_d, a_d) modulo q_0 ⋯ q_level · p_0 ⋯ p_{α-1}, in the NTT
/// domain.
#[derive(Debug)]
pub struct KeySwitchKey<B: Backend> {
    pub(crate) b: B::Buffer,
    /// `None` where they are expanded as they are used.
    pub(crate) a: Option<B::Buffer>,
    pub(crate) seed: Seed,
    pub(crate) level: usize,
    pub(crate) special: usize,
}

impl<B: Backend> KeySwitchKey<B> {
    /// The b-halves, `[digits][level + 1 + α][N]`.
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

    /// α: the number of special primes, and of limbs in a digit.
    pub fn special(&self) -> usize {
        self.special
    }

    /// The key for operations modulo q_0 … q_level, p_0 … p_{α-1}.
    pub(crate) fn view(&self, level: usize) -> KeyView<'_, B::Buffer> {
        let positions = (0..=level).chain(self.level + 1..=self.level + self.special).collect();
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
    pub(crate) rotations: BTreeMap<usize, KeySwitchKey<B>>,
    pub(crate) conjugation: Option<KeySwitchKey<B>>,
    pub(crate) relinearisation: Option<KeySwitchKey<B>>,
    pub(crate) dense_to_sparse: Option<KeySwitchKey<B>>,
    pub(crate) sparse_to_dense: Option<KeySwitchKey<B>>,
}

impl<B: Backend> EvaluationKeys<B> {
    pub(crate) fn none() -> Self {
        Self {
            rotations: BTreeMap::new(),
            conjugation: None,
            relinearisation: None,
            dense_to_sparse: None,
            sparse_to_dense: None,
        }
    }

    pub(crate) fn insert(&mut self, role: KeyRole, key: KeySwitchKey<B>) {
        match role {
            KeyRole::Relinearisation => self.relinearisation = Some(key),
            KeyRole::Conjugation => self.conjugation = Some(key),
            KeyRole::DenseToSparse => self.dense_to_sparse = Some(key),
            KeyRole::SparseToDense => self.sparse_to_dense = Some(key),
            KeyRole::Rotation(rotation) => drop(self.rotations.insert(rotation, key)),
        }
    }

    /// The key of a role, if it reaches `level`.
    pub(crate) fn find(&self, role: KeyRole, level: usize) -> Result<&KeySwitchKey<B>, CkksError> {
        let key = match role {
            KeyRole::Relinearisation => self.relinearisation.as_ref(),
            KeyRole::Conjugation => self.conjugation.as_ref(),
            KeyRole::DenseToSparse => self.dense_to_sparse.as_ref(),
            KeyRole::SparseToDense => self.sparse_to_dense.as_ref(),
            KeyRole::Rotation(rotation) => self.rotations.get(&rotation),
        };
        match key {
            None => Err(CkksError::MissingKey { key: role.to_string() }),
            Some(key) if key.level < level => {
                Err(CkksError::KeyLevel { key: role.to_string(), key_level: key.level, level })
            }
            Some(key) => Ok(key),
        }
    }

    /// The key of the rotation to the left by `rotation` in 1 .. N/2, if it reaches `level`.
    pub fn rotation(&self, rotation: usize, level: usize) -> Result<&KeySwitchKey<B>, CkksError> {
        self.find(KeyRole::Rotation(rotation), level)
    }

    /// The key of complex conjugation, if it reaches `level`.
    pub fn conjugation(&self, level: usize) -> Result<&KeySwitchKey<B>, CkksError> {
        self.find(KeyRole::Conjugation, level)
    }

    /// The key from s² to s, if it reaches `level`.
    pub fn relinearisation(&self, level: usize) -> Result<&KeySwitchKey<B>, CkksError> {
        self.find(KeyRole::Relinearisation, level)
    }

    /// The key from the main to the ephemeral secret: level 0, one special prime.
    pub fn dense_to_sparse(&self) -> Result<&KeySwitchKey<B>, CkksError> {
        self.find(KeyRole::DenseToSparse, 0)
    }

    /// The key from the ephemeral to the main secret, if it reaches `level`.
    pub fn sparse_to_dense(&self, level: usize) -> Result<&KeySwitchKey<B>, CkksError> {
        self.find(KeyRole::SparseToDense, level)
    }

    /// What these keys can do.
    pub fn manifest(&self) -> KeyManifest {
        KeyManifest {
            rotations: self.rotations.iter().map(|(&rotation, key)| (rotation, key.level)).collect(),
            conjugation: self.conjugation.as_ref().map(KeySwitchKey::level),
            relinearisation: self.relinearisation.as_ref().map(KeySwitchKey::level),
            encapsulation: self.dense_to_sparse.is_some() && self.sparse_to_dense.is_some(),
        }
    }
}
