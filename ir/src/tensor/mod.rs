//! The tensor stage: a recognised Llama decoder, one token a step, over exact real numbers.
//!
//! With hidden width d, n heads and m key-value heads of dimension h (query head r reads key-value head ⌊r·m/n⌋), a
//! decoder layer maps the residual stream x ∈ ℝ^d of the token at position p to
//!
//! ```text
//! u  = γ₁ ∘ x / sqrt(mean(x²) + ε)
//! q  = R_p(W_q·u),  K[p] = R_p(W_k·u),  V[p] = W_v·u
//! a  = softmax(scale·⟨q_r, K[j]⟩ over j ≤ p)          one row a head
//! x₁ = x + W_o·(Σ_j a_j·V[j])
//! g  = γ₂ ∘ x₁ / sqrt(mean(x₁²) + ε)
//! x₂ = x₁ + W_down·(silu(W_gate·g) ∘ (W_up·g))
//! ```
//!
//! where each of the seven products W·y may have a bias b, W·y + b,
//! and the logits are `W_head·(γ ∘ x / sqrt(mean(x²) + ε))` of the last x. The rotary embedding `R_p` turns each pair
//! of features (i, i + h/2) of a head by the angle of position p and pair i, read from [`RopeTable`]. A graph has one
//! input, the token, and one yield, the logits; the caches are state of the session, addressed by layer.
//!
//! [`verify`] checks the invariants, [`Interpreter`] executes a graph in the clear, and [`read`] takes text through one.

mod interpreter;
mod op;
mod products;
mod range;
#[cfg(test)]
mod tests;
mod verifier;

pub use interpreter::{Interpreter, PORTION, mean_square, read};
pub use op::{CacheKind, TensorOp};
pub use range::Range;
pub use verifier::verify;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::Error;
use crate::graph::{Definition, Graph, Node, OpId, ValueId};
use crate::hashes::hash_of;
use crate::weights::{Kept, Weights};

/// Index of a weight in [`TensorModel::weights`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WeightId(pub u32);

impl WeightId {
    /// The id as an index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for WeightId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "w{}", self.0)
    }
}

/// Type of a value of the tensor stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TensorType {
    /// A token's number in the vocabulary.
    Token,
    /// A vector of real numbers. Features of heads lie head by head: feature i of head r is entry `r·head_dim + i`.
    Vector {
        /// Number of entries.
        width: u32,
    },
    /// The keys or the values of all tokens so far, this one included: `[tokens][width]`.
    Cache {
        /// Entries a token: key-value heads times head dimension.
        width: u32,
    },
    /// One number for each head and each token so far: `[heads][tokens]`.
    Rows {
        /// Number of rows.
        heads: u32,
    },
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token => f.write_str("token"),
            Self::Vector { width } => write!(f, "vector<{width}>"),
            Self::Cache { width } => write!(f, "cache<{width}>"),
            Self::Rows { heads } => write!(f, "rows<{heads}>"),
        }
    }
}

impl std::str::FromStr for TensorType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "token" {
            return Ok(Self::Token);
        }
        let problem = || format!("expected token, vector<n>, cache<n> or rows<n>, found {text}");
        let (name, rest) = text.split_once('<').ok_or_else(problem)?;
        let number = rest.strip_suffix('>').and_then(|digits| digits.parse().ok()).ok_or_else(problem)?;
        match name {
            "vector" => Ok(Self::Vector { width: number }),
            "cache" => Ok(Self::Cache { width: number }),
            "rows" => Ok(Self::Rows { heads: number }),
            _ => Err(problem()),
        }
    }
}

/// The numbers that fix a decoder's shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Hyperparameters {
    /// Width d of the residual stream.
    pub hidden: usize,
    /// Number of decoder layers.
    pub layers: usize,
    /// Number n of query heads.
    pub heads: usize,
    /// Number m of key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Entries of a head; even.
    pub head_dim: usize,
    /// Width of the gated layer.
    pub mlp: usize,
    /// Number of tokens.
    pub vocabulary: usize,
    /// What the norms add to the mean square.
    pub epsilon: f64,
    /// Factor of the scores ahead of the softmax, `1/√head_dim` in most models.
    pub attention_scale: f64,
    /// Most tokens in a session: rows of the rotary table.
    pub context: usize,
    /// Whether embedding and output head are one matrix.
    pub tied_head: bool,
}

impl Hyperparameters {
    /// Width of the queries, `heads·head_dim`.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of keys and values, `kv_heads·head_dim`.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Query heads that share one key-value head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

/// A parameter of the model. Two are equal where name, shape and hash are, and both have entries or none.
#[derive(Clone, Debug)]
pub struct Weight {
    /// Unique name, e.g. `layers.0.self_attn.q_proj`.
    pub name: String,
    /// `[out, in]` for a matrix, `[width]` for a norm's factors and for biases, `[vocabulary, hidden]` for embedding and output head.
    pub shape: Vec<usize>,
    /// Where its entries are, in row-major order; `None` if the model was loaded for its shapes only.
    pub weights: Option<Weights>,
    /// BLAKE3 hash of the entries in single precision as little-endian bytes, however they are stored.
    pub hash: [u8; 32],
}

impl PartialEq for Weight {
    fn eq(&self, other: &Self) -> bool {
        let whole = |weight: &Self| weight.weights.is_some();
        (&self.name, &self.shape, self.hash, whole(self)) == (&other.name, &other.shape, other.hash, whole(other))
    }
}

impl Weight {
    /// A weight in memory. `values` has as many entries as `shape` says, or none.
    pub fn new(name: String, shape: Vec<usize>, values: Vec<f32>) -> Self {
        let hash = hash_of(&values);
        let columns = shape.last().copied().unwrap_or(1);
        let weights = (!values.is_empty()).then(|| Weights::of_matrix(values, columns));
        Self { name, shape, weights, hash }
    }

