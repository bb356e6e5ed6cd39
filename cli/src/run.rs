//! From `main` to the exit code.

use std::any::Any;
use std::ffi::{OsStr, OsString};
use std::io;
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Mutex, Once, PoisonError};

use clap::error::ErrorKind;

use crate::manual::{definition, write_docs};
use crate::{CommonArgs, Exit, Out, Problem, Program, Streams};

/// The whole `main` of a command: arguments, output, exit code. An error in the command line ends with
/// status 2, a panic with a line that says it is a bug and status 70 (with a backtrace if `RUST_BACKTRACE`
/// is set), and both with a summary under `--json`. Packagers call `COMMAND --write-docs DIRECTORY`.
pub fn run_main<P: Program>(run: impl FnOnce(P, &Out) -> Result<Exit, Problem>) -> ExitCode {
    run_with(std::env::args_os().collect(), Streams::of_process(), run).into()
}

/// As [`run_main`], with arguments (the first is the command itself) and streams given.
pub fn run_with<P: Program>(
    arguments: Vec<OsString>,
    streams: Streams,
    run: impl FnOnce(P, &Out) -> Result<Exit, Problem>,
) -> Exit {
    let mut definition = definition::<P>();
    let name = definition.get_name().to_owned();
    if let [_, option, directory] = &arguments[..]
        && option == "--write-docs"
    {
        let out = Out::new(&name, &CommonArgs::default(), streams);
        let exit = guarded(&out, || docs::<P>(directory));
        return out.finish(exit);
    }
    let asked_for_json = arguments.iter().take_while(|it| *it != "--").any(|it| it == "--json");
    let parsed = if arguments.last().is_some_and(|last| last == "--") {
        // What a script's empty variable leaves must not mean "all".
        Err(definition.error(ErrorKind::TooFewValues, "nothing stands behind --"))
    } else {
        definition.try_get_matches_from(arguments)
    };
    match parsed.and_then(|matches| P::from_arg_matches(&matches)) {
        Ok(program) => {
            let out = Out::new(&name, program.common(), streams);
            let exit = guarded(&out, || run(program, &out));
            out.finish(exit)
        }
        Err(error) => {
            let json = asked_for_json && error.use_stderr();
            let out = Out::new(&name, &CommonArgs { json, ..CommonArgs::default() }, streams);
            let exit = unparsed(&out, &error);
            out.finish(exit)
        }
    }
}

fn docs<P: Program>(directory: &OsStr) -> Result<Exit, Problem> {
    let failed = |error: io::Error| Problem::new(error.to_string()).at(directory);
    write_docs::<P>(Path::new(directory)).map_err(failed).map(|()| Exit::Done)
}

/// Help and version are results; the rest is the user's error.
fn unparsed(out: &Out, error: &clap::Error) -> Exit {
    let text = error.to_string();
    if !error.use_stderr() {
        out.line(|| text.trim_end());
        return Exit::Done;
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        out.usage_error("something is missing on the command line", &text);
    } else {
        let text = text.trim_start_matches("error: ");
        let (message, rest) = text.split_once("\n\n").unwrap_or((text, ""));
        // clap takes whatever is unknown for a value that could stand behind --.
        let rest: String =
            rest.split_inclusive('\n').filter(|line| !line.starts_with("  tip: to pass '")).collect();
        out.usage_error(message, rest.trim_start_matches('\n'));
    }
    Exit::Usage
}

/// Runs the command, and says what went wrong.
fn guarded(out: &Out, run: impl FnOnce() -> Result<Exit, Problem>) -> Exit {
    KEEP_QUIET.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| remember(info, &previous)));
    });
    match panic::catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(exit)) => exit,
        Ok(Err(problem)) => {
            out.error(&problem);
            problem.exit_code()
        }
        Err(payload) => {
            let message = format!("this is a bug: {}", last_panic(&*payload));
            out.error(&Problem::new(message).cure("please report it; RUST_BACKTRACE=1 tells more"));
            Exit::Bug
        }
    }
}

static KEEP_QUIET: Once = Once::new();

/// The place and message of the last panic, of whatever thread.
static LAST_PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Keeps what a panic said for one line at the end; the usual report comes only if it was asked for.
fn remember(info: &PanicHookInfo<'_>, report: &dyn Fn(&PanicHookInfo<'_>)) {
    let place = info.location().map(|place| format!(" ({place})")).unwrap_or_default();
    let text = format!("{}{place}", message(info.payload()));
    *LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
    if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
        report(info);
    }
}

fn last_panic(payload: &dyn Any) -> String {
    let last = LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner).take();
    last.unwrap_or_else(|| message(payload).to_owned())
}

fn message(payload: &dyn Any) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
