//! What the commands do.

use cachemir_compiler::placement::{self, Infeasible, bootstraps};
use cachemir_ir::ckks::{CiphertextType, CkksOp, Levels};
use cachemir_ir::cost::CostTable;
use cachemir_ir::expression::Environment;
use cachemir_ir::graph::{Graph, ValueId};
use cachemir_ir::parameters::Parameters;
use cachemir_ir::program::{Entry, Program, State};
use cachemir_ir::slots::SlotOp;
use cachemir_ir::slots_interpreter::{Interpreter, SlotProgram};
use cachemir_ir::text::{TextOp, parse, print, print_with_problems};
use cachemir_ir::verify;
use cachemir_ir::weights::Weights;

use super::Found;
use super::calls::{Call, Outcome, answer, difference};
use super::expand::expanded;
use super::header::{Question, Settings, Test};
use crate::ClearSession;

type CkksProgram = Program<CkksOp, CiphertextType>;

/// Runs a command on the text of its file.
pub(super) fn run(test: &Test<'_>, text: &str) -> Result<Found, String> {
    match test.command {
        "print" => print_again(test, text),
        "evaluate" => evaluate(test, text),
        "expand" => expand(test, text),
        "place" => place(test, text),
        "emit" => emit(test, text),
        other => Err(format!("`{other}` is no command; print, evaluate, expand, place and emit are")),
    }
}

/// Whether the file holds a program of the ckks stage, and of the slots stage otherwise.
fn is_ckks(text: &str) -> bool {
    text.lines().any(|line| line == "cachemir ckks")
}

/// The tables that files may name by hash: 0, 1, …, n-1 for any n up to 64.
fn find(hash: &[u8; 32]) -> Option<Weights> {
    let tables = (1..=64_u8).map(|length| (0..length).map(f32::from).collect::<Vec<f32>>());
    tables.map(Weights::from).find(|weights| weights.hash() == *hash)
}

fn read<O: TextOp>(text: &str) -> Result<Program<O, O::Type>, String> {
    parse(text, &find).map_err(|error| error.to_string())
}

fn slots_program(text: &str) -> Result<SlotProgram, String> {
    let program = read(text)?;
    verify::slots(&program, true).map_err(|error| error.to_string())?;
    Ok(program)
}

fn levels(settings: &mut Settings<'_>) -> Result<Levels, String> {
    Ok(Levels { output: settings.required("levels")?, bootstrap_input: settings.required("input")? })
}

fn print_again(test: &Test<'_>, text: &str) -> Result<Found, String> {
    test.no_questions()?;
    let mut settings = test.settings()?;
    let printed = if is_ckks(text) {
        let levels = levels(&mut settings)?;
        let program = read::<CkksOp>(text)?;
        print_with_problems(&program, &verify::ckks_problems(&program, levels))
    } else {
        let program = read::<SlotOp>(text)?;
        print_with_problems(&program, &verify::slots_problems(&program, true))
    };
    settings.finish()?;
    Ok(Found::Input(printed))
}

/// Answers each question.
fn answers<'t>(test: &Test<'t>, answer: impl FnMut(&Question<'t>) -> Result<String, String>) -> Result<Found, String> {
    if test.questions.is_empty() {
        return Err("nothing is asked".to_owned());
    }
    test.questions.iter().map(answer).collect::<Result<_, _>>().map(Found::Answers)
}

/// The error that a command does not answer a question.
fn unknown(test: &Test<'_>, question: &Question<'_>, known: &str) -> String {
    format!("{} does not answer `{}`, but {known}", test.command, question.kind)
}

fn evaluate(test: &Test<'_>, text: &str) -> Result<Found, String> {
    let mut settings = test.settings()?;
    let within = settings.optional("within")?.unwrap_or(0.0);
    let answer_calls = |settings: Settings<'_>, call: &mut dyn FnMut(&Call) -> Result<Outcome, String>| {
        settings.finish()?;
        answers(test, |question| match question.kind {
            "call" => Ok(answer(question.stated, &call(&Call::read(question.about)?)?, within)),
            _ => Err(unknown(test, question, "call")),
        })
    };
    if is_ckks(text) {
        let levels = levels(&mut settings)?;
        let program = read(text)?;
        verify::ckks(&program, levels).map_err(|error| error.to_string())?;
        let mut session = ClearSession::new(&program, levels).map_err(|error| error.to_string())?;
        answer_calls(settings, &mut |call| placed_call(&mut session, &program, call))
    } else {
        let program = slots_program(text)?;
        let mut interpreter = Interpreter::new(&program);
        answer_calls(settings, &mut |call| slots_call(&mut interpreter, &program, call))
    }
}

fn slots_call(interpreter: &mut Interpreter<'_>, program: &SlotProgram, call: &Call) -> Result<Outcome, String> {
    let inputs = call.inputs(program)?;
    Ok(interpreter.call(call.entry, call.position, call.count, &inputs).map_err(|error| error.to_string()))
}

