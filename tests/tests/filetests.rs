//! Programs in text under `filetests/`: each is read, verified and printed again, with what the verifier finds as comments,
//! and must look like the file. `CACHEMIR_BLESS=1` rewrites the files.

use std::path::{Path, PathBuf};

use cachemir_ir::ckks::CkksOp;
use cachemir_ir::parameters::Parameters;
use cachemir_ir::slots::SlotOp;
use cachemir_ir::slots_interpreter;
use cachemir_ir::text::{parse, print_with_problems};
use cachemir_ir::verify;
use cachemir_ir::weights::Weights;
use cachemir_tests::{ClearSession, assert_golden};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("filetests")
}

fn text_of(name: &str) -> String {
    std::fs::read_to_string(folder().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The tables that files may name by hash: 0, 1, …, n-1 for any n up to 64.
fn find(hash: &[u8; 32]) -> Option<Weights> {
    let tables = (1..=64_u8).map(|length| (0..length).map(f32::from).collect::<Vec<f32>>());
    tables.map(Weights::from).find(|weights| weights.hash() == *hash)
}

/// The file's own comments, which stand at its top; those of the verifier start with `; error: `.
fn own_comments(text: &str) -> String {
    let comments = text.lines().filter(|line| line.starts_with("; ") && !line.starts_with("; error: "));
    comments.flat_map(|line| [line, "\n"]).collect()
}

#[test]
fn files_look_as_they_are_printed() {
    let mut names: Vec<_> = std::fs::read_dir(folder()).unwrap().map(|file| file.unwrap().file_name()).collect();
    names.sort();
    assert!(!names.is_empty());
    let is_program = |name: &&str| Path::new(name).extension().is_some_and(|extension| extension == "cmir");
    for name in names.iter().filter_map(|name| name.to_str()).filter(is_program) {
        let text = text_of(name);
        let stage = text.lines().find(|line| line.starts_with("cachemir ")).unwrap_or_default();
        let printed = match stage {
            "cachemir slots" => {
                let program = parse::<SlotOp>(&text, &find).unwrap_or_else(|error| panic!("{name}: {error}"));
                print_with_problems(&program, &verify::slots_problems(&program, true))
            }
            _ => {
                let program = parse::<CkksOp>(&text, &find).unwrap_or_else(|error| panic!("{name}: {error}"));
                print_with_problems(&program, &verify::ckks_problems(&program, Parameters::n16().levels()))
            }
        };
        assert_golden(&folder().join(name), &format!("{}{printed}", own_comments(&text)));
    }
}

#[test]
fn the_masked_sum_means_what_it_says() {
    let program = parse::<SlotOp>(&text_of("masked_sum.cmir"), &find).unwrap();
    let mut interpreter = slots_interpreter::Interpreter::new(&program);
    let x = vec![1.0, 9.0, 1.0, 9.0, 1.0, 9.0, 1.0, 9.0];
    // Position 0 weighs slot s by s, position 1 by s + 8; both land in element 0.
    let first = interpreter.call("decode", 0, 1, std::slice::from_ref(&x)).unwrap();
    assert_eq!(first, [[0.0, 0.0, 0.0, 0.0, 4.0, 0.0, 0.0, 0.0]]);
    let second = interpreter.call("decode", 1, 1, std::slice::from_ref(&x)).unwrap();
    assert_eq!(second, [[8.0, 0.0, 0.0, 0.0, 16.0, 0.0, 0.0, 0.0]]);
    // Position 4 writes element 1, which is rotated by -2 ahead of the sum.
    let third = interpreter.call("decode", 4, 1, &[x]).unwrap();
    assert_eq!(third, [[8.0 + 6.0, 0.0, 0.0, 0.0, 16.0 + 2.0, 0.0, 0.0, 0.0]]);
}

#[test]
fn the_linear_pair_means_what_it_says() {
    let program = parse::<SlotOp>(&text_of("linear_pair.cmir"), &find).unwrap();
    let mut interpreter = slots_interpreter::Interpreter::new(&program);
    let vector = [1.0, -2.0, 0.5, 3.0];
    let mut x = vec![0.0; 16];
    vector.iter().enumerate().for_each(|(index, value)| x[4 * index] = *value);
    let dense = |row: usize| (0..4).map(|column| (4 * row + column) as f64 * vector[column]).sum::<f64>();
    for position in 0..4 {
        let found = interpreter.call("decode", position as i64, 1, std::slice::from_ref(&x)).unwrap();
        for row in 0..4 {
            assert_eq!(found[0][4 * row + position], dense(row), "position {position}, row {row}");
            assert_eq!(found[1][4 * row + position], dense(row) + row as f64);
        }
        for row in 0..3 {
            assert_eq!(found[2][2 * row], dense(row) + row as f64);
        }
    }
}

#[test]
fn the_paired_bootstrap_means_what_it_says() {
    let program = parse::<CkksOp>(&text_of("paired_bootstrap.cmir"), &find).unwrap();
    let levels = Parameters::n16().levels();
    let mut session = ClearSession::new(&program, levels).unwrap();
    let x = vec![0.5, 0.1, -0.25, 0.1, 0.0, 0.1, 0.125, 0.1];
    let polynomial = |u: f64| 0.5 + 0.25 * u + 0.125 * (4.0 * u * u * u - 3.0 * u);
    let expected: Vec<f64> = (0..8).map(|slot| polynomial(if slot % 2 == 0 { x[slot] } else { 0.0 }).powi(2)).collect();
    let found = session.call("decode", 0, 1, &[x]).unwrap();
    assert!(found[0].iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-12), "{found:?} {expected:?}");
}
