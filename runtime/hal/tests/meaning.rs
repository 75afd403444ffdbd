//! The reference backend against exact arithmetic written here: schoolbook products,
//! substitutions, and mixed-radix integers.

mod support;

use std::collections::BTreeMap;
use std::sync::Mutex;

use cachemir_hal::{Backend, KeyView, Modulus, Representative, ScalarBackend, UniformHalf};
use support::{
    DEGREE, Random, basis, centred, column, degrees, evaluate, garner, mixed_moduli, negacyclic_product, product,
    substitute,
};

const LIMBS: &[usize] = &[0, 4, 8, 1, 5, 11, 10];
const SPECIAL: &[usize] = &[2, 9, 3];

/// One backend a degree for all tests: its tables take Miri longer than a test does.
fn backend(degree: usize) -> &'static ScalarBackend {
    static MADE: Mutex<BTreeMap<usize, &ScalarBackend>> = Mutex::new(BTreeMap::new());
    let make = || &*Box::leak(Box::new(ScalarBackend::new(degree, &mixed_moduli(degree)).unwrap()));
    MADE.lock().unwrap().entry(degree).or_insert_with(make)
}

fn words(b: &ScalarBackend, random: &mut Random, polynomials: usize, limbs: &[usize]) -> Vec<u64> {
    random.residues(b.degree(), polynomials, b.moduli(), limbs)
}

#[test]
fn products_in_the_transform_domain_are_negacyclic() {
    for &degree in degrees(&[16, 64, 256]) {
        let b = backend(degree);
        let mut random = Random(1);
        let (x, y) = (words(b, &mut random, 1, LIMBS), words(b, &mut random, 1, LIMBS));
        let mut left = b.upload(&x, 1, LIMBS.len()).unwrap();
        let mut right = b.upload(&y, 1, LIMBS.len()).unwrap();
        b.forward_ntt(&mut left, LIMBS).unwrap();
        b.forward_ntt(&mut right, LIMBS).unwrap();
        b.mul_assign(&mut left, &right, LIMBS).unwrap();
        b.inverse_ntt(&mut left, LIMBS).unwrap();
        let found = b.download(&left).unwrap();
        for (j, q) in basis(b, LIMBS).iter().enumerate() {
            let rows = j * degree..(j + 1) * degree;
            assert_eq!(found[rows.clone()], negacyclic_product(&x[rows.clone()], &y[rows], q));
        }
    }
}

#[test]
fn automorphisms_substitute_powers() {
    for &degree in degrees(&[16, 128]) {
        let b = backend(degree);
        let mut random = Random(2);
        for element in [1, 3, 5, 25, degree + 1, 2 * degree - 1] {
            let x = words(b, &mut random, 1, LIMBS);
            let mut src = b.upload(&x, 1, LIMBS.len()).unwrap();
            b.forward_ntt(&mut src, LIMBS).unwrap();
            let mut dst = b.automorphism(&src, element, LIMBS).unwrap();
            b.inverse_ntt(&mut dst, LIMBS).unwrap();
            let found = b.download(&dst).unwrap();
            for (j, q) in basis(b, LIMBS).iter().enumerate() {
                let rows = j * degree..(j + 1) * degree;
                assert_eq!(found[rows.clone()], substitute(&x[rows], element, q), "g = {element}");
            }
        }
    }
}

#[test]
fn lifted_integers_are_congruent() {
    let b = backend(16);
    let mut random = Random(3);
    let wide: Vec<i128> =
        (0..16).map(|i| (i128::from(random.next() as i64) << 60 | i128::from(random.next())) >> (7 * i)).collect();
    let narrow: Vec<i64> = wide.iter().map(|x| *x as i64).collect();
    let mut lifted_wide = b.lift_repeated_wide(&wide, LIMBS).unwrap();
    b.inverse_ntt(&mut lifted_wide, LIMBS).unwrap();
    let found_wide = b.download(&lifted_wide).unwrap();
    let found_narrow = b.download(&b.lift_signed(&narrow, LIMBS).unwrap()).unwrap();
    for (j, q) in basis(b, LIMBS).iter().enumerate() {
        for i in 0..16 {
            let q = i128::from(q.value());
            assert_eq!(i128::from(found_wide[16 * j + i]), wide[i].rem_euclid(q));
            assert_eq!(i128::from(found_narrow[16 * j + i]), i128::from(narrow[i]).rem_euclid(q));
        }
    }
}

