//! Executes Cachemir plans: client, server, generation.
#![forbid(unsafe_code)]
