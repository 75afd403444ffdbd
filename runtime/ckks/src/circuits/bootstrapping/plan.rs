//! A bootstrap as data: its matrices, rotations, polynomials, levels and scales. Nothing here is encoded or encrypted.

use std::collections::BTreeSet;

use num_complex::Complex64;

use crate::circuits::fourier::{coefficients_to_slots, radix_split, slots_to_coefficients};
use crate::circuits::linear::{DiagonalMatrix, Hoisting, StepPlan, one_period};
use crate::circuits::modular_reduction::{ModularReduction, ModularReductionLiteral};
use crate::circuits::polynomials::{EvaluationPlan, Polynomial};
use crate::ckks::encoder::stored_words;
use crate::cost::OperationCosts;
use crate::error::CkksError;
use crate::parameters::{Parameters, Section};
use crate::rlwe::keys::KeyManifest;

/// What the slots hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SlotKind {
    /// Real numbers; imaginary parts are dropped.
    Real,
    /// Complex numbers.
    Complex,
}

/// The steps of a bootstrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Slots become coefficients.
    SlotsToCoefficients,
    /// The change to the ephemeral secret, and ModRaise.
    ModRaise,
    /// Coefficients become slots under the main secret, with the trace; real and imaginary parts apart.
    CoefficientsToSlots,
    /// The approximate modular reduction, and the sum of both parts.
    EvalMod,
}

impl Phase {
    /// All of them, in order.
    pub const ALL: [Self; 4] = [Self::SlotsToCoefficients, Self::ModRaise, Self::CoefficientsToSlots, Self::EvalMod];

    /// Name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::SlotsToCoefficients => "slots_to_coefficients",
            Self::ModRaise => "mod_raise",
            Self::CoefficientsToSlots => "coefficients_to_slots",
            Self::EvalMod => "eval_mod",
        }
    }
}

/// How many more babies a rotation may cost before another key is generated for it.
const KEY_COST: usize = 1;

/// One factor of SlotsToCoeffs or CoeffsToSlots.
#[derive(Clone, Debug)]
pub struct Factor {
    /// The map, with its share of the normalising constants.
    pub matrix: DiagonalMatrix,
    /// Its rotations.
    pub steps: StepPlan,
    /// The level of its input.
    pub level: usize,
    /// The scale that its diagonals are encoded at.
    pub scale: f64,
    /// How many primes more than those of its level its diagonals are encoded modulo.
    pub special: usize,
}

impl Factor {
    /// Bytes that the encoded diagonals take in memory.
    pub fn bytes(&self, parameters: &Parameters) -> u64 {
        let limbs = self.level + 1 + self.special;
        let words = |diagonal: &Vec<Complex64>| stored_words(parameters.degree(), one_period(diagonal).len());
        let row_words: usize = self.matrix.diagonals().values().map(words).sum();
        (row_words * limbs * size_of::<u64>()) as u64
    }
}

/// Everything that follows from parameters, slots and kind.
#[derive(Clone, Debug)]
pub struct BootstrapPlan {
    slots: usize,
    kind: SlotKind,
    maximum_slots: usize,
    slots_to_coefficients: Vec<Factor>,
    coefficients_to_slots: Vec<Factor>,
    reduction: ModularReduction,
    series: EvaluationPlan,
    series_scale: f64,
    sine_scale: f64,
    eval_mod_level: usize,
    output_level: usize,
}

impl BootstrapPlan {
    /// The plan for `slots` slots, with the default modular reduction at the parameters' ephemeral weight.
    pub fn new(parameters: &Parameters, slots: usize, kind: SlotKind) -> Result<Self, CkksError> {
        let literal = ModularReductionLiteral { ephemeral_weight: parameters.ephemeral_weight(), ..Default::default() };
        Self::with_reduction(parameters, slots, kind, literal)
    }

