//! Polynomials that stay within bounds which differ from place to place.
//!
//! The polynomial minimises the largest of |p(x) − c(x)|/w(x) over sample points, c the middle and w half the width of the
//! bounds at x. The bounds are tight where a function has to be met, and wide where the polynomial has only to stay sane.

use cachemir_ir::chebyshev::{Fit, Sample, minimax};
use cachemir_ir::slots::Chebyshev;

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

/// Samples of the bounds: the middle, with an error of half the width as the unit.
fn samples(bands: &[Band<'_>], affine: Affine) -> Vec<Sample> {
    let mut samples = Vec::new();
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
            let half_width = (0.5 * (greatest - least)).max(f64::MIN_POSITIVE);
            samples.push(Sample { u, value: 0.5 * (least + greatest), weight: 1.0 / half_width });
        }
    }
    samples
}

/// A polynomial of the degree that keeps the bounds of all bands, in u; `None` if none was found.
pub fn within_bands(bands: &[Band<'_>], affine: Affine, degree: usize) -> Option<Chebyshev> {
    let fit = Fit { degree, rounds: ROUNDS, floor: 0.0, enough: 1.0 };
    let (coefficients, distance) = minimax(&samples(bands, affine), &fit);
    (distance <= 1.0).then_some(Chebyshev { coefficients, interval: [-1.0, 1.0] })
}
