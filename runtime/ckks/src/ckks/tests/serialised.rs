use super::*;
use crate::ckks::serialization::ciphertext_bytes;
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
    let parameters = fixture.ring.parameters();
    assert_eq!(full.len(), ciphertext_bytes(parameters, 2, 6));
    assert_eq!(x.to_bytes(&fixture.ring).unwrap().len(), ciphertext_bytes(parameters, 2, 2));
    // A row takes the bits of its prime: 41 or 42 for the primes around 2^41, 50 for that of the base.
    let bits: u32 = parameters.primes()[..=2].iter().map(|prime| prime.ilog2() + 1).sum();
    assert_eq!(ciphertext_bytes(parameters, 2, 2), 40 + 2 * 1024 * bits as usize / 8);
}

#[test]
fn fresh_encryptions_carry_a_seed_in_place_of_half_their_bytes() {
    let fixture = Fixture::new(&KeyManifest::default());
    let a = random_slots(512, 1);
    let top = fixture.top();
    let parameters = fixture.ring.parameters();
    let plaintext = fixture.encoder.encode(&a, top, parameters.canonical_scale(top)).unwrap();

    let bytes = Encryptor::with_secret_key(fixture.ring.clone(), &fixture.secret).encrypt_to_bytes(&plaintext).unwrap();
    assert_eq!(bytes.len(), ciphertext_bytes(parameters, 1, top) + 32);
    let back = Ciphertext::from_bytes(&fixture.ring, &bytes).unwrap();
    assert_eq!(back.polynomials(&fixture.ring), 2);
    fixture.assert_canonical(&back, top, &a, ONE_OPERATION);
    assert_eq!(back.to_bytes(&fixture.ring).unwrap().len(), ciphertext_bytes(parameters, 2, top));
    assert!(Ciphertext::from_bytes(&fixture.ring, &bytes[..bytes.len() - 1]).is_err());

    let public = KeyGenerator::new(fixture.ring.clone()).public_key(&fixture.secret, top).unwrap();
    let bytes = Encryptor::with_public_key(fixture.ring.clone(), &public).encrypt_to_bytes(&plaintext).unwrap();
    assert_eq!(bytes.len(), ciphertext_bytes(parameters, 2, top));
    let back = Ciphertext::from_bytes(&fixture.ring, &bytes).unwrap();
    fixture.assert_canonical(&back, top, &a, 100.0 * ONE_OPERATION);
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
    for length in [0, 3, 23, 24, 39, 40, bytes.len() - 1] {
        assert!(refused(&bytes[..length]), "{length} bytes");
    }
    assert!(refused(&[&bytes[..], &[0]].concat()), "a trailing byte");
    // Magic, version, kind, fingerprint, level, special primes, slots, polynomials, the scale's exponent.
    for position in [0, 4, 6, 8, 16, 20, 24, 28, 39] {
        let mut damaged = bytes.clone();
        damaged[position] ^= 0xff;
        assert!(refused(&damaged), "byte {position}");
    }
    let mut damaged = bytes.clone();
    damaged[40..47].fill(0xff);
    assert!(refused(&damaged), "a residue above its prime");
    let other = Ring::<CpuBackend>::new(
        Parameters::new(ParametersLiteral { log2_degree: 11, ..small_parameters().literal().clone() }).unwrap(),
    )
    .unwrap();
    assert!(matches!(Ciphertext::from_bytes(&other, &bytes), Err(CkksError::Format { .. })));
}
