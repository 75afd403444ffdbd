//! What an observer sees of a compilation.

use std::path::Path;
use std::sync::Mutex;

use cachemir_compiler::compile::{CompileOptions, compile_watched};
use cachemir_compiler::progress::{Observer, Pass};

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

    fn layers(&self, layers: usize) {
        let running = self.passes.lock().unwrap().last().unwrap().0;
        *self.layers.lock().unwrap() = Some((layers, running));
    }

    fn advance(&self, fraction: f64) {
        self.passes.lock().unwrap().last_mut().unwrap().1.push(fraction);
    }
}

#[test]
fn passes_come_in_order_and_advance_to_their_ends() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tinystories2l_bounded");
    let options = CompileOptions {
        config: None,
        tokenizer: None,
        calibration: None,
        prefix: None,
        context: Some(32),
        parameters: "n16".to_owned(),
        shapes_only: false,
    };
    let seen = Seen::default();
    if let Err(error) = compile_watched(&folder.join("onnx/optimum/model.onnx"), &options, &seen) {
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
