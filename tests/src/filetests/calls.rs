//! Calls of entry points, `call ENTRY pos=P count=C NAME=[…]… -> [[…], …]`: a list of slots for each input, by its name,
//! and for each output. `_` in an answer stands for a slot of which nothing is said.

use cachemir_ir::Error;
use cachemir_ir::program::{EntryPoint, Program};
use cachemir_ir::text::cursor::Cursor;

/// Slots of each output, or why there are none.
pub(super) type Outcome = Result<Vec<Vec<f64>>, String>;

/// A call of an entry point.
pub(super) struct Call {
    pub(super) entry: EntryPoint,
    pub(super) position: i64,
    pub(super) count: i64,
    inputs: Vec<(String, Vec<f64>)>,
}

impl Call {
    /// Reads what follows `call`.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        let read = |cursor: &mut Cursor<'_>| -> Result<Self, Error> {
            let entry = cursor.word()?.parse().map_err(|message: String| cursor.error(message))?;
            let mut number = |key: &str| -> Result<i64, Error> {
                cursor.expect_word(key)?;
                cursor.expect("=")?;
                cursor.integer::<u32>().map(i64::from)
            };
            let (position, count) = (number("pos")?, number("count")?);
            let mut inputs = Vec::new();
            while !cursor.at_end() {
                let name = cursor.name()?;
                cursor.expect("=")?;
                inputs.push((name, list(cursor, Cursor::float)?));
            }
            Ok(Self { entry, position, count, inputs })
        };
        read(&mut Cursor::new(text, 1)).map_err(|error| format!("`call {text}`: {error}"))
    }

    /// The slots of the entry point's inputs, in their order.
    pub(super) fn inputs<O, T>(&self, program: &Program<O, T>) -> Result<Vec<Vec<f64>>, String> {
        let entry = program.entry(self.entry).ok_or_else(|| format!("there is no entry point `{}`", self.entry))?;
        let names = entry.graph.inputs.iter().map(|input| &entry.graph.values[input.index()].name);
        let names: Vec<&String> = names.collect();
        if !self.inputs.iter().map(|(name, _)| name).eq(names.iter().copied()) {
            return Err(format!("a call of {} states its inputs by their names, in this order: {names:?}", self.entry));
        }
        match self.inputs.iter().find(|(_, slots)| slots.len() != program.slots as usize) {
            Some((name, slots)) => Err(format!("`{name}` has {} slots instead of {}", slots.len(), program.slots)),
            None => Ok(self.inputs.iter().map(|(_, slots)| slots.clone()).collect()),
        }
    }
}

/// Reads `[a, b, …]`.
fn list<'t, R>(cursor: &mut Cursor<'t>, item: impl Fn(&mut Cursor<'t>) -> Result<R, Error>) -> Result<Vec<R>, Error> {
    cursor.expect("[")?;
    let mut items = Vec::new();
    while !cursor.eat("]") {
        if !items.is_empty() {
            cursor.expect(",")?;
        }
        items.push(item(cursor)?);
    }
    Ok(items)
}

/// `[a, b, …]`
pub(super) fn written(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(", "))
}

/// Whether two numbers are the same up to a tolerance.
fn close(a: f64, b: f64, within: f64) -> bool {
    a == b || (a - b).abs() <= within
}

/// The first slot in which the outputs of two programs differ by more than a tolerance, in words.
pub(super) fn difference(a: &[Vec<f64>], b: &[Vec<f64>], within: f64) -> Option<String> {
    for (output, (a, b)) in a.iter().zip(b).enumerate() {
        for (slot, (a, b)) in a.iter().zip(b).enumerate() {
            if !close(*a, *b, within) {
                return Some(format!("{b} instead of {a} in slot {slot} of output {output}"));
            }
        }
    }
    None
}

/// The answer to a call: the stated one where it is right.
pub(super) fn answer(stated: Option<&str>, found: &Outcome, within: f64) -> String {
    let found = match found {
        Ok(found) => found,
        Err(message) => return format!("refused: {}", message.replace('\n', " ")),
    };
    let slot = |cursor: &mut Cursor<'_>| if cursor.eat("_") { Ok(None) } else { cursor.float().map(Some) };
    let read = |text: &str| list(&mut Cursor::new(text, 1), |cursor| list(cursor, slot)).ok();
    let has_shape = |read: &Vec<Vec<Option<f64>>>| read.iter().map(Vec::len).eq(found.iter().map(Vec::len));
    let read = stated.and_then(read).filter(has_shape);
    if let (Some(stated), Some(read)) = (stated, &read) {
        let mut slots = read.iter().flatten().zip(found.iter().flatten());
        if slots.all(|(stated, found)| stated.is_none_or(|stated| close(stated, *found, within))) {
            return stated.to_owned();
        }
    }
    let is_free = |output: usize, slot: usize| read.as_ref().is_some_and(|read| read[output][slot].is_none());
    let slots = |(output, slots): (usize, &Vec<f64>)| {
        let slot =
            |(slot, value): (usize, &f64)| if is_free(output, slot) { "_".to_owned() } else { value.to_string() };
        written(slots.iter().enumerate().map(slot))
    };
    written(found.iter().enumerate().map(slots))
}
