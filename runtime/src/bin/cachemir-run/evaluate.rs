//! `cachemir-run eval`: how well a plan predicts a text, and how close it is to the exact model.

mod scores;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use cachemir_compiler::import::{self, ImportOptions};
use cachemir_compiler::locate;
use cachemir_ir::diagnostics::wrapped;
use cachemir_ir::tensor::{Interpreter, TensorModel};
use cachemir_ir::text::counted;
use cachemir_runtime::client::Texts;
use cachemir_runtime::generation::steps;
use cachemir_runtime::session::Conversation;
use cachemir_runtime::{Error, Plans, Prompt, Session, SessionOptions, UniformHalves};
use serde_json::json;

use crate::arguments::{Backend, Evaluate};
use crate::opening::{self, NOTHING_ENCRYPTED, security};
use crate::output::{self, Screen, note};

use scores::{Scores, compare, surprise};

/// What a measurement found.
struct Found {
    scores: Scores,
    /// Whether the user ended it.
    interrupted: bool,
    /// Parts that the client refused to go on with, and its reason for the first of them.
    refused: usize,
    reason: Option<String>,
}

/// Feeds parts of a text token by token, each as a session of its own, and scores what is said of each next token.
fn measure(
    session: &mut Session<'_>,
    parts: &[Vec<u32>],
    mut exact: Option<Interpreter<'_>>,
    screen: &mut Screen<'_>,
) -> Result<Found, Error> {
    let mut found = Found { scores: Scores::default(), interrupted: false, refused: 0, reason: None };
    'parts: for part in parts {
        session.restart();
        let begun = session.conversation().texts().prefix();
        if let Some(exact) = &mut exact {
            exact.reset();
            exact.feed(begun)?;
        }
        for position in begun.len()..part.len() - 1 {
            session.prompt(Prompt::Tokens(vec![part[position]]))?;
            let logits = match session.logits(screen) {
                Ok(logits) => logits,
                Err(Error::Interrupted) => {
                    found.interrupted = true;
                    break 'parts;
                }
                Err(error @ Error::OutOfRange { .. }) => {
                    found.refused += 1;
                    found.reason.get_or_insert_with(|| error.to_string());
                    break;
                }
                Err(error) => return Err(error),
            };
            let next = part[position + 1];
            let against = match &mut exact {
                Some(exact) => {
                    let exact = exact.step(part[position])?;
                    Some((surprise(&exact, next), compare(&exact, &logits)))
                }
                None => None,
            };
            found.scores.include(position, surprise(&logits, next), against);
        }
    }
    Ok(found)
}

/// The exact model: the recognised ONNX file, run by the tensor stage's interpreter in double precision.
fn exact_model(path: &Path, plans: &Plans) -> Result<TensorModel, Error> {
    let bad = |message: String| Error::BadOption { option: "--against", message };
    let options = ImportOptions { context: Some(plans.client.context as usize), ..ImportOptions::default() };
    let imported = locate::model_file(path).and_then(|path| import::load(&path, &options));
    let imported = imported.map_err(|error| bad(format!("{error} ({})", error.code())))?;
    let (found, expected) = (imported.model.hyperparameters.vocabulary, plans.client.model.vocabulary);
    if found != expected as usize {
        return Err(bad(format!("the model has {found} tokens, and the plan's has {expected}")));
    }
    if imported.model.content_hash() != plans.server.provenance.model_hash {
        note("not the model that the plan was compiled from: differences count as errors");
    }
    Ok(imported.model)
}

/// The text's tokens in parts that fit a context, each behind the plan's public prefix, or behind what the tokenizer puts
/// in front of a text. The last token of a part is predicted and not taken in.
fn parts(texts: &Texts<'_>, text: &str, most: usize) -> Result<Vec<Vec<u32>>, Error> {
    let (prefix, tokens) = (texts.tokenizer().prefix()?, texts.tokenizer().encode(text, true)?);
    let body = tokens.strip_prefix(prefix.as_slice()).unwrap_or(&tokens);
    let begun = texts.prefix();
    let prefix = if begun.is_empty() { prefix.as_slice() } else { begun };
    let room = (texts.context() + 1).saturating_sub(prefix.len()).max(1);
    let mut left = most;
    let mut parts = Vec::new();
    for chunk in body.chunks(room) {
        let mut part: Vec<u32> = prefix.iter().chain(chunk).copied().collect();
        part.truncate(left.saturating_add(begun.len() + 1));
        if part.len() >= begun.len() + 2 {
            left -= part.len() - begun.len() - 1;
            parts.push(part);
        }
    }
    if parts.is_empty() {
        return Err(Error::BadOption { option: "--text", message: "there are no two tokens in it".to_owned() });
    }
    Ok(parts)
}

