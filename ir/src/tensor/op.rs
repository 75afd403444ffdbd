//! Operations of the tensor stage and their text form, `mnemonic key=value …`.

use std::fmt;
use std::str::FromStr;

use super::WeightId;

/// Which of a layer's two caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CacheKind {
    /// Keys, after the rotary embedding.
    Key,
    /// Values.
    Value,
}

impl CacheKind {
    /// `key` or `value`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Value => "value",
        }
    }
}

/// An operation on whole vectors. W is `[out][in]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TensorOp {
    /// (token) → row `token` of the weight.
    Embedding {
        /// `[vocabulary, hidden]`.
        weight: WeightId,
    },
    /// (x) → γ ∘ x / sqrt(mean(x²) + ε)
    RmsNorm {
        /// γ, `[width]`.
        weight: WeightId,
        /// ε.
        epsilon: f64,
    },
    /// (x) → W·x, or W·x + b
    Linear {
        /// W, `[out, in]`.
        weight: WeightId,
        /// b, `[out]`.
        bias: Option<WeightId>,
    },
    /// (x) → each head's pairs (i, i + h/2) turned by the angles of the token's position.
    Rope {
        /// Number of heads in x.
        heads: u32,
    },
    /// (x) → the layer's cache with x appended.
    KvAppend {
        /// The layer whose cache this is.
        layer: u32,
        /// Keys or values.
        kind: CacheKind,
    },
    /// (q, keys) → `scale·⟨q_r, K_j⟩` for each query head r, with the key head of its group, and each token j.
    Scores {
        /// Number of query heads.
        heads: u32,
        /// Number of key-value heads.
        kv_heads: u32,
        /// Factor of every score.
        scale: f64,
    },
    /// (rows) → each row exponentiated and divided by its sum.
    Softmax,
    /// (rows, values) → for each query head the values of its group's head, weighted by its row.
    Mix {
        /// Number of query heads.
        heads: u32,
        /// Number of key-value heads.
        kv_heads: u32,
    },
    /// (x) → x / (1 + exp(−x)), entry by entry.
    Silu,
    /// (a, b) → a ∘ b
    Mul,
    /// (a, b) → a + b
    Add,
    /// (x) → the logits W·x.
    LmHead {
        /// W, `[vocabulary, hidden]`.
        weight: WeightId,
    },
}

impl TensorOp {
    /// The op's name in text.
    pub fn mnemonic(self) -> &'static str {
        match self {
            Self::Embedding { .. } => "embedding",
            Self::RmsNorm { .. } => "rms_norm",
            Self::Linear { .. } => "linear",
            Self::Rope { .. } => "rope",
            Self::KvAppend { .. } => "kv_append",
            Self::Scores { .. } => "scores",
            Self::Softmax => "softmax",
            Self::Mix { .. } => "mix",
            Self::Silu => "silu",
            Self::Mul => "mul",
            Self::Add => "add",
            Self::LmHead { .. } => "lm_head",
        }
    }

    /// The weight that the op reads.
    pub fn weight(self) -> Option<WeightId> {
        match self {
            Self::Embedding { weight }
            | Self::RmsNorm { weight, .. }
            | Self::Linear { weight, .. }
            | Self::LmHead { weight } => Some(weight),
            _ => None,
        }
    }
}

impl fmt::Display for TensorOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.mnemonic())?;
        match self {
            Self::Embedding { weight } | Self::Linear { weight, bias: None } | Self::LmHead { weight } => {
                write!(f, " weight={weight}")
            }
            Self::Linear { weight, bias: Some(bias) } => write!(f, " weight={weight} bias={bias}"),
            Self::RmsNorm { weight, epsilon } => write!(f, " weight={weight} epsilon={epsilon:?}"),
            Self::Rope { heads } => write!(f, " heads={heads}"),
            Self::KvAppend { layer, kind } => write!(f, " layer={layer} kind={}", kind.name()),
            Self::Scores { heads, kv_heads, scale } => {
                write!(f, " heads={heads} kv_heads={kv_heads} scale={scale:?}")
            }
            Self::Mix { heads, kv_heads } => write!(f, " heads={heads} kv_heads={kv_heads}"),
            Self::Softmax | Self::Silu | Self::Mul | Self::Add => Ok(()),
        }
    }
}

