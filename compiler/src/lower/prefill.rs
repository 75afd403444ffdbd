//! Prefill: a chunk of up to C tokens, token r of the chunk in inner slot r where decoding has replicas.
//!
//! Position `pos` is a multiple of C; slots of tokens from `count` on hold zeros. Linear layers are those of decoding on
//! groups of C slots. With g·3C ≤ T each member's part of T/g slots has room for shifts by less than 3C.
//!
//! Attention goes over the chunks so far, this one included, after its keys and values were added to the caches. A
//! chunk's keys are cut out of the K cache, repeated with period C over inner slots, and sheared: lane l holds at inner
//! slot i the entry of token (i + l) mod C. Then Σ_j rotate(Q, j lanes)·rotate(K, j lanes, −j slots) holds in lane e and
//! inner slot r the score of token r against the chunk's token (r + e) mod C, periodic over lanes: no mask is needed, and
//! the validity mask rides on the exponential. Sums of rows are sums over lanes and chunks. The mix is
//! Σ_j rotate(P, j lanes)·rotate(V, j slots) with V cut out and sheared in the same way. The rough reciprocals need the
//! sums over all chunks, so each softmax stage passes over the chunks anew.

use cachemir_ir::expression::Integer;
use cachemir_ir::graph::ValueId;
use cachemir_ir::slots::Fill;

use super::builder::{doubling, layout};
use super::checks::SumPlaces;
use super::entry::{BuiltEntry, EntryBuilder, key_state, value_state};
use super::plan::Plan;
use super::roles::Roles;
use super::shape::{Shape, both};
use super::tables::Map;

/// Builds the prefill entry point; its loops are numbered from `first_counter` on.
pub(super) fn prefill(shape: &Shape, roles: &Roles, plan: &Plan, first_counter: u32) -> BuiltEntry {
    let mut entry = EntryBuilder::new(shape, roles, plan, shape.chunk, first_counter);
    let [mut x, mut normed] = entry.inputs(layout(shape.stride(), Fill::Tokens));
    let chunk = shape.chunk;
    let token = || Integer::slot() % shape.stride();
    for layer in 0..roles.layers.len() {
        entry.builder.set_layer(Some(layer));
        if layer > 0 {
            normed = entry.norm(2 * layer, x, token().less(Integer::count()), None);
        }
        let attended = attention(&mut entry, layer, normed);
        let [update] = entry.project(layer, [Map::Output], attended, chunk, &Integer::count(), None);
        x = entry.residual(layer, 0, x, update, token().less(chunk));
        x = entry.gated(layer, x, chunk, &Integer::count());
    }
    entry.builder.set_layer(None);
    // Only the last token is kept, by a mask on the coefficients of the last norm.
    let last = token().equal(Integer::count() - 1);
    let normed = entry.norm(2 * roles.layers.len(), x, token().less(Integer::count()), Some(last));
    let normed = entry.builder.rotate_by_bits(normed, &(Integer::count() - 1), doubling(1, chunk), 1);
    entry.builder.set_layout(normed, layout(shape.stride(), Fill::Zero));
    let logits = entry.head(normed);
    entry.finish(logits)
}

/// Which cache.
#[derive(Clone, Copy)]
enum Cache {
    Keys,
    Values,
}

