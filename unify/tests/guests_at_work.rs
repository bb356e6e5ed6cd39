//! Guests that work, or work against us, while a run is at their files: what they do costs them, and nobody else.
#![allow(clippy::disallowed_methods)] // the files are the test's own
#![allow(clippy::unwrap_used)] // to panic is how a test fails, in its helpers too

mod common;

use std::io::{BufRead as _, BufReader};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, UNIX_EPOCH};

use common::{REAL, World, alone};
use fixtures::faulty::{Call, Fault, Faulty, Op, Script, When};
use fixtures::loopfs::{FsKind, Options};
use fixtures::{LoopFs, Manifest, need, require_command};
use kernel::{At, Dir, Errno, Fs as _, Protection as _, Real, Seal};
use serde_json::Value;
use store::IdentityPolicy;
use store::journal::RunEnd;
use unify::Scope;

const GUEST: &str = "\
d usr/bin 755 @1000000000\nd usr/lib 755 @1000000000\n\
f usr/bin/tool 755 @1000000000.5 *16384:1\nf usr/lib/file 644 @1000000000.5 *5000:2\n";

fn world(place: &Path, guests: usize) -> World {
    World::new(place, &vec![Manifest::parse(GUEST).unwrap(); guests])
}

/// Holds write leases on what nobody else has open, and is deaf to who wants to read. It can't write itself, so that its
/// leases are all there is.
const LEASES: &str = r#"
import fcntl, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
files = [os.open(name, os.O_RDONLY) for name in sys.argv[1:]]
for file in files:
    try:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except BlockingIOError:
        os.close(file)
print("held", flush=True)
sys.stdin.read()
"#;

const FILES: [&str; 2] = ["usr/bin/tool", "usr/lib/file"];

