use super::*;
use crate::ckks::encoder::IntegerCoefficients;
use crate::error::CkksError;
use crate::rlwe::keys::KeyManifest;

#[test]
fn slots_survive_encoding_at_every_level_and_scale() {
    let fixture = Fixture::new(&KeyManifest::default());
    for slots in [1, 2, 8, 512] {
        let values = random_slots(slots, 1);
        for (level, log2_scale) in [(0, 30_f64), (1, 60.0), (2, 100.0), (6, 41.0), (9, 100.0)] {
            let plaintext = fixture.encoder.encode(&values, level, log2_scale.exp2()).unwrap();
            let bound = (slots as f64).sqrt() * (1.0 - log2_scale).exp2() + 1e-13;
            assert_near(&fixture.encoder.decode(&plaintext).unwrap(), &values, bound);
        }
    }
}

#[test]
fn few_slots_are_the_periodic_vector() {
    let fixture = Fixture::new(&KeyManifest::default());
    let values = random_slots(8, 2);
    let mut plaintext = fixture.encoder.encode(&values, 3, 41_f64.exp2()).unwrap();
    plaintext.set_slots(512);
    let periodic: Vec<_> = values.iter().cycle().take(512).copied().collect();
    assert_near(&fixture.encoder.decode(&plaintext).unwrap(), &periodic, 1e-10);
}

#[test]
fn coefficients_decode_to_the_last_bit_with_signs_and_wide_values() {
    let fixture = Fixture::new(&KeyManifest::default());
    let coefficients: Vec<f64> =
        (0..1024_i32).map(|k| f64::from((k * 7919 - 4_000_000) % 65_537) * f64::from(k % 40).exp2()).collect();
    for (level, scale) in [(1, 1.0), (4, 16_f64.exp2()), (9, 60_f64.exp2())] {
        let plaintext = fixture.encoder.encode_coefficients(&coefficients, level, scale).unwrap();
        for (found, expected) in fixture.encoder.decode_coefficients(&plaintext).unwrap().iter().zip(&coefficients) {
            assert!((found / expected - 1.0).abs() < 4.0 * f64::EPSILON, "{found} {expected}");
        }
    }
}

#[test]
fn integers_are_rounded_and_narrow_where_possible() {
    let fixture = Fixture::new(&KeyManifest::default());
    let narrow = fixture.encoder.integers_from_coefficients(&[1.4, -1.6, 2.5], 1.0).unwrap();
    match narrow.coefficients() {
        IntegerCoefficients::Narrow(integers) => assert_eq!(integers[..4], [1, -2, 3, 0]),
        IntegerCoefficients::Wide(_) => panic!("small coefficients"),
    }
    let wide = fixture.encoder.integers_from_coefficients(&[-3.0], 70_f64.exp2()).unwrap();
    match wide.coefficients() {
        IntegerCoefficients::Wide(integers) => assert_eq!(integers[0], -3 * (1_i128 << 70)),
        IntegerCoefficients::Narrow(_) => panic!("a coefficient of 72 bits"),
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let fixture = Fixture::new(&KeyManifest::default());
    let values = random_slots(4, 3);
    assert!(matches!(
        fixture.encoder.encode(&values, 0, 55_f64.exp2()),
        Err(CkksError::EncodingOverflow { level: 0, .. })
    ));
    assert!(matches!(fixture.encoder.encode(&values, 9, 130_f64.exp2()), Err(CkksError::EncodingOverflow { .. })));
    assert!(matches!(fixture.encoder.encode(&values[..3], 9, 1e9), Err(CkksError::Slots { slots: 3, maximum: 512 })));
    assert!(matches!(
        fixture.encoder.encode(&values, 10, 1e9),
        Err(CkksError::LevelOutOfRange { level: 10, maximum: 9 })
    ));
    let infinite = [Complex64::new(f64::NAN, 0.0)];
    assert!(matches!(fixture.encoder.encode(&infinite, 9, 1e9), Err(CkksError::EncodingOverflow { .. })));
}
