//! Bootstrapping with SlotsToCoeffs first.
//!
//! An input whose slots are bounded by one becomes the same vector at the highest level for use. With `n` slots in
//! `X^(N/2n)`, `r` the log2 of the message ratio:
//!
//! 1. **SlotsToCoeffs**, on the lowest primes: the slots become coefficients at scale `q_0 / 2^r`. An optional real mask and
//!    the factor `2^-k` of inputs bounded by `2^k` ride on the first matrix.
//! 2. **Encapsulation** (ePrint 2022/024): at `q_0`, a switch to a sparse ephemeral secret of weight `h` by a key that exists
//!    only modulo `q_0·p_0`; **ModRaise** to the whole chain, which adds `q_0·I` with `|I| ≤ (h + 1)/2`.
//! 3. **CoeffsToSlots**: slots hold `t = I + ε`, `ε` the message divided by `2^r`. The first factor leads out of the
//!    ephemeral secret ([`RaisedTransform`]). For complex sparse inputs the last one writes real and imaginary parts side by
//!    side in `2n` slots, so that the next step runs once.
//! 4. **Trace** to the subring, for `n < N/2`: `I` keeps `2n` coefficients. The diagonals of the first factor have the
//!    period `n`, so it may come before the trace, which then runs at a lower level.
//! 5. **EvalMod** ([`modular_reduction`](super::modular_reduction)): sine, double angles, cubic. The factor `2^r` (and, for
//!    side-by-side parts, the vector `(1, …, 1, i, …, i)`) rides on the cubic's coefficients.
//! 6. Real and imaginary parts are added.
//!
//! # What pays
//! Ideas for speed and memory with the gain expected and the one measured, on one thread at N = 2^16 (Xeon with AVX-512 IFMA
//! and VAES).
//!
//! | idea | expected | measured |
//! |---|---|---|
//! | the first factor of CoeffsToSlots out of the ephemeral secret, all diagonals directly, one digit a key | that factor a third, keys −1 GiB | 0.7 → 0.26 s, ModRaise 0.11 → 0.02 s, keys −1.2 GiB |
//! | spare primes of the chain as special ones ([`gadget`](crate::gadget)) | EvalMod −20 %, its keys −40 % | EvalMod −13 %, rotations for use −10 % |
//! | digits turned on the way into the product with a key, block by block, no row leaves the caches | two passes fewer a rotation | first factor −53 %, other factors −8 % |
//! | keys fetched while uniform halves are encrypted | other factors −10 % | −10 % |
//! | the trace after the first factor, at most seven rotations a decomposition, summed in one pass | 2^6 slots −15 % | 0.86 → 0.52 s |
//! | the split of CoeffsToSlots by predicted cost | little | 4096 slots −0.1 s, matrices −0.5 GiB |
//! | one multiplication before the last stages of transforms, not two; two groups in turns | transforms −15 % | −15 % and −20 %; bootstraps −7 % |
//! | base conversions divided by 2^52, canonical only after the transform | −30 % | decomposition −4 %: memory |
//! | the next row fetched while one is transformed | transforms of rows in memory −10 % | nothing |
//! | products with a key divided where they are made, never stored | rotations −20 % | nothing |
//! | base conversions of up to 16 sources with constants in registers | conversions −30 % | −15 % |
//! | giant steps of SlotsToCoeffs summed modulo QP, divided by P once | bootstraps −2 %, real −3 % | SlotsToCoeffs −23 to −32 %, 70 MB less |
//! | baby steps limb by limb, met by all plaintexts before they leave the caches | CoeffsToSlots −25 % | −20 % |
//! | `2 T_a T_b` as `T_a T_b` at half its scale, on twice the scale | half the rounding noise | 0.6 bits more, 1 in the worst slot |
//! | uniform halves of keys expanded from seeds by AES as they are used | half the keys, time +5 % | half the keys, time +2 % |
//! | plaintexts stored at their period | matrices 3.0 → 0.65 GiB | the same; time unchanged |
//! | 16 baby and 4 giant steps in place of 8 and 8 | −5 % | −4 % |
//! | inverse transforms out of place | a copy a digit | rotation −2 % |
//! | summands of a rotation as one more product | a pass fewer | nothing |
//! | stores past the caches in base conversions | decomposition −10 % | nothing: conversions are bound by arithmetic |
//! | two vectors at a time in base conversions | conversions −20 % | nothing |
//!
//! The order leaves the rounding noise of CoeffsToSlots as the largest contribution; [`noise`] and [`cost`] predict precision and work.

