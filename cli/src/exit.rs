//! Exit codes: one table for all commands.

use std::fmt::Write as _;
use std::process::ExitCode;

/// How a command ended. Scripts rely on these numbers; a number never changes its meaning.
///
/// | code | variant | meaning |
/// |---|---|---|
/// | 0 | `Done` | everything asked for was done |
/// | 1 | `Findings` | it worked, and found what it was asked to look for (differences; not running) |
/// | 2 | `Usage` | the command line, or a guest or file named on it, is wrong; nothing was changed |
/// | 3 | `Partly` | some of it failed; each failure is on standard error |
/// | 4 | `Unable` | this kernel or file system can't do it; nothing was changed |
/// | 5 | `Busy` | another process holds the store; nothing was changed |
/// | 70 | `Bug` | a bug in the command itself |
/// | 130 | `Interrupted` | stopped by SIGINT or SIGTERM; what was begun is whole or will be recovered |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Exit {
    /// Everything asked for was done.
    Done = 0,
    /// It worked, and found what it was asked to look for.
    Findings = 1,
    /// The command line, or a guest or file named on it, is wrong.
    Usage = 2,
    /// Some of it failed.
    Partly = 3,
    /// This kernel or file system can't do it.
    Unable = 4,
    /// Another process holds the store.
    Busy = 5,
    /// A bug in the command itself.
    Bug = 70,
    /// Stopped by a signal.
    Interrupted = 130,
}

impl Exit {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::Done,
        Self::Findings,
        Self::Usage,
        Self::Partly,
        Self::Unable,
        Self::Busy,
        Self::Bug,
        Self::Interrupted,
    ];

    /// The number a shell sees.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// One word, as the `outcome` of the JSON summary gives it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Findings => "findings",
            Self::Usage => "usage",
            Self::Partly => "partly",
            Self::Unable => "unable",
            Self::Busy => "busy",
            Self::Bug => "bug",
            Self::Interrupted => "interrupted",
        }
    }

    /// One line, as help and man pages give it.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Done => "everything asked for was done",
            Self::Findings => "it worked, and found what it was asked to look for",
            Self::Usage => "the command line, or a guest or file named on it, is wrong; nothing was changed",
            Self::Partly => "some of it failed; each failure is on standard error",
            Self::Unable => "this kernel or file system can't do it; nothing was changed",
            Self::Busy => "another process holds the store; nothing was changed",
            Self::Bug => "a bug in the command itself",
            Self::Interrupted => "stopped by SIGINT or SIGTERM; what was begun is whole or will be recovered",
        }
    }

    /// The table as text, for `--help`.
    pub fn help() -> String {
        let mut text = String::from("Exit status:\n");
        for exit in Self::ALL {
            // Writing to a String can't fail.
            writeln!(text, "  {:>3}  {}", exit.code(), exit.meaning()).ok();
        }
        text
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_design() {
        assert_eq!(Exit::ALL.map(Exit::code), [0, 1, 2, 3, 4, 5, 70, 130]);
    }

    #[test]
    fn help_has_a_line_for_each_code() {
        let help = Exit::help();
        assert_eq!(help.lines().count(), 1 + Exit::ALL.len());
        assert!(help.contains("\n    4  this kernel or file system can't do it"), "{help}");
        assert!(help.contains("\n  130  stopped by SIGINT"), "{help}");
    }
}
