//! Decoding: one token at position `pos`.
//!
//! The residual stream lies at stride t with zeros elsewhere. Keys and values land in inner slot pos mod T by the
//! directions of the reducing rotations. The scores of all members and token blocks are merged into one ciphertext with
//! period g·B over lanes (see [`super::shape`]), so that sums over blocks need no mask, and every lane holds its member's
//! sum. Outputs of attention land in member slots: place i of a KV head in lane l holds member (l + i) mod g.

use cachemir_ir::expression::Integer;
use cachemir_ir::graph::ValueId;
use cachemir_ir::slots::{Fill, Purpose};

use super::builder::{Builder, doubling, layout};
use super::checks::SumPlaces;
use super::entry::{BuiltEntry, EntryBuilder, indicator, key_state, value_state};
use super::plan::Plan;
use super::roles::Roles;
use super::shape::{Shape, both};
use super::tables::Map;

/// Builds the decode entry point; its loops are numbered from `first_counter` on.
pub(super) fn decode(shape: &Shape, roles: &Roles, plan: &Plan, first_counter: u32) -> BuiltEntry {
    let mut entry = EntryBuilder::new(shape, roles, plan, 1, first_counter);
    let [mut x, mut normed] = entry.inputs(layout(shape.stride(), Fill::Zero));
    let rows = || (Integer::slot() % shape.stride()).equal(0);
    let one = Integer::from(1_i64);
    for layer in 0..roles.layers.len() {
        entry.builder.set_layer(Some(layer));
        if layer > 0 {
            normed = entry.norm(2 * layer, x, rows(), None);
        }
        let attended = attention(&mut entry, layer, normed);
        let [update] = entry.project(layer, [Map::Output], attended, 1, &one, None);
        x = entry.residual(layer, 0, x, update, rows());
        x = entry.gated(layer, x, 1, &one);
    }
    entry.builder.set_layer(None);
    let normed = entry.norm(2 * roles.layers.len(), x, rows(), None);
    let logits = entry.head(normed);
    entry.finish(logits)
}

/// Attention of a layer, from the norm's result to the outputs in the order of `Features::RotatedQuery`.
fn attention(entry: &mut EntryBuilder<'_>, layer: usize, normed: ValueId) -> ValueId {
    let shape = entry.shape;
    let roles = &entry.roles.layers[layer];
    let tokens = shape.tokens();
    let inner = Integer::position() % tokens;
    let one = Integer::from(1_i64);
    let [q, k, v] = entry.project(layer, [Map::Query, Map::Key, Map::Value], normed, 1, &one, Some(&inner));
    let q = entry.builder.refresh(q);
    let (k, v) = entry.builder.refresh_pair(k, v);

    entry.origin(roles.ropes[1].as_ref());
    let here = (Integer::slot() % tokens).equal(inner);
    let k = entry.rope(k, &Integer::position(), here.clone(), 1.0);
    let k = entry.less_reference_keys(layer, k, here.clone());
    entry.builder.set_layout(k, layout(tokens, Fill::Tokens));
    entry.origin(roles.append_key.as_ref());
    entry.builder.accumulate(key_state(layer), Integer::position() / tokens, k);
    entry.origin(roles.append_value.as_ref());
    push_value(entry, layer, v, &here);

    entry.origin(roles.ropes[0].as_ref());
    let members: Vec<ValueId> = (0..shape.model.group()).map(|member| isolate(entry, layer, q, member)).collect();
    entry.origin(roles.scores.as_ref());
    let scores = scores(entry, layer, &members);
    entry.origin(roles.softmax.as_ref());
    let weights = softmax(entry, layer, scores);
    entry.origin(roles.mix.as_ref());
    mix(entry, layer, weights)
}

