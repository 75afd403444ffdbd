//! How a polynomial is evaluated: a tree of divisions by powers, fixed by the coefficients alone.
//!
//! Let `P_j` be the basis polynomial of degree `j` (`T_j` or `x^j`), available `⌈log2 j⌉` levels below the input. A polynomial
//! of degree `d` with `m ≤ d < 2m`, `m` a power of two, is divided: `p = q·P_m + r`. A polynomial that must be ready after
//! `k` levels asks its quotient after `k - 1` and its remainder after `k`; where the degree is at most `leaf_degree` and the
//! powers are early enough, it is a leaf, a plain linear combination `Σ c_j P_j`. Only the chain of leading quotients is
//! split down to degree one, so the depth is exactly `⌈log2(d + 1)⌉` (ePrint 2020/1203, section 5).

use std::collections::BTreeMap;

use cachemir_ir::chebyshev;
use num_complex::Complex64;

/// Levels that a polynomial of the given degree consumes: `⌈log2(degree + 1)⌉`.
pub fn depth(degree: usize) -> usize {
    (usize::BITS - degree.leading_zeros()) as usize
}

/// Levels that the basis polynomial of degree `j ≥ 1` consumes: `⌈log2 j⌉`.
pub(super) fn power_depth(j: usize) -> usize {
    depth(j - 1)
}

/// A basis of the polynomials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Basis {
    /// `T_0, T_1, …` on `[-1, 1]`.
    Chebyshev,
    /// `1, x, x², …`.
    Monomial,
}

/// A polynomial with real coefficients in a basis.
#[derive(Clone, Debug, PartialEq)]
pub struct Polynomial {
    basis: Basis,
    coefficients: Vec<f64>,
}

impl Polynomial {
    /// The polynomial `Σ c_j P_j`; trailing zeros are dropped.
    pub fn new(basis: Basis, mut coefficients: Vec<f64>) -> Self {
        while coefficients.len() > 1 && coefficients.last() == Some(&0.0) {
            coefficients.pop();
        }
        if coefficients.is_empty() {
            coefficients.push(0.0);
        }
        Self { basis, coefficients }
    }

    /// A Chebyshev series.
    pub fn chebyshev(coefficients: Vec<f64>) -> Self {
        Self::new(Basis::Chebyshev, coefficients)
    }

    /// The basis.
    pub fn basis(&self) -> Basis {
        self.basis
    }

    /// The coefficients, constant first; never empty.
    pub fn coefficients(&self) -> &[f64] {
        &self.coefficients
    }

    /// The degree; that of a constant is zero.
    pub fn degree(&self) -> usize {
        self.coefficients.len() - 1
    }

    /// Value in the clear.
    pub fn evaluate(&self, x: f64) -> f64 {
        match self.basis {
            Basis::Chebyshev => chebyshev::value(&self.coefficients, x),
            Basis::Monomial => self.coefficients.iter().rev().fold(0.0, |sum, &c| sum * x + c),
        }
    }
}

/// A polynomial in the form in which it is evaluated.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    /// `Σ c_j P_j` by products with constants.
    Leaf(Vec<f64>),
    /// `quotient · P_power + remainder`.
    Split { power: usize, quotient: Box<Node>, remainder: Box<Node> },
}

/// Operations of an evaluation, none of them at a known level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OperationCount {
    /// Products of two ciphertexts.
    pub products: usize,
    /// Relinearisations, fewer than the products where sums of products share one.
    pub relinearisations: usize,
    /// Rescales.
    pub rescales: usize,
    /// Products of a ciphertext with a constant.
    pub constant_products: usize,
    /// Levels consumed.
    pub depth: usize,
}

/// A plan: the powers to compute and the tree over them.
#[derive(Clone, Debug)]
pub struct EvaluationPlan {
    /// Power `j` → `(a, b)` with `a + b = j`, in increasing order of `j`; the first power is the input and not listed.
    pub(super) powers: BTreeMap<usize, (usize, usize)>,
    pub(super) root: Node,
    basis: Basis,
    depth: usize,
}

impl EvaluationPlan {
    /// The plan with the fewest products of ciphertexts over all leaf sizes.
    pub fn new(polynomial: &Polynomial) -> Self {
        let budget = depth(polynomial.degree()).max(1);
        let plan = |leaf_degree| {
            let root = split(polynomial.basis, &polynomial.coefficients, budget, leaf_degree);
            let mut powers = BTreeMap::new();
            require_powers(&root, polynomial.basis, &mut powers);
            Self { powers, root, basis: polynomial.basis, depth: budget }
        };
        (0..depth(polynomial.degree()))
            .map(|log2| plan(1 << log2))
            .min_by_key(|plan| {
                let count = plan.count();
                (count.relinearisations, count.products, count.constant_products)
            })
            .unwrap_or_else(|| plan(1))
    }

    /// Levels consumed.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// The basis of the powers.
    pub fn basis(&self) -> Basis {
        self.basis
    }

