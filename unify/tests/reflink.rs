//! Sharing extents between files that stay private.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)] // guests are built as their processes would; a panic is a failed test

mod common;

use std::collections::HashSet;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use common::{REAL, World};
use fixtures::loopfs::{FsKind, LoopFs, Options};
use fixtures::{Compare, Manifest, need};
use kernel::{Dir, Layout};
use store::Store;
use unify::{Judge, Observer, Reflinks, Report, Session, Shareable, Silent, Surroundings};

/// All but the last two lines are shared with the other guest, which has other times.
const GUEST: &str = r#"
d usr 755
d usr/bin 755
f usr/bin/ls 755 0:0 @TIME *20000:1
f usr/bin/su 4755 0:0 @TIME *40960:2
d etc 755
f etc/services 644 0:0 @TIME *12345:3
x etc/services user.origin=here
f etc/secret 600 0:42 @TIME *4096:4
d var 755
d var/lib 755
f var/lib/holes 644 0:0 @TIME *8192:5+_131072+*5000:6+_4096
f var/lib/large 644 0:0 @TIME *17000001:7
f etc/hostname 644 0:0 @TIME "same everywhere"
f var/lib/own 644 0:0 @TIME *30000:SEED
"#;

const SHARED: [&str; 6] =
    ["usr/bin/ls", "usr/bin/su", "etc/services", "etc/secret", "var/lib/holes", "var/lib/large"];

const ALL: Compare = Compare { inodes: true, flags: true, links: true };

fn guest(number: u32) -> Manifest {
    let time = format!("{}.25", 1_000_000_000 + number);
    Manifest::parse(&GUEST.replace("TIME", &time).replace("SEED", &(100 + number).to_string())).unwrap()
}

fn world(disk: &LoopFs) -> World {
    World::new(disk.path(), &[guest(0), guest(1)])
}