/// Adds V, landed in its inner slot, to the lanes of each ciphertext that hold the token's block.
fn push_value(entry: &mut EntryBuilder<'_>, layer: usize, v: ValueId, here: &Integer) {
    let shape = entry.shape;
    let block = Integer::position() / shape.tokens();
    for j in 0..shape.blocks {
        let holds = ((shape.lane_of_slot() / shape.group + j) % shape.blocks).equal(block.clone());
        let part = entry.builder.mask(v, here.clone().and(holds), "push into the V cache");
        entry.builder.set_layout(part, layout(shape.tokens(), Fill::Tokens));
        entry.builder.accumulate(value_state(layer), j, part);
    }
}

/// One member's rotated query, copied to all slots of its KV head.
fn isolate(entry: &mut EntryBuilder<'_>, layer: usize, q: ValueId, member: usize) -> ValueId {
    let shape = entry.shape;
    let offset = (member * shape.query_stride()) as i64;
    let own = (Integer::slot() % shape.tokens()).equal(offset);
    let alone = entry.rope(q, &Integer::position(), own, entry.score_factor(layer));
    let steps = doubling(1, shape.tokens()).map(|k| if offset & k == 0 { -k } else { k });
    let copies = entry.builder.fold(alone, steps);
    entry.builder.set_layout(copies, layout(shape.tokens(), Fill::Replica));
    copies
}

/// Scores of all members over all tokens so far, merged over blocks and members, as arguments of the exponential. Products
/// are summed over the lanes of one period each, put into their own lane of it, and summed over periods together.
fn scores(entry: &mut EntryBuilder<'_>, layer: usize, members: &[ValueId]) -> ValueId {
    let shape = entry.shape;
    let (tokens, lane, group) = (shape.tokens(), shape.lane(), shape.group);
    let period = group * shape.blocks;
    let count = Integer::position() / tokens + 1;
    let builder = &mut entry.builder;
    let block = builder.open(count);
    let keys = builder.read(key_state(layer), block.clone(), layout(tokens, Fill::Tokens));
    let known = (block.clone() * tokens + Integer::slot() % tokens).less_equal(Integer::position());
    let mut merged = Vec::new();
    for (member, &query) in members.iter().enumerate() {
        let products = builder.multiply(query, keys);
        let rows = builder.fold(products, doubling(lane, period * lane));
        let place = (shape.lane_of_slot() % period).equal(block.clone() * group + member);
        merged.push(builder.mask(rows, place.and(known.clone()), "merge of scores"));
    }
    let yielded = builder.add_all(merged);
    let parts = builder.close(vec![yielded])[0];
    let summed = builder.fold(parts, doubling(period * lane, shape.slots));
    entry.builder.set_layout(summed, layout(tokens, Fill::Tokens));
    let plan = entry.plan;
    let shifted = entry.argument(&plan.layers[layer].exponential.step, summed, None);
    entry.builder.refresh(shifted)
}

/// The last y of the softmax: its rows divided by their sums are the probabilities.
fn softmax(entry: &mut EntryBuilder<'_>, layer: usize, scores: ValueId) -> ValueId {
    let (shape, plan) = (entry.shape, &entry.plan.layers[layer]);
    let (tokens, group) = (shape.tokens(), shape.group);
    let block = shape.lane_of_slot() / group % shape.blocks;
    let member = shape.lane_of_slot() % group;
    let row = shape.real_row(&member);
    let known = (block * tokens + Integer::slot() % tokens).less_equal(Integer::position());
    let mut y = entry.exponential(layer, scores, both(known, row.clone()), Integer::position());
    y = entry.builder.refresh(y);
    for stage in 0..plan.rough.len() {
        let sum = entry.builder.fold(y, block_steps(shape).chain(doubling(1, tokens)));
        entry.builder.set_layout(sum, layout(tokens, Fill::Junk));
        let landing = both((Integer::slot() % tokens).equal(0), row.clone());
        let inverse = entry.rough_reciprocal(layer, stage, sum, SumPlaces::Lanes, landing, Integer::position());
        let copies = entry.builder.fold(inverse, doubling(1, tokens).map(|k| -k));
        entry.builder.set_layout(copies, layout(tokens, Fill::Replica));
        let root = entry.builder.multiply(y, copies);
        y = entry.builder.multiply(root, root);
        y = entry.builder.refresh(y);
    }
    y
}

