//! `cachemir-run bench plan`

use std::sync::atomic::AtomicBool;

use cachemir_ir::text::{counted, format_bytes};
use cachemir_runtime::session::Conversation;
use cachemir_runtime::{Error, GenerateOptions, Plans, Prompt, Sampling, SessionOptions, UniformHalves, memory};

use crate::arguments::{Backend, BenchPlan};
use crate::generate::{operations, secured, summary};
use crate::opening::{self, beside};
use crate::output::{self, Screen};

/// Text of which the benchmark's prompts are made.
pub(super) const TEXT: &str =
    "Once upon a time, there was a little girl. She liked to play in the park with her friends. ";

/// Measures prefill and decoding of a plan, on ordinary text.
pub(crate) fn plan(options: &BenchPlan, interrupt: &AtomicBool) -> Result<(), Error> {
    let plans = Plans::read(&options.plan)?;
    let mut conversation = Conversation::new(&plans)?;
    let texts = conversation.texts();
    let wanted = options.prompt_tokens.max(1);
    let total = texts.prefix().len().saturating_add(wanted).saturating_add(options.count.saturating_sub(1));
    if total > texts.context() {
        return Err(Error::PromptTooLong { tokens: total, context: texts.context() });
    }
    let text = match &plans.client.model.tokenizer {
        Some(_) => texts.tokenizer().encode(TEXT, false)?,
        None => (0..plans.client.model.vocabulary).take(wanted).collect(),
    };
    let mut tokens = if texts.prefix().is_empty() { texts.tokenizer().prefix()? } else { Vec::new() };
    tokens.extend(text.iter().cycle().take(wanted));
    tokens.truncate(wanted);
    conversation.prompt(&Prompt::Tokens(tokens))?;
    let expected = conversation.steps(options.count);
    let session_options = SessionOptions {
        backend: options.backend.into(),
        check: false,
        keys: options.common.keys.map(UniformHalves::from),
        plaintext_bytes: options.plaintext_memory,
    };
    let (mut session, surroundings) = opening::open(conversation, session_options, &expected, false, interrupt)?;
    // Nobody reads the text.
    let mut screen =
        Screen::new(surroundings.screen(false, false), &surroundings.costs, plans.client.slots, interrupt, None);
    let request = GenerateOptions { max_tokens: options.count, sampling: Sampling::default(), stop_at_end: false };
    let made = session.generate(&request, &mut screen);
    screen.finish()?;
    let (generation, findings) = (made?, session.findings());

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
    if options.common.json {
        return output::line(&object);
    }
    let ratio = |seconds: f64| in_ntts(seconds).map_or(String::new(), |ntts| format!(" = {ntts:.0} NTTs"));
    let program = &plans.server.program;
    let mut rows = vec![(
        "prefill",
        format!(
            "{} for {}{}{}",
            output::seconds(prefill),
            counted(options.prompt_tokens, "token"),
            ratio(prefill),
            beside(surroundings.prefill(program, &generation))
        ),
    )];
    if let Some(seconds) = generation.seconds_per_token() {
        let predicted = beside(surroundings.token(program, &generation));
        rows.push(("further", format!("{} a token{}{predicted}", output::seconds(seconds), ratio(seconds))));
    }
    rows.push(("operations", operations(&object)));
    if let Some(peak) = memory::peak_resident_bytes() {
        rows.push(("memory", format!("at most {} resident", format_bytes(peak))));
    }
    if let Some(ns) = surroundings.ntt_ns {
        rows.push(("one NTT", format!("{:.1} µs", ns / 1e3)));
    }
    rows.push(secured(&plans, &surroundings));
    output::rows(&rows);
    Ok(())
}
