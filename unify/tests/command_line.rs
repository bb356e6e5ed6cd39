//! The command as its users meet it: what it says, how it ends, and that it changes nothing when it fails.
#![allow(clippy::disallowed_methods)] // builds trees that are no guests of anybody
#![allow(clippy::unwrap_used)] // to panic is how a test fails, in its helpers too

mod common;
mod host;

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use common::REAL;
use fixtures::loopfs::{FsKind, Options};
use fixtures::{Compare, LoopFs, Manifest, need};
use host::{GUEST, Host, changes};
use serde_json::Value;
use store::{Access, STORE_NAME, Store};

// ---- one at a time ----

#[test]
fn a_store_in_use_names_its_holder() {
    let host = Host::new();
    host.unify();
    for access in [Access::Read, Access::Write] {
        let held = Store::open(&REAL, &host.world.store_path(), access, None).unwrap();
        let holder = match access {
            Access::Write => format!("process {} ({}", std::process::id(), std::env::args().next().unwrap()),
            Access::Read => "other processes that read it".into(),
        };
        host.refuses(&["--noflags", "g0", "g1"], 5, &["is in use by", &holder, "--wait"]);
        host.refuses(&["--undo", "g0"], 5, &["is in use by", &holder]);
        drop(held);
    }
    host.run(&["--noflags", "g0", "g1"]).expect(0);
}

#[test]
fn readers_do_not_wait_for_readers() {
    let host = Host::new();
    host.unify();
    let held = Store::open(&REAL, &host.world.store_path(), Access::Read, None).unwrap();
    host.run(&["--dry-run", "g0", "g1"]).expect(0);
    host.run(&["--explain", &path(host.guest(0), "usr/bin/tool")]).expect(0);
    drop(held);
    let held = Store::open(&REAL, &host.world.store_path(), Access::Write, None).unwrap();
    host.refuses(&["--dry-run", "g0", "g1"], 5, &["is in use by process"]);
    drop(held);
}

#[test]
fn wait_waits() {
    let host = Host::new();
    host.unify();
    let held = Store::open(&REAL, &host.world.store_path(), Access::Write, None).unwrap();
    let mut waiting = host.command(&["--wait", "--noflags", "g0", "g1"]).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(400));
    assert!(waiting.try_wait().unwrap().is_none(), "it waits");
    drop(held);
    assert_eq!(waiting.wait().unwrap().code(), Some(0));
}

#[test]
fn a_wait_can_be_interrupted() {
    let host = Host::new();
    host.unify();
    let _held = Store::open(&REAL, &host.world.store_path(), Access::Write, None).unwrap();
    let waiting = host.command(&["--wait", "--noflags", "g0", "g1"]).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    interrupt(&waiting);
    let output = waiting.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "vunify: interrupted while waiting for the store\n"
    );
}

#[test]
fn two_runs_at_once_do_not_disturb_each_other() {
    let host = Host::new();
    let before = host.world.snapshots();
    let runs: Vec<Child> =
        (0..6).map(|_| host.command(&["--noflags", "g0", "g1"]).spawn().unwrap()).collect();
    let codes: Vec<i32> = runs.into_iter().map(|mut run| run.wait().unwrap().code().unwrap()).collect();
    assert!(codes.contains(&0), "{codes:?}");
    assert!(codes.iter().all(|code| [0, 5].contains(code)), "{codes:?}");
    assert!(host.world.shares("usr/bin/tool"));
    assert_eq!(host.world.differences(&before), [""; 0]);
    assert!(host.world.is_tidy());
}

// ---- stores that cannot be used ----

#[test]
fn a_newer_format_is_refused() {
    let host = Host::new();
    host.unify();
    let format = host.world.store_path().join("format.toml");
    let text = std::fs::read_to_string(&format).unwrap();
    for (from, to, what) in [
        ("version = 1", "version = 2", "version 2"),
        ("incompat = []", "incompat = [\"chunks\"]", "feature chunks"),
        ("ro-compat = []", "ro-compat = [\"stripes\"]", "feature stripes"),
    ] {
        std::fs::write(&format, text.replacen(from, to, 1)).unwrap();
        let words = [".store has a newer format", what, "use the version of this tool that made it"];
        host.refuses(&["--noflags", "g0", "g1"], 4, &words);
        host.refuses(&["--undo", "g0"], 4, &words);
    }
    // What later versions only read is enough for looking.
    host.run(&["--dry-run", "g0", "g1"]).expect(0);
}

#[test]
fn a_damaged_or_foreign_store_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let host = Host::new();
    host.unify();
    let format = host.world.store_path().join("format.toml");
    let text = std::fs::read_to_string(&format).unwrap();
    std::fs::write(&format, "version = ").unwrap();
    host.refuses(&["--noflags", "g0", "g1"], 4, &["format.toml is damaged"]);
    std::fs::write(&format, text).unwrap();
    std::fs::set_permissions(host.world.store_path(), PermissionsExt::from_mode(0o755)).unwrap();
    host.refuses(&["--noflags", "g0", "g1"], 2, &["mode 0700", "refusing to trust it"]);
}

