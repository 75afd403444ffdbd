//! The binary, from a plan on disk to text on stdout.

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use cachemir_ir::cost::CostTable;
use cachemir_ir::parameters::Parameters;
use cachemir_ir::program::EntryPoint;
use cachemir_ir::program::{Affine, Placement, RangeCheck};
use cachemir_runtime::generation::Step;
use cachemir_runtime::{Listener, Plans, Prompt, Session};
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

#[cfg(unix)]
#[test]
fn a_run_that_is_interrupted_keeps_what_it_has_and_says_so_in_its_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let plan = common::write_plan(folder.path(), 1024);
    let saved = folder.path().join("session");
    let arguments = ["--prompt", "one", "-n", "1000", "--json", "--save-session", text(&saved)];
    let mut run = Command::new(env!("CARGO_BIN_EXE_cachemir-run"))
        .arg(&plan)
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(run.stdout.take().unwrap()).lines().map(|line| line.unwrap());
    assert!(lines.any(|line| line.contains("\"token\"")));
    assert!(Command::new("kill").args(["-INT", &run.id().to_string()]).status().unwrap().success());
    let summary: Value = serde_json::from_str(&lines.last().unwrap()).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(130));
    assert_eq!(summary["stop"], "interrupted");
    let tokens = summary["token_ids"].as_array().unwrap().len();
    assert!(tokens > 0 && tokens < 1000 && saved.exists(), "{tokens} tokens");
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
fn a_run_tells_how_far_it_is_and_compares_with_what_was_predicted() {
    let folder = tempfile::tempdir().unwrap();
    let plan =
        common::write_changed_plan(folder.path(), 16, |plan| plan.prefill_pays = vec![2; plan.prefill_pays.len()]);
    let arguments = [text(&plan), "--prompt", "one two one two one", "-n", "3", "--json", "--ignore-end"];
    let output = run(&[&arguments[..], &["--plaintext-memory", "3MiB"]].concat());
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    // Without a terminal: when keys are there, and at each finished call for the prompt, of at most two tokens here.
    let lines: Vec<&str> = stderr.lines().filter(|line| line.starts_with("keys") || line.contains(" left")).collect();
    let beginnings =
        ["keys ", "prompt: 2 of 6 tokens after ", "prompt: 4 of 6 tokens after ", "prompt: 6 of 6 tokens after "];
    assert_eq!(lines.len(), beginnings.len(), "{stderr}");
    assert!(lines.iter().zip(beginnings).all(|(line, beginning)| line.starts_with(beginning)), "{stderr}");
    let joined = stderr.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(joined.contains("and up to 3.0 MiB of encoded weights"), "{stderr}");
    assert!(joined.matches("; predicted ").count() == 2 && joined.contains(" times as long"), "{stderr}");

    let events = events(&output);
    let (start, summary) = (&events[0], events.last().unwrap());
    assert_eq!(start["plaintext_bytes"], 3 << 20);
    let number = |field: &str| summary[field].as_f64().unwrap();
    assert!(number("predicted_seconds_per_token") > 0.0 && number("predicted_prefill_seconds") > 0.0, "{summary}");
    let ratio = number("seconds_per_token") / number("predicted_seconds_per_token");
    assert!((number("measured_over_predicted") / ratio - 1.0).abs() < 1e-9, "{summary}");

    // Quiet is quiet, and of a run in the clear nothing is predicted.
    assert!(run(&[&arguments[..], &["-q"]].concat()).stderr.is_empty());
    let clear = run(&[&arguments[..], &["--backend", "clear"]].concat());
    let summary = self::events(&clear).pop().unwrap();
    assert!(!String::from_utf8(clear.stderr).unwrap().contains("predicted"));
    for field in ["predicted_seconds_per_token", "measured_over_predicted", "predicted_prefill_seconds"] {
        assert_eq!(summary[field], Value::Null);
    }
}

