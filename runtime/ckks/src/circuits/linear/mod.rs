//! Linear maps of encrypted slot vectors by diagonals, baby steps and giant steps.
//!
//! A [`LinearTransform`] is a [`DiagonalMatrix`] encoded once for one level and one plaintext scale, with the [`StepPlan`] of
//! its rotations. Two ways of hoisting (ePrint 2020/1203, section 4):
//!
//! - [`Hoisting::Single`]: babies are divided by `P` and multiplied by plaintexts modulo `Q`. Plaintexts are small, which
//!   pays at low levels, where `P` has more limbs than `Q`.
//! - [`Hoisting::Double`]: babies stay modulo `QP`, are multiplied by plaintexts modulo `QP`, and only the sums are divided
//!   by `P`; a giant's first polynomial is not divided at all until the end.
//!
//! Giants are summed modulo `QP` by both, and divided by `P` together.

use std::collections::BTreeMap;

use cachemir_hal::{Addend, Backend};
use num_complex::Complex64;

use crate::ckks::ciphertext::{Ciphertext, ExtendedCiphertext, ExtendedPlaintext, Plaintext};
use crate::ckks::encoder::Encoder;
use crate::ckks::evaluator::Evaluator;
use crate::error::CkksError;
use crate::ring::Ring;
use crate::rlwe::keys::{EvaluationKeys, KeyManifest, KeyRole};
use crate::rlwe::switching;

mod diagonals;
mod plan;
mod raised;

pub use diagonals::DiagonalMatrix;
pub use plan::StepPlan;
pub use raised::RaisedTransform;

/// Where the sums of a linear transform are accumulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hoisting {
    /// Modulo `Q`: small plaintexts, one ModDown for each baby and one for all giants.
    Single,
    /// Modulo `QP`: larger plaintexts, one ModDown for each giant.
    Double,
}

/// A giant step: its rotation, and for each of its babies the encoded diagonal, rotated right by the giant.
#[derive(Debug)]
struct Group<P> {
    giant: usize,
    terms: Vec<(usize, P)>,
}

#[derive(Debug)]
enum Diagonals<B: Backend> {
    Plain(Vec<Group<Plaintext<B>>>),
    Extended(Vec<Group<ExtendedPlaintext<B>>>),
}

/// What single hoisting sums up to: without giants, nothing awaits a division by `P`.
enum SingleSum<B: Backend> {
    Plain(Ciphertext<B>),
    Extended(ExtendedCiphertext<B>),
}

/// An encoded linear map.
#[derive(Debug)]
pub struct LinearTransform<B: Backend> {
    steps: StepPlan,
    diagonals: Diagonals<B>,
    level: usize,
    scale: f64,
    slots: usize,
}

/// The groups of a plan with every diagonal encoded by `encode`.
fn encode_groups<P>(
    matrix: &DiagonalMatrix,
    steps: &StepPlan,
    encode: impl Fn(&[Complex64]) -> Result<P, CkksError>,
) -> Result<Vec<Group<P>>, CkksError> {
    let slots = matrix.slots();
    steps
        .groups()
        .iter()
        .map(|(&giant, babies)| {
            let terms = babies
                .iter()
                .filter_map(|&baby| {
                    let mut diagonal = matrix.diagonals().get(&((giant + baby) % slots))?.clone();
                    diagonal.rotate_right(giant % slots);
                    Some(encode(&diagonal).map(|plaintext| (baby, plaintext)))
                })
                .collect::<Result<_, _>>()?;
            Ok(Group { giant, terms })
        })
        .collect()
}

/// The shortest beginning, of a power-of-two length, that a vector repeats. Encoded, both are the same polynomial.
pub(crate) fn one_period(vector: &[Complex64]) -> &[Complex64] {
    let mut period = vector;
    while period.len() > 1 {
        let (first, second) = period.split_at(period.len() / 2);
        if first != second {
            break;
        }
        period = first;
    }
    period
}

