//! Trees as no distribution makes them: each run ends, in bounded time and memory, with every file either
//! shared and the same as before or left alone with a reason.
#![allow(clippy::unwrap_used)] // a fixture that fails is a test that fails
#![allow(clippy::disallowed_methods)] // guests change their own files without our door

mod common;

use std::ffi::OsStr;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{REAL, World};
use fixtures::loopfs::{FsKind, Options};
use fixtures::manifest::{Entry, Piece, What};
use fixtures::{Compare, LoopFs, Manifest, Snapshot, require_command, require_root, rerun_test};
use kernel::{At, Dir, Errno, Fs};
use unify::{Report, Scope};

fn world(guests: &[&str]) -> (tempfile::TempDir, World) {
    let place = tempfile::tempdir().unwrap();
    let world = world_at(place.path(), guests);
    (place, world)
}

fn world_at(base: &Path, guests: &[&str]) -> World {
    let manifests: Vec<_> = guests.iter().map(|guest| Manifest::parse(guest).unwrap()).collect();
    World::new(base, &manifests)
}

fn run(program: &str, args: &[&OsStr]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
}

fn skipped(report: &Report, why: &str) -> u64 {
    report.skipped.get(why).copied().unwrap_or(0)
}

/// Unifies, looks, undoes, looks. Returns what the first run said.
fn there_and_back(world: &World, meanwhile: impl FnOnce()) -> Report {
    let before = world.snapshots();
    let report = world.unify(&REAL).unwrap();
    assert!(!report.has_failures(), "{report:?}");
    assert_eq!(world.differences(&before), [""; 0]);
    meanwhile();
    let again = world.unify(&REAL).unwrap();
    assert_eq!(again.run, None, "{again:?}");
    let undone = world.undo(&REAL, &Scope::default()).unwrap();
    assert!(!undone.has_failures(), "{undone:?}");
    assert_eq!(world.differences(&before), [""; 0]);
    assert!(world.is_tidy());
    report
}

// ---- names ----

#[test]
fn every_byte_may_be_in_a_name() {
    let bytes = (1..=255_u8).filter(|&byte| byte != b'/');
    let content = |n: u8| What::File(vec![Piece::Random(100 + u64::from(n), 1)]);
    let mut entries: Vec<Entry> = bytes
        .clone()
        .filter(|&byte| byte != b'.')
        .map(|byte| Entry::new([b"usr/".as_slice(), &[byte]].concat(), content(byte)))
        .collect();
    let longest: Vec<u8> = bytes.chain([b'x']).collect();
    assert_eq!(longest.len(), 255);
    entries.push(Entry::new([b"usr/lib/", longest.as_slice(), b"/", &longest].concat(), content(0)));
    let place = tempfile::tempdir().unwrap();
    let manifest = Manifest { entries };
    let world = World::new(place.path(), &[manifest.clone(), manifest]);
    let report = there_and_back(&world, || {});
    assert_eq!(report.done.linked, 254, "{report:?}");
}

/// A chain of directories, each with the same name, and a file at its end.
fn dig(guest: &Path, name: &[u8], depth: usize) {
    let mut dir = Dir::open_host(guest).unwrap();
    for name in std::iter::once(b"usr".as_slice()).chain(std::iter::repeat_n(name, depth)) {
        dir = enter(&dir, name);
    }
    bury(&dir);
}

/// A directory, made if it is not there.
fn enter(dir: &Dir, name: &[u8]) -> Dir {
    match REAL.make_dir(At::new(dir, name), 0o755) {
        Ok(()) | Err(Errno::EXIST) => dir.open_dir(name).unwrap(),
        Err(errno) => panic!("{errno}"),
    }
}

/// Makes a directory deep down in a guest.
fn enter_deep(guest: &Path, length: usize, depth: usize) -> Dir {
    let usr = enter(&Dir::open_host(guest).unwrap(), b"usr");
    (0..depth).fold(usr, |dir, _| enter(&dir, &[b'n'].repeat(length)))
}

