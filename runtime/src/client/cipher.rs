//! The client's end of a representation: from slots to ciphertexts and back.

use std::ops::ControlFlow;
use std::sync::Arc;

use cachemir_ckks::circuits::bootstrapping::BootstrapPlan;
use cachemir_ckks::ring::sampling::{Seed, os_seed};
use cachemir_ckks::{
    Ciphertext, Decryptor, Encoder, Encryptor, EvaluationKeys, KeyGenerator, KeyManifest, Ring, SecretKey,
};
use cachemir_hal::Backend;
use cachemir_ir::ckks::Levels;
use num_complex::Complex64;
use zeroize::Zeroizing;

use crate::Error;
use crate::executor::{ClearCiphertext, Noisy, slot_kind};

/// Encrypts vectors of slots and decrypts ciphertexts.
pub trait Cipher {
    /// A ciphertext.
    type Ciphertext;

    /// Encrypts real slots at a level and its canonical scale.
    fn encrypt(&self, slots: &[f64], level: u32) -> Result<Self::Ciphertext, Error>;

    /// Decrypts the slots.
    fn decrypt(&self, ciphertext: &Self::Ciphertext) -> Result<Vec<Complex64>, Error>;

    /// Standard deviation of the error that a bootstrap of values of size one leaves in a slot.
    fn noise(&self, slots: usize) -> Result<f64, Error>;
}

/// No encryption.
#[derive(Clone, Copy, Debug)]
pub struct ClearCipher;

impl Cipher for ClearCipher {
    type Ciphertext = ClearCiphertext;

    fn encrypt(&self, slots: &[f64], level: u32) -> Result<ClearCiphertext, Error> {
        Ok(ClearCiphertext::fresh(slots, level))
    }

    fn decrypt(&self, ciphertext: &ClearCiphertext) -> Result<Vec<Complex64>, Error> {
        Ok(ciphertext.slots.clone())
    }

    fn noise(&self, _slots: usize) -> Result<f64, Error> {
        Ok(0.0)
    }
}

/// No encryption, with the errors that it would add.
pub struct NoisyCipher(pub Noisy);

impl Cipher for NoisyCipher {
    type Ciphertext = ClearCiphertext;

    fn encrypt(&self, slots: &[f64], level: u32) -> Result<ClearCiphertext, Error> {
        Ok(self.0.encrypt(slots, level))
    }

    fn decrypt(&self, ciphertext: &ClearCiphertext) -> Result<Vec<Complex64>, Error> {
        Ok(ciphertext.slots.clone())
    }

    fn noise(&self, _slots: usize) -> Result<f64, Error> {
        Ok(self.0.bootstrap_deviation())
    }
}

/// Encryption under a secret key that never leaves this type.
pub struct SecretCipher<B: Backend> {
    ring: Ring<B>,
    encoder: Encoder<B>,
    secret: SecretKey,
    seed: Zeroizing<Seed>,
}

impl<B: Backend> SecretCipher<B> {
    /// A cipher with a fresh secret.
    pub fn generate(encoder: Encoder<B>) -> Result<Self, Error> {
        Ok(Self::from_seed(encoder, os_seed()?))
    }

    /// The cipher with the secret that a seed determines.
    pub fn from_seed(encoder: Encoder<B>, seed: Zeroizing<Seed>) -> Self {
        let ring = encoder.ring().clone();
        Self { secret: SecretKey::from_seed(ring.degree(), &seed), ring, encoder, seed }
    }

    /// The seed of the secret, for the owner's own key file.
    pub fn seed(&self) -> &Seed {
        &self.seed
    }

    /// Makes the keys of a manifest, for the server. `progress` is told the bytes made so far and in all.
    pub fn evaluation_keys(
        &self,
        manifest: &KeyManifest,
        progress: impl FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<EvaluationKeys<B>, Error> {
        Ok(KeyGenerator::new(self.ring.clone()).evaluation_keys(&self.secret, manifest, progress)?)
    }
}

impl<B: Backend> Cipher for SecretCipher<B> {
    type Ciphertext = Ciphertext<B>;

    fn encrypt(&self, slots: &[f64], level: u32) -> Result<Ciphertext<B>, Error> {
        let scale = self.ring.parameters().canonical_scale(level as usize);
        let plain = self.encoder.encode_real(slots, level as usize, scale)?;
        Ok(Encryptor::with_secret_key(self.ring.clone(), &self.secret).encrypt(&plain)?)
    }

    fn decrypt(&self, ciphertext: &Ciphertext<B>) -> Result<Vec<Complex64>, Error> {
        Ok(Decryptor::new(self.ring.clone(), &self.secret).decrypt_slots(&self.encoder, ciphertext)?)
    }

    fn noise(&self, slots: usize) -> Result<f64, Error> {
        let parameters = self.ring.parameters();
        Ok(BootstrapPlan::new(parameters, slots, slot_kind(true))?.noise(parameters).slot_standard_deviation())
    }
}

/// Two representations side by side, for `--check`: results are taken from the left one.
#[derive(Clone, Copy, Debug)]
pub struct CheckedCipher<L, R>(pub L, pub R);

impl<L: Cipher, R: Cipher> Cipher for CheckedCipher<L, R> {
    type Ciphertext = (L::Ciphertext, R::Ciphertext);

    fn encrypt(&self, slots: &[f64], level: u32) -> Result<Self::Ciphertext, Error> {
        Ok((self.0.encrypt(slots, level)?, self.1.encrypt(slots, level)?))
    }

    fn decrypt(&self, ciphertext: &Self::Ciphertext) -> Result<Vec<Complex64>, Error> {
        self.0.decrypt(&ciphertext.0)
    }

    fn noise(&self, slots: usize) -> Result<f64, Error> {
        self.0.noise(slots)
    }
}

impl<C: Cipher> Cipher for Arc<C> {
    type Ciphertext = C::Ciphertext;

    fn encrypt(&self, slots: &[f64], level: u32) -> Result<Self::Ciphertext, Error> {
        (**self).encrypt(slots, level)
    }

    fn decrypt(&self, ciphertext: &Self::Ciphertext) -> Result<Vec<Complex64>, Error> {
        (**self).decrypt(ciphertext)
    }

    fn noise(&self, slots: usize) -> Result<f64, Error> {
        (**self).noise(slots)
    }
}

/// The levels that a plan's parameters offer, checked against the engine's.
pub(crate) fn check_levels<B: Backend>(ring: &Ring<B>, levels: Levels) -> Result<(), Error> {
    let parameters = ring.parameters();
    let engine = (parameters.use_top_level() as u32, parameters.bootstrap_input_level() as u32);
    if engine == (levels.output, levels.bootstrap_input) {
        Ok(())
    } else {
        Err(Error::PlanInvalid(format!("its levels {levels:?} are not those of the engine, {engine:?}")))
    }
}
