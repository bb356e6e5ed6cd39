//! Commands that only look.

use std::ffi::OsString;

use clap::{Args, ValueHint};
use cli::{Align, Count, Exit, HumanBytes, Many, PathText, Problem, Table, expecting};
use serde::Serialize;
use serde_json::json;
use store::journal::{Action, Batch, Journal, Run, Settled};
use store::{Access, IdentityPolicy, ObjectName, Store};
use unify::Error;
use unify::maintain::{Kept, Status, expected_seal};

use super::show::{KeptShown, RunShown, utc};
use super::{Setting, Where};

/// Runs that `status` shows.
const LAST_RUNS: usize = 5;

/// Files in quarantine that `status` shows to people.
const SOME: usize = 10;

#[derive(Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    place: Where,
}

#[derive(Args)]
pub(crate) struct LogArgs {
    /// Show only so many runs, the latest
    #[arg(
        long, value_name = "N", default_value_t = 20,
        value_parser = expecting::<usize>("a number of runs"), value_hint = ValueHint::Other
    )]
    limit: usize,
    #[command(flatten)]
    place: Where,
    /// Show what this run did to each file; a number by itself is a run, too
    #[arg(value_parser = expecting::<i64>("the number of a run, as vstore log shows it"))]
    run: Option<i64>,
}

impl LogArgs {
    /// The place and the run. Who has a guest whose name is a number gives its path.
    fn place_and_run(&self) -> (Option<&OsString>, Option<i64>) {
        let place = self.place.place.as_ref();
        let alone = || place?.to_str()?.parse().ok();
        match self.run.or_else(alone) {
            run @ Some(_) if self.run.is_none() => (None, run),
            run => (place, run),
        }
    }
}

pub(crate) fn status(setting: &Setting<'_>, args: &StatusArgs) -> Result<Exit, Problem> {
    let out = setting.out;
    let store = setting.open(args.place.place.as_ref(), Access::Read)?;
    let journal = Journal::open_read_only(&store).map_err(Error::from)?;
    let status = unify::maintain::status(&store, journal.as_ref())?;
    let expected = expected_seal(journal.as_ref())?;
    show_store(setting, &store, &status);
    show_objects(setting, &status);
    show_quarantine(setting, &status.quarantine);
    out.line(|| "\nProtection");
    show_protection(setting, &status);
    if let Some(seal) = expected.filter(|seal| *seal != kernel::Seal::None) {
        let tagged = status.objects.seals.get(seal.name()).copied().unwrap_or(0);
        if tagged < status.objects.count {
            let text = format!(
                "{} of {} objects lack the seal of the last run ({})",
                Count(status.objects.count - tagged),
                Count(status.objects.count),
                seal.name()
            );
            out.warn(&Problem::new(text).at(store.path()).cure("run vstore scrub --repair, or vunify"));
        }
    }
    if status.strays > 0 {
        let text = format!(
            "{} files of guests are tagged like sealed ones (chattr +A +S) and are no objects: nobody in a guest can \
             change them",
            Count(status.strays)
        );
        out.warn(
            &Problem::new(text).at(store.path()).cure("vunify --verbose names them; chattr -A or -S them"),
        );
    }
    if !status.runs.is_empty() {
        out.line(|| "\nLast runs");
        show_runs(setting, status.runs.iter().rev().take(LAST_RUNS));
    }
    if let Some(run) = status.runs.iter().find(|run| run.end.is_none()) {
        let problem = Problem::new(format!("run {} was cut off", run.id)).at(store.path());
        out.warn(&problem.cure("run vstore recover; the next run of vunify does the same"));
    }
    Ok(Exit::Done)
}

fn show_store(setting: &Setting<'_>, store: &Store, status: &Status) {
    let format = store.format();
    let identity = match format.identity {
        IdentityPolicy::Full => ("full", "everything a hard link shares"),
        IdentityPolicy::WithoutMtime => ("without-mtime", "everything but the modification time"),
    };
    let features = [format.compat.as_slice(), &format.ro_compat, &format.incompat].concat();
    let value = json!({
        "path": PathText::new(store.path()),
        "format": format.version,
        "hash": format.hash,
        "identity": identity.0,
        "features": features,
        "filesystem_bytes": status.space.0,
        "free_bytes": status.space.1,
    });
    setting.out.event("store", &value, || {
        let (all, free) = (HumanBytes(status.space.0), HumanBytes(status.space.1));
        format!(
            "Store       {}\nFormat      {} ({}), identity: {}\nFile system {free} free of {all}",
            PathText::new(store.path()),
            format.version,
            format.hash,
            identity.1
        )
    });
}

