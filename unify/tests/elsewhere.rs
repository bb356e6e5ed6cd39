//! What went wrong in other tools that make identical files one: each failure is a test here, which fails
//! if the protection against it is taken out.
#![allow(clippy::unwrap_used)] // a fixture that fails is a test that fails
#![allow(clippy::disallowed_methods)] // guests change their own files without our door

mod common;

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, Once};
use std::time::{Duration, SystemTime};

use common::{REAL, World};
use fixtures::loopfs::{FsKind, Options};
use fixtures::{Call, Fault, Faulty, LoopFs, Manifest, Op, Script, Snapshot, When, require_root, rerun_test};
use kernel::{At, Dir, Errno, Fs};
use store::journal::RunEnd;
use unify::policy::Policy;
use unify::{Report, Scope, State};

/// Guests with these trees, in a directory that goes with the first of the pair.
fn world(guests: &[&str]) -> (tempfile::TempDir, World) {
    let place = tempfile::tempdir().unwrap();
    let manifests: Vec<_> = guests.iter().map(|guest| Manifest::parse(guest).unwrap()).collect();
    let world = World::new(place.path(), &manifests);
    (place, world)
}

/// Two guests with the same tree.
fn twins(guest: &str) -> (tempfile::TempDir, World) {
    world(&[guest, guest])
}

/// Runs `act` once, beside the first call of a kind whose last name is `name`.
fn once<'a>(op: Op, name: &'static str, when: When, act: impl Fn() + Send + Sync + 'a) -> Script<'a> {
    let done = Once::new();
    let hook = move |_, call: &Call| {
        if call.names.last().is_some_and(|last| last == name.as_bytes()) {
            done.call_once(&act);
        }
    };
    Script::new().every_of(op, Fault::Hook(when, Box::new(hook)))
}

/// The guest of two whose file becomes the object, and the one whose file is replaced: the inode with the
/// lower number stays.
fn roles(world: &World, path: &str) -> (PathBuf, PathBuf) {
    let of = |guest: usize| world.guests[guest].join(path);
    if world.ino(0, path) < world.ino(1, path) { (of(0), of(1)) } else { (of(1), of(0)) }
}

/// Runs `act` once when everything is read and planned and nothing is moved yet: as the first directory for
/// parked names is made.
fn once_planned<'a>(act: impl Fn() + Send + Sync + 'a) -> Script<'a> {
    once(Op::MakeDir, "0", When::After, act)
}

/// A new file takes the place of an old one, as package managers do it.
fn replace(path: &Path, content: &str) {
    let draft = path.with_extension("new");
    std::fs::write(&draft, content).unwrap();
    std::fs::rename(draft, path).unwrap();
}

/// Changes a file in place and restores its modification time.
fn edit_unseen(path: &Path, content: &str) {
    let before = std::fs::metadata(path).unwrap();
    let mut file = std::fs::File::options().write(true).open(path).unwrap();
    file.write_all(content.as_bytes()).unwrap();
    file.set_modified(before.modified().unwrap()).unwrap();
    assert_eq!(std::fs::metadata(path).unwrap().len(), before.len(), "the edit is to keep the size");
}

