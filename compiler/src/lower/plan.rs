//! Which function is approximated where, on which range, and the constants that ride along.
//!
//! Every polynomial gets its argument in [-1, 1]: the factor 1/half of its [`Affine`] map rides on the weights, rotary
//! constants, coefficients or masks ahead of it, and the shift is a plaintext summand. With σ the scale of the residual
//! stream at a norm (the program holds σ·x there), d the width and k the squarings of a softmax:
//!
//! | site | argument x | where 1/half rides |
//! |---|---|---|
//! | norm | mean square | σ: σ²·d·half = 1. From one norm to the next σ changes by a factor of the refresh between them |
//! | scores | scaled scores | rotary constants of q |
//! | sum j < k | Σ y_j over a row | coefficients of what makes y_j: the exponential, or the rough reciprocal of sum j − 1 |
//! | denominator | Σ y_k over a row | coefficients of what makes y_k |
//! | gate | the gate's entries | W_gate |
//!
//! Softmax is by normalising and squaring (arXiv 2410.11184): y_0 = exp((x − c)/2^k), itself a square or a fourth power where
//! scores spread far ([`Exponential`]), y_{j+1} = (y_j·r_j)² with r_j a
//! rough reciprocal of Σ y_j, and the result is y_k / Σ y_k, whose division is delayed until after the mix. Errors of
//! r_j cancel, as numerator and denominator carry the same factor. As sums grow with the number of tokens, y_j also carries
//! a power of the position plus one, which narrows the ranges of the sums and rides on the coefficients' mask. The norm's result is x/(√d·rms), at most 1, and
//! √d rides on the weights that follow; the gated product is divided by its bound, which rides on W_down.

use std::collections::{BTreeMap, BTreeSet};

use cachemir_ir::tensor::{Hyperparameters, Range};
use rayon::prelude::*;

use super::roles::Roles;
use super::{LowerOptions, Site, assumed, derived, softmax};
use crate::approximate::{self, Affine, Approximation, Function, Measure};

/// By which factor an error may exceed the one that was asked for, where the largest degree does not give that.
pub(super) const TOLERATED: f64 = 10.0;

/// What was seen at a site.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct SiteRange {
    /// Slots that matter, in text: decides the depth.
    pub(super) text: Range,
    /// Slots that matter, with everyday prompts.
    pub(super) everyday: Range,
    /// Slots that matter, with tokens that are rare in text.
    pub(super) rare: Range,
    /// All slots.
    pub(super) all: Range,
    /// What the weights allow for slots that matter, where that is known.
    pub(super) derived: Option<Range>,
}

impl SiteRange {
    /// What was seen of the slots that matter, in text, in everyday prompts and with tokens that are rare in text.
    pub(super) fn of([text, everyday, rare]: [Range; 3]) -> Self {
        Self { text, everyday, rare, all: text, derived: None }
    }

    /// Text, then with everyday prompts, then with rare tokens, each with its margin and holding the one before.
    pub(super) fn tiers(&self, options: &LowerOptions) -> [Range; 3] {
        let text = self.text.widened_ratio(options.margin);
        let everyday = text.union(self.everyday.widened_ratio(options.further_margin));
        [text, everyday, everyday.union(self.rare.widened_ratio(options.further_margin))]
    }
}

/// Ranges of all sites.
pub(super) type SiteRanges = BTreeMap<Site, SiteRange>;

/// What is known about a layer's softmax ahead of everything else.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SoftmaxPlan {
    /// The score c whose exponential is 1.
    pub(super) reference: f64,
    /// What keys are stored less of, `[kv_heads][head_dim]` (see [`super::reference`]): scores are those with the others. Empty
    /// where they are stored whole.
    pub(super) reference_keys: Vec<f32>,
    /// For y_0, …, y_k: the power of the position plus one that they carry. There are k ≥ 1 squarings.
    pub(super) exponents: Vec<f64>,
}