impl<B: Backend> LinearTransform<B> {
    /// Encodes `matrix` for inputs at `level`, every diagonal multiplied by `scale`.
    pub fn encode(
        encoder: &Encoder<B>,
        matrix: &DiagonalMatrix,
        steps: StepPlan,
        hoisting: Hoisting,
        level: usize,
        scale: f64,
    ) -> Result<Self, CkksError> {
        encoder.ring().check_level(level)?;
        let gadget = encoder.ring().parameters().gadget(level);
        let diagonals = match hoisting {
            Hoisting::Single => {
                Diagonals::Plain(encode_groups(matrix, &steps, |d| encoder.encode(one_period(d), level, scale))?)
            }
            Hoisting::Double => Diagonals::Extended(encode_groups(matrix, &steps, |d| {
                encoder.encode_extended(one_period(d), level, scale, gadget)
            })?),
        };
        Ok(Self { steps, diagonals, level, scale, slots: matrix.slots() })
    }

    /// Level at which inputs are taken; those of higher level are truncated to it.
    pub fn level(&self) -> usize {
        self.level
    }

    /// Factor between the input's and the unrescaled output's scale.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Dimension of the map.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// The rotations.
    pub fn steps(&self) -> &StepPlan {
        &self.steps
    }

    /// Bytes of memory that the encoded diagonals take.
    pub fn bytes(&self, ring: &Ring<B>) -> u64 {
        let bytes = |buffer| ring.backend().bytes(buffer);
        match &self.diagonals {
            Diagonals::Plain(groups) => groups.iter().flat_map(|g| &g.terms).map(|(_, p)| bytes(p.buffer())).sum(),
            Diagonals::Extended(groups) => groups.iter().flat_map(|g| &g.terms).map(|(_, p)| bytes(p.buffer())).sum(),
        }
    }

    /// Asks for the rotation keys that [`apply`](Self::apply) uses.
    pub fn require_keys(&self, manifest: &mut KeyManifest) {
        for rotation in self.steps.rotations() {
            manifest.require_rotation(rotation, [self.level]);
        }
    }

    /// The map applied to a ciphertext of this level or higher: at this level, the scale multiplied by
    /// [`scale`](Self::scale), not rescaled.
    pub fn apply(
        &self,
        evaluator: &Evaluator<B>,
        keys: &EvaluationKeys<B>,
        input: &Ciphertext<B>,
    ) -> Result<Ciphertext<B>, CkksError> {
        let input = self.admit(evaluator, input)?;
        match &self.diagonals {
            Diagonals::Plain(groups) => match self.apply_single(groups, evaluator, keys, &input)? {
                SingleSum::Plain(sum) => Ok(sum),
                SingleSum::Extended(sum) => evaluator.mod_down(&sum),
            },
            Diagonals::Extended(groups) => evaluator.mod_down(&self.apply_double(groups, evaluator, keys, &input)?),
        }
    }

    /// As [`apply`](Self::apply) and rescaled, in one division.
    pub fn apply_rescale(
        &self,
        evaluator: &Evaluator<B>,
        keys: &EvaluationKeys<B>,
        input: &Ciphertext<B>,
    ) -> Result<Ciphertext<B>, CkksError> {
        let input = self.admit(evaluator, input)?;
        match &self.diagonals {
            Diagonals::Plain(groups) => match self.apply_single(groups, evaluator, keys, &input)? {
                SingleSum::Plain(sum) => evaluator.rescale(&sum),
                SingleSum::Extended(sum) => evaluator.mod_down_rescale(&sum),
            },
            Diagonals::Extended(groups) => {
                evaluator.mod_down_rescale(&self.apply_double(groups, evaluator, keys, &input)?)
            }
        }
    }

    /// The input at this level, read as a vector of at least this dimension.
    fn admit(&self, evaluator: &Evaluator<B>, input: &Ciphertext<B>) -> Result<Ciphertext<B>, CkksError> {
        evaluator.check_polynomials("linear transform", input, 2)?;
        let mut input = evaluator.truncate(input, self.level)?;
        input.set_slots(input.slots().max(self.slots));
        Ok(input)
    }

