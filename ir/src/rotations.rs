//! Rotate and sum: a vector's rotations by all sums of some of k steps, added by k doublings.
//!
//! Each step s turns a into a + rotate(a, s). On ciphertexts, two steps s and t are taken at once,
//! a + rotate(a, s) + rotate(a, t) + rotate(a, s + t): the three rotations share one decomposition (hoisting, ePrint 2018/244)
//! and, as their key switches are added ahead of it, one division by P (ePrint 2020/1203). They cost about as much as one and
//! a half rotations alone, in place of two, and a key more.

use crate::expression::{Environment, Integer};

/// Slots rotated to the left.
pub fn rotated<T: Copy>(slots: &[T], by: i64) -> Vec<T> {
    let (ahead, behind) = parted(slots, by);
    [behind, ahead].concat()
}

/// Slots plus the same rotated to the left.
pub fn plus_rotated(slots: &[f64], by: i64) -> Vec<f64> {
    let (ahead, behind) = parted(slots, by);
    let (first, last) = slots.split_at(behind.len());
    let mut sums = Vec::with_capacity(slots.len());
    for (slots, turned) in [(first, behind), (last, ahead)] {
        sums.extend(slots.iter().zip(turned).map(|(slot, turned)| slot + turned));
    }
    sums
}

/// What a rotation to the left moves to the end, and what it moves to the beginning.
fn parted<T>(slots: &[T], by: i64) -> (&[T], &[T]) {
    slots.split_at(by.rem_euclid(slots.len().max(1) as i64) as usize)
}

/// The additions by which the vector's rotations are summed: each turns a into a plus its rotations by some amounts. Two
/// consecutive steps make one addition of three amounts, unless one of them is 0 modulo the number of slots.
pub fn additions(steps: &[i64], slots: u32) -> Vec<Vec<i64>> {
    let slots = i64::from(slots.max(1));
    let mut additions = Vec::new();
    for pair in steps.chunks(2) {
        let joined = [pair, &[pair.iter().sum()]].concat();
        if pair.len() == 2 && joined.iter().all(|amount| amount.rem_euclid(slots) != 0) {
            additions.push(joined);
        } else {
            additions.extend(pair.iter().map(|&step| vec![step]));
        }
    }
    additions
}

/// How many of the steps are not 0 modulo the number of slots: the rotations that a program is said to take, as formulas of
/// packings count them.
pub fn rotations(steps: &[Integer], slots: u32, environment: &Environment) -> usize {
    let turns = |step: &&Integer| step.evaluate(environment).rem_euclid(i64::from(slots.max(1))) != 0;
    steps.iter().filter(turns).count()
}

/// [`additions`] of steps that are expressions.
pub fn additions_at(steps: &[Integer], slots: u32, environment: &Environment) -> Vec<Vec<i64>> {
    let steps: Vec<i64> = steps.iter().map(|step| step.evaluate(environment)).collect();
    additions(&steps, slots)
}

/// What a rotation shares with the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Nothing.
    Nothing,
    /// The decomposition of the operand.
    Decomposition,
    /// The division by P: it is of another operand, and the two are added.
    Division,
    /// The decomposition, and the division by P: the two are added.
    Sum,
    /// As [`Sum`](Self::Sum), by the sum of two steps: it takes the place of a rotation of the first step's result, and is
    /// not counted beside the steps.
    Joined,
}

impl Sharing {
    /// Of the rotations of one of the [`additions`], by their place.
    pub fn in_addition(place: usize) -> Self {
        match place {
            0 => Self::Nothing,
            1 => Self::Sum,
            _ => Self::Joined,
        }
    }

    /// Whether it counts as a rotation of the program.
    pub fn is_counted(self) -> bool {
        self != Self::Joined
    }

    /// What a rotation costs as a fraction of one that shares nothing, at the levels of linear maps.
    pub fn relative_cost(self) -> f64 {
        match self {
            Self::Nothing => 1.0,
            Self::Decomposition => 0.7,
            Self::Division => 0.5,
            Self::Sum | Self::Joined => 0.25,
        }
    }
}

/// What the rotations and sums of so many steps cost, in rotations that share nothing.
pub fn relative_cost(steps: usize) -> f64 {
    steps.div_ceil(2) as f64 + (steps / 2) as f64 * 2.0 * Sharing::Sum.relative_cost()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_added_to_themselves_turned() {
        let slots: Vec<f64> = (0..8u8).map(|slot| f64::from(slot * slot)).collect();
        for by in [0, 1, 3, 8, -2, 21] {
            let expected: Vec<f64> = slots.iter().zip(rotated(&slots, by)).map(|(a, b)| a + b).collect();
            assert_eq!(plus_rotated(&slots, by), expected, "by {by}");
        }
        assert_eq!(plus_rotated(&slots, 3)[6], 36.0 + 1.0);
        assert!(plus_rotated(&[], 3).is_empty());
    }

    #[test]
    fn additions_do_what_the_steps_do_one_by_one() {
        let a: Vec<i64> = (0..16).map(|slot| slot * slot).collect();
        let add = |a: &[i64], b: &[i64]| -> Vec<i64> { a.iter().zip(b).map(|(a, b)| a + b).collect() };
        for steps in [vec![], vec![4], vec![1, 2], vec![1, -2, 4], vec![8, 8, 1, 1], vec![16, 3], vec![-1, 1, 2, 4, 8]]
        {
            let one_by_one = steps.iter().fold(a.clone(), |sum, &step| add(&sum, &rotated(&sum, step)));
            let joined = additions(&steps, 16).iter().fold(a.clone(), |sum, amounts| {
                amounts.iter().fold(sum.clone(), |total, &amount| add(&total, &rotated(&sum, amount)))
            });
            assert_eq!(joined, one_by_one, "{steps:?}");
        }
        assert_eq!(additions(&[1, 2, 4], 16), [vec![1, 2, 3], vec![4]]);
        assert_eq!(additions(&[8, 8], 16), [[8], [8]]);
    }
}
