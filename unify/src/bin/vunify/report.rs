//! Telling what is planned, what was done, and what was left alone.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use cli::{Count, Exit, HumanBytes, Many, PathText, Problem};
use kernel::Seal;
use serde::Serialize;
use store::journal::{Action, Batch, RunEnd, Verb};
use unify::{Explanation, Report, Shareable, Skip, Skipped, State};

use crate::{Args, Setting, usual_store};

/// Files that failed in the same way and are named without being asked for.
const ALIKE: u64 = 10;

impl Setting<'_> {
    pub(crate) fn show(&self, batch: &Batch, action: &Action) {
        let places: Vec<PathBuf> = action
            .names
            .iter()
            .map(|name| {
                let (guest, path) = batch.place(name);
                self.located.path().with_file_name("").join(guest).join(path)
            })
            .collect();
        let shown = Shown {
            verb: action.verb.name(),
            object: action.object.to_string(),
            bytes: action.size,
            paths: places.iter().map(PathText::new).collect(),
        };
        let what = match action.verb {
            Verb::Admit => "keep and share",
            Verb::Link => "replace by the shared file",
            Verb::Detach => "replace by a private copy",
            Verb::Repair => "replace by a good object",
        };
        self.out.event("action", &shown, || {
            let paths: Vec<String> = shown.paths.iter().map(ToString::to_string).collect();
            format!("{what}: {}", paths.join(" "))
        });
    }

    pub(crate) fn show_shareable(&self, shareable: &Shareable) {
        let shown = ShownShareable {
            source: PathText::new(&shareable.source),
            bytes: shareable.bytes,
            paths: shareable.paths.iter().map(PathText::new).collect(),
        };
        self.out.event("shareable", &shown, || {
            let paths: Vec<String> = shown.paths.iter().map(ToString::to_string).collect();
            format!("share blocks of {}: {}", shown.source, paths.join(" "))
        });
    }

    pub(crate) fn report(&self, report: &Report, seal: Option<Seal>) -> Exit {
        self.tell_all_skipped(report);
        for (guest, warning) in &report.warnings {
            let path =
                self.located.path().with_file_name("").join(guest).join(OsStr::from_bytes(&warning.path));
            self.out.warn(&Problem::new(warning.what.clone()).at(&path).cure(warning.consequence.clone()));
        }
        for name in &report.corrupt {
            self.out.warn(
                &Problem::new("an object was not what its name says and is in quarantine")
                    .at(&name.file_name())
                    .cure("run vstore scrub to see which guests have it"),
            );
        }
        for name in &report.unsealed {
            self.out.warn(
                &Problem::new(
                    "an object could not be looked at, sealed or put aside: a guest has it open for writing, or leased",
                )
                .at(&name.file_name())
                .cure(
                    "run vstore scrub to see which guests have it; it gets no new names until then",
                ),
            );
        }
        if report.reflinks.is_some_and(|reflinks| !reflinks.supported) {
            self.out.warn(
                &Problem::new("this file system cannot share blocks between files: --reflink did nothing")
                    .at(self.located.path())
                    .cure("keep guests on btrfs, or on xfs made with reflink=1"),
            );
        }
        if report.left_shared > 0 {
            let left = Many(report.left_shared, "file or directory", "files or directories");
            self.out.warn(
                &Problem::new(format!("left shared: {left}"))
                    .at(self.located.path())
                    .cure("--verbose names them; stop the guests that have them open, and run this again"),
            );
        }
        let summary = Summary::new(self, report, seal);
        self.out.summary(&summary, || summary.text(report, self.args));
        match report.end {
            Some(RunEnd::Interrupted) => Exit::Interrupted,
            _ if report.has_failures() || report.left_shared > 0 => Exit::Partly,
            _ => Exit::Done,
        }
    }

    pub(crate) fn show_explanation(&self, answer: &Explanation) {
        let text = || format!("{}: {}", PathText::new(&answer.path), answer.why);
        self.out.event("explanation", &explained(answer), text);
    }

    /// Of many that failed in the same way, as all do for want of a privilege, the first speak for the rest, and the first
    /// of each guest.
    fn tell_all_skipped(&self, report: &Report) {
        let mut told: HashMap<Skip, u64> = HashMap::new();
        let mut guests = HashSet::new();
        for skipped in &report.skipped_files {
            let count = told.entry(skipped.why).or_default();
            let is_first = guests.insert((skipped.why, &skipped.guest));
            if !skipped.why.is_failure() || is_first || *count < ALIKE || self.args.common.json {
                *count += 1;
                self.tell_skipped(skipped);
            } else {
                self.tell_quietly(skipped);
            }
        }
        let verbose = self.args.common.verbose || self.args.common.debug;
        let listed = report.skipped_files.iter().filter(|skipped| skipped.why.is_failure()).count() as u64;
        let failures = |(why, count): (&Skip, &u64)| why.is_failure().then_some(*count);
        let told = if verbose { listed } else { told.iter().filter_map(failures).sum() };
        let more = report.skipped.get("failed").copied().unwrap_or(0).saturating_sub(told);
        if more > 0 {
            let problem = Problem::new(format!("{} more left alone for the same reasons", Count(more)));
            let cure = if told < listed { "--verbose names them" } else { "they are too many to be named" };
            self.out.warn(&problem.cure(cure));
        }
    }

    /// A failure is a warning; what a live guest does to its own files is told to those who ask for more.
    fn tell_skipped(&self, skipped: &Skipped) {
        let path = self.located.path().with_file_name("").join(&skipped.guest).join(&skipped.path);
        if skipped.why.is_failure() {
            return self.out.warn(&Problem::new(format!("left alone: {}", skipped.why)).at(&path));
        }
        if skipped.why == Skip::Stray {
            let problem = Problem::new(format!("left alone: {}", skipped.why)).at(&path);
            return self.out.warn(&problem.cure("chattr -A or -S it, unless it is meant to be unchangeable"));
        }
        self.tell_quietly(skipped);
    }

    fn tell_quietly(&self, skipped: &Skipped) {
        let path = self.located.path().with_file_name("").join(&skipped.guest).join(&skipped.path);
        let event = SkippedEvent { path: PathText::new(&path), reason: skipped.why.name() };
        self.out.detail("skipped", &event, || format!("left alone: {}: {}", event.path, skipped.why));
    }
}

