//! Whether decrypted outputs are something that the calibrated model can give.
//!
//! A value that leaves the interval of an approximation on the way makes a polynomial explode, and its ciphertext with
//! it. What decrypts then still looks like logits. The client checks every step before it chooses a token:
//!
//! 1. each logit lies within the guard's bounds;
//! 2. imaginary parts, and slots of tokens beyond the vocabulary, are as good as zero;
//! 3. the input of the output head, read off some logits ([`NormCheck`]), has the length of a normalised vector, and
//!    the other logits are those of this input.
//!
//! Encryption adds noise to logits. Its size follows from that of a bootstrap, whose error in a slot has a standard
//! deviation of `noise` for values of size one: on the way from the last bootstraps to the logits it grows by the guard's
//! gain and [`BOOTSTRAPS`]. All tolerances stand [`SAFETY`] such deviations off.

use cachemir_ir::plan::{Guard, NormCheck};
use num_complex::Complex64;

/// What all errors on the way come to ahead of the last norm, in errors of one bootstrap of values of size one: those of
/// several bootstraps, of values up to two, of linear maps and of the norm's own polynomial. The shipped model has 3 to 6.
const BOOTSTRAPS: f64 = 9.0;

/// Standard deviations of the noise that count as possible.
const SAFETY: f64 = 8.0;

/// Rounding of numbers that are not encrypted, relative to the largest logit.
const ROUNDING: f64 = 1e-6;

/// What is wrong with a step's outputs in words, if anything is. `slots` are those of all outputs, `logits` the entries
/// that are logits, `embedding` is the model's, and `noise` a bootstrap's error.
pub(super) fn refusal(
    guard: &Guard,
    slots: &[Complex64],
    logits: &[f64],
    embedding: &[f32],
    noise: f64,
) -> Option<String> {
    let [low, high] = guard.logits;
    let size = low.abs().max(high.abs());
    let error = ROUNDING * size + BOOTSTRAPS * noise * guard.noise_gain;
    let tolerance = SAFETY * error;
    if let Some((token, logit)) =
        logits.iter().enumerate().find(|(_, logit)| !(**logit >= low - tolerance && **logit <= high + tolerance))
    {
        return Some(format!("the logit of token {token} is {logit:.4}, beyond [{low:.4}, {high:.4}]"));
    }
    if let Some(slot) = slots.iter().find(|slot| beyond(slot.im, tolerance)) {
        return Some(format!("an imaginary part of {:.1e} is left, where {tolerance:.1e} can be noise", slot.im));
    }
    let zeros = guard.zeros.iter().filter_map(|&slot| slots.get(slot as usize));
    if let Some(slot) = zeros.into_iter().find(|slot| beyond(slot.re, tolerance)) {
        return Some(format!("a slot without a token holds {:.1e}, where {tolerance:.1e} can be noise", slot.re));
    }
    guard.norm.as_ref().and_then(|norm| contradiction(norm, logits, embedding, error))
}

/// Whether a number is farther from zero than the tolerance, or no number.
fn beyond(number: f64, tolerance: f64) -> bool {
    number.is_nan() || number.abs() > tolerance
}

fn contradiction(norm: &NormCheck, logits: &[f64], embedding: &[f32], error: f64) -> Option<String> {
    let reading = norm.read(logits, embedding);
    let [shortest, longest] = norm.length;
    let slack = SAFETY * norm.gain * error;
    if !(reading.length >= shortest - slack && reading.length <= longest + slack) {
        return Some(format!(
            "the last norm's result has {:.4} times the length that it should have, beyond [{:.4}, {:.4}]",
            reading.length,
            shortest - slack,
            longest + slack
        ));
    }
    let largest = logits.iter().fold(f64::MIN_POSITIVE, |most, logit| most.max(logit.abs()));
    let possible = norm.deviation + SAFETY * norm.deviation_gain * error / largest;
    beyond(reading.deviation, possible).then(|| {
        format!(
            "the logits contradict each other by {:.1e} of the largest, where {possible:.1e} can be noise",
            reading.deviation
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use cachemir_ir::plan::Others;

    /// Two logits of a vector z of length √2, and a third that is their sum.
    fn guard(others: Others) -> Guard {
        let norm = NormCheck {
            tokens: vec![0, 1],
            triangle: vec![2.0, 0.5, 1.0],
            length: [0.95, 1.05],
            gain: 1.0,
            others,
            deviation: 1e-3,
            deviation_gain: 2.0,
        };
        Guard { zeros: vec![3], norm: Some(norm), ..Guard::of_logits(-6.0, 6.0) }
    }

    /// The outputs' slots for z.
    fn slots(z: [f64; 2]) -> Vec<Complex64> {
        let logits = [2.0 * z[0], 0.5 * z[0] + z[1], 2.5 * z[0] + z[1], 0.0];
        logits.map(Complex64::from).to_vec()
    }

    fn refused(guard: &Guard, slots: &[Complex64], noise: f64) -> Option<String> {
        let logits: Vec<f64> = slots[..3].iter().map(|slot| slot.re).collect();
        // The embedding's rows give the same logits where z is taken as it is.
        refusal(guard, slots, &logits, &[2.0, 0.0, 0.5, 1.0, 2.5, 1.0], noise)
    }

    #[test]
    fn what_the_model_can_give_passes_and_all_else_is_refused() {
        let root = 1.0_f64.sqrt();
        for others in [Others::Rows(vec![2], vec![2.5, 1.0]), Others::Embedding(vec![1.0, 0.0, 0.0, 1.0])] {
            let guard = guard(others);
            let good = slots([root, -root]);
            assert_eq!(refused(&guard, &good, 0.0), None);
            let changed = |change: &dyn Fn(&mut Vec<Complex64>)| {
                let mut slots = good.clone();
                change(&mut slots);
                refused(&guard, &slots, 0.0).unwrap()
            };
            assert!(changed(&|slots| slots[1].re = -7.0).contains("token 1 is -7"));
            assert!(changed(&|slots| slots[2].re = f64::NAN).contains("NaN"));
            assert!(changed(&|slots| slots[0].re = f64::INFINITY).contains("inf"));
            assert!(changed(&|slots| slots[0].im = 1e-2).contains("imaginary"));
            assert!(changed(&|slots| slots[3].re = 1e-2).contains("without a token"));
            assert!(changed(&|slots| slots.iter_mut().for_each(|slot| *slot *= 1.1)).contains("length"));
            assert!(changed(&|slots| slots[2].re += 0.05).contains("contradict"));
        }
    }

    #[test]
    fn noise_is_allowed_for() {
        let guard = guard(Others::Rows(vec![2], vec![2.5, 1.0]));
        let mut noisy = slots([1.0, -1.0]);
        for (index, slot) in noisy.iter_mut().enumerate() {
            *slot += Complex64::new(3e-3, -3e-3) * if index % 2 == 0 { 1.0 } else { -1.0 };
        }
        assert!(refused(&guard, &noisy, 0.0).is_some());
        assert_eq!(refused(&guard, &noisy, 1e-5), None);
    }
}