    /// The plan with another modular reduction, whose depth must be the number of the parameters' primes for EvalMod.
    pub fn with_reduction(
        parameters: &Parameters,
        slots: usize,
        kind: SlotKind,
        literal: ModularReductionLiteral,
    ) -> Result<Self, CkksError> {
        let maximum_slots = parameters.maximum_slots();
        if !slots.is_power_of_two() || slots > maximum_slots {
            return Err(CkksError::Slots { slots, maximum: maximum_slots });
        }
        let reduction = ModularReduction::new(literal);
        let eval_mod = parameters.section(Section::EvalMod);
        let (stc_levels, cts_levels) =
            (parameters.section(Section::SlotsToCoeffs).len(), parameters.section(Section::CoeffsToSlots).len());
        if reduction.depth() != eval_mod.len() || stc_levels == 0 || cts_levels == 0 {
            return Err(CkksError::BootstrapLevels {
                name: parameters.name().to_owned(),
                eval_mod: reduction.depth(),
                eval_mod_found: eval_mod.len(),
                slots_to_coeffs_found: stc_levels,
                coeffs_to_slots_found: cts_levels,
            });
        }
        let eval_mod_level = eval_mod.end - 1;
        let output_level = eval_mod.start - 1;
        let primes = |level: usize| parameters.primes()[level] as f64;

        let mut available = BTreeSet::new();
        let packed = kind == SlotKind::Complex && slots < maximum_slots;
        let most = 1 << MAXIMUM_RAISED_BUTTERFLIES;
        let coefficients_to_slots = cts_factors(parameters, slots, reduction.range(), packed, &mut available)
            .ok_or(CkksError::Slots { slots, maximum: most })?;
        let slots_to_coefficients = stc_factors(parameters, slots, &reduction, &mut available);

        let series = EvaluationPlan::new(&Polynomial::chebyshev(reduction.series().to_vec()));
        let series_level = eval_mod_level - series.depth();
        // A double angle takes the scale s to s² / 2q: twice the prime stays what it is.
        let series_scale = 2.0 * primes(series_level);
        let sine_scale = (0..literal.double_angles as usize)
            .fold(series_scale, |scale, step| scale * scale / (2.0 * primes(series_level - step)));
        Ok(Self {
            slots,
            kind,
            maximum_slots,
            slots_to_coefficients,
            coefficients_to_slots,
            reduction,
            series,
            series_scale,
            sine_scale,
            eval_mod_level,
            output_level,
        })
    }

    /// Number of slots.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// What the slots hold.
    pub fn kind(&self) -> SlotKind {
        self.kind
    }

    /// Factors of SlotsToCoeffs, in the order in which they are applied. No mask and no magnitude.
    pub fn slots_to_coefficients(&self) -> &[Factor] {
        &self.slots_to_coefficients
    }

    /// Factors of CoeffsToSlots, in the order in which they are applied.
    pub fn coefficients_to_slots(&self) -> &[Factor] {
        &self.coefficients_to_slots
    }

    /// The modular reduction.
    pub fn reduction(&self) -> &ModularReduction {
        &self.reduction
    }

    /// The evaluation of the reduction's series.
    pub fn series(&self) -> &EvaluationPlan {
        &self.series
    }

    /// Scale of the series' value, before the double angles.
    pub fn series_scale(&self) -> f64 {
        self.series_scale
    }

    /// Scale of the sine, after the double angles.
    pub fn sine_scale(&self) -> f64 {
        self.sine_scale
    }

    /// Whether real and imaginary parts lie side by side in `2n` slots during EvalMod (complex and sparse).
    pub fn is_packed(&self) -> bool {
        self.kind == SlotKind::Complex && self.slots < self.maximum_slots
    }

    /// How often EvalMod runs: twice for all slots and complex numbers, else once.
    pub fn eval_mod_runs(&self) -> usize {
        if self.kind == SlotKind::Complex && self.slots == self.maximum_slots { 2 } else { 1 }
    }

    /// Level that the input is brought to.
    pub fn input_level(&self) -> usize {
        self.slots_to_coefficients.len()
    }

    /// Level after ModRaise.
    pub fn raised_level(&self) -> usize {
        self.eval_mod_level + self.coefficients_to_slots.len()
    }

    /// Level of EvalMod's input.
    pub fn eval_mod_level(&self) -> usize {
        self.eval_mod_level
    }

    /// Level of the result.
    pub fn output_level(&self) -> usize {
        self.output_level
    }