/// Residues of small signed integers, and of random ones.
fn conversion_operand(b: &ScalarBackend, random: &mut Random, from: &[Modulus], small: bool) -> Vec<u64> {
    let degree = b.degree();
    if !small {
        let limbs: Vec<usize> = from.iter().map(|q| b.moduli().iter().position(|m| *m == q.value()).unwrap()).collect();
        return words(b, random, 1, &limbs);
    }
    let integers: Vec<i64> = (0..degree).map(|_| (random.next() as i64) >> 40).collect();
    from.iter().flat_map(|q| integers.iter().map(|x| q.reduce_signed(*x)).collect::<Vec<_>>()).collect()
}

#[test]
fn centred_conversion_is_exact() {
    let b = backend(DEGREE);
    let mut random = Random(4);
    for from in [&LIMBS[..1], &LIMBS[..3], LIMBS] {
        for small in [true, false] {
            let source = basis(b, from);
            let x = conversion_operand(b, &mut random, &source, small);
            let src = b.upload(&x, 1, from.len()).unwrap();
            let to = [SPECIAL, &from[..1]].concat();
            let converted = b.convert_basis(&src, from, &to, Representative::Centred).unwrap();
            let found = b.download(&converted).unwrap();
            for k in 0..DEGREE {
                let residues = column(&x, DEGREE, from.len(), 0, k);
                // Where all residues are ±q/2 the integer may lie within rounding of ±Q/2, where
                // either end may be taken.
                let near_end = residues.iter().zip(&source).all(|(r, q)| r.abs_diff(q.value() / 2) <= 1);
                for (j, p) in basis(b, &to).iter().enumerate() {
                    let expected = centred(&residues, &source, p);
                    let other = [p.sub(expected, product(&source, p)), p.add(expected, product(&source, p))];
                    let value = found[DEGREE * j + k];
                    assert!(value == expected || (near_end && other.contains(&value)), "{residues:?}");
                }
            }
        }
    }
}

#[test]
fn approximate_conversion_is_off_by_few_multiples() {
    let b = backend(DEGREE);
    let mut random = Random(5);
    let x = words(b, &mut random, 1, LIMBS);
    let src = b.upload(&x, 1, LIMBS.len()).unwrap();
    let converted = b.convert_basis(&src, LIMBS, SPECIAL, Representative::Approximate).unwrap();
    let found = b.download(&converted).unwrap();
    let source = basis(b, LIMBS);
    for k in 0..DEGREE {
        let digits = garner(&column(&x, DEGREE, LIMBS.len(), 0, k), &source);
        let overflow = |p: &Modulus, value: u64| {
            let mut expected = evaluate(&digits, &source, p);
            (0..LIMBS.len()).find(|_| {
                let hit = expected == value;
                expected = p.add(expected, product(&source, p));
                hit
            })
        };
        let counts: Vec<_> =
            basis(b, SPECIAL).iter().enumerate().map(|(j, p)| overflow(p, found[DEGREE * j + k])).collect();
        assert!(counts[0].is_some() && counts.iter().all(|c| *c == counts[0]), "{counts:?}");
    }
}

#[test]
fn division_rounds_to_nearest() {
    let b = backend(DEGREE);
    let mut random = Random(6);
    let all = [LIMBS, SPECIAL].concat();
    for kept in [1, 4, 7, 9] {
        let (keep, drop) = all.split_at(kept);
        let x = words(b, &mut random, 2, &all);
        let mut src = b.upload(&x, 2, all.len()).unwrap();
        b.forward_ntt(&mut src, &all).unwrap();
        let mut result = b.mod_down(&src, keep, drop).unwrap();
        b.inverse_ntt(&mut result, keep).unwrap();
        let found = b.download(&result).unwrap();
        let dropped = basis(b, drop);
        for polynomial in 0..2 {
            for k in 0..DEGREE {
                let residues = column(&x, DEGREE, all.len(), polynomial, k);
                let value = column(&found, DEGREE, kept, polynomial, k);
                for (j, q) in basis(b, keep).iter().enumerate() {
                    // D·y + [x]_D = x.
                    let remainder = centred(&residues[kept..], &dropped, q);
                    assert_eq!(q.add(q.mul(product(&dropped, q), value[j]), remainder), residues[j]);
                }
            }
        }
    }
}

#[test]
fn raising_keeps_the_centred_integer() {
    let b = backend(DEGREE);
    let x = words(b, &mut Random(7), 1, &[4]);
    let src = b.upload(&x, 1, 1).unwrap();
    let mut raised = b.mod_raise(&src, 4, LIMBS).unwrap();
    b.inverse_ntt(&mut raised, LIMBS).unwrap();
    let found = b.download(&raised).unwrap();
    let source = basis(b, &[4]);
    for (j, p) in basis(b, LIMBS).iter().enumerate() {
        for k in 0..DEGREE {
            assert_eq!(found[DEGREE * j + k], centred(&x[k..=k], &source, p));
        }
    }
}

