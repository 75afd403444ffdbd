//! The pipeline from an ONNX file to a plan, in one straight line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cachemir_ir::ckks::{CiphertextType, CkksOp};
use cachemir_ir::cost::CostTable;
use cachemir_ir::manifest::KeyManifest;
use cachemir_ir::parameters::Parameters;
use cachemir_ir::plan::{ClientModel, Plan, Provenance};
use cachemir_ir::program::Program;
use cachemir_ir::slots::{SlotOp, SlotType};
use cachemir_ir::tensor::{Interpreter, TensorModel};
use cachemir_ir::verify;

use rand::SeedableRng;
use rand::distr::Distribution;
use rand::distr::weighted::WeightedIndex;
use rand_chacha::ChaCha8Rng;

use crate::import::{self, ImportOptions, ImportedModel, TokenizerFile};
use crate::lower::{self, LowerOptions, LowerReport, Shape};
use crate::{Error, placement, summary};

/// What a user can choose.
#[derive(Clone, Debug)]
pub struct CompileOptions {
    /// `config.json`, if it is not beside the model.
    pub config: Option<PathBuf>,
    /// `tokenizer.json`, if it is not beside the model.
    pub tokenizer: Option<PathBuf>,
    /// Text whose ranges decide the approximations; text sampled from the model itself where absent.
    pub calibration: Option<PathBuf>,
    /// Most tokens in a session; the model's own limit, at most [`DEFAULT_CONTEXT`](crate::import::DEFAULT_CONTEXT), where absent.
    pub context: Option<usize>,
    /// Name of the parameter set.
    pub parameters: String,
}

/// Sequences and tokens in each that are sampled from the model where no calibration text is given.
const SAMPLED_SEQUENCES: usize = 12;
const SAMPLED_TOKENS: usize = 64;

/// Longest sequence of a calibration text; a longer text is cut into several.
const CALIBRATION_TOKENS: usize = 128;

