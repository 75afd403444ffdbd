//! Which function is approximated where, on which range, and the constants that ride along.
//!
//! Every polynomial gets its argument in [-1, 1]: the factor 1/half of its [`Affine`] map rides on the weights, rotary
//! constants, coefficients or masks ahead of it, and the shift is a plaintext summand. With σ the scale of the residual
//! stream (the program holds σ·x), d the width and k the squarings of a softmax:
//!
//! | site | argument x | where 1/half rides |
//! |---|---|---|
//! | norm | mean square | σ: σ²·d·half = 1; or a product of its own where norms differ much |
//! | scores | scaled scores | rotary constants of q |
//! | sum j < k | Σ y_j over a row | coefficients of what makes y_j: the exponential, or the rough reciprocal of sum j − 1 |
//! | denominator | Σ y_k over a row | coefficients of what makes y_k |
//! | gate | the gate's entries | W_gate |
//!
//! Softmax is by normalising and squaring (arXiv 2410.11184): y_0 = exp((x − c)/2^k), y_{j+1} = (y_j·r_j)² with r_j a
//! rough reciprocal of Σ y_j, and the result is y_k / Σ y_k, whose division is delayed until after the mix. Errors of
//! r_j cancel, as numerator and denominator carry the same factor. As sums grow with the number of tokens, y_j also carries
//! a power of the position plus one, which narrows the ranges of the sums and rides on the coefficients' mask. The norm's result is x/(√d·rms), at most 1, and
//! √d rides on the weights that follow; the gated product is divided by its bound, which rides on W_down.

use std::collections::BTreeMap;

use cachemir_ir::tensor::{Hyperparameters, Range};

use super::roles::Roles;
use super::{LowerOptions, Site};
use crate::approximate::{self, Affine, Approximation, Function, Measure};

/// What was seen at a site.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct SiteRange {
    /// Slots that matter, in text.
    pub(super) common: Range,
    /// Slots that matter, with tokens that are rare in text.
    pub(super) rare: Range,
    /// All slots.
    pub(super) all: Range,
    /// What the weights allow for slots that matter, where that is known.
    pub(super) derived: Option<Range>,
}

/// Ranges of all sites.
pub(super) type SiteRanges = BTreeMap<Site, SiteRange>;

/// What is known about a layer's softmax ahead of everything else.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SoftmaxPlan {
    /// The score c whose exponential is 1.
    pub(super) reference: f64,
    /// For y_0, …, y_k: the power of the position plus one that they carry. There are k ≥ 1 squarings.
    pub(super) exponents: Vec<f64>,
}

impl SoftmaxPlan {
    /// Squarings k.
    pub(super) fn squarings(&self) -> usize {
        self.exponents.len() - 1
    }

    /// What the coefficients of the polynomial that makes y_stage are multiplied by at a position. The rough reciprocal
    /// ahead of a squaring carries the square root of the power.
    pub(super) fn scale(&self, stage: usize, position: usize) -> f64 {
        let exponent = self.exponents[stage] * if stage == 0 { 1.0 } else { 0.5 };
        (position as f64 + 1.0).powf(exponent)
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
}

/// The approximations of one layer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LayerPlan {
    /// Squarings and reference.
    pub(super) softmax: SoftmaxPlan,
    /// Exponential of the scores.
    pub(super) exponential: Step,
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

/// The approximations of a program.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    /// σ: the program holds the residual stream times this.
    pub(super) residual_scale: f64,
    /// All norms but the first, which acts on embeddings and is the client's.
    norms: Vec<Step>,
    /// The layers.
    pub(super) layers: Vec<LayerPlan>,
}

