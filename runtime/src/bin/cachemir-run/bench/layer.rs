//! `cachemir-run bench layer`

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use cachemir_ckks::UniformHalves;
use cachemir_ir::cost::{CostTable, speedup};
use cachemir_ir::layer::Part;
use cachemir_ir::text::{counted, format_bytes};
use cachemir_runtime::client::{SecretCipher, Texts};
use cachemir_runtime::executor::Executor;
use cachemir_runtime::layer::{Measured, Options, Precision, Row, Workload};
use cachemir_runtime::setup::{Engine, plaintext_budget_bytes};
use cachemir_runtime::{Error, Plans, memory};
use serde_json::{Value, json};

use super::plan::TEXT;
use crate::arguments::BenchLayer;
use crate::estimate;
use crate::opening::{security, with_key_bar};
use crate::output::{self, note};

/// Measures one decoder layer of a plan under encryption, part by part.
pub(crate) fn layer(options: &BenchLayer, interrupt: &AtomicBool) -> Result<(), Error> {
    let plans = Plans::read(&options.plan)?;
    let workload = workload(&plans, options, interrupt)?;
    let plan = &plans.server;
    let program = &workload.layer.program;
    let exact = workload.exact()?;

    let keys = workload.keys();
    let halves = options.common.keys.map(UniformHalves::from);
    let available = memory::available_bytes();
    let (engine, requirements) = Engine::fitting(&plan.parameters, &keys, program, halves, available)?;
    let costs =
        CostTable::of_program(&plan.parameters, &plan.program).carried_over(estimate::transform_ns(engine.ring())?);
    let threads = rayon::current_num_threads();
    let speedup = speedup(threads);
    let predicted_ns = workload.predicted_ns(&costs);
    announce(&plans, &workload, &requirements, predicted_ns / 1e9 / speedup);

    let cipher = SecretCipher::generate(engine.encoder().clone())?;
    let begin = Instant::now();
    let manifest = engine.key_manifest();
    let made = with_key_bar(requirements.key_bytes, interrupt, |progress| cipher.evaluation_keys(manifest, progress))?;
    let algebra = engine.algebra(made, program.slots as usize)?;
    let keys_seconds = begin.elapsed().as_secs_f64();
    // Of a model whose weights do not fit, those of this layer are not kept from its first run either.
    let budget = if costs.weights_streamed { 0 } else { plaintext_budget_bytes(Some(&requirements), available) };
    let executor = Executor::new(algebra, program, plan.levels(), budget)?;
    let bar = output::bar(1000, "the layer", false);
    let mut progress = |done_ns: f64| bar.set_position((500.0 * done_ns / predicted_ns.max(1.0)) as u64);
    let measured = workload.measure(&executor, &cipher, &exact, &costs, interrupt, &mut progress);
    bar.finish_and_clear();
    let measured = measured?;

    let total = measured.total();
    let token = measured.extrapolated(&plan.program, workload.position, &costs);
    let predicted_seconds = token.predicted_seconds / speedup;
    if options.common.json {
        let parts = measured.parts();
        let part = |(part, row): (&Part, &Row)| {
            let mut object = numbers(row, speedup);
            object["part"] = part.name().into();
            let own = measured.rows.iter().filter(|((of, _), _)| of == part);
            let op = |((_, op), row): (&(Part, &str), &Row)| {
                let mut object = numbers(row, speedup);
                object["op"] = (*op).into();
                object
            };
            object["ops"] = own.map(op).collect::<Vec<Value>>().into();
            object
        };
        return output::line(&json!({
            "event": "layer", "backend": "cpu", "encrypted": true, "model": plan.model.name,
            "parameters": plan.parameters.name, "security_bits": plan.parameters.security_bits(),
            "random_weights": !plan.has_weights(), "layer": workload.number, "layers": workload.layers,
            "position": workload.position, "slots": program.slots, "threads": threads,
            "seconds": total.seconds, "predicted_seconds": total.predicted_seconds / speedup,
            "parts": parts.iter().map(part).collect::<Vec<Value>>(),
            "precision_bits_min": measured.outputs.map(|found| found.bits_min),
            "precision_bits_mean": measured.outputs.map(|found| found.bits_mean),
            "range_violations": exact.ranges.violations(), "bootstrap_fullest": exact.ranges.fullest_bootstrap(),
            "keys_seconds": keys_seconds, "key_bytes": requirements.key_bytes,
            "needed_bytes": requirements.total_bytes(), "weight_bytes": workload.weight_bytes(),
            "plaintext_bytes": executor.plaintext_bytes(), "peak_rss_bytes": memory::peak_resident_bytes(),
            "token": {"layers_seconds": token.layers_seconds, "rest_seconds": token.rest_seconds,
                "seconds": token.seconds(), "predicted_seconds": predicted_seconds},
        }));
    }
    report(&measured, speedup);
    let peak = memory::peak_resident_bytes().map_or(String::new(), |peak| {
        format!("at most {} resident, {} of them keys", format_bytes(peak), format_bytes(requirements.key_bytes))
    });
    output::rows(&[
        (
            "ranges",
            match exact.ranges.first() {
                None => {
                    format!("kept; the fullest bootstrap had {:.3} of its magnitude", exact.ranges.fullest_bootstrap())
                }
                Some(first) => format!("{} outside; the first: {first}", counted(exact.ranges.violations(), "value")),
            },
        ),
        (
            "outputs",
            precision(measured.outputs).map_or("nothing to compare".to_owned(), |text| text + " (mean, worst)"),
        ),
        (
            "a token",
            format!(
                "{} by extrapolation: {} for {}, {} for the rest; predicted {}",
                output::seconds(token.seconds()),
                output::seconds(token.layers_seconds),
                counted(workload.layers as usize, "layer"),
                output::seconds(token.rest_seconds),
                output::seconds(predicted_seconds)
            ),
        ),
        ("memory", peak),
        ("keys", format!("made in {}", output::seconds(keys_seconds))),
        ("security", security(&plan.parameters)),
    ]);
    Ok(())
}

