//! Batched modular-arithmetic kernels behind one trait.
//!
//! [`Backend`] is the whole surface: about thirty primitives on buffers of residues
//! `[polynomials][limbs][N]`, from additions to the fused steps of hybrid key switching.
//! [`ScalarBackend`] is the plain reference that defines every result; [`CpuBackend`] gives the
//! same results fast. [`primes`] finds moduli.

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
