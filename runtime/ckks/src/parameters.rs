//! CKKS parameters: the literal that a person writes, and the validated set that everything else uses.
//!
//! # The modulus chain
//! Limb 0 is the base prime `q_0`; above it lie, in this order, the primes that SlotsToCoeffs consumes, the primes for
//! use, those of EvalMod and those of CoeffsToSlots. A ciphertext at *level* ℓ has the limbs `q_0 … q_ℓ`, so the level
//! is the index of the highest limb and one rescale consumes `q_ℓ`. The special primes `p_0 … p_{α-1}` serve hybrid key
//! switching (ePrint 2020/1203, section 3) only, for which keys of lower levels take free primes of the chain as well
//! ([`gadget`](crate::gadget)). All primes are congruent to 1 modulo 2N and below [`PRIME_LIMIT`].
//!
//! # Canonical scales
//! Every level ℓ has exactly one canonical scale Δ_ℓ, and Δ_{ℓ-1} = Δ_ℓ² / q_ℓ, so that a product of two canonical
//! ciphertexts of level ℓ, once rescaled, is canonical at ℓ-1. The recursion is anchored at the top level for use,
//! Δ_top = 2^`log2_scale`, and holds in both directions. Each prime for use is the free one nearest to 2^bits · (Δ_ℓ /
//! Δ_top)², which keeps the scales from drifting: the deviation of one level is corrected by the prime of the next.
//!
//! # Security
//! The main secret is uniform ternary with errors of σ = 3.19. The literal's own check refuses what misses the
//! published table (ePrint 2024/463, table 5.2, 128 bits), unless it is flagged insecure and named so; likewise an
//! ephemeral secret that misses 128 bits by the estimates of [`security`](crate::security).

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

use cachemir_hal::primes::is_prime;

use crate::error::CkksError;
use crate::gadget::{self, Gadget};
use crate::security::ephemeral_security_bits;

/// What a person writes and a plan carries: names, sizes and gadgets, nothing checked yet.
pub use cachemir_ir::parameters::Parameters as ParametersLiteral;
pub use cachemir_ir::parameters::{INSECURE_MARKER, PRESET_NAMES};

/// Every prime is below this bound, so that one basis serves 52-bit multipliers on CPUs and double-precision units
/// elsewhere.
pub const PRIME_LIMIT: u64 = 1 << 50;

/// Security that every set has unless its name says otherwise.
pub const SECURITY_BITS: u32 = 128;

/// Standard deviation of the error distribution.
pub const ERROR_STANDARD_DEVIATION: f64 = 3.19;

