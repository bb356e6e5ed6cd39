//! The conformance suite: one table of laws, held against every provider of every kernel at hand.
//!
//! On the host it boots kernels in QEMU, and in there runs itself again as an agent; what the machine itself can
//! load is tried there, too. What came out is compared with `kernel/CONFORMANCE.md`: a cell that got worse fails
//! the test.
//!
//! - `CONFORMANCE_UPDATE=1` writes the matrix instead.
//! - `CONFORMANCE_COLUMNS=bpf` runs only the columns whose names contain that word.
//! - `CONFORMANCE_ONLY=chmod,ceiling` runs only the laws that have one of these words in their own or their
//!   group's name, and compares nothing. If all words are names of groups, it runs and may write those.
//! - `CONFORMANCE_BZIMAGE=PATH` is the patched kernel, instead of what `scripts/kernel` builds.
//! - `CONFORMANCE_NO_OVERHEAD=1` leaves out what takes the longest; the figures kept stay.
//! - `CONFORMANCE_UNUSED=1` measures the patched kernel alone: with its option, unused, and without it.
//! - `CONFORMANCE_PATCH=1` runs the patched kernel's columns though nothing has changed.
#![allow(clippy::disallowed_methods)] // the files are the suite's own, and it must not trust the door
#![allow(clippy::print_stdout, clippy::print_stderr)] // a test without the harness reports by itself

mod agent;
mod case;
mod host;
#[path = "../ipv4root/mod.rs"]
mod ipv4root;
mod laws;
mod matrix;
mod overhead;
mod raw;
mod roots;
mod stage;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.first().map(String::as_str) {
        Some("overhead") => overhead::agent(),
        Some("agent") => agent::agent(&arguments[1..]),
        Some("host") => roots::host_agent(),
        Some("ipv4root") => roots::agent(&arguments[1..]),
        Some(ipv4root::WHEREABOUTS) => return ipv4root::whereabouts(),
        Some("--list") => return ExitCode::SUCCESS,
        _ => host::suite(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("conformance: {why}");
            ExitCode::FAILURE
        }
    }
}
