use std::cell::Cell;
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::sync::LazyLock;

use cachemir_hal::Backend;
use proptest::prelude::*;

use super::*;
use crate::error::CkksError;
use crate::gadget::Gadget;
use crate::ring::serialization::HEADER_BYTES;
use crate::rlwe::keys::{KeyRole, KeySwitchKey, PublicKey, switching_key_bytes};
use crate::rlwe::serialization::{serialised_evaluation_keys_bytes, serialised_switching_key_bytes};

type Keys = EvaluationKeys<CpuBackend>;
type Key = KeySwitchKey<CpuBackend>;
type Public = PublicKey<CpuBackend>;

fn everything(rotations: &[usize], level: usize) -> KeyManifest {
    let mut manifest = KeyManifest::default();
    manifest.require_encapsulation([0], 9);
    manifest.require_relinearisation([level]);
    manifest.require_conjugation([level]);
    for &rotation in rotations {
        manifest.require_rotation(rotation, [level]);
    }
    manifest
}

/// As [`small_parameters`], of the lowest degree: keys so short that many changes to them can be tried.
fn tiny_ring() -> Ring<CpuBackend> {
    let literal = ParametersLiteral { log2_degree: 5, ephemeral_weight: 4, ..small_parameters().literal().clone() };
    Ring::new(Parameters::new(literal).unwrap()).unwrap().with_uniform_halves(UniformHalves::Stored)
}

static SAMPLES: LazyLock<Samples> = LazyLock::new(Samples::new);

/// Serialised tiny keys: all of a manifest, one switching key and a public key.
struct Samples {
    ring: Ring<CpuBackend>,
    keys: Vec<u8>,
    key: Vec<u8>,
    public: Vec<u8>,
}

impl Samples {
    fn new() -> Self {
        let ring = tiny_ring();
        let generator = KeyGenerator::new(ring.clone());
        let secret = generator.secret_key().unwrap();
        let mut manifest = KeyManifest::default();
        manifest.require_rotation(3, [2]);
        manifest.require_rotation(5, [2]);
        manifest.require_conjugation([1]);
        manifest.require_relinearisation([3]);
        let mut keys = Vec::new();
        generator.write_evaluation_keys(&secret, &manifest, &mut keys, |_, _| ControlFlow::Continue(())).unwrap();
        let key = generator
            .switching_key(&secret, &secret, 3, Gadget { digit_limbs: 2, special: 2 })
            .unwrap()
            .to_bytes(&ring)
            .unwrap();
        let public = generator.public_key(&secret, 2).unwrap().to_bytes(&ring).unwrap();
        Self { ring, keys, key, public }
    }

    /// Reads changed bytes as the kind of the sample. What is accepted must serialise to the same bytes again.
    fn accepts(&self, kind: usize, bytes: &[u8]) -> bool {
        let ring = &self.ring;
        let again = match kind {
            0 => Keys::from_bytes(ring, bytes).map(|keys| written(ring, &keys)),
            1 => Key::from_bytes(ring, bytes).map(|key| key.to_bytes(ring).unwrap()),
            _ => Public::from_bytes(ring, bytes).map(|key| key.to_bytes(ring).unwrap()),
        };
        match again {
            Ok(again) => {
                assert!(again == bytes, "kind {kind}: what was read is written differently");
                true
            }
            Err(CkksError::Format { .. } | CkksError::LevelOutOfRange { .. }) => false,
            Err(other) => panic!("{other}"),
        }
    }

    fn of_kind(&self, kind: usize) -> &[u8] {
        [&self.keys, &self.key, &self.public][kind]
    }
}

fn written(ring: &Ring<CpuBackend>, keys: &Keys) -> Vec<u8> {
    let mut bytes = Vec::new();
    keys.write_to(ring, &mut bytes).unwrap();
    bytes
}

#[track_caller]
fn problem<T>(result: Result<T, CkksError>) -> String {
    match result {
        Err(CkksError::Format { problem, .. }) => problem,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("accepted"),
    }
}