/// Why a literal does not describe a usable parameter set.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ParameterError {
    /// The literal is unknown, malformed or not secure.
    #[error("{0}")]
    Literal(String),
    /// A part of the chain is missing or a count is out of range.
    #[error("parameters `{name}`: {what} must lie in {minimum}..={maximum}, found {found}")]
    Range {
        /// Name of the literal.
        name: String,
        /// The quantity.
        what: &'static str,
        /// Smallest allowed value.
        minimum: u64,
        /// Largest allowed value.
        maximum: u64,
        /// The value in the literal.
        found: u64,
    },
    /// There are not enough primes of the requested size.
    #[error("parameters `{name}`: no free {bits}-bit prime congruent to 1 modulo 2^{log2_order} is left")]
    NoPrime {
        /// Name of the literal.
        name: String,
        /// Requested size.
        bits: u32,
        /// log2 of 2N.
        log2_order: u32,
    },
    /// A prime is larger than what keys for it divide by, so the key-switching noise would be too large.
    #[error(
        "parameters `{name}`: prime {limb} has {limb_bits:.1} bits, the special primes for it only {special_bits:.1}"
    )]
    PrimeTooLarge {
        /// Name of the literal.
        name: String,
        /// Index of the prime.
        limb: usize,
        /// Its log2.
        limb_bits: f64,
        /// log2 of the product of the special primes, or for prime 0 of the first of them.
        special_bits: f64,
    },
    /// The set says of a level nothing that keys could be made by.
    #[error("parameters `{name}`: {}", gadget_problem(*level, *gadget))]
    Gadget {
        /// Name of the literal.
        name: String,
        /// The level.
        level: usize,
        /// What the set says of it.
        gadget: Option<Gadget>,
    },
    /// The ephemeral secret is not known to be safe.
    #[error(
        "parameters `{name}`: an ephemeral secret of weight {weight} modulo 2^{log2_modulus:.1} at N = 2^{log2_degree} {}",
        shortfall(*security_bits)
    )]
    EphemeralSecret {
        /// Name of the literal.
        name: String,
        /// Its Hamming weight.
        weight: u32,
        /// log2 of q_0·p_0.
        log2_modulus: f64,
        /// log2 N.
        log2_degree: u32,
        /// What the estimates say, if they cover it.
        security_bits: Option<u32>,
    },
    /// The canonical scale of a level leaves its allowed range.
    #[error(
        "parameters `{name}`: the canonical scale of level {level} is 2^{log2_scale:.3}, more than a factor 2 from 2^{log2_target}"
    )]
    ScaleDrift {
        /// Name of the literal.
        name: String,
        /// The level.
        level: usize,
        /// log2 of its canonical scale.
        log2_scale: f64,
        /// log2 of the scale asked for.
        log2_target: u32,
    },
}

/// What is wrong with a level's gadget.
fn gadget_problem(level: usize, gadget: Option<Gadget>) -> String {
    match gadget {
        None => format!("nothing is said of how keys for level {level} are made"),
        Some(Gadget { digit_limbs, special }) => format!(
            "keys for level {level} cannot have digits of {digit_limbs} limbs and divide by {special} primes: a digit may be \
             twice as large as their product, and no limb of a ciphertext may be among them"
        ),
    }
}

/// How an ephemeral secret misses 128 bits.
fn shortfall(security_bits: Option<u32>) -> String {
    match security_bits {
        None => "is covered by no estimate; take a larger weight or smaller primes".to_owned(),
        Some(bits) => format!("has {bits} bits of security, {} too few", SECURITY_BITS.saturating_sub(bits)),
    }
}

impl From<cachemir_ir::Error> for ParameterError {
    fn from(error: cachemir_ir::Error) -> Self {
        Self::Literal(error.to_string())
    }
}

/// The part of the chain that a limb belongs to, by what its rescale is meant for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Section {
    /// q_0.
    Base,
    /// Consumed by SlotsToCoeffs.
    SlotsToCoeffs,
    /// For the program.
    Use,
    /// Consumed by EvalMod.
    EvalMod,
    /// Consumed by CoeffsToSlots.
    CoeffsToSlots,
}

/// A validated parameter set with its primes and canonical scales.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters {
    literal: ParametersLiteral,
    primes: Vec<u64>,
    special_primes: Vec<u64>,
    canonical_scales: Vec<f64>,
    /// By level.
    gadgets: Vec<Gadget>,
    log2_qp: f64,
}

impl Parameters {
    /// Checks the literal and generates its primes, always the same ones for the same literal.
    pub fn new(literal: ParametersLiteral) -> Result<Self, ParameterError> {
        let mut set = Self::without_gadgets(literal)?;
        set.gadgets = gadget::by_level(&set.literal.gadgets, set.primes.len());
        for level in 0..set.primes.len() {
            let gadget = set.gadgets.get(level).copied();
            if !gadget.is_some_and(|gadget| set.serves(gadget, level)) {
                return Err(ParameterError::Gadget { name: set.literal.name, level, gadget });
            }
        }
        Ok(set)
    }

    /// A new set, with the gadgets that the cost model proposes in place of those of the literal.
    pub fn tuned(literal: ParametersLiteral) -> Result<Self, ParameterError> {
        let Self { literal, primes, special_primes, .. } = Self::without_gadgets(literal)?;
        let use_top = literal.levels().output as usize;
        let proposed = gadget::proposed(1 << literal.log2_degree, &primes, &special_primes, use_top);
        Self::new(ParametersLiteral { gadgets: gadget::rows(&proposed), ..literal })
    }

