//! The table of row kernels, filled once from what the processor can do.
//!
//! A row is one limb of one polynomial, or a block of it; its length is a multiple of 8. All
//! kernels take and give canonical residues unless they say otherwise, and all tables give the
//! same bits.

/// The table of a file's vector kernels as safe function pointers. Who hands the table out must have
/// found the features that the kernels are compiled for.
#[cfg(target_arch = "x86_64")]
macro_rules! kernel_table {
    (@ $name:ident($($argument:ident: $type:ty),*)) => {{
        fn call($($argument: $type),*) {
            // SAFETY: the table is handed out only for processors that have the kernel's features.
            unsafe { $name($($argument),*) }
        }
        call
    }};
    () => {
        Kernels {
            add: kernel_table!(@ add(dst: &mut [u64], src: &[u64], q: u64)),
            sub: kernel_table!(@ sub(dst: &mut [u64], src: &[u64], q: u64)),
            neg: kernel_table!(@ neg(dst: &mut [u64], q: u64)),
            mul: kernel_table!(@ mul(dst: &mut [u64], src: &[u64], m: &RowModulus)),
            dot: kernel_table!(@ dot(acc: &mut [u64], pairs: &Pairs<'_>, accumulate: bool, m: &RowModulus)),
            scale: kernel_table!(@ scale(dst: &mut [u64], w: Multiplier, q: u64)),
            scale_add: kernel_table!(@ scale_add(acc: &mut [u64], src: &[u64], w: Multiplier, q: u64)),
            sub_scale: kernel_table!(@ sub_scale(dst: &mut [u64], src: &[u64], w: Multiplier, q: u64)),
            add_constant: kernel_table!(@ add_constant(dst: &mut [u64], c: u64, q: u64)),
            permute: kernel_table!(@ permute(dst: &mut [u64], src: &[u64], gather: Gather<'_>)),
            permute_add: kernel_table!(@ permute_add(dst: &mut [u64], src: &[u64], gather: Gather<'_>, q: u64)),
            overflow: kernel_table!(@ overflow(dst: &mut [u64], sources: &[&[u64]], reciprocals: &[f64])),
            combine: kernel_table!(@ combine(dst: &mut [u64], sources: &[&[u64]], constants: &[u64], next: &[u64], reduction: Reduction, m: &RowModulus)),
            recentre: kernel_table!(@ recentre(dst: &mut [u64], src: &[u64], source: u64, m: &RowModulus)),
            lift: kernel_table!(@ lift(dst: &mut [u64], src: &[i64], m: &RowModulus)),
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_plan;
#[cfg(target_arch = "x86_64")]
mod avx2_transform;
#[cfg(target_arch = "x86_64")]
mod ifma;
#[cfg(target_arch = "x86_64")]
mod ifma_plan;
#[cfg(target_arch = "x86_64")]
mod ifma_ring;
#[cfg(target_arch = "x86_64")]
mod ifma_transform;
mod portable;
mod transform;
#[cfg(target_arch = "x86_64")]
mod vaes;

pub(crate) use transform::RowTransform;

use crate::HalError;
use crate::permutation::Gather;
use crate::uniform::{Expander, ROUNDS, UniformRow};

/// Constants of one modulus q < 2^50.4 for arithmetic on 52-bit words.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowModulus {
    pub(crate) q: u64,
    /// ⌊log2 q⌋: a product is shifted right by this before the Barrett multiplication.
    pub(crate) shift: u32,
    /// ⌊2^(shift+52) / q⌋.
    pub(crate) barrett: u64,
    /// 2^52 modulo q, as a constant multiplier.
    pub(crate) word: Multiplier,
    /// 1, as a constant multiplier: reduces any 52-bit word.
    pub(crate) one: Multiplier,
    /// q^-1 modulo 2^52.
    pub(crate) inverse: u64,
}

impl RowModulus {
    pub(crate) fn new(q: u64) -> Self {
        let shift = q.ilog2();
        Self {
            q,
            shift,
            barrett: ((1_u128 << (shift + 52)) / u128::from(q)) as u64,
            word: Multiplier::new((1 << 52) % q, q),
            one: Multiplier::new(1, q),
            inverse: inverse_modulo_word(q),
        }
    }
}

/// q^-1 modulo 2^52 for odd q. Newton's iteration doubles the number of right bits, of which q itself has three.
fn inverse_modulo_word(q: u64) -> u64 {
    let inverse = (0..5).fold(q, |x, _| x.wrapping_mul(2_u64.wrapping_sub(q.wrapping_mul(x))));
    inverse & ((1 << 52) - 1)
}

/// A constant factor w < q with ⌊w·2^52 / q⌋ (Shoup): for any x < 2^52,
/// x·w − ⌊x·quotient / 2^52⌋·q lies in [0, 2q).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Multiplier {
    pub(crate) factor: u64,
    pub(crate) quotient: u64,
}

impl Multiplier {
    pub(crate) fn new(factor: u64, q: u64) -> Self {
        debug_assert!(factor < q);
        Self { factor, quotient: ((u128::from(factor) << 52) / u128::from(q)) as u64 }
    }
}

/// How far words are reduced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reduction {
    /// To [0, q).
    Full,
    /// To [0, 4q), below 2^52; a kernel may do more.
    Lazy,
}

/// Pairs of rows whose products are summed.
pub(crate) type Pairs<'a> = [(&'a [u64], &'a [u64])];

/// Type of [`Kernels::combine`].
pub(crate) type Combine = fn(&mut [u64], &[&[u64]], &[u64], &[u64], Reduction, &RowModulus);

/// [`Expander::fill_before`].
pub(crate) type FillUniform = fn(&Expander, UniformRow, usize, &mut [u64], &[&[u64]]);

/// A fast expansion of seeds.
pub(crate) struct UniformKernel {
    /// The round keys of AES-128.
    pub(crate) schedule: fn(&[u8; 16]) -> [[u64; 2]; ROUNDS + 1],
    /// Expands coefficients of a row from a place on, and fetches what will be read next.
    pub(crate) fill: FillUniform,
}

/// Row kernels of one instruction set.
pub(crate) struct Kernels {
    /// dst ← dst + src.
    pub(crate) add: fn(&mut [u64], &[u64], u64),
    /// dst ← dst − src.
    pub(crate) sub: fn(&mut [u64], &[u64], u64),
    /// dst ← −dst.
    pub(crate) neg: fn(&mut [u64], u64),
    /// dst ← dst · src.
    pub(crate) mul: fn(&mut [u64], &[u64], &RowModulus),
    /// acc ← Σ a·b, plus acc if the flag is set.
    pub(crate) dot: fn(&mut [u64], &Pairs<'_>, bool, &RowModulus),
    /// dst ← w · dst, for any dst < 2^52.
    pub(crate) scale: fn(&mut [u64], Multiplier, u64),
    /// acc ← acc + w · src.
    pub(crate) scale_add: fn(&mut [u64], &[u64], Multiplier, u64),
    /// dst ← w · (src − dst).
    pub(crate) sub_scale: fn(&mut [u64], &[u64], Multiplier, u64),
    /// dst ← dst + c.
    pub(crate) add_constant: fn(&mut [u64], u64, u64),
    /// dst ← src permuted.
    pub(crate) permute: fn(&mut [u64], &[u64], Gather<'_>),
    /// dst ← dst + src permuted.
    pub(crate) permute_add: fn(&mut [u64], &[u64], Gather<'_>, u64),
    /// dst ← ⌊Σ `src_i` · `reciprocal_i` + 1/2⌋, in double precision, summed from 1/2 upwards in
    /// the order of the sources, each product rounded.
    pub(crate) overflow: fn(&mut [u64], &[&[u64]], &[f64]),
    /// dst ← Σ `src_i · c_i` for words `src_i` < 2^50.4 and residues `c_i`. The fourth argument,
    /// as long as dst, is what will be written next: a hint to fetch it. A lazy reduction needs q < 2^50.
    pub(crate) combine: Combine,
    /// dst ← residues of the centred representatives of src modulo the odd number given: of x if
    /// x is at most half of it, of x minus it otherwise.
    pub(crate) recentre: fn(&mut [u64], &[u64], u64, &RowModulus),
    /// dst ← residues of signed words.
    pub(crate) lift: fn(&mut [u64], &[i64], &RowModulus),
}

/// Instruction sets in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// Portable code for the kernels and for the transform.
    Scalar,
    /// Double precision with fused multiply-add on 256-bit vectors.
    Avx2,
    /// 52-bit multiply-add on 512-bit vectors.
    Avx512Ifma,
}

impl Isa {
    /// The value of `CACHEMIR_ISA` that selects this set.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512Ifma => "avx512ifma",
        }
    }

    fn is_available(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Ifma => {
                std::arch::is_x86_feature_detected!("avx512f")
                    && std::arch::is_x86_feature_detected!("avx512dq")
                    && std::arch::is_x86_feature_detected!("avx512ifma")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// [`HalError::Isa`] if the processor lacks this set.
    pub(crate) fn require(self) -> Result<(), HalError> {
        if self.is_available() {
            return Ok(());
        }
        Err(HalError::Isa { requested: self.name().to_owned(), reason: "this processor lacks it" })
    }

    /// The kernel that expands seeds, where the processor has a fast one.
    pub(crate) fn uniform_kernel(self) -> Option<&'static UniformKernel> {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Ifma if vaes::is_available() => Some(&vaes::KERNEL),
            _ => None,
        }
    }

    pub(crate) fn kernels(self) -> &'static Kernels {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => &avx2::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Ifma => &ifma::KERNELS,
            _ => &portable::KERNELS,
        }
    }
}

/// The instruction set that [`CpuBackend`](crate::CpuBackend) will use, and why: the best that the
/// processor has, or the one named by the environment variable `CACHEMIR_ISA`
/// (`scalar`, `avx2` or `avx512ifma`).
pub fn selected_isa() -> Result<(Isa, &'static str), HalError> {
    const BEST_FIRST: [Isa; 3] = [Isa::Avx512Ifma, Isa::Avx2, Isa::Scalar];
    let Some(requested) = std::env::var("CACHEMIR_ISA").ok().filter(|requested| !requested.is_empty()) else {
        let best = BEST_FIRST.into_iter().find(|isa| isa.is_available());
        return Ok((best.unwrap_or(Isa::Scalar), "detected"));
    };
    match BEST_FIRST.into_iter().find(|isa| isa.name() == requested) {
        Some(isa) if isa.is_available() => Ok((isa, "set by CACHEMIR_ISA")),
        Some(_) => Err(HalError::Isa { requested, reason: "this processor lacks it" }),
        None => Err(HalError::Isa { requested, reason: "expected scalar, avx2 or avx512ifma" }),
    }
}
