//! Bounds that the weights alone give.
//!
//! A norm's result has at most 1 + slack times the length √d (see [`crate::approximate::inverse_root`]), so that a row w of
//! the weights that follow, the norm's factors γ multiplied in, gives at most (1 + slack)·√d·‖w‖ by Cauchy and Schwarz, and
//! its bias b at most |b| more.
//!
//! A slot that does not matter holds parts of the sums of two neighbouring rows over different entries of the norm's result,
//! which together are at most √2 times as large.

use cachemir_ir::tensor::{Range, TensorModel};

use super::plan::SiteRanges;
use super::roles::Roles;
use super::{Site, tables::Map};
use crate::approximate::SLACK;

/// By how much slots that do not matter may exceed those that do.
pub(super) const JUNK: f64 = std::f64::consts::SQRT_2;

/// Adds what is known to the ranges of gates and up-projections.
pub(super) fn add(model: &TensorModel, roles: &Roles, ranges: &mut SiteRanges) {
    for (layer, layer_roles) in roles.layers.iter().enumerate() {
        let gamma = &model.weight(roles.norms[2 * layer + 1].gamma.weight).values;
        for (site, map) in [(Site::Gate { layer }, Map::Gate), (Site::Up { layer }, Map::Up)] {
            let linear = &layer_roles.linears[map as usize];
            let bias = linear.bias.map_or(&[][..], |bias| &model.weight(bias).values);
            let bias = bias.iter().fold(0.0f64, |most, value| most.max(f64::from(value.abs())));
            let row = longest_row(&model.weight(linear.weight).values, gamma);
            let bound = (1.0 + SLACK) * (gamma.len() as f64).sqrt() * row + bias;
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

#[cfg(test)]
mod tests {
    use super::longest_row;

    #[test]
    fn a_row_is_as_long_as_its_result_can_be() {
        // Rows (3·2, 4·1) and (1·2, 1·1): the longest input along the first gives √52.
        assert!((longest_row(&[3.0, 4.0, 1.0, 1.0], &[2.0, 1.0]) - 52.0f64.sqrt()).abs() < 1e-12);
    }
}
