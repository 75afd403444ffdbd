//! Both roles in one process, for each way to execute.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use cachemir_ckks::ring::sampling::Seed;
use cachemir_ckks::{EvaluationKeys, Ring, UniformHalves};
use cachemir_hal::{Backend as _, CpuBackend};
use cachemir_ir::cost::CostTable;
use cachemir_ir::manifest::KeyManifest;
use cachemir_ir::text::counted;
use cachemir_runtime::check::{LayerPrecision, Probe, RangeCheck};
use cachemir_runtime::client::{CheckedCipher, Cipher, ClearCipher, Client, NoisyCipher, SecretCipher};
use cachemir_runtime::executor::{Algebra, Checked, CkksProgram, Clear, ClearCiphertext, Executor, Observer};
use cachemir_runtime::generation::Step;
use cachemir_runtime::server::Server;
use cachemir_runtime::setup::{Engine, Plans, Requirements, plaintext_budget_bytes};
use cachemir_runtime::{Error, executor, memory, setup};
use serde_json::json;
use zeroize::Zeroizing;

use crate::arguments::{Backend, KeyStorage};
use crate::estimate;
use crate::output;
use crate::timing;

/// How to execute, and what is known before it begins.
#[derive(Clone, Debug)]
pub(crate) struct Mode<'a> {
    pub(crate) backend: Backend,
    pub(crate) check: bool,
    /// Whether an execution in the clear has the noise of encryption.
    pub(crate) noise: bool,
    pub(crate) json: bool,
    /// How keys are kept, where the user has a say.
    pub(crate) keys: Option<KeyStorage>,
    /// Seed of a secret key that exists already.
    pub(crate) seed: Option<Zeroizing<Seed>>,
    /// The calls to expect.
    pub(crate) steps: Vec<Step>,
    /// Set when the user asks for an end.
    pub(crate) interrupt: &'a AtomicBool,
}

impl Mode<'_> {
    /// The name of the representation of ciphertexts.
    pub(crate) fn representation(&self) -> &'static str {
        representation(self.backend, self.check, self.noise)
    }
}

/// The name of the representation of ciphertexts in such a run, as saved sessions have it.
pub(crate) fn representation(backend: Backend, check: bool, noise: bool) -> &'static str {
    match (backend, check) {
        (Backend::Clear, _) if noise => executor::NOISY,
        (Backend::Clear, _) => executor::CLEAR,
        (Backend::Cpu, false) => executor::ENCRYPTED,
        (Backend::Cpu, true) => executor::CHECKED,
    }
}

/// What a task is told about its surroundings.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    pub(crate) costs: CostTable,
    /// Time of one transform; `None` in the clear.
    pub(crate) ntt_ns: Option<f64>,
    pub(crate) keys_seconds: Option<f64>,
    pub(crate) requirements: Option<Requirements>,
    /// Predicted time of the expected calls, in nanoseconds on one thread.
    pub(crate) expected_ns: f64,
    /// Seed of the secret key, for the client's own file; all zero in the clear.
    pub(crate) seed: Zeroizing<Seed>,
}

/// What `--check` found.
#[derive(Debug)]
pub(crate) struct Findings {
    pub(crate) ranges: Option<RangeCheck>,
    pub(crate) layers: Vec<LayerPrecision>,
    pub(crate) precision_bits_min: Option<f64>,
    /// Whether every value kept its range and decrypts to what it should.
    pub(crate) verdict: Result<(), Error>,
}

impl Default for Findings {
    fn default() -> Self {
        Self { ranges: None, layers: Vec::new(), precision_bits_min: None, verdict: Ok(()) }
    }
}

/// Something to do with a client and a server, whatever the representation.
pub(crate) trait Task {
    type Output;

    fn run<A, C>(
        self,
        client: &Client<C>,
        server: &Server<'_, A>,
        surroundings: &Surroundings,
        watch: &mut dyn Observer<A::Ciphertext>,
    ) -> Result<Self::Output, Error>
    where
        A: Algebra,
        C: Cipher<Ciphertext = A::Ciphertext>;
}

/// Sets both roles up and runs the task.
pub(crate) fn run<T: Task>(plans: &Plans, mode: &Mode<'_>, task: T) -> Result<(T::Output, Findings), Error> {
    match mode.backend {
        Backend::Clear => run_clear(plans, mode, task),
        Backend::Cpu => run_encrypted(plans, mode, task),
    }
}

