//! What a bootstrap costs, from its plan alone, in the counts of [`cost`](crate::cost).

use super::plan::{BootstrapPlan, Factor, Phase};
use crate::cost::{Cost, OperationCosts};
use crate::parameters::Parameters;

impl BootstrapPlan {
    /// What a bootstrap of an input at [`input_level`](Self::input_level) costs.
    pub fn cost(&self, parameters: &Parameters) -> Cost {
        Phase::ALL.into_iter().fold(Cost::default(), |sum, phase| sum + self.cost_of(parameters, phase))
    }

    /// What one of its phases costs.
    pub fn cost_of(&self, parameters: &Parameters, phase: Phase) -> Cost {
        let at = |level| OperationCosts::new(parameters, level);
        let linear = |factors: &[Factor], double| {
            factors.iter().fold(Cost::default(), |sum, Factor { matrix, steps, level, .. }| {
                let (babies, giants) = steps.rotation_counts();
                sum + at(*level).linear(matrix.diagonals().len(), babies, giants, double)
            })
        };
        match phase {
            Phase::SlotsToCoefficients => linear(self.slots_to_coefficients(), false),
            Phase::ModRaise => {
                // ModRaise itself, and the switch to the ephemeral secret at two limbs.
                Cost { transforms: 2 * (self.raised_level() as u64 + 2) + 6, ..Cost::default() }
            }
            Phase::CoefficientsToSlots => {
                let (first, rest) = self.coefficients_to_slots().split_at(1);
                let diagonals = first.iter().map(|factor| factor.matrix.diagonals().len()).sum();
                let mut cost = at(self.raised_level()).raised_linear(diagonals) + linear(rest, true);
                for rotations in self.trace() {
                    cost += at(self.trace_level()).sum_with_rotations(rotations.len());
                }
                cost + at(self.eval_mod_level() + 1).switch()
            }
            Phase::EvalMod => {
                let runs = self.eval_mod_cost(parameters) * self.eval_mod_runs();
                if self.is_packed() { runs + at(self.output_level() + 1).switch() } else { runs }
            }
        }
    }

    /// One run of EvalMod.
    fn eval_mod_cost(&self, parameters: &Parameters) -> Cost {
        let at = |level| OperationCosts::new(parameters, level);
        let count = self.series().count();
        let mut cost = Cost::default();
        for depth in self.series().product_depths() {
            let at = at(self.eval_mod_level() - depth);
            cost += at.tensor() + at.relinearise_rescale();
        }
        // What is neither relinearised nor the top of a tree is near the middle of the levels.
        let middle = at(self.eval_mod_level() - self.series().depth() / 2);
        cost += middle.tensor() * (count.products - count.relinearisations.min(count.products));
        cost += middle.rescale() * (count.rescales - count.relinearisations);
        cost += middle.constant_products(count.constant_products as u64);
        let mut level = self.eval_mod_level() - self.series().depth();
        for _ in 0..self.reduction().literal().double_angles {
            cost += at(level).tensor() + at(level).constant_products(1) + at(level).relinearise_rescale();
            level -= 1;
        }
        let (sine, below) = (at(level), at(level - 1));
        cost += sine.tensor() + sine.relinearise_rescale() + sine.constant_products(1) + sine.rescale();
        cost + below.constant_products(1) + below.tensor() + below.relinearise_rescale()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::circuits::bootstrapping::SlotKind;

    fn cost(slots: usize, kind: SlotKind) -> Cost {
        let parameters = Parameters::preset("n16").unwrap();
        BootstrapPlan::new(&parameters, slots, kind).unwrap().cost(&parameters)
    }

    #[test]
    fn cheaper_variants_cost_less() {
        let full = cost(1 << 15, SlotKind::Complex);
        let real = cost(1 << 15, SlotKind::Real);
        let sparse = cost(1 << 12, SlotKind::Complex);
        assert!(real.ntt_units() < 0.85 * full.ntt_units());
        assert!(sparse.ntt_units() < real.ntt_units());
        assert!((6_000..12_000).contains(&full.transforms), "{full:?}");
    }
}
