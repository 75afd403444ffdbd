//! Polynomial approximations of the non-linear functions on calibrated ranges.
//!
//! All polynomials are in Chebyshev form on [-1, 1]: the argument u of a function of x is u = (x − centre)/half, so that
//! the change of variable can ride on constants that precede the polynomial. A polynomial of degree m takes
//! ⌈log2(m + 1)⌉ levels, so degrees are searched level by level.

mod banded;
mod inverse_root;

pub use banded::{Band, within_bands};
pub use inverse_root::{RootDemand, SLACK, inverse_root};

use std::fmt;

use cachemir_ir::chebyshev;
use cachemir_ir::slots::Chebyshev;

pub use cachemir_ir::plan::Measure;
pub use cachemir_ir::program::Affine;

/// A function of one variable that a program approximates, `factor` included.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Function {
    /// factor/√(x + ε)
    InverseSquareRoot {
        /// ε.
        epsilon: f64,
        /// Factor of the result.
        factor: f64,
    },
    /// factor·exp((x − reference)/divisor)
    Exponential {
        /// The x whose exponential is 1.
        reference: f64,
        /// Divisor of the exponent.
        divisor: f64,
        /// Factor of the result.
        factor: f64,
    },
    /// factor/x
    Reciprocal {
        /// Factor of the result.
        factor: f64,
    },
    /// factor·x/(1 + exp(−x))
    Silu {
        /// Factor of the result.
        factor: f64,
    },
}

impl Function {
    /// The function's value; 0 where it is not defined.
    pub fn evaluate(self, x: f64) -> f64 {
        match self {
            Self::InverseSquareRoot { epsilon, factor } if x + epsilon > 0.0 => factor / (x + epsilon).sqrt(),
            Self::Exponential { reference, divisor, factor } => factor * ((x - reference) / divisor).exp(),
            Self::Reciprocal { factor } if x > 0.0 => factor / x,
            Self::Silu { factor } => factor * x / (1.0 + (-x).exp()),
            Self::InverseSquareRoot { .. } | Self::Reciprocal { .. } => 0.0,
        }
    }
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InverseSquareRoot { epsilon, factor } => write!(f, "{factor:.4e}/sqrt(x + {epsilon:.1e})"),
            Self::Exponential { reference, divisor, factor } => {
                write!(f, "{factor:.4e}*exp((x - {reference:.4})/{divisor})")
            }
            Self::Reciprocal { factor } => write!(f, "{factor:.4e}/x"),
            Self::Silu { factor } => write!(f, "{factor:.4e}*silu(x)"),
        }
    }
}

/// A polynomial in u with the error it makes.
#[derive(Clone, Debug, PartialEq)]
pub struct Approximation {
    /// The polynomial on [-1, 1].
    pub polynomial: Chebyshev,
    /// Largest error on the range that was asked for, by the measure that was asked for.
    pub error: f64,
    /// Range of x on which the polynomial is accurate enough for its result to be used.
    pub accurate: [f64; 2],
}

/// Largest degree that is tried.
pub const LARGEST_DEGREE: usize = 127;

/// Largest degree of [`fit`]: wide gates need one level more.
const LARGEST_FITTED: usize = 2 * LARGEST_DEGREE + 1;

/// The polynomial of the given degree that agrees with f in the Chebyshev nodes of [-1, 1].
pub fn interpolate(f: impl Fn(f64) -> f64, degree: usize) -> Chebyshev {
    Chebyshev { coefficients: chebyshev::interpolate(f, degree), interval: [-1.0, 1.0] }
}

/// Largest error of p against f over u in `low..=high`, on a fine grid.
pub fn largest_error(f: impl Fn(f64) -> f64, p: &Chebyshev, low: f64, high: f64, measure: Measure) -> f64 {
    const POINTS: usize = 2000;
    (0..=POINTS)
        .map(|index| {
            let u = low + (high - low) * index as f64 / POINTS as f64;
            let (want, got) = (f(u), p.evaluate(u));
            match measure {
                Measure::Absolute => (got - want).abs(),
                Measure::Relative => (got - want).abs() / want.abs().max(f64::MIN_POSITIVE),
            }
        })
        .fold(0.0, f64::max)
}

