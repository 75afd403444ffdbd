//! Every primitive on every backend this machine can run: bit-equal to the reference backend.

mod support;

use cachemir_hal::{
    Addend, Backend, CpuBackend, HalError, HoistedRotation, Isa, KeyView, Representative, ScalarBackend, UniformHalf,
};
use support::{Random, degrees, mixed_moduli};

/// One primitive applied to pseudo-random operands; the result downloaded.
type Case<B> = (&'static str, fn(&B, &mut Random) -> Result<Vec<u64>, HalError>);

const LIMBS: &[usize] = &[11, 0, 4, 8, 1, 5, 10];
const SPECIAL: &[usize] = &[2, 9, 3];

fn operand<B: Backend>(b: &B, random: &mut Random, polynomials: usize, limbs: &[usize]) -> B::Buffer {
    let words = random.residues(b.degree(), polynomials, b.moduli(), limbs);
    b.upload(&words, polynomials, limbs.len()).unwrap()
}

fn scalars<B: Backend>(b: &B, random: &mut Random, limbs: &[usize]) -> Vec<u64> {
    limbs.iter().map(|i| random.below(b.moduli()[*i])).collect()
}

fn galois_element<B: Backend>(b: &B, random: &mut Random) -> usize {
    2 * random.below(b.degree() as u64) as usize + 1
}

/// A number of coefficients of a subring.
fn repeated_length<B: Backend>(b: &B, random: &mut Random) -> usize {
    2 << random.below(u64::from(b.degree().ilog2()))
}

/// Where the limbs `LIMBS[..4]`, then `SPECIAL`, lie in a key over all of `LIMBS`, then `SPECIAL`.
const KEY_POSITIONS: [usize; 7] = [0, 1, 2, 3, 7, 8, 9];

/// Digits, both halves of a key with a digit and limbs to spare, and the limbs.
fn key_operands<B: Backend>(b: &B, random: &mut Random) -> (B::Buffer, B::Buffer, B::Buffer, Vec<usize>) {
    let key_limbs = [LIMBS, SPECIAL].concat();
    let limbs = [&LIMBS[..4], SPECIAL].concat();
    let digits = operand(b, random, 2, &limbs);
    (digits, operand(b, random, 3, &key_limbs), operand(b, random, 3, &key_limbs), limbs)
}

/// Calls `f` with digits, the ciphertext that they are of, the identity and two rotations of it, and the limbs.
fn with_rotations<B: Backend, T>(
    b: &B,
    r: &mut Random,
    f: impl FnOnce(&mut Random, &B::Buffer, &Addend<'_, B::Buffer>, &[HoistedRotation<'_, B::Buffer>], &[usize]) -> T,
) -> T {
    let (digits, key_b, key_a, limbs) = key_operands(b, r);
    let key = || Some(KeyView { b: &key_b, a: UniformHalf::Stored(&key_a), positions: KEY_POSITIONS.to_vec() });
    let (source, factors) = (operand(b, r, 2, &limbs), scalars(b, r, &limbs[..4]));
    let source = Addend { source: &source, polynomials: 2, factors: &factors };
    let rotations = [
        HoistedRotation { key: None, galois_element: 1 },
        HoistedRotation { key: key(), galois_element: galois_element(b, r) },
        HoistedRotation { key: key(), galois_element: galois_element(b, r) },
    ];
    f(r, &digits, &source, &rotations, &limbs)
}

/// The coefficients of a polynomial, of all sizes.
fn signed<B: Backend>(b: &B, r: &mut Random) -> Vec<i64> {
    let mut x: Vec<i64> = (0..b.degree()).map(|i| (r.next() as i64) >> (i % 63)).collect();
    x[..4].copy_from_slice(&[i64::MIN, i64::MAX, 0, -1]);
    x
}

