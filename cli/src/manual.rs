//! Help, man pages and completions, all from a command's definition.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use clap::Command;
use clap_complete::{Generator as _, Shell};
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
    P::command().after_long_help(format!("{}{}", examples(P::EXAMPLES), Exit::help()))
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
    let name = command.get_name().to_owned();
    let source = format!("{name} {}", command.get_version().unwrap_or_default());
    write_pages(&command, &name, &source, P::EXAMPLES, &man)?;
    for (shell, place) in [(Shell::Bash, "bash"), (Shell::Zsh, "zsh"), (Shell::Fish, "fish")] {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut bare::<P>(), &name, &mut text);
        let mut text = String::from_utf8_lossy(&text).into_owned();
        if shell == Shell::Bash {
            text = offer_guests(&text, takes_guests(&command));
        }
        let file = subdirectory(directory, place)?.join(shell.file_name(&name));
        File::create(file)?.write_all(text.as_bytes())?;
    }
    Ok(())
}

fn takes_guests(command: &Command) -> bool {
    let is_guest =
        |arg: &clap::Arg| arg.get_value_names().into_iter().flatten().any(|name| name.contains("GUEST"));
    command.get_positionals().any(is_guest) || command.get_subcommands().any(takes_guests)
}

/// The generated script offers options wherever anything may stand. With this it offers them behind a hyphen only,
/// and elsewhere words that are known, else guests; what matches neither is completed as a file's name.
fn offer_guests(script: &str, guests: bool) -> String {
    let place = "            if [[ ${cur} == -* || ${COMP_CWORD} -eq ";
    let others = if guests { "command ls \"${VSERVERS:-/vservers}\" 2>/dev/null" } else { "true" };
    let words = format!("opts=$(printf '%s\\n' ${{opts}} | grep -v '^-' || {others})");
    script.replace(place, &format!("            [[ ${{cur}} == -* ]] || {words}\n{place}"))
}

fn subdirectory(directory: &Path, name: &str) -> io::Result<std::path::PathBuf> {
    let path = directory.join(name);
    std::fs::DirBuilder::new().recursive(true).create(&path)?;
    Ok(path)
}

/// One page for a command, named as `git-log.1` is, and those of its subcommands.
fn write_pages(
    command: &Command,
    name: &str,
    source: &str,
    examples: &[Example],
    directory: &Path,
) -> io::Result<()> {
    let mut page = Vec::new();
    render(command, name, source, examples, &mut page)?;
    File::create(directory.join(format!("{name}.8")))?.write_all(&page)?;
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let name = format!("{name}-{}", sub.get_name());
        let spoken = format!("{} ", sub.get_name());
        let own: Vec<_> = examples.iter().copied().filter(|it| it.line.contains(&spoken)).collect();
        write_pages(sub, &name, source, &own, directory)?;
    }
    Ok(())
}

fn render(
    command: &Command,
    name: &str,
    source: &str,
    examples: &[Example],
    page: &mut Vec<u8>,
) -> io::Result<()> {
    let man = Man::new(command.clone()).title(name.to_uppercase()).section("8").date("").source(source);
    man.render_title(page)?;
    man.render_name_section(page)?;
    let usage = command.clone().render_usage().to_string();
    let mut roff = Roff::new();
    roff.control("SH", ["SYNOPSIS"]);
    roff.text([roman(usage.trim_start_matches("Usage: "))]);
    roff.to_writer(page)?;
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
