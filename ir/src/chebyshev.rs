//! Series in Chebyshev polynomials: values, interpolation, weighted minimax fits.
//!
//! A series c of degree d stands for p(u) = Σ_{k≤d} c_k·T_k(u) on [-1, 1], T_k the Chebyshev polynomial of the first kind;
//! c_0 is not halved.

use std::array::from_fn;
use std::f64::consts::PI;
use std::ops::{Add, Mul, Sub};

/// Values of a series at several points, which are real or complex, by Clenshaw's recurrence. An empty series is zero.
pub fn values<T, const N: usize>(series: &[f64], points: [T; N]) -> [T; N]
where
    T: Copy + Default + Add<f64, Output = T> + Sub<Output = T> + Mul<Output = T> + Mul<f64, Output = T>,
{
    let Some((&constant, rest)) = series.split_first() else { return [T::default(); N] };
    let doubled = points.map(|u| u * 2.0_f64);
    let (mut next, mut after) = ([T::default(); N], [T::default(); N]);
    for &c in rest.iter().rev() {
        // Point by point at each step, so that the points fill a vector register.
        for i in 0..N {
            (next[i], after[i]) = (doubled[i] * next[i] - after[i] + c, next[i]);
        }
    }
    from_fn(|i| points[i] * next[i] - after[i] + constant)
}

/// Value of a series at one point.
pub fn value<T>(series: &[f64], u: T) -> T
where
    T: Copy + Default + Add<f64, Output = T> + Sub<Output = T> + Mul<Output = T> + Mul<f64, Output = T>,
{
    let [value] = values(series, [u]);
    value
}

/// The series of the given degree that agrees with f in the Chebyshev nodes of [-1, 1].
pub fn interpolate(f: impl Fn(f64) -> f64, degree: usize) -> Vec<f64> {
    let count = degree + 1;
    let node = |index: usize| (PI * (index as f64 + 0.5) / count as f64).cos();
    let values: Vec<f64> = (0..count).map(|index| f(node(index))).collect();
    let coefficient = |k: usize| {
        let angle = |index: usize| PI * k as f64 * (index as f64 + 0.5) / count as f64;
        let sum: f64 = values.iter().enumerate().map(|(index, value)| value * angle(index).cos()).sum();
        sum * if k == 0 { 1.0 } else { 2.0 } / count as f64
    };
    (0..count).map(coefficient).collect()
}

/// One sample of a weighted approximation: the fit tries to keep `weight`·|p(u) − `value`| small.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// The point, in [-1, 1].
    pub u: f64,
    /// Value wanted there.
    pub value: f64,
    /// Weight of an error there, positive.
    pub weight: f64,
}

/// What is asked of a minimax fit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fit {
    /// Degree of the series.
    pub degree: usize,
    /// Rounds of least squares.
    pub rounds: usize,
    /// Least factor by which reweighting leaves a sample in the problem, relative to the mean of all.
    pub floor: f64,
    /// Weighted error that is good enough: no round follows one that has no larger one, or one that shows that every series
    /// has a larger one.
    pub enough: f64,
}

/// A series that nearly minimises the largest weighted error over the samples, and that error.
///
/// Lawson's algorithm (1961): the minimax series is the limit of weighted least-squares fits, each of which multiplies the
/// weight of a sample by its error in the last one. The best of all rounds is returned. Needs more different points than the
/// degree. Least squares are solved by Householder reflections, which are backward stable, so that the *error* is accurate
/// even where the coefficients are ill determined.
pub fn minimax(samples: &[Sample], fit: &Fit) -> (Vec<f64>, f64) {
    let of_samples = |f: &dyn Fn(&Sample) -> f64| samples.iter().map(f).collect::<Vec<f64>>();
    let column = |k: usize| of_samples(&|sample| (k as f64 * sample.u.clamp(-1.0, 1.0).acos()).cos() * sample.weight);
    let columns: Vec<Vec<f64>> = (0..=fit.degree).map(column).collect();
    let target = of_samples(&|sample| sample.value * sample.weight);
    let mut lawson = vec![1.0; samples.len()];
    let mut best = (vec![0.0; columns.len()], f64::INFINITY);
    for _ in 0..fit.rounds {
        let roots: Vec<f64> = lawson.iter().map(|weight: &f64| weight.sqrt()).collect();
        let scaled = |column: &Vec<f64>| column.iter().zip(&roots).map(|(entry, root)| entry * root).collect();
        let series = least_squares(columns.iter().map(scaled).collect(), scaled(&target));
        let mut errors = target.clone();
        for (column, c) in columns.iter().zip(&series) {
            errors.iter_mut().zip(column).for_each(|(error, entry)| *error -= entry * c);
        }
        let largest = errors.iter().fold(0.0, |most: f64, error| most.max(error.abs()));
        if largest < best.1 {
            best = (series, largest);
        }
        let mean =
            lawson.iter().zip(&errors).map(|(weight, error)| weight * error.abs()).sum::<f64>() / samples.len() as f64;
        // No series has a smaller weighted mean of squares, and so none a smaller largest error than its root.
        let squares = lawson.iter().zip(&errors).map(|(weight, error)| weight * error * error).sum::<f64>();
        let hopeless = squares > fit.enough.powi(2) * lawson.iter().sum::<f64>();
        if largest <= fit.enough || mean == 0.0 || (fit.enough > 0.0 && hopeless) {
            break;
        }
        for (weight, error) in lawson.iter_mut().zip(&errors) {
            *weight = (*weight * error.abs() / mean).max(fit.floor);
        }
    }
    best
}

