//! Linear maps in the clear.

use super::{Diagonal, Linear, Parts, SlotAlgebra, Weights};
use crate::expression::Environment;
use crate::program::Table;

/// Vectors in the clear; diagonals come from `diagonal`.
pub struct Clear<'a, F> {
    /// The map.
    pub linear: &'a Linear,
    /// Tables of the program.
    pub tables: &'a [Table],
    /// Values of the variables.
    pub environment: &'a Environment,
    /// The values of a diagonal, computed or known.
    pub diagonal: F,
}

fn rotated(part: &[f64], by: i64) -> Vec<f64> {
    let by = by.rem_euclid(part.len() as i64) as usize;
    [&part[by..], &part[..by]].concat()
}

fn add_product(sum: &mut [f64], a: &[f64], weights: &[f32]) {
    sum.iter_mut().zip(a.iter().zip(weights)).for_each(|(sum, (a, &weight))| *sum += a * f64::from(weight));
}

impl<D: AsRef<Weights>, F: FnMut(Diagonal) -> D> SlotAlgebra for Clear<'_, F> {
    type Value = Parts;
    type Error = std::convert::Infallible;

    fn rotate(&mut self, a: &Parts, by: &[i64]) -> Result<Vec<Parts>, Self::Error> {
        let turn = |&by: &i64| Parts {
            real: rotated(&a.real, by),
            imaginary: a.imaginary.as_ref().map(|imaginary| rotated(imaginary, by)),
        };
        Ok(by.iter().map(turn).collect())
    }

    fn add(&mut self, a: &Parts, mut b: Parts) -> Result<Parts, Self::Error> {
        let add = |a: &[f64], b: &mut [f64]| b.iter_mut().zip(a).for_each(|(b, a)| *b += a);
        add(&a.real, &mut b.real);
        if let (Some(a), Some(b)) = (&a.imaginary, &mut b.imaginary) {
            add(a, b);
        }
        Ok(b)
    }

    fn weigh(&mut self, terms: &[(&Parts, Diagonal)]) -> Result<Parts, Self::Error> {
        let mut sum: Option<Parts> = None;
        for (a, diagonal) in terms {
            let factor = (self.diagonal)(*diagonal);
            let factor = factor.as_ref();
            let zero = || vec![0.0; a.real.len()];
            let sum =
                sum.get_or_insert_with(|| Parts { real: zero(), imaginary: factor.imaginary.as_ref().map(|_| zero()) });
            // The operand is real.
            add_product(&mut sum.real, &a.real, &factor.real);
            if let (Some(sum), Some(factor)) = (&mut sum.imaginary, &factor.imaginary) {
                add_product(sum, &a.real, factor);
            }
        }
        Ok(sum.unwrap_or(Parts { real: Vec::new(), imaginary: None }))
    }

    fn parts(&mut self, z: Parts) -> Result<[Parts; 2], Self::Error> {
        let twice = |part: Vec<f64>| Parts { real: part.into_iter().map(|x| 2.0 * x).collect(), imaginary: None };
        let imaginary = z.imaginary.unwrap_or_else(|| vec![0.0; z.real.len()]);
        Ok([twice(z.real), twice(imaginary)])
    }

    fn add_bias(&mut self, mut a: Parts, output: u32, matrix: u32) -> Result<Parts, Self::Error> {
        let bias = self.linear.bias(a.real.len() as u32, self.environment, self.tables, output, matrix);
        a.real.iter_mut().zip(bias).for_each(|(a, b)| *a += b);
        Ok(a)
    }
}

impl Linear {
    /// All results of a real operand, junk slots included.
    pub fn evaluate<D: AsRef<Weights>>(
        &self,
        x: &[f64],
        tables: &[Table],
        environment: &Environment,
        diagonal: impl FnMut(Diagonal) -> D,
    ) -> Vec<Vec<f64>> {
        let mut algebra = Clear { linear: self, tables, environment, diagonal };
        let x = Parts { real: x.to_vec(), imaginary: None };
        let Ok(results) = self.apply(x.real.len() as u32, environment, &mut algebra, &x);
        results.into_iter().map(|result| result.real).collect()
    }
}