    /// Primes and scales, with no gadget yet.
    fn without_gadgets(literal: ParametersLiteral) -> Result<Self, ParameterError> {
        let name = literal.name.clone();
        literal.validate()?;
        check_ranges(&literal)?;
        let mut pool = PrimePool { name: &name, log2_order: literal.log2_degree + 1, taken: BTreeSet::new() };

        let use_top = literal.slots_to_coeffs_bits.len() + literal.use_bits.len();
        let anchor = exp2(literal.log2_scale);
        let chain_bits = literal.limb_bits();
        let mut primes = vec![0_u64; chain_bits.len()];
        let mut canonical_scales = vec![0_f64; chain_bits.len()];

        canonical_scales[use_top] = anchor;
        for level in (1..=use_top).rev() {
            let scale = canonical_scales[level];
            let deviation = scale / anchor;
            primes[level] = pool.take(chain_bits[level], exp2(chain_bits[level]) * deviation * deviation)?;
            let lower = scale * scale / primes[level] as f64;
            if !(anchor / 2.0..=anchor * 2.0).contains(&lower) {
                return Err(ParameterError::ScaleDrift {
                    name,
                    level: level - 1,
                    log2_scale: lower.log2(),
                    log2_target: literal.log2_scale,
                });
            }
            canonical_scales[level - 1] = lower;
        }
        primes[0] = pool.take(chain_bits[0], exp2(chain_bits[0]))?;
        for level in use_top + 1..chain_bits.len() {
            primes[level] = pool.take(chain_bits[level], exp2(chain_bits[level]))?;
            canonical_scales[level] = (canonical_scales[level - 1] * primes[level] as f64).sqrt();
        }
        let special_primes =
            literal.special_bits.iter().map(|&bits| pool.take(bits, exp2(bits))).collect::<Result<Vec<_>, _>>()?;

        let special_bits = log2_product(&special_primes);
        for (limb, &prime) in primes.iter().enumerate() {
            // Keys to and from the ephemeral secret divide by the first special prime alone.
            let special_bits = if limb == 0 { log2_product(&special_primes[..1]) } else { special_bits };
            let limb_bits = (prime as f64).log2();
            if limb_bits > special_bits + 1.0 {
                return Err(ParameterError::PrimeTooLarge { name, limb, limb_bits, special_bits });
            }
        }
        if !literal.insecure {
            // The key to the ephemeral secret has one special prime and reaches level 0.
            let log2_modulus = log2_product(&[primes[0], special_primes[0]]);
            let (weight, log2_degree) = (literal.ephemeral_weight, literal.log2_degree);
            let security_bits = ephemeral_security_bits(log2_degree, log2_modulus, weight);
            if security_bits.is_none_or(|bits| bits < SECURITY_BITS) {
                return Err(ParameterError::EphemeralSecret { name, weight, log2_modulus, log2_degree, security_bits });
            }
        }
        let log2_qp = log2_product(&primes) + special_bits;
        Ok(Self { literal, primes, special_primes, canonical_scales, gadgets: Vec::new(), log2_qp })
    }

    /// The validated preset called `name`.
    pub fn preset(name: &str) -> Result<Self, ParameterError> {
        Self::new(ParametersLiteral::preset(name)?)
    }

    /// The literal that this set was made from.
    pub fn literal(&self) -> &ParametersLiteral {
        &self.literal
    }

    /// The set's name.
    pub fn name(&self) -> &str {
        &self.literal.name
    }

    /// log2 N.
    pub fn log2_degree(&self) -> u32 {
        self.literal.log2_degree
    }

    /// The ring degree N.
    pub fn degree(&self) -> usize {
        1 << self.literal.log2_degree
    }