    /// The value in the clear by the plan's own steps; `noise` is added wherever a ciphertext would be rescaled.
    pub fn evaluate_clear(&self, x: Complex64, noise: &mut dyn FnMut() -> Complex64) -> Complex64 {
        let mut powers = BTreeMap::from([(1, x)]);
        for (&j, &(a, b)) in &self.powers {
            let product = powers[&a] * powers[&b];
            let value = match self.basis {
                Basis::Monomial => product,
                Basis::Chebyshev if a == b => 2.0 * product - 1.0,
                Basis::Chebyshev => 2.0 * product - powers[&(a - b)],
            };
            powers.insert(j, value + noise());
        }
        clear_node(&self.root, &powers, noise) + noise()
    }

    /// Levels below the input at which products are relinearised and rescaled: one entry for each.
    pub fn product_depths(&self) -> Vec<usize> {
        let mut depths: Vec<usize> = self.powers.keys().map(|&j| power_depth(j) - 1).collect();
        collect_product_depths(&self.root, self.depth - 1, &mut depths);
        depths
    }

    /// What the evaluation costs with constant coefficients.
    pub fn count(&self) -> OperationCount {
        let powers = self.powers.len();
        let mut count = OperationCount {
            products: powers,
            relinearisations: powers,
            rescales: powers + 1,
            depth: self.depth,
            ..OperationCount::default()
        };
        if self.basis == Basis::Chebyshev {
            count.constant_products += self.powers.values().filter(|(a, b)| a != b).count();
        }
        count_node(&self.root, &mut count);
        if has_product(&self.root) {
            count.relinearisations += 1;
        }
        count
    }
}

/// The unrescaled value of a node.
fn clear_node(node: &Node, powers: &BTreeMap<usize, Complex64>, noise: &mut dyn FnMut() -> Complex64) -> Complex64 {
    match node {
        Node::Leaf(coefficients) => coefficients
            .iter()
            .enumerate()
            .filter(|(_, c)| **c != 0.0)
            .map(|(j, c)| if j == 0 { Complex64::from(*c) } else { powers[&j] * c })
            .sum(),
        Node::Split { power, quotient, remainder } => {
            let quotient = clear_node(quotient, powers, noise) + noise();
            quotient * powers[power] + clear_node(remainder, powers, noise)
        }
    }
}

fn count_node(node: &Node, count: &mut OperationCount) {
    match node {
        Node::Leaf(coefficients) => {
            count.constant_products += coefficients.iter().skip(1).filter(|c| **c != 0.0).count();
        }
        Node::Split { quotient, remainder, .. } => {
            count.products += 1;
            count.rescales += 1;
            if has_product(quotient) {
                count.relinearisations += 1;
            }
            count_node(quotient, count);
            count_node(remainder, count);
        }
    }
}

/// Depths of the relinearisations of a node whose unrescaled value lives `depth` levels below the input.
fn collect_product_depths(node: &Node, depth: usize, depths: &mut Vec<usize>) {
    if has_product(node) {
        depths.push(depth);
    }
    collect_quotient_depths(node, depth, depths);
}

fn collect_quotient_depths(node: &Node, depth: usize, depths: &mut Vec<usize>) {
    if let Node::Split { quotient, remainder, .. } = node {
        collect_product_depths(quotient, depth - 1, depths);
        collect_quotient_depths(remainder, depth, depths);
    }
}

/// Whether the unrescaled value of the node is a ciphertext of degree two.
pub(super) fn has_product(node: &Node) -> bool {
    matches!(node, Node::Split { .. })
}

/// The tree for `coefficients`, ready after `budget` levels.
fn split(basis: Basis, coefficients: &[f64], budget: usize, leaf_degree: usize) -> Node {
    let degree = coefficients.iter().rposition(|c| *c != 0.0).unwrap_or(0);
    let coefficients = &coefficients[..=degree];
    // A leaf's products with constants take one level below its deepest power.
    let early = (1..=degree).filter(|&j| coefficients[j] != 0.0).all(|j| power_depth(j) < budget);
    if degree == 0 || (early && (degree <= leaf_degree || degree.is_power_of_two() && only_top(coefficients))) {
        return Node::Leaf(coefficients.to_vec());
    }
    let power = 1 << degree.ilog2();
    let (quotient, remainder) = divide(basis, coefficients, power);
    if quotient.len() == 1 {
        // c·P_m + r: P_m joins a leaf only where r is one as well, otherwise it is a product with the constant.
        return merge_constant(basis, power, quotient[0], &remainder, budget, leaf_degree);
    }
    Node::Split {
        power,
        quotient: Box::new(split(basis, &quotient, budget - 1, leaf_degree)),
        remainder: Box::new(split(basis, &remainder, budget, leaf_degree)),
    }
}

/// Whether only the constant and the leading coefficient differ from zero.
fn only_top(coefficients: &[f64]) -> bool {
    coefficients[1..coefficients.len() - 1].iter().all(|c| *c == 0.0)
}

