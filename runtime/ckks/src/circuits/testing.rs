//! A secret, its keys and short forms of encryption and decryption for this module's tests.

use cachemir_hal::Backend;
use num_complex::Complex64;
use std::ops::ControlFlow;

use crate::ckks::ciphertext::Ciphertext;
use crate::ckks::encoder::Encoder;
use crate::ckks::encryption::{Decryptor, Encryptor};
use crate::ckks::evaluator::Evaluator;
use crate::parameters::Parameters;
use crate::ring::Ring;
use crate::rlwe::generator::KeyGenerator;
use crate::rlwe::keys::{EvaluationKeys, KeyManifest};
use crate::rlwe::secret::SecretKey;

pub(crate) struct Fixture<B: Backend> {
    pub(crate) evaluator: Evaluator<B>,
    pub(crate) keys: EvaluationKeys<B>,
    secret: SecretKey,
}

impl<B: Backend> Fixture<B> {
    /// `insecure-test` with the keys that `require` asks for.
    pub(crate) fn new(require: &dyn Fn(&mut KeyManifest)) -> Self {
        Self::with_parameters(Parameters::preset("insecure-test").unwrap(), require)
    }

    pub(crate) fn with_parameters(parameters: Parameters, require: &dyn Fn(&mut KeyManifest)) -> Self {
        let ring = Ring::<B>::new(parameters).unwrap();
        let generator = KeyGenerator::new(ring.clone());
        let secret = generator.secret_key().unwrap();
        let mut manifest = KeyManifest::default();
        require(&mut manifest);
        let keys = generator.evaluation_keys(&secret, &manifest, |_, _| ControlFlow::Continue(())).unwrap();
        Self { evaluator: Evaluator::new(Encoder::new(ring)), keys, secret }
    }

    pub(crate) fn encrypt(&self, slots: &[Complex64], level: usize) -> Ciphertext<B> {
        Encryptor::with_secret_key(self.evaluator.ring().clone(), &self.secret)
            .encrypt_slots(self.evaluator.encoder(), slots, level)
            .unwrap()
    }

    pub(crate) fn encrypt_real(&self, slots: &[f64], level: usize) -> Ciphertext<B> {
        self.encrypt(&slots.iter().map(|&x| x.into()).collect::<Vec<_>>(), level)
    }

    pub(crate) fn decrypt(&self, ciphertext: &Ciphertext<B>) -> Vec<Complex64> {
        Decryptor::new(self.evaluator.ring().clone(), &self.secret)
            .decrypt_slots(self.evaluator.encoder(), ciphertext)
            .unwrap()
    }
}
