//! Where everything lies: padded widths, strides, and orders of features.
//!
//! A vector of P positions (a power of two) lies at stride n/P. Positions are mapped to features, rows or columns of the
//! raw weights, by [`Features`]; padding positions have no feature. Heads are interleaved: position r of keys and values
//! is lane r / H of KV head r % H, and queries are ordered (lane, KV head, member of the group), so that the members of a
//! group lie inside the T = n/(H·dh) slots of their KV head, T/g apart. A lane is the n/dh slots of one entry of a head.
//!
//! Score and probability ciphertexts of decoding hold, in lane l, member l % g and token block (l / g) % B: all members
//! share one ciphertext, periodic over lanes with period g·B. Ciphertext j of the V cache holds in lane l the token block
//! (j + l / g) % B, so that a rotation of the probabilities by whole lanes, i = g·j + r, brings to every lane l with
//! l % g + r < g the block that the ciphertext holds there, for member l % g + r; for the other lanes the rotation by
//! g·j + r − g does.

use cachemir_ir::expression::Integer;
use cachemir_ir::linear::{Features, Heads, Order, Padded};
use cachemir_ir::tensor::Hyperparameters;

use crate::Error;

/// Sizes of a model packed into n slots.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// The model.
    pub model: Hyperparameters,
    /// Slots n of a ciphertext.
    pub slots: usize,
    /// Positions of the residual stream.
    pub hidden: usize,
    /// KV heads H, padded.
    pub kv_heads: usize,
    /// Members g of a group, padded.
    pub group: usize,
    /// Head dimension dh, padded.
    pub head_dim: usize,
    /// Positions of the gated layer.
    pub mlp: usize,
    /// Ciphertexts B of a V cache: a power of two.
    pub blocks: usize,
    /// Tokens of a prefill.
    pub chunk: usize,
}

impl Shape {
    /// Least number of slots that is worth a try: bootstraps of fewer cost as much.
    pub const LEAST_SLOTS: usize = 1 << 12;

    /// Packs the model into `slots` slots, or explains why it does not fit.
    pub fn new(model: &Hyperparameters, slots: usize) -> Result<Self, Error> {
        let misfit = |message: String| Error::BadOption { option: "slots", message };
        if !slots.is_power_of_two() {
            return Err(misfit(format!("{slots} is not a power of two")));
        }
        let hidden = model.hidden.next_power_of_two();
        let kv_heads = model.kv_heads.next_power_of_two();
        let group = model.group().next_power_of_two();
        let head_dim = (model.head_dim / 2).next_power_of_two() * 2;
        let mlp = model.mlp.next_power_of_two().max(hidden);
        let widest = hidden.max(mlp).max(kv_heads * group * head_dim);
        if widest > slots {
            return Err(misfit(format!("a vector of {widest} entries does not fit into {slots} slots")));
        }
        let tokens = slots / (kv_heads * head_dim);
        let blocks = model.context.div_ceil(tokens).next_power_of_two();
        if blocks * group > head_dim {
            return Err(misfit(format!(
                "a context of {} tokens takes {blocks} cache ciphertexts of {tokens} tokens at {slots} slots; with {group} \
                 query heads to a key-value head at most {} are possible",
                model.context,
                head_dim / group
            )));
        }
        let chunk = (slots / mlp).min(slots / hidden).min(head_dim).min(tokens / group / 4).max(1);
        Ok(Self { model: model.clone(), slots, hidden, kv_heads, group, head_dim, mlp, blocks, chunk })
    }

    /// All packings of the model into [`Self::LEAST_SLOTS`] to `most_slots` slots, or into `most_slots` if that is less; or
    /// why it does not even fit into the largest.
    pub fn fitting(model: &Hyperparameters, most_slots: usize) -> Result<Vec<Self>, Error> {
        let powers = std::iter::successors(Some(Self::LEAST_SLOTS.min(most_slots)), |slots| Some(2 * slots));
        let numbers = powers.take_while(|&slots| slots <= most_slots);
        let (fitting, misfits): (Vec<_>, Vec<_>) =
            numbers.map(|slots| Self::new(model, slots)).partition(Result::is_ok);
        match misfits.into_iter().last() {
            Some(Err(misfit)) if fitting.is_empty() => Err(misfit),
            _ => Ok(fitting.into_iter().flatten().collect()),
        }
    }

