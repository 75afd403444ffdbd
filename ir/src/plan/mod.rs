//! The plan: what the compiler hands to the runtime, as two self-contained files.
//!
//! `plan.bin` is the server's: parameters, the ckks program with its weights, the key manifest, provenance, and the
//! client's part. Its sibling `plan.client` holds all that key generation and a client need and nothing else. Both carry
//! a format version, and a checksum that stands for every byte ([`container`]); a plan of another version, a truncated or an
//! altered one is refused with a message that says so. The same plan always gives the same bytes.
//!
//! Ops, types and expressions are stored in their text syntax ([`crate::text`]) inside protobuf messages, so that one
//! grammar is read and checked. Weights are stored in the form that their exporter gave them ([`crate::weights`]), once for
//! equal contents: inside the plan, or in the exporter's files, which it then names ([`Storage`]). Opening a plan reads none
//! of them; each is checked when it is used for the first time, and all at once by [`Plan::check_all`]. A plan that was
//! compiled from shapes alone has neither embedding nor weights, and says of each table how large its entries would be.

mod check;
mod container;
mod convert;
mod file;
mod guard;
mod stored;
mod summary;
#[cfg(test)]
pub(crate) mod tests;
mod wire;

use std::collections::BTreeMap;

use bytes::Bytes;

pub use container::{CLIENT_MAGIC, FORMAT_VERSION, PLAN_MAGIC};
pub use file::client_path;
pub use guard::{Guard, NormCheck, Others, Reading};
pub use summary::{Approximation, CallCounts, MaskCount, Measure};

use crate::Error;
use crate::ckks::{CiphertextType, CkksOp, Levels};
use crate::manifest::KeyManifest;
use crate::parameters::Parameters;
use crate::program::{EmbeddingForm, EntryKind, EntryPoint, Placement, Program, RangeCheck};
use crate::weights::Weights;

/// A program of the ckks stage.
pub type CkksProgram = Program<CkksOp, CiphertextType>;

/// What a client needs of the model. All of it is public.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientModel {
    /// The model's name, for people.
    pub name: String,
    /// The contents of `tokenizer.json`; without it, prompts and texts are token ids.
    pub tokenizer: Option<Vec<u8>>,
    /// How the model wants conversations written, if its files say so.
    pub chat: Option<ChatTemplate>,
    /// Number of tokens.
    pub vocabulary: u32,
    /// Width of the embedding.
    pub hidden: u32,
    /// The embedding, `[vocabulary][hidden]`, unscaled; `None` in a plan that has no weights.
    pub embedding: Option<Weights>,
    /// Tokens that end a text.
    pub eos: Vec<u32>,
    /// What decrypted logits are checked against.
    pub guard: Guard,
}

/// A Jinja template that turns messages into the text that a chat model was trained on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatTemplate {
    /// The template.
    pub source: String,
    /// The texts of special tokens that the template may name, e.g. `bos_token`.
    pub tokens: BTreeMap<String, String>,
}

impl ClientModel {
    /// Whether the plan has weights. One that was compiled from shapes alone takes no tokens: it can be looked at, and its
    /// layers can be measured.
    pub fn has_weights(&self) -> bool {
        self.embedding.is_some()
    }

    /// The embeddings of all tokens, `[vocabulary][hidden]`, held from the first use on; none in a plan without weights.
    ///
    /// # Errors
    /// Those of [`Weights::load`].
    pub fn embeddings(&self) -> Result<&[f32], Error> {
        self.embedding.as_ref().map_or(Ok(&[]), |embedding| embedding.values(EMBEDDING))
    }

    /// The embedding of a token, if there is such a token.
    ///
    /// # Errors
    /// Those of [`Weights::load`].
    pub fn embedding_of(&self, token: u32) -> Result<Option<&[f32]>, Error> {
        let width = self.hidden as usize;
        let range = (token as usize).checked_mul(width).and_then(|start| Some(start..start.checked_add(width)?));
        let embeddings = self.embeddings()?;
        Ok(range.and_then(|range| embeddings.get(range)))
    }

