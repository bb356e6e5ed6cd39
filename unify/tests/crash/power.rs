//! The power fails.
//!
//! A cut is tried before and after every call of a run. Changes that only the file system's log in memory
//! holds by then are lost with it, or not, if somebody else's `fsync` has just written it out; data of files that
//! nobody synced are lost either way.
#![allow(clippy::disallowed_methods)] // trees beside guests

use std::fs::File;
use std::path::Path;
use std::sync::Mutex;

use fixtures::faulty::{Fault, Faulty, Op, Script, When};
use fixtures::loopfs::{FsKind, LoopFs, Options};
use fixtures::{Skip, need};
use kernel::{Dir, Fs, Seal};

use crate::common::REAL;
use crate::scene::{Act, Scene, assert_none, in_order, lift};

/// File systems on which points are tried at once: a boot is mostly waiting.
const DISKS: usize = 4;

/// What becomes of changes that the file system holds in its log but not yet on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Log {
    Lost,
    Kept,
}

/// Where the power fails.
#[derive(Clone, Copy, Debug)]
struct Cut {
    n: usize,
    when: When,
    log: Log,
}

impl Cut {
    /// All there are at the n-th call. Only where the log is written anyway does a cut behind a call differ
    /// from one before the next.
    fn at(n: usize, op: Op) -> Vec<Self> {
        let mut cuts = vec![
            Self { n, when: When::Before, log: Log::Lost },
            Self { n, when: When::After, log: Log::Kept },
        ];
        if op == Op::Sync {
            cuts.push(Self { n, when: When::After, log: Log::Lost });
            cuts.push(Self { n, when: When::Before, log: Log::Kept });
        }
        cuts
    }

    fn fault<'a>(self, dir: &'a Dir, witness: &'a File) -> Fault<'a> {
        match self.log {
            Log::Lost => Fault::PowerCut(self.when, dir),
            Log::Kept => Fault::Hook(
                self.when,
                Box::new(move |n, _| {
                    witness.set_len(n as u64).and_then(|()| witness.sync_all()).unwrap();
                    kernel::simulate_power_failure(dir).unwrap();
                }),
            ),
        }
    }
}

/// Calls `work` with a door to a disk that loses its power, and with a script that comes first; boots then.
fn until_cut<T>(disk: &mut LoopFs, cut: Cut, script: Script<'_>, work: impl FnOnce(&dyn Fs) -> T) -> T {
    let result = {
        let dir = Dir::open_host(disk.path()).unwrap();
        let witness = File::create(disk.path().join("witness")).unwrap();
        let inner = Faulty::new(&REAL, Script::new().nth(cut.n, cut.fault(&dir, &witness)));
        work(&Faulty::new(&inner, script))
    };
    disk.remount().unwrap();
    result
}

/// A new directory on the disk.
fn place(disk: &LoopFs, name: &str) -> std::path::PathBuf {
    let base = disk.path().join(name);
    std::fs::create_dir(&base).unwrap();
    base
}

fn remove(base: &Path) {
    lift(base);
    std::fs::remove_dir_all(base).unwrap();
}

fn disks(kind: FsKind) -> Result<Vec<LoopFs>, Skip> {
    let disk = |_| LoopFs::with(&Options { kind, size: 96 << 20, mkfs: &[], mount: "" });
    (0..DISKS).map(disk).collect()
}

/// Tries every point on one of the disks; returns what went wrong at which.
fn try_all<P: Sync + std::fmt::Debug>(
    disks: Vec<LoopFs>,
    points: &[P],
    attempt: impl Fn(&mut LoopFs, &P) -> Vec<String> + Sync,
) -> Vec<String> {
    let (next, problems) = (Mutex::new(points.iter()), Mutex::new(Vec::new()));
    let work = |mut disk: LoopFs| {
        in_order(|| {
            while let Some(point) = { next.lock().unwrap().next() } {
                let found = attempt(&mut disk, point);
                let found = found.into_iter().map(|what| format!("{point:?}: {what}"));
                problems.lock().unwrap().extend(found);
            }
        });
    };
    std::thread::scope(|scope| {
        disks.into_iter().for_each(|disk| drop(scope.spawn(|| work(disk))));
    });
    problems.into_inner().unwrap()
}

