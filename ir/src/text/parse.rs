//! Reading what [`super::print`] writes.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::cursor::Cursor;
use super::expression::read_vector;
use super::{TextOp, TextType};
use crate::Error;
use crate::graph::{Definition, Graph, MAXIMUM_NESTING, Node, OpId, Origin, OriginId, Region, Value, ValueId};
use crate::hashes::hexadecimal;
use crate::program::{Affine, EmbeddingForm, Entry, EntryKind, EntryPoint, Placement, Program, RangeCheck, State};
use crate::slots::Layout;
use crate::table::Table;
use crate::tensor::{Hyperparameters, RopeTable, TensorModel, TensorOp, Weight};
use crate::weights::Weights;

/// Finds the weights that have a hash: text holds hashes, never weights.
pub type FindWeights<'f> = &'f dyn Fn(&[u8; 32]) -> Option<Weights>;

/// Reads a program of the stage whose ops are `O`.
pub fn parse<O: TextOp>(text: &str, find: FindWeights<'_>) -> Result<Program<O, O::Type>, Error> {
    let mut lines = Lines::new(text);
    header(&mut lines, O::STAGE)?;
    let slots = field(&mut lines, "slots", Cursor::integer)?;
    let context = field(&mut lines, "context", Cursor::integer)?;
    let mut inputs = Vec::new();
    let embedding = loop {
        let mut line = lines.expect("`input` or `embedding`")?;
        if line.eat_word("input") {
            inputs.push(input(&mut line)?);
            line.finish()?;
        } else {
            line.expect_word("embedding")?;
            let embedding = placement(&mut line)?;
            line.finish()?;
            break embedding;
        }
    };
    let logits = field(&mut lines, "logits", placement)?;
    let mut program = Program {
        slots,
        context,
        tables: Arc::default(),
        states: vec![],
        prefix: vec![],
        entries: vec![],
        embedding,
        inputs,
        logits,
    };
    while let Some(mut line) = lines.next() {
        match line.word()? {
            "prefix" => program.prefix = shape(&mut line)?,
            "table" => {
                let name = declared(&mut line, "t", program.tables.len())?;
                let shape = shape(&mut line)?;
                let table = if line.eat_word("deviation") {
                    Table::of_shape(name, shape, line.float()?)
                } else {
                    line.expect_word("blake3")?;
                    let weights = weights(&mut line, &name, find)?;
                    Table::stored(name, shape, weights)
                };
                Arc::make_mut(&mut program.tables).push(table);
            }
            "state" => {
                let name = declared(&mut line, "c", program.states.len())?;
                line.expect_word("of")?;
                let capacity = line.integer()?;
                line.expect(":")?;
                let level = if line.eat_word("level") { Some(line.integer()?) } else { None };
                let layout = Layout::read(&mut line)?;
                let initial = if line.eat_word("initially") { Some(read_vector(&mut line)?) } else { None };
                program.states.push(State { name, capacity, layout, level, initial });
            }
            "entry" => {
                let kind = match line.word()?.parse().map_err(|message: String| line.error(message))? {
                    EntryPoint::Decode => EntryKind::Decode,
                    EntryPoint::Prefill => EntryKind::Prefill { chunk: line.integer()? },
                };
                program.entries.push(Entry { kind, graph: graph(&mut line, &mut lines)?, checks: vec![] });
                continue;
            }
            "check" => {
                let check = check(&mut line)?;
                let entry = program.entries.last_mut();
                entry.ok_or_else(|| line.error("a check before the first entry"))?.checks.push(check);
            }
            other => return Err(line.error(format!("expected prefix, table, state, entry or check, found `{other}`"))),
        }
        line.finish()?;
    }
    Ok(program)
}