use cachemir_hal::Backend;
use num_complex::Complex64;

use crate::circuits::linear::{Hoisting, LinearTransform, RaisedTransform};
use crate::ckks::ciphertext::{Ciphertext, Plaintext, RaisedCiphertext};
use crate::ckks::evaluator::Evaluator;
use crate::error::CkksError;
use crate::rlwe::keys::{EvaluationKeys, KeyManifest, KeyRole};

pub mod cost;
pub mod noise;
mod plan;

pub use plan::{BootstrapPlan, Factor, Phase, SlotKind};

/// A bootstrap's public constants, encoded: everything but keys and entries.
#[derive(Debug)]
pub struct Bootstrapper<B: Backend> {
    plan: BootstrapPlan,
    /// All factors of SlotsToCoeffs but the first, which belongs to the entry.
    slots_to_coefficients: Vec<LinearTransform<B>>,
    /// The first factor of CoeffsToSlots, out of the ephemeral secret.
    raised_to_slots: RaisedTransform<B>,
    /// The others.
    coefficients_to_slots: Vec<LinearTransform<B>>,
    /// The cubic's coefficients times `(1, …, 1, i, …, i)`, where parts lie side by side.
    packed_cubic: Option<PackedCubic<B>>,
}

#[derive(Debug)]
struct PackedCubic<B: Backend> {
    linear: Plaintext<B>,
    cubic: Plaintext<B>,
}

/// The first matrix of SlotsToCoeffs for one mask and one magnitude.
#[derive(Debug)]
pub struct BootstrapEntry<B: Backend> {
    first: LinearTransform<B>,
    log2_magnitude: u32,
}

impl<B: Backend> BootstrapEntry<B> {
    /// `k`: inputs are bounded by `2^k` wherever the mask is not zero.
    pub fn log2_magnitude(&self) -> u32 {
        self.log2_magnitude
    }

    /// Bytes of memory of the encoded matrix.
    pub fn bytes(&self, evaluator: &Evaluator<B>) -> u64 {
        self.first.bytes(evaluator.ring())
    }
}

/// Largest supported `k`.
pub const MAXIMUM_LOG2_MAGNITUDE: u32 = 24;

impl<B: Backend> Bootstrapper<B> {
    /// Plans and encodes a bootstrap of `slots` slots.
    pub fn new(evaluator: &Evaluator<B>, slots: usize, kind: SlotKind) -> Result<Self, CkksError> {
        Self::with_plan(evaluator, BootstrapPlan::new(evaluator.ring().parameters(), slots, kind)?)
    }

    /// Encodes a plan.
    pub fn with_plan(evaluator: &Evaluator<B>, plan: BootstrapPlan) -> Result<Self, CkksError> {
        let encoder = evaluator.encoder();
        let encode = |factor: &Factor, hoisting| {
            let steps = factor.steps.clone();
            LinearTransform::encode(encoder, &factor.matrix, steps, hoisting, factor.level, factor.scale)
        };
        let slots_to_coefficients = plan
            .slots_to_coefficients()
            .iter()
            .skip(1)
            .map(|factor| encode(factor, Hoisting::Single))
            .collect::<Result<_, _>>()?;
        let [raised, rest @ ..] = plan.coefficients_to_slots() else {
            return Err(CkksError::Slots {
                slots: plan.slots(),
                maximum: evaluator.ring().parameters().maximum_slots(),
            });
        };
        let raised_to_slots = RaisedTransform::encode(encoder, &raised.matrix, raised.level, raised.scale)?;
        let coefficients_to_slots =
            rest.iter().map(|factor| encode(factor, Hoisting::Double)).collect::<Result<_, _>>()?;
        let packed_cubic = None;
        let mut bootstrapper =
            Self { plan, slots_to_coefficients, raised_to_slots, coefficients_to_slots, packed_cubic };
        if bootstrapper.plan.is_packed() {
            let parts = |factor: f64| {
                let slots = bootstrapper.plan.slots();
                let mut values = vec![Complex64::new(factor, 0.0); slots];
                values.resize(2 * slots, Complex64::new(0.0, factor));
                values
            };
            let cubic = bootstrapper.cubic(evaluator);
            let level = bootstrapper.plan.sine_level();
            bootstrapper.packed_cubic = Some(PackedCubic {
                linear: encoder.encode(&parts(cubic.linear), level - 1, cubic.linear_scale)?,
                cubic: encoder.encode(&parts(cubic.cubic), level, cubic.cubic_scale)?,
            });
        }
        Ok(bootstrapper)
    }

