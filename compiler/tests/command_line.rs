//! The binary, from the shipped model to a plan, its summary and its dumps.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use cachemir_ir::cost::CostTable;
use cachemir_ir::parameters::Parameters;
use serde_json::Value;

fn model_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tinystories2l_bounded")
}

/// Runs the program in a folder.
fn run_in(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cachemirc"));
    command.current_dir(folder).env("COLUMNS", "80").env_remove("CACHEMIR_ISA").args(arguments).output().unwrap()
}

fn run(arguments: &[&str]) -> Output {
    run_in(Path::new("."), arguments)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn stdout(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Checks a document against a schema that the program prints.
fn conforms(schema: &str, document: &Value) {
    let schema: Value = serde_json::from_str(&stdout(&run(&["schema", schema]))).unwrap();
    assert_eq!(schema["$id"], document["$schema"]);
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let faults: Vec<String> =
        validator.iter_errors(document).map(|fault| format!("{}: {fault}", fault.instance_path())).collect();
    assert_eq!(faults, [""; 0]);
}

#[test]
fn a_model_folder_becomes_a_plan_with_summary_and_dumps() {
    let folder = tempfile::tempdir().unwrap();
    let (model, calibration) = (model_folder().join("onnx/optimum"), model_folder().join("calibration.txt"));
    let further = ["--calibrate", text(&calibration), "--ctx-size", "64", "--params", "insecure-test"];
    let dumps = ["--dump-dir", "dumps/new", "--format", "json", "--json"];
    let output = run_in(folder.path(), &[&["compile", text(&model)], &further[..], &dumps[..]].concat());
    let summary: Value = serde_json::from_str(&stdout(&output)).unwrap();
    conforms("summary", &summary);
    assert_eq!(summary["context_tokens"], 64);
    assert_eq!(summary["parameters"]["security_bits"], Value::Null);
    assert_eq!(summary["approximations"].as_array().unwrap().len(), 12);
    // Without a terminal, the passes are lines on stderr.
    let notes = String::from_utf8(output.stderr).unwrap();
    assert!(notes.starts_with("reading the model\n") && notes.contains("\nplacing bootstraps\n"), "{notes}");

    for (stage, file) in [("tensor", "1-tensor.json"), ("slots", "2-slots.json"), ("ckks", "3-ckks.json")] {
        let dump: Value =
            serde_json::from_slice(&fs::read(folder.path().join("dumps/new").join(file)).unwrap()).unwrap();
        conforms("dump", &dump);
        assert_eq!(dump["stage"], stage);
        for entry in dump["entries"].as_array().unwrap() {
            assert!(entry["ops"].as_array().unwrap().iter().all(|op| op["origin"]["node"].is_string()), "{stage}");
        }
    }

    // The plan has the model's name, and says as much as the compilation did.
    let plan = folder.path().join("tinystories2l_bounded.bin");
    assert!(plan.is_file() && plan.with_extension("client").is_file());
    assert_eq!(summary["files"]["plan"], "tinystories2l_bounded.bin");
    let inspected: Value = serde_json::from_str(&stdout(&run(&["inspect", text(&plan), "--json"]))).unwrap();
    let mut alike = summary.clone();
    for only_once in ["files", "passes"] {
        alike.as_object_mut().unwrap().remove(only_once).unwrap();
    }
    assert_eq!(inspected, alike);
    let shown = stdout(&run(&["inspect", text(&plan)]));
    assert!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
    assert!(shown.contains("NO SECURITY") && shown.contains("ciphertext products"), "{shown}");

    // Again over the plan, quietly; and in words.
    let quiet = run_in(folder.path(), &[&["compile", text(&model), "-q"], &further[..]].concat());
    assert_eq!((stdout(&quiet), quiet.stderr.len()), (String::new(), 0));
    let arguments = ["compile", text(&model), "-o", "named.bin", "-v", "--emit", "slots,ckks", "--dump-dir", "text"];
    let loud = stdout(&run_in(folder.path(), &[&arguments[..], &further[..]].concat()));
    assert!(loud.starts_with(&shown), "{loud}");
    assert!(loud.contains("placing bootstraps") && loud.ends_with("wrote named.bin and named.client\n"), "{loud}");
    let mut files: Vec<_> =
        fs::read_dir(folder.path().join("text")).unwrap().map(|file| file.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["2-slots.txt", "3-ckks.txt"]);
}

fn expect(output: &Output, exit: i32, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let joined = stderr.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(output.status.code(), Some(exit), "{stderr}");
    for word in words {
        assert!(joined.contains(word), "{word} is not in {stderr}");
    }
}

#[test]
fn what_is_wrong_is_said_before_the_work_with_code_and_help() {
    let folder = tempfile::tempdir().unwrap();
    let model = model_folder().join("onnx/optimum/model.onnx");
    let compile = |further: &[&str]| run_in(folder.path(), &[&["compile", text(&model)], further].concat());
    expect(&compile(&["-o", "no/such/plan.bin"]), 1, &["C0502", "no/such/plan.bin", "Check the folder"]);
    expect(&compile(&["-o", "x.client"]), 2, &["C0401"]);
    fs::write(folder.path().join("file"), "").unwrap();
    expect(&compile(&["-o", "x.bin", "--dump-dir", "file/below"]), 1, &["C0502", "file/below"]);
    expect(&compile(&["-o", "x.bin", "--context", "100000"]), 2, &["C0401", "--context"]);
    // A cost table that is none is refused ahead of everything, and nothing is written.
    let table = |contents: &str| {
        fs::write(folder.path().join("table.json"), contents).unwrap();
        compile(&["-o", "x.bin", "--cost-table", "table.json", "--dump-dir", "dumps"])
    };
    expect(&table("{"), 1, &["C0504", "table.json", "--emit-cost"]);
    let built_in = CostTable::built_in(&Parameters::n16()).to_json();
    expect(&table(&built_in.replace("\"format_version\": 2", "\"format_version\": 1")), 1, &["C0504", "version is 1"]);
    expect(&table(&built_in.replace("\"n16\"", "\"n99\"")), 1, &["C0504", "`n99`"]);
    let first = built_in.find("\"ns\": ").unwrap() + 6;
    expect(&table(&format!("{}-{}", &built_in[..first], &built_in[first..])), 1, &["C0504", "outside"]);
    expect(&compile(&["-o", "x.bin", "--cost-table", "no-such.json"]), 1, &["C0501", "no-such.json"]);
    assert!(!folder.path().join("dumps").exists());
    // What is there and no plan is not replaced.
    let others = ["tinystories2l_bounded.bin", "notes.txt", "y.client"];
    for file in others {
        fs::write(folder.path().join(file), "mine").unwrap();
    }
    for output in [&[][..], &["-o", "notes.txt"], &["-o", "y.bin"]] {
        expect(&compile(output), 1, &["C0502", "another kind"]);
    }
    assert!(others.iter().all(|file| fs::read(folder.path().join(file)).unwrap() == b"mine"));
    assert!(!folder.path().join("x.bin").exists());

    expect(&run(&["compile", "no/such.onnx", "-o", text(&folder.path().join("x.bin"))]), 1, &["C0501", "no/such.onnx"]);
    expect(&run(&["compile", text(folder.path())]), 1, &["C0104", "no .onnx file"]);
    expect(&run(&["inspect", "no-such.bin"]), 1, &["C0501"]);
    expect(&run(&["inspect", text(&model)]), 1, &["C0503", "compile"]);
    expect(&run(&["explain", "C9999"]), 2, &["C0401", "C9999"]);
    expect(&run(&["man", "bake"]), 2, &["C0401", "bake"]);
    for wrong in [&["compile"][..], &["bake"], &["compile", "m", "--params", "n17"], &["schema", "plan"], &[]] {
        expect(&run(wrong), 2, &["--help"]);
    }
}

#[test]
fn errors_are_objects_where_results_are() {
    for (arguments, exit, code) in [
        (&["inspect", "no-such.bin", "--json"][..], 1, "C0501"),
        (&["compile", "no-such.onnx", "--json", "-o", "/no/such/folder/x.bin"], 1, "C0502"),
        (&["compile", "--json", "m.onnx", "--params", "n17"], 2, "C0402"),
    ] {
        let output = run(arguments);
        expect(&output, exit, &[]);
        let object: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&object["event"], &object["code"]), (&"error".into(), &code.into()));
        assert!(object["message"].is_string() && object["help"].is_string() && object["node"].is_null(), "{object}");
    }
}

