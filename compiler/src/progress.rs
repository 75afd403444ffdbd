//! How far a compilation is, for whoever wants to show it. The library itself shows nothing.

use std::sync::atomic::{AtomicUsize, Ordering};

use cachemir_ir::tensor::TensorModel;

use crate::Error;

/// A pass of the compilation; in the order in which they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pass {
    /// Reads the ONNX file and recognises the decoder.
    Import,
    /// Reads calibration text, or samples it from the model.
    Calibrate,
    /// Sees the ranges of values in the model.
    ModelRanges,
    /// Chooses the number of slots.
    Pack,
    /// Sees the ranges of all slots in the packed program.
    SlotRanges,
    /// Chooses polynomials and packs the program with them.
    Approximate,
    /// Runs the program with its polynomials and records magnitudes.
    Magnitudes,
    /// Places bootstraps.
    Place,
    /// Checks the program and makes the plan.
    Assemble,
}

impl Pass {
    /// All passes, in order.
    pub const ALL: [Self; 9] = [
        Self::Import,
        Self::Calibrate,
        Self::ModelRanges,
        Self::Pack,
        Self::SlotRanges,
        Self::Approximate,
        Self::Magnitudes,
        Self::Place,
        Self::Assemble,
    ];

    /// The pass's name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Import => "import",
            Self::Calibrate => "calibrate",
            Self::ModelRanges => "model_ranges",
            Self::Pack => "pack",
            Self::SlotRanges => "slot_ranges",
            Self::Approximate => "approximate",
            Self::Magnitudes => "magnitudes",
            Self::Place => "place",
            Self::Assemble => "assemble",
        }
    }

    /// What the pass does, in words for people.
    pub fn description(self) -> &'static str {
        match self {
            Self::Import => "reading the model",
            Self::Calibrate => "preparing calibration text",
            Self::ModelRanges => "ranges in the model",
            Self::Pack => "choosing the packing",
            Self::SlotRanges => "ranges in packed slots",
            Self::Approximate => "choosing polynomials",
            Self::Magnitudes => "running the polynomials",
            Self::Place => "placing bootstraps",
            Self::Assemble => "assembling the plan",
        }
    }

    /// The pass's usual time for a decoder of so many layers, relative to the others; from decoders of two and of five
    /// layers.
    pub fn weight(self, layers: usize) -> f64 {
        let layers = layers as f64;
        match self {
            Self::Import | Self::Assemble => 0.01,
            Self::Calibrate => 0.2 * layers,
            Self::ModelRanges => 0.4 * layers,
            Self::Pack => 0.5,
            Self::SlotRanges => 0.6 * layers,
            Self::Approximate => 1.0 * layers,
            Self::Magnitudes => 0.5 * layers,
            Self::Place => 0.01 * layers,
        }
    }
}

/// Sees a compilation run. May be called from several threads.
pub trait Observer: Sync {
    /// A pass begins, and with it the one before ends.
    fn begin(&self, pass: Pass);

    /// The model is known. An error ends the compilation ahead of all work.
    fn model(&self, model: &TensorModel) -> Result<(), Error>;

    /// So much of the running pass is done, from 0 to 1.
    fn advance(&self, fraction: f64);
}

/// Nobody watches.
impl Observer for () {
    fn begin(&self, _: Pass) {}

    fn model(&self, _: &TensorModel) -> Result<(), Error> {
        Ok(())
    }

    fn advance(&self, _: f64) {}
}

/// Counts the equal parts of a pass, from any thread.
pub(crate) struct Parts<'o> {
    observer: &'o dyn Observer,
    total: usize,
    done: AtomicUsize,
}

impl<'o> Parts<'o> {
    /// A pass begins, which has so many parts.
    pub(crate) fn begin(observer: &'o dyn Observer, pass: Pass, total: usize) -> Self {
        observer.begin(pass);
        Self { observer, total: total.max(1), done: AtomicUsize::new(0) }
    }

    /// One part is done.
    pub(crate) fn one(&self) {
        self.some(1);
    }

    /// So many parts are done.
    pub(crate) fn some(&self, count: usize) {
        let done = count + self.done.fetch_add(count, Ordering::Relaxed);
        self.observer.advance((done as f64 / self.total as f64).min(1.0));
    }
}
