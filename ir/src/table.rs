//! Named arrays of numbers that programs look up: weights and constants.

use std::sync::Arc;

use crate::Error;
use crate::weights::{Kept, Weights};

/// A named array of numbers that plaintext vectors look up: a weight matrix in row-major order, a table of cosines, …
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// Unique name, e.g. `layers.0.self_attn.q_proj`.
    pub name: String,
    /// Extents, outermost first.
    pub shape: Vec<u32>,
    /// Its entries.
    pub contents: Contents,
}

/// What is known of a table's entries.
#[derive(Clone, Debug, PartialEq)]
pub enum Contents {
    /// Where they are, in row-major order.
    Stored(Weights),
    /// The standard deviation that they have in a model of this shape.
    Unknown {
        /// About how large they are.
        deviation: f64,
    },
}

impl Table {
    /// A table with its entries.
    pub fn new(name: impl Into<String>, shape: impl Into<Vec<u32>>, values: Vec<f32>) -> Self {
        let shape = shape.into();
        let columns = shape.last().map_or(1, |&extent| extent as usize);
        Self::stored(name, shape, Weights::of_matrix(values, columns))
    }

    /// A table with its entries, wherever they are.
    pub fn stored(name: impl Into<String>, shape: impl Into<Vec<u32>>, weights: Weights) -> Self {
        Self { name: name.into(), shape: shape.into(), contents: Contents::Stored(weights) }
    }

    /// A table of which only the shape is known, and about how large its entries would be.
    pub fn of_shape(name: impl Into<String>, shape: impl Into<Vec<u32>>, deviation: f64) -> Self {
        Self { name: name.into(), shape: shape.into(), contents: Contents::Unknown { deviation } }
    }

    /// Where its entries are; `None` where only the shape is known.
    pub fn weights(&self) -> Option<&Weights> {
        match &self.contents {
            Contents::Stored(weights) => Some(weights),
            Contents::Unknown { .. } => None,
        }
    }

    fn known(&self) -> Result<&Weights, Error> {
        self.weights().ok_or_else(|| Error::Execution(format!("only the shape of table `{}` is known", self.name)))
    }

    /// The entries in row-major order, read for as long as they are held.
    ///
    /// # Errors
    /// Those of [`Weights::load`], and [`Error::Execution`] where only the shape is known.
    pub fn load(&self) -> Result<Arc<[f32]>, Error> {
        self.known()?.load(&self.name)
    }

    /// The same, kept with what else is loaded.
    ///
    /// # Errors
    /// As those of [`Table::load`].
    pub fn load_kept(&self, kept: &Kept) -> Result<Arc<[f32]>, Error> {
        kept.load(&self.name, self.known()?)
    }

    /// The entries in row-major order, held from the first use on: for tables that are no weights of linear maps.
    ///
    /// # Errors
    /// As those of [`Table::load`].
    pub fn values(&self) -> Result<&[f32], Error> {
        self.known()?.values(&self.name)
    }

    /// Number of entries that the shape asks for; `None` beyond what can be counted.
    pub fn entries(&self) -> Option<usize> {
        self.shape.iter().try_fold(1_usize, |product, extent| product.checked_mul(*extent as usize))
    }
}