    fn apply_single(
        &self,
        groups: &[Group<Plaintext<B>>],
        evaluator: &Evaluator<B>,
        keys: &EvaluationKeys<B>,
        input: &Ciphertext<B>,
    ) -> Result<SingleSum<B>, CkksError> {
        let digits = evaluator.decompose(input)?;
        let babies = self
            .steps
            .babies()
            .into_iter()
            .map(|baby| Ok((baby, evaluator.rotate_decomposed(input, &digits, baby as i64, keys)?)))
            .collect::<Result<BTreeMap<_, _>, CkksError>>()?;
        let scale = input.scale() * self.scale;
        let products = |group: &Group<Plaintext<B>>| {
            let pairs: Vec<_> = group.terms.iter().map(|(baby, p)| (&babies[baby], p)).collect();
            let mut sum = evaluator.zero(self.level, scale, input.slots())?;
            evaluator.mul_plain_accumulate_many(&mut sum, &pairs)?;
            Ok::<_, CkksError>(sum)
        };
        if let [only] = groups
            && only.giant == 0
        {
            return Ok(SingleSum::Plain(products(only)?));
        }
        let mut sum = evaluator.zero_extended(self.level, scale, input.slots())?;
        for group in groups {
            evaluator.rotate_accumulate_extended(&mut sum, &products(group)?, group.giant as i64, keys)?;
        }
        Ok(SingleSum::Extended(sum))
    }

    fn apply_double(
        &self,
        groups: &[Group<ExtendedPlaintext<B>>],
        evaluator: &Evaluator<B>,
        keys: &EvaluationKeys<B>,
        input: &Ciphertext<B>,
    ) -> Result<ExtendedCiphertext<B>, CkksError> {
        let (ring, level) = (evaluator.ring(), self.level);
        let gadget = ring.parameters().gadget(level);
        let special = gadget.special;
        let digits = switching::decompose(ring, input.buffer(), 1, level, gadget)?;
        let babies: Vec<usize> = self.steps.babies().into_iter().collect();
        let rotations = babies
            .iter()
            .map(|&baby| switching::hoisted_rotation(ring, keys, KeyRole::Rotation(baby), level))
            .collect::<Result<Vec<_>, _>>()?;
        let mut terms: Vec<Vec<(usize, &B::Buffer)>> = Vec::with_capacity(groups.len());
        for group in groups {
            let index = |baby| babies.partition_point(|other| other < baby);
            terms.push(group.terms.iter().map(|(baby, plain)| (index(baby), plain.buffer())).collect());
        }
        let factors = ring.special_product(special, ring.chain(level));
        let source = Addend { source: input.buffer(), polynomials: 2, factors: &factors };
        let limbs = ring.extended(level, special);
        let sums = ring.backend().hoisted_sums(&digits, &source, &rotations, &terms, &limbs)?;
        drop(digits);

        let scale = input.scale() * self.scale;
        let mut total: Option<B::Buffer> = None;
        let mut turned = Vec::new();
        for (group, sum) in groups.iter().zip(sums) {
            match &mut total {
                _ if group.giant != 0 => turned.push((group.giant, sum)),
                Some(total) => ring.backend().add_assign(total, &sum, &limbs)?,
                None => total = Some(sum),
            }
        }
        let total = total.map_or_else(|| ring.backend().zeros(2, limbs.len()), Ok)?;
        let mut total = ExtendedCiphertext { buffer: total, level, special, scale, slots: input.slots() };
        for (giant, sum) in turned {
            self.accumulate_giant(ring, keys, &mut total, &sum, giant)?;
        }
        Ok(total)
    }

    /// total ← total + rot(sum): only the polynomial that meets the secret is divided by `P` and switched.
    fn accumulate_giant(
        &self,
        ring: &Ring<B>,
        keys: &EvaluationKeys<B>,
        total: &mut ExtendedCiphertext<B>,
        sum: &B::Buffer,
        giant: usize,
    ) -> Result<(), CkksError> {
        let (backend, level, gadget) = (ring.backend(), self.level, ring.parameters().gadget(self.level));
        let limbs = ring.extended(level, gadget.special);
        let positions: Vec<usize> = (0..limbs.len()).collect();
        let key = keys.find(ring.parameters(), KeyRole::Rotation(giant), level)?.view(level);

        let linear = backend.select(sum, 1..2, &positions)?;
        let linear = switching::mod_down(ring, &linear, level, gadget.special)?;
        let digits = switching::decompose(ring, &linear, 0, level, gadget)?;
        let ones = vec![1; limbs.len()];
        let constant = Addend { source: sum, polynomials: 1, factors: &ones };
        let element = ring.galois_element(giant);
        backend.inner_product_accumulate(total.buffer_mut(), &digits, &key, Some(&constant), element, &limbs)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
