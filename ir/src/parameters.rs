//! CKKS parameter sets as plain data, shared by compiler and runtime.
//!
//! The chain of moduli, from limb 0 upwards, is: the base prime q_0, the primes that SlotsToCoeffs consumes, the primes
//! for use, those of EvalMod, those of CoeffsToSlots. The special primes serve key switching only. A bootstrap goes
//! SlotsToCoeffs first, so its input needs the levels of SlotsToCoeffs and its output keeps those and the ones for use.
//! Which primes are taken is the engine's business; the sizes here fix levels, security and cost.
//!
//! A set also says how its key-switching keys are made ([`KeyGadget`]). The engine's cost model proposed the presets' tables, and
//! a test there compares; but they stand here as data, so that a price that is measured anew never changes what a stored key
//! means.

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::ckks::Levels;

/// Name of the preset with no security, which every insecure set's name must contain.
pub const INSECURE_MARKER: &str = "insecure-test";

/// A parameter set with a name.
pub struct Preset {
    /// Its name.
    pub name: &'static str,
    /// What it is for, in a few words.
    pub purpose: &'static str,
    /// The set.
    pub parameters: fn() -> Parameters,
}

/// The sets that [`Parameters::preset`] knows; the first one is the default.
pub const PRESETS: [Preset; 4] = [
    Preset { name: "n16", purpose: "for general use", parameters: Parameters::n16 },
    Preset {
        name: "n15",
        purpose: "half the memory, for short programs and modest precision",
        parameters: Parameters::n15,
    },
    Preset { name: "deep", purpose: "fewer bootstraps, each of which takes longer", parameters: Parameters::deep },
    Preset { name: INSECURE_MARKER, purpose: "for fast tests only", parameters: Parameters::insecure_test },
];

/// Names of the [`PRESETS`].
pub const PRESET_NAMES: [&str; PRESETS.len()] = [PRESETS[0].name, PRESETS[1].name, PRESETS[2].name, PRESETS[3].name];

/// The largest ring degree, as a logarithm, that a set may have.
pub const MAXIMUM_LOG2_DEGREE: u32 = 17;

/// Largest log2 QP with 128-bit security for a uniform ternary secret and errors of σ = 3.19 at ring degree
/// 2^`log2_degree` (ePrint 2024/463, table 5.2); `None` outside the rows used here, 2^13 to 2^16.
pub fn maximum_log2_qp(log2_degree: u32) -> Option<u32> {
    match log2_degree {
        13 => Some(214),
        14 => Some(430),
        15 => Some(868),
        16 => Some(1747),
        _ => None,
    }
}

/// Variance of a coefficient's error after a division with rounding, at ring degree N under a uniform ternary secret: both
/// polynomials are rounded.
pub fn rounding_variance(degree: f64) -> f64 {
    (1.0 + degree * 2.0 / 3.0) / 12.0
}

/// How the key-switching keys of consecutive levels cut ciphertexts into digits, and by what their products are divided. Levels
/// of one row share keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyGadget {
    /// The highest of the levels; they begin above those of the row before.
    pub up_to_level: u32,
    /// Consecutive limbs of Q in a digit.
    pub digit_limbs: u32,
    /// Primes that keys divide by: the special ones first, then the highest ones of the chain.
    pub special: u32,
}

/// A table of gadgets from rows of the highest level, the limbs of a digit and the number of special primes.
fn key_gadgets<const ROWS: usize>(rows: [[u32; 3]; ROWS]) -> Vec<KeyGadget> {
    rows.map(|[up_to_level, digit_limbs, special]| KeyGadget { up_to_level, digit_limbs, special }).into()
}

/// Sizes of a CKKS parameter set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameters {
    /// Short name, repeated in every report.
    pub name: String,
    /// log2 of the ring degree N.
    pub log2_degree: u32,
    /// log2 of the canonical scale at the top level for use.
    pub log2_scale: u32,
    /// Bits of q_0.
    pub base_bits: u32,
    /// Bits of the primes that SlotsToCoeffs consumes, lowest first.
    pub slots_to_coeffs_bits: Vec<u32>,
    /// Bits of the primes for use, lowest first.
    pub use_bits: Vec<u32>,
    /// Bits of the primes that EvalMod consumes, lowest first.
    pub eval_mod_bits: Vec<u32>,
    /// Bits of the primes that CoeffsToSlots consumes, lowest first.
    pub coeffs_to_slots_bits: Vec<u32>,
    /// Bits of the special primes.
    pub special_bits: Vec<u32>,
    /// How keys are made, in ascending order of levels up to the highest of Q.
    pub gadgets: Vec<KeyGadget>,
    /// Hamming weight of the ephemeral secret of a bootstrap (ePrint 2022/024).
    pub ephemeral_weight: u32,
    /// Whether the set may miss the security table. Its name must then contain [`INSECURE_MARKER`], and not otherwise.
    pub insecure: bool,
}

