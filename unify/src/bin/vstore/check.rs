//! Commands that read everything again.

use std::ffi::OsString;
use std::path::Path;

use clap::{Args, ValueHint};
use cli::{Count, DryRun, Exit, Guests, HumanBytes, Many, PathText, Problem};
use serde::Serialize;
use serde_json::json;
use store::journal::Journal;
use unify::maintain::{Corrupt, Fault, Scrub, Scrubbed, expected_seal};
use unify::policy::{DIRECTORY, Policy};
use unify::{Error, Guest, Skip, Skipped};

use super::tidy::show_recovered;
use super::{Setting, access, command_line};

/// Objects without their seal that people see.
const SOME: usize = 10;

#[derive(Args)]
pub(crate) struct ScrubArgs {
    /// The store, and guests to look for corrupt files in besides those that are known
    #[arg(value_name = "STORE|GUEST")]
    places: Vec<OsString>,
    /// Read only so many of the objects, chosen at random
    #[arg(long, value_name = "N%", value_parser = percent, default_value = "100%", value_hint = ValueHint::Other)]
    sample: f64,
    /// Give guests good copies for corrupt files, and put missing seals on again
    #[arg(long, conflicts_with = "dry_run")]
    repair: bool,
    #[command(flatten)]
    dry: DryRun,
}

#[derive(Args)]
pub(crate) struct RebuildArgs {
    /// The store, and guests to look at besides those that are known
    #[arg(value_name = "STORE|GUEST")]
    places: Vec<OsString>,
}

fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).parse().unwrap_or(0.0);
    if number > 0.0 && number <= 100.0 {
        Ok(number)
    } else {
        Err("expected a percentage, such as 5%".to_owned())
    }
}

pub(crate) fn scrub(setting: &Setting<'_>, args: &ScrubArgs) -> Result<Exit, Problem> {
    let (path, given) = setting.find(&args.places)?;
    let store = setting.open_at(&path, access(args.dry))?;
    let mut journal = if args.dry.dry_run {
        Journal::open_read_only(&store).map_err(Error::from)?
    } else {
        let (journal, settled) = setting.recovered(&store)?;
        show_recovered(setting, &settled);
        Some(journal)
    };
    let known = setting.guests(&store, journal.as_ref(), &given)?;
    let what = Scrub {
        sample: args.sample,
        seal: expected_seal(journal.as_ref())?,
        quarantine: !args.dry.dry_run,
        repair: args.repair,
    };
    let command = command_line();
    let report =
        unify::maintain::scrub(&setting.around, &store, journal.as_mut(), &known.guests, what, &command)?;
    for corrupt in &report.corrupt {
        show_corrupt(setting, &known.guests, corrupt, what);
    }
    show_rest(setting, &report, what);
    show_skipped(setting, &report.skipped);
    summarize(setting, &report);
    Ok(exit(&report, setting))
}

fn exit(report: &Scrubbed, setting: &Setting<'_>) -> Exit {
    if setting.interrupt.requested() {
        Exit::Interrupted
    } else if report.has_findings() {
        Exit::Findings
    } else if report.unchecked.is_empty() {
        Exit::Done
    } else {
        Exit::Partly
    }
}

#[derive(Serialize)]
struct CorruptShown<'a> {
    object: String,
    fault: &'static str,
    why: String,
    quarantine: Option<PathText<'a>>,
    names: Vec<NameShown>,
    elsewhere: u64,
    replaced: bool,
    left: u64,
}

#[derive(Serialize)]
struct NameShown {
    guest: PathText<'static>,
    path: PathText<'static>,
}

fn show_corrupt(setting: &Setting<'_>, guests: &[Guest], corrupt: &Corrupt, what: Scrub) {
    let name = |name: &unify::maintain::Name| NameShown {
        guest: guests[name.guest as usize].key.clone().into(),
        path: name.path().into(),
    };
    let shown = CorruptShown {
        object: corrupt.object.to_string(),
        fault: corrupt.fault.name(),
        why: corrupt.fault.to_string(),
        quarantine: corrupt.aside.as_ref().map(|name| PathText::from_bytes(name)),
        names: corrupt.names.iter().map(name).collect(),
        elsewhere: corrupt.elsewhere,
        replaced: corrupt.replaced,
        left: corrupt.left,
    };
    setting.out.event("corrupt", &shown, || {
        let mut lines = vec![format!("{}: {}", shown.object, shown.why)];
        lines.extend(shown.names.iter().map(|name| format!("{}/{}", name.guest, name.path)));
        if shown.elsewhere > 0 {
            lines.push(format!("and {} in no guest at hand", Many(shown.elsewhere, "name", "names")));
        }
        lines.push(fate(corrupt, what));
        lines.join("\n  ")
    });
}

