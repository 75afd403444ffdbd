//! Linear maps in the clear: by their diagonals as on ciphertexts, or, as operands are zero where they hold no entry, by
//! rows of the weights as they are.

use super::{Diagonal, Giant, Linear, Matrices, Output, Parts, Scheme, Sizes, SlotAlgebra, table};
use crate::Error;
use crate::expression::Environment;
use crate::rotations::{plus_rotated, rotated};
use crate::table::Table;
use crate::weights::Kept;

/// Vectors in the clear, multiplied by diagonals.
struct Clear<'a> {
    linear: &'a Linear,
    tables: &'a [Table],
    environment: &'a Environment,
    /// Those of the output that is being computed.
    matrices: Option<Matrices>,
}

/// sum ← sum + a
fn add(sum: &mut Parts, a: &Parts) {
    let add = |sum: &mut [f64], a: &[f64]| sum.iter_mut().zip(a).for_each(|(sum, a)| *sum += a);
    add(&mut sum.real, &a.real);
    if let (Some(sum), Some(a)) = (&mut sum.imaginary, &a.imaginary) {
        add(sum, a);
    }
}

/// sum ← sum ± a·weights
fn add_product(sum: &mut [f64], a: &[f64], weights: &[f32], sign: f64) {
    sum.iter_mut().zip(a.iter().zip(weights)).for_each(|(sum, (a, &weight))| *sum += sign * a * f64::from(weight));
}

impl SlotAlgebra for Clear<'_> {
    type Value = Parts;
    type Error = Error;

    fn rotate(&mut self, a: &Parts, by: &[i64]) -> Result<Vec<Parts>, Self::Error> {
        let turn = |&by: &i64| Parts {
            real: rotated(&a.real, by),
            imaginary: a.imaginary.as_ref().map(|imaginary| rotated(imaginary, by)),
        };
        Ok(by.iter().map(turn).collect())
    }

    fn add_rotations(&mut self, a: &Parts, by: &[i64]) -> Result<Parts, Self::Error> {
        let mut sum = a.clone();
        self.rotate(a, by)?.iter().for_each(|turned| add(&mut sum, turned));
        Ok(sum)
    }

    fn add_rotation_times_i(&mut self, a: &Parts, by: i64) -> Result<Parts, Self::Error> {
        // The operand is real.
        Ok(Parts { real: a.real.clone(), imaginary: Some(rotated(&a.real, by)) })
    }

    fn weigh(&mut self, giants: &[Giant<'_, Parts>]) -> Result<Parts, Self::Error> {
        let mut total: Option<Parts> = None;
        for giant in giants {
            let products = self.products(&giant.terms)?;
            let turned = self.rotate(&products, &[giant.by])?.remove(0);
            match &mut total {
                Some(total) => add(total, &turned),
                None => total = Some(turned),
            }
        }
        Ok(total.unwrap_or(Parts { real: Vec::new(), imaginary: None }))
    }

    fn parts(&mut self, z: Parts) -> Result<[Parts; 2], Self::Error> {
        let twice = |part: Vec<f64>| Parts { real: part.into_iter().map(|x| 2.0 * x).collect(), imaginary: None };
        let imaginary = z.imaginary.unwrap_or_else(|| vec![0.0; z.real.len()]);
        Ok([twice(z.real), twice(imaginary)])
    }

    fn real_part(&mut self, z: Parts) -> Result<Parts, Self::Error> {
        let [real, _] = self.parts(z)?;
        Ok(real)
    }

    fn add_bias(&mut self, mut a: Parts, output: u32, matrix: u32) -> Result<Parts, Self::Error> {
        let bias = self.linear.bias(a.real.len() as u32, self.environment, self.tables, output, matrix)?;
        a.real.iter_mut().zip(bias).for_each(|(a, b)| *a += b);
        Ok(a)
    }
}

