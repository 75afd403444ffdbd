//! Measured times of ops: a table as data.
//!
//! A [`CostTable`] gives each [`CostKind`] at a few levels in nanoseconds on one thread; between two levels the cost is
//! interpolated linearly, beyond the ends it continues their slope. Tables are written by `cachemir-run bench ops` and say
//! where they come from; regenerate one when kernels or parameters change.
//!
//! The built-in table was measured for the preset `n16` (`n16.json` says on which machine); other parameters count by their
//! ring degree. [`CostTable::transform_ns`] carries a table over to other machines.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::parameters::Parameters;

/// Version of the table's JSON form.
pub const COST_TABLE_VERSION: u32 = 2;

/// The measured table of the preset `n16`.
const MEASURED_N16: &str = include_str!("n16.json");

/// What is timed by level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CostKind {
    /// Sum or difference of two ciphertexts, or a product with an integer or i.
    Add,
    /// Product of two ciphertexts, with relinearisation and without rescale.
    Multiply,
    /// Product with an encoded plaintext.
    MultiplyPlain,
    /// Encoding of a plaintext.
    Encode,
    /// Rescale.
    Rescale,
    /// Rotation or conjugation.
    Rotate,
}

impl CostKind {
    /// All kinds.
    pub const ALL: [Self; 6] =
        [Self::Add, Self::Multiply, Self::MultiplyPlain, Self::Encode, Self::Rescale, Self::Rotate];
}

/// A measured point.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CostPoint {
    /// Level of the operands.
    pub level: u32,
    /// Time in nanoseconds.
    pub ns: f64,
}

/// A measured bootstrap.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BootstrapCost {
    /// Whether slots are complex.
    pub complex: bool,
    /// log2 of the number of slots.
    pub log2_slots: u32,
    /// Time in nanoseconds.
    pub ns: f64,
}

/// Times of all ops for one parameter set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CostTable {
    /// [`COST_TABLE_VERSION`]
    pub format_version: u32,
    /// Where the numbers come from: machine, backend, date, or the model that they follow.
    pub provenance: String,
    /// Name of the parameter set.
    pub parameters: String,
    /// One forward number-theoretic transform of the ring's degree by the same kernels, in nanoseconds on one thread: what the
    /// times of two machines, or of two kinds of kernels, compare by.
    pub transform_ns: f64,
    /// By kind: points in ascending order of level.
    pub by_level: BTreeMap<CostKind, Vec<CostPoint>>,
    /// Bootstraps, in ascending order of slots for each variant.
    pub bootstraps: Vec<BootstrapCost>,
    /// Whether weights are encoded at each use, as there are too many to be held encoded.
    #[serde(skip)]
    pub weights_streamed: bool,
}

/// Most weights of linear maps that are taken to be held encoded: at about 100 bytes each, 16 for each of six primes, they
/// take 8 GiB.
const MOST_WEIGHTS_HELD: u64 = 80_000_000;

/// Longest time that a table may give an op, in nanoseconds: sums over a program's ops stay whole numbers of 64 bits.
const LONGEST_NS: f64 = 1e12;

/// Straight lines through points in ascending order; the ends' lines continue, but not below zero.
fn interpolate(points: &[(f64, f64)], at: f64) -> f64 {
    match points {
        [] => 0.0,
        [(_, only)] => *only,
        _ => {
            let upper = points.iter().position(|(x, _)| *x >= at).unwrap_or(points.len() - 1).max(1);
            let ((x0, y0), (x1, y1)) = (points[upper - 1], points[upper]);
            (y0 + (y1 - y0) * (at - x0) / (x1 - x0)).max(0.0)
        }
    }
}

/// Work of a transform of degree N, relative to 2^16: N·log2 N.
fn relative_transform(log2_degree: u32) -> f64 {
    let log2_degree = f64::from(log2_degree);
    (log2_degree - 16.0).exp2() * log2_degree / 16.0
}

