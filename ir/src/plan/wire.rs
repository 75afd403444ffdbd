//! The protobuf messages of plan files. A field's number is never reused.

use std::collections::BTreeMap;

use prost::Message;

/// A header message, with the list of blobs as its first field.
pub(super) trait Header: Message + Default {
    /// Where the blobs are.
    fn blobs(&self) -> &[Blob];

    /// Sets where the blobs are.
    fn set_blobs(&mut self, blobs: Vec<Blob>);
}

/// Header of the server's file.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PlanHeader {
    #[prost(message, repeated, tag = "1")]
    pub(super) blobs: Vec<Blob>,
    #[prost(message, optional, tag = "2")]
    pub(super) parameters: Option<Parameters>,
    #[prost(message, optional, tag = "3")]
    pub(super) program: Option<Program>,
    #[prost(message, optional, tag = "4")]
    pub(super) keys: Option<Keys>,
    #[prost(message, optional, tag = "5")]
    pub(super) model: Option<Model>,
    #[prost(message, optional, tag = "6")]
    pub(super) provenance: Option<Provenance>,
    #[prost(message, repeated, tag = "8")]
    pub(super) counts: Vec<CallCounts>,
    #[prost(message, repeated, tag = "9")]
    pub(super) approximations: Vec<Approximation>,
    #[prost(uint32, repeated, tag = "10")]
    pub(super) prefill_pays: Vec<u32>,
}

/// Header of the client's file.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ClientHeader {
    #[prost(message, repeated, tag = "1")]
    pub(super) blobs: Vec<Blob>,
    #[prost(message, optional, tag = "2")]
    pub(super) parameters: Option<Parameters>,
    #[prost(message, optional, tag = "4")]
    pub(super) keys: Option<Keys>,
    #[prost(message, optional, tag = "5")]
    pub(super) model: Option<Model>,
    #[prost(uint32, tag = "8")]
    pub(super) slots: u32,
    #[prost(uint32, tag = "9")]
    pub(super) context: u32,
    #[prost(message, repeated, tag = "10")]
    pub(super) entries: Vec<EntryInterface>,
    #[prost(message, optional, tag = "11")]
    pub(super) client: Option<Packing>,
    #[prost(bytes = "vec", tag = "12")]
    pub(super) plan_hash: Vec<u8>,
    #[prost(uint32, repeated, tag = "13")]
    pub(super) prefix: Vec<u32>,
    #[prost(uint32, repeated, tag = "14")]
    pub(super) prefill_pays: Vec<u32>,
}

impl Header for PlanHeader {
    fn blobs(&self) -> &[Blob] {
        &self.blobs
    }

    fn set_blobs(&mut self, blobs: Vec<Blob>) {
        self.blobs = blobs;
    }
}

impl Header for ClientHeader {
    fn blobs(&self) -> &[Blob] {
        &self.blobs
    }

    fn set_blobs(&mut self, blobs: Vec<Blob>) {
        self.blobs = blobs;
    }
}

/// Bytes behind the header, one blob after the other; or, with a path from the plan's folder on, bytes of another file.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Blob {
    #[prost(uint64, tag = "2")]
    pub(super) length: u64,
    #[prost(bytes = "vec", tag = "3")]
    pub(super) hash: Vec<u8>,
    #[prost(string, optional, tag = "4")]
    pub(super) file: Option<String>,
    #[prost(uint64, tag = "5")]
    pub(super) offset: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Parameters {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(uint32, tag = "2")]
    pub(super) log2_degree: u32,
    #[prost(uint32, tag = "3")]
    pub(super) log2_scale: u32,
    #[prost(uint32, tag = "4")]
    pub(super) base_bits: u32,
    #[prost(uint32, repeated, tag = "5")]
    pub(super) slots_to_coeffs_bits: Vec<u32>,
    #[prost(uint32, repeated, tag = "6")]
    pub(super) use_bits: Vec<u32>,
    #[prost(uint32, repeated, tag = "7")]
    pub(super) eval_mod_bits: Vec<u32>,
    #[prost(uint32, repeated, tag = "8")]
    pub(super) coeffs_to_slots_bits: Vec<u32>,
    #[prost(uint32, repeated, tag = "9")]
    pub(super) special_bits: Vec<u32>,
    #[prost(uint32, tag = "10")]
    pub(super) ephemeral_weight: u32,
    #[prost(bool, tag = "11")]
    pub(super) insecure: bool,
    #[prost(message, repeated, tag = "12")]
    pub(super) gadgets: Vec<KeyGadget>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(super) struct KeyGadget {
    #[prost(uint32, tag = "1")]
    pub(super) up_to_level: u32,
    #[prost(uint32, tag = "2")]
    pub(super) digit_limbs: u32,
    #[prost(uint32, tag = "3")]
    pub(super) special: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Program {
    #[prost(uint32, tag = "1")]
    pub(super) slots: u32,
    #[prost(uint32, tag = "2")]
    pub(super) context: u32,
    #[prost(message, repeated, tag = "3")]
    pub(super) tables: Vec<Table>,
    #[prost(message, repeated, tag = "4")]
    pub(super) states: Vec<State>,
    #[prost(message, repeated, tag = "5")]
    pub(super) entries: Vec<Entry>,
    #[prost(message, optional, tag = "6")]
    pub(super) client: Option<Packing>,
    #[prost(uint32, repeated, tag = "7")]
    pub(super) prefix: Vec<u32>,
}

/// A table: its weights, or a deviation where the plan has shapes only.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Table {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(uint32, repeated, tag = "2")]
    pub(super) shape: Vec<u32>,
    #[prost(double, optional, tag = "4")]
    pub(super) deviation: Option<f64>,
    #[prost(message, optional, tag = "5")]
    pub(super) weights: Option<Weights>,
}

