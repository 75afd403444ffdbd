//! Polynomials whose error may differ from place to place.
//!
//! Lawson's algorithm (1961): the polynomial that minimises the largest of |p(u) − f(u)|/tolerance(u) over sample points is
//! the limit of weighted least-squares fits, each of which multiplies the weight of a point by its error in the last one.

use cachemir_ir::slots::Chebyshev;
use nalgebra::{DMatrix, DVector};

use super::{Affine, Approximation, Function, LARGEST_DEGREE};

/// Sample points of the accurate range and of each tail.
const POINTS: usize = 300;
/// Rounds of reweighting.
const ROUNDS: usize = 30;

/// A function to fit on samples with a tolerance each.
struct Samples {
    u: Vec<f64>,
    value: Vec<f64>,
    tolerance: Vec<f64>,
}

impl Samples {
    /// The best polynomial found and its largest error over the tolerance.
    fn fit(&self, degree: usize) -> (Chebyshev, f64) {
        let (rows, columns) = (self.u.len(), degree + 1);
        let matrix = DMatrix::from_fn(rows, columns, |row, k| {
            (k as f64 * self.u[row].clamp(-1.0, 1.0).acos()).cos() / self.tolerance[row]
        });
        let target = DVector::from_fn(rows, |row, _| self.value[row] / self.tolerance[row]);
        let mut weights = vec![1.0 / rows as f64; rows];
        let mut best = (Chebyshev { coefficients: vec![0.0; columns], interval: [-1.0, 1.0] }, f64::INFINITY);
        for _ in 0..ROUNDS {
            let roots: Vec<f64> = weights.iter().map(|weight: &f64| weight.sqrt()).collect();
            let weighted = DMatrix::from_fn(rows, columns, |row, k| matrix[(row, k)] * roots[row]);
            let decomposition = weighted.qr();
            let mut projected = DVector::from_fn(rows, |row, _| target[row] * roots[row]);
            decomposition.q_tr_mul(&mut projected);
            let head = projected.rows(0, columns).into_owned();
            let Some(coefficients) = decomposition.r().solve_upper_triangular(&head) else { break };
            let errors = (&matrix * &coefficients - &target).abs();
            let largest = errors.max();
            if largest < best.1 {
                best = (Chebyshev { coefficients: coefficients.as_slice().to_vec(), ..best.0 }, largest);
            }
            let total: f64 = weights.iter().zip(errors.iter()).map(|(weight, error)| weight * error).sum();
            weights.iter_mut().zip(errors.iter()).for_each(|(weight, error)| *weight *= error / total);
        }
        best
    }
}

/// A polynomial for a positive function on all of [-1, 1] that has at most the given relative error where x lies in
/// `accurate`, and `tail_error` elsewhere: of the least depth, and then of the least degree, that does so; the best one up
/// to [`LARGEST_DEGREE`] if none does. The error is that over `accurate`.
pub fn fit_with_tails(
    function: Function,
    affine: Affine,
    accurate: [f64; 2],
    target: f64,
    tail_error: f64,
) -> Approximation {
    let [low, high] = accurate.map(|x| ((x - affine.centre) / affine.half).clamp(-1.0, 1.0));
    // Chebyshev points of an interval, which resolve its ends.
    let points = |a: f64, b: f64| {
        (0..POINTS).map(move |index| {
            let angle = std::f64::consts::PI * (index as f64 + 0.5) / POINTS as f64;
            0.5 * (a + b) + 0.5 * (b - a) * angle.cos()
        })
    };
    let mut samples = Samples { u: Vec::new(), value: Vec::new(), tolerance: Vec::new() };
    for (a, b, error) in [(-1.0, low, tail_error), (low, high, target), (high, 1.0, tail_error)] {
        if b - a > 1e-9 {
            for u in points(a, b) {
                let value = function.evaluate(affine.argument(u));
                samples.u.push(u);
                samples.value.push(value);
                samples.tolerance.push(error * value.abs().max(f64::MIN_POSITIVE));
            }
        }
    }
    let mut degree = 3;
    let mut best = samples.fit(degree);
    while best.1 > 1.0 && 2 * degree < LARGEST_DEGREE {
        degree = 2 * degree + 1;
        best = samples.fit(degree);
    }
    let mut least = degree / 2 + 1;
    while best.1 <= 1.0 && least < degree {
        let middle = usize::midpoint(least, degree);
        let attempt = samples.fit(middle);
        if attempt.1 <= 1.0 {
            (best, degree) = (attempt, middle);
        } else {
            least = middle + 1;
        }
    }
    let f = |u: f64| function.evaluate(affine.argument(u));
    let error = super::largest_error(f, &best.0, low, high, super::Measure::Relative);
    Approximation { polynomial: best.0, error }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::approximate::{Measure, fit, largest_error};

    #[test]
    fn a_tolerant_tail_costs_few_degrees() {
        let function = Function::InverseSquareRoot { epsilon: 1e-5, factor: 1.0 };
        let (tail, accurate, high) = (0.0134, 0.23, 5.24);
        let affine = Affine::onto(tail, high);
        let f = |u: f64| function.evaluate(affine.argument(u));
        let tolerant = fit_with_tails(function, affine, [accurate, high], 1e-3, 0.6);
        let low = (accurate - affine.centre) / affine.half;
        assert!(largest_error(f, &tolerant.polynomial, low, 1.0, Measure::Relative) <= 1.01e-3);
        assert!(largest_error(f, &tolerant.polynomial, -1.0, low, Measure::Relative) <= 0.61);
        let everywhere = fit(function, affine, 1e-3, Measure::Relative);
        assert!(tolerant.polynomial.degree() <= 15 && everywhere.polynomial.degree() > 40);
    }

    #[test]
    fn without_tails_the_fit_is_no_worse_than_interpolation() {
        let function = Function::InverseSquareRoot { epsilon: 1e-5, factor: 2.0 };
        let affine = Affine::onto(0.3, 4.0);
        let fitted = fit_with_tails(function, affine, [0.3, 4.0], 1e-3, 0.5);
        let interpolated = fit(function, affine, 1e-3, Measure::Relative);
        assert!(fitted.error <= 1.01e-3 && fitted.polynomial.degree() <= interpolated.polynomial.degree());
    }
}
