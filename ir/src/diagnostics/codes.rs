//! The table of codes.

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

/// The codes of `cachemirc` and of `cachemir-run`, in ascending order.
pub const CODES: &[Code] = &[
    Code {
        code: "C0101",
        title: "the file is no ONNX model",
        explanation: "The file is not an ONNX model, or only part of one. Check that it was copied completely (`git lfs pull`, an \
                      interrupted download) and that it is the .onnx file, not the data file beside it.",
    },
    Code {
        code: "C0102",
        title: "the data file of the model is missing",
        explanation: "The model keeps its weights in another file, which has to lie at the path recorded in the model, relative to \
                      the model's folder. Copy that file too.",
    },
    Code {
        code: "C0103",
        title: "a tensor of the model cannot be read",
        explanation: "A tensor's values do not match its shape, its type is not supported, or its region lies outside the data \
                      file. The model or its data file is damaged, or the two are not of the same export.",
    },
    Code {
        code: "C0104",
        title: "it is not clear which file of a folder is the model",
        explanation: "A folder was given in place of a model, and it is not clear which file in it is meant. Taken are model.onnx, \
                      decoder_model.onnx, the same two in a folder `onnx`, or the only .onnx file. Name the file itself.",
    },
    Code {
        code: "C0105",
        title: "a node of the graph cannot be read",
        explanation: "A node of the graph depends on its own output, calls a function that calls itself, has a condition that only \
                      inputs decide, or carries an attribute that would change its meaning in a way that is not known here. Check the \
                      tool that wrote or changed the file.",
    },
    Code {
        code: "C0106",
        title: "the model's weights changed while it was compiled",
        explanation: "A file of the model was changed, cut off or moved after the compiler had begun to read it. Let the export or the \
                      copy come to its end, and compile again.",
    },
    Code {
        code: "C0201",
        title: "the model has operations that no Llama decoder has",
        explanation: "The model uses operations that are not part of a Llama decoder. Supported are decoders of the Llama family \
                      (RMSNorm, rotary embedding, grouped-query attention, SwiGLU, with or without biases) exported to ONNX with or \
                      without a key-value cache. Soft-capping, mixtures of experts, LayerNorm and other activations than SiLU are not.",
    },
    Code {
        code: "C0202",
        title: "a node is not where a Llama decoder has it",
        explanation: "All operations are known, but the named node is not where a Llama decoder would have it, or the graph is not \
                      the same function at every position of the context. Not supported are sliding windows and chunks shorter than \
                      the context (ask for a smaller --context), scales and frequencies that depend on position or length, masks that \
                      are not causal, norms of queries and keys, norms after a layer, layers without rotary embedding, interleaved or \
                      partial rotary embeddings, blocks in parallel, learned positions, and LoRA adapters that are not merged. A graph \
                      that was traced with a fixed length has to be exported with dynamic axes.",
    },
    Code {
        code: "C0203",
        title: "the inputs and outputs are not those of a decoder",
        explanation: "The graph's inputs and outputs must be those of a decoder: input_ids, optionally attention_mask ([batch, tokens] \
                      or additive [batch, 1, new tokens, tokens]) and position_ids, past keys and values ([batch, heads, tokens, dim] \
                      or [batch, tokens, heads, dim]), num_logits_to_keep; logits and present keys and values. The lengths of tokens \
                      must be dynamic axes; of a merged decoder, take the file with the past.",
    },
    Code {
        code: "C0301",
        title: "a file beside the model is missing",
        explanation: "The model's folder lacks a file. config.json and tokenizer.json are looked for beside the model and in the \
                      two folders above it; name them with --config and --tokenizer if they lie elsewhere.",
    },
    Code {
        code: "C0302",
        title: "a file beside the model does not fit it",
        explanation: "A file beside the model is not valid, or is of another model: its numbers contradict the graph.",
    },
    Code {
        code: "C0303",
        title: "the tokenizer is a SentencePiece model",
        explanation: "`tokenizer.model` is SentencePiece's own form of a tokenizer, which says nothing of normalisation and special \
                      tokens; `tokenizer.json` says everything. The Python package `transformers` makes one from the other.",
    },
    Code {
        code: "C0401",
        title: "an option cannot be used",
        explanation: "An option asks for something that this model or program cannot give; the message says what is possible.",
    },
    Code {
        code: "C0402",
        title: "the command line cannot be read",
        explanation: "The command line cannot be read: a command or an option is unknown, or a value is missing or not one of those \
                      that the message lists. `cachemirc COMMAND --help` lists what there is.",
    },
    Code {
        code: "C0501",
        title: "a file cannot be read",
        explanation: "A file cannot be read. Check its path and permissions.",
    },
    Code {
        code: "C0502",
        title: "a file cannot be written",
        explanation: "A file cannot be written. Check the folder, its permissions and the space left.",
    },
    Code {
        code: "C0503",
        title: "the file is no plan of this version",
        explanation: "The file is not a plan that `cachemirc compile` of this version wrote, or was cut off or altered since.",
    },
    Code {
        code: "C0504",
        title: "the file is no cost table",
        explanation: "The file given with --cost-table is not a table of times as `cachemir-run bench ops --threads 1 --emit-cost FILE` of \
                      this version writes it: it is cut off or of another version, lacks a kind of op, has a time that is negative or \
                      longer than a thousand seconds, or was measured with parameters that are not known here. Measure it again, or \
                      leave the option out: the built-in table then decides.",
    },
    Code {
        code: "C0601",
        title: "the program does not fit the parameters",
        explanation: "An op needs more levels than the parameters leave it, wherever bootstraps are put; or values spread over so wide a \
                      range that no polynomial of those levels is precise enough. Choose parameters with more levels (--params), or a \
                      calibration text with shorter ranges, which lowers the degrees of the approximations.",
    },
    Code {
        code: "C0901",
        title: "the compiler broke an invariant of its own",
        explanation: "The compiler broke one of its own invariants. This is a defect: please report it with the command line, the \
                      model and the message.",
    },
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
        code: "CMR-R006",
        title: "the plan has no weights",
        explanation: "The plan was compiled with `--shapes-only`: from the model's graph, without its weights. It tells what a \
                      model of this shape costs, `cachemirc inspect` shows it, and `cachemir-run bench layer` measures one of \
                      its layers with random weights, but it cannot take tokens in. Compile the model with its weights.",
    },
    Code {
        code: "CMR-R007",
        title: "the plan's weights are not those that it was compiled with",
        explanation: "Weights are checked when they are used for the first time. A plan that was compiled with `--weights reference` \
                      reads them from the model's own files, which have to stay where they were from the plan's folder, and as they \
                      were: put the file back whose bytes have the hash that the message names, or compile the model again. Weights \
                      inside a plan were altered or cut off after it was opened: copy or compile it again.",
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
        code: "CMR-R014",
        title: "the conversation does not begin with the public prefix",
        explanation: "The plan was compiled with `--public-prefix` or `--chat`: its sessions begin with tokens whose keys and \
                      values it holds, and a conversation must begin with them. Another system prompt, or a message that \
                      begins with a line end, does not. Leave `--system` away, or compile a plan with the prefix that you \
                      want.",
    },
    Code {
        code: "CMR-R020",
        title: "there is not enough memory",
        explanation: "The evaluation keys, the bootstrapping matrices, the caches and the working set do not fit into the \
                      memory that is available to this process (the machine's, or its control group's where that is \
                      smaller). Close other programs, use a larger machine, or compile \
                      with a smaller parameter set.",
    },
    Code {
        code: "CMR-R021",
        title: "a file cannot be written",
        explanation: "The file could not be made at the given path: its folder has to exist and to be writable, and there \
                      has to be space. Paths are tried before the work starts.",
    },
    Code {
        code: "CMR-R022",
        title: "a file cannot be read",
        explanation: "A file that an option names, such as that of `eval --text`, is missing, may not be read, or is not \
                      text in UTF-8. The message has its path and the system's reason.",
    },
    Code {
        code: "CMR-R030",
        title: "the session file cannot be used",
        explanation: "The file is missing, truncated, altered, or of another release; or FILE.key beside it belongs to \
                      another session; or the session was saved by a run in the clear and is resumed by an encrypted one, \
                      or the other way round. The message says which. `--save-session FILE` writes FILE and FILE.key; \
                      `--resume FILE` needs both, and the `--backend` and `--check` of the run that saved them.",
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
        title: "a value left its range, or decrypts to something else",
        explanation: "`--check` saw a value leave the range that a bootstrap or a polynomial needs, or a ciphertext that \
                      does not decrypt to the value that the plan gives it, so that the text is not reliable. The message \
                      names the first such op. Calibrate with text that resembles the prompt (`cachemirc compile \
                      --calibrate`).",
    },
    Code {
        code: "CMR-R051",
        title: "a step's result is none that the calibrated model can give",
        explanation: "The client checks every step before it chooses a token: the arguments of approximations that an odd \
                      text can lead out of their range, the size of the logits, slots that must be zero, and the length of \
                      the last norm's result. Beyond what the model can give, a value left \
                      its range on the way, and the run ends before a wrong token is printed; a session on disk stays \
                      as it was. Of a text that `eval` measures, the part ends there. Compile with `--calibrate` and text that resembles the prompt. `--backend clear \
                      --check` names the first site that left its range within seconds.",
    },
    Code {
        code: "CMR-R060",
        title: "a system call failed",
        explanation: "Reading or writing a stream, or setting up threads, failed; the message has the system's reason.",
    },
];
