//! What goes wrong around a command by nobody's malice: privileges that are missing, places that are not what they
//! seem, words that were mistyped. Each time one message says so, and nothing is half done.
#![allow(clippy::disallowed_methods)] // builds trees that are no guests of anybody
#![allow(clippy::unwrap_used)] // to panic is how a test fails, in its helpers too

mod common;
mod host;

use std::ffi::OsStr;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{REAL, alone};
use fixtures::{Compare, LoopFs, Manifest, need, require_command, require_root};
use host::{GUEST, Host, Ran, changes};
use store::IdentityPolicy;
use store::index::Index;
use unify::{Error, Observer, Scope};

/// Runs a command as root without some capabilities.
fn without<A: AsRef<OsStr>>(capabilities: &str, host: &Host, arguments: &[A]) -> Ran {
    let inner = host.command(arguments);
    let mut command = Command::new("setpriv");
    command.args(["--inh-caps", capabilities, "--bounding-set", capabilities]);
    command.arg(inner.get_program()).args(inner.get_args());
    command.env("VSERVERS", host.base()).env_remove("RUST_BACKTRACE");
    let output = command.output().unwrap();
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    Ran { code: output.status.code().unwrap(), out, err }
}

fn chattr(how: &str, path: &Path) {
    assert!(Command::new("chattr").arg(how).arg(path).status().unwrap().success());
}

// ---- seals ----

#[test]
fn who_may_not_seal_begins_nothing() {
    const NAME: &str = "who_may_not_seal_begins_nothing";
    let _alone = alone();
    need!(NAME, require_root());
    need!(NAME, require_command("setpriv"));
    let own = need!(NAME, LoopFs::ext4(64 << 20));
    let host = Host::at(own.path(), &[GUEST, GUEST]);
    for made in [false, true] {
        let before = host.state();
        let ran = without("-linux_immutable", &host, &["--immutable", "g0", "g1"]);
        ran.expect(4).has_one_message(&[
            "may not put the immutable seal",
            "CAP_LINUX_IMMUTABLE",
            "--noflags",
        ]);
        assert_eq!(changes(&before, &host.state()), [""; 0]);
        if !made {
            host.unify();
            host.run(&["--undo", "--all"]).expect(0);
        }
    }
}

#[test]
fn a_store_that_is_immutable_says_so() {
    const NAME: &str = "a_store_that_is_immutable_says_so";
    let _alone = alone();
    let own = need!(NAME, LoopFs::ext4(64 << 20));
    let host = Host::at(own.path(), &[GUEST, GUEST, GUEST]);
    host.run(&["--immutable", "g0", "g1"]).expect(0);
    host.refuses(&["--noflags", "g0", "g1", "g2"], 4, &["are immutable", "--undo"]);
    host.run(&["--immutable", "g0", "g1", "g2"]).expect(0);
    host.run(&["--undo", "--all"]).expect(0);
    host.run(&["--noflags", "g0", "g1", "g2"]).expect(0);
}

#[test]
fn a_dry_run_tells_that_the_run_would_be_refused() {
    let _alone = alone();
    let host = Host::new();
    let ran = host.run(&["--dry-run", "g0", "g1"]);
    ran.expect(0);
    if host.run(&["g0", "g1"]).code == 0 {
        fixtures::skip!("a_dry_run_tells_that_the_run_would_be_refused", "kernel: it can protect files");
    }
    assert!(ran.err.contains("the run itself would be refused"), "{}", ran.err);
    let ran = host.run(&["--dry-run", "--noflags", "g0", "g1"]);
    assert_eq!(ran.expect(0).err, "");
}