impl SoftmaxPlan {
    /// Squarings k.
    pub(super) fn squarings(&self) -> usize {
        self.exponents.len() - 1
    }

    /// The reference keys, `[kv_heads][head_dim]`; zeros where keys are stored whole.
    pub(super) fn keys(&self, model: &Hyperparameters) -> Vec<f32> {
        let mut keys = self.reference_keys.clone();
        keys.resize(model.kv_heads * model.head_dim, 0.0);
        keys
    }
}

/// A function and the polynomial that stands for it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Step {
    /// The site.
    pub(super) site: Site,
    /// The function of x.
    pub(super) function: Function,
    /// From the polynomial's argument to x.
    pub(super) affine: Affine,
    /// The polynomial.
    pub(super) approximation: Approximation,
    /// The largest error of the approximation, by its measure, that a program may have.
    pub(super) tolerated: f64,
    /// What the weights alone allow x to be in slots that matter, where that is known.
    pub(super) derived: Option<Range>,
}

impl Step {
    /// Levels that the polynomial takes.
    pub(super) fn depth(&self) -> u32 {
        cachemir_ir::ckks::polynomial_depth(self.approximation.polynomial.degree())
    }
}

/// The exponential of scores: y_0 is the value of a polynomial, squared as often as there are doublings.
///
/// A polynomial whose value at one end is far beyond 1 has large coefficients, whose noise drowns small values; squares of
/// smaller values have noise in proportion to their size, at the same depth.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Exponential {
    /// The root of y_0: the function of the argument over 2^`doublings`. Its error is that of y_0.
    pub(super) step: Step,
    /// m, how often the argument is doubled by squaring the value.
    pub(super) doublings: u32,
}

impl Exponential {
    /// Levels that y_0 takes.
    pub(super) fn depth(&self) -> u32 {
        self.step.depth() + self.doublings
    }

    /// Largest error of y_0 up to 1, with that of rounding under encryption in the smallest sum of a row.
    pub(super) fn error(&self) -> f64 {
        self.step.approximation.error
    }
}

/// The approximations of one layer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LayerPlan {
    /// Squarings and reference.
    pub(super) softmax: SoftmaxPlan,
    /// Exponential of the scores.
    pub(super) exponential: Exponential,
    /// Rough reciprocals, one a squaring.
    pub(super) rough: Vec<Step>,
    /// Reciprocal of the denominator.
    pub(super) reciprocal: Step,
    /// Whether a step y ← y·(2 − a·y) follows, merged with the product by the numerator.
    pub(super) newton: bool,
    /// SiLU of the gate; its factor makes the result at most 1.
    pub(super) silu: Step,
    /// Bound of the up-projection, divided out of W_up and multiplied into W_down.
    pub(super) up_bound: f64,
}

impl LayerPlan {
    /// The sites whose ranges decide a layer's plan.
    fn sites(layer: usize, softmax: &SoftmaxPlan) -> impl Iterator<Item = Site> {
        let sums = (0..softmax.squarings()).map(move |stage| Site::Sum { layer, stage });
        let [scores, last] = [Site::Scores { layer }, Site::Denominator { layer }];
        sums.chain([scores, last, Site::Gate { layer }, Site::Up { layer }])
    }

    /// The same plan for a layer with the same ranges.
    fn of_layer(mut self, layer: usize) -> Self {
        self.exponential.step.site = Site::Scores { layer };
        for (stage, step) in self.rough.iter_mut().enumerate() {
            step.site = Site::Sum { layer, stage };
        }
        self.reciprocal.site = Site::Denominator { layer };
        self.silu.site = Site::Gate { layer };
        self
    }

    /// What the coefficients of the polynomial that makes y_stage are multiplied by at a position: as high a root of the power
    /// as the polynomial's value is of y_stage.
    pub(super) fn softmax_scale(&self, stage: usize, position: usize) -> f64 {
        let squarings = if stage == 0 { self.exponential.doublings } else { 1 };
        (position as f64 + 1.0).powf(self.softmax.exponents[stage] / f64::from(1u32 << squarings))
    }
}