/// A guest that holds leases on its files. Who waited would have them when the kernel takes the leases away, after 45
/// seconds.
fn lease(guest: &Path) -> Child {
    let mut holder = Command::new("python3")
        .args(["-c", LEASES])
        .args(FILES.map(|name| guest.join(name)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said, "held\n");
    holder
}

fn release(mut holder: Child) {
    drop(holder.stdin.take());
    holder.wait().unwrap();
}

/// Has a guest lease its files for as long as `act` takes.
fn while_leased<T>(guest: &Path, act: impl FnOnce() -> T) -> T {
    let holder = lease(guest);
    let done = act();
    release(holder);
    done
}

#[test]
fn write_leases_make_files_busy_and_nobody_waits() {
    const NAME: &str = "write_leases_make_files_busy_and_nobody_waits";
    let _alone = alone();
    need!(NAME, require_command("python3"));
    let place = tempfile::tempdir().unwrap();
    let world = world(place.path(), 2);
    let report = while_leased(&world.guests[0], || world.unify(&REAL)).unwrap();
    assert_eq!((report.skipped.get("busy"), report.end), (Some(&2), Some(RunEnd::Complete)));
    assert_eq!(world.unify(&REAL).unwrap().done.linked, 2);
}

#[test]
fn write_leases_on_shared_files_stop_no_undo() {
    const NAME: &str = "write_leases_on_shared_files_stop_no_undo";
    let _alone = alone();
    need!(NAME, require_command("python3"));
    for seal in [Seal::None, Seal::Immutable] {
        let disk = need!(NAME, LoopFs::ext4(64 << 20));
        let mut world = world(disk.path(), 2);
        world.seal = seal;
        world.unify(&REAL).unwrap();
        let report = while_leased(&world.guests[0], || world.undo(&REAL, &Scope::default())).unwrap();
        assert_eq!((report.skipped.get("busy"), report.done.detached), (Some(&4), 0), "{seal:?}");
        let report = world.undo(&REAL, &Scope::default()).unwrap();
        assert_eq!((report.done.detached, report.done.removed), (4, 2), "{report:?}");
    }
}

#[test]
fn write_leases_on_unused_objects_stop_no_collection() {
    const NAME: &str = "write_leases_on_unused_objects_stop_no_collection";
    let _alone = alone();
    need!(NAME, require_command("python3"));
    let place = tempfile::tempdir().unwrap();
    let world = world(place.path(), 2);
    world.unify(&REAL).unwrap();
    let (store, _) = world.open(&REAL).unwrap();
    let mut objects = Vec::new();
    store.for_each_object(|name, _, _| objects.push(name), drop).unwrap();
    let aside = world.store_path().join("quarantine").join(format!("corrupt.0.{}", objects[0]));
    std::fs::rename(store.object_path(objects[0]), aside).unwrap();
    drop(store);
    let gc = || {
        let mut vstore = Command::new(env!("CARGO_BIN_EXE_vstore"));
        let ran = vstore.args(["gc", "--quarantine", "--json"]).arg(world.store_path()).output().unwrap();
        let summary: Value =
            serde_json::from_slice(ran.stdout.split(|b| *b == b'\n').rev().nth(1).unwrap()).unwrap();
        let count = |what: &str| summary[what].as_u64().unwrap();
        (ran.status.code(), count("removed"), count("withheld"), count("quarantine_withheld"))
    };
    let remove = |name| world.guests.iter().for_each(|guest| std::fs::remove_file(guest.join(name)).unwrap());
    let kept = while_leased(&world.guests[0], || {
        FILES.iter().for_each(remove);
        gc()
    });
    assert_eq!(kept, (Some(3), 0, 1, 1));
    assert_eq!(gc(), (Some(0), 1, 0, 0));
}

#[test]
fn a_write_lease_on_what_was_just_admitted_stops_no_recovery() {
    const NAME: &str = "a_write_lease_on_what_was_just_admitted_stops_no_recovery";
    let _alone = alone();
    need!(NAME, require_command("python3"));
    let place = tempfile::tempdir().unwrap();
    let world = world(place.path(), 2);
    let before = world.snapshots();
    drop(world.open(&REAL).unwrap());
    let cut =
        Script::new().every_of(Op::Link, Fault::Fail(Errno::IO)).nth_of(Op::Sync, 2, Fault::Fail(Errno::IO));
    world.unify(&Faulty::new(&REAL, cut)).unwrap_err();
    let links = || FILES.map(|name| world.guests[0].join(name).metadata().unwrap().nlink());
    assert_eq!(links(), [2, 2]);
    let outcome = while_leased(&world.guests[0], || world.recover(&REAL)).unwrap();
    assert_eq!((outcome.completed, outcome.taken_back, links()), (0, 4, [1, 1]), "{outcome:?}");
    assert_eq!(world.differences(&before), [""; 0]);
    assert_eq!(world.unify(&REAL).unwrap().done.linked, 2);
}

fn mtime(path: &Path) -> i64 {
    path.metadata().unwrap().mtime()
}

const OLD: i64 = 1_000_000_000;

#[test]
fn what_is_given_back_in_one_directory_sets_no_others_time_back() {
    let _alone = alone();
    let place = tempfile::tempdir().unwrap();
    let world = world(place.path(), 2);
    drop(world.open(&REAL).unwrap());
    // The second guest's file is changed when it is displaced already, and another directory gets a new name.
    let displaced = std::fs::File::open(world.guests[1].join("usr/bin/tool")).unwrap();
    let hook = |n: usize, _: &Call| {
        if n > 1 {
            displaced.set_permissions(PermissionsExt::from_mode(0o700)).unwrap();
            std::fs::write(world.guests[1].join("usr/lib/new"), "").unwrap();
        }
    };
    let script = Script::new().nth_of(Op::Sync, 2, Fault::Hook(When::After, Box::new(hook)));
    let report = world.unify(&Faulty::new(&REAL, script)).unwrap();
    assert_eq!(report.skipped.get("changed"), Some(&1), "{report:?}");
    assert!(!world.shares("usr/bin/tool") && world.shares("usr/lib/file"));
    assert_ne!(mtime(&world.guests[1].join("usr/lib")), OLD, "the new name left no trace");
    assert_eq!(mtime(&world.guests[1].join("usr/bin")), OLD);
}

#[test]
fn a_name_that_came_before_any_moved_is_not_forgotten() {
    const TWO: &str = "d usr/bin 755 @1000000000\nd usr/lib 755 @1000000000\n\
                       f usr/bin/tool 755 @1000000000.5 *16384:1\nh usr/lib/tool usr/bin/tool\n";
    let _alone = alone();
    let place = tempfile::tempdir().unwrap();
    let world = World::new(place.path(), &vec![Manifest::parse(TWO).unwrap(); 2]);
    drop(world.open(&REAL).unwrap());
    let hook = |_: usize, _: &Call| std::fs::write(world.guests[1].join("usr/lib/new"), "").unwrap();
    let script = Script::new().nth_of(Op::Sync, 1, Fault::Hook(When::Before, Box::new(hook)));
    let report = world.unify(&Faulty::new(&REAL, script)).unwrap();
    assert_eq!(report.done.linked, 1, "{report:?}");
    assert_ne!(mtime(&world.guests[1].join("usr/lib")), OLD);
    assert_eq!(mtime(&world.guests[1].join("usr/bin")), OLD);
}

#[test]
fn a_directory_that_is_made_unchangeable_stops_no_run() {
    const NAME: &str = "a_directory_that_is_made_unchangeable_stops_no_run";
    let _alone = alone();
    let disk = need!(NAME, LoopFs::ext4(64 << 20));
    let world = world(disk.path(), 2);
    drop(world.open(&REAL).unwrap());
    let bin = world.guests[1].join("usr/bin");
    let chattr = |how: &str| assert!(Command::new("chattr").arg(how).arg(&bin).status().unwrap().success());
    let displaced = std::fs::File::open(bin.join("tool")).unwrap();
    let hook = |_: usize, _: &Call| {
        displaced.set_modified(UNIX_EPOCH + Duration::from_secs(5)).unwrap();
        chattr("+i");
    };
    let script = Script::new().nth_of(Op::Sync, 2, Fault::Hook(When::After, Box::new(hook)));
    let ended = world.unify(&Faulty::new(&REAL, script));
    chattr("-i");
    let report = ended.unwrap();
    assert_eq!(report.skipped.get("changed"), Some(&1), "{report:?}");
    // It can't have its name back, and is not lost.
    let kept = std::fs::read_dir(world.store_path().join("quarantine")).unwrap().flatten();
    let times: Vec<i64> = kept.map(|entry| entry.metadata().unwrap().mtime()).collect();
    assert_eq!(times, [5]);
    assert!(world.shares("usr/lib/file"));
}

#[test]
fn a_displaced_file_that_is_made_unchangeable_stops_no_run() {
    const NAME: &str = "a_displaced_file_that_is_made_unchangeable_stops_no_run";
    let _alone = alone();
    for how in ["+i", "+a"] {
        let disk = need!(NAME, LoopFs::ext4(64 << 20));
        let world = world(disk.path(), 2);
        drop(world.open(&REAL).unwrap());
        let before = world.snapshots();
        let displaced = std::fs::File::open(world.guests[1].join("usr/bin/tool")).unwrap();
        let hook = |_: usize, _: &Call| {
            let name = format!("/proc/{}/fd/{}", std::process::id(), displaced.as_raw_fd());
            // chattr opens what it is given, and follows no link.
            let script = "import fcntl, os, struct, sys; fd = os.open(sys.argv[1], os.O_RDONLY); \
                          fcntl.ioctl(fd, 0x40086602, struct.pack('l', 0x80000 | int(sys.argv[2])))";
            let flag = if how == "+i" { "16" } else { "32" };
            assert!(Command::new("python3").args(["-c", script, &name, flag]).status().unwrap().success());
        };
        let script = Script::new().nth_of(Op::Sync, 2, Fault::Hook(When::After, Box::new(hook)));
        let report = world.unify(&Faulty::new(&REAL, script)).unwrap();
        assert_eq!((report.done.linked, displaced.metadata().unwrap().nlink()), (2, 0), "{how}: {report:?}");
        assert_eq!(world.differences(&before), [""; 0]);
    }
}

#[test]
fn a_name_that_a_project_keeps_from_going_back_stops_no_run() {
    let _alone = alone();
    let place = tempfile::tempdir().unwrap();
    let world = world(place.path(), 2);
    drop(world.open(&REAL).unwrap());
    let displaced = std::fs::File::open(world.guests[1].join("usr/bin/tool")).unwrap();
    let hook = |_: usize, _: &Call| displaced.set_modified(UNIX_EPOCH + Duration::from_secs(5)).unwrap();
    let script = Script::new().nth_of(Op::Sync, 2, Fault::Hook(When::After, Box::new(hook))).nth_of(
        Op::Exchange,
        3,
        Fault::Fail(Errno::XDEV),
    );
    let report = world.unify(&Faulty::new(&REAL, script)).unwrap();
    assert_eq!(report.skipped.get("changed"), Some(&1), "{report:?}");
    let kept = std::fs::read_dir(world.store_path().join("quarantine")).unwrap().flatten();
    let times: Vec<i64> = kept.map(|entry| entry.metadata().unwrap().mtime()).collect();
    assert_eq!(times, [5]);
}

#[test]
fn a_device_where_a_name_was_stops_no_recovery() {
    let _alone = alone();
    let place = tempfile::tempdir().unwrap();
    let world = world(place.path(), 3);
    drop(world.open(&REAL).unwrap());
    let cut = Script::new().nth_of(Op::Sync, 2, Fault::Fail(Errno::IO));
    world.unify(&Faulty::new(&REAL, cut)).unwrap_err();
    for guest in &world.guests {
        let name = guest.join("usr/bin/tool");
        std::fs::remove_file(&name).unwrap();
        // Devices are not opened in a guest; a whiteout (0, 0) needs no privilege.
        let node = Command::new("mknod").arg(&name).args(["c", "0", "0"]).status().unwrap();
        assert!(node.success());
    }
    world.recover(&REAL).unwrap();
    world.unify(&REAL).unwrap();
    assert!(world.shares("usr/lib/file"));
}

#[test]
fn what_a_guest_keeps_from_being_sealed_gets_no_new_names() {
    const NAME: &str = "what_a_guest_keeps_from_being_sealed_gets_no_new_names";
    let _alone = alone();
    need!(NAME, require_command("python3"));
    let disk = need!(NAME, LoopFs::ext4(64 << 20));
    let mut world = world(disk.path(), 3);
    let late = world.guests.pop().unwrap();
    world.unify(&REAL).unwrap();
    world.guests.push(late.clone());
    world.seal = Seal::Immutable;
    let links = || FILES.map(|name| late.join(name).metadata().unwrap().nlink());
    let leased = while_leased(&world.guests[0], || world.unify(&REAL)).unwrap();
    let writers =
        FILES.map(|name| std::fs::File::options().append(true).open(world.guests[0].join(name)).unwrap());
    let open = world.unify(&REAL).unwrap();
    drop(writers);
    for report in [leased, open] {
        assert_eq!((report.unsealed.len(), report.has_failures(), links()), (2, true, [1, 1]), "{report:?}");
        assert_eq!(report.skipped.get("busy"), Some(&2));
    }
    let report = world.unify(&REAL).unwrap();
    assert_eq!((report.unsealed.len(), links()), (0, [4, 4]), "{report:?}");
}

/// Puts the seals of plainly immutable files off and on around an act of the test's own.
fn unsealed(paths: &[PathBuf], act: impl Fn(&Path)) {
    for path in paths {
        let file = Dir::open_host(path.parent().unwrap()).unwrap();
        let file = file.open_file(path.file_name().unwrap().as_encoded_bytes()).unwrap();
        Real.unseal(&file, Seal::Immutable).unwrap();
        act(path);
        Real.seal(&file, Seal::Immutable).unwrap();
    }
}

fn names_in(guest: &Path) -> [PathBuf; 2] {
    FILES.map(|name| guest.join(name))
}

/// What cannot be put aside, as a lease keeps us from the seal that holds its name, gets no new names, ends no run and is
/// told; be it found by its metadata before the walk, or by its content before it is linked to.
#[test]
fn a_write_lease_on_a_corrupt_immutable_object_stops_no_run() {
    const NAME: &str = "a_write_lease_on_a_corrupt_immutable_object_stops_no_run";
    let _alone = alone();
    need!(NAME, require_command("python3"));
    for is_seen in [true, false] {
        let disk = need!(NAME, LoopFs::ext4(64 << 20));
        let mut world = world(disk.path(), 4);
        world.seal = Seal::Immutable;
        let late = world.guests.split_off(2);
        world.unify(&REAL).unwrap();
        world.guests.extend_from_slice(&late);
        unsealed(&names_in(&world.guests[0]), |path| {
            let file = std::fs::File::options().write(true).open(path).unwrap();
            let before = file.metadata().unwrap().modified().unwrap();
            file.write_all_at(b"broken", 100).unwrap();
            file.set_modified(if is_seen { UNIX_EPOCH } else { before }).unwrap();
        });
        let content = || names_in(&late[0]).map(|path| std::fs::read(path).unwrap());
        let good = content();
        // As the first is moved, the other is leased.
        let holder = Mutex::new(None);
        let hook = |_: usize, _: &Call| *holder.lock().unwrap() = Some(lease(&world.guests[0]));
        let script = Script::new().nth_of(Op::RenameNew, 1, Fault::Hook(When::After, Box::new(hook)));
        let ended = world.unify(&Faulty::new(&REAL, script));
        release(holder.into_inner().unwrap().unwrap());
        let report = ended.unwrap();
        assert_eq!((report.corrupt.len(), report.unsealed.len()), (1, 1), "{is_seen}: {report:?}");
        assert_eq!((report.has_failures(), report.done.not_done), (true, 0));
        assert_eq!(content(), good);
        let report = world.unify(&REAL).unwrap();
        assert_eq!((report.corrupt.len(), report.unsealed.len()), (1, 0), "{is_seen}: {report:?}");
        assert_eq!(content(), good);
    }
}

#[test]
fn what_recovery_cannot_seal_is_told() {
    const NAME: &str = "what_recovery_cannot_seal_is_told";
    let _alone = alone();
    need!(NAME, require_command("python3"));
    let disk = need!(NAME, LoopFs::ext4(64 << 20));
    let mut world = world(disk.path(), 2);
    world.seal = Seal::Immutable;
    let cut = Script::new().every_of(Op::Seal, Fault::Fail(Errno::IO));
    world.unify(&Faulty::new(&REAL, cut)).unwrap_err();
    let recover = || {
        let mut vstore = Command::new(env!("CARGO_BIN_EXE_vstore"));
        let ran = vstore.args(["recover", "--json"]).arg(world.store_path()).output().unwrap();
        (ran.status.code(), String::from_utf8(ran.stderr).unwrap())
    };
    let (code, said) = while_leased(&world.guests[0], recover);
    assert_eq!((code, said.matches("without its seal").count()), (Some(3), 2), "{said}");
    let report = world.unify(&REAL).unwrap();
    assert_eq!(report.unsealed.len(), 0);
    let writable =
        || names_in(&world.guests[0]).map(|path| std::fs::File::options().append(true).open(path).is_ok());
    assert_eq!(writable(), [false; 2]);
}

#[test]
fn a_file_that_was_moved_gets_its_own_time_back() {
    let _alone = alone();
    let place = tempfile::tempdir().unwrap();
    let mut world = world(place.path(), 2);
    world.identity = IdentityPolicy::WithoutMtime;
    let tool = |guest: usize, name: &str| world.guests[guest].join(name);
    let times = [1_111_111_111, 1_222_222_222];
    for (guest, time) in times.into_iter().enumerate() {
        let file = std::fs::File::options().append(true).open(tool(guest, FILES[0])).unwrap();
        file.set_modified(UNIX_EPOCH + Duration::from_secs(time)).unwrap();
    }
    world.unify(&REAL).unwrap();
    assert!(world.shares(FILES[0]));
    for guest in 0..2 {
        std::fs::rename(tool(guest, FILES[0]), tool(guest, "usr/moved")).unwrap();
    }
    assert_eq!(world.undo(&REAL, &Scope::default()).unwrap().done.detached, 4);
    assert_eq!([0, 1].map(|guest| mtime(&tool(guest, "usr/moved"))), times.map(|time| time as i64));
}

/// What lies below a directory that is too deep to be read may be shared still: said where it was asked for.
#[test]
fn an_undo_says_which_of_its_scope_it_could_not_see() {
    let _alone = alone();
    let place = tempfile::tempdir().unwrap();
    let world = world(place.path(), 2);
    world.unify(&REAL).unwrap();
    let mut deep = Dir::open_host(&world.guests[0].join("usr/lib")).unwrap();
    for _ in 0..600 {
        Real.make_dir(At::new(&deep, b"d"), 0o755).unwrap();
        deep = deep.open_dir(b"d").unwrap();
    }
    let below = |name: &str| Scope { paths: vec![world.guests[0].join(name)], ..Scope::default() };
    let left = |scope: Scope| world.undo(&REAL, &scope).unwrap().left_shared;
    assert_eq!([left(below("usr/bin")), left(below("usr/lib/d")), left(below("usr/lib/file"))], [0, 1, 0]);
    assert_eq!(left(Scope { run: Some(1), ..Scope::default() }), 1);
    let (_, journal) = world.open(&REAL).unwrap();
    assert_eq!(journal.runs().unwrap()[0].undone_by, None, "something may be left of it");
}

/// Encrypts an empty directory with a key of its own, runs the command that is given, and takes the key away.
const ENCRYPTED: &str = r#"
import fcntl, os, struct, subprocess, sys
path, command = sys.argv[1], sys.argv[2:]
top = os.open(path, os.O_RDONLY)
spec = bytearray(struct.pack("II32s", 2, 0, b""))
added = bytearray(spec + struct.pack("II32s", 64, 0, b"") + bytes(range(64)))
fcntl.ioctl(top, 0xC0506617, added)
policy = struct.pack("BBBB4x16s", 2, 1, 4, 3, bytes(added[8:24]))
fcntl.ioctl(top, 0x800C6613, policy)
subprocess.run(command, check=True)
print("made", flush=True)
sys.stdin.read()
fcntl.ioctl(top, 0xC0406618, bytearray(added[:40] + bytes(24)))
"#;

#[test]
fn encrypted_content_is_shared_with_nobody() {
    const NAME: &str = "encrypted_content_is_shared_with_nobody";
    let _alone = alone();
    need!(NAME, require_command("python3"));
    let options = Options { kind: FsKind::Ext4, size: 64 << 20, mkfs: &["-O", "encrypt"], mount: "" };
    let disk = need!(NAME, LoopFs::with(&options));
    let world = world(disk.path(), 2);
    let file = |guest: usize| world.guests[guest].join("usr/secret/file");
    for guest in &world.guests {
        std::fs::create_dir(guest.join("usr/secret")).unwrap();
    }
    std::fs::write(file(1), [7; 5000]).unwrap();
    let mut owner = Command::new("python3")
        .args(["-c", ENCRYPTED])
        .arg(file(0).parent().unwrap())
        .args(["cp", "-p"])
        .args([file(1), file(0)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    BufReader::new(owner.stdout.take().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said, "made\n");
    let report = world.unify(&REAL).unwrap();
    drop(owner.stdin.take());
    assert!(owner.wait().unwrap().success());
    assert_eq!((report.done.linked, report.skipped.get("marked")), (2, Some(&1)), "{report:?}");
    assert_eq!(file(1).metadata().unwrap().nlink(), 1);
    assert_eq!(std::fs::read(file(1)).unwrap(), [7; 5000]);
}
