//! `vstore`: look after a store of shared files.

mod check;
mod look;
mod show;
mod tidy;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueHint};
use cli::{
    Bars, CommonArgs, DryRun, Example, Exit, Guests, Interrupt, Out, PathText, Problem, Program, Unit, Wait,
    run_main,
};
use kernel::Real;
use store::journal::Journal;
use store::{Access, Located, STORE_NAME, Store};
use unify::maintain::{Known, known_guests};
use unify::{Error, Observer, Surroundings, UNCONFINED, recover, start};

/// Look after a store of shared files
///
/// A store holds the objects: the files that guests share. It is the directory .store beside its guests,
/// or further up on the same file system. A store is named by its path or by any guest that it serves
/// (by name below /vservers or $VSERVERS, or by path); unless one is named, it is the store that serves
/// /vservers.
///
/// status and log only look: they work on a read-only file system, and while others look. The other
/// commands change the store and need it alone.
#[derive(Parser)]
#[command(name = "vstore", version, arg_required_else_help = true)]
struct Args {
    #[command(subcommand)]
    what: What,
    /// The store's directory
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    store: Option<PathBuf>,
    #[command(flatten)]
    wait: Wait,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Subcommand)]
enum What {
    /// Show what the store holds, what it saves and what protects it
    ///
    /// Space is what the file system has allocated. Saved is the space that the guests would take more if
    /// each name of an object beyond its first were a copy of its own. Links are names in guests. Garbage
    /// are objects that no guest links to any more: gc removes them.
    ///
    /// For each kind of protection it says whether this kernel enforces it, what it leaves open and how to
    /// get it; and how many objects really carry its tag.
    Status(look::StatusArgs),
    /// Show the runs that changed the store, or what one of them did
    ///
    /// Numbers of runs are those that vunify --undo --run takes.
    Log(look::LogArgs),
    /// Remove objects that no guest links to any more
    ///
    /// What lies in quarantine stays there unless --quarantine is given. Files of unclear origin are never
    /// removed: they may be the only copy of a guest's data.
    Gc(tidy::GcArgs),
    /// Bring a run that was cut off to an end
    ///
    /// Each name that was about to move is completed or taken back; vunify does the same before it begins.
    Recover(tidy::RecoverArgs),
    /// Read objects again and find those that are not what they were
    ///
    /// An object whose content or metadata changed, or that cannot be read, is taken out of use: it goes
    /// into quarantine, and the guests that have it are named with their paths. They keep it, unless
    /// --repair is given: then a good copy (another object with the same identity, or a private file in a
    /// guest) takes its place, once its identity is proven. The corrupt inode stays in quarantine.
    ///
    /// Guests are those given, and those that the index or recent runs know.
    Scrub(check::ScrubArgs),
    /// Make the index anew
    ///
    /// The index is a cache: losing it costs the time of one full run and nothing else. Guests are those
    /// given, and those that the index or recent runs know.
    Rebuild(check::RebuildArgs),
}

/// The store that a command works on.
#[derive(ClapArgs)]
struct Where {
    /// The store, or a guest that it serves
    #[arg(value_name = "STORE|GUEST")]
    place: Option<OsString>,
}

impl Program for Args {
    const EXAMPLES: &'static [Example] = &[
        Example { line: "vstore status", what: "Show the store that serves /vservers" },
        Example { line: "vstore status --json web1", what: "Show the store of a guest, for programs" },
        Example { line: "vstore log --limit 5", what: "Show the last five runs" },
        Example { line: "vstore log 12", what: "Show what run 12 did to each file" },
        Example {
            line: "vstore log /srv/guests/web1 3",
            what: "The same of run 3, in the store of that guest",
        },
        Example { line: "vstore gc --dry-run", what: "Show what a collection would remove" },
        Example { line: "vstore recover /srv/guests/.store", what: "Settle what a crash left, now" },
        Example { line: "vstore scrub --sample 5% --quiet", what: "Check every twentieth object, from cron" },
        Example { line: "vstore scrub --repair", what: "Check all objects and repair the guests" },
        Example { line: "vstore rebuild", what: "Make the index anew" },
    ];

    fn common(&self) -> &CommonArgs {
        &self.common
    }
}

fn main() -> ExitCode {
    run_main(run)
}

/// What every command here needs.
struct Setting<'a> {
    out: &'a Out,
    interrupt: &'a Interrupt,
    wait: bool,
    threads: usize,
    store: Option<&'a Path>,
    around: Surroundings<'a>,
}

/// Progress on the terminal.
struct Progress(Bars);

impl Observer for Progress {
    fn phase(&self, name: &'static str, total: u64) {
        let bytes = matches!(name, "checking" | "copying");
        self.0.phase(name, total, if bytes { Unit::Bytes } else { Unit::Items });
    }

    fn advance(&self, count: u64) {
        self.0.inc(count);
    }
}