fn text(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// Longer than a change time stays ambiguous.
fn let_time_pass() {
    std::thread::sleep(Duration::from_millis(60));
}

fn vunify(guests: &[PathBuf]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_vunify")).arg("--noflags").args(guests).output().unwrap()
}

// ---- 1 ----

const CAPABILITY: &str =
    r"security.capability=\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
const ACL: &str = r"system.posix_acl_access=\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\xe8\x03\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x04\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff";

#[test]
fn setuid_owners_capabilities_and_acls_do_not_spread() {
    const NAMES: [&str; 10] =
        ["setuid", "mode", "owner", "group", "second", "nanosecond", "capability", "acl", "user", "value"];
    fixtures::need!("setuid_owners_capabilities_and_acls_do_not_spread", require_root());
    let plain = NAMES.map(|name| format!("f usr/{name} 755 0:0 @1000000000.5 \"same\"\n")).concat();
    let same = format!(
        "f usr/same 4750 7:8 @1000000000.5 \"same\"\nx usr/same \"{CAPABILITY}\"\nx usr/same \"{ACL}\"\nx usr/same user.a=b\n"
    );
    let other = format!(
        r#"
f usr/setuid 4755 0:0 @1000000000.5 "same"
f usr/mode 700 0:0 @1000000000.5 "same"
f usr/owner 755 1:0 @1000000000.5 "same"
f usr/group 755 0:1 @1000000000.5 "same"
f usr/second 755 0:0 @1000000001.5 "same"
f usr/nanosecond 755 0:0 @1000000000.500000001 "same"
f usr/capability 755 0:0 @1000000000.5 "same"
x usr/capability "{CAPABILITY}"
f usr/acl 744 0:0 @1000000000.5 "same"
x usr/acl "{ACL}"
f usr/user 755 0:0 @1000000000.5 "same"
x usr/user user.a=b
f usr/value 755 0:0 @1000000000.5 "same"
x usr/value user.a=2
"#
    );
    let plain = plain.replace("f usr/acl 755", "f usr/acl 744") + "x usr/value user.a=1\n";
    let (_place, mut world) = world(&[&(plain + &same), &(other + &same)]);
    let mut policy = Policy::default();
    policy.add("version = 1\n[options]\nsetid = true\n", Path::new("test")).unwrap();
    world.policy = policy;
    let before = world.snapshots();
    let report = world.unify(&REAL).unwrap();
    assert_eq!(world.differences(&before), [""; 0]);
    for name in NAMES {
        assert!(!world.shares(&format!("usr/{name}")), "{name}");
    }
    assert!(world.shares("usr/same"), "{report:?}");
}

// ---- 2 ----

#[test]
fn a_kill_while_replacing_loses_no_name() {
    const NAME: &str = "a_kill_while_replacing_loses_no_name";
    if let Ok(base) = std::env::var("KILL_IN") {
        let base = PathBuf::from(base);
        let world = World::around(base.clone(), vec![base.join("g0"), base.join("g1")]);
        let nth = std::env::var("KILL_AT").unwrap().parse().unwrap();
        let when = if std::env::var("KILL_WHEN").unwrap() == "before" { When::Before } else { When::After };
        world.unify(&Faulty::new(&REAL, Script::new().nth_of(Op::Exchange, nth, Fault::Kill(when)))).unwrap();
        return;
    }
    for (nth, when) in [("1", "before"), ("1", "after"), ("2", "after"), ("3", "after")] {
        let (place, world) = twins("f usr/a *5000:1\nf usr/b *5000:2\nh usr/c usr/b\n");
        let before = world.snapshots();
        let base = place.path().canonicalize().unwrap();
        let vars = [("KILL_IN", base.to_str().unwrap()), ("KILL_AT", nth), ("KILL_WHEN", when)];
        let output = rerun_test(NAME, &vars);
        assert!(!output.status.success(), "it was not killed: {output:?}");
        // Before anybody has cleaned up. Names that were one inode may be two for now, of the same content.
        for (guest, before) in world.guests.iter().zip(&before) {
            for (path, node) in &Snapshot::take(guest).unwrap().nodes {
                assert_eq!(before.get(path).unwrap().digest, node.digest);
            }
        }
        world.recover(&REAL).unwrap();
        assert_eq!(world.differences(&before), [""; 0]);
        assert!(world.is_tidy());
    }
}

#[test]
fn the_link_ceiling_costs_no_name() {
    const NAME: &str = "the_link_ceiling_costs_no_name";
    // ext4 takes 65,000 links of an inode; the store has one, and a guest's 64,998 make 64,999.
    const LINKS: usize = 64_998;
    let disk = fixtures::need!(NAME, LoopFs::ext4(64 << 20));
    let one = Manifest::parse("f usr/file 644 @1000000000.5 *9000:1").unwrap();
    let mut world = World::new(disk.path(), &vec![one; 4]);
    let many = world.guests[0].join("usr");
    for n in 1..LINKS {
        std::fs::hard_link(many.join("file"), many.join(format!("l{n}"))).unwrap();
    }
    let all = std::mem::take(&mut world.guests);
    let before: Vec<Snapshot> = all.iter().map(|guest| Snapshot::take(guest).unwrap()).collect();
    // The first two share; the third and fourth meet the ceiling.
    world.guests = all[..2].to_vec();
    world.unify(&REAL).unwrap();
    world.guests.clone_from(&all);
    let report = world.unify(&REAL).unwrap();
    assert_eq!((report.done.not_done, report.has_failures()), (0, false), "{report:?}");
    assert_eq!(world.ino(0, "usr/file"), world.ino(1, "usr/file"));
    assert_eq!(world.ino(2, "usr/file"), world.ino(3, "usr/file"));
    assert_ne!(world.ino(0, "usr/file"), world.ino(2, "usr/file"));
    assert_eq!(world.differences(&before), [""; 0]);
    assert!(world.is_tidy());
    world.undo(&REAL, &Scope::default()).unwrap();
    assert_eq!(world.differences(&before), [""; 0]);
}

// ---- 3 ----

#[test]
fn an_edit_in_place_with_its_time_restored_is_noticed_between_runs() {
    // The first is alone with its content, so that its identity is remembered.
    let (_place, world) = world(&["f usr/a \"one\"\n", "f usr/a \"two\"\n", "d usr\n"]);
    let_time_pass();
    world.unify(&REAL).unwrap();
    let_time_pass();
    let known = world.unify(&REAL).unwrap();
    assert_eq!(known.read.0, 0, "identities were not remembered: the test shows nothing");
    edit_unseen(&world.guests[0].join("usr/a"), "ONE");
    Manifest::parse("f usr/a \"one\"\n").unwrap().write(&world.guests[2]).unwrap();
    let report = world.unify(&REAL).unwrap();
    assert_eq!((report.done.linked, report.done.admitted), (0, 0), "{report:?}");
    assert_eq!(text(world.guests[0].join("usr/a")), "ONE");
    assert_eq!(text(world.guests[2].join("usr/a")), "one");
}

#[test]
fn an_edit_in_place_with_its_time_restored_is_noticed_during_a_run() {
    let (_place, world) = twins("f usr/a \"one\"\n");
    let path = world.guests[1].join("usr/a");
    let faulty = Faulty::new(&REAL, once_planned(|| edit_unseen(&path, "ONE")));
    let report = world.unify(&faulty).unwrap();
    assert_eq!(report.skipped.get("changed"), Some(&1), "{report:?}");
    assert_eq!((text(world.guests[0].join("usr/a")), text(&path)), ("one".into(), "ONE".into()));
    assert!(!world.shares("usr/a"));
}

// ---- 4 ----

#[test]
fn no_temporary_name_is_ever_made_in_a_guest() {
    // A user's own files, named as other tools name their temporary ones and as parked names are.
    let (_place, world) = twins(
        r#"
f usr/a *5000:1
h usr/sub/b usr/a
f usr/a.tmp "mine"
f usr/a~ "mine"
f usr/.a.jdupes "mine"
f usr/0.0 "mine"
f usr/0.1 "mine"
"#,
    );
    let before = world.snapshots();
    let inside: Vec<u64> = before
        .iter()
        .flat_map(|guest| guest.nodes.values().filter(|node| node.kind == kernel::Kind::Directory))
        .map(|node| node.ino)
        .collect();
    let faulty = Faulty::new(&REAL, Script::new());
    let report = world.unify(&faulty).unwrap();
    assert_eq!(report.done.linked, 6, "{report:?}");
    world.undo(&faulty, &Scope::default()).unwrap();
    assert_eq!(world.differences(&before), [""; 0]);
    let mut exchanged = 0;
    for call in faulty.calls() {
        let in_guest: Vec<_> =
            call.names.iter().zip(&call.dirs).filter(|(_, dir)| inside.contains(dir)).collect();
        match (call.op, in_guest.as_slice()) {
            (_, []) => {}
            (Op::Exchange, [(name, _)]) => {
                let is_there =
                    before.iter().flat_map(|guest| guest.nodes.keys()).any(|path| path.ends_with(name));
                assert!(is_there, "{call}");
                exchanged += 1;
            }
            _ => panic!("{call} in a guest"),
        }
    }
    assert!(exchanged >= 7, "{exchanged}");
}

// ---- 5 ----

/// A file outside of every guest that looks exactly as the guests' own.
fn outside(world: &World) -> (PathBuf, Snapshot) {
    let outside = world.base.join("outside");
    Manifest::parse("f a 644 @1000000000 *5000:1\n").unwrap().write(&outside).unwrap();
    let snapshot = Snapshot::take(&outside).unwrap();
    (outside, snapshot)
}

fn untouched(outside: &Path, before: &Snapshot) {
    let compare = fixtures::Compare { inodes: true, flags: true, links: true };
    assert_eq!(before.diff_with(&Snapshot::take(outside).unwrap(), compare), [""; 0]);
}

const SWAPPED: &str = "d usr/dir 755\nf usr/dir/a 644 @1000000000 *5000:1\n";

#[test]
fn a_file_swapped_for_a_symlink_is_not_followed() {
    type Moment = fn(Box<dyn Fn() + Send + Sync>) -> Script<'static>;
    let moments: [Moment; 3] = [
        |act| once_planned(act),
        |act| once(Op::Link, "0.1", When::Before, act),
        |act| once(Op::Exchange, "a", When::Before, act),
    ];
    for moment in moments {
        let (_place, world) = twins(SWAPPED);
        let (outside, before) = outside(&world);
        let (name, target) = (roles(&world, "usr/dir/a").1, outside.join("a"));
        let swap = {
            let (name, target) = (name.clone(), target.clone());
            move || {
                std::fs::remove_file(&name).unwrap();
                symlink(&target, &name).unwrap();
            }
        };
        let faulty = Faulty::new(&REAL, moment(Box::new(swap)));
        let report = world.unify(&faulty).unwrap();
        assert_eq!(std::fs::read_link(&name).unwrap(), target, "{report:?}");
        assert_eq!((report.done.linked, report.has_failures()), (0, false), "{report:?}");
        untouched(&outside, &before);
        assert!(world.is_tidy());
    }
}

#[test]
fn a_directory_swapped_for_a_symlink_is_not_followed() {
    let (_place, world) = twins(SWAPPED);
    let (outside, before) = outside(&world);
    let dir = world.guests[1].join("usr/dir");
    let faulty = Faulty::new(
        &REAL,
        once_planned(|| {
            std::fs::rename(&dir, dir.with_extension("away")).unwrap();
            symlink(&outside, &dir).unwrap();
        }),
    );
    let report = world.unify(&faulty).unwrap();
    assert_eq!(std::fs::read_link(&dir).unwrap(), outside);
    assert!(!report.has_failures(), "{report:?}");
    untouched(&outside, &before);
    // While it is swapped, nothing below is read either.
    world.unify(&REAL).unwrap();
    untouched(&outside, &before);
}

// ---- 6 ----

#[test]
fn a_file_replaced_after_hashing_keeps_its_new_content() {
    type Moment = fn(Box<dyn Fn() + Send + Sync>) -> Script<'static>;
    let moments: [Moment; 5] = [
        |act| once_planned(act),
        |act| once(Op::Link, "0.1", When::After, act),
        |act| once(Op::Exchange, "a", When::Before, act),
        |act| once(Op::Exchange, "a", When::After, act),
        |act| once(Op::Unlink, "0.1", When::Before, act),
    ];
    for moment in moments {
        let (_place, world) = twins("f usr/a *5000:1\n");
        let (stays, name) = roles(&world, "usr/a");
        let upgrade = {
            let name = name.clone();
            move || replace(&name, "upgraded")
        };
        let report = world.unify(&Faulty::new(&REAL, moment(Box::new(upgrade)))).unwrap();
        assert!(!report.has_failures(), "{report:?}");
        assert_eq!(String::from_utf8_lossy(&std::fs::read(&name).unwrap()), "upgraded", "{report:?}");
        assert_eq!(std::fs::metadata(stays).unwrap().len(), 5000);
        assert!(world.is_tidy());
    }
}

#[test]
fn a_file_replaced_again_and_again_during_the_exchange_keeps_its_latest_content() {
    let (_place, world) = twins("f usr/a *5000:1\n");
    let name = roles(&world, "usr/a").1;
    let count = std::sync::atomic::AtomicU32::new(0);
    let upgrade = |_: usize, _: &Call| {
        let n = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        if n < 5 {
            replace(&name, &format!("upgrade {n}"));
        }
    };
    let script = Script::new().every_of(Op::Exchange, Fault::Hook(When::Before, Box::new(upgrade)));
    let faulty = Faulty::new(&REAL, script);
    let report = world.unify(&faulty).unwrap();
    assert_eq!(text(&name), "upgrade 4", "{report:?}");
    assert_eq!(report.skipped.get("changed"), Some(&1), "{report:?}");
    drop(faulty);
    assert!(world.is_tidy());
}

// ---- 7 ----

#[test]
fn empty_files_and_two_files_of_one_guest_stay_apart() {
    let (_place, world) = twins(
        "f usr/empty1\nf usr/empty2\nf usr/one *5000:1\nf usr/two *5000:1\nf usr/three *5000:2\nh usr/four usr/three\n",
    );
    let before = world.snapshots();
    let report = world.unify(&REAL).unwrap();
    assert!(!world.shares("usr/empty1") && !world.shares("usr/empty2"));
    assert_ne!(world.ino(0, "usr/empty1"), world.ino(0, "usr/empty2"));
    // Each of one guest shares with one of the other.
    let pair = |guest| BTreeSet::from(["usr/one", "usr/two"].map(|name| world.ino(guest, name)));
    assert_eq!((pair(0).len(), pair(0)), (2, pair(1)), "{report:?}");
    assert!(world.shares("usr/four"), "{report:?}");
    assert_eq!(world.differences(&before), [""; 0]);
}

#[test]
fn a_group_of_links_moves_as_a_whole_or_not_at_all() {
    let guest = "f usr/a *5000:1\nh usr/b usr/a\nf usr/c *5000:2\nh home/c usr/c\nf usr/d *5000:3\n";
    let (_place, world) = twins(guest);
    // A name that no guest at hand has.
    std::fs::hard_link(world.guests[1].join("usr/d"), world.base.join("elsewhere")).unwrap();
    let before = world.snapshots();
    // The exchange of the second name fails: the first is taken back.
    let fail = Script::new().nth_of(Op::Exchange, 2, Fault::Fail(Errno::IO));
    let report = world.unify(&Faulty::new(&REAL, fail)).unwrap();
    assert!(report.has_failures());
    assert_eq!(world.differences(&before), [""; 0]);
    assert!(!world.shares("usr/a") && !world.shares("usr/b"));
    world.unify(&REAL).unwrap();
    assert_eq!(world.differences(&before), [""; 0]);
    assert!(world.shares("usr/a") && world.shares("usr/b"));
    assert!(!world.shares("usr/c") && !world.shares("usr/d"), "home/c and the outer name must stay");
}

// ---- 8 ----

#[test]
fn a_corrupt_object_does_not_spread() {
    let file = "f usr/a 644 @1000000000 \"good content\"\n";
    let (_place, mut world) = world(&[file, file, file]);
    let third = world.guests.pop().unwrap();
    world.unify(&REAL).unwrap();
    let object = world.guests[0].join("usr/a");
    edit_unseen(&object, "evil content");
    world.guests.push(third.clone());
    let report = world.unify(&REAL).unwrap();
    assert_eq!(text(third.join("usr/a")), "good content", "{report:?}");
    assert_eq!((report.corrupt.len(), report.has_failures()), (1, true), "{report:?}");
    let aside: Vec<_> = std::fs::read_dir(world.store_path().join("quarantine")).unwrap().collect();
    assert_eq!(aside.len(), 1);
    // A fourth guest with good content now shares with the third, not with the corrupt two.
    let fourth = world.base.join("g3");
    Manifest::parse(file).unwrap().write(&fourth).unwrap();
    world.guests.push(fourth.clone());
    let report = world.unify(&REAL).unwrap();
    assert_eq!((report.done.admitted, report.done.linked), (1, 1), "{report:?}");
    assert_eq!(text(fourth.join("usr/a")), "good content");
}

// ---- 9 ----

#[test]
fn bytes_written_between_hashing_and_admission_are_not_planted() {
    // The writer has the file open only while the run is in that moment.
    let (_place, world) = twins("f usr/a \"good content\"\n");
    let path = roles(&world, "usr/a").0;
    let write = || {
        // An open for writing would wait for the lease; asked not to wait, it still breaks it.
        let opened = std::fs::File::options().write(true).custom_flags(0o4000).open(&path);
        assert_eq!(opened.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    };
    let done = Once::new();
    let hook = |_: usize, _: &Call| done.call_once(write);
    let script = Script::new().every_of(Op::LinkOpen, Fault::Hook(When::Before, Box::new(hook)));
    let report = world.unify(&Faulty::new(&REAL, script)).unwrap();
    assert!(done.is_completed());
    // The other file was linked to it meanwhile, and is given back too.
    assert_eq!(report.skipped.get("busy"), Some(&2), "{report:?}");
    assert!(!world.shares("usr/a"), "{report:?}");

    let (_place, world) = twins("f usr/a \"good content\"\n");
    let path = world.guests[0].join("usr/a");
    let report =
        world.unify(&Faulty::new(&REAL, once_planned(|| edit_unseen(&path, "evil content")))).unwrap();
    assert!(!world.shares("usr/a"), "{report:?}");
    assert_eq!(text(world.guests[1].join("usr/a")), "good content");
}

/// A lease keeps writers away, but not `chmod`: modes, owners and attributes that change between the look at
/// a file and its move must be neither lost nor spread.
#[test]
fn metadata_changed_in_the_midst_is_neither_lost_nor_spread() {
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    for op in [Op::Link, Op::Exchange, Op::LinkOpen] {
        let (_place, world) = twins("f usr/a 755 \"content\"\n");
        let (kept, replaced) = roles(&world, "usr/a");
        let path = if op == Op::LinkOpen { &kept } else { &replaced };
        let done = Once::new();
        let change = || std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o4711)).unwrap();
        let hook = |_: usize, _: &Call| done.call_once(change);
        let script = Script::new().every_of(op, Fault::Hook(When::Before, Box::new(hook)));
        let report = world.unify(&Faulty::new(&REAL, script)).unwrap();
        assert!(done.is_completed());
        let modes = [&kept, &replaced].map(|path| mode(path));
        let wanted = if op == Op::LinkOpen { [0o4711, 0o755] } else { [0o755, 0o4711] };
        assert_eq!(modes, wanted, "{op:?}: {report:?}");
        assert!(!world.shares("usr/a"), "{op:?}: {report:?}");
        assert!(world.is_tidy());
    }
}

