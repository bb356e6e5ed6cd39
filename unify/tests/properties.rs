//! Random guests through sharing, drift, sharing again and taking back, each step held to the laws as
//! [`fixtures::model`] states them and to a classification written for these tests alone.
#![allow(clippy::disallowed_methods)] // builds trees and lets them drift: no guest of anybody
#![allow(clippy::unwrap_used)] // to panic is how a test fails, in its helpers too

mod common;

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{REAL, World};
use fixtures::manifest::{Entry, Manifest, Piece, What};
use fixtures::model::{self, Name, Watched};
use fixtures::random::{self, Shape};
use fixtures::{Compare, LoopFs, Node, Rng, Snapshot, need, require_root};
use kernel::{Kind, Time};
use store::IdentityPolicy;
use unify::Scope;

/// What may be shared in guests without package databases, in other words than those of the code under
/// test: the system's trees, no setuid or setgid files, and none that is nearly all holes, as all big ones
/// here are.
fn may_share(name: &Name<'_>) -> bool {
    let top: &[u8] = name.path.split(|&byte| byte == b'/').next().unwrap_or_default();
    let system: [&[u8]; 6] = [b"usr", b"bin", b"sbin", b"lib", b"opt", b"boot"];
    system.contains(&top) && name.node.mode & 0o6000 == 0 && name.node.size <= 1 << 20
}

fn watch<'a>(before: &'a [Snapshot], after: &'a [Snapshot]) -> Vec<Watched<'a>> {
    const NAMES: [&str; 4] = ["g0", "g1", "g2", "g3"];
    let pairs = before.iter().zip(after).zip(NAMES);
    pairs.map(|((before, after), name)| Watched { name, before, after }).collect()
}

/// A world whose steps are checked.
struct Trial {
    world: World,
    seed: u64,
}

impl Trial {
    fn new(base: &Path, seed: u64) -> Self {
        let root = require_root().is_ok();
        let shape = Shape { guests: 2 + (seed % 3) as usize, files: 30, root };
        Self { world: World::new(base, &random::guests(seed, shape)), seed }
    }

    fn relaxed(base: &Path, seed: u64) -> Self {
        let mut trial = Self::new(base, seed);
        trial.world.identity = IdentityPolicy::WithoutMtime;
        trial
    }

    /// What is compared: with relaxed identity, files' times are not what a run keeps.
    fn seen(&self, snapshots: Vec<Snapshot>) -> Vec<Snapshot> {
        let full = self.world.identity == IdentityPolicy::Full;
        if full { snapshots } else { snapshots.into_iter().map(without_file_times).collect() }
    }

    fn check(&self, what: &str, found: &[String]) {
        assert!(found.is_empty(), "seed {}: {what}:\n{}", self.seed, found.join("\n"));
    }

    /// One run: no law is broken and nothing is missed. Returns its number.
    fn unify(&self, what: &str) -> Option<i64> {
        let before = self.seen(self.world.snapshots());
        let report = self.world.unify(&REAL).unwrap();
        assert!(!report.has_failures() && report.done.not_done == 0, "seed {}: {report:?}", self.seed);
        let after = self.seen(self.world.snapshots());
        self.check(what, &model::violations(&watch(&before, &after), may_share));
        self.check(what, &self.left_apart(&after));
        assert!(self.world.is_tidy());
        report.run
    }

