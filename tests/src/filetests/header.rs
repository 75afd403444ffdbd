//! The comments ahead of a program: prose, an empty comment, commands with their questions.

use std::str::FromStr;

/// The comments ahead of a program.
pub(super) struct Header<'t> {
    /// The prose with the empty comment behind it, as it stands in the file.
    pub(super) prose: String,
    /// The commands, one or more.
    pub(super) tests: Vec<Test<'t>>,
}

/// A command.
pub(super) struct Test<'t> {
    /// The command and its settings.
    pub(super) text: &'t str,
    /// The command alone.
    pub(super) command: &'t str,
    /// What it is asked.
    pub(super) questions: Vec<Question<'t>>,
}

/// A question to a command.
pub(super) struct Question<'t> {
    /// The first word.
    pub(super) kind: &'t str,
    /// What follows it, up to the answer.
    pub(super) about: &'t str,
    /// The answer that the file has.
    pub(super) stated: Option<&'t str>,
}

impl<'t> Header<'t> {
    /// Reads the lines ahead of a program.
    pub(super) fn read(lines: &[&'t str]) -> Result<Self, String> {
        let separator = lines.iter().position(|line| *line == ";");
        let separator = separator.ok_or("no line `;` parts prose from commands; the header is prose, `;`, commands")?;
        let mut prose = String::new();
        for line in &lines[..=separator] {
            if line.starts_with("; test ") {
                return Err(format!("`{line}` stands ahead of the line `;`, where prose is"));
            }
            prose += line;
            prose.push('\n');
        }
        let mut tests: Vec<Test<'t>> = Vec::new();
        for (index, line) in lines.iter().enumerate().skip(separator + 1) {
            let wrong = |what: &str| format!("line {}: {what}: `{line}`", index + 1);
            let text = line.strip_prefix("; ").ok_or_else(|| wrong("commands and questions begin with `; `"))?;
            if let Some(text) = text.strip_prefix("test ") {
                let command = text.split(' ').next().unwrap_or_default();
                tests.push(Test { text, command, questions: Vec::new() });
                continue;
            }
            let test = tests.last_mut().ok_or_else(|| wrong("a question ahead of the first `; test COMMAND`"))?;
            let (asked, stated) = match text.split_once(" ->") {
                Some((asked, stated)) => (asked, Some(stated.trim())),
                None => (text, None),
            };
            let (kind, about) = asked.split_once(' ').unwrap_or((asked, ""));
            test.questions.push(Question { kind, about, stated });
        }
        if tests.is_empty() {
            return Err("there is no command: `; test COMMAND`".to_owned());
        }
        Ok(Self { prose, tests })
    }
}

impl<'t> Test<'t> {
    /// The settings, of which each has to be taken.
    pub(super) fn settings(&self) -> Result<Settings<'t>, String> {
        let words = self.text.split(' ').skip(1);
        let pair = |word: &'t str| word.split_once('=').ok_or_else(|| format!("`{word}` is no setting KEY=VALUE"));
        words.map(pair).collect::<Result<_, _>>().map(Settings)
    }

    /// Refuses questions to a command that answers none.
    pub(super) fn no_questions(&self) -> Result<(), String> {
        match self.questions.first() {
            Some(question) => Err(format!("{} does not answer `{}`", self.command, question.kind)),
            None => Ok(()),
        }
    }

    /// Appends the command and its questions with these answers.
    pub(super) fn write(&self, out: &mut String, answers: &[String]) {
        *out += &format!("; test {}\n", self.text);
        for (Question { kind, about, .. }, answer) in self.questions.iter().zip(answers) {
            let asked = [*kind, *about].join(" ");
            *out += &format!("; {} -> {answer}\n", asked.trim_end());
        }
    }
}

/// Settings that no one has asked for yet.
pub(super) struct Settings<'t>(Vec<(&'t str, &'t str)>);

impl Settings<'_> {
    /// A setting that may be left out.
    pub(super) fn optional<T: FromStr>(&mut self, key: &str) -> Result<Option<T>, String> {
        let Some(index) = self.0.iter().position(|(known, _)| *known == key) else { return Ok(None) };
        let (_, value) = self.0.remove(index);
        value.parse().map(Some).map_err(|_| format!("`{value}` is no value of {key}"))
    }

    /// A setting that must be there.
    pub(super) fn required<T: FromStr>(&mut self, key: &str) -> Result<T, String> {
        self.optional(key)?.ok_or_else(|| format!("`{key}=…` is missing"))
    }

    /// Refuses settings that mean nothing.
    pub(super) fn finish(self) -> Result<(), String> {
        match self.0.first() {
            Some((key, _)) => Err(format!("`{key}` is no setting of this command, or stands there twice")),
            None => Ok(()),
        }
    }
}
