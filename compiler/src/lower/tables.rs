//! Tables of a program: weights as they are stored, with norms' factors and the plan's constants to be folded in when they are
//! read, and rotary constants.

use cachemir_ir::expression::TableId;
use cachemir_ir::table::Table;
use cachemir_ir::tensor::{TensorModel, Weight};
use cachemir_ir::weights::Region;

use super::plan::{LayerPlan, Plan};
use super::roles::Roles;
use crate::Error;

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
pub(super) const MAPS: [Map; 7] = [Map::Query, Map::Key, Map::Value, Map::Output, Map::Gate, Map::Up, Map::Down];

/// Table of a layer's linear map.
pub(super) fn map_table(layer: usize, map: Map) -> TableId {
    TableId((layer * MAPS.len() + map as usize) as u32)
}

/// The linear map of a table in a model with so many layers, if it is one.
pub(super) fn map_of(table: TableId, layers: usize) -> Option<Map> {
    let number = table.0 as usize;
    (number < layers * MAPS.len()).then(|| MAPS[number % MAPS.len()])
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

/// Scales of softmaxes by layer, stage and position; see [`LayerPlan::softmax_scale`].
pub(super) fn scale_table(layers: usize) -> TableId {
    TableId((layers * MAPS.len() + 3) as u32)
}

/// Table of the bias of a layer's linear map, if it has one: biases come after the tables that all models have.
pub(super) fn bias_table(roles: &Roles, layer: usize, map: Map) -> Option<TableId> {
    let before = layer * MAPS.len() + map as usize;
    let mut linears = roles.layers.iter().flat_map(|layer| &layer.linears);
    let earlier = linears.by_ref().take(before).filter(|linear| linear.bias.is_some()).count();
    linears.next()?.bias?;
    Some(TableId(scale_table(roles.layers.len()).0 + 1 + earlier as u32))
}

/// Table of a layer's reference keys, `[kv_heads][head_dim]`, if it has any (see [`super::reference`]): they come after biases.
pub(super) fn reference_table(roles: &Roles, plan: &Plan, layer: usize) -> Option<TableId> {
    let none = plan.layers[layer].softmax.reference_keys.is_empty();
    (!none).then(|| after_references(roles, &plan.layers[..layer]))
}

/// The first table of the public prefix, after all others.
pub(super) fn prefix_table(roles: &Roles, plan: &Plan) -> TableId {
    after_references(roles, &plan.layers)
}

/// The table that follows those of the biases and of these layers' reference keys.
fn after_references(roles: &Roles, layers: &[LayerPlan]) -> TableId {
    let biases = roles.layers.iter().flat_map(|layer| &layer.linears).filter(|linear| linear.bias.is_some()).count();
    let references = layers.iter().filter(|layer| !layer.softmax.reference_keys.is_empty()).count();
    TableId(scale_table(roles.layers.len()).0 + 1 + (biases + references) as u32)
}

/// Offset of a layer's stage in the table of scales.
pub(super) fn scale_offset(plan: &Plan, layer: usize, stage: usize, context: usize) -> usize {
    let before: usize = plan.layers[..layer].iter().map(|layer| layer.softmax.exponents.len()).sum();
    (before + stage) * context
}

/// All tables. Weights are shapes only where the model has no more.
///
/// # Errors
/// Those of reading the norms' factors.
pub(super) fn tables(model: &TensorModel, roles: &Roles, plan: &Plan) -> Result<Vec<Table>, Error> {
    let layers = roles.layers.len();
    let root_width = (model.hyperparameters.hidden as f64).sqrt();
    let gamma = |index: usize| -> Result<Option<Region>, Error> {
        let weight = model.weight(roles.norms[index].gamma.weight);
        Ok(weight.weights.as_ref().map(|_| weight.load()).transpose()?.map(Region::of_numbers))
    };
    let gammas = (0..=2 * layers).map(gamma).collect::<Result<Vec<_>, _>>()?;
    let mut tables = Vec::with_capacity(layers * MAPS.len() + 4);
    for (layer, layer_roles) in roles.layers.iter().enumerate() {
        for map in MAPS {
            let weight = model.weight(layer_roles.linears[map as usize].weight);
            let Factors { input, output } = factors(plan, layer, map, root_width);
            let norm = match map {
                Map::Query | Map::Key | Map::Value => gammas[2 * layer].clone(),
                Map::Gate | Map::Up => gammas[2 * layer + 1].clone(),
                Map::Output | Map::Down => None,
            };
            tables.push(folded(weight, weight.name.clone(), norm, input * output)?);
        }
    }
    let head = model.weight(roles.head.weight);
    tables.push(folded(head, "lm_head".into(), gammas[2 * layers].clone(), root_width)?);
    let rope = &model.rope;
    for (name, values) in [("rope.cosines", &rope.cosines), ("rope.sines", &rope.sines)] {
        let shape = vec![rope.positions() as u32, rope.pairs as u32];
        tables.push(Table::new(name, shape, values.clone()));
    }
    let context = model.hyperparameters.context;
    let scales = |layer: &LayerPlan| -> Vec<f32> {
        let stage = |stage: usize| (0..context).map(move |position| layer.softmax_scale(stage, position) as f32);
        (0..layer.softmax.exponents.len()).flat_map(stage).collect()
    };
    let values: Vec<f32> = plan.layers.iter().flat_map(scales).collect();
    let shape = vec![(values.len() / context.max(1)) as u32, context as u32];
    tables.push(Table::new("softmax.scales", shape, values));
    for (index, linear) in roles.layers.iter().flat_map(|layer| &layer.linears).enumerate() {
        if let Some(bias) = linear.bias.map(|bias| model.weight(bias)) {
            let (layer, map) = (index / MAPS.len(), MAPS[index % MAPS.len()]);
            let factor = factors(plan, layer, map, root_width).output;
            tables.push(folded(bias, bias.name.clone(), None, factor)?);
        }
    }
    let shape = [model.hyperparameters.kv_heads as u32, model.hyperparameters.head_dim as u32];
    for (layer, plan) in plan.layers.iter().enumerate().filter(|(_, plan)| !plan.softmax.reference_keys.is_empty()) {
        let keys = plan.softmax.reference_keys.clone();
        tables.push(Table::new(format!("layers.{layer}.reference_keys"), shape.to_vec(), keys));
    }
    Ok(tables)
}

/// What a linear map's operand is divided by, and what its result is multiplied by.
struct Factors {
    input: f64,
    output: f64,
}

fn factors(plan: &Plan, layer: usize, map: Map, root_width: f64) -> Factors {
    let constants = &plan.layers[layer];
    let (input, output) = match map {
        Map::Query | Map::Key | Map::Value => (root_width, 1.0),
        Map::Output => (1.0, plan.residual_scale(2 * layer)),
        Map::Gate => (root_width, 1.0 / constants.silu.affine.half),
        Map::Up => (root_width, 1.0 / constants.up_bound),
        Map::Down => (constants.up_bound * silu_bound(constants), plan.residual_scale(2 * layer + 1)),
    };
    Factors { input, output }
}

/// What the result of the plan's SiLU is divided by.
fn silu_bound(constants: &super::plan::LayerPlan) -> f64 {
    match constants.silu.function {
        crate::approximate::Function::Silu { factor } => 1.0 / factor,
        _ => 1.0,
    }
}

/// Standard deviation of biases where only their shape is known.
const BIAS: f64 = 0.1;

/// factor·W·diag(γ). Where only the shape of W is known, its entries have the variance 1/width, and those of γ are one.
fn folded(weight: &Weight, name: String, gamma: Option<Region>, factor: f64) -> Result<Table, Error> {
    let columns = weight.columns().max(1);
    let shape: Vec<u32> = weight.shape.iter().map(|&extent| extent as u32).collect();
    let Some(weights) = &weight.weights else {
        let deviation = if shape.len() == 1 { BIAS } else { 1.0 / (columns as f64).sqrt() };
        return Ok(Table::of_shape(name, shape, deviation * factor.abs()));
    };
    let misfit = |problem| cachemir_ir::Error::Execution(format!("`{name}` cannot be scaled: {problem}"));
    let folded = weights.folded(gamma, factor).map_err(misfit)?;
    Ok(Table::stored(name, shape, folded))
}
