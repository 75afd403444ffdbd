//! `cachemir-run bench`: a plan, or the engine's operations.

mod bootstraps;
mod operations;
mod plan;
mod report;

pub(crate) use operations::ops;
pub(crate) use plan::plan;
