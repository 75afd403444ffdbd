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
    /// Slots that matter.
    pub(super) meaningful: Range,
    /// Slots that matter, with tokens among them that text hardly holds.
    pub(super) rare: Range,
    /// All slots.
    pub(super) all: Range,
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
    /// Range of x on which the error is stated.
    pub(super) range: [f64; 2],
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
            approximation: Approximation { polynomial: approximate::interpolate(|_| 0.0, 0), error: 0.0 },
            range: [-1.0, 1.0],
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

        // Norms: one width of the interval for all, so that one scale of the residual stream serves all of them.
        let squares: Vec<Range> = (1..roles.norms.len()).map(|index| ratio(of(Site::Norm { index }).rare)).collect();
        let width = squares.iter().map(|range| range.max - range.min).fold(0.0, f64::max);
        let residual_scale = (2.0 / width).sqrt() / root_width;
        let norm = |((index, norm), range): ((usize, &super::roles::Norm), &Range)| {
            let function =
                Function::InverseSquareRoot { epsilon: norm.epsilon, factor: 1.0 / (root_width * residual_scale) };
            let accurate = ratio(of(Site::Norm { index }).meaningful);
            let accurate = [accurate.min, accurate.max];
            let with = |affine: Affine| Step {
                site: Site::Norm { index },
                function,
                affine,
                approximation: approximate::fit_with_tails(
                    function,
                    affine,
                    accurate,
                    options.norm_error,
                    options.rare_norm_error,
                ),
                range: accurate,
            };
            let depth = |step: &Step| cachemir_ir::ckks::polynomial_depth(step.approximation.polynomial.degree());
            let shared = with(Affine { centre: range.min + 0.5 * width, half: 0.5 * width });
            let own = with(Affine::onto(range.min, range.max));
            // An interval of its own costs a product and its level.
            let degree = |step: &Step| step.approximation.polynomial.degree();
            let worth = match (depth(&own) + 1).cmp(&depth(&shared)) {
                std::cmp::Ordering::Less => true,
                std::cmp::Ordering::Equal => 2 * degree(&own) < degree(&shared),
                std::cmp::Ordering::Greater => shared.approximation.error > options.norm_error,
            };
            if worth { own } else { shared }
        };
        let norms = roles.norms.iter().enumerate().skip(1).zip(&squares).map(norm).collect();
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

impl Plan {
    /// What is known of every step, in the order of the decoder.
    pub(super) fn report(&self) -> Vec<cachemir_ir::plan::Approximation> {
        self.steps().into_iter().map(|step| self.describe(step)).collect()
    }

    fn describe(&self, step: &Step) -> cachemir_ir::plan::Approximation {
        let newton = matches!(step.site, Site::Denominator { layer } if self.layers[layer].newton);
        let (method, measure) = match step.function {
            Function::InverseSquareRoot { .. } => ("weighted minimax", Measure::Relative),
            Function::Reciprocal { .. } if newton => ("minimax, Newton step", Measure::Relative),
            Function::Reciprocal { .. } => ("minimax", Measure::Relative),
            Function::Exponential { .. } | Function::Silu { .. } => ("Chebyshev interpolation", Measure::Absolute),
        };
        let degree = step.approximation.polynomial.degree();
        let error = step.approximation.error;
        cachemir_ir::plan::Approximation {
            site: step.site.to_string(),
            function: step.function.to_string(),
            method: method.to_owned(),
            accurate: step.range,
            sane: [-1.0, 1.0].map(|end| step.affine.argument(end)),
            derived: None,
            degree: degree as u32,
            depth: cachemir_ir::ckks::polynomial_depth(degree) + u32::from(newton),
            // A Newton step squares the relative error.
            max_error: if newton { error * error } else { error },
            measure,
            escape_proof: false,
        }
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
        let mut range = ratio(seen.meaningful);
        range.min *= (1.0 - roughness).powi(2);
        range.max *= (1.0 + roughness).powi(2);
        if stage == squarings {
            sums.push((site, range, Affine::onto(range.min, range.max)));
            break;
        }
        // Slots that do not matter hold sums of parts of rows: anything from 0 to somewhat more than the range.
        range.max = range.max.max(ratio(seen.all).max * (1.0 + roughness).powi(2));
        let affine = Affine::onto(0.0, range.max);
        roughness = rough_reciprocal(range, affine, 1.0, options.rough_error).error;
        sums.push((site, range, affine));
    }
    let rough = (0..squarings)
        .map(|stage| {
            let (site, range, affine) = sums[stage];
            // y_j carries 1/half of its own sum; the next one is to carry that of the next sum.
            let factor = affine.half * (1.0 / sums[stage + 1].2.half).sqrt();
            let function = Function::Reciprocal { factor };
            let approximation = rough_reciprocal(range, affine, factor, options.rough_error);
            Step { site, function, affine, approximation, range: [range.min, range.max] }
        })
        .collect();
    let (site, range, affine) = sums[squarings];
    let (approximation, newton) = final_reciprocal(range, affine, options.softmax_error);
    let reciprocal = Step {
        site,
        function: Function::Reciprocal { factor: affine.half },
        affine,
        approximation,
        range: [range.min, range.max],
    };