/// Reads a recognised model.
pub fn parse_model(text: &str, find: FindWeights<'_>) -> Result<TensorModel, Error> {
    let mut lines = Lines::new(text);
    header(&mut lines, TensorOp::STAGE)?;
    let hyperparameters = field(&mut lines, "hidden", hyperparameters)?;
    let rope = field(&mut lines, "rope", |line| {
        let pairs = line.integer()?;
        line.expect_word("cosines")?;
        let cosines = weights(line, "rope", find)?.load("rope")?.to_vec();
        line.expect_word("sines")?;
        Ok(RopeTable { pairs, cosines, sines: weights(line, "rope", find)?.load("rope")?.to_vec() })
    })?;
    let mut model_weights = Vec::new();
    let mut step = None;
    while let Some(mut line) = lines.next() {
        match line.word()? {
            "weight" => {
                let name = declared(&mut line, "w", model_weights.len())?;
                let shape = shape(&mut line)?.into_iter().map(|extent| extent as usize).collect();
                line.expect_word("blake3")?;
                let hash = hash(&mut line.clone())?;
                let weights = Some(self::weights(&mut line, &name, find)?);
                model_weights.push(Weight { name, shape, weights, hash });
                line.finish()?;
            }
            "step" if step.is_none() => step = Some(graph(&mut line, &mut lines)?),
            other => return Err(line.error(format!("expected weight or one step, found `{other}`"))),
        }
    }
    let graph = step.ok_or_else(|| lines.end("a step"))?;
    Ok(TensorModel { hyperparameters, rope, weights: model_weights, graph })
}

/// The lines that are neither empty nor comments.
struct Lines<'t> {
    lines: std::iter::Enumerate<std::str::Lines<'t>>,
    last: usize,
}

impl<'t> Lines<'t> {
    fn new(text: &'t str) -> Self {
        Self { lines: text.lines().enumerate(), last: 1 }
    }

    fn next(&mut self) -> Option<Cursor<'t>> {
        for (index, line) in self.lines.by_ref() {
            self.last = index + 1;
            let line = line.trim();
            if !line.is_empty() && !line.starts_with(';') {
                return Some(Cursor::new(line, self.last));
            }
        }
        None
    }

    fn end(&self, expected: &str) -> Error {
        Error::Parse { line: self.last, message: format!("expected {expected}, found the end of the text") }
    }

    fn expect(&mut self, what: &str) -> Result<Cursor<'t>, Error> {
        self.next().ok_or_else(|| self.end(what))
    }
}

fn header(lines: &mut Lines<'_>, stage: &str) -> Result<(), Error> {
    let mut line = lines.expect("`cachemir` and the stage")?;
    line.expect_word("cachemir")?;
    line.expect_word(stage)?;
    line.finish()
}

/// Reads a line that starts with the given word.
fn field<'t, R>(
    lines: &mut Lines<'t>,
    name: &str,
    read: impl FnOnce(&mut Cursor<'t>) -> Result<R, Error>,
) -> Result<R, Error> {
    let mut line = lines.expect(&format!("`{name}`"))?;
    line.expect_word(name)?;
    let result = read(&mut line)?;
    line.finish()?;
    Ok(result)
}

/// Reads an id, which must be the next one, and a name.
fn declared(line: &mut Cursor<'_>, prefix: &str, next: usize) -> Result<String, Error> {
    let id = line.id(prefix, &format!("`{prefix}{next}`"))?;
    if id as usize != next {
        return Err(line.error(format!("{prefix}{id} is out of order, {prefix}{next} is next")));
    }
    line.name()
}

fn shape(line: &mut Cursor<'_>) -> Result<Vec<u32>, Error> {
    line.expect("[")?;
    let mut extents = Vec::new();
    if line.eat("]") {
        return Ok(extents);
    }
    loop {
        extents.push(line.integer()?);
        if !line.eat(",") {
            line.expect("]")?;
            return Ok(extents);
        }
    }
}

fn hash(line: &mut Cursor<'_>) -> Result<[u8; 32], Error> {
    let word = line.peek_word();
    let digits = word.as_bytes();
    let mut hash = [0; 32];
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(line.expected("a hash of 64 hexadecimal digits"));
    }
    for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |c: u8| char::from(c).to_digit(16).unwrap_or(0) as u8;
        *byte = digit(pair[0]) << 4 | digit(pair[1]);
    }
    line.word()?;
    Ok(hash)
}

fn weights(line: &mut Cursor<'_>, name: &str, find: FindWeights<'_>) -> Result<Weights, Error> {
    let hash = hash(line)?;
    find(&hash).ok_or_else(|| line.error(format!("there are no values for `{name}` with hash {}", hexadecimal(&hash))))
}

fn input(line: &mut Cursor<'_>) -> Result<EmbeddingForm, Error> {
    line.expect_word("scale")?;
    let scale = line.float()?;
    let norm_epsilon = if line.eat_word("norm_epsilon") { Some(line.float()?) } else { None };
    Ok(EmbeddingForm { scale, norm_epsilon })
}