    /// The plan.
    pub fn plan(&self) -> &BootstrapPlan {
        &self.plan
    }

    /// The keys that [`bootstrap`](Self::bootstrap) uses.
    pub fn key_manifest(&self) -> KeyManifest {
        self.plan.key_manifest()
    }

    /// Bytes of memory of the encoded matrices, entries not counted.
    pub fn bytes(&self, evaluator: &Evaluator<B>) -> u64 {
        let ring = evaluator.ring();
        let factors = self.slots_to_coefficients.iter().chain(&self.coefficients_to_slots);
        self.raised_to_slots.bytes(ring) + factors.map(|transform| transform.bytes(ring)).sum::<u64>()
    }

    /// Encodes the first matrix for inputs bounded by `2^log2_magnitude`, each slot multiplied by the mask's value.
    ///
    /// The bound is for the product: slots that the mask zeroes may have any size. A mask shorter than the slots repeats.
    pub fn prepare_entry(
        &self,
        evaluator: &Evaluator<B>,
        mask: Option<&[f64]>,
        log2_magnitude: u32,
    ) -> Result<BootstrapEntry<B>, CkksError> {
        if log2_magnitude > MAXIMUM_LOG2_MAGNITUDE {
            return Err(CkksError::Value {
                what: "log2 of a bootstrap's magnitude",
                value: f64::from(log2_magnitude),
                condition: "at most 24",
            });
        }
        let slots = self.plan.slots();
        let factor = &self.plan.slots_to_coefficients()[0];
        let mut matrix = factor.matrix.scale((-f64::from(log2_magnitude)).exp2());
        if let Some(mask) = mask {
            if mask.is_empty() || !slots.is_multiple_of(mask.len()) {
                return Err(CkksError::Slots { slots: mask.len(), maximum: slots });
            }
            let periodic: Vec<f64> = mask.iter().copied().cycle().take(slots).collect();
            matrix = matrix.mask_input(&periodic);
        }
        let first = LinearTransform::encode(
            evaluator.encoder(),
            &matrix,
            factor.steps.clone(),
            Hoisting::Single,
            factor.level,
            factor.scale,
        )?;
        Ok(BootstrapEntry { first, log2_magnitude })
    }

    /// The input's vector, multiplied by the entry's mask, at the output level and its canonical scale.
    ///
    /// The input is at [`BootstrapPlan::input_level`] or higher, its slots are bounded as the entry says.
    pub fn bootstrap(
        &self,
        evaluator: &Evaluator<B>,
        keys: &EvaluationKeys<B>,
        entry: &BootstrapEntry<B>,
        input: &Ciphertext<B>,
    ) -> Result<Ciphertext<B>, CkksError> {
        self.bootstrap_observed(evaluator, keys, entry, input, &mut |_| ())
    }

