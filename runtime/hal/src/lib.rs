//! Batched modular-arithmetic kernels behind one trait.
//!
//! [`Backend`] is the whole surface: about thirty primitives on buffers of residues
//! `[polynomials][limbs][N]`, from additions to the fused steps of hybrid key switching.
//! [`ScalarBackend`] is the plain reference that defines every result; [`CpuBackend`] gives the
//! same results fast. [`primes`] finds moduli.
//!
//! ```
//! use cachemir_hal::{Backend, CpuBackend, primes};
//!
//! // (X + 2)·X = X² + 2·X modulo X^1024 + 1 and two primes.
//! let degree = 1024;
//! let backend = CpuBackend::new(degree, &primes::primes_of_bits(50, degree, 2, &[])?)?;
//! let limbs = [0, 1];
//! let polynomial = |coefficients: &[i64]| {
//!     let mut padded = coefficients.to_vec();
//!     padded.resize(degree, 0);
//!     let mut buffer = backend.lift_signed(&padded, &limbs)?;
//!     backend.forward_ntt(&mut buffer, &limbs)?;
//!     Ok::<_, cachemir_hal::HalError>(buffer)
//! };
//! let mut product = polynomial(&[2, 1])?;
//! backend.mul_assign(&mut product, &polynomial(&[0, 1])?, &limbs)?;
//! backend.inverse_ntt(&mut product, &limbs)?;
//! assert_eq!(backend.download(&product)?[..4], [0, 2, 1, 0]);
//! # Ok::<(), cachemir_hal::HalError>(())
//! ```

mod backend;
mod buffer;
mod check;
mod conversion;
mod cpu;
mod error;
mod kernels;
mod modulus;
mod ntt;
mod permutation;
mod pool;
pub mod primes;
mod scalar;
mod tables;
mod uniform;

pub use backend::{Addend, Backend, HoistedRotation, KeyView, Representative, Shape, UniformHalf};
pub use buffer::CpuBuffer;
pub use cpu::CpuBackend;
pub use error::HalError;
pub use kernels::{Isa, selected_isa};
pub use modulus::Modulus;
pub use pool::RETAINED_BYTES;
pub use scalar::ScalarBackend;
pub use uniform::Seed;