fn attention(entry: &mut EntryBuilder<'_>, layer: usize, normed: ValueId) -> ValueId {
    let shape = entry.shape;
    let roles = &entry.roles.layers[layer];
    let (tokens, chunk) = (shape.tokens(), shape.chunk);
    let maps = [Map::Query, Map::Key, Map::Value];
    let [q, k, v] = entry.project(layer, maps, normed, chunk, &Integer::count(), None);
    let q = entry.builder.refresh(q);
    let (k, v) = entry.builder.refresh_pair(k, v);

    let start = Integer::position() % tokens;
    let block = Integer::position() / tokens;
    entry.origin(roles.ropes[1].as_ref());
    let inner = Integer::slot() % tokens;
    let known = inner.clone().less(Integer::count());
    let k = entry.rope(k, &(Integer::position() + inner.clone()), known.clone(), 1.0);
    let k = entry.less_reference_keys(layer, k, known);
    entry.origin(roles.append_key.as_ref());
    let k = entry.builder.rotate_by_bits(k, &start, doubling(chunk, tokens), -1);
    entry.builder.set_layout(k, layout(tokens, Fill::Tokens));
    entry.builder.accumulate(key_state(layer), block.clone(), k);
    entry.origin(roles.append_value.as_ref());
    let v = entry.builder.rotate_by_bits(v, &start, doubling(chunk, tokens), -1);
    let here = start.clone().less_equal(inner.clone()).and((inner - start).less(Integer::count()));
    for j in 0..shape.blocks {
        let holds = ((shape.lane_of_slot() / shape.group + j) % shape.blocks).equal(block.clone());
        let part = entry.builder.mask(v, here.clone().and(holds), "push into the V cache");
        entry.builder.set_layout(part, layout(tokens, Fill::Tokens));
        entry.builder.accumulate(value_state(layer), j, part);
    }

    entry.origin(roles.ropes[0].as_ref());
    let place = shape.query_stride();
    let own = Integer::slot() % place;
    let factor = entry.score_factor(layer);
    let q = entry.rope(q, &(Integer::position() + own.clone()), own.less(Integer::count()), factor);
    entry.builder.set_layout(q, layout(place, Fill::Tokens));
    let q = entry.builder.refresh(q);
    let queries = entry.builder.multiples(q, shape.lane() as i64, shape.head_dim);

    let plan = &entry.plan.layers[layer];
    let mut inverses = Vec::new();
    for stage in 0..plan.rough.len() {
        entry.origin(roles.softmax.as_ref());
        let total = over_chunks(entry, |entry, index| vec![weights(entry, layer, &queries, index, &inverses)])[0];
        let sum = sum_over_lanes(entry, total);
        let position = Integer::position() + Integer::slot() % place;
        inverses.push(entry.rough_reciprocal(layer, stage, sum, SumPlaces::Places, rows(shape), position));
    }
    let sums = over_chunks(entry, |entry, index| {
        let weights = weights(entry, layer, &queries, index, &inverses);
        let values = cut(entry, layer, Cache::Values, index);
        entry.origin(roles.mix.as_ref());
        let turned = entry.builder.multiples(weights, shape.lane() as i64, chunk);
        let values = entry.builder.multiples(values, 1, chunk);
        let terms = turned.iter().zip(values).map(|(&p, value)| entry.builder.multiply(p, value)).collect();
        vec![entry.builder.add_all(terms), weights]
    });
    entry.origin(roles.mix.as_ref());
    let denominator = sum_over_lanes(entry, sums[1]);
    for value in [sums[0], denominator] {
        entry.builder.set_layout(value, layout(place, Fill::Tokens));
    }
    let rows = rows(shape);
    let quotient = entry.divide(layer, sums[0], denominator, rows, false);
    entry.builder.refresh(quotient)
}

/// The slots of queries: tokens of real members of real heads.
fn rows(shape: &Shape) -> Integer {
    let place = shape.query_stride();
    let member = Integer::slot() % shape.tokens() / place;
    both((Integer::slot() % place).less(Integer::count()), shape.real_row(&member))
}

