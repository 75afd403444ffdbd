//! A plan as tables for people: they fit into 80 columns and use more where there are more. Text breaks between words.

use cachemir_ir::diagnostics::wrapped;
use cachemir_ir::operations::{Call, Operations, middle};
use cachemir_ir::plan::{Approximation, CallCounts, Measure, Plan};
use cachemir_ir::program::EntryKind;
use cachemir_ir::table::Table;
use cachemir_ir::text::{counted, short};

use super::prefix_text;

/// Most characters of a public prefix that are shown.
const PREFIX_CHARACTERS: usize = 240;

/// Narrowest width that text is broken for.
const LEAST_COLUMNS: usize = 60;

/// What a row of the table of operations counts.
type Counted = fn(&Operations) -> u64;

/// Rows of the table of operations, in words.
const OPERATIONS: [(&str, Counted); 7] = [
    ("bootstraps", |operations| operations.bootstraps),
    ("rotations", |operations| operations.rotations),
    ("ciphertext products", |operations| operations.ciphertext_products),
    ("polynomials", |operations| operations.polynomials),
    ("level drops", |operations| operations.level_drops),
    ("plaintext products", |operations| operations.plaintext_products),
    ("of these masks", |operations| operations.masks),
];

/// The plan as text of so many columns.
pub fn text(plan: &Plan, columns: usize) -> String {
    let sections =
        [head(plan, columns), operations(plan, columns), approximations(plan, columns), caches(plan, columns)];
    let mut sections: Vec<String> = sections.into_iter().filter(|section| !section.is_empty()).collect();
    sections.push(foot(plan, columns));
    sections.join("\n")
}

/// Numbers in the plan's tables, or in those that it has the shapes of.
pub(super) fn weights(plan: &Plan) -> usize {
    plan.program.tables.iter().filter_map(Table::entries).sum()
}

fn paragraph(text: &str, columns: usize) -> String {
    wrapped(text, columns.max(LEAST_COLUMNS), "  ").join("\n") + "\n"
}

/// Characters of the longest text.
fn widest<'t>(texts: impl IntoIterator<Item = &'t str>) -> usize {
    texts.into_iter().map(|text| text.chars().count()).max().unwrap_or(0)
}

/// Rows of a text and numbers, the latter as wide as the widest of them; long texts are broken.
fn rows(rows: &[(String, Vec<String>)], columns: usize) -> String {
    let width = 2 + widest(rows.iter().flat_map(|(_, cells)| cells).map(String::as_str));
    let cells = rows.iter().map(|(_, cells)| cells.len()).max().unwrap_or(0);
    let room = columns.max(LEAST_COLUMNS).saturating_sub(cells * width).max(24);
    let labels: Vec<Vec<String>> = rows.iter().map(|(label, _)| wrapped(label, room, "      ")).collect();
    let left = widest(labels.iter().flatten().map(String::as_str));
    let mut out = String::new();
    for ((_, cells), label) in rows.iter().zip(&labels) {
        let (last, first) = label.split_last().map_or(("", &[][..]), |(last, first)| (last.as_str(), first));
        for line in first {
            out += &format!("{line}\n");
        }
        let mut line = format!("{last:<left$}");
        for cell in cells {
            line += &format!("{cell:>width$}");
        }
        out += line.trim_end();
        out += "\n";
    }
    out
}

fn head(plan: &Plan, columns: usize) -> String {
    let (program, model) = (&plan.program, &plan.model);
    let first = format!(
        "{}: hidden size {}, vocabulary {}, {} weights{}, context of {} tokens",
        model.name,
        model.hidden,
        model.vocabulary,
        weights(plan),
        if plan.has_weights() { "" } else { ", which the plan does not hold" },
        program.context
    );
    let second = format!(
        "parameters {}: {}; {} slots in use of {}",
        plan.parameters.name,
        plan.parameters.description(),
        program.slots,
        plan.parameters.maximum_slots()
    );
    let mut head = paragraph(&first, columns) + &paragraph(&second, columns);
    if !program.prefix.is_empty() {
        let prefix = counted(program.prefix.len(), "token");
        let text = prefix_text(plan).map_or_else(String::new, |text| format!(": {}", quoted(&text)));
        let known = format!("sessions begin with a public prefix of {prefix}, which the server knows{text}");
        head += &paragraph(&known, columns);
    }
    head
}