    /// Level of the sine, two above the result.
    pub fn sine_level(&self) -> usize {
        self.output_level + 2
    }

    /// The trace to the subring after the first factor of CoeffsToSlots, as sums with rotations that follow each other.
    pub fn trace(&self) -> Vec<Vec<usize>> {
        trace(self.maximum_slots, self.trace_period())
    }

    /// `log2` of what the trace multiplies slots by.
    pub fn log2_trace(&self) -> u32 {
        (self.maximum_slots / self.trace_period()).trailing_zeros()
    }

    /// Level of the trace: after the rescale of the first factor, unless that is the only one.
    pub fn trace_level(&self) -> usize {
        self.raised_level() - usize::from(self.coefficients_to_slots.len() > 1)
    }

    fn trace_period(&self) -> usize {
        trace_period(self.slots, self.is_packed(), self.coefficients_to_slots.len())
    }

    /// The keys that a bootstrap needs.
    pub fn key_manifest(&self) -> KeyManifest {
        let mut manifest = KeyManifest::default();
        if let Some((first, rest)) = self.coefficients_to_slots.split_first() {
            manifest.require_encapsulation(first.steps.babies(), first.level);
            for factor in self.slots_to_coefficients.iter().chain(rest) {
                for rotation in factor.steps.rotations() {
                    manifest.require_rotation(rotation, [factor.level]);
                }
            }
        }
        for rotation in self.trace().into_iter().flatten() {
            manifest.require_rotation(rotation, [self.trace_level()]);
        }
        if self.is_packed() {
            manifest.require_rotation(self.slots, [self.output_level + 1]);
        }
        manifest.require_conjugation([self.eval_mod_level + 1]);
        manifest.require_relinearisation(self.output_level + 1..=self.eval_mod_level);
        manifest
    }
}

/// The period of slots that the trace leaves. A single factor that writes both parts side by side takes the last step of the
/// trace itself, for its diagonals do not have the period of its input.
fn trace_period(slots: usize, packed: bool, factors: usize) -> usize {
    if packed && factors == 1 { 2 * slots } else { slots }
}

/// Sums of a vector with its rotations by multiples of `period`, doublings taken by two, an odd one with two others.
fn trace(maximum_slots: usize, period: usize) -> Vec<Vec<usize>> {
    let mut doublings = (maximum_slots / period).trailing_zeros();
    let (mut step, mut sums) = (period, Vec::new());
    while doublings > 0 {
        let together = if doublings == 3 { 3 } else { doublings.min(2) };
        sums.push((1..1 << together).map(|multiple| multiple * step).collect());
        step <<= together;
        doublings -= together;
    }
    sums
}

/// Most butterflies in the first factor, whose diagonals and keys number `2^this`: each takes the memory of 31 limbs.
const MAXIMUM_RAISED_BUTTERFLIES: usize = 6;

/// The cheapest split of CoeffsToSlots into factors: their butterflies, smallest stride first. The first to be applied, of
/// the largest stride, acts on what ModRaise returns. `None` if so many slots need more factors than there are primes.
fn cts_split(parameters: &Parameters, slots: usize, packed: bool) -> Option<Vec<usize>> {
    let butterflies = slots.trailing_zeros() as usize;
    let bottom = parameters.section(Section::EvalMod).end;
    let mut best: Option<(f64, Vec<usize>)> = None;
    for count in 1..=parameters.section(Section::CoeffsToSlots).len().min(butterflies.max(1)) {
        for raised in butterflies.min(1)..=butterflies.min(MAXIMUM_RAISED_BUTTERFLIES) {
            if (count == 1) != (raised == butterflies) || butterflies - raised < count - 1 {
                continue;
            }
            let mut split = if count == 1 { Vec::new() } else { radix_split(butterflies - raised, count - 1) };
            let at = |level: usize| OperationCosts::new(parameters, level);
            let top = bottom + count - 1;
            let period = trace_period(slots, packed, count);
            let mut cost = at(top).raised_linear((1 << raised) * period / slots);
            for sum in trace(parameters.maximum_slots(), period) {
                cost += at(top - usize::from(count > 1)).sum_with_rotations(sum.len());
            }
            for (factor, butterflies) in split.iter().rev().enumerate() {
                let offsets: BTreeSet<usize> = (1..2 << butterflies).collect();
                let steps = StepPlan::new(&offsets, 4 << butterflies, &BTreeSet::new(), KEY_COST, Hoisting::Double);
                let (babies, giants) = steps.rotation_counts();
                cost += at(top - 1 - factor).linear(offsets.len(), babies, giants, true);
            }
            split.push(raised);
            let units = cost.ntt_units();
            if best.as_ref().is_none_or(|(least, _)| units < *least) {
                best = Some((units, split));
            }
        }
    }
    best.map(|(_, split)| split)
}