/// Rotations that sum over token blocks in every lane.
fn block_steps(shape: &Shape) -> impl Iterator<Item = i64> {
    doubling(shape.group * shape.lane(), shape.blocks * shape.group * shape.lane())
}

/// Σ_token y·V / Σ_token y for all members, in the order of `Features::RotatedQuery`, zero elsewhere.
fn mix(entry: &mut EntryBuilder<'_>, layer: usize, y: ValueId) -> ValueId {
    let shape = entry.shape;
    let numerator = weighted_values(entry, layer, y);
    let denominator = weight_sums(entry, y);
    let place = shape.query_stride();
    let member = (Integer::slot() % shape.tokens() / place + shape.lane_of_slot()) % shape.group;
    let rows = both((Integer::slot() % place).equal(0), shape.real_row(&member));
    let quotient = entry.divide(layer, numerator, denominator, rows, true);
    entry.builder.set_layout(quotient, layout(place, Fill::Zero));
    entry.builder.refresh(quotient)
}

/// Why a product with a mask brings members to their places.
const LANDING: &str = "landing of group members";

/// Σ_token y·V: place i of a KV head holds in lane l member (l + i) mod g. The slots of each place are summed into one place
/// first, and into its first slot when all places are filled; the other slots hold junk.
fn weighted_values(entry: &mut EntryBuilder<'_>, layer: usize, y: ValueId) -> ValueId {
    let shape = entry.shape;
    let (tokens, lane, group, blocks) = (shape.tokens(), shape.lane(), shape.group, shape.blocks);
    let (place, period) = (shape.query_stride(), group * blocks);
    let values: Vec<ValueId> =
        (0..blocks).map(|j| entry.builder.read(value_state(layer), j, layout(tokens, Fill::Tokens))).collect();
    let turned = entry.builder.multiples(y, lane as i64, period);
    let residue = shape.lane_of_slot() % group;
    let mut landed = Vec::new();
    for turn in 0..group {
        let target = Integer::from(turn * place);
        let there = (Integer::slot() % tokens / place).equal(turn);
        // By turn − g where that is the distance to the lane's member.
        for offset in if turn == 0 { vec![0] } else { vec![turn as i64, turn as i64 - group as i64] } {
            let term = |builder: &mut Builder, j: usize| {
                let lanes = ((group * j) as i64 + offset).rem_euclid(period as i64);
                builder.multiply(turned[lanes as usize], values[j])
            };
            let terms = (0..blocks).map(|j| term(&mut entry.builder, j)).collect();
            let sum = entry.builder.add_all(terms);
            let sum = entry.builder.land(sum, doubling(place, tokens), &target);
            let lanes = match offset {
                0 => there.clone(),
                1.. => there.clone().and(residue.clone().less(group - turn)),
                _ => there.clone().and(Integer::from(group - turn).less_equal(residue.clone())),
            };
            landed.push(entry.builder.mask(sum, lanes, LANDING));
        }
    }
    let landed = entry.builder.add_all(landed);
    let sum = entry.builder.fold(landed, doubling(1, place));
    entry.builder.set_layout(sum, layout(place, Fill::Junk));
    sum
}

/// Σ_token y at the same places, zero elsewhere: the sums of each lane's own member, turned to the other places.
fn weight_sums(entry: &mut EntryBuilder<'_>, y: ValueId) -> ValueId {
    let shape = entry.shape;
    let (tokens, place) = (shape.tokens(), shape.query_stride());
    let sums = entry.builder.fold(y, block_steps(shape).chain(doubling(1, tokens)));
    let first = indicator((Integer::slot() % tokens).equal(0));
    let sums = entry.builder.multiply_plain(sums, first, Purpose::Mask(LANDING.into()));
    let turned = entry.builder.multiples(sums, shape.lane() as i64 - place as i64, shape.group);
    let places = entry.builder.add_all(turned);
    entry.builder.set_layout(places, layout(place, Fill::Zero));
    places
}
