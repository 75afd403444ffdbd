//! What is known of the two secrets' security.
//!
//! - The **main secret** is uniform ternary; its bound on log2 QP is the published table of ePrint 2024/463
//!   ([`cachemir_ir::parameters::maximum_log2_qp`]).
//! - The **ephemeral secret** of a bootstrap is sparse and meets one key only, modulo `q_0·p_0` (ePrint 2022/024).
//!   Its bounds are those of the lattice estimator, whose whole output lies in `security/ephemeral_secret.json`
//!   with the calls that made it. The least of its attacks and of the cost models MATZOV and ADPS16 counts.

/// What the estimator says of one sparse ternary secret with errors of σ = 3.19.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EphemeralEstimate {
    /// log2 N.
    pub log2_degree: u32,
    /// log2 of the largest modulus of a sample.
    pub log2_modulus: u32,
    /// Coefficients that differ from zero.
    pub hamming_weight: u32,
    /// log2 of the operations of the cheapest attack, rounded down.
    pub security_bits: u32,
}

const fn estimate(log2_degree: u32, log2_modulus: u32, hamming_weight: u32, security_bits: u32) -> EphemeralEstimate {
    EphemeralEstimate { log2_degree, log2_modulus, hamming_weight, security_bits }
}

/// The estimates, as in `security/ephemeral_secret.json`.
pub const EPHEMERAL_ESTIMATES: [EphemeralEstimate; 14] = [
    estimate(15, 80, 32, 144),
    estimate(15, 90, 32, 139),
    estimate(15, 100, 28, 123),
    estimate(15, 100, 32, 135),
    estimate(15, 100, 64, 223),
    estimate(15, 110, 32, 131),
    estimate(15, 120, 32, 128),
    estimate(16, 100, 22, 121),
    estimate(16, 100, 24, 128),
    estimate(16, 100, 32, 160),
    estimate(16, 100, 40, 190),
    estimate(16, 100, 48, 219),
    estimate(16, 121, 32, 155),
    estimate(17, 100, 32, 186),
];

/// Security in bits of an ephemeral secret of this weight under a modulus of this size: the best of all estimates for at
/// most this degree, at least this modulus and at most this weight, each of which is easier to attack. `None` where
/// there is none.
pub fn ephemeral_security_bits(log2_degree: u32, log2_modulus: f64, hamming_weight: u32) -> Option<u32> {
    EPHEMERAL_ESTIMATES
        .iter()
        .filter(|known| {
            known.log2_degree <= log2_degree
                && f64::from(known.log2_modulus) >= log2_modulus
                && known.hamming_weight <= hamming_weight
        })
        .map(|known| known.security_bits)
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_the_estimators_output() {
        let output: serde_json::Value =
            serde_json::from_str(include_str!("../security/ephemeral_secret.json")).unwrap();
        let number = |row: &serde_json::Value, name: &str| row[name].as_u64().unwrap() as u32;
        let triples: Vec<EphemeralEstimate> = output["triples"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| {
                assert_eq!(row["error_standard_deviation"], 3.19);
                estimate(
                    number(row, "log2_degree"),
                    number(row, "log2_modulus"),
                    number(row, "hamming_weight"),
                    number(row, "security_bits"),
                )
            })
            .collect();
        assert_eq!(triples, EPHEMERAL_ESTIMATES);
    }

    #[test]
    fn estimates_of_easier_instances_count() {
        assert_eq!(ephemeral_security_bits(16, 99.99, 32), Some(160));
        assert_eq!(ephemeral_security_bits(16, 100.01, 32), Some(155));
        assert_eq!(ephemeral_security_bits(16, 90.0, 23), Some(121));
        assert_eq!(ephemeral_security_bits(14, 50.0, 64), None);
        assert_eq!(ephemeral_security_bits(16, 130.0, 64), None);
    }
}
