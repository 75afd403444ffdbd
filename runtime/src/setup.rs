//! From a plan to a running client and server.

use std::collections::BTreeSet;
use std::path::Path;

use cachemir_ckks::circuits::bootstrapping::{BootstrapPlan, Bootstrapper};
use cachemir_ckks::rlwe::keys::KeyManifest;
use cachemir_ckks::{Encoder, EvaluationKeys, Evaluator, Parameters, Ring, UniformHalves};
use cachemir_hal::{Backend, CpuBackend};
use cachemir_ir::ckks::{CiphertextType, CkksOp};
use cachemir_ir::graph::{OpId, Region};
use cachemir_ir::plan::{ClientPlan, Plan, client_path};
use cachemir_ir::program::State;

use crate::Error;
use crate::client::check_levels;
use crate::executor::{CkksProgram, Encrypted, Noisy, Schedule, slot_kind};
use crate::files;

/// A plan with its client's part and its hash.
#[derive(Debug)]
pub struct Plans {
    /// The server's plan.
    pub server: Plan,
    /// The client's plan.
    pub client: ClientPlan,
}

impl Plans {
    /// Both parts of a plan that was just compiled.
    pub fn of(plan: Plan) -> Result<Self, Error> {
        let invalid = |source: cachemir_ir::Error| Error::PlanInvalid(source.to_string());
        let hash = plan.hash().map_err(invalid)?;
        Ok(Self { client: plan.client(hash), server: plan })
    }

    /// Opens a plan and the client file beside it, and checks both but for the bytes of weights, which are checked when they
    /// are used.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source: cachemir_ir::Error| match source {
                cachemir_ir::Error::File { source, .. } => Error::PlanUnreadable { path, source },
                other => Error::PlanInvalid(format!("{}: {other}", path.display())),
            }
        };
        let server = Plan::read(path).map_err(failed(path))?;
        let hash = Plan::hash_of_file(path).map_err(failed(path))?;
        let client_file = client_path(path);
        let client = ClientPlan::read(&client_file).map_err(failed(&client_file))?;
        if client.plan_hash != hash {
            let text = |hash: &[u8; 32]| blake3::Hash::from_bytes(*hash).to_hex()[..16].to_owned();
            let (expected, found) = (text(&client.plan_hash), text(&hash));
            return Err(Error::PlanMismatch { path: client_file, expected, found });
        }
        Ok(Self { server, client })
    }
}

/// The engine's parts for a plan, ahead of any key: everything here is cheap but for the tables of the ring.
pub struct Engine<B: Backend> {
    evaluator: Evaluator<B>,
    bootstraps: Vec<BootstrapPlan>,
    manifest: KeyManifest,
}

/// Bytes of memory that an encrypted run needs, by use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requirements {
    /// Evaluation keys.
    pub key_bytes: u64,
    /// Encoded matrices of the bootstraps.
    pub matrix_bytes: u64,
    /// All elements of the state arrays.
    pub state_bytes: u64,
    /// Most ciphertexts and decompositions that live at once, the inside of a bootstrap, and buffers kept for reuse.
    pub working_bytes: u64,
}

impl Requirements {
    /// The sum of all uses; encoded plaintexts take what is left over.
    pub fn total_bytes(&self) -> u64 {
        self.key_bytes + self.matrix_bytes + self.state_bytes + self.working_bytes
    }

    /// Fails where less than the total is available.
    pub fn check(&self, available_bytes: u64) -> Result<(), Error> {
        if self.total_bytes() <= available_bytes {
            Ok(())
        } else {
            Err(Error::Memory { needed_bytes: self.total_bytes(), available_bytes })
        }
    }
}

/// Most memory that is spent on plaintexts that stay encoded between tokens, in bytes.
const MAXIMUM_PLAINTEXT_BYTES: u64 = 1 << 30;

