//! Key generation and encryptions of zero.

use std::io::Write;
use std::ops::ControlFlow;

use cachemir_hal::Backend;
use rand_chacha::ChaCha20Rng;
use zeroize::Zeroizing;

use crate::error::CkksError;
use crate::gadget::Gadget;
use crate::ring::sampling::{self, GaussianSampler, Seed};
use crate::ring::{Ring, UniformHalves};
use crate::rlwe::keys::{
    EvaluationKeys, KeyManifest, KeyRole, KeySwitchKey, PublicKey, RequiredKey, switching_key_bytes,
};
use crate::rlwe::pairs::pair;
use crate::rlwe::secret::{SecretKey, SecretResidues};
use crate::rlwe::serialization::EvaluationKeysWriter;

/// Gaussian errors `[polynomials][limbs]` in the NTT domain.
pub(crate) fn errors<B: Backend>(
    ring: &Ring<B>,
    gaussian: &GaussianSampler,
    generator: &mut ChaCha20Rng,
    polynomials: usize,
    limbs: &[usize],
) -> Result<B::Buffer, CkksError> {
    let samples = gaussian.sample(generator, polynomials * ring.degree());
    let wide = Zeroizing::new(samples.iter().map(|&e| i64::from(e)).collect::<Vec<_>>());
    let mut buffer = ring.backend().lift_signed(&wide, limbs)?;
    ring.backend().forward_ntt(&mut buffer, limbs)?;
    Ok(buffer)
}

/// A fresh encryption of zero modulo q_0 ⋯ q_level under a secret, (-a·s + e, a), and the public seed of a.
pub(crate) fn encrypt_zero<B: Backend>(
    ring: &Ring<B>,
    gaussian: &GaussianSampler,
    secret: &SecretKey,
    level: usize,
) -> Result<(B::Buffer, Seed), CkksError> {
    let backend = ring.backend();
    let limbs = ring.chain(level);
    let mut minus_secret = secret.residues(ring, limbs)?;
    backend.negate_assign(minus_secret.buffer_mut(), limbs)?;
    let seed = *sampling::os_seed()?;
    let a = backend.expand_uniform(&seed, 1, limbs)?;
    let mut b = errors(ring, gaussian, &mut sampling::os_generator()?, 1, limbs)?;
    backend.mul_accumulate(&mut b, &a, minus_secret.buffer(), limbs)?;
    Ok((pair(ring, &b, &a, limbs.len())?, seed))
}

/// A fresh encryption of zero modulo q_0 ⋯ q_level under a public key: (b·u + e_0, a·u + e_1) with a ternary u.
pub(crate) fn encrypt_zero_public<B: Backend>(
    ring: &Ring<B>,
    gaussian: &GaussianSampler,
    key: &PublicKey<B>,
    level: usize,
) -> Result<B::Buffer, CkksError> {
    if level > key.level {
        return Err(CkksError::KeyLevel { key: "public encryption".to_owned(), key_levels: vec![key.level], level });
    }
    let limbs = ring.chain(level);
    let mut generator = sampling::os_generator()?;
    let mask = SecretKey::from_coefficients(sampling::ternary(&mut generator, ring.degree())).residues(ring, limbs)?;
    let mut pair = errors(ring, gaussian, &mut generator, 2, limbs)?;
    ring.backend().mul_accumulate(&mut pair, &key.pair, mask.buffer(), limbs)?;
    Ok(pair)
}

/// Makes keys. All randomness is the operating system's.
#[derive(Debug, Clone)]
pub struct KeyGenerator<B: Backend> {
    ring: Ring<B>,
    gaussian: GaussianSampler,
}

impl<B: Backend> KeyGenerator<B> {
    /// A generator for the keys of one parameter set.
    pub fn new(ring: Ring<B>) -> Self {
        Self { ring, gaussian: GaussianSampler::new() }
    }

    /// A fresh main secret: uniform ternary.
    pub fn secret_key(&self) -> Result<SecretKey, CkksError> {
        SecretKey::dense(self.ring.degree())
    }

    /// A fresh ephemeral secret of the parameters' weight.
    pub fn ephemeral_secret_key(&self) -> Result<SecretKey, CkksError> {
        SecretKey::sparse(self.ring.degree(), self.ring.parameters().ephemeral_weight())
    }

    /// A public key for encryption up to `level`.
    pub fn public_key(&self, secret: &SecretKey, level: usize) -> Result<PublicKey<B>, CkksError> {
        self.ring.check_level(level)?;
        let (pair, seed) = encrypt_zero(&self.ring, &self.gaussian, secret, level)?;
        Ok(PublicKey { pair, seed, level })
    }

    /// A key that takes ciphertexts of up to `level` from one secret to another.
    pub fn switching_key(
        &self,
        from: &SecretKey,
        to: &SecretKey,
        level: usize,
        gadget: Gadget,
    ) -> Result<KeySwitchKey<B>, CkksError> {
        self.ring.check_level(level)?;
        self.ring.parameters().check_gadget(level, gadget)?;
        self.switching_key_turned(from.residues(&self.ring, self.ring.chain(level))?, to, 1, level, gadget)
    }

