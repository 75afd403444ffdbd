//! Linear layers as one op, in interleaved replicated packing (arXiv 2602.11470).
//!
//! A vector of P_in positions at stride s_in = n/P_in, zero elsewhere, is multiplied by matrices into P_out positions at
//! stride s_out = n/P_out. [`Linear::apply`] spreads the vector (log2 s_in rotations) so that each group of slots holds
//! several of its entries, multiplies by M = max(1, P_in·P_out/n) plaintext diagonals by baby steps and giant steps with the
//! giant shifts folded into the weights, and sums inside each output group. Babies share one decomposition; giants are added
//! ahead of their division by P, which is one for an output and rescales as well (ePrint 2020/1203). It takes one level.
//! Slots s_out·o hold the result, the others junk.
//!
//! - P_out ≥ P_in: after the spread slot i·s_in + r holds entry i + r, and diagonal m holds in slot S the weight of
//!   output S / s_out and input (S / s_in + S % s_in + m·s_out) mod P_in.
//! - P_out < P_in, α = P_in/P_out: after the spread slot p·s_in + r holds entry p + α·r, and diagonal m the weight of
//!   output S / s_out and input (S / s_in + α·(S % s_in) + m·s_out) mod P_in.
//! - P_out < P_in ≤ s_in: the spread of the first case is used, so that it can be shared with outputs of that case; slot
//!   o·s_out + r for r < P_in meets input α·o + r.
//!
//! With a unit u > 1 every slot above stands for u consecutive slots, which hold the same entry of u different vectors.
//!
//! **Complex weights.** Two real matrices of one shape make one output: x times W1 + i·W2 has W1·x as its real and W2·x as
//! its imaginary part, so that products and summing rotations serve both, and one conjugation takes them apart.
//!
//! **Complex operands.** Of z_p = x_p + i·x_{p + P_in/2}, at the cost of one rotation, the product with
//! W_p − i·W_{p + P_in/2} has the terms of both entries as its real part. Diagonals m and m + M/2 meet entries that lie
//! P_in/2 apart: the first half of them serves both, and a conjugation takes the real part of the result. The slots of the
//! result are the same, junk included.
//!
//! The method is written once, over a [`SlotAlgebra`]: in the clear ([`evaluate`]), counted ([`Linear::for_each_step`]), and
//! on ciphertexts by the runtime.

pub mod evaluate;
mod features;
mod steps;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use crate::Error;
use crate::expression::{Environment, Integer, TableId};
use crate::rotations::{Sharing, additions};
use crate::table::Table;

pub use features::{Features, Heads, Order, Padded};
pub use steps::Step;

/// A matrix that multiplies the operand.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Matrix {
    /// Its entries, row-major, `[out][in]`.
    pub weights: TableId,
    /// What is added to each output, `[out]`.
    pub bias: Option<TableId>,
}

/// One matrix, or two that share their products.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Output {
    /// One matrix; or two of one shape, as real and imaginary part of one.
    pub matrices: Vec<Matrix>,
    /// Where the entries of the results lie.
    pub order: Order,
    /// The results lie in slots s_out·o + landing instead of s_out·o, at no extra rotation: bit b of the landing decides the
    /// direction of the reducing rotation by 2^b. Landings need a unit of 1.
    pub landing: Option<Integer>,
}

/// x → W·x + b for each matrix.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Linear {
    /// Where the operand's entries lie.
    pub input: Order,
    /// Consecutive slots that hold the same entry of different vectors.
    pub unit: u32,
    /// How many of them hold vectors: the others take no bias.
    pub vectors: Integer,
    /// Whether the second half of the operand's entries becomes the imaginary part of the first, for half the products.
    pub complex_operand: bool,
    /// What is made of the operand, all by the same spread; each gives one result a matrix.
    pub outputs: Vec<Output>,
}