#[test]
fn many_files_that_fail_alike_are_told_once() {
    const NAME: &str = "many_files_that_fail_alike_are_told_once";
    let _alone = alone();
    need!(NAME, require_root());
    need!(NAME, require_command("setpriv"));
    let files = |n: u64| format!("f usr/{n} 000 @1000000000.5 *{}:7\n", 5000 + n);
    let guest = format!("d usr 755\n{}", (0..25).map(files).collect::<String>());
    let host = Host::with(&[&guest, &guest]);
    let run = |more: &[&str]| {
        let arguments = [&["--noflags", "--dry-run"], more, &["g0", "g1"]].concat();
        let ran = without("-dac_override,-dac_read_search", &host, &arguments);
        ran.expect(3);
        let told = ["/g0/usr/", "/g1/usr/"]
            .map(|guest| ran.out.matches(guest).count() + ran.err.matches(guest).count());
        (told, ran)
    };
    assert_eq!(run(&["--verbose"]).0, [25, 25]);
    // Ten, and where all ten are of one guest, one of the other.
    let (told, ran) = run(&[]);
    assert!(told.iter().all(|count| *count > 0) && (10..=11).contains(&(told[0] + told[1])), "{told:?}");
    let more = format!("{} more left alone for the same reasons", 50 - told[0] - told[1]);
    assert!(ran.err.contains(&more), "{}", ran.err);
}

// ---- policies ----

#[test]
fn a_policy_that_was_named_is_there() {
    let _alone = alone();
    let host = Host::new();
    let file = host.policy.join("unify.toml");
    symlink("nowhere", &file).unwrap();
    host.refuses(&["--noflags", "g0", "g1"], 2, &["unify.toml", "No such file"]);
    std::fs::remove_file(&file).unwrap();
    assert!(Command::new("mkfifo").arg(&file).status().unwrap().success());
    host.refuses(&["--noflags", "g0", "g1"], 2, &["unify.toml", "not a regular file"]);
    std::fs::remove_file(&file).unwrap();
    std::fs::remove_dir(&host.policy).unwrap();
    host.refuses(&["--noflags", "g0", "g1"], 2, &["policy", "No such file"]);
}

// ---- places ----

#[test]
fn the_guest_of_a_path_is_the_one_that_has_a_store() {
    let _alone = alone();
    let place = tempfile::tempdir().unwrap();
    std::fs::create_dir(place.path().join("bin")).unwrap();
    let host = Host::at(place.path(), &[GUEST, GUEST]);
    host.unify();
    let tool = host.guest(0).join("usr/bin/tool");
    let ran = host.run(&[OsStr::new("--explain"), tool.as_os_str()]);
    assert!(ran.expect(0).out.contains("shared: 2 names"), "{}", ran.out);
    host.run(&[OsStr::new("--undo"), OsStr::new("--path"), tool.as_os_str()]).expect(0);
    assert!(!host.world.shares("usr/bin/tool") && host.world.shares("usr/bin/shell"));
}

#[test]
fn an_undo_of_another_guests_path_is_refused() {
    let _alone = alone();
    let host = Host::new();
    host.unify();
    let path = host.guest(1).join("usr").display().to_string();
    host.refuses(&["--undo", "g0", "--path", &path], 2, &["not a path within the guests at hand"]);
}

#[test]
fn the_hosts_root_is_no_guest() {
    let _alone = alone();
    let host = Host::new();
    host.refuses(&["--noflags", "/", "g0"], 2, &["/ is the host's own root"]);
}

#[test]
fn a_store_on_another_file_system_is_told_apart() {
    let _alone = alone();
    let host = Host::new();
    let other = need!("a_store_on_another_file_system_is_told_apart", LoopFs::ext4(16 << 20));
    let beside = tempfile::tempdir_in(host.base().parent().unwrap()).unwrap();
    let mount = |how: &[&OsStr]| assert!(Command::new("mount").args(how).status().unwrap().success());
    // The guests are on a mount below the store's directory.
    let below = beside.path().join("guests");
    std::fs::create_dir(&below).unwrap();
    Manifest::parse(GUEST).unwrap().write(&other.path().join("far")).unwrap();
    mount(&[OsStr::new("--bind"), other.path().as_os_str(), below.as_os_str()]);
    let store = beside.path().join("store").display().to_string();
    let far = below.join("far").display().to_string();
    let ran = host.run(&["--noflags", "--store", &store, &far]);
    assert!(Command::new("umount").arg(&below).status().unwrap().success());
    ran.expect(4).has_one_message(&["far is not on the file system"]);
}

