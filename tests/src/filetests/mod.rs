//! Programs in text that carry commands and what these must find: `tests/filetests/*.cmir`, in the grammar that
//! `tests/README.md` has.
//!
//! [`rerun`] runs a file's commands and gives the file as it should be: all that is written by hand stays as it is, and
//! each expectation is what was found. A file passes exactly if it does not change.

mod calls;
mod commands;
mod expand;
mod header;
#[cfg(test)]
mod tests;

use header::Header;

/// What a command finds.
enum Found {
    /// An answer to each question, in order.
    Answers(Vec<String>),
    /// Text that stands below the input.
    Below(String),
    /// The input as it is printed, with problems below the ops that have them.
    Input(String),
}

/// A problem that a verifier found in the line above.
fn is_problem(line: &str) -> bool {
    line.trim_start().starts_with("; error: ")
}

/// Runs the commands of a file.
///
/// # Errors
/// Where the file is not of the grammar, or a command fails in a way that no expectation can state.
pub fn rerun(text: &str) -> Result<String, String> {
    let lines: Vec<&str> = text.lines().collect();
    let is_input = |line: &&str| !line.is_empty() && !line.starts_with(';');
    let first = lines.iter().position(is_input).ok_or("there is no program")?;
    let last = lines.iter().rposition(is_input).unwrap_or(first);
    let header = Header::read(&lines[..first])?;
    let stated = &lines[first..=last];
    let (mut tests, mut below, mut printed) = (String::new(), String::new(), None);
    for test in &header.tests {
        let found = commands::run(test, text).map_err(|message| format!("`test {}`: {message}", test.text))?;
        let mut answers = Vec::new();
        match found {
            Found::Answers(found) => answers = found,
            Found::Below(found) => {
                below += &format!("\n; {}:\n", test.text);
                found.lines().for_each(|line| below += &format!(";   {line}\n"));
            }
            Found::Input(found) => printed = Some(found),
        }
        test.write(&mut tests, &answers);
    }
    let input = match &printed {
        Some(printed) => problems_of(stated, printed.lines().collect())?,
        None if stated.iter().any(|line| is_problem(line)) => {
            return Err("problems stand in the input, and no `test print` looks for them".to_owned());
        }
        None => stated.to_vec(),
    };
    Ok(format!("{}{tests}{}\n{below}", header.prose, input.join("\n")))
}

/// The printed lines, of which all but the problems must be those of the file.
fn problems_of<'t>(stated: &[&'t str], printed: Vec<&'t str>) -> Result<Vec<&'t str>, String> {
    let plain =
        |lines: &[&'t str]| -> Vec<&'t str> { lines.iter().copied().filter(|line| !is_problem(line)).collect() };
    let (mut stated, mut found) = (plain(stated).into_iter(), plain(&printed).into_iter());
    loop {
        match (stated.next(), found.next()) {
            (None, None) => return Ok(printed),
            (a, b) if a == b => {}
            (a, b) => {
                let [a, b] = [a, b].map(|line| line.unwrap_or("the end"));
                return Err(format!("the input does not look as it is printed:\n  in the file {a}\n  printed     {b}"));
            }
        }
    }
}