#[test]
fn a_measured_cost_table_is_one_that_the_compiler_reads() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("table.json");
    let sizes = ["--params", "insecure-test", "--log2-slots", "6", "--runs", "1", "--threads", "1"];
    let output = run(&[&["bench", "ops", "--emit-cost", text(&file)], &sizes[..]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table = CostTable::from_json(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let parameters = Parameters::insecure_test();
    assert_eq!(table.parameters, parameters.name);
    assert_eq!(table.clone().for_parameters(&parameters).unwrap(), table);
}

/// The entry points of the calls that are made.
struct Calls(Vec<EntryPoint>);

impl Listener for Calls {
    fn step(&mut self, step: Step) {
        self.0.push(step.entry);
    }
}

#[test]
fn a_prompt_is_read_by_prefill_where_the_plan_says_that_it_pays() {
    let folder = tempfile::tempdir().unwrap();
    let read = |pays: u32| {
        let path = common::write_changed_plan(folder.path(), 8, |plan| plan.prefill_pays[0] = pays);
        let plans = Plans::read(&path).unwrap();
        let mut session = Session::clear(&plans).unwrap();
        session.prompt(Prompt::Tokens(vec![0, 1, 2, 1])).unwrap();
        let mut calls = Calls(Vec::new());
        let logits = session.logits(&mut calls).unwrap();
        (calls.0, logits)
    };
    let (calls, by_prefill) = read(2);
    assert_eq!(calls, [EntryPoint::Prefill; 2]);
    let (calls, by_decoding) = read(3);
    assert_eq!(calls, [EntryPoint::Decode, EntryPoint::Decode, EntryPoint::Prefill]);
    assert!(by_prefill.iter().zip(&by_decoding).all(|(a, b)| (a - b).abs() < 1e-9), "{by_prefill:?}, {by_decoding:?}");
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
    for (option, value) in [("--top-p", "2"), ("--temperature", "-1"), ("--min-p", "-0.5")] {
        let output = run(&[plan_text, "--prompt", "one", option, value]);
        expect_failure(&output, 2, "CMR-R012");
        expect_failure(&output, 2, "must be");
    }
    expect_failure(&run(&["--prompt", "one"]), 2, "PLAN");
    expect_failure(&run(&["bench", "layer", plan_text]), 2, "no decoder layers");
    expect_failure(&run(&[plan_text, "--prompt", "one two one two one"]), 1, "CMR-R011");
    expect_failure(&run(&[plan_text, "--prompt", "one", "--save-session", "/nowhere/at/all"]), 1, "CMR-R021");
    expect_failure(&run(&[plan_text, "--resume", text(&folder.path().join("none"))]), 1, "CMR-R030");
    expect_failure(&run(&["eval", plan_text, "--text", "no-such.txt"]), 1, "cannot read no-such.txt");
    expect_failure(&run(&["eval", plan_text, "--text", plan_text]), 1, "CMR-R022");
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

/// The summary of a run in the clear.
fn clear_tokens(plan: &Path, further: &[&str]) -> Vec<usize> {
    token_ids(&run(&[&[text(plan), "--backend", "clear", "--json", "--ignore-end"], further].concat()))
}

#[test]
fn prompts_come_as_text_as_ids_and_from_stdin() {
    use std::io::Write;
    let folder = tempfile::tempdir().unwrap();
    let plan = common::write_plan(folder.path(), 16);
    let expected = clear_tokens(&plan, &["--prompt", "one two", "-n", "4"]);
    assert_eq!(expected, common::greedy(&[0, 1, 2], 4));
    assert_eq!(clear_tokens(&plan, &["--prompt-ids", "0,1,2", "--max-tokens", "4"]), expected);
    let mut child = Command::new(env!("CARGO_BIN_EXE_cachemir-run"))
        .args([text(&plan), "-p", "-", "--n-predict", "4", "--backend", "clear", "--json", "--ignore-eos", "--quiet"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"one two\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(token_ids(&output), expected);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "--quiet says nothing");
    expect_failure(&run(&[text(&plan), "--backend", "clear", "--prompt-ids", "1,4"]), 2, "CMR-R013");
}

#[test]
fn a_model_without_a_tokenizer_shows_ids() {
    let folder = tempfile::tempdir().unwrap();
    let plan = common::write_changed_plan(folder.path(), 16, |plan| plan.model.tokenizer = None);
    expect_failure(&run(&[text(&plan), "--backend", "clear", "--prompt", "one"]), 1, "--prompt-ids");
    let output = run(&[text(&plan), "--backend", "clear", "--prompt-ids", "0,1", "-n", "3", "--ignore-end"]);
    let shown: Vec<usize> =
        String::from_utf8(output.stdout).unwrap().split_whitespace().map(|id| id.parse().unwrap()).collect();
    assert_eq!(shown, common::greedy(&[0, 1], 3));
}

#[test]
fn a_message_is_written_as_the_template_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let plain = common::write_plan(folder.path(), 16);
    expect_failure(&run(&[text(&plain), "--backend", "clear", "--chat", "--prompt", "two"]), 1, "CMR-R005");
    let source = "{{ bos_token }} {% for m in messages %}{% if m['role'] == 'system' %}two {% endif %}{{ m.content }} \
                  {% endfor %}{% if add_generation_prompt %}one{% endif %}";
    let plan = common::write_changed_plan(folder.path(), 16, |plan| {
        let tokens = [("bos_token".to_owned(), "<s>".to_owned())].into();
        plan.model.chat = Some(cachemir_ir::plan::ChatTemplate { source: source.to_owned(), tokens });
    });
    // The start token is in the template, and not added again.
    let chat = |further: &[&str]| clear_tokens(&plan, &[&["--chat", "--prompt", "two", "-n", "3"], further].concat());
    assert_eq!(chat(&[]), common::greedy(&[0, 2, 1], 3));
    assert_eq!(chat(&["--system", "one"]), common::greedy(&[0, 2, 1, 2, 1], 3));
}

#[test]
fn what_the_model_cannot_give_is_refused_and_the_session_stays() {
    let folder = tempfile::tempdir().unwrap();
    let plan = common::write_plan(folder.path(), 16);
    let session = folder.path().join("session");
    let key = folder.path().join("session.key");
    for backend in ["clear", "cpu"] {
        let plan = text(&plan);
        let begun = run(&[plan, "--backend", backend, "--prompt", "one", "-n", "2", "--save-session", text(&session)]);
        assert!(begun.status.success(), "{}", String::from_utf8_lossy(&begun.stderr));
        let saved = [std::fs::read(&session).unwrap(), std::fs::read(&key).unwrap()];
        // The same plan, whose client now knows that such logits are wrong. The server's file, and with it the session's plan, is the same.
        let client_file = folder.path().join("plan.client");
        let whole = std::fs::read(&client_file).unwrap();
        let mut client = cachemir_ir::plan::ClientPlan::from_bytes(&whole).unwrap();
        client.model.guard.logits = [-1e-3, 1e-3];
        std::fs::write(&client_file, client.to_bytes().unwrap()).unwrap();
        for check in [&[][..], &["--check"]] {
            if backend == "cpu" && !check.is_empty() {
                continue;
            }
            let arguments =
                [plan, "--backend", backend, "--json", "--resume", text(&session), "--save-session", text(&session)];
            let output = run(&[&arguments[..], check].concat());
            expect_failure(&output, 1, "CMR-R051");
            let events = events(&output);
            assert!(events.iter().all(|event| event["event"] != "token"), "nothing is printed for the token");
            let error = events.last().unwrap();
            assert_eq!((&error["event"], &error["code"]), (&"error".into(), &"CMR-R051".into()));
            assert!(error["message"].as_str().unwrap().contains("range") && error["help"].is_string());
            assert!([std::fs::read(&session).unwrap(), std::fs::read(&key).unwrap()] == saved, "{backend}");
        }
        std::fs::write(&client_file, whole).unwrap();
    }
}

#[test]
fn what_needs_no_keys_is_refused_before_they_are_made() {
    let folder = tempfile::tempdir().unwrap();
    let plan = common::write_plan(folder.path(), 16);
    let session = folder.path().join("session");
    run(&[text(&plan), "--backend", "clear", "--prompt", "one", "-n", "2", "--save-session", text(&session)]);
    let refused = |further: &[&str], exit: i32, code: &str| {
        let output = run(&[&[text(&plan), "--json", "--backend", "cpu"], further].concat());
        expect_failure(&output, exit, code);
        assert_eq!(events(&output).len(), 1, "the error comes before anything else: {further:?}");
    };
    refused(&["--resume", text(&session)], 1, "CMR-R030");
    refused(&["--prompt", "one", "--save-session", "/nowhere/at/all"], 1, "CMR-R021");
    refused(&["--prompt", "one", "--logits", "/nowhere/at/all"], 1, "CMR-R021");
    for option in ["--save-session", "--logits"] {
        let output = run(&[text(&plan), "--prompt", "one", "--json", option, "/nowhere/at/all"]);
        let message = events(&output).remove(0)["message"].as_str().unwrap().to_owned();
        assert_eq!(message, "cannot write /nowhere/at/all: there is no folder /nowhere/at");
    }
    // Nothing takes the place of another kind of file, nor of what the same run writes.
    let key = folder.path().join("session.key");
    for (option, file) in [
        ("--logits", &plan),
        ("--logits", &session),
        ("--logits", &key),
        ("--save-session", &folder.path().join("plan.client")),
        ("--save-session", &key),
    ] {
        let before = std::fs::read(file).unwrap();
        refused(&["--prompt", "one", option, text(file)], 1, "CMR-R021");
        assert_eq!(std::fs::read(file).unwrap(), before);
    }
    let new = text(&folder.path().join("new")).to_owned();
    refused(&["--prompt", "one", "--logits", &new, "--save-session", &new], 2, "CMR-R012");
    for chat in [&["--chat"][..], &["--chat", "--system", "x"]] {
        let output = run(&[&[text(&plan), "--prompt-ids", "1"], chat].concat());
        expect_failure(&output, 2, "cannot be used with");
    }
    let misuse = run(&[text(&plan), "--json", "--prompt", "one", "--no-such-option"]);
    expect_failure(&misuse, 2, "--no-such-option");
    assert_eq!(events(&misuse)[0]["code"], "CMR-R012");
    let other = tempfile::tempdir().unwrap();
    let other_plan = common::write_plan(other.path(), 6);
    let output = run(&[text(&other_plan), "--json", "--resume", text(&session)]);
    expect_failure(&output, 1, "CMR-R031");
    assert_eq!(events(&output).len(), 1);
}

#[test]
fn a_session_that_cannot_be_used_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let plan = common::write_plan(folder.path(), 16);
    let saved = |name: &str| {
        let session = folder.path().join(name);
        run(&[text(&plan), "--backend", "clear", "--prompt", "one", "-n", "2", "--save-session", text(&session)]);
        session
    };
    let (one, two) = (saved("one"), saved("two"));
    let refused = |session: &Path, backend: &str, message: &str, help: &str| {
        let output = run(&[text(&plan), "--json", "--backend", backend, "--resume", text(session)]);
        expect_failure(&output, 1, "CMR-R030");
        let error = events(&output).remove(0);
        assert!(error["message"].as_str().unwrap().contains(message), "{error}");
        assert!(error["help"].as_str().unwrap().contains(help), "{error}");
    };
    refused(&one, "cpu", "saved by a run in the clear", "`--backend clear`");
    refused(&folder.path().join("none"), "clear", "cannot be read", "`--save-session FILE` wrote");
    // The same session with other tokens, so that its file differs.
    run(&[text(&plan), "--backend", "clear", "--prompt", "two two", "-n", "2", "--save-session", text(&two)]);
    std::fs::copy(folder.path().join("two.key"), folder.path().join("one.key")).unwrap();
    refused(&one, "clear", "one.key belongs to another session", "side by side");
    let whole = std::fs::read(&two).unwrap();
    std::fs::write(&two, &whole[..whole.len() - 5]).unwrap();
    refused(&two, "clear", "truncated", "a copy that is whole");
}

#[test]
fn arguments_of_approximations_are_shown_in_the_units_of_the_summary() {
    let folder = tempfile::tempdir().unwrap();
    let plan = common::write_changed_plan(folder.path(), 16, |plan| {
        // Slots hold (x − 300)/100.
        let check = RangeCheck {
            site: "norm 1".to_owned(),
            placement: Placement { index_to_slot: vec![0], token_stride: 0 },
            interval: [1000.0, 2000.0],
            map: Affine { centre: 300.0, half: 100.0 },
        };
        plan.program.entries.iter_mut().for_each(|entry| entry.checks = vec![check.clone()]);
    });
    let logits = folder.path().join("logits");
    let output = run(&[text(&plan), "--backend", "clear", "--json", "--prompt", "one", "--logits", text(&logits)]);
    expect_failure(&output, 1, "CMR-R051");
    let message = events(&output).pop().unwrap()["message"].as_str().unwrap().to_owned();
    let shown = message.split("for a value at ").nth(1).and_then(|rest| rest.split(',').next()).unwrap();
    assert!(message.contains("accurate from 1000 to 2000"), "{message}");
    // The model's logits are below 2, so that the slot stands for about 300.
    assert!((100.0..500.0).contains(&shown.parse::<f64>().unwrap()), "{message}");
}

#[test]
fn an_evaluation_tells_what_it_is_of() {
    let folder = tempfile::tempdir().unwrap();
    let plan = common::write_plan(folder.path(), 8);
    let file = folder.path().join("text");
    // A whole part and a short one: sums of embeddings, and with them logits, grow along a part.
    std::fs::write(&file, "one one one one one one one one two").unwrap();
    let client_file = folder.path().join("plan.client");
    let whole = std::fs::read(&client_file).unwrap();
    let evaluate = |largest: f64, further: &[&str]| {
        let mut client = cachemir_ir::plan::ClientPlan::from_bytes(&whole).unwrap();
        client.model.guard.logits = [-1e3, largest];
        std::fs::write(&client_file, client.to_bytes().unwrap()).unwrap();
        run(&[&["eval", text(&plan), "--text", text(&file)], further].concat())
    };
    let complete = events(&evaluate(1e3, &["--json"])).remove(0);
    assert_eq!((&complete["partial"], &complete["refused_parts"]), (&false.into(), &0.into()));
    assert_eq!(complete["tokens"], complete["tokens_of_text"]);

    let refused = |largest: f64| events(&evaluate(largest, &["--json"])).remove(0)["refused_parts"].clone();
    let limits = (0..60).map(|step| 12.0 * 0.9_f64.powi(step));
    let some = limits.clone().find(|&limit| refused(limit) == 1).unwrap();
    let output = evaluate(some, &["--json"]);
    assert!(output.status.success());
    let object = events(&output).remove(0);
    assert_eq!((&object["partial"], &object["parts"]), (&true.into(), &2.into()));
    assert!(object["tokens"].as_u64() < object["tokens_of_text"].as_u64(), "{object}");
    let shown = String::from_utf8(evaluate(some, &[]).stdout).unwrap();
    assert!(shown.contains("PARTIAL: ") && shown.contains("1 of 2 parts refused"), "{shown}");

    let output = evaluate(-9.0, &["--json"]);
    expect_failure(&output, 1, "CMR-R051");
    assert_eq!(events(&output).pop().unwrap()["code"], "CMR-R051");
    expect_failure(&evaluate(-9.0, &[]), 1, "all 2 parts of the text refused");
}

#[test]
fn reports_fit_eighty_columns_and_count_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let plan = common::write_plan(folder.path(), 16);
    let report = |further: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_cachemir-run"))
            .args([text(&plan), "--prompt", "one"])
            .args(further)
            .env("COLUMNS", "80")
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{stderr}");
        assert!(stderr.lines().all(|line| line.chars().count() <= 80), "{stderr}");
        stderr
    };
    for backend in ["clear", "cpu"] {
        let text = report(&["--backend", backend, "-n", "1", "--check"]);
        assert!(text.contains("generated   1 token\n") && text.contains("0 bootstraps in the whole run"), "{text}");
        let text = report(&["--backend", backend, "-n", "3", "--ignore-end"]);
        assert!(text.contains("generated   3 tokens\n") && text.contains("0.0 bootstraps and 7 rotations"), "{text}");
    }
    let none = report(&["--backend", "clear", "-n", "0", "--top-k", "3"]);
    assert!(none.contains("0 tokens; none were asked for") && !none.contains("first"), "{none}");
    assert!(none.contains("--top-k has no effect"), "{none}");
}

#[test]
fn a_reader_that_leaves_ends_every_command_quietly() {
    let folder = tempfile::tempdir().unwrap();
    let plan = common::write_plan(folder.path(), 16);
    let file = folder.path().join("text");
    std::fs::write(&file, "one two one one").unwrap();
    let commands: [&[&str]; 7] = [
        &["completions", "bash"],
        &["man"],
        &["explain"],
        &["--help"],
        &["doctor"],
        &["eval", text(&plan), "--text", text(&file), "-q"],
        &[text(&plan), "--prompt", "one", "--backend", "clear", "--json", "-q"],
    ];
    for arguments in commands {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = Command::new(env!("CARGO_BIN_EXE_cachemir-run")).args(arguments).stdout(writer).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), stderr.as_ref()), (Some(0), ""), "{arguments:?}");
    }
}