/// The largest degree of each depth, up to [`LARGEST_DEGREE`].
pub fn depths() -> impl Iterator<Item = usize> {
    std::iter::successors(Some(3), |degree| Some(2 * degree + 1)).take_while(|&degree| degree <= LARGEST_DEGREE)
}

/// The largest part of [-1, 1] around `low..=high` on which the error of p against f is within the limit.
pub fn accurate_part(
    f: impl Fn(f64) -> f64,
    p: &Chebyshev,
    [low, high]: [f64; 2],
    limit: f64,
    measure: Measure,
) -> [f64; 2] {
    const POINTS: usize = 2000;
    let reach = |start: f64, end: f64| {
        // Points get denser towards the end, where polynomials change fastest.
        let point = |index: usize| end + (start - end) * (1.0 - index as f64 / POINTS as f64).powi(2);
        let good = |u: &f64| largest_error(&f, p, *u, *u, measure) <= limit;
        (0..=POINTS).map(point).take_while(good).last().unwrap_or(start)
    };
    [reach(low, -1.0), reach(high, 1.0)]
}

/// The inner range, or as much more towards the outer one, in ratio, as can still be attained, with what attains it;
/// `None` where nothing more can.
pub fn extended<T>(inner: [f64; 2], outer: [f64; 2], attain: impl Fn([f64; 2]) -> Option<T>) -> ([f64; 2], Option<T>) {
    const STEPS: usize = 8;
    let outer = [inner[0].min(outer[0]), inner[1].max(outer[1])];
    if let Some(found) = attain(outer) {
        return (outer, Some(found));
    }
    let between = |share: f64| {
        let towards = |from: f64, to: f64| {
            if from * to > 0.0 { from * (to / from).powf(share) } else { from + share * (to - from) }
        };
        [0, 1].map(|end| towards(inner[end], outer[end]))
    };
    let (mut best, mut good, mut bad) = (None, 0.0, 1.0);
    for _ in 0..STEPS {
        let middle = 0.5 * (good + bad);
        match attain(between(middle)) {
            Some(found) => (best, good) = (Some(found), middle),
            None => bad = middle,
        }
    }
    (between(good), best)
}

/// An error that has to be met, and a smaller one that is wished for where it takes no further level.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// Decides the depth.
    pub needed: f64,
    /// Decides the degree.
    pub wished: f64,
}

impl Target {
    /// Both errors times a factor.
    #[must_use]
    pub fn times(self, factor: f64) -> Self {
        Self { needed: self.needed * factor, wished: self.wished * factor }
    }
}

/// The interpolating polynomial of least depth whose error over [-1, 1] is the needed one, and of the least degree of
/// that depth that has the wished one, or else of the largest; the best one up to [`LARGEST_FITTED`] if none will do.
pub fn fit(function: Function, affine: Affine, target: Target, measure: Measure) -> Approximation {
    let f = |u: f64| function.evaluate(affine.argument(u));
    let attempt = |degree: usize| {
        let polynomial = interpolate(f, degree);
        let error = largest_error(f, &polynomial, -1.0, 1.0, measure);
        Approximation { polynomial, error, accurate: [affine.argument(-1.0), affine.argument(1.0)] }
    };
    let full = depths().chain([LARGEST_FITTED]).map(attempt).find(|found| found.error <= target.needed);
    let full = full.unwrap_or_else(|| attempt(LARGEST_FITTED));
    let degree = full.polynomial.degree();
    (degree / 2 + 1..degree).map(attempt).find(|smaller| smaller.error <= target.wished).unwrap_or(full)
}