impl Parameters {
    /// N = 2^16, 13 levels for use after a SlotsToCoeffs-first bootstrap, log2 QP = 1706, 128 bits.
    pub fn n16() -> Self {
        Self {
            name: "n16".to_owned(),
            log2_degree: 16,
            log2_scale: 41,
            base_bits: 50,
            slots_to_coeffs_bits: vec![41; 3],
            use_bits: vec![41; 13],
            eval_mod_bits: vec![50; 10],
            coeffs_to_slots_bits: vec![50; 3],
            special_bits: vec![50; 7],
            gadgets: key_gadgets([
                [1, 2, 2],
                [4, 5, 5],
                [8, 9, 8],
                [13, 7, 6],
                [16, 9, 8],
                [19, 10, 9],
                [24, 14, 12],
                [27, 10, 9],
                [28, 8, 8],
                [29, 6, 6],
            ]),
            ephemeral_weight: 32,
            insecure: false,
        }
    }

    /// N = 2^15, 4 levels of 33 bits for use, log2 QP = 864, 128 bits: half the memory and a third of the time a bootstrap,
    /// for at most 2^14 slots, short programs and modest precision.
    pub fn n15() -> Self {
        Self {
            name: "n15".to_owned(),
            log2_degree: 15,
            log2_scale: 33,
            base_bits: 46,
            slots_to_coeffs_bits: vec![33; 2],
            use_bits: vec![33; 4],
            eval_mod_bits: vec![44; 10],
            coeffs_to_slots_bits: vec![44; 2],
            special_bits: vec![46; 2],
            gadgets: key_gadgets([
                [2, 3, 3],
                [6, 7, 6],
                [10, 6, 5],
                [13, 8, 7],
                [14, 5, 5],
                [15, 4, 4],
                [17, 3, 3],
                [18, 2, 2],
            ]),
            ..Self::n16()
        }
    }

    /// [`n16`](Self::n16) with 18 levels for use and 3 special primes, log2 QP = 1711, 128 bits: fewer bootstraps, of which each
    /// takes longer, for keys have more digits.
    pub fn deep() -> Self {
        Self {
            name: "deep".to_owned(),
            use_bits: vec![41; 18],
            special_bits: vec![50; 3],
            gadgets: key_gadgets([
                [1, 2, 2],
                [4, 5, 5],
                [8, 9, 8],
                [13, 7, 6],
                [17, 9, 8],
                [21, 11, 10],
                [25, 14, 12],
                [28, 10, 9],
                [30, 8, 7],
                [32, 5, 5],
                [33, 4, 4],
                [34, 3, 3],
            ]),
            ..Self::n16()
        }
    }

    /// The chain of [`n16`](Self::n16) over N = 2^12: the same plans and code, no security whatsoever.
    pub fn insecure_test() -> Self {
        Self { name: INSECURE_MARKER.to_owned(), log2_degree: 12, insecure: true, ..Self::n16() }
    }

    /// The preset of a name.
    pub fn preset(name: &str) -> Result<Self, Error> {
        let known = PRESETS.iter().find(|preset| preset.name == name);
        known.map(|preset| (preset.parameters)()).ok_or_else(|| {
            let names = PRESET_NAMES.join(", ");
            Error::Parameters(format!("there is no parameter preset `{name}`; the presets are {names}"))
        })
    }

    /// Security, ring and levels in a line: `128-bit security, N = 2^16, 13 levels of 41 bits, log2 QP = 1706`.
    pub fn description(&self) -> String {
        let security = self.security();
        format!(
            "{security}, N = 2^{}, {} levels of {} bits, log2 QP = {}",
            self.log2_degree,
            self.use_bits.len(),
            self.log2_scale,
            self.log2_qp()
        )
    }

    /// Standard deviation of the error that a rescale at the canonical scale adds to the real part of each of `slots` slots.
    pub fn rounding_deviation(&self, slots: usize) -> f64 {
        let of_coefficient = rounding_variance(f64::from(self.log2_degree).exp2());
        (slots as f64 * of_coefficient).sqrt() * (-f64::from(self.log2_scale)).exp2()
    }

    /// Most slots of a ciphertext, N/2.
    pub fn maximum_slots(&self) -> u32 {
        1 << (self.log2_degree - 1)
    }

    /// The levels that programs see: fresh ciphertexts and bootstraps come out at the top level for use, and a bootstrap
    /// takes what SlotsToCoeffs consumes.
    pub fn levels(&self) -> Levels {
        let bootstrap_input = self.slots_to_coeffs_bits.len() as u32;
        Levels { output: bootstrap_input + self.use_bits.len() as u32, bootstrap_input }
    }

    /// Index of the last limb of Q.
    pub fn maximum_level(&self) -> u32 {
        self.levels().output + (self.eval_mod_bits.len() + self.coeffs_to_slots_bits.len()) as u32
    }

