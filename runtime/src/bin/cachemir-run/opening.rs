//! Opens sessions, and says what that takes.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use cachemir_hal::Backend as _;
use cachemir_ir::cost::{CostTable, keys_ns, speedup};
use cachemir_ir::text::{counted, format_bytes};
use cachemir_runtime::executor::CkksProgram;
use cachemir_runtime::generation::Step;
use cachemir_runtime::session::{Conversation, Prepared};
use cachemir_runtime::setup::Requirements;
use cachemir_runtime::{Backend, Error, Generation, Plans, Session, SessionOptions};
use serde_json::json;

use crate::estimate;
use crate::output::{self, ScreenOptions};
use crate::timing;

/// What is known of an execution before it begins.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    pub(crate) costs: CostTable,
    /// Time of one transform; `None` in the clear.
    pub(crate) ntt_ns: Option<f64>,
    pub(crate) keys_seconds: Option<f64>,
    pub(crate) requirements: Option<Requirements>,
    /// Predicted time of the expected calls, in nanoseconds on one thread.
    pub(crate) expected_ns: f64,
    /// The calls among them that take the prompt in.
    pub(crate) prompt: Vec<Step>,
}

/// A time that was measured, and what was predicted of it on this machine and its threads, in seconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Compared {
    pub(crate) measured: f64,
    pub(crate) predicted: f64,
}

impl Compared {
    /// How many times as long it took as predicted.
    pub(crate) fn ratio(self) -> f64 {
        self.measured / self.predicted.max(f64::MIN_POSITIVE)
    }
}

/// What is said behind a measured time of what was predicted: `; predicted 14.1 s, took 1.05 times as long`.
pub(crate) fn beside(compared: Option<Compared>) -> String {
    compared.map_or(String::new(), |compared| {
        let (predicted, ratio) = (output::seconds(compared.predicted), compared.ratio());
        format!("; predicted {predicted}, took {ratio:.2} times as long")
    })
}

impl Surroundings {
    /// What a screen shows of this execution: JSON events in place of text, and tokens or not.
    pub(crate) fn screen(&self, json: bool, show_tokens: bool) -> ScreenOptions {
        let end = self.prompt.last().map(|step| step.position + step.count);
        // What is predicted is encrypted execution.
        let prompt_end = end.filter(|_| self.ntt_ns.is_some());
        ScreenOptions { json, show_tokens, expected_ns: self.expected_ns, prompt_end }
    }

    /// The mean time of decode steps, and what is predicted of steps at the same positions; `None` before the first, and in
    /// the clear, of which nothing is predicted.
    pub(crate) fn token(&self, program: &CkksProgram, generation: &Generation) -> Option<Compared> {
        self.ntt_ns?;
        let ns = estimate::decode_ns(&self.costs.predictions(program), &generation.decode_positions)?;
        Some(Compared { measured: generation.seconds_per_token()?, predicted: on_this_machine(ns) })
    }

    /// The time of a whole prompt, as [`token`](Self::token).
    pub(crate) fn prefill(&self, program: &CkksProgram, generation: &Generation) -> Option<Compared> {
        self.ntt_ns?;
        let ns = estimate::steps_ns(&self.costs.predictions(program), &self.prompt);
        let measured = generation.prefill.as_secs_f64();
        (generation.generated > 0).then(|| Compared { measured, predicted: on_this_machine(ns) })
    }
}

/// Seconds on all threads of what takes so many nanoseconds on one.
fn on_this_machine(ns: f64) -> f64 {
    ns / 1e9 / speedup(rayon::current_num_threads())
}

/// Opens a session, says what it takes, and makes its keys. `steps` are the calls to expect, with `json` events go to
/// stdout, and `interrupt` is set when the user asks for an end.
pub(crate) fn open<'p>(
    conversation: Conversation<'p>,
    options: SessionOptions,
    steps: &[Step],
    json: bool,
    interrupt: &AtomicBool,
) -> Result<(Session<'p>, Surroundings), Error> {
    let plans = conversation.plans();
    let prepared = conversation.prepare(&options)?;
    let surroundings = announce(plans, &prepared, options, steps, json)?;
    let Some(Requirements { key_bytes, .. }) = surroundings.requirements else {
        return Ok((prepared.open(|_, _| ControlFlow::Continue(()))?, surroundings));
    };
    let begin = Instant::now();
    let session = with_key_bar(key_bytes, interrupt, |progress| prepared.open(progress))?;
    let seconds = begin.elapsed().as_secs_f64();
    output::rows(&[("keys", format!("{} in {}", format_bytes(key_bytes), output::seconds(seconds)))]);
    if json {
        output::line(&json!({"event": "keys", "bytes": key_bytes, "seconds": seconds}))?;
    }
    Ok((session, Surroundings { keys_seconds: Some(seconds), ..surroundings }))
}

