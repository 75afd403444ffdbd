//! Entry points over declared state: what a plan executes.

use std::fmt;
use std::sync::Arc;

use crate::Error;
use crate::expression::{Environment, TableId, Variable, Vector};
use crate::graph::Graph;
use crate::slots::{Layout, StateId};
use crate::table::Table;

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
    /// What an element holds until it is written, by its index [`State::INDEX`]; zeros where absent. It is public.
    pub initial: Option<Vector>,
}

impl State {
    /// The variable that stands for an element's index in [`State::initial`].
    pub const INDEX: Variable = Variable::Loop(0);
}

/// A program's entry points.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntryPoint {
    /// Takes one token in.
    Decode,
    /// Takes several in at once.
    Prefill,
}

impl EntryPoint {
    /// Both, by their names.
    pub const ALL: [Self; 2] = [Self::Decode, Self::Prefill];

    /// The name in text: `decode` or `prefill`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Prefill => "prefill",
        }
    }
}

impl std::str::FromStr for EntryPoint {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|point| point.name() == name);
        found.ok_or_else(|| format!("`{name}` is no entry point; decode and prefill are"))
    }
}

impl fmt::Display for EntryPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
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
    /// Which entry point does this.
    pub fn entry(self) -> EntryPoint {
        match self {
            Self::Decode => EntryPoint::Decode,
            Self::Prefill { .. } => EntryPoint::Prefill,
        }
    }

    /// The most tokens of a prefill; `None` for decode.
    pub fn chunk(self) -> Option<u32> {
        match self {
            Self::Decode => None,
            Self::Prefill { chunk } => Some(chunk),
        }
    }
}

/// The map between a function's argument x and the argument u = (x − centre)/half of a polynomial that stands for it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine {
    /// The x of u = 0.
    pub centre: f64,
    /// The x of u = 1 minus the centre; positive.
    pub half: f64,
}

impl Affine {
    /// u = x.
    pub const IDENTITY: Self = Self { centre: 0.0, half: 1.0 };

    /// The map that takes `low` to −1 and `high` to 1.
    pub fn onto(low: f64, high: f64) -> Self {
        Self { centre: 0.5 * (low + high), half: 0.5 * (high - low) }
    }

    /// x of u.
    pub fn argument(self, u: f64) -> f64 {
        self.centre + self.half * u
    }

    /// u of x.
    pub fn place(self, x: f64) -> f64 {
        (x - self.centre) / self.half
    }

    /// What is added to x/half to give u.
    pub fn shift(self) -> f64 {
        -self.centre / self.half
    }
}

/// One entry point.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry<O, T> {
    /// What it does.
    pub kind: EntryKind,
    /// How it does it: inputs are the embeddings, yields of the body the logits, and after them what the checks read.
    pub graph: Graph<O, T>,
    /// What the client checks before it believes the logits.
    pub checks: Vec<RangeCheck>,
}

/// A check that the argument of an approximation lay where the approximation is accurate. The argument of every
/// approximation that an odd input can leave is an output of the program, so that a client that decrypts it sees whether
/// the logits can be believed: a polynomial beyond its interval gives numbers that look like any others.
#[derive(Clone, Debug, PartialEq)]
pub struct RangeCheck {
    /// The approximation, for people.
    pub site: String,
    /// Where the arguments lie, token by token of the call; slots count through all outputs as those of the logits do.
    pub placement: Placement,
    /// The interval that has to hold them, as the plan's list of approximations has it.
    pub interval: [f64; 2],
    /// From what the slots hold to the argument.
    pub map: Affine,
}

impl RangeCheck {
    /// By how much of the interval's width a value may leave it: above the noise of encryption, below what changes a
    /// polynomial's value.
    pub const TOLERANCE: f64 = 1e-3;

    /// The first argument of the call's `count` tokens, read from the slots of all outputs, that lies outside the
    /// interval; no number where a slot is missing.
    pub fn violation(&self, slots: &[f64], count: usize) -> Option<f64> {
        let [low, high] = self.interval;
        let slack = Self::TOLERANCE * (high - low);
        let stride = self.placement.token_stride as usize;
        let of_token = |token: usize| {
            let slot = move |first: &u32| {
                let held = slots.get(*first as usize + token * stride).copied().unwrap_or(f64::NAN);
                self.map.argument(held)
            };
            self.placement.index_to_slot.iter().map(slot)
        };
        (0..count).flat_map(of_token).find(|value| !(low - slack..=high + slack).contains(value))
    }
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

/// What one ciphertext of a call's input holds of a token's embedding x of width d. The client knows the embedding, and
/// so can do in the clear what a program would do to it first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EmbeddingForm {
    /// Factor of what is encrypted.
    pub scale: f64,
    /// ε where x/√(Σ x² + d·ε) is encrypted, that is an RMS norm without its weights and over √d; x where absent.
    pub norm_epsilon: Option<f64>,
}