fn show_objects(setting: &Setting<'_>, status: &Status) {
    let objects = &status.objects;
    setting.out.summary(&figures(status), || {
        let text = format!(
            "Objects     {}, {}\nLinks       {} in guests\nSaved       {}\nGarbage     {}, {}",
            Count(objects.count),
            HumanBytes(objects.allocated),
            Many(objects.links, "name", "names"),
            HumanBytes(objects.saved),
            Count(objects.garbage.0),
            HumanBytes(objects.garbage.1)
        );
        let seals: Vec<String> =
            objects.seals.iter().map(|(seal, count)| format!("{} {seal}", Count(*count))).collect();
        if seals.is_empty() { text } else { format!("{text}\nSeals       {}", seals.join(", ")) }
    });
    for path in &objects.strangers {
        setting.out.warn(&Problem::new("not an object").at(path).cure("move it out of the store"));
    }
    if objects.unreadable > 0 {
        let text = format!("{} objects cannot be looked at", Count(objects.unreadable));
        setting.out.warn(&Problem::new(text).cure("run vstore scrub"));
    }
}

fn figures(status: &Status) -> serde_json::Value {
    let objects = &status.objects;
    json!({
        "objects": objects.count,
        "allocated_bytes": objects.allocated,
        "links": objects.links,
        "saved_bytes": objects.saved,
        "garbage": objects.garbage.0,
        "garbage_bytes": objects.garbage.1,
        "seals": objects.seals,
        "unreadable": objects.unreadable,
        "quarantined": status.quarantine.len(),
        "free_bytes": status.space.1,
        "runs": status.runs.len(),
        "unfinished": status.runs.iter().any(|run| run.end.is_none()),
    })
}

fn show_quarantine(setting: &Setting<'_>, kept: &[Kept]) {
    let out = setting.out;
    let bytes = kept.iter().map(|one| one.stat.allocated()).sum();
    out.line(|| format!("Quarantine  {}, {}", Count(kept.len() as u64), HumanBytes(bytes)));
    for (at, one) in kept.iter().enumerate() {
        let shown = KeptShown::new(one);
        if at < SOME {
            let name = PathText::from_bytes(&one.name);
            out.event("quarantine", &shown, || {
                let names = Many(one.held().into(), "name", "names");
                format!("  {} {name}, {names} in guests", one.kind.name())
            });
        } else {
            out.detail("quarantine", &shown, || format!("  {}", PathText::from_bytes(&one.name)));
        }
    }
}

fn show_protection(setting: &Setting<'_>, status: &Status) {
    for offer in &status.protection {
        let (word, why) = offer.verdict.in_words();
        let tagged = status.objects.seals.get(offer.seal.name()).copied().unwrap_or(0);
        let value = json!({
            "seal": offer.seal.name(),
            "verdict": word,
            "why": why,
            "leaves_open": offer.leaves_open,
            "cure": offer.cure,
            "tagged": tagged,
        });
        setting.out.event("protection", &value, || {
            let seal = offer.seal.name();
            let why = if why.is_empty() { String::new() } else { format!(" ({why})") };
            let open = offer.leaves_open;
            let cure = if offer.is_enforced() {
                String::new()
            } else {
                format!("\n            to have it: {}", offer.cure)
            };
            format!(
                "  {seal:<9} {word}{why}\n            {} tagged; leaves open: {open}{cure}",
                Many(tagged, "object", "objects")
            )
        });
    }
}