impl Clear<'_> {
    /// Σ a·diagonal over one or more terms.
    fn products(&mut self, terms: &[(&Parts, Diagonal)]) -> Result<Parts, Error> {
        let mut sum: Option<Parts> = None;
        for (a, diagonal) in terms {
            let known = self.matrices.take().filter(|matrices| matrices.output() == diagonal.output);
            let matrices = match known {
                Some(known) => known,
                None => self.linear.load(diagonal.output, self.tables)?,
            };
            let factor = self.linear.diagonals(a.real.len() as u32, &matrices, &[*diagonal]).remove(0);
            self.matrices = Some(matrices);
            let zero = || vec![0.0; a.real.len()];
            let sum =
                sum.get_or_insert_with(|| Parts { real: zero(), imaginary: factor.imaginary.as_ref().map(|_| zero()) });
            add_product(&mut sum.real, &a.real, &factor.real, 1.0);
            if let (Some(sum), Some(factor)) = (&mut sum.imaginary, &factor.imaginary) {
                add_product(sum, &a.real, factor, 1.0);
            }
            if let Some(imaginary) = &a.imaginary {
                if let Some(factor) = &factor.imaginary {
                    add_product(&mut sum.real, imaginary, factor, -1.0);
                }
                if let Some(sum) = &mut sum.imaginary {
                    add_product(sum, imaginary, &factor.real, 1.0);
                }
            }
        }
        Ok(sum.unwrap_or(Parts { real: Vec::new(), imaginary: None }))
    }
}

impl Linear {
    /// All results of a real operand, slots that hold no entry included. Matrices are kept with what else is loaded.
    ///
    /// # Errors
    /// Those of [`Table::load`].
    pub fn evaluate(
        &self,
        x: &[f64],
        tables: &[Table],
        environment: &Environment,
        kept: &Kept,
    ) -> Result<Vec<Vec<f64>>, Error> {
        match self.entries_of(x) {
            Some(entries) => self.evaluate_entries(x.len() as u32, &entries, tables, environment, kept),
            None => self.evaluate_by_diagonals(x, tables, environment),
        }
    }

    /// The same by the method that ciphertexts take, for any operand.
    pub(super) fn evaluate_by_diagonals(
        &self,
        x: &[f64],
        tables: &[Table],
        environment: &Environment,
    ) -> Result<Vec<Vec<f64>>, Error> {
        let mut algebra = Clear { linear: self, tables, environment, matrices: None };
        let operand = Parts { real: x.to_vec(), imaginary: None };
        let results = self.apply(x.len() as u32, environment, &mut algebra, &operand)?;
        Ok(results.into_iter().map(|result| result.real).collect())
    }

    /// By feature of the operand: its entries, one for each of the unit's vectors. `None` where slots that hold no feature
    /// are not zero.
    fn entries_of(&self, x: &[f64]) -> Option<Vec<f64>> {
        let unit = self.unit as usize;
        let stride = x.len() / self.input.positions as usize;
        let mut entries = vec![0.0; self.input.features.width() as usize * unit];
        for (slots, feature) in x.chunks_exact(stride).zip(self.input.entries()) {
            let (held, others) = slots.split_at(if feature.is_some() { unit } else { 0 });
            if others.iter().any(|&slot| slot != 0.0) {
                return None;
            }
            if let Some(feature) = feature {
                entries[feature as usize * unit..][..unit].copy_from_slice(held);
            }
        }
        Some(entries)
    }

    fn evaluate_entries(
        &self,
        slots: u32,
        entries: &[f64],
        tables: &[Table],
        environment: &Environment,
        kept: &Kept,
    ) -> Result<Vec<Vec<f64>>, Error> {
        let mut results = Vec::with_capacity(self.results());
        for (number, output) in (0..).zip(&self.outputs) {
            let landing = output.landing.as_ref().map(|landing| landing.evaluate(environment));
            let reduction = Self::reduction(self.sizes(slots, output), landing);
            for (index, matrix) in (0..).zip(&output.matrices) {
                let weights = table(tables, matrix.weights)?.load_kept(kept)?;
                let mut sum = self.partial_products(slots, output, &weights, entries);
                for by in &reduction {
                    sum = plus_rotated(&sum, by * i64::from(self.unit));
                }
                if matrix.bias.is_some() {
                    let bias = self.bias(slots, environment, tables, number, index)?;
                    sum.iter_mut().zip(bias).for_each(|(sum, bias)| *sum += bias);
                }
                results.push(sum);
            }
        }
        Ok(results)
    }

