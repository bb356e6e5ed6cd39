//! Options that every command has.

use std::num::NonZeroUsize;
use std::str::FromStr;
use std::thread::available_parallelism;

use clap::{Args, ValueEnum, ValueHint};

/// When progress is shown. It always goes to standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ProgressMode {
    /// Bars on a terminal, a plain line every 10 seconds elsewhere, nothing with `--quiet`
    #[default]
    Auto,
    /// As `auto`, with `--quiet` too
    Always,
    /// Nothing
    Never,
}

/// Options that every command has: flatten them into its arguments. They may stand before or after a
/// subcommand.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Common options")]
#[allow(clippy::struct_excessive_bools)] // each is a switch of the command line, none a state
pub struct CommonArgs {
    /// Print JSON Lines on standard output, ending with one summary
    #[arg(long, global = true)]
    pub json: bool,

    /// Print problems only: nothing on success
    #[arg(long, short, global = true, conflicts_with_all = ["verbose", "debug"])]
    pub quiet: bool,

    /// Name each file that is left alone, too, and cut no list short
    #[arg(long, short, global = true)]
    pub verbose: bool,

    /// As --verbose, and tell on standard error what this kernel lacks and had to be done without
    #[arg(long, global = true)]
    pub debug: bool,

    /// When to show progress on standard error
    #[arg(long, global = true, value_name = "WHEN", value_enum, default_value_t)]
    pub progress: ProgressMode,

    /// How many threads to use [default: one for each processor]
    #[arg(long, global = true, value_name = "N", value_parser = threads, value_hint = ValueHint::Other)]
    pub threads: Option<u16>,
}

fn threads(text: &str) -> Result<u16, String> {
    let number = text.parse().ok().filter(|number| (1..=1024).contains(number));
    number.ok_or_else(|| "expected a number from 1 to 1024".to_owned())
}

/// A value parser that says in the user's words what it expects.
pub fn expecting<T: FromStr>(
    what: &'static str,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static {
    move |text| text.parse().map_err(|_| format!("expected {what}"))
}

impl CommonArgs {
    /// The number of threads to use: as told, else what this process may run on.
    pub fn threads(&self) -> NonZeroUsize {
        let told = self.threads.and_then(|n| NonZeroUsize::new(n.into()));
        told.or_else(|| available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN)
    }
}

/// `--wait`, for commands that work on a store.
#[derive(Args, Clone, Copy, Debug, Default)]
#[command(next_help_heading = "Common options")]
pub struct Wait {
    /// Wait for a store that another process holds, instead of ending with status 5
    #[arg(long, global = true)]
    pub wait: bool,
}

/// `--dry-run`, for commands that change something. The plan is made and shown; the executor is not run.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct DryRun {
    /// Show what would be done, and change nothing (or --test)
    #[arg(long, alias = "test")]
    pub dry_run: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser, Subcommand, error::ErrorKind};

    #[derive(Parser)]
    struct Sample {
        #[command(flatten)]
        common: CommonArgs,
        #[command(flatten)]
        dry: DryRun,
        #[command(subcommand)]
        sub: Option<Sub>,
    }

    #[derive(Subcommand)]
    enum Sub {
        Status,
    }

    #[test]
    fn the_definition_is_sound() {
        Sample::command().debug_assert();
    }

    #[test]
    fn test_is_another_name_of_dry_run() {
        assert!(Sample::try_parse_from(["x", "--test"]).unwrap().dry.dry_run);
        assert!(Sample::try_parse_from(["x", "--dry-run"]).unwrap().dry.dry_run);
        assert!(!Sample::try_parse_from(["x"]).unwrap().dry.dry_run);
    }

    #[test]
    fn common_options_may_follow_a_subcommand() {
        let sample =
            Sample::try_parse_from(["x", "status", "--json", "--threads", "3", "--progress=never"]).unwrap();
        assert!(matches!(sample.sub, Some(Sub::Status)));
        assert!(sample.common.json);
        assert_eq!(sample.common.threads().get(), 3);
        assert_eq!(sample.common.progress, ProgressMode::Never);
    }

    #[test]
    fn contradictions_are_refused() {
        let kind = |args: &[&str]| Sample::try_parse_from(args).map(|_| ()).map_err(|e| e.kind());
        assert_eq!(kind(&["x", "-q", "-v"]), Err(ErrorKind::ArgumentConflict));
        assert_eq!(kind(&["x", "--quiet", "--debug"]), Err(ErrorKind::ArgumentConflict));
        assert_eq!(kind(&["x", "--threads", "0"]), Err(ErrorKind::ValueValidation));
        assert_eq!(kind(&["x", "--threads", "100000"]), Err(ErrorKind::ValueValidation));
        let text = Sample::try_parse_from(["x", "--threads", "1x"]).map(|_| ()).unwrap_err().to_string();
        assert!(text.contains("expected a number from 1 to 1024"), "{text}");
    }

    #[test]
    fn threads_default_to_the_processors() {
        assert_eq!(CommonArgs::default().threads(), available_parallelism().unwrap());
    }
}
