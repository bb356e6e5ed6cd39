//! Content that changes and leaves no trace: what a guest plants, others never get.
#![allow(clippy::disallowed_methods)] // the files are the test's own
#![allow(clippy::unwrap_used)] // to panic is how a test fails, in its helpers too

mod common;

use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;

use common::{REAL, World, alone};
use fixtures::faulty::{Fault, Faulty, Op, Script};
use fixtures::{LoopFs, Manifest, need, require_command};
use kernel::{Errno, Fs as _, Seal};
use store::Store;
use store::journal::Journal;
use unify::{Observer, Scope, Session};

/// The first guest's file has two names, so that its inode is the one that is admitted.
const FILE: &str = "f usr/bin/tool 755 @1000000000.5 *16384:1\n";
const HIS: &str = "f usr/bin/tool 755 @1000000000.5 *16384:1\nh usr/bin/other usr/bin/tool\n\
                   f usr/bin/poison 755 @1000000000.5 *16384:9\n";

fn world(place: &Path, guests: &[&str]) -> World {
    let manifests: Vec<Manifest> = guests.iter().map(|text| Manifest::parse(text).unwrap()).collect();
    let world = World::new(place, &manifests);
    REAL.sync(&kernel::Dir::open_host(place).unwrap()).unwrap();
    world
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Does something when everything is read and nothing is linked yet.
struct Between<'a>(Box<dyn Fn() + Sync + 'a>);

impl Observer for Between<'_> {
    fn phase(&self, name: &'static str, _: u64) {
        if name == "linking" {
            (self.0)();
        }
    }

    fn advance(&self, _: u64) {}
}

fn unify_around(world: &World, between: impl Fn() + Sync) {
    let observer = Between(Box::new(between));
    let unify = |session: Session<'_>, store: &Store, journal: &mut Journal| {
        session.unify(store, journal, world.seal, "test")
    };
    world.with_observer(&REAL, &observer, &AtomicBool::new(false), unify).unwrap();
}

fn stamps(path: &Path) -> (i64, i64, i64, i64) {
    let stat = path.metadata().unwrap();
    (stat.mtime(), stat.mtime_nsec(), stat.ctime(), stat.ctime_nsec())
}

#[test]
fn extents_that_are_exchanged_after_reading_reach_nobody() {
    const NAME: &str = "extents_that_are_exchanged_after_reading_reach_nobody";
    let _alone = alone();
    need!(NAME, require_command("xfs_io"));
    let mut disk = need!(NAME, LoopFs::xfs(320 << 20));
    let mut world = world(disk.path(), &[HIS, FILE]);
    world.seal = Seal::Immutable;
    let good = std::fs::read(world.guests[1].join("usr/bin/tool")).unwrap();
    let bin = world.guests[0].join("usr/bin");
    let before = stamps(&bin.join("tool"));
    unify_around(&world, || {
        succeed(
            Command::new("xfs_io")
                .arg("-c")
                .arg(format!("swapext {}", bin.join("poison").display()))
                .arg(bin.join("tool")),
        );
    });
    assert_eq!(stamps(&bin.join("tool")), before, "the exchange has left a trace");
    disk.remount().unwrap();
    assert!(std::fs::read(bin.join("tool")).unwrap() != good, "nothing was exchanged");
    assert!(std::fs::read(world.guests[1].join("usr/bin/tool")).unwrap() == good);
}

/// `struct move_extent`: four blocks at the beginning.
const MOVE_EXTENTS: &str = r#"
import fcntl, os, struct, sys
poison, tool = (os.open(name, os.O_RDWR) for name in sys.argv[1:])
os.pread(tool, 16384, 0)
fcntl.ioctl(poison, 0xC028660F, struct.pack("IIQQQQ", 0, tool, 0, 0, 4, 0))
"#;

#[test]
fn what_memory_holds_and_the_disk_does_not_reaches_nobody() {
    const NAME: &str = "what_memory_holds_and_the_disk_does_not_reaches_nobody";
    let _alone = alone();
    need!(NAME, require_command("python3"));
    let mut disk = need!(NAME, LoopFs::ext4(64 << 20));
    let mut world = world(disk.path(), &[HIS, FILE]);
    world.seal = Seal::Immutable;
    let good = std::fs::read(world.guests[1].join("usr/bin/tool")).unwrap();
    let bin = world.guests[0].join("usr/bin");
    succeed(Command::new("python3").args(["-c", MOVE_EXTENTS]).arg(bin.join("poison")).arg(bin.join("tool")));
    let is_stale = std::fs::read(bin.join("tool")).unwrap() == good;
    unify_around(&world, || {});
    disk.remount().unwrap();
    assert!(is_stale && std::fs::read(bin.join("tool")).unwrap() != good, "memory held nothing else");
    assert!(std::fs::read(world.guests[1].join("usr/bin/tool")).unwrap() == good);
}