    /// What is in the slots ahead of the reduction: slot o·s_out + r holds the part of row o's product that is over the
    /// positions of one residue modulo R = min(s_out, P_in), the same as [`Linear::diagonals`] bring there. With d = o·s_out/s_in
    /// these are the positions ≡ d + r; or, with α = P_in/P_out, those ≡ α·o + q + α·i where r = q·s_in + i, or ≡ α·o + r where the spread is
    /// shared.
    fn partial_products(&self, slots: u32, output: &Output, weights: &[f32], entries: &[f64]) -> Vec<f64> {
        let Sizes { inputs, in_stride, out_stride, scheme, .. } = self.sizes(slots, output);
        let unit = self.unit as usize;
        let residues = out_stride.min(inputs);
        let ratio = inputs / output.order.positions.min(inputs);
        let mut residue_of = vec![0; self.input.features.width() as usize];
        for (position, feature) in (0..).zip(self.input.entries()) {
            if let Some(feature) = feature {
                residue_of[feature as usize] = (position % residues) as usize;
            }
        }
        let in_order = residue_of.iter().enumerate().all(|(feature, &residue)| residue == feature % residues as usize);
        let mut results = vec![0.0; slots as usize];
        let mut sums = vec![0.0; residues as usize * unit];
        for (o, row) in (0..).zip(output.order.entries()) {
            let Some(row) = row else { continue };
            let row = &weights[row as usize * residue_of.len()..][..residue_of.len()];
            sums.fill(0.0);
            if in_order {
                add_in_order(&mut sums, row, entries, unit);
            } else {
                add_by_residue(&mut sums, row, &residue_of, entries, unit);
            }
            let first = match scheme {
                Scheme::Up => o * out_stride / in_stride,
                Scheme::Down | Scheme::Shared => o * ratio,
            };
            let slots = &mut results[(o * out_stride) as usize * unit..];
            for (residue, sums) in (0..residues).zip(sums.chunks_exact(unit)) {
                let along = (residue + residues - first % residues) % residues;
                let inner = match scheme {
                    Scheme::Up | Scheme::Shared => along,
                    Scheme::Down => along % ratio * in_stride + along / ratio,
                };
                slots[inner as usize * unit..][..unit].copy_from_slice(sums);
            }
        }
        results
    }
}

/// Adds the products of a row's weights and their entries, `unit` of each, to the sums of their residues.
fn add_by_residue(sums: &mut [f64], row: &[f32], residue_of: &[usize], entries: &[f64], unit: usize) {
    for ((&weight, &residue), entries) in row.iter().zip(residue_of).zip(entries.chunks_exact(unit)) {
        add_scaled(&mut sums[residue * unit..][..unit], weight, entries);
    }
}

/// The same where each entry's residue follows that of the one before.
fn add_in_order(sums: &mut [f64], row: &[f32], entries: &[f64], unit: usize) {
    for (weights, entries) in row.chunks(sums.len() / unit).zip(entries.chunks(sums.len())) {
        let terms = weights.iter().zip(entries.chunks_exact(unit)).zip(sums.chunks_exact_mut(unit));
        terms.for_each(|((&weight, entries), sums)| add_scaled(sums, weight, entries));
    }
}

fn add_scaled(sums: &mut [f64], weight: f32, entries: &[f64]) {
    sums.iter_mut().zip(entries).for_each(|(sum, entry)| *sum += f64::from(weight) * entry);
}
