//! Ops and types of the tensor stage in text and JSON, by their own `key=value` syntax.

use serde_json::{Map, Value};

use super::cursor::Cursor;
use super::{TextOp, TextType};
use crate::Error;
use crate::json::{self, fields};
use crate::tensor::{TensorOp, TensorType};

impl TextOp for TensorOp {
    type Type = TensorType;

    const STAGE: &'static str = "tensor";

    fn mnemonic(&self) -> &'static str {
        TensorOp::mnemonic(*self)
    }

    fn write_attributes(&self, out: &mut String) {
        let text = self.to_string();
        out.push_str(text.strip_prefix(TensorOp::mnemonic(*self)).unwrap_or(&text));
    }

    fn read_attributes(mnemonic: &str, cursor: &mut Cursor<'_>) -> Result<Self, Error> {
        let attributes = cursor.until(&[":", ";", "{"]);
        format!("{mnemonic} {attributes}").parse().map_err(|message: String| cursor.error(message))
    }

    fn has_body(&self) -> bool {
        false
    }

    fn json_attributes(&self) -> Map<String, Value> {
        match *self {
            Self::Embedding { weight } | Self::Linear { weight, bias: None } | Self::LmHead { weight } => {
                fields([("weight", weight.0.into())])
            }
            Self::Linear { weight, bias: Some(bias) } => fields([("weight", weight.0.into()), ("bias", bias.0.into())]),
            Self::RmsNorm { weight, epsilon } => {
                fields([("weight", weight.0.into()), ("epsilon", json::float(epsilon))])
            }
            Self::Rope { heads } => fields([("heads", heads.into())]),
            Self::KvAppend { layer, kind } => fields([("layer", layer.into()), ("cache", kind.name().into())]),
            Self::Scores { heads, kv_heads, scale } => {
                fields([("heads", heads.into()), ("kv_heads", kv_heads.into()), ("scale", json::float(scale))])
            }
            Self::Mix { heads, kv_heads } => fields([("heads", heads.into()), ("kv_heads", kv_heads.into())]),
            Self::Softmax | Self::Silu | Self::Mul | Self::Add => Map::new(),
        }
    }
}

impl TextType for TensorType {
    fn write(&self, out: &mut String) {
        out.push_str(&self.to_string());
    }

    fn read(cursor: &mut Cursor<'_>) -> Result<Self, Error> {
        let word = cursor.peek_word();
        let text = if word == "token" { cursor.word()?.to_owned() } else { format!("{}>", cursor.until(&[">"])) };
        if text.ends_with('>') {
            cursor.expect(">")?;
        }
        text.parse().map_err(|message: String| cursor.error(message))
    }

    fn json_fields(&self) -> Map<String, Value> {
        match *self {
            Self::Token => fields([("kind", "token".into())]),
            Self::Vector { width } => fields([("kind", "vector".into()), ("width", width.into())]),
            Self::Cache { width } => fields([("kind", "cache".into()), ("width", width.into())]),
            Self::Rows { heads } => fields([("kind", "rows".into()), ("heads", heads.into())]),
        }
    }
}
