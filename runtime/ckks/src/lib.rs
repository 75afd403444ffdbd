//! RNS-CKKS with bootstrapping, generic over the backend.
//!
//! The modules form a strict chain; each uses only those before it:
//! 1. [`parameters`]: sizes → primes, levels, canonical scales; [`security`]: what bounds them.
//!    [`gadget`], [`cost`]: how keys cut ciphertexts into digits, and why so. [`noise`]: what errors follow.
//! 2. [`ring`]: the backend built for a parameter set, randomness, residues as bytes.
//! 3. [`rlwe`]: secrets, key-switching keys and hybrid key switching, encryptions of zero.
//! 4. [`ckks`]: slots, plaintexts, ciphertexts and their arithmetic.
//! 5. [`circuits`]: linear maps, polynomials, bootstrapping.
//!
//! Every part is small and immutable: [`Ring`] (backend and parameters), [`Encoder`], [`KeyGenerator`], [`SecretKey`],
//! [`EvaluationKeys`], [`Evaluator`], [`Encryptor`], [`Decryptor`]. What a server runs takes an [`Evaluator`] and
//! [`EvaluationKeys`]; no type among those can name a secret key.
//!
//! # From a vector to its bootstrapped product
//! ```
//! use std::ops::ControlFlow;
//! use cachemir_ckks::circuits::bootstrapping::{Bootstrapper, SlotKind};
//! use cachemir_ckks::{Decryptor, Encoder, Encryptor, Evaluator, KeyGenerator, Parameters, Ring};
//! use cachemir_hal::CpuBackend;
//!
//! # fn main() -> Result<(), cachemir_ckks::CkksError> {
//! // `n16` has 128 bits of security; this preset has none and is fast.
//! let ring = Ring::<CpuBackend>::new(Parameters::preset("insecure-test")?)?;
//! let evaluator = Evaluator::new(Encoder::new(ring.clone()));
//! let bootstrapper = Bootstrapper::new(&evaluator, 4, SlotKind::Real)?;
//! let mut manifest = bootstrapper.key_manifest();
//! manifest.require_rotation(1, [4]);
//! manifest.require_relinearisation([4]);
//! let generator = KeyGenerator::new(ring.clone());
//! let secret = generator.secret_key()?;
//! let keys = generator.evaluation_keys(&secret, &manifest, |_made, _total| ControlFlow::Continue(()))?;
//!
//! let slots = [0.5, -0.25, 0.125, 1.0].map(Into::into);
//! let x = Encryptor::with_secret_key(ring.clone(), &secret).encrypt_slots(evaluator.encoder(), &slots, 4)?;
//! let y = evaluator.mul_rescale(&x, &evaluator.rotate(&x, 1, &keys)?, &keys)?;
//! assert_eq!(y.level(), 3);
//! let entry = bootstrapper.prepare_entry(&evaluator, None, 0)?;
//! let z = bootstrapper.bootstrap(&evaluator, &keys, &entry, &y)?;
//! assert_eq!(z.level(), 16);
//! let result = Decryptor::new(ring, &secret).decrypt_slots(evaluator.encoder(), &z)?;
//! assert!((result[0].re - 0.5 * -0.25).abs() < 1e-5);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

pub mod circuits;
pub mod ckks;
pub mod cost;
pub mod error;
pub mod gadget;
pub mod noise;
pub mod parameters;
pub mod ring;
pub mod rlwe;
pub mod security;

pub use ckks::ciphertext::{Ciphertext, ExtendedCiphertext, ExtendedPlaintext, Plaintext, RaisedCiphertext};
pub use ckks::encoder::{Encoder, IntegerCoefficients, IntegerPolynomial};
pub use ckks::encryption::{Decryptor, Encryptor};
pub use ckks::evaluator::{Digits, Evaluator};
pub use error::CkksError;
pub use gadget::Gadget;
pub use parameters::{ParameterError, Parameters, ParametersLiteral, Section};
pub use ring::{Ring, UniformHalves};
pub use rlwe::generator::KeyGenerator;
pub use rlwe::keys::{EvaluationKeys, KeyManifest, KeyRole, KeySwitchKey, PublicKey};
pub use rlwe::secret::SecretKey;
