//! Loaded weights that are used again and again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::Weights;
use crate::Error;

/// Entries of matrices, kept after their first use as far as a budget allows. Those beyond it are loaded anew for each use,
/// and shared by uses at the same time.
///
/// Programs use their matrices in turn, round after round: keeping the first that come serves more uses than keeping the
/// last ones.
#[derive(Debug)]
pub struct Kept {
    budget_bytes: usize,
    loaded: Mutex<Loaded>,
}

#[derive(Debug, Default)]
struct Loaded {
    used_bytes: usize,
    /// By their identity.
    of: HashMap<usize, Known>,
}

#[derive(Debug)]
struct Known {
    /// As long as they are here, nothing else has their identity.
    _weights: Weights,
    /// The entries while something uses them.
    used: Weak<[f32]>,
    /// The entries, where the budget had room for them.
    _kept: Option<Arc<[f32]>>,
}

impl Kept {
    /// The budget of the interpreters: a billion entries.
    pub const USUAL_BYTES: usize = 4 << 30;

    /// Nothing so far, and at most this many bytes.
    pub fn new(budget_bytes: usize) -> Self {
        Self { budget_bytes, loaded: Mutex::default() }
    }

    /// The entries of weights. `name` is the table's, for messages.
    ///
    /// # Errors
    /// Those of [`Weights::load`].
    pub fn load(&self, name: &str, weights: &Weights) -> Result<Arc<[f32]>, Error> {
        if let Some(known) = weights.at_hand() {
            return Ok(Arc::clone(known));
        }
        let lock = || self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let identity = Arc::as_ptr(&weights.kept).addr();
        if let Some(known) = lock().of.get(&identity).and_then(|known| known.used.upgrade()) {
            return Ok(known);
        }
        // No lock is held meanwhile: loading waits for other threads, which may load too.
        let entries = weights.load(name)?;
        let mut loaded = lock();
        if let Some(known) = loaded.of.get(&identity).and_then(|known| known.used.upgrade()) {
            return Ok(known);
        }
        let bytes = size_of_val(&*entries);
        let keeps = loaded.used_bytes + bytes <= self.budget_bytes;
        loaded.used_bytes += if keeps { bytes } else { 0 };
        let kept = keeps.then(|| Arc::clone(&entries));
        loaded.of.insert(identity, Known { _weights: weights.clone(), used: Arc::downgrade(&entries), _kept: kept });
        Ok(entries)
    }
}

impl Default for Kept {
    fn default() -> Self {
        Self::new(Self::USUAL_BYTES)
    }
}