#[test]
fn a_full_disk_changes_no_guest() {
    let full = need!("a_full_disk_changes_no_guest", LoopFs::ext4(16 << 20));
    let host = Host::at(full.path(), &[GUEST, GUEST]);
    fill(full.path());
    let before = host.world.snapshots();
    let ran = host.run(&["--noflags", "g0", "g1"]);
    ran.expect(4).has_one_message(&["no space left", "free some space"]);
    assert_eq!(host.world.differences(&before), [""; 0]);
    assert!(!host.world.shares("usr/bin/tool"));
    // With a store that is there already too, and when there is room again all is well.
    std::fs::remove_file(full.path().join("ballast")).unwrap();
    host.unify();
    host.run(&["--undo", "g0", "g1"]).expect(0);
    fill(full.path());
    let ran = host.run(&["--noflags", "g0", "g1"]);
    ran.expect(3).has_one_message(&["full"]);
    assert_eq!(host.world.differences(&before), [""; 0]);
    std::fs::remove_file(full.path().join("ballast")).unwrap();
    host.unify();
    assert!(host.world.shares("usr/bin/tool") && host.world.is_tidy());
    assert_eq!(host.world.differences(&before), [""; 0]);
}

fn fill(place: &Path) {
    use std::io::Write as _;
    let mut ballast = std::fs::File::create(place.join("ballast")).unwrap();
    for size in [1 << 16, 512] {
        while ballast.write_all(&vec![1; size]).and_then(|()| ballast.sync_all()).is_ok() {}
    }
    // Directories have room left in their blocks: names must find none either.
    for number in 0.. {
        if std::fs::create_dir(place.join(format!("d{number}"))).is_err() {
            break;
        }
    }
}

#[test]
fn a_read_only_file_system_can_be_looked_at() {
    for kind in FsKind::ALL {
        let test = "a_read_only_file_system_can_be_looked_at";
        let own = need!(test, LoopFs::with(&Options { kind, size: 64 << 20, mkfs: &[], mount: "" }));
        let host = Host::at(own.path(), &[GUEST, GUEST]);
        let read_only = |on: bool| {
            let how = if on { "remount,ro" } else { "remount,rw" };
            let done = Command::new("mount").args(["-o", how]).arg(own.path()).status().unwrap();
            assert!(done.success());
        };
        let tool = path(host.guest(0), "usr/bin/tool");
        for step in ["without a store", "with one"] {
            read_only(true);
            host.refuses(&["--noflags", "g0", "g1"], 4, &["read-only"]);
            let ran = host.run(&["--dry-run", "g0", "g1"]);
            assert!(ran.expect(0).out.contains("replace"), "{step}: {}", ran.out);
            host.run(&["--explain", &tool]).expect(0);
            read_only(false);
            host.unify();
            if step == "with one" {
                read_only(true);
                host.refuses(&["--undo", "g0"], 4, &["read-only"]);
                let ran = host.run(&["--undo", "--dry-run", "g0"]);
                assert!(ran.expect(0).out.contains("would make 3 files private"), "{}", ran.out);
                let ran = host.run(&["--explain", &tool]);
                assert!(ran.expect(0).out.contains("shared: 2 names"), "{}", ran.out);
                read_only(false);
            } else {
                host.run(&["--undo", "g0", "g1"]).expect(0);
            }
        }
    }
}

// ---- guests that cannot be used ----

#[test]
fn what_is_no_guest_is_refused() {
    let host = Host::new();
    std::fs::write(host.base().join("file"), "x").unwrap();
    std::fs::create_dir(host.base().join("empty")).unwrap();
    std::os::unix::fs::symlink("circle", host.base().join("circle")).unwrap();
    host.refuses(&["--noflags", "g0", "absent"], 2, &["no such guest", "/guests/absent", "$VSERVERS"]);
    host.refuses(&["--noflags", "./absent"], 2, &["no such guest: ./absent"]);
    host.refuses(&["--noflags", "g0", "file"], 2, &["not a directory", "/guests/file"]);
    host.refuses(&["--noflags", "g0", "empty"], 2, &["not a guest: it has no etc, usr or bin", "/empty"]);
    host.refuses(&["--noflags", "g0", "circle"], 2, &["symbolic links in a circle", "/circle"]);
    host.refuses(&["--noflags", "g0", ""], 2, &["a guest's name is empty"]);
    host.refuses(&["--noflags", "g0", ".store"], 2, &["not a guest's name"]);
    host.refuses(&["--noflags"], 2, &["no guest was named", "--all"]);
    host.refuses(&["--undo"], 2, &["no guest was named", "--all"]);
    let store = path(host.base(), ".store");
    host.refuses(&["--noflags", "--store", &store], 2, &["no guest was named"]);
}

