//! Compiles the shipped model, as `cargo run --release -p cachemir-compiler --example compile`; the path of another may
//! follow behind `--`.
// Text is what this program is for.
#![allow(clippy::print_stdout)]

use std::error::Error;

use cachemir_compiler::{CompileOptions, compile, summary};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tinystories2l_bounded/onnx/optimum/model.onnx");

fn main() -> Result<(), Box<dyn Error>> {
    let model = std::env::args().nth(1).unwrap_or_else(|| MODEL.to_owned());
    let compiled = compile(model, &CompileOptions::default())?;

    // What a token costs: bootstraps, rotations, products, and the approximations with their errors.
    print!("{}", summary::table::text(&compiled.plan, 100));

    // The client's part is written beside the plan, as example.client.
    let path = std::env::temp_dir().join("example.bin");
    compiled.plan.write(&path)?;
    println!("wrote {}", path.display());
    Ok(())
}
