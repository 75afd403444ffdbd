//! The binary, from a plan on disk to text on stdout.

mod common;

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cachemir-run")).args(arguments).output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The JSON objects on stdout, of which the last is the summary.
fn events(output: &Output) -> Vec<Value> {
    let stdout = String::from_utf8(output.stdout.clone()).unwrap();
    let objects: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(!objects.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    objects
}

fn token_ids(output: &Output) -> Vec<usize> {
    let events = events(output);
    let summary = events.last().unwrap();
    assert_eq!(summary["event"], "summary", "{}", String::from_utf8_lossy(&output.stderr));
    let ids = summary["token_ids"].as_array().unwrap();
    ids.iter().map(|id| id.as_u64().unwrap() as usize).collect()
}

fn expect_failure(output: &Output, exit: i32, code: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(exit), "{stderr}");
    assert!(stderr.contains(code), "{stderr}");
}

#[test]
fn both_backends_generate_what_the_model_says() {
    let folder = tempfile::tempdir().unwrap();
    let plan = common::write_plan(folder.path(), 16);
    for prompt in ["one", "two one", "one two two one one"] {
        let ids: Vec<usize> = std::iter::once(0)
            .chain(prompt.split(' ').map(|word| common::WORDS.iter().position(|known| *known == word).unwrap()))
            .collect();
        let expected = common::greedy(&ids, 6);
        for backend in ["clear", "cpu"] {
            let arguments = [text(&plan), "--prompt", prompt, "-n", "6", "--json", "--backend", backend, "--check"];
            let output = run(&arguments);
            assert_eq!(token_ids(&output), expected, "{backend}, {prompt}");
            let events = events(&output);
            let summary = events.last().unwrap();
            assert_eq!(summary["range_violations"], 0);
            assert_eq!(summary["parameters"], "insecure-test");
            assert_eq!(summary["security_bits"], Value::Null);
            assert_eq!(summary["rotations_per_token"], 7.0);
            assert_eq!(events.iter().filter(|event| event["event"] == "token").count(), 6);
            if backend == "cpu" {
                assert!(summary["precision_bits_min"].as_f64().unwrap() > 10.0, "{summary}");
            }
        }
        let plain = run(&[text(&plan), "--prompt", prompt, "-n", "6", "--backend", "clear"]);
        let words: Vec<&str> =
            expected.iter().map(|&id| common::WORDS[id]).filter(|word| !word.starts_with('<')).collect();
        assert_eq!(String::from_utf8(plain.stdout).unwrap().split_whitespace().collect::<Vec<_>>(), words);
    }
}

#[test]
fn a_session_continues_in_another_process() {
    let folder = tempfile::tempdir().unwrap();
    let plan = common::write_plan(folder.path(), 16);
    let session = folder.path().join("session");
    let sampling = ["--temperature", "1.5", "--seed", "3", "--ignore-end"];
    for backend in ["clear", "cpu"] {
        let common = [&[text(&plan), "--json", "--backend", backend], &sampling[..]].concat();
        let whole = token_ids(&run(&[&common[..], &["--prompt", "one two", "-n", "9"]].concat()));
        let mut parts =
            token_ids(&run(
                &[&common[..], &["--prompt", "one two", "-n", "5", "--save-session", text(&session)]].concat()
            ));
        parts.extend(token_ids(&run(&[&common[..], &["-n", "4", "--resume", text(&session)]].concat())));
        assert_eq!(parts, whole, "{backend}");
    }
    let other = run(&[text(&plan), "--backend", "clear", "--resume", text(&session)]);
    expect_failure(&other, 1, "CMR-R030");
    std::fs::remove_file(folder.path().join("session.key")).unwrap();
    expect_failure(&run(&[text(&plan), "--resume", text(&session)]), 1, "CMR-R032");
}

#[test]
fn generation_ends_with_the_context() {
    let folder = tempfile::tempdir().unwrap();
    let plan = common::write_plan(folder.path(), 5);
    let output = run(&[text(&plan), "--prompt", "one two", "-n", "9", "--backend", "clear", "--json", "--ignore-end"]);
    // Positions 3 and 4 take two new tokens in; the last one is not taken in.
    assert_eq!(token_ids(&output).len(), 3);
    assert_eq!(events(&output).last().unwrap()["stop"], "context");
}