    /// The largest number of slots, N/2.
    pub fn maximum_slots(&self) -> usize {
        self.degree() / 2
    }

    /// q_0, q_1, … in the order of the levels.
    pub fn primes(&self) -> &[u64] {
        &self.primes
    }

    /// p_0, p_1, …
    pub fn special_primes(&self) -> &[u64] {
        &self.special_primes
    }

    /// How ciphertexts at `level` are cut into key-switching digits; above the chain, as at its top.
    pub fn gadget(&self, level: usize) -> Gadget {
        self.gadgets[level.min(self.maximum_level())]
    }

    /// Refuses digits without limbs, and a P that shares primes with q_0 ⋯ q_level.
    pub(crate) fn check_gadget(&self, level: usize, gadget: Gadget) -> Result<(), CkksError> {
        let spare = self.special_primes.len() + self.maximum_level().saturating_sub(level);
        let wrong = |what, value: usize, condition| Err(CkksError::Value { what, value: value as f64, condition });
        if !(1..=self.primes.len()).contains(&gadget.digit_limbs) {
            return wrong("limbs of a digit", gadget.digit_limbs, "at least one, at most all of the chain");
        }
        if !(1..=spare).contains(&gadget.special) {
            return wrong("primes that a key divides by", gadget.special, "at least one, none of the ciphertext's");
        }
        Ok(())
    }

    /// Whether keys of this gadget serve ciphertexts at `level`: P shares no prime with q_0 ⋯ q_level, and no digit is more than
    /// twice as large, beyond which the noise of a key switch grows.
    fn serves(&self, gadget: Gadget, level: usize) -> bool {
        self.check_gadget(level, gadget).is_ok() && {
            let log2_special: f64 = self.special_moduli(gadget.special).map(|prime| (prime as f64).log2()).sum();
            let digits = self.primes[..=level].chunks(gadget.digit_limbs);
            digits.map(log2_product).all(|log2_digit| log2_digit <= log2_special + 1.0)
        }
    }

    /// How ModRaise's results, all limbs of which come from q_0, are cut: into one digit, for which one special prime is
    /// enough.
    pub fn raised_gadget(&self) -> Gadget {
        Gadget::single_digit(self.primes.len())
    }

    /// Which primes make up P, as indices of the chain followed by the special primes: the first `special` special primes
    /// or, if there are fewer, all of them and the highest ones of the chain.
    pub fn special_indices(&self, special: usize) -> Range<usize> {
        let (chain, count) = (self.primes.len(), self.special_primes.len());
        if special <= count { chain..chain + special } else { chain + count - special..chain + count }
    }

