//! What a stage must say about its ops and types to have text and JSON forms.

use super::cursor::Cursor;
use crate::Error;

/// An op in text: `mnemonic operands attributes`. Text, JSON and plan files all hold ops by these two parts, so that there
/// is one grammar to read and to check.
pub trait TextOp: Sized {
    /// Type of the stage's values.
    type Type: TextType;

    /// The stage's name: `tensor`, `slots` or `ckks`.
    const STAGE: &'static str;

    /// The op's name.
    fn mnemonic(&self) -> &'static str;

    /// Appends the attributes, with a space ahead; nothing where there are none.
    fn write_attributes(&self, out: &mut String);

    /// Reads the attributes of an op of this name.
    fn read_attributes(mnemonic: &str, cursor: &mut Cursor<'_>) -> Result<Self, Error>;

    /// Whether the op has a body.
    fn has_body(&self) -> bool;

    /// The attributes as typed JSON fields.
    fn json_attributes(&self) -> serde_json::Map<String, serde_json::Value>;
}

/// A type in text.
pub trait TextType: Sized {
    /// Appends the type.
    fn write(&self, out: &mut String);

    /// Reads a type.
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, Error>;

    /// The type as typed JSON fields.
    fn json_fields(&self) -> serde_json::Map<String, serde_json::Value>;
}