/// Stored weights. A kind of numbers is 1, 2 or 3 for single precision, half precision and bfloat16.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Weights {
    #[prost(uint32, tag = "1")]
    pub(super) blob: u32,
    /// A kind of numbers, unless they are integers.
    #[prost(uint32, tag = "2")]
    pub(super) kind: u32,
    #[prost(message, optional, tag = "3")]
    pub(super) integers: Option<Integers>,
    #[prost(uint64, tag = "4")]
    pub(super) rows: u64,
    #[prost(uint64, tag = "5")]
    pub(super) columns: u64,
    #[prost(bool, tag = "6")]
    pub(super) inputs_first: bool,
    /// The outputs that are used; all where absent.
    #[prost(message, optional, tag = "7")]
    pub(super) outputs: Option<Outputs>,
    #[prost(double, tag = "8")]
    pub(super) scale: f64,
    #[prost(double, tag = "9")]
    pub(super) factor: f64,
    /// Single precision, for each input.
    #[prost(uint32, optional, tag = "10")]
    pub(super) gamma_blob: Option<u32>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Outputs {
    #[prost(uint32, repeated, tag = "1")]
    pub(super) outputs: Vec<u32>,
}

/// Zero points are numbers of a kind, integers, or one for all.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Integers {
    #[prost(uint32, tag = "1")]
    pub(super) bits: u32,
    #[prost(bool, tag = "2")]
    pub(super) signed: bool,
    #[prost(uint64, tag = "3")]
    pub(super) row_length: u64,
    #[prost(uint64, tag = "4")]
    pub(super) block_rows: u64,
    #[prost(uint64, tag = "5")]
    pub(super) block_columns: u64,
    #[prost(uint32, tag = "6")]
    pub(super) scales_blob: u32,
    #[prost(uint32, tag = "7")]
    pub(super) scales_kind: u32,
    #[prost(sint32, tag = "8")]
    pub(super) zero: i32,
    #[prost(uint32, optional, tag = "9")]
    pub(super) zeros_blob: Option<u32>,
    /// A kind of numbers, unless they are integers.
    #[prost(uint32, tag = "10")]
    pub(super) zeros_kind: u32,
    #[prost(uint64, tag = "11")]
    pub(super) zeros_row_length: u64,
}

/// A state array; the layout and the initial vector in text.
#[derive(Clone, PartialEq, Message)]
pub(super) struct State {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(uint32, tag = "2")]
    pub(super) capacity: u32,
    #[prost(string, tag = "3")]
    pub(super) layout: String,
    #[prost(uint32, optional, tag = "4")]
    pub(super) level: Option<u32>,
    #[prost(string, optional, tag = "5")]
    pub(super) initial: Option<String>,
}

/// An entry point: prefill where it has a chunk.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Entry {
    #[prost(uint32, optional, tag = "1")]
    pub(super) chunk: Option<u32>,
    #[prost(message, repeated, tag = "2")]
    pub(super) values: Vec<Value>,
    #[prost(message, repeated, tag = "3")]
    pub(super) nodes: Vec<Node>,
    #[prost(uint32, repeated, tag = "4")]
    pub(super) inputs: Vec<u32>,
    #[prost(message, optional, tag = "5")]
    pub(super) body: Option<Region>,
    #[prost(message, repeated, tag = "6")]
    pub(super) origins: Vec<Origin>,
    #[prost(message, repeated, tag = "7")]
    pub(super) checks: Vec<RangeCheck>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct RangeCheck {
    #[prost(string, tag = "1")]
    pub(super) site: String,
    #[prost(message, optional, tag = "2")]
    pub(super) placement: Option<Placement>,
    #[prost(double, tag = "3")]
    pub(super) low: f64,
    #[prost(double, tag = "4")]
    pub(super) high: f64,
    #[prost(double, tag = "5")]
    pub(super) centre: f64,
    #[prost(double, tag = "6")]
    pub(super) half: f64,
}