/// Most memory that is spent on bootstraps' first matrices, of which there is one for each mask, in bytes.
const ENTRY_BUDGET_BYTES: u64 = 512 << 20;

/// Memory that is left to others, in bytes.
const RESERVE_BYTES: u64 = 512 << 20;

impl Engine<CpuBackend> {
    /// The engine for a plan on this machine's processor. Keys keep their uniform halves as told, or as suits the
    /// processor.
    pub fn new(plan: &Plan, halves: Option<UniformHalves>) -> Result<Self, Error> {
        Self::with_keys(&plan.parameters, &plan.keys, plan.program.slots as usize, halves)
    }

    /// The engine for a program that uses these keys, and the memory that a run needs. Keys take the space that they are told
    /// to; if nothing is told and the memory is too little, less.
    pub fn fitting(
        parameters: &cachemir_ir::parameters::Parameters,
        keys: &cachemir_ir::manifest::KeyManifest,
        program: &CkksProgram,
        halves: Option<UniformHalves>,
        available_bytes: Option<u64>,
    ) -> Result<(Self, Requirements), Error> {
        let new = |halves| {
            let engine = Self::with_keys(parameters, keys, program.slots as usize, halves)?;
            let requirements = engine.requirements(program);
            Ok::<_, Error>((engine, requirements))
        };
        let (mut engine, mut requirements) = new(halves)?;
        if let Some(available) = available_bytes {
            if requirements.check(available).is_err() && halves.is_none() {
                (engine, requirements) = new(Some(UniformHalves::Seeded))?;
            }
            requirements.check(available)?;
        }
        Ok((engine, requirements))
    }

    /// The engine for programs of `slots` slots that use these keys.
    pub fn with_keys(
        parameters: &cachemir_ir::parameters::Parameters,
        keys: &cachemir_ir::manifest::KeyManifest,
        slots: usize,
        halves: Option<UniformHalves>,
    ) -> Result<Self, Error> {
        let mut ring = Ring::new(engine_parameters(parameters)?)?;
        if let Some(halves) = halves {
            ring = ring.with_uniform_halves(halves);
        }
        check_levels(&ring, parameters.levels())?;
        let bootstraps = bootstrap_plans(ring.parameters(), keys, slots)?;
        let levels = |levels: &BTreeSet<u32>| levels.iter().map(|&level| level as usize).collect::<Vec<_>>();
        let mut manifest = KeyManifest::default();
        for (&by, at) in &keys.rotations {
            manifest.require_rotation(by as usize, levels(at));
        }
        manifest.require_conjugation(levels(&keys.conjugation));
        manifest.require_relinearisation(levels(&keys.relinearisation));
        for bootstrap in &bootstraps {
            manifest.merge(&bootstrap.key_manifest());
            // Where one kind serves both, the imaginary parts are dropped after the bootstrap.
            manifest.require_conjugation([bootstrap.output_level()]);
        }
        manifest.check(ring.parameters())?;
        Ok(Self { evaluator: Evaluator::new(Encoder::new(ring)), bootstraps, manifest })
    }
}

impl<B: Backend> Engine<B> {
    /// The ring.
    pub fn ring(&self) -> &Ring<B> {
        self.evaluator.ring()
    }

    /// The encoder.
    pub fn encoder(&self) -> &Encoder<B> {
        self.evaluator.encoder()
    }

    /// All keys that a run uses, those inside bootstraps included.
    pub fn key_manifest(&self) -> &KeyManifest {
        &self.manifest
    }