#[test]
fn a_file_held_open_for_writing_is_left_alone() {
    let (_place, world) = twins("f usr/a \"good content\"\n");
    let file = std::fs::File::options().write(true).open(world.guests[0].join("usr/a")).unwrap();
    let report = world.unify(&REAL).unwrap();
    assert_eq!((report.skipped.get("busy"), report.done.linked), (Some(&1), 0), "{report:?}");
    file.write_all_at(b"evil", 0).unwrap();
    drop(file);
    world.unify(&REAL).unwrap();
    assert_eq!(text(world.guests[1].join("usr/a")), "good content");
}

// ---- 10 ----

#[test]
fn objects_are_spread_over_directories() {
    let tree: Vec<_> = (0..600).map(|n| format!("f usr/f{n} \"content {n}\"\n")).collect();
    let (_place, world) = twins(&tree.concat());
    let report = world.unify(&REAL).unwrap();
    assert_eq!(report.objects, 600);
    let mut sizes = Vec::new();
    for shard in std::fs::read_dir(world.store_path().join("objects")).unwrap() {
        let shard = shard.unwrap();
        assert!(shard.file_type().unwrap().is_dir());
        let name = shard.file_name().into_string().unwrap();
        let objects = std::fs::read_dir(shard.path()).unwrap();
        let objects = objects.inspect(|object| {
            let object = object.as_ref().unwrap().file_name().into_string().unwrap();
            assert!(object.starts_with(&name), "{object} in {name}");
        });
        sizes.push(objects.count());
    }
    assert_eq!((sizes.len(), sizes.iter().sum::<usize>()), (256, 600));
    assert!(sizes.iter().all(|&size| size < 20), "{sizes:?}");
}

