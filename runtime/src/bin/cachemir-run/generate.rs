//! `cachemir-run PLAN --prompt …`

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use cachemir_ir::files;
use cachemir_ir::text::{counted, format_bytes};
use cachemir_runtime::check::{Findings, LayerPrecision, RangeCheck};
use cachemir_runtime::client::SavedClient;
use cachemir_runtime::generation::Step;
use cachemir_runtime::server::SavedSession;
use cachemir_runtime::session::Conversation;
use cachemir_runtime::setup::{check_writable, engine_parameters, session_bytes};
use cachemir_runtime::{
    Error, GenerateOptions, Generation, Plans, Prompt, Sampling, SessionOptions, Stop, UniformHalves, memory,
};
use serde_json::{Value, json};

use crate::arguments::{Backend, Generate};
use crate::estimate;
use crate::opening::{self, Compared, NOTHING_ENCRYPTED, Surroundings, beside, security};
use crate::output::{self, Screen};

/// Generates text for the command line's options.
pub(crate) fn run(options: &Generate, interrupt: &AtomicBool) -> Result<(), Error> {
    let path = options.plan.as_deref().unwrap_or_else(|| Path::new(""));
    let sampling = Sampling::from(options.sampling);
    sampling.validate()?;
    if options.backend == Backend::Clear && options.keys.is_some() {
        let text = "--keys has no effect: in the clear there are none (--backend cpu encrypts)";
        output::rows(&[("warning", text.to_owned())]);
    }
    if let Some(text) = options.sampling.without_effect() {
        output::rows(&[("warning", text)]);
    }
    let prompt = read_prompt(options)?;
    let plans = Plans::read(path)?;
    check_outputs(options)?;
    let session_options = SessionOptions {
        backend: options.backend.into(),
        check: options.check,
        keys: options.keys.map(UniformHalves::from),
        plaintext_bytes: options.plaintext_memory,
    };
    let mut conversation = match &options.resume {
        Some(file) => Conversation::resume(&plans, file, &session_options)?,
        None => Conversation::new(&plans)?,
    };
    conversation.prompt(&prompt)?;
    let expected = conversation.steps(options.count);
    check_room(options, &plans, &expected)?;
    let (mut session, surroundings) = opening::open(conversation, session_options, &expected, options.json, interrupt)?;

    let create = |path: &PathBuf| File::create(path).map_err(|source| Error::Unwritable { path: path.clone(), source });
    let logits = options.logits.as_ref().map(create).transpose()?;
    let mut screen = Screen::new(
        surroundings.screen(options.json, true),
        &surroundings.costs,
        plans.client.slots,
        interrupt,
        logits,
    );
    let request = GenerateOptions { max_tokens: options.count, sampling, stop_at_end: !options.ignore_end };
    let made = session.generate(&request, &mut screen);
    screen.finish()?;
    let generation = made?;
    if let Some(file) = &options.save_session {
        session.save(file)?;
    }
    let findings = session.findings();
    report(&plans, options, &generation, &surroundings, &findings)?;
    findings.verdict
}

/// What the options ask to continue.
fn read_prompt(options: &Generate) -> Result<Prompt, Error> {
    if !options.prompt_ids.is_empty() {
        return Ok(Prompt::Tokens(options.prompt_ids.clone()));
    }
    let mut text = options.prompt.clone().unwrap_or_default();
    if text == "-" {
        text = io::read_to_string(io::stdin()).map_err(|source| Error::System { what: "reading stdin", source })?;
        let end = text.strip_suffix('\n').map(|line| line.strip_suffix('\r').unwrap_or(line).len());
        text.truncate(end.unwrap_or(text.len()));
    }
    if text.is_empty() && options.resume.is_none() {
        return Err(Error::EmptyPrompt);
    }
    Ok(if options.chat { Prompt::Chat { system: options.system.clone(), user: text } } else { Prompt::Text(text) })
}

/// Fails where a file that is to be written cannot be, or would take the place of something else. A session may be saved
/// where it was resumed from.
fn check_outputs(options: &Generate) -> Result<(), Error> {
    let mut outputs: Vec<(&str, PathBuf, &[u8])> = Vec::new();
    if let Some(file) = &options.save_session {
        outputs.push(("--save-session", file.clone(), &SavedSession::MAGIC));
        outputs.push(("--save-session", SavedClient::path(file), &SavedClient::MAGIC));
    }
    // Logits are written line by line, into a pipe as well.
    let logits = options.logits.iter().filter(|file| !files::is_stream(file));
    outputs.extend(logits.map(|file| ("--logits", file.clone(), b"{".as_slice())));
    for (index, (option, file, kind)) in outputs.iter().enumerate() {
        if outputs[..index].iter().any(|(_, other, _)| files::is_same(file, other)) {
            let message = format!("{} is written by another option too; choose another name", file.display());
            return Err(Error::BadOption { option, message });
        }
        check_writable(file, kind)?;
    }
    Ok(())
}

/// Fails where the session would not fit on the disk once it is to be saved.
fn check_room(options: &Generate, plans: &Plans, expected: &[Step]) -> Result<(), Error> {
    let (Some(file), Backend::Cpu) = (&options.save_session, options.backend) else { return Ok(()) };
    let plan = &plans.server;
    let tokens = expected.last().map_or(0, |step| step.position + step.count);
    let bytes = session_bytes(&engine_parameters(&plan.parameters)?, &plan.program, tokens);
    files::check_room(file, bytes).map_err(|source| Error::Unwritable { path: file.clone(), source })
}