    /// The memory that a run needs.
    pub fn requirements(&self, program: &CkksProgram) -> Requirements {
        let parameters = self.ring().parameters();
        let limb_bytes = (parameters.degree() * size_of::<u64>()) as u64;
        let mut matrix_bytes = 0;
        for bootstrap in &self.bootstraps {
            // A mask on the first matrix may leave it without a period.
            if let Some(first) = bootstrap.slots_to_coefficients().first() {
                matrix_bytes += first.matrix.diagonals().len() as u64 * (first.level as u64 + 1) * limb_bytes;
            }
            let rest = bootstrap.slots_to_coefficients().iter().skip(1).chain(bootstrap.coefficients_to_slots());
            matrix_bytes += rest.map(|factor| factor.bytes(parameters)).sum::<u64>();
        }
        let ciphertext_bytes = |level| ciphertext_bytes(parameters, level);
        // Two dozen ciphertexts modulo QP: digits and sums of giant steps in CoeffsToSlots, later the powers of EvalMod.
        let full = (parameters.primes().len() + parameters.special_primes().len()) as u64;
        let inside_bootstrap = if self.bootstraps.is_empty() { 0 } else { 24 * 2 * full * limb_bytes };
        let live = program.entries.iter().map(|entry| {
            let schedule = Schedule::new(&entry.graph);
            let digit_bytes = |level: u32| {
                let gadget = parameters.gadget(level as usize);
                (gadget.digits(level as usize) * (level as usize + 1 + gadget.special)) as u64 * limb_bytes
            };
            peak_live_bytes(entry, &schedule, program.slots, &ciphertext_bytes, &digit_bytes)
        });
        let working = live.max().unwrap_or(0) + inside_bootstrap;
        Requirements {
            key_bytes: self.manifest.key_bytes(parameters, self.ring().uniform_halves()),
            matrix_bytes,
            state_bytes: session_bytes(parameters, program, program.context as usize),
            // Released buffers are kept for reuse, and are of other lengths than what lives.
            working_bytes: working + working.min(cachemir_hal::RETAINED_BYTES as u64),
        }
    }

    /// The server's arithmetic under a client's keys. Encodes the bootstraps' matrices.
    pub fn algebra(self, keys: EvaluationKeys<B>, slots: usize) -> Result<Encrypted<B>, Error> {
        let mut bootstrappers = Vec::new();
        for plan in self.bootstraps {
            bootstrappers.push(Bootstrapper::with_plan(&self.evaluator, plan)?);
        }
        Ok(Encrypted::new(self.evaluator, keys, bootstrappers, slots, ENTRY_BUDGET_BYTES))
    }
}

/// Bytes that encoded plaintexts may take, given what else is needed.
pub fn plaintext_budget_bytes(requirements: Option<&Requirements>, available_bytes: Option<u64>) -> usize {
    let needed = requirements.map_or(0, Requirements::total_bytes);
    let left =
        available_bytes.map_or(MAXIMUM_PLAINTEXT_BYTES, |available| available.saturating_sub(needed + RESERVE_BYTES));
    left.min(MAXIMUM_PLAINTEXT_BYTES) as usize
}

/// Bytes of a ciphertext of a level.
fn ciphertext_bytes(parameters: &Parameters, level: u32) -> u64 {
    2 * u64::from(level + 1) * (parameters.degree() * size_of::<u64>()) as u64
}

/// Bytes of what the state arrays hold after so many tokens, of which each element takes in equally many.
pub fn session_bytes(parameters: &Parameters, program: &CkksProgram, tokens: usize) -> u64 {
    let state = |state: &State| {
        let held = (state.capacity as usize * tokens).div_ceil(program.context as usize);
        held as u64 * ciphertext_bytes(parameters, state.level.unwrap_or(0))
    };
    program.states.iter().map(state).sum()
}

/// Fails where a file that begins with `kind` could not be written at this path, so that nobody computes in vain, or would
/// take the place of another kind's.
pub fn check_writable(path: &Path, kind: &[u8]) -> Result<(), Error> {
    cachemir_ir::files::check_writable(path, kind).map_err(|source| Error::Unwritable { path: path.to_owned(), source })
}

/// Writes a text file at once: it is never seen half written.
pub fn write_text(path: &Path, text: &str) -> Result<(), Error> {
    files::write_text(path, text)
}