    /// Stride t of the residual stream.
    pub fn stride(&self) -> usize {
        self.slots / self.hidden
    }

    /// Stride t' of the gated layer.
    pub fn wide_stride(&self) -> usize {
        self.slots / self.mlp
    }

    /// Tokens T in a ciphertext of the K cache, and stride of keys and values.
    pub fn tokens(&self) -> usize {
        self.slots / (self.kv_heads * self.head_dim)
    }

    /// Stride T/g of queries.
    pub fn query_stride(&self) -> usize {
        self.tokens() / self.group
    }

    /// Slots of a lane.
    pub fn lane(&self) -> usize {
        self.slots / self.head_dim
    }

    /// Ciphertexts of a K cache.
    pub fn key_capacity(&self) -> usize {
        self.model.context.div_ceil(self.tokens())
    }

    /// The heads of the attention, padded.
    pub fn heads(&self) -> Heads {
        let padded = |real: usize, places: usize| Padded { real: real as u32, places: places as u32 };
        Heads {
            kv_heads: padded(self.model.kv_heads, self.kv_heads),
            members: padded(self.model.group(), self.group),
            head_dim: padded(self.model.head_dim, self.head_dim),
        }
    }

    /// Order of the residual stream.
    pub fn hidden_order(&self) -> Order {
        Order::of(Features::Plain { width: self.model.hidden as u32, offset: 0 })
    }

    /// Order of the gated layer, whose positions may be more than its features ask for.
    pub fn mlp_order(&self) -> Order {
        let features = Features::Plain { width: self.model.mlp as u32, offset: 0 };
        Order { positions: self.mlp as u32, features }
    }

    fn real_head(&self, head: &Integer) -> Option<Integer> {
        (self.kv_heads > self.model.kv_heads).then(|| head.clone().less(self.model.kv_heads))
    }

    fn real_member(&self, member: &Integer) -> Option<Integer> {
        (self.group > self.model.group()).then(|| member.clone().less(self.model.group()))
    }

    /// The condition that a slot's KV head, and the given member, are not padding.
    pub fn real_row(&self, member: &Integer) -> Option<Integer> {
        let head = Integer::slot() / self.tokens() % self.kv_heads;
        all([self.real_head(&head), self.real_member(member)])
    }

    /// Which entry of a token's keys or values, `[kv_heads][head_dim]`, a slot of a cache holds, and the condition that it is none
    /// of padding.
    pub(super) fn key_entry(&self) -> (Integer, Option<Integer>) {
        let (lane, head) = (self.lane_of_slot(), Integer::slot() / self.tokens() % self.kv_heads);
        // Lanes l and l + head_dim/2 hold the features that the rotary embedding turns together.
        let (half, pairs) = (self.head_dim / 2, self.model.head_dim / 2);
        let (pair, second) = (lane.clone() % half, lane / half);
        let real_pair = (half > pairs).then(|| pair.clone().less(pairs));
        let entry = head.clone() * self.model.head_dim + second * pairs + pair;
        (entry, all([self.real_head(&head), real_pair]))
    }

    /// The lane of a slot.
    pub fn lane_of_slot(&self) -> Integer {
        Integer::slot() / self.lane()
    }
}

/// The conjunction of those conditions that are there.
pub(super) fn all(conditions: impl IntoIterator<Item = Option<Integer>>) -> Option<Integer> {
    conditions.into_iter().flatten().reduce(Integer::and)
}

/// A condition and an optional further one.
pub(super) fn both(condition: Integer, other: Option<Integer>) -> Integer {
    match other {
        Some(other) => condition.and(other),
        None => condition,
    }
}
