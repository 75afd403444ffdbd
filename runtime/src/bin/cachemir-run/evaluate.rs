//! `cachemir-run eval`

use std::sync::atomic::AtomicBool;

use cachemir_runtime::Error;
use cachemir_runtime::client::{Cipher, ClearCipher, Client};
use cachemir_runtime::executor::{Algebra, Observer};
use cachemir_runtime::generation::{Listener, steps};
use cachemir_runtime::server::Server;
use cachemir_runtime::setup::Plans;
use serde_json::json;

use crate::arguments::Evaluate;
use crate::output::{self, Screen, ScreenOptions};
use crate::roles::{self, Mode, Surroundings, Task, security};

/// Feeds a text token by token and adds the surprise of each next token up.
struct Perplexity<'a> {
    tokens: &'a [u32],
    interrupt: &'a AtomicBool,
}

impl Task for Perplexity<'_> {
    /// Predicted tokens, and the sum of −ln of their probabilities.
    type Output = (usize, f64);

    fn run<A, C>(
        self,
        client: &Client<C>,
        server: &Server<'_, A>,
        surroundings: &Surroundings,
        watch: &mut dyn Observer<A::Ciphertext>,
    ) -> Result<Self::Output, Error>
    where
        A: Algebra,
        C: Cipher<Ciphertext = A::Ciphertext>,
    {
        let options = ScreenOptions { json: false, show_tokens: false, expected_ns: surroundings.expected_ns };
        let slots = client.plan().slots;
        let mut screen = Screen::new(options, &surroundings.costs, slots, self.interrupt, watch, None);
        let mut session = server.open();
        let (mut count, mut sum) = (0, 0.0);
        for step in steps(0, self.tokens.len() - 1, None) {
            screen.step(step);
            let inputs = client.encrypt("decode", &self.tokens[step.position..=step.position])?;
            let outputs = match server.decode(&mut session, inputs, &mut screen) {
                Ok(outputs) => outputs,
                Err(Error::Interrupted) => break,
                Err(error) => return Err(error),
            };
            sum += surprise(&client.decrypt("decode", 1, &outputs)?, self.tokens[step.position + 1]);
            count += 1;
        }
        screen.finish()?;
        Ok((count, sum))
    }
}

/// −ln of the probability that logits give a token.
fn surprise(logits: &[f64], token: u32) -> f64 {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = logits.iter().map(|logit| (logit - largest).exp()).sum();
    logits.get(token as usize).map_or(f64::INFINITY, |logit| total.ln() - (logit - largest))
}

/// Measures the perplexity of a text's beginning.
pub(crate) fn run(options: &Evaluate, interrupt: &AtomicBool) -> Result<(), Error> {
    let plans = Plans::read(&options.plan)?;
    let text =
        std::fs::read_to_string(&options.text).map_err(|source| Error::System { what: "reading the text", source })?;
    let client = plans.open_client(ClearCipher)?;
    let mut tokens = client.tokenizer().encode(&text, None)?;
    // The last token is predicted, not taken in.
    tokens.truncate(options.count.unwrap_or(usize::MAX).min(client.context() + 1));
    if tokens.len() < 2 {
        return Err(Error::EmptyPrompt);
    }
    let mode = Mode {
        backend: options.backend,
        check: false,
        json: false,
        keys: options.keys,
        seed: None,
        steps: steps(0, tokens.len() - 1, None),
        interrupt,
    };
    let ((count, sum), _) = roles::run(&plans, &mode, Perplexity { tokens: &tokens, interrupt })?;
    if count == 0 {
        return Err(Error::Interrupted);
    }
    let perplexity = (sum / count as f64).exp();
    if options.json {
        return output::line(&json!({"event": "eval", "tokens": count, "nats_per_token": sum / count as f64,
            "perplexity": perplexity, "parameters": plans.server.parameters.name}));
    }
    output::text(&format!("perplexity {perplexity:.4} over {count} tokens ({})", security(&plans.server.parameters)))
}

#[cfg(test)]
mod tests {
    use super::surprise;

    #[test]
    fn surprise_is_the_logarithm_of_the_softmax() {
        assert!((surprise(&[0.0, 0.0], 1) - 2.0_f64.ln()).abs() < 1e-12);
        assert!((surprise(&[1000.0, 1000.0 - 3.0_f64.ln()], 1) - 4.0_f64.ln()).abs() < 1e-12);
        assert_eq!(surprise(&[0.0], 3), f64::INFINITY);
    }
}
