//! The extension surface: one trait over batches of polynomials in residue form.
//!
//! # Data
//! A backend is built over one table of distinct primes `q_0`, `q_1`, … (ciphertext moduli, special
//! moduli and any auxiliary ones), all ≡ 1 modulo 2N. A buffer is an array
//! `[polynomials][limbs][N]` of canonical residues in `[0, q)`. A buffer does not remember which
//! modulus a limb belongs to, nor its domain: each primitive is told by a list
//! `limbs: &[usize]`, where `limbs[i]` is the table index of the modulus of limb position `i`.
//! Primitives work on the first `limbs.len()` limb positions of each polynomial and leave the
//! others alone, so an operand at a higher level can be used as it is.
//!
//! # Domains
//! In the coefficient domain position `j` holds the coefficient of X^j. In the NTT domain
//! position `i` holds the value at ψ^(2·rev(i)+1), where ψ is a primitive 2N-th root of unity
//! modulo the limb's prime and rev reverses log2 N bits. Every backend uses the same ψ.
//!
//! # Batches
//! Element-wise additions combine polynomial `i` with polynomial `i`. Where the right operand
//! has fewer polynomials, only so many of the left ones are touched (a plaintext is added to the
//! first polynomial of a ciphertext). In products, an operand of one polynomial is broadcast.
//!
//! # Repetition
//! In the NTT domain p(X^r) has the same value on each aligned run of r positions, so
//! [`Backend::lift_repeated`] stores one word for r. Such a buffer may be the right operand of sums and products and
//! a plaintext of [`Backend::hoisted_sums`]; [`Backend::select`] gives one with a word for each position, and
//! everything else refuses it.
//!
//! # Contract of an implementation
//! Residues are canonical after every primitive, and results are bit-equal to
//! [`ScalarBackend`](crate::ScalarBackend)'s; tests/conformance.rs checks both. Work may be
//! queued: errors of a device may surface later, at [`Backend::download`] or
//! [`Backend::synchronise`].

use std::fmt::Debug;
use std::ops::Range;

use crate::{HalError, Seed};

/// Extent of a buffer; the ring degree is the backend's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Number of polynomials.
    pub polynomials: usize,
    /// Number of limbs of each polynomial.
    pub limbs: usize,
}

/// Which representative of a residue modulo the source basis a base conversion carries over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Representative {
    /// x + u·Q with 0 ≤ x < Q and 0 ≤ u < number of source limbs: no correction. The sum is
    /// taken over integers, so u is a well-defined function of the residues.
    Approximate,
    /// The representative in [−Q/2, Q/2], its overflow count found in floating point
    /// (Halevi–Polyakov–Shoup, ePrint 2018/117). Within 2^-45·Q of the ends of that interval
    /// either end may be taken.
    Centred,
}

/// The uniform half of a key.
#[derive(Debug)]
pub enum UniformHalf<'a, T> {
    /// As it is, `[digits][limbs]`.
    Stored(&'a T),
    /// As [`Backend::expand_uniform`] expands it.
    Seeded(&'a Seed),
}

/// A key-switching key: its halves `[digits][limbs]`, and where in them the limbs of an operation lie.
#[derive(Debug)]
pub struct KeyView<'a, T> {
    /// The halves that meet the message.
    pub b: &'a T,
    /// The halves that meet the secret.
    pub a: UniformHalf<'a, T>,
    /// Limb position i of an operation is limb position `positions[i]` of the key's stored halves.
    pub positions: Vec<usize>,
}

/// What is added to a product with a key: the first `polynomials` polynomials of `source`, whose limb
/// position i is multiplied by `factors[i]`; nothing on limb positions from `factors.len()` on.
#[derive(Debug)]
pub struct Addend<'a, T> {
    /// The polynomials.
    pub source: &'a T,
    /// How many of them.
    pub polynomials: usize,
    /// Canonical residues.
    pub factors: &'a [u64],
}

// Not derived, which would ask the same of the buffer.
impl<T> Clone for Addend<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Addend<'_, T> {}

/// A rotation among several of one ciphertext.
#[derive(Debug)]
pub struct HoistedRotation<'a, T> {
    /// The key from s to φ_g^-1(s), or `None` for no rotation.
    pub key: Option<KeyView<'a, T>>,
    /// g.
    pub galois_element: usize,
}

