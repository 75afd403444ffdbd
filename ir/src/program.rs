//! Entry points over declared state: what a plan executes.

use crate::expression::TableId;
use crate::graph::Graph;
use crate::slots::{Layout, StateId};

/// A named array of numbers that plaintext vectors look up: a weight matrix in row-major order, a table of cosines, …
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// Unique name, e.g. `layers.0.self_attn.q_proj`.
    pub name: String,
    /// Extents, outermost first.
    pub shape: Vec<u32>,
    /// Entries in row-major order.
    pub values: Vec<f32>,
}

impl AsRef<[f32]> for Table {
    fn as_ref(&self) -> &[f32] {
        &self.values
    }
}

/// An array of ciphertexts that outlives a call.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Unique name, e.g. `layers.0.k_cache`.
    pub name: String,
    /// Number of ciphertexts.
    pub capacity: u32,
    /// Layout of each.
    pub layout: Layout,
    /// Level at which the elements are kept; `None` in the slots stage.
    pub level: Option<u32>,
}

/// What an entry point does for the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntryKind {
    /// One token at `pos` ≥ 0 → its logits.
    Decode,
    /// `count` tokens at positions `pos..pos + count`, where `pos` is a multiple of the chunk length → the last one's logits.
    Prefill {
        /// Largest `count`.
        chunk: u32,
    },
}

impl EntryKind {
    /// The entry point's name in text: `decode` or `prefill`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Prefill { .. } => "prefill",
        }
    }
}

/// One entry point.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry<O, T> {
    /// What it does.
    pub kind: EntryKind,
    /// How it does it: inputs are the embeddings, yields of the body the logits.
    pub graph: Graph<O, T>,
}

/// How values of a client's vector are placed in the slots: entry `index` of token `token` lies in slot
/// `index_to_slot[index] + token·token_stride`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Slot of each entry of the first token's vector.
    pub index_to_slot: Vec<u32>,
    /// Distance between the same entry of consecutive tokens.
    pub token_stride: u32,
}

/// A compiled stage: entry points, and what they share.
#[derive(Clone, Debug, PartialEq)]
pub struct Program<O, T> {
    /// Slots n of every ciphertext.
    pub slots: u32,
    /// Most tokens in a session.
    pub context: u32,
    /// Tables that plaintext vectors look up.
    pub tables: Vec<Table>,
    /// State arrays.
    pub states: Vec<State>,
    /// Entry points.
    pub entries: Vec<Entry<O, T>>,
    /// How the client packs embeddings, divided by `embedding_scale`.
    pub embedding: Placement,
    /// The client multiplies embeddings by this before it encrypts them.
    pub embedding_scale: f64,
    /// Where the client finds the logits.
    pub logits: Placement,
}

impl<O, T> Program<O, T> {
    /// The state array of an id.
    pub fn state(&self, id: StateId) -> &State {
        &self.states[id.0 as usize]
    }

    /// The table of an id.
    pub fn table(&self, id: TableId) -> &Table {
        &self.tables[id.0 as usize]
    }

    /// The entry point of the given name.
    pub fn entry(&self, name: &str) -> Option<&Entry<O, T>> {
        self.entries.iter().find(|entry| entry.kind.name() == name)
    }
}
