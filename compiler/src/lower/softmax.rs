//! The approximations of a softmax.

use cachemir_ir::ckks::polynomial_depth;
use cachemir_ir::tensor::Range;

use super::plan::{Exponential, SiteRange, SoftmaxPlan, Step, TOLERATED, exponential};
use super::{LowerOptions, Site};
use crate::approximate::{self, Affine, Function, Measure};

/// The approximations of a softmax.
pub(super) struct Steps {
    pub(super) exponential: Exponential,
    pub(super) rough: Vec<Step>,
    pub(super) reciprocal: Step,
    /// Whether a Newton step follows the reciprocal.
    pub(super) newton: bool,
}

impl Steps {
    /// Levels from the scores to the divided result.
    pub(super) fn depth(&self) -> u32 {
        // Each rough reciprocal is multiplied by its row and the product squared; the last one meets the mix.
        let rough: u32 = self.rough.iter().map(|step| step.depth() + 2).sum();
        self.exponential.depth() + rough + self.reciprocal.depth() + u32::from(self.newton) + 1
    }
}

/// The approximations of a layer's softmax.
pub(super) fn steps(
    layer: usize,
    softmax: &SoftmaxPlan,
    of: &dyn Fn(Site) -> SiteRange,
    options: &LowerOptions,
) -> Steps {
    let sums = sums(layer, softmax, of, options);
    let reciprocal = |sum: &Sum, factor: f64| Step {
        site: sum.site,
        function: Function::Reciprocal { factor },
        affine: sum.affine,
        approximation: approximate::reciprocal(sum.range.min, sum.range.max, sum.affine, factor, sum.degree),
        tolerated: sum.tolerated,
        derived: None,
    };
    // y_j carries 1/half of its own sum; the next one is to carry that of the next sum.
    let rough = sums.windows(2).map(|pair| reciprocal(&pair[0], pair[0].affine.half / pair[1].affine.half.sqrt()));
    let rough = rough.collect();
    let last = &sums[sums.len() - 1];
    let exponential = exponential_of_scores(layer, softmax, &sums[0], of(Site::Scores { layer }), options);
    Steps { exponential, rough, reciprocal: reciprocal(last, last.affine.half), newton: last.newton }
}

/// The exponential is accurate wherever text lies, and on as much more as its depth allows.
fn exponential_of_scores(
    layer: usize,
    softmax: &SoftmaxPlan,
    sum: &Sum,
    seen: SiteRange,
    options: &LowerOptions,
) -> Exponential {
    const MOST_DOUBLINGS: u32 = 2;
    // Errors count against the smallest sum of a row in text.
    let smallest = sum.smallest / sum.affine.half;
    let target = options.exponential_error.times(smallest);
    let with_zero = |range: Range| {
        let mut range = range.widened(0.5 * options.margin);
        range.include(0.0);
        range
    };
    let fits = |range: Range| {
        (0..=MOST_DOUBLINGS).map(move |doublings| {
            let affine = Affine::onto(range.min, range.max);
            let function = exponential(softmax, 1.0 / sum.affine.half, doublings);
            let power = f64::from(1u32 << doublings);
            let mut approximation = approximate::fit(function, affine, target.times(1.0 / power), Measure::Absolute);
            // An error of the root of y counts 2^m·y^(1-2^-m) times: all of it where y is 1, less in small sums.
            let slope = |y: f64| power * y.powf(1.0 - 1.0 / power);
            let noise = options.rounding * approximation.polynomial.rounding_gain();
            approximation.error = slope(1.0) * approximation.error + slope(smallest) * noise;
            let tolerated = TOLERATED * target.needed;
            let derived = seen.derived;
            let step = Step { site: Site::Scores { layer }, function, affine, approximation, tolerated, derived };
            Exponential { step, doublings }
        })
    };
    let accurate = |range: Range, depth: u32| {
        let within = fits(range).filter(|fit| fit.error() <= target.needed && fit.depth() <= depth);
        within.min_by(|a, b| (a.depth(), a.error()).partial_cmp(&(b.depth(), b.error())).expect("errors are numbers"))
    };
    let text = with_zero(seen.text.union(seen.all));
    let Some(least) = accurate(text, u32::MAX) else {
        return fits(text).min_by(|a, b| a.error().total_cmp(&b.error())).expect("there is one without doublings");
    };
    let everyday = text.union(with_zero(seen.everyday));
    let tiers = [text, everyday, everyday.union(with_zero(seen.rare))];
    let (_, wider) = widest(tiers, |range| accurate(range, least.depth()));
    wider.unwrap_or(least)
}