/// `constant · P_power + remainder`: the term is added to the leaf that ends the chain of remainders.
fn merge_constant(
    basis: Basis,
    power: usize,
    constant: f64,
    remainder: &[f64],
    budget: usize,
    leaf_degree: usize,
) -> Node {
    let mut node = split(basis, remainder, budget, leaf_degree);
    let mut last = &mut node;
    loop {
        match last {
            Node::Split { remainder, .. } => last = remainder,
            Node::Leaf(coefficients) => {
                coefficients.resize(power + 1, 0.0);
                coefficients[power] += constant;
                return node;
            }
        }
    }
}

/// `p = q·P_m + r` for `m ≤ deg p < 2m`.
fn divide(basis: Basis, coefficients: &[f64], m: usize) -> (Vec<f64>, Vec<f64>) {
    let mut quotient = coefficients[m..].to_vec();
    let mut remainder = coefficients[..m].to_vec();
    if basis == Basis::Chebyshev {
        // T_{m+i} = 2 T_m T_i - T_{m-i}.
        for (i, q) in quotient.iter_mut().enumerate().skip(1) {
            remainder[m - i] -= *q;
            *q *= 2.0;
        }
    }
    (quotient, remainder)
}

fn require_powers(node: &Node, basis: Basis, powers: &mut BTreeMap<usize, (usize, usize)>) {
    match node {
        Node::Leaf(coefficients) => {
            for (j, c) in coefficients.iter().enumerate().skip(1) {
                if *c != 0.0 {
                    require_power(j, basis, powers);
                }
            }
        }
        Node::Split { power, quotient, remainder } => {
            require_power(*power, basis, powers);
            require_powers(quotient, basis, powers);
            require_powers(remainder, basis, powers);
        }
    }
}

/// `P_j = P_a · P_b` with `a` the largest power of two below `j`; Chebyshev products need `T_{a-b}` as well.
fn require_power(j: usize, basis: Basis, powers: &mut BTreeMap<usize, (usize, usize)>) {
    if j <= 1 || powers.contains_key(&j) {
        return;
    }
    let a = 1 << (j - 1).ilog2();
    let b = j - a;
    require_power(a, basis, powers);
    require_power(b, basis, powers);
    if basis == Basis::Chebyshev && a != b {
        require_power(a - b, basis, powers);
    }
    powers.insert(j, (a, b));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Levels that the unrescaled value of a node and its rescale consume.
    fn levels(node: &Node) -> usize {
        match node {
            Node::Leaf(coefficients) => {
                let used = coefficients.iter().enumerate().skip(1).filter(|(_, c)| **c != 0.0);
                used.map(|(j, _)| power_depth(j) + 1).max().unwrap_or(0)
            }
            Node::Split { power, quotient, remainder } => {
                (levels(quotient).max(power_depth(*power)) + 1).max(levels(remainder))
            }
        }
    }

    fn check(polynomial: &Polynomial, x: f64) {
        let plan = EvaluationPlan::new(polynomial);
        let value = plan.evaluate_clear(x.into(), &mut || Complex64::ZERO).re;
        assert!((value - polynomial.evaluate(x)).abs() < 1e-9, "degree {}", polynomial.degree());
        assert!(levels(&plan.root) <= plan.depth(), "degree {}", polynomial.degree());
    }

    proptest! {
        #[test]
        fn plans_compute_the_polynomial_at_the_stated_depth(
            coefficients in prop::collection::vec(-1.0f64..1.0, 2..140), x in -1.0f64..1.0, odd in any::<bool>(),
            basis in prop_oneof![Just(Basis::Chebyshev), Just(Basis::Monomial)],
        ) {
            let mut coefficients = coefficients;
            if odd {
                coefficients.iter_mut().step_by(2).for_each(|c| *c = 0.0);
            }
            check(&Polynomial::new(basis, coefficients), x);
        }
    }

    #[test]
    fn every_small_degree() {
        for degree in 0..=64usize {
            let coefficients: Vec<f64> = (0..=degree).map(|j| 1.0 / (j + 1) as f64).collect();
            for basis in [Basis::Chebyshev, Basis::Monomial] {
                check(&Polynomial::new(basis, coefficients.clone()), 0.7);
                let mut lone = vec![0.0; degree + 1];
                lone[degree] = 0.5;
                check(&Polynomial::new(basis, lone), -0.6);
            }
        }
    }

    #[test]
    fn known_depths_and_counts() {
        assert_eq!([0, 1, 2, 3, 4, 7, 8, 31, 32, 63].map(depth), [0, 1, 2, 2, 3, 3, 4, 5, 6, 6]);
        let series = Polynomial::chebyshev((0..32).map(|j| 1.0 / f64::from(j + 1)).collect());
        let count = EvaluationPlan::new(&series).count();
        assert_eq!(count.depth, 5);
        assert!(count.products <= 13, "{count:?}");
        assert!(count.relinearisations <= 11, "{count:?}");
        assert_eq!(EvaluationPlan::new(&series).product_depths().len(), count.relinearisations);
    }
}