    fn check(&self) -> Result<(), Error> {
        self.embedding.as_ref().map_or(Ok(()), |embedding| embedding.check(EMBEDDING))
    }
}

/// What messages call the embedding.
const EMBEDDING: &str = "embedding";

/// Where a written plan has its weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Storage {
    /// Inside.
    #[default]
    Embed,
    /// In the files of the exporter, as far as they are in such.
    Reference,
}

/// Where a plan comes from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Provenance {
    /// BLAKE3 hash of the model's contents.
    pub model_hash: [u8; 32],
    /// Version of the compiler.
    pub compiler_version: String,
    /// Options that the plan was compiled with, by name.
    pub options: BTreeMap<String, String>,
    /// Where the cost table comes from by which the plan was packed, placed and predicted.
    pub cost_table: String,
    /// Cost of a decode step by that table, in nanoseconds on one thread.
    pub predicted_ns_per_token: f64,
    /// Where the plan computes something else than the model's file would, in sentences.
    pub notes: Vec<String>,
}

/// The server's plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Sizes of the cryptosystem.
    pub parameters: Parameters,
    /// The entry points over their state and weights.
    pub program: CkksProgram,
    /// Keys that the entry points use.
    pub keys: KeyManifest,
    /// The client's part.
    pub model: ClientModel,
    /// Where the plan comes from.
    pub provenance: Provenance,
    /// What typical calls execute.
    pub counts: Vec<CallCounts>,
    /// The non-linear functions in the order of the decoder, and what stands for them.
    pub approximations: Vec<Approximation>,
    /// From how many tokens on prefill pays, as [`ClientPlan::prefill_pays`].
    pub prefill_pays: Vec<u32>,
}

/// What a client must know of an entry point.
#[derive(Clone, Debug, PartialEq)]
pub struct EntryInterface {
    /// What the entry point does.
    pub kind: EntryKind,
    /// Level at which each input is encrypted.
    pub input_levels: Vec<u32>,
    /// Level of each output.
    pub output_levels: Vec<u32>,
    /// What the client checks before it believes the logits.
    pub checks: Vec<RangeCheck>,
}

/// The client's plan.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientPlan {
    /// Sizes of the cryptosystem.
    pub parameters: Parameters,
    /// Keys that the server needs.
    pub keys: KeyManifest,
    /// The model's public part.
    pub model: ClientModel,
    /// Slots n of every ciphertext.
    pub slots: u32,
    /// Most tokens in a session.
    pub context: u32,
    /// The server's entry points.
    pub entries: Vec<EntryInterface>,
    /// Where the inputs hold what they hold of embeddings.
    pub embedding: Placement,
    /// What each input of an entry point holds of embeddings.
    pub inputs: Vec<EmbeddingForm>,
    /// Where the logits are; slot s of output number k counts as slot k·n + s.
    pub logits: Placement,
    /// Tokens that every session begins with; they are public.
    pub prefix: Vec<u32>,
    /// For each multiple of the chunk: from how many tokens on a prefill there is predicted to be faster than decoding
    /// them one by one; one more than the chunk where it never is. Empty without `prefill`.
    pub prefill_pays: Vec<u32>,
    /// Checksum of the server's plan, [`Plan::hash_of`].
    pub plan_hash: [u8; 32],
}

impl Plan {
    /// Whether the plan has weights, or was compiled from shapes alone.
    pub fn has_weights(&self) -> bool {
        self.model.has_weights()
    }

    /// The levels that the parameters offer to programs.
    pub fn levels(&self) -> Levels {
        self.parameters.levels()
    }