#[test]
fn all_leaves_out_what_is_elsewhere() {
    let _alone = alone();
    let host = Host::with(&[GUEST, GUEST, GUEST]);
    let other = need!("all_leaves_out_what_is_elsewhere", LoopFs::ext4(16 << 20));
    Manifest::parse(GUEST).unwrap().write(&other.path().join("far")).unwrap();
    let here = host.guest(0).to_path_buf();
    let bound = Command::new("mount").arg("--bind").arg(other.path().join("far")).arg(&here).status();
    assert!(bound.unwrap().success());
    let ran = host.run(&["--noflags", "--all"]);
    assert!(Command::new("umount").arg(&here).status().unwrap().success());
    ran.expect(3).has_one_message(&["g0", "left out", "another file system"]);
    assert_eq!(host.world.ino(1, "usr/bin/tool"), host.world.ino(2, "usr/bin/tool"));
    assert!(!host.world.shares("usr/bin/tool"));
}

#[test]
fn a_store_that_is_none_changes_nothing() {
    let _alone = alone();
    let host = Host::new();
    let store = host.world.store_path();
    std::fs::write(&store, "").unwrap();
    host.refuses(&["--noflags", "g0", "g1"], 4, &["a store is a directory"]);
    std::fs::remove_file(&store).unwrap();
    host.unify();
    host.run(&["--undo", "--all"]).expect(0);
    std::fs::write(store.join("journal.db"), [b'x'; 8192]).unwrap();
    for side in ["journal.db-wal", "journal.db-shm"] {
        std::fs::remove_file(store.join(side)).ok();
    }
    host.refuses(&["--noflags", "g0", "g1"], 4, &["journal.db", "move it away"]);
    std::fs::remove_file(store.join("journal.db")).unwrap();
    host.unify();
}

#[test]
fn a_store_that_may_not_be_seen_is_not_said_to_be_missing() {
    const NAME: &str = "a_store_that_may_not_be_seen_is_not_said_to_be_missing";
    let _alone = alone();
    need!(NAME, require_root());
    need!(NAME, require_command("setpriv"));
    let host = Host::new();
    host.unify();
    let store = host.world.store_path();
    std::fs::set_permissions(&store, PermissionsExt::from_mode(0o700)).unwrap();
    chown(&store, Some(65534), Some(65534)).unwrap();
    let path = host.guest(0).join("usr/bin/tool").display().to_string();
    let ran = without("-dac_override,-dac_read_search", &host, &["--explain", &path]);
    ran.expect(4).has_one_message(&[".store", "not permitted"]);
}

#[test]
fn guests_that_are_gone_are_forgotten() {
    let _alone = alone();
    let host = Host::with(&[GUEST, GUEST, GUEST]);
    host.run(&["--noflags", "--all"]).expect(0);
    let known = || {
        let (store, _) = host.world.open(&REAL).unwrap();
        Index::open_read_only(&store).unwrap().guests().unwrap().len()
    };
    assert_eq!(known(), 3);
    // Not named is not gone.
    host.run(&["--noflags", "g0", "g1"]).expect(0);
    assert_eq!(known(), 3);
    std::fs::remove_dir_all(host.guest(2)).unwrap();
    host.run(&["--noflags", "--all"]).expect(0);
    assert_eq!(known(), 2);
}

// ---- what is told of single files ----

#[test]
fn an_explanation_is_what_the_run_does() {
    const NAME: &str = "an_explanation_is_what_the_run_does";
    let _alone = alone();
    let own = need!(NAME, LoopFs::ext4(64 << 20));
    let host = Host::at(own.path(), &[GUEST, GUEST]);
    for guest in 0..2 {
        let hollow = std::fs::File::create(host.guest(guest).join("usr/bin/hollow")).unwrap();
        hollow.set_len(8 << 20).unwrap();
        hollow.set_modified(std::time::UNIX_EPOCH).unwrap();
        chattr("+a", &host.guest(guest).join("usr/bin/tool"));
    }
    std::thread::sleep(std::time::Duration::from_millis(50));
    host.unify();
    for (name, words) in [("tool", "has inode flags"), ("hollow", "nearly all holes")] {
        assert!(!host.world.shares(&format!("usr/bin/{name}")));
        let path = host.guest(0).join("usr/bin").join(name).display().to_string();
        let ran = host.run(&["--explain", &path]);
        assert!(ran.expect(0).out.contains(words), "{}", ran.out);
    }
    (0..2).for_each(|guest| chattr("-a", &host.guest(guest).join("usr/bin/tool")));
}

