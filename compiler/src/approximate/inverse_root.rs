//! 1/√x where values lie, and sane beyond.
//!
//! A norm that is out of its range must not poison its ciphertext: with 0 ≤ p(x) ≤ (1 + slack)/√x on the whole sane
//! interval, the norm's result stays within (1 + slack) times its proper length, so that all bounds that follow from that
//! length hold for every input.

use super::{Affine, Approximation, Band, Function, LARGEST_DEGREE, accurate_part, largest_error, within_bands};
use super::{Measure, depths};

/// How good an inverse square root has to be, as relative errors.
#[derive(Clone, Copy, Debug)]
pub struct RootDemand {
    /// Range of x in text.
    pub common: [f64; 2],
    /// Range of x with tokens that are rare in text; holds the common one.
    pub rare: [f64; 2],
    /// Error on the common range.
    pub error: f64,
    /// Largest error on the rare range; made as small as the depth allows.
    pub rare_error: f64,
    /// Error up to which the polynomial counts as accurate.
    pub accurate_error: f64,
}

/// By how much a result may exceed 1/√x on the sane interval.
const SLACK: f64 = 0.05;

/// Steps of the search for the least error on the rare range.
const STEPS: usize = 6;

/// The polynomial of least depth, and of the largest degree of that depth, that meets the demand on [-1, 1] under the map;
/// the one of the largest degree, made for the common range alone, if none does.
pub fn inverse_root(function: Function, affine: Affine, demand: RootDemand) -> Approximation {
    let f = |x: f64| function.evaluate(x);
    let within = |error: f64| move |x: f64| [f(x) * (1.0 - error), f(x) * (1.0 + error)];
    let attempt = |degree: usize, error: f64, rare_error: f64| {
        let (common, rare, sane) = (within(error), within(rare_error), |x: f64| [0.0, f(x.max(0.0)) * (1.0 + SLACK)]);
        let [low, high] = [affine.argument(-1.0), affine.argument(1.0)];
        let ([a, b], [c, d]) = (demand.common, demand.rare);
        let bands = [
            Band { range: [low, c.max(low)], bounds: &sane },
            Band { range: [c.max(low), a], bounds: &rare },
            Band { range: [a, b], bounds: &common },
            Band { range: [b, d.min(high)], bounds: &rare },
            Band { range: [d.min(high), high], bounds: &sane },
        ];
        within_bands(&bands, affine, degree)
    };
    let finish = |polynomial| {
        let [low, high] = demand.common.map(|x| affine.place(x).clamp(-1.0, 1.0));
        let in_u = |u: f64| f(affine.argument(u));
        let error = largest_error(in_u, &polynomial, low, high, Measure::Relative);
        let accurate = accurate_part(in_u, &polynomial, [low, high], demand.accurate_error, Measure::Relative);
        Approximation { polynomial, error, accurate: accurate.map(|u| affine.argument(u)) }
    };
    for degree in depths() {
        let Some(mut best) = attempt(degree, demand.error, demand.rare_error) else { continue };
        // The least error on the rare range, by bisection of its logarithm.
        let (mut good, mut bad) = (demand.rare_error, demand.error);
        for _ in 0..STEPS {
            let middle = (good * bad).sqrt();
            match attempt(degree, demand.error, middle) {
                Some(better) => (best, good) = (better, middle),
                None => bad = middle,
            }
        }
        return finish(best);
    }
    let wide = (0..60).map(|power| demand.error * 1.5f64.powi(power));
    let found = wide
        .take_while(|&error| error < 1.0)
        .find_map(|error| attempt(LARGEST_DEGREE, error, error.max(demand.rare_error)));
    finish(found.unwrap_or_else(|| super::interpolate(|u| f(affine.argument(u)), LARGEST_DEGREE)))
}