/// A plaintext factor of a linear map: diagonal `index` of an output, rotated to the right by `shift` groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Diagonal {
    /// Which output.
    pub output: u32,
    /// Number m of the diagonal.
    pub index: u32,
    /// The giant step that follows, in groups of slots.
    pub shift: u32,
}

/// A vector's real parts, and its imaginary parts unless all are zero.
#[derive(Clone, Debug, PartialEq)]
pub struct Parts {
    /// Real parts.
    pub real: Vec<f64>,
    /// Imaginary parts.
    pub imaginary: Option<Vec<f64>>,
}

/// The values of a diagonal in all slots: weights as their table has them, or half of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Factor {
    /// Of the first matrix.
    pub real: Vec<f32>,
    /// Of the second matrix of a complex output, or of the entries that are the imaginary part of a complex operand.
    pub imaginary: Option<Vec<f32>>,
}

/// The entries of an output's matrices, held while diagonals are made of them.
#[derive(Clone, Debug)]
pub struct Matrices {
    output: u32,
    entries: Vec<Arc<[f32]>>,
}

impl Matrices {
    /// The output whose matrices they are.
    pub fn output(&self) -> u32 {
        self.output
    }
}

/// Σ a·diagonal over one or more terms, turned to the left.
#[derive(Debug)]
pub struct Giant<'v, V> {
    /// By how many slots.
    pub by: i64,
    /// The operands, and what each is multiplied by.
    pub terms: Vec<(&'v V, Diagonal)>,
}

/// What a linear map is computed with.
pub trait SlotAlgebra {
    /// A packed vector.
    type Value;
    /// Why something cannot be computed.
    type Error;

    /// The vector rotated to the left by each of the amounts, none of which is 0 modulo the number of slots.
    fn rotate(&mut self, a: &Self::Value, by: &[i64]) -> Result<Vec<Self::Value>, Self::Error>;

    /// a plus its rotations to the left by the amounts, of which there are few.
    fn add_rotations(&mut self, a: &Self::Value, by: &[i64]) -> Result<Self::Value, Self::Error>;

    /// a + i·(a rotated to the left), by an amount that is not 0 modulo the number of slots.
    fn add_rotation_times_i(&mut self, a: &Self::Value, by: i64) -> Result<Self::Value, Self::Error>;

    /// The sum of one or more giant steps, one level lower. The first of them turns nothing.
    fn weigh(&mut self, giants: &[Giant<'_, Self::Value>]) -> Result<Self::Value, Self::Error>;

    /// Real and imaginary part of a vector of half their size: z + z̄ and (z̄ − z)·i.
    fn parts(&mut self, z: Self::Value) -> Result<[Self::Value; 2], Self::Error>;

    /// Real part of a vector of half its size: z + z̄.
    fn real_part(&mut self, z: Self::Value) -> Result<Self::Value, Self::Error>;

    /// a + the bias of a matrix of an output.
    fn add_bias(&mut self, a: Self::Value, output: u32, matrix: u32) -> Result<Self::Value, Self::Error>;
}

/// Which spread an output uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Up,
    Down,
    Shared,
}

/// Powers of two from `start` up to but not including `stop`.
fn doubling(start: u32, stop: u32) -> impl Iterator<Item = i64> {
    std::iter::successors(Some(start), |k| Some(2 * k)).take_while(move |&k| k < stop).map(i64::from)
}

/// Groups of slots of several diagonals that are made together.
const TILE: u32 = 64;

/// In place of an entry: the position holds none.
const NOTHING: usize = usize::MAX;

/// By position: the entry that it holds, or [`NOTHING`].
fn positions_of(order: &Order) -> Vec<usize> {
    order.entries().into_iter().map(|entry| entry.map_or(NOTHING, |entry| entry as usize)).collect()
}

/// Sizes of an output in groups of slots.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    groups: u32,
    inputs: u32,
    outputs: u32,
    in_stride: u32,
    out_stride: u32,
    scheme: Scheme,
    products: u32,
}

impl Linear {
    /// Number of results.
    pub fn results(&self) -> usize {
        self.outputs.iter().map(|output| output.matrices.len()).sum()
    }