/// A value with its type in text.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Value {
    #[prost(string, tag = "1")]
    pub(super) ty: String,
    #[prost(string, tag = "2")]
    pub(super) name: String,
}

/// An op: its mnemonic and its attributes in text.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Node {
    #[prost(string, tag = "1")]
    pub(super) mnemonic: String,
    #[prost(string, tag = "2")]
    pub(super) attributes: String,
    #[prost(uint32, repeated, tag = "3")]
    pub(super) inputs: Vec<u32>,
    #[prost(uint32, repeated, tag = "4")]
    pub(super) results: Vec<u32>,
    #[prost(uint32, optional, tag = "5")]
    pub(super) origin: Option<u32>,
    #[prost(uint32, optional, tag = "7")]
    pub(super) layer: Option<u32>,
    #[prost(message, optional, tag = "6")]
    pub(super) region: Option<Region>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Region {
    #[prost(uint32, repeated, tag = "1")]
    pub(super) ops: Vec<u32>,
    #[prost(uint32, repeated, tag = "2")]
    pub(super) yields: Vec<u32>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Origin {
    #[prost(string, tag = "1")]
    pub(super) node: String,
    #[prost(string, tag = "2")]
    pub(super) op_type: String,
}

/// How the client packs embeddings and finds logits.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Packing {
    #[prost(message, optional, tag = "1")]
    pub(super) embedding: Option<Placement>,
    #[prost(message, repeated, tag = "2")]
    pub(super) inputs: Vec<EmbeddingForm>,
    #[prost(message, optional, tag = "3")]
    pub(super) logits: Option<Placement>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct EmbeddingForm {
    #[prost(double, tag = "1")]
    pub(super) scale: f64,
    #[prost(double, optional, tag = "2")]
    pub(super) norm_epsilon: Option<f64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Placement {
    #[prost(uint32, repeated, tag = "1")]
    pub(super) index_to_slot: Vec<u32>,
    #[prost(uint32, tag = "2")]
    pub(super) token_stride: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Keys {
    #[prost(btree_map = "uint32, message", tag = "1")]
    pub(super) rotations: BTreeMap<u32, LevelSet>,
    #[prost(uint32, repeated, tag = "2")]
    pub(super) conjugation: Vec<u32>,
    #[prost(uint32, repeated, tag = "3")]
    pub(super) relinearisation: Vec<u32>,
    #[prost(message, repeated, tag = "4")]
    pub(super) bootstraps: Vec<BootstrapVariant>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct LevelSet {
    #[prost(uint32, repeated, tag = "1")]
    pub(super) levels: Vec<u32>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct BootstrapVariant {
    #[prost(bool, tag = "1")]
    pub(super) complex: bool,
    #[prost(uint32, tag = "2")]
    pub(super) log2_magnitude: u32,
}

/// The client's part; without an embedding, of a plan that has no weights.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Model {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(uint32, optional, tag = "8")]
    pub(super) tokenizer_blob: Option<u32>,
    #[prost(uint32, tag = "3")]
    pub(super) vocabulary: u32,
    #[prost(uint32, tag = "4")]
    pub(super) hidden: u32,
    #[prost(message, optional, tag = "11")]
    pub(super) embedding: Option<Weights>,
    #[prost(uint32, repeated, tag = "7")]
    pub(super) eos: Vec<u32>,
    #[prost(message, optional, tag = "9")]
    pub(super) chat: Option<ChatTemplate>,
    #[prost(message, optional, tag = "10")]
    pub(super) guard: Option<Guard>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ChatTemplate {
    #[prost(string, tag = "1")]
    pub(super) source: String,
    #[prost(btree_map = "string, string", tag = "2")]
    pub(super) tokens: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Guard {
    #[prost(double, tag = "1")]
    pub(super) low: f64,
    #[prost(double, tag = "2")]
    pub(super) high: f64,
    #[prost(uint32, repeated, tag = "3")]
    pub(super) zeros: Vec<u32>,
    #[prost(message, optional, tag = "4")]
    pub(super) norm: Option<NormCheck>,
    #[prost(double, tag = "5")]
    pub(super) noise_gain: f64,
}

/// Other logits follow from the embedding where `embedding` is set, else those of the tokens `others`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct NormCheck {
    #[prost(uint32, repeated, tag = "1")]
    pub(super) tokens: Vec<u32>,
    #[prost(uint32, tag = "2")]
    pub(super) triangle_blob: u32,
    #[prost(double, tag = "3")]
    pub(super) shortest: f64,
    #[prost(double, tag = "4")]
    pub(super) longest: f64,
    #[prost(double, tag = "5")]
    pub(super) gain: f64,
    #[prost(bool, tag = "6")]
    pub(super) embedding: bool,
    #[prost(uint32, repeated, tag = "7")]
    pub(super) others: Vec<u32>,
    #[prost(uint32, tag = "8")]
    pub(super) others_blob: u32,
    #[prost(double, tag = "9")]
    pub(super) deviation: f64,
    #[prost(double, tag = "10")]
    pub(super) deviation_gain: f64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Provenance {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) model_hash: Vec<u8>,
    #[prost(string, tag = "2")]
    pub(super) compiler_version: String,
    #[prost(btree_map = "string, string", tag = "3")]
    pub(super) options: BTreeMap<String, String>,
    #[prost(double, tag = "4")]
    pub(super) predicted_ns_per_token: f64,
    #[prost(string, repeated, tag = "5")]
    pub(super) notes: Vec<String>,
    #[prost(string, tag = "6")]
    pub(super) cost_table: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct EntryInterface {
    #[prost(uint32, optional, tag = "1")]
    pub(super) chunk: Option<u32>,
    #[prost(uint32, repeated, tag = "2")]
    pub(super) input_levels: Vec<u32>,
    #[prost(uint32, repeated, tag = "3")]
    pub(super) output_levels: Vec<u32>,
    #[prost(message, repeated, tag = "4")]
    pub(super) checks: Vec<RangeCheck>,
}

/// What a call executes: of prefill where it has a chunk.
#[derive(Clone, PartialEq, Message)]
pub(super) struct CallCounts {
    #[prost(uint32, optional, tag = "1")]
    pub(super) chunk: Option<u32>,
    #[prost(uint32, tag = "2")]
    pub(super) position: u32,
    #[prost(uint32, tag = "3")]
    pub(super) tokens: u32,
    #[prost(uint64, tag = "4")]
    pub(super) bootstraps: u64,
    #[prost(uint64, tag = "5")]
    pub(super) rotations: u64,
    #[prost(uint64, tag = "6")]
    pub(super) ciphertext_products: u64,
    #[prost(uint64, tag = "7")]
    pub(super) plaintext_products: u64,
    #[prost(uint64, tag = "8")]
    pub(super) masks: u64,
    #[prost(uint64, tag = "9")]
    pub(super) polynomials: u64,
    #[prost(uint64, tag = "10")]
    pub(super) level_drops: u64,
    #[prost(message, repeated, tag = "11")]
    pub(super) mask_reasons: Vec<MaskCount>,
    #[prost(uint64, tag = "12")]
    pub(super) predicted_ns: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct MaskCount {
    #[prost(string, tag = "1")]
    pub(super) reason: String,
    #[prost(uint64, tag = "2")]
    pub(super) count: u64,
}

// One for each property.
#[allow(clippy::struct_excessive_bools)]
#[derive(Clone, PartialEq, Message)]
pub(super) struct Approximation {
    #[prost(string, tag = "1")]
    pub(super) site: String,
    #[prost(string, tag = "2")]
    pub(super) function: String,
    #[prost(string, tag = "3")]
    pub(super) method: String,
    #[prost(message, optional, tag = "4")]
    pub(super) accurate: Option<Interval>,
    #[prost(message, optional, tag = "5")]
    pub(super) sane: Option<Interval>,
    #[prost(message, optional, tag = "6")]
    pub(super) derived: Option<Interval>,
    #[prost(uint32, tag = "7")]
    pub(super) degree: u32,
    #[prost(uint32, tag = "8")]
    pub(super) depth: u32,
    #[prost(double, tag = "9")]
    pub(super) max_error: f64,
    #[prost(bool, tag = "10")]
    pub(super) relative: bool,
    #[prost(bool, tag = "11")]
    pub(super) escape_proof: bool,
    #[prost(bool, tag = "12")]
    pub(super) checked: bool,
    #[prost(bool, tag = "13")]
    pub(super) cancels: bool,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Interval {
    #[prost(double, tag = "1")]
    pub(super) low: f64,
    #[prost(double, tag = "2")]
    pub(super) high: f64,
}
