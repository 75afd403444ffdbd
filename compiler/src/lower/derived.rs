//! Bounds that the weights alone give.
//!
//! A norm's result has length √d (at most 1 + slack times that, see [`crate::approximate::inverse_root`]), so that a row w of
//! the weights that follow, the norm's factors γ multiplied in, gives at most √d·‖w‖ by Cauchy and Schwarz.

use cachemir_ir::tensor::{Range, TensorModel};

use super::plan::SiteRanges;
use super::roles::Roles;
use super::{Site, tables::Map};

/// Adds what is known to the ranges of gates and up-projections.
pub(super) fn add(model: &TensorModel, roles: &Roles, ranges: &mut SiteRanges) {
    for (layer, layer_roles) in roles.layers.iter().enumerate() {
        let gamma = &model.weight(roles.norms[2 * layer + 1].gamma.weight).values;
        for (site, map) in [(Site::Gate { layer }, Map::Gate), (Site::Up { layer }, Map::Up)] {
            let weight = model.weight(layer_roles.linears[map as usize].weight);
            let bound = longest_row(&weight.values, gamma) * (gamma.len() as f64).sqrt();
            ranges.entry(site).or_default().derived = Some(Range { min: -bound, max: bound });
        }
    }
}

/// The largest length of a row of W·diag(γ).
fn longest_row(weight: &[f32], gamma: &[f32]) -> f64 {
    let square = |(w, g): (&f32, &f32)| (f64::from(*w) * f64::from(*g)).powi(2);
    let length = |row: &[f32]| row.iter().zip(gamma).map(square).sum::<f64>().sqrt();
    weight.chunks_exact(gamma.len().max(1)).map(length).fold(0.0, f64::max)
}