// ---- 11 ----

#[test]
fn two_runs_at_once_do_not_meet() {
    let (_place, world) = twins("f usr/a *5000:1\nd etc\n");
    let before = world.snapshots();
    let refused = Mutex::new(None);
    let faulty = Faulty::new(
        &REAL,
        once_planned(|| {
            let second = world.unify(&REAL).unwrap_err();
            *refused.lock().unwrap() = Some((second.to_string(), vunify(&world.guests)));
        }),
    );
    let report = world.unify(&faulty).unwrap();
    assert_eq!(report.done.linked, 1);
    let (message, output) = refused.lock().unwrap().take().unwrap();
    let holder = format!("process {}", std::process::id());
    assert!(message.contains("in use by") && message.contains(&holder), "{message}");
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains(&holder), "{output:?}");
    assert_eq!(world.differences(&before), [""; 0]);
}

// ---- 12 ----

#[test]
fn a_failure_shows_in_the_exit_code_and_ends_nothing() {
    const NAME: &str = "a_failure_shows_in_the_exit_code_and_ends_nothing";
    let disk = fixtures::need!(NAME, LoopFs::ext4(32 << 20));
    let guest = Manifest::parse("f usr/bad/a *5000:1\nf usr/good/b *5000:2\nd etc\n").unwrap();
    let world = World::new(disk.path(), &[guest.clone(), guest]);
    let bad = world.guests[1].join("usr/bad");
    let chattr = |flag| assert!(Command::new("chattr").arg(flag).arg(&bad).status().unwrap().success());
    chattr("+i");
    let output = vunify(&world.guests);
    chattr("-i");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(stderr.contains("g1/usr/bad/a") && stderr.contains("not permitted"), "{stderr}");
    assert!(!world.shares("usr/bad/a") && world.shares("usr/good/b"));
    let output = vunify(&world.guests);
    assert_eq!((output.status.code(), world.shares("usr/bad/a")), (Some(0), true), "{output:?}");
}

