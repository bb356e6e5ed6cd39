//! Package upgrades inside guests that are unified, sealed and running.
//!
//! This is what link-invert is for: `apt` and `dpkg` replace what they find, and each guest ends as an
//! unshared copy does, while the other guest notices nothing. Stock kernels enforce the seal by the eBPF
//! programs, in a virtual machine; the trees are made and compared on this one.
//!
//! `RUNNING_GUESTS=xfs` runs only the round on that file system.
#![allow(clippy::disallowed_methods)] // the files are the test's own
#![allow(clippy::print_stderr)] // a test without the harness reports by itself

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use fixtures::loopfs::{FsKind, LoopFs, Options};
use fixtures::vm::{Kernel, Vm};
use fixtures::{Snapshot, guests, require_command, skip};

const NAME: &str = "running_guests";

/// Done in a guest, as root of it, with the packages on /mnt.
const WORK: &str = r#"
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin
apt() { apt-get -y -q -o Dpkg::Options::=--force-unsafe-io -o Dpkg::Use-Pty=0 -o APT::Sandbox::User=root "$@"; }
# A program moved aside for the administrator's own, another owner's mode, an alternative.
dpkg-divert --local --rename --divert /usr/bin/clear.distrib --add /usr/bin/clear
printf '#!/bin/sh\necho cleared\n' >/usr/bin/clear
chmod 755 /usr/bin/clear
touch -d @1700000000 /usr/bin/clear
dpkg-statoverride --add root root 0750 /usr/bin/chage
update-alternatives --install /usr/bin/backwards backwards /usr/bin/tac 10
update-alternatives --install /usr/bin/backwards backwards /usr/bin/rev 20
apt install --no-install-recommends /mnt/new/*.deb
apt install --allow-downgrades /mnt/old/*.deb
apt install --reinstall /mnt/old/coreutils_* /mnt/old/passwd_* /mnt/old/login_* /mnt/old/mount_* /mnt/old/libc6_*
dpkg --force-unsafe-io --install /mnt/new/dash_* /mnt/new/tar_* /mnt/new/sed_* /mnt/new/passwd_* /mnt/new/libc-bin_*
dpkg --audit
update-alternatives --remove backwards /usr/bin/rev
"#;

/// `inside ROOT PACKAGES COMMAND...`: becomes a command in a guest that has namespaces of its own, and ends with it.
const INSIDE: &str = r#"
inside() {
    exec unshare --mount --pid --fork --kill-child sh -c '
        set -eu; root=$1 packages=$2; shift 2
        mount --make-rprivate /
        mount --bind "$packages" "$root/mnt"
        mount -t proc proc "$root/proc"
        mount --bind /dev "$root/dev"
        exec chroot "$root" "$@"' sh "$@"
}
"#;

/// In the machine. Programs keep running in both guests from before the upgrade until after it.
const JOB: &str = r#"
set -eu
modprobe -q "$FS" || :
mkdir -p /run/guests; mount -t "$FS" /dev/vda /run/guests; cd /run/guests
"$AGENT" load /run/guests
"$VUNIFY" --immutable-mayunlink ./a ./b
if echo >>a/usr/bin/tac; then echo "a shared file could be written to"; exit 90; fi
running=
for guest in a b; do
    inside $PWD/$guest $PACKAGES /bin/bash -c 'exec 9</usr/bin/perl; while :; do perl -e 1; ls /usr/bin >/dev/null; sleep 5; done' &
    running="$running $!"
done
sleep 3
(inside $PWD/a $PACKAGES /bin/sh /mnt/work)
for job in $running; do kill -0 $job || { echo "a running program has ended"; exit 91; }; done
for job in $running; do kill -KILL $job; done
wait || :
cd /; umount /run/guests
"#;

/// Runs by itself in the machine: `load DIRECTORY` starts the enforcement.
fn load(dir: &str) -> Result<(), String> {
    for object in kernel::bpf::objects::ALL {
        kernel::bpf::load(&kernel::bpf::Host::default(), object).map_err(|error| error.to_string())?;
    }
    let dir = kernel::Dir::open_host(Path::new(dir)).map_err(kernel::explain)?;
    kernel::bpf::scope::add(&dir).map_err(kernel::explain)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["load", dir] => load(dir),
        ["--list", ..] => Ok(()),
        _ => upgrades(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{NAME}: {why}");
            ExitCode::FAILURE
        }
    }
}

/// What every round needs, and what a guest has to become.
struct Setting {
    guest: guests::Guest,
    packages: std::path::PathBuf,
    /// A copy that nobody shared, after the same work on this machine.
    expected: std::path::PathBuf,
}

fn upgrades() -> Result<(), String> {
    for needed in [fixtures::require_root(), require_command("unshare"), require_command("rsync")] {
        if let Err(skip) = needed {
            skip::note(NAME, &skip.0);
            return Ok(());
        }
    }
    let made = guests::debian("bookworm").and_then(|guest| Ok((guest, guests::debian_packages("bookworm")?)));
    let (guest, packages) = match made {
        Ok(made) => made,
        Err(skip) => {
            skip::note(NAME, &skip.0);
            return Ok(());
        }
    };
    let place = tempfile::tempdir().map_err(text)?;
    let setting = Setting { guest, packages, expected: place.path().join("expected") };
    setting.guest.copy_to(&setting.expected).map_err(text)?;
    std::fs::write(setting.packages.join("work"), WORK).map_err(text)?;
    let script = format!(
        "{INSIDE}\ninside {} {} /bin/sh /mnt/work",
        setting.expected.display(),
        setting.packages.display()
    );
    succeed(Command::new("sh").args(["-euc", &script]))?;
    let rounds = [(FsKind::Ext4, "6.1"), (FsKind::Xfs, "6.12"), (FsKind::Btrfs, "6.12")];
    let chosen = std::env::var("RUNNING_GUESTS").unwrap_or_default();
    let rounds: Vec<_> = rounds.into_iter().filter(|(fs, _)| fs.name().contains(&chosen)).collect();
    // Each machine uses one processor.
    for pair in rounds.chunks(2) {
        std::thread::scope(|scope| {
            let start = |&(fs, version)| {
                let setting = &setting;
                scope.spawn(move || {
                    round(setting, fs, version).map_err(|why| format!("{} on {version}: {why}", fs.name()))
                })
            };
            let running: Vec<_> = pair.iter().map(start).collect();
            running
                .into_iter()
                .try_for_each(|round| round.join().unwrap_or_else(|_| Err("a round panicked".into())))
        })?;
    }
    Ok(())
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn succeed(command: &mut Command) -> Result<String, String> {
    let done = command.output().map_err(text)?;
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    if done.status.success() {
        return Ok(said);
    }
    Err(format!("{command:?}: {}\n{said}{}", done.status, String::from_utf8_lossy(&done.stderr)))
}

fn round(setting: &Setting, fs: FsKind, version: &str) -> Result<(), String> {
    let start = Instant::now();
    let (kernel, mut disk) = match Kernel::stock(version).and_then(|kernel| Ok((kernel, disk(fs)?))) {
        Ok(both) => both,
        Err(skip) => {
            skip::note(NAME, &skip.0);
            return Ok(());
        }
    };
    let [a, b] = ["a", "b"].map(|name| disk.path().join(name));
    for guest in [&a, &b] {
        setting.guest.copy_to(guest).map_err(text)?;
    }
    let before = Snapshot::take(&b).map_err(text)?;
    disk.lend(|device| work(setting, device, fs, kernel)).map_err(text)??;
    let after = Snapshot::take(&b).map_err(text)?;
    let changes = before.diff(&after);
    if !changes.is_empty() {
        return Err(format!("the other guest has changed:\n{}", changes.join("\n")));
    }
    let shared = after.nodes.values().filter(|node| node.nlink > 1 && node.digest.is_some()).count();
    if shared < 1000 {
        return Err(format!("only {shared} files were shared"));
    }
    compare(&setting.expected, &a)?;
    eprintln!("{NAME}: {} on {version}: {shared} shared files, {} s", fs.name(), start.elapsed().as_secs());
    Ok(())
}

fn disk(fs: FsKind) -> Result<LoopFs, fixtures::Skip> {
    LoopFs::with(&Options { kind: fs, size: 4 << 30, mkfs: &[], mount: "" })
}

fn work(setting: &Setting, device: &Path, fs: FsKind, kernel: Kernel) -> Result<(), String> {
    let share = tempfile::tempdir().map_err(text)?;
    let vm = Vm { disks: vec![device.to_owned()], limit: Duration::from_mins(25), ..Vm::new(kernel) };
    let agent = std::env::current_exe().map_err(text)?;
    let job = format!(
        "FS={} AGENT={} VUNIFY={} PACKAGES={}\n{INSIDE}{JOB}",
        fs.name(),
        agent.display(),
        env!("CARGO_BIN_EXE_vunify"),
        setting.packages.display()
    );
    let done = vm.run(share.path(), &job).map_err(text)?;
    if done.status == 0 { Ok(()) } else { Err(format!("{}\n{}\n{}", done.status, done.output, done.console)) }
}

/// Content and metadata of everything; times where packages bring them along.
fn compare(expected: &Path, guest: &Path) -> Result<(), String> {
    let logs = ["--exclude=/var/log", "--exclude=/var/cache"];
    let records = [&logs[..], &["--no-times"]].concat();
    let programs = ["--omit-dir-times", "--exclude=/var", "--exclude=/etc"];
    for options in [&records[..], &programs[..]] {
        let mut rsync = Command::new("rsync");
        rsync.args(["-aHAX", "--numeric-ids", "--checksum", "--dry-run", "--delete", "--itemize-changes"]);
        let found = succeed(rsync.args(options).args([expected.join(""), guest.join("")]))?;
        if !found.is_empty() {
            return Err(format!("the guest differs from its unshared copy:\n{found}"));
        }
    }
    Ok(())
}
