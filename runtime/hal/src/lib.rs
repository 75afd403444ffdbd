//! Batched modular-arithmetic kernels behind one trait.