fn bury(dir: &Dir) {
    let file = REAL.create(At::new(dir, b"file")).unwrap();
    REAL.write_at(&file, &[b'x'; 5000], 0).unwrap();
    let mtime = kernel::Time { seconds: 1_000_000_000, nanos: 0 };
    let metadata = kernel::Metadata { mode: 0o644, uid: 0, gid: 0, mtime, xattrs: vec![] };
    REAL.set_metadata(&file, &metadata).unwrap();
}

fn deepest(guest: &Path, name: &[u8], depth: usize) -> kernel::Stat {
    let path = [b"usr/".as_slice(), &[name, b"/"].concat().repeat(depth), b"file"].concat();
    Dir::open_host(guest).unwrap().open_file(&path).unwrap().stat().unwrap()
}

#[test]
fn paths_beyond_path_max_are_shared_and_endless_ones_are_named() {
    const NAME: &str = "paths_beyond_path_max_are_shared_and_endless_ones_are_named";
    let options = Options { kind: FsKind::Ext4, size: 768 << 20, mkfs: &["-N", "80000"], mount: "" };
    let disk = fixtures::need!(NAME, LoopFs::with(&options));
    let long = [b'l'; 255];
    let world = world_at(disk.path(), &["d usr", "d usr"]);
    for guest in &world.guests {
        dig(guest, b"d", 20_000);
        dig(guest, b"e", 500);
        dig(guest, &long, 30);
        dig(guest, &[b'f'; 250], 300);
    }
    let began = Instant::now();
    let report = world.unify(&REAL).unwrap();
    let same = |name: &[u8], depth| {
        deepest(&world.guests[0], name, depth).same_inode(&deepest(&world.guests[1], name, depth))
    };
    assert!(same(b"e", 500) && same(&long, 30), "{report:?}");
    assert!(!same(b"d", 20_000) && !same(&[b'f'; 250], 300));
    assert_eq!((skipped(&report, "out-of-reach"), report.has_failures()), (4, false), "{report:?}");
    let undone = world.undo(&REAL, &Scope::default()).unwrap();
    assert!(!undone.has_failures(), "{undone:?}");
    assert!(!same(b"e", 500) && !same(&long, 30), "{undone:?}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

/// In memory if that can be had: very many names are to be made and taken away.
fn in_memory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::tempdir_in(parent).unwrap()
}

/// To be called at the end of a test that [`peak_of`] runs.
#[allow(clippy::print_stdout)] // for the process that waits for it
fn print_peak() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    println!("peak {}", peak.trim().trim_end_matches(" kB"));
}

