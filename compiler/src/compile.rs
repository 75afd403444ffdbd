//! The pipeline from an ONNX file to a plan, in one straight line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cachemir_ir::ckks::{CiphertextType, CkksOp};
use cachemir_ir::cost::CostTable;
use cachemir_ir::manifest::KeyManifest;
use cachemir_ir::operations::middle;
use cachemir_ir::parameters::{PRESETS, Parameters};
use cachemir_ir::plan::{CallCounts, ClientModel, Guard, Plan, Provenance};
use cachemir_ir::program::{Entry, EntryPoint, Program};
use cachemir_ir::slots::{SlotOp, SlotType};
use cachemir_ir::tensor::TensorModel;
use cachemir_ir::text::counted;
use cachemir_ir::verify;

use crate::calibration::{self, Calibration};
use crate::import::{self, ImportOptions, ImportedModel};
use crate::lower::{LowerOptions, LowerReport, Shape, Survey};
use crate::progress::{Observer, Pass};
use crate::{Error, deepen, guard, locate, packing, summary};

/// Text that every session of a plan begins with. The server knows it, and the plan holds its keys and values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicPrefix {
    /// This text.
    Text(String),
    /// What the model's chat template writes ahead of the first message.
    Chat,
}

impl PublicPrefix {
    /// Its tokens in a model that has a tokenizer.
    fn tokens(&self, imported: &ImportedModel) -> Result<Vec<u32>, Error> {
        let option = match self {
            Self::Text(_) => "--public-prefix",
            Self::Chat => "--chat",
        };
        let bad = |message: String| Error::BadOption { option, message };
        let tokenizer =
            imported.tokenizer.as_ref().ok_or_else(|| bad("the model has no tokenizer to read it with".to_owned()))?;
        let tokens = match self {
            // Some tokenizers put a token in front of any text.
            Self::Text(text) if text.is_empty() => Vec::new(),
            Self::Text(text) => tokenizer.encode(&[text.as_str()], &tokenizer.path)?.concat(),
            Self::Chat => tokenizer.constant_beginning()?,
        };
        let context = imported.model.hyperparameters.context;
        match tokens.len() {
            0 => Err(bad("there is no token in it".to_owned())),
            length if length >= context => Err(bad(format!(
                "its {} leave no room in a context of {context}; raise --context",
                counted(length, "token")
            ))),
            _ => Ok(tokens),
        }
    }
}

/// What a user can choose.
#[derive(Clone, Debug)]
pub struct CompileOptions {
    /// `config.json`, if it is not beside the model.
    pub config: Option<PathBuf>,
    /// `tokenizer.json`, if it is not beside the model.
    pub tokenizer: Option<PathBuf>,
    /// Text whose ranges decide the approximations; text sampled from the model itself where absent.
    pub calibration: Option<PathBuf>,
    /// What every session begins with, known to the server; nothing where absent.
    pub prefix: Option<PublicPrefix>,
    /// Most tokens in a session; the model's own limit, at most [`DEFAULT_CONTEXT`](crate::import::DEFAULT_CONTEXT), where absent.
    pub context: Option<usize>,
    /// Name of the parameter set, one of [`PRESET_NAMES`](cachemir_ir::parameters::PRESET_NAMES).
    pub parameters: String,
    /// A cost table in JSON, as `cachemir-run bench ops --emit-cost` writes it, by which the plan is packed, placed and
    /// predicted; the built-in one where absent.
    pub cost_table: Option<PathBuf>,
    /// Whether the graph alone is compiled, whose weights may be missing: ranges are assumed, and the plan has no weights
    /// and takes no tokens.
    pub shapes_only: bool,
}

impl Default for CompileOptions {
    /// The files beside the model, ranges of text that it writes itself, 128-bit parameters.
    fn default() -> Self {
        Self {
            config: None,
            tokenizer: None,
            calibration: None,
            prefix: None,
            context: None,
            parameters: PRESETS[0].name.to_owned(),
            cost_table: None,
            shapes_only: false,
        }
    }
}