fn placed_call(session: &mut ClearSession<'_>, program: &CkksProgram, call: &Call) -> Result<Outcome, String> {
    let inputs = call.inputs(program)?;
    Ok(session.call(call.entry, call.position, call.count, &inputs).map_err(|error| error.to_string()))
}

fn expand(test: &Test<'_>, text: &str) -> Result<Found, String> {
    test.no_questions()?;
    let mut settings = test.settings()?;
    let environment = Environment::new(settings.required("pos")?, settings.required("count")?);
    settings.finish()?;
    expanded(&slots_program(text)?, &environment).map(Found::Below).map_err(|error| error.to_string())
}

/// The program of the ckks stage, whose levels, scales and bounds agree.
fn placed(program: &SlotProgram, levels: Levels) -> Result<Result<CkksProgram, Infeasible>, String> {
    let placed = placement::place(program, levels, &CostTable::built_in(&Parameters::n16()), &());
    if let Ok(placed) = &placed {
        verify::ckks(placed, levels).map_err(|error| format!("what was placed is wrong: {error}"))?;
    }
    Ok(placed)
}

/// States and entry points: the rest is that of the input.
fn emit(test: &Test<'_>, text: &str) -> Result<Found, String> {
    test.no_questions()?;
    let mut settings = test.settings()?;
    let levels = levels(&mut settings)?;
    settings.finish()?;
    let placed = placed(&slots_program(text)?, levels)?.map_err(|refused| in_words(&refused))?;
    let printed = print(&placed);
    let (head, entries) = printed.split_once("\nentry ").unwrap_or_default();
    let states: String = head.lines().filter(|line| line.starts_with("state ")).flat_map(|line| [line, "\n"]).collect();
    Ok(Found::Below(format!("{states}entry {entries}")))
}

fn in_words(refused: &Infeasible) -> String {
    format!("{}, {}: {}", refused.entry, refused.origin, refused.message)
}

fn place(test: &Test<'_>, text: &str) -> Result<Found, String> {
    let mut settings = test.settings()?;
    let levels = levels(&mut settings)?;
    let within = settings.optional("within")?.unwrap_or(0.0);
    settings.finish()?;
    let program = slots_program(text)?;
    let placed = match placed(&program, levels)? {
        Ok(placed) => placed,
        Err(refused) => {
            return answers(test, |question| match question.kind {
                "refused" => Ok(in_words(&refused)),
                _ => Err(format!("nothing was placed: {}", in_words(&refused))),
            });
        }
    };
    let mut interpreter = Interpreter::new(&program);
    let mut session = ClearSession::new(&placed, levels).map_err(|error| error.to_string())?;
    answers(test, |question| {
        let entry = || entry(&placed, question.about);
        Ok(match question.kind {
            "bootstraps" => bootstraps(&entry()?.graph).to_string(),
            "inputs" => entry().map(|entry| levels_of(&entry.graph, &entry.graph.inputs))?,
            "outputs" => entry().map(|entry| levels_of(&entry.graph, &entry.graph.body.yields))?,
            "loops" => in_loops(&entry()?.graph),
            "states" => {
                let state = |state: &State| {
                    format!("{} {}", state.name, state.level.map_or("none".to_owned(), |level| level.to_string()))
                };
                placed.states.iter().map(state).collect::<Vec<_>>().join(", ")
            }
            "call" => {
                let call = Call::read(question.about)?;
                let expected = slots_call(&mut interpreter, &program, &call)?;
                if let Ok(expected) = &expected {
                    let found = placed_call(&mut session, &placed, &call)??;
                    if let Some(difference) = difference(expected, &found, within) {
                        return Err(format!("once placed, `call {}` gives {difference}", question.about));
                    }
                }
                answer(question.stated, &expected, within)
            }
            "refused" => "no".to_owned(),
            _ => return Err(unknown(test, question, "bootstraps, inputs, outputs, loops, states, call and refused")),
        })
    })
}

fn entry<'p>(program: &'p CkksProgram, name: &str) -> Result<&'p Entry<CkksOp, CiphertextType>, String> {
    program.entry(name.parse()?).ok_or_else(|| format!("there is no entry point `{name}`"))
}

/// The levels of values, by the names of those that have one.
fn levels_of(graph: &Graph<CkksOp, CiphertextType>, values: &[ValueId]) -> String {
    let level = |&id: &ValueId| {
        let value = &graph.values[id.index()];
        format!("{} {}", value.name, value.ty.level).trim_start().to_owned()
    };
    values.iter().map(level).collect::<Vec<_>>().join(", ")
}

/// What is repeated, in order.
fn in_loops(graph: &Graph<CkksOp, CiphertextType>) -> String {
    let mut names = Vec::new();
    graph.for_each_op(|op, depth| names.extend((depth > 0).then(|| graph.node(op).op.mnemonic())));
    names.join(", ")
}