#[allow(clippy::too_many_lines)]
fn cases<B: Backend>() -> Vec<Case<B>> {
    vec![
        ("zeros", |b, _| b.download(&b.zeros(2, 3)?)),
        ("select", |b, r| {
            let x = operand(b, r, 3, LIMBS);
            b.download(&b.select(&x, 1..3, &[5, 0, 0, 3])?)
        }),
        ("copy_into", |b, r| {
            let (mut x, y) = (operand(b, r, 3, LIMBS), operand(b, r, 2, &LIMBS[1..4]));
            b.copy_into(&mut x, 1, 2, &y, 0..2, 1..3)?;
            b.download(&x)
        }),
        ("duplicate", |b, r| {
            let x = operand(b, r, 2, LIMBS);
            b.download(&b.duplicate(&x)?)
        }),
        ("wipe", |b, r| {
            let mut x = operand(b, r, 2, LIMBS);
            b.wipe(&mut x);
            b.download(&x)
        }),
        ("add_assign", |b, r| {
            let (mut x, y) = (operand(b, r, 3, LIMBS), operand(b, r, 2, LIMBS));
            b.add_assign(&mut x, &y, &LIMBS[..5])?;
            b.download(&x)
        }),
        ("sub_assign", |b, r| {
            let (mut x, y) = (operand(b, r, 3, LIMBS), operand(b, r, 2, LIMBS));
            b.sub_assign(&mut x, &y, &LIMBS[..5])?;
            b.download(&x)
        }),
        ("negate_assign", |b, r| {
            let mut x = operand(b, r, 3, LIMBS);
            b.negate_assign(&mut x, &LIMBS[..6])?;
            b.download(&x)
        }),
        ("mul_assign", |b, r| {
            let (mut x, y) = (operand(b, r, 2, LIMBS), operand(b, r, 2, LIMBS));
            b.mul_assign(&mut x, &y, LIMBS)?;
            b.download(&x)
        }),
        ("mul_assign by one polynomial", |b, r| {
            let (mut x, y) = (operand(b, r, 3, LIMBS), operand(b, r, 1, LIMBS));
            b.mul_assign(&mut x, &y, &LIMBS[..4])?;
            b.download(&x)
        }),
        ("mul_accumulate", |b, r| {
            let (mut x, y, z) = (operand(b, r, 2, LIMBS), operand(b, r, 1, LIMBS), operand(b, r, 2, LIMBS));
            b.mul_accumulate(&mut x, &y, &z, LIMBS)?;
            b.mul_accumulate(&mut x, &z, &y, LIMBS)?;
            b.download(&x)
        }),
        ("mul_accumulate_many", |b, r| {
            let mut x = operand(b, r, 2, LIMBS);
            let terms: Vec<_> = (0..19).map(|k| (operand(b, r, 1 + k % 2, LIMBS), operand(b, r, 2, LIMBS))).collect();
            for count in [0, 1, 7, 8, 9, 16, 17, 19] {
                let pairs: Vec<_> = terms[..count].iter().map(|(y, z)| (y, z)).collect();
                b.mul_accumulate_many(&mut x, &pairs, LIMBS)?;
            }
            b.download(&x)
        }),
        ("mul_accumulate_many of largest residues", |b, _| {
            let words: Vec<u64> = LIMBS.iter().flat_map(|i| vec![b.moduli()[*i] - 1; b.degree()]).collect();
            let largest = b.upload(&words, 1, LIMBS.len())?;
            let mut x = b.duplicate(&largest)?;
            b.mul_accumulate_many(&mut x, &[(&largest, &largest); 24], LIMBS)?;
            b.download(&x)
        }),
        ("mul_lifted_accumulate", |b, r| {
            let mut x = operand(b, r, 2, LIMBS);
            let terms: Vec<_> = (0..9).map(|k| (operand(b, r, 1 + k % 2, LIMBS), signed(b, r))).collect();
            for count in [0, 1, 2, 9] {
                let pairs: Vec<_> = terms[..count].iter().map(|(y, c)| (y, c.as_slice())).collect();
                b.mul_lifted_accumulate(&mut x, &pairs, &LIMBS[..4])?;
            }
            b.download(&x)
        }),
        ("sum_of_products", |b, r| {
            let terms: Vec<_> = (0..9).map(|k| (operand(b, r, 1 + k % 2, LIMBS), operand(b, r, 2, LIMBS))).collect();
            let pairs: Vec<_> = terms.iter().map(|(y, z)| (y, z)).collect();
            b.download(&b.sum_of_products(2, &pairs, LIMBS)?)
        }),
        ("mul_scalar_assign", |b, r| {
            let (mut x, c) = (operand(b, r, 2, LIMBS), scalars(b, r, LIMBS));
            b.mul_scalar_assign(&mut x, &c, LIMBS)?;
            b.download(&x)
        }),
        ("linear_combination", |b, r| {
            let operands: Vec<_> = (0..=r.below(19)).map(|_| operand(b, r, 2, LIMBS)).collect();
            let constants: Vec<_> = operands.iter().map(|_| scalars(b, r, LIMBS)).collect();
            let terms: Vec<_> = operands.iter().zip(&constants).map(|(a, c)| (a, &c[..])).collect();
            b.download(&b.linear_combination(2, &terms, LIMBS)?)
        }),
        ("mul_scalar_accumulate", |b, r| {
            let (mut x, y, c) = (operand(b, r, 3, LIMBS), operand(b, r, 2, LIMBS), scalars(b, r, LIMBS));
            b.mul_scalar_accumulate(&mut x, &y, 2, &c, LIMBS)?;
            b.mul_scalar_accumulate(&mut x, &y, 1, &c, LIMBS)?;
            b.download(&x)
        }),
        ("add_scalar_assign", |b, r| {
            let (mut x, c) = (operand(b, r, 3, LIMBS), scalars(b, r, LIMBS));
            b.add_scalar_assign(&mut x, 1, &c, LIMBS)?;
            b.download(&x)
        }),
        ("forward_ntt", |b, r| {
            let mut x = operand(b, r, 2, LIMBS);
            b.forward_ntt(&mut x, &LIMBS[..6])?;
            b.download(&x)
        }),
        ("inverse_ntt", |b, r| {
            let mut x = operand(b, r, 2, LIMBS);
            b.inverse_ntt(&mut x, &LIMBS[..6])?;
            b.download(&x)
        }),
        ("automorphism", |b, r| {
            let (x, g) = (operand(b, r, 2, LIMBS), galois_element(b, r));
            b.download(&b.automorphism(&x, g, &LIMBS[..6])?)
        }),
        ("automorphism_accumulate", |b, r| {
            let (mut x, y, g) = (operand(b, r, 3, LIMBS), operand(b, r, 2, LIMBS), galois_element(b, r));
            b.automorphism_accumulate(&mut x, &y, g, LIMBS)?;
            b.download(&x)
        }),
        ("lift_signed", |b, r| {
            let x = [signed(b, r), signed(b, r)].concat();
            b.download(&b.lift_signed(&x, LIMBS)?)
        }),
        ("lift_repeated_wide, of all coefficients", |b, r| {
            let wide = |r: &mut Random| (i128::from(r.next()) << 64 | i128::from(r.next())).wrapping_neg();
            let mut x: Vec<i128> = (0..b.degree()).map(|i| wide(r) >> (i % 127)).collect();
            x[..4].copy_from_slice(&[i128::MIN, i128::MAX, 0, -1]);
            b.download(&b.lift_repeated_wide(&x, LIMBS)?)
        }),
        ("convert_basis, approximate", |b, r| {
            let x = operand(b, r, 2, LIMBS);
            b.download(&b.convert_basis(&x, &LIMBS[..5], SPECIAL, Representative::Approximate)?)
        }),
        ("convert_basis, centred", |b, r| {
            let x = operand(b, r, 2, LIMBS);
            b.download(&b.convert_basis(&x, LIMBS, &[2, 11, 3], Representative::Centred)?)
        }),
        ("convert_basis from many moduli", |b, r| {
            let from: Vec<usize> = (0..b.moduli().len() - 1).collect();
            let x = operand(b, r, 1, &from);
            b.download(&b.convert_basis(&x, &from, &[11, 0], Representative::Centred)?)
        }),
        ("mod_raise", |b, r| {
            let x = operand(b, r, 2, &LIMBS[..1]);
            b.download(&b.mod_raise(&x, LIMBS[0], LIMBS)?)
        }),
        ("decompose", |b, r| {
            let x = operand(b, r, 2, LIMBS);
            b.download(&b.decompose(&x, 1, &LIMBS[..5], SPECIAL, 3)?)
        }),
        ("decompose into one digit", |b, r| {
            let x = operand(b, r, 2, LIMBS);
            b.download(&b.decompose(&x, 0, &LIMBS[..2], SPECIAL, 5)?)
        }),
        ("inner_product", |b, r| {
            let (digits, key_b, key_a, limbs) = key_operands(b, r);
            let key = KeyView { b: &key_b, a: UniformHalf::Stored(&key_a), positions: KEY_POSITIONS.to_vec() };
            b.download(&b.inner_product(&digits, &key, None, 1, &limbs)?)
        }),
        ("lift_repeated, expanded", |b, r| {
            let coefficients: Vec<i64> = (0..repeated_length(b, r)).map(|_| r.next() as i64 >> 2).collect();
            let narrow = b.lift_repeated(&coefficients, LIMBS)?;
            let wide: Vec<i128> = coefficients.iter().map(|c| i128::from(*c) << 40).collect();
            let wide = b.lift_repeated_wide(&wide, LIMBS)?;
            assert_eq!(b.bytes(&narrow), (coefficients.len() * LIMBS.len() * 8) as u64);
            Ok([b.download(&b.duplicate(&narrow)?)?, b.download(&b.duplicate(&wide)?)?].concat())
        }),
        ("operands of repeated words", |b, r| {
            let repeated = |b: &B, r: &mut Random| {
                let coefficients: Vec<i64> = (0..repeated_length(b, r)).map(|_| r.next() as i64 >> 2).collect();
                b.lift_repeated(&coefficients, LIMBS)
            };
            let mut x = operand(b, r, 2, LIMBS);
            b.add_assign(&mut x, &repeated(b, r)?, LIMBS)?;
            b.sub_assign(&mut x, &repeated(b, r)?, LIMBS)?;
            b.mul_assign(&mut x, &repeated(b, r)?, LIMBS)?;
            let (y, whole) = (operand(b, r, 2, LIMBS), operand(b, r, 1, LIMBS));
            let (p, q) = (repeated(b, r)?, repeated(b, r)?);
            b.mul_accumulate_many(&mut x, &[(&y, &p), (&y, &whole), (&y, &q)], LIMBS)?;
            b.download(&x)
        }),
        ("expand_uniform", |b, r| {
            let seed = std::array::from_fn(|_| r.next() as u8);
            b.download(&b.expand_uniform(&seed, 2, LIMBS)?)
        }),
        ("inner_product with a seeded half", |b, r| {
            let (digits, key_b, _, limbs) = key_operands(b, r);
            let seed = std::array::from_fn(|_| r.next() as u8);
            let key = KeyView { b: &key_b, a: UniformHalf::Seeded(&seed), positions: KEY_POSITIONS.to_vec() };
            let (source, factors) = (operand(b, r, 2, &limbs), scalars(b, r, &limbs[..4]));
            let addend = Addend { source: &source, polynomials: 2, factors: &factors };
            b.download(&b.inner_product(&digits, &key, Some(&addend), galois_element(b, r), &limbs)?)
        }),
        ("inner_product with an addend, permuted", |b, r| {
            let (digits, key_b, key_a, limbs) = key_operands(b, r);
            let key = KeyView { b: &key_b, a: UniformHalf::Stored(&key_a), positions: KEY_POSITIONS.to_vec() };
            let (source, factors) = (operand(b, r, 2, &limbs), scalars(b, r, &limbs[..4]));
            let addend = Addend { source: &source, polynomials: 1 + r.below(2) as usize, factors: &factors };
            b.download(&b.inner_product(&digits, &key, Some(&addend), galois_element(b, r), &limbs)?)
        }),
        ("inner_product_accumulate", |b, r| {
            let (digits, key_b, key_a, limbs) = key_operands(b, r);
            let key = KeyView { b: &key_b, a: UniformHalf::Stored(&key_a), positions: KEY_POSITIONS.to_vec() };
            let (source, factors) = (operand(b, r, 1, &limbs), scalars(b, r, &limbs));
            let addend = Addend { source: &source, polynomials: 1, factors: &factors };
            let mut acc = operand(b, r, 2, &[&limbs, SPECIAL].concat());
            b.inner_product_accumulate(&mut acc, &digits, &key, Some(&addend), galois_element(b, r), &limbs)?;
            b.download(&acc)
        }),
        ("hoisted_sums", |b, r| {
            with_rotations(b, r, |r, digits, source, rotations, limbs| {
                let mut plain: Vec<_> = (0..5).map(|_| operand(b, r, 1, limbs)).collect();
                let coefficients: Vec<i64> = (0..repeated_length(b, r)).map(|_| r.next() as i64 >> 2).collect();
                plain[4] = b.lift_repeated(&coefficients, limbs)?;
                let groups = [
                    vec![(0, &plain[0]), (2, &plain[1])],
                    vec![(1, &plain[2])],
                    vec![(0, &plain[3]), (1, &plain[4]), (2, &plain[0])],
                ];
                let sums = b.hoisted_sums(digits, source, rotations, &groups, limbs)?;
                Ok(sums.iter().map(|sum| b.download(sum)).collect::<Result<Vec<_>, _>>()?.concat())
            })
        }),
        ("hoisted_sum", |b, r| {
            with_rotations(b, r, |_, digits, source, rotations, limbs| {
                b.download(&b.hoisted_sum(digits, source, rotations, limbs)?)
            })
        }),
        ("mod_down", |b, r| {
            let all = [LIMBS, SPECIAL].concat();
            let x = operand(b, r, 2, &all);
            b.download(&b.mod_down(&x, LIMBS, SPECIAL)?)
        }),
        ("mod_down with the last modulus", |b, r| {
            let all = [LIMBS, SPECIAL].concat();
            let x = operand(b, r, 3, &all);
            b.download(&b.mod_down(&x, &all[..6], &all[6..])?)
        }),
        ("rescale", |b, r| {
            let x = operand(b, r, 2, LIMBS);
            b.download(&b.rescale(&x, LIMBS)?)
        }),
        ("tensor", |b, r| {
            let (x, y) = (operand(b, r, 2, LIMBS), operand(b, r, 2, LIMBS));
            b.download(&b.tensor(&x, &y, &LIMBS[..6])?)
        }),
    ]
}

