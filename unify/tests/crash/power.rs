//! The power fails.
//!
//! A cut is tried before and after every call of a run. Changes that only the file system's log in memory
//! holds by then are lost with it, or not, if somebody else's `fsync` has just written it out; data of files that
//! nobody synced are lost either way.
#![allow(clippy::disallowed_methods)] // trees beside guests

use std::fs::File;
use std::io::Write;
use std::path::Path;

use fixtures::faulty::{Call, Fault, Faulty, Op, Script, When};
use fixtures::loopfs::{FsKind, LoopFs, Options};
use fixtures::{Manifest, Skip, Snapshot, need};
use kernel::{Dir, Errno, Fs, Seal};

use crate::common::{REAL, World};
use crate::scene::{Act, Scene, assert_none, in_order, lift, sync, try_all};

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

/// Calls `work` with a door to a disk that loses its power, and boots. What the script omits, the disk does
/// not see: it does not count there.
fn until_cut<T>(disk: &mut LoopFs, cut: Cut, script: Script<'_>, work: impl FnOnce(&dyn Fs) -> T) -> T {
    if is_still(disk) {
        return until_still(disk, cut, script, work);
    }
    let result = {
        let dir = Dir::open_host(disk.path()).unwrap();
        let witness = File::create(disk.path().join("witness")).unwrap();
        let inner = Faulty::new(&REAL, Script::new().nth(cut.n, cut.fault(&dir, &witness)));
        work(&Faulty::new(&inner, script))
    };
    boot(disk);
    result
}

/// Whether the disk is put back to where it was, and what is done after the last call still succeeds.
fn is_still(disk: &LoopFs) -> bool {
    disk.kind() == FsKind::Btrfs
}

/// btrfs has no call that cuts the power: what its disk holds in that moment is what is booted from, and nothing that
/// comes after it is done.
fn until_still<T>(disk: &mut LoopFs, cut: Cut, script: Script<'_>, work: impl FnOnce(&dyn Fs) -> T) -> T {
    let result = {
        let (disk, witness) = (&*disk, File::create(disk.path().join("witness")).unwrap());
        let keep = Box::new(move |n, _: &Call| {
            if cut.log == Log::Kept {
                witness.set_len(n as u64).and_then(|()| witness.sync_all()).unwrap();
            }
            disk.keep_still().unwrap();
        });
        let cut_off =
            Script::new().nth(cut.n, Fault::Hook(cut.when, keep)).from_nth(cut.n + 1, Fault::Fail(Errno::IO));
        work(&Faulty::new(&Faulty::new(&REAL, cut_off), script))
    };
    disk.boot_still().unwrap();
    result
}

