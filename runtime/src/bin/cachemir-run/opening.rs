//! Opens sessions, and says what that takes.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use cachemir_hal::Backend as _;
use cachemir_ir::cost::CostTable;
use cachemir_ir::text::counted;
use cachemir_runtime::generation::Step;
use cachemir_runtime::session::{Conversation, Prepared};
use cachemir_runtime::setup::Requirements;
use cachemir_runtime::{Backend, Error, Plans, Session, SessionOptions, memory};
use serde_json::json;

use crate::estimate;
use crate::output;
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
    output::rows(&[("keys", format!("{} in {}", memory::format_bytes(key_bytes), output::seconds(seconds)))]);
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
    let expected_ns = |costs: &CostTable| estimate::steps_ns(costs, &plan.program, steps);
    let Some((engine, requirements)) = prepared.engine() else {
        let noise = if matches!(options.backend, Backend::Noisy { .. }) {
            ", with the noise that encryption would add"
        } else {
            ""
        };
        let warning = format!("NONE: in the clear{noise}, nothing is encrypted (--backend cpu encrypts)");
        output::rows(&[("model", plan.model.name.clone()), ("encryption", warning)]);
        if json {
            let event = json!({"event": "start", "backend": options.representation(), "encrypted": false,
                "parameters": plan.parameters.name, "slots": plan.program.slots, "context": plan.program.context});
            output::line(&event)?;
        }
        let expected_ns = expected_ns(&costs);
        return Ok(Surroundings { costs, ntt_ns: None, keys_seconds: None, requirements: None, expected_ns });
    };
    let ring = engine.ring();
    let degree = ring.degree();
    let ntt_ns = timing::ntt_ns(degree, ring.parameters().primes()[0]).ok_or_else(|| Error::Engine {
        origin: "timing".to_owned(),
        message: format!("tfhe-ntt has no transform of degree {degree} for the ring's first prime"),
    })?;
    let costs = costs.carried_over(estimate::transform_ns(ring)?);
    let expected_ns = expected_ns(&costs);
    let keys_ns = estimate::keys_ns(requirements.key_bytes, degree, costs.transform_ns);
    let available = prepared.available_bytes();
    let threads = rayon::current_num_threads();
    let speedup = estimate::speedup(threads);
    let estimated_seconds = (keys_ns + expected_ns) / 1e9 / speedup;
    let size = memory::format_bytes;
    let memory_text = available.map_or(String::new(), |available| format!(" of {} available", size(available)));
    let Requirements { key_bytes, matrix_bytes, state_bytes, working_bytes } = *requirements;
    output::rows(&[
        ("model", format!("{}; {} slots", plan.model.name, plan.program.slots)),
        ("security", security(&plan.parameters)),
        ("kernels", format!("{}, on {}", ring.backend().description(), counted(threads, "thread"))),
        (
            "memory",
            format!(
                "{} keys + {} matrices + {} caches + {} working = {}{memory_text}",
                size(key_bytes),
                size(matrix_bytes),
                size(state_bytes),
                size(working_bytes),
                size(requirements.total_bytes())
            ),
        ),
        (
            "estimated",
            format!(
                "{} for the keys, {} for the text",
                output::seconds(keys_ns / 1e9 / speedup),
                output::seconds(expected_ns / 1e9 / speedup)
            ),
        ),
    ]);
    if json {
        output::line(&json!({
            "event": "start", "backend": "cpu", "encrypted": true, "parameters": plan.parameters.name,
            "security_bits": plan.parameters.security_bits(), "slots": plan.program.slots,
            "context": plan.program.context, "threads": threads, "ntt_ns": ntt_ns,
            "key_bytes": requirements.key_bytes, "needed_bytes": requirements.total_bytes(),
            "available_bytes": available, "estimated_seconds": estimated_seconds,
        }))?;
    }
    Ok(Surroundings { costs, ntt_ns: Some(ntt_ns), keys_seconds: None, requirements: Some(*requirements), expected_ns })
}

/// What reports say of an execution in the clear instead of its security.
pub(crate) const NOTHING_ENCRYPTED: &str = "in the clear, nothing was encrypted";

/// The security of a parameter set in words, which every report repeats.
pub(crate) fn security(parameters: &cachemir_ir::parameters::Parameters) -> String {
    format!("{}, {}", parameters.name, parameters.security())
}