/// The summary that ends a run.
pub(crate) fn summary(
    plans: &Plans,
    backend: &str,
    generation: &Generation,
    surroundings: &Surroundings,
    findings: &Findings,
) -> Value {
    let plan = &plans.server;
    let next = generation.tokens.len().saturating_sub(1).min(plan.program.context as usize - 1);
    let positions =
        if generation.decode_positions.is_empty() { vec![next] } else { generation.decode_positions.clone() };
    let counts = estimate::decode_counts(&plan.program, &positions);
    let layer = |layer: &LayerPrecision| {
        json!({"layer": layer.layer, "precision_bits_min": layer.precision_bits_min,
            "precision_bits_mean": layer.precision_bits_mean})
    };
    let encrypted = surroundings.ntt_ns.is_some();
    let token = surroundings.token(&plan.program, generation);
    let prefill = surroundings.prefill(&plan.program, generation);
    let counted = [positions[0], positions[positions.len() - 1]];
    json!({
        "event": "summary",
        "text": generation.text,
        "token_ids": generation.new_tokens(),
        "stop": generation.stop.name(),
        "backend": backend,
        "parameters": plan.parameters.name,
        "seconds_per_token": generation.seconds_per_token(),
        "predicted_seconds_per_token": token.map(|token| token.predicted),
        "measured_over_predicted": token.map(Compared::ratio),
        "prefill_seconds": generation.prefill.as_secs_f64(),
        "predicted_prefill_seconds": prefill.map(|prefill| prefill.predicted),
        "keys_seconds": surroundings.keys_seconds,
        "key_bytes": surroundings.requirements.map(|requirements| requirements.key_bytes),
        "bootstraps_per_token": counts.bootstraps,
        "rotations_per_token": counts.rotations,
        "counted_positions": counted,
        "encrypted": encrypted,
        "security_bits": encrypted.then(|| plan.parameters.security_bits()).flatten(),
        "precision_bits_min": findings.precision_bits_min,
        "layers": findings.layers.iter().map(layer).collect::<Vec<_>>(),
        "range_violations": findings.ranges.as_ref().map(RangeCheck::violations),
        "bootstrap_fullest": findings.ranges.as_ref().map(RangeCheck::fullest_bootstrap),
        "peak_rss_bytes": memory::peak_resident_bytes(),
        "predicted_ns_per_token": plan.provenance.predicted_ns_per_token,
        "ntt_ns": surroundings.ntt_ns,
        "threads": rayon::current_num_threads(),
    })
}

fn report(
    plans: &Plans,
    options: &Generate,
    generation: &Generation,
    surroundings: &Surroundings,
    findings: &Findings,
) -> Result<(), Error> {
    let backend = if surroundings.ntt_ns.is_some() { "cpu" } else { "clear" };
    let summary = summary(plans, backend, generation, surroundings, findings);
    let mut rows = Vec::new();
    let precision = |layer: &LayerPrecision| {
        let LayerPrecision { layer, precision_bits_mean, precision_bits_min, .. } = layer;
        format!("{layer}: {precision_bits_mean:.1} bits, {precision_bits_min:.1} at worst")
    };
    rows.extend(findings.layers.iter().map(|layer| ("precision", precision(layer))));
    if let Some(ranges) = &findings.ranges {
        let text = format!(
            "{} outside; of {} in the whole run the fullest had {:.3} of its magnitude",
            counted(ranges.violations(), "value"),
            counted(ranges.bootstraps(), "bootstrap"),
            ranges.fullest_bootstrap()
        );
        rows.push(("ranges", text));
    }
    rows.push(("generated", generated(generation)));
    if generation.generated > 0 {
        let program = &plans.server.program;
        let first = output::seconds(generation.prefill.as_secs_f64());
        rows.push(("first", format!("after {first}{}", beside(surroundings.prefill(program, generation)))));
        if let Some(seconds) = generation.seconds_per_token() {
            let ratio = surroundings.ntt_ns.map_or(String::new(), |ntt| format!(" = {:.0} NTTs", seconds * 1e9 / ntt));
            let text = format!("{seconds:.2} s a token{ratio}{}", beside(surroundings.token(program, generation)));
            rows.push(("further", text));
        }
        rows.push(("operations", operations(&summary)));
    }
    if let Some(peak) = memory::peak_resident_bytes() {
        rows.push(("memory", format!("at most {} resident", format_bytes(peak))));
    }
    rows.push(secured(plans, surroundings));
    if let Some(file) = &options.save_session {
        rows.push(("saved", format!("{} and {}", file.display(), SavedClient::path(file).display())));
    }
    output::rows(&rows);
    if options.json { output::line(&summary) } else { Ok(()) }
}

/// How many tokens were made and why no more.
fn generated(generation: &Generation) -> String {
    let ended = match generation.stop {
        Stop::Length if generation.generated == 0 => "; none were asked for",
        Stop::Length => "",
        Stop::End => "; the text ended",
        Stop::Context => "; the context is full",
        Stop::Interrupted => "; interrupted",
    };
    counted(generation.generated, "token") + ended
}

/// What a summary says of operations.
pub(crate) fn operations(summary: &Value) -> String {
    let number = |field: &str| summary[field].as_f64().unwrap_or(0.0);
    let [first, last] = [0, 1].map(|index| summary["counted_positions"][index].as_u64().unwrap_or(0));
    let positions = if first == last { format!("position {first}") } else { format!("positions {first} to {last}") };
    let (bootstraps, rotations) = (number("bootstraps_per_token"), number("rotations_per_token"));
    format!("{bootstraps:.1} bootstraps and {rotations:.0} rotations a token, at {positions}")
}

/// What a report says of security.
pub(crate) fn secured(plans: &Plans, surroundings: &Surroundings) -> (&'static str, String) {
    match surroundings.ntt_ns {
        Some(_) => ("security", security(&plans.server.parameters)),
        None => ("encryption", NOTHING_ENCRYPTED.to_owned()),
    }
}