#[test]
fn a_guest_named_twice_is_refused_however_it_is_spelled() {
    let host = Host::new();
    std::os::unix::fs::symlink("g0", host.base().join("alias")).unwrap();
    let absolute = path(host.base(), "g1/../g0/");
    for other in ["g0", "alias", &absolute] {
        host.refuses(&["--noflags", "g0", other], 2, &["/guests/g0 is named twice", "once"]);
    }
    host.refuses(&["--undo", "g0", "g0"], 2, &["no store serves"]);
}

#[test]
fn a_guest_in_another_is_refused() {
    let host = Host::new();
    Manifest::parse(GUEST).unwrap().write(&host.guest(0).join("srv/inner")).unwrap();
    let inner = path(host.guest(0), "srv/inner");
    host.refuses(&["--noflags", "g0", &inner], 2, &["srv/inner lies in", "g0: name only one"]);
    host.refuses(&["--noflags", &inner, "g0"], 2, &["srv/inner lies in"]);
    // Nor may a guest hold the store.
    let store = path(host.guest(0), STORE_NAME);
    host.refuses(&["--noflags", "--store", &store, "g0"], 2, &["holds the store", "must not reach"]);
}

#[test]
fn a_guest_elsewhere_is_refused() {
    let host = Host::new();
    let apart = path(host.base(), "apart");
    std::fs::create_dir(&apart).unwrap();
    host.world.open(&REAL).unwrap();
    let store = path(Path::new(&apart), STORE_NAME);
    let words = ["g0 is not below", "apart", "--store"];
    host.refuses(&["--noflags", "--store", &store, "g0"], 2, &words);

    let other = need!("a_guest_elsewhere_is_refused", LoopFs::ext4(16 << 20));
    let far = other.path().join("far");
    Manifest::parse(GUEST).unwrap().write(&far).unwrap();
    let far = far.to_str().unwrap();
    host.refuses(&["--noflags", "g0", far], 4, &["far is not on the file system", "a run of their own"]);
    // A mount where a guest was.
    std::fs::create_dir(host.base().join("mounted")).unwrap();
    let mount = |how: &[&str]| assert!(Command::new("mount").args(how).status().unwrap().success());
    let here = path(host.base(), "mounted");
    mount(&["--bind", far, &here]);
    let ran = host.run(&["--noflags", "g0", "mounted"]);
    assert!(Command::new("umount").arg(&here).status().unwrap().success());
    ran.expect(4).has_one_message(&["mounted is not on the file system"]);
}

// ---- words and options that make no sense ----

#[test]
fn unknown_packages_and_runs_are_refused() {
    let host = Host::with(&[GUEST, GUEST, "f usr/bin/x 755 \"no database\""]);
    host.refuses(
        &["--noflags", "g0", "g1", "--", "tool", "nonsense"],
        2,
        &["g0 has no package nonsense", "ALL"],
    );
    host.refuses(&["--noflags", "g2", "g1", "--", "tool"], 2, &["g2 has no package database"]);
    host.refuses(&["--noflags", "g0", "--", "tool"], 2, &["g0 alone", "name the guests"]);
    host.refuses(&["--undo", "--run", "1", "g0"], 2, &["no store serves", "/guests"]);
    host.unify();
    host.refuses(&["--undo", "--run", "77"], 2, &["run 77 is not in the journal", "vstore log"]);
    host.refuses(&["--undo", "--run", "77", "g0"], 2, &["run 77 is not in the journal"]);
    host.run(&["--undo", "--run", "1"]).expect(0);
    host.refuses(&["--undo", "--run", "1"], 2, &["run 1 is undone already"]);
    host.refuses(&["--undo", "--run", "2"], 2, &["run 2 has shared nothing"]);
}

#[test]
fn contradictions_are_usage_errors() {
    let host = Host::new();
    let before = host.state();
    for arguments in [
        &["--run", "1", "g0"][..],
        &["--path", "/x", "g0"],
        &["--all", "g0"],
        &["--undo", "--explain", "/x"],
        &["--quiet", "--verbose", "g0"],
        &["--frob", "g0"],
        &["--run", "one", "--undo"],
        &["--threads", "0", "g0"],
        &["--undo", "--noflags", "g0"],
        &["--undo", "--immutable", "g0"],
        &["--explain", "/x", "--noflags"],
        &["--noflags", "g0", "g1", "--"],
        &["--undo", "g0", "--"],
        &["--noflags", "g0", "g1", "--", ""],
    ] {
        let ran = host.run(arguments);
        ran.expect(2);
        assert!(
            ran.out.is_empty() && (ran.err.contains("Usage: vunify") || ran.err.contains("--help")),
            "{arguments:?}: {}",
            ran.err
        );
    }
    assert_eq!(changes(&before, &host.state()), [""; 0]);
}

