//! `vunify`: share identical files between guests, and take it back.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{ArgGroup, Parser};
use cli::{
    Bars, CommonArgs, Count, DryRun, Example, Exit, Guests, HumanBytes, Interrupt, Out, PathText, Problem,
    Program, Unit, looks_like_root, run_main,
};
use kernel::{Real, Seal};
use serde::Serialize;
use store::journal::{Action, Batch, Journal, RunEnd, Verb};
use store::{Access, IdentityPolicy, Located, Place, STORE_NAME, Store};
use unify::packages::Packages;
use unify::policy::{DIRECTORY, Mtime, Policy};
use unify::protection::{Wish, choose, describe};
use unify::{
    Error, Explanation, Guest, Judge, Observer, Report, Scope, Selection, Session, Shareable, Skip, Skipped,
    State, Surroundings, guests_of_run, recover,
};

/// Share identical files between guests
///
/// Files that are the same in several guests (content, mode, owner, group, size, modification time and
/// every extended attribute) become one inode by hard links, protected so that a guest can unlink and
/// replace its name but never change the file. Config files stay private: what the guest's package
/// database calls config, and whatever in /etc no package owns.
///
/// A guest is named (below /vservers or $VSERVERS) or given by path. With packages behind --, the first
/// guest is the reference: only files of packages are shared that it and the other guest have in the same
/// version; ALL stands for every such package.
///
/// The store is the nearest .store from the guests upward on their file system; the first run makes one
/// beside the first guest. A run that is interrupted or crashes loses nothing: the next one settles it.
#[derive(Parser)]
#[command(name = "vunify", version, arg_required_else_help = true)]
#[command(group = ArgGroup::new("protection").multiple(true))]
#[allow(clippy::struct_excessive_bools)] // flags of a command line are bools
struct Args {
    /// Guests, by name or path
    guests: Vec<OsString>,
    /// Packages to share files of, or ALL; the first guest is then the reference
    #[arg(last = true, value_name = "PACKAGES")]
    packages: Vec<String>,
    /// Every guest below /vservers or $VSERVERS
    #[arg(long, conflicts_with = "guests")]
    all: bool,
    /// Make shared files private again
    #[arg(long)]
    undo: bool,
    /// With --undo: only what this run has shared (see vstore log)
    #[arg(long, value_name = "ID", requires = "undo")]
    run: Option<i64>,
    /// With --undo: only this file, or what lies below this directory
    #[arg(long = "path", value_name = "PATH", requires = "undo")]
    paths: Vec<PathBuf>,
    /// Say of each PATH whether it is shared, and why or why not
    #[arg(long, value_name = "PATH", num_args = 1.., conflicts_with_all = ["undo", "packages", "protection"])]
    explain: Vec<PathBuf>,
    /// Do not protect shared files: for guests that are trusted not to write into them in place
    #[arg(long, group = "protection", conflicts_with = "undo")]
    noflags: bool,
    /// Make shared files immutable: their names cannot be replaced either; package upgrades fail
    #[arg(long, group = "protection", conflicts_with = "undo")]
    immutable: bool,
    /// Insist on link-invert: content and metadata protected, names free
    #[arg(long, group = "protection", conflicts_with = "undo")]
    immutable_mayunlink: bool,
    /// Let equal files that must stay private share disk blocks (btrfs and xfs)
    ///
    /// What cannot be hard-linked (config, setuid files, files whose owner, mode or times differ, files in
    /// nested subvolumes) keeps its inode and metadata; the kernel compares the bytes, and a write to one
    /// file never shows in another. So there is nothing to undo, and no policy applies to it.
    #[arg(long, conflicts_with_all = ["undo", "explain"])]
    reflink: bool,
    /// The store to use
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Where policies are: DIR/unify.toml for all guests, DIR/NAME.unify.toml for one
    #[arg(long, value_name = "DIR", default_value = DIRECTORY)]
    policy: PathBuf,
    #[command(flatten)]
    dry: DryRun,
    #[command(flatten)]
    common: CommonArgs,
}