    /// Bits of every limb of Q, by level.
    pub fn limb_bits(&self) -> Vec<u32> {
        let sections = [&self.slots_to_coeffs_bits, &self.use_bits, &self.eval_mod_bits, &self.coeffs_to_slots_bits];
        std::iter::once(self.base_bits).chain(sections.into_iter().flatten().copied()).collect()
    }

    /// log2 QP: the sum of all sizes.
    pub fn log2_qp(&self) -> u32 {
        self.limb_bits().iter().sum::<u32>() + self.special_bits.iter().sum::<u32>()
    }

    /// Security in bits by the table, or `None` for an insecure set.
    pub fn security_bits(&self) -> Option<u32> {
        (!self.insecure).then_some(128)
    }

    /// The security in words: `128-bit security` or `NO SECURITY`.
    pub fn security(&self) -> String {
        self.security_bits().map_or_else(|| "NO SECURITY".to_owned(), |bits| format!("{bits}-bit security"))
    }

    /// Checks sizes, security and name.
    pub fn validate(&self) -> Result<(), Error> {
        let fail = |message: String| Err(Error::Parameters(format!("parameters `{}`: {message}", self.name)));
        if !(5..=MAXIMUM_LOG2_DEGREE).contains(&self.log2_degree) {
            return fail(format!("log2 N = {} is outside 5..={MAXIMUM_LOG2_DEGREE}", self.log2_degree));
        }
        if self.special_bits.is_empty() || self.use_bits.is_empty() {
            return fail("at least one prime for use and one special prime are needed".to_owned());
        }
        // A chain longer than this is no parameter set; the bound also keeps the sum of the sizes from overflowing.
        let limbs = self.limb_bits();
        if limbs.len() + self.special_bits.len() > 256 {
            return fail(format!("{} primes are too many", limbs.len() + self.special_bits.len()));
        }
        if let Some(bits) = limbs.iter().chain(&self.special_bits).find(|bits| !(20..=60).contains(*bits)) {
            return fail(format!("a prime of {bits} bits is outside 20..=60"));
        }
        if !(20..=60).contains(&self.log2_scale) {
            return fail(format!("log2 of the scale is {}, outside 20..=60", self.log2_scale));
        }
        if self.ephemeral_weight == 0 || u64::from(self.ephemeral_weight) > 1 << self.log2_degree {
            return fail(format!("an ephemeral secret of weight {} is impossible", self.ephemeral_weight));
        }
        if self.insecure != self.name.contains(INSECURE_MARKER) {
            return fail(format!("a set's name contains `{INSECURE_MARKER}` if and only if it is insecure"));
        }
        match maximum_log2_qp(self.log2_degree) {
            _ if self.insecure => Ok(()),
            None => fail(format!("the 128-bit security table has no row for N = 2^{}", self.log2_degree)),
            Some(maximum) if self.log2_qp() > maximum => fail(format!(
                "log2 QP = {} exceeds {maximum}, the bound for 128-bit security at N = 2^{}, by {} bits",
                self.log2_qp(),
                self.log2_degree,
                self.log2_qp() - maximum
            )),
            Some(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_have_the_levels_and_the_security_they_promise() {
        let parameters = Parameters::n16();
        parameters.validate().unwrap();
        assert_eq!(parameters.log2_qp(), 1706);
        assert_eq!(parameters.levels(), Levels { output: 16, bootstrap_input: 3 });
        assert_eq!(parameters.maximum_level(), 29);
        assert_eq!(parameters.limb_bits().len(), 30);
        assert_eq!(parameters.security_bits(), Some(128));
        assert_eq!(parameters.description(), "128-bit security, N = 2^16, 13 levels of 41 bits, log2 QP = 1706");
        for preset in PRESETS {
            assert_eq!((preset.parameters)().name, preset.name);
        }
        for (name, log2_qp, levels) in [("n15", 864, 4), ("deep", 1711, 18)] {
            let preset = Parameters::preset(name).unwrap();
            preset.validate().unwrap();
            assert_eq!((preset.log2_qp(), preset.use_bits.len(), preset.security_bits()), (log2_qp, levels, Some(128)));
        }
        let insecure = Parameters::preset("insecure-test").unwrap();
        insecure.validate().unwrap();
        assert_eq!(insecure.security_bits(), None);
        assert_eq!(insecure.levels(), parameters.levels());
        assert!(Parameters::preset("n17").unwrap_err().to_string().contains("n16, n15, deep, insecure-test"));
    }

    #[test]
    fn an_insecure_set_must_say_so() {
        let small = Parameters { log2_degree: 15, ..Parameters::n16() };
        assert!(small.validate().unwrap_err().to_string().contains("exceeds 868"));
        let unnamed = Parameters { name: "fast".to_owned(), ..Parameters::insecure_test() };
        assert!(unnamed.validate().is_err());
    }
}
