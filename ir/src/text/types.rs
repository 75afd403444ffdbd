//! Types of values and the parts that slots and ckks ops share, in text and JSON.

use serde_json::{Map, Value};

use super::TextType;
use super::cursor::{Cursor, write_float};
use super::expression::{read_integer, read_vector};
use crate::Error;
use crate::ckks::CiphertextType;
use crate::expression::{Integer, Vector};
use crate::json::{self, fields};
use crate::slots::{Chebyshev, Domain, Fill, Layout, SlotType, StateId, WriteMode};

const FILLS: [(Fill, &str); 4] =
    [(Fill::Zero, "zero"), (Fill::Replica, "replica"), (Fill::Junk, "junk"), (Fill::Tokens, "tokens")];

fn fill_name(fill: Fill) -> &'static str {
    FILLS.iter().find(|(known, _)| *known == fill).map_or("", |(_, name)| name)
}

impl TextType for Layout {
    /// `junk stride 64`, with ` complex` behind it where slots are complex.
    fn write(&self, out: &mut String) {
        out.push_str(&format!("{} stride {}", fill_name(self.fill), self.stride));
        if self.domain == Domain::Complex {
            out.push_str(" complex");
        }
    }

    fn read(cursor: &mut Cursor<'_>) -> Result<Self, Error> {
        let word = cursor.peek_word();
        let fill = FILLS.iter().find(|(_, name)| *name == word).map(|(fill, _)| *fill);
        let fill = fill.ok_or_else(|| cursor.expected("a layout: zero, replica, junk or tokens"))?;
        cursor.word()?;
        cursor.expect_word("stride")?;
        let stride = cursor.integer()?;
        let domain = if cursor.eat_word("complex") { Domain::Complex } else { Domain::Real };
        Ok(Self { stride, fill, domain })
    }

    fn json_fields(&self) -> Map<String, Value> {
        let domain = if self.domain == Domain::Complex { "complex" } else { "real" };
        fields([("fill", fill_name(self.fill).into()), ("stride_slots", self.stride.into()), ("domain", domain.into())])
    }
}

/// ` max 3.5`, or nothing where the bound is infinite.
fn write_bound(out: &mut String, max_abs: f64) {
    if max_abs != f64::INFINITY {
        out.push_str(" max ");
        write_float(out, max_abs);
    }
}

fn read_bound(cursor: &mut Cursor<'_>) -> Result<f64, Error> {
    if cursor.eat_word("max") { cursor.float() } else { Ok(f64::INFINITY) }
}

impl TextType for SlotType {
    fn write(&self, out: &mut String) {
        self.layout.write(out);
        write_bound(out, self.max_abs);
    }

    fn read(cursor: &mut Cursor<'_>) -> Result<Self, Error> {
        Ok(Self { layout: Layout::read(cursor)?, max_abs: read_bound(cursor)? })
    }

    fn json_fields(&self) -> Map<String, Value> {
        let mut fields = self.layout.json_fields();
        fields.insert("max_abs".to_owned(), json::float(self.max_abs));
        fields
    }
}

impl TextType for CiphertextType {
    fn write(&self, out: &mut String) {
        out.push_str(&format!("level {} ", self.level));
        if self.product {
            out.push_str("product ");
        }
        self.layout.write(out);
        write_bound(out, self.max_abs);
    }

    fn read(cursor: &mut Cursor<'_>) -> Result<Self, Error> {
        cursor.expect_word("level")?;
        let level = cursor.integer()?;
        let product = cursor.eat_word("product");
        Ok(Self { level, product, layout: Layout::read(cursor)?, max_abs: read_bound(cursor)? })
    }

    fn json_fields(&self) -> Map<String, Value> {
        let mut fields = fields([("level", self.level.into()), ("product", self.product.into())]);
        fields.extend(self.layout.json_fields());
        fields.insert("max_abs".to_owned(), json::float(self.max_abs));
        fields
    }
}

/// Steps of a rotate and sum: ` by 1, 2, 4`.
pub(super) fn write_steps(out: &mut String, steps: &[Integer]) {
    for (index, step) in steps.iter().enumerate() {
        out.push_str(&format!("{} {step:#}", if index > 0 { "," } else { " by" }));
    }
}

pub(super) fn read_steps(cursor: &mut Cursor<'_>) -> Result<Vec<Integer>, Error> {
    cursor.expect_word("by")?;
    let mut steps = vec![read_integer(cursor)?];
    while cursor.eat(",") {
        steps.push(read_integer(cursor)?);
    }
    Ok(steps)
}

pub(super) fn json_polynomial(polynomial: &Chebyshev, mask: Option<&Vector>) -> Map<String, Value> {
    let coefficients: Vec<Value> = polynomial.coefficients.iter().map(|c| json::float(*c)).collect();
    let interval: Vec<Value> = polynomial.interval.iter().map(|end| json::float(*end)).collect();
    let mut object = fields([
        ("chebyshev_coefficients", coefficients.into()),
        ("interval", interval.into()),
        ("degree", polynomial.degree().into()),
    ]);
    if let Some(mask) = mask {
        object.insert("mask".to_owned(), json::vector(mask));
    }
    object
}

