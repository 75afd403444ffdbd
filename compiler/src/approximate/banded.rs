//! Polynomials that stay within bounds which differ from place to place.
//!
//! Lawson's algorithm (1961): the polynomial that minimises the largest of |p(x) − c(x)|/w(x) over sample points, c the
//! middle and w half the width of the bounds at x, is the limit of weighted least-squares fits, each of which multiplies
//! the weight of a point by its error in the last one. The bounds are tight where a function has to be met, and wide where
//! the polynomial has only to stay sane.

use cachemir_ir::slots::Chebyshev;
use nalgebra::{DMatrix, DVector};

use super::Affine;

/// Sample points of a band.
const POINTS: usize = 128;
/// Rounds of reweighting.
const ROUNDS: usize = 20;

/// Bounds of a polynomial on a range of x.
pub struct Band<'f> {
    /// The range of x.
    pub range: [f64; 2],
    /// The least and the greatest value that the polynomial may have at x.
    pub bounds: &'f dyn Fn(f64) -> [f64; 2],
}

/// Samples of the bounds.
struct Samples {
    u: Vec<f64>,
    middle: Vec<f64>,
    half_width: Vec<f64>,
}

impl Samples {
    fn of(bands: &[Band<'_>], affine: Affine) -> Self {
        let mut samples = Self { u: Vec::new(), middle: Vec::new(), half_width: Vec::new() };
        for band in bands {
            let [low, high] = band.range.map(|x| affine.place(x).clamp(-1.0, 1.0));
            if high - low <= 1e-9 {
                continue;
            }
            // Chebyshev points of the band, which resolve its ends.
            for index in 0..POINTS {
                let angle = std::f64::consts::PI * (index as f64 + 0.5) / POINTS as f64;
                let u = 0.5 * (low + high) + 0.5 * (high - low) * angle.cos();
                let [least, greatest] = (band.bounds)(affine.argument(u));
                samples.u.push(u);
                samples.middle.push(0.5 * (least + greatest));
                samples.half_width.push((0.5 * (greatest - least)).max(f64::MIN_POSITIVE));
            }
        }
        samples
    }

    /// The best polynomial found, and its largest distance from the middle as a multiple of half the width: at most 1, or
    /// as much as was found before it was clear that it is more.
    fn fit(&self, degree: usize) -> (Chebyshev, f64) {
        let (rows, columns) = (self.u.len(), degree + 1);
        let matrix = DMatrix::from_fn(rows, columns, |row, k| {
            (k as f64 * self.u[row].clamp(-1.0, 1.0).acos()).cos() / self.half_width[row]
        });
        let target = DVector::from_fn(rows, |row, _| self.middle[row] / self.half_width[row]);
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
            if largest <= 1.0 {
                break;
            }
            // Weights that sum to one make the least mean square error a bound from below on the largest error of any polynomial.
            let mean_square: f64 =
                weights.iter().zip(errors.iter()).map(|(weight, error)| weight * error.powi(2)).sum();
            if mean_square > 1.0 {
                break;
            }
            let total: f64 = weights.iter().zip(errors.iter()).map(|(weight, error)| weight * error).sum();
            weights.iter_mut().zip(errors.iter()).for_each(|(weight, error)| *weight *= error / total);
        }
        best
    }
}

/// A polynomial of the degree that keeps the bounds of all bands, in u; `None` if none was found.
pub fn within_bands(bands: &[Band<'_>], affine: Affine, degree: usize) -> Option<Chebyshev> {
    let (polynomial, distance) = Samples::of(bands, affine).fit(degree);
    (distance <= 1.0).then_some(polynomial)
}
