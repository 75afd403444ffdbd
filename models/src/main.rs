//! The demo behind `cargo demo`: compiles the shipped model and generates text from it under encryption at 128 bits, by
//! running the two commands that a user would type. Arguments replace the prompt.
#![forbid(unsafe_code)]

use std::env;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const MODEL: &str = "models/tinystories2l_bounded/onnx/optimum/model.onnx";
const CALIBRATION: &str = "models/tinystories2l_bounded/calibration.txt";
const PROMPT: &str = "Once upon a time";
const TOKENS: &str = "8";

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let prompt = if words.is_empty() { PROMPT.to_owned() } else { words.join(" ") };
    let plan = "target/demo/plan.bin";
    let compile = ["compile", MODEL, "--calibrate", CALIBRATION, "-o", plan];
    let generate = [plan, "--prompt", &prompt, "-n", TOKENS];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    if let Err(error) = std::fs::create_dir_all(folder.join("target/demo")) {
        return fail(&format!("cannot create target/demo: {error}"));
    }
    let binaries = match build(&folder) {
        Ok(binaries) => binaries,
        Err(error) => return fail(&format!("cannot build the two programs: {error}")),
    };
    for (binary, arguments) in [("cachemirc", &compile[..]), ("cachemir-run", &generate[..])] {
        match run(&folder, &binaries, binary, arguments) {
            Ok(true) => {}
            Ok(false) => return ExitCode::FAILURE,
            Err(error) => return fail(&format!("cannot start {binary}: {error}")),
        }
    }
    ExitCode::SUCCESS
}

/// Builds both programs, and returns the folder they are in: the one that holds this program.
fn build(folder: &Path) -> io::Result<PathBuf> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(folder)
        .args(["build", "--release", "-p", "cachemir-compiler", "-p", "cachemir-runtime", "--bins"])
        .status()?;
    if !status.success() {
        return Err(io::Error::other("cargo build failed"));
    }
    let own = env::current_exe()?;
    Ok(own.parent().map(Path::to_owned).unwrap_or_default())
}

/// Shows a command as a user would type it and runs it in the repository's folder; tells whether it succeeded.
fn run(folder: &Path, binaries: &Path, binary: &str, arguments: &[&str]) -> io::Result<bool> {
    let quoted: Vec<String> = arguments.iter().map(|argument| quote(argument)).collect();
    writeln!(io::stderr(), "\n$ {binary} {}", quoted.join(" "))?;
    let status = Command::new(binaries.join(binary)).current_dir(folder).args(arguments).status()?;
    Ok(status.success())
}

fn quote(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=".contains(c);
    if !argument.is_empty() && argument.chars().all(plain) {
        argument.to_owned()
    } else {
        format!("'{}'", argument.replace('\'', r"'\''"))
    }
}

fn fail(message: &str) -> ExitCode {
    // Nothing is left to report to if standard error is closed.
    let _ = writeln!(io::stderr(), "demo: {message}");
    ExitCode::FAILURE
}
