//! Small Llama decoders with random shapes and weights, written in the forms that exporters and optimisers write.

mod written;

use crate::SplitMix;
use crate::onnx::proto::ModelProto;

/// Most tokens in a session of one of these decoders.
pub const CONTEXT: usize = 24;

/// A linear layer.
struct Matrix {
    outputs: usize,
    inputs: usize,
    /// `[out][in]`
    values: Vec<f32>,
    bias: Option<Vec<f32>>,
}

struct Layer {
    attention_norm: Vec<f32>,
    /// Queries, keys, values.
    projections: [Matrix; 3],
    output: Matrix,
    mlp_norm: Vec<f32>,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
}

/// A decoder, apart from how it is written.
pub struct Llama {
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    /// Number of tokens.
    pub vocabulary: usize,
    theta: f32,
    epsilon: f32,
    embedding: Vec<f32>,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    /// The embedding where there is none.
    head: Option<Matrix>,
}

fn random(random: &mut SplitMix, count: usize, size: f32) -> Vec<f32> {
    (0..count).map(|_| size * random.symmetric()).collect()
}

fn matrix(source: &mut SplitMix, outputs: usize, inputs: usize, biased: bool) -> Matrix {
    // Rows that give scores and gates of a few units.
    let values = random(source, outputs * inputs, 3.0 / (inputs as f32).sqrt());
    let bias = biased.then(|| random(source, outputs, 0.7));
    Matrix { outputs, inputs, values, bias }
}

impl Llama {
    /// A decoder of random shape and weights.
    pub fn new(source: &mut SplitMix) -> Self {
        let dim = *source.pick(&[4, 8, 16, 16]);
        let kv_heads = *source.pick(&[1, 2, 3]);
        let heads = kv_heads * source.pick(&[1, 2, 3]);
        let hidden = *source.pick(&[8, 12, 20, 24]);
        let mlp = *source.pick(&[8, 17, 28]);
        let vocabulary = 20 + source.below(20);
        let [qkv_bias, output_bias, mlp_bias] = [0; 3].map(|_| source.chance(1, 4));
        let norm = |source: &mut SplitMix| random(source, hidden, 0.5).iter().map(|x| 1.0 + x).collect::<Vec<f32>>();
        let layers = (0..=source.below(3)).map(|_| Layer {
            attention_norm: norm(source),
            projections: [heads, kv_heads, kv_heads].map(|heads| matrix(source, heads * dim, hidden, qkv_bias)),
            output: matrix(source, hidden, heads * dim, output_bias),
            mlp_norm: norm(source),
            gate: matrix(source, mlp, hidden, mlp_bias),
            up: matrix(source, mlp, hidden, mlp_bias),
            down: matrix(source, hidden, mlp, mlp_bias),
        });
        let layers = layers.collect();
        Self {
            hidden,
            heads,
            kv_heads,
            dim,
            vocabulary,
            theta: *source.pick(&[100.0, 10_000.0, 500_000.0]),
            epsilon: *source.pick(&[1e-5, 1e-6, 1e-2]),
            embedding: random(source, vocabulary * hidden, 1.0),
            layers,
            norm: norm(source),
            head: source.chance(1, 2).then(|| matrix(source, vocabulary, hidden, false)),
        }
    }

    /// The decoder with or without caches, in random forms.
    pub fn written(&self, cached: bool, forms: &mut SplitMix) -> ModelProto {
        written::written(self, cached, forms)
    }

    /// The shape in words.
    pub fn describe(&self) -> String {
        let biases = [&self.layers[0].projections[0], &self.layers[0].output, &self.layers[0].down]
            .map(|layer| layer.bias.is_some());
        format!(
            "{} layers, hidden {}, {} heads on {} of {}, {} tokens, theta {}, tied {}, biases of qkv, o, mlp {biases:?}",
            self.layers.len(),
            self.hidden,
            self.heads,
            self.kv_heads,
            self.dim,
            self.vocabulary,
            self.theta,
            self.head.is_none()
        )
    }
}