/// The x that minimises |Σ x_k·column_k − target|, by Householder reflections.
fn least_squares(mut columns: Vec<Vec<f64>>, mut target: Vec<f64>) -> Vec<f64> {
    let unknowns = columns.len();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for k in 0..unknowns {
        let (done, rest) = columns.split_at_mut(k + 1);
        let mut vector = done[k][k..].to_vec();
        let norm = dot(&vector, &vector).sqrt();
        if norm == 0.0 {
            continue;
        }
        // The first entry of the reflection's vector never cancels.
        let diagonal = if vector[0] > 0.0 { -norm } else { norm };
        vector[0] -= diagonal;
        done[k][k] = diagonal;
        let half_norm = -diagonal * vector[0];
        for column in rest.iter_mut().chain([&mut target]) {
            let factor = dot(&vector, &column[k..]) / half_norm;
            column[k..].iter_mut().zip(&vector).for_each(|(entry, v)| *entry -= factor * v);
        }
    }
    let mut solution = vec![0.0; unknowns];
    for k in (0..unknowns).rev() {
        let known: f64 = (k + 1..unknowns).map(|j| columns[j][k] * solution[j]).sum();
        solution[k] = if columns[k][k] == 0.0 { 0.0 } else { (target[k] - known) / columns[k][k] };
    }
    solution
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clenshaw_equals_the_cosine_form() {
        let series = [0.3, -0.2, 0.7, 0.05, -1.1];
        for k in 0..=20 {
            let angle = PI * k as f64 / 20.0;
            let expected: f64 = series.iter().enumerate().map(|(j, c)| c * (j as f64 * angle).cos()).sum();
            assert!((value(&series, angle.cos()) - expected).abs() < 1e-13);
            assert_eq!(values(&series, [angle.cos(), 0.5]), [value(&series, angle.cos()), value(&series, 0.5)]);
        }
        assert_eq!(value(&[], 0.5), 0.0);
    }

    #[test]
    fn interpolation_converges() {
        let series = interpolate(|u| (2.75 * u + 1.25).exp(), 24);
        for k in 0..=50 {
            let u = f64::from(k) / 25.0 - 1.0;
            assert!((value(&series, u) - (2.75 * u + 1.25).exp()).abs() < 1e-12);
        }
    }

    #[test]
    fn minimax_of_the_next_power_is_the_chebyshev_remainder() {
        // The best approximation of u^6 by degree 5 on [-1, 1] has error 2^-5.
        let sample = |k: usize| {
            let u = (PI * (k as f64 + 0.5) / 400.0).cos();
            Sample { u, value: u.powi(6), weight: 1.0 }
        };
        let samples: Vec<Sample> = (0..400).map(sample).collect();
        let fit = Fit { degree: 5, rounds: 31, floor: 1e-6, enough: 0.0 };
        let (series, largest) = minimax(&samples, &fit);
        let worst = samples.iter().map(|s| (value(&series, s.u) - s.value).abs()).fold(0.0, f64::max);
        assert!((worst - largest).abs() < 1e-14 && worst < 1.02 / 32.0, "{worst} and {largest}");
        let (_, rough) = minimax(&samples, &Fit { enough: 1.0, ..fit });
        assert!(rough > worst && rough <= 1.0, "the first round was good enough");
    }
}