    /// As [`bootstrap`](Self::bootstrap); `observe` is called after each phase.
    pub fn bootstrap_observed(
        &self,
        evaluator: &Evaluator<B>,
        keys: &EvaluationKeys<B>,
        entry: &BootstrapEntry<B>,
        input: &Ciphertext<B>,
        observe: &mut dyn FnMut(Phase),
    ) -> Result<Ciphertext<B>, CkksError> {
        let low = self.to_coefficients(evaluator, keys, entry, input)?;
        observe(Phase::SlotsToCoefficients);
        let raised = self.raise(evaluator, keys, &low)?;
        observe(Phase::ModRaise);
        let (real, imaginary) = self.to_slots(evaluator, keys, &raised)?;
        observe(Phase::CoefficientsToSlots);
        let mut result = self.eval_mod(evaluator, keys, &real, entry.log2_magnitude)?;
        if let Some(imaginary) = imaginary {
            let mut reduced = self.eval_mod(evaluator, keys, &imaginary, entry.log2_magnitude)?;
            evaluator.mul_by_i_assign(&mut reduced)?;
            evaluator.add_assign(&mut result, &reduced)?;
        }
        result.set_slots(self.plan.slots());
        observe(Phase::EvalMod);
        Ok(result)
    }

    /// SlotsToCoeffs, to level 0.
    fn to_coefficients(
        &self,
        evaluator: &Evaluator<B>,
        keys: &EvaluationKeys<B>,
        entry: &BootstrapEntry<B>,
        input: &Ciphertext<B>,
    ) -> Result<Ciphertext<B>, CkksError> {
        if input.slots() > self.plan.slots() {
            return Err(CkksError::Slots { slots: input.slots(), maximum: self.plan.slots() });
        }
        let mut state = evaluator.drop_to_level(input, self.plan.input_level())?;
        state.set_slots(self.plan.slots());
        for transform in std::iter::once(&entry.first).chain(&self.slots_to_coefficients) {
            state = transform.apply_rescale(evaluator, keys, &state)?;
        }
        Ok(state)
    }

    /// ModRaise under the ephemeral secret. Coefficients divided by the scale are `I + ε`.
    fn raise(
        &self,
        evaluator: &Evaluator<B>,
        keys: &EvaluationKeys<B>,
        low: &Ciphertext<B>,
    ) -> Result<RaisedCiphertext<B>, CkksError> {
        let parameters = evaluator.ring().parameters();
        let sparse = evaluator.switch_key(low, keys.find(parameters, KeyRole::DenseToSparse, 0)?)?;
        let mut raised = evaluator.raise_modulus(&sparse, self.plan.raised_level())?;
        raised.scale = parameters.primes()[0] as f64;
        raised.slots = parameters.maximum_slots();
        Ok(raised)
    }

    /// CoeffsToSlots: real vectors, one for each run of EvalMod.
    fn to_slots(
        &self,
        evaluator: &Evaluator<B>,
        keys: &EvaluationKeys<B>,
        raised: &RaisedCiphertext<B>,
    ) -> Result<(Ciphertext<B>, Option<Ciphertext<B>>), CkksError> {
        let trace = |mut state: Ciphertext<B>| {
            // The trace multiplies the slots again.
            state.set_scale(state.scale() * f64::from(self.plan.log2_trace()).exp2());
            for rotations in self.plan.trace() {
                state = evaluator.sum_with_rotations(&state, &rotations, keys)?;
            }
            state.set_slots(self.plan.slots());
            Ok::<_, CkksError>(state)
        };
        // The last factor is rescaled after the conjugation, which divides the noise of the key switch.
        let complex = if let Some((last, middle)) = self.coefficients_to_slots.split_last() {
            let mut state = trace(self.raised_to_slots.apply_rescale(evaluator, keys, raised)?)?;
            for transform in middle {
                state = transform.apply_rescale(evaluator, keys, &state)?;
            }
            last.apply(evaluator, keys, &state)?
        } else {
            let mut state = trace(self.raised_to_slots.apply(evaluator, keys, raised)?)?;
            state.set_slots(self.plan.coefficients_to_slots()[0].matrix.slots());
            state
        };
        let conjugate = evaluator.conjugate(&complex, keys)?;
        let shift = -0.25 / self.plan.reduction().range();
        let finish = |sum: &Ciphertext<B>| {
            let mut part = evaluator.rescale(sum)?;
            evaluator.add_scalar_assign(&mut part, shift)?;
            Ok::<_, CkksError>(part)
        };
        let real = finish(&evaluator.add(&complex, &conjugate)?)?;
        if self.plan.eval_mod_runs() == 1 {
            return Ok((real, None));
        }
        let mut difference = evaluator.sub(&conjugate, &complex)?;
        evaluator.mul_by_i_assign(&mut difference)?;
        Ok((real, Some(finish(&difference)?)))
    }