/// Modular arithmetic on batches of polynomials. The [module](self) states data layout, batching
/// and contract.
pub trait Backend: Clone + Debug + Send + Sync + 'static {
    /// Storage that the backend owns, of shape `[polynomials][limbs][N]`.
    type Buffer: Debug + Send + Sync + 'static;

    /// Builds the tables for a ring degree N (a power of two in 2^4…2^17) and a table of distinct
    /// primes ≡ 1 modulo 2N below [`MODULUS_BOUND`](crate::primes::MODULUS_BOUND).
    /// Cloning a backend is cheap: tables are shared.
    fn new(degree: usize, moduli: &[u64]) -> Result<Self, HalError>;

    /// Ring degree N.
    fn degree(&self) -> usize;

    /// Table of moduli.
    fn moduli(&self) -> &[u64];

    /// What runs and why, for reports: for instance `cpu avx512ifma (detected)`.
    fn description(&self) -> String;

    // ----- memory -------------------------------------------------------------------------

    /// A buffer of zeros.
    fn zeros(&self, polynomials: usize, limbs: usize) -> Result<Self::Buffer, HalError>;

    /// Copies `data`, of length `polynomials`·`limbs`·N and canonical residues, into a buffer.
    fn upload(&self, data: &[u64], polynomials: usize, limbs: usize) -> Result<Self::Buffer, HalError>;

    /// Copies a buffer out, in the order `[polynomials][limbs][N]`. A synchronisation point.
    fn download(&self, src: &Self::Buffer) -> Result<Vec<u64>, HalError>;

    /// Extent of a buffer.
    fn shape(&self, src: &Self::Buffer) -> Shape;

    /// A new buffer holding the given polynomials of `src`, and of each the limbs at the given
    /// positions, in that order.
    fn select(
        &self,
        src: &Self::Buffer,
        polynomials: Range<usize>,
        limb_positions: &[usize],
    ) -> Result<Self::Buffer, HalError>;

    /// Copies the given polynomials and limb positions of `src` over those of `dst` that begin
    /// at `dst_polynomial` and `dst_limb`.
    fn copy_into(
        &self,
        dst: &mut Self::Buffer,
        dst_polynomial: usize,
        dst_limb: usize,
        src: &Self::Buffer,
        polynomials: Range<usize>,
        limb_positions: Range<usize>,
    ) -> Result<(), HalError>;

    /// A copy of a whole buffer.
    fn duplicate(&self, src: &Self::Buffer) -> Result<Self::Buffer, HalError> {
        let shape = self.shape(src);
        let positions: Vec<usize> = (0..shape.limbs).collect();
        self.select(src, 0..shape.polynomials, &positions)
    }

    /// Overwrites a buffer with zeros, in a way that is not optimised away. Backends hand released
    /// memory out again as it is, so owners of secrets call this before they let go of a buffer.
    /// That includes what public data turns into the secret, such as the exact result of a decryption.
    /// Cannot fail: a device that fails has lost the buffer as well.
    fn wipe(&self, buffer: &mut Self::Buffer);

    /// Waits until all queued work is done and reports what failed in it.
    fn synchronise(&self) -> Result<(), HalError> {
        Ok(())
    }

    // ----- element-wise arithmetic, in either domain --------------------------------------

    /// dst ← dst + src, on the first polynomials if `src` has fewer.
    fn add_assign(&self, dst: &mut Self::Buffer, src: &Self::Buffer, limbs: &[usize]) -> Result<(), HalError>;

    /// dst ← dst − src, on the first polynomials if `src` has fewer.
    fn sub_assign(&self, dst: &mut Self::Buffer, src: &Self::Buffer, limbs: &[usize]) -> Result<(), HalError>;

    /// dst ← −dst.
    fn negate_assign(&self, dst: &mut Self::Buffer, limbs: &[usize]) -> Result<(), HalError>;

    /// dst ← dst · src, position by position; one polynomial of `src` is broadcast.
    fn mul_assign(&self, dst: &mut Self::Buffer, src: &Self::Buffer, limbs: &[usize]) -> Result<(), HalError>;

    /// acc ← acc + a · b, position by position. `a` and `b` each have as many polynomials as
    /// `acc`, or one, which is broadcast.
    fn mul_accumulate(
        &self,
        acc: &mut Self::Buffer,
        a: &Self::Buffer,
        b: &Self::Buffer,
        limbs: &[usize],
    ) -> Result<(), HalError> {
        self.mul_accumulate_many(acc, &[(a, b)], limbs)
    }

    /// acc ← acc + Σ `a_k` · `b_k` over the list of pairs, each as in [`Backend::mul_accumulate`],
    /// with one reduction at the end. The inner sum of a linear transform.
    fn mul_accumulate_many(
        &self,
        acc: &mut Self::Buffer,
        pairs: &[(&Self::Buffer, &Self::Buffer)],
        limbs: &[usize],
    ) -> Result<(), HalError>;

    /// Σ `a_k` · `b_k` over the list of pairs, of `polynomials` polynomials, otherwise as
    /// [`Backend::mul_accumulate_many`].
    fn sum_of_products(
        &self,
        polynomials: usize,
        pairs: &[(&Self::Buffer, &Self::Buffer)],
        limbs: &[usize],
    ) -> Result<Self::Buffer, HalError> {
        let mut sum = self.zeros(polynomials, limbs.len())?;
        self.mul_accumulate_many(&mut sum, pairs, limbs)?;
        Ok(sum)
    }

    /// acc ← acc + Σ `a_k` · `c_k` over the list of pairs, where `c_k` are the N signed integer coefficients of a polynomial,
    /// which is lifted and transformed on the way: products by what is used once, whose residues are stored nowhere.
    fn mul_lifted_accumulate(
        &self,
        acc: &mut Self::Buffer,
        pairs: &[(&Self::Buffer, &[i64])],
        limbs: &[usize],
    ) -> Result<(), HalError> {
        let lifted = |coefficients: &[i64]| {
            let mut polynomial = self.lift_signed(coefficients, limbs)?;
            self.forward_ntt(&mut polynomial, limbs)?;
            Ok(polynomial)
        };
        pairs.iter().try_for_each(|(a, coefficients)| self.mul_accumulate(acc, a, &lifted(coefficients)?, limbs))
    }

    /// dst ← residues[i] · dst on limb position i, in all polynomials. `residues` are canonical.
    fn mul_scalar_assign(&self, dst: &mut Self::Buffer, residues: &[u64], limbs: &[usize]) -> Result<(), HalError>;

    /// acc ← acc + residues[i] · a on limb position i, on the first `polynomials` polynomials.
    fn mul_scalar_accumulate(
        &self,
        acc: &mut Self::Buffer,
        a: &Self::Buffer,
        polynomials: usize,
        residues: &[u64],
        limbs: &[usize],
    ) -> Result<(), HalError>;

    /// Σ residues[i] · a on limb position i over the terms (a, residues), on the first `polynomials` polynomials of each.
    /// Residues are canonical.
    fn linear_combination(
        &self,
        polynomials: usize,
        terms: &[(&Self::Buffer, &[u64])],
        limbs: &[usize],
    ) -> Result<Self::Buffer, HalError> {
        let mut sum = self.zeros(polynomials, limbs.len())?;
        for (a, residues) in terms {
            self.mul_scalar_accumulate(&mut sum, a, polynomials, residues, limbs)?;
        }
        Ok(sum)
    }

    /// Adds residues[i] to every position of limb i of one polynomial. In the NTT domain that
    /// adds the constant polynomial.
    fn add_scalar_assign(
        &self,
        dst: &mut Self::Buffer,
        polynomial: usize,
        residues: &[u64],
        limbs: &[usize],
    ) -> Result<(), HalError>;

    // ----- public randomness --------------------------------------------------------------

    /// Uniform residues `[polynomials][limbs]` expanded from a public seed. Each depends on the seed, the
    /// polynomial, the modulus's table index and its place alone, so that leaving limbs out leaves the others
    /// unchanged, and all backends expand alike.
    fn expand_uniform(&self, seed: &Seed, polynomials: usize, limbs: &[usize]) -> Result<Self::Buffer, HalError>;

    /// Whether products expand seeded halves about as fast as they would read stored ones.
    fn expands_fast(&self) -> bool {
        false
    }

    // ----- transforms and automorphisms ---------------------------------------------------

    /// Coefficients to NTT domain, in place.
    fn forward_ntt(&self, dst: &mut Self::Buffer, limbs: &[usize]) -> Result<(), HalError>;

    /// NTT domain to coefficients, in place, normalised.
    fn inverse_ntt(&self, dst: &mut Self::Buffer, limbs: &[usize]) -> Result<(), HalError>;

    /// src(X^g) for an odd g < 2N, in the NTT domain (a gather).
    fn automorphism(
        &self,
        src: &Self::Buffer,
        galois_element: usize,
        limbs: &[usize],
    ) -> Result<Self::Buffer, HalError>;

    /// acc ← acc + src(X^g), as [`Backend::automorphism`], on the first polynomials if `src` has fewer.
    fn automorphism_accumulate(
        &self,
        acc: &mut Self::Buffer,
        src: &Self::Buffer,
        galois_element: usize,
        limbs: &[usize],
    ) -> Result<(), HalError>;

    // ----- lifting and base conversion, in the coefficient domain -------------------------

    /// Signed integer coefficients (length polynomials·N) reduced into each modulus of `limbs`.
    /// Coefficient domain.
    fn lift_signed(&self, coefficients: &[i64], limbs: &[usize]) -> Result<Self::Buffer, HalError>;

    /// p(X^r) in the NTT domain, p given by N/r ≥ 2 signed coefficients: one word for r positions.
    fn lift_repeated(&self, coefficients: &[i64], limbs: &[usize]) -> Result<Self::Buffer, HalError>;

    /// As [`Backend::lift_repeated`], for wide coefficients.
    fn lift_repeated_wide(&self, coefficients: &[i128], limbs: &[usize]) -> Result<Self::Buffer, HalError>;

    /// Bytes that a buffer's words take.
    fn bytes(&self, src: &Self::Buffer) -> u64;

    /// Converts every polynomial of `src`, given modulo the product Q of the moduli `from` (in
    /// the first limb positions), to the moduli `to`. The sum
    /// Σ [x·(Q/q_i)^-1]_{`q_i}·(Q/q_i)` − v·Q is reduced modulo each destination, v as
    /// `representative` says. Coefficient domain in and out. `to` may repeat moduli of `from`.
    fn convert_basis(
        &self,
        src: &Self::Buffer,
        from: &[usize],
        to: &[usize],
        representative: Representative,
    ) -> Result<Self::Buffer, HalError>;

    /// `ModRaise`: every polynomial of `src`, given modulo the one modulus `from` in the coefficient
    /// domain, lifted to its centred representative modulo the moduli `limbs`. NTT domain out.
    fn mod_raise(&self, src: &Self::Buffer, from: usize, limbs: &[usize]) -> Result<Self::Buffer, HalError> {
        let mut raised = self.convert_basis(src, &[from], limbs, Representative::Centred)?;
        self.forward_ntt(&mut raised, limbs)?;
        Ok(raised)
    }

    // ----- hybrid key switching (ePrint 2019/688 section 3, 2020/1203), in the NTT domain ---

    /// The hoistable half of a key switch. Polynomial `polynomial` of `src`, modulo the moduli
    /// `limbs`, is cut into digits of `alpha` consecutive limb positions (the last may be
    /// shorter); digit d, in centred representation, is extended to all of `limbs` followed by
    /// `special`. Result: `[ceil(limbs.len()/alpha)][limbs.len()+special.len()]`, NTT domain in
    /// and out. A digit's own limbs are copies of the input.
    fn decompose(
        &self,
        src: &Self::Buffer,
        polynomial: usize,
        limbs: &[usize],
        special: &[usize],
        alpha: usize,
    ) -> Result<Self::Buffer, HalError>;

    /// `φ_g`(addend) + `Σ_d` `φ_g(digits_d)` · `key_d`, `φ_g`: X ↦ X^g: two polynomials, modulo `limbs` (all limbs of
    /// `digits`, special ones included). The key's halves have at least as many polynomials as
    /// `digits`, and may have more limbs. With a key that switches `φ_g(s)` to s this rotates,
    /// the digits being shared by all g (hoisting); g = 1 changes nothing.
    fn inner_product(
        &self,
        digits: &Self::Buffer,
        key: &KeyView<'_, Self::Buffer>,
        addend: Option<&Addend<'_, Self::Buffer>>,
        galois_element: usize,
        limbs: &[usize],
    ) -> Result<Self::Buffer, HalError>;

    /// acc ← acc + [`Backend::inner_product`], for sums modulo Q·P (double hoisting).
    fn inner_product_accumulate(
        &self,
        acc: &mut Self::Buffer,
        digits: &Self::Buffer,
        key: &KeyView<'_, Self::Buffer>,
        addend: Option<&Addend<'_, Self::Buffer>>,
        galois_element: usize,
        limbs: &[usize],
    ) -> Result<(), HalError> {
        let product = self.inner_product(digits, key, addend, galois_element, limbs)?;
        self.add_assign(acc, &product, limbs)
    }

    /// A hoisted rotation, or without a key the automorphism alone: what [`Backend::hoisted_sums`] and
    /// [`Backend::hoisted_sum`] add up.
    fn hoisted_rotation(
        &self,
        digits: &Self::Buffer,
        source: &Addend<'_, Self::Buffer>,
        rotation: &HoistedRotation<'_, Self::Buffer>,
        limbs: &[usize],
    ) -> Result<Self::Buffer, HalError> {
        if let Some(key) = &rotation.key {
            let first = Addend { polynomials: 1, ..*source };
            return self.inner_product(digits, key, Some(&first), rotation.galois_element, limbs);
        }
        let mut turned = self.zeros(2, limbs.len())?;
        let covered = &limbs[..source.factors.len().min(limbs.len())];
        let whole = self.automorphism(source.source, rotation.galois_element, covered)?;
        self.mul_scalar_accumulate(&mut turned, &whole, source.polynomials, source.factors, covered)?;
        Ok(turned)
    }

    /// Sums of products of hoisted rotations with plaintexts, one for each group: the baby steps of
    /// a linear transform. Rotation k is [`Backend::inner_product`] with key k, `source` limited to
    /// its first polynomial as addend; without a key it is `φ_g(source)`, two polynomials. Group
    /// g lists pairs of a rotation's index and a plaintext of one polynomial.
    fn hoisted_sums(
        &self,
        digits: &Self::Buffer,
        source: &Addend<'_, Self::Buffer>,
        rotations: &[HoistedRotation<'_, Self::Buffer>],
        groups: &[Vec<(usize, &Self::Buffer)>],
        limbs: &[usize],
    ) -> Result<Vec<Self::Buffer>, HalError> {
        let rotated = rotations
            .iter()
            .map(|rotation| self.hoisted_rotation(digits, source, rotation, limbs))
            .collect::<Result<Vec<_>, HalError>>()?;
        let mut sums = Vec::with_capacity(groups.len());
        for group in groups {
            let mut pairs = Vec::with_capacity(group.len());
            for &(k, plain) in group {
                let (operation, what, found) = ("hoisted_sums", "rotations", rotated.len());
                let missing = HalError::Shape { operation, what, expected: k + 1, found };
                pairs.push((rotated.get(k).ok_or(missing)?, plain));
            }
            sums.push(self.sum_of_products(2, &pairs, limbs)?);
        }
        Ok(sums)
    }

    /// The sum of hoisted rotations, each as in [`Backend::hoisted_sums`]: a step of a trace.
    fn hoisted_sum(
        &self,
        digits: &Self::Buffer,
        source: &Addend<'_, Self::Buffer>,
        rotations: &[HoistedRotation<'_, Self::Buffer>],
        limbs: &[usize],
    ) -> Result<Self::Buffer, HalError> {
        let mut sum = self.zeros(2, limbs.len())?;
        for rotation in rotations {
            self.add_assign(&mut sum, &self.hoisted_rotation(digits, source, rotation, limbs)?, limbs)?;
        }
        Ok(sum)
    }

    /// Divides every polynomial by the product D of the moduli `drop`, rounding to the nearest
    /// integer: (x − [x]_D) · D^-1 modulo the moduli `keep`, [x]_D centred. The limbs of `src`
    /// are those of `keep`, then those of `drop`. NTT domain in and out.
    ///
    /// With `drop` the special moduli this is `ModDown`; with the last modulus, Rescale; with both,
    /// the two at once.
    fn mod_down(&self, src: &Self::Buffer, keep: &[usize], drop: &[usize]) -> Result<Self::Buffer, HalError>;

    /// Divides by the last modulus of `limbs`, rounding to nearest. NTT domain in and out; the
    /// result has one limb fewer.
    fn rescale(&self, src: &Self::Buffer, limbs: &[usize]) -> Result<Self::Buffer, HalError> {
        let kept = limbs.len().saturating_sub(1);
        self.mod_down(src, &limbs[..kept], &limbs[kept..])
    }

    /// The product of two ciphertexts (`a_0`, `a_1)·(b_0`, `b_1)`: the three polynomials
    /// `a_0·b_0`, `a_0·b_1` + `a_1·b_0`, `a_1·b_1`. NTT domain.
    fn tensor(&self, a: &Self::Buffer, b: &Self::Buffer, limbs: &[usize]) -> Result<Self::Buffer, HalError> {
        let positions: Vec<usize> = (0..limbs.len()).collect();
        let part = |src, i: usize| self.select(src, i..i + 1, &positions);
        let (a0, a1) = (part(a, 0)?, part(a, 1)?);
        let (b0, b1) = (part(b, 0)?, part(b, 1)?);
        let mut result = self.zeros(3, limbs.len())?;
        for (i, pairs) in [&[(&a0, &b0)][..], &[(&a0, &b1), (&a1, &b0)], &[(&a1, &b1)]].into_iter().enumerate() {
            let sum = self.sum_of_products(1, pairs, limbs)?;
            self.copy_into(&mut result, i, 0, &sum, 0..1, 0..limbs.len())?;
        }
        Ok(result)
    }
}
