//! IPv4 roots, held to a table of laws with real sockets, in network namespaces of its own.
//!
//! Each law is tried twice: without programs, where it has to be seen not to hold, and with them. They are
//! attached to the whole machine, but concern only those who have a root; they are pinned in a bpf file system
//! that goes with this process, however it ends.
//!
//! - `IPV4ROOT_ONLY=word` runs the laws whose names contain the word.
#![allow(clippy::disallowed_methods)] // the files are the suite's own
#![allow(clippy::print_stdout, clippy::print_stderr)] // a test without the harness reports by itself

mod case;
mod laws;
mod life;
mod more;
mod net;
mod raw;
mod state;

use std::process::ExitCode;

use case::{Case, Fault, Kind, Law};
use kernel::bpf::{Host, objects};

const GROUPS: &[(&str, &[Law])] = &[
    ("bind", laws::BIND),
    ("listen", laws::LISTEN),
    ("client", laws::CLIENT),
    ("IPv6", more::IPV6),
    ("raw", more::RAW),
    ("broadcast", more::BROADCASTS),
    ("state", state::LAWS),
];

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("--list") => return ExitCode::SUCCESS,
        Some("whereabouts") => {
            println!("{}", state::whereabouts().unwrap_or_else(|error| error.to_string()));
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    if let Err(skip) = fixtures::require_root().and_then(|()| fixtures::require_command("ip")) {
        fixtures::skip::note("ipv4root", &skip.0);
        return ExitCode::SUCCESS;
    }
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
    let net = net::Net::make().map_err(|error| error.to_string())?;
    let place = tempfile::tempdir().map_err(|error| error.to_string())?;
    raw::mount_bpf(place.path()).map_err(|error| format!("bpf file system: {error}"))?;
    let host = Host { bpffs: place.path().into(), ..Host::default() };
    let mut faults = controls(&net);
    match kernel::bpf::load(&host, &objects::IPV4ROOT) {
        Ok(_) => {}
        Err(error @ kernel::bpf::BpfError::Refused { .. }) => {
            fixtures::skip::note("ipv4root", &fixtures::Skip::kernel(error).0);
            return Ok(());
        }
        Err(error) => return Err(error.to_string()),
    }
    faults.extend(trials(&net));
    faults.extend(life::all(&net, &host));
    if faults.is_empty() {
        return Ok(());
    }
    Err(format!("{} faults:\n{}", faults.len(), faults.join("\n")))
}

/// All laws that were asked for.
fn wanted() -> impl Iterator<Item = (&'static str, &'static Law)> {
    let only = std::env::var("IPV4ROOT_ONLY").unwrap_or_default();
    let all = GROUPS.iter().flat_map(|(group, laws)| laws.iter().map(move |law| (*group, law)));
    all.filter(move |(_, law)| law.name.contains(&only))
}

/// Without programs no law may hold, or it would prove nothing.
fn controls(net: &net::Net) -> Vec<String> {
    let case = Case { net, control: true };
    let mut faults = Vec::new();
    for (group, law) in wanted() {
        match (law.attempt(&case), law.kind) {
            (Err(Fault::Broken(_)), Kind::Enforced) | (Ok(()), Kind::Neutral) | (Err(Fault::Lacks(_)), _) => {
            }
            (Ok(()), Kind::Enforced) => faults.push(format!("{group}: {}: proves nothing", law.name)),
            (Err(Fault::Broken(why)), Kind::Neutral) => {
                faults.push(format!("{group}: {}: without programs, too: {why}", law.name));
            }
        }
    }
    faults
}

fn trials(net: &net::Net) -> Vec<String> {
    let case = Case { net, control: false };
    let mut faults = Vec::new();
    for (group, law) in wanted() {
        let mark = match law.attempt(&case) {
            Ok(()) => "holds".to_owned(),
            Err(Fault::Lacks(what)) => {
                fixtures::skip::note(&format!("ipv4root: {}", law.name), &format!("kernel: no {what}"));
                continue;
            }
            Err(Fault::Broken(why)) => {
                faults.push(format!("{group}: {}: {why}", law.name));
                "BROKEN".to_owned()
            }
        };
        println!("{group:10} {mark:6} {}", law.name);
    }
    faults
}
