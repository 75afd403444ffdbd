//! Writes the stages of a compilation to files, one a stage: `1-tensor.txt`, `2-slots.json`, …

use std::fs;
use std::path::Path;

use cachemir_ir::ckks::{CiphertextType, CkksOp};
use cachemir_ir::cost::CostTable;
use cachemir_ir::files::{check_writable_folder, replace};
use cachemir_ir::program::Program;
use cachemir_ir::slots::{SlotOp, SlotType};
use cachemir_ir::tensor::TensorModel;
use cachemir_ir::{json, text};

use crate::Error;

/// Fails where the folder cannot be made or written to, before the work that would be lost.
pub fn check_writable(folder: &Path) -> Result<(), Error> {
    check_writable_folder(folder).map_err(|source| Error::Write { path: folder.to_owned(), source })
}

/// Writes the recognised model.
pub fn tensor(model: &TensorModel, folder: &Path, as_json: bool) -> Result<(), Error> {
    let content = if as_json { json::dump_model(model) } else { text::print_model(model) };
    write(folder, "1-tensor", as_json, &content)
}

/// Writes the packed program.
pub fn slots(program: &Program<SlotOp, SlotType>, folder: &Path, as_json: bool) -> Result<(), Error> {
    let content = if as_json { json::dump_slots(program) } else { text::print(program) };
    write(folder, "2-slots", as_json, &content)
}

/// Writes the program of typed ciphertexts, in JSON with the price of each op.
pub fn ckks(
    program: &Program<CkksOp, CiphertextType>,
    costs: &CostTable,
    folder: &Path,
    as_json: bool,
) -> Result<(), Error> {
    let content = if as_json { json::dump_ckks(program, costs) } else { text::print(program) };
    write(folder, "3-ckks", as_json, &content)
}

fn write(folder: &Path, name: &str, as_json: bool, content: &str) -> Result<(), Error> {
    let failed = |path: &Path, source| Error::Write { path: path.to_owned(), source };
    fs::create_dir_all(folder).map_err(|source| failed(folder, source))?;
    let path = folder.join(format!("{name}.{}", if as_json { "json" } else { "txt" }));
    replace(&path, &[content.as_bytes()], false).map_err(|source| failed(&path, source))
}
