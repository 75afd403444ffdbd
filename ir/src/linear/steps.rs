//! The operations that a linear map takes, for prices, counts and keys.

use super::{Giant, Linear, SlotAlgebra};
use crate::expression::Environment;
use crate::rotations::Sharing;

/// An operation on ciphertexts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A rotation to the left, by an amount that is not 0.
    Rotate {
        /// By how many slots, from 1 up to their number.
        by: u32,
        /// What it shares with the rotation before it.
        sharing: Sharing,
    },
    /// A product by a diagonal, added to others.
    MultiplyPlain,
    /// A rescale of a sum of products, unless giant steps' division by P rescales as well.
    Rescale,
    /// A sum or a difference of two ciphertexts, or a product with i.
    Add,
    /// The sum with a bias.
    AddPlain,
    /// A conjugation.
    Conjugate,
}

struct Counter<'v> {
    slots: u32,
    /// Sees a step, and how many levels below the operand it is taken.
    visit: &'v mut dyn FnMut(Step, u32),
}

impl SlotAlgebra for Counter<'_> {
    /// Levels below the operand.
    type Value = u32;
    type Error = std::convert::Infallible;

    fn rotate(&mut self, a: &u32, by: &[i64]) -> Result<Vec<u32>, Self::Error> {
        for (place, by) in by.iter().enumerate() {
            let by = by.rem_euclid(i64::from(self.slots)) as u32;
            let sharing = if place > 0 { Sharing::Decomposition } else { Sharing::Nothing };
            (self.visit)(Step::Rotate { by, sharing }, *a);
        }
        Ok(vec![*a; by.len()])
    }

    fn add_rotations(&mut self, a: &u32, by: &[i64]) -> Result<u32, Self::Error> {
        for (place, by) in by.iter().enumerate() {
            let by = by.rem_euclid(i64::from(self.slots)) as u32;
            (self.visit)(Step::Rotate { by, sharing: Sharing::in_addition(place) }, *a);
        }
        (self.visit)(Step::Add, *a);
        Ok(*a)
    }

    fn add_rotation_times_i(&mut self, a: &u32, by: i64) -> Result<u32, Self::Error> {
        self.rotate(a, &[by])?;
        for step in [Step::Add, Step::Add] {
            (self.visit)(step, *a);
        }
        Ok(*a)
    }

    fn weigh(&mut self, giants: &[Giant<'_, u32>]) -> Result<u32, Self::Error> {
        let level = giants.iter().flat_map(|giant| &giant.terms).map(|(a, _)| **a).max().unwrap_or_default();
        for (place, giant) in giants.iter().enumerate() {
            giant.terms.iter().for_each(|(a, _)| (self.visit)(Step::MultiplyPlain, **a));
            if place > 0 {
                let by = giant.by.rem_euclid(i64::from(self.slots)) as u32;
                let sharing = if place > 1 { Sharing::Division } else { Sharing::Nothing };
                (self.visit)(Step::Rotate { by, sharing }, level);
            }
        }
        if giants.len() == 1 {
            (self.visit)(Step::Rescale, level);
        }
        Ok(level + 1)
    }

    fn parts(&mut self, z: u32) -> Result<[u32; 2], Self::Error> {
        for step in [Step::Conjugate, Step::Add, Step::Add, Step::Add] {
            (self.visit)(step, z);
        }
        Ok([z, z])
    }

    fn real_part(&mut self, z: u32) -> Result<u32, Self::Error> {
        for step in [Step::Conjugate, Step::Add] {
            (self.visit)(step, z);
        }
        Ok(z)
    }

    fn add_bias(&mut self, a: u32, _: u32, _: u32) -> Result<u32, Self::Error> {
        (self.visit)(Step::AddPlain, a);
        Ok(a)
    }
}

impl Linear {
    /// Visits the operations that the map takes, in order, each with the number of levels below the operand's at which it is
    /// executed.
    pub fn for_each_step(&self, slots: u32, environment: &Environment, visit: &mut dyn FnMut(Step, u32)) {
        let Ok(_) = self.apply(slots, environment, &mut Counter { slots, visit }, &0);
    }
}