#[test]
fn each_failed_call_is_counted() {
    for op in [Op::LinkOpen, Op::Link, Op::Exchange] {
        let (_place, world) = twins("f usr/a *5000:1\nf usr/b *5000:2\n");
        let before = world.snapshots();
        let script = Script::new().nth_of(op, 1, Fault::Fail(Errno::IO));
        let report = world.unify(&Faulty::new(&REAL, script)).unwrap();
        assert!(report.has_failures(), "{op:?}: {report:?}");
        assert_eq!((report.end, report.skipped["failed"]), (Some(RunEnd::Partial), 1), "{op:?}: {report:?}");
        assert_eq!(world.differences(&before), [""; 0]);
        assert!(world.is_tidy());
    }
}

#[test]
fn what_vanishes_meanwhile_is_counted_and_is_no_failure() {
    let (_place, world) = twins("f usr/a *5000:1\nf usr/b/c *5000:2\nf usr/d *5000:3\n");
    let usr = world.guests[1].join("usr");
    let vanish = || {
        std::fs::remove_file(usr.join("a")).unwrap();
        std::fs::remove_dir_all(usr.join("b")).unwrap();
    };
    let report = world.unify(&Faulty::new(&REAL, once_planned(vanish))).unwrap();
    assert_eq!(report.skipped.get("vanished"), Some(&2), "{report:?}");
    assert!(!report.has_failures());
    assert!(world.shares("usr/d"));
    assert!(!usr.join("a").exists() && !usr.join("b").exists());
}

