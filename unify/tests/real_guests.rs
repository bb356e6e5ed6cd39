//! Real distributions through everything a user does with them, compared by tools that are not ours: no
//! guest can tell that it was unified, and package managers work in it as in any other.
#![allow(clippy::disallowed_methods)] // copies of guests, changed as their programs would
#![allow(clippy::unwrap_used)] // to panic is how a test fails, in its helpers too

use std::collections::{BTreeSet, HashSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};

use fixtures::loopfs::{FsKind, Options};
use fixtures::{LoopFs, Skip, Snapshot, guests, require_command, skip};
use serde_json::Value;

/// Upgraded inside guests: setuid programs (login, mount), a setgid one (libpam-modules-bin), config
/// (login, libattr1), hard links (gzip), maintainer scripts (login).
const UPGRADED: [&str; 6] = ["grep", "gzip", "libattr1", "libpam-modules-bin", "login", "mount"];

/// One at a time: each fills a file system in memory.
static TURN: Mutex<()> = Mutex::new(());

#[test]
fn on_ext4() {
    on("on_ext4", FsKind::Ext4);
}

#[test]
fn on_xfs() {
    on("on_xfs", FsKind::Xfs);
}

#[test]
fn on_btrfs() {
    on("on_btrfs", FsKind::Btrfs);
}

fn on(test: &str, kind: FsKind) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(why) = whole_story(kind) {
        skip!(test, why);
    }
}

fn whole_story(kind: FsKind) -> Result<(), Skip> {
    ["rsync", "dpkg", "dpkg-deb", "dpkg-query", "rpm"].into_iter().try_for_each(require_command)?;
    let (debian, rpm) = (guests::debian("bookworm")?, guests::rpm()?);
    let own = LoopFs::with(&Options { kind, size: 3 << 30, mkfs: &[], mount: "" })?;
    let host = Host { base: own.path().join("guests"), pristine: own.path().join("pristine") };
    for place in [&host.base, &host.pristine, &own.path().join("debs")] {
        std::fs::create_dir(place).unwrap();
    }
    for (name, guest) in [("d0", &debian), ("d1", &debian), ("r0", &rpm), ("r1", &rpm)] {
        guest.copy_to(&host.guest(name)).unwrap();
    }
    drift(&host.guest("d1"), &own.path().join("debs"));
    host.remember();

    let reports = NAMES.map(|name| verify(&host.guest(name)));
    assert!(reports[1].contains("bash.bashrc"), "the edited conffile shows: {}", reports[1]);
    let before = host.space();
    host.vunify(&["--noflags"]);
    for (name, report) in NAMES.iter().zip(&reports) {
        host.check_unchanged(name);
        assert_eq!(&verify(&host.guest(name)), report, "{name}");
        check_config(&host.guest(name), &host.pristine.join(name));
    }
    let after = host.space();
    assert!(after * 10 <= before * 6, "{before} bytes became {after}");
    let again = host.vunify(&["--noflags"]);
    assert_eq!((&again["run"], &again["files_read"]), (&Value::Null, &0.into()), "{again}");

    upgrade_inside(&host, &own.path().join("debs"), &rpm);
    host.vunify(&["--noflags"]);
    host.check_all_unchanged();
    for (a, b, path) in [("d0", "d1", "usr/bin/grep"), ("r0", "r1", "usr/bin/bash")] {
        let ino = |name| std::fs::metadata(host.guest(name).join(path)).unwrap().ino();
        assert_eq!(ino(a), ino(b), "{path} is equal again");
    }

    host.vunify(&["--undo"]);
    host.check_all_unchanged();
    for name in NAMES {
        check_alone(&host.guest(name));
        let (was, is) = (Snapshot::take(&host.pristine.join(name)), Snapshot::take(&host.guest(name)));
        let mut found = was.unwrap().diff(&is.unwrap());
        found.retain(|line| !line.contains("rpmdb.sqlite-"));
        assert_eq!(found, [""; 0], "{name}");
    }
    Ok(())
}

const NAMES: [&str; 4] = ["d0", "d1", "r0", "r1"];

/// Guests, and what each should look like.
struct Host {
    base: PathBuf,
    pristine: PathBuf,
}

impl Host {
    fn guest(&self, name: &str) -> PathBuf {
        self.base.join(name)
    }

    fn remember(&self) {
        for name in NAMES {
            copy(&self.guest(name), &self.pristine.join(name));
        }
    }

    /// Runs the command on all guests; its summary.
    fn vunify(&self, options: &[&str]) -> Value {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vunify"));
        command.args(["--json", "--policy"]).arg(&self.base).args(options); // there is no policy
        let output = run(command.args(NAMES.map(|name| self.guest(name))));
        let text = String::from_utf8(output.stdout).unwrap();
        let summary: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!((&summary["type"], &summary["errors"]), (&"summary".into(), &0.into()), "{text}");
        assert_eq!((&summary["not_done"], &summary["warnings"]), (&0.into(), &0.into()), "{text}");
        assert_eq!(summary["skipped"], serde_json::json!({}), "{text}");
        summary
    }