/// Seed of the errors that `--noise` adds.
const NOISE: u64 = 1;

/// Measures a plan on a text.
pub(crate) fn run(options: &Evaluate, interrupt: &AtomicBool) -> Result<(), Error> {
    if options.noise && options.backend != Backend::Clear {
        let message = "an encrypted execution has its own noise; --backend clear adds it".to_owned();
        return Err(Error::BadOption { option: "--noise", message });
    }
    let plans = Plans::read(&options.plan)?;
    let text = std::fs::read_to_string(&options.text)
        .map_err(|source| Error::Unreadable { path: options.text.clone(), source })?;
    let conversation = Conversation::new(&plans)?;
    let parts = parts(conversation.texts(), &text, options.count.unwrap_or(usize::MAX))?;
    let model = options.against.as_deref().map(|path| exact_model(path, &plans)).transpose()?;
    let exact = model.as_ref().map(Interpreter::new).transpose()?;
    let backend = if options.noise { cachemir_runtime::Backend::Noisy { seed: NOISE } } else { options.backend.into() };
    let session_options =
        SessionOptions { backend, keys: options.common.keys.map(UniformHalves::from), ..SessionOptions::default() };
    let begun = plans.client.prefix.len();
    let expected: Vec<_> = parts.iter().flat_map(|part| steps(begun, part.len() - 1, None)).collect();
    let (mut session, surroundings) = opening::open(conversation, session_options, &expected, false, interrupt)?;
    let mut screen =
        Screen::new(surroundings.screen(false, false), &surroundings.costs, plans.client.slots, interrupt, None);
    let found = measure(&mut session, &parts, exact, &mut screen);
    screen.finish()?;
    let found = found?;
    if found.scores.count() == 0 && found.interrupted {
        return Err(Error::Interrupted);
    }
    if found.scores.count() > 0 {
        show(options, &plans, session_options.representation(), &parts, &found)?;
    }
    match found.reason {
        Some(first) if found.refused == parts.len() => Err(Error::AllRefused { parts: parts.len(), first }),
        _ => Ok(()),
    }
}

/// Shows what was found; that it is not of the whole text where that is so.
fn show(
    options: &Evaluate,
    plans: &Plans,
    representation: &str,
    parts: &[Vec<u32>],
    found: &Found,
) -> Result<(), Error> {
    let encrypted = options.backend == Backend::Cpu;
    let parameters = &plans.server.parameters;
    let of_text: usize = parts.iter().map(|part| part.len() - plans.client.prefix.len() - 1).sum();
    let measured = found.scores.count();
    if options.common.json {
        let mut object = found.scores.json();
        let about = json!({"event": "eval", "backend": representation, "encrypted": encrypted,
            "security_bits": encrypted.then(|| parameters.security_bits()).flatten(), "parameters": parameters.name,
            "tokens_of_text": of_text, "partial": measured < of_text, "interrupted": found.interrupted,
            "parts": parts.len(), "refused_parts": found.refused, "refusal": found.reason});
        if let (Some(fields), Some(about)) = (object.as_object_mut(), about.as_object()) {
            fields.extend(about.clone());
        }
        return output::line(&object);
    }
    let how = match (encrypted, options.noise) {
        (true, _) => format!("encrypted, {}", security(parameters)),
        (false, true) => format!("with modelled noise; {NOTHING_ENCRYPTED}"),
        (false, false) => NOTHING_ENCRYPTED.to_owned(),
    };
    let mut text = format!("{}({how})", found.scores.text());
    if measured < of_text {
        let mut reasons = Vec::new();
        if let Some(reason) = &found.reason {
            reasons.push(format!(
                "{} of {} refused, the first as {reason}",
                found.refused,
                counted(parts.len(), "part")
            ));
        }
        if found.interrupted {
            reasons.push("interrupted".to_owned());
        }
        let line = format!("PARTIAL: {measured} of {}; {}", counted(of_text, "token"), reasons.join("; "));
        text = text + "\n" + &wrapped(&line, output::columns(), "  ").join("\n");
    }
    output::text(&text)
}