/// Largest relative error of a rough reciprocal. It is a factor of a whole row, which the last reciprocal divides out, but has
/// to leave the row positive.
const ROUGHEST_TOLERATED: f64 = 0.95;

/// Sums of exponentials that are nearly zero may be as much below it as their polynomial is wrong: this part of the largest
/// sum.
const BELOW_ZERO: f64 = 1e-3;

/// The row sums of one stage.
#[derive(Clone)]
struct Sum {
    site: Site,
    /// The smallest in text.
    smallest: f64,
    /// The range of the slots that matter on which the reciprocal is approximated.
    range: Range,
    /// The interval of all slots.
    affine: Affine,
    /// Degree of the reciprocal.
    degree: usize,
    /// Whether a Newton step follows.
    newton: bool,
    /// The largest relative error that a program may have, ahead of the Newton step.
    tolerated: f64,
    /// Whether the range holds those of everyday prompts.
    holds_everyday: bool,
}

/// The row sums of a layer's softmax. Rough reciprocals cover everyday prompts with as little error as that takes, or as much
/// more than text as leaves the last one, whose range grows with their errors, accurate.
fn sums(layer: usize, softmax: &SoftmaxPlan, of: &dyn Fn(Site) -> SiteRange, options: &LowerOptions) -> Vec<Sum> {
    const ROUGHEST: [f64; 5] = [0.8, 0.7, 0.6, 0.5, 0.4];
    // All are compared: the degree of the last reciprocal neither rises nor falls steadily with roughness.
    let attempts = ROUGHEST.map(|roughest| sums_within(layer, softmax, of, options, roughest));
    let accurate = || attempts.iter().filter(|sums| last(sums).error() <= 1.01 * options.softmax_error);
    let complete = accurate().filter(|sums| sums.iter().all(|sum| sum.holds_everyday));
    let cheapest = complete.min_by_key(|sums| last(sums).degree);
    cheapest.or_else(|| accurate().next()).unwrap_or(&attempts[ROUGHEST.len() - 1]).clone()
}

/// The sum that the result is divided by.
fn last(sums: &[Sum]) -> &Sum {
    &sums[sums.len() - 1]
}

/// The row sums where rough reciprocals beyond the range of text have at most the given relative error.
fn sums_within(
    layer: usize,
    softmax: &SoftmaxPlan,
    of: &dyn Fn(Site) -> SiteRange,
    options: &LowerOptions,
    roughest: f64,
) -> Vec<Sum> {
    let squarings = softmax.squarings();
    let mut roughness = 0.0f64;
    let mut sums = Vec::new();
    for stage in 0..=squarings {
        let site = if stage < squarings { Site::Sum { layer, stage } } else { Site::Denominator { layer } };
        let seen = of(site);
        // A relative error e of the rough reciprocal changes the next sum by a factor within (1 ± e)².
        let tiers = seen.tiers(options).map(|range| Range {
            min: range.min * (1.0 - roughness).powi(2),
            max: range.max * (1.0 + roughness).powi(2),
        });
        let smallest = tiers[0].min;
        let sum = |tiers: [Range; 3], affine: &dyn Fn(Range) -> Affine, degree: usize, error: f64| {
            let (range, _) = widest(tiers, |range| (reciprocal_error(range, degree) <= error).then_some(()));
            let (newton, tolerated) = (false, ROUGHEST_TOLERATED);
            let holds_everyday = holds(range, tiers[1]);
            Sum { site, smallest, range, affine: affine(range), degree, newton, tolerated, holds_everyday }
        };
        if stage == squarings {
            let (degree, newton) = final_reciprocal(tiers[0], options.softmax_error);
            let squared = if newton { 0.5 } else { 1.0 };
            let tolerated = (TOLERATED * options.softmax_error).powf(squared);
            let onto = |range: Range| Affine::onto(range.min, range.max);
            let last = sum(tiers, &onto, degree, options.softmax_error.powf(squared));
            sums.push(Sum { newton, tolerated, ..last });
        } else {
            // Slots that do not matter hold sums of parts of rows: anything from 0 to somewhat more than the range.
            let excess = (seen.all.max / seen.text.max).max(1.0);
            let tiers = tiers.map(|range| Range { max: range.max * excess, ..range });
            let degree = rough_degree(tiers[0], options.rough_error);
            let from_zero = |range: Range| Affine::onto(-BELOW_ZERO * range.max, range.max);
            let rough = sum(tiers, &from_zero, degree, roughest);
            roughness = reciprocal_error(rough.range, degree);
            sums.push(rough);
        }
    }
    sums
}

