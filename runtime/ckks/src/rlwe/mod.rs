//! Ring learning with errors: secrets, key-switching keys, hybrid key switching, encryptions of zero.
//!
//! # Hybrid key switching (ePrint 2020/1203, section 3)
//! The chain is cut into digits of consecutive limbs ([`Gadget`](crate::gadget::Gadget)). A key from a secret s' to a secret s has one pair for each
//! digit d, b_d = -a_d·s + e_d + P·g_d·s' modulo Q·P, where g_d is 1 modulo the limbs of digit d and 0 modulo the
//! others. For a polynomial c modulo Q with digits c_d (extended to Q·P), (Σ c_d·b_d, Σ c_d·a_d) / P encrypts c·s'
//! under s. Because g_d is defined limb by limb, a key made for some level serves every lower one with the same gadget: the
//! higher limbs and digits are left out.
//!
//! # Galois keys
//! The key of an automorphism φ switches φ(s) to s: φ(c_1)·φ(s) becomes (u_0, u_1) under s, and (φ(c_0) + u_0, u_1) is the
//! rotated ciphertext. The digits of φ(c_1) are those of c_1, turned: they are made once for any number of φ (hoisting).

pub mod generator;
pub mod keys;
pub(crate) mod pairs;
pub mod secret;
pub mod serialization;
pub mod switching;