/// The approximations of a program.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    /// √d.
    root_width: f64,
    /// All norms but the first, which acts on embeddings and is the client's.
    norms: Vec<Step>,
    /// By norm: one level deeper, where everyday prompts lead out of what that of the least depth covers, with the share of
    /// these prompts that it brings in.
    further: Vec<Option<(Step, f64)>>,
    /// The layers.
    pub(super) layers: Vec<LayerPlan>,
}

impl Plan {
    /// A plan with identity maps and polynomials of degree 0: for running the program with exact functions.
    pub(super) fn provisional(model: &Hyperparameters, roles: &Roles, softmaxes: &[SoftmaxPlan]) -> Self {
        let step = |site: Site, function: Function| Step {
            site,
            function,
            affine: Affine::IDENTITY,
            approximation: Approximation {
                polynomial: approximate::interpolate(|_| 0.0, 0),
                error: 0.0,
                accurate: [-1.0, 1.0],
            },
            tolerated: f64::INFINITY,
            derived: None,
        };
        let norm = |(index, norm): (usize, &super::roles::Norm)| {
            step(Site::Norm { index }, Function::InverseSquareRoot { epsilon: norm.epsilon, factor: 1.0 })
        };
        let layer = |(layer, softmax): (usize, &SoftmaxPlan)| LayerPlan {
            softmax: softmax.clone(),
            exponential: Exponential { step: step(Site::Scores { layer }, exponential(softmax, 1.0, 0)), doublings: 0 },
            rough: (0..softmax.squarings())
                .map(|stage| step(Site::Sum { layer, stage }, Function::Reciprocal { factor: 1.0 }))
                .collect(),
            reciprocal: step(Site::Denominator { layer }, Function::Reciprocal { factor: 1.0 }),
            newton: false,
            silu: step(Site::Gate { layer }, Function::Silu { factor: 1.0 }),
            up_bound: 1.0,
        };
        Self {
            root_width: (model.hidden as f64).sqrt(),
            norms: roles.norms.iter().enumerate().skip(1).map(norm).collect(),
            further: Vec::new(),
            layers: softmaxes.iter().enumerate().map(layer).collect(),
        }
    }

    /// Chooses approximations on the ranges that were seen, widened by the margin of the options.
    pub(super) fn new(
        model: &Hyperparameters,
        roles: &Roles,
        softmaxes: &[SoftmaxPlan],
        ranges: &SiteRanges,
        everyday: &[Vec<Range>],
        options: &LowerOptions,
    ) -> Self {
        let root_width = (model.hidden as f64).sqrt();
        let of = |site: Site| ranges.get(&site).copied().unwrap_or_else(|| assumed::range(site, model.context));

        let keys: Vec<(SiteRange, f64)> =
            (1..).zip(&roles.norms[1..]).map(|(index, norm)| (of(Site::Norm { index }), norm.epsilon)).collect();
        let root = |key: usize, least_depth: u32| {
            let (site, epsilon) = keys[key];
            let affine = Affine::onto(0.0, (1.0 + options.sane_margin) * site.rare.max.max(site.text.max));
            // The norm's result is x/(√d·rms(x)), and √d·σ is 1/√half.
            let function = Function::InverseSquareRoot { epsilon, factor: affine.half.sqrt() };
            let ranges = site.tiers(options).map(|range| [range.min, range.max]);
            let demand = approximate::RootDemand { ranges, error: options.norm_error, least_depth };
            (function, affine, approximate::inverse_root(function, affine, demand))
        };
        let norm = |(key, found): (usize, (Function, Affine, Approximation))| {
            let index = key + 1;
            let step = |(function, affine, approximation): (Function, Affine, Approximation)| {
                let tolerated = TOLERATED * options.norm_error.needed;
                Step { site: Site::Norm { index }, function, affine, approximation, tolerated, derived: None }
            };
            let least = step(found);
            let covers = |step: &Step, range: &Range| {
                let [low, high] = step.approximation.accurate;
                low <= range.min && range.max <= high
            };
            let missed: Vec<&Range> =
                everyday.iter().map(|prompt| &prompt[index]).filter(|range| !covers(&least, range)).collect();
            let further = (!missed.is_empty()).then(|| step(root(key, least.depth() + 1))).map(|step| {
                let gained = missed.iter().filter(|range| covers(&step, range)).count();
                (step, gained as f64 / everyday.len() as f64)
            });
            (least, further)
        };
        let roots = once_for_equal(&keys, |key| root(key, 0));
        let (norms, further) = roots.into_par_iter().enumerate().map(norm).unzip();
        let key = |(layer, softmax)| (softmax, LayerPlan::sites(layer, softmax).map(of).collect::<Vec<_>>());
        let keys: Vec<(&SoftmaxPlan, Vec<SiteRange>)> = softmaxes.iter().enumerate().map(key).collect();
        let plans = once_for_equal(&keys, |layer| layer_plan(layer, &softmaxes[layer], &of, options));
        let layers = plans.into_iter().enumerate().map(|(layer, plan)| plan.of_layer(layer)).collect();
        Self { root_width, norms, further, layers }
    }

