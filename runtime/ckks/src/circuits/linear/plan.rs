//! Baby steps and giant steps of a sum of diagonals.
//!
//! `Σ_o d_o ∘ rot_o(v) = Σ_g rot_g( Σ_b rot_{-g}(d_{g+b}) ∘ rot_b(v) )`, `o = g + b` with `g` a multiple of the giant step.
//! Babies are rotations of one ciphertext, so they share its key-switching digits (hoisting, ePrint 2020/1203, section 4);
//! giants each need their own.

use std::collections::{BTreeMap, BTreeSet};

use super::Hoisting;

/// Which rotations a linear map takes: giant → babies that it combines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepPlan {
    groups: BTreeMap<usize, Vec<usize>>,
}

/// Costs of a baby and of a giant, about in products of the digits with a key at the levels where each hoisting is used. A
/// giant needs its own decomposition; a baby has a ModDown of two polynomials by single hoisting, a giant one of one by double.
fn step_costs(hoisting: Hoisting) -> (usize, usize) {
    match hoisting {
        Hoisting::Single => (3, 2),
        Hoisting::Double => (1, 4),
    }
}

impl StepPlan {
    /// The cheapest plan for these offsets in `0 .. slots` (`slots` a power of two), over all power-of-two numbers of babies.
    ///
    /// `available` rotations (those of other factors, say) cost no key; each other rotation costs `key_cost` babies more.
    pub fn new(
        offsets: &BTreeSet<usize>,
        slots: usize,
        available: &BTreeSet<usize>,
        key_cost: usize,
        hoisting: Hoisting,
    ) -> Self {
        let (baby_cost, giant_cost) = step_costs(hoisting);
        let stride = offsets.iter().fold(slots, |gcd, &o| greatest_common_divisor(gcd, o));
        let mut best: Option<(usize, Self)> = None;
        let mut giant_step = stride;
        while giant_step <= slots {
            let plan = Self::with_giant_step(offsets, giant_step);
            let new_keys = plan.rotations().difference(available).count();
            let cost = baby_cost * (plan.babies().len() + key_cost * new_keys) + giant_cost * plan.giants().count();
            if best.as_ref().is_none_or(|(least, _)| cost < *least) {
                best = Some((cost, plan));
            }
            giant_step *= 2;
        }
        best.map_or_else(|| Self::with_giant_step(offsets, stride), |(_, plan)| plan)
    }

    /// Every offset a baby step.
    pub fn direct(offsets: impl IntoIterator<Item = usize>) -> Self {
        Self { groups: BTreeMap::from([(0, offsets.into_iter().collect())]) }
    }

    fn with_giant_step(offsets: &BTreeSet<usize>, giant_step: usize) -> Self {
        let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for &offset in offsets {
            let baby = offset % giant_step;
            groups.entry(offset - baby).or_default().push(baby);
        }
        Self { groups }
    }

    /// Giant rotation → its baby rotations; zero stands for no rotation.
    pub fn groups(&self) -> &BTreeMap<usize, Vec<usize>> {
        &self.groups
    }

    /// All baby rotations, zero included where it occurs.
    pub fn babies(&self) -> BTreeSet<usize> {
        self.groups.values().flatten().copied().collect()
    }

    /// The giant rotations other than zero.
    pub fn giants(&self) -> impl Iterator<Item = usize> + '_ {
        self.groups.keys().copied().filter(|&giant| giant != 0)
    }

    /// Numbers of babies and of giants other than zero.
    pub fn rotation_counts(&self) -> (usize, usize) {
        (self.babies().into_iter().filter(|&baby| baby != 0).count(), self.giants().count())
    }

    /// The rotations whose keys are needed.
    pub fn rotations(&self) -> BTreeSet<usize> {
        self.babies().into_iter().chain(self.giants()).filter(|&rotation| rotation != 0).collect()
    }
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_offset_is_reached_once(offsets in prop::collection::btree_set(0usize..256, 1..60), key_cost in 0usize..4) {
            let plan = StepPlan::new(&offsets, 256, &BTreeSet::new(), key_cost, Hoisting::Double);
            let mut reached: Vec<usize> = plan
                .groups()
                .iter()
                .flat_map(|(giant, babies)| babies.iter().map(move |baby| giant + baby))
                .collect();
            reached.sort_unstable();
            prop_assert_eq!(reached, offsets.iter().copied().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_dense_band_takes_about_twice_the_square_root() {
        let offsets: BTreeSet<usize> = (0..64).map(|o| o * 4).collect();
        let plan = StepPlan::new(&offsets, 1024, &BTreeSet::new(), 2, Hoisting::Double);
        assert!(plan.rotations().len() <= 18, "{plan:?}");
    }

    #[test]
    fn available_rotations_are_preferred() {
        let offsets: BTreeSet<usize> = (0..16).collect();
        let available: BTreeSet<usize> = (1..16).collect();
        assert!(StepPlan::new(&offsets, 16, &available, 100, Hoisting::Double).rotations().is_subset(&available));
    }
}