/// What a plan that was compiled from shapes alone says of itself.
const WITHOUT_WEIGHTS: &str = "compiled from the graph alone, without weights: ranges are assumed, and the plan takes no \
                               tokens; `cachemir-run bench layer` measures a layer of it with random weights";

/// A finished compilation.
pub struct Compilation {
    /// The recognised model.
    pub tensor: TensorModel,
    /// The packed program.
    pub slots: Program<SlotOp, SlotType>,
    /// What the plan is made of.
    pub plan: Plan,
    /// The prices by which it was packed, placed and predicted.
    pub costs: CostTable,
}

/// Compiles the model at `path`, an ONNX file.
pub fn compile(path: impl AsRef<Path>, options: &CompileOptions) -> Result<Compilation, Error> {
    compile_watched(path.as_ref(), options, &())
}

/// [`compile`], seen by an observer.
pub fn compile_watched(path: &Path, options: &CompileOptions, observer: &dyn Observer) -> Result<Compilation, Error> {
    let parameters = Parameters::preset(&options.parameters)
        .map_err(|error| Error::BadOption { option: "--params", message: error.to_string() })?;
    if options.shapes_only && (options.prefix.is_some() || options.calibration.is_some()) {
        let message = "a public prefix and calibration text need a model that has its weights".to_owned();
        return Err(Error::BadOption { option: "--shapes-only", message });
    }
    let costs = cost_table(options.cost_table.as_deref(), &parameters)?;
    observer.begin(Pass::Import);
    let mut imported = import::load(
        path,
        &ImportOptions {
            config: options.config.clone(),
            tokenizer: options.tokenizer.clone(),
            context: options.context,
            shapes_only: options.shapes_only,
        },
    )?;
    cachemir_ir::tensor::verify(&imported.model)?;
    observer.model(&imported.model)?;

    let prefix = options.prefix.as_ref().map(|prefix| prefix.tokens(&imported)).transpose()?.unwrap_or_default();
    let chat = options.prefix == Some(PublicPrefix::Chat);
    let calibration = if options.shapes_only {
        Calibration::default()
    } else {
        Calibration::of(&imported, options.calibration.as_deref(), prefix, chat, observer)?
    };
    imported.notes.extend(calibration.note());

    let levels = parameters.levels();
    let costs = costs.for_weights(imported.model.linear_weights());
    let options_for = |shape: &Shape| LowerOptions {
        rounding: parameters.rounding_deviation(shape.slots),
        calibration_tokens: calibration::slot_tokens(&imported.model),
        ..LowerOptions::default()
    };
    let survey = Survey::new(&imported.model, &calibration, &LowerOptions::default(), observer)?;
    let shapes = survey.shapes(parameters.maximum_slots() as usize)?;
    let shape = packing::fastest(&survey, &shapes, levels, &costs, &options_for(&shapes[0]), observer);
    let (mut slots, mut report) = survey.lower(&shape, &options_for(&shape), observer)?;
    verify::slots(&slots, true)?;

    let mut program = deepen::place(&mut slots, &mut report, levels, &costs, observer)
        .map_err(|cause| Error::Infeasible { entry: cause.entry, cause })?;
    observer.begin(Pass::Assemble);
    for entry in &mut program.entries {
        entry.graph.compact();
    }
    verify::ckks(&program, levels)?;
    let prefill_pays = keep_prefill_that_pays(&mut program, &costs);
    let guard =
        guard::guard(&imported.model, &calibration, &program.logits, program.slots as usize, report.last_stretch())?;
    let counts = summary::counts(&slots, &program, &costs);
    let plan = plan(path, &imported, options, &costs, parameters, program, guard, counts, prefill_pays, report);
    Ok(Compilation { tensor: imported.model, slots, plan, costs })
}