fn run_clear<T: Task>(plans: &Plans, mode: &Mode<'_>, task: T) -> Result<(T::Output, Findings), Error> {
    let plan = &plans.server;
    if mode.noise {
        let cipher = NoisyCipher(setup::noisy(plan, CLIENT_NOISE)?);
        run_unencrypted(plans, mode, setup::noisy(plan, SERVER_NOISE)?, cipher, task)
    } else {
        let algebra = Clear::new(plan.program.slots as usize, plan.levels());
        run_unencrypted(plans, mode, algebra, ClearCipher, task)
    }
}

/// Seeds of the noise of either role.
const CLIENT_NOISE: u64 = 1;
const SERVER_NOISE: u64 = 2;

fn run_unencrypted<T, A, C>(
    plans: &Plans,
    mode: &Mode<'_>,
    algebra: A,
    cipher: C,
    task: T,
) -> Result<(T::Output, Findings), Error>
where
    T: Task,
    A: Algebra<Ciphertext = ClearCiphertext>,
    C: Cipher<Ciphertext = ClearCiphertext>,
{
    let plan = &plans.server;
    let name = algebra.name();
    let executor =
        Executor::new(algebra, &plan.program, plan.levels(), plaintext_budget_bytes(None, memory::available_bytes()))?;
    let server = Server::new(executor, plans.client.plan_hash);
    let client = plans.open_client(cipher)?;
    let noise = if mode.noise { ", with the noise that encryption would add" } else { "" };
    let warning = format!("NONE: in the clear{noise}, nothing is encrypted (--backend cpu encrypts)");
    output::rows(&[("model", plan.model.name.clone()), ("encryption", warning)]);
    if mode.json {
        let event = json!({"event": "start", "backend": name, "encrypted": false, "parameters": plan.parameters.name,
            "slots": plan.program.slots, "context": plan.program.context});
        output::line(&event)?;
    }
    let costs = CostTable::built_in(&plan.parameters);
    let expected_ns = estimate::steps_ns(&costs, &plan.program, &mode.steps);
    let surroundings = Surroundings {
        costs,
        ntt_ns: None,
        keys_seconds: None,
        requirements: None,
        expected_ns,
        seed: Zeroizing::default(),
    };
    if mode.check {
        let mut ranges = RangeCheck::default();
        let output = task.run(&client, &server, &surroundings, &mut ranges);
        let verdict = ranges.finish();
        let output = explained(output, &verdict)?;
        Ok((output, Findings { ranges: Some(ranges), verdict, ..Findings::default() }))
    } else {
        Ok((task.run(&client, &server, &surroundings, &mut ())?, Findings::default()))
    }
}

/// Says what went wrong first where the client refuses what came of it.
fn explained<O>(output: Result<O, Error>, verdict: &Result<(), Error>) -> Result<O, Error> {
    match output {
        Err(Error::OutOfRange { position, message, .. }) => {
            Err(Error::OutOfRange { position, message, first: verdict.as_ref().err().map(Error::to_string) })
        }
        other => other,
    }
}

fn run_encrypted<T: Task>(plans: &Plans, mode: &Mode<'_>, task: T) -> Result<(T::Output, Findings), Error> {
    let plan = &plans.server;
    let (program, slots) = (&plan.program, plan.program.slots as usize);
    let halves = mode.keys.map(UniformHalves::from);
    let (engine, requirements, available) = self::engine(&plan.parameters, &plan.keys, program, halves)?;
    let ring = engine.ring();
    let degree = ring.degree();
    let ntt_ns = timing::ntt_ns(degree, ring.parameters().primes()[0]).ok_or_else(|| Error::Engine {
        origin: "timing".to_owned(),
        message: format!("tfhe-ntt has no transform of degree {degree} for the ring's first prime"),
    })?;
    let costs = self::costs(&plan.parameters, ring)?;
    let expected_ns = estimate::steps_ns(&costs, program, &mode.steps);
    let keys_ns = estimate::keys_ns(requirements.key_bytes, degree, costs.transform_ns);
    announce(plans, mode, &engine, &requirements, available, ntt_ns, [keys_ns, expected_ns])?;

    let encoder = engine.encoder().clone();
    let cipher = match &mode.seed {
        Some(seed) => SecretCipher::from_seed(encoder, seed.clone()),
        None => SecretCipher::generate(encoder)?,
    };
    let begin = Instant::now();
    let keys = evaluation_keys(&cipher, &engine, requirements.key_bytes, mode.interrupt)?;
    let algebra = engine.algebra(keys, slots)?;
    let keys_seconds = begin.elapsed().as_secs_f64();
    let made = format!("{} in {}", memory::format_bytes(requirements.key_bytes), output::seconds(keys_seconds));
    output::rows(&[("keys", made)]);
    if mode.json {
        output::line(&json!({"event": "keys", "bytes": requirements.key_bytes, "seconds": keys_seconds}))?;
    }
    let surroundings = Surroundings {
        costs,
        ntt_ns: Some(ntt_ns),
        keys_seconds: Some(keys_seconds),
        requirements: Some(requirements),
        expected_ns,
        seed: Zeroizing::new(*cipher.seed()),
    };
    let budget = plaintext_budget_bytes(Some(&requirements), available);
    let hash = plans.client.plan_hash;
    if mode.check {
        let algebra = Checked::new(algebra, Clear::new(slots, plan.levels()));
        let server = Server::new(Executor::new(algebra, program, plan.levels(), budget)?, hash);
        let client = plans.open_client(CheckedCipher(&cipher, ClearCipher))?;
        let mut watch = (RangeCheck::default(), Probe::new(&cipher));
        let output = task.run(&client, &server, &surroundings, &mut watch);
        let (ranges, probe) = watch;
        let verdict = ranges.finish().and_then(|()| probe.finish());
        let output = explained(output, &verdict)?;
        let precision_bits_min = probe.precision_bits_min();
        Ok((output, Findings { ranges: Some(ranges), layers: probe.layers().to_vec(), precision_bits_min, verdict }))
    } else {
        let server = Server::new(Executor::new(algebra, program, plan.levels(), budget)?, hash);
        let client = plans.open_client(&cipher)?;
        Ok((task.run(&client, &server, &surroundings, &mut ())?, Findings::default()))
    }
}

