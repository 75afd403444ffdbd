//! Generates text from the shipped model under encryption, as `cargo run --release -p cachemir-runtime --example generate`.
//!
//! With parameters that are not secure, so that it takes seconds; a prompt may follow behind `--`.
// Text is what this program is for.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::io::{Write, stdout};

use cachemir_compiler::{CompileOptions, compile};
use cachemir_runtime::{GenerateOptions, Plans, Session};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tinystories2l_bounded/onnx/optimum/model.onnx");

fn main() -> Result<(), Box<dyn Error>> {
    let prompt = std::env::args().nth(1).unwrap_or_else(|| "Once upon a time".to_owned());

    // A file that `cachemirc compile` wrote is read by `Plans::read`.
    let options = CompileOptions { parameters: "insecure-test".to_owned(), ..CompileOptions::default() };
    let plans = Plans::of(compile(MODEL, &options)?.plan)?;

    let mut session = Session::encrypted(&plans)?;
    session.prompt(prompt.as_str())?;
    let options = GenerateOptions { max_tokens: 8, ..GenerateOptions::default() };
    let made = session.generate(&options, &mut |piece: &str| {
        print!("{piece}");
        // A terminal that is gone is no concern of an example.
        let _ = stdout().flush();
    })?;
    println!("\n{} tokens, encrypted with the parameters {}", made.generated, plans.server.parameters.name);
    Ok(())
}