/// Makes so many bytes of keys, told how far it is, with a bar for the user, who may end it.
pub(crate) fn with_key_bar<R>(
    key_bytes: u64,
    interrupt: &AtomicBool,
    make: impl FnOnce(&mut dyn FnMut(u64, u64) -> ControlFlow<()>) -> R,
) -> R {
    let bar = output::bar(key_bytes, "evaluation keys", true);
    let made = make(&mut |made, _| {
        bar.set_position(made);
        if interrupt.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.finish_and_clear();
    made
}

/// Says what is about to happen.
fn announce(
    plans: &Plans,
    prepared: &Prepared<'_>,
    options: SessionOptions,
    steps: &[Step],
    json: bool,
) -> Result<Surroundings, Error> {
    let plan = &plans.server;
    let costs = CostTable::of_program(&plan.parameters, &plan.program);
    let expected_ns = |costs: &CostTable| estimate::steps_ns(&costs.predictions(&plan.program), steps);
    let prompt = prepared.conversation().steps(1);
    let beginning = beginning(prepared.conversation())?;
    let Some((engine, requirements)) = prepared.engine() else {
        let noise = if matches!(options.backend, Backend::Noisy { .. }) {
            ", with the noise that encryption would add"
        } else {
            ""
        };
        let warning = format!("NONE: in the clear{noise}, nothing is encrypted (--backend cpu encrypts)");
        let model = [("model", plan.model.name.clone())].into_iter();
        output::rows(&model.chain(beginning).chain([("encryption", warning)]).collect::<Vec<_>>());
        if json {
            let event = json!({"event": "start", "backend": options.representation(), "encrypted": false,
                "parameters": plan.parameters.name, "slots": plan.program.slots, "context": plan.program.context});
            output::line(&event)?;
        }
        let expected_ns = expected_ns(&costs);
        let (ntt_ns, keys_seconds, requirements) = (None, None, None);
        return Ok(Surroundings { costs, ntt_ns, keys_seconds, requirements, expected_ns, prompt });
    };
    let ring = engine.ring();
    let degree = ring.degree();
    let ntt_ns = timing::ntt_ns(degree, ring.parameters().primes()[0]).ok_or_else(|| Error::Engine {
        origin: "timing".to_owned(),
        message: format!("tfhe-ntt has no transform of degree {degree} for the ring's first prime"),
    })?;
    let costs = costs.carried_over(estimate::transform_ns(ring)?);
    let expected_ns = expected_ns(&costs);
    let keys_ns = keys_ns(requirements.key_bytes, degree, costs.transform_ns);
    let (available, plaintext_bytes) = (prepared.available_bytes(), prepared.plaintext_bytes());
    let threads = rayon::current_num_threads();
    let estimated_seconds = on_this_machine(keys_ns + expected_ns);
    let memory_text = available.map_or(String::new(), |available| format!(" of {} available", format_bytes(available)));
    let Requirements { key_bytes, matrix_bytes, state_bytes, working_bytes } = *requirements;
    let model = [("model", format!("{}; {} slots", plan.model.name, plan.program.slots))].into_iter();
    output::rows(&model.chain(beginning).collect::<Vec<_>>());
    output::rows(&[
        ("security", security(&plan.parameters)),
        ("kernels", format!("{}, on {}", ring.backend().description(), counted(threads, "thread"))),
        (
            "memory",
            format!(
                "{} keys + {} matrices + {} caches + {} working = {}{memory_text}, and up to {} of encoded weights",
                format_bytes(key_bytes),
                format_bytes(matrix_bytes),
                format_bytes(state_bytes),
                format_bytes(working_bytes),
                format_bytes(requirements.total_bytes()),
                format_bytes(plaintext_bytes as u64)
            ),
        ),
        (
            "estimated",
            format!(
                "{} for the keys, {} for the text",
                output::seconds(on_this_machine(keys_ns)),
                output::seconds(on_this_machine(expected_ns))
            ),
        ),
    ]);
    if json {
        output::line(&json!({
            "event": "start", "backend": "cpu", "encrypted": true, "parameters": plan.parameters.name,
            "security_bits": plan.parameters.security_bits(), "slots": plan.program.slots,
            "context": plan.program.context, "threads": threads, "ntt_ns": ntt_ns,
            "key_bytes": requirements.key_bytes, "needed_bytes": requirements.total_bytes(),
            "plaintext_bytes": plaintext_bytes, "available_bytes": available, "estimated_seconds": estimated_seconds,
        }))?;
    }
    let (ntt_ns, keys_seconds, requirements) = (Some(ntt_ns), None, Some(*requirements));
    Ok(Surroundings { costs, ntt_ns, keys_seconds, requirements, expected_ns, prompt })
}

/// What the prompt goes on behind, which is public and easily written twice; nothing for a session that begins with the prompt.
fn beginning(conversation: &Conversation<'_>) -> Result<Option<(&'static str, String)>, Error> {
    /// Most characters that are shown of it.
    const SHOWN: usize = 40;
    let texts = conversation.texts();
    let prefix = texts.prefix();
    if prefix.is_empty() {
        return Ok(None);
    }
    let text = texts.tokenizer().decode(prefix)?;
    let dots = if text.chars().count() > SHOWN { "…" } else { "" };
    let text: String = text.chars().take(SHOWN).collect();
    let tokens = counted(prefix.len(), "public token");
    Ok(Some(("begins", format!("with {tokens}, {text:?}{dots}, which the prompt goes on behind"))))
}

/// What reports say of an execution in the clear instead of its security.
pub(crate) const NOTHING_ENCRYPTED: &str = "in the clear, nothing was encrypted";

/// The security of a parameter set in words, which every report repeats.
pub(crate) fn security(parameters: &cachemir_ir::parameters::Parameters) -> String {
    format!("{}, {}", parameters.name, parameters.security())
}