    /// The primes of [`special_indices`](Self::special_indices).
    pub fn special_moduli(&self, special: usize) -> impl Iterator<Item = u64> + '_ {
        self.special_indices(special).map(|index| match index.checked_sub(self.primes.len()) {
            None => self.primes[index],
            Some(index) => self.special_primes[index],
        })
    }

    /// The highest level, where ModRaise arrives.
    pub fn maximum_level(&self) -> usize {
        self.primes.len() - 1
    }

    /// The highest level for use, where a bootstrap's output arrives.
    pub fn use_top_level(&self) -> usize {
        self.literal.slots_to_coeffs_bits.len() + self.literal.use_bits.len()
    }

    /// The lowest level at which a ciphertext can enter a bootstrap: SlotsToCoeffs takes it from here to level 0.
    pub fn bootstrap_input_level(&self) -> usize {
        self.literal.slots_to_coeffs_bits.len()
    }

    /// The limbs (equivalently, the levels whose rescale consumes them) of a section of the chain.
    pub fn section(&self, section: Section) -> Range<usize> {
        let slots_to_coeffs_end = 1 + self.literal.slots_to_coeffs_bits.len();
        let use_end = slots_to_coeffs_end + self.literal.use_bits.len();
        let eval_mod_end = use_end + self.literal.eval_mod_bits.len();
        match section {
            Section::Base => 0..1,
            Section::SlotsToCoeffs => 1..slots_to_coeffs_end,
            Section::Use => slots_to_coeffs_end..use_end,
            Section::EvalMod => use_end..eval_mod_end,
            Section::CoeffsToSlots => eval_mod_end..self.primes.len(),
        }
    }

    /// Δ_ℓ, the one canonical scale of `level`.
    ///
    /// # Panics
    /// If `level` exceeds [`maximum_level`](Self::maximum_level).
    pub fn canonical_scale(&self, level: usize) -> f64 {
        self.canonical_scales[level]
    }

    /// log2 of q_0 ⋯ q_ℓ.
    pub fn log2_q(&self, level: usize) -> f64 {
        log2_product(&self.primes[..=level])
    }

    /// log2 of the whole modulus QP.
    pub fn log2_qp(&self) -> f64 {
        self.log2_qp
    }

    /// Security in bits by the table, or `None` for an insecure set.
    pub fn security_bits(&self) -> Option<u32> {
        (!self.literal.insecure).then_some(SECURITY_BITS)
    }

    /// Hamming weight of the ephemeral secret.
    pub fn ephemeral_weight(&self) -> usize {
        self.literal.ephemeral_weight as usize
    }

    /// A 64-bit fingerprint (FNV-1a) of what stored objects depend on: degree, primes, secret distributions, and the gadgets
    /// that keys are made by. It tells sets apart by accident, not against an adversary.
    pub fn fingerprint(&self) -> u64 {
        let words = [u64::from(self.literal.log2_degree), u64::from(self.literal.log2_scale)]
            .into_iter()
            .chain([self.primes.len() as u64, self.special_primes.len() as u64])
            .chain([
                u64::from(self.literal.ephemeral_weight),
                self.bootstrap_input_level() as u64,
                self.use_top_level() as u64,
            ])
            .chain(self.primes.iter().copied())
            .chain(self.special_primes.iter().copied())
            .chain(self.gadgets.iter().flat_map(|gadget| [gadget.digit_limbs as u64, gadget.special as u64]));
        words
            .flat_map(u64::to_le_bytes)
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
    }
}

impl fmt::Display for Parameters {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{}: N = 2^{}, {} + {} primes, {} levels for use, log2 QP = {:.0}, {} key-switching digits, ",
            self.name(),
            self.log2_degree(),
            self.primes.len(),
            self.special_primes.len(),
            self.literal.use_bits.len(),
            self.log2_qp,
            self.gadget(self.maximum_level()).digits(self.maximum_level()),
        )?;
        match self.security_bits() {
            Some(bits) => write!(formatter, "{bits}-bit security"),
            None => write!(formatter, "NO SECURITY ({INSECURE_MARKER})"),
        }
    }
}

/// What the engine's arithmetic needs beyond the literal's own check.
fn check_ranges(literal: &ParametersLiteral) -> Result<(), ParameterError> {
    let range = |what, minimum: u64, maximum: u64, found: u64| {
        if (minimum..=maximum).contains(&found) {
            Ok(())
        } else {
            Err(ParameterError::Range { name: literal.name.clone(), what, minimum, maximum, found })
        }
    };
    let smallest_prime_bits = u64::from(literal.log2_degree) + 6;
    let largest_prime_bits = u64::from(PRIME_LIMIT.ilog2());
    let limb_bits = literal.limb_bits();
    for &bits in limb_bits.iter().chain(&literal.special_bits) {
        range("the bit size of a prime", smallest_prime_bits, largest_prime_bits, u64::from(bits))?;
    }
    range("the number of primes", 2, 128, (limb_bits.len() + literal.special_bits.len()) as u64)
}

fn exp2(bits: u32) -> f64 {
    f64::from(bits).exp2()
}

pub(crate) fn log2_product(primes: &[u64]) -> f64 {
    primes.iter().map(|&prime| (prime as f64).log2()).sum()
}

