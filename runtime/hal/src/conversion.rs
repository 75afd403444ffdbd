//! Tables of a base conversion.
//!
//! With Q = Π `q_i` over the source, `y_i` = [x · (Q/q_i)^-1]_{`q_i`} satisfies
//! x = Σ `y_i·(Q/q_i)` − v·Q, where v = ⌊Σ `y_i/q_i`⌋ gives the representative in [0, Q) and
//! v = ⌊Σ `y_i/q_i` + 1/2⌋ the one in [−Q/2, Q/2). The same identity holds modulo any destination.

use crate::Modulus;

/// Constants for one pair (source moduli, destination moduli).
#[derive(Debug)]
pub(crate) struct ConversionTable {
    /// (Q/q_i)^-1 modulo `q_i`.
    pub(crate) punctured_inverse: Vec<u64>,
    /// For each destination: `Q/q_i` for all i, then −Q.
    pub(crate) constants: Vec<Vec<u64>>,
    /// `1/q_i`, correctly rounded.
    pub(crate) reciprocal: Vec<f64>,
    /// The source modulus, if there is but one.
    pub(crate) single: Option<u64>,
}

impl ConversionTable {
    pub(crate) fn new(source: &[Modulus], destination: &[Modulus]) -> Self {
        let others = |i: usize, p: &Modulus| {
            source
                .iter()
                .enumerate()
                .filter(|(j, _)| *j != i)
                .fold(1, |product, (_, q)| p.mul(product, p.reduce(q.value())))
        };
        Self {
            punctured_inverse: source.iter().enumerate().map(|(i, q)| q.inv(others(i, q))).collect(),
            constants: destination
                .iter()
                .map(|p| {
                    let minus_product = p.neg(others(usize::MAX, p));
                    let punctured = (0..source.len()).map(|i| others(i, p));
                    punctured.chain([minus_product]).collect()
                })
                .collect(),
            single: if let [q] = source { Some(q.value()) } else { None },
            reciprocal: source.iter().map(|q| 1.0 / q.value() as f64).collect(),
        }
    }
}
