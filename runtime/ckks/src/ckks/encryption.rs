//! Encryption and decryption: the client's side.

use cachemir_hal::Backend;
use num_complex::Complex64;

use crate::ckks::ciphertext::{Ciphertext, Plaintext};
use crate::ckks::encoder::{Encoder, decoding_level};
use crate::error::CkksError;
use crate::ring::Ring;
use crate::ring::sampling::{GaussianSampler, Seed};
use crate::rlwe::generator::{encrypt_zero, encrypt_zero_public};
use crate::rlwe::keys::PublicKey;
use crate::rlwe::secret::SecretKey;

/// What an encryptor holds.
enum EncryptionKey<'a, B: Backend> {
    Secret(&'a SecretKey),
    Public(&'a PublicKey<B>),
}

/// Encrypts under a secret key (less noise) or a public key.
pub struct Encryptor<'a, B: Backend> {
    ring: Ring<B>,
    gaussian: GaussianSampler,
    key: EncryptionKey<'a, B>,
}

impl<'a, B: Backend> Encryptor<'a, B> {
    /// Encryption by the owner of the secret.
    pub fn with_secret_key(ring: Ring<B>, key: &'a SecretKey) -> Self {
        Self { ring, gaussian: GaussianSampler::new(), key: EncryptionKey::Secret(key) }
    }

    /// Encryption by anyone.
    pub fn with_public_key(ring: Ring<B>, key: &'a PublicKey<B>) -> Self {
        Self { ring, gaussian: GaussianSampler::new(), key: EncryptionKey::Public(key) }
    }

    /// Encrypts a plaintext at its level and scale.
    pub fn encrypt(&self, plaintext: &Plaintext<B>) -> Result<Ciphertext<B>, CkksError> {
        Ok(self.encrypt_with_seed(plaintext)?.0)
    }

    /// Encrypts to bytes for [`Ciphertext::from_bytes`]. Under a secret key these hold a seed in place of the second
    /// polynomial and are half as many as those of [`Ciphertext::to_bytes`].
    pub fn encrypt_to_bytes(&self, plaintext: &Plaintext<B>) -> Result<Vec<u8>, CkksError> {
        let (ciphertext, seed) = self.encrypt_with_seed(plaintext)?;
        match seed {
            Some(seed) => ciphertext.to_bytes_with_seed(&self.ring, &seed),
            None => ciphertext.to_bytes(&self.ring),
        }
    }

    /// A ciphertext and, if its second polynomial is expanded from a seed, that seed.
    fn encrypt_with_seed(&self, plaintext: &Plaintext<B>) -> Result<(Ciphertext<B>, Option<Seed>), CkksError> {
        let &Plaintext { level, scale, slots, .. } = plaintext;
        let (mut buffer, seed) = match self.key {
            EncryptionKey::Secret(key) => {
                let (zero, seed) = encrypt_zero(&self.ring, &self.gaussian, key, level)?;
                (zero, Some(seed))
            }
            EncryptionKey::Public(key) => (encrypt_zero_public(&self.ring, &self.gaussian, key, level)?, None),
        };
        self.ring.backend().add_assign(&mut buffer, &plaintext.buffer, self.ring.chain(level))?;
        Ok((Ciphertext { buffer, level, scale, slots }, seed))
    }

    /// Encodes at the canonical scale of `level` and encrypts.
    pub fn encrypt_slots(
        &self,
        encoder: &Encoder<B>,
        slots: &[Complex64],
        level: usize,
    ) -> Result<Ciphertext<B>, CkksError> {
        self.ring.check_level(level)?;
        self.encrypt(&encoder.encode(slots, level, self.ring.parameters().canonical_scale(level))?)
    }
}

/// Decrypts under a secret key. Handing decrypted values to anyone who could have chosen the ciphertexts leaks the key:
/// CKKS is not IND-CPA-D secure (ePrint 2020/1533).
pub struct Decryptor<'a, B: Backend> {
    ring: Ring<B>,
    key: &'a SecretKey,
}

impl<'a, B: Backend> Decryptor<'a, B> {
    /// Decryption by the owner of the secret.
    pub fn new(ring: Ring<B>, key: &'a SecretKey) -> Self {
        Self { ring, key }
    }

    /// c_0 + c_1·s (+ c_2·s² before relinearisation), modulo as many primes as decoding needs.
    pub fn decrypt(&self, ciphertext: &Ciphertext<B>) -> Result<Plaintext<B>, CkksError> {
        let &Ciphertext { scale, slots, .. } = ciphertext;
        let level = decoding_level(&self.ring, ciphertext.level, scale);
        self.decrypt_at(ciphertext, level).map(|buffer| Plaintext { buffer, level, scale, slots })
    }

    /// As [`decrypt`](Self::decrypt), modulo all primes of the ciphertext.
    pub fn decrypt_fully(&self, ciphertext: &Ciphertext<B>) -> Result<Plaintext<B>, CkksError> {
        let &Ciphertext { level, scale, slots, .. } = ciphertext;
        self.decrypt_at(ciphertext, level).map(|buffer| Plaintext { buffer, level, scale, slots })
    }

    fn decrypt_at(&self, ciphertext: &Ciphertext<B>, level: usize) -> Result<B::Buffer, CkksError> {
        let backend = self.ring.backend();
        let limbs = self.ring.chain(level);
        let secret = self.key.residues(&self.ring, limbs)?;
        let last = ciphertext.polynomials(&self.ring) - 1;
        let mut message = backend.select(&ciphertext.buffer, last..last + 1, limbs)?;
        let result = (0..last).rev().try_for_each(|polynomial| -> Result<(), CkksError> {
            backend.mul_assign(&mut message, secret.buffer(), limbs)?;
            let part = backend.select(&ciphertext.buffer, polynomial..polynomial + 1, limbs)?;
            Ok(backend.add_assign(&mut message, &part, limbs)?)
        });
        if result.is_err() {
            backend.wipe(&mut message);
        }
        result.map(|()| message)
    }

    /// Decrypts and decodes. The exact plaintext, which tells the secret to whoever has the ciphertext, is wiped.
    pub fn decrypt_slots(&self, encoder: &Encoder<B>, ciphertext: &Ciphertext<B>) -> Result<Vec<Complex64>, CkksError> {
        let mut plaintext = self.decrypt(ciphertext)?;
        let slots = encoder.decode(&plaintext);
        self.ring.backend().wipe(&mut plaintext.buffer);
        slots
    }
}