#[test]
fn what_was_expected_is_said() {
    let host = Host::new();
    for (arguments, words) in [
        (&["--undo", "--run", "one"][..], "expected the number of a run"),
        (&["--threads", "1x", "g0"], "expected a number from 1 to 1024"),
        (&["g0", "--", ""], "expected a package's name, or ALL"),
        (&["--store", "/nowhere/x", "g0"], "there is no such path: /nowhere/x: give the path of a store"),
        (&[""], "a guest's name is empty: give a name"),
        (&["--immutable", "--noflags", "g0"], "--noflags stands behind --immutable"),
        (&["g0", "--immutable-mayunlink", "g1", "--noflags"], "leave out one of the two"),
    ] {
        let ran = host.run(arguments);
        assert!(ran.expect(2).err.contains(words), "{}", ran.err);
    }
    let empty = tempfile::tempdir().unwrap();
    let output = host.command(&["--all"]).env("VSERVERS", empty.path()).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(told.starts_with("vunify: there is no guest below this directory: "), "{told}");
}

#[test]
fn files_left_alone_are_named_or_it_is_said_how() {
    let host = Host::new();
    let tool = host.guest(0).join("usr/bin/tool");
    let writer = std::fs::OpenOptions::new().append(true).open(tool).unwrap();
    let hint = "(--verbose names them)";
    assert!(host.run(&["--noflags", "g0", "g1"]).expect(0).out.contains(hint));
    let ran = host.run(&["--noflags", "--verbose", "g0", "g1"]);
    assert!(ran.expect(0).out.contains("left alone: ") && !ran.out.contains(hint), "{}", ran.out);
    drop(writer);
}

#[test]
fn a_broken_policy_is_refused_with_file_and_line() {
    let host = Host::new();
    let policy = host.policy.join("unify.toml");
    std::fs::write(&policy, "version = 1\n[options]\nmtime = \"never\"\n").unwrap();
    host.refuses(&["--noflags", "g0", "g1"], 2, &["policy/unify.toml:3:"]);
    host.refuses(&["--dry-run", "g0", "g1"], 2, &["policy/unify.toml:3:"]);
    std::fs::write(&policy, "version = 2\n").unwrap();
    host.refuses(&["--noflags", "g0", "g1"], 2, &["policy/unify.toml:1:"]);
    std::fs::remove_file(&policy).unwrap();
    std::fs::create_dir(&policy).unwrap();
    host.refuses(&["--noflags", "g0", "g1"], 2, &["policy/unify.toml"]);
    std::fs::remove_dir(&policy).unwrap();
    std::fs::write(host.policy.join("g1.unify.toml"), "nonsense\n").unwrap();
    host.refuses(&["--noflags", "g0", "g1"], 2, &["policy/g1.unify.toml:1:"]);
    host.run(&["--noflags", "g0"]).expect(0);
}

#[test]
fn a_policy_is_obeyed_and_explained() {
    let host = Host::new();
    let rule = "version = 1\n[[rule]]\npaths = [\"/usr/bin/tool\"]\nshare = false\nwhy = \"mine\"\n";
    std::fs::write(host.policy.join("g1.unify.toml"), rule).unwrap();
    host.unify();
    assert!(!host.world.shares("usr/bin/tool") && host.world.shares("usr/bin/shell"));
    let ran = host.run(&["--explain", &path(host.guest(1), "usr/bin/tool")]);
    assert!(ran.expect(0).out.contains("excluded by rule 1 (mine) in"), "{}", ran.out);
}

#[test]
fn without_protection_the_choices_are_named() {
    let host = Host::new();
    let before = host.state();
    let ran = host.run(&["g0", "g1"]);
    if ran.code == 0 {
        fixtures::skip!("without_protection_the_choices_are_named", "kernel: it can protect files");
    }
    ran.expect(4);
    for word in ["--noflags", "bpf: ", "verity", "patch"] {
        assert!(ran.err.contains(word), "no `{word}` in: {}", ran.err);
    }
    assert!(ran.err.lines().all(|line| line.starts_with("vunify: ")), "{}", ran.err);
    assert_eq!(changes(&before, &host.state()), [""; 0]);
    // Link-invert was asked for by name: nothing less will do.
    host.run(&["--immutable-mayunlink", "g0", "g1"]).expect(4);
    host.run(&["--noflags", "--immutable-mayunlink", "g0", "g1"]).expect(4);
    assert_eq!(changes(&before, &host.state()), [""; 0]);
}