    /// σ at a norm: the program holds the residual stream times this. All slots of a stream whose mean square lies in
    /// the norm's interval are at most √2. The first norm, of the embedding, is the client's.
    pub(super) fn residual_scale(&self, index: usize) -> f64 {
        1.0 / (self.root_width * self.norm(index.max(1)).affine.half.sqrt())
    }

    /// A norm other than the first.
    pub(super) fn norm(&self, index: usize) -> &Step {
        &self.norms[index - 1]
    }

    /// Deeper steps that reach further, with the share of everyday prompts that each brings in.
    pub(super) fn further(&self) -> impl Iterator<Item = &(Step, f64)> {
        self.further.iter().flatten()
    }

    /// All steps in the order of the decoder.
    pub(super) fn steps(&self) -> Vec<&Step> {
        let mut steps = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            if index > 0 {
                steps.push(self.norm(2 * index));
            }
            steps.push(&layer.exponential.step);
            steps.extend(&layer.rough);
            steps.push(&layer.reciprocal);
            steps.push(self.norm(2 * index + 1));
            steps.push(&layer.silu);
        }
        steps.extend(self.norms.last());
        steps
    }
}

impl Plan {
    /// What is known of every step, in the order of the decoder.
    pub(super) fn report(&self) -> Vec<cachemir_ir::plan::Approximation> {
        self.steps().into_iter().map(|step| self.describe(step)).collect()
    }

    /// What is known of a step.
    pub(super) fn describe(&self, step: &Step) -> cachemir_ir::plan::Approximation {
        let newton = matches!(step.site, Site::Denominator { layer } if self.layers[layer].newton);
        let doublings = match step.site {
            Site::Scores { layer } => self.layers[layer].exponential.doublings,
            _ => 0,
        };
        let (method, measure) = match step.function {
            Function::InverseSquareRoot { .. } => ("weighted minimax", Measure::Relative),
            Function::Reciprocal { .. } if newton => ("minimax, Newton step", Measure::Relative),
            Function::Reciprocal { .. } => ("minimax", Measure::Relative),
            Function::Exponential { .. } if doublings == 1 => ("Chebyshev, squared", Measure::Absolute),
            Function::Exponential { .. } if doublings == 2 => ("Chebyshev, 4th power", Measure::Absolute),
            Function::Exponential { .. } | Function::Silu { .. } => ("Chebyshev", Measure::Absolute),
        };
        let degree = step.approximation.polynomial.degree();
        let error = step.approximation.error;
        cachemir_ir::plan::Approximation {
            site: step.site.to_string(),
            function: step.function.to_string(),
            method: method.to_owned(),
            accurate: step.approximation.accurate,
            sane: [-1.0, 1.0].map(|end| step.affine.argument(end)),
            derived: step.derived.map(|range| [range.min, range.max]),
            degree: degree as u32,
            depth: cachemir_ir::ckks::polynomial_depth(degree) + u32::from(newton) + doublings,
            // A Newton step squares the relative error.
            max_error: if newton { error * error } else { error },
            measure,
            cancels: matches!(step.site, Site::Sum { .. }),
            escape_proof: step.derived.is_some_and(|range| derived::holds(step, range)),
            checked: !matches!(step.site, Site::Scores { .. } | Site::Gate { .. } | Site::Up { .. }),
        }
    }
}