    /// A guest is what it should be: content, times, owners, ACLs, attributes, hard links.
    fn check_unchanged(&self, name: &str) {
        let found = differences(&self.pristine.join(name), &self.guest(name), &[]);
        assert_eq!(found, "", "{name}");
    }

    fn check_all_unchanged(&self) {
        NAMES.iter().for_each(|name| self.check_unchanged(name));
    }

    /// Bytes that the guests take, each inode once.
    fn space(&self) -> u64 {
        run(Command::new("sync").arg("--file-system").arg(&self.base));
        let mut inodes = HashSet::new();
        let mut bytes = 0;
        for name in NAMES {
            for node in Snapshot::take(&self.guest(name)).unwrap().nodes.values() {
                bytes += if inodes.insert(node.ino) { node.allocated } else { 0 };
            }
        }
        bytes
    }
}

fn run(command: &mut Command) -> Output {
    let output = command.env("LC_ALL", "C").output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}{text}", String::from_utf8_lossy(&output.stdout));
    output
}

fn text(command: &mut Command) -> String {
    String::from_utf8(run(command).stdout).unwrap()
}

fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").args(["-a", "--reflink=auto", "-T"]).args([from, to]));
}

/// What rsync would have to do to make `guest` into `expected`. Looking at rpm's database changes the files
/// by which its readers share it.
fn differences(expected: &Path, guest: &Path, options: &[&str]) -> String {
    let mut rsync = Command::new("rsync");
    rsync
        .args(["-aHAXn", "--checksum", "--delete", "--itemize-changes", "--exclude=rpmdb.sqlite-*"])
        .args(options);
    text(rsync.arg(expected.join("")).arg(guest.join("")))
}

// ---- package managers ----

fn is_rpm(guest: &Path) -> bool {
    guest.join("usr/lib/sysimage/rpm").exists()
}

/// What the package manager says of its files.
fn verify(guest: &Path) -> String {
    let mut command = if is_rpm(guest) { guests::rpm_command(guest) } else { Command::new("dpkg") };
    if is_rpm(guest) {
        command.arg("-Va");
    } else {
        command.arg("--root").arg(guest).arg("--verify");
    }
    let output = command.env("LC_ALL", "C").output().unwrap();
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

/// The package manager's config files are the guest's own inodes.
fn check_config(guest: &Path, pristine: &Path) {
    let list = if is_rpm(guest) {
        text(guests::rpm_command(guest).args(["-qac"]))
    } else {
        text(dpkg_query(guest).args(["-W", "-f", "${Conffiles}\n"]))
    };
    let paths = list.lines().filter_map(|line| line.split_whitespace().next());
    let mut count = 0;
    for path in paths.filter_map(|path| path.strip_prefix('/')) {
        let Ok(stat) = std::fs::symlink_metadata(guest.join(path)) else { continue };
        let before = std::fs::symlink_metadata(pristine.join(path)).unwrap();
        if stat.is_file() {
            assert_eq!(stat.nlink(), before.nlink(), "{path} is shared");
            count += 1;
        }
    }
    assert!(count > 20, "only {count} config files: {list}");
}

/// No inode has a name outside the guest.
fn check_alone(guest: &Path) {
    let snapshot = Snapshot::take(guest).unwrap();
    for names in snapshot.groups().values() {
        let node = &snapshot.nodes[names[0]];
        assert_eq!(node.nlink as usize, names.len(), "{}: {names:?}", guest.display());
    }
}

fn dpkg_query(guest: &Path) -> Command {
    let mut command = Command::new("dpkg-query");
    command.arg("--admindir").arg(guest.join("var/lib/dpkg"));
    command
}

fn install(guest: &Path, debs: &[PathBuf]) {
    let mut dpkg = Command::new("dpkg");
    dpkg.arg("--root").arg(guest).args(["--force-confold", "--force-depends", "--no-triggers", "--install"]);
    run(dpkg.args(debs).env("DEBIAN_FRONTEND", "noninteractive"));
}

/// A package made of a guest's own files with a version of `number`: every second file has a line more.
fn rebuild(guest: &Path, package: &str, number: u32, debs: &Path) -> PathBuf {
    let tree = debs.join(format!("{package}-{number}"));
    let control = tree.join("DEBIAN");
    std::fs::create_dir_all(&control).unwrap();
    let list = text(dpkg_query(guest).args(["--listfiles", package]));
    let files: BTreeSet<&str> = list.lines().filter_map(|path| path.strip_prefix('/')).collect();
    // Of links like /bin -> usr/bin a package knows nothing: to it they are directories.
    let is_linked_dir = |path: &&str| guest.join(path).is_symlink() && guest.join(path).is_dir();
    files.iter().filter(|path| is_linked_dir(path)).for_each(|path| {
        std::fs::create_dir(tree.join(path)).unwrap();
    });
    let present =
        |path: &&str| *path != "." && guest.join(path).symlink_metadata().is_ok() && !is_linked_dir(path);
    let names = debs.join(format!("{package}-{number}.list"));
    std::fs::write(&names, files.iter().copied().filter(present).collect::<Vec<_>>().join("\n")).unwrap();
    // tar keeps modes, owners, times and hard links.
    let pack = "tar -C \"$0\" -c --no-recursion -T \"$1\" | tar -C \"$2\" -x -p";
    run(Command::new("sh").arg("-c").arg(pack).args([guest, &names, &tree]));

    let conffiles = text(dpkg_query(guest).args(["-W", "-f", "${Conffiles}\n", package]));
    let conffiles: Vec<&str> = conffiles.lines().filter_map(|line| line.split_whitespace().next()).collect();
    std::fs::write(control.join("conffiles"), lines(&conffiles)).unwrap();
    let status = text(dpkg_query(guest).args(["--status", package]));
    std::fs::write(control.join("control"), control_text(&status, number)).unwrap();
    let regular = files
        .iter()
        .map(|path| tree.join(path))
        .filter(|path| path.symlink_metadata().is_ok_and(|stat| stat.is_file()));
    for path in regular.step_by(2) {
        let mode = std::fs::metadata(&path).unwrap().permissions();
        let mut content = std::fs::read(&path).unwrap();
        content.extend_from_slice(format!("# version {number}\n").as_bytes());
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, mode).unwrap();
        run(Command::new("touch").args(["-d", "@1700000000"]).arg(&path));
    }
    let deb = debs.join(format!("{package}-{number}.deb"));
    run(Command::new("dpkg-deb").args(["-Znone", "--build"]).args([&tree, &deb]));
    deb
}