#[test]
fn immutable_when_asked_and_taken_off_again() {
    let own = need!("immutable_when_asked_and_taken_off_again", LoopFs::ext4(64 << 20));
    for options in [&["--immutable"][..], &["--noflags", "--immutable"]] {
        let place = tempfile::tempdir_in(own.path()).unwrap();
        let host = Host::at(place.path(), &[GUEST, GUEST]);
        let before = host.world.snapshots();
        let ran = host.run(&[options, &["g0", "g1"]].concat());
        ran.expect(0);
        let error = std::fs::write(host.guest(0).join("usr/bin/tool"), "x").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
        assert!(std::fs::remove_file(host.guest(0).join("usr/bin/tool")).is_err());
        host.run(&["--immutable", "g0", "g1"]).expect(0);
        host.run(&["--undo", "g0", "g1"]).expect(0);
        for (before, after) in before.iter().zip(host.world.snapshots()) {
            let compare = Compare { flags: true, links: true, inodes: false };
            assert_eq!(before.diff_with(&after, compare), [""; 0]);
        }
        std::fs::write(host.guest(0).join("usr/bin/tool"), "x").unwrap();
    }
}

// ---- looking only ----

#[test]
fn dry_runs_change_nothing() {
    let host = Host::new();
    for option in ["--dry-run", "--test"] {
        let before = host.state();
        let ran = host.run(&[option, "g0", "g1"]);
        assert!(ran.expect(0).out.contains("would share 3 more files and replace 3 by them"), "{}", ran.out);
        assert!(ran.out.contains("usr/bin/shell") && ran.out.contains("usr/bin/sh"), "{}", ran.out);
        assert_eq!(changes(&before, &host.state()), [""; 0], "no store either");
        assert!(!host.world.store_path().exists());
    }
    host.unify();
    let before = host.state();
    let ran = host.run(&["--dry-run", "--noflags", "g0", "g1"]);
    assert!(ran.expect(0).out.contains("would share 0 more files"), "{}", ran.out);
    let ran = host.run(&["--dry-run", "--undo", "g0"]);
    assert!(ran.expect(0).out.contains("would make 3 files private"), "{}", ran.out);
    assert_eq!(changes(&before, &host.state()), [""; 0]);
}

#[test]
fn a_dry_run_says_what_the_run_does() {
    let host = Host::new();
    let figure = |lines: &[Value], name: &str| lines.last().unwrap()[name].as_u64().unwrap();
    let planned = host.run(&["--json", "--dry-run", "g0", "g1"]).json();
    let done = host.run(&["--json", "--noflags", "g0", "g1"]).json();
    assert_eq!(figure(&planned, "planned_objects"), figure(&done, "admitted"));
    assert_eq!(figure(&planned, "planned_files"), figure(&done, "linked"));
    assert_eq!(figure(&done, "linked"), 3);
    assert!(figure(&done, "bytes_freed") >= 60_000);
    let planned = host.run(&["--json", "--dry-run", "--undo", "g1"]).json();
    let done = host.run(&["--json", "--undo", "g1"]).json();
    assert_eq!(figure(&planned, "planned_files"), figure(&done, "detached"));
    assert_eq!(figure(&done, "detached"), 3);
}

#[test]
fn explanations_say_why() {
    let host = Host::new();
    let ask = |name: &str| {
        let ran = host.run(&["--explain", &path(host.guest(0), name)]);
        ran.expect(0);
        ran.out
    };
    for (name, why) in [
        ("usr/bin/tool", "may be shared: part of package tool; no run has been made yet"),
        ("etc/tool.conf", "a config file of package tool"),
        ("etc/hostname", "in /etc and owned by no package"),
        ("var/lib/data", "outside the system's trees"),
        ("usr", "not a regular file"),
    ] {
        assert!(ask(name).contains(why), "{name}: {}", ask(name));
    }
    host.unify();
    assert!(ask("usr/bin/tool").contains("shared: 2 names in guests have this inode"));
    let lines = host.run(&["--json", "--explain", &path(host.guest(0), "usr/bin/tool")]).json();
    assert_eq!((&lines[0]["state"], &lines[0]["names"]), (&"shared".into(), &2.into()));
    let absent = path(host.guest(0), "usr/bin/absent");
    host.refuses(&["--explain", &absent], 2, &["usr/bin/absent", "does not exist"]);
    host.refuses(&["--explain", "/absent/x"], 2, &["/absent"]);
    host.refuses(&["--explain", "/"], 2, &["/"]);
}

// ---- output ----

/// A name that would clear a terminal, one with a newline, one that is no UTF-8.
const HOSTILE: &str = r#"
f "usr/bin/\x1b[2Jclear" 755 @1000000000 *20000:1
f "usr/bin/a\nb" 755 @1000000000 *20000:2
f "usr/bin/\xff\xfe" 755 @1000000000 *20000:3
f "usr/bin/back\\slash" 755 @1000000000 *20000:4
"#;