    /// The client's plan for a server's plan with this hash.
    pub fn client(&self, plan_hash: [u8; 32]) -> ClientPlan {
        let program = &self.program;
        let levels = |graph: &crate::ckks::CkksGraph, values: &[crate::graph::ValueId]| {
            values.iter().map(|value| graph.ty(*value).level).collect()
        };
        let interface = |entry: &crate::program::Entry<CkksOp, CiphertextType>| EntryInterface {
            kind: entry.kind,
            input_levels: levels(&entry.graph, &entry.graph.inputs),
            output_levels: levels(&entry.graph, &entry.graph.body.yields),
            checks: entry.checks.clone(),
        };
        ClientPlan {
            parameters: self.parameters.clone(),
            keys: self.keys.clone(),
            model: self.model.clone(),
            slots: program.slots,
            context: program.context,
            entries: program.entries.iter().map(interface).collect(),
            embedding: program.embedding.clone(),
            inputs: program.inputs.clone(),
            logits: program.logits.clone(),
            prefix: program.prefix.clone(),
            prefill_pays: self.prefill_pays.clone(),
            plan_hash,
        }
    }

    fn sealed(&self, mut blobs: container::Blobs) -> Result<container::Sealed, Error> {
        check::plan(self)?;
        let header = convert::plan_to_wire(self, &mut blobs);
        container::seal(container::Kind::Server, header, &blobs)
    }

    /// The file's contents, weights inside. Fails where the plan would be refused by [`Plan::from_bytes`], and where weights
    /// cannot be read.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        self.sealed(container::Blobs::default())?.to_bytes()
    }

    /// The checksum of [`Plan::to_bytes`], for which no weights are read.
    pub fn hash(&self) -> Result<[u8; 32], Error> {
        Ok(self.sealed(container::Blobs::default())?.checksum())
    }

    fn open(source: &container::Source) -> Result<Self, Error> {
        let (header, blobs) = container::read(container::Kind::Server, source)?;
        let plan = convert::plan_from_wire(header, &blobs)?;
        blobs.check_used()?;
        check::plan(&plan)?;
        Ok(plan)
    }

    /// Reads a file's contents, and checks all but the bytes of weights. Any bytes are either a valid plan or refused, here
    /// or by [`Plan::check_all`] and the first use; nothing panics.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        Self::open(&container::Source::Memory(Bytes::copy_from_slice(bytes)))
    }

    /// Reads all weights and checks their hashes.
    ///
    /// # Errors
    /// Those of [`Weights::load`].
    pub fn check_all(&self) -> Result<(), Error> {
        for table in self.program.tables.iter() {
            table.weights().map_or(Ok(()), |weights| weights.check(&table.name))?;
        }
        self.model.check()
    }

    /// The hash of a file's contents: the checksum that they carry.
    pub fn hash_of(bytes: &[u8]) -> Result<[u8; 32], Error> {
        container::checksum(container::Kind::Server, bytes)
    }
}

impl ClientPlan {
    fn sealed(&self) -> Result<container::Sealed, Error> {
        check::client(self)?;
        let mut blobs = container::Blobs::default();
        let header = convert::client_to_wire(self, &mut blobs);
        container::seal(container::Kind::Client, header, &blobs)
    }

    /// The file's contents. Fails where the plan would be refused by [`ClientPlan::from_bytes`], and where the embedding cannot
    /// be read.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        self.sealed()?.to_bytes()
    }

    fn open(source: &container::Source) -> Result<Self, Error> {
        let (header, blobs) = container::read(container::Kind::Client, source)?;
        let plan = convert::client_from_wire(header, &blobs)?;
        blobs.check_used()?;
        check::client(&plan)?;
        Ok(plan)
    }

    /// Reads a file's contents, and checks all but the bytes of the embedding. Any bytes are either a valid plan or refused,
    /// here or by [`ClientPlan::check_all`] and the first use; nothing panics.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        Self::open(&container::Source::Memory(Bytes::copy_from_slice(bytes)))
    }

    /// Reads the embedding and checks its hash.
    ///
    /// # Errors
    /// Those of [`Weights::load`].
    pub fn check_all(&self) -> Result<(), Error> {
        self.model.check()
    }

    /// What is known of an entry point, if the server has it.
    pub fn entry(&self, wanted: EntryPoint) -> Option<&EntryInterface> {
        self.entries.iter().find(|entry| entry.kind.entry() == wanted)
    }
}