#[derive(Serialize)]
struct Shown<'a> {
    verb: &'static str,
    object: String,
    bytes: u64,
    paths: Vec<PathText<'a>>,
}

#[derive(Serialize)]
struct ShownShareable<'a> {
    source: PathText<'a>,
    bytes: u64,
    paths: Vec<PathText<'a>>,
}

#[derive(Serialize)]
struct SkippedEvent<'a> {
    path: PathText<'a>,
    reason: &'static str,
}

#[derive(Serialize)]
struct Explained<'a> {
    path: PathText<'a>,
    state: &'static str,
    object: Option<String>,
    names: Option<u32>,
    why: &'a str,
}

fn explained(answer: &Explanation) -> Explained<'_> {
    let (state, object, names) = match &answer.state {
        State::Shared { object, names } => ("shared", Some(object.to_string()), Some(*names)),
        State::Candidate => ("candidate", None, None),
        State::Private => ("private", None, None),
    };
    Explained { path: PathText::new(&answer.path), state, object, names, why: &answer.why }
}

/// The last line of a run.
#[derive(Serialize)]
struct Summary<'a> {
    store: PathText<'a>,
    guests: usize,
    run: Option<i64>,
    end: Option<&'static str>,
    seal: Option<&'static str>,
    dirs: u64,
    names_unified_before: u64,
    names_candidate: u64,
    names_private: u64,
    files_read: u64,
    bytes_read: u64,
    planned_objects: u64,
    planned_files: u64,
    planned_names: u64,
    planned_bytes: u64,
    admitted: u64,
    linked: u64,
    detached: u64,
    removed: u64,
    not_done: u64,
    left_shared: u64,
    bytes_freed: u64,
    bytes_taken: u64,
    objects: u64,
    /// With `--reflink` only; in a dry run, what would be shared.
    reflinked_files: Option<u64>,
    reflinked_bytes: Option<u64>,
    /// Reading and hashing, by the clock on the wall.
    read_seconds: f64,
    skipped: BTreeMap<&'static str, u64>,
    corrupt: Vec<String>,
    /// Objects that a guest keeps from being looked at, sealed or put aside.
    unsealed: Vec<String>,
}