/// The fields of a text form, each used once.
struct Fields<'t>(Vec<(&'t str, &'t str)>);

impl<'t> Fields<'t> {
    fn parse(words: impl Iterator<Item = &'t str>) -> Result<Self, String> {
        words
            .map(|word| word.split_once('=').ok_or_else(|| format!("expected key=value, found {word}")))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    fn text(&mut self, key: &str) -> Result<&'t str, String> {
        let index = self.0.iter().position(|(name, _)| *name == key).ok_or_else(|| format!("{key} is missing"))?;
        Ok(self.0.remove(index).1)
    }

    fn number<N: FromStr>(&mut self, key: &str) -> Result<N, String> {
        let text = self.text(key)?;
        text.parse().map_err(|_| format!("{key}={text} is not a number of the right kind"))
    }

    fn weight(&mut self, key: &str) -> Result<WeightId, String> {
        let text = self.text(key)?;
        let number = text.strip_prefix('w').and_then(|digits| digits.parse().ok());
        number.map(WeightId).ok_or_else(|| format!("expected a weight such as w3, found {text}"))
    }

    fn has(&self, key: &str) -> bool {
        self.0.iter().any(|(name, _)| *name == key)
    }
}

impl FromStr for TensorOp {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split_whitespace();
        let mnemonic = words.next().unwrap_or_default();
        let mut fields = Fields::parse(words)?;
        let op = match mnemonic {
            "embedding" => Self::Embedding { weight: fields.weight("weight")? },
            "rms_norm" => Self::RmsNorm { weight: fields.weight("weight")?, epsilon: fields.number("epsilon")? },
            "linear" => {
                let weight = fields.weight("weight")?;
                let bias = if fields.has("bias") { Some(fields.weight("bias")?) } else { None };
                Self::Linear { weight, bias }
            }
            "rope" => Self::Rope { heads: fields.number("heads")? },
            "kv_append" => Self::KvAppend {
                layer: fields.number("layer")?,
                kind: match fields.text("kind")? {
                    "key" => CacheKind::Key,
                    "value" => CacheKind::Value,
                    other => return Err(format!("kind is key or value, found {other}")),
                },
            },
            "scores" => Self::Scores {
                heads: fields.number("heads")?,
                kv_heads: fields.number("kv_heads")?,
                scale: fields.number("scale")?,
            },
            "softmax" => Self::Softmax,
            "mix" => Self::Mix { heads: fields.number("heads")?, kv_heads: fields.number("kv_heads")? },
            "silu" => Self::Silu,
            "mul" => Self::Mul,
            "add" => Self::Add,
            "lm_head" => Self::LmHead { weight: fields.weight("weight")? },
            other => return Err(format!("{other} is no op of the tensor stage")),
        };
        match fields.0.first() {
            Some((key, _)) => Err(format!("{mnemonic} has no field {key}")),
            None => Ok(op),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips() {
        let weight = WeightId(7);
        let ops = [
            TensorOp::Embedding { weight },
            TensorOp::RmsNorm { weight, epsilon: 9.999999747378752e-6 },
            TensorOp::Linear { weight, bias: None },
            TensorOp::Linear { weight, bias: Some(WeightId(8)) },
            TensorOp::Rope { heads: 4 },
            TensorOp::KvAppend { layer: 1, kind: CacheKind::Key },
            TensorOp::KvAppend { layer: 0, kind: CacheKind::Value },
            TensorOp::Scores { heads: 4, kv_heads: 2, scale: 0.1 + 0.2 },
            TensorOp::Softmax,
            TensorOp::Mix { heads: 4, kv_heads: 2 },
            TensorOp::Silu,
            TensorOp::Mul,
            TensorOp::Add,
            TensorOp::LmHead { weight },
        ];
        for op in ops {
            assert_eq!(op.to_string().parse::<TensorOp>(), Ok(op));
        }
        assert!("linear".parse::<TensorOp>().is_err());
        assert!("softmax heads=3".parse::<TensorOp>().is_err());
        assert!("linear weight=3".parse::<TensorOp>().is_err());
        assert!("linear weight=w3 bias=4".parse::<TensorOp>().is_err());
        assert!("embedding weight=w3 bias=w4".parse::<TensorOp>().is_err());
    }
}