impl CostTable {
    /// The built-in table for a parameter set.
    #[allow(clippy::missing_panics_doc)]
    pub fn built_in(parameters: &Parameters) -> Self {
        let measured = Self::from_json(MEASURED_N16).expect("a test reads the built-in table");
        measured.for_parameters(parameters).expect("a test knows the built-in table's parameters")
    }

    /// The same table for another parameter set: times count by the work of a transform, N·log2 N.
    ///
    /// # Errors
    /// [`Error::CostTable`] for a table of parameters that are no preset, whose ring nobody knows here.
    pub fn for_parameters(self, parameters: &Parameters) -> Result<Self, Error> {
        if self.parameters == parameters.name {
            return Ok(self);
        }
        let measured = Parameters::preset(&self.parameters)
            .map_err(|error| Error::CostTable(format!("its times are for other parameters: {error}")))?;
        let relative = relative_transform(parameters.log2_degree) / relative_transform(measured.log2_degree);
        let provenance = if relative == 1.0 {
            self.provenance.clone()
        } else {
            format!("{}, by N·log2 N from `{}`", self.provenance, self.parameters)
        };
        Ok(Self { provenance, parameters: parameters.name.clone(), ..self.scaled(relative) })
    }

    /// The same table for programs whose linear maps have so many weights.
    #[must_use]
    pub fn for_weights(self, weights: u64) -> Self {
        Self { weights_streamed: weights > MOST_WEIGHTS_HELD, ..self }
    }

    /// The same table for a machine on which a transform of the ring's degree takes so many nanoseconds.
    #[must_use]
    pub fn carried_over(self, transform_ns: f64) -> Self {
        let factor = transform_ns / self.transform_ns;
        self.scaled(factor)
    }

    /// All times multiplied.
    fn scaled(mut self, factor: f64) -> Self {
        self.transform_ns *= factor;
        for point in self.by_level.values_mut().flatten() {
            point.ns *= factor;
        }
        for row in &mut self.bootstraps {
            row.ns *= factor;
        }
        self
    }

    /// Reads and checks a table's JSON form.
    ///
    /// # Errors
    /// [`Error::CostTable`] for text that is no table of this version, lacks a kind of op or of bootstrap, is not in order or
    /// has times that cannot be.
    pub fn from_json(text: &str) -> Result<Self, Error> {
        let fail = |message: String| Err(Error::CostTable(message));
        let table: Self = serde_json::from_str(text).map_err(|error| Error::CostTable(error.to_string()))?;
        if table.format_version != COST_TABLE_VERSION {
            let found = table.format_version;
            return fail(format!("its version is {found}, and {COST_TABLE_VERSION} is understood"));
        }
        if let Some(kind) = CostKind::ALL.iter().find(|kind| !table.by_level.contains_key(kind)) {
            return fail(format!("it has no times for {kind:?}"));
        }
        for (kind, points) in &table.by_level {
            if points.is_empty() || points.windows(2).any(|pair| pair[0].level >= pair[1].level) {
                return fail(format!("the levels of {kind:?} are not in ascending order"));
            }
        }
        for (complex, variant) in [(false, "real"), (true, "complex")] {
            let rows: Vec<_> = table.bootstraps.iter().filter(|row| row.complex == complex).collect();
            if rows.is_empty() {
                return fail(format!("it lacks a {variant} bootstrap"));
            }
            if rows.windows(2).any(|pair| pair[0].log2_slots >= pair[1].log2_slots) {
                return fail(format!("the slots of {variant} bootstraps are not in ascending order"));
            }
        }
        if !table.transform_ns.is_finite() || table.transform_ns <= 0.0 {
            return fail("the time of a transform is not positive".to_owned());
        }
        let times = table.by_level.values().flatten().map(|point| point.ns);
        let mut times = times.chain(table.bootstraps.iter().map(|row| row.ns));
        if let Some(ns) = times.find(|ns| !(0.0..=LONGEST_NS).contains(ns)) {
            return fail(format!("a time of {ns} ns lies outside 0..={LONGEST_NS:.0}"));
        }
        Ok(table)
    }

    /// The table's JSON form.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }

