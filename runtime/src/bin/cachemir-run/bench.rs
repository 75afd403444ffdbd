//! `cachemir-run bench`

use std::ops::ControlFlow;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use cachemir_ckks::circuits::bootstrapping::Bootstrapper;
use cachemir_ckks::rlwe::keys::KeyManifest;
use cachemir_ckks::{CkksError, Encoder, Encryptor, Evaluator, KeyGenerator, Ring};
use cachemir_hal::{Backend as _, CpuBackend, HalError};
use cachemir_ir::cost::{BootstrapCost, COST_TABLE_VERSION, CostKind, CostPoint, CostTable};
use cachemir_ir::parameters::Parameters;
use cachemir_runtime::client::sampling::{Sampler, Sampling};
use cachemir_runtime::client::{Cipher, ClearCipher, Client};
use cachemir_runtime::executor::{Algebra, Observer, slot_kind};
use cachemir_runtime::generation::{Generation, Request, generate, steps};
use cachemir_runtime::server::Server;
use cachemir_runtime::setup::{Plans, engine_parameters};
use cachemir_runtime::{Error, memory};

use crate::arguments::{Backend, BenchOps, BenchPlan};
use crate::estimate;
use crate::generate::summary;
use crate::output::{self, Screen, ScreenOptions, note};
use crate::roles::{self, Mode, Surroundings, Task, security};

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
    let mut tokens = client.tokenizer().encode(TEXT, plans.client.model.bos)?;
    let text = client.tokenizer().encode(TEXT, None)?;
    while tokens.len() < wanted && !text.is_empty() {
        tokens.extend(&text);
    }
    tokens.truncate(wanted);
    let mut expected = steps(0, tokens.len(), client.chunk());
    expected.extend(steps(tokens.len(), tokens.len() + options.count.saturating_sub(1), None));
    let request = Request { tokens, count: options.count, stop_at_end: false };
    let mode = Mode { backend: options.backend, check: false, json: false, seed: None, steps: expected, interrupt };
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
    note(&format!(
        "{:.1} bootstraps and {:.0} rotations a token; at most {} resident{}; {}",
        object["bootstraps_per_token"].as_f64().unwrap_or(0.0),
        object["rotations_per_token"].as_f64().unwrap_or(0.0),
        memory::peak_resident_bytes().map_or("?".to_owned(), memory::format_bytes),
        surroundings.ntt_ns.map_or(String::new(), |ns| format!("; one NTT {:.1} µs", ns / 1e3)),
        security(&plans.server.parameters),
    ));
    Ok(())
}

fn engine(error: &dyn std::fmt::Display) -> Error {
    Error::Engine { origin: "bench ops".to_owned(), message: error.to_string() }
}