#[test]
fn what_is_wrong_is_said_with_a_code() {
    let folder = tempfile::tempdir().unwrap();
    let plan = common::write_plan(folder.path(), 5);
    let plan_text = text(&plan);
    expect_failure(&run(&[plan_text, "--prompt", ""]), 2, "CMR-R010");
    expect_failure(&run(&[plan_text]), 2, "CMR-R010");
    expect_failure(&run(&[plan_text, "--prompt", "one", "--top-p", "2"]), 2, "CMR-R012");
    expect_failure(&run(&["--prompt", "one"]), 2, "PLAN");
    expect_failure(&run(&[plan_text, "--prompt", "one two one two one"]), 1, "CMR-R011");
    expect_failure(&run(&[plan_text, "--prompt", "one", "--save-session", "/nowhere/at/all"]), 1, "CMR-R021");
    expect_failure(&run(&[plan_text, "--resume", text(&folder.path().join("none"))]), 1, "CMR-R030");
    expect_failure(&run(&["missing.bin", "--prompt", "one"]), 1, "CMR-R001");
    let ops = |further: &[&str]| run(&[&["bench", "ops", "--params", "insecure-test"], further].concat());
    expect_failure(&ops(&["--log2-slots", "99"]), 2, "CMR-R012");
    expect_failure(&ops(&["--threads", "2", "--emit-cost", plan_text]), 2, "CMR-R012");
    expect_failure(&ops(&["--threads", "1", "--emit-cost", "/nowhere/at/all"]), 1, "CMR-R021");

    let good = std::fs::read(&plan).unwrap();
    std::fs::write(&plan, &good[..good.len() / 2]).unwrap();
    expect_failure(&run(&[plan_text, "--prompt", "one"]), 1, "CMR-R002");
    let mut altered = good.clone();
    let middle = altered.len() / 2;
    altered[middle] ^= 1;
    std::fs::write(&plan, &altered).unwrap();
    let output = run(&[plan_text, "--prompt", "one", "--json"]);
    expect_failure(&output, 1, "CMR-R002");
    assert_eq!(events(&output).last().unwrap()["code"], "CMR-R002");
    std::fs::write(&plan, &good).unwrap();
    let other = tempfile::tempdir().unwrap();
    common::write_plan(other.path(), 6);
    std::fs::copy(other.path().join("plan.client"), folder.path().join("plan.client")).unwrap();
    expect_failure(&run(&[plan_text, "--prompt", "one"]), 1, "CMR-R003");
    std::fs::remove_file(folder.path().join("plan.client")).unwrap();
    expect_failure(&run(&[plan_text, "--prompt", "one"]), 1, "CMR-R001");
}

#[test]
fn benches_and_the_doctor_report_json() {
    let folder = tempfile::tempdir().unwrap();
    let plan = common::write_plan(folder.path(), 16);
    let output = run(&["bench", "plan", text(&plan), "--prompt-tokens", "3", "-n", "3", "--json"]);
    let bench = events(&output).pop().unwrap();
    assert_eq!(bench["event"], "bench");
    assert!(bench["token_ntts"].as_f64().unwrap() > 0.0);
    let output = run(&["doctor", "--json"]);
    let doctor = events(&output).pop().unwrap();
    for preset in doctor["presets"].as_array().unwrap() {
        assert!(preset["transform_ns"].as_f64().unwrap() > 0.0);
        assert_eq!(preset["security_bits"].is_null(), preset["parameters"] == "insecure-test");
    }
    let file = folder.path().join("text");
    std::fs::write(&file, "one two one one").unwrap();
    let output = run(&["eval", text(&plan), "--text", text(&file), "--json"]);
    let eval = events(&output).pop().unwrap();
    assert_eq!(eval["tokens"], 4);
    assert!(eval["perplexity"].as_f64().unwrap() >= 1.0);
}
