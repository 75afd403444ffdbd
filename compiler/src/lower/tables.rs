//! Tables of a program: raw weights with norms' factors and the plan's constants folded in, and rotary constants.

use cachemir_ir::expression::TableId;
use cachemir_ir::program::Table;
use cachemir_ir::tensor::{TensorModel, Weight};
use rayon::prelude::*;

use super::plan::{Plan, SoftmaxPlan};
use super::roles::Roles;

/// Index of a layer's linear maps, in the order of [`super::roles::LayerRoles::linears`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Map {
    /// Queries.
    Query,
    /// Keys.
    Key,
    /// Values.
    Value,
    /// Attention output.
    Output,
    /// Gate.
    Gate,
    /// Up-projection.
    Up,
    /// Down-projection.
    Down,
}

/// Linear maps of a layer.
const MAPS: [Map; 7] = [Map::Query, Map::Key, Map::Value, Map::Output, Map::Gate, Map::Up, Map::Down];

/// Table of a layer's linear map.
pub(super) fn map_table(layer: usize, map: Map) -> TableId {
    TableId((layer * MAPS.len() + map as usize) as u32)
}

/// Table of the output head of a model with so many layers.
pub(super) fn head_table(layers: usize) -> TableId {
    TableId((layers * MAPS.len()) as u32)
}

/// Cosines, `[context][pairs]`.
pub(super) fn cosine_table(layers: usize) -> TableId {
    TableId((layers * MAPS.len() + 1) as u32)
}

/// Sines, `[context][pairs]`.
pub(super) fn sine_table(layers: usize) -> TableId {
    TableId((layers * MAPS.len() + 2) as u32)
}

/// Scales of softmaxes by layer, stage and position; see [`SoftmaxPlan::scale`].
pub(super) fn scale_table(layers: usize) -> TableId {
    TableId((layers * MAPS.len() + 3) as u32)
}

/// Offset of a layer's stage in the table of scales.
pub(super) fn scale_offset(plan: &Plan, layer: usize, stage: usize, context: usize) -> usize {
    let before: usize = plan.layers[..layer].iter().map(|layer| layer.softmax.exponents.len()).sum();
    (before + stage) * context
}

/// All tables. They are empty where the model has shapes only.
pub(super) fn tables(model: &TensorModel, roles: &Roles, plan: &Plan) -> Vec<Table> {
    let layers = roles.layers.len();
    let root_width = (model.hyperparameters.hidden as f64).sqrt();
    let gamma = |index: usize| &model.weight(roles.norms[index].gamma.weight).values;
    let mut tables: Vec<Table> = (0..layers * MAPS.len())
        .into_par_iter()
        .map(|index| {
            let (layer, map) = (index / MAPS.len(), MAPS[index % MAPS.len()]);
            let weight = model.weight(roles.layers[layer].linears[map as usize].weight);
            let constants = &plan.layers[layer];
            let (factor, norm) = match map {
                Map::Query | Map::Key | Map::Value => (root_width, Some(2 * layer)),
                Map::Output => (plan.residual_scale, None),
                Map::Gate => (root_width / constants.silu.affine.half, Some(2 * layer + 1)),
                Map::Up => (root_width / constants.up_bound, Some(2 * layer + 1)),
                Map::Down => (plan.residual_scale * constants.up_bound * silu_bound(constants), None),
            };
            folded(weight, weight.name.clone(), norm.map(gamma), factor)
        })
        .collect();
    let head = model.weight(roles.head.weight);
    tables.push(folded(head, "lm_head".into(), Some(gamma(2 * layers)), root_width));
    let rope = &model.rope;
    for (name, values) in [("rope.cosines", &rope.cosines), ("rope.sines", &rope.sines)] {
        let shape = vec![rope.positions() as u32, rope.pairs as u32];
        tables.push(Table { name: name.into(), shape, values: values.clone() });
    }
    let context = model.hyperparameters.context;
    let scales = |softmax: &SoftmaxPlan| -> Vec<f32> {
        let stage = |stage: usize| (0..context).map(move |position| softmax.scale(stage, position) as f32);
        (0..softmax.exponents.len()).flat_map(stage).collect()
    };
    let values: Vec<f32> = plan.layers.iter().flat_map(|layer| scales(&layer.softmax)).collect();
    let shape = vec![(values.len() / context.max(1)) as u32, context as u32];
    tables.push(Table { name: "softmax.scales".into(), shape, values });
    tables
}

/// What the result of the plan's SiLU is divided by.
fn silu_bound(constants: &super::plan::LayerPlan) -> f64 {
    match constants.silu.function {
        crate::approximate::Function::Silu { factor } => 1.0 / factor,
        _ => 1.0,
    }
}

/// factor·W·diag(γ)
fn folded(weight: &Weight, name: String, gamma: Option<&Vec<f32>>, factor: f64) -> Table {
    let columns = weight.columns().max(1);
    let entry = |(index, &value): (usize, &f32)| {
        let gamma = gamma.map_or(1.0, |gamma| f64::from(gamma[index % columns]));
        (f64::from(value) * gamma * factor) as f32
    };
    Table {
        name,
        shape: weight.shape.iter().map(|&extent| extent as u32).collect(),
        values: weight.values.iter().enumerate().map(entry).collect(),
    }
}