/// The prices in a file, or the built-in ones, for a parameter set.
fn cost_table(path: Option<&Path>, parameters: &Parameters) -> Result<CostTable, Error> {
    let Some(path) = path else { return Ok(CostTable::built_in(parameters)) };
    let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    CostTable::from_json(&String::from_utf8_lossy(&bytes))
        .and_then(|table| table.for_parameters(parameters))
        .map_err(|source| Error::CostTable { path: path.to_owned(), source: Box::new(source) })
}

/// [`CostTable::prefill_pays`]. A prefill that is nowhere faster than decoding leaves the program, as nothing uses it.
fn keep_prefill_that_pays(program: &mut Program<CkksOp, CiphertextType>, costs: &CostTable) -> Vec<u32> {
    let mut pays = costs.prefill_pays(program);
    let is_used = |entry: &Entry<_, _>| entry.kind.chunk().is_none_or(|chunk| pays.iter().any(|&least| least <= chunk));
    program.entries.retain(is_used);
    if program.entry(EntryPoint::Prefill).is_none() {
        pays.clear();
    }
    pays
}

// One for each part.
#[allow(clippy::too_many_arguments)]
fn plan(
    path: &Path,
    imported: &ImportedModel,
    options: &CompileOptions,
    costs: &CostTable,
    parameters: Parameters,
    program: Program<CkksOp, CiphertextType>,
    guard: Guard,
    counts: Vec<CallCounts>,
    prefill_pays: Vec<u32>,
    report: LowerReport,
) -> Plan {
    let model = &imported.model;
    let tokenizer = imported.tokenizer.as_ref();
    let embedding = model.weight_named("embed_tokens").and_then(|weight| weight.weights.clone());
    let middle = i64::from(middle(program.context));
    let predicted_ns_per_token = costs.predict(&program, EntryPoint::Decode, middle);
    let recorded = [
        ("context", program.context.to_string()),
        ("params", options.parameters.clone()),
        ("cost_table", if options.cost_table.is_some() { "file" } else { "built-in" }.to_owned()),
        (
            "prefix",
            match options.prefix {
                None => "none",
                Some(PublicPrefix::Text(_)) => "text",
                Some(PublicPrefix::Chat) => "chat",
            }
            .to_owned(),
        ),
        (
            "calibrate",
            match (&options.calibration, options.shapes_only) {
                (_, true) => "assumed",
                (Some(_), _) => "file",
                (None, _) => "sampled",
            }
            .to_owned(),
        ),
    ];
    let without_weights = options.shapes_only.then(|| WITHOUT_WEIGHTS.to_owned());
    Plan {
        keys: KeyManifest::of(&program),
        counts,
        approximations: report.approximations,
        prefill_pays,
        model: ClientModel {
            name: locate::model_name(path),
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
            cost_table: costs.provenance.clone(),
            predicted_ns_per_token,
            notes: imported.notes.iter().cloned().chain(without_weights).collect(),
        },
        parameters,
        program,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cachemir_ir::program::EntryKind;

    #[test]
    fn a_prefill_that_is_never_faster_leaves_the_program() {
        let mut program = summary::tests::plan().program;
        let costs = CostTable::built_in(&Parameters::insecure_test());
        let prefill = Entry { kind: EntryKind::Prefill { chunk: 4 }, ..program.entries[0].clone() };
        program.entries.push(prefill);
        assert_eq!(keep_prefill_that_pays(&mut program, &costs), [2; 4]);
        assert_eq!(program.entries.len(), 2);
        let ops = &mut program.entries[1].graph.body.ops;
        *ops = ops.repeat(5);
        assert_eq!(keep_prefill_that_pays(&mut program, &costs), [0; 0]);
        assert!(program.entries.len() == 1 && program.entry(EntryPoint::Decode).is_some());
        assert_eq!(keep_prefill_that_pays(&mut program, &costs), [0; 0]);
    }
}
