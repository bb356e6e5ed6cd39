//! How errors end a command: the one place where they meet exit codes.

use cli::{Exit, Problem};
use kernel::Errno;
use rusqlite::ErrorCode;

use crate::Error;
use crate::recover::Outcome;

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let exit = match &error {
            Error::Store(error) => store_exit(error),
            Error::Policy(_)
            | Error::NoGuest
            | Error::HostRoot
            | Error::NamedTwice(_)
            | Error::Nested { .. }
            | Error::HoldsStore { .. }
            | Error::NoPackage { .. }
            | Error::NoDatabase(_)
            | Error::OnlyReference(_)
            | Error::NoFile(_)
            | Error::BadRun { .. }
            | Error::NotInGuest(_) => Exit::Usage,
            Error::NoProtection { .. } | Error::MayNotSeal { .. } | Error::OtherSeal { .. } => Exit::Unable,
            Error::Interrupted => Exit::Interrupted,
        };
        let problem = Self::new(error.to_string()).exit(exit);
        match cure(&error) {
            Some(cure) => problem.cure(cure),
            None => problem,
        }
    }
}

impl Outcome {
    /// What recovery left for people to look after.
    pub fn warnings(&self) -> impl Iterator<Item = Problem> {
        let kept = |path| {
            Problem::new("a file of unclear origin was kept in quarantine")
                .at(path)
                .cure("look at it and remove it if no guest misses it")
        };
        let unsealed = |path| {
            Problem::new("shared, and without its seal: a guest has it under a lease")
                .at(path)
                .cure("stop that guest and run vstore scrub --repair")
        };
        self.kept.iter().map(kept).chain(self.unsealed.iter().map(unsealed))
    }
}

/// What to do about errors of the system, which do not say it themselves.
fn cure(error: &Error) -> Option<&'static str> {
    let free = "free some space there first";
    match error {
        Error::Store(store::Error::Kernel { errno: Errno::NOSPC | Errno::DQUOT, .. }) => Some(free),
        Error::Store(store::Error::Kernel { errno: Errno::NOTDIR, .. }) => {
            Some("a store is a directory: take away what is there, or name another place with --store")
        }
        Error::Store(store::Error::Database { source, .. }) => match source.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Some(free),
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => Some(
                "move it away: guests and objects are as they were, but earlier runs can't be shown or undone by number any more, nor give back times that the policy relaxed",
            ),
            Some(ErrorCode::SystemIoFailure) => {
                Some("see whether the file system is full or failing (df, dmesg)")
            }
            _ => None,
        },
        _ => None,
    }
}

/// A store that can't be used as a whole ends a command before it changes anything; a call that fails
/// later leaves it partly done.
fn store_exit(error: &store::Error) -> Exit {
    match error {
        store::Error::Busy { .. } => Exit::Busy,
        store::Error::NoStore(_) | store::Error::NotPrivate(_) | store::Error::NotBelow { .. } => Exit::Usage,
        store::Error::Newer { .. }
        | store::Error::Damaged { .. }
        | store::Error::IllegalHistory { .. }
        | store::Error::Elsewhere { .. } => Exit::Unable,
        store::Error::Interrupted => Exit::Interrupted,
        store::Error::Kernel { errno, .. } => errno_exit(*errno),
        store::Error::Database { source, .. } => match source.sqlite_error_code() {
            Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => Exit::Unable,
            _ => Exit::Partly,
        },
    }
}

fn errno_exit(errno: Errno) -> Exit {
    match errno {
        Errno::ROFS | Errno::PERM | Errno::ACCESS | Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOTTY => {
            Exit::Unable
        }
        _ => Exit::Partly,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn exit(error: impl Into<Error>) -> Exit {
        Problem::from(error.into()).exit_code()
    }

    #[test]
    fn each_kind_has_its_exit_code() {
        let path = PathBuf::from("/vservers/.store");
        let kernel = |errno| store::Error::at("open", "/vservers")(errno);
        assert_eq!(exit(store::Error::NoStore(path.clone())), Exit::Usage);
        assert_eq!(exit(store::Error::Newer { path: path.clone(), what: "x".into() }), Exit::Unable);
        assert_eq!(exit(store::Error::Interrupted), Exit::Interrupted);
        assert_eq!(exit(kernel(Errno::ROFS)), Exit::Unable);
        assert_eq!(exit(kernel(Errno::IO)), Exit::Partly);
        assert_eq!(exit(Error::NamedTwice(path.clone())), Exit::Usage);
        assert_eq!(exit(Error::NoProtection { place: path, offers: vec![] }), Exit::Unable);
        assert_eq!(exit(Error::Interrupted), Exit::Interrupted);
    }

    #[test]
    fn the_message_is_the_errors_own() {
        let problem = Problem::from(Error::NotInGuest("/srv/x\u{1b}[2J".into()));
        assert_eq!(problem.to_string(), "/srv/x\\x1b[2J is not a path within the guests at hand");
    }
}
