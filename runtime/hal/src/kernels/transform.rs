//! The choice of a transform for each modulus.

use tfhe_ntt::prime64::Plan;

use super::Isa;
#[cfg(target_arch = "x86_64")]
use super::avx2_transform::Avx2Transform;
#[cfg(target_arch = "x86_64")]
use super::ifma_transform::IfmaTransform;
use super::{Multiplier, Reduction, RowModulus};
use crate::Modulus;
use crate::ntt::ScalarTransform;

/// The negacyclic transform of one modulus. All variants give the same values in the same order.
#[derive(Debug)]
pub(crate) enum RowTransform {
    /// Plain loops.
    Scalar(ScalarTransform),
    /// The general transform of `tfhe-ntt`, with N^-1, for ring degrees too small for the others.
    General { plan: Box<Plan>, degree_inverse: u64 },
    /// Double precision with fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx2(Box<Avx2Transform>),
    /// 52-bit multiply-add.
    #[cfg(target_arch = "x86_64")]
    Ifma(Box<IfmaTransform>),
}

impl RowTransform {
    /// The fastest transform of an instruction set. `plan` is that of the modulus, and `root` its
    /// ψ.
    pub(crate) fn new(isa: Isa, modulus: Modulus, root: u64, plan: Plan) -> Self {
        let degree = plan.ntt_size();
        if isa == Isa::Scalar {
            return Self::Scalar(ScalarTransform::new(modulus, root, degree));
        }
        Self::of_vectors(isa, modulus, root, degree)
            .unwrap_or_else(|| Self::General { plan: Box::new(plan), degree_inverse: modulus.inv(degree as u64) })
    }

    /// As [`new`](Self::new), for a root of unity that need not be the one that `tfhe-ntt` takes.
    pub(crate) fn with_root(isa: Isa, modulus: Modulus, root: u64, degree: usize) -> Self {
        Self::of_vectors(isa, modulus, root, degree)
            .unwrap_or_else(|| Self::Scalar(ScalarTransform::new(modulus, root, degree)))
    }

    /// The transform of a vector instruction set, for degrees that fill its vectors.
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
    fn of_vectors(isa: Isa, modulus: Modulus, root: u64, degree: usize) -> Option<Self> {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Avx2Transform::new(modulus, root, degree).map(|transform| Self::Avx2(Box::new(transform))),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Ifma => {
                IfmaTransform::new(modulus, root, degree).map(|transform| Self::Ifma(Box::new(transform)))
            }
            _ => None,
        }
    }

    /// The words that [`forward`](Self::forward) takes.
    pub(crate) fn takes(&self) -> Reduction {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Ifma(transform) => transform.takes(),
            _ => Reduction::Full,
        }
    }

    /// Coefficients to values.
    pub(crate) fn forward(&self, row: &mut [u64]) {
        match self {
            Self::Scalar(transform) => transform.forward(row),
            Self::General { plan, .. } => plan.fwd(row),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(transform) => transform.forward(row),
            #[cfg(target_arch = "x86_64")]
            Self::Ifma(transform) => transform.forward(row),
        }
    }

    /// Values to coefficients, times a residue.
    pub(crate) fn inverse_scaled(&self, row: &mut [u64], factor: u64, m: &RowModulus, isa: Isa) {
        let scale = isa.kernels().scale;
        match self {
            Self::Scalar(transform) => {
                transform.inverse(row);
                if factor != 1 {
                    scale(row, Multiplier::new(factor, m.q), m.q);
                }
            }
            Self::General { plan, degree_inverse } => {
                plan.inv(row);
                let factor = Modulus::new(m.q).mul(factor, *degree_inverse);
                scale(row, Multiplier::new(factor, m.q), m.q);
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(transform) => transform.inverse_scaled(row, factor),
            #[cfg(target_arch = "x86_64")]
            Self::Ifma(transform) => transform.inverse_scaled(row, None, factor),
        }
    }

    /// As [`inverse_scaled`](Self::inverse_scaled), from `source` to `row`.
    pub(crate) fn inverse_scaled_from(&self, row: &mut [u64], source: &[u64], factor: u64, m: &RowModulus, isa: Isa) {
        #[cfg(target_arch = "x86_64")]
        if let Self::Ifma(transform) = self {
            return transform.inverse_scaled(row, Some(source), factor);
        }
        row.copy_from_slice(source);
        self.inverse_scaled(row, factor, m, isa);
    }
}

/// The twiddles of all stages below block number `block`, stage after stage.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::inline_always)]
#[inline(always)]
pub(super) fn below<F: Copy, const COUNT: usize>(twiddles: &[F], block: usize) -> [F; COUNT] {
    std::array::from_fn(|k| {
        let stage = (k + 1).ilog2();
        twiddles[(block << stage) + k + 1 - (1 << stage)]
    })
}