#[test]
fn the_program_explains_itself() {
    let explained = |code: &str| String::from_utf8(run(&["explain", code]).stdout).unwrap();
    assert!(explained("cmr-r051").contains("--calibrate"));
    assert!(explained("C0301").contains("config.json"));
    expect_failure(&run(&["explain", "X1"]), 2, "CMR-R012");
    let all = String::from_utf8(run(&["explain"]).stdout).unwrap();
    assert!(all.contains("C0101     the file is no ONNX model") && all.contains("CMR-R051  "), "{all}");
    let version = String::from_utf8(run(&["--version"]).stdout).unwrap();
    assert!(version.starts_with(concat!("cachemir-run ", env!("CARGO_PKG_VERSION"))), "{version}");
    let script = String::from_utf8(run(&["completions", "bash"]).stdout).unwrap();
    assert!(script.contains("--prompt-ids"));
    let page = String::from_utf8(run(&["man", "eval"]).stdout).unwrap();
    assert!(page.contains(".TH") && page.contains("against"), "{page}");
}

#[test]
fn messages_fit_a_terminal_and_break_between_words() {
    let output = Command::new(env!("CARGO_BIN_EXE_cachemir-run"))
        .args(["missing.bin", "--prompt", "one"])
        .env("COLUMNS", "60")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.lines().all(|line| line.chars().count() <= 60), "{text}");
    let joined = text.replace('\u{2502}', " ").split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(joined.contains("`cachemirc compile model.onnx -o plan.bin` writes both"), "{joined}");
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
    assert_eq!((&eval["backend"], &eval["encrypted"]), (&"clear".into(), &false.into()));
    assert_eq!(eval["security_bits"], Value::Null);
    // The text in the clear says so, and nothing of security.
    let plain = run(&["eval", text(&plan), "--text", text(&file)]);
    let shown = String::from_utf8(plain.stdout).unwrap() + &String::from_utf8(plain.stderr).unwrap();
    assert!(shown.contains("nothing was encrypted") && !shown.contains("security"), "{shown}");
    let noisy = events(&run(&["eval", text(&plan), "--text", text(&file), "--json", "--noise"])).pop().unwrap();
    assert_eq!(noisy["backend"], "noisy");
    let (exact, noisy) = (eval["perplexity"].as_f64().unwrap(), noisy["perplexity"].as_f64().unwrap());
    assert!(exact != noisy && (exact / noisy - 1.0).abs() < 1e-3, "{exact} and {noisy}");
    expect_failure(&run(&["eval", text(&plan), "--text", text(&file), "--noise", "--backend", "cpu"]), 2, "CMR-R012");
    // What the doctor says of a plan's keys is what a run says.
    let doctor = events(&run(&["doctor", text(&plan), "--json"])).pop().unwrap();
    let start = events(&run(&[text(&plan), "--prompt", "one", "-n", "1", "--json"])).remove(0);
    assert_eq!(doctor["plan"]["key_bytes"], start["key_bytes"]);
}