#[test]
fn hostile_names_are_shown_harmlessly_and_without_loss() {
    let host = Host::with(&[HOSTILE, HOSTILE]);
    let ran = host.run(&["--dry-run", "g0", "g1"]);
    ran.expect(0);
    assert!(!ran.out.contains('\u{1b}'), "{}", ran.out);
    for shown in [r"usr/bin/\x1b[2Jclear", r"usr/bin/a\nb", r"usr/bin/\xff\xfe", r"usr/bin/back\\slash"] {
        assert!(ran.out.contains(shown), "no {shown} in {}", ran.out);
    }
    let lines = host.run(&["--json", "--dry-run", "g0", "g1"]).json();
    let paths = lines.iter().filter(|line| line["type"] == "action").flat_map(|line| {
        let paths = line["paths"].as_array().unwrap();
        paths.iter().map(|path| serde_json::from_value::<cli::PathText>(path.clone()).unwrap())
    });
    let mut names: Vec<Vec<u8>> =
        paths.map(|path| path.as_path().file_name().unwrap().as_bytes().to_vec()).collect();
    names.sort();
    names.dedup();
    let expected: [&[u8]; 4] = [b"\x1b[2Jclear", b"a\nb", b"back\\slash", b"\xff\xfe"];
    assert_eq!(names, expected);
    let hostile = host.guest(0).join("usr/bin/\u{1b}[2Jclear");
    let ran = host.run(&[OsStr::new("--explain"), hostile.as_os_str()]);
    assert!(!ran.expect(0).out.contains('\u{1b}'), "{}", ran.out);
    let absent = host.guest(0).join("usr/bin/\u{1b}[2Jno");
    let ran = host.run(&[OsStr::new("--explain"), absent.as_os_str()]);
    assert!(!ran.expect(2).err.contains('\u{1b}'), "{}", ran.err);
    host.run(&["--noflags", "--quiet", "g0", "g1"]).expect(0);
    assert!(host.world.shares("usr/bin/a\nb"));
}

#[test]
fn json_ends_with_one_summary_whatever_happens() {
    let host = Host::new();
    for (arguments, code) in [
        (&["--json", "--noflags", "--dry-run", "g0", "g1"][..], 0),
        (&["--json", "--noflags", "--verbose", "g0", "g1"], 0),
        (&["--json", "--noflags", "g0", "absent"], 2),
        (&["--json", "--frob"], 2),
        (&["--json", "--undo", "--run", "9"], 2),
        (&["--json", "--undo", "g0", "g1"], 0),
        (&["--json", "--undo", "--quiet", "g0", "g1"], 0),
    ] {
        let ran = host.run(arguments);
        ran.expect(code);
        let lines = ran.json();
        let errors = lines.iter().filter(|line| line["type"] == "error").count();
        assert_eq!(errors, usize::from(code != 0), "{arguments:?}: {}", ran.out);
        assert_eq!(ran.err.is_empty(), code == 0, "{arguments:?}: {}", ran.err);
    }
}

#[test]
fn quiet_is_silent_on_success() {
    let host = Host::new();
    for arguments in [
        &["--quiet", "--noflags", "g0", "g1"][..],
        &["--quiet", "--noflags", "--all"],
        &["--quiet", "--undo", "g0"],
        &["--quiet", "--undo", "--all"],
    ] {
        let ran = host.run(arguments);
        ran.expect(0);
        assert_eq!((ran.out.as_str(), ran.err.as_str()), ("", ""), "{arguments:?}");
    }
}

#[test]
fn a_reader_that_goes_away_ends_nothing() {
    let host = Host::new();
    for arguments in [&["--noflags", "--dry-run", "g0", "g1"][..], &["--noflags", "--verbose", "g0", "g1"]] {
        let mut child = host.command(arguments).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    }
    assert!(host.world.shares("usr/bin/tool") && host.world.is_tidy());
}