impl Program for Args {
    const EXAMPLES: &'static [Example] = &[
        Example { line: "vunify --all --quiet", what: "Share between all guests, from cron" },
        Example { line: "vunify --dry-run web1 web2", what: "Show what would be shared" },
        Example {
            line: "vunify web1 web2 web3 -- bash libc6",
            what: "Share two packages with reference web1",
        },
        Example { line: "vunify --undo web1", what: "Give web1 private copies of everything" },
        Example { line: "vunify --explain /vservers/web1/etc/passwd", what: "Say why a file is not shared" },
    ];

    fn common(&self) -> &CommonArgs {
        &self.common
    }
}

fn main() -> ExitCode {
    run_main(run)
}

/// What every part of the command needs.
struct Setting<'a> {
    args: &'a Args,
    out: &'a Out,
    interrupt: &'a Interrupt,
    roots: Vec<PathBuf>,
    located: Located,
}

/// Progress on the terminal.
struct Progress(Bars);

impl Observer for Progress {
    fn phase(&self, name: &'static str, total: u64) {
        self.0.phase(name, total, if name == "reading" { Unit::Bytes } else { Unit::Items });
    }

    fn advance(&self, count: u64) {
        self.0.inc(count);
    }
}

fn run(args: Args, out: &Out) -> Result<Exit, Problem> {
    let interrupt = Interrupt::install().map_err(|error| Problem::new(error.to_string()).exit(Exit::Bug))?;
    kernel::raise_open_file_limit();
    let roots = roots(&args)?;
    let located = match (&args.store, roots.first()) {
        (Some(path), _) => locate_given(path)?,
        (None, Some(first)) => Store::locate(first).map_err(Error::from)?,
        // The run itself says which guests it was about; its store is that of the usual place.
        (None, None) if args.run.is_some() => usual_store()?,
        (None, None) => return Err(Error::NoGuest.into()),
    };
    let bars = Progress(out.bars());
    let around = Surroundings { fs: &Real, observer: &bars, stop: interrupt.flag() };
    let mut setting = Setting { args: &args, out, interrupt: &interrupt, roots, located };
    if setting.roots.is_empty() {
        setting.roots = setting.roots_of_run()?;
    }
    let result = match () {
        () if !args.explain.is_empty() => setting.explain(&around),
        () if args.undo => setting.undo(&around),
        () => setting.unify(&around),
    };
    bars.0.finish();
    result
}

/// The roots of the guests that were named; for `--explain` and `--undo --path`, of those that hold the paths.
fn roots(args: &Args) -> Result<Vec<PathBuf>, Problem> {
    let guests = Guests::from_env();
    let mut roots = Vec::new();
    for name in &args.guests {
        let root = guests.resolve(name)?;
        if !looks_like_root(&root) {
            let what = "not a guest: it has no etc, usr or bin";
            return Err(Problem::new(what)
                .at(&root)
                .cure("name the directory that holds its root")
                .exit(Exit::Usage));
        }
        roots.push(root);
    }
    let by_path = args.explain.iter().chain(&args.paths);
    if args.all {
        roots = guests.all()?;
    } else if roots.is_empty() {
        for path in by_path {
            let root = root_of(&absolute(path)?)?;
            if !roots.contains(&root) {
                roots.push(root);
            }
        }
    }
    Ok(roots)
}

/// The guest that a path lies in: the outermost directory above it that looks like a root and is not the
/// host's own.
fn root_of(path: &Path) -> Result<PathBuf, Problem> {
    let mut above: Vec<&Path> = path.ancestors().skip(1).filter(|dir| dir.parent().is_some()).collect();
    above.reverse();
    let root = above.into_iter().find(|dir| looks_like_root(dir) && *dir != Path::new("/usr"));
    root.map(Path::to_path_buf).ok_or_else(|| Error::NotInGuest(path.to_path_buf()).into())
}

/// The path with its directory free of symbolic links; the last component stays what it is.
fn absolute(path: &Path) -> Result<PathBuf, Problem> {
    let failed = |error: std::io::Error| Problem::new(error.to_string()).at(path).exit(Exit::Usage);
    let whole = std::path::absolute(path).map_err(failed)?;
    match (whole.parent(), whole.file_name()) {
        (Some(parent), Some(name)) => Ok(parent.canonicalize().map_err(failed)?.join(name)),
        _ => whole.canonicalize().map_err(failed),
    }
}