    /// Private files that could be shared: an identical one in another guest is private too, or is an
    /// object that the file's own guest has no name of.
    fn left_apart(&self, guests: &[Snapshot]) -> Vec<String> {
        let objects = self.objects();
        let mut lines = Vec::new();
        let watched = watch(guests, guests);
        let barred: BTreeSet<u64> = names(&watched).filter(|name| !may_share(name)).map(ino).collect();
        let may = |name: &Name<'_>| {
            name.node.kind == Kind::File && name.node.size > 0 && !barred.contains(&name.node.ino)
        };
        let candidates: Vec<Name<'_>> = names(&watched).filter(may).collect();
        let held: BTreeSet<(&str, u64)> = candidates.iter().map(|name| (name.guest, name.node.ino)).collect();
        for here in candidates.iter().filter(|name| !objects.contains(&name.node.ino)) {
            for there in candidates.iter().filter(|there| there.guest != here.guest) {
                let free =
                    !objects.contains(&there.node.ino) || !held.contains(&(here.guest, there.node.ino));
                if free && is_same(here.node, there.node) {
                    lines.push(format!("{here} could be one with {there}"));
                }
            }
        }
        lines
    }

    /// Inode numbers of the store's objects.
    fn objects(&self) -> BTreeSet<u64> {
        let store = Snapshot::take(&self.world.store_path().join("objects")).unwrap();
        store.nodes.values().filter(|node| node.kind == Kind::File).map(|node| node.ino).collect()
    }

    /// Lets each guest change on its own, as its programs would: names are replaced, added, removed and
    /// renamed, links are made, never is a shared file written into.
    fn drift(&self) {
        let mut rng = Rng::new(self.seed ^ 0xD21F7);
        let snapshots = self.world.snapshots();
        let ready: Vec<Entry> = (0..4).map(|number| ready_made(&mut rng, number)).collect();
        for (guest, snapshot) in self.world.guests.iter().zip(&snapshots) {
            let files: Vec<&Vec<u8>> = snapshot
                .nodes
                .iter()
                .filter(|(_, node)| node.kind == Kind::File)
                .map(|(path, _)| path)
                .collect();
            let mut entries = Vec::new();
            for path in files {
                match rng.below(12) {
                    0 => std::fs::remove_file(host(guest, path)).unwrap(),
                    1 | 2 => entries.push(Entry { path: path.clone(), ..rng.pick(&ready).clone() }),
                    3 if self.world.identity == IdentityPolicy::Full => {
                        std::fs::rename(
                            host(guest, path),
                            host(guest, &[path, b".old".as_slice()].concat()[..]),
                        )
                        .ok();
                    }
                    4 => entries.push(Entry::new(
                        [b"usr/link".as_slice(), entries.len().to_string().as_bytes()].concat(),
                        What::HardLink(path.clone()),
                    )),
                    _ => {}
                }
            }
            Manifest { entries }.write(guest).unwrap();
        }
    }

    fn undo(&self, scope: &Scope) {
        let report = self.world.undo(&REAL, scope).unwrap();
        assert!(!report.has_failures() && report.done.not_done == 0, "seed {}: {report:?}", self.seed);
        assert!(self.world.is_tidy());
    }

    /// After everything was taken back, guests are as `expected`, and no inode has a name outside them.
    fn check_restored(&self, expected: &[Snapshot]) {
        let after = self.world.snapshots();
        for (before, after) in expected.iter().zip(&after) {
            self.check("undo of everything", &before.diff(after));
            for (_, names) in after.groups() {
                let node = &after.nodes[names[0]];
                assert_eq!(node.nlink as usize, names.len(), "seed {}: {:?}", self.seed, names);
            }
        }
    }
}

fn host(guest: &Path, path: &[u8]) -> std::path::PathBuf {
    guest.join(std::ffi::OsStr::from_bytes(path))
}

fn ino(name: Name<'_>) -> u64 {
    name.node.ino
}

fn names<'a>(guests: &'a [Watched<'a>]) -> impl Iterator<Item = Name<'a>> {
    guests.iter().flat_map(|guest| {
        guest.after.nodes.iter().map(|(path, node)| Name { guest: guest.name, path, node, links: 0 })
    })
}

fn is_same(a: &Node, b: &Node) -> bool {
    let identity = |node: &Node| (node.digest, node.size, node.mode, node.uid, node.gid, node.mtime);
    identity(a) == identity(b) && a.xattrs == b.xattrs
}

fn without_file_times(mut snapshot: Snapshot) -> Snapshot {
    for node in snapshot.nodes.values_mut().filter(|node| node.kind == Kind::File) {
        node.mtime = Time::default();
    }
    snapshot
}

/// A file that several guests get in their drift.
fn ready_made(rng: &mut Rng, number: usize) -> Entry {
    let size = 1 + rng.below(9000) as u64;
    let mut file = Entry::new("", What::File(vec![Piece::Random(size, 1000 + number as u64)]));
    file.mode = Some(0o644);
    file.mtime = Some(Time { seconds: 1_100_000_000, nanos: number as u32 });
    file
}

/// Runs a trial for each seed, several at once.
fn for_seeds(seeds: std::ops::Range<u64>, base: &Path, trial: impl Fn(&Path, u64) + Sync) {
    let next = AtomicU64::new(seeds.start);
    let one = || {
        while let Some(seed) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|seed| *seed < seeds.end) {
            trial(tempfile::tempdir_in(base).unwrap().path(), seed);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(one);
        }
    });
}

/// An ext4 of the test's own where that can be had: its barriers wait for nobody else's data. Else the
/// place for temporary files.
fn for_seeds_anywhere(seeds: std::ops::Range<u64>, trial: impl Fn(&Path, u64) + Sync) {
    match LoopFs::ext4(512 << 20) {
        Ok(own) => for_seeds(seeds, own.path(), trial),
        Err(_) => for_seeds(seeds, &std::env::temp_dir(), trial),
    }
}

/// Trials in which anything was shared: a test of runs that do nothing would prove nothing.
static SHARED: AtomicU64 = AtomicU64::new(0);