/// Median time of an operation in nanoseconds, after one run that is not counted.
fn measure<T>(ring: &Ring<CpuBackend>, mut operation: impl FnMut() -> Result<T, CkksError>) -> Result<f64, Error> {
    let synchronise = || ring.backend().synchronise().map_err(|error: HalError| engine(&error));
    operation()?;
    let mut times = Vec::new();
    let begin = Instant::now();
    while times.len() < 3 || (times.len() < 25 && begin.elapsed().as_secs_f64() < 1.0) {
        let begin = Instant::now();
        operation()?;
        synchronise()?;
        times.push(begin.elapsed().as_secs_f64() * 1e9);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// Measures each operation at several levels, and the bootstraps.
pub(crate) fn ops(options: &BenchOps) -> Result<(), Error> {
    let preset = Parameters::preset(&options.params)
        .map_err(|error| Error::BadOption { option: "--params", message: error.to_string() })?;
    let ring = Ring::<CpuBackend>::new(engine_parameters(&preset)?)?;
    let encoder = Encoder::new(ring.clone());
    let evaluator = Evaluator::new(encoder.clone());
    let generator = KeyGenerator::new(ring.clone());
    let secret = generator.secret_key()?;
    let top = preset.levels().output;
    let slots = 1_usize << options.log2_slots.min(preset.log2_degree - 1);
    let ntt_ns = estimate::ntt_ns(&ring)?;
    let threads = rayon::current_num_threads();
    note(&format!(
        "{}; {} on {threads} threads; one NTT {:.1} µs",
        security(&preset),
        ring.backend().description(),
        ntt_ns / 1e3
    ));

    let mut table = CostTable {
        format_version: COST_TABLE_VERSION,
        provenance: format!(
            "measured by cachemir-run bench ops: {}, {threads} threads, one NTT {:.1} µs",
            ring.backend().description(),
            ntt_ns / 1e3
        ),
        parameters: preset.name.clone(),
        by_level: [
            CostKind::Add,
            CostKind::Multiply,
            CostKind::MultiplyPlain,
            CostKind::Encode,
            CostKind::Rescale,
            CostKind::Rotate,
        ]
        .map(|kind| (kind, Vec::new()))
        .into(),
        bootstraps: Vec::new(),
    };
    let mut manifest = KeyManifest::default();
    manifest.require_rotation(1, top as usize);
    manifest.require_relinearisation(top as usize);
    let keys = generator.evaluation_keys(&secret, &manifest, |_, _| ControlFlow::Continue(()))?;
    let encryptor = Encryptor::with_secret_key(ring.clone(), &secret);
    let values: Vec<f64> = (0..slots).map(|slot| (slot as f64).sin() / 2.0).collect();
    for level in [1, 4, 7, 10, 13, top].into_iter().filter(|&level| level <= top) {
        let index = level as usize;
        let scale = ring.parameters().canonical_scale(index);
        let plain = encoder.encode_real(&values, index, scale)?;
        let a = encryptor.encrypt(&plain)?;
        let product = evaluator.mul_plain(&a, &plain)?;
        let mut record = |kind, ns| {
            table.by_level.entry(kind).or_default().push(CostPoint { level, ns });
            note(&format!(
                "level {level:>2}  {:<14} {:>9.3} ms = {:>6.0} NTTs",
                format!("{kind:?}"),
                ns / 1e6,
                ns / ntt_ns
            ));
        };
        record(CostKind::Add, measure(&ring, || evaluator.add(&a, &a))?);
        record(CostKind::Multiply, measure(&ring, || evaluator.mul(&a, &a, &keys))?);
        record(CostKind::MultiplyPlain, measure(&ring, || evaluator.mul_plain(&a, &plain))?);
        record(CostKind::Encode, measure(&ring, || encoder.encode_real(&values, index, scale))?);
        record(CostKind::Rescale, measure(&ring, || evaluator.rescale(&product))?);
        record(CostKind::Rotate, measure(&ring, || evaluator.rotate(&a, 1, &keys))?);
    }
    drop(keys);
    if !options.no_bootstraps {
        for complex in [false, true] {
            let bootstrapper = Bootstrapper::new(&evaluator, slots, slot_kind(complex))?;
            let manifest = bootstrapper.key_manifest();
            let bar = output::bar(manifest.key_bytes(ring.parameters()), "evaluation keys", true);
            let keys = generator.evaluation_keys(&secret, &manifest, |made, _| {
                bar.set_position(made);
                ControlFlow::Continue(())
            })?;
            bar.finish_and_clear();
            let entry = bootstrapper.prepare_entry(&evaluator, None, 0)?;
            let level = preset.levels().bootstrap_input as usize;
            let plain = encoder.encode_real(&values, level, ring.parameters().canonical_scale(level))?;
            let a = encryptor.encrypt(&plain)?;
            let ns = measure(&ring, || bootstrapper.bootstrap(&evaluator, &keys, &entry, &a))?;
            table.bootstraps.push(BootstrapCost { complex, log2_slots: slots.ilog2(), ns });
            let kind = if complex { "complex" } else { "real" };
            note(&format!("bootstrap of {slots} {kind} slots {:>9.3} ms = {:>6.0} NTTs", ns / 1e6, ns / ntt_ns));
        }
    }
    if let Some(path) = &options.emit_cost {
        std::fs::write(path, table.to_json()).map_err(|source| Error::Unwritable { path: path.clone(), source })?;
    }
    if options.json {
        let table = serde_json::to_value(&table).map_err(|error| engine(&error))?;
        output::line(&serde_json::json!({"event": "bench", "ntt_ns": ntt_ns, "threads": threads, "costs": table}))?;
    }
    Ok(())
}
