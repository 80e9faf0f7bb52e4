//! One program of the table, and how its arguments are read.

use std::sync::Arc;

use super::{
    options::{Options, Part, take},
    table::{Group, Runs},
};

/// A program with the words that must follow it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KnownProgram {
    pub names: Vec<String>,
    pub subcommand: Vec<String>,
    before: Arc<Options>,
    options: Arc<Options>,
    pub runs: Runs,
    /// The program may be a script that an interpreter runs.
    pub may_be_script: bool,
    /// Runs what it names as a child.
    pub launches: bool,
}

/// How much a command line says about what is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clarity {
    Enough,
    /// A word may be the value of an unknown option, or the program is text.
    Unclear,
}

/// The arguments of a program, sorted.
#[derive(Clone, Copy, Debug)]
pub(super) struct ToolArguments<'a, 'b> {
    pub clarity: Clarity,
    /// The value of an option that names what is run.
    pub named: Option<&'a str>,
    pub place: Option<&'a str>,
    /// The first word is a module.
    pub is_module: bool,
    /// The first word.
    pub word: Option<&'a str>,
    /// The words behind it.
    pub rest: &'b [&'a str],
}

impl KnownProgram {
    /// Returns the tools of a group.
    pub fn of(group: &Group) -> Vec<Self> {
        let options = Arc::new(Options::of(&group.options));
        let before = group.before.as_ref().map(|syntax| Arc::new(Options::of(syntax)));
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
        let tool = |(names, subcommand, runs): &(&str, &str, Runs)| Self {
            names: words(names),
            subcommand: words(subcommand),
            before: before.as_ref().unwrap_or(&options).clone(),
            options: options.clone(),
            runs: *runs,
            may_be_script: group.scripts,
            launches: group.launches || runs.launches(),
        };
        group.programs.iter().map(tool).collect()
    }

    /// Returns a launcher of the policy.
    pub fn launcher(
        program: String,
        subcommand: Vec<String>,
        options: Options,
        runs: Runs,
    ) -> Self {
        let options = Arc::new(options);
        let before = options.clone();
        let (names, may_be_script, launches) = (vec![program], true, true);
        Self { names, subcommand, before, options, runs, may_be_script, launches }
    }

    /// Returns the name that identities show.
    pub fn name(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }

    pub fn is_named(&self, name: &str) -> bool {
        self.names.iter().any(|own| own == name)
    }

    /// Sorts the arguments. Returns `None` if they are not of this subcommand.
    pub fn read<'a, 'b>(&self, arguments: &'b [&'a str]) -> Option<ToolArguments<'a, 'b>> {
        let mut reading = ToolArguments {
            clarity: Clarity::Enough,
            named: None,
            place: None,
            is_module: false,
            word: None,
            rest: arguments,
        };
        for subcommand in &self.subcommand {
            loop {
                match self.before.next(&mut reading.rest)? {
                    Part::Word(word) if word == subcommand => break,
                    Part::Names(named) => reading.named = reading.named.or(Some(named)),
                    Part::Place(place) => reading.place = Some(place),
                    Part::Unclear => return Some(reading.unclear()),
                    Part::Word(_) | Part::End | Part::Module | Part::Code | Part::Information => {
                        return None;
                    }
                }
            }
        }
        self.read_options(&mut reading);
        Some(reading)
    }

    fn read_options<'a>(&self, reading: &mut ToolArguments<'a, '_>) {
        while let Some(part) = self.options.next(&mut reading.rest) {
            match part {
                Part::Names(named) => {
                    reading.named = reading.named.or(Some(named));
                    // A module or an archive ends the interpreter's options.
                    if matches!(self.runs, Runs::Script(_) | Runs::FileOnly(_)) {
                        return;
                    }
                }
                Part::Place(place) => reading.place = Some(place),
                Part::Module => reading.is_module = true,
                Part::Unclear | Part::Code | Part::Information => {
                    if reading.named.is_none() {
                        *reading = reading.unclear();
                    }
                    reading.rest = &[];
                    return;
                }
                Part::End => {
                    // A word that looks like an option names nothing, and neither does what is behind it.
                    reading.word = take(&mut reading.rest).filter(|word| !word.starts_with('-'));
                    if reading.word.is_none() {
                        reading.rest = &[];
                    }
                    return;
                }
                Part::Word(word) => {
                    reading.word = Some(word);
                    return;
                }
            }
        }
    }
}

impl<'a> ToolArguments<'a, '_> {
    fn unclear(self) -> Self {
        Self { clarity: Clarity::Unclear, word: None, rest: &[], ..self }
    }
}