impl Sum {
    /// Relative error of the reciprocal, the Newton step included.
    fn error(&self) -> f64 {
        let error = reciprocal_error(self.range, self.degree);
        if self.newton { error.powi(2) } else { error }
    }
}

/// The first range, or as much more towards the second and then the third as can still be attained, with what attains it;
/// `None` where nothing more can.
fn widest<T>([text, everyday, rare]: [Range; 3], attain: impl Fn(Range) -> Option<T>) -> (Range, Option<T>) {
    let towards = |inner: [f64; 2], outer: Range| {
        approximate::extended(inner, [outer.min, outer.max], |[min, max]| attain(Range { min, max }))
    };
    let (inner, nearer) = towards([text.min, text.max], everyday);
    let ([min, max], further) = towards(inner, rare);
    (Range { min, max }, further.or(nearer))
}

/// Whether a range holds another one, but for rounding.
fn holds(range: Range, other: Range) -> bool {
    range.min <= 1.001 * other.min && other.max <= 1.001 * range.max
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
    match (within(target), within(target.sqrt())) {
        (Some(direct), Some(rough)) if polynomial_depth(direct) < polynomial_depth(rough) + 1 => (direct, false),
        (_, rough) => (rough.unwrap_or(approximate::LARGEST_DEGREE), true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The exponential for scores in text from `least` to 20, the largest of which is the reference, with junk up to `most`.
    fn exponential_of(least: f64, most: f64, rounding: f64) -> (Exponential, f64) {
        let softmax = SoftmaxPlan { reference: 20.0, reference_keys: Vec::new(), exponents: vec![0.0; 3] };
        let range = Range { min: 5e-3, max: 10.0 };
        let affine = Affine::onto(0.0, range.max);
        let site = Site::Sum { layer: 0, stage: 0 };
        let sum = Sum {
            site,
            smallest: range.min,
            range,
            affine,
            degree: 63,
            newton: false,
            tolerated: ROUGHEST_TOLERATED,
            holds_everyday: true,
        };
        let (text, all) = (Range { min: least, max: 20.0 }, Range { min: least, max: most });
        let seen = SiteRange { text, everyday: text, rare: text, all, derived: None };
        let options = LowerOptions { rounding, ..LowerOptions::default() };
        let needed = options.exponential_error.needed * sum.smallest / affine.half;
        (exponential_of_scores(0, &softmax, &sum, seen, &options), needed)
    }

    #[test]
    fn widely_spread_scores_are_squared_where_noise_would_drown_small_sums() {
        let rounding = cachemir_ir::parameters::Parameters::n16().rounding_deviation(4096);
        let (plain, _) = exponential_of(-10.0, 20.0, rounding);
        assert_eq!(plain.doublings, 0);
        let (squared, needed) = exponential_of(-330.0, 70.0, rounding);
        assert!(squared.doublings > 0 && squared.error() <= needed, "{} of {needed}", squared.error());
        // What is squared is the root of the exponential.
        let power = f64::from(1u32 << squared.doublings);
        let value = |x: f64| {
            let u = (x - squared.step.affine.centre) / squared.step.affine.half;
            squared.step.approximation.polynomial.evaluate(u).powf(power)
        };
        for x in [20.0, 0.0, -15.0f64] {
            let expected = ((x - 20.0) / 4.0).exp() / 5.0;
            assert!((value(x) - expected).abs() <= needed, "{} at {x}, not {expected}", value(x));
        }
    }
}