#[test]
fn an_undo_that_leaves_a_file_shared_says_so_once() {
    let _alone = alone();
    let host = Host::new();
    host.unify();
    let before = host.world.snapshots();
    let _writer = std::fs::File::options().append(true).open(host.guest(0).join("usr/bin/tool")).unwrap();
    let ran = host.run(&["--undo", "--verbose", "g0"]);
    ran.expect(3);
    assert!(ran.out.contains("1 busy") && !ran.out.contains("replaced"), "{}", ran.out);
    assert_eq!(ran.out.matches("usr/bin/tool").count(), 1, "{}", ran.out);
    assert!(host.world.shares("usr/bin/tool") && !host.world.shares("usr/bin/shell"));
    let quiet = host.run(&["--undo", "--quiet", "g0"]);
    quiet.expect(3);
    assert!(quiet.err.contains("left shared: 1 file or directory"), "{}", quiet.err);
    let after = host.world.snapshots();
    let compare = Compare { inodes: false, flags: true, links: false };
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before.diff_with(after, compare), [""; 0]);
    }
}

/// Wants to stop as soon as a phase begins.
struct Impatient(&'static str, AtomicBool);

impl Observer for Impatient {
    fn phase(&self, name: &'static str, _: u64) {
        self.1.fetch_or(name == self.0, Ordering::Relaxed);
    }

    fn advance(&self, _: u64) {}
}

#[test]
fn a_dry_run_that_is_interrupted_tells_nothing_false() {
    let _alone = alone();
    let host = Host::new();
    let impatient = Impatient("reading", AtomicBool::new(false));
    let ended = host.world.with_observer(&REAL, &impatient, &impatient.1, |session, store, _| {
        session.preview(Some(store), IdentityPolicy::Full, |_| {})
    });
    assert!(matches!(ended, Err(Error::Interrupted)), "{ended:?}");
}

#[test]
fn an_undo_that_is_interrupted_before_it_has_seen_all_takes_nothing_back() {
    let _alone = alone();
    let host = Host::new();
    host.unify();
    let impatient = Impatient("walking", AtomicBool::new(false));
    let scope = Scope { run: Some(1), paths: vec![] };
    let ended = host.world.with_observer(&REAL, &impatient, &impatient.1, |session, store, journal| {
        let ended = session.undo(store, journal, &scope, "test");
        let runs: Vec<_> = journal.runs()?.iter().map(|run| (run.id, run.undone_by)).collect();
        Ok((ended, runs))
    });
    let (ended, runs) = ended.unwrap();
    assert!(matches!(ended, Err(Error::Interrupted)), "{ended:?}");
    assert_eq!(runs, [(1, None)]);
    assert!(host.world.shares("usr/bin/tool") && host.world.shares("usr/bin/shell"));
}

#[test]
fn a_package_database_that_is_not_read_is_told_once() {
    let _alone = alone();
    let host = Host::new();
    for (guest, content) in [(0, &b"no stanza\n"[..]), (1, b"\xff\0\xfe")] {
        std::fs::write(host.guest(guest).join("var/lib/dpkg/status"), content).unwrap();
    }
    let warned = |ran: &Ran| ran.err.lines().filter(|line| line.contains("var/lib/dpkg/status: ")).count();
    let arguments = ["--noflags", "g0", "g1"];
    assert_eq!(warned(host.run(&[&["--dry-run"], &arguments[..]].concat()).expect(0)), 2);
    let ran = host.run(&arguments);
    assert_eq!(warned(ran.expect(0)), 2, "{}", ran.err);
    assert!(ran.err.contains("owned by no package"), "{}", ran.err);
    // Unchanged guests are not read again.
    let ran = host.run(&arguments);
    assert_eq!(warned(ran.expect(0)), 0, "{}", ran.err);
    // A directory in its place.
    let status = host.guest(0).join("var/lib/dpkg/status");
    std::fs::remove_file(&status).unwrap();
    std::fs::create_dir(&status).unwrap();
    let ran = host.run(&arguments);
    assert_eq!(warned(ran.expect(0)), 1, "{}", ran.err);
}