fn candidates(degree: usize, moduli: &[u64]) -> Vec<CpuBackend> {
    [Isa::Scalar, Isa::Avx2, Isa::Avx512Ifma]
        .into_iter()
        .filter_map(|isa| match CpuBackend::with_isa(degree, moduli, isa) {
            Ok(backend) => Some(backend),
            Err(HalError::Isa { .. }) => None,
            Err(error) => panic!("{error}"),
        })
        .collect()
}

#[test]
fn every_primitive_gives_the_reference_bits() {
    for &degree in degrees(&[16, 32, 64, 128, 1 << 10, 1 << 13]) {
        let moduli = mixed_moduli(degree);
        let reference = ScalarBackend::new(degree, &moduli).unwrap();
        let candidates = candidates(degree, &moduli);
        for (k, (name, expected)) in cases::<ScalarBackend>().into_iter().enumerate() {
            let seed = (1000 * degree + k) as u64;
            let expected = expected(&reference, &mut Random(seed)).unwrap();
            for backend in &candidates {
                let (_, case) = cases::<CpuBackend>()[k];
                let found = case(backend, &mut Random(seed)).unwrap();
                let first = found.iter().zip(&expected).position(|(x, y)| x != y);
                assert!(
                    found.len() == expected.len() && first.is_none(),
                    "{name} on {} at N = {degree}: first difference at word {first:?}",
                    backend.description()
                );
            }
        }
    }
}