impl EmbeddingForm {
    /// The embedding times a factor.
    pub fn scaled(scale: f64) -> Self {
        Self { scale, norm_epsilon: None }
    }

    /// The factor of an embedding's entries.
    pub fn factor(self, embedding: &[f32]) -> f64 {
        let Some(epsilon) = self.norm_epsilon else { return self.scale };
        let sum: f64 = embedding.iter().map(|&x| f64::from(x).powi(2)).sum();
        self.scale / (sum + embedding.len() as f64 * epsilon).sqrt()
    }
}

/// The slots of a call's inputs for the embeddings of consecutive tokens, zero where none is placed; `None` if a token
/// has a slot beyond `slots`.
pub fn pack(
    inputs: &[EmbeddingForm],
    placement: &Placement,
    slots: usize,
    embeddings: &[&[f32]],
) -> Option<Vec<Vec<f64>>> {
    let one = |form: &EmbeddingForm| {
        let mut packed = vec![0.0; slots];
        for (index, embedding) in embeddings.iter().enumerate() {
            let shift = index * placement.token_stride as usize;
            let factor = form.factor(embedding);
            for (&value, &slot) in embedding.iter().zip(&placement.index_to_slot) {
                *packed.get_mut(slot as usize + shift)? = f64::from(value) * factor;
            }
        }
        Some(packed)
    };
    inputs.iter().map(one).collect()
}

/// A compiled stage: entry points, and what they share.
#[derive(Clone, Debug, PartialEq)]
pub struct Program<O, T> {
    /// Slots n of every ciphertext.
    pub slots: u32,
    /// Most tokens in a session.
    pub context: u32,
    /// Tables that plaintext vectors look up; copies of a program, and its next stage, share them.
    pub tables: Arc<Vec<Table>>,
    /// State arrays.
    pub states: Vec<State>,
    /// Tokens that every session begins with, known to the server: their keys and values are what the state holds initially.
    pub prefix: Vec<u32>,
    /// Entry points.
    pub entries: Vec<Entry<O, T>>,
    /// Where the client puts what the inputs hold of embeddings.
    pub embedding: Placement,
    /// What each input of an entry point holds of embeddings.
    pub inputs: Vec<EmbeddingForm>,
    /// Where the client finds the logits; slot s of output number k counts as slot k·n + s.
    pub logits: Placement,
}

impl<O, T> Program<O, T> {
    /// The state array of an id.
    pub fn state(&self, id: StateId) -> &State {
        &self.states[id.0 as usize]
    }

    /// What element `index` of a state array holds until it is written; `None` for zeros.
    ///
    /// # Errors
    /// [`Error::Execution`] where the vector looks an entry up that its table does not have.
    pub fn initial(&self, id: StateId, index: i64) -> Result<Option<Vec<f64>>, Error> {
        let Some(initial) = &self.state(id).initial else { return Ok(None) };
        let mut environment = Environment::default();
        environment.set_loop(0, index);
        initial.evaluate(&environment, self.slots as usize, &self.tables).map(Some)
    }

    /// The table of an id.
    pub fn table(&self, id: TableId) -> &Table {
        &self.tables[id.0 as usize]
    }

    /// Whether the entries of all tables are here, and not the shapes of some only.
    pub fn has_weights(&self) -> bool {
        self.tables.iter().all(|table| table.weights().is_some())
    }

    /// An entry point, if the program has it.
    pub fn entry(&self, wanted: EntryPoint) -> Option<&Entry<O, T>> {
        self.entries.iter().find(|entry| entry.kind.entry() == wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::{Affine, Placement, RangeCheck};

    #[test]
    fn a_check_sees_the_slots_of_all_tokens_and_forgives_noise() {
        let placement = Placement { index_to_slot: vec![0, 4], token_stride: 1 };
        // Slots hold (x − 3)/4, and x may be from 1 to 5.
        let map = Affine { centre: 3.0, half: 4.0 };
        let check = RangeCheck { site: "norm 1".to_owned(), placement, interval: [1.0, 5.0], map };
        let mut slots = vec![0.5005, -0.5005, 9.0, 9.0, 0.1, 0.2, 9.0, 9.0];
        assert_eq!(check.violation(&slots, 2), None);
        assert_eq!(check.violation(&slots, 3), Some(39.0), "in units of x");
        slots[5] = -0.502;
        assert_eq!(check.violation(&slots, 2), Some(map.argument(-0.502)));
        slots[0] = f64::NAN;
        assert!(check.violation(&slots, 1).is_some_and(f64::is_nan));
        assert!(check.violation(&slots[..4], 1).is_some());
    }
}
