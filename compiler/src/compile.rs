//! The pipeline from an ONNX file to a plan, in one straight line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cachemir_ir::ckks::{CiphertextType, CkksOp};
use cachemir_ir::cost::CostTable;
use cachemir_ir::manifest::KeyManifest;
use cachemir_ir::parameters::Parameters;
use cachemir_ir::plan::{ClientModel, Guard, Plan, Provenance};
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
use crate::{Error, guard, placement, summary};

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

/// Tokens of the vocabulary that bounds on logits are taken from, besides text.
const RANDOM_TOKENS: usize = 1024;

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
    /// What a user should know and nothing else says.
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
    let imported = import::load(
        path,
        &ImportOptions {
            config: options.config.clone(),
            tokenizer: options.tokenizer.clone(),
            context: options.context,
            shapes_only: false,
        },
    )?;
    cachemir_ir::tensor::verify(&imported.model)?;
    pass("import");

    let calibration = calibration(&imported, options)?;
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

    let guard =
        guard::guard(&imported.model, &guarded(&imported, calibration)?, &program.logits, program.slots as usize)?;
    pass("guard");

    let counts = summary::counts(&slots, &program);
    let untokenized = "no tokenizer.json was found beside the model: prompts and answers are token ids (--prompt-ids)";
    let notes = imported.tokenizer.is_none().then(|| untokenized.to_owned()).into_iter().collect();
    let plan = plan(path, &imported, options, parameters, program, guard, counts);
    pass("assemble");
    Ok(Compilation { tensor: imported.model, slots, plan, approximations, notes, passes })
}

fn plan(
    path: &Path,
    imported: &ImportedModel,
    options: &CompileOptions,
    parameters: Parameters,
    program: Program<CkksOp, CiphertextType>,
    guard: Guard,
    counts: BTreeMap<String, u64>,
) -> Plan {
    let model = &imported.model;
    let tokenizer = imported.tokenizer.as_ref();
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
            tokenizer: tokenizer.map(|file| file.bytes.clone()),
            chat: tokenizer.and_then(|file| file.chat.clone()),
            vocabulary: model.hyperparameters.vocabulary as u32,
            hidden: model.hyperparameters.hidden as u32,
            embedding,
            eos: imported.eos_tokens.clone(),
            guard,
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
fn calibration(imported: &ImportedModel, options: &CompileOptions) -> Result<Vec<Vec<u32>>, Error> {
    match &options.calibration {
        Some(path) => read_calibration(imported, path),
        None => {
            let length = imported.model.hyperparameters.context.min(SAMPLED_TOKENS);
            sample(&imported.model, &beginning(imported)?, length)
        }
    }
}

fn read_calibration(imported: &ImportedModel, path: &Path) -> Result<Vec<Vec<u32>>, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let Some(tokenizer) = &imported.tokenizer else {
        let message = "the model has no tokenizer to read it with".to_owned();
        return Err(Error::BadOption { option: "--calibrate", message });
    };
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let longest = imported.model.hyperparameters.context.min(CALIBRATION_TOKENS);
    let prefix = tokenizer.prefix()?;
    let mut sequences = Vec::new();
    for tokens in tokenizer.encode(&lines, path)? {
        // The parts of a long text begin as any text does.
        let text = tokens.strip_prefix(prefix.as_slice()).unwrap_or(&tokens);
        for part in text.chunks(longest.saturating_sub(prefix.len()).max(1)) {
            sequences.push(prefix.iter().chain(part).copied().collect());
        }
    }
    if sequences.is_empty() {
        return Err(Error::BadCompanion { path: path.to_owned(), message: "there is no text in it".to_owned() });
    }
    Ok(sequences)
}

/// How a text begins.
enum Beginning {
    /// With these tokens.
    Tokens(Vec<u32>),
    /// With any token that is likely after this one, which stands between texts.
    After(u32),
}

/// What the tokenizer puts in front of a text. Without that, a text begins with what follows the end of another.
fn beginning(imported: &ImportedModel) -> Result<Beginning, Error> {
    let prefix = imported.tokenizer.as_ref().map(TokenizerFile::prefix).transpose()?.unwrap_or_default();
    if !prefix.is_empty() {
        return Ok(Beginning::Tokens(prefix));
    }
    let separator = imported.eos_tokens.first().copied().or(imported.bos_token);
    Ok(Beginning::After(separator.unwrap_or(0)))
}

/// Sequences from which bounds on logits are taken: the calibration's, text that the model writes itself, and tokens of the
/// vocabulary at random.
fn guarded(imported: &ImportedModel, calibration: Vec<Vec<u32>>) -> Result<Vec<Vec<u32>>, Error> {
    let model = &imported.model;
    let own = sample(model, &beginning(imported)?, model.hyperparameters.context.min(SAMPLED_TOKENS))?;
    let random = lower::shuffled_vocabulary(model, RANDOM_TOKENS);
    Ok(calibration.into_iter().chain(own).chain(random).collect())
}

/// Text sampled from the model itself at temperature 1, the same on every machine.
fn sample(model: &TensorModel, beginning: &Beginning, length: usize) -> Result<Vec<Vec<u32>>, Error> {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut interpreter = Interpreter::new(model)?;
    let mut sequences = Vec::with_capacity(SAMPLED_SEQUENCES);
    let mut draw = |logits: &[f64]| {
        let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights = logits.iter().map(|logit| (logit - most).exp());
        let next = WeightedIndex::new(weights).map_err(|error| Error::NotLlama {
            node: "lm_head".to_owned(),
            op_type: "MatMul".to_owned(),
            message: format!("its logits are no distribution: {error}"),
        })?;
        Ok::<u32, Error>(next.sample(&mut random) as u32)
    };
    for _ in 0..SAMPLED_SEQUENCES {
        interpreter.reset();
        let mut sequence = match beginning {
            Beginning::Tokens(tokens) => tokens.clone(),
            Beginning::After(token) => vec![draw(&interpreter.step(*token)?)?],
        };
        interpreter.reset();
        while sequence.len() < length {
            let mut logits = Vec::new();
            for &token in &sequence[interpreter.position()..] {
                logits = interpreter.step(token)?;
            }
            sequence.push(draw(&logits)?);
        }
        sequences.push(sequence);
    }
    Ok(sequences)
}