/// A finished compilation.
pub struct Compilation {
    /// The recognised model.
    pub tensor: TensorModel,
    /// The packed program.
    pub slots: Program<SlotOp, SlotType>,
    /// What the plan is made of.
    pub plan: Plan,
    /// How non-linear functions were approximated.
    pub approximations: LowerReport,
    /// Where the plan computes something else than the file would, in sentences.
    pub notes: Vec<String>,
    /// Time that each pass took.
    pub passes: Vec<(&'static str, Duration)>,
}

/// Compiles the model at `path`.
pub fn compile(path: &Path, options: &CompileOptions) -> Result<Compilation, Error> {
    let mut passes = Vec::new();
    let mut started = Instant::now();
    let mut pass = |name| passes.push((name, std::mem::replace(&mut started, Instant::now()).elapsed()));

    let parameters = Parameters::preset(&options.parameters)
        .map_err(|error| Error::BadOption { option: "--params", message: error.to_string() })?;
    let mut imported = import::load(
        path,
        &ImportOptions {
            config: options.config.clone(),
            tokenizer: options.tokenizer.clone(),
            context: options.context,
            shapes_only: false,
        },
    )?;
    let tokenizer = imported
        .tokenizer
        .take()
        .ok_or_else(|| Error::MissingCompanion { file: "tokenizer.json", model: path.to_owned() })?;
    cachemir_ir::tensor::verify(&imported.model)?;
    pass("import");

    let calibration = calibration(&imported, &tokenizer, options)?;
    pass("calibrate");

    let smallest = Shape::smallest(&imported.model.hyperparameters)?.slots;
    let slots = smallest.min(parameters.maximum_slots() as usize);
    let lower_options = LowerOptions { slots: Some(slots), ..LowerOptions::default() };
    let (slots, approximations) = lower::lower(&imported.model, &calibration, &lower_options)?;
    verify::slots(&slots, true)?;
    pass("lower");

    let levels = parameters.levels();
    let mut program: Program<CkksOp, CiphertextType> =
        placement::place(&slots, levels).map_err(|cause| Error::Infeasible { entry: cause.entry, cause })?;
    for entry in &mut program.entries {
        entry.graph.compact();
    }
    verify::ckks(&program, levels)?;
    pass("place");

    let counts = summary::counts(&slots, &program);
    let plan = plan(path, &imported, tokenizer, options, parameters, program, counts);
    pass("assemble");
    let notes = imported.notes;
    Ok(Compilation { tensor: imported.model, slots, plan, approximations, notes, passes })
}

fn plan(
    path: &Path,
    imported: &ImportedModel,
    tokenizer: TokenizerFile,
    options: &CompileOptions,
    parameters: Parameters,
    program: Program<CkksOp, CiphertextType>,
    counts: BTreeMap<String, u64>,
) -> Plan {
    let model = &imported.model;
    let embedding = model.weight_named("embed_tokens").map(|weight| weight.values.clone()).unwrap_or_default();
    let middle = i64::from(program.context) / 2;
    let predicted_ns_per_token = CostTable::built_in(&parameters).predict(&program, "decode", middle);
    let recorded = [
        ("context", program.context.to_string()),
        ("params", options.parameters.clone()),
        ("calibrate", if options.calibration.is_some() { "file" } else { "sampled" }.to_owned()),
    ];
    Plan {
        keys: KeyManifest::of(&program),
        counts,
        model: ClientModel {
            name: name(path),
            tokenizer: tokenizer.bytes,
            vocabulary: model.hyperparameters.vocabulary as u32,
            hidden: model.hyperparameters.hidden as u32,
            embedding,
            bos: imported.bos_token,
            eos: imported.eos_tokens.clone(),
        },
        provenance: Provenance {
            model_hash: model.content_hash(),
            compiler_version: env!("CARGO_PKG_VERSION").to_owned(),
            options: recorded.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<BTreeMap<_, _>>(),
            predicted_ns_per_token,
        },
        parameters,
        program,
    }
}

/// The model's name: the folder it lies in, past the folders that exporters make.
fn name(path: &Path) -> String {
    let generic =
        |name: &str| name == "onnx" || name == "optimum" || name.starts_with("genai") || name.starts_with("dynamo");
    path.ancestors()
        .skip(1)
        .filter_map(Path::file_name)
        .map(|name| name.to_string_lossy().into_owned())
        .find(|name| !generic(name))
        .or_else(|| path.file_stem().map(|stem| stem.to_string_lossy().into_owned()))
        .unwrap_or_default()
}

/// Token sequences whose ranges decide the approximations.
fn calibration(
    imported: &ImportedModel,
    tokenizer: &TokenizerFile,
    options: &CompileOptions,
) -> Result<Vec<Vec<u32>>, Error> {
    match &options.calibration {
        Some(path) => read_calibration(imported, tokenizer, path),
        None => sample(
            &imported.model,
            imported.bos_token.unwrap_or(0),
            imported.model.hyperparameters.context.min(SAMPLED_TOKENS),
        ),
    }
}

fn read_calibration(imported: &ImportedModel, tokenizer: &TokenizerFile, path: &Path) -> Result<Vec<Vec<u32>>, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let tokenizer = tokenizers::Tokenizer::from_bytes(&tokenizer.bytes)
        .map_err(|error| Error::BadCompanion { path: tokenizer.path.clone(), message: error.to_string() })?;
    let longest = imported.model.hyperparameters.context.min(CALIBRATION_TOKENS);
    let mut sequences = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let encoding = tokenizer.encode(line, false).map_err(|error| Error::BadCompanion {
            path: path.to_owned(),
            message: format!("the tokenizer cannot encode it: {error}"),
        })?;
        let room = longest.saturating_sub(usize::from(imported.bos_token.is_some())).max(1);
        for chunk in encoding.get_ids().chunks(room) {
            sequences.push(imported.bos_token.into_iter().chain(chunk.iter().copied()).collect());
        }
    }
    if sequences.is_empty() {
        return Err(Error::BadCompanion { path: path.to_owned(), message: "there is no text in it".to_owned() });
    }
    Ok(sequences)
}

/// Text sampled from the model itself at temperature 1, the same on every machine.
fn sample(model: &TensorModel, first: u32, length: usize) -> Result<Vec<Vec<u32>>, Error> {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut interpreter = Interpreter::new(model)?;
    let mut sequences = Vec::with_capacity(SAMPLED_SEQUENCES);
    for _ in 0..SAMPLED_SEQUENCES {
        interpreter.reset();
        let mut sequence = vec![first];
        while sequence.len() < length {
            let logits = interpreter.step(sequence[sequence.len() - 1])?;
            let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights = logits.iter().map(|logit| (logit - most).exp());
            let next = WeightedIndex::new(weights).map_err(|error| Error::NotLlama {
                node: "lm_head".to_owned(),
                op_type: "MatMul".to_owned(),
                message: format!("its logits are no distribution: {error}"),
            })?;
            sequence.push(next.sample(&mut random) as u32);
        }
        sequences.push(sequence);
    }
    Ok(sequences)
}
