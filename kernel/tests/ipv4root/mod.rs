//! IPv4 roots, held to a table of laws with real sockets, in network namespaces of its own.
//!
//! The programs are attached to the whole machine, but concern only those who have a root; they are pinned in a
//! bpf file system that goes with the process, however it ends. The process must have one thread.

mod case;
mod laws;
mod life;
mod more;
mod net;
mod raw;
mod state;

use std::process::ExitCode;

pub(crate) use case::Who;
use case::{Case, Fault, Kind, Law, Res};
use kernel::bpf::{BpfError, Host, objects};
use net::Net;

const GROUPS: &[&[Law]] =
    &[laws::BIND, laws::LISTEN, laws::CLIENT, more::IPV6, more::RAW, more::BROADCASTS, state::LAWS];

/// What came of a law.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    Holds,
    Broken(String),
    Skipped(String),
}

impl From<Res> for Mark {
    fn from(result: Res) -> Self {
        match result {
            Ok(()) => Self::Holds,
            Err(Fault::Broken(why)) => Self::Broken(why),
            Err(Fault::Lacks(what)) => Self::Skipped(format!("this kernel has no {what}")),
        }
    }
}

/// Why nothing could be tried.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The kernel refuses such programs.
    Refused(String),
    Fault(String),
}

/// The programs are the whole machine's, so those who load them there take turns. A turn ends when it is dropped.
pub(crate) fn turn() -> std::io::Result<std::fs::File> {
    let lock = std::fs::File::create(std::env::temp_dir().join("vserver-ipv4root.lock"))?;
    lock.lock()?;
    Ok(lock)
}

/// The names of all laws, and whether each has to be broken where nobody enforces it.
pub(crate) fn names() -> impl Iterator<Item = (&'static str, bool)> {
    let laws = GROUPS.iter().copied().flatten().map(|law| (law.name, law.kind == Kind::Enforced));
    laws.chain(life::STAGES.iter().map(|(name, _)| (*name, false)))
}

/// The word with which a guest executes this program again, to say where it is.
pub(crate) const WHEREABOUTS: &str = "whereabouts";

/// Answers that word.
pub(crate) fn whereabouts() -> ExitCode {
    println!("{}", state::whereabouts().unwrap_or_else(|error| error.to_string()));
    ExitCode::SUCCESS
}

/// Tries the laws whose names are `wanted`, each in order, and tells what came of it at once. With `prove` a law
/// is broken that holds without a root, too, though it should not.
pub(crate) fn attempt(
    who: Who,
    prove: bool,
    wanted: fn(&str) -> bool,
    mut tell: impl FnMut(&'static str, Mark),
) -> Result<(), Trouble> {
    let fault = |error: std::io::Error| Trouble::Fault(error.to_string());
    let net = Net::make().map_err(fault)?;
    let laws: Vec<&Law> = GROUPS.iter().copied().flatten().filter(|law| wanted(law.name)).collect();
    let unproven = if prove && who != Who::Nobody { controls(&net, &laws) } else { Vec::new() };
    let place = OwnBpf(tempfile::tempdir().map_err(fault)?);
    let host = Host { bpffs: place.0.path().into(), ..Host::default() };
    if who == Who::Bpf {
        raw::mount_bpf(place.0.path()).map_err(fault)?;
        load(&host)?;
    }
    let case = Case { net: &net, who };
    for law in laws {
        let proof = unproven.iter().find(|(name, _)| *name == law.name);
        tell(law.name, proof.map_or_else(|| trial(&case, law), |(_, mark)| mark.clone()));
    }
    if who == Who::Bpf {
        life::all(&net, &host, wanted, &mut |name, result| tell(name, result.into()));
    } else {
        let moot = || Mark::Skipped("there are no programs to load".into());
        life::STAGES.iter().filter(|(name, _)| wanted(name)).for_each(|(name, _)| tell(name, moot()));
    }
    Ok(())
}

/// Where a bpf file system is mounted, if it is: with it on, the directory could not be taken away.
struct OwnBpf(tempfile::TempDir);

impl Drop for OwnBpf {
    fn drop(&mut self) {
        raw::unmount(self.0.path());
    }
}

fn load(host: &Host) -> Result<(), Trouble> {
    match kernel::bpf::load(host, &objects::IPV4ROOT) {
        Ok(_) => Ok(()),
        Err(error @ BpfError::Refused { .. }) => Err(Trouble::Refused(error.to_string())),
        Err(error) => Err(Trouble::Fault(error.to_string())),
    }
}

fn trial(case: &Case<'_>, law: &Law) -> Mark {
    match law.unpatched {
        Some(why) if case.who == Who::Patch => Mark::Skipped(why.into()),
        _ => law.attempt(case).into(),
    }
}

/// Laws that hold without a root, too, or would prove nothing for another reason.
fn controls(net: &Net, laws: &[&Law]) -> Vec<(&'static str, Mark)> {
    let case = Case { net, who: Who::Nobody };
    let of = |law: &&Law| match (Mark::from(law.attempt(&case)), law.kind) {
        (Mark::Holds, Kind::Enforced) => Some((law.name, Mark::Broken("holds without a root, too".into()))),
        (Mark::Broken(why), Kind::Neutral) => {
            Some((law.name, Mark::Broken(format!("without a root, too: {why}"))))
        }
        _ => None,
    };
    laws.iter().filter_map(of).collect()
}