// ---- 16 ----

#[test]
fn every_file_has_a_reason() {
    let tree = r#"
f usr/shared *5000:1
f usr/alone "g"
f usr/empty
f usr/setuid 4755 *5000:2
l usr/link -> shared
f etc/own "mine"
f home/user/data *5000:3
f usr/busy *5000:4
"#;
    let (_place, world) = world(&[tree, &tree.replace("\"g\"", "\"h\"")]);
    let ask = |world: &World, path: &str| {
        let path = world.guests[0].join(path);
        let answer = world.with(&REAL, |session, store, _| session.explain(Some(store), &path)).unwrap();
        (answer.state, answer.why)
    };
    let (state, why) = ask(&world, "usr/shared");
    assert_eq!(state, State::Candidate);
    assert!(!why.is_empty(), "{why}");
    world.unify(&REAL).unwrap();
    let busy = std::fs::File::options().append(true).open(world.guests[0].join("usr/alone")).unwrap();
    let (state, why) = ask(&world, "usr/shared");
    assert!(matches!(state, State::Shared { names: 2, .. }), "{state:?} {why}");
    for (path, expected) in [
        ("usr/empty", "empty"),
        ("usr/setuid", "setuid"),
        ("usr/link", "not a regular file"),
        ("etc/own", "config"),
        ("home/user/data", "outside the system's trees"),
    ] {
        let (state, why) = ask(&world, path);
        assert_eq!(state, State::Private, "{path}: {why}");
        assert!(why.contains(expected), "{path}: {why}");
    }
    let (state, why) = ask(&world, "usr/alone");
    assert!(state == State::Candidate && why.contains("open for writing"), "{state:?} {why}");
    drop(busy);
    let (_, why) = ask(&world, "usr/alone");
    assert!(why.contains("differ") || why.contains("no other guest"), "{why}");
}

