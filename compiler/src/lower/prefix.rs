//! The public prefix: tokens that every session begins with, and that the server knows.
//!
//! Their keys and values are computed in the clear and are what the caches hold initially, in the layouts that decoding
//! writes: what is appended later is added to them, and attention reads both alike. No program changes with it; sessions
//! begin behind it.

use cachemir_ir::expression::{Integer, TableId, Vector};
use cachemir_ir::program::State;
use cachemir_ir::table::Table;
use cachemir_ir::tensor::{CacheKind, Interpreter, TensorModel};

use super::plan::Plan;
use super::shape::{Shape, both};
use crate::Error;

/// Keys and values of a prefix.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Prefix {
    pub(super) tokens: Vec<u32>,
    /// By layer: the keys, after the rotary embedding, and the values, `[tokens][kv_heads][head_dim]`.
    caches: Vec<[Vec<f32>; 2]>,
}

const KINDS: [(CacheKind, &str); 2] = [(CacheKind::Key, "keys"), (CacheKind::Value, "values")];

impl Prefix {
    /// Runs the model on the tokens.
    pub(super) fn new(model: &TensorModel, tokens: &[u32]) -> Result<Self, Error> {
        if tokens.is_empty() {
            return Ok(Self::default());
        }
        let mut interpreter = Interpreter::new(model)?;
        interpreter.feed(tokens)?;
        let cache = |layer: usize, kind| interpreter.cache(layer, kind).iter().map(|&x| x as f32).collect();
        let of_layer = |layer: usize| KINDS.map(|(kind, _)| cache(layer, kind));
        let caches = (0..model.hyperparameters.layers).map(of_layer).collect();
        Ok(Self { tokens: tokens.to_vec(), caches })
    }

    /// The tables: keys, less the references of the plan, and values of each layer.
    pub(super) fn tables(&self, shape: &Shape, plan: &Plan) -> impl Iterator<Item = Table> {
        let extents = [self.tokens.len(), shape.model.kv_heads, shape.model.head_dim].map(|extent| extent as u32);
        self.caches.iter().zip(&plan.layers).enumerate().flat_map(move |(layer, ([keys, values], plan))| {
            let references = plan.softmax.keys(&shape.model);
            let keys = keys.iter().zip(references.iter().cycle()).map(|(key, reference)| key - reference).collect();
            [keys, values.clone()]
                .into_iter()
                .zip(KINDS)
                .map(move |(entries, (_, name))| Table::new(format!("layers.{layer}.prefix_{name}"), extents, entries))
        })
    }

    /// What a layer's K and V caches hold initially, for tables that begin at `first`.
    pub(super) fn initial(&self, shape: &Shape, layer: usize, first: TableId) -> [Option<Vector>; 2] {
        if self.tokens.is_empty() {
            return [None, None];
        }
        let index = Integer::Variable(State::INDEX);
        let lane = shape.lane_of_slot();
        let block = (lane.clone() / shape.group + index.clone()) % shape.blocks;
        let vector = |kind: usize, block: Integer| {
            let token = block * shape.tokens() + Integer::slot() % shape.tokens();
            let known = token.clone().less(self.tokens.len());
            let (entry, real) = shape.key_entry();
            let entry = token * (shape.model.kv_heads * shape.model.head_dim) + entry;
            Some(Vector::Table(TableId(first.0 + (2 * layer + kind) as u32), entry).masked(both(known, real)))
        };
        [vector(0, index.clone()), vector(1, block)]
    }
}