/// Calls `act` with a session as a command opens it.
fn with<T>(
    world: &World,
    observer: &dyn Observer,
    act: impl FnOnce(Session<'_>, &Store) -> unify::Result<T>,
) -> T {
    let stop = AtomicBool::new(false);
    let around = Surroundings { fs: &REAL, observer, stop: &stop };
    let (store, _) = world.open(&REAL).unwrap();
    let policy = Arc::new(world.policy.clone());
    let judge = |guest: &unify::Guest| Ok(Judge::new(guest.root.reopen().unwrap(), Arc::clone(&policy)));
    let session = Session::open(&around, store.place(), &world.guests, judge).unwrap();
    act(session, &store).unwrap()
}

fn reflink(world: &World, observer: &dyn Observer) -> Report {
    let mut report = Report::default();
    with(world, observer, |session, store| session.reflink(store, &mut report));
    report
}

fn layout(path: &Path) -> Layout {
    let dir = Dir::open_host(path.parent().unwrap()).unwrap();
    let file = dir.open_file(path.file_name().unwrap().as_encoded_bytes()).unwrap();
    let layout = kernel::layout(&file, file.stat().unwrap().size).unwrap().unwrap();
    assert!(!layout.extents().is_empty());
    layout
}

fn same_extents(world: &World, path: &str) -> bool {
    layout(&world.guests[0].join(path)) == layout(&world.guests[1].join(path))
}

/// Times to the nanosecond of every name: access, content, inode.
fn times(world: &World) -> Vec<(i64, i64, i64, i64, i64, i64)> {
    let files = world.guests.iter().flat_map(|guest| SHARED.map(|path| guest.join(path)));
    files
        .map(|path| path.symlink_metadata().unwrap())
        .map(|m| (m.atime(), m.atime_nsec(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()))
        .collect()
}

fn each_disk(name: &str, test: impl Fn(LoopFs)) {
    for kind in [FsKind::Xfs, FsKind::Btrfs] {
        // Access times are the strictest way: nothing may touch a guest's files visibly.
        let options = Options { kind, size: 512 << 20, mkfs: &[], mount: "strictatime" };
        test(need!(name, LoopFs::with(&options)));
    }
}

#[test]
fn private_files_share_extents_and_nothing_else_changes() {
    each_disk("private_files_share_extents_and_nothing_else_changes", |mut disk| {
        let world = world(&disk);
        let (before, clocks) = (world.snapshots(), {
            world.unify(&REAL).unwrap();
            times(&world)
        });
        assert!(SHARED.iter().all(|path| !same_extents(&world, path)));
        let report = reflink(&world, &Silent);
        let Some(Reflinks { supported: true, files: 6, bytes }) = report.reflinks else {
            panic!("{report:?}")
        };
        let sizes = 20_000 + 40_960 + 12_345 + 4096 + 13_192 + 17_000_001;
        assert!((sizes..sizes + 6 * 4096 + 4096).contains(&bytes), "{bytes} {sizes}");
        assert!(SHARED.iter().all(|path| same_extents(&world, path)));
        assert!(!same_extents(&world, "var/lib/own"));
        assert_eq!(times(&world), clocks);
        for (before, after) in before.iter().zip(world.snapshots()) {
            assert_eq!(before.diff_with(&after, ALL), [""; 0]);
        }
        assert_eq!(report.skipped.len(), 0, "{report:?}");

        // Nothing is left to do, and only the start of what others have the size of is read.
        let again = reflink(&world, &Silent);
        assert_eq!(again.reflinks, Some(Reflinks { supported: true, files: 0, bytes: 0 }));
        assert!(again.read.1 <= 14 * 4096, "{again:?}");
        disk.check().unwrap();
    });
}

#[test]
fn a_later_write_stays_in_its_guest() {
    each_disk("a_later_write_stays_in_its_guest", |mut disk| {
        let world = world(&disk);
        reflink(&world, &Silent);
        let before = world.snapshots();
        for path in SHARED {
            assert!(same_extents(&world, path), "{path}");
            let file = std::fs::OpenOptions::new().write(true).open(world.guests[0].join(path)).unwrap();
            file.write_all_at(b"only here", 100).unwrap();
        }
        // What the page cache says is not enough.
        disk.remount().unwrap();
        let after = world.snapshots();
        assert_eq!(before[1].diff(&after[1]), [""; 0]);
        for path in SHARED {
            let content = |guest: usize| std::fs::read(world.guests[guest].join(path)).unwrap();
            let mut wanted = content(1);
            wanted[100..109].copy_from_slice(b"only here");
            assert!(content(0) == wanted, "{path}");
        }
    });
}

/// Writes into a file when its content has been read and before its extents are shared.
struct Meddler(std::path::PathBuf);

impl Observer for Meddler {
    fn phase(&self, name: &'static str, _: u64) {
        if name == "sharing extents" {
            let file = std::fs::OpenOptions::new().write(true).open(&self.0).unwrap();
            file.write_all_at(b"changed", 17_000_000 - 7).unwrap();
        }
    }

    fn advance(&self, _: u64) {}
}

#[test]
fn a_file_that_changes_after_it_was_read_is_refused_by_the_kernel() {
    each_disk("a_file_that_changes_after_it_was_read_is_refused_by_the_kernel", |disk| {
        for guest in [0, 1] {
            let world = World::new(
                &{
                    let base = disk.path().join(guest.to_string());
                    std::fs::create_dir(&base).unwrap();
                    base
                },
                &[self::guest(0), self::guest(1)],
            );
            let before = world.snapshots();
            let path = world.guests[guest].join("var/lib/large");
            let report = reflink(&world, &Meddler(path.clone()));
            assert_eq!(report.skipped.get("changed"), Some(&1), "{report:?}");
            assert_eq!(report.reflinks.map(|reflinks| reflinks.files), Some(5), "{report:?}");
            assert!(!report.has_failures());
            assert_eq!(&std::fs::read(path).unwrap()[17_000_000 - 7..][..7], b"changed");
            let after = world.snapshots();
            assert_eq!(before[1 - guest].diff_with(&after[1 - guest], ALL), [""; 0]);
        }
    });
}

#[test]
fn files_share_with_objects_which_keep_their_own_extents() {
    each_disk("files_share_with_objects_which_keep_their_own_extents", |disk| {
        // The third guest has other times, so that its files stay private.
        let world = World::new(disk.path(), &[guest(0), guest(0), guest(2)]);
        let admitted = world.unify(&REAL).unwrap().done.admitted;
        assert!(admitted > 0 && world.shares("usr/bin/ls"));
        let object = layout(&world.guests[0].join("usr/bin/ls"));
        let report = reflink(&world, &Silent);
        assert_eq!(layout(&world.guests[2].join("usr/bin/ls")), object);
        assert_eq!(layout(&world.guests[0].join("usr/bin/ls")), object);
        assert_eq!(report.skipped.len(), 0, "{report:?}");
    });
}

fn preview(world: &World, planned: &HashSet<u64>) -> (Vec<Shareable>, Report) {
    let (mut report, mut shown) = (Report::default(), Vec::new());
    with(world, &Silent, |session, store| {
        let show = |shareable: &Shareable| shown.push(shareable.clone());
        session.preview_reflink(Some(store), planned, &mut report, show)
    });
    (shown, report)
}

#[test]
fn a_preview_tells_and_does_nothing() {
    each_disk("a_preview_tells_and_does_nothing", |disk| {
        let world = world(&disk);
        let (shown, report) = preview(&world, &HashSet::new());
        assert_eq!(shown.iter().map(|group| group.paths.len()).collect::<Vec<_>>(), [1; 6]);
        assert_eq!(report.reflinks.map(|reflinks| reflinks.files), Some(6));
        assert!(SHARED.iter().all(|path| !same_extents(&world, path)));
        // What the run will replace by links need not share extents.
        let planned = HashSet::from([world.ino(0, "usr/bin/ls"), world.ino(1, "usr/bin/ls")]);
        let (shown, _) = preview(&world, &planned);
        assert_eq!(shown.len(), 5);
        assert!(shown.iter().all(|group| !group.source.ends_with("ls")), "{shown:?}");
        // What stays private may share the extents of what becomes an object.
        let planned = HashSet::from([world.ino(0, "usr/bin/ls")]);
        let (shown, _) = preview(&world, &planned);
        let ls = shown.iter().find(|group| group.source.ends_with("ls")).unwrap();
        assert_eq!(ls.source, world.guests[0].join("usr/bin/ls"));
    });
}

#[test]
fn nested_subvolumes_are_crossed() {
    const NAME: &str = "nested_subvolumes_are_crossed";
    need!(NAME, fixtures::require_command("btrfs"));
    let disk = need!(NAME, LoopFs::btrfs(0));
    let world = world(&disk);
    let inner = world.guests[0].join("srv");
    let made = Command::new("btrfs").args(["subvolume", "create"]).arg(&inner).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    Manifest::parse("f data 640 @5 *50000:77").unwrap().write(&inner).unwrap();
    Manifest::parse("f srv/data 644 @6 *50000:77").unwrap().write(&world.guests[1]).unwrap();
    assert_ne!(inner.metadata().unwrap().dev(), world.guests[0].metadata().unwrap().dev());
    let report = reflink(&world, &Silent);
    assert_eq!(report.reflinks.map(|reflinks| reflinks.files), Some(7), "{report:?}");
    assert!(same_extents(&world, "srv/data"));
}

#[test]
fn what_copy_on_write_is_off_for_is_told_and_no_failure() {
    const NAME: &str = "what_copy_on_write_is_off_for_is_told_and_no_failure";
    need!(NAME, fixtures::require_command("chattr"));
    let disk = need!(NAME, LoopFs::btrfs(0));
    let world = World::new(disk.path(), &[Manifest::default(), Manifest::default()]);
    std::fs::create_dir(world.guests[0].join("db")).unwrap();
    chattr("+C", &world.guests[0].join("db"));
    for guest in &world.guests {
        Manifest::parse("f db/data *50000:77").unwrap().write(guest).unwrap();
    }
    let report = reflink(&world, &Silent);
    assert_eq!(report.skipped.get("cannot-share"), Some(&1), "{report:?}");
    assert!(!report.has_failures());
}

fn chattr(change: &str, path: &Path) {
    let output = Command::new("chattr").arg(change).arg(path).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn inode_flags_stay_and_immutable_files_are_left_alone() {
    const NAME: &str = "inode_flags_stay_and_immutable_files_are_left_alone";
    need!(NAME, fixtures::require_command("chattr"));
    each_disk(NAME, |disk| {
        let world = world(&disk);
        for (change, path) in [("+a", SHARED[0]), ("+d", SHARED[1]), ("+i", SHARED[2])] {
            world.guests.iter().for_each(|guest| chattr(change, &guest.join(path)));
        }
        let before = world.snapshots();
        let report = reflink(&world, &Silent);
        assert_eq!(report.reflinks.map(|reflinks| reflinks.files), Some(5), "{report:?}");
        assert_eq!(report.skipped.len(), 0, "{report:?}");
        for (before, after) in before.iter().zip(world.snapshots()) {
            assert_eq!(before.diff_with(&after, ALL), [""; 0]);
        }
    });
}

fn vunify(world: &World, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vunify"));
    command.args(["--noflags", "--reflink"]).args(arguments).args(&world.guests).output().unwrap()
}

fn summary(output: &Output) -> serde_json::Value {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    serde_json::from_str(text.lines().last().unwrap_or_else(|| panic!("{output:?}"))).unwrap()
}

#[test]
fn the_command_reports_it_apart() {
    each_disk("the_command_reports_it_apart", |disk| {
        let world = World::new(disk.path(), &[guest(0), guest(0)]);
        let dry = vunify(&world, &["--dry-run", "--json"]);
        assert!(dry.status.success(), "{dry:?}");
        let done = vunify(&world, &["--json"]);
        assert!(done.status.success(), "{done:?}");
        let (dry, done) = (summary(&dry).to_string(), summary(&done).to_string());
        // ls is linked; the other six are private by policy.
        assert!(dry.contains("\"reflinked_files\":6"), "{dry}");
        assert!(done.contains("\"reflinked_files\":6") && done.contains("\"linked\":1"), "{done}");
        assert!(world.shares("usr/bin/ls") && SHARED.iter().all(|path| same_extents(&world, path)));
        let text = String::from_utf8(vunify(&world, &[]).stdout).unwrap();
        assert!(text.contains("let 0 private files share the blocks of others"), "{text}");
    });
}

#[test]
fn a_file_system_that_cannot_is_named_and_the_rest_is_done() {
    const NAME: &str = "a_file_system_that_cannot_is_named_and_the_rest_is_done";
    let ext4 = Options { kind: FsKind::Ext4, size: 256 << 20, mkfs: &[], mount: "" };
    let xfs = Options { kind: FsKind::Xfs, size: 0, mkfs: &["-m", "reflink=0"], mount: "" };
    for options in [ext4, xfs] {
        let disk = need!(NAME, LoopFs::with(&options));
        let world = World::new(disk.path(), &[guest(0), guest(0)]);
        let before = world.snapshots();
        let output = vunify(&world, &["--json"]);
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stderr.clone()).unwrap();
        assert_eq!(said.matches("cannot share blocks between files").count(), 1, "{output:?}");
        assert!(world.shares("usr/bin/ls"), "{output:?}");
        assert_eq!(world.differences(&before), [""; 0]);
    }
}