fn run(args: Args, out: &Out) -> Result<Exit, Problem> {
    let interrupt = Interrupt::install().map_err(|error| Problem::new(error.to_string()).exit(Exit::Bug))?;
    kernel::raise_open_file_limit();
    let bars = Progress(out.bars());
    let around = Surroundings { fs: &Real, observer: &bars, stop: interrupt.flag() };
    let wait = args.wait.wait;
    let (store, threads) = (args.store.as_deref(), args.common.threads().get());
    let setting = Setting { out, interrupt: &interrupt, wait, threads, store, around };
    let result = match args.what {
        What::Status(args) => look::status(&setting, &args),
        What::Log(args) => look::log(&setting, &args),
        What::Gc(args) => tidy::gc(&setting, &args),
        What::Recover(args) => tidy::recover(&setting, &args),
        What::Scrub(args) => check::scrub(&setting, &args),
        What::Rebuild(args) => check::rebuild(&setting, &args),
    };
    bars.0.finish();
    result
}

impl Setting<'_> {
    /// Opens the store that `place` names.
    fn open(&self, place: Option<&OsString>, access: Access) -> Result<Store, Problem> {
        if self.store.is_some()
            && let Some(place) = place
        {
            let problem = Problem::new("--store names the store already").at(place);
            return Err(problem.cure("leave out one of the two").exit(Exit::Usage));
        }
        let (path, _) = self.find(place.map(std::slice::from_ref).unwrap_or_default())?;
        self.open_at(&path, access)
    }

    fn open_at(&self, path: &Path, access: Access) -> Result<Store, Problem> {
        let go_on = || !self.interrupt.requested();
        let wait: Option<&dyn Fn() -> bool> = if self.wait { Some(&go_on) } else { None };
        let store = Store::open(&Real, path, access, wait).map_err(Error::from)?;
        if !start(&store, access, self.threads) {
            self.out.debug(|| UNCONFINED);
        }
        Ok(store)
    }

    /// The store, and the guests among `places`. Only what is named `.store` is taken for a store: a guest
    /// could make its own root look like one.
    fn find(&self, places: &[OsString]) -> Result<(PathBuf, Vec<PathBuf>), Problem> {
        let guests = Guests::from_env();
        let mut store = self.store.map(canonical).transpose()?;
        let mut roots = Vec::new();
        for place in places {
            let path = match Path::new(place).file_name() {
                Some(name) if name == STORE_NAME => canonical(Path::new(place))?,
                _ => guests.resolve(place)?,
            };
            let is_store = path.file_name().is_some_and(|name| name == STORE_NAME);
            let serving = if is_store { path.clone() } else { locate(&path)? };
            match &store {
                Some(other) if is_store && *other != serving => {
                    let problem = Problem::new("another store was named already").at(&serving);
                    return Err(problem.cure("name one store at a time").exit(Exit::Usage));
                }
                Some(_) => {}
                None => store = Some(serving),
            }
            if !is_store {
                roots.push(path);
            }
        }
        match store {
            Some(store) => Ok((store, roots)),
            None => Ok((locate(&canonical(guests.base())?.join("guest"))?, roots)),
        }
    }

    /// Opens the journal and settles what an earlier run left behind.
    fn recovered(&self, store: &Store) -> Result<(Journal, unify::Recovered), Problem> {
        kernel::ignore_lease_breaks();
        let mut journal = Journal::open(store).map_err(Error::from)?;
        let outcome = recover(&self.around, store, &mut journal)?;
        outcome.warnings().for_each(|warning| self.out.warn(&warning));
        Ok((journal, outcome))
    }

    /// The guests given and those known; says which of the latter are not there.
    fn guests(&self, store: &Store, journal: Option<&Journal>, given: &[PathBuf]) -> Result<Known, Problem> {
        let known = known_guests(store, journal, given)?;
        for (path, why) in &known.missing {
            let shown = PathText::new(path);
            self.out
                .warn(&Problem::new(format!("the guest {shown} was known and cannot be looked at: {why}")));
        }
        Ok(known)
    }
}

fn locate(guest: &Path) -> Result<PathBuf, Problem> {
    match Store::locate(guest).map_err(Error::from)? {
        Located::Existing(path) => Ok(path),
        Located::Missing(path) => {
            let base = path.parent().unwrap_or(&path).to_path_buf();
            Err(Error::from(store::Error::NoStore(base)).into())
        }
    }
}

fn canonical(path: &Path) -> Result<PathBuf, Problem> {
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => Problem::new("there is no such directory")
            .cure("give the path of a store, or set VSERVERS to the directory that holds guests"),
        _ => Problem::new(error.to_string()),
    };
    std::fs::canonicalize(path).map_err(|error| failed(error).at(path).exit(Exit::Usage))
}

/// The command line for the journal, escaped.
fn command_line() -> String {
    let words: Vec<String> = std::env::args_os().map(|word| PathText::new(&word).to_string()).collect();
    words.join(" ")
}

/// `--dry-run` decides what a store is opened for.
fn access(dry: DryRun) -> Access {
    if dry.dry_run { Access::Read } else { Access::Write }
}
