//! What a benchmark writes: a JSON object a line, or a table for people.

use cachemir_runtime::Error;
use serde_json::{Map, Value, json};

use crate::output::{self, note};

/// Times in the unit, and where they go.
#[derive(Clone, Copy)]
pub(crate) struct Report {
    /// JSON lines on stdout; otherwise text on stderr.
    pub(crate) json: bool,
    /// Nanoseconds of one transform by `tfhe-ntt`.
    pub(crate) unit_ns: f64,
    /// Threads of the measurement.
    pub(crate) threads: usize,
}

/// One measured operation.
pub(crate) struct Measured<'a> {
    /// The operation's name.
    pub(crate) op: &'a str,
    /// Level of the operands.
    pub(crate) level: usize,
    /// Level of the result.
    pub(crate) level_out: usize,
    /// Slots of the operands.
    pub(crate) slots: usize,
    /// Median time.
    pub(crate) median_ns: f64,
    /// What the cost model says of one thread, where it covers the operation.
    pub(crate) predicted_ntt_units: Option<f64>,
    /// Bytes that the operation's keys or results hold.
    pub(crate) bytes: u64,
}

/// A field that only some operations have.
pub(crate) type Field = (&'static str, Value);

impl Report {
    /// Writes an operation with further fields.
    pub(crate) fn operation(self, measured: &Measured<'_>, further: &[Field]) -> Result<(), Error> {
        let ntt_units = measured.median_ns / self.unit_ns;
        if !self.json {
            note(&text(measured, ntt_units, further));
            return Ok(());
        }
        let mut object = json!({
            "event": "op",
            "op": measured.op,
            "slots": measured.slots,
            "level": measured.level,
            "level_out": measured.level_out,
            "limbs": measured.level + 1,
            "threads": self.threads,
            "median_ns": measured.median_ns.round(),
            "ntt_units": rounded(ntt_units),
            "predicted_ntt_units": measured.predicted_ntt_units.map(rounded),
            "bytes": measured.bytes,
        });
        if let Some(object) = object.as_object_mut() {
            object.extend(further.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        }
        output::line(&object)
    }

    /// Writes an event that is no operation.
    pub(crate) fn event(self, event: &str, text: &str, fields: Map<String, Value>) -> Result<(), Error> {
        if !self.json {
            note(text);
            return Ok(());
        }
        let mut object = Map::from_iter([("event".to_owned(), Value::from(event))]);
        object.extend(fields);
        output::line(&Value::Object(object))
    }
}

fn text(measured: &Measured<'_>, ntt_units: f64, further: &[Field]) -> String {
    let predicted = measured.predicted_ntt_units.map_or(String::new(), |units| format!(" (predicted {units:>8.1})"));
    let further: Vec<String> = further.iter().map(|(name, value)| format!("{name} {value}")).collect();
    format!(
        "{:<22} {:>2} limbs {:>6} slots {:>10.3} ms = {:>9.1} NTTs{predicted}  {}",
        measured.op,
        measured.level + 1,
        measured.slots,
        measured.median_ns / 1e6,
        ntt_units,
        further.join(", ")
    )
}

/// Three decimals: more are noise.
pub(crate) fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

/// The fields of a JSON object.
pub(crate) fn fields(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}
