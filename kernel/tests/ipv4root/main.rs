//! The laws of IPv4 roots, tried on the machine itself. `kernel/CONFORMANCE.md` has them for other kernels.
//!
//! Each law is tried twice: without a root, where it has to be seen not to hold, and with one, which the patched
//! kernel gives or else the eBPF programs.
//!
//! - `IPV4ROOT_ONLY=word` runs the laws whose names contain the word.
#![allow(clippy::disallowed_methods)] // the files are the suite's own
#![allow(clippy::print_stdout, clippy::print_stderr)] // a test without the harness reports by itself

#[path = "mod.rs"]
mod ipv4root;

use std::process::ExitCode;

use ipv4root::{Mark, Trouble, Who};
use kernel::bpf::objects;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("--list") => return ExitCode::SUCCESS,
        Some(ipv4root::WHEREABOUTS) => return ipv4root::whereabouts(),
        _ => {}
    }
    if let Err(skip) = fixtures::require_root().and_then(|()| fixtures::require_command("ip")) {
        fixtures::skip::note("ipv4root", &skip.0);
        return ExitCode::SUCCESS;
    }
    let _turn = match ipv4root::turn() {
        Ok(turn) => turn,
        Err(error) => {
            eprintln!("ipv4root: waiting for another suite on this machine: {error}");
            return ExitCode::FAILURE;
        }
    };
    if (objects::IPV4ROOT.is_live)() {
        fixtures::skip::note("ipv4root", "needs a machine where ipv4root is not loaded (vkernel unload)");
        return ExitCode::SUCCESS;
    }
    match suite() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("ipv4root: {why}");
            ExitCode::FAILURE
        }
    }
}

fn suite() -> Result<(), String> {
    let who = if kernel::Patch::find().is_ok() { Who::Patch } else { Who::Bpf };
    if !ipv4root::names().any(|(name, _)| is_wanted(name)) {
        return Err("no law has such a name".into());
    }
    let mut faults = Vec::new();
    let tried = ipv4root::attempt(who, true, is_wanted, |name, mark| match mark {
        Mark::Holds => println!("holds   {name}"),
        Mark::Skipped(why) => fixtures::skip::note(&format!("ipv4root: {name}"), &format!("kernel: {why}")),
        Mark::Broken(why) => {
            println!("BROKEN  {name}");
            faults.push(format!("{name}: {why}"));
        }
    });
    match tried {
        Ok(()) if faults.is_empty() => Ok(()),
        Ok(()) => Err(format!("{} faults:\n{}", faults.len(), faults.join("\n"))),
        Err(Trouble::Refused(why)) => {
            fixtures::skip::note("ipv4root", &fixtures::Skip::kernel(why).0);
            Ok(())
        }
        Err(Trouble::Fault(why)) => Err(why),
    }
}

fn is_wanted(law: &str) -> bool {
    std::env::var("IPV4ROOT_ONLY").map_or(true, |only| law.contains(&only))
}