impl<'a> Summary<'a> {
    fn new(setting: &'a Setting<'_>, report: &Report, seal: Option<Seal>) -> Self {
        Self {
            store: PathText::new(setting.located.path()),
            guests: setting.roots.len(),
            run: report.run,
            end: report.end.map(RunEnd::name),
            seal: seal.map(Seal::name),
            dirs: report.dirs,
            names_unified_before: report.unified,
            names_candidate: report.candidates,
            names_private: report.private,
            files_read: report.read.0,
            bytes_read: report.read.1,
            planned_objects: report.planned.admits,
            planned_files: report.planned.links,
            planned_names: report.planned.names,
            planned_bytes: report.planned.bytes,
            admitted: report.done.admitted,
            linked: report.done.linked,
            detached: report.done.detached,
            removed: report.done.removed,
            not_done: report.done.not_done,
            left_shared: report.left_shared,
            bytes_freed: report.done.freed,
            bytes_taken: report.done.taken,
            objects: report.objects,
            reflinked_files: report.reflinks.map(|reflinks| reflinks.files),
            reflinked_bytes: report.reflinks.map(|reflinks| reflinks.bytes),
            read_seconds: report.read_seconds,
            skipped: report.skipped.clone(),
            corrupt: report.corrupt.iter().map(ToString::to_string).collect(),
            unsealed: report.unsealed.iter().map(ToString::to_string).collect(),
        }
    }

    /// How a run is taken back: with the store named where no guest's usual place leads to it.
    fn way_back(&self, run: i64, args: &Args) -> String {
        if args.undo {
            return String::new();
        }
        let usual = usual_store().is_ok_and(|located| located.path() == self.store.as_path());
        let store = if usual { String::new() } else { format!(" --store {}", self.store) };
        format!(", vunify --undo --run {run}{store} takes it back")
    }

    fn text(&self, report: &Report, args: &Args) -> String {
        let mut lines = Vec::new();
        let (planned, done) = (&report.planned, &report.done);
        if args.undo {
            lines.push(if args.dry.dry_run {
                format!(
                    "would make {} private by copying {}",
                    files(planned.links),
                    HumanBytes(planned.bytes)
                )
            } else {
                format!(
                    "made {} private by copying {}, and removed {} that no guest uses any more, {}",
                    files(done.detached),
                    HumanBytes(done.taken),
                    Many(done.removed, "shared file", "shared files"),
                    HumanBytes(done.freed)
                )
            });
        } else {
            lines.push(format!(
                "looked at {}, {}: {} shared before, {} could be, {} private",
                Many(self.guests as u64, "guest", "guests"),
                Many(report.dirs, "directory", "directories"),
                Many(report.unified, "name", "names"),
                Count(report.candidates),
                Count(report.private)
            ));
            lines.push(format!("read {}, {}", files(report.read.0), HumanBytes(report.read.1)));
            lines.push(if args.dry.dry_run {
                format!(
                    "would share {} and replace {} by them, giving back about {}",
                    more_files(planned.admits),
                    Count(planned.links),
                    HumanBytes(planned.bytes)
                )
            } else {
                format!(
                    "shared {} and replaced {} by them, giving back {}",
                    more_files(done.admitted),
                    Count(done.linked),
                    HumanBytes(done.freed)
                )
            });
        }
        if let Some(reflinks) = report.reflinks.filter(|reflinks| reflinks.supported) {
            let files = Many(reflinks.files, "private file", "private files");
            let would = if args.dry.dry_run { "would " } else { "" };
            let bytes = HumanBytes(reflinks.bytes);
            lines.push(format!("{would}let {files} share the blocks of others, {bytes}"));
        }
        if !report.skipped.is_empty() {
            let kinds: Vec<String> =
                report.skipped.iter().map(|(kind, count)| format!("{} {kind}", Count(*count))).collect();
            let named = args.common.verbose || args.common.debug;
            let hint = if named { "" } else { " (--verbose names them)" };
            lines.push(format!("left alone: {}{hint}", kinds.join(", ")));
        }
        if report.end == Some(RunEnd::Interrupted) {
            let left = planned.admits + planned.links - (done.admitted + done.linked + done.detached);
            lines.push(format!(
                "interrupted: {} left; the same command goes on there",
                Many(left, "file is", "files are")
            ));
        }
        if let Some(run) = report.run {
            lines.push(format!("run {run}: vstore log {run} shows it{}", self.way_back(run, args)));
        }
        lines.join("\n")
    }
}

fn files(count: u64) -> Many {
    Many(count, "file", "files")
}

fn more_files(count: u64) -> Many {
    Many(count, "more file", "more files")
}
