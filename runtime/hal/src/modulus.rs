//! Scalar arithmetic modulo one prime below 2^51.
//!
//! Barrett reduction with k = ⌊log2 q⌋ + 1 and μ = ⌊2^{2k} / q⌋: for x < 2^{2k} the estimate
//! ⌊⌊x / 2^{k-1}⌋ · μ / 2^{k+1}⌋ is at most two below ⌊x / q⌋.

/// A prime modulus with its Barrett constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modulus {
    value: u64,
    bits: u32,
    barrett: u64,
}

impl Modulus {
    /// Precomputes the Barrett constant of a modulus with 2 ≤ `value` < 2^52.
    pub fn new(value: u64) -> Self {
        debug_assert!((2..1 << 52).contains(&value));
        let bits = value.ilog2() + 1;
        Self { value, bits, barrett: ((1_u128 << (2 * bits)) / u128::from(value)) as u64 }
    }

    /// The modulus itself.
    pub fn value(&self) -> u64 {
        self.value
    }

    /// Number of significant bits of the modulus.
    pub fn bits(&self) -> u32 {
        self.bits
    }

    /// Reduces x < 2^{2·bits} to the canonical residue.
    #[inline]
    pub fn reduce_wide(&self, x: u128) -> u64 {
        let estimate = ((x >> (self.bits - 1)) * u128::from(self.barrett)) >> (self.bits + 1);
        let mut r = (x as u64).wrapping_sub((estimate as u64).wrapping_mul(self.value));
        if r >= 2 * self.value {
            r -= 2 * self.value;
        }
        if r >= self.value {
            r -= self.value;
        }
        r
    }

    /// Canonical residue of any 64-bit integer.
    #[inline]
    pub fn reduce(&self, x: u64) -> u64 {
        x % self.value
    }

    /// Canonical residue of a signed integer.
    #[inline]
    pub fn reduce_signed(&self, x: i64) -> u64 {
        let r = self.reduce(x.unsigned_abs());
        if x < 0 { self.neg(r) } else { r }
    }

    /// Canonical residue of a wide signed integer.
    #[inline]
    pub fn reduce_signed_wide(&self, x: i128) -> u64 {
        let magnitude = x.unsigned_abs();
        let r = if let Ok(small) = u64::try_from(magnitude) {
            self.reduce(small)
        } else {
            (magnitude % u128::from(self.value)) as u64
        };
        if x < 0 { self.neg(r) } else { r }
    }

    /// a + b of canonical residues.
    #[inline]
    pub fn add(&self, a: u64, b: u64) -> u64 {
        let s = a + b;
        if s >= self.value { s - self.value } else { s }
    }

    /// a − b of canonical residues.
    #[inline]
    pub fn sub(&self, a: u64, b: u64) -> u64 {
        if a >= b { a - b } else { a + self.value - b }
    }

    /// −a of a canonical residue.
    #[inline]
    pub fn neg(&self, a: u64) -> u64 {
        if a == 0 { 0 } else { self.value - a }
    }

    /// a · b of canonical residues.
    #[inline]
    pub fn mul(&self, a: u64, b: u64) -> u64 {
        self.reduce_wide(u128::from(a) * u128::from(b))
    }

    /// base^exponent.
    pub fn pow(&self, base: u64, exponent: u64) -> u64 {
        let mut result = 1 % self.value;
        let mut square = self.reduce(base);
        let mut e = exponent;
        while e > 0 {
            if e & 1 == 1 {
                result = self.mul(result, square);
            }
            square = self.mul(square, square);
            e >>= 1;
        }
        result
    }

    /// Multiplicative inverse of a non-zero residue (the modulus being prime).
    pub fn inv(&self, a: u64) -> u64 {
        self.pow(a, self.value - 2)
    }
}
