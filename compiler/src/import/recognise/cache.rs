//! Caches: what attention reads is what is past followed by what is new, and all of it is handed on.
//!
//! Whoever runs the graph gives back as past keys and values what the outputs handed on. A decoder is the model's own
//! function only if each of these outputs holds just what attention reads of the input that it becomes.

use super::diagnose::Part;
use super::order::{Features, Order, features};
use super::{Layer, Name, Recogniser, Signal, Value};
use crate::Error;
use crate::import::evaluate::axis_index;
use crate::import::inputs::{CacheLayout, Present};

/// Keys or values of this step, in the given order.
pub(super) struct Appended {
    /// The node that appends them to a cache, and the cache's input, if there is one.
    pub(super) cache: Option<(usize, Name)>,
    pub(super) new: Signal,
    pub(super) order: Order,
    /// Heads, and entries of each.
    shape: [usize; 2],
}

impl CacheLayout {
    fn order(self, dim: usize) -> Order {
        match self {
            Self::HeadsFirst => Order::Heads { dim },
            Self::TokensFirst => Order::Tokens,
        }
    }

    fn shape(self, [heads, dim]: [usize; 2], tokens: usize) -> [usize; 4] {
        match self {
            Self::HeadsFirst => [1, heads, tokens, dim],
            Self::TokensFirst => [1, tokens, heads, dim],
        }
    }
}

impl<'s, 'g> Recogniser<'s, 'g> {
    /// What a cache gains in this step. `read` is all that attention reads, in the given order.
    pub(super) fn appended(self, read: &Signal, order: Order, user: usize) -> Result<Appended, Error> {
        let (node, _) = self.base_node(read, user, "keys and values of this step")?;
        let (total, past_tokens) = (self.total(), self.specialised.sizes.past);
        let dim = read.shape.last().copied().unwrap_or(0);
        let shape = [read.len().checked_div(total * dim).unwrap_or(0), dim];
        if self.node(node).op_type != "Concat" {
            return if past_tokens == 0 {
                Ok(Appended { cache: None, new: read.clone(), order, shape })
            } else {
                Err(self.unexpected(Part::Other, node, "past and new keys or values, concatenated"))
            };
        }
        let (past, mut new) = (self.signal(node, 0)?, self.signal(node, 1)?);
        new.scale *= read.scale;
        let rank = past.shape.len();
        let axis = self.node(node).integer("axis").and_then(|axis| axis_index(axis, rank));
        let own_order = match (rank, axis) {
            (3.., Ok(axis)) if axis + 2 == rank => Order::Heads { dim },
            (4, Ok(1)) => Order::Tokens,
            _ => return Err(self.fail(node, "caches are [batch, heads, tokens, dim] or [batch, tokens, heads, dim]")),
        };
        // The input may lie in the other order.
        let Some(layout) = self.present(past.base).map(|present| present.layout) else {
            return Err(self.unexpected(Part::Other, node, "past keys or values followed by those of this step"));
        };
        let same = past.scale == 1.0
            && features(&past, past_tokens, own_order, layout.order(dim)) == Some(Features::All)
            && self.node(node).inputs.len() == 2;
        if !same || features(read, total, order, own_order) != Some(Features::All) {
            return Err(
                self.fail(node, "expected past keys or values followed by those of this step, all of them read")
            );
        }
        Ok(Appended { cache: Some((node, past.base)), new, order: own_order, shape })
    }

    /// What is known of a cache; `None` for other values.
    fn present(self, input: Name) -> Option<&'s Present<'g>> {
        self.presents.iter().find(|present| present.past == input)
    }

    /// Checks that the output that hands a cache on holds what is past followed by what is new.
    pub(super) fn check_present(self, appended: &Appended) -> Result<(), Error> {
        let Some((node, past)) = appended.cache else { return Ok(()) };
        self.check_output(node, past, |present, layout| {
            let given = present.shape == layout.shape(appended.shape, self.total()) && present.scale == 1.0;
            // Another node may append the same.
            given
                && self.appended(present, layout.order(appended.shape[1]), node).is_ok_and(|again| {
                    again.cache.is_some_and(|(_, input)| input == past)
                        && again.order == appended.order
                        && again.new.base == appended.new.base
                        && again.new.indices() == appended.new.indices()
                })
        })
    }

    /// Checks that the output that hands an operation's cache on is the n-th one of that operation.
    pub(super) fn check_present_of(self, node: usize, past: Name, output: usize) -> Result<(), Error> {
        let own = self.node(node).outputs.get(output).copied().flatten();
        let shape = own.map(|own| self.specialised.value(own).shape());
        self.check_output(node, past, |present, _| {
            own == Some(present.base) && present.is_whole() && Some(present.shape.as_slice()) == shape
        })
    }

    fn check_output(
        self,
        node: usize,
        past: Name,
        hands_on: impl FnOnce(&Signal, CacheLayout) -> bool,
    ) -> Result<(), Error> {
        let Some(present) = self.present(past) else { return Ok(()) };
        match self.specialised.value(present.value) {
            Value::Signal(signal) if hands_on(signal, present.layout) => Ok(()),
            _ => Err(self.fail(
                node,
                format!(
                    "output `{}` does not hand on the keys or values of input `{}` followed by those of this step, \
                     which attention reads",
                    present.output,
                    self.specialised.graph.names[past.index()]
                ),
            )),
        }
    }

    /// Checks that each past input belongs to one layer.
    pub(super) fn check_caches(self, layers: &[Layer]) -> Result<(), Error> {
        let mut used: Vec<Name> = layers.iter().flat_map(|layer| layer.attention.caches).flatten().collect();
        let count = used.len();
        used.sort();
        used.dedup();
        let given = self.presents.len();
        if used.len() == count && count == given {
            return Ok(());
        }
        Err(Error::Interface {
            message: format!(
                "{given} inputs hold past keys and values, {} of them are read by the {} layers, each of which needs two \
                 of its own",
                used.len(),
                layers.len()
            ),
        })
    }
}
