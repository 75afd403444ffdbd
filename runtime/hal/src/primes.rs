//! NTT-friendly primes: p ≡ 1 modulo 2N, found by search, tested by Miller–Rabin.

use crate::HalError;

/// Largest prime (exclusive bound) for which every 52-bit kernel is exact: 2^50.4, rounded down.
pub const MODULUS_BOUND: u64 = 1_485_000_000_000_000;

fn mul_mod(a: u64, b: u64, m: u64) -> u64 {
    (u128::from(a) * u128::from(b) % u128::from(m)) as u64
}

fn pow_mod(base: u64, exponent: u64, m: u64) -> u64 {
    let (mut result, mut square, mut e) = (1, base % m, exponent);
    while e > 0 {
        if e & 1 == 1 {
            result = mul_mod(result, square, m);
        }
        square = mul_mod(square, square, m);
        e >>= 1;
    }
    result
}

/// Whether `n` is prime: Miller–Rabin with the first twelve primes as bases, which decides every
/// 64-bit integer.
pub fn is_prime(n: u64) -> bool {
    const BASES: [u64; 12] = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37];
    if n < 2 {
        return false;
    }
    for base in BASES {
        if n.is_multiple_of(base) {
            return n == base;
        }
    }
    let twos = (n - 1).trailing_zeros();
    let odd = (n - 1) >> twos;
    BASES.iter().all(|&base| {
        let mut x = pow_mod(base, odd, n);
        if x == 1 || x == n - 1 {
            return true;
        }
        for _ in 1..twos {
            x = mul_mod(x, x, n);
            if x == n - 1 {
                return true;
            }
        }
        false
    })
}

/// The `count` primes congruent to 1 modulo 2·`degree` that lie nearest to `target`, nearest
/// first, leaving out those in `excluded` and all at or above [`MODULUS_BOUND`].
///
/// Taking them alternately from both sides keeps the product close to a power of `target`.
pub fn primes_near(target: u64, degree: usize, count: usize, excluded: &[u64]) -> Result<Vec<u64>, HalError> {
    let step = 2 * degree as u64;
    if target >= MODULUS_BOUND {
        return Err(HalError::PrimesExhausted { bits: target.ilog2() + 1, step, wanted: count, found: 0 });
    }
    let mut below = target - target % step + 1;
    if below > target {
        below = below.saturating_sub(step);
    }
    let mut above = below + step;
    let mut found = Vec::with_capacity(count);
    while found.len() < count {
        let above_fits = above < MODULUS_BOUND;
        let below_fits = below > step;
        let candidate = match (below_fits, above_fits) {
            (true, true) if target - below <= above - target => take_below(&mut below, step),
            (_, true) => {
                above += step;
                above - step
            }
            (true, false) => take_below(&mut below, step),
            (false, false) => {
                return Err(HalError::PrimesExhausted {
                    bits: target.max(1).ilog2() + 1,
                    step,
                    wanted: count,
                    found: found.len(),
                });
            }
        };
        if !excluded.contains(&candidate) && candidate < MODULUS_BOUND && is_prime(candidate) {
            found.push(candidate);
        }
    }
    Ok(found)
}

fn take_below(below: &mut u64, step: u64) -> u64 {
    let candidate = *below;
    *below -= step;
    candidate
}

/// The `count` primes congruent to 1 modulo 2·`degree` nearest to 2^`bits` (see [`primes_near`]).
pub fn primes_of_bits(bits: u32, degree: usize, count: usize, excluded: &[u64]) -> Result<Vec<u64>, HalError> {
    if !(2..=50).contains(&bits) {
        return Err(HalError::PrimesExhausted { bits, step: 2 * degree as u64, wanted: count, found: 0 });
    }
    primes_near(1 << bits, degree, count, excluded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn primality_agrees_with_trial_division() {
        let trial = |n: u64| n >= 2 && (2..=n.isqrt()).all(|d| !n.is_multiple_of(d));
        for n in 0..20_000 {
            assert_eq!(is_prime(n), trial(n), "{n}");
        }
        // A strong pseudoprime to the bases 2, 3, 5 and 7.
        assert!(!is_prime(3_215_031_751));
        assert!(is_prime(18_446_744_073_709_551_557));
    }

    #[test]
    fn generated_primes_are_distinct_friendly_and_near() {
        let first = primes_of_bits(50, 1 << 16, 18, &[]).unwrap();
        let more = primes_of_bits(50, 1 << 16, 4, &first).unwrap();
        for (i, p) in first.iter().chain(&more).enumerate() {
            assert!(is_prime(*p) && p % (1 << 17) == 1 && *p < MODULUS_BOUND);
            assert!(!first.iter().chain(&more).take(i).any(|q| q == p));
            assert!(((*p as f64).log2() - 50.0).abs() < 0.001);
        }
        let distance = |p: &u64| p.abs_diff(1 << 50);
        assert!(first.is_sorted_by_key(distance));
    }

    #[test]
    fn exhaustion_is_an_error() {
        assert!(matches!(primes_near(u64::MAX, 1 << 16, 1, &[]), Err(HalError::PrimesExhausted { .. })));
        assert!(primes_of_bits(51, 16, 1, &[]).is_err());
    }
}