#[test]
fn errors_break_between_words_only() {
    let long = "a-folder-with-a-name-of-many-parts/onnx/another-folder-with-a-name-of-many-parts/decoder_model_of_its_own.onnx";
    let output = run(&["compile", long, "-o", text(&tempfile::tempdir().unwrap().path().join("x.bin"))]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains(long), "{stderr}");
}

#[test]
fn help_version_completions_and_manual_are_printed() {
    let version = stdout(&run(&["--version"]));
    assert!(version.starts_with(concat!("cachemirc ", env!("CARGO_PKG_VERSION"))), "{version}");
    let help = stdout(&run(&["compile", "--help"]));
    for word in ["insecure-test", "NO SECURITY", "n15", "deep", "--ctx-size", "cachemirc schema", "folder"] {
        assert!(help.contains(word), "{word} is not in {help}");
    }
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(stdout(&run(&["completions", shell])).contains("dump-dir"), "{shell}");
    }
    assert!(stdout(&run(&["man"])).contains(".TH cachemirc"));
    assert!(stdout(&run(&["man", "compile"])).contains("calibrate"));
    let all = stdout(&run(&["explain"]));
    assert!(all.contains("C0101     the file is no ONNX model") && all.contains("CMR-R051  "), "{all}");
    assert!(stdout(&run(&["explain", "cmr-r050"])).starts_with("CMR-R050: "));
    assert!(stdout(&run(&["explain", "c0202"])).starts_with("C0202: "));
}

#[test]
fn a_reader_that_leaves_ends_every_command_quietly() {
    for arguments in [&["completions", "bash"][..], &["man"], &["explain"], &["schema"], &["--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = Command::new(env!("CARGO_BIN_EXE_cachemirc")).args(arguments).stdout(writer).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), stderr.as_ref()), (Some(0), ""), "{arguments:?}");
    }
}