#[test]
fn results_are_canonical() {
    let degree = 64;
    let moduli = mixed_moduli(degree);
    let backend = CpuBackend::new(degree, &moduli).unwrap();
    let mut random = Random(7);
    let largest: Vec<u64> = LIMBS.iter().flat_map(|i| vec![moduli[*i] - 1; degree]).collect();
    let operands = [largest, random.residues(degree, 1, &moduli, LIMBS)];
    for words in operands {
        let mut x = backend.upload(&words, 1, LIMBS.len()).unwrap();
        for _ in 0..4 {
            backend.forward_ntt(&mut x, LIMBS).unwrap();
            let y = backend.download(&x).unwrap();
            for (row, limb) in y.chunks(degree).zip(LIMBS) {
                assert!(row.iter().all(|v| *v < moduli[*limb]));
            }
        }
    }
}

#[test]
fn broken_preconditions_are_errors() {
    let degree = 32;
    let moduli = mixed_moduli(degree);
    let backend = CpuBackend::new(degree, &moduli).unwrap();
    let mut one = backend.zeros(1, 2).unwrap();
    let two = backend.zeros(2, 2).unwrap();
    let shape = |r: Result<(), HalError>| assert!(matches!(r, Err(HalError::Shape { .. })), "{r:?}");
    shape(backend.add_assign(&mut one, &two, &[0, 1]));
    shape(backend.forward_ntt(&mut one, &[0, 1, 2]));
    shape(backend.mul_scalar_assign(&mut one, &[1], &[0, 1]));
    shape(backend.upload(&[0; 3], 1, 1).map(drop));
    shape(backend.lift_signed(&[0; 33], &[0]).map(drop));
    shape(backend.mul_lifted_accumulate(&mut one, &[(&two, &[0; 32])], &[0, 1]));
    let mut sum = backend.zeros(2, 2).unwrap();
    shape(backend.mul_lifted_accumulate(&mut sum, &[(&two, &[0; 31])], &[0, 1]));
    shape(backend.decompose(&two, 2, &[0, 1], &[2], 1).map(drop));
    shape(backend.decompose(&two, 0, &[0, 1], &[2], 0).map(drop));
    let short = KeyView { b: &two, a: UniformHalf::Stored(&one), positions: vec![0, 1] };
    shape(backend.inner_product(&two, &short, None, 1, &[0, 1]).map(drop));
    shape(backend.mod_down(&two, &[0, 1], &[2]).map(drop));
    assert!(matches!(backend.forward_ntt(&mut one, &[99]), Err(HalError::Limbs { .. })));
    assert!(matches!(backend.rescale(&two, &[0]), Err(HalError::Limbs { .. })));
    let even = backend.automorphism(&two, 4, &[0]);
    assert!(matches!(even, Err(HalError::GaloisElement { element: 4, .. })));
    assert!(matches!(backend.zeros(1 << 40, 1 << 20), Err(HalError::OutOfMemory { .. })));
    assert!(matches!(CpuBackend::new(24, &[]), Err(HalError::Degree { .. })));
    for bad in [vec![97, 97], vec![101], vec![65 * 64 + 1], vec![1 << 52 | 1]] {
        assert!(matches!(CpuBackend::new(16, &bad), Err(HalError::Modulus { .. })), "{bad:?}");
    }
}
