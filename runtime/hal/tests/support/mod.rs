//! Exact arithmetic and random data for the conformance tests.
#![allow(dead_code, unreachable_pub)]

use cachemir_hal::{Backend, Modulus, primes};

/// A small deterministic generator (`SplitMix64`).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Residues `[polynomials][limbs][degree]`, with the extreme ones over-represented.
    pub fn residues(&mut self, degree: usize, polynomials: usize, moduli: &[u64], limbs: &[usize]) -> Vec<u64> {
        let mut words = Vec::with_capacity(polynomials * limbs.len() * degree);
        for _ in 0..polynomials {
            for limb in limbs {
                let q = moduli[*limb];
                words.extend((0..degree).map(|_| match self.below(16) {
                    0 => 0,
                    1 => q - 1,
                    2 => q / 2 + self.below(2),
                    _ => self.below(q),
                }));
            }
        }
        words
    }
}

/// Degree for tests that need only one. Miri takes a thousand times longer.
pub const DEGREE: usize = if cfg!(miri) { 16 } else { 64 };

/// The degrees to test at: all of them, or under Miri the first alone.
pub fn degrees(all: &[usize]) -> &[usize] {
    if cfg!(miri) { &all[..1] } else { all }
}

/// Primes of several sizes, among them sizes at both ends of what is allowed.
pub fn mixed_moduli(degree: usize) -> Vec<u64> {
    let mut moduli = primes::primes_of_bits(50, degree, 4, &[]).unwrap();
    moduli.extend(primes::primes_of_bits(41, degree, 4, &moduli).unwrap());
    moduli.extend(primes::primes_of_bits(30, degree, 2, &moduli).unwrap());
    let largest = primes::MODULUS_BOUND - (1 << 24);
    moduli.extend(primes::primes_near(largest, degree, 2, &moduli).unwrap());
    moduli
}

/// Mixed-radix digits (Garner) of the integer in [0, Q) with the given residues:
/// x = `d_0` + `d_1·q_0` + `d_2·q_0·q_1` + …
pub fn garner(residues: &[u64], basis: &[Modulus]) -> Vec<u64> {
    let mut digits: Vec<u64> = Vec::new();
    for (i, q) in basis.iter().enumerate() {
        let (mut value, mut weight) = (0, 1);
        for (digit, previous) in digits.iter().zip(basis) {
            value = q.add(value, q.mul(q.reduce(*digit), weight));
            weight = q.mul(weight, q.reduce(previous.value()));
        }
        digits.push(q.mul(q.sub(residues[i], value), q.inv(weight)));
    }
    digits
}

/// An integer given by mixed-radix digits, modulo p.
pub fn evaluate(digits: &[u64], basis: &[Modulus], p: &Modulus) -> u64 {
    digits
        .iter()
        .zip(basis)
        .rev()
        .fold(0, |value, (digit, q)| p.add(p.mul(value, p.reduce(q.value())), p.reduce(*digit)))
}

/// Product of the basis modulo p.
pub fn product(basis: &[Modulus], p: &Modulus) -> u64 {
    basis.iter().fold(1, |value, q| p.mul(value, p.reduce(q.value())))
}

/// Whether the integer exceeds Q/2. Halving Q = `q_0·…`: (Q−1)/2 has digits (`q_i` − 1)/2.
pub fn is_upper_half(digits: &[u64], basis: &[Modulus]) -> bool {
    digits
        .iter()
        .zip(basis)
        .rev()
        .map(|(d, q)| d.cmp(&((q.value() - 1) / 2)))
        .find(|o| o.is_ne())
        .is_some_and(std::cmp::Ordering::is_gt)
}

/// The centred representative of the integer with the given residues, modulo p.
pub fn centred(residues: &[u64], basis: &[Modulus], p: &Modulus) -> u64 {
    let digits = garner(residues, basis);
    let value = evaluate(&digits, basis, p);
    if is_upper_half(&digits, basis) { p.sub(value, product(basis, p)) } else { value }
}

/// Product of two polynomials modulo X^N + 1.
pub fn negacyclic_product(a: &[u64], b: &[u64], q: &Modulus) -> Vec<u64> {
    let n = a.len();
    let mut result = vec![0; n];
    for (i, x) in a.iter().enumerate() {
        for (j, y) in b.iter().enumerate() {
            let term = q.mul(*x, *y);
            let k = (i + j) % n;
            result[k] = if i + j < n { q.add(result[k], term) } else { q.sub(result[k], term) };
        }
    }
    result
}

/// a(X^g) modulo X^N + 1.
pub fn substitute(a: &[u64], element: usize, q: &Modulus) -> Vec<u64> {
    let n = a.len();
    let mut result = vec![0; n];
    for (i, x) in a.iter().enumerate() {
        let k = i * element % (2 * n);
        if k < n { result[k] = *x } else { result[k - n] = q.neg(*x) }
    }
    result
}

/// The moduli of a list of limbs.
pub fn basis<B: Backend>(backend: &B, limbs: &[usize]) -> Vec<Modulus> {
    limbs.iter().map(|i| Modulus::new(backend.moduli()[*i])).collect()
}

/// Column `k` of polynomial `polynomial` in downloaded words.
pub fn column(words: &[u64], degree: usize, limbs: usize, polynomial: usize, k: usize) -> Vec<u64> {
    (0..limbs).map(|j| words[(polynomial * limbs + j) * degree + k]).collect()
}