/// The engine for a program that uses these keys, the memory that a run needs, and what is available. Where that is less and
/// the user has no say, keys are kept in half the memory.
pub(crate) fn engine(
    parameters: &cachemir_ir::parameters::Parameters,
    keys: &KeyManifest,
    program: &CkksProgram,
    halves: Option<UniformHalves>,
) -> Result<(Engine<CpuBackend>, Requirements, Option<u64>), Error> {
    let with = |halves| {
        let engine = Engine::with_keys(parameters, keys, program.slots as usize, halves)?;
        let requirements = engine.requirements(program);
        Ok::<_, Error>((engine, requirements))
    };
    let (mut engine, mut requirements) = with(halves)?;
    let available = memory::available_bytes();
    if let Some(available) = available {
        if requirements.check(available).is_err() && halves.is_none() {
            (engine, requirements) = with(Some(UniformHalves::Seeded))?;
        }
        requirements.check(available)?;
    }
    Ok((engine, requirements, available))
}

/// The cost table, carried over to this machine.
pub(crate) fn costs(
    parameters: &cachemir_ir::parameters::Parameters,
    ring: &Ring<CpuBackend>,
) -> Result<CostTable, Error> {
    Ok(CostTable::built_in(parameters).carried_over(estimate::transform_ns(ring)?))
}

/// Makes a client's evaluation keys, and shows progress.
pub(crate) fn evaluation_keys(
    cipher: &SecretCipher<CpuBackend>,
    engine: &Engine<CpuBackend>,
    key_bytes: u64,
    interrupt: &AtomicBool,
) -> Result<EvaluationKeys<CpuBackend>, Error> {
    let bar = output::bar(key_bytes, "evaluation keys", true);
    let keys = cipher.evaluation_keys(engine.key_manifest(), |made, _| {
        bar.set_position(made);
        if interrupt.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.finish_and_clear();
    keys
}

/// What reports say of an execution in the clear instead of its security.
pub(crate) const NOTHING_ENCRYPTED: &str = "in the clear, nothing was encrypted";

/// The security of a parameter set in words, which every report repeats.
pub(crate) fn security(parameters: &cachemir_ir::parameters::Parameters) -> String {
    format!("{}, {}", parameters.name, parameters.security())
}

/// Says what is about to happen, how long it may take, and how much memory it needs.
fn announce(
    plans: &Plans,
    mode: &Mode<'_>,
    engine: &Engine<CpuBackend>,
    requirements: &Requirements,
    available: Option<u64>,
    ntt_ns: f64,
    [keys_ns, expected_ns]: [f64; 2],
) -> Result<(), Error> {
    let plan = &plans.server;
    let threads = rayon::current_num_threads();
    let ring = engine.ring();
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
    if mode.json {
        output::line(&json!({
            "event": "start", "backend": "cpu", "encrypted": true, "parameters": plan.parameters.name,
            "security_bits": plan.parameters.security_bits(), "slots": plan.program.slots,
            "context": plan.program.context, "threads": threads, "ntt_ns": ntt_ns,
            "key_bytes": requirements.key_bytes, "needed_bytes": requirements.total_bytes(),
            "available_bytes": available, "estimated_seconds": estimated_seconds,
        }))?;
    }
    Ok(())
}