    /// The entries in row-major order, read for as long as they are held.
    ///
    /// # Errors
    /// Those of [`Weights::load`], and [`Error::Execution`] where the model was loaded for its shapes only.
    pub fn load(&self) -> Result<Arc<[f32]>, Error> {
        self.known()?.load(&self.name)
    }

    fn load_kept(&self, kept: &Kept) -> Result<Arc<[f32]>, Error> {
        kept.load(&self.name, self.known()?)
    }

    fn known(&self) -> Result<&Weights, Error> {
        let missing = || Error::Execution(format!("only the shape of the weight `{}` is known", self.name));
        self.weights.as_ref().ok_or_else(missing)
    }

    /// Number of outputs of a matrix, or the width of a norm's factors or of a bias.
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(0)
    }

    /// Number of inputs of a matrix; 1 for a norm's factors and for a bias.
    pub fn columns(&self) -> usize {
        self.shape.get(1).copied().unwrap_or(1)
    }
}

/// Cosines and sines of the rotary embedding, exactly as the exported graph computes them (scaled variants included).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RopeTable {
    /// Pairs of features, `head_dim/2`.
    pub pairs: usize,
    /// `[context][pairs]`: the cosine of position p and pair i is entry `p·pairs + i`.
    pub cosines: Vec<f32>,
    /// `[context][pairs]`, sines.
    pub sines: Vec<f32>,
}

impl RopeTable {
    /// Number of positions.
    pub fn positions(&self) -> usize {
        self.cosines.len().checked_div(self.pairs).unwrap_or(0)
    }

    /// The table's cosine and sine for a position and a pair.
    pub fn at(&self, position: usize, pair: usize) -> (f32, f32) {
        let index = position * self.pairs + pair;
        (self.cosines[index], self.sines[index])
    }

    /// The angle that position 1 turns each pair by, in radians: the inverse frequencies, in (−π, π].
    pub fn inverse_frequencies(&self) -> Vec<f64> {
        if self.positions() < 2 {
            return Vec::new();
        }
        (0..self.pairs)
            .map(|pair| {
                let (cosine, sine) = self.at(1, pair);
                f64::from(sine).atan2(f64::from(cosine))
            })
            .collect()
    }
}

/// A recognised decoder: shape, parameters, and the graph of one step.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorModel {
    /// The decoder's shape.
    pub hyperparameters: Hyperparameters,
    /// Cosines and sines for every position of a session.
    pub rope: RopeTable,
    /// Parameters; ops name them by [`WeightId`].
    pub weights: Vec<Weight>,
    /// One step: token in, logits out.
    pub graph: Graph<TensorOp, TensorType>,
}

impl TensorModel {
    /// The weight of an id.
    pub fn weight(&self, id: WeightId) -> &Weight {
        &self.weights[id.index()]
    }

    /// The ops in the order in which they run.
    pub fn ops(&self) -> impl Iterator<Item = (OpId, &Node<TensorOp>)> {
        self.graph.body.ops.iter().map(|&op| (op, self.graph.node(op)))
    }

    /// The op that defines a value, or `None` for the token.
    pub fn definition(&self, value: ValueId) -> Option<OpId> {
        match self.graph.values[value.index()].definition {
            Definition::Input(_) => None,
            Definition::Result(op, _) => Some(op),
        }
    }

    /// The weight of a name.
    pub fn weight_named(&self, name: &str) -> Option<&Weight> {
        self.weights.iter().find(|weight| weight.name == name)
    }

    /// Whether the parameters' values are here, not only their shapes.
    pub fn has_values(&self) -> bool {
        self.weights.iter().all(|weight| weight.weights.is_some())
    }

    /// Number of weights of linear layers and the output head: those of the program's linear maps, of which each has a table.
    pub fn linear_weights(&self) -> u64 {
        let entries = self.ops().map(|(_, node)| match node.op {
            TensorOp::Linear { weight, .. } | TensorOp::LmHead { weight } => {
                self.weight(weight).shape.iter().map(|&extent| extent as u64).product()
            }
            _ => 0,
        });
        entries.sum()
    }

    /// Bytes of the parameters' values as they are stored, equal ones once.
    pub fn stored_bytes(&self) -> u64 {
        let regions = self.weights.iter().flat_map(|weight| &weight.weights).flat_map(Weights::regions);
        let distinct: BTreeMap<[u8; 32], u64> = regions.map(|region| (region.hash(), region.length())).collect();
        distinct.values().sum()
    }

    /// Number of parameters.
    pub fn parameter_count(&self) -> usize {
        self.weights.iter().map(|weight| weight.shape.iter().product::<usize>()).sum()
    }

    /// BLAKE3 hash of everything but the origins: shape, rotary table, weights, ops.
    pub fn content_hash(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(format!("{:?}", self.hyperparameters).as_bytes());
        for value in self.rope.cosines.iter().chain(&self.rope.sines) {
            hasher.update(&value.to_le_bytes());
        }
        for weight in &self.weights {
            hasher.update(format!("{} {:?} ", weight.name, weight.shape).as_bytes());
            hasher.update(&weight.hash);
        }
        for node in &self.graph.nodes {
            hasher.update(format!("{} {:?} {:?};", node.op, node.inputs, node.results).as_bytes());
        }
        *hasher.finalize().as_bytes()
    }
}