    /// All matrices with their outputs, in the order of the results.
    pub fn matrices(&self) -> impl Iterator<Item = (&Output, &Matrix)> {
        self.outputs.iter().flat_map(|output| output.matrices.iter().map(move |matrix| (output, matrix)))
    }

    /// What does not fit, in words; `tables` are those of the program.
    pub fn problems(&self, slots: u32, tables: &[Table]) -> Vec<String> {
        let mut found = Vec::new();
        let groups = slots.checked_div(self.unit).unwrap_or(0);
        let orders = self.outputs.iter().map(|output| &output.order).chain([&self.input]);
        for order in orders {
            let positions = order.positions;
            if !(positions.is_power_of_two() && positions <= groups && positions >= order.features.positions()) {
                found.push(format!("{positions} positions do not lie in {groups} groups of slots"));
            }
        }
        if !self.unit.is_power_of_two() || self.outputs.is_empty() {
            found.push(format!("a unit of {}, and {} outputs", self.unit, self.outputs.len()));
        }
        if !found.is_empty() {
            return found;
        }
        let columns = self.input.features.width();
        for output in &self.outputs {
            let rows = output.order.features.width();
            if !(1..=2).contains(&output.matrices.len()) || (output.landing.is_some() && self.unit > 1) {
                found.push(format!("an output of {} matrices at unit {}", output.matrices.len(), self.unit));
            }
            for (table, length) in output.matrices.iter().flat_map(|matrix| {
                [(Some(matrix.weights), rows as usize * columns as usize), (matrix.bias, rows as usize)]
            }) {
                let Some(table) = table else { continue };
                match tables.get(table.0 as usize) {
                    None => found.push(format!("there is no table {table}")),
                    Some(known) if known.entries().is_some_and(|entries| entries < length) => {
                        found.push(format!("table {table} of shape {:?} has less than {length} entries", known.shape));
                    }
                    Some(_) => {}
                }
            }
            if self.complex_operand && (output.matrices.len() > 1 || self.meetings(slots, output) < 2) {
                found.push("a complex operand takes single matrices of two diagonals at least".to_owned());
            }
            if self.spread(slots, output) != self.spread(slots, &self.outputs[0]) {
                found.push("its outputs need different spreads".to_owned());
            }
        }
        found
    }

    /// Diagonals of an output's matrices.
    fn meetings(&self, slots: u32, output: &Output) -> u32 {
        let (inputs, outputs) = (u64::from(self.input.positions), u64::from(output.order.positions));
        (inputs * outputs / u64::from(slots / self.unit)).max(1) as u32
    }

    /// The same map with a complex operand, and so with single matrices; `None` where an output has one diagonal only.
    pub fn with_complex_operand(&self, slots: u32) -> Option<Self> {
        if self.complex_operand || self.outputs.iter().any(|output| self.meetings(slots, output) < 2) {
            return None;
        }
        let alone = |(output, matrix): (&Output, &Matrix)| Output { matrices: vec![matrix.clone()], ..output.clone() };
        Some(Self { complex_operand: true, outputs: self.matrices().map(alone).collect(), ..self.clone() })
    }

    fn sizes(&self, slots: u32, output: &Output) -> Sizes {
        let groups = slots / self.unit;
        let (inputs, outputs) = (self.input.positions, output.order.positions);
        let scheme = if outputs >= inputs {
            Scheme::Up
        } else if groups / inputs >= inputs {
            Scheme::Shared
        } else {
            Scheme::Down
        };
        let products = self.meetings(slots, output) / if self.complex_operand { 2 } else { 1 };
        Sizes { groups, inputs, outputs, in_stride: groups / inputs, out_stride: groups / outputs, scheme, products }
    }

