//! Polynomial approximation in the clear: Chebyshev series, interpolation, weighted minimax fits.
//!
//! A series `c` of degree `d` stands for `p(x) = Σ_{j≤d} c_j T_j(x)` on `[-1, 1]`, `T_j` the Chebyshev polynomial of the
//! first kind. [`fit_minimax`] solves weighted least squares by Householder reflections (backward stable, so that the
//! *residual* is accurate even where the coefficients are ill determined) and reweights à la Lawson towards the
//! minimax solution.

use std::f64::consts::PI;

/// Value at `x` of the Chebyshev series with the given coefficients (Clenshaw's recurrence).
///
/// An empty series is zero.
pub fn evaluate_chebyshev(coefficients: &[f64], x: f64) -> f64 {
    let Some((&constant, rest)) = coefficients.split_first() else {
        return 0.0;
    };
    let (mut next, mut after) = (0.0, 0.0);
    for &c in rest.iter().rev() {
        (next, after) = (c + 2.0 * x * next - after, next);
    }
    constant + x * next - after
}

/// Value at `x` of `Σ c_j x^j` (Horner's rule).
pub fn evaluate_monomial(coefficients: &[f64], x: f64) -> f64 {
    coefficients.iter().rev().fold(0.0, |sum, &c| sum * x + c)
}

/// Chebyshev series of degree `degree` that interpolates `function` at the `degree + 1` Chebyshev nodes of `interval`.
///
/// The series is in the normalised variable `(2x - a - b) / (b - a)` for the interval `[a, b]`.
pub fn interpolate_chebyshev(function: impl Fn(f64) -> f64, interval: (f64, f64), degree: usize) -> Vec<f64> {
    let (low, high) = interval;
    let count = degree + 1;
    let values: Vec<f64> = (0..count)
        .map(|k| {
            let node = (PI * (k as f64 + 0.5) / count as f64).cos();
            function(0.5 * (low + high) + 0.5 * (high - low) * node)
        })
        .collect();
    (0..count)
        .map(|j| {
            let sum: f64 = values
                .iter()
                .enumerate()
                .map(|(k, v)| v * (PI * j as f64 * (k as f64 + 0.5) / count as f64).cos())
                .sum();
            sum * if j == 0 { 1.0 } else { 2.0 } / count as f64
        })
        .collect()
}

/// One sample of a weighted approximation problem: the fit tries to keep `weight · |p(x) - value|` small.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Argument, in `[-1, 1]`.
    pub x: f64,
    /// Value wanted there.
    pub value: f64,
    /// Weight of an error there, positive.
    pub weight: f64,
}

/// Chebyshev series of degree `degree` that nearly minimises the largest weighted error over `samples`.
///
/// Weighted least squares, then `reweightings` of Lawson's steps (each multiplies the weights by the size of the
/// residuals); the iterate with the smallest largest error is returned. Needs at least `degree + 1` distinct arguments.
pub fn fit_minimax(samples: &[Sample], degree: usize, reweightings: usize) -> Vec<f64> {
    let mut lawson = vec![1.0; samples.len()];
    let mut best = (f64::INFINITY, Vec::new());
    for _ in 0..=reweightings {
        let rows: Vec<Vec<f64>> = samples
            .iter()
            .zip(&lawson)
            .map(|(sample, l)| {
                let scale = sample.weight * f64::sqrt(*l);
                let mut row = chebyshev_values(sample.x, degree);
                row.push(sample.value);
                row.into_iter().map(|r| r * scale).collect()
            })
            .collect();
        let series = least_squares(rows);
        let residuals: Vec<f64> =
            samples.iter().map(|s| s.weight * (evaluate_chebyshev(&series, s.x) - s.value).abs()).collect();
        let largest = residuals.iter().copied().fold(0.0, f64::max);
        if largest < best.0 {
            best = (largest, series);
        }
        let mean = lawson.iter().zip(&residuals).map(|(l, r)| l * r).sum::<f64>() / samples.len() as f64;
        if mean == 0.0 {
            break;
        }
        for (l, r) in lawson.iter_mut().zip(&residuals) {
            // A floor keeps every sample in the problem.
            *l = (*l * r / mean).max(1e-6);
        }
    }
    best.1
}

/// `T_0(x), …, T_degree(x)`.
fn chebyshev_values(x: f64, degree: usize) -> Vec<f64> {
    let mut values = vec![1.0, x];
    for j in 2..=degree {
        values.push(2.0 * x * values[j - 1] - values[j - 2]);
    }
    values.truncate(degree + 1);
    values
}

/// Least-squares solution for rows `[a_1, …, a_n, b]`, by Householder reflections.
fn least_squares(mut rows: Vec<Vec<f64>>) -> Vec<f64> {
    let unknowns = rows.first().map_or(0, |row| row.len() - 1);
    for k in 0..unknowns {
        let norm = rows[k..].iter().map(|r| r[k] * r[k]).sum::<f64>().sqrt();
        if norm == 0.0 {
            continue;
        }
        let diagonal = if rows[k][k] > 0.0 { -norm } else { norm };
        // The reflection's vector; its first entry never cancels.
        let vector: Vec<f64> =
            rows[k..].iter().enumerate().map(|(i, r)| if i == 0 { r[k] - diagonal } else { r[k] }).collect();
        let half_norm = -diagonal * vector[0];
        for column in k..=unknowns {
            let dot: f64 = vector.iter().zip(&rows[k..]).map(|(v, r)| v * r[column]).sum();
            let factor = dot / half_norm;
            for (v, r) in vector.iter().zip(&mut rows[k..]) {
                r[column] -= factor * v;
            }
        }
    }
    let mut solution = vec![0.0; unknowns];
    for k in (0..unknowns).rev() {
        let known: f64 = (k + 1..unknowns).map(|j| rows[k][j] * solution[j]).sum();
        solution[k] = if rows[k][k] == 0.0 { 0.0 } else { (rows[k][unknowns] - known) / rows[k][k] };
    }
    solution
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clenshaw_equals_the_cosine_form() {
        let c = [0.3, -0.2, 0.7, 0.05, -1.1];
        for k in 0..=20 {
            let angle = PI * k as f64 / 20.0;
            let expected: f64 = c.iter().enumerate().map(|(j, c)| c * (j as f64 * angle).cos()).sum();
            assert!((evaluate_chebyshev(&c, angle.cos()) - expected).abs() < 1e-13);
        }
    }

    #[test]
    fn interpolation_converges_on_an_interval() {
        let (low, high) = (-1.5, 4.0);
        let series = interpolate_chebyshev(f64::exp, (low, high), 24);
        for k in 0..=50 {
            let x = low + (high - low) * k as f64 / 50.0;
            let y = (2.0 * x - low - high) / (high - low);
            assert!((evaluate_chebyshev(&series, y) - x.exp()).abs() < 1e-12);
        }
    }

    #[test]
    fn minimax_of_the_next_power_is_the_chebyshev_remainder() {
        // The best approximation of x^6 by degree 5 on [-1, 1] has error 2^-5.
        let samples: Vec<Sample> = (0..400)
            .map(|k| {
                let x = (PI * (k as f64 + 0.5) / 400.0).cos();
                Sample { x, value: x.powi(6), weight: 1.0 }
            })
            .collect();
        let series = fit_minimax(&samples, 5, 30);
        let worst = samples.iter().map(|s| (evaluate_chebyshev(&series, s.x) - s.value).abs()).fold(0.0, f64::max);
        assert!(worst < 1.02 / 32.0, "{worst}");
    }
}