/// First run, second run, drift, third run, undo of everything.
fn whole_life(base: &Path, seed: u64) {
    let trial = Trial::new(base, seed);
    let first = trial.world.snapshots();
    let run = trial.unify("first run");
    let after = trial.world.snapshots();
    trial.check("first run", &model::missed(&watch(&first, &after), may_share));
    SHARED.fetch_add(u64::from(run.is_some()), Ordering::Relaxed);
    assert_eq!(trial.unify("second run"), None, "seed {seed}: nothing was left to do");
    trial.drift();
    let drifted = trial.world.snapshots();
    trial.unify("after drift");
    trial.undo(&Scope::default());
    trial.check_restored(&drifted);
}

#[test]
fn laws_hold_through_sharing_drift_and_undo() {
    for_seeds_anywhere(0..200, whole_life);
    assert!(SHARED.load(Ordering::Relaxed) > 180);
}

#[test]
fn laws_hold_on_xfs_and_btrfs() {
    let test = "laws_hold_on_xfs_and_btrfs";
    let xfs = need!(test, LoopFs::xfs(0));
    for_seeds(1000..1010, xfs.path(), whole_life);
    let btrfs = need!(test, LoopFs::btrfs(256 << 20));
    for_seeds(1000..1010, btrfs.path(), whole_life);
}

/// What was shared before anything drifted is given back whole, inode numbers aside.
#[test]
fn undo_gives_back_the_first_state() {
    for_seeds_anywhere(300..340, |base, seed| {
        let trial = Trial::new(base, seed);
        let first = trial.world.snapshots();
        trial.unify("first run");
        trial.undo(&Scope::default());
        let compare = Compare { inodes: false, flags: true, links: true };
        for (before, after) in first.iter().zip(trial.world.snapshots()) {
            trial.check("undo", &before.diff_with(&after, compare));
        }
    });
}

#[test]
fn relaxed_times_come_back() {
    for_seeds_anywhere(400..440, |base, seed| {
        let trial = Trial::relaxed(base, seed);
        trial.unify("first run");
        trial.drift();
        let drifted = trial.world.snapshots();
        let run = trial.unify("after drift");
        match run {
            // The run alone: what it shared has its own times again, the rest is as it was.
            Some(_) if seed % 2 == 0 => {
                trial.undo(&Scope { run, paths: vec![] });
                for (before, after) in drifted.iter().zip(trial.world.snapshots()) {
                    trial.check("undo by run", &before.diff(&after));
                }
            }
            _ => {}
        }
    });
}

/// Times that identity leaves out come back by whatever the undo goes: all, each guest alone, the run.
#[test]
fn relaxed_times_come_back_by_guest_and_by_run() {
    for_seeds_anywhere(500..540, |base, seed| {
        let trial = Trial::relaxed(base, seed);
        let first = trial.world.snapshots();
        let run = trial.unify("first run");
        match seed % 3 {
            0 => trial.undo(&Scope::default()),
            1 => trial.undo(&Scope { run, paths: vec![] }),
            _ => trial.world.guests.iter().rev().for_each(|guest| {
                trial.undo(&Scope { run: None, paths: vec![guest.clone()] });
            }),
        }
        trial.check_restored(&first);
    });
}

/// An undo takes back what it is asked to, whole groups of links at a time, and touches nothing else.
#[test]
fn undo_of_a_part_is_exact() {
    for_seeds_anywhere(600..640, |base, seed| {
        let trial = Trial::new(base, seed);
        trial.unify("first run");
        trial.drift();
        trial.unify("after drift");
        let guest = (seed % trial.world.guests.len() as u64) as usize;
        let part = ["", "usr", "usr/bin", "opt"][(seed / 3 % 4) as usize];
        let objects = trial.objects();
        let before = trial.world.snapshots();
        trial.undo(&Scope { run: None, paths: vec![trial.world.guests[guest].join(part)] });
        let (after, left) = (trial.world.snapshots(), trial.objects());
        for (at, (before, after)) in before.iter().zip(&after).enumerate() {
            trial.check("undo of a part", &before.diff(after));
            // The inodes of which a name was asked for.
            let below = |path: &[u8]| Path::new(std::ffi::OsStr::from_bytes(path)).starts_with(part);
            let asked: BTreeSet<u64> = before
                .nodes
                .iter()
                .filter(|(path, node)| at == guest && objects.contains(&node.ino) && below(path))
                .map(|(_, node)| node.ino)
                .collect();
            for (path, was) in before.nodes.iter().filter(|(_, node)| node.kind == Kind::File) {
                let now = &after.nodes[path];
                if asked.contains(&was.ino) {
                    assert!(!left.contains(&now.ino), "seed {seed}: {path:?} is still shared");
                } else {
                    assert_eq!(was.ino, now.ino, "seed {seed}: {path:?} was not asked for");
                }
            }
        }
    });
}