fn usual_store() -> Result<Located, Problem> {
    let guests = Guests::from_env();
    match guests.all()?.first() {
        Some(first) => Ok(Store::locate(first).map_err(Error::from)?),
        None => Ok(Located::Missing(guests.base().join(STORE_NAME))),
    }
}

fn locate_given(path: &Path) -> Result<Located, Problem> {
    let path = absolute(path)?;
    let exists = path.join("format.toml").exists();
    Ok(if exists { Located::Existing(path) } else { Located::Missing(path) })
}

impl Setting<'_> {
    fn open_store(&self, access: Access) -> Result<Store, Error> {
        let go_on = || !self.interrupt.requested();
        let wait: Option<&dyn Fn() -> bool> = if self.args.common.wait { Some(&go_on) } else { None };
        let store = Store::open(&Real, self.located.path(), access, wait)?;
        if access == Access::Write && !kernel::confine(store.place().root(), store.dir()) {
            self.out.debug(|| "no Landlock here: guests that are only chrooted should be down meanwhile");
        }
        self.start_threads();
        Ok(store)
    }

    /// Threads are started once this process has given up what it does not need: they inherit that. A pool
    /// that is there already is as good, but for its size.
    fn start_threads(&self) {
        let threads = self.args.common.threads().get();
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().ok();
    }

    /// Where something is to be taken back there must be a store.
    fn check_store(&self) -> Result<(), Problem> {
        match &self.located {
            Located::Existing(_) => Ok(()),
            Located::Missing(path) => {
                let place = path.parent().unwrap_or(path).to_path_buf();
                Err(Error::from(store::Error::NoStore(place)).into())
            }
        }
    }

    /// The guests of the run that is to be undone, if none were named.
    fn roots_of_run(&self) -> Result<Vec<PathBuf>, Problem> {
        let Some(run) = self.args.run else { return Err(Error::NoGuest.into()) };
        self.check_store()?;
        let store = self.open_store(Access::Read)?;
        let journal = Journal::open_read_only(&store).map_err(Error::from)?;
        let unknown = Error::BadRun { run, why: "is not in the journal" };
        let guests = guests_of_run(&journal.ok_or(unknown)?, run)?;
        let roots = guests.iter().map(|guest| store.place().base().join(guest));
        let (there, gone): (Vec<_>, Vec<_>) = roots.partition(|root| root.is_dir());
        gone.iter().for_each(|root| self.out.warn(&Problem::new("a guest of the run is gone").at(root)));
        Ok(there)
    }

    /// The host's policy, and what it says of a guest below its own directory.
    fn policy_of(&self, root: &Path) -> Result<Policy, Error> {
        let below = Guests::from_env().base().canonicalize().is_ok_and(|base| root.parent() == Some(&base));
        let name = root.file_name().and_then(|name| name.to_str()).filter(|_| below);
        Ok(Policy::load(&self.args.policy, name)?)
    }

    /// Whether times must be equal is decided when a store is made: its objects' ids depend on it.
    fn identity(&self) -> Result<IdentityPolicy, Error> {
        let policy = Policy::load(&self.args.policy, None)?;
        Ok(match policy.options().mtime {
            Mtime::Keep => IdentityPolicy::Full,
            Mtime::Relax => IdentityPolicy::WithoutMtime,
        })
    }

    fn session<'a>(&self, around: &'a Surroundings<'a>, place: &'a Place) -> Result<Session<'a>, Error> {
        let judge = |guest: &Guest| {
            let root = guest.root.reopen().map_err(store::Error::at("open", &guest.path))?;
            Ok(Judge::new(root, Arc::new(self.policy_of(&guest.path)?)))
        };
        let mut session = Session::open(around, place, &self.roots, judge)?;
        if !self.args.packages.is_empty() {
            self.restrict(&mut session)?;
        }
        Ok(session)
    }

    /// The first guest is the reference: only packages that it and another guest have in the same version.
    fn restrict(&self, session: &mut Session<'_>) -> Result<(), Error> {
        let all: Vec<&Packages> = session.judges().iter().map(Judge::packages).collect();
        let (Some(reference), Some(path)) = (all.first(), self.roots.first()) else { return Ok(()) };
        if all.len() == 1 && !self.args.undo {
            return Err(Error::OnlyReference(path.clone()));
        }
        if !reference.has_database() {
            return Err(Error::NoDatabase(path.clone()));
        }
        let named = |name: &str| self.args.packages.iter().any(|wanted| wanted == "ALL" || wanted == name);
        for package in self.args.packages.iter().filter(|package| *package != "ALL") {
            if reference.find(package).next().is_none() {
                return Err(Error::NoPackage { guest: path.clone(), package: package.clone() });
            }
        }
        let common = |here: &Packages, there: &Packages| -> Vec<_> {
            let chosen = here.list().filter(|(id, package)| named(&package.name) && here.is_in(*id, there));
            chosen.map(|(id, _)| id).collect()
        };
        let mut selections = vec![Selection::new(if self.args.undo {
            common(reference, reference)
        } else {
            all[1..].iter().flat_map(|other| common(reference, other)).collect()
        })];
        selections.extend(all[1..].iter().map(|other| Selection::new(common(other, reference))));
        session.restrict(selections);
        Ok(())
    }

    fn unify(&self, around: &Surroundings<'_>) -> Result<Exit, Problem> {
        if self.args.dry.dry_run {
            return self.preview(around);
        }
        let place = Place::new(self.located.path()).map_err(Error::from)?;
        // Whatever can be wrong with the guests is found before anything is made.
        drop(self.session(around, &place)?);
        let wish = Wish {
            noflags: self.args.noflags,
            immutable: self.args.immutable,
            mayunlink: self.args.immutable_mayunlink,
        };
        let made = matches!(self.located, Located::Missing(_));
        if made {
            let sample = sample_in(&place)?;
            self.choose(wish, &sample, place.path())?;
            Store::create(&Real, place.path(), self.identity()?).map_err(Error::from)?;
        }
        let store = self.open_store(Access::Write)?;
        let seal = self.choose(wish, store.sample(), store.path())?;
        let mut journal = self.recovered(around, &store)?;
        let session = self.session(around, store.place())?;
        let result = session.unify(&store, &mut journal, seal, &command_line());
        let mut report = settle_now(around, &store, &mut journal, result)?;
        if self.args.reflink && report.end != Some(RunEnd::Interrupted) {
            self.session(around, store.place())?.reflink(&store, &mut report)?;
        }
        Ok(self.report(&report, Some(seal)))
    }

    /// The seal of the run; where there is none, every reason is told before the error.
    fn choose(&self, wish: Wish, sample: &kernel::File, place: &Path) -> Result<Seal, Error> {
        choose(wish, sample, place).inspect_err(|error| {
            if let Error::NoProtection { offers, .. } = error {
                offers.iter().for_each(|offer| self.out.warn(&Problem::new(describe(offer))));
            }
        })
    }

    fn preview(&self, around: &Surroundings<'_>) -> Result<Exit, Problem> {
        let mut planned = HashSet::new();
        let show = |batch: &Batch| {
            batch.actions.iter().for_each(|action| self.show(batch, action));
            planned.extend(batch.actions.iter().map(|action| action.ino));
        };
        let store = match self.located {
            Located::Existing(_) => Some(self.open_store(Access::Read)?),
            Located::Missing(_) => {
                self.start_threads();
                None
            }
        };
        let place = Place::new(self.located.path()).map_err(Error::from)?;
        let identity = store.as_ref().map_or_else(|| self.identity(), |store| Ok(store.format().identity))?;
        let session = self.session(around, &place)?;
        let mut report = session.preview(store.as_ref(), identity, show)?;
        if self.args.reflink {
            let session = self.session(around, &place)?;
            let show = |shareable: &Shareable| self.show_shareable(shareable);
            session.preview_reflink(store.as_ref(), &planned, &mut report, show)?;
        }
        Ok(self.report(&report, None))
    }

    fn undo(&self, around: &Surroundings<'_>) -> Result<Exit, Problem> {
        let paths = self.args.paths.iter().map(|path| absolute(path)).collect::<Result<_, _>>()?;
        let scope = Scope { run: self.args.run, paths };
        self.check_store()?;
        if self.args.dry.dry_run {
            let store = self.open_store(Access::Read)?;
            let journal = Journal::open_read_only(&store).map_err(Error::from)?;
            let session = self.session(around, store.place())?;
            let show = |batch: &Batch| batch.actions.iter().for_each(|action| self.show(batch, action));
            let report = session.preview_undo(&store, journal.as_ref(), &scope, show)?;
            return Ok(self.report(&report, None));
        }
        let store = self.open_store(Access::Write)?;
        let mut journal = self.recovered(around, &store)?;
        let session = self.session(around, store.place())?;
        let result = session.undo(&store, &mut journal, &scope, &command_line());
        let report = settle_now(around, &store, &mut journal, result)?;
        Ok(self.report(&report, None))
    }

    /// Opens the journal and settles what an earlier run left behind.
    fn recovered(&self, around: &Surroundings<'_>, store: &Store) -> Result<Journal, Error> {
        let mut journal = Journal::open(store)?;
        let outcome = recover(around, store, &mut journal)?;
        if let Some(run) = outcome.run {
            self.out.line(|| {
                format!(
                    "run {run} was cut off: {} actions completed, {} taken back",
                    outcome.completed, outcome.taken_back
                )
            });
        }
        for kept in &outcome.kept {
            self.out.warn(
                &Problem::new("kept a file of unclear origin").at(kept).cure("look at it, then remove it"),
            );
        }
        Ok(journal)
    }

    fn explain(&self, around: &Surroundings<'_>) -> Result<Exit, Problem> {
        let place = Place::new(self.located.path()).map_err(Error::from)?;
        let store = match self.located {
            Located::Existing(_) => Some(self.open_store(Access::Read)?),
            Located::Missing(_) => None,
        };
        let session = self.session(around, &place)?;
        for path in &self.args.explain {
            let answer = session.explain(store.as_ref(), &absolute(path)?)?;
            self.out.event("explanation", &explained(&answer), || {
                format!("{}: {}", PathText::new(&answer.path), answer.why)
            });
        }
        Ok(Exit::Done)
    }

    fn show(&self, batch: &Batch, action: &Action) {
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
            Verb::Retire => "make private where it is",
            Verb::Repair => "replace by a good object",
        };
        self.out.event("action", &shown, || {
            let paths: Vec<String> = shown.paths.iter().map(ToString::to_string).collect();
            format!("{what}: {}", paths.join(" "))
        });
    }

    fn show_shareable(&self, shareable: &Shareable) {
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

    fn report(&self, report: &Report, seal: Option<Seal>) -> Exit {
        for skipped in &report.skipped_files {
            self.tell_skipped(skipped);
        }
        for name in &report.corrupt {
            self.out.warn(
                &Problem::new("an object was not what its name says and is in quarantine")
                    .at(&name.file_name())
                    .cure("run vstore scrub to see which guests have it"),
            );
        }
        if report.reflinks.is_some_and(|reflinks| !reflinks.supported) {
            self.out.warn(
                &Problem::new("this file system cannot share blocks between files: --reflink did nothing")
                    .at(self.located.path())
                    .cure("keep guests on btrfs, or on xfs made with reflink=1"),
            );
        }
        let summary = Summary::new(self, report, seal);
        self.out.summary(&summary, || summary.text(report, self.args));
        match report.end {
            Some(RunEnd::Interrupted) => Exit::Interrupted,
            _ if report.has_failures() => Exit::Partly,
            _ => Exit::Done,
        }
    }

    /// A failure is a warning; what a live guest does to its own files is told to those who ask for more.
    fn tell_skipped(&self, skipped: &Skipped) {
        let path = self.located.path().with_file_name("").join(&skipped.guest).join(&skipped.path);
        if skipped.why.is_failure() {
            self.out.warn(&Problem::new(format!("left alone: {}", skipped.why)).at(&path));
        } else if skipped.why == Skip::Stray {
            let problem = Problem::new(format!("left alone: {}", skipped.why)).at(&path);
            self.out.warn(&problem.cure("chattr -A or -S it, unless it is meant to be unchangeable"));
        }
        let event = SkippedEvent { path: PathText::new(&path), reason: skipped.why.name() };
        self.out.detail("skipped", &event, || format!("left alone: {}: {}", event.path, skipped.why));
    }
}