fn check(line: &mut Cursor<'_>) -> Result<RangeCheck, Error> {
    let site = line.name()?;
    line.expect_word("from")?;
    let low = line.float()?;
    line.expect_word("to")?;
    let high = line.float()?;
    line.expect_word("centre")?;
    let centre = line.float()?;
    line.expect_word("half")?;
    let half = line.float()?;
    line.expect_word("at")?;
    Ok(RangeCheck { site, placement: placement(line)?, interval: [low, high], map: Affine { centre, half } })
}

/// More slots than any ciphertext has.
const MAXIMUM_PLACED: usize = 1 << 24;

fn placement(line: &mut Cursor<'_>) -> Result<Placement, Error> {
    line.expect_word("token_stride")?;
    let token_stride = line.integer()?;
    line.expect_word("slots")?;
    let mut index_to_slot = Vec::new();
    while !line.at_end() {
        let first: u32 = line.integer()?;
        line.expect(":")?;
        let step: i64 = line.integer()?;
        line.expect(":")?;
        let length: usize = line.integer()?;
        if length == 0 || length > MAXIMUM_PLACED || index_to_slot.len() > MAXIMUM_PLACED {
            return Err(line.error("a run of slots is empty or too long"));
        }
        for index in 0..length as i64 {
            let slot = index.checked_mul(step).and_then(|offset| offset.checked_add(i64::from(first)));
            let slot = slot.and_then(|slot| u32::try_from(slot).ok());
            index_to_slot.push(slot.ok_or_else(|| line.error("a run of slots leaves the slots"))?);
        }
    }
    Ok(Placement { index_to_slot, token_stride })
}

fn hyperparameters(line: &mut Cursor<'_>) -> Result<Hyperparameters, Error> {
    let hidden = line.integer()?;
    let mut next = |name: &str| -> Result<usize, Error> {
        line.expect_word(name)?;
        line.integer()
    };
    let (layers, heads, kv_heads) = (next("layers")?, next("heads")?, next("kv_heads")?);
    let (head_dim, mlp) = (next("head_dim")?, next("mlp")?);
    let (vocabulary, context) = (next("vocabulary")?, next("context")?);
    line.expect_word("epsilon")?;
    let epsilon = line.float()?;
    line.expect_word("attention_scale")?;
    let attention_scale = line.float()?;
    let tied_head = line.eat_word("tied_head");
    Ok(Hyperparameters {
        hidden,
        layers,
        heads,
        kv_heads,
        head_dim,
        mlp,
        vocabulary,
        epsilon,
        attention_scale,
        context,
        tied_head,
    })
}

/// The parts of a graph read so far, by id.
struct Parts<O, T> {
    values: BTreeMap<u32, Value<T>>,
    nodes: BTreeMap<u32, Node<O>>,
    origins: BTreeMap<u32, Origin>,
}

/// The contents of a map whose keys must be 0, 1, ….
fn dense<V>(map: BTreeMap<u32, V>, prefix: &str, line: usize) -> Result<Vec<V>, Error> {
    for (index, id) in map.keys().enumerate() {
        if index as u32 != *id {
            let message = format!("{prefix}{index} is missing: ids must be 0, 1, 2, …");
            return Err(Error::Parse { line, message });
        }
    }
    Ok(map.into_values().collect())
}

fn graph<O: TextOp>(line: &mut Cursor<'_>, lines: &mut Lines<'_>) -> Result<Graph<O, O::Type>, Error> {
    let mut parts = Parts { values: BTreeMap::new(), nodes: BTreeMap::new(), origins: BTreeMap::new() };
    let mut inputs = Vec::new();
    line.expect("(")?;
    if !line.eat(")") {
        loop {
            let (id, name) = value(line)?;
            line.expect(":")?;
            let ty = O::Type::read(line)?;
            let definition = Definition::Input(inputs.len() as u32);
            parts.define(line, id, Value { ty, definition, name })?;
            inputs.push(id);
            if !line.eat(",") {
                line.expect(")")?;
                break;
            }
        }
    }
    line.expect("{")?;
    line.finish()?;
    let body = parts.block(lines, 0)?;
    Ok(Graph {
        values: dense(parts.values, "%", lines.last)?,
        nodes: dense(parts.nodes, "@", lines.last)?,
        inputs,
        body,
        origins: dense(parts.origins, "!", lines.last)?,
    })
}