impl Plan {
    /// A plan with identity maps and polynomials of degree 0: for running the program with exact functions.
    pub(super) fn provisional(model: &Hyperparameters, roles: &Roles, softmaxes: &[SoftmaxPlan]) -> Self {
        let root_width = (model.hidden as f64).sqrt();
        let step = |site: Site, function: Function| Step {
            site,
            function,
            affine: Affine::IDENTITY,
            approximation: Approximation {
                polynomial: approximate::interpolate(|_| 0.0, 0),
                error: 0.0,
                accurate: [-1.0, 1.0],
            },
        };
        let norm = |(index, norm): (usize, &super::roles::Norm)| {
            step(Site::Norm { index }, Function::InverseSquareRoot { epsilon: norm.epsilon, factor: 1.0 })
        };
        let layer = |(layer, softmax): (usize, &SoftmaxPlan)| LayerPlan {
            softmax: softmax.clone(),
            exponential: step(Site::Scores { layer }, exponential(softmax, 1.0)),
            rough: (0..softmax.squarings())
                .map(|stage| step(Site::Sum { layer, stage }, Function::Reciprocal { factor: 1.0 }))
                .collect(),
            reciprocal: step(Site::Denominator { layer }, Function::Reciprocal { factor: 1.0 }),
            newton: false,
            silu: step(Site::Gate { layer }, Function::Silu { factor: 1.0 }),
            up_bound: 1.0,
        };
        Self {
            residual_scale: 1.0 / root_width,
            norms: roles.norms.iter().enumerate().skip(1).map(norm).collect(),
            layers: softmaxes.iter().enumerate().map(layer).collect(),
        }
    }

    /// Chooses approximations on the ranges that were seen, widened by the margin of the options.
    pub(super) fn new(
        model: &Hyperparameters,
        roles: &Roles,
        softmaxes: &[SoftmaxPlan],
        ranges: &SiteRanges,
        options: &LowerOptions,
    ) -> Self {
        let root_width = (model.hidden as f64).sqrt();
        let ratio = |range: Range| range.widened_ratio(options.margin);
        let of = |site: Site| ranges.get(&site).copied().unwrap_or_else(|| assumed(site));

        // Norms: one interval from 0 on for all, so that one scale of the residual stream serves all of them.
        let sane = |index: usize| {
            let site = of(Site::Norm { index });
            (1.0 + options.sane_margin) * site.rare.max.max(site.common.max)
        };
        let width = (1..roles.norms.len()).map(sane).fold(0.0, f64::max);
        let residual_scale = (2.0 / width).sqrt() / root_width;
        let norm = |(index, norm): (usize, &super::roles::Norm)| {
            let function =
                Function::InverseSquareRoot { epsilon: norm.epsilon, factor: 1.0 / (root_width * residual_scale) };
            let site = of(Site::Norm { index });
            let (common, rare) = (ratio(site.common), ratio(site.common.union(site.rare)));
            let demand = approximate::RootDemand {
                common: [common.min, common.max],
                rare: [rare.min, rare.max],
                error: options.norm_error,
                rare_error: options.rare_norm_error,
                accurate_error: options.accurate_norm_error,
            };
            let with = |affine: Affine| Step {
                site: Site::Norm { index },
                function,
                affine,
                approximation: approximate::inverse_root(function, affine, demand),
            };
            let depth = |step: &Step| cachemir_ir::ckks::polynomial_depth(step.approximation.polynomial.degree());
            let shared = with(Affine::onto(0.0, width));
            let own = with(Affine::onto(0.0, sane(index)));
            // An interval of its own costs a product and its level.
            let worth = match (depth(&own) + 1).cmp(&depth(&shared)) {
                std::cmp::Ordering::Less => true,
                std::cmp::Ordering::Equal => false,
                std::cmp::Ordering::Greater => shared.approximation.error > options.norm_error,
            };
            if worth { own } else { shared }
        };
        let norms = roles.norms.iter().enumerate().skip(1).map(norm).collect();
        let layers = softmaxes.iter().enumerate().map(|(layer, softmax)| layer_plan(layer, softmax, &of, options));
        Self { residual_scale, norms, layers: layers.collect() }
    }

    /// A norm other than the first.
    pub(super) fn norm(&self, index: usize) -> &Step {
        &self.norms[index - 1]
    }