/// A text between quotes, its line breaks escaped and the end of a long one left out.
fn quoted(text: &str) -> String {
    match text.char_indices().nth(PREFIX_CHARACTERS) {
        Some((end, _)) => format!("{:?} …", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// The two lines above a call's numbers.
fn title(call: Call) -> [String; 2] {
    match call.kind {
        EntryKind::Decode => ["decode".to_owned(), format!("at {}", call.position)],
        EntryKind::Prefill { .. } => ["prefill".to_owned(), format!("of {}", call.tokens)],
    }
}

fn operations(plan: &Plan, columns: usize) -> String {
    if plan.counts.is_empty() {
        return String::new();
    }
    let row = |label: &str, cell: &dyn Fn(&CallCounts) -> String| -> (String, Vec<String>) {
        (label.to_owned(), plan.counts.iter().map(cell).collect())
    };
    let mut table = vec![
        row("operations of a call", &|counts| title(counts.call)[0].clone()),
        row("  (position or tokens)", &|counts| title(counts.call)[1].clone()),
    ];
    for (name, count) in OPERATIONS {
        table.push(row(&format!("  {name}"), &|counts| count(&counts.operations).to_string()));
    }
    let mut reasons: Vec<&str> =
        plan.counts.iter().flat_map(|counts| &counts.masks).map(|mask| mask.reason.as_str()).collect();
    reasons.sort_unstable();
    reasons.dedup();
    for reason in reasons {
        let count = |counts: &CallCounts| {
            let found = counts.masks.iter().find(|mask| mask.reason == reason);
            found.map_or(0, |mask| mask.count).to_string()
        };
        table.push(row(&format!("    {reason}"), &count));
    }
    let predicted = |counts: &CallCounts| format!("{:.1}", counts.predicted_ns as f64 / 1e9);
    table.push(row("  predicted seconds on one thread", &predicted));
    let prefill = prefill(plan).map(|line| paragraph(&line, columns));
    rows(&table, columns) + &prefill.unwrap_or_default()
}

/// Where prefill is used: at the first and the last position at which it is, and whether there are others behind.
fn prefill(plan: &Plan) -> Option<String> {
    let chunk = plan.program.entries.iter().find_map(|entry| entry.kind.chunk())?;
    let places = plan.prefill_pays.iter().enumerate();
    let used: Vec<_> = places.filter(|&(_, &least)| least <= chunk).map(|(place, &least)| (place, least)).collect();
    let (Some(&(first, first_least)), Some(&(last, last_least))) = (used.first(), used.last()) else {
        return Some(format!(
            "  Prefill, of up to {chunk} tokens, is predicted to be slower than decoding, and not used."
        ));
    };
    let position = |place: usize| place * chunk as usize;
    let mut line =
        format!("  Prefill, of up to {chunk} tokens, is used where predicted to be faster than decoding: for ");
    if used.iter().all(|&(_, least)| least == first_least) {
        line += &format!("{first_least} tokens or more");
    } else {
        let (from, to) = (position(first), position(last));
        line += &format!("{first_least} tokens or more at position {from}, for {last_least} or more at {to}");
    }
    if last + 1 < plan.prefill_pays.len() {
        line += &format!(", not from position {} on", position(last + 1));
    }
    Some(line + ".")
}

fn interval(ends: [f64; 2]) -> String {
    ends.map(short).join(" .. ")
}

/// An approximation in two lines: what it is, and the intervals below that.
fn approximations(plan: &Plan, columns: usize) -> String {
    if plan.approximations.is_empty() {
        return String::new();
    }
    let all = &plan.approximations;
    let site = 2 + widest(all.iter().map(|one| one.site.as_str()).chain(["  used slots proof"])) + 2;
    let method = widest(all.iter().map(|one| one.method.as_str()).chain(["method"]));
    let ranges: Vec<[String; 3]> = all
        .iter()
        .map(|one| {
            let derived = one.derived.map_or_else(|| "unknown".to_owned(), interval);
            [interval(one.accurate), interval(one.sane), derived]
        })
        .collect();
    let range = 2 + widest(ranges.iter().flatten().map(String::as_str).chain(["accurate on"]));
    let first = |site_text: &str, [method_text, degree, levels, error]: [&str; 4]| {
        format!("{site_text:<site$}{method_text:<method$} {degree:>6}{levels:>7}  {error}\n")
    };
    let second = |site_text: &str, [accurate, sane, derived]: [&str; 3]| {
        format!("{site_text:<site$}{accurate:<range$}{sane:<range$}{derived}\n")
    };
    let mut out = first("approximations", ["method", "degree", "levels", "error"]);
    out += &second("", ["accurate on", "sane on", "derived"]);
    for (one, range) in all.iter().zip(&ranges) {
        let measure = if one.measure == Measure::Relative { "rel." } else { "abs." };
        let error = format!("{:.0e} {measure}{}", one.max_error, if one.cancels { "*" } else { "" });
        let numbers = [one.degree, one.depth].map(|number| number.to_string());
        out += &first(&format!("  {}", one.site), [&one.method, &numbers[0], &numbers[1], &error]);
        let proof = match one {
            one if one.escape_proof => "    escape-proof",
            one if used_slots_stay(one) => "    used slots proof",
            one if one.checked => "    checked",
            _ => "    by calibration",
        };
        out += &second(proof, range.each_ref().map(String::as_str));
    }
    let proof = all.iter().filter(|one| one.escape_proof).count();
    let checked = all.iter().filter(|one| !one.escape_proof && one.checked).count();
    let note = format!(
        "  The error holds where values of the calibration text lie (accurate); within the sane interval a polynomial stays \
         bounded; derived is what the weights alone allow while the norms hold. Of all {} sites, escape-proof: {proof}, whose \
         sane interval no input leaves; else checked: {checked}, of which the client sees the argument, and refuses a step \
         in which it is not where the approximation is accurate. The rest cover what calibration saw, with a margin; what \
         leaves them by far drives a checked one out of its range.",
        all.len()
    );
    out += &paragraph(&note, columns);
    let mut further = |applies: fn(&Approximation) -> bool, note: &str| {
        if all.iter().any(applies) {
            out += &paragraph(note, columns);
        }
    };
    further(
        |one| one.cancels,
        "  * cancels: a rough reciprocal scales all of a row alike, and the reciprocal further down divides by the sum of \
         what it scaled. It has to be good enough to keep rows in range, and no error of the result comes of it.",
    );
    further(
        used_slots_stay,
        "  Used slots proof: no input drives a value of the model out of the sane interval; slots that hold none can have up \
         to 1.42 times as much, and stay within by calibration.",
    );
    out
}

/// Whether a site is escape-proof but for slots that hold no values of the model.
fn used_slots_stay(one: &Approximation) -> bool {
    let [least, most] = one.sane;
    !one.escape_proof && one.derived.is_some_and(|[low, high]| least <= low && high <= most)
}

fn caches(plan: &Plan, columns: usize) -> String {
    let states = &plan.program.states;
    if states.is_empty() {
        return String::new();
    }
    let mut table = vec![("caches".to_owned(), ["ciphertexts", "level"].map(str::to_owned).to_vec())];
    table.extend(states.iter().map(|state| {
        let level = state.level.map_or_else(String::new, |level| level.to_string());
        (format!("  {}", state.name), vec![state.capacity.to_string(), level])
    }));
    rows(&table, columns)
}

fn foot(plan: &Plan, columns: usize) -> String {
    let keys = &plan.keys;
    let used = [(&keys.relinearisation, ", relinearisation"), (&keys.conjugation, ", conjugation")];
    let further: String = used.iter().filter(|(levels, _)| !levels.is_empty()).map(|(_, name)| *name).collect();
    let text = format!(
        "keys: {} rotations{further}, and what bootstraps need; predicted {:.1} s a token at position {} on one thread",
        keys.rotations.len(),
        plan.provenance.predicted_ns_per_token / 1e9,
        middle(plan.program.context)
    );
    let prices = format!("times of operations: {}", plan.provenance.cost_table);
    let notes = plan.provenance.notes.iter().map(|note| paragraph(&format!("note: {note}"), columns));
    paragraph(&text, columns) + &paragraph(&prices, columns) + &notes.collect::<String>()
}