/// The engine's parameters for a plan's.
pub fn engine_parameters(parameters: &cachemir_ir::parameters::Parameters) -> Result<Parameters, Error> {
    Parameters::new(parameters.clone()).map_err(|source| Error::PlanInvalid(source.to_string()))
}

/// The bootstraps that programs of `slots` slots with these keys use.
fn bootstrap_plans(
    parameters: &Parameters,
    keys: &cachemir_ir::manifest::KeyManifest,
    slots: usize,
) -> Result<Vec<BootstrapPlan>, Error> {
    let kinds: BTreeSet<bool> = keys.bootstraps.iter().map(|variant| variant.complex).collect();
    let plans = kinds.into_iter().map(|complex| BootstrapPlan::new(parameters, slots, slot_kind(complex)));
    Ok(merge_kinds(parameters, plans.collect::<Result<_, _>>()?))
}

/// Arithmetic in the clear with the noise that this plan's encryption would add; equal seeds give equal noise.
pub fn noisy(plan: &Plan, seed: u64) -> Result<Noisy, Error> {
    let (parameters, slots) = (engine_parameters(&plan.parameters)?, plan.program.slots as usize);
    let bootstraps = bootstrap_plans(&parameters, &plan.keys, slots)?;
    Ok(Noisy::new(slots, plan.levels(), parameters, &bootstraps, seed))
}

/// How much more a complex bootstrap may cost than a real one and still serve both kinds.
const COMPLEX_FOR_REAL: f64 = 1.2;

/// Drops the plan of real bootstraps where the complex one is about as cheap: a second set of encoded matrices costs more
/// memory than it is worth. With few slots, both evaluate the modular reduction once.
fn merge_kinds(parameters: &Parameters, mut plans: Vec<BootstrapPlan>) -> Vec<BootstrapPlan> {
    let units = |complex| {
        let plan = plans.iter().find(|plan| plan.kind() == slot_kind(complex));
        plan.map(|plan| plan.cost(parameters).ntt_units())
    };
    if let (Some(real), Some(complex)) = (units(false), units(true))
        && complex <= COMPLEX_FOR_REAL * real
    {
        plans.retain(|plan| plan.kind() == slot_kind(true));
    }
    plans
}

/// Most bytes of ciphertexts and decompositions that live at once while an entry point runs.
fn peak_live_bytes(
    entry: &cachemir_ir::program::Entry<CkksOp, CiphertextType>,
    schedule: &Schedule,
    slots: u32,
    ciphertext_bytes: &dyn Fn(u32) -> u64,
    digit_bytes: &dyn Fn(u32) -> u64,
) -> u64 {
    fn visit(graph: &cachemir_ir::ckks::CkksGraph, block: &Region, walk: &mut dyn FnMut(OpId)) {
        for &op in &block.ops {
            if let Some(region) = &graph.node(op).region {
                visit(graph, region, walk);
            }
            walk(op);
        }
    }
    let graph = &entry.graph;
    let size = |value: &cachemir_ir::graph::ValueId| {
        let level = graph.ty(*value).level;
        ciphertext_bytes(level) + if schedule.is_hoisted(*value) { digit_bytes(level) } else { 0 }
    };
    let mut live: u64 = graph.inputs.iter().map(size).sum();
    let mut peak = live;
    let mut walk = |op: OpId| {
        live += graph.node(op).results.iter().map(size).sum::<u64>();
        let inside = match (&graph.node(op).op, graph.node(op).inputs.first()) {
            (CkksOp::Linear(linear), Some(operand)) => {
                let level = graph.ty(*operand).level;
                u64::from(linear.live_vectors(slots)) * ciphertext_bytes(level) + digit_bytes(level)
            }
            _ => 0,
        };
        peak = peak.max(live + inside);
        live = live.saturating_sub(schedule.dead_after(op).iter().map(size).sum());
    };
    visit(graph, &graph.body, &mut walk);
    peak
}