/// With a "key" that is the gadget itself (P on a digit's own limbs, 0 elsewhere) a key switch
/// gives the input back.
#[test]
fn key_switching_with_the_gadget_is_the_identity() {
    let degree = DEGREE;
    let b = backend(degree);
    let mut random = Random(8);
    let limbs = &LIMBS[..5];
    let key_limbs = [LIMBS, SPECIAL].concat();
    let all = [limbs, SPECIAL].concat();
    let positions = vec![0, 1, 2, 3, 4, 7, 8, 9];
    for alpha in [1, 2, 3] {
        let digits_of_key = LIMBS.len().div_ceil(alpha);
        let mut gadget = Vec::new();
        for digit in 0..digits_of_key {
            for (j, q) in basis(b, &key_limbs).iter().enumerate() {
                let own = j < LIMBS.len() && j / alpha == digit;
                let value = if own { product(&basis(b, SPECIAL), q) } else { 0 };
                gadget.extend(vec![value; degree]);
            }
        }
        let key_b = b.upload(&gadget, digits_of_key, key_limbs.len()).unwrap();
        let key_a = b.zeros(digits_of_key, key_limbs.len()).unwrap();
        let x = words(b, &mut random, 2, limbs);
        let src = b.upload(&x, 2, limbs.len()).unwrap();
        let digits = b.decompose(&src, 1, limbs, SPECIAL, alpha).unwrap();
        assert_eq!(b.shape(&digits).polynomials, limbs.len().div_ceil(alpha));
        let key = KeyView { b: &key_b, a: UniformHalf::Stored(&key_a), positions: positions.clone() };
        let sum = b.inner_product(&digits, &key, None, 1, &all).unwrap();
        let found = b.download(&b.mod_down(&sum, limbs, SPECIAL).unwrap()).unwrap();
        let half = limbs.len() * degree;
        assert_eq!(found[..half], x[half..]);
        assert!(found[half..].iter().all(|v| *v == 0));
    }
}

/// Digits are small: each has the centred representative of its own residues.
#[test]
fn digits_are_centred() {
    let degree = DEGREE;
    let b = backend(degree);
    let limbs = &LIMBS[..5];
    let all = [limbs, SPECIAL].concat();
    let x = words(b, &mut Random(9), 1, limbs);
    let mut src = b.upload(&x, 1, limbs.len()).unwrap();
    b.forward_ntt(&mut src, limbs).unwrap();
    let mut digits = b.decompose(&src, 0, limbs, SPECIAL, 2).unwrap();
    b.inverse_ntt(&mut digits, &all).unwrap();
    let found = b.download(&digits).unwrap();
    for (digit, own) in [0..2, 2..4, 4..5].into_iter().enumerate() {
        let source = basis(b, &limbs[own.clone()]);
        for k in 0..degree {
            let residues = &column(&x, degree, limbs.len(), 0, k)[own.clone()];
            let values = column(&found, degree, all.len(), digit, k);
            let near_end = residues.iter().zip(&source).all(|(r, q)| r.abs_diff(q.value() / 2) <= 1);
            for (j, p) in basis(b, &all).iter().enumerate() {
                assert!(near_end || values[j] == centred(residues, &source, p));
            }
        }
    }
}

/// p(X^r) by its own transform is p(X^r) lifted whole.
#[test]
fn a_repeated_lift_is_the_polynomial_in_a_power() {
    let degree = DEGREE;
    let b = backend(degree);
    for length in [2, 4, 16, DEGREE] {
        let coefficients: Vec<i64> = (0..length as i64).map(|k| k * k * 1_000_003 - 77).collect();
        let mut spread = vec![0; degree];
        for (k, c) in coefficients.iter().enumerate() {
            spread[k * (degree / length)] = *c;
        }
        let mut whole = b.lift_signed(&spread, LIMBS).unwrap();
        b.forward_ntt(&mut whole, LIMBS).unwrap();
        let repeated = b.lift_repeated(&coefficients, LIMBS).unwrap();
        assert_eq!(b.download(&b.duplicate(&repeated).unwrap()).unwrap(), b.download(&whole).unwrap());
        assert_eq!(b.download(&repeated).is_err(), length < degree);
    }
    assert!(b.lift_repeated(&[1; 3], LIMBS).is_err());
}
