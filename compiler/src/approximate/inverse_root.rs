//! 1/√x where values lie, and sane beyond.
//!
//! A norm that is out of its range must not poison its ciphertext: with 0 ≤ p(x) ≤ (1 + slack)/√x on the whole sane
//! interval, the norm's result stays within (1 + slack) times its proper length, so that all bounds that follow from that
//! length hold for every input.

use cachemir_ir::ckks::polynomial_depth;
use cachemir_ir::slots::Chebyshev;

use super::{Affine, Approximation, Band, Function, LARGEST_DEGREE, Measure, Target};
use super::{accurate_part, depths, extended, largest_error, within_bands};

/// How good an inverse square root has to be.
#[derive(Clone, Copy, Debug)]
pub struct RootDemand {
    /// Ranges of x, each holding the one before: the first decides the depth, the others are covered as far as it allows.
    pub ranges: [[f64; 2]; 3],
    /// Relative error where the polynomial counts as accurate.
    pub error: Target,
    /// Least depth, for a polynomial that reaches further than the first range asks for.
    pub least_depth: u32,
}

/// By how much a result may exceed 1/√x on the sane interval.
pub const SLACK: f64 = 0.05;

/// Steps towards the wished error.
const STEPS: usize = 6;

/// The polynomial of least depth, and of the largest degree of that depth, that is accurate on the first range of the demand
/// and sane on [-1, 1] under the map: accurate on as much of the further ranges, and then as accurate, as that allows. The
/// one of the largest degree that comes closest if none is accurate.
pub fn inverse_root(function: Function, affine: Affine, demand: RootDemand) -> Approximation {
    let f = |x: f64| function.evaluate(x);
    let [low, high] = [affine.argument(-1.0), affine.argument(1.0)];
    let attempt = |degree: usize, [a, b]: [f64; 2], error: f64| {
        let accurate = |x: f64| [f(x) * (1.0 - error), f(x) * (1.0 + error)];
        let sane = |x: f64| [0.0, f(x.max(0.0)) * (1.0 + SLACK)];
        let bands = [
            Band { range: [low, a], bounds: &sane },
            Band { range: [a, b], bounds: &accurate },
            Band { range: [b, high], bounds: &sane },
        ];
        within_bands(&bands, affine, degree)
    };
    let [text, everyday, rare] = demand.ranges;
    let Target { needed, wished } = demand.error;
    let finish = |polynomial: Chebyshev, range: [f64; 2]| {
        let in_u = |u: f64| f(affine.argument(u));
        let of_text = text.map(|x| affine.place(x).clamp(-1.0, 1.0));
        let error = largest_error(in_u, &polynomial, of_text[0], of_text[1], Measure::Relative);
        let range = range.map(|x| affine.place(x).clamp(-1.0, 1.0));
        let accurate = accurate_part(in_u, &polynomial, range, needed.max(error), Measure::Relative);
        Approximation { polynomial, error, accurate: accurate.map(|u| affine.argument(u)) }
    };
    for degree in depths().filter(|&degree| polynomial_depth(degree) >= demand.least_depth) {
        let Some(mut best) = attempt(degree, text, needed) else { continue };
        let mut range = text;
        for outer in [everyday, rare] {
            let (reached, found) = extended(range, outer, |range| attempt(degree, range, needed));
            best = found.unwrap_or(best);
            range = reached;
            if range != outer {
                break;
            }
        }
        let (mut good, mut bad) = (needed, wished);
        for _ in 0..STEPS {
            let middle = (good * bad).sqrt();
            match attempt(degree, range, middle) {
                Some(better) => (best, good) = (better, middle),
                None => bad = middle,
            }
        }
        return finish(best, range);
    }
    let mut larger = (1..60).map(|power| needed * 1.5f64.powi(power)).take_while(|&error| error < 1.0);
    let found = larger.find_map(|error| attempt(LARGEST_DEGREE, text, error));
    let polynomial = found.unwrap_or_else(|| super::interpolate(|u| f(affine.argument(u)), LARGEST_DEGREE));
    finish(polynomial, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(ranges: [[f64; 2]; 3], least_depth: u32) -> (Affine, Function, Approximation) {
        let function = Function::InverseSquareRoot { epsilon: 1e-5, factor: 1.0 };
        let affine = Affine::onto(0.0, 6.0);
        let error = Target { needed: 1e-3, wished: 1e-5 };
        (affine, function, inverse_root(function, affine, RootDemand { ranges, error, least_depth }))
    }

    #[test]
    fn it_is_accurate_where_values_lie_and_never_makes_a_norm_longer() {
        let ranges = [[0.4, 2.5], [0.03, 3.0], [0.005, 4.0]];
        let mut reach = ranges[0];
        for least_depth in [0, 5, 6] {
            let (affine, function, found) = root(ranges, least_depth);
            let f = |u: f64| function.evaluate(affine.argument(u));
            let [low, high] = ranges[0].map(|x| affine.place(x));
            assert!(largest_error(f, &found.polynomial, low, high, Measure::Relative) <= 1.1e-3, "{least_depth}");
            // Deeper polynomials reach further.
            assert!(found.accurate[0] <= reach[0] && found.accurate[1] >= 0.99 * reach[1], "{:?}", found.accurate);
            reach = found.accurate;
            for step in 0..=5000 {
                let u = -1.0 + f64::from(step) / 2500.0;
                let (p, most) = (found.polynomial.evaluate(u), f(u) * (1.0 + 1.2 * SLACK));
                assert!((-0.01..=most).contains(&p), "{p} at {}, where at most {most} is sane", affine.argument(u));
            }
        }
        assert!(reach[0] < 0.05, "{reach:?}");
    }

    #[test]
    fn what_no_polynomial_covers_is_told() {
        let (.., found) = root([[1e-5, 6.0]; 3], 0);
        assert!(found.error > 0.01 && found.polynomial.degree() == LARGEST_DEGREE);
    }
}
