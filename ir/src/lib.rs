//! Graphs, types, layouts and the plan format of Cachemir.
#![forbid(unsafe_code)]