    /// Time of one kind at a level, in nanoseconds.
    pub fn ns(&self, kind: CostKind, level: f64) -> f64 {
        let points = self.by_level.get(&kind).map_or(&[][..], |points| points);
        let points: Vec<_> = points.iter().map(|point| (f64::from(point.level), point.ns)).collect();
        interpolate(&points, level)
    }

    /// Time of a bootstrap, in nanoseconds.
    pub fn bootstrap_ns(&self, complex: bool, slots: u32) -> f64 {
        let rows = self.bootstraps.iter().filter(|row| row.complex == complex);
        let points: Vec<_> = rows.map(|row| (f64::from(row.log2_slots), row.ns)).collect();
        interpolate(&points, f64::from(slots.max(1)).log2())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_interpolated_and_continued() {
        let points = [(2.0, 10.0), (4.0, 30.0), (8.0, 40.0)];
        for (at, expected) in [(2.0, 10.0), (3.0, 20.0), (4.0, 30.0), (6.0, 35.0), (10.0, 45.0), (1.0, 0.0), (0.0, 0.0)]
        {
            assert_eq!(interpolate(&points, at), expected, "at {at}");
        }
        assert_eq!(interpolate(&points[..1], 7.0), 10.0);
    }

    #[test]
    fn tables_round_trip_and_are_checked() {
        let table = CostTable::built_in(&Parameters::n16());
        assert_eq!(CostTable::from_json(&table.to_json()).unwrap(), table);
        let newer = table.to_json().replace("\"format_version\": 2", "\"format_version\": 3");
        assert!(CostTable::from_json(&newer).unwrap_err().to_string().contains("version is 3"));
        assert!(CostTable::from_json("{}").is_err());
        let timeless = CostTable { transform_ns: 0.0, ..table.clone() };
        assert!(CostTable::from_json(&timeless.to_json()).is_err());
        let incomplete = CostTable { bootstraps: Vec::new(), ..table.clone() };
        assert!(CostTable::from_json(&incomplete.to_json()).unwrap_err().to_string().contains("bootstrap"));
        let mut incomplete = table.clone();
        incomplete.by_level.remove(&CostKind::Rotate);
        assert!(CostTable::from_json(&incomplete.to_json()).unwrap_err().to_string().contains("Rotate"));
        let mut disordered = table.clone();
        disordered.bootstraps.reverse();
        assert!(CostTable::from_json(&disordered.to_json()).unwrap_err().to_string().contains("ascending"));
        for ns in [-1.0, 1e13] {
            let mut odd = table.clone();
            odd.bootstraps[0].ns = ns;
            assert!(CostTable::from_json(&odd.to_json()).unwrap_err().to_string().contains("outside"), "{ns}");
        }
    }

    #[test]
    fn the_built_in_table_is_carried_over_to_other_rings_and_machines() {
        let measured = CostTable::built_in(&Parameters::n16());
        assert_eq!(measured.parameters, "n16");
        let half = CostTable::built_in(&Parameters::preset("n15").unwrap());
        let (ratio, expected) = (half.transform_ns / measured.transform_ns, 15.0 / 32.0);
        assert!((ratio - expected).abs() < 1e-9);
        assert!((half.bootstrap_ns(true, 1 << 14) / measured.bootstrap_ns(true, 1 << 14) - expected).abs() < 1e-9);
        // And back, from a table that was measured with that set.
        let back = half.clone().for_parameters(&Parameters::n16()).unwrap();
        assert!((back.transform_ns / measured.transform_ns - 1.0).abs() < 1e-9 && back.parameters == "n16");
        assert!(back.provenance.ends_with("by N·log2 N from `n15`"), "{}", back.provenance);
        let unknown = CostTable { parameters: "n99".to_owned(), ..half };
        assert!(unknown.for_parameters(&Parameters::n16()).unwrap_err().to_string().contains("`n99`"));
        let fast = measured.clone().carried_over(measured.transform_ns / 2.0);
        assert!((fast.ns(CostKind::Rotate, 9.0) / measured.ns(CostKind::Rotate, 9.0) - 0.5).abs() < 1e-9);
    }
}
