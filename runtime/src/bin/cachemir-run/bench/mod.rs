//! `cachemir-run bench`: a plan, one of its layers, or the engine's operations.

mod bootstraps;
mod layer;
mod operations;
mod plan;
mod report;

pub(crate) use layer::layer;
pub(crate) use operations::ops;
pub(crate) use plan::plan;