/// A table for people, an event each for machines.
fn show_runs<'r>(setting: &Setting<'_>, runs: impl Iterator<Item = &'r Run>) {
    let right = Align::Right;
    let mut table = Table::new([
        ("RUN", right),
        ("BEGUN", Align::Left),
        ("KIND", Align::Left),
        ("SEAL", Align::Left),
        ("OUTCOME", Align::Left),
        ("COMMAND", Align::Left),
    ]);
    let mut events = Vec::new();
    for run in runs {
        let shown = RunShown::new(run);
        let words = [run.kind.name(), run.seal.name()].map(str::to_owned);
        let [kind, seal] = words;
        table.row([run.id.to_string(), utc(run.begun), kind, seal, shown.fate(), run.command.clone()]);
        events.push(shown);
    }
    let text = table.to_string();
    let mut lines = text.lines();
    setting.out.line(|| lines.next().unwrap_or_default());
    for (shown, line) in events.iter().zip(lines) {
        setting.out.event("run", shown, || line);
    }
}

pub(crate) fn log(setting: &Setting<'_>, args: &LogArgs) -> Result<Exit, Problem> {
    let (place, run) = args.place_and_run();
    let store = setting.open(place, Access::Read)?;
    let journal = Journal::open_read_only(&store).map_err(Error::from)?;
    let runs = journal.as_ref().map(Journal::runs).transpose().map_err(Error::from)?.unwrap_or_default();
    let Some(id) = run else {
        show_runs(setting, runs.iter().rev().take(args.limit));
        let shown = runs.len().min(args.limit) as u64;
        setting.out.summary(&json!({ "runs": runs.len() }), || {
            format!("{} of {}", Count(shown), Many(runs.len() as u64, "run", "runs"))
        });
        return Ok(Exit::Done);
    };
    let unknown = Error::BadRun { run: id, why: "is not in the journal" };
    match (journal, runs.iter().find(|run| run.id == id)) {
        (Some(journal), Some(run)) => show_run(setting, &journal, run),
        _ => Err(unknown.into()),
    }
}

#[derive(Serialize)]
struct ActionShown<'a> {
    run: i64,
    verb: &'static str,
    outcome: &'static str,
    object: String,
    guest: PathText<'a>,
    path: PathText<'a>,
    bytes: u64,
}

fn show_run(setting: &Setting<'_>, journal: &Journal, run: &Run) -> Result<Exit, Problem> {
    let shown = RunShown::new(run);
    setting.out.event("run", &shown, || {
        let ended = run.end.map_or_else(|| "not yet".to_owned(), |(when, _)| utc(when));
        format!(
            "Run {} ({}), {}\nCommand  {}\nBegun    {}\nEnded    {ended}\nSeal     {}",
            run.id,
            run.kind.name(),
            shown.fate(),
            run.command,
            utc(run.begun),
            run.seal.name()
        )
    });
    let (mut seq, mut actions) = (0, 0_u64);
    while let Some((batch, settled)) = journal.batch(run.id, seq).map_err(Error::from)? {
        for (at, action) in batch.actions.iter().enumerate() {
            if setting.out.closed() || setting.interrupt.requested() {
                break;
            }
            let outcome = settled.as_ref().and_then(|settled| settled.get(at)).copied();
            show_action(setting, run.id, &batch, action, outcome);
        }
        actions += batch.actions.len() as u64;
        seq += 1;
    }
    setting.out.summary(&json!({ "run": run.id, "actions": actions }), || Many(actions, "action", "actions"));
    Ok(if setting.interrupt.requested() { Exit::Interrupted } else { Exit::Done })
}

fn show_action(setting: &Setting<'_>, run: i64, batch: &Batch, action: &Action, settled: Option<Settled>) {
    let (outcome, overflow) = match settled {
        None => ("intended", action.object.overflow),
        Some(Settled::NotDone) => ("not-done", action.object.overflow),
        Some(Settled::Done { overflow }) => ("done", overflow),
        Some(Settled::Admitted { overflow }) => ("admitted", overflow),
    };
    let object = ObjectName { overflow, ..action.object };
    for name in &action.names {
        let (guest, path) = batch.place(name);
        let shown = ActionShown {
            run,
            verb: action.verb.name(),
            outcome,
            object: object.to_string(),
            guest: PathText::new(guest),
            path: PathText::new(&path),
            bytes: action.size,
        };
        setting.out.event("action", &shown, || {
            format!("{:<6} {outcome:<8} {}/{}  {object}", shown.verb, shown.guest, shown.path)
        });
    }
}
