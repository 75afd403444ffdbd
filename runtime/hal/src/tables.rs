//! Tables that the CPU backends share: moduli, NTT plans, automorphism indices, conversions.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

use tfhe_ntt::prime64::Plan;

use crate::conversion::ConversionTable;
use crate::ntt::ScalarTransform;
use crate::permutation::Permutation;
use crate::pool::Pool;
use crate::primes::{MODULUS_BOUND, is_prime};
use crate::{HalError, Modulus};

/// Smallest ring degree: the NTT works on two full vector registers.
pub(crate) const MINIMUM_DEGREE: usize = 1 << 4;
/// Largest ring degree.
pub(crate) const MAXIMUM_DEGREE: usize = 1 << 17;

type ConversionKey = (Vec<usize>, Vec<usize>);

pub(crate) struct Tables {
    pub(crate) degree: usize,
    pub(crate) values: Vec<u64>,
    pub(crate) moduli: Vec<Modulus>,
    /// ψ of each modulus.
    pub(crate) roots: Vec<u64>,
    /// Where buffers come from.
    pub(crate) pool: Pool,
    automorphisms: RwLock<BTreeMap<usize, Arc<Permutation>>>,
    conversions: RwLock<BTreeMap<ConversionKey, Arc<ConversionTable>>>,
}

impl Tables {
    /// Checks everything. Also gives the plan of each modulus, which made its ψ known.
    pub(crate) fn new(degree: usize, values: &[u64]) -> Result<(Self, Vec<Plan>), HalError> {
        if !degree.is_power_of_two() || !(MINIMUM_DEGREE..=MAXIMUM_DEGREE).contains(&degree) {
            return Err(HalError::Degree { degree, minimum: MINIMUM_DEGREE, maximum: MAXIMUM_DEGREE });
        }
        let mut plans = Vec::with_capacity(values.len());
        let mut roots = Vec::with_capacity(values.len());
        for (i, &modulus) in values.iter().enumerate() {
            let refuse = |reason| HalError::Modulus { modulus, reason };
            if modulus >= MODULUS_BOUND {
                return Err(refuse("it is not below 2^50.4"));
            }
            if values[..i].contains(&modulus) {
                return Err(refuse("it is listed twice"));
            }
            if modulus % (2 * degree as u64) != 1 {
                return Err(refuse("it is not 1 modulo twice the ring degree"));
            }
            if !is_prime(modulus) {
                return Err(refuse("it is not prime"));
            }
            let plan = Plan::try_new(degree, modulus).ok_or_else(|| refuse("the transform has no plan for it"))?;
            roots.push(
                check_order(&plan, modulus, degree)
                    .ok_or_else(|| refuse("its transform is not in bit-reversed order"))?,
            );
            plans.push(plan);
        }
        let moduli: Vec<Modulus> = values.iter().map(|q| Modulus::new(*q)).collect();
        let tables = Self {
            degree,
            values: values.to_vec(),
            moduli,
            roots,
            pool: Pool::default(),
            automorphisms: RwLock::default(),
            conversions: RwLock::default(),
        };
        Ok((tables, plans))
    }

    /// Plain transforms of all moduli.
    pub(crate) fn scalar_transforms(&self) -> Vec<ScalarTransform> {
        let pairs = self.moduli.iter().zip(&self.roots);
        pairs.map(|(q, root)| ScalarTransform::new(*q, *root, self.degree)).collect()
    }

    /// The permutation of the NTT domain that X ↦ X^`element` is.
    pub(crate) fn automorphism(&self, element: usize) -> Result<Arc<Permutation>, HalError> {
        let bound = 2 * self.degree;
        if element.is_multiple_of(2) || element >= bound {
            return Err(HalError::GaloisElement { element, bound });
        }
        if let Some(table) = read(&self.automorphisms).get(&element) {
            return Ok(Arc::clone(table));
        }
        let table = Arc::new(Permutation::automorphism(element, self.degree));
        write(&self.automorphisms).insert(element, Arc::clone(&table));
        Ok(table)
    }

    /// 1/Π D modulo each modulus of `keep`, D over the moduli of `drop`.
    pub(crate) fn quotient_constants(&self, keep: &[usize], drop: &[usize]) -> Vec<u64> {
        keep.iter()
            .map(|index| {
                let q = &self.moduli[*index];
                q.inv(drop.iter().fold(1, |product, dropped| q.mul(product, q.reduce(self.values[*dropped]))))
            })
            .collect()
    }

    /// Conversion constants for lists of table indices.
    pub(crate) fn conversion(&self, from: &[usize], to: &[usize]) -> Arc<ConversionTable> {
        let key = (from.to_vec(), to.to_vec());
        if let Some(table) = read(&self.conversions).get(&key) {
            return Arc::clone(table);
        }
        let pick = |list: &[usize]| list.iter().map(|i| self.moduli[*i]).collect::<Vec<_>>();
        let table = Arc::new(ConversionTable::new(&pick(from), &pick(to)));
        write(&self.conversions).insert(key, Arc::clone(&table));
        table
    }
}

// A poisoned lock holds a map that is complete after every insertion, so it stays usable.
pub(crate) fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

pub(crate) fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Reverses the low `bits` bits of `i`.
pub(crate) fn reverse_bits(i: usize, bits: u32) -> usize {
    if bits == 0 { 0 } else { i.reverse_bits() >> (usize::BITS - bits) }
}

/// Transforms X, whose value at ψ^e is ψ^e itself: reads ψ off the first position and checks
/// that position i belongs to the exponent 2·rev(i)+1.
fn check_order(plan: &Plan, modulus: u64, degree: usize) -> Option<u64> {
    let q = Modulus::new(modulus);
    let mut image = vec![0; degree];
    image[1] = 1;
    plan.fwd(&mut image);
    let root = image[0];
    let square = q.mul(root, root);
    let mut power = root;
    for k in 0..degree {
        if image[reverse_bits(k, degree.ilog2())] != power {
            return None;
        }
        power = q.mul(power, square);
    }
    Some(root)
}
