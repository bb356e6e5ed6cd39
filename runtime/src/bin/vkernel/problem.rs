//! From errors to exit codes.

use std::path::Path;

use cli::{Exit, Problem};
use kernel::Errno;
use kernel::bpf::BpfError;
use runtime::scope::{self, ScopeError};

/// Nothing was changed, unless the programs of another feature were.
pub(crate) fn of_bpf(error: &BpfError) -> Problem {
    let exit = match error {
        BpfError::Busy => Exit::Busy,
        BpfError::InUse(_) | BpfError::NotLoaded(_) => Exit::Findings,
        _ => Exit::Unable,
    };
    let problem = Problem::new(error.to_string()).exit(exit);
    match error.cure() {
        Some(cure) => problem.cure(cure),
        None => problem,
    }
}

pub(crate) fn of_scope(error: ScopeError) -> Problem {
    let problem = Problem::new(error.to_string()).exit(Exit::Usage);
    match error {
        ScopeError::NoDirectory { .. } => {
            problem.cure(format!("name one on the file system to be watched, here or in {}", scope::CONFIG))
        }
        _ => problem,
    }
}

/// Of programs that are to be taken out: that they are not there needs no cure.
pub(crate) fn of_unload(error: &BpfError) -> Problem {
    match error {
        BpfError::NotLoaded(_) => Problem::new(error.to_string()).exit(Exit::Findings),
        _ => of_bpf(error),
    }
}

/// A file system could not be put into the scope or taken out.
pub(crate) fn of_ioctl(path: &Path, errno: Errno) -> Problem {
    let (message, cure) = match errno {
        Errno::NOTTY => ("link-invert is not loaded", "vkernel load link-invert"),
        Errno::OPNOTSUPP => {
            ("the file system has no UUID to know it by", "keep guests on ext4, xfs or btrfs")
        }
        Errno::PERM => ("not permitted", "run it as root of the host"),
        Errno::TOOBIG => ("the scope is full", "take file systems out with vkernel scope remove"),
        _ => ("the file system could not be put into the scope", "see dmesg"),
    };
    Problem::new(message).at(path).cure(cure).exit(Exit::Unable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_lacks_ends_with_4() {
        for error in [
            BpfError::NotPrivileged,
            BpfError::NoTypes("/sys/kernel/btf/vmlinux".into()),
            BpfError::NoBpffs("/sys/fs/bpf".into()),
            BpfError::LockedDown { mode: "x".into(), object: "o", program: "p".into() },
            BpfError::Refused { object: "o", program: "p".into() },
            BpfError::NotActive,
            BpfError::OtherVersion { object: "o", found: "x".into() },
        ] {
            let problem = of_bpf(&error);
            assert_eq!(problem.exit_code(), Exit::Unable, "{problem}");
            assert!(error.cure().is_some(), "{problem}");
        }
        assert_eq!(of_bpf(&BpfError::Busy).exit_code(), Exit::Busy);
        assert_eq!(of_bpf(&BpfError::InUse("x".into())).exit_code(), Exit::Findings);
    }
}