/// `%3` or `%3 name`
fn value(line: &mut Cursor<'_>) -> Result<(ValueId, String), Error> {
    let id = ValueId(line.id("%", "a value such as %0")?);
    let named = !line.rest().is_empty() && !line.rest().starts_with([',', '=', ':']);
    Ok((id, if named { line.name()? } else { String::new() }))
}

fn list(line: &mut Cursor<'_>) -> Result<Vec<ValueId>, Error> {
    let mut ids = Vec::new();
    if line.rest().starts_with('%') {
        loop {
            ids.push(ValueId(line.id("%", "a value such as %0")?));
            if !line.eat(",") {
                break;
            }
        }
    }
    Ok(ids)
}

impl<O: TextOp> Parts<O, O::Type> {
    fn define(&mut self, line: &Cursor<'_>, id: ValueId, value: Value<O::Type>) -> Result<(), Error> {
        match self.values.insert(id.0, value) {
            None => Ok(()),
            Some(_) => Err(line.error(format!("{id} is defined twice"))),
        }
    }

    /// Reads `!4 MatMul /model/…`.
    fn origin(&mut self, line: &mut Cursor<'_>) -> Result<OriginId, Error> {
        let id = OriginId(line.id("!", "an origin such as !0")?);
        let op_type = line.name()?;
        let origin = Origin { node: line.name()?, op_type };
        match self.origins.insert(id.0, origin.clone()) {
            Some(known) if known != origin => Err(line.error(format!("{id} has two meanings"))),
            _ => Ok(id),
        }
    }

    fn block(&mut self, lines: &mut Lines<'_>, depth: usize) -> Result<Region, Error> {
        let mut ops = Vec::new();
        loop {
            let mut line = lines.expect("`yield` and `}`")?;
            if depth > MAXIMUM_NESTING {
                return Err(line.error(format!("blocks are nested more than {MAXIMUM_NESTING} deep")));
            }
            if line.eat_word("origin") {
                self.origin(&mut line)?;
                line.finish()?;
            } else if line.eat_word("yield") {
                let yields = list(&mut line)?;
                line.finish()?;
                let mut line = lines.expect("`}`")?;
                line.expect("}")?;
                line.finish()?;
                return Ok(Region { ops, yields });
            } else {
                ops.push(self.op(&mut line, lines, depth)?);
            }
        }
    }

    fn op(&mut self, line: &mut Cursor<'_>, lines: &mut Lines<'_>, depth: usize) -> Result<OpId, Error> {
        let mut results = Vec::new();
        if line.rest().starts_with('%') {
            loop {
                results.push(value(line)?);
                if !line.eat(",") {
                    break;
                }
            }
            line.expect("=")?;
        }
        let mnemonic = line.word()?;
        let inputs = list(line)?;
        let op = O::read_attributes(mnemonic, line)?;
        let mut types = Vec::with_capacity(results.len());
        for index in 0..results.len() {
            line.expect(if index == 0 { ":" } else { "," })?;
            types.push(O::Type::read(line)?);
        }
        let opens = line.eat("{");
        if opens != op.has_body() {
            return Err(line.expected(if opens { "no body" } else { "`{` and a body" }));
        }
        let (mut stated, mut layer, mut origin) = (None, None, None);
        if line.eat(";") {
            stated = Some(line.id("@", "an op such as @0")?);
            if line.eat_word("layer") {
                layer = Some(line.integer()?);
            }
            if !line.at_end() {
                origin = Some(self.origin(line)?);
            }
        }
        line.finish()?;
        let region = if opens { Some(self.block(lines, depth + 1)?) } else { None };
        // Text without ids numbers ops in execution order, an op with a body after its body.
        let id = OpId(stated.unwrap_or(self.nodes.len() as u32));
        for (index, ((result, name), ty)) in results.iter().zip(types).enumerate() {
            let definition = Definition::Result(id, index as u32);
            self.define(line, *result, Value { ty, definition, name: name.clone() })?;
        }
        let results = results.into_iter().map(|(result, _)| result).collect();
        match self.nodes.insert(id.0, Node { op, inputs, results, origin, layer, region }) {
            None => Ok(id),
            Some(_) => Err(line.error(format!("{id} is defined twice"))),
        }
    }
}
