//! `cachemir-run bench plan`

use std::sync::atomic::AtomicBool;

use cachemir_runtime::client::sampling::{Sampler, Sampling};
use cachemir_runtime::client::{Cipher, ClearCipher, Client};
use cachemir_runtime::executor::{Algebra, Observer};
use cachemir_runtime::generation::{Generation, Request, generate, steps};
use cachemir_runtime::server::Server;
use cachemir_runtime::setup::Plans;
use cachemir_runtime::{Error, memory};

use crate::arguments::{Backend, BenchPlan};
use crate::generate::summary;
use crate::output::{self, Screen, ScreenOptions, note};
use crate::roles::{self, Mode, NOTHING_ENCRYPTED, Surroundings, Task, security};

/// A generation whose text nobody reads.
struct Measurement<'a> {
    request: &'a Request,
    interrupt: &'a AtomicBool,
}

impl Task for Measurement<'_> {
    type Output = (Generation, Surroundings);

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
        let mut sampler = Sampler::new(Sampling::default())?;
        let made = generate(client, server, &mut server.open(), self.request, &mut sampler, &mut screen);
        screen.finish()?;
        Ok((made?, surroundings.clone()))
    }
}

/// Text of which the benchmark's prompts are made.
const TEXT: &str = "Once upon a time, there was a little girl. She liked to play in the park with her friends. ";

/// Measures prefill and decoding of a plan, on ordinary text.
pub(crate) fn plan(options: &BenchPlan, interrupt: &AtomicBool) -> Result<(), Error> {
    let plans = Plans::read(&options.plan)?;
    let client = plans.open_client(ClearCipher)?;
    let wanted = options.prompt_tokens.max(1);
    let total = wanted.saturating_add(options.count.saturating_sub(1));
    if total > client.context() {
        return Err(Error::PromptTooLong { tokens: total, context: client.context() });
    }
    let text = match &plans.client.model.tokenizer {
        Some(_) => client.tokenizer().encode(TEXT, false)?,
        None => (0..plans.client.model.vocabulary).take(wanted).collect(),
    };
    let mut tokens = client.tokenizer().prefix()?;
    tokens.extend(text.iter().cycle().take(wanted));
    tokens.truncate(wanted);
    let mut expected = steps(0, tokens.len(), client.chunk());
    expected.extend(steps(tokens.len(), tokens.len() + options.count.saturating_sub(1), None));
    let request = Request { tokens, count: options.count, stop_at_end: false };
    let mode = Mode {
        backend: options.backend,
        check: false,
        noise: false,
        json: false,
        keys: options.keys,
        seed: None,
        steps: expected,
        interrupt,
    };
    let task = Measurement { request: &request, interrupt };
    let ((generation, surroundings), findings) = roles::run(&plans, &mode, task)?;

    let backend = if options.backend == Backend::Cpu { "cpu" } else { "clear" };
    let mut object = summary(&plans, backend, &generation, &surroundings, &findings);
    let in_ntts = |seconds: f64| surroundings.ntt_ns.map(|ntt| seconds * 1e9 / ntt);
    let prefill = generation.prefill.as_secs_f64();
    if let Some(fields) = object.as_object_mut() {
        fields.insert("event".to_owned(), "bench".into());
        fields.insert("prompt_tokens".to_owned(), options.prompt_tokens.into());
        fields.insert("prefill_ntts".to_owned(), in_ntts(prefill).into());
        fields.insert("token_ntts".to_owned(), generation.seconds_per_token().and_then(in_ntts).into());
        fields.remove("text");
        fields.remove("token_ids");
    }
    if options.json {
        return output::line(&object);
    }
    let ratio = |seconds: f64| in_ntts(seconds).map_or(String::new(), |ntts| format!(" = {ntts:.0} NTTs"));
    note(&format!("prefill of {} tokens: {}{}", options.prompt_tokens, output::seconds(prefill), ratio(prefill)));
    if let Some(seconds) = generation.seconds_per_token() {
        note(&format!("a token: {}{}", output::seconds(seconds), ratio(seconds)));
    }
    let secure =
        if surroundings.ntt_ns.is_some() { security(&plans.server.parameters) } else { NOTHING_ENCRYPTED.to_owned() };
    note(&format!(
        "{:.1} bootstraps and {:.0} rotations a token; at most {} resident{}; {secure}",
        object["bootstraps_per_token"].as_f64().unwrap_or(0.0),
        object["rotations_per_token"].as_f64().unwrap_or(0.0),
        memory::peak_resident_bytes().map_or("?".to_owned(), memory::format_bytes),
        surroundings.ntt_ns.map_or(String::new(), |ns| format!("; one NTT {:.1} µs", ns / 1e3)),
    ));
    Ok(())
}
