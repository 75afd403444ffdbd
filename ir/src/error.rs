//! The crate's error type.

/// What can be wrong with a graph, a program or a plan.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Text or JSON that is not of the stage's grammar.
    #[error("line {line}: {message}")]
    Parse {
        /// Line in the input, counted from 1.
        line: usize,
        /// What was expected.
        message: String,
    },
    /// A graph that breaks an invariant of its stage, with all problems found.
    #[error("the {stage} program is invalid:\n  {}", problems.join("\n  "))]
    Invalid {
        /// `tensor`, `slots` or `ckks`.
        stage: &'static str,
        /// One message a problem.
        problems: Vec<String>,
    },
    /// A value left its declared range or an index its array, during clear execution.
    #[error("{0}")]
    Execution(String),
    /// A plan file that cannot be used.
    #[error("{0}")]
    Plan(String),
}
