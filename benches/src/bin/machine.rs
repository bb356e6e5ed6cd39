//! Prints what kind of machine this is, as the head of a report, without its name.

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let printed = match benches::describe() {
        Ok(text) => std::io::stdout().write_all(text.as_bytes()),
        Err(error) => {
            writeln!(std::io::stderr(), "machine: {error}").and(Err(std::io::ErrorKind::Other.into()))
        }
    };
    printed.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
}