    /// Rotations that spread the operand for an output, in groups.
    pub fn spread(&self, slots: u32, output: &Output) -> Vec<i64> {
        let Sizes { inputs, outputs, in_stride, out_stride, scheme, .. } = self.sizes(slots, output);
        let (step, reach) = match scheme {
            Scheme::Up if outputs == inputs => (in_stride - 1, in_stride.min(inputs)),
            Scheme::Up => (in_stride - 1, in_stride),
            Scheme::Shared => (in_stride - 1, inputs),
            Scheme::Down => (out_stride - 1, in_stride.min(outputs)),
        };
        doubling(1, reach).map(|k| k * i64::from(step)).collect()
    }

    /// Rotations that sum an output's groups, in groups.
    fn reduction(sizes: Sizes, landing: Option<i64>) -> Vec<i64> {
        let Sizes { inputs, outputs, in_stride, out_stride, scheme, .. } = sizes;
        match (landing, scheme) {
            (Some(target), _) => doubling(1, out_stride).map(|k| if target / k % 2 == 1 { -k } else { k }).collect(),
            (None, Scheme::Up | Scheme::Shared) => doubling(1, out_stride.min(inputs)).collect(),
            (None, Scheme::Down) => {
                doubling(1, in_stride.min(outputs)).chain(doubling(in_stride, out_stride)).collect()
            }
        }
    }

    /// Number of babies of outputs with so many products, a power of two; the babies serve all of them.
    fn babies(&self, slots: u32, products: u32) -> u32 {
        let sharing = self.outputs.iter().filter(|output| self.sizes(slots, output).products == products).count();
        let [baby, giant] = [Sharing::Decomposition, Sharing::Division].map(Sharing::relative_cost);
        let cost =
            |babies: u32| baby * f64::from(babies - 1) + giant * sharing as f64 * f64::from(products / babies - 1);
        let powers = std::iter::successors(Some(1), |k| Some(2 * k)).take_while(|&k| k <= products);
        powers.min_by(|&a, &b| cost(a).total_cmp(&cost(b))).unwrap_or(1)
    }

    /// Computes the results from the operand, in the order of [`Linear::matrices`].
    pub fn apply<A: SlotAlgebra>(
        &self,
        slots: u32,
        environment: &Environment,
        algebra: &mut A,
        x: &A::Value,
    ) -> Result<Vec<A::Value>, A::Error> {
        let unit = i64::from(self.unit);
        let steps = |steps: Vec<i64>| -> Vec<i64> { steps.into_iter().map(|step| step * unit).collect() };
        let spreading = self.outputs.first().map(|output| self.spread(slots, output)).unwrap_or_default();
        let mut spread =
            if self.complex_operand { Some(algebra.add_rotation_times_i(x, i64::from(slots / 2))?) } else { None };
        for amounts in additions(&steps(spreading), slots) {
            spread = Some(algebra.add_rotations(spread.as_ref().unwrap_or(x), &amounts)?);
        }
        let spread = spread.as_ref().unwrap_or(x);
        let babies = self.turned(slots, algebra, spread)?;
        let baby = |amount: i64| babies.get(&amount).unwrap_or(spread);

        let mut results = Vec::with_capacity(self.results());
        for (number, output) in (0..).zip(&self.outputs) {
            let sizes = self.sizes(slots, output);
            let count = self.babies(slots, sizes.products);
            let shift = sizes.in_stride * sizes.out_stride;
            let giant = |giant: u32| {
                let offset = giant * count * shift;
                let term = |j: u32| {
                    let diagonal = Diagonal { output: number, index: giant * count + j, shift: offset };
                    (baby(i64::from(j * shift) * unit), diagonal)
                };
                Giant { by: i64::from(offset) * unit, terms: (0..count).map(term).collect() }
            };
            let giants: Vec<_> = (0..sizes.products / count).map(giant).collect();
            let mut sum = algebra.weigh(&giants)?;
            let landing = output.landing.as_ref().map(|landing| landing.evaluate(environment));
            for amounts in additions(&steps(Self::reduction(sizes, landing)), slots) {
                sum = algebra.add_rotations(&sum, &amounts)?;
            }
            let values = match output.matrices.len() {
                2 => algebra.parts(sum)?.into(),
                _ if self.complex_operand => vec![algebra.real_part(sum)?],
                _ => vec![sum],
            };
            for ((index, matrix), value) in (0..).zip(&output.matrices).zip(values) {
                results.push(if matrix.bias.is_some() { algebra.add_bias(value, number, index)? } else { value });
            }
        }
        Ok(results)
    }