/// What the report says can be done is what can be done.
#[test]
fn the_way_back_that_is_named_works() {
    let host = Host::new();
    let before = host.world.snapshots();
    let elsewhere = tempfile::tempdir().unwrap();
    for usual in [true, false] {
        let command = |arguments: &[&str]| {
            let mut command = host.command(arguments);
            if !usual {
                command.env("VSERVERS", elsewhere.path());
            }
            let output = command.output().unwrap();
            assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        let (first, second) = (path(host.guest(0), ""), path(host.guest(1), ""));
        let text = command(&["--noflags", &first, &second]);
        assert!(host.world.shares("usr/bin/tool"));
        let (_, way) = text.split_once("vunify --undo").expect(&text);
        let way = way.split_once(" takes it back").unwrap().0;
        let words: Vec<&str> = ["--undo"].into_iter().chain(way.split_whitespace()).collect();
        assert_eq!(words.contains(&"--store"), !usual, "{text}");
        command(&words);
        assert!(!host.world.shares("usr/bin/tool"));
        assert_eq!(host.world.differences(&before), [""; 0]);
    }
}

// ---- packages ----

#[test]
fn only_the_packages_named_are_shared() {
    let host = Host::new();
    host.run(&["--noflags", "g0", "g1", "--", "shell"]).expect(0);
    assert!(host.world.shares("usr/bin/shell") && host.world.shares("usr/bin/sh"));
    assert!(!host.world.shares("usr/bin/tool") && !host.world.shares("usr/local/bin/own"));
    host.run(&["--noflags", "g0", "g1", "--", "ALL"]).expect(0);
    assert!(host.world.shares("usr/bin/tool"));
    assert!(!host.world.shares("usr/local/bin/own"), "no package's");
    assert!(!host.world.shares("etc/tool.conf"), "config");
}

#[test]
fn only_the_same_version_is_shared() {
    let newer = GUEST.replace("Version: 2.0", "Version: 2.1");
    let host = Host::with(&[GUEST, GUEST, &newer]);
    host.run(&["--noflags", "g0", "g1", "g2", "--", "ALL"]).expect(0);
    let ino = |guest, name| host.world.ino(guest, name);
    assert_eq!(ino(0, "usr/bin/shell"), ino(1, "usr/bin/shell"));
    assert_ne!(ino(0, "usr/bin/shell"), ino(2, "usr/bin/shell"), "another version, though equal");
    assert_eq!(ino(0, "usr/bin/tool"), ino(2, "usr/bin/tool"));
    // Without packages it is the files that count.
    host.run(&["--noflags", "--all"]).expect(0);
    assert_eq!(ino(0, "usr/bin/shell"), ino(2, "usr/bin/shell"));
}

#[test]
fn packages_paths_and_guests_can_be_taken_back_alone() {
    let host = Host::with(&[GUEST, GUEST, GUEST]);
    let before = host.world.snapshots();
    let shared = |guest, name| host.world.ino(guest, name) == host.world.ino(2, name);
    host.run(&["--noflags", "--all"]).expect(0);
    host.run(&["--undo", "g0", "--", "shell"]).expect(0);
    assert!(!shared(0, "usr/bin/shell") && !shared(0, "usr/bin/sh"));
    assert!(shared(0, "usr/bin/tool") && shared(1, "usr/bin/shell"));
    // One name of two: both go, for they are one file to their guest.
    host.run(&["--undo", "--path", &path(host.guest(1), "usr/bin/sh")]).expect(0);
    assert!(!shared(1, "usr/bin/shell") && !shared(1, "usr/bin/sh") && shared(1, "usr/bin/tool"));
    assert_eq!(host.world.ino(1, "usr/bin/sh"), host.world.ino(1, "usr/bin/shell"));
    host.run(&["--undo", "--path", &path(host.guest(1), "usr/local")]).expect(0);
    assert!(!shared(1, "usr/local/bin/own") && shared(0, "usr/local/bin/own") && shared(1, "usr/bin/tool"));
    host.run(&["--undo", "g0"]).expect(0);
    assert!(!shared(0, "usr/bin/tool") && shared(1, "usr/bin/tool"));
    assert_eq!(host.world.differences(&before), [""; 0]);
    host.refuses(&["--undo", "g0", "--", "nonsense"], 2, &["g0 has no package nonsense"]);
    host.refuses(&["--undo", "--path", "/absent/x"], 2, &["/absent"]);
}

/// A run is undone when all its guests were, not before.
#[test]
fn a_run_can_be_taken_back_guest_by_guest() {
    let host = Host::with(&[GUEST, GUEST, GUEST]);
    host.run(&["--noflags", "--all"]).expect(0);
    host.run(&["--undo", "--run", "1", "g0"]).expect(0);
    host.run(&["--undo", "--run", "1", "g1", "--", "tool"]).expect(0);
    assert_ne!(host.world.ino(1, "usr/bin/tool"), host.world.ino(2, "usr/bin/tool"));
    assert_eq!(host.world.ino(1, "usr/bin/shell"), host.world.ino(2, "usr/bin/shell"));
    host.run(&["--undo", "--run", "1"]).expect(0);
    assert_ne!(host.world.ino(1, "usr/bin/shell"), host.world.ino(2, "usr/bin/shell"));
    host.refuses(&["--undo", "--run", "1"], 2, &["run 1 is undone already"]);
}

#[test]
fn a_run_of_which_nothing_is_left_is_undone() {
    let host = Host::new();
    host.unify();
    for guest in 0..2 {
        std::fs::remove_dir_all(host.guest(guest).join("usr")).unwrap();
    }
    host.run(&["--undo", "--run", "1"]).expect(0);
    host.refuses(&["--undo", "--run", "1"], 2, &["run 1 is undone already"]);
}

/// A run takes back what it has shared, not what a later run has shared under the same name.
#[test]
fn an_undo_by_run_leaves_later_runs_alone() {
    let host = Host::new();
    host.unify();
    let upgrade = Manifest::parse("f usr/bin/tool 755 @1100000000 *21000:9").unwrap();
    (0..2).for_each(|guest| upgrade.write(host.guest(guest)).unwrap());
    host.unify();
    let before = host.world.snapshots();
    let ran = host.run(&["--undo", "--run", "1"]);
    ran.expect(0);
    assert!(host.world.shares("usr/bin/tool") && !host.world.shares("usr/bin/shell"), "{}", ran.out);
    assert_eq!(host.world.differences(&before), [""; 0]);
    host.run(&["--undo", "--run", "2"]).expect(0);
    assert!(!host.world.shares("usr/bin/tool"));
}

/// Names that a guest has moved since are the run's still, unless a later run has shared them.
#[test]
fn an_undo_by_run_finds_what_guests_have_moved() {
    let host = Host::new();
    host.unify();
    for guest in [host.guest(0), host.guest(1)] {
        std::fs::rename(guest.join("usr/bin/tool"), guest.join("usr/moved")).unwrap();
        std::fs::rename(guest.join("usr/bin/shell"), guest.join("usr/bin/other")).unwrap();
    }
    let own = "f usr/bin/shell 755 @1100000000 *21000:9\n";
    (0..2).for_each(|guest| Manifest::parse(own).unwrap().write(host.guest(guest)).unwrap());
    host.unify();
    let before = host.world.snapshots();
    let ran = host.run(&["--undo", "--run", "1", "--json"]);
    ran.expect(0);
    let shared = ["usr/moved", "usr/bin/other", "usr/bin/shell"].map(|name| host.world.shares(name));
    assert_eq!(shared, [false, false, true], "{}", ran.out);
    assert_eq!(host.world.ino(0, "usr/bin/sh"), host.world.ino(0, "usr/bin/other"));
    assert_eq!(ran.json().last().unwrap()["skipped"], serde_json::json!({}));
    host.refuses(&["--undo", "--run", "1"], 2, &["run 1 is undone already"]);
    assert_eq!(host.world.differences(&before), [""; 0]);
    host.run(&["--undo", "--run", "2"]).expect(0);
    assert!(!host.world.shares("usr/bin/shell"));
}

/// Removed, and shared again by a later run under another name: that run's.
#[test]
fn an_undo_by_run_leaves_what_a_later_run_has_shared_under_another_name() {
    let host = Host::new();
    host.unify();
    let (tool, again) = (host.guest(0).join("usr/bin/tool"), host.guest(0).join("usr/bin/again"));
    assert!(std::process::Command::new("cp").arg("-a").args([&tool, &again]).status().unwrap().success());
    std::fs::remove_file(&tool).unwrap();
    host.unify();
    assert_eq!(host.world.ino(0, "usr/bin/again"), host.world.ino(1, "usr/bin/tool"));
    host.run(&["--undo", "--run", "1"]).expect(0);
    assert_ne!(host.world.ino(0, "usr/bin/again"), host.world.ino(1, "usr/bin/tool"));
    assert_eq!(again.metadata().unwrap().nlink(), 2, "it is still an object");
}

#[test]
fn a_guest_of_the_run_that_is_gone_is_named() {
    let host = Host::with(&[GUEST, GUEST, GUEST]);
    host.run(&["--noflags", "--all"]).expect(0);
    std::fs::remove_dir_all(host.guest(2)).unwrap();
    let ran = host.run(&["--undo", "--run", "1"]);
    ran.expect(0).has_one_message(&["warning: a guest of the run is gone: ", "/g2"]);
    assert!(!host.world.shares("usr/bin/tool"));
}

// ---- interrupted ----

#[test]
fn an_interrupted_run_leaves_everything_whole() {
    let line = |n: u32| format!("f usr/bin/d{}/f{n} 755 @1000000000 *600:{n}", n % 40);
    let guest = (0..3000).map(line).collect::<Vec<_>>().join("\n");
    let host = Host::with(&[&guest, &guest]);
    let before = host.world.snapshots();
    let (mut interrupted, began) = (0, Instant::now());
    let mut delay = Duration::from_millis(20);
    while interrupted < 5 && began.elapsed() < Duration::from_secs(20) {
        let mut child = host.command(&["--noflags", "--verbose", "g0", "g1"]).spawn().unwrap();
        std::thread::sleep(delay);
        interrupt(&child);
        let mut err = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut err).unwrap();
        match child.wait().unwrap().code() {
            Some(130) => {
                interrupted += 1;
                delay += Duration::from_millis(15);
                assert!(err.starts_with("vunify: interrupted") || err.is_empty(), "{err}");
            }
            Some(0) => {
                host.run(&["--undo", "g0", "g1"]).expect(0);
                delay = Duration::from_millis(20);
            }
            // Before it listened for signals.
            None => delay += Duration::from_millis(15),
            other => panic!("{other:?}: {err}"),
        }
        if host.world.store_path().join("format.toml").exists() {
            assert!(host.world.is_tidy());
        }
        assert_eq!(host.world.differences(&before), [""; 0]);
    }
    assert!(interrupted > 0, "none of the runs was interrupted");
    host.unify();
    host.run(&["--undo", "g0", "g1"]).expect(0);
    assert_eq!(host.world.differences(&before), [""; 0]);
}

fn interrupt(child: &Child) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
}

fn path(base: &Path, name: &str) -> String {
    base.join(name).to_str().unwrap().to_owned()
}