/// Runs a test by itself, told by a variable where the guests are; returns how much memory it took, in KiB.
fn peak_of(test: &str, variable: &str, world: &World) -> u64 {
    let output = rerun_test(test, &[(variable, world.base.to_str().unwrap())]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().find_map(|line| line.split("peak ").nth(1)).unwrap().trim().parse().unwrap()
}

#[test]
fn a_long_path_of_very_many_directories_is_kept_once() {
    const NAME: &str = "a_long_path_of_very_many_directories_is_kept_once";
    const DIRS: u32 = 3000;
    const LENGTH: usize = 250;
    const DEPTH: usize = 200;
    if let Ok(base) = std::env::var("LONG_IN") {
        let base = PathBuf::from(base);
        let world = World::around(base.clone(), vec![base.join("g0"), base.join("g1")]);
        // What one guest has moved is found; what it has no more is told, and is nowhere kept either.
        let all = u64::from(DIRS);
        let top = |usr: &Path| std::fs::read_dir(usr).unwrap().next().unwrap().unwrap().path();
        for is_moved in [true, false] {
            let report = world.unify(&REAL).unwrap();
            assert_eq!((report.done.linked, report.has_failures()), (all, false), "{report:?}");
            let usr = base.join("g1/usr");
            let expected = if is_moved {
                std::fs::rename(top(&usr), usr.join("elsewhere")).unwrap();
                (2 * all, all, 0)
            } else {
                std::fs::remove_dir_all(top(&usr)).unwrap();
                (all, all, all)
            };
            let undone = world.undo(&REAL, &Scope { run: report.run, paths: vec![] }).unwrap();
            let done = (undone.done.detached, undone.done.removed, skipped(&undone, "vanished"));
            assert_eq!(done, expected, "{undone:?}");
            assert!(!undone.has_failures(), "{undone:?}");
        }
        return print_peak();
    }
    let place = in_memory();
    let world = world_at(place.path(), &["d usr", "d usr"]);
    for guest in &world.guests {
        let dir = enter_deep(guest, LENGTH, DEPTH);
        (0..DIRS).for_each(|number| bury(&enter(&dir, number.to_string().as_bytes())));
    }
    let peak = peak_of(NAME, "LONG_IN", &world);
    println!("peak {} MiB", peak / 1024);
    // What is in the journal together may be 16 MiB of paths; all of them are 300 MB.
    assert!(peak * 1024 <= 100 << 20, "{peak} KiB");
}

#[test]
fn an_object_whose_paths_are_longer_than_a_journal_should_hold_stays_shared_and_is_named() {
    const DIRS: usize = 350;
    let place = in_memory();
    let world = world_at(place.path(), &["f usr/file *5000:1", "f usr/file *5000:1"]);
    let unified = world.unify(&REAL).unwrap();
    // 350 times 50 KB are more than 16 MiB.
    let dir = enter_deep(&world.guests[0], 250, 200);
    let usr = Dir::open_host(&world.guests[0].join("usr")).unwrap();
    for number in 0..DIRS {
        let dir = enter(&dir, number.to_string().as_bytes());
        REAL.link(At::new(&usr, b"file"), At::new(&dir, b"file")).unwrap();
    }
    let undone = world.undo(&REAL, &Scope::default()).unwrap();
    let done = (undone.done.detached, undone.done.removed, skipped(&undone, "out-of-reach"));
    assert_eq!(done, (1, 0, 1), "{undone:?}");
    assert!(!world.shares("usr/file"));
    assert_eq!(usr.stat(b"file").unwrap().nlink as usize, DIRS + 2);
    // So the run is not undone, however often one tries.
    for _ in 0..2 {
        let undone = world.undo(&REAL, &Scope { run: unified.run, paths: vec![] }).unwrap();
        assert_eq!(skipped(&undone, "out-of-reach"), 1, "{undone:?}");
    }
    let vunify =
        Command::new(env!("CARGO_BIN_EXE_vunify")).arg("--undo").args(&world.guests).output().unwrap();
    assert_eq!(vunify.status.code(), Some(3), "{vunify:?}");
}

#[test]
fn very_many_equal_files_of_one_guest_take_no_time() {
    let place = tempfile::tempdir().unwrap();
    let world = world_at(place.path(), &["d usr", "f usr/f0 \"x\"\n"]);
    let mtime = std::fs::metadata(world.guests[1].join("usr/f0")).unwrap().modified().unwrap();
    for n in 0..20_000 {
        let path = world.guests[0].join(format!("usr/f{n}"));
        std::fs::write(&path, "x").unwrap();
        std::fs::File::open(path).unwrap().set_modified(mtime).unwrap();
    }
    let began = Instant::now();
    let report = world.unify(&REAL).unwrap();
    assert_eq!(report.done.linked + report.done.admitted, 2, "{report:?}");
    assert!(world.ino(0, "usr/f1") != world.ino(0, "usr/f2"));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[test]
fn a_million_names_in_one_directory_take_little_memory() {
    const NAME: &str = "a_million_names_in_one_directory_take_little_memory";
    const INODES: usize = 1000;
    const LINKS: usize = 1000;
    if let Ok(base) = std::env::var("MILLION_IN") {
        let base = PathBuf::from(base);
        let world = World::around(base.clone(), vec![base.join("g0"), base.join("g1")]);
        let report = world.unify(&REAL).unwrap();
        assert_eq!((report.done.linked, report.has_failures()), (INODES as u64, false), "{report:?}");
        return print_peak();
    }
    let place = in_memory();
    let world = world_at(place.path(), &["d usr/many", "d usr/many"]);
    for (guest, links) in [(0, LINKS), (1, 1)] {
        let dir = Dir::open_host(&world.guests[guest].join("usr/many")).unwrap();
        for inode in 0..INODES {
            let first = format!("{inode:04}-0000");
            let file = REAL.create(At::new(&dir, first.as_bytes())).unwrap();
            REAL.write_at(&file, format!("content of {inode:04}").as_bytes(), 0).unwrap();
            let mtime = kernel::Time { seconds: 1_000_000_000, nanos: 0 };
            let kernel::Stat { uid, gid, .. } = file.stat().unwrap();
            let metadata = kernel::Metadata { mode: 0o644, uid, gid, mtime, xattrs: vec![] };
            REAL.set_metadata(&file, &metadata).unwrap();
            for link in 1..links {
                let name = format!("{inode:04}-{link:04}");
                REAL.link(At::new(&dir, first.as_bytes()), At::new(&dir, name.as_bytes())).unwrap();
            }
        }
    }
    let began = Instant::now();
    let peak = peak_of(NAME, "MILLION_IN", &world);
    println!("peak {} MiB, {:?}", peak / 1024, began.elapsed());
    // Two copies of a row, while what one directory holds is added to what the guest holds.
    assert!(peak * 1024 <= (INODES * LINKS * 150 + (32 << 20)) as u64, "{peak} KiB");
    assert!(world.shares("usr/many/0500-0000"));
}

// ---- kinds and content ----

#[test]
fn sparse_empty_and_huge_files_and_all_other_kinds() {
    fixtures::need!("sparse_empty_and_huge_files_and_all_other_kinds", require_root());
    let guest = r#"
f usr/empty
f usr/huge _64424509440
f usr/hole "head"+_700000+"tail"
f usr/big *20000000:7
p usr/fifo
s usr/socket
c usr/null 1,3
b usr/loop 7,0
l usr/link -> big
l usr/dangling -> ../../../../etc/passwd
"#;
    let (_place, world) = world(&[guest, guest]);
    let began = Instant::now();
    let report = there_and_back(&world, || {
        assert!(world.shares("usr/hole") && world.shares("usr/big"));
        for own in ["empty", "huge", "fifo", "socket", "null", "loop", "link", "dangling"] {
            assert!(!world.shares(&format!("usr/{own}")), "{own}");
        }
    });
    assert_eq!(skipped(&report, "sparse"), 2, "{report:?}");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    let hole = std::fs::metadata(world.guests[0].join("usr/hole")).unwrap();
    assert!(hole.blocks() * 512 < hole.size() / 2, "the hole was filled");
}

#[test]
fn reading_a_guests_holes_costs_no_more_than_its_space() {
    // A thousand GiB to read, had the guest its way, for no space at all.
    let guest: Vec<_> = (0..1000).map(|n| format!("f usr/f{n} _{}\n", (1 << 30) - n % 2)).collect();
    let (_place, world) = world(&[&guest.concat(), "d usr"]);
    let began = Instant::now();
    let report = world.unify(&REAL).unwrap();
    assert_eq!(skipped(&report, "sparse"), 1000, "{report:?}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[test]
fn attributes_come_back_as_they_were() {
    fixtures::need!("attributes_come_back_as_they_were", require_root());
    let capability = r"security.capability=\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let acl = r"system.posix_acl_access=\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\xe8\x03\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x04\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff";
    let guest = format!(
        "f usr/a 1644 5:6 @-1.000000001 *5000:1\nx usr/a \"{capability}\"\nx usr/a \"{acl}\"\nx usr/a user.empty=\nx usr/a \"user.\\xff\\x01=\\x00\\xff\"\nx usr/a trusted.t=1\n"
    );
    let (_place, world) = world(&[&guest, &guest]);
    there_and_back(&world, || assert!(world.shares("usr/a")));
}

// ---- who may read what ----

#[test]
fn an_ordinary_users_unreadable_files_end_nothing() {
    const NAME: &str = "an_ordinary_users_unreadable_files_end_nothing";
    const NOBODY: u32 = 65534;
    if let Ok(base) = std::env::var("UNREADABLE_IN") {
        // This thread alone, and those it starts, which are all that the library uses.
        rustix::thread::set_thread_gid(rustix::fs::Gid::from_raw(NOBODY)).unwrap();
        rustix::thread::set_thread_uid(rustix::fs::Uid::from_raw(NOBODY)).unwrap();
        let base = PathBuf::from(base);
        let world = World::around(base.clone(), vec![base.join("g0"), base.join("g1")]);
        let report = world.unify(&REAL).unwrap();
        assert!(world.shares("usr/open"), "{report:?}");
        // In each guest a directory, and a file that has company.
        assert_eq!((skipped(&report, "failed"), report.has_failures()), (4, true), "{report:?}");
        let undone = world.undo(&REAL, &Scope::default()).unwrap();
        assert_eq!(undone.done.detached, 2, "{undone:?}");
        return;
    }
    fixtures::need!(NAME, require_root());
    let guest = r"
d usr 755 65534:65534
d usr/locked 0 65534:65534
f usr/locked/a 644 65534:65534 *5000:1
f usr/secret 0 65534:65534 *5000:2
f usr/open 644 65534:65534 *5000:3
";
    let (place, world) = world(&[guest, guest]);
    for dir in [place.path(), &world.guests[0], &world.guests[1]] {
        std::os::unix::fs::chown(dir, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let before = world.snapshots();
    let output = rerun_test(NAME, &[("UNREADABLE_IN", world.base.to_str().unwrap())]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(world.differences(&before), [""; 0]);
}

// ---- mounts, links and subvolumes ----

/// Takes a mount away when the test ends, however it ends.
struct Mounted(PathBuf);

impl Mounted {
    fn new(args: &[&OsStr], at: &Path) -> Self {
        run("mount", &[args, &[at.as_os_str()]].concat());
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).ok();
    }
}

#[test]
fn what_is_mounted_in_a_guest_is_neither_crossed_nor_mistaken() {
    fixtures::need!("what_is_mounted_in_a_guest_is_neither_crossed_nor_mistaken", require_root());
    let guest = "f usr/share/a *5000:1\nf usr/b *5000:2\nf usr/c *5000:3\n";
    // Its inode has more names, so that the other guest's is the one to be replaced.
    let first = format!("{guest}h usr/d usr/b\n");
    let (_place, world) = world(&[&first, guest]);
    let (share, file) = (world.guests[1].join("usr/share"), world.guests[1].join("usr/b"));
    let tmpfs = Mounted::new(&["-t", "tmpfs", "tmpfs"].map(OsStr::new), &share);
    Manifest::parse("f a *5000:1\nf inner *5000:3\n").unwrap().write(&share).unwrap();
    let other = world.base.join("other");
    std::fs::write(&other, "mounted over a file").unwrap();
    let bind = Mounted::new(&[OsStr::new("--bind"), other.as_os_str()], &file);
    let before = Snapshot::take(&share).unwrap();
    let report = world.unify(&REAL).unwrap();
    assert!(!report.has_failures(), "{report:?}");
    assert!(world.shares("usr/c"));
    let compare = Compare { inodes: true, flags: true, links: true };
    assert_eq!(before.diff_with(&Snapshot::take(&share).unwrap(), compare), [""; 0]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mounted over a file");
    assert_eq!(std::fs::metadata(&other).unwrap().nlink(), 1);
    drop((tmpfs, bind));
    // The guest's own file, hidden meanwhile, is what was shared; a name that is a mount point stays.
    assert!(world.shares("usr/share/a") && !world.shares("usr/b"), "{report:?}");
    assert_eq!(skipped(&report, "out-of-reach"), 1, "{report:?}");
}

#[test]
fn a_guest_that_is_a_symbolic_link_is_the_guest_it_leads_to() {
    let guest = "d etc\nf usr/a *5000:1\n";
    let (_place, world) = world(&[guest, guest]);
    let link = world.base.join("link");
    symlink("g1", &link).unwrap();
    let vunify = |guests: &[&Path]| {
        Command::new(env!("CARGO_BIN_EXE_vunify")).arg("--noflags").args(guests).output().unwrap()
    };
    let twice = vunify(&[&world.guests[1], &link]);
    assert_eq!(twice.status.code(), Some(2), "{twice:?}");
    assert!(String::from_utf8_lossy(&twice.stderr).contains("named twice"), "{twice:?}");
    assert!(!world.store_path().exists());
    let done = vunify(&[&world.guests[0], &link]);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    assert!(world.shares("usr/a") && link.is_symlink());
}

#[test]
fn a_subvolume_inside_a_guest_is_left_alone_and_named() {
    const NAME: &str = "a_subvolume_inside_a_guest_is_left_alone_and_named";
    fixtures::need!(NAME, require_command("btrfs"));
    let disk = fixtures::need!(NAME, LoopFs::btrfs(128 << 20));
    let world = world_at(disk.path(), &["d usr", "d usr"]);
    let sub = world.guests[1].join("usr/sub");
    run("btrfs", &["subvolume".as_ref(), "create".as_ref(), sub.as_os_str()]);
    // Inode numbers begin anew in a subvolume: those of the two here are the same as of files outside.
    let inside: Vec<_> = (0..50).map(|n| format!("f usr/sub/f{n} *5000:{n}\n")).collect();
    let outside: Vec<_> = (0..50).map(|n| format!("f usr/f{n} *5000:{}\n", n + 100)).collect();
    let guest = Manifest::parse(&(inside.concat() + &outside.concat())).unwrap();
    world.guests.iter().for_each(|root| guest.write(root).unwrap());
    let numbers = |dir: &Path| -> std::collections::BTreeSet<u64> {
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap().ino()).collect()
    };
    let elsewhere = numbers(&world.guests[0].join("usr/sub"));
    assert!(!numbers(&sub).is_disjoint(&elsewhere), "no number is there twice: the test shows nothing");
    let compare = Compare { inodes: true, flags: true, links: true };
    let before = Snapshot::take(&sub).unwrap();
    let report = there_and_back(&world, || {
        assert!(world.shares("usr/f0") && !world.shares("usr/sub/f0"));
        assert_eq!(before.diff_with(&Snapshot::take(&sub).unwrap(), compare), [""; 0]);
    });
    assert_eq!((report.done.linked, skipped(&report, "out-of-reach")), (50, 1), "{report:?}");
    assert_eq!(before.diff_with(&Snapshot::take(&sub).unwrap(), compare), [""; 0]);
}

// ---- chattr ----

/// Files with one flag each in the second guest are left alone; one without is shared.
fn flags_stay(disk: &LoopFs, flags: &str) {
    let guest: Vec<_> = flags.chars().map(|flag| format!("f usr/{flag} *5000:1{}\n", flag as u32)).collect();
    let empty: Vec<_> = flags.chars().map(|flag| format!("f usr/{flag}\n")).collect();
    let guest = guest.concat() + "f usr/none *5000:1\n";
    // No-COW can only be set while a file is empty.
    let world = world_at(disk.path(), &[&guest, &empty.concat()]);
    let chattr = |flag: char| {
        run(
            "chattr",
            &[format!("+{flag}").as_ref(), world.guests[1].join(format!("usr/{flag}")).as_os_str()],
        );
    };
    flags.chars().filter(|&flag| flag == 'C').for_each(chattr);
    for flag in flags.chars() {
        let (from, to) =
            (world.guests[0].join(format!("usr/{flag}")), world.guests[1].join(format!("usr/{flag}")));
        let file = std::fs::File::options().write(true).open(&to).unwrap();
        std::io::copy(&mut std::fs::File::open(&from).unwrap(), &mut &file).unwrap();
        file.set_modified(std::fs::metadata(&from).unwrap().modified().unwrap()).unwrap();
    }
    Manifest::parse("f usr/none *5000:1\n").unwrap().write(&world.guests[1]).unwrap();
    flags.chars().filter(|&flag| flag != 'C').for_each(chattr);
    let before = world.snapshots();
    let report = world.unify(&REAL).unwrap();
    assert_eq!(skipped(&report, "marked"), flags.len() as u64, "{:?}: {report:?}", disk.kind());
    assert!(!report.has_failures() && world.shares("usr/none"), "{report:?}");
    for (before, guest) in before.iter().zip(&world.guests) {
        let compare = Compare { flags: true, ..Compare::default() };
        assert_eq!(before.diff_with(&Snapshot::take(guest).unwrap(), compare), [""; 0]);
    }
    for flag in flags.chars() {
        assert!(!world.shares(&format!("usr/{flag}")), "{flag}");
    }
}

#[test]
fn inode_flags_are_not_spread() {
    const NAME: &str = "inode_flags_are_not_spread";
    let ext4 = fixtures::need!(NAME, LoopFs::ext4(32 << 20));
    flags_stay(&ext4, "iadSAsu");
    let btrfs = fixtures::need!(NAME, LoopFs::btrfs(128 << 20));
    flags_stay(&btrfs, "iadSAC");
    let xfs = fixtures::need!(NAME, LoopFs::xfs(320 << 20));
    flags_stay(&xfs, "iadSA");
}

/// A guest's own file with the tag of sealed files is told apart: where that is enforced, the guest can't change it.
#[test]
fn a_stray_tag_is_told() {
    const NAME: &str = "a_stray_tag_is_told";
    let disk = fixtures::need!(NAME, LoopFs::ext4(32 << 20));
    let guest = "f usr/tagged *5000:1\nf usr/half *5000:2\nf usr/none *5000:3\n";
    let world = world_at(disk.path(), &[guest, guest]);
    run("chattr", &["+AS".as_ref(), world.guests[1].join("usr/tagged").as_os_str()]);
    run("chattr", &["+A".as_ref(), world.guests[1].join("usr/half").as_os_str()]);
    let report = world.unify(&REAL).unwrap();
    assert_eq!((skipped(&report, "stray"), skipped(&report, "marked")), (1, 1), "{report:?}");
    assert!(!report.has_failures() && world.shares("usr/none") && !world.shares("usr/tagged"), "{report:?}");
    let (store, journal) = world.open(&REAL).unwrap();
    assert_eq!(unify::maintain::status(&store, Some(&journal)).unwrap().strays, 1);
    run("chattr", &["-AS".as_ref(), world.guests[1].join("usr/tagged").as_os_str()]);
}

#[test]
fn projects_keep_their_files() {
    const NAME: &str = "projects_keep_their_files";
    // xfs keeps project numbers whether or not the kernel has quotas.
    let disk = fixtures::need!(NAME, LoopFs::xfs(320 << 20));
    let guest = "f usr/file *5000:1\nf usr/dir/file *5000:2\nf usr/none *5000:3\n";
    let world = world_at(disk.path(), &[guest, guest]);
    let chattr = |args: &[&str], path: &str| {
        let path = world.guests[1].join(path);
        let args: Vec<&OsStr> = args.iter().map(OsStr::new).chain([path.as_os_str()]).collect();
        run("chattr", &args);
    };
    chattr(&["-p", "7"], "usr/file");
    // The directory takes only what is its project's, and its file is not.
    chattr(&["-p", "7"], "usr/dir");
    chattr(&["+P"], "usr/dir");
    let before = world.snapshots();
    let report = world.unify(&REAL).unwrap();
    assert_eq!((skipped(&report, "marked"), report.has_failures()), (1, false), "{report:?}");
    assert!(world.shares("usr/none") && !world.shares("usr/file"), "{report:?}");
    assert_eq!(world.shares("usr/dir/file"), skipped(&report, "out-of-reach") == 0, "{report:?}");
    assert_eq!(world.differences(&before), [""; 0]);
    assert!(world.is_tidy());
}