/// CoeffsToSlots carries the constant that makes coefficients `t` the argument `x = t / range` of EvalMod; taking a real part
/// as `u + conj(u)` doubles them. What the trace multiplies by, the scale after the first factor is multiplied by as well; it
/// is taken back by the diagonals' scale of the factor after the trace, or of the only one.
fn cts_factors(
    parameters: &Parameters,
    slots: usize,
    range: f64,
    packed: bool,
    available: &mut BTreeSet<usize>,
) -> Option<Vec<Factor>> {
    let split = cts_split(parameters, slots, packed)?;
    let mut matrices = coefficients_to_slots(slots, &split);
    let count = matrices.len();
    let share = (0.5 / range).powf(1.0 / count as f64);
    for matrix in &mut matrices {
        *matrix = matrix.scale(share);
    }
    if packed && let Some(last) = matrices.last_mut() {
        *last = last.stack(-Complex64::I);
        if count == 1 {
            // The fold doubles as a step of the trace would.
            *last = last.fold_input().scale(0.5);
        }
    }
    let top = parameters.section(Section::EvalMod).end - 1 + count;
    let levels: Vec<usize> = (0..count).map(|f| top - f).collect();
    let mut scales: Vec<f64> = levels.iter().map(|&level| parameters.primes()[level] as f64).collect();
    scales[1.min(count - 1)] /= (parameters.maximum_slots() / trace_period(slots, packed, count)) as f64;
    // From the scale q_0 to that of EvalMod's primes, which keeps the powers of its argument at one scale.
    scales[count - 1] *= parameters.primes()[top - count] as f64 / parameters.primes()[0] as f64;
    let raised = matrices.remove(0);
    let steps = StepPlan::direct(raised.diagonals().keys().copied());
    let special = parameters.raised_gadget().special;
    let first = Factor { matrix: raised, steps, level: top, scale: scales[0], special };
    let special = |level: usize| parameters.gadget(level).special;
    let rest = factors(matrices, &levels[1..], &scales[1..], special, Hoisting::Double, available);
    Some(std::iter::once(first).chain(rest).collect())
}

fn stc_factors(
    parameters: &Parameters,
    slots: usize,
    reduction: &ModularReduction,
    available: &mut BTreeSet<usize>,
) -> Vec<Factor> {
    let matrices = slots_to_coefficients(slots, parameters.section(Section::SlotsToCoeffs).len());
    let count = matrices.len();
    let primes = |level: usize| parameters.primes()[level] as f64;
    // From the canonical scale down to q_0 / 2^r, over `count` products and rescales.
    let target = primes(0) / f64::from(reduction.literal().log2_message_ratio).exp2();
    let consumed: f64 = (1..=count).map(primes).product();
    let scale = (target * consumed / parameters.canonical_scale(count)).powf(1.0 / count as f64);
    let levels: Vec<usize> = (0..count).map(|f| count - f).collect();
    factors(matrices, &levels, &vec![scale; count], |_| 0, Hoisting::Single, available)
}