/// Mounts what has lost its power. A child that another test is starting has our view of the tree until it
/// has become its program; till then the dead file system lives on, and mounting only finds it again.
fn boot(disk: &mut LoopFs) {
    let is_alive = |disk: &LoopFs| File::create(disk.path().join("witness")).is_ok();
    for _ in 0..500 {
        disk.remount().unwrap();
        if is_alive(disk) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("{} stays dead", disk.path().display());
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
    disks_mounted(kind, "")
}

fn disks_mounted(kind: FsKind, mount: &str) -> Result<Vec<LoopFs>, Skip> {
    let disk = |_| LoopFs::with(&Options { kind, size: 96 << 20, mkfs: &[], mount });
    (0..DISKS).map(disk).collect()
}

/// On btrfs, `fsync` logs one file, as long as it keeps a log. Without, it is as on the others: all changes to names
/// that came before are durable, and no data of other files.
fn disks_without_log(kind: FsKind) -> Result<Vec<LoopFs>, Skip> {
    disks_mounted(kind, if kind == FsKind::Btrfs { "notreelog" } else { "" })
}

/// The calls of a run, and how many of them open the store.
fn rehearse(disk: &LoopFs, act: Act, seal: Seal) -> (usize, Vec<Op>) {
    let base = place(disk, "rehearsal");
    let rehearsed = in_order(|| Scene::rehearse(&base, act, seal));
    remove(&base);
    rehearsed
}

/// All cuts of a run after it has opened the store.
fn cuts(opening: usize, ops: &[Op]) -> Vec<Cut> {
    ops.iter().enumerate().skip(opening).flat_map(|(at, op)| Cut::at(at + 1, *op)).collect()
}

/// The number of the call that is the n-th barrier.
fn barrier(n: usize, ops: &[Op]) -> usize {
    let syncs = ops.iter().enumerate().filter(|(_, op)| **op == Op::Sync);
    syncs.map(|(at, _)| at + 1).nth(n - 1).unwrap()
}

/// Carries `act` out until the power fails, and boots.
fn cut_off(disk: &mut LoopFs, act: Act, seal: Seal, cut: Cut) -> Scene {
    let scene = Scene::new(&place(disk, "trial"), act, seal);
    let ran = until_cut(disk, cut, Script::new(), |fs| scene.run(act, fs));
    let is_cut_off = ran.map_or(true, |report| report.has_failures());
    assert!(is_cut_off || is_still(disk), "{cut:?} did not cut anything off");
    scene
}

fn every_step(test: &str, kind: FsKind, act: Act, seal: Seal) {
    every_step_on(need!(test, disks(kind)), kind, act, seal);
}

fn every_step_on(disks: Vec<LoopFs>, kind: FsKind, act: Act, seal: Seal) {
    let (opening, ops) = rehearse(&disks[0], act, seal);
    let mut cuts = cuts(opening, &ops);
    if seal != Seal::None || kind == FsKind::Btrfs {
        // Names move as they do without a seal; what is left to see is where seals go off and on. And a disk that
        // is copied takes its time.
        let mut n = 0;
        cuts.retain(|_| {
            n += 1;
            n % 4 == 0
        });
    }
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

#[test]
fn unify_on_btrfs() {
    every_step("power::unify_on_btrfs", FsKind::Btrfs, Act::Unify, Seal::None);
}

#[test]
fn undo_on_btrfs() {
    every_step("power::undo_on_btrfs", FsKind::Btrfs, Act::Undo, Seal::None);
}

#[test]
fn both_on_btrfs_without_its_log() {
    for act in [Act::Unify, Act::Undo] {
        let disks = need!("power::both_on_btrfs_without_its_log", disks_without_log(FsKind::Btrfs));
        every_step_on(disks, FsKind::Btrfs, act, Seal::None);
    }
}

/// The power fails when a run has just ended, on a file system whose `fsync` makes one file durable, the journal, and
/// not what was done before it.
fn behind_the_end(disk: &mut LoopFs, act: Act, script: impl Fn(usize) -> Script<'static>) -> Vec<String> {
    let (_, ops) = rehearse(disk, act, Seal::None);
    let barriers = ops.iter().filter(|op| **op == Op::Sync).count();
    let scene = Scene::new(&place(disk, "trial"), act, Seal::None);
    let report = scene.run(act, &Faulty::new(&REAL, script(barriers))).unwrap();
    assert_eq!(report.done.not_done, 0, "{report:?}");
    disk.keep_still().unwrap();
    disk.boot_still().unwrap();
    scene.aftermath()
}

#[test]
fn nothing_comes_back_when_a_run_has_ended() {
    for act in [Act::Unify, Act::Undo] {
        let mut disk = need!("power::nothing_comes_back_when_a_run_has_ended", LoopFs::btrfs(0));
        assert_none(&behind_the_end(&mut disk, act, |_| Script::new()));
    }
}

#[test]
fn without_the_last_barrier_parked_names_come_back() {
    let mut disk = need!("power::without_the_last_barrier_parked_names_come_back", LoopFs::btrfs(0));
    let omit = |barriers| Script::new().nth_of(Op::Sync, barriers, Fault::Omit);
    let problems = behind_the_end(&mut disk, Act::Unify, omit);
    assert!(problems.iter().any(|line| line.starts_with("kept ")), "{problems:?}");
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
    let (opening, ops) = rehearse(&disks[0], act, Seal::None);
    let cuts = cuts(opening, &ops);
    // Some from the whole length of the run, such whose log survives: there is more to settle.
    let kept: Vec<Cut> = cuts.into_iter().filter(|cut| cut.log == Log::Kept).collect();
    let sample: Vec<Cut> = kept.iter().skip(kept.len() / 8).step_by(kept.len() / 4).copied().collect();
    let problems = try_all(disks, &sample, |disk, first| {
        let mut problems = Vec::new();
        for step in opening + 1.. {
            let scene = cut_off(disk, act, Seal::None, *first);
            let second =
                Cut { n: step, when: When::After, log: if step % 2 == 0 { Log::Kept } else { Log::Lost } };
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

/// A guest whose file is durable, and one whose equal file was written just now; it has more names, so it is the
/// one that becomes the object.
fn just_written(base: &Path) -> (World, Vec<Snapshot>) {
    let durable = Manifest::parse("d usr 755\nf usr/data 644 *50000:9").unwrap();
    let world = World::new(base, &[durable, Manifest::parse("d usr 755").unwrap()]);
    drop(world.open(&REAL).unwrap());
    sync(base);
    // Not by manifest: that ends with a truncate, upon which xfs writes the data out.
    let [from, to, same] = [(0, "data"), (1, "data"), (1, "same")]
        .map(|(guest, name)| world.guests[guest].join("usr").join(name));
    let mut fresh = File::create(&to).unwrap();
    fresh.write_all(&std::fs::read(&from).unwrap()).unwrap();
    fresh.set_modified(from.metadata().unwrap().modified().unwrap()).unwrap();
    fresh.set_permissions(from.metadata().unwrap().permissions()).unwrap();
    std::fs::hard_link(&to, &same).unwrap();
    let before = world.snapshots();
    (world, before)
}

/// What became of the durable guest's file and of the fresh one's when the power failed.
fn cut_off_just_written(disk: &mut LoopFs, cut: Cut, script: Script<'_>) -> [Vec<String>; 2] {
    let base = place(disk, "trial");
    let (world, before) = just_written(&base);
    let ran = until_cut(disk, cut, script, |fs| world.unify(fs).map(drop));
    assert!(ran.is_err() || is_still(disk), "it had no power");
    let after = world.snapshots();
    let content = |lines: Vec<String>| -> Vec<String> {
        lines.into_iter().filter(|line| !line.starts_with("usr: mtime")).collect()
    };
    let damage = [0, 1].map(|guest| content(before[guest].diff(&after[guest])));
    // Whatever the fresh file has become, things go on from there.
    let booted = world.snapshots();
    world.recover(&REAL).unwrap();
    world.unify(&REAL).unwrap();
    assert_eq!(content(booted[1].diff(&world.snapshots()[1])), [""; 0], "{cut:?}");
    remove(&base);
    damage
}

fn rehearse_just_written(disk: &LoopFs) -> (usize, Vec<Op>) {
    let base = place(disk, "rehearsal");
    let (world, _) = just_written(&base);
    let opening = Faulty::new(&REAL, Script::new());
    drop(world.open(&opening).unwrap());
    let faulty = Faulty::new(&REAL, Script::new());
    let done = in_order(|| world.unify(&faulty)).unwrap().done;
    assert_eq!((done.admitted, done.linked), (1, 1), "{done:?}");
    remove(&base);
    (opening.count(), faulty.ops())
}

/// A file that was written just now may be lost with the power, as without us; a durable one never is, and
/// once the barrier is passed neither is.
fn data_before_names(test: &str, kind: FsKind) {
    let disks = need!(test, disks_without_log(kind));
    let (opening, ops) = rehearse_just_written(&disks[0]);
    let barrier = barrier(1, &ops);
    let problems = try_all(disks, &cuts(opening, &ops), |disk, cut| {
        let [durable, fresh] = cut_off_just_written(disk, *cut, Script::new());
        let passed = cut.n > barrier || (cut.n == barrier && cut.when == When::After);
        if passed { [durable, fresh].concat() } else { durable }
    });
    assert_none(&problems);
}

#[test]
fn data_before_names_on_ext4() {
    data_before_names("power::data_before_names_on_ext4", FsKind::Ext4);
}

#[test]
fn data_before_names_on_xfs() {
    data_before_names("power::data_before_names_on_xfs", FsKind::Xfs);
}

#[test]
fn data_before_names_on_btrfs() {
    data_before_names("power::data_before_names_on_btrfs", FsKind::Btrfs);
}

/// The cuts between the n-th barrier, which is omitted and not counted, and the next.
fn cuts_without(n: usize, ops: &[Op]) -> Vec<Cut> {
    let between = barrier(n, ops)..barrier(n + 1, ops) - 1;
    between.map(|n| Cut { n, when: When::After, log: Log::Kept }).collect()
}

/// Without the first barrier, a durable name comes to refer to bytes that never reached the disk.
#[test]
fn without_the_first_barrier_there_is_damage() {
    for kind in FsKind::ALL {
        let disks = need!("power::without_the_first_barrier_there_is_damage", disks_without_log(kind));
        let (_, ops) = rehearse_just_written(&disks[0]);
        let damage = try_all(disks, &cuts_without(1, &ops), |disk, cut| {
            let script = Script::new().nth_of(Op::Sync, 1, Fault::Omit);
            let [durable, _] = cut_off_just_written(disk, *cut, script);
            durable
        });
        assert!(damage.iter().any(|line| line.contains("usr/data: content was")), "{kind:?}: {damage:?}");
    }
}

/// Without the barrier behind private copies, a name comes to refer to a copy that never reached the disk.
/// (On xfs, copies share the extents of what they are copies of, and those are on the disk.)
#[test]
fn without_the_copies_barrier_there_is_damage() {
    let disks = need!("power::without_the_copies_barrier_there_is_damage", disks(FsKind::Ext4));
    let (_, ops) = rehearse(&disks[0], Act::Undo, Seal::None);
    let damage = try_all(disks, &cuts_without(2, &ops), |disk, cut| {
        let scene = Scene::new(&place(disk, "trial"), Act::Undo, Seal::None);
        let script = Script::new().nth_of(Op::Sync, 2, Fault::Omit);
        let ran = until_cut(disk, *cut, script, |fs| scene.run(Act::Undo, fs).map(drop));
        assert!(ran.is_err(), "{cut:?} did not cut anything off");
        let damage = scene.damage();
        remove(&scene.world.base);
        damage
    });
    assert!(damage.iter().any(|line| line.contains("content was")), "{damage:?}");
}

/// The barrier between the moves and what the journal says of them cannot be missed here. Both file systems
/// write their logs in order, and the journal is on the same file system: when its `fsync` returns, every
/// exchange before it is durable as well, with or without the barrier. Neither POSIX nor, say, btrfs
/// promises that, whose `fsync` logs one file. So what is shown is the order of the calls: no name of a
/// displaced inode goes before a barrier behind the last exchange.
#[test]
fn moves_are_durable_before_what_they_displaced_goes() {
    for act in [Act::Unify, Act::Undo] {
        let place = tempfile::tempdir().unwrap();
        let (opening, ops) = in_order(|| Scene::rehearse(place.path(), act, Seal::None));
        let mut moved = false;
        let mut barriers = 0;
        for op in &ops[opening..] {
            match op {
                Op::Exchange => moved = true,
                Op::Sync => {
                    barriers += usize::from(moved);
                    moved = false;
                }
                Op::Unlink => assert!(!moved, "{act:?}: {ops:?}"),
                _ => {}
            }
        }
        assert!(barriers > 0 && !moved, "{act:?}: {ops:?}");
    }
}
