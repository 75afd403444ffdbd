//! Files that are not of the grammar fail, and those that state too much.

use super::rerun;

const PROGRAM: &str = "cachemir slots
slots 2
context 4
input scale 1.0
embedding token_stride 1 slots 0:1:2
logits token_stride 0 slots 0:1:2

entry decode (%0 x : zero stride 1 max 4.0) {
  %1 = add %0, %0 : zero stride 1 max 8.0  ; @0
  yield %1
}
";

fn file(header: &str) -> String {
    format!("{header}\n{PROGRAM}")
}

fn refused(header: &str) -> String {
    rerun(&file(header)).unwrap_err()
}

#[test]
fn what_is_right_stays_as_it_is() {
    for header in [
        "; Twice.\n;\n; test print",
        "; Twice,\n; or the sum.\n;\n; test evaluate\n; call decode pos=0 count=1 x=[1, -0.5] -> [[2.0, -1]]",
        ";\n; test evaluate within=0.1\n; call decode pos=0 count=1 x=[1, -0.5] -> [[2.05, _]]",
        ";\n; test print\n; test place levels=3 input=1\n; bootstraps decode -> 0\n; refused -> no",
    ] {
        let file = file(header);
        assert_eq!(rerun(&file).unwrap(), file);
    }
}

#[test]
fn wrong_expectations_are_replaced() {
    for (stated, found) in [
        ("", "[[2, 6]]"),
        (" ->", "[[2, 6]]"),
        (" -> [[2, 7]]", "[[2, 6]]"),
        (" -> [[_, 7]]", "[[_, 6]]"),
        (" -> [[2]]", "[[2, 6]]"),
        (" -> [[2, 6], [2, 6]]", "[[2, 6]]"),
        (" -> refused: no", "[[2, 6]]"),
    ] {
        let header = ";\n; test evaluate\n; call decode pos=0 count=1 x=[1, 3]";
        let [stated, found] = [stated, &format!(" -> {found}")].map(|answer| file(&format!("{header}{answer}")));
        assert_eq!(rerun(&stated).unwrap(), found);
    }
    let stale = file("; Twice.\n;\n; test print").replace("  yield", "  ; error: old\n  yield");
    assert_eq!(rerun(&stale).unwrap(), file("; Twice.\n;\n; test print"));
    let below = format!("{}\n; test expand pos=0 count=1:\n;   old\n", file(";\n; test expand pos=0 count=1"));
    assert_eq!(rerun(&below).unwrap(), file(";\n; test expand pos=0 count=1") + "\n; expand pos=0 count=1:\n");
}

#[test]
fn what_is_not_of_the_grammar_fails() {
    for (header, message) in [
        ("", "no line `;`"),
        ("; Twice.", "no line `;`"),
        ("; test print", "no line `;`"),
        ("; Twice.\n;", "no command"),
        ("; Twice.\n; test print\n;\n; test print", "ahead of the line `;`"),
        (";\n; tset print", "ahead of the first"),
        (";\n;test print", "begin with `; `"),
        (";\n; test pirnt", "`pirnt` is no command"),
        (";\n; test print\n; call decode", "does not answer `call`"),
        (";\n; test print levels=16", "`levels` is no setting"),
        (";\n; test evaluate within=0 within=0\n; call decode", "`within` is no setting"),
        (";\n; test evaluate within=x\n; call decode", "no value of within"),
        (";\n; test evaluate 0.5\n; call decode", "no setting KEY=VALUE"),
        (";\n; test evaluate", "nothing is asked"),
        (";\n; test evaluate\n; cal decode", "does not answer `cal`"),
        (";\n; test evaluate\n; call decode pos=0 x=[1, 2]", "expected `count`"),
        (";\n; test evaluate\n; call decoed pos=0 count=1 x=[1, 2]", "`decoed` is no entry point"),
        (";\n; test evaluate\n; call decode pos=0 count=1 y=[1, 2]", "in this order: [\"x\"]"),
        (";\n; test evaluate\n; call decode pos=0 count=1 x=[1]", "`x` has 1 slots instead of 2"),
        (";\n; test place levels=16\n; refused -> no", "`input=…` is missing"),
        (";\n; test place levels=16 input=3", "nothing is asked"),
        (";\n; test place levels=16 input=3\n; bootstrap decode -> 0", "does not answer `bootstrap`"),
        (";\n; test place levels=16 input=3\n; bootstraps decoed -> 0", "`decoed` is no entry point"),
        (";\n; test expand pos=0", "`count=…` is missing"),
    ] {
        let found = refused(header);
        assert!(found.contains(message), "{header}: {found}");
    }
}

#[test]
fn input_that_is_printed_differently_fails_and_is_never_rewritten() {
    let found = rerun(&file(";\n; test print").replace("add %0, %0", "add %0,%0")).unwrap_err();
    assert!(found.contains("in the file   %1 = add %0,%0"), "{found}");
    let found =
        rerun(&file(";\n; test expand pos=0 count=1").replace("  yield", "  ; error: old\n  yield")).unwrap_err();
    assert!(found.contains("no `test print` looks for them"), "{found}");
}
