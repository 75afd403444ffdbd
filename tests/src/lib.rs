//! Golden, end-to-end and architecture tests of the workspace.
#![forbid(unsafe_code)]