    /// `2^(r + k)` times the modular reduction, at the canonical scale of the output level.
    fn eval_mod(
        &self,
        evaluator: &Evaluator<B>,
        keys: &EvaluationKeys<B>,
        input: &Ciphertext<B>,
        log2_magnitude: u32,
    ) -> Result<Ciphertext<B>, CkksError> {
        let plan = &self.plan;
        let series_level = plan.eval_mod_level() - plan.series().depth();
        let mut sine = plan.series().evaluate(evaluator, keys, input, None, series_level, plan.series_scale())?;
        for _ in 0..plan.reduction().literal().double_angles {
            // 2s² is s² read at half its scale.
            let mut square = evaluator.tensor(&sine, &sine)?;
            square.set_scale(square.scale() / 2.0);
            evaluator.add_scalar_assign(&mut square, -1.0)?;
            sine = evaluator.relinearise_rescale(&square, keys)?;
        }
        let square = evaluator.square_rescale(&sine, keys)?;
        let cubic = self.cubic(evaluator);
        let below = evaluator.truncate(&sine, plan.sine_level() - 1)?;
        let (factor, linear) = match &self.packed_cubic {
            None => (
                evaluator.mul_scalar_at(&sine, cubic.cubic, cubic.cubic_scale)?,
                evaluator.mul_scalar_at(&below, cubic.linear, cubic.linear_scale)?,
            ),
            Some(packed) => (evaluator.mul_plain(&sine, &packed.cubic)?, evaluator.mul_plain(&below, &packed.linear)?),
        };
        let mut sum = evaluator.tensor(&evaluator.rescale(&factor)?, &square)?;
        evaluator.add_assign(&mut sum, &linear)?;
        if log2_magnitude > 0 {
            sum = evaluator.mul_integer(&sum, 1 << log2_magnitude)?;
        }
        let mut result = if plan.is_packed() {
            // Added before the rescale, which divides the noise of the key switch.
            let mut sum = evaluator.relinearise(&sum, keys)?;
            sum.set_slots(2 * plan.slots());
            let other = evaluator.rotate(&sum, plan.slots() as i64, keys)?;
            evaluator.add_assign(&mut sum, &other)?;
            evaluator.rescale(&sum)?
        } else {
            evaluator.relinearise_rescale(&sum, keys)?
        };
        result.set_scale(evaluator.ring().parameters().canonical_scale(plan.output_level()));
        Ok(result)
    }

    /// The cubic `s·(α + β s²)` times `2^r`, with scales such that the unrescaled sum has the output's canonical scale times
    /// the prime consumed last.
    fn cubic(&self, evaluator: &Evaluator<B>) -> SineCubic {
        let plan = &self.plan;
        let parameters = evaluator.ring().parameters();
        let primes = |level: usize| parameters.primes()[level] as f64;
        let (sine_level, sine_scale) = (plan.sine_level(), plan.sine_scale());
        let square_scale = sine_scale * sine_scale / primes(sine_level);
        let sum_scale = parameters.canonical_scale(plan.output_level()) * primes(sine_level - 1);
        let ratio = f64::from(plan.reduction().literal().log2_message_ratio).exp2();
        SineCubic {
            linear: ratio * plan.reduction().linear(),
            cubic: ratio * plan.reduction().cubic(),
            linear_scale: sum_scale / sine_scale,
            cubic_scale: sum_scale / square_scale * primes(sine_level) / sine_scale,
        }
    }
}

/// Coefficients of the cubic and the scales that they are encoded at.
struct SineCubic {
    linear: f64,
    cubic: f64,
    linear_scale: f64,
    cubic_scale: f64,
}

#[cfg(test)]
mod tests;