/// Hands out distinct primes congruent to 1 modulo 2^`log2_order`.
struct PrimePool<'a> {
    name: &'a str,
    log2_order: u32,
    taken: BTreeSet<u64>,
}

impl PrimePool<'_> {
    /// The free prime nearest to `target`, searched alternately on both sides, below [`PRIME_LIMIT`] and within a
    /// factor 2.
    fn take(&mut self, bits: u32, target: f64) -> Result<u64, ParameterError> {
        let step = 1_u64 << self.log2_order;
        let centre = (target / step as f64).round() as u64 * step + 1;
        let free = |candidate: u64| candidate < PRIME_LIMIT && !self.taken.contains(&candidate) && is_prime(candidate);
        let found = (0..centre / (2 * step)).find_map(|distance| {
            let below = centre - distance * step;
            let above = centre + distance * step;
            [below, above].into_iter().find(|&candidate| free(candidate))
        });
        let prime = found.ok_or_else(|| ParameterError::NoPrime {
            name: self.name.to_owned(),
            bits,
            log2_order: self.log2_order,
        })?;
        self.taken.insert(prime);
        Ok(prime)
    }
}

#[cfg(test)]
mod tests {
    use cachemir_ir::parameters::KeyGadget;

    use super::*;

    #[test]
    fn presets_have_the_documented_shape() {
        // Highest level, section for use, number of all primes, log2 QP.
        let shapes = [(29, 4..17, 37, 1706.0), (18, 3..7, 21, 864.0), (34, 4..22, 38, 1711.0), (29, 4..17, 37, 1706.0)];
        for (name, (top, section, count, log2_qp)) in PRESET_NAMES.into_iter().zip(shapes) {
            let parameters = Parameters::preset(name).unwrap();
            assert_eq!(parameters.maximum_level(), top);
            assert_eq!(parameters.use_top_level() + 1, section.end);
            assert_eq!(parameters.bootstrap_input_level() + 1, section.start);
            assert_eq!(parameters.section(Section::Use), section);
            assert_eq!(parameters.section(Section::CoeffsToSlots).end, top + 1);
            assert!((parameters.log2_qp() - log2_qp).abs() < 0.1, "{}", parameters.log2_qp());
            assert!(parameters.to_string().contains(name));
            let all: BTreeSet<u64> = parameters.primes().iter().chain(parameters.special_primes()).copied().collect();
            assert_eq!(all.len(), count, "distinct primes");
            for &prime in &all {
                assert!(is_prime(prime) && prime < PRIME_LIMIT);
                assert_eq!(prime % (2 * parameters.degree() as u64), 1);
            }
        }
        assert_eq!(Parameters::preset("n16").unwrap().security_bits(), Some(128));
        assert_eq!(Parameters::preset("insecure-test").unwrap().security_bits(), None);
    }

    #[test]
    fn canonical_scales_follow_the_recursion_and_stay_near_the_target() {
        let parameters = Parameters::preset("n16").unwrap();
        for level in 1..=parameters.maximum_level() {
            let scale = parameters.canonical_scale(level);
            let lower = scale * scale / parameters.primes()[level] as f64;
            assert!((lower / parameters.canonical_scale(level - 1) - 1.0).abs() < 1e-12);
        }
        for level in 0..=parameters.use_top_level() {
            let deviation = parameters.canonical_scale(level) / 41_f64.exp2() - 1.0;
            assert!(deviation.abs() < 1e-4, "level {level}: {deviation}");
        }
        assert!((parameters.canonical_scale(29).log2() - 50.0).abs() < 0.01);
    }

    #[test]
    fn validation_is_deterministic() {
        assert_eq!(Parameters::preset("n16").unwrap(), Parameters::preset("n16").unwrap());
        assert_ne!(
            Parameters::preset("n16").unwrap().fingerprint(),
            Parameters::preset("insecure-test").unwrap().fingerprint()
        );
    }

