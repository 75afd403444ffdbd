//! Galois automorphisms as permutations of the NTT domain.
//!
//! X ↦ X^g moves to position i, which belongs to the exponent e = 2·rev(i)+1, the value at
//! e·g modulo 2N. Positions that differ in their low three bits belong to exponents that differ by
//! multiples of N/4, so each aligned group of eight comes from one aligned group of eight, in one
//! of eight inner orders. The table is thus one word a group: a load and a shuffle a vector.

use std::ops::Range;

use crate::tables::reverse_bits;

/// Positions of a group.
pub(crate) const GROUP: usize = 8;

/// A permutation of N positions that maps groups of eight to groups of eight.
#[derive(Debug)]
pub(crate) struct Permutation {
    /// For each destination group: source group · 8 + index of the inner order.
    groups: Vec<u32>,
    /// Inner orders: position within the source group for each position of the destination.
    orders: [[u64; GROUP]; GROUP],
}

impl Permutation {
    /// The permutation of X ↦ X^`element` for an odd element below 2·`degree`.
    pub(crate) fn automorphism(element: usize, degree: usize) -> Self {
        let bits = degree.ilog2();
        let inner_degree = degree / GROUP;
        let inner = |order: usize, i: usize| reverse_bits((order + reverse_bits(i, 3) * element) % GROUP, 3) as u64;
        Self {
            groups: (0..inner_degree)
                .map(|group| {
                    let exponent = 2 * reverse_bits(group * GROUP, bits) + 1;
                    let image = (exponent * element % (2 * degree) - 1) / 2;
                    let source = reverse_bits(image % inner_degree, bits) / GROUP;
                    (source * GROUP + image / inner_degree) as u32
                })
                .collect(),
            orders: std::array::from_fn(|order| std::array::from_fn(|i| inner(order, i))),
        }
    }

    /// Where all positions come from.
    pub(crate) fn whole(&self) -> Gather<'_> {
        Gather { groups: &self.groups, orders: &self.orders }
    }

    /// Where positions come from that begin and end with a group.
    pub(crate) fn part(&self, positions: Range<usize>) -> Gather<'_> {
        Gather { groups: &self.groups[positions.start / GROUP..positions.end / GROUP], orders: &self.orders }
    }
}

/// Where consecutive destination groups come from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gather<'a> {
    groups: &'a [u32],
    orders: &'a [[u64; GROUP]; GROUP],
}

impl<'a> Gather<'a> {
    /// Where destination position `i` comes from.
    pub(crate) fn source(self, i: usize) -> usize {
        let word = self.groups[i / GROUP] as usize;
        word / GROUP * GROUP + self.orders[word % GROUP][i % GROUP] as usize
    }

    /// One word a destination group: source group · 8 + index into [`Self::orders`].
    pub(crate) fn groups(self) -> &'a [u32] {
        self.groups
    }

    /// The inner orders.
    pub(crate) fn orders(self) -> &'a [[u64; GROUP]; GROUP] {
        self.orders
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_exponents() {
        for degree in [16, 64, 1024] {
            for element in (1..2 * degree).step_by(2).take(40).chain([2 * degree - 1]) {
                let permutation = Permutation::automorphism(element, degree);
                for i in 0..degree {
                    let exponent = |i| 2 * reverse_bits(i, degree.ilog2()) + 1;
                    assert_eq!(exponent(permutation.whole().source(i)), exponent(i) * element % (2 * degree));
                }
            }
        }
    }
}
