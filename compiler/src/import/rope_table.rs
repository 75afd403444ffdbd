//! Cosines and sines of the rotary embedding, by specialising the part of the graph that computes them.

use cachemir_ir::tensor::RopeTable;

use super::ImportOptions;
use super::companions::Companions;
use super::inputs::past_shape;
use super::onnx::Name;
use super::recognise::{Decoder, RopeSource};
use super::specialise::{Sizes, Specialised, Value};
use crate::Error;

/// Most that cosines and sines of one position may differ by between lengths: rounding.
const TOLERANCE: f32 = 1e-5;

/// The rotary embeddings of a decoder, each once, with a node that uses it.
fn sources(decoder: &Decoder<'_>) -> Vec<(RopeSource, usize)> {
    let mut sources: Vec<(RopeSource, usize)> = Vec::new();
    for attention in decoder.structure.layers.iter().map(|layer| &layer.attention) {
        for (source, node) in attention.rope.into_iter().zip([attention.nodes.query_rope, attention.nodes.key_rope]) {
            if sources.iter().all(|(known, _)| *known != source) {
                sources.push((source, node));
            }
        }
    }
    sources
}

/// Cosines and sines for every position, the same for queries and keys of all layers.
pub(super) fn rope_table(
    decoder: &Decoder<'_>,
    companions: &Companions,
    options: &ImportOptions,
    context: usize,
) -> Result<RopeTable, Error> {
    let head_dim = decoder.structure.layers[0].attention.head_dim;
    let graph = decoder.specialised.graph;
    let sizes = Sizes { past: 0, sequence: context };
    let mut table: Option<RopeTable> = None;
    for (source, node) in sources(decoder) {
        let fail = |message: &str| decoder.specialised.not_llama(node, message);
        let specialised = Specialised::new(graph, sizes, past_shape(graph), Some(&source.names()))?;
        let found = match rows(&specialised, source, head_dim)? {
            Some(found) => found,
            None if options.shapes_only => from_theta(companions, head_dim, context)?,
            None => return Err(fail("the cosines and sines do not have a row for each position")),
        };
        match &table {
            None => table = Some(found),
            Some(table) if *table == found => {}
            Some(_) => return Err(fail("the rotary embeddings of two layers, or of queries and keys, differ")),
        }
    }
    Ok(table.unwrap_or_default())
}

/// Checks that a graph specialised to other lengths turns each position by the angles of the table.
pub(super) fn check(decoder: &Decoder<'_>, other: &Specialised<'_>, table: &RopeTable) -> Result<(), Error> {
    let Sizes { past, sequence } = other.sizes;
    for (source, node) in sources(decoder) {
        let Some(found) = rows(other, source, 2 * table.pairs)? else {
            // Without data there is nothing to compare.
            if Specialised::missing_data(other.graph).is_some() {
                continue;
            }
            return Err(other.not_llama(node, "the cosines and sines do not have a row for each position"));
        };
        let entries = past * table.pairs..(past + sequence) * table.pairs;
        let close = |known: &[f32], found: &[f32]| {
            known.get(entries.clone()).is_some_and(|known| {
                known.iter().zip(found).all(|(a, b)| (a - b).abs() <= TOLERANCE) && known.len() == found.len()
            })
        };
        if !close(&table.cosines, &found.cosines) || !close(&table.sines, &found.sines) {
            let message = format!(
                "the rotary embedding of a position is another at {past} past and {sequence} new tokens: frequencies that \
                 depend on the length (as with dynamic NTK or longrope) are not supported"
            );
            return Err(other.not_llama(node, message));
        }
    }
    Ok(())
}

/// The rows of the new tokens; `None` if the table's size does not fit or its numbers are not at hand.
fn rows(specialised: &Specialised<'_>, source: RopeSource, head_dim: usize) -> Result<Option<RopeTable>, Error> {
    let Sizes { past, sequence } = specialised.sizes;
    let pairs = head_dim / 2;
    let (cosines, sines, positions, width) = match source {
        RopeSource::Doubled { cosines, sines } => (cosines, sines, None, head_dim),
        RopeSource::Rows { cosines, sines, positions } => (cosines, sines, positions, pairs),
        RopeSource::Cache { cosines, sines } => (cosines, sines, None, pairs),
    };
    let missing = Specialised::missing_data(specialised.graph).is_some();
    let at_hand = |name: &Name| match specialised.value(*name) {
        Value::Constant(_) => true,
        Value::Parameter { .. } => !missing,
        _ => false,
    };
    if !source.names().iter().all(at_hand) {
        return Ok(None);
    }
    let picked: Vec<i64> = match (source, positions) {
        (RopeSource::Cache { .. }, _) => (past as i64..(past + sequence) as i64).collect(),
        (_, None) => (0..sequence as i64).collect(),
        (_, Some(positions)) => {
            let positions = specialised.resolve(positions)?.to_ints();
            // A single position is that of the first token.
            if positions.len() == 1 { (positions[0]..).take(sequence).collect() } else { positions }
        }
    };
    if picked.len() != sequence {
        return Ok(None);
    }
    let read = |name: Name| -> Result<Option<Vec<f32>>, Error> {
        let rows = specialised.resolve(name)?;
        if rows.shape.last() != Some(&width) {
            return Ok(None);
        }
        let rows = rows.into_f32();
        let mut result = Vec::with_capacity(sequence * pairs);
        for &row in &picked {
            let row = usize::try_from(row).ok().and_then(|row| rows.get(row * width..(row + 1) * width));
            let Some(row) = row.filter(|row| width == pairs || row[..pairs] == row[pairs..]) else {
                return Ok(None);
            };
            result.extend_from_slice(&row[..pairs]);
        }
        Ok(Some(result))
    };
    match (read(cosines)?, read(sines)?) {
        (Some(cosines), Some(sines)) => Ok(Some(RopeTable { pairs, cosines, sines })),
        _ => Ok(None),
    }
}

/// The usual table, for models loaded without their data: angle p·θ^(−2i/d).
fn from_theta(companions: &Companions, head_dim: usize, context: usize) -> Result<RopeTable, Error> {
    let theta = companions.rope_theta.ok_or(Error::BadOption {
        option: "--config",
        message: "without the rotary table's data, config.json must give rope_theta".to_owned(),
    })?;
    let pairs = head_dim / 2;
    let angles = (0..context).flat_map(|position| {
        (0..pairs).map(move |pair| position as f64 * theta.powf(-(2.0 * pair as f64) / head_dim as f64))
    });
    let (cosines, sines) = angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip();
    Ok(RopeTable { pairs, cosines, sines })
}
