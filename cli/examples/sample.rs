//! A command that keeps the contract, for the tests and as a pattern.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use cli::{
    CommonArgs, DryRun, Example, Exit, Guests, Interrupt, Out, PathText, Problem, Program, Unit, run_main,
};

/// Show how commands behave
///
/// It does nothing of use, but behaves as every command does.
#[derive(Parser)]
#[command(name = "sample", version, arg_required_else_help = true)]
struct Args {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    dry: DryRun,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Subcommand)]
enum What {
    /// Print the roots of guests
    Guests {
        /// Names or paths
        guests: Vec<PathBuf>,
    },
    /// Print as many lines as told
    Lines {
        /// How many
        count: u64,
    },
    /// Wait for a signal, a minute at most
    Wait {
        /// Go on after the signal, so that only a second one ends it
        #[arg(long)]
        stubborn: bool,
    },
    /// Meet a bug
    Panic,
}

impl Program for Args {
    const EXAMPLES: &'static [Example] = &[
        Example { line: "sample guests web1 /srv/web2", what: "Print where two guests are" },
        Example { line: "sample lines 3 --json", what: "Print three events and a summary" },
    ];

    fn common(&self) -> &CommonArgs {
        &self.common
    }
}

fn run(args: Args, out: &Out) -> Result<Exit, Problem> {
    match args.what {
        What::Guests { guests } => list(&guests, out),
        What::Lines { count } => {
            for n in 0..count {
                out.event("line", &serde_json::json!({ "n": n }), || format!("line {n}"));
            }
            Ok(Exit::Done)
        }
        What::Wait { stubborn } => wait(stubborn, out),
        What::Panic => {
            let numbers: Vec<u32> = Vec::new();
            Ok(if numbers[args.common.threads().get()] > 0 { Exit::Findings } else { Exit::Done })
        }
    }
}

fn list(names: &[PathBuf], out: &Out) -> Result<Exit, Problem> {
    let guests = Guests::from_env();
    let roots = if names.is_empty() {
        guests.all()?
    } else {
        names.iter().map(|name| guests.resolve(name.as_os_str())).collect::<Result<_, _>>()?
    };
    for root in roots {
        let path = PathText::new(&root);
        out.event("guest", &serde_json::json!({ "path": path }), || path.to_string());
    }
    Ok(Exit::Done)
}

fn wait(stubborn: bool, out: &Out) -> Result<Exit, Problem> {
    let interrupt = Interrupt::install().map_err(|error| Problem::new(error.to_string()))?;
    let bars = out.bars();
    bars.phase("waiting", 60, Unit::Items);
    out.event("ready", &serde_json::json!({}), || "ready");
    let end = Instant::now() + Duration::from_mins(1);
    let mut told = false;
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
        if interrupt.requested() && !stubborn {
            return Ok(Exit::Interrupted);
        }
        if interrupt.requested() && !std::mem::replace(&mut told, true) {
            out.warn(&Problem::new("once more to end at once"));
        }
    }
    Ok(Exit::Done)
}

fn main() -> ExitCode {
    run_main(run)
}