    /// The rotations of the spread operand that some output needs, by their amounts.
    fn turned<A: SlotAlgebra>(
        &self,
        slots: u32,
        algebra: &mut A,
        spread: &A::Value,
    ) -> Result<BTreeMap<i64, A::Value>, A::Error> {
        let mut amounts = BTreeSet::new();
        for output in &self.outputs {
            let sizes = self.sizes(slots, output);
            let shift = sizes.in_stride * sizes.out_stride * self.unit;
            amounts.extend((1..self.babies(slots, sizes.products)).map(|j| i64::from(j * shift)));
        }
        if amounts.is_empty() {
            return Ok(BTreeMap::new());
        }
        let by: Vec<i64> = amounts.iter().copied().collect();
        Ok(amounts.into_iter().zip(algebra.rotate(spread, &by)?).collect())
    }

    /// Vectors that are held at once at most while the results are computed, the operand and finished results left out: the
    /// babies, and two sums, one of them before its division by P.
    pub fn live_vectors(&self, slots: u32) -> u32 {
        let babies = |output: &Output| self.babies(slots, self.sizes(slots, output).products);
        self.outputs.iter().map(babies).max().unwrap_or(1) + 2
    }

    /// Reads the matrices of an output.
    ///
    /// # Errors
    /// Those of [`Table::load`].
    pub fn load(&self, output: u32, tables: &[Table]) -> Result<Matrices, Error> {
        let matrices = self.outputs[output as usize].matrices.iter();
        let entries = matrices.map(|matrix| table(tables, matrix.weights)?.load()).collect::<Result<_, _>>()?;
        Ok(Matrices { output, entries })
    }

    /// The values of several diagonals of an output in all slots, made on all cores. What is complex is halved, for
    /// [`SlotAlgebra::parts`] and [`SlotAlgebra::real_part`]. Neighbouring diagonals take neighbouring entries of a row, so
    /// that each line of memory that is read serves several.
    ///
    /// # Panics
    /// Where a table is shorter than [`problems`](Self::problems) allows.
    pub fn diagonals(&self, slots: u32, matrices: &Matrices, wanted: &[Diagonal]) -> Vec<Factor> {
        let output = &self.outputs[matrices.output as usize];
        let Sizes { groups, inputs, out_stride, scheme, .. } = self.sizes(slots, output);
        let (columns, rows) = (positions_of(&self.input), positions_of(&output.order));
        let (width, unit) = (self.input.features.width() as usize, self.unit as usize);
        // By part: entries, what they are multiplied by, and how far the positions lie that they meet.
        let parts: Vec<(&Arc<[f32]>, f32, u32)> = match matrices.entries.as_slice() {
            [only] if self.complex_operand => vec![(only, 0.5, 0), (only, -0.5, inputs / 2)],
            [only] => vec![(only, 1.0, 0)],
            several => several.iter().map(|entries| (entries, 0.5, 0)).collect(),
        };
        let jump = |index: u32| if scheme == Scheme::Shared { 0 } else { index * out_stride };
        let jumps: Vec<u32> = wanted.iter().map(|diagonal| jump(diagonal.index)).collect();
        let tile = groups.min(TILE);
        // By tile, diagonal, and group ahead of the diagonal's shift.
        let tiles = |&(entries, factor, apart): &(&Arc<[f32]>, f32, u32)| {
            let mut tiles = vec![0.0; groups as usize * wanted.len()];
            let rows_of = tiles.par_chunks_exact_mut(tile as usize * wanted.len()).enumerate();
            rows_of.for_each(|(number, values)| {
                let start = number as u32 * tile;
                self.for_each_meeting(slots, output, start..start + tile, |source, row, position| {
                    let row = rows[row as usize];
                    if row == NOTHING {
                        return;
                    }
                    let row = &entries[row * width..][..width];
                    for (jump, values) in jumps.iter().zip(values.chunks_exact_mut(tile as usize)) {
                        // The number of positions is a power of two.
                        if let Some(entry) = row.get(columns[((position + jump + apart) & (inputs - 1)) as usize]) {
                            values[(source - start) as usize] = factor * entry;
                        }
                    }
                });
            });
            tiles
        };
        let parts: Vec<Vec<f32>> = parts.iter().map(tiles).collect();
        let turned = |tiles: &Vec<f32>, number: usize| {
            let mut values = vec![0.0; slots as usize];
            let (first, last) = values.split_at_mut((wanted[number].shift % groups) as usize * unit);
            let places = last.chunks_exact_mut(unit).chain(first.chunks_exact_mut(unit));
            let own = tiles.chunks_exact(tile as usize).skip(number).step_by(wanted.len()).flatten();
            own.zip(places).for_each(|(value, slots)| slots.fill(*value));
            values
        };
        let factor = |number: usize| Factor {
            real: turned(&parts[0], number),
            imaginary: parts.get(1).map(|tiles| turned(tiles, number)),
        };
        (0..wanted.len()).into_par_iter().map(factor).collect()
    }

