//! Policy and package databases of one guest, asked together.

use std::sync::{Arc, OnceLock};

use kernel::{Dir, Stat};

use crate::classify::{Class, DirPolicy, Reason};
use crate::packages::{DirView, PackageId, Packages};
use crate::policy::Policy;

/// Decides about the files of one guest. The databases are read when first needed: a guest that did not
/// change since the last run needs none.
pub struct Judge {
    root: Dir,
    policy: Arc<Policy>,
    packages: OnceLock<Packages>,
    selection: Option<Selection>,
    fingerprint: u64,
}

/// The packages a run is restricted to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection(Vec<PackageId>);

impl Selection {
    /// These packages, by their numbers in one [`Packages`].
    pub fn new(mut packages: Vec<PackageId>) -> Self {
        packages.sort_unstable();
        packages.dedup();
        Self(packages)
    }

    fn has(&self, package: PackageId) -> bool {
        self.0.binary_search(&package).is_ok()
    }

    /// How many packages it names.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it names none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What is known of a file that is no object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Policy lets it be shared.
    Candidate,
    /// Its metadata keeps it private; that can change without the directory changing.
    ForNow(Reason),
    /// Its place keeps it private until policy or databases change.
    Fixed,
}

impl Judge {
    /// A judge for the guest with this root.
    pub fn new(root: Dir, policy: Arc<Policy>) -> Self {
        let mut hash = blake3::Hasher::new();
        hash.update(&Packages::fingerprint(&root).to_le_bytes());
        hash.update(&policy.digest().to_le_bytes());
        let fingerprint = hash.finalize().as_bytes().first_chunk().map_or(0, |x| u64::from_le_bytes(*x));
        Self { root, policy, packages: OnceLock::new(), selection: None, fingerprint }
    }

    /// Shares only files of these packages.
    pub fn restrict(&mut self, selection: Selection) {
        self.selection = Some(selection);
    }

    /// Whether a file is one of those the judge was restricted to; any is, if it was not.
    pub(crate) fn selects(&self, dir: &[u8], name: &[u8]) -> bool {
        self.selection.as_ref().is_none_or(|chosen| {
            self.packages().in_dir(dir).owner(name).is_some_and(|owner| chosen.has(owner.package))
        })
    }

    /// Whether it was restricted: what it finds is then no census of the guest.
    pub fn is_restricted(&self) -> bool {
        self.selection.is_some()
    }

    /// The guest's packages, read now if they were not before.
    pub fn packages(&self) -> &Packages {
        self.packages.get_or_init(|| Packages::read(&self.root))
    }

    /// The packages if they were needed.
    pub fn packages_if_read(&self) -> Option<&Packages> {
        self.packages.get()
    }

    /// The policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Stands for everything but the tree that verdicts depend on.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    pub(crate) fn in_dir(&self, path: &[u8]) -> DirJudge<'_> {
        DirJudge {
            policy: self.policy.in_dir(path),
            owners: self.packages().in_dir(path),
            selection: self.selection.as_ref(),
        }
    }
}

/// Decides about the files of one directory.
pub(crate) struct DirJudge<'a> {
    policy: DirPolicy<'a>,
    owners: DirView<'a>,
    selection: Option<&'a Selection>,
}

impl DirJudge<'_> {
    pub(crate) fn verdict(&mut self, name: &[u8], stat: &Stat) -> Verdict {
        let owner = self.owners.owner(name);
        if self.selection.is_some_and(|chosen| owner.is_none_or(|owner| !chosen.has(owner.package))) {
            return Verdict::Fixed;
        }
        match self.policy.classify(name, stat, owner) {
            Class::Candidate => Verdict::Candidate,
            Class::Private(why @ (Reason::Empty | Reason::Setid | Reason::TooSmall | Reason::TooLarge)) => {
                Verdict::ForNow(why)
            }
            Class::Private(_) => Verdict::Fixed,
        }
    }
}
