//! What this process gives up before it touches a guest.

use std::os::fd::AsFd;

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus,
};

use crate::Dir;

/// Gives up moving, making and removing directories, except beneath `own` (Landlock, Linux 5.19). Files can
/// still be linked and exchanged beneath `base`. Must be called before threads are started.
///
/// A guest may put a directory in a file's place just before an exchange. For the instant until it is put
/// back, the directory would lie in the store, and a process of a guest that is only chrooted could climb out
/// of it by `..`. With this the kernel refuses the exchange. Returns whether the kernel can.
pub fn confine(base: &Dir, own: &Dir) -> bool {
    let confine = || -> Result<RulesetStatus, RulesetError> {
        let directories = AccessFs::MakeDir | AccessFs::RemoveDir | AccessFs::Refer;
        let handled = AccessFs::from_all(ABI::V2) & directories;
        let status = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(handled)?
            .create()?
            .add_rule(PathBeneath::new(base.as_fd(), AccessFs::Refer))?
            .add_rule(PathBeneath::new(own.as_fd(), directories))?
            .restrict_self()?;
        Ok(status.ruleset)
    };
    matches!(confine(), Ok(RulesetStatus::FullyEnforced))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{At, Errno, Fs, Real, View};

    #[test]
    fn files_change_places_and_directories_do_not() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let view = View::open(place.path()).expect("a view");
        let base = view.root();
        for name in ["guest", "own", "guest/dir", "own/lane"] {
            std::fs::DirBuilder::new().create(place.path().join(name)).expect("a directory");
        }
        let [guest, own] = [b"guest".as_slice(), b"own"].map(|name| base.open_dir(name).expect("opens"));
        Real.create(At::new(&guest, b"file")).expect("a file");
        Real.create(At::new(&own, b"object")).expect("a file");
        // A thread of its own: what it gives up, the other tests keep.
        let refused = std::thread::scope(|scope| {
            let act = || {
                if !confine(base, &own) {
                    return None;
                }
                let object = At::new(&own, b"object");
                Real.link(object, At::new(&own, b"parked")).expect("links in the store");
                Real.exchange(At::new(&own, b"parked"), At::new(&guest, b"file")).expect("exchanges files");
                Real.make_dir(At::new(&own, b"new"), 0o700).expect("makes its own directories");
                Some(Real.exchange(At::new(&own, b"parked"), At::new(&guest, b"dir")))
            };
            scope.spawn(act).join().expect("no panic")
        });
        assert!(refused.is_none_or(|refused| refused == Err(Errno::ACCESS)), "{refused:?}");
    }
}
