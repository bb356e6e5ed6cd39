//! Help, man pages and completions, all from a command's definition.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::{CommonArgs, Exit};

/// A command line worth showing, and what it does.
#[derive(Clone, Copy, Debug)]
pub struct Example {
    /// As typed, without a prompt.
    pub line: &'static str,
    /// What it does, in one sentence without a final period.
    pub what: &'static str,
}

/// A command: its arguments (the doc comment is its manual), its examples, its common options.
pub trait Program: clap::Parser {
    /// Shown by `--help` and in the man page.
    const EXAMPLES: &'static [Example];

    /// The common options among its arguments.
    fn common(&self) -> &CommonArgs;
}

/// The definition with examples and exit status at the end of `--help`.
pub(crate) fn definition<P: Program>() -> Command {
    bare::<P>().after_long_help(format!("{}{}", examples(P::EXAMPLES), Exit::help()))
}

/// The definition without `help` as a subcommand, which would be one more page that says what `--help` says.
fn bare<P: Program>() -> Command {
    P::command().disable_help_subcommand(true)
}

fn examples(examples: &[Example]) -> String {
    let mut text = String::new();
    for (at, Example { line, what }) in examples.iter().enumerate() {
        let heading = if at == 0 { "Examples:\n" } else { "" };
        // Writing to a String can't fail.
        writeln!(text, "{heading}  {line}\n      {what}").ok();
    }
    if !text.is_empty() {
        text.push('\n');
    }
    text
}

/// Writes man pages (`man8/`, a page for each subcommand too) and completions (`bash/`, `zsh/`, `fish/`)
/// of a command below a directory. The same input gives the same bytes.
pub(crate) fn write_docs<P: Program>(directory: &Path) -> io::Result<()> {
    let mut command = bare::<P>();
    command.build();
    let man = subdirectory(directory, "man8")?;
    write_pages(&command, command.get_name(), P::EXAMPLES, &man)?;
    let name = command.get_name().to_owned();
    for (shell, place) in [(Shell::Bash, "bash"), (Shell::Zsh, "zsh"), (Shell::Fish, "fish")] {
        clap_complete::generate_to(shell, &mut bare::<P>(), &name, subdirectory(directory, place)?)?;
    }
    Ok(())
}

fn subdirectory(directory: &Path, name: &str) -> io::Result<std::path::PathBuf> {
    let path = directory.join(name);
    std::fs::DirBuilder::new().recursive(true).create(&path)?;
    Ok(path)
}

/// One page for a command, named as `git-log.1` is, and those of its subcommands.
fn write_pages(command: &Command, name: &str, examples: &[Example], directory: &Path) -> io::Result<()> {
    let mut page = Vec::new();
    render(command, name, examples, &mut page)?;
    File::create(directory.join(format!("{name}.8")))?.write_all(&page)?;
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let name = format!("{name}-{}", sub.get_name());
        let spoken = format!("{} ", sub.get_name());
        let own: Vec<_> = examples.iter().copied().filter(|it| it.line.contains(&spoken)).collect();
        write_pages(sub, &name, &own, directory)?;
    }
    Ok(())
}

fn render(command: &Command, name: &str, examples: &[Example], page: &mut Vec<u8>) -> io::Result<()> {
    let man = Man::new(command.clone()).title(name.to_uppercase()).section("8").date("");
    man.render_title(page)?;
    man.render_name_section(page)?;
    man.render_synopsis_section(page)?;
    man.render_description_section(page)?;
    man.render_options_section(page)?;
    if command.get_subcommands().any(|sub| !sub.is_hide_set()) {
        man.render_subcommands_section(page)?;
    }
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    for exit in Exit::ALL {
        roff.control("TP", []);
        roff.text([bold(exit.code().to_string())]);
        roff.text([roman(exit.meaning())]);
    }
    if !examples.is_empty() {
        roff.control("SH", ["EXAMPLES"]);
    }
    for example in examples {
        roff.control("TP", []);
        roff.text([bold(example.line)]);
        roff.text([roman(example.what)]);
    }
    roff.to_writer(page)
}