    #[test]
    fn other_gadgets_are_another_set_and_impossible_ones_are_none() {
        let preset = Parameters::preset("insecure-test").unwrap();
        let with = |change: &dyn Fn(&mut Vec<KeyGadget>)| {
            let mut literal = preset.literal().clone();
            change(&mut literal.gadgets);
            Parameters::new(literal)
        };
        let finer = with(&|rows| rows[9].digit_limbs = 5).unwrap();
        assert_eq!(finer.primes(), preset.primes());
        assert_ne!(finer.fingerprint(), preset.fingerprint());
        // A row more that says the same changes nothing that is stored.
        let split = with(&|rows| rows.insert(1, KeyGadget { up_to_level: 3, ..rows[1] })).unwrap();
        assert_eq!(split.fingerprint(), preset.fingerprint());
        type Change<'c> = &'c dyn Fn(&mut Vec<KeyGadget>);
        let refused: [(usize, Change<'_>); 5] = [
            (0, &|rows| rows.clear()),
            (29, &|rows| rows.truncate(9)),
            (29, &|rows| rows[9].digit_limbs = 7),
            // One of the ciphertext's own primes would be among the special ones.
            (29, &|rows| rows[9].special = 8),
            (2, &|rows| rows[1].digit_limbs = 0),
        ];
        for (expected, change) in refused {
            match with(change) {
                Err(ParameterError::Gadget { level, .. }) => assert_eq!(level, expected),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_modulus_above_the_table_is_refused_with_the_excess() {
        let literal = ParametersLiteral { use_bits: vec![41; 15], name: "wide".into(), ..ParametersLiteral::n16() };
        match Parameters::new(literal) {
            Err(ParameterError::Literal(message)) => assert!(message.contains("by 41 bits"), "{message}"),
            other => panic!("{other:?}"),
        }
        let small = ParametersLiteral { log2_degree: 12, name: "small".into(), ..ParametersLiteral::n16() };
        assert!(matches!(Parameters::new(small), Err(ParameterError::Literal(_))));
        assert!(matches!(Parameters::preset("n17"), Err(ParameterError::Literal(_))));
    }

    #[test]
    fn the_insecure_flag_and_the_name_go_together() {
        let silent = ParametersLiteral { name: "fast".into(), ..ParametersLiteral::insecure_test() };
        assert!(matches!(Parameters::new(silent), Err(ParameterError::Literal(_))));
        let loud = ParametersLiteral { insecure: false, ..ParametersLiteral::insecure_test() };
        assert!(matches!(Parameters::new(loud), Err(ParameterError::Literal(_))));
    }

    #[test]
    fn primes_of_unsupported_sizes_are_refused() {
        for bits in [17, 51] {
            let literal = ParametersLiteral { base_bits: bits, ..ParametersLiteral::insecure_test() };
            assert!(Parameters::new(literal).is_err(), "{bits} bits");
        }
        let literal = ParametersLiteral { slots_to_coeffs_bits: vec![43; 3], ..ParametersLiteral::insecure_test() };
        assert!(matches!(Parameters::new(literal), Err(ParameterError::ScaleDrift { .. })));
    }

    #[test]
    fn a_prime_above_the_special_modulus_is_refused() {
        let literal = ParametersLiteral { special_bits: vec![41], ..ParametersLiteral::insecure_test() };
        assert!(matches!(Parameters::new(literal), Err(ParameterError::PrimeTooLarge { limb: 0, .. })));
    }

    #[test]
    fn a_light_ephemeral_secret_is_refused_with_the_bits_it_misses() {
        let light = |ephemeral_weight| ParametersLiteral { ephemeral_weight, ..ParametersLiteral::n16() };
        let error = Parameters::new(light(22)).unwrap_err().to_string();
        assert!(error.contains("121 bits of security, 7 too few"), "{error}");
        let error = Parameters::new(light(8)).unwrap_err().to_string();
        assert!(error.contains("no estimate"), "{error}");
        assert!(Parameters::new(light(24)).is_ok());
    }
}