/// One byte for each call.
struct Trickle<'a>(&'a [u8]);

impl Read for Trickle<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(1);
        self.0.read(&mut buffer[..length])
    }
}

/// Fails at once.
struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ConnectionReset.into())
    }
}

/// Counts what is written and fails beyond a limit.
struct Meter<'a> {
    written: &'a Cell<u64>,
    limit: u64,
}

impl Write for Meter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.written.set(self.written.get() + bytes.len() as u64);
        if self.written.get() > self.limit { Err(io::ErrorKind::StorageFull.into()) } else { Ok(bytes.len()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn keys_read_back_evaluate_as_before() {
    let manifest = everything(&[1, 511], 6);
    let mut fixture = Fixture::new(&manifest);
    let bytes = written(&fixture.ring, &fixture.keys);
    assert_eq!(bytes.len() as u64, serialised_evaluation_keys_bytes(fixture.ring.parameters(), &manifest));
    let a = random_slots(512, 1);
    let x = fixture.encrypt(&a);
    let before = fixture.evaluator.rotate(&x, 511, &fixture.keys).unwrap().to_bytes(&fixture.ring).unwrap();

    fixture.keys = Keys::read_from(&fixture.ring, Trickle(&bytes)).unwrap();
    assert_eq!(fixture.keys.manifest(), manifest);
    let (evaluator, keys, top) = (&fixture.evaluator, &fixture.keys, fixture.top());
    let turned = evaluator.rotate(&x, 511, keys).unwrap();
    assert_eq!(turned.to_bytes(&fixture.ring).unwrap(), before);
    fixture.assert_canonical(&turned, top, &rotated(&a, 511), ONE_OPERATION);
    fixture.assert_canonical(&evaluator.rotate(&x, 1, keys).unwrap(), top, &rotated(&a, 1), ONE_OPERATION);
    let square = evaluator.square_rescale(&x, keys).unwrap();
    fixture.assert_canonical(&square, top - 1, &zip(&a, &a, |a, b| a * b), ONE_OPERATION);
    let conjugate: Vec<_> = a.iter().map(Complex64::conj).collect();
    fixture.assert_canonical(&evaluator.conjugate(&x, keys).unwrap(), top, &conjugate, ONE_OPERATION);
    let low = fixture.encrypt_at(&a, 0);
    let parameters = fixture.ring.parameters();
    let there = evaluator.switch_key(&low, keys.find(parameters, KeyRole::DenseToSparse, 0).unwrap()).unwrap();
    let back = evaluator.rotate_raised(&evaluator.raise_modulus(&there, 9).unwrap(), 0, keys).unwrap();
    assert_near(&fixture.decrypt(&evaluator.truncate(&back, 0).unwrap()), &a, 3.0 * ONE_OPERATION);
}

#[test]
fn keys_are_written_while_they_are_made() {
    let ring = Ring::<CpuBackend>::new(small_parameters()).unwrap().with_uniform_halves(UniformHalves::Stored);
    let parameters = ring.parameters();
    let generator = KeyGenerator::new(ring.clone());
    let secret = generator.secret_key().unwrap();
    let manifest = everything(&[1, 7], 6);
    let written = Cell::new(0);
    let sizes: Vec<u64> = manifest
        .keys(parameters)
        .iter()
        .map(|key| serialised_switching_key_bytes(parameters, key.level, key.gadget))
        .collect();
    assert_eq!(sizes.len(), 6);
    let mut expected = serialised_evaluation_keys_bytes(parameters, &manifest) - sizes.iter().sum::<u64>();
    let mut remaining = sizes.iter();
    let mut last = (0, 1);
    generator
        .write_evaluation_keys(&secret, &manifest, Meter { written: &written, limit: u64::MAX }, |made, total| {
            expected += remaining.next().unwrap();
            assert_eq!(written.get(), expected);
            last = (made, total);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(
        last,
        (manifest.key_bytes(parameters, UniformHalves::Stored), manifest.key_bytes(parameters, UniformHalves::Stored))
    );

    let mut bytes = Vec::new();
    let stopped = generator.write_evaluation_keys(&secret, &manifest, &mut bytes, |_, _| ControlFlow::Break(()));
    assert_eq!(stopped, Err(CkksError::Interrupted));
    assert!(problem(Keys::from_bytes(&ring, &bytes)).contains("the data end"));

    written.set(0);
    let full = generator
        .write_evaluation_keys(&secret, &manifest, Meter { written: &written, limit: 100_000 }, |_, _| {
            ControlFlow::Continue(())
        })
        .unwrap_err();
    assert!(matches!(full, CkksError::Io { action: "writing", kind: io::ErrorKind::StorageFull, .. }), "{full}");
    let broken = Keys::read_from(&ring, (&bytes[..1000]).chain(Broken)).unwrap_err();
    assert!(
        matches!(broken, CkksError::Io { action: "reading", kind: io::ErrorKind::ConnectionReset, .. }),
        "{broken}"
    );
}

#[test]
fn what_the_parameters_lack_is_refused_before_anything_is_written() {
    let ring = tiny_ring();
    let generator = KeyGenerator::new(ring);
    let secret = generator.secret_key().unwrap();
    let mut written = Vec::new();
    for (rotation, level) in [(16, 1), (17, 1), (1, 10)] {
        let mut manifest = KeyManifest::default();
        manifest.require_rotation(rotation, [level]);
        let result =
            generator.write_evaluation_keys(&secret, &manifest, &mut written, |_, _| ControlFlow::Continue(()));
        assert!(result.is_err(), "rotation by {rotation} at level {level}");
    }
    assert!(written.is_empty());
}

#[test]
fn single_keys_survive_and_readers_stop_at_their_end() {
    let fixture = Fixture::new(&KeyManifest::default());
    let ring = &fixture.ring;
    let generator = KeyGenerator::new(ring.clone());
    let other = generator.ephemeral_secret_key().unwrap();
    let gadget = Gadget { digit_limbs: 3, special: 3 };
    let key = generator.switching_key(&fixture.secret, &other, 6, gadget).unwrap();
    let public = generator.public_key(&fixture.secret, 6).unwrap();
    let mut bytes = key.to_bytes(ring).unwrap();
    assert_eq!(bytes.len() as u64, serialised_switching_key_bytes(ring.parameters(), 6, gadget));
    public.write_to(ring, &mut bytes).unwrap();

    let mut rest = &bytes[..];
    let key_again = Key::read_from(ring, &mut rest).unwrap();
    let public_again = Public::read_from(ring, &mut rest).unwrap();
    assert!(rest.is_empty());
    assert_eq!((key_again.seed(), key_again.level(), key_again.gadget()), (key.seed(), 6, gadget));
    for (again, half) in
        [(key_again.a().unwrap(), key.a().unwrap()), (key_again.b(), key.b()), (&public_again.pair, &public.pair)]
    {
        assert_eq!(ring.backend().download(again).unwrap(), ring.backend().download(half).unwrap());
    }
    let a = random_slots(512, 1);
    let encryptor = Encryptor::with_public_key(ring.clone(), &public_again);
    let x = encryptor.encrypt_slots(&fixture.encoder, &a, 6).unwrap();
    fixture.assert_canonical(&x, 6, &a, 100.0 * ONE_OPERATION);
    let switched = fixture.evaluator.switch_key(&x, &key_again).unwrap();
    let found = Decryptor::new(ring.clone(), &other).decrypt_slots(&fixture.encoder, &switched).unwrap();
    assert_near(&found, &a, 100.0 * ONE_OPERATION);
}

#[test]
fn truncations_and_damaged_headers_are_refused() {
    let samples = &SAMPLES;
    for kind in 0..3 {
        let bytes = samples.of_kind(kind);
        assert!(samples.accepts(kind, bytes));
        // All of the headers and manifest; 7 falls on every byte of a word sooner or later.
        let positions = || (0..128).chain((128..bytes.len()).step_by(7)).chain([bytes.len() - 1]);
        for length in positions() {
            assert!(!samples.accepts(kind, &bytes[..length]), "kind {kind}, {length} bytes");
        }
        assert!(!samples.accepts(kind, &[bytes, &[0]].concat()), "kind {kind}, a trailing byte");
        let mut damaged = bytes.to_vec();
        for position in positions() {
            for mask in [0x01, 0x80, 0xff] {
                damaged[position] ^= mask;
                let accepted = samples.accepts(kind, &damaged);
                assert!(!accepted || position >= HEADER_BYTES, "kind {kind}, byte {position}");
                damaged[position] ^= mask;
            }
        }
    }
}

#[test]
fn refusals_say_what_is_wrong() {
    let samples = &SAMPLES;
    let (ring, keys) = (&samples.ring, &samples.keys);
    let patched = |changes: &[(usize, u32)]| {
        let mut bytes = keys.clone();
        for &(at, word) in changes {
            bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        Keys::from_bytes(ring, &bytes)
    };
    // Relinearisation, conjugation and the rotations by 3 and 5 stand at bytes 28, 40, 52 and 64: kind, rotation, level.
    assert!(problem(patched(&[(68, 3)])).contains("twice"));
    assert!(problem(patched(&[(56, 6)])).contains("out of order"));
    assert!(problem(patched(&[(56, 0)])).contains("kind 4 with rotation 0"));
    assert!(problem(patched(&[(32, 1)])).contains("out of order"));
    assert!(problem(patched(&[(68, 16)])).contains("16"));
    assert!(problem(patched(&[(60, 1)])).contains("the manifest says 1 and"));
    assert!(problem(patched(&[(28, 9)])).contains("kind 9"));
    assert!(problem(patched(&[(20, 2)])).contains("2 special primes"));
    for (at, level) in [(16, 10), (36, 11), (48, u32::MAX), (72, u32::MAX)] {
        assert!(matches!(patched(&[(at, level)]), Err(CkksError::LevelOutOfRange { maximum: 9, .. })), "byte {at}");
    }
    // The way to the ephemeral secret exists at level 0 only.
    assert!(matches!(patched(&[(52, 2), (56, 0)]), Err(CkksError::LevelOutOfRange { level: 2, maximum: 0 })));

    assert!(problem(Key::from_bytes(ring, &samples.public)).contains("kind 2 (public key), expected 3"));
    assert!(problem(Public::from_bytes(ring, keys)).contains("kind 4 (evaluation keys)"));
    assert!(problem(Ciphertext::from_bytes(ring, &samples.key)).contains("kind 3 (switching key)"));
    assert!(problem(Key::from_bytes(ring, b"CMCK")).contains("before byte 6"));

    let other = |literal| {
        Ring::<CpuBackend>::new(Parameters::new(literal).unwrap()).unwrap().with_uniform_halves(UniformHalves::Stored)
    };
    // The same primes, but keys of lower levels are made in another way.
    let mut finer = ring.parameters().literal().clone();
    finer.gadgets[0].digit_limbs -= 1;
    let (larger, finer) = (other(small_parameters().literal().clone()), other(finer));
    assert_eq!(finer.parameters().primes(), ring.parameters().primes());
    let of = |other| {
        [
            Keys::from_bytes(other, keys).err(),
            Key::from_bytes(other, &samples.key).err(),
            Public::from_bytes(other, &samples.public).err(),
        ]
    };
    for refused in of(&larger).into_iter().chain(of(&finer)) {
        assert!(matches!(refused, Some(CkksError::Format { problem, .. }) if problem.contains("made for parameters")));
    }
}

#[test]
fn a_set_without_keys_is_a_set() {
    let ring = tiny_ring();
    let bytes = written(&ring, &Keys::none());
    assert_eq!(bytes.len(), HEADER_BYTES + 4);
    assert!(Keys::from_bytes(&ring, &bytes).unwrap().manifest().is_empty());
}

/// Keys whose uniform halves are expanded as they are used do what stored ones do, bit by bit.
#[test]
fn seeded_halves_are_the_stored_ones() {
    let fixture = Fixture::new(&everything(&[3], 6));
    let bytes = written(&fixture.ring, &fixture.keys);
    let seeded_ring = fixture.ring.clone().with_uniform_halves(UniformHalves::Seeded);
    let seeded = Keys::from_bytes(&seeded_ring, &bytes).unwrap();
    let manifest = fixture.keys.manifest();
    let parameters = fixture.ring.parameters();
    let [seeded_key, stored_key] =
        [&seeded, &fixture.keys].map(|keys| keys.find(parameters, KeyRole::Rotation(3), 6).unwrap());
    assert!(seeded_key.a().is_none() && stored_key.a().is_some());
    let [stored_bytes, seeded_bytes] =
        [UniformHalves::Stored, UniformHalves::Seeded].map(|halves| manifest.key_bytes(parameters, halves));
    assert_eq!(stored_bytes, 2 * seeded_bytes);

    let a = fixture.encrypt_at(&random_slots(512, 1), 6);
    let results = [&fixture.keys, &seeded].map(|keys| {
        let turned = fixture.evaluator.rotate(&a, 3, keys).unwrap();
        let product = fixture.evaluator.mul_rescale(&a, &turned, keys).unwrap();
        let hoisted = fixture.evaluator.hoisted_rotations(&product, &[3], keys).unwrap();
        hoisted[0].to_bytes(&fixture.ring).unwrap()
    });
    assert_eq!(results[0], results[1]);
}

/// Stored seeds must stand for the same polynomials forever; another expansion wants another format version.
#[test]
fn seeds_expand_to_what_they_always_did() {
    let ring = tiny_ring();
    let words = ring.backend().download(&ring.backend().expand_uniform(&[7; 32], 2, &[0, 3, 12]).unwrap()).unwrap();
    assert_eq!(
        words.iter().step_by(32).copied().collect::<Vec<_>>(),
        [960290735264569, 1151640171808, 217893146060545, 213657888020401, 2078526866659, 938688628363784]
    );
}

#[test]
fn the_sizes_of_a_secure_set_are_known() {
    let parameters = Parameters::preset("n16").unwrap();
    let of = |role: KeyRole, level| {
        let gadget = role.gadget(&parameters, level);
        let stored = serialised_switching_key_bytes(&parameters, level, gadget);
        (switching_key_bytes(&parameters, level, gadget, UniformHalves::Stored), stored)
    };
    assert_eq!(of(KeyRole::Rotation(1), 16), (52_428_800, 18_251_836));
    assert_eq!(of(KeyRole::Raised(1), 29), (32_505_856, 11_583_548));
    assert_eq!(of(KeyRole::DenseToSparse, 0), (2_097_152, 819_260));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn forged_keys_do_not_panic(
        kind in 0_usize..3,
        near in prop::collection::vec((0_usize..120, any::<u8>()), 0..4),
        far in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let mut bytes = SAMPLES.of_kind(kind).to_vec();
        for (position, byte) in near {
            bytes[position] = byte;
        }
        for (position, byte) in far {
            let position = position.index(bytes.len());
            bytes[position] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        SAMPLES.accepts(kind, &bytes);
    }

    #[test]
    fn random_bytes_do_not_panic(kind in 0_usize..3, mut bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(!SAMPLES.accepts(kind, &bytes));
        // Past magic, version, kind and fingerprint.
        for (to, from) in bytes.iter_mut().zip(&SAMPLES.of_kind(kind)[..16]) {
            *to = *from;
        }
        SAMPLES.accepts(kind, &bytes);
    }
}