    /// s² modulo the primes at these table indices.
    fn square(&self, secret: &SecretKey, limbs: &[usize]) -> Result<SecretResidues<B>, CkksError> {
        let mut square = secret.residues(&self.ring, limbs)?;
        let once = secret.residues(&self.ring, limbs)?;
        self.ring.backend().mul_assign(square.buffer_mut(), once.buffer(), limbs)?;
        Ok(square)
    }

    /// Bytes of memory that the keys of a manifest take.
    pub fn key_bytes(&self, manifest: &KeyManifest) -> u64 {
        manifest.key_bytes(self.ring.parameters(), self.ring.uniform_halves())
    }

    /// All keys of a manifest. After each key, `progress` is told the bytes made so far and in all; where it breaks,
    /// this fails with [`CkksError::Interrupted`].
    pub fn evaluation_keys(
        &self,
        secret: &SecretKey,
        manifest: &KeyManifest,
        progress: impl FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<EvaluationKeys<B>, CkksError> {
        let mut keys = EvaluationKeys::none();
        self.each_key(secret, manifest, progress, |role, key| {
            keys.insert(role, key);
            Ok(())
        })?;
        Ok(keys)
    }

    /// Writes all keys of a manifest for [`EvaluationKeys::read_from`], each before the next is made, so that one key
    /// is in memory at a time. `progress` is told the same as by [`evaluation_keys`](Self::evaluation_keys): bytes of
    /// memory, of which fewer are written. After an error, what was written is of no use.
    pub fn write_evaluation_keys(
        &self,
        secret: &SecretKey,
        manifest: &KeyManifest,
        sink: impl Write,
        progress: impl FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<(), CkksError> {
        let mut writer = EvaluationKeysWriter::begin(&self.ring, manifest, sink)?;
        self.each_key(secret, manifest, progress, |_, key| writer.key(&key))
    }

    /// Makes the keys of a manifest one after the other and hands each to `take`.
    fn each_key(
        &self,
        secret: &SecretKey,
        manifest: &KeyManifest,
        mut progress: impl FnMut(u64, u64) -> ControlFlow<()>,
        mut take: impl FnMut(KeyRole, KeySwitchKey<B>) -> Result<(), CkksError>,
    ) -> Result<(), CkksError> {
        let parameters = self.ring.parameters();
        manifest.check(parameters)?;
        let total = self.key_bytes(manifest);
        // One for the way into the ephemeral secret and all ways out.
        let ephemeral = self.ephemeral_secret_key()?;
        let mut made = 0;
        for RequiredKey { role, level, gadget } in manifest.keys(parameters) {
            let limbs = self.ring.chain(level);
            let from = match role {
                KeyRole::Relinearisation => self.square(secret, limbs)?,
                KeyRole::Raised(_) => ephemeral.residues(&self.ring, limbs)?,
                KeyRole::DenseToSparse | KeyRole::Conjugation | KeyRole::Rotation(_) => {
                    secret.residues(&self.ring, limbs)?
                }
            };
            let to = if role == KeyRole::DenseToSparse { &ephemeral } else { secret };
            let key = self.switching_key_turned(from, to, role.galois_element(&self.ring), level, gadget)?;
            take(role, key)?;
            made += switching_key_bytes(parameters, level, gadget, self.ring.uniform_halves());
            if progress(made, total).is_break() {
                return Err(CkksError::Interrupted);
            }
        }
        Ok(())
    }

    /// The key from φ(from) to another secret, `from` given modulo q_0 … q_level, φ: X ↦ X^`element`.
    fn switching_key_turned(
        &self,
        mut from: SecretResidues<B>,
        to: &SecretKey,
        element: usize,
        level: usize,
        gadget: Gadget,
    ) -> Result<KeySwitchKey<B>, CkksError> {
        let (ring, backend) = (&self.ring, self.ring.backend());
        let chain = ring.chain(level);
        let limbs = ring.extended(level, gadget.special);
        let digits = gadget.digits(level);
        let mut to = to.residues(ring, &limbs)?;
        if element != 1 {
            let turned = backend.automorphism(from.buffer(), element, chain)?;
            from = SecretResidues::new(backend.clone(), turned);
        }

        let seed = *sampling::os_seed()?;
        let a = backend.expand_uniform(&seed, digits, &limbs)?;
        let mut b = errors(ring, &self.gaussian, &mut sampling::os_generator()?, digits, &limbs)?;
        backend.negate_assign(to.buffer_mut(), &limbs)?;
        backend.mul_accumulate(&mut b, &a, to.buffer(), &limbs)?;

        backend.mul_scalar_assign(from.buffer_mut(), &ring.special_product(gadget.special, chain), chain)?;
        let mut scaled = SecretResidues::new(backend.clone(), backend.zeros(digits, limbs.len())?);
        for digit in 0..digits {
            let first = digit * gadget.digit_limbs;
            let end = (first + gadget.digit_limbs).min(level + 1);
            backend.copy_into(scaled.buffer_mut(), digit, first, from.buffer(), 0..1, first..end)?;
        }
        backend.add_assign(&mut b, scaled.buffer(), &limbs)?;
        let a = (ring.uniform_halves() == UniformHalves::Stored).then_some(a);
        Ok(KeySwitchKey { b, a, seed, level, gadget })
    }
}
