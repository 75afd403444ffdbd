//! RNS-CKKS with bootstrapping, generic over the backend.
//!
//! The modules form a strict chain; each uses only those before it:
//! 1. [`parameters`]: sizes → primes, levels, canonical scales, security.
//! 2. [`ring`]: the backend built for a parameter set, randomness, residues as bytes.
//! 3. [`rlwe`]: secrets, key-switching keys and hybrid key switching, encryptions of zero.
//! 4. [`ckks`]: slots, plaintexts, ciphertexts and their arithmetic.
//! 5. [`circuits`]: linear maps, polynomials, bootstrapping.
//!
//! Every part is small and immutable: [`Ring`] (backend and parameters), [`Encoder`], [`KeyGenerator`], [`SecretKey`],
//! [`EvaluationKeys`], [`Evaluator`], [`Encryptor`], [`Decryptor`]. What a server runs takes an [`Evaluator`] and
//! [`EvaluationKeys`]; no type among those can name a secret key.
#![forbid(unsafe_code)]

pub mod circuits;
pub mod ckks;
pub mod error;
pub mod parameters;
pub mod ring;
pub mod rlwe;

pub use ckks::ciphertext::{Ciphertext, ExtendedCiphertext, ExtendedPlaintext, Plaintext};
pub use ckks::encoder::{Encoder, IntegerPolynomial};
pub use ckks::encryption::{Decryptor, Encryptor};
pub use ckks::evaluator::{Digits, Evaluator};
pub use error::CkksError;
pub use parameters::{ParameterError, Parameters, ParametersLiteral, Section};
pub use ring::{Ring, UniformHalves};
pub use rlwe::generator::KeyGenerator;
pub use rlwe::keys::{EvaluationKeys, KeyManifest, KeySwitchKey, PublicKey};
pub use rlwe::secret::SecretKey;