pub(super) fn json_state(state: StateId, index: &Integer) -> Map<String, Value> {
    fields([("state", state.0.into()), ("index", json::integer(index))])
}

pub(super) fn json_write(state: StateId, index: &Integer, mode: WriteMode) -> Map<String, Value> {
    let mut object = json_state(state, index);
    object.insert("mode".to_owned(), mode_name(mode).into());
    object
}

pub(super) fn json_sum(counter: u32, count: &Integer) -> Map<String, Value> {
    fields([("counter", counter.into()), ("count", json::integer(count))])
}

pub(super) fn json_kept(factor: f64, keep: Option<&Integer>) -> Map<String, Value> {
    let mut object = fields([("factor", json::float(factor))]);
    object.extend(keep.map(|keep| ("keep".to_owned(), json::integer(keep))));
    object
}

/// ` on [low, high] of [c0, c1, …]`, and ` mask …` where there is one.
pub(super) fn write_polynomial(out: &mut String, polynomial: &Chebyshev, mask: Option<&Vector>) {
    out.push_str(" on ");
    write_list(out, &polynomial.interval);
    out.push_str(" of ");
    write_list(out, &polynomial.coefficients);
    if let Some(mask) = mask {
        out.push_str(&format!(" times {mask}"));
    }
}

fn write_list(out: &mut String, values: &[f64]) {
    out.push('[');
    for (index, value) in values.iter().enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        write_float(out, *value);
    }
    out.push(']');
}

fn read_list(cursor: &mut Cursor<'_>) -> Result<Vec<f64>, Error> {
    cursor.expect("[")?;
    let mut values = Vec::new();
    if cursor.eat("]") {
        return Ok(values);
    }
    loop {
        values.push(cursor.float()?);
        if !cursor.eat(",") {
            cursor.expect("]")?;
            return Ok(values);
        }
    }
}

pub(super) fn read_polynomial(cursor: &mut Cursor<'_>) -> Result<(Chebyshev, Option<Vector>), Error> {
    cursor.expect_word("on")?;
    let interval = <[f64; 2]>::try_from(read_list(cursor)?).map_err(|_| cursor.error("an interval has two ends"))?;
    cursor.expect_word("of")?;
    let coefficients = read_list(cursor)?;
    let mask = if cursor.eat_word("times") { Some(read_vector(cursor)?) } else { None };
    Ok((Chebyshev { coefficients, interval }, mask))
}

/// ` keep …`, or nothing where all slots are kept.
/// ` times 0.5 keep (slot % 4 == 0)`, each only where it changes something.
pub(super) fn write_kept(out: &mut String, factor: f64, keep: Option<&Integer>) {
    if factor != 1.0 {
        out.push_str(" times ");
        write_float(out, factor);
    }
    if let Some(keep) = keep {
        out.push_str(&format!(" keep {keep:#}"));
    }
}

pub(super) fn read_kept(cursor: &mut Cursor<'_>) -> Result<(f64, Option<Integer>), Error> {
    let factor = if cursor.eat_word("times") { cursor.float()? } else { 1.0 };
    let keep = if cursor.eat_word("keep") { Some(read_integer(cursor)?) } else { None };
    Ok((factor, keep))
}

/// ` c3[index]`
pub(super) fn write_state(out: &mut String, state: StateId, index: &Integer) {
    out.push_str(&format!(" c{}[{index}]", state.0));
}

pub(super) fn read_state(cursor: &mut Cursor<'_>) -> Result<(StateId, Integer), Error> {
    let state = StateId(cursor.id("c", "a state array such as c0")?);
    cursor.expect("[")?;
    let index = read_integer(cursor)?;
    cursor.expect("]")?;
    Ok((state, index))
}

pub(super) fn mode_name(mode: WriteMode) -> &'static str {
    match mode {
        WriteMode::Replace => "replace",
        WriteMode::Accumulate => "accumulate",
    }
}

/// ` to c3[index] replace`
pub(super) fn write_write(out: &mut String, state: StateId, index: &Integer, mode: WriteMode) {
    out.push_str(" to");
    write_state(out, state, index);
    out.push_str(&format!(" {}", mode_name(mode)));
}

pub(super) fn read_write(cursor: &mut Cursor<'_>) -> Result<(StateId, Integer, WriteMode), Error> {
    cursor.expect_word("to")?;
    let (state, index) = read_state(cursor)?;
    let mode = match cursor.peek_word() {
        "replace" => WriteMode::Replace,
        "accumulate" => WriteMode::Accumulate,
        _ => return Err(cursor.expected("`replace` or `accumulate`")),
    };
    cursor.word()?;
    Ok((state, index, mode))
}

/// ` i3 in 0..4`, ` i3 in 0..(pos / 64 + 1)`
pub(super) fn write_sum(out: &mut String, counter: u32, count: &Integer) {
    out.push_str(&match count {
        Integer::Binary(..) => format!(" i{counter} in 0..({count})"),
        _ => format!(" i{counter} in 0..{count:#}"),
    });
}

pub(super) fn read_sum(cursor: &mut Cursor<'_>) -> Result<(u32, Integer), Error> {
    let counter = cursor.id("i", "a loop counter such as i0")?;
    cursor.expect_word("in")?;
    cursor.expect("0..")?;
    Ok((counter, read_integer(cursor)?))
}