/// All cuts of a run, and how many calls opening the store takes.
fn cuts(disk: &LoopFs, act: Act, seal: Seal) -> (usize, Vec<Cut>) {
    let base = place(disk, "rehearsal");
    let (opening, ops) = in_order(|| Scene::rehearse(&base, act, seal));
    remove(&base);
    let cuts = ops.iter().enumerate().skip(opening).flat_map(|(at, op)| Cut::at(at + 1, *op)).collect();
    (opening, cuts)
}

/// Carries `act` out until the power fails, and boots.
fn cut_off(disk: &mut LoopFs, act: Act, seal: Seal, cut: Cut) -> Scene {
    let scene = Scene::new(&place(disk, "trial"), act, seal);
    until_cut(disk, cut, Script::new(), |fs| scene.run(act, fs).map(drop)).expect_err("it had no power");
    scene
}

fn every_step(test: &str, kind: FsKind, act: Act, seal: Seal) {
    let disks = need!(test, disks(kind));
    let (_, cuts) = cuts(&disks[0], act, seal);
    let problems = try_all(disks, &cuts, |disk, cut| {
        let scene = cut_off(disk, act, seal, *cut);
        let problems = scene.aftermath();
        remove(&scene.world.base);
        problems
    });
    assert_none(&problems);
}

#[test]
fn unify_on_ext4() {
    every_step("power::unify_on_ext4", FsKind::Ext4, Act::Unify, Seal::None);
}

#[test]
fn unify_on_xfs() {
    every_step("power::unify_on_xfs", FsKind::Xfs, Act::Unify, Seal::None);
}

#[test]
fn undo_on_ext4() {
    every_step("power::undo_on_ext4", FsKind::Ext4, Act::Undo, Seal::None);
}

#[test]
fn undo_on_xfs() {
    every_step("power::undo_on_xfs", FsKind::Xfs, Act::Undo, Seal::None);
}

/// The seal that has to be taken off and put on again.
#[test]
fn unify_with_a_seal_that_holds_names() {
    every_step("power::unify_with_a_seal_that_holds_names", FsKind::Ext4, Act::Unify, Seal::Immutable);
}

#[test]
fn undo_with_a_seal_that_holds_names() {
    every_step("power::undo_with_a_seal_that_holds_names", FsKind::Ext4, Act::Undo, Seal::Immutable);
}

/// Cuts the power again at each step of recovery, and recovers again.
fn during_recovery(test: &str, kind: FsKind, act: Act) {
    let disks = need!(test, disks(kind));
    let (opening, cuts) = cuts(&disks[0], act, Seal::None);
    // Some from the whole length of the run, such whose log survives: there is more to settle.
    let kept: Vec<Cut> = cuts.into_iter().filter(|cut| cut.log == Log::Kept).collect();
    let sample: Vec<Cut> = kept.iter().skip(kept.len() / 8).step_by(kept.len() / 4).copied().collect();
    let problems = try_all(disks, &sample, |disk, first| {
        let mut problems = Vec::new();
        for step in opening + 1.. {
            let scene = cut_off(disk, act, Seal::None, *first);
            let second = Cut { n: step, when: When::After, log: if step % 2 == 0 { Log::Kept } else { Log::Lost } };
            let recovered = until_cut(disk, second, Script::new(), |fs| scene.world.recover(fs).map(drop));
            let found = scene.aftermath().into_iter();
            problems.extend(found.map(|what| format!("then {second:?}: {what}")));
            remove(&scene.world.base);
            if recovered.is_ok() {
                break;
            }
        }
        problems
    });
    assert_none(&problems);
}

#[test]
fn again_while_unify_is_recovered_on_ext4() {
    during_recovery("power::again_while_unify_is_recovered_on_ext4", FsKind::Ext4, Act::Unify);
}

#[test]
fn again_while_undo_is_recovered_on_xfs() {
    during_recovery("power::again_while_undo_is_recovered_on_xfs", FsKind::Xfs, Act::Undo);
}