/// Sums, over the chunks so far, what the body yields for a chunk's index.
fn over_chunks(
    entry: &mut EntryBuilder<'_>,
    body: impl FnOnce(&mut EntryBuilder<'_>, &Integer) -> Vec<ValueId>,
) -> Vec<ValueId> {
    let count = Integer::position() / entry.shape.chunk + 1;
    let inner = entry.builder.open(count);
    let yields = body(entry, &inner);
    entry.builder.close(yields)
}

/// Sums over the lanes of one period in every lane.
fn sum_over_lanes(entry: &mut EntryBuilder<'_>, a: ValueId) -> ValueId {
    let shape = entry.shape;
    entry.builder.fold(a, doubling(shape.lane(), shape.chunk * shape.lane()))
}

/// The y of the softmax for the chunk's tokens after as many squarings as there are rough reciprocals.
fn weights(
    entry: &mut EntryBuilder<'_>,
    layer: usize,
    queries: &[ValueId],
    index: &Integer,
    inverses: &[ValueId],
) -> ValueId {
    let (shape, plan, roles) = (entry.shape, &entry.plan.layers[layer], &entry.roles.layers[layer]);
    let keys = cut(entry, layer, Cache::Keys, index);
    entry.origin(roles.scores.as_ref());
    let chunk = shape.chunk;
    // By j lanes to the left and j mod C slots to the right; first by a period C to the left, so that none comes from the
    // slots of another head.
    let lane = shape.lane() as i64;
    let ahead = entry.builder.rotate(keys, chunk);
    let mut keys = entry.builder.multiples(ahead, lane - 1, chunk);
    for j in chunk..queries.len() {
        let top = chunk << (j / chunk).ilog2();
        keys.push(entry.builder.rotate(keys[j - top], top as i64 * lane));
    }
    let terms = queries.iter().zip(keys).map(|(&q, key)| entry.builder.multiply(q, key)).collect();
    let scores = entry.builder.add_all(terms);
    let shifted = entry.argument(&plan.exponential.step, scores, None);
    entry.origin(roles.softmax.as_ref());
    let shifted = entry.builder.refresh(shifted);
    let token = Integer::slot() % shape.query_stride();
    let other = index.clone() * chunk + (token.clone() + shape.lane_of_slot()) % chunk;
    let known = other.less_equal(Integer::position() + token);
    let position = Integer::position() + Integer::slot() % shape.query_stride();
    let mut y = entry.exponential(layer, shifted, rows(shape).and(known), position);
    for &inverse in inverses {
        y = entry.builder.refresh(y);
        let root = entry.builder.multiply(y, inverse);
        y = entry.builder.multiply(root, root);
    }
    y
}

/// A chunk of a cache with period C over inner slots, sheared: lane l holds at inner slot i the chunk's token (i + l) mod C.
fn cut(entry: &mut EntryBuilder<'_>, layer: usize, cache: Cache, index: &Integer) -> ValueId {
    let (shape, roles) = (entry.shape, &entry.roles.layers[layer]);
    let (tokens, chunk) = (shape.tokens(), shape.chunk);
    let start = index.clone() * chunk % tokens;
    let block = index.clone() * chunk / tokens;
    let inner = Integer::slot() % tokens;
    let inside = start.clone().less_equal(inner.clone()).and(inner.less(start.clone() + chunk));
    let alone = match cache {
        Cache::Keys => {
            entry.origin(roles.scores.as_ref());
            let keys = entry.builder.read(key_state(layer), block, layout(tokens, Fill::Tokens));
            entry.builder.mask(keys, inside, "cut of a chunk of keys")
        }
        Cache::Values => {
            entry.origin(roles.mix.as_ref());
            let parts = (0..shape.blocks)
                .map(|j| {
                    let values = entry.builder.read(value_state(layer), j, layout(tokens, Fill::Tokens));
                    let holds = ((shape.lane_of_slot() / shape.group + j) % shape.blocks).equal(block.clone());
                    entry.builder.mask(values, inside.clone().and(holds), "cut of a chunk of values")
                })
                .collect();
            entry.builder.add_all(parts)
        }
    };
    let placed = entry.builder.rotate_by_bits(alone, &start, doubling(chunk, tokens), 1);
    let repeated = entry.builder.fold(placed, doubling(chunk, tokens).map(|k| -k));
    entry.builder.set_layout(repeated, layout(tokens, Fill::Replica));
    let turned = entry.builder.multiples(repeated, 1, chunk);
    let sheared = (0..chunk)
        .map(|shift| {
            let lanes = (shape.lane_of_slot() % chunk).equal(shift);
            entry.builder.mask(turned[shift], lanes, "shear of a chunk")
        })
        .collect();
    entry.builder.add_all(sheared)
}
