//! Linear maps as the rotations, products and sums that ciphertexts take.

use cachemir_ir::Error;
use cachemir_ir::expression::Environment;
use cachemir_ir::graph::ValueId;
use cachemir_ir::linear::{Diagonal, Giant, Linear, SlotAlgebra};
use cachemir_ir::slots::SlotOp;
use cachemir_ir::slots_interpreter::SlotProgram;
use cachemir_ir::table::Table;

use super::calls::written;

/// Most slots of which the numbers of plaintext factors are listed.
const MOST_SLOTS_LISTED: u32 = 32;

/// All linear maps of a program, for a call.
pub(super) fn expanded(program: &SlotProgram, environment: &Environment) -> Result<String, Error> {
    let mut out = String::new();
    for entry in &program.entries {
        let graph = &entry.graph;
        let mut maps = Vec::new();
        graph
            .for_each_op(|id, _| maps.extend(matches!(graph.node(id).op, SlotOp::Linear(_)).then_some(graph.node(id))));
        for node in maps {
            if let SlotOp::Linear(linear) = &node.op {
                let (slots, tables) = (program.slots, program.tables.as_slice());
                let mut listing = Listing { linear, slots, tables, environment, out: &mut out, vectors: 0 };
                listing.all(&node.inputs, &node.results)?;
            }
        }
    }
    Ok(out)
}

struct Listing<'a> {
    linear: &'a Linear,
    slots: u32,
    tables: &'a [Table],
    environment: &'a Environment,
    out: &'a mut String,
    /// Vectors with a name so far.
    vectors: usize,
}

impl Listing<'_> {
    fn all(&mut self, operands: &[ValueId], results: &[ValueId]) -> Result<(), Error> {
        let operand = operands.first().map_or_else(String::new, ToString::to_string);
        for (result, found) in results.iter().zip(self.linear.apply(self.slots, self.environment, self, &operand)?) {
            *self.out += &format!("{result} = {found}\n");
        }
        Ok(())
    }

    /// Names for so many results of an op.
    fn push(&mut self, results: usize, op: &str) -> Vec<String> {
        let names: Vec<String> = (self.vectors..).take(results).map(|index| format!("v{index}")).collect();
        self.vectors += results;
        *self.out += &format!("{} = {op}\n", names.join(", "));
        names
    }

    /// A product of a vector and a diagonal.
    fn term(&self, a: &str, diagonal: Diagonal) -> Result<String, Error> {
        let matrices = self.linear.load(diagonal.output, self.tables)?;
        let weights = self.linear.diagonals(self.slots, &matrices, &[diagonal]).remove(0);
        let imaginary = weights.imaginary.map(|values| format!(" + i·{}", self.numbers(&values)));
        Ok(format!("{a} by {}{}", self.numbers(&weights.real), imaginary.unwrap_or_default()))
    }

    fn numbers<N: ToString>(&self, values: &[N]) -> String {
        if self.slots > MOST_SLOTS_LISTED { "…".to_owned() } else { written(values.iter().map(ToString::to_string)) }
    }
}

impl SlotAlgebra for Listing<'_> {
    type Value = String;
    type Error = Error;

    fn rotate(&mut self, a: &String, by: &[i64]) -> Result<Vec<String>, Error> {
        let amounts: Vec<String> = by.iter().map(|by| by.rem_euclid(i64::from(self.slots)).to_string()).collect();
        Ok(self.push(by.len(), &format!("rotate {a} by {}", amounts.join(", "))))
    }

    fn add_rotations(&mut self, a: &String, by: &[i64]) -> Result<String, Error> {
        let amounts: Vec<String> = by.iter().map(|by| by.rem_euclid(i64::from(self.slots)).to_string()).collect();
        Ok(self.push(1, &format!("sum of {a} and its rotations by {}", amounts.join(", "))).remove(0))
    }

    fn add_rotation_times_i(&mut self, a: &String, by: i64) -> Result<String, Error> {
        let by = by.rem_euclid(i64::from(self.slots));
        Ok(self.push(1, &format!("{a} + i·its rotation by {by}")).remove(0))
    }

    fn weigh(&mut self, giants: &[Giant<'_, String>]) -> Result<String, Error> {
        let mut turned = Vec::with_capacity(giants.len());
        for giant in giants {
            let terms = giant.terms.iter().map(|(a, diagonal)| self.term(a, *diagonal));
            let terms: Vec<String> = terms.collect::<Result<_, Error>>()?;
            let sum = self.push(1, &format!("sum of products {}", terms.join(", "))).remove(0);
            turned.push(match giant.by.rem_euclid(i64::from(self.slots)) {
                0 => sum,
                by => format!("{sum} rotated by {by}"),
            });
        }
        Ok(if giants.len() > 1 {
            self.push(1, &format!("sum of {}", turned.join(", "))).remove(0)
        } else {
            turned.remove(0)
        })
    }

    fn parts(&mut self, z: String) -> Result<[String; 2], Error> {
        let mut parts = self.push(2, &format!("twice the parts of {z}"));
        let imaginary = parts.remove(1);
        Ok([parts.remove(0), imaginary])
    }

    fn real_part(&mut self, z: String) -> Result<String, Error> {
        Ok(self.push(1, &format!("twice the real part of {z}")).remove(0))
    }

    fn add_bias(&mut self, a: String, output: u32, matrix: u32) -> Result<String, Error> {
        let bias = self.linear.bias(self.slots, self.environment, self.tables, output, matrix)?;
        Ok(self.push(1, &format!("add {a}, {}", self.numbers(&bias))).remove(0))
    }
}
