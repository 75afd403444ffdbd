//! `cachemir-run bench plan`

use std::sync::atomic::AtomicBool;

use cachemir_ir::text::counted;
use cachemir_runtime::client::sampling::{Sampler, Sampling};
use cachemir_runtime::client::{Cipher, ClearCipher, Client};
use cachemir_runtime::executor::{Algebra, Observer};
use cachemir_runtime::generation::{Generation, Request, generate, steps};
use cachemir_runtime::server::Server;
use cachemir_runtime::setup::Plans;
use cachemir_runtime::{Error, memory};

use crate::arguments::{Backend, BenchPlan};
use crate::generate::{operations, secured, summary};
use crate::output::{self, Screen, ScreenOptions};
use crate::roles::{self, Mode, Surroundings, Task};

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
pub(super) const TEXT: &str =
    "Once upon a time, there was a little girl. She liked to play in the park with her friends. ";

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
    let mut rows = vec![(
        "prefill",
        format!("{} for {}{}", output::seconds(prefill), counted(options.prompt_tokens, "token"), ratio(prefill)),
    )];
    if let Some(seconds) = generation.seconds_per_token() {
        rows.push(("further", format!("{} a token{}", output::seconds(seconds), ratio(seconds))));
    }
    rows.push(("operations", operations(&object)));
    if let Some(peak) = memory::peak_resident_bytes() {
        rows.push(("memory", format!("at most {} resident", memory::format_bytes(peak))));
    }
    if let Some(ns) = surroundings.ntt_ns {
        rows.push(("one NTT", format!("{:.1} µs", ns / 1e3)));
    }
    rows.push(secured(&plans, &surroundings));
    output::rows(&rows);
    Ok(())
}