    /// All steps in the order of the decoder.
    pub(super) fn steps(&self) -> Vec<&Step> {
        let mut steps = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            if index > 0 {
                steps.push(self.norm(2 * index));
            }
            steps.push(&layer.exponential);
            steps.extend(&layer.rough);
            steps.push(&layer.reciprocal);
            steps.push(self.norm(2 * index + 1));
            steps.push(&layer.silu);
        }
        steps.extend(self.norms.last());
        steps
    }
}

fn exponential(softmax: &SoftmaxPlan, factor: f64) -> Function {
    let divisor = f64::from(1u32 << softmax.squarings());
    Function::Exponential { reference: softmax.reference, divisor, factor }
}

fn layer_plan(
    layer: usize,
    softmax: &SoftmaxPlan,
    of: &dyn Fn(Site) -> SiteRange,
    options: &LowerOptions,
) -> LayerPlan {
    let ratio = |range: Range| range.widened_ratio(options.margin);
    let squarings = softmax.squarings();

    // Sums and denominator: range of the true sum, and the map of the slots' values, junk included.
    let mut roughness = 0.0f64;
    let mut sums = Vec::new();
    for stage in 0..=squarings {
        let site = if stage < squarings { Site::Sum { layer, stage } } else { Site::Denominator { layer } };
        let seen = of(site);
        // A relative error e of the rough reciprocal changes the next sum by a factor within (1 ± e)².
        let roughened = |range: Range| {
            let range = ratio(range);
            Range { min: range.min * (1.0 - roughness).powi(2), max: range.max * (1.0 + roughness).powi(2) }
        };
        let (common, rare) = (roughened(seen.common), roughened(seen.common.union(seen.rare)));
        if stage == squarings {
            let (degree, newton) = final_reciprocal(common, options.softmax_error);
            let error = if newton { options.softmax_error.sqrt() } else { options.softmax_error };
            let range = extended(common, rare, |range| reciprocal_error(range, degree) <= error);
            sums.push(Sum { site, range, affine: Affine::onto(range.min, range.max), degree, newton });
            break;
        }
        // Slots that do not matter hold sums of parts of rows: anything from 0 to somewhat more than the range.
        let most = ratio(seen.all).max * (1.0 + roughness).powi(2);
        let up_to = |range: Range| Range { max: range.max.max(most), ..range };
        let degree = rough_degree(up_to(common), options.rough_error);
        let range = extended(up_to(common), up_to(rare), |range| reciprocal_error(range, degree) <= options.rough_error);
        roughness = reciprocal_error(range, degree);
        sums.push(Sum { site, range, affine: Affine::onto(0.0, range.max), degree, newton: false });
    }
    let reciprocal = |sum: &Sum, factor: f64| Step {
        site: sum.site,
        function: Function::Reciprocal { factor },
        affine: sum.affine,
        approximation: approximate::reciprocal(sum.range.min, sum.range.max, sum.affine, factor, sum.degree),
    };
    // y_j carries 1/half of its own sum; the next one is to carry that of the next sum.
    let rough = sums.windows(2).map(|pair| reciprocal(&pair[0], pair[0].affine.half / pair[1].affine.half.sqrt()));
    let rough = rough.collect();
    let last = &sums[squarings];
    let (newton, reciprocal) = (last.newton, reciprocal(last, last.affine.half));

    let function = exponential(softmax, 1.0 / sums[0].affine.half);
    // Errors count against the smallest sum of a row.
    let target = options.exponential_error.times(sums[0].range.min / sums[0].affine.half);
    let seen = of(Site::Scores { layer });
    let with_zero = |range: Range| {
        let mut range = range.widened(0.5 * options.margin);
        range.include(0.0);
        range
    };
    let on = |range: Range| {
        let map = Affine::onto(range.min, range.max);
        (map, approximate::fit(function, map, target, Measure::Absolute))
    };
    let common = with_zero(seen.common.union(seen.all));
    let degree = on(common).1.polynomial.degree();
    let same_depth = |range: Range| {
        let wider = on(range).1;
        let depth = |degree: usize| cachemir_ir::ckks::polynomial_depth(degree);
        wider.error <= target.needed && depth(wider.polynomial.degree()) <= depth(degree)
    };
    let (affine, approximation) = on(extended(common, common.union(with_zero(seen.rare)), same_depth));
    let exponential = Step { site: Site::Scores { layer }, function, affine, approximation };

    let gate = |site: Site| {
        let seen = of(site);
        seen.derived.map_or(seen.all.max_abs() * (1.0 + options.margin), |derived| derived.max_abs())
    };
    let bound = gate(Site::Gate { layer });
    let function = Function::Silu { factor: 1.0 / bound };
    let map = Affine { centre: 0.0, half: bound };
    let silu = Step {
        site: Site::Gate { layer },
        function,
        affine: map,
        approximation: approximate::fit(function, map, options.silu_error.times(1.0 / bound), Measure::Absolute),
    };
    let up_bound = gate(Site::Up { layer });
    LayerPlan { softmax: softmax.clone(), exponential, rough, reciprocal, newton, silu, up_bound }
}

