//! Commands that only look.

use std::fmt::Write as _;
use std::os::fd::AsFd as _;

use cli::{Exit, Many, Out, PathText, Problem};
use kernel::bpf::scope::FileSystem;
use kernel::bpf::{BpfError, Host, Pins, Roots, State};
use kernel::features::{Feature, Standing, survey};
use kernel::{Dir, Errno, Verdict};
use serde_json::json;

use super::problem::of_bpf;
use super::scope_paths;

pub(crate) fn status(out: &Out, host: &Host, asked: &[Feature]) -> Result<Exit, Problem> {
    let sample = sample()?;
    let pins = Pins::of(host);
    let mut had = 0;
    for standing in survey(host, sample.as_ref().map(Dir::as_fd)) {
        if asked.contains(&standing.feature) {
            had += u64::from(standing.verdict == Verdict::Enforced);
            show(out, &pins, &standing);
        }
    }
    if asked.contains(&Feature::Ipv4Root) {
        // Who may not look at the maps has seen above whether they are loaded.
        Roots::of(host).ok().flatten().iter().for_each(|roots| show_roots(out, roots));
    }
    for path in pins.debris() {
        let problem = Problem::new("a load or unload was cut off here").at(&path);
        out.warn(&problem.cure("the next vkernel load, reload or unload clears it away"));
    }
    out.summary(&json!({ "enforced": had, "asked": asked.len() }), || {
        format!("{had} of {} enforced", Many(asked.len() as u64, "feature", "features"))
    });
    Ok(if had == asked.len() as u64 { Exit::Done } else { Exit::Findings })
}

/// Something on the file system that link-invert is wanted for, to ask about it.
fn sample() -> Result<Option<Dir>, Problem> {
    Ok(scope_paths(&[])?.iter().find_map(|path| Dir::open_host(path).ok()))
}

fn show(out: &Out, pins: &Pins, standing: &Standing) {
    let (verdict, why) = standing.verdict.in_words();
    let object = standing.feature.object();
    let programs = object.map(|object| pins.attached(object)).unwrap_or_default();
    let state = object.map(|object| pins.state(object));
    let loaded = matches!(state, Some(Ok(State::Loaded)));
    let value = json!({
        "feature": standing.feature.name(),
        "verdict": verdict,
        "why": why,
        "provider": standing.provider,
        "enforces": standing.enforces,
        "leaves_open": standing.leaves_open,
        "cure": standing.cure,
        "loaded": loaded,
        "programs": programs,
    });
    out.event("feature", &value, || {
        let by = standing.provider.map(|provider| format!(" by {provider}")).unwrap_or_default();
        let why = if why.is_empty() { String::new() } else { format!(": {why}") };
        let mut text = format!("{:<11} {verdict}{by}{why}", standing.feature.name());
        let mut line = |label: &str, what: &str| {
            if !what.is_empty() {
                // Writing to a String can't fail.
                write!(text, "\n            {label}: {what}").ok();
            }
        };
        let had = standing.provider.is_some();
        line(if had { "enforces" } else { "would enforce" }, standing.enforces);
        line(if had { "leaves open" } else { "would leave open" }, standing.leaves_open);
        line(if had { "better" } else { "to have it" }, standing.cure);
        text
    });
}

fn show_roots(out: &Out, roots: &Roots) {
    let value = json!({
        "tasks": roots.tasks,
        "capacity": roots.capacity,
        "spilled": roots.spilled,
        "lost": roots.lost,
    });
    out.event("roots", &value, || {
        format!("ipv4root    {} of {} tasks have a root", roots.tasks, roots.capacity)
    });
    let cure =
        "limit the processes of guests (pids.max); vkernel unload and load once kernel.threads-max is raised";
    if roots.lost > 0 {
        let why = format!("{} tasks found no room for their root and run without one", roots.lost);
        out.warn(&Problem::new(why).cure(cure));
    } else if roots.spilled > 0 {
        let why = format!("the table of roots was full: {} tasks were put beside it", roots.spilled);
        out.warn(&Problem::new(why).cure(cure));
    }
}

pub(crate) fn scope(out: &Out, host: &Host) -> Result<Exit, Problem> {
    let nothing_pinned = |error| match error {
        BpfError::NoBpffs(_) => BpfError::NotLoaded(Feature::LinkInvert.name()),
        other => other,
    };
    host.check().map_err(nothing_pinned).map_err(|error| of_bpf(&error))?;
    let all = kernel::bpf::scope::list(host).map_err(|error| of_bpf(&error))?;
    for one in &all {
        let (uuid, kind) = (uuid(one), kind(one.magic));
        out.event("file_system", &json!({ "uuid": uuid, "kind": kind, "magic": one.magic }), || {
            format!("{uuid} {kind}")
        });
    }
    for path in scope_paths(&[])? {
        let answer = Dir::open_host(&path).and_then(|dir| kernel::bpf::scope::ask(&dir));
        let inside = answer == Ok(kernel::bpf::scope::Answer::Inside);
        out.event("scope", &json!({ "path": PathText::new(&path), "in_scope": inside }), || {
            let how = match answer {
                Err(Errno::NOENT) => "is not there",
                _ if inside => "is in the scope",
                _ => "is NOT in the scope",
            };
            format!("{} {how}", PathText::new(&path))
        });
    }
    out.summary(&json!({ "file_systems": all.len() }), || {
        format!("{} in the scope", Many(all.len() as u64, "file system", "file systems"))
    });
    Ok(Exit::Done)
}

/// A UUID as everybody writes it.
fn uuid(one: &FileSystem) -> String {
    let mut text = String::new();
    for (at, byte) in one.uuid.iter().enumerate() {
        let dash = if matches!(at, 4 | 6 | 8 | 10) { "-" } else { "" };
        // Writing to a String can't fail.
        write!(text, "{dash}{byte:02x}").ok();
    }
    text
}

/// linux/magic.h
fn kind(magic: u64) -> &'static str {
    match magic {
        0xef53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0x0102_1994 => "tmpfs",
        0x794c_7630 => "overlay",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_written_as_everywhere() {
        let mut bytes = [0; 16];
        bytes.iter_mut().zip(0_u8..).for_each(|(byte, at)| *byte = at * 16 + at);
        let one = FileSystem { uuid: bytes, magic: 0xef53 };
        assert_eq!(uuid(&one), "00112233-4455-6677-8899-aabbccddeeff");
        assert_eq!(kind(one.magic), "ext4");
    }
}
