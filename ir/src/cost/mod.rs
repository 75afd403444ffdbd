//! What ops cost: the one room for prices.
//!
//! - [`table`]: measured times of ops as data, carried over from one ring or machine to another.
//! - [`price`]: what an op of a program, or a linear map, takes by a table.
//! - [`predict`]: what calls, layers, sessions and keys take, and where a prefill pays.
//!
//! Placement, packing, summaries and the progress of runs ask here and nowhere else. What rotations that share something cost
//! as a fraction of others is with them ([`crate::rotations`]), as linear maps choose their baby steps by it. Two kinds of
//! figures are no prices of a program and lie where they are used: how much time a search gives up for something else
//! (`cachemir_compiler`), and the engine's counts of transforms, by which it chooses between ways to compute one bootstrap
//! (`cachemir_ckks::cost`). No figure of either kind, and none here, decides what a stored key means: that is part of the
//! parameter set ([`Parameters::gadgets`](crate::parameters::Parameters::gadgets)).

pub mod predict;
pub mod price;
pub mod table;

pub use predict::{Predictions, Visit, for_each_execution, keys_ns, speedup, token_ns};
pub use price::linear_weights;
pub use table::{BootstrapCost, COST_TABLE_VERSION, CostKind, CostPoint, CostTable};
