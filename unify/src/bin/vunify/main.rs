//! `vunify`: share identical files between guests, and take it back.

mod report;
mod setting;

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgGroup, Parser, ValueHint};
use cli::{
    Bars, CommonArgs, DryRun, Example, Exit, Guests, Interrupt, Out, Problem, Program, Unit, Wait, expecting,
    looks_like_root, run_main,
};
use kernel::Real;
use store::{Located, STORE_NAME, Store};
use unify::policy::DIRECTORY;
use unify::{Error, Observer, Surroundings};

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
    #[arg(last = true, value_name = "PACKAGES", value_parser = package)]
    packages: Vec<String>,
    /// Every guest below /vservers or $VSERVERS
    #[arg(long, conflicts_with = "guests")]
    all: bool,
    /// Make shared files private again
    #[arg(long)]
    undo: bool,
    /// With --undo: only what this run has shared (see vstore log)
    #[arg(
        long, value_name = "ID", requires = "undo",
        value_parser = expecting::<i64>("the number of a run, as vstore log shows it"), value_hint = ValueHint::Other
    )]
    run: Option<i64>,
    /// With --undo: only this file, or what lies below this directory
    #[arg(long = "path", value_name = "PATH", requires = "undo", value_hint = ValueHint::FilePath)]
    paths: Vec<PathBuf>,
    /// Say of each PATH whether it is shared, and why or why not
    #[arg(
        long, value_name = "PATH", num_args = 1.., value_hint = ValueHint::FilePath,
        conflicts_with_all = ["undo", "packages", "protection"]
    )]
    explain: Vec<PathBuf>,
    /// Do not protect shared files: for guests that are trusted not to write into them in place
    ///
    /// Before --immutable or --immutable-mayunlink it does nothing: the original vunify was asked so for one flag
    /// alone. Behind one of them it is refused.
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
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    store: Option<PathBuf>,
    /// Where policies are: DIR/unify.toml for all guests, DIR/NAME.unify.toml for one; see vservers-policy(5)
    #[arg(long, value_name = "DIR", default_value = DIRECTORY, value_hint = ValueHint::DirPath)]
    policy: PathBuf,
    #[command(flatten)]
    dry: DryRun,
    #[command(flatten)]
    wait: Wait,
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

/// The original's way to ask for one flag alone is `--noflags --immutable`. In the other order, one of the two is a
/// mistake.
fn check_order(arguments: &[OsString]) -> Result<(), Problem> {
    let options = arguments.iter().take_while(|word| *word != "--");
    let mut from_flag = options.skip_while(|word| !word.as_bytes().starts_with(b"--immutable"));
    if from_flag.any(|word| word == "--noflags") {
        let problem = Problem::new("--noflags stands behind --immutable or --immutable-mayunlink");
        return Err(problem.cure("leave out one of the two").exit(Exit::Usage));
    }
    Ok(())
}

fn package(name: &str) -> Result<String, String> {
    if name.is_empty() { Err("expected a package's name, or ALL".to_owned()) } else { Ok(name.to_owned()) }
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
    check_order(&std::env::args_os().collect::<Vec<_>>())?;
    let roots = roots(&args)?;
    let located = match (&args.store, roots.first()) {
        (Some(path), _) => locate_given(path)?,
        (None, Some(first)) => Store::locate(first).map_err(Error::from)?,
        // The run itself says which guests it was about; its store is that of the usual place.
        (None, None) if args.run.is_some() => usual_store()?,
        (None, None) => return Err(Error::NoGuest.into()),
    };
    let (roots, elsewhere) = if args.all { apart(roots, &located) } else { (roots, Vec::new()) };
    for root in &elsewhere {
        let what = "left out: it is on another file system (or btrfs subvolume) than the others";
        out.warn(&Problem::new(what).at(root).cure("give such guests a run of their own, by name"));
    }
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
    match result {
        Ok(Exit::Done) if !elsewhere.is_empty() => Ok(Exit::Partly),
        other => other,
    }
}

/// Guests that the store can serve, and those that it can't, as they are on other file systems. If it can serve none,
/// the run says why.
fn apart(roots: Vec<PathBuf>, located: &Located) -> (Vec<PathBuf>, Vec<PathBuf>) {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| path.metadata().ok().map(|stat| stat.dev());
    let here = located.path().parent().and_then(device);
    let (near, far): (Vec<_>, Vec<_>) = roots.into_iter().partition(|root| device(root) == here);
    if near.is_empty() { (far, near) } else { (near, far) }
}

/// The roots of the guests that were named; for `--explain` and `--undo --path`, of those that hold the paths.
fn roots(args: &Args) -> Result<Vec<PathBuf>, Problem> {
    let guests = Guests::from_env();
    let mut roots = Vec::new();
    for name in &args.guests {
        let root = guests.resolve(name)?;
        if root.parent().is_none() {
            return Err(Error::HostRoot.into());
        }
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
        if roots.is_empty() {
            return Err(Problem::new("there is no guest below this directory")
                .at(guests.base())
                .cure("set VSERVERS to the directory that holds guests (each with an etc, usr or bin)")
                .exit(Exit::Usage));
        }
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

/// The guest that a path lies in: the outermost directory above it that looks like a root, is not the host's own
/// and has a store; where there is no store, just the outermost.
fn root_of(path: &Path) -> Result<PathBuf, Problem> {
    let mut above: Vec<&Path> = path.ancestors().skip(1).filter(|dir| dir.parent().is_some()).collect();
    above.reverse();
    above.retain(|dir| looks_like_root(dir) && *dir != Path::new("/usr"));
    let has_store = |dir: &&&Path| matches!(Store::locate(dir), Ok(Located::Existing(_)));
    let root = above.iter().find(has_store).or(above.first());
    root.map(|root| (*root).to_path_buf()).ok_or_else(|| Error::NotInGuest(path.to_path_buf()).into())
}

/// The path with its directory free of symbolic links; the last component stays what it is.
fn absolute(path: &Path) -> Result<PathBuf, Problem> {
    let failed = |error| no_path(path, &error);
    let whole = std::path::absolute(path).map_err(failed)?;
    match (whole.parent(), whole.file_name()) {
        (Some(parent), Some(name)) => Ok(parent.canonicalize().map_err(failed)?.join(name)),
        _ => whole.canonicalize().map_err(failed),
    }
}

fn no_path(path: &Path, error: &std::io::Error) -> Problem {
    let problem = match error.kind() {
        std::io::ErrorKind::NotFound => Problem::new("there is no such path"),
        _ => Problem::new(error.to_string()),
    };
    problem.at(path).exit(Exit::Usage)
}

fn usual_store() -> Result<Located, Problem> {
    let guests = Guests::from_env();
    match guests.all()?.first() {
        Some(first) => Ok(Store::locate(first).map_err(Error::from)?),
        None => Ok(Located::Missing(guests.base().join(STORE_NAME))),
    }
}

fn locate_given(path: &Path) -> Result<Located, Problem> {
    let cure = "give the path of a store, or of one that is to be made in a directory that is there";
    let path = absolute(path).map_err(|problem| problem.cure(cure))?;
    let exists = store::is_store(&path).map_err(Error::from)?;
    Ok(if exists { Located::Existing(path) } else { Located::Missing(path) })
}
