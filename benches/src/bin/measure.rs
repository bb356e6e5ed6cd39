//! `measure DIRECTORY OUTPUT COMMAND`: runs one shell command and prints what it took as JSON; see
//! `benches::measure`.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [on, output, command] = arguments.as_slice() else {
        return ExitCode::from(2);
    };
    let done = benches::wrapper(command, Path::new(on), Path::new(output)).map_err(|error| error.to_string());
    match done.and_then(|usage| serde_json::to_string(&usage).map_err(|error| error.to_string())) {
        Ok(line) => writeln!(std::io::stdout(), "{line}").map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS),
        Err(error) => {
            writeln!(std::io::stderr(), "measure: {error}").ok();
            ExitCode::FAILURE
        }
    }
}
