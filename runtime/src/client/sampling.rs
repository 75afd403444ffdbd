//! Choosing the next token from the logits.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;

use crate::Error;

/// How the next token is chosen. The filters apply in the order top-k, top-p, min-p, on the probabilities at the
/// temperature, and each always keeps the most likely token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by this; 0 takes the most likely token.
    pub temperature: f64,
    /// Only this many of the most likely tokens; 0 for all.
    pub top_k: usize,
    /// Only the most likely tokens that together have at least this probability (arXiv 1904.09751); 1 for all.
    pub top_p: f64,
    /// Only tokens at least this fraction as likely as the most likely one (arXiv 2407.01082); 0 for all.
    pub min_p: f64,
    /// Seed of the random choices.
    pub seed: u64,
}

impl Default for Sampling {
    /// Greedy.
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 1 }
    }
}

impl Sampling {
    /// Checks the ranges of all options.
    pub fn validate(&self) -> Result<(), Error> {
        let check = |option, value: f64, valid: bool, expected| {
            if valid { Ok(()) } else { Err(Error::SamplingOption { option, value, expected }) }
        };
        let temperature = self.temperature.is_finite() && self.temperature >= 0.0;
        check("temperature", self.temperature, temperature, "a number of at least 0")?;
        check("top-p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0 and at most 1")?;
        check("min-p", self.min_p, (0.0..=1.0).contains(&self.min_p), "between 0 and 1")
    }
}

/// Chooses tokens one after another; equal options and logits give equal tokens.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: Sampling,
    random: ChaCha20Rng,
}

impl Sampler {
    /// A sampler with its random numbers at their beginning.
    pub fn new(options: Sampling) -> Result<Self, Error> {
        options.validate()?;
        Ok(Self { options, random: ChaCha20Rng::seed_from_u64(options.seed) })
    }

    /// The next token. Logits that are no numbers are never chosen; `None` where there is no other.
    pub fn sample(&mut self, logits: &[f64]) -> Option<u32> {
        let mut candidates: Vec<(usize, f64)> =
            logits.iter().copied().enumerate().filter(|(_, logit)| logit.is_finite()).collect();
        // Equal logits keep the order of their tokens, so that the smaller token wins.
        candidates.sort_by(|a, b| b.1.total_cmp(&a.1));
        let &(best, maximum) = candidates.first()?;
        if self.options.temperature == 0.0 {
            return Some(best as u32);
        }
        for (_, logit) in &mut candidates {
            *logit = ((*logit - maximum) / self.options.temperature).exp();
        }
        let mut weights = candidates;
        if self.options.top_k > 0 {
            weights.truncate(self.options.top_k);
        }
        let total: f64 = weights.iter().map(|(_, weight)| weight).sum();
        let mut reached = 0.0;
        let nucleus = weights.iter().take_while(|(_, weight)| {
            let needed = reached < self.options.top_p * total;
            reached += weight;
            needed
        });
        let nucleus = nucleus.count().max(1);
        weights.truncate(nucleus);
        // The most likely token has weight 1.
        weights.retain(|&(_, weight)| weight >= self.options.min_p);
        let total: f64 = weights.iter().map(|(_, weight)| weight).sum();
        let mut left = self.random.random::<f64>() * total;
        for &(token, weight) in &weights {
            left -= weight;
            if left < 0.0 {
                return Some(token as u32);
            }
        }
        weights.last().map(|&(token, _)| token as u32)
    }

    /// Passes over the random number of one choice, as if a token had been sampled.
    pub fn skip(&mut self) {
        if self.options.temperature != 0.0 {
            let _ = self.random.random::<f64>();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(options: Sampling) -> Sampler {
        Sampler::new(options).unwrap()
    }

    /// How often each of four tokens is drawn, with logits log(1), log(2), log(4), log(1).
    fn frequencies(options: Sampling) -> [f64; 4] {
        let mut sampler = sampler(options);
        let logits = [1.0_f64, 2.0, 4.0, 1.0].map(f64::ln);
        let mut counts = [0.0; 4];
        for _ in 0..8000 {
            counts[sampler.sample(&logits).unwrap() as usize] += 1.0 / 8000.0;
        }
        counts
    }

    fn near(found: [f64; 4], expected: [f64; 4]) {
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() < 0.03 && (e > 0.0 || *f == 0.0), "{found:?} is not {expected:?}");
        }
    }

    #[test]
    fn greedy_takes_the_first_maximum_and_ignores_what_is_no_number() {
        let mut greedy = sampler(Sampling::default());
        assert_eq!(greedy.sample(&[1.0, f64::NAN, 3.0, 3.0, f64::INFINITY]), Some(2));
        assert_eq!(greedy.sample(&[f64::NAN]), None);
        assert_eq!(greedy.sample(&[]), None);
    }

    #[test]
    fn frequencies_follow_the_filtered_distribution() {
        let plain = Sampling { temperature: 1.0, ..Sampling::default() };
        near(frequencies(plain), [0.125, 0.25, 0.5, 0.125]);
        near(frequencies(Sampling { temperature: 0.5, ..plain }), [1.0, 4.0, 16.0, 1.0].map(|weight| weight / 22.0));
        near(frequencies(Sampling { top_k: 2, ..plain }), [0.0, 1.0 / 3.0, 2.0 / 3.0, 0.0]);
        near(frequencies(Sampling { top_p: 0.75, ..plain }), [0.0, 1.0 / 3.0, 2.0 / 3.0, 0.0]);
        near(frequencies(Sampling { top_p: 0.01, ..plain }), [0.0, 0.0, 1.0, 0.0]);
        near(frequencies(Sampling { min_p: 0.5, ..plain }), [0.0, 1.0 / 3.0, 2.0 / 3.0, 0.0]);
        near(frequencies(Sampling { min_p: 1.0, ..plain }), [0.0, 0.0, 1.0, 0.0]);
    }

    #[test]
    fn equal_seeds_give_equal_tokens_and_skipping_counts_as_a_choice() {
        let options = Sampling { temperature: 1.0, seed: 7, ..Sampling::default() };
        let logits = [0.1, 0.2, 0.3, 0.4];
        let draw = |sampler: &mut Sampler| (0..20).map(|_| sampler.sample(&logits)).collect::<Vec<_>>();
        let tokens = draw(&mut sampler(options));
        assert_eq!(tokens, draw(&mut sampler(options)));
        let mut resumed = sampler(options);
        (0..5).for_each(|_| resumed.skip());
        assert_eq!(tokens[5..], draw(&mut resumed)[..15]);
        assert_ne!(tokens, draw(&mut sampler(Sampling { seed: 8, ..options })));
    }

    #[test]
    fn options_out_of_range_are_refused() {
        for options in [
            Sampling { temperature: -1.0, ..Sampling::default() },
            Sampling { temperature: f64::NAN, ..Sampling::default() },
            Sampling { top_p: 0.0, ..Sampling::default() },
            Sampling { min_p: 1.5, ..Sampling::default() },
        ] {
            assert_eq!(Sampler::new(options).unwrap_err().code(), "CMR-R012");
        }
    }
}