/// Plans the steps of every factor, those of small stride first, each making its rotations available to the next.
fn factors(
    matrices: Vec<DiagonalMatrix>,
    levels: &[usize],
    scales: &[f64],
    special: impl Fn(usize) -> usize,
    hoisting: Hoisting,
    available: &mut BTreeSet<usize>,
) -> Vec<Factor> {
    let offsets = |matrix: &DiagonalMatrix| matrix.diagonals().keys().copied().collect::<BTreeSet<_>>();
    let mut order: Vec<usize> = (0..matrices.len()).collect();
    order.sort_by_key(|&f| offsets(&matrices[f]).into_iter().find(|&offset| offset != 0));
    let mut steps: Vec<Option<StepPlan>> = vec![None; matrices.len()];
    for f in order {
        let plan = StepPlan::new(&offsets(&matrices[f]), matrices[f].slots(), available, KEY_COST, hoisting);
        available.extend(plan.rotations());
        steps[f] = Some(plan);
    }
    matrices
        .into_iter()
        .zip(steps.into_iter().flatten())
        .zip(levels.iter().zip(scales))
        .map(|((matrix, steps), (&level, &scale))| Factor { matrix, steps, level, scale, special: special(level) })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(preset: &str, slots: usize, kind: SlotKind) -> BootstrapPlan {
        BootstrapPlan::new(&Parameters::preset(preset).unwrap(), slots, kind).unwrap()
    }

    #[test]
    fn levels_are_those_of_the_preset() {
        let plan = plan("n16", 1 << 12, SlotKind::Complex);
        assert_eq!((plan.input_level(), plan.output_level()), (3, 16));
        assert_eq!(plan.raised_level(), 26 + plan.coefficients_to_slots().len());
        assert!(plan.is_packed());
        assert_eq!(plan.eval_mod_runs(), 1);
        let few = super::tests::plan("n16", 2, SlotKind::Real);
        assert_eq!((few.input_level(), few.output_level(), few.raised_level()), (1, 16, 27));
    }

    #[test]
    fn few_slots_take_few_factors() {
        let split = |log2_slots: u32| {
            let plan = plan("n16", 1 << log2_slots, SlotKind::Real);
            plan.coefficients_to_slots().iter().map(|factor| factor.matrix.diagonals().len()).collect::<Vec<_>>()
        };
        assert_eq!([15, 12, 6, 1].map(split), [vec![32, 63, 63], vec![32, 31, 15], vec![16, 7], vec![2]]);
    }

    #[test]
    fn the_trace_reaches_every_multiple_of_the_period_once() {
        for (period, doublings) in [(1 << 15, 0), (1 << 14, 1), (1 << 12, 3), (1 << 6, 9)] {
            let mut reached = BTreeSet::from([0]);
            for sum in trace(1 << 15, period) {
                let turned: Vec<usize> = reached.iter().flat_map(|r| sum.iter().map(move |by| r + by)).collect();
                let count = reached.len() + turned.len();
                reached.extend(turned);
                assert_eq!(reached.len(), count);
            }
            assert!(reached.iter().all(|rotation| rotation % period == 0));
            assert_eq!(reached.len(), 1 << doublings);
        }
    }

    #[test]
    fn factors_share_rotations() {
        let keys = |slots| {
            let plan = plan("n16", slots, SlotKind::Complex);
            let [_, rest @ ..] = plan.coefficients_to_slots() else { panic!("no factor") };
            rest.iter().flat_map(|factor| factor.steps.rotations()).collect::<BTreeSet<_>>().len()
        };
        assert!(keys(1 << 12) <= 30, "{}", keys(1 << 12));
        assert!(keys(1 << 15) <= 36, "{}", keys(1 << 15));
    }

    #[test]
    fn slots_to_coefficients_arrives_at_the_message_ratio() {
        let parameters = Parameters::preset("n16").unwrap();
        let plan = plan("n16", 1 << 10, SlotKind::Real);
        let mut scale = parameters.canonical_scale(plan.input_level());
        for factor in plan.slots_to_coefficients() {
            scale *= factor.scale / parameters.primes()[factor.level] as f64;
        }
        let ratio = parameters.primes()[0] as f64 / scale;
        assert!((ratio / 128.0 - 1.0).abs() < 1e-12, "{ratio}");
    }

    #[test]
    fn too_many_slots_are_refused() {
        let parameters = Parameters::preset("insecure-test").unwrap();
        for slots in [3, 1 << 12] {
            assert!(matches!(BootstrapPlan::new(&parameters, slots, SlotKind::Real), Err(CkksError::Slots { .. })));
        }
    }
}
