use super::*;
use crate::error::CkksError;

#[test]
fn ciphertexts_survive_and_higher_limbs_are_left_out() {
    let fixture = Fixture::with_relinearisation();
    let a = random_slots(16, 1);
    let mut x = fixture.encrypt(&a);
    let full = x.to_bytes(&fixture.ring).unwrap();
    let back = Ciphertext::from_bytes(&fixture.ring, &full).unwrap();
    fixture.assert_canonical(&back, 6, &a, ONE_OPERATION);
    let product = fixture.evaluator.tensor(&x, &x).unwrap();
    let back = Ciphertext::from_bytes(&fixture.ring, &product.to_bytes(&fixture.ring).unwrap()).unwrap();
    assert_eq!(back.polynomials(&fixture.ring), 3);
    assert_near(&fixture.decrypt(&back), &zip(&a, &a, |a, b| a * b), ONE_OPERATION);
    fixture
        .evaluator
        .add_assign(&mut x, &{
            let mut low = fixture.encrypt_at(&a, 2);
            low.set_scale(fixture.ring.parameters().canonical_scale(6));
            low
        })
        .unwrap();
    assert_eq!(x.to_bytes(&fixture.ring).unwrap().len(), (full.len() - 32) / 7 * 3 + 32);
}

#[test]
fn anything_else_is_refused() {
    let fixture = Fixture::new(&KeyManifest::default());
    let bytes = fixture.encrypt_at(&random_slots(16, 1), 1).to_bytes(&fixture.ring).unwrap();
    let refused = |bytes: &[u8]| {
        matches!(
            Ciphertext::from_bytes(&fixture.ring, bytes),
            Err(CkksError::Format { .. } | CkksError::LevelOutOfRange { .. } | CkksError::Slots { .. })
        )
    };
    assert!(!refused(&bytes));
    for length in [0, 3, 31, 32, 40, bytes.len() - 1] {
        assert!(refused(&bytes[..length]), "{length} bytes");
    }
    assert!(refused(&[&bytes[..], &[0]].concat()), "a trailing byte");
    // Magic, version, polynomials, fingerprint, level, slots, the scale's exponent, a residue's high byte.
    for position in [0, 4, 6, 8, 16, 20, 31, 39] {
        let mut damaged = bytes.clone();
        damaged[position] ^= 0xff;
        assert!(refused(&damaged), "byte {position}");
    }
    let other = Ring::<CpuBackend>::new(
        Parameters::new(ParametersLiteral { log2_degree: 11, ..small_parameters().literal().clone() }).unwrap(),
    )
    .unwrap();
    assert!(matches!(Ciphertext::from_bytes(&other, &bytes), Err(CkksError::Format { .. })));
}
