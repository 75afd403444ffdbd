//! What an observer sees of a compilation.

use std::path::Path;
use std::sync::Mutex;

use cachemir_compiler::compile::{CompileOptions, compile_watched};
use cachemir_compiler::progress::{Observer, Pass};
use cachemir_compiler::{Compilation, Error};
use cachemir_ir::tensor::TensorModel;

#[derive(Default)]
struct Seen {
    /// Passes with the parts of them that were reported.
    passes: Mutex<Vec<(Pass, Vec<f64>)>>,
    layers: Mutex<Option<(usize, Pass)>>,
}

impl Observer for Seen {
    fn begin(&self, pass: Pass) {
        self.passes.lock().unwrap().push((pass, Vec::new()));
    }

    fn model(&self, model: &TensorModel) -> Result<(), Error> {
        let running = self.passes.lock().unwrap().last().unwrap().0;
        *self.layers.lock().unwrap() = Some((model.hyperparameters.layers, running));
        Ok(())
    }

    fn advance(&self, fraction: f64) {
        self.passes.lock().unwrap().last_mut().unwrap().1.push(fraction);
    }
}

/// Compiles the shipped model.
fn compile(observer: &dyn Observer) -> Result<Compilation, Error> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tinystories2l_bounded");
    let options = CompileOptions { context: Some(32), ..CompileOptions::default() };
    compile_watched(&folder.join("onnx/optimum/model.onnx"), &options, observer)
}

#[test]
fn passes_come_in_order_and_advance_to_their_ends() {
    let seen = Seen::default();
    if let Err(error) = compile(&seen) {
        panic!("{error}");
    }
    assert_eq!(seen.layers.into_inner().unwrap(), Some((2, Pass::Import)));
    let passes = seen.passes.into_inner().unwrap();
    let order: Vec<Pass> = passes.iter().map(|(pass, _)| *pass).collect();
    assert_eq!(order, Pass::ALL);
    for (pass, parts) in &passes {
        let most = parts.iter().copied().fold(0.0, f64::max);
        assert!(parts.iter().all(|part| (0.0..=1.0).contains(part)), "{pass:?}: {parts:?}");
        match pass {
            Pass::Import | Pass::Approximate | Pass::Assemble => assert!(parts.is_empty()),
            // How long the search takes is only estimated.
            Pass::Place => assert!(most > 0.3, "{most}"),
            _ => assert_eq!(most, 1.0, "{pass:?}"),
        }
    }
}

/// Wants no model, and nothing after it.
struct Refuses;

impl Observer for Refuses {
    fn begin(&self, pass: Pass) {
        assert_eq!(pass, Pass::Import);
    }

    fn model(&self, model: &TensorModel) -> Result<(), Error> {
        let message = format!("{} bytes of weights", model.stored_bytes());
        Err(Error::BadOption { option: "--output", message })
    }

    fn advance(&self, _: f64) {}
}

#[test]
fn an_observer_that_wants_no_such_model_ends_the_compilation() {
    let error = compile(&Refuses).err().unwrap().to_string();
    // The embedding is the output head's matrix and stored once.
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tinystories2l_bounded/onnx/optimum/model.onnx");
    let file = data.metadata().unwrap().len();
    let found: u64 = error.split_whitespace().find_map(|word| word.parse().ok()).unwrap();
    assert!(found > file / 2 && found < file, "{error}: {file} bytes in the file");
}
