//! The laws of IPv4 roots, which take a process with namespaces of its own; and the machine itself, which has
//! that column's only laws besides.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use kernel::bpf::{Host, Object, objects};

use crate::agent::{Provider, is_wanted, report};
use crate::case::{Cell, spell};
use crate::ipv4root::{self, Mark, Trouble, Who};
use crate::laws::{self, Laws, ROOTS};
use crate::matrix::{HOST_COLUMN, NOWHERE};
use crate::raw::{self, Call};

const WHO: [(&str, Who); 3] = [("nobody", Who::Nobody), ("bpf", Who::Bpf), ("patch", Who::Patch)];
/// After that word: laws are tried without a root, too.
const PROVE: &str = "prove";

fn is_wanted_root(law: &str) -> bool {
    is_wanted(ROOTS, law)
}

/// Runs as a process of its own: `ipv4root WHO [prove]`, and writes a line for each law: name, mark, reason.
pub(crate) fn agent(arguments: &[String]) -> Result<(), String> {
    let word = arguments.first().map(String::as_str);
    let (_, who) = WHO.into_iter().find(|(name, _)| Some(*name) == word).ok_or("nobody is of that name")?;
    let prove = arguments.get(1).is_some_and(|word| word == PROVE);
    ipv4root::attempt(who, prove, is_wanted_root, |law, mark| println!("{}", line(law, mark))).map_err(
        |trouble| match trouble {
            Trouble::Refused(why) | Trouble::Fault(why) => why,
        },
    )
}

fn line(law: &str, mark: Mark) -> String {
    let (word, why) = match mark {
        Mark::Holds => ("pass", String::new()),
        Mark::Broken(why) => ("fail", why),
        Mark::Skipped(why) => ("skip", why),
    };
    format!("{law}\t{word}\t{}", why.replace(['\t', '\n'], " "))
}

fn parse(line: &str) -> Option<(&'static str, Cell)> {
    let mut fields = line.splitn(3, '\t');
    let (law, word, why) = (fields.next()?, fields.next()?, fields.next()?.to_owned());
    let (name, _) = ipv4root::names().find(|(name, _)| *name == law)?;
    match word {
        "pass" => Some((name, Cell::Pass)),
        "fail" => Some((name, Cell::Fail(why))),
        "skip" => Some((name, Cell::Skipped(why))),
        _ => None,
    }
}

/// Tries them where the provider is at work, and leaves no programs for them behind.
pub(crate) fn try_roots(column: &str, provider: Provider, why_not: Option<&String>) {
    let who = match provider {
        Provider::None | Provider::Immutable => "nobody",
        Provider::Bpf => "bpf",
        Provider::Patch | Provider::PatchTag => "patch",
    };
    if let Some(why) = why_not {
        return rest(column, &BTreeSet::new(), &Cell::Skipped(why.clone()));
    }
    if provider == Provider::Bpf {
        // They load their own, where nobody else looks; two would be in each other's way.
        kernel::bpf::unload(&Host::default(), &objects::IPV4ROOT).ok();
    }
    let mut arguments = vec!["ipv4root", who];
    // Another kernel than that of the column without programs: its laws are not proven there.
    arguments.extend((provider == Provider::Patch).then_some(PROVE));
    run(column, &arguments);
}

/// Runs the process, and passes on what it finds; what it does not tell was not tried, and that is a fault.
fn run(column: &str, arguments: &[&str]) {
    let told = tell(column, arguments);
    let (told, why) = told.unwrap_or_else(|error| (BTreeSet::new(), error.to_string()));
    rest(column, &told, &Cell::Fail(format!("was not tried: {why}")));
}

fn tell(column: &str, arguments: &[&str]) -> std::io::Result<(BTreeSet<&'static str>, String)> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut told = BTreeSet::new();
    for line in BufReader::new(child.stdout.take().expect("a pipe was asked for")).lines() {
        if let Some((law, cell)) = parse(&line?) {
            report(column, NOWHERE, vec![(ROOTS, law, cell)]);
            told.insert(law);
        }
    }
    let ended = child.wait_with_output()?;
    Ok((told, String::from_utf8_lossy(&ended.stderr).trim().to_owned()))
}

/// The same of all laws that are left.
fn rest(column: &str, told: &BTreeSet<&str>, cell: &Cell) {
    let left = ipv4root::names().filter(|(name, _)| is_wanted_root(name) && !told.contains(name));
    let left = left.map(|(name, _)| (ROOTS, name, cell.clone())).collect();
    report(column, NOWHERE, left);
}

/// Runs on the machine itself, and prints findings: of roots, and why there are none of other laws.
pub(crate) fn host_agent() -> Result<(), String> {
    let _turn = ipv4root::turn().map_err(|error| format!("waiting for another suite: {error}"))?;
    for group in laws::ALL {
        let object = match group.laws {
            Laws::Roots => continue,
            Laws::Files(_) => &objects::LINK_INVERT,
            Laws::Contexts(_) | Laws::Processes(_) => &objects::CONTEXTS,
        };
        let cell = Cell::Skipped(why_not(object)?);
        let names = group.laws.names().into_iter().filter(|(name, _)| is_wanted(group.name, name));
        report(HOST_COLUMN, NOWHERE, names.map(|(name, _)| (group.name, name, cell.clone())).collect());
    }
    if (objects::IPV4ROOT.is_live)() {
        let loaded = "they are loaded already, and may be relied upon".to_owned();
        rest(HOST_COLUMN, &BTreeSet::new(), &Cell::Skipped(loaded));
        return Ok(());
    }
    match refusal(&objects::IPV4ROOT)? {
        Some(why) => rest(HOST_COLUMN, &BTreeSet::new(), &Cell::Skipped(why)),
        None => run(HOST_COLUMN, &["ipv4root", "bpf", PROVE]),
    }
    Ok(())
}

/// Why laws that this object enforces are not tried on the machine itself.
fn why_not(object: &'static Object) -> Result<String, String> {
    let able =
        || "it could be loaded, but its laws are attacks: they are tried in virtual machines".to_owned();
    if (object.is_live)() {
        return Ok(able());
    }
    Ok(refusal(object)?.unwrap_or_else(able))
}

/// Loads an object where nobody else finds it, takes it out at once, and tells why that is not possible.
fn refusal(object: &'static Object) -> Result<Option<String>, String> {
    let place = tempfile::tempdir().map_err(|error| error.to_string())?;
    let host = Host { bpffs: place.path().into(), ..Host::default() };
    let said = raw::in_child(PATIENCE, || {
        if let Err(errno) = own_bpf(place.path()) {
            return format!("no bpf file system: {}", spell(errno));
        }
        match kernel::bpf::load(&host, object) {
            Ok(_) => {
                kernel::bpf::unload(&host, object).err().map(|error| error.to_string()).unwrap_or_default()
            }
            Err(error) => error.to_string(),
        }
    });
    match said {
        raw::Ended::Said(why) => Ok((!why.is_empty()).then_some(why)),
        ended @ raw::Ended::Killed(_) => Err(format!("loading {}: {ended:?}", object.name)),
    }
}

/// A bpf file system that goes with the caller's namespace of mounts.
fn own_bpf(at: &Path) -> Call {
    raw::call(libc::SYS_unshare, &[libc::CLONE_NEWNS as usize])?;
    laws::mount("none".as_ref(), "/".as_ref(), "", libc::MS_REC | libc::MS_PRIVATE, "")?;
    laws::mount("bpf".as_ref(), at, "bpf", 0, "")
}

/// Seconds until a load that hangs is given up.
const PATIENCE: u32 = 60;
