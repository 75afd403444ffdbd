//! The stable codes of the runtime's errors, with their explanations.
//!
//! A code never changes its meaning and is never reused. `cachemir-run` prints the code with the error, and
//! `cachemirc explain CODE` prints the explanation.

/// A kind of error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// The stable code, e.g. `CMR-R001`.
    pub code: &'static str,
    /// What went wrong, in one line.
    pub title: &'static str,
    /// What it means, why it happens and what to do.
    pub explanation: &'static str,
}

/// The codes of `cachemir-run`, in ascending order.
pub const CODES: &[Code] = &[
    Code {
        code: "CMR-R001",
        title: "the plan cannot be read",
        explanation: "The plan file, or the client file beside it (its name with the extension `client`), is missing or \
                      cannot be opened. `cachemirc compile model.onnx -o plan.bin` writes both; keep them together.",
    },
    Code {
        code: "CMR-R002",
        title: "the plan is damaged or of another version",
        explanation: "A plan carries a format version and a hash of every part. The file is truncated or altered, or a \
                      newer compiler wrote it. Compile the model again with the `cachemirc` of the same release.",
    },
    Code {
        code: "CMR-R003",
        title: "the plan and its client file do not belong together",
        explanation: "The client file names the hash of its plan. The two were made by different runs of the compiler: \
                      compile again, or copy both files of one run.",
    },
    Code {
        code: "CMR-R004",
        title: "the tokenizer cannot be used",
        explanation: "The client file holds the model's `tokenizer.json`. It could not be parsed, it failed on the text, \
                      or there was none beside the model when the plan was compiled (`cachemirc compile --tokenizer` \
                      names it). Without a tokenizer, prompts are token ids: `--prompt-ids 1,2,3`.",
    },
    Code {
        code: "CMR-R005",
        title: "the chat template cannot be used",
        explanation: "`--chat` writes the prompt as the model's chat template has it, which the compiler finds beside the \
                      tokenizer, in `chat_template.jinja` or `tokenizer_config.json`. There was none, or it refused \
                      the messages: the message has its reason.",
    },
    Code {
        code: "CMR-R010",
        title: "there is no prompt",
        explanation: "The prompt is empty and no session is resumed. Give some text with `--prompt`, or continue a saved \
                      session with `--resume`.",
    },
    Code {
        code: "CMR-R011",
        title: "the prompt is longer than the context",
        explanation: "The encrypted caches have room for a fixed number of tokens, chosen with `cachemirc compile \
                      --context`. Shorten the prompt or compile with a larger context.",
    },
    Code {
        code: "CMR-R012",
        title: "an option cannot be used",
        explanation: "An option is unknown, lacks a value, contradicts another one, or asks for what cannot be. The \
                      message says what is possible; `cachemir-run help` lists all options.",
    },
    Code {
        code: "CMR-R013",
        title: "there is no such token",
        explanation: "A token id of `--prompt-ids`, or one that the tokenizer made, has no row in the model's embedding.",
    },
    Code {
        code: "CMR-R020",
        title: "there is not enough memory",
        explanation: "The evaluation keys, the bootstrapping matrices, the caches and the working set do not fit into the \
                      memory that is available to this process (the machine's, or its control group's where that is \
                      smaller). The message gives both numbers. Close other programs, use a larger machine, or compile \
                      with a smaller parameter set.",
    },
    Code {
        code: "CMR-R021",
        title: "a file cannot be written",
        explanation: "The file could not be created at the given path. Nothing is lost: paths are tried before the work starts.",
    },
    Code {
        code: "CMR-R030",
        title: "the session file is damaged or of another version",
        explanation: "A session file carries a format version and a hash of its contents. The file is truncated, altered, \
                      or of another release.",
    },
    Code {
        code: "CMR-R031",
        title: "the session belongs to another plan",
        explanation: "Encrypted state fits only the plan and the parameters under which it was made. Use the plan that the \
                      session was saved with.",
    },
    Code {
        code: "CMR-R032",
        title: "the session's client file is missing or damaged",
        explanation: "`--save-session FILE` writes the server's encrypted state to FILE and what only the client may know, \
                      the key seed and the tokens so far, to FILE.key. Both are needed to continue.",
    },
    Code {
        code: "CMR-R033",
        title: "the saved session has no room or nothing to continue from",
        explanation: "A session can be continued while its context has room for another token.",
    },
    Code {
        code: "CMR-R040",
        title: "the plan's program cannot be executed",
        explanation: "An operation met operands whose levels or scales do not fit, an index outside its array, or a rotation \
                      for which there is no key. The verifier excludes this for plans of the compiler: please report it \
                      with the plan.",
    },
    Code {
        code: "CMR-R041",
        title: "the encryption engine reported an error",
        explanation: "The CKKS engine refused an operation; the message says which. Please report it with the plan.",
    },
    Code {
        code: "CMR-R050",
        title: "a value left its range",
        explanation: "`--check` saw a value leave the range that a bootstrap or a polynomial needs, so that the text is \
                      not reliable. The message names the first such op. Calibrate with text that resembles the prompt \
                      (`cachemirc compile --calibrate`).",
    },
    Code {
        code: "CMR-R051",
        title: "a step's result is none that the calibrated model can give",
        explanation: "The client checks every step before it chooses a token: the arguments of approximations that an odd \
                      text can lead out of their range, the size of the logits, slots that must be zero, and the length of \
                      the last norm's result. Beyond what the model can give, a value left \
                      its range on the way, and the run ends before a wrong token is printed; a session on disk stays \
                      as it was. Compile with `--calibrate` and text that resembles the prompt. `--backend clear \
                      --check` names the first site that left its range within seconds.",
    },
    Code {
        code: "CMR-R060",
        title: "a system call failed",
        explanation: "Reading or writing a stream, or setting up threads, failed; the message has the system's reason.",
    },
];

/// The entry of a code, compared without regard to case.
pub fn explain(code: &str) -> Option<&'static Code> {
    CODES.iter().find(|entry| entry.code.eq_ignore_ascii_case(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_ascend_and_are_found() {
        assert!(CODES.windows(2).all(|pair| pair[0].code < pair[1].code));
        assert_eq!(explain("cmr-r011").map(|entry| entry.code), Some("CMR-R011"));
        assert!(explain("CMR-R999").is_none());
    }
}