    let mut scores = of(Site::Scores { layer }).all.widened(0.5 * (options.margin));
    scores.include(0.0);
    let map = Affine::onto(scores.min, scores.max);
    let function = exponential(softmax, 1.0 / sums[0].2.half);
    // Errors count against the smallest sum of a row.
    let target = options.exponential_error * sums[0].1.min / sums[0].2.half;
    let exponential = Step {
        site: Site::Scores { layer },
        function,
        affine: map,
        approximation: approximate::fit(function, map, target, Measure::Absolute),
        range: [scores.min, scores.max],
    };

    let bound = of(Site::Gate { layer }).all.max_abs() * (1.0 + options.margin);
    let function = Function::Silu { factor: 1.0 / bound };
    let map = Affine { centre: 0.0, half: bound };
    let silu = Step {
        site: Site::Gate { layer },
        function,
        affine: map,
        approximation: approximate::fit(function, map, options.silu_error / bound, Measure::Absolute),
        range: [-bound, bound],
    };
    let up_bound = of(Site::Up { layer }).all.max_abs() * (1.0 + options.margin);
    LayerPlan { softmax: softmax.clone(), exponential, rough, reciprocal, newton, silu, up_bound }
}

/// The reciprocal of least depth that meets the target, of the largest degree of its depth: what it gains narrows the
/// range of the next sum.
fn rough_reciprocal(range: Range, affine: Affine, factor: f64, target: f64) -> Approximation {
    let of = |degree: usize| approximate::reciprocal(range.min, range.max, affine, factor, degree);
    let degrees = std::iter::successors(Some(3), |degree| Some(2 * degree + 1));
    degrees
        .take_while(|&degree| degree < approximate::LARGEST_DEGREE)
        .map(of)
        .find(|approximation| approximation.error <= target)
        .unwrap_or_else(|| of(approximate::LARGEST_DEGREE))
}

/// The cheaper of a polynomial that meets the target and one that does so after a Newton step, which takes one level as
/// it is merged with the following product.
fn final_reciprocal(range: Range, affine: Affine, target: f64) -> (Approximation, bool) {
    let within = |target: f64| approximate::reciprocal_within(range.min, range.max, affine, affine.half, target);
    let depth = |approximation: &Approximation| cachemir_ir::ckks::polynomial_depth(approximation.polynomial.degree());
    match (within(target), within(target.sqrt())) {
        (Some(direct), Some(rough)) if depth(&direct) < depth(&rough) + 1 => (direct, false),
        (Some(_) | None, Some(rough)) => (rough, true),
        _ => {
            let degree = approximate::LARGEST_DEGREE;
            (approximate::reciprocal(range.min, range.max, affine, affine.half, degree), true)
        }
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
    SiteRange { meaningful: range, rare: range, all: range }
}
