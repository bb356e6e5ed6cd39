//! Commands that take away what is not needed and settle what was left.

use std::ffi::OsString;

use clap::Args;
use cli::{Count, DryRun, Exit, HumanBytes, Many, Problem};
use kernel::{Fs, Real};
use serde_json::json;
use store::Store;
use store::gc::Outcome as Collected;
use unify::maintain::{Emptied, empty};
use unify::{Error, Recovered};

use super::show::KeptShown;
use super::{Setting, Where, access};

#[derive(Args)]
pub(crate) struct GcArgs {
    #[command(flatten)]
    place: Where,
    /// Remove objects from quarantine too, if no guest links to them
    #[arg(long)]
    quarantine: bool,
    #[command(flatten)]
    dry: DryRun,
}

#[derive(Args)]
pub(crate) struct RecoverArgs {
    #[command(flatten)]
    place: Where,
}

pub(crate) fn gc(setting: &Setting<'_>, args: &GcArgs) -> Result<Exit, Problem> {
    let store = setting.open(args.place.place.as_ref(), access(args.dry))?;
    let Collected { objects, removed, freed, withheld } = if args.dry.dry_run {
        preview(setting, &store)?
    } else {
        let (_, settled) = setting.recovered(&store)?;
        show_recovered(setting, &settled);
        store::gc::collect(&Real, &store).map_err(Error::from)?
    };
    let fs: Option<&dyn Fs> = if args.dry.dry_run { None } else { Some(&Real) };
    let emptied = if args.quarantine { empty(fs, &store)? } else { Emptied::default() };
    for kept in &emptied.removed {
        let name = cli::PathText::from_bytes(&kept.name);
        setting.out.event("removed", &KeptShown::new(kept), || format!("quarantine: {name}"));
    }
    let value = json!({
        "objects": objects,
        "removed": removed,
        "freed_bytes": freed,
        "withheld": withheld,
        "quarantine_removed": emptied.removed.len(),
        "quarantine_freed_bytes": emptied.freed,
        "quarantine_held": emptied.held,
        "quarantine_withheld": emptied.withheld,
        "quarantine_unclear": emptied.unclear,
        "dry_run": args.dry.dry_run,
    });
    setting.out.summary(&value, || {
        let would = if args.dry.dry_run { "would be " } else { "" };
        let text = format!(
            "{} of {} {would}removed: {}",
            Count(removed),
            Many(objects, "object", "objects"),
            HumanBytes(freed)
        );
        if !args.quarantine {
            return text;
        }
        let (count, freed) = (Count(emptied.removed.len() as u64), HumanBytes(emptied.freed));
        format!("{text}\n{count} {would}removed from quarantine: {freed}")
    });
    if emptied.unclear > 0 {
        let text = format!("{} files of unclear origin stay in quarantine", Count(emptied.unclear));
        let path = store.path().join("quarantine");
        setting.out.warn(&Problem::new(text).at(&path).cure("look at them and remove them by hand"));
    }
    let withheld = withheld + emptied.withheld;
    if withheld > 0 {
        let text = format!("{} that no guest needs stay", Many(withheld, "file", "files"));
        let why = format!("{text}: a guest has them under a lease");
        setting.out.warn(&Problem::new(why).at(store.path()).cure("stop that guest and run this again"));
        return Ok(Exit::Partly);
    }
    Ok(Exit::Done)
}

/// What a collection would do, as far as can be told without trying.
fn preview(setting: &Setting<'_>, store: &Store) -> Result<Collected, Problem> {
    let (objects, garbage) = store::gc::garbage(store).map_err(Error::from)?;
    let mut freed = 0;
    for name in &garbage {
        let stat = store.stat_object(*name).map_err(Error::from)?;
        let bytes = stat.map_or(0, |stat| stat.allocated());
        freed += bytes;
        let value = json!({ "object": name.to_string(), "bytes": bytes });
        setting.out.detail("garbage", &value, || format!("{name}: {}", HumanBytes(bytes)));
    }
    Ok(Collected { objects, removed: garbage.len() as u64, freed, withheld: 0 })
}

pub(crate) fn recover(setting: &Setting<'_>, args: &RecoverArgs) -> Result<Exit, Problem> {
    let place: Option<&OsString> = args.place.place.as_ref();
    let store = setting.open(place, access(DryRun::default()))?;
    let (_, settled) = setting.recovered(&store)?;
    show_recovered(setting, &settled);
    let value = json!({
        "run": settled.run,
        "completed": settled.completed,
        "taken_back": settled.taken_back,
        "removed": settled.removed,
        "kept": settled.kept.len(),
        "unsealed": settled.unsealed.len(),
    });
    setting.out.summary(&value, || match settled.run {
        Some(run) => format!("run {run} is settled"),
        None => "nothing to recover".to_owned(),
    });
    Ok(if settled.unsealed.is_empty() { Exit::Done } else { Exit::Partly })
}

/// Says what a crash had left, if it had left something.
pub(crate) fn show_recovered(setting: &Setting<'_>, settled: &Recovered) {
    let Some(run) = settled.run else { return };
    let (completed, taken_back, removed) = (settled.completed, settled.taken_back, settled.removed);
    let value = json!({ "run": run, "completed": completed, "taken_back": taken_back, "removed": removed });
    setting.out.event("recovered", &value, || {
        format!(
            "run {run} had been cut off: {} completed, {} taken back, {} removed",
            Many(completed, "action", "actions"),
            Count(taken_back),
            Many(removed, "unused object", "unused objects")
        )
    });
}