#[test]
fn an_admission_that_is_written_before_recovery_takes_nobody_along() {
    let _alone = alone();
    let place = tempfile::tempdir().unwrap();
    let world = world(place.path(), &[HIS, FILE, FILE]);
    let path = |guest: usize| world.guests[guest].join("usr/bin/tool");
    let good = std::fs::read(path(1)).unwrap();
    // The barrier after the moves is never reached.
    drop(world.open(&REAL).unwrap());
    let cut = Faulty::new(&REAL, Script::new().nth_of(Op::Sync, 2, Fault::Fail(Errno::IO)));
    world.unify(&cut).unwrap_err();
    assert_eq!(world.ino(0, "usr/bin/tool"), world.ino(1, "usr/bin/tool"));
    std::fs::File::options().append(true).open(path(0)).unwrap().write_all(b"mine").unwrap();
    world.recover(&REAL).unwrap();
    for guest in [1, 2] {
        assert!(std::fs::read(path(guest)).unwrap() == good, "guest {guest} has another's bytes");
    }
    assert!(std::fs::read(path(0)).unwrap() == [&good[..], b"mine"].concat());
    // And all goes on.
    world.unify(&REAL).unwrap();
    assert_eq!(world.ino(1, "usr/bin/tool"), world.ino(2, "usr/bin/tool"));
    assert_ne!(world.ino(0, "usr/bin/tool"), world.ino(1, "usr/bin/tool"));
}

#[test]
fn an_object_that_was_changed_gets_no_new_names() {
    let _alone = alone();
    for change in ["mode", "content"] {
        let place = tempfile::tempdir().unwrap();
        let mut world = world(place.path(), &[FILE, FILE, FILE, FILE]);
        let all = world.guests.clone();
        let path = |guest: usize| all[guest].join("usr/bin/tool");
        let good = std::fs::read(path(3)).unwrap();
        world.guests = all[..2].to_vec();
        world.unify(&REAL).unwrap();
        match change {
            "mode" => std::fs::set_permissions(path(0), PermissionsExt::from_mode(0o777)).unwrap(),
            _ => std::fs::write(path(0), "something else").unwrap(),
        }
        // What the index knew of the object is lost, too.
        let (store, _) = world.open(&REAL).unwrap();
        store::index::discard(&store).unwrap();
        drop(store);
        world.guests = all[2..].to_vec();
        world.unify(&REAL).unwrap();
        for guest in [2, 3] {
            assert_eq!(path(guest).metadata().unwrap().mode() & 0o7777, 0o755, "{change}");
            assert!(std::fs::read(path(guest)).unwrap() == good, "{change}");
        }
    }
}

#[test]
fn a_copy_that_its_guest_has_written_keeps_all_its_names() {
    const TWO: &str = "f usr/bin/tool 755 @1000000000.5 *16384:1\nh usr/lib/tool usr/bin/tool\n";
    let _alone = alone();
    let place = tempfile::tempdir().unwrap();
    let world = world(place.path(), &[TWO, TWO]);
    world.unify(&REAL).unwrap();
    // The second of two names is not exchanged, and nothing can be taken back.
    let script =
        (2..9).fold(Script::new(), |script, n| script.nth_of(Op::Exchange, n, Fault::Fail(Errno::IO)));
    let cut = Faulty::new(&REAL, script.every_of(Op::Unlink, Fault::Fail(Errno::IO)));
    let scope = unify::Scope { paths: vec![world.guests[0].clone()], ..unify::Scope::default() };
    world.undo(&cut, &scope).unwrap_err();
    let [one, two] = ["usr/bin/tool", "usr/lib/tool"];
    assert_ne!(world.ino(0, one), world.ino(0, two), "it was not cut off between the two");
    let copy = if world.ino(0, one) == world.ino(1, one) { two } else { one };
    std::fs::File::options()
        .append(true)
        .open(world.guests[0].join(copy))
        .unwrap()
        .write_all(b"mine")
        .unwrap();
    world.recover(&REAL).unwrap();
    assert_eq!(world.ino(0, one), world.ino(0, two), "its two names are two files");
    assert!(std::fs::read(world.guests[0].join(one)).unwrap().ends_with(b"mine"));
    assert!(!std::fs::read(world.guests[1].join(one)).unwrap().ends_with(b"mine"));
    assert!(world.is_tidy());
}

#[test]
fn what_a_guest_keeps_open_stays_sealed_when_it_is_no_object_any_more() {
    const NAME: &str = "what_a_guest_keeps_open_stays_sealed_when_it_is_no_object_any_more";
    const O_PATH: i32 = 0o10_000_000;
    let _alone = alone();
    for seal in [Seal::Immutable, Seal::Bpf] {
        let disk = need!(NAME, LoopFs::ext4(32 << 20));
        let mut world = world(disk.path(), &[FILE, FILE]);
        world.seal = seal;
        world.unify(&REAL).unwrap();
        let bin = world.guests[1].join("usr/bin");
        let handle = std::fs::File::options().read(true).custom_flags(O_PATH).open(bin.join("tool")).unwrap();
        let open = kernel::Dir::open_host(&bin).unwrap().open_file(b"tool").unwrap();
        let report = world.undo(&REAL, &Scope::default()).unwrap();
        assert_eq!((report.done.detached, report.done.removed), (2, 1), "{report:?}");
        // All that is left of the object is what this guest and perhaps others have open, or mapped.
        assert_eq!(open.stat().unwrap().nlink, 0);
        assert!(seal.is_on(&open).unwrap(), "{seal:?}");
        let again = format!("/proc/self/fd/{}", handle.as_raw_fd());
        let written = std::fs::File::options().write(true).open(again);
        // What no program watches, its tag alone does not keep from being written.
        assert_eq!(written.is_err(), seal == Seal::Immutable, "{seal:?}");
        for guest in &world.guests {
            std::fs::write(guest.join("usr/bin/tool"), "his own").unwrap();
        }
    }
}