fn fate(corrupt: &Corrupt, what: Scrub) -> String {
    match corrupt {
        Corrupt { left: 0, replaced: true, .. } => "repaired from a good copy".to_owned(),
        Corrupt { left: 0, .. } => "no guest has it".to_owned(),
        Corrupt { replaced: true, left, .. } => {
            format!("a good copy is there; {} left: try again", Many(*left, "name is", "names are"))
        }
        Corrupt { aside: None, .. } if what.quarantine => {
            "a guest has it under a lease, which keeps it where it is: stop the guest and try again"
                .to_owned()
        }
        _ if what.repair => "no good copy was found: reinstall the package in these guests".to_owned(),
        Corrupt { fault: Fault::KnownBefore, .. } => "use --repair to look for a good copy".to_owned(),
        _ if what.quarantine => "put into quarantine; use --repair to look for a good copy".to_owned(),
        _ => "nothing was changed".to_owned(),
    }
}

fn show_rest(setting: &Setting<'_>, report: &Scrubbed, what: Scrub) {
    let out = setting.out;
    for object in &report.restored {
        let value = json!({ "object": object.to_string() });
        out.event("restored", &value, || format!("{object}: is sound again and back in use"));
    }
    let seal = what.seal.map_or("none", kernel::Seal::name);
    for (at, object) in report.unsealed_objects.iter().enumerate() {
        let value = json!({ "object": object.to_string(), "seal": seal });
        let human = || format!("{object}: lacked its seal ({seal})");
        if at < SOME { out.event("unsealed", &value, human) } else { out.detail("unsealed", &value, human) }
    }
    for (object, why) in &report.unchecked {
        out.error(&Problem::new(format!("object {object} could not be checked: {why}")));
    }
    for path in &report.strangers {
        out.warn(&Problem::new("not an object").at(path).cure("move it out of the store"));
    }
}

/// What was passed over in guests; only failures are anybody's business without `--verbose`.
fn show_skipped(setting: &Setting<'_>, skipped: &[Skipped]) {
    for one in skipped {
        let (guest, path) = (PathText::new(&one.guest), PathText::new(&one.path));
        let why = one.why.to_string();
        if one.why == Skip::Vanished {
            let value = json!({ "guest": guest, "path": path, "why": one.why.name() });
            setting.out.detail("skipped", &value, || format!("{guest}/{path}: {why}"));
        } else {
            setting.out.warn(&Problem::new(why).at(&one.guest.join(&one.path)));
        }
    }
}

fn summarize(setting: &Setting<'_>, report: &Scrubbed) {
    let held = report.corrupt.iter().filter(|one| one.left > 0).count();
    let repaired = report.corrupt.iter().filter(|one| one.replaced && one.left == 0).count();
    let value = json!({
        "objects": report.objects,
        "checked": report.checked,
        "checked_bytes": report.bytes,
        "corrupt": report.corrupt.len(),
        "repaired": repaired,
        "held_by_guests": held,
        "restored": report.restored.len(),
        "unsealed": report.unsealed,
        "resealed": report.resealed,
        "unchecked": report.unchecked.len(),
        "run": report.run,
    });
    setting.out.summary(&value, || {
        let text = format!(
            "{} of {} checked ({}): {} corrupt",
            Count(report.checked),
            Many(report.objects, "object", "objects"),
            HumanBytes(report.bytes),
            Count(report.corrupt.len() as u64)
        );
        let more = [
            (repaired as u64, "repaired"),
            (held as u64, "still in guests"),
            (report.unsealed, "without seal"),
            (report.resealed, "sealed again"),
        ];
        let more = more.into_iter().filter(|(count, _)| *count > 0);
        let more = more.map(|(count, what)| format!("{} {what}", Count(count)));
        std::iter::once(text).chain(more).collect::<Vec<_>>().join(", ")
    });
}

pub(crate) fn rebuild(setting: &Setting<'_>, args: &RebuildArgs) -> Result<Exit, Problem> {
    let (path, given) = setting.find(&args.places)?;
    let store = setting.open_at(&path, access(DryRun::default()))?;
    let (journal, settled) = setting.recovered(&store)?;
    show_recovered(setting, &settled);
    let known = setting.guests(&store, Some(&journal), &given)?;
    let report = unify::maintain::rebuild(&setting.around, &store, &known.guests, policy)?;
    for (guest, dirs, files) in &report.guests {
        let guest = PathText::new(guest);
        let value = json!({ "guest": guest, "directories": dirs, "candidates": files });
        setting.out.event("guest", &value, || {
            let dirs = Many(*dirs, "directory", "directories");
            format!("{guest}: {dirs}, {} not shared yet", Many(*files, "file that is", "files that are"))
        });
    }
    show_skipped(setting, &report.skipped);
    let value = json!({ "objects": report.objects, "guests": report.guests.len() });
    setting.out.summary(&value, || {
        let guests = report.guests.len() as u64;
        let objects = Many(report.objects, "object", "objects");
        format!("index made anew: {objects}, {}", Many(guests, "guest", "guests"))
    });
    let failed = report.skipped.iter().any(|one| one.why.is_failure());
    Ok(if failed { Exit::Partly } else { Exit::Done })
}

/// As the next run will classify the guest.
fn policy(guest: &Guest) -> Result<Policy, Error> {
    let below = guest.path.parent() == Some(Guests::from_env().base());
    let name = guest.path.file_name().and_then(|name| name.to_str()).filter(|_| below);
    Ok(Policy::load(Path::new(DIRECTORY), name)?)
}
