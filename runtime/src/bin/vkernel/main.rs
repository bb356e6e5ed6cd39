//! `vkernel`: what the kernel enforces for guests, and the eBPF programs that make a stock kernel do it.

mod change;
mod problem;
mod status;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args as ClapArgs, Parser, Subcommand, ValueHint};
use cli::{CommonArgs, Example, Exit, Guests, Out, Problem, Program, run_main};
use kernel::Dir;
use kernel::bpf::Host;
use kernel::features::Feature;
use runtime::{scope, stores};

/// Look at what the kernel enforces for guests, and load what enforces it on a stock kernel
///
/// Three features: link-invert (shared files can be replaced and not changed), contexts (groups of processes that
/// see each other only) and ipv4root (addresses that a group of processes is confined to). A patched kernel has
/// them built in. On a stock kernel, eBPF programs give them: load attaches these and pins them in the bpf
/// file system, where they stay at work until unload or a reboot; no process has to run.
///
/// Link-invert watches the file systems in its scope and no others, so that files that carry the same two
/// attributes (chattr +A +S) elsewhere are left alone. load takes the scope from --scope, else from
/// /etc/vservers/kernel.toml (version = 1, and as scope a list of directories), else it is the file system of
/// $VSERVERS or /vservers.
#[derive(Parser)]
#[command(name = "vkernel", version, arg_required_else_help = true)]
struct Args {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Subcommand)]
enum What {
    /// Show for each feature who gives it, what it leaves open and how to get the better one
    ///
    /// The exit status is 1 if a feature that was asked for is not enforced.
    Status(Features),
    /// Attach the eBPF programs
    ///
    /// What is loaded already stays as it is, and its scope grows. A feature that is refused leaves nothing behind;
    /// the others are loaded all the same, and the exit status is 3 then, or 4 if nothing could be loaded.
    Load(Load),
    /// Take the eBPF programs out of the kernel
    ///
    /// Refused while running processes are in contexts or have an IPv4 root, or while a store in the scope holds
    /// sealed objects: they would be free or writable from then on.
    Unload(Unload),
    /// Replace the eBPF programs by those of this version, and keep all state
    ///
    /// Contexts, addresses and the scope stay; the old programs are at work until the new ones are.
    Reload(Features),
    /// Show or change, until the next reboot, which file systems link-invert watches
    Scope {
        #[command(subcommand)]
        what: Scope,
    },
}

/// Which features a command is about.
#[derive(ClapArgs)]
struct Features {
    /// Only this feature [default: all]
    #[arg(value_name = "FEATURE", value_parser = feature())]
    features: Vec<Feature>,
}

#[derive(ClapArgs)]
struct Load {
    #[command(flatten)]
    which: Features,
    /// Have link-invert watch the file system of this directory (may be given several times)
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    scope: Vec<PathBuf>,
}

#[derive(ClapArgs)]
struct Unload {
    #[command(flatten)]
    which: Features,
    /// Even if something relies on them
    #[arg(long)]
    force: bool,
}

#[derive(Subcommand)]
enum Scope {
    /// Show the file systems in the scope
    List,
    /// Put the file systems of these directories into the scope
    Add {
        /// A directory on the file system
        #[arg(value_name = "DIR", required = true, value_hint = ValueHint::DirPath)]
        dirs: Vec<PathBuf>,
    },
    /// Take the file systems of these directories out of the scope: tags mean nothing there from then on
    Remove {
        /// A directory on the file system
        #[arg(value_name = "DIR", required = true, value_hint = ValueHint::DirPath)]
        dirs: Vec<PathBuf>,
        /// Even if a store there holds sealed objects
        #[arg(long)]
        force: bool,
    },
}

impl Program for Args {
    const EXAMPLES: &'static [Example] = &[
        Example { line: "vkernel status", what: "Show what this kernel enforces" },
        Example { line: "vkernel load", what: "Protect the file system of /vservers, and load the rest" },
        Example {
            line: "vkernel load link-invert --scope /srv/guests",
            what: "Protect shared files there only",
        },
        Example { line: "vkernel reload", what: "After an upgrade of this package" },
        Example { line: "vkernel scope add /mnt/guests", what: "Protect one more file system, for now" },
        Example { line: "vkernel unload", what: "Take all out again, unless something relies on it" },
    ];

    fn common(&self) -> &CommonArgs {
        &self.common
    }
}

fn main() -> ExitCode {
    run_main(run)
}

fn run(args: Args, out: &Out) -> Result<Exit, Problem> {
    let host = Host::default();
    match args.what {
        What::Status(which) => status::status(out, &host, &which.asked()),
        What::Load(load) => change::load(out, &host, &load),
        What::Unload(unload) => change::unload(out, &host, &unload),
        What::Reload(which) => change::reload(out, &host, &which.asked()),
        What::Scope { what: Scope::List } => status::scope(out, &host),
        What::Scope { what: Scope::Add { dirs } } => change::grow(out, &open(&dirs)?),
        What::Scope { what: Scope::Remove { dirs, force } } => {
            change::shrink(out, &host, &open(&dirs)?, force)
        }
    }
}

fn feature() -> impl TypedValueParser<Value = Feature> {
    let names = PossibleValuesParser::new(Feature::ALL.map(Feature::name));
    names.try_map(|name| Feature::from_name(&name).ok_or("not a feature"))
}

impl Features {
    fn asked(&self) -> Vec<Feature> {
        let all = Feature::ALL.into_iter();
        all.filter(|one| self.features.is_empty() || self.features.contains(one)).collect()
    }
}

/// The directories that say which file systems are in the scope: those given, else those configured, else that of
/// the guests, if it exists.
fn scope_paths(given: &[PathBuf]) -> Result<Vec<PathBuf>, Problem> {
    if !given.is_empty() {
        return Ok(given.to_vec());
    }
    if let Some(paths) = scope::configured(scope::CONFIG.as_ref()).map_err(problem::of_scope)? {
        return Ok(paths);
    }
    let base = Guests::from_env().base().to_path_buf();
    Ok(if base.is_dir() { vec![base] } else { Vec::new() })
}

fn open(paths: &[PathBuf]) -> Result<Vec<(PathBuf, Dir)>, Problem> {
    scope::open(paths).map_err(problem::of_scope)
}

/// The stores in those directories and below.
fn stores_in(places: &[(PathBuf, Dir)]) -> Result<Vec<Dir>, Problem> {
    let below = |(path, dir): &(PathBuf, Dir)| {
        stores::below(dir).map_err(|stores::TooMuch| {
            let why = format!(
                "{}: too many directories to find all stores that rely on link-invert",
                path.display()
            );
            Problem::new(why).exit(Exit::Findings).cure("--force, if you know that none does")
        })
    };
    Ok(places.iter().map(below).collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
}