#[test]
fn times_of_directories_show_nothing() {
    let (_place, world) = twins("f usr/a *5000:1\n");
    let usr = world.guests[1].join("usr");
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    std::fs::File::open(&usr).unwrap().set_modified(old).unwrap();
    world.unify(&REAL).unwrap();
    assert_eq!(std::fs::metadata(&usr).unwrap().modified().unwrap(), old);
}

#[test]
fn whole_seconds_hide_no_write() {
    const NAME: &str = "whole_seconds_hide_no_write";
    let options = Options { kind: FsKind::Ext4, size: 32 << 20, mkfs: &["-I", "128"], mount: "" };
    let disk = fixtures::need!(NAME, LoopFs::with(&options));
    let into_second = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().subsec_millis();
    while into_second() > 100 {
        std::thread::sleep(Duration::from_millis(10));
    }
    let guest = Manifest::parse("f usr/a *5000:1\n").unwrap();
    let world = World::new(disk.path(), &[guest.clone(), guest]);
    let name = roles(&world, "usr/a").1;
    // In the same second as the first, unless the run has waited for the next.
    let latest = [b'w'; 5000];
    let write = || std::fs::write(&name, latest).unwrap();
    let report = world.unify(&Faulty::new(&REAL, once_planned(write))).unwrap();
    assert!(std::fs::read(&name).unwrap() == latest, "{report:?}");
    assert_eq!(report.skipped.get("changed"), Some(&1), "{report:?}");
}