/// The polynomial p of degree m that minimises the largest |1 − x·p(x)| over `low..=high`, times `factor`, as a function
/// of u under a map that may also cover what lies between 0 and the range: 1 − x·p(x) = T_{m+1}(ξ(x))/T_{m+1}(ξ(0)),
/// where ξ maps the range to [-1, 1]. Between 0 and the range p is positive and falls. The error is relative.
pub fn reciprocal(low: f64, high: f64, affine: Affine, factor: f64, degree: usize) -> Approximation {
    let order = (degree + 1) as f64;
    let map = |x: f64| (2.0 * x - low - high) / (high - low);
    // T_order(y), for any y.
    let chebyshev = |y: f64| {
        let magnitude = if y.abs() <= 1.0 { (order * y.acos()).cos() } else { (order * y.abs().acosh()).cosh() };
        if y < -1.0 && (degree + 1) % 2 == 1 { -magnitude } else { magnitude }
    };
    // The derivative of T_order for |y| > 1, for the limit at x = 0.
    let slope = |y: f64| {
        let sign = if y < 0.0 && degree % 2 == 1 { -1.0 } else { 1.0 };
        sign * order * (order * y.abs().acosh()).sinh() / (y * y - 1.0).sqrt()
    };
    let at_zero = chebyshev(map(0.0));
    let p = |u: f64| {
        let x = affine.argument(u);
        if x.abs() < 1e-9 * low {
            -factor * slope(map(0.0)) * 2.0 / (high - low) / at_zero
        } else {
            factor * (1.0 - chebyshev(map(x)) / at_zero) / x
        }
    };
    Approximation { polynomial: interpolate(p, degree), error: 1.0 / at_zero.abs(), accurate: [low, high] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(function: Function, low: f64, high: f64, target: f64, measure: Measure) -> usize {
        let affine = Affine::onto(low, high);
        let fitted = fit(function, affine, Target { needed: target, wished: target }, measure);
        let f = |u: f64| function.evaluate(affine.argument(u));
        assert!(largest_error(f, &fitted.polynomial, -1.0, 1.0, measure) <= target, "{function}");
        fitted.polynomial.degree()
    }

    #[test]
    fn fits_meet_their_targets() {
        let exponential = Function::Exponential { reference: 10.0, divisor: 2.0, factor: 0.01 };
        assert!(check(exponential, -12.0, 10.0, 1e-8, Measure::Absolute) <= 15);
        let root = Function::InverseSquareRoot { epsilon: 1e-5, factor: 3.0 };
        assert!(check(root, 0.1, 4.0, 1e-3, Measure::Relative) <= 31);
        assert!(check(Function::Silu { factor: 0.25 }, -5.0, 5.0, 1e-4, Measure::Absolute) <= 31);
        assert!(check(Function::Reciprocal { factor: 2.0 }, 0.1, 2.0, 1e-4, Measure::Relative) <= 31);
    }

    #[test]
    fn ranges_grow_as_far_as_they_can() {
        let up_to = |most: f64| move |[low, high]: [f64; 2]| (high / low <= most).then_some(high / low);
        assert_eq!(extended([1.0, 2.0], [0.5, 8.0], up_to(20.0)), ([0.5, 8.0], Some(16.0)));
        // Ratios from 2 to 16, of which steps of 1/256 by the logarithm stay below 8.
        let (range, ratio) = extended([1.0, 2.0], [0.5, 8.0], up_to(8.0));
        assert!(range[1] / range[0] > 7.7 && ratio == Some(range[1] / range[0]), "{range:?}");
        assert_eq!(extended([1.0, 2.0], [0.5, 8.0], up_to(2.0)), ([1.0, 2.0], None));
        let (range, _) = extended([-1.0, 0.0], [-4.0, 2.0], |[_, high]| (high <= 1.0).then_some(()));
        assert_eq!(range[1], 1.0, "{range:?}");
    }

    proptest! {
        #[test]
        fn reciprocals_are_within_their_error_and_positive_down_to_zero(
            low in 0.001f64..0.5, ratio in 1.5f64..500.0, degree in 1usize..40,
        ) {
            let degree = 2 * degree + 1;
            let high = low * ratio;
            let affine = Affine::onto(0.0, high);
            let approximation = reciprocal(low, high, affine, 1.0, degree);
            let value = |x: f64| approximation.polynomial.evaluate((x - affine.centre) / affine.half);
            let slack = 1e-6 * approximation.polynomial.coefficients.iter().map(|c| c.abs()).sum::<f64>() * low;
            for index in 0..=300 {
                let x = low + (high - low) * f64::from(index) / 300.0;
                prop_assert!((1.0 - x * value(x)).abs() <= approximation.error * 1.001 + slack + 1e-9);
                prop_assert!(value(low * f64::from(index) / 300.0) > 0.0);
            }
        }
    }
}
