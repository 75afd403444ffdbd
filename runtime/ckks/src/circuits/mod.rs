//! Circuits on ciphertexts: linear maps, polynomials, bootstrapping, and their models in the clear.

pub mod bootstrapping;
pub mod fourier;
pub mod linear;
pub mod modular_reduction;
pub mod polynomials;
#[cfg(test)]
mod testing;