/// The layer with something to do: what ordinary text leads to where the plan has weights.
fn workload(plans: &Plans, options: &BenchLayer, interrupt: &AtomicBool) -> Result<Workload, Error> {
    let plan = &plans.server;
    let position = options.position.unwrap_or(plan.program.context.saturating_sub(1));
    let mut tokens = plan.program.prefix.clone();
    if plan.has_weights() {
        let texts = Texts::new(&plans.client)?;
        let text = match &plan.model.tokenizer {
            Some(_) => texts.tokenizer().encode(TEXT, false)?,
            None => (0..plan.model.vocabulary).collect(),
        };
        if tokens.is_empty() {
            tokens.extend(texts.tokenizer().prefix()?);
        }
        let missing = (position as usize + 1).saturating_sub(tokens.len());
        tokens.extend(text.iter().cycle().take(missing));
    }
    let bar = output::bar(u64::from(position) + 1, "text in the clear", false);
    let mut progress = |taken: usize| {
        bar.set_position(taken as u64);
        if interrupt.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    };
    let chosen = Options { layer: options.layer, position: Some(position), seed: options.seed };
    let workload = Workload::new(plan, &chosen, &tokens, &mut progress);
    bar.finish_and_clear();
    workload
}

/// Says what is about to happen.
fn announce(
    plans: &Plans,
    workload: &Workload,
    requirements: &cachemir_runtime::setup::Requirements,
    predicted_seconds: f64,
) {
    let plan = &plans.server;
    let weights = if plan.has_weights() { "its own weights" } else { "random weights, inputs and caches" };
    output::rows(&[
        (
            "layer",
            format!(
                "{} of {} of {}, at position {}, with {weights}",
                workload.number, workload.layers, plan.model.name, workload.position
            ),
        ),
        ("security", security(&plan.parameters)),
        (
            "memory",
            format!(
                "{} needed, and {} of weights",
                format_bytes(requirements.total_bytes()),
                format_bytes(workload.weight_bytes())
            ),
        ),
        ("predicted", format!("{} for the layer", output::seconds(predicted_seconds))),
    ]);
}

fn numbers(row: &Row, speedup: f64) -> Value {
    json!({"count": row.count, "seconds": row.seconds, "predicted_seconds": row.predicted_seconds / speedup,
        "precision_bits_min": row.precision.map(|found| found.bits_min),
        "precision_bits_mean": row.precision.map(|found| found.bits_mean)})
}

fn precision(found: Option<Precision>) -> Option<String> {
    found.map(|found| format!("{:.1} bits, {:.1}", found.bits_mean, found.bits_min))
}

/// The table of parts.
fn report(measured: &Measured, speedup: f64) {
    note("part                      ops   seconds  predicted  bits mean  worst");
    let line = |name: &str, row: &Row| {
        let bits = |of: fn(Precision) -> f64| row.precision.map_or("-".to_owned(), |found| format!("{:.1}", of(found)));
        note(&format!(
            "{name:<22}{:>7}{:>10.2}{:>11.2}{:>11}{:>7}",
            row.count,
            row.seconds,
            row.predicted_seconds / speedup,
            bits(|found| found.bits_mean),
            bits(|found| found.bits_min)
        ));
    };
    for (part, row) in measured.parts() {
        line(part.description(), &row);
    }
    line("the layer", &measured.total());
}