fn objects(world: &World) -> usize {
    let mut objects = 0;
    world.open(&REAL).unwrap().0.for_each_object(|_, _, _| objects += 1, drop).unwrap();
    objects
}

#[test]
fn an_object_that_a_guest_still_has_stays_one() {
    let (_place, world) = twins("f usr/a *5000:1\n");
    world.unify(&REAL).unwrap();
    // There is no room for the first guest's copy.
    let script = Script::new().nth_of(Op::CopyContent, 1, Fault::Fail(Errno::NOSPC));
    let report = world.undo(&Faulty::new(&REAL, script), &Scope::default()).unwrap();
    let done = |report: &Report| (report.done.detached, report.done.removed, report.done.not_done);
    assert_eq!((done(&report), objects(&world)), ((1, 0, 1), 1), "{report:?}");
    assert!(!world.shares("usr/a"));
    let report = world.undo(&REAL, &Scope::default()).unwrap();
    assert_eq!((done(&report), objects(&world)), ((1, 1, 0), 0), "{report:?}");
}

#[test]
fn an_object_that_is_linked_while_it_is_removed_stays_one() {
    let (_place, world) = twins("f usr/a *5000:1\n");
    world.unify(&REAL).unwrap();
    let usr = Dir::open_host(&world.guests[0].join("usr")).unwrap();
    let open = usr.open_file(b"a").unwrap();
    let link = |_, call: &Call| {
        // Parked names are short.
        if call.names[0].len() > 64 {
            REAL.link_open(&open, At::new(&usr, b"kept")).unwrap();
        }
    };
    let script = Script::new().every_of(Op::Unlink, Fault::Hook(When::Before, Box::new(link)));
    let report = world.undo(&Faulty::new(&REAL, script), &Scope::default()).unwrap();
    assert_eq!((report.done.detached, report.done.removed, objects(&world)), (2, 0, 1), "{report:?}");
    assert_eq!(world.guests[0].join("usr/kept").metadata().unwrap().nlink(), 2);
    world.undo(&REAL, &Scope::default()).unwrap();
    assert_eq!(objects(&world), 0);
}

#[test]
fn an_object_that_loses_that_link_again_is_removed() {
    let (_place, world) = twins("f usr/a *5000:1\n");
    world.unify(&REAL).unwrap();
    let usr = Dir::open_host(&world.guests[0].join("usr")).unwrap();
    let open = usr.open_file(b"a").unwrap();
    let kept = At::new(&usr, b"kept");
    let link = |_, call: &Call| {
        if call.names[0].len() > 64 {
            REAL.link_open(&open, kept).unwrap();
        }
    };
    let unlink = |_, _: &Call| REAL.unlink(kept).unwrap();
    let script = Script::new()
        .every_of(Op::Unlink, Fault::Hook(When::Before, Box::new(link)))
        .every_of(Op::LinkOpen, Fault::Hook(When::Before, Box::new(unlink)));
    let report = world.undo(&Faulty::new(&REAL, script), &Scope::default()).unwrap();
    assert_eq!((report.done.detached, report.done.removed, objects(&world)), (2, 1, 0), "{report:?}");
    assert_eq!(open.stat().unwrap().nlink, 0);
}

#[test]
fn an_object_that_loses_its_names_by_itself_meanwhile_is_removed() {
    let (_place, world) = twins("f usr/a *5000:1\n");
    world.unify(&REAL).unwrap();
    let remove = |_, _: &Call| {
        for guest in &world.guests {
            std::fs::remove_file(guest.join("usr/a")).unwrap();
        }
    };
    let script = Script::new().nth_of(Op::Sync, 1, Fault::Hook(When::Before, Box::new(remove)));
    let report = world.undo(&Faulty::new(&REAL, script), &Scope::default()).unwrap();
    assert_eq!((report.done.detached, report.done.removed, objects(&world)), (0, 1, 0), "{report:?}");
}