/// What a run left half-way is settled at once where that is possible, not by the next command: the error
/// is reported either way.
fn settle_now<T>(
    around: &Surroundings<'_>,
    store: &Store,
    journal: &mut Journal,
    result: Result<T, Error>,
) -> Result<T, Error> {
    result.inspect_err(|_| drop(recover(around, store, journal)))
}

/// A regular file on the file system of a store that is not there yet, for asking what can be enforced.
fn sample_in(place: &Place) -> Result<kernel::File, Error> {
    kernel::sample_file(place.base()).map_err(|errno| store::Error::at("use", place.base())(errno).into())
}

fn command_line() -> String {
    let words: Vec<String> = std::env::args_os().map(|word| PathText::new(&word).to_string()).collect();
    words.join(" ")
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
    retired: u64,
    not_done: u64,
    bytes_freed: u64,
    bytes_taken: u64,
    objects: u64,
    /// With `--reflink` only; in a dry run, what would be shared.
    reflinked_files: Option<u64>,
    reflinked_bytes: Option<u64>,
    skipped: std::collections::BTreeMap<&'static str, u64>,
    corrupt: Vec<String>,
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
            retired: report.done.retired,
            not_done: report.done.not_done,
            bytes_freed: report.done.freed,
            bytes_taken: report.done.taken,
            objects: report.objects,
            reflinked_files: report.reflinks.map(|reflinks| reflinks.files),
            reflinked_bytes: report.reflinks.map(|reflinks| reflinks.bytes),
            skipped: report.skipped.clone(),
            corrupt: report.corrupt.iter().map(ToString::to_string).collect(),
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
                    "would make {} files private: {} by copying {}",
                    Count(planned.links + planned.admits),
                    Count(planned.links),
                    HumanBytes(planned.bytes)
                )
            } else {
                format!(
                    "made {} files private: {} by copying {}, {} where they were",
                    Count(done.detached + done.retired),
                    Count(done.detached),
                    HumanBytes(done.taken),
                    Count(done.retired)
                )
            });
        } else {
            lines.push(format!(
                "looked at {} guests, {} directories: {} names shared before, {} could be, {} private",
                Count(self.guests as u64),
                Count(report.dirs),
                Count(report.unified),
                Count(report.candidates),
                Count(report.private)
            ));
            lines.push(format!("read {} files, {}", Count(report.read.0), HumanBytes(report.read.1)));
            lines.push(if args.dry.dry_run {
                format!(
                    "would share {} more files and replace {} by them, giving back about {}",
                    Count(planned.admits),
                    Count(planned.links),
                    HumanBytes(planned.bytes)
                )
            } else {
                format!(
                    "shared {} more files and replaced {} by them, giving back {}",
                    Count(done.admitted),
                    Count(done.linked),
                    HumanBytes(done.freed)
                )
            });
        }
        if let Some(reflinks) = report.reflinks.filter(|reflinks| reflinks.supported) {
            let (files, bytes) = (Count(reflinks.files), HumanBytes(reflinks.bytes));
            lines.push(if args.dry.dry_run {
                format!("would let {files} private files share the blocks of others, {bytes}")
            } else {
                format!("let {files} private files share the blocks of others, {bytes}")
            });
        }
        if !report.skipped.is_empty() {
            let kinds: Vec<String> =
                report.skipped.iter().map(|(kind, count)| format!("{} {kind}", Count(*count))).collect();
            lines.push(format!("left alone: {} (--verbose names them)", kinds.join(", ")));
        }
        if let Some(run) = report.run {
            lines.push(format!("run {run}: vstore log {run} shows it{}", self.way_back(run, args)));
        }
        lines.join("\n")
    }
}