/// A sum of a softmax's rows.
struct Sum {
    site: Site,
    /// The range of the slots that matter on which its reciprocal is approximated.
    range: Range,
    /// The interval of all slots.
    affine: Affine,
    /// Degree of the reciprocal.
    degree: usize,
    /// Whether a Newton step follows.
    newton: bool,
}

/// The common range, or as much more towards the rare one, in ratio, as still fits.
fn extended(common: Range, rare: Range, fits: impl Fn(Range) -> bool) -> Range {
    const STEPS: usize = 8;
    let between = |share: f64| {
        let towards = |from: f64, to: f64| {
            if from * to > 0.0 { from * (to / from).powf(share) } else { from + share * (to - from) }
        };
        Range { min: towards(common.min, rare.min), max: towards(common.max, rare.max) }
    };
    if fits(rare) {
        return rare;
    }
    let (mut good, mut bad) = (0.0, 1.0);
    for _ in 0..STEPS {
        let middle = 0.5 * (good + bad);
        if fits(between(middle)) { good = middle } else { bad = middle }
    }
    between(good)
}

/// Relative error of the best reciprocal of a degree.
fn reciprocal_error(range: Range, degree: usize) -> f64 {
    approximate::reciprocal(range.min, range.max, Affine::onto(0.0, range.max), 1.0, degree).error
}

/// The largest degree of the least depth that meets the target: what it gains narrows the range of the next sum.
fn rough_degree(range: Range, target: f64) -> usize {
    let mut degrees = approximate::depths();
    degrees.find(|&degree| reciprocal_error(range, degree) <= target).unwrap_or(approximate::LARGEST_DEGREE)
}

/// The largest degree of the least depth that meets the target, alone or before a Newton step, which takes one level as it
/// is merged with the following product.
fn final_reciprocal(range: Range, target: f64) -> (usize, bool) {
    let within = |target: f64| approximate::depths().find(|&degree| reciprocal_error(range, degree) <= target);
    let depth = |degree: usize| cachemir_ir::ckks::polynomial_depth(degree);
    match (within(target), within(target.sqrt())) {
        (Some(direct), Some(rough)) if depth(direct) < depth(rough) + 1 => (direct, false),
        (_, rough) => (rough.unwrap_or(approximate::LARGEST_DEGREE), true),
    }
}

/// What a site is taken to hold where there is no calibration text.
fn assumed(site: Site) -> SiteRange {
    let range = match site {
        Site::Norm { .. } => Range { min: 0.02, max: 4.0 },
        Site::Scores { .. } => Range { min: -10.0, max: 10.0 },
        Site::Sum { stage: 0, .. } => Range { min: 0.01, max: 4.0 },
        Site::Sum { .. } | Site::Denominator { .. } => Range { min: 0.01, max: 1.0 },
        Site::Gate { .. } | Site::Up { .. } => Range { min: -6.0, max: 6.0 },
    };
    SiteRange { common: range, rare: range, all: range, derived: None }
}