fn lines(lines: &[&str]) -> String {
    lines.iter().map(|line| [line, "\n"].concat()).collect()
}

/// The record of an installed package as that of a package of a later version.
fn control_text(status: &str, number: u32) -> String {
    let mut kept = Vec::new();
    let mut skipping = false;
    for line in status.lines() {
        if !line.starts_with(' ') {
            skipping = ["Status:", "Conffiles:"].iter().any(|field| line.starts_with(field));
        }
        if !skipping {
            kept.push(line.to_owned());
        }
    }
    let later = |line: &String| match line.strip_prefix("Version: ") {
        Some(version) => format!("Version: {version}+{number}\n"),
        None => format!("{line}\n"),
    };
    kept.iter().map(later).collect()
}

// ---- what happens to guests ----

/// A second guest is never quite like the first.
fn drift(guest: &Path, debs: &Path) {
    let conffile = guest.join("etc/bash.bashrc");
    let mut text = std::fs::read(&conffile).unwrap();
    text.extend_from_slice(b"alias ll='ls -l'\n");
    std::fs::write(&conffile, text).unwrap();
    let replaced = guest.join("usr/bin/tac");
    std::fs::remove_file(&replaced).unwrap();
    std::fs::write(&replaced, "#!/bin/sh\nexec perl -e 'print reverse <>' \"$@\"\n").unwrap();
    std::fs::write(guest.join("usr/local/bin/own"), "the administrator's\n").unwrap();
    std::fs::write(guest.join("var/log/own.log"), "a line\n").unwrap();
    let sed = rebuild(guest, "sed", 1, debs);
    install(guest, &[sed]);
}

/// Package managers upgrade unified guests as they do others, and nobody else notices.
fn upgrade_inside(host: &Host, debs: &Path, rpm: &guests::Guest) {
    let packages: Vec<PathBuf> =
        UPGRADED.iter().map(|package| rebuild(&host.pristine.join("d0"), package, 2, debs)).collect();
    let upgrade = |guest: &Path| {
        if is_rpm(guest) {
            let mut upgrade = guests::rpm_command(guest);
            upgrade.args(["--upgrade", "--nodeps", "--noscripts", "--nosignature"]);
            run(upgrade.args(rpm.upgrades()));
        } else {
            install(guest, &packages);
        }
    };
    for (first, second) in [("d0", "d1"), ("r0", "r1")] {
        for name in [first, second] {
            let (guest, expected) = (host.guest(name), host.pristine.join(name));
            upgrade(&guest);
            for other in NAMES.iter().filter(|other| **other != name) {
                host.check_unchanged(other);
            }
            upgrade(&expected);
            // When it was installed is noted in logs, in rpm's database and in directories' times.
            let options = [
                "--omit-dir-times",
                "--exclude=/var/log",
                "--exclude=/var/lib/dpkg",
                "--exclude=/usr/lib/sysimage",
            ];
            assert_eq!(differences(&expected, &guest, &options), "", "{name} after its upgrade");
            let records = ["--no-times", "--exclude=/usr/lib/sysimage", "--exclude=/var/log"];
            assert_eq!(differences(&expected, &guest, &records), "", "{name}: the records of its upgrade");
            assert_eq!(verify(&guest), verify(&expected), "{name}");
            // From here on this is what the guest should look like.
            run(Command::new("rm").arg("-rf").arg(&expected));
            copy(&guest, &expected);
        }
    }
}