    /// Visits those of some groups of slots in which the diagonals of an output meet an input, ahead of their shifts: the
    /// group, its output's position, and that of the input that it meets in diagonal 0.
    fn for_each_meeting(&self, slots: u32, output: &Output, sources: Range<u32>, mut visit: impl FnMut(u32, u32, u32)) {
        let Sizes { inputs, outputs, in_stride, out_stride, scheme, .. } = self.sizes(slots, output);
        // All of them are powers of two.
        let ratio = inputs / outputs.min(inputs);
        let quotient = |a: u32, power: u32| a >> power.trailing_zeros();
        let remainder = |a: u32, power: u32| a & (power - 1);
        for source in sources {
            let row = quotient(source, out_stride);
            let (position, inner, limit) = match scheme {
                Scheme::Up => {
                    let position = quotient(source, in_stride) + remainder(source, in_stride);
                    (position, remainder(source, out_stride), inputs)
                }
                Scheme::Down => {
                    let inner = remainder(source, in_stride);
                    (quotient(source, in_stride) + inner * ratio, inner, outputs)
                }
                Scheme::Shared => {
                    let inner = remainder(source, out_stride);
                    (row * ratio + inner, inner, inputs)
                }
            };
            if inner < limit {
                visit(source, row, position);
            }
        }
    }

    /// The bias of a matrix in the slots of its result.
    ///
    /// # Errors
    /// Those of [`Table::load`].
    pub fn bias(
        &self,
        slots: u32,
        environment: &Environment,
        tables: &[Table],
        output: u32,
        matrix: u32,
    ) -> Result<Vec<f64>, Error> {
        let mut values = vec![0.0; slots as usize];
        let output = &self.outputs[output as usize];
        let Some(bias) = output.matrices[matrix as usize].bias else { return Ok(values) };
        let entries = table(tables, bias)?.values()?;
        let stride = slots / output.order.positions;
        let (first, count) = match &output.landing {
            Some(landing) => (landing.evaluate(environment), 1),
            None => (0, self.vectors.evaluate(environment)),
        };
        for (position, entry) in output.order.entries().into_iter().enumerate() {
            let Some(entry) = entry else { continue };
            for inner in first..first + count {
                values[position * stride as usize + inner as usize] = f64::from(entries[entry as usize]);
            }
        }
        Ok(values)
    }
}

fn table(tables: &[Table], id: TableId) -> Result<&Table, Error> {
    tables.get(id.0 as usize).ok_or_else(|| Error::Execution(format!("there is no table {id}")))
}