/// What, squared `doublings` times, is y_0 times a factor.
pub(super) fn exponential(softmax: &SoftmaxPlan, factor: f64, doublings: u32) -> Function {
    let power = f64::from(1u32 << doublings);
    let divisor = f64::from(1u32 << softmax.squarings()) * power;
    Function::Exponential { reference: softmax.reference, divisor, factor: factor.powf(1.0 / power) }
}

fn layer_plan(
    layer: usize,
    softmax: &SoftmaxPlan,
    of: &dyn Fn(Site) -> SiteRange,
    options: &LowerOptions,
) -> LayerPlan {
    let softmax::Steps { exponential, rough, reciprocal, newton } = softmax::steps(layer, softmax, of, options);
    let seen = of(Site::Gate { layer });
    let fitted = |bound: f64| {
        let (function, map) = (Function::Silu { factor: 1.0 / bound }, Affine { centre: 0.0, half: bound });
        let target = options.silu_error.times(1.0 / bound);
        Step {
            site: Site::Gate { layer },
            function,
            affine: map,
            approximation: approximate::fit(function, map, target, Measure::Absolute),
            tolerated: TOLERATED * target.needed,
            derived: seen.derived,
        }
    };
    let bound = |seen: SiteRange| seen.rare.union(seen.all).max_abs() * (1.0 + options.margin);
    let calibrated = fitted(bound(seen));
    // All that the weights allow, in all slots or in those that matter, where that takes no further level.
    let reaches = [derived::JUNK, 1.0].into_iter().filter_map(|factor| Some(factor * seen.derived?.max_abs()));
    let wider = reaches.map(|reach| fitted(reach.max(bound(seen)))).find(|step| step.depth() <= calibrated.depth());
    let silu = wider.unwrap_or(calibrated);
    let up = of(Site::Up { layer });
    let up_bound = up.derived.map_or(0.0, |range| derived::JUNK * range.max_abs()).max(bound(up));
    LayerPlan { softmax: softmax.clone(), exponential, rough, reciprocal, newton, silu, up_bound }
}

/// What `find` gives for the number of each key, found once for equal ones: layers of which nothing else is known than
/// their shape are alike.
fn once_for_equal<K: PartialEq, V: Clone + Send>(keys: &[K], find: impl Fn(usize) -> V + Sync) -> Vec<V> {
    let first = |(index, key)| keys.iter().position(|known| known == key).unwrap_or(index);
    let firsts: Vec<usize> = keys.iter().enumerate().map(first).collect();
    let distinct: BTreeSet<usize> = firsts.iter().copied().collect();
    let found: BTreeMap<usize, V> = distinct.into_par_iter().map(|index| (index, find(index))).collect();
    firsts.iter().map(|index| found[index].clone()).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::once_for_equal;

    #[test]
    fn what_is_alike_is_found_once() {
        let calls = AtomicUsize::new(0);
        let find = |index: usize| {
            calls.fetch_add(1, Ordering::Relaxed);
            10 * index
        };
        assert_eq!(once_for_equal(&["a", "b", "a", "a", "b", "c"], find), [0, 10, 0, 0, 10, 50]);
        assert_eq!(calls.into_inner(), 3);
    }
}
