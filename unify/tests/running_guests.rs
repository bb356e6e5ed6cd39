//! Package upgrades inside guests that are unified, sealed and running.
//!
//! This is what link-invert is for: `apt`, `dpkg`, `dnf` and `rpm` replace what they find, and each guest
//! ends as an unshared copy does, while the other guest notices nothing. All that runs in the guests runs in
//! contexts, as root with what guests may at most. Stock kernels enforce the seal and the contexts by the eBPF
//! programs, the patched one by itself, in virtual machines; the trees are made and compared on this one.
//!
//! The rounds differ: on ext4 all of the fifty packages are upgraded, downgraded and installed again, elsewhere
//! some (see `ROUNDS`). `RUNNING_GUESTS=xfs` runs only the rounds whose name has that in it. Those of the patched
//! kernel run where it is built, as it is whenever the conformance suite needs it (`make kernel`).
#![allow(clippy::disallowed_methods)] // the files are the test's own
#![allow(clippy::print_stderr)] // a test without the harness reports by itself

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use fixtures::loopfs::{FsKind, LoopFs, Options};
use fixtures::vm::{Kernel, Vm};
use fixtures::{Skip, Snapshot, guests, require_command, skip};
use kernel::{Capabilities, ContextEntry, Properties, Which};

const NAME: &str = "running_guests";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Distribution {
    Debian,
    Rpm,
}

use Distribution::{Debian, Rpm};

/// One machine with two guests on a file system. Together, the rounds have every file system, both kernels and
/// both package formats.
struct Round {
    guests: Distribution,
    fs: FsKind,
    kernel: &'static str,
    packages: &'static str,
}

const ALL: &str = "*";
/// Those with setuid programs, an alternative, a diversion, and the libraries that all programs use.
const SOME: &str = "bash coreutils dash grep gzip libc-bin libc6 login mount passwd sed tar util-linux";

/// In place of a version of Debian's kernel.
const PATCHED: &str = "patched 6.12";

const ROUNDS: [Round; 6] = [
    Round { guests: Debian, fs: FsKind::Ext4, kernel: "6.1", packages: ALL },
    Round { guests: Rpm, fs: FsKind::Xfs, kernel: "6.1", packages: ALL },
    Round { guests: Debian, fs: FsKind::Xfs, kernel: "6.12", packages: SOME },
    Round { guests: Debian, fs: FsKind::Btrfs, kernel: "6.12", packages: SOME },
    Round { guests: Debian, fs: FsKind::Ext4, kernel: PATCHED, packages: ALL },
    Round { guests: Rpm, fs: FsKind::Btrfs, kernel: PATCHED, packages: SOME },
];

impl Round {
    fn name(&self) -> String {
        format!("{:?}, {} on {}", self.guests, self.fs.name(), self.kernel)
    }
}

/// Done in a Debian guest, as root of it, with the packages on /mnt.
const APT: &str = r#"
set -euf
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin
apt() { apt-get -y -q -o Dpkg::Options::=--force-unsafe-io -o Dpkg::Use-Pty=0 -o APT::Sandbox::User=root "$@"; }
files() { folder=$1; shift; set +f; for name do echo /mnt/$folder/${name}_*.deb; done; set -f; }
# A program moved aside for the administrator's own, another owner's mode, an alternative.
dpkg-divert --local --rename --divert /usr/bin/clear.distrib --add /usr/bin/clear
printf '#!/bin/sh\necho cleared\n' >/usr/bin/clear
chmod 755 /usr/bin/clear
touch -d @1700000000 /usr/bin/clear
dpkg-statoverride --add root root 0750 /usr/bin/chage
update-alternatives --install /usr/bin/backwards backwards /usr/bin/tac 10
update-alternatives --install /usr/bin/backwards backwards /usr/bin/rev 20
apt install --no-install-recommends $(files new $PICK)
apt install --allow-downgrades $(files old $PICK)
apt install --reinstall $(files old $PICK)
dpkg --force-unsafe-io --install $(files new dash tar sed passwd libc-bin)
dpkg --audit
update-alternatives --remove backwards /usr/bin/rev
"#;

/// Done in an rpm guest, as root of it, with the packages on /mnt. What Python compiles is not compared.
const DNF: &str = r#"
set -euf
export LC_ALL=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin PYTHONPYCACHEPREFIX=/var/cache/python
export HOME=/var/cache/home
mkdir -p $HOME
cat >$HOME/.rpmmacros <<END
%_dbpath /usr/lib/sysimage/rpm
%_db_backend sqlite
END
cat >$HOME/dnf.conf <<END
[main]
reposdir=/dev/null
plugins=0
gpgcheck=0
[old]
name=old
baseurl=file:///mnt/old
[new]
name=new
baseurl=file:///mnt/new
END
from() { folder=$1; shift; dnf -y -q -c $HOME/dnf.conf --releasever 1 --repo "$folder" "$@"; }
# The administrator's own configuration, and what has to be kept beside it.
echo '# local' >>/etc/login.defs
touch -d @1700000000 /etc/login.defs
from new upgrade $PICK
from old downgrade $PICK
from old reinstall $PICK
cd /mnt/new
rpm --upgrade dash-2.rpm tar-2.rpm sed-2.rpm passwd-2.rpm libc-bin-2.rpm
rpm --erase mawk
"#;

/// `inside ROOT COMMAND...`: becomes a command with namespaces of its own and ends with it; the guest has what
/// a running one has.
const INSIDE: &str = r#"
inside() {
    exec unshare --mount --pid --fork --kill-child sh -c '
        set -eu; root=$1; shift
        mount --make-rprivate /
        mount --bind "$PACKAGES" "$root/mnt"
        mount -t proc proc "$root/proc"
        mount --bind /dev "$root/dev"
        exec "$@"' sh "$@"
}
"#;

/// In the machine. Programs keep running in both guests, and start, from before the upgrade until after it.
const JOB: &str = r#"
set -eu
now() { cut -d. -f1 /proc/uptime; }
shared() { find b -xdev -type f -links +1 | wc -l; }
modprobe -q "$FS" || :
mkdir -p /run/guests; mount -t "$FS" /dev/vda /run/guests; cd /run/guests
if [ -z "$IS_PATCHED" ]; then
    # The mark alone protects nothing: it is the programs.
    echo >marked; chattr +A +S marked; echo >>marked
    "$AGENT" load /run/guests
    if echo >>marked; then echo "nothing is enforced"; exit 92; fi
fi
[ -z "$IS_PATCHED" ] || echo 1 >/proc/sys/fs/vserver/honour_tag
export ENTER="$AGENT guest"
began=$(now)
"$VUNIFY" --immutable-mayunlink ./a ./b
unified=$(now)
if echo >>a/usr/bin/tac; then echo "a shared file could be written to"; exit 90; fi
before=$(shared)
running=
for guest in a b; do
    inside $PWD/$guest $ENTER $PWD/$guest /bin/bash -c '
        exec 9</usr/bin/perl
        while perl -e 1 && ls /usr/bin >/dev/null; do sleep 5; done' &
    running="$running $!"
done
sleep 3
upgraded=$(now)
(inside $PWD/a sh $WORK)
echo "times: $((unified - began)) s to unify, $(($(now) - upgraded)) s to upgrade"
for job in $running; do kill -0 $job || { echo "a running program has ended"; exit 91; }; done
for job in $running; do kill -KILL $job; done
wait || :
[ $(shared) = $before ] || { echo "$before files were shared, now $(shared)"; exit 93; }
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

/// Runs by itself in the machine: `guest ROOT COMMAND...` becomes a command of a guest, in a context of its own.
fn guest(root: &str, command: &[&str]) -> Result<(), String> {
    use std::os::unix::process::CommandExt;
    std::os::unix::fs::chroot(root).and_then(|()| std::env::set_current_dir("/")).map_err(text)?;
    let remove = Capabilities::OF_A_GUEST.others();
    let entry = ContextEntry { which: Which::Fresh, remove, properties: Properties::default() };
    let number = kernel::contexts().enter(&entry).map_err(text)?;
    if number == 0 {
        return Err("still in context 0".into());
    }
    Err(Command::new(command[0]).args(&command[1..]).exec().to_string())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["load", dir] => load(dir),
        ["guest", root, ref command @ ..] if !command.is_empty() => guest(root, command),
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

/// What guests of one kind are upgraded with.
struct Setting {
    guests: Distribution,
    guest: guests::Guest,
    packages: PathBuf,
    place: tempfile::TempDir,
}

impl Setting {
    fn make(guests: Distribution) -> Result<Self, Skip> {
        let (guest, packages) = match guests {
            Debian => (guests::debian("bookworm")?, guests::debian_packages("bookworm")?),
            Rpm => {
                ["dnf", "rpm"].into_iter().try_for_each(require_command)?;
                (guests::rpm_with_dnf()?, guests::rpm_packages()?)
            }
        };
        let place = tempfile::tempdir().map_err(Skip::needs)?;
        let setting = Self { guests, guest, packages, place };
        setting.write().map_err(Skip::needs)?;
        Ok(setting)
    }

    /// Shell: `inside`, and the work for the guest `$ROOT` in a file `$WORK`.
    fn script(&self, packages: &str, root: &str) -> String {
        format!(
            "export ROOT={root} PACKAGES={} WORK={} PICK='{packages}'\n{INSIDE}",
            self.packages.display(),
            self.place.path().join("work").display()
        )
    }

    /// Writes the work down.
    fn write(&self) -> std::io::Result<()> {
        let [work, inner] = ["work", "inner"].map(|name| self.place.path().join(name));
        let outer = format!("exec ${{ENTER-chroot}} \"$ROOT\" /bin/sh -c \"$(cat {})\"", inner.display());
        std::fs::write(&work, outer)?;
        std::fs::write(&inner, if self.guests == Debian { APT } else { DNF })
    }

    /// The work, on this machine.
    fn upgrade(&self, packages: &str, root: &Path) -> Result<String, String> {
        let script = self.script(packages, &root.display().to_string());
        succeed(Command::new("sh").args(["-euc", &format!("{script}\ninside $ROOT sh $WORK")]))
    }

    /// A copy that nobody shared, after the work.
    fn expected(&self, packages: &str) -> Result<PathBuf, String> {
        let root = self.place.path().join(if packages == ALL { "all" } else { "some" });
        if !root.exists() {
            self.guest.copy_to(&root).map_err(text)?;
            self.upgrade(packages, &root)?;
        }
        Ok(root)
    }
}

fn upgrades() -> Result<(), String> {
    for needed in [fixtures::require_root(), require_command("unshare"), require_command("rsync")] {
        if let Err(skip) = needed {
            skip::note(NAME, &skip.0);
            return Ok(());
        }
    }
    let chosen = std::env::var("RUNNING_GUESTS").unwrap_or_default();
    let rounds: Vec<_> = ROUNDS.iter().filter(|round| round.name().contains(&chosen)).collect();
    let mut ready = Vec::new();
    for guests in [Debian, Rpm] {
        let rounds: Vec<_> = rounds.iter().filter(|round| round.guests == guests).collect();
        if rounds.is_empty() {
            continue;
        }
        match Setting::make(guests) {
            Err(skip) => skip::note(NAME, &skip.0),
            Ok(setting) => ready.push(setting),
        }
    }
    for setting in &ready {
        controls(setting).map_err(|why| format!("{:?}, without link-invert: {why}", setting.guests))?;
    }
    let mut todo = Vec::new();
    for round in rounds {
        if let Some(setting) = ready.iter().find(|setting| setting.guests == round.guests) {
            todo.push((setting, round, setting.expected(round.packages)?));
        }
    }
    // Each machine uses one processor.
    for pair in todo.chunks(2) {
        std::thread::scope(|scope| {
            let running: Vec<_> = pair
                .iter()
                .map(|(setting, round, expected)| {
                    scope.spawn(move || {
                        play(setting, round, expected).map_err(|why| format!("{}: {why}", round.name()))
                    })
                })
                .collect();
            let ended =
                running.into_iter().map(|round| round.join().unwrap_or_else(|_| Err("panicked".into())));
            ended.collect::<Vec<_>>().into_iter().collect::<Result<(), _>>()
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

/// What the rounds rely on, with other seals, on this machine: names that cannot be replaced make upgrades fail,
/// and what one guest writes into an unprotected file shows in the other.
fn controls(setting: &Setting) -> Result<(), String> {
    let disk = match disk(FsKind::Ext4) {
        Ok(disk) => disk,
        Err(skip) => {
            skip::note(NAME, &skip.0);
            return Ok(());
        }
    };
    let [a, b] = guests_on(setting, &disk)?;
    let before = Snapshot::take(&b).map_err(text)?;
    let vunify =
        |option| succeed(Command::new(VUNIFY).args([option, "--policy"]).arg(disk.path()).args([&a, &b]));
    vunify("--immutable")?;
    match setting.upgrade(SOME, &a) {
        Err(why) if why.contains("Operation not permitted") || why.contains("Error unpacking") => {}
        other => return Err(format!("an upgrade of immutable files did not fail: {other:?}")),
    }
    vunify("--undo")?;
    unchanged(&before, &b)?;
    vunify("--noflags")?;
    unchanged(&before, &b)?;
    let mut file = std::fs::File::options().append(true).open(a.join("usr/bin/grep")).map_err(text)?;
    file.write_all(b"\n").map_err(text)?;
    match unchanged(&before, &b) {
        Err(why) if why.contains("usr/bin/grep") => Ok(()),
        other => Err(format!("a write into a shared file did not show: {other:?}")),
    }
}

const VUNIFY: &str = env!("CARGO_BIN_EXE_vunify");

fn guests_on(setting: &Setting, disk: &LoopFs) -> Result<[PathBuf; 2], String> {
    let guests = ["a", "b"].map(|name| disk.path().join(name));
    for guest in &guests {
        setting.guest.copy_to(guest).map_err(text)?;
    }
    Ok(guests)
}

fn unchanged(before: &Snapshot, guest: &Path) -> Result<(), String> {
    let changes = before.diff(&Snapshot::take(guest).map_err(text)?);
    if changes.is_empty() {
        Ok(())
    } else {
        Err(format!("the other guest has changed:\n{}", changes.join("\n")))
    }
}

fn play(setting: &Setting, round: &Round, expected: &Path) -> Result<(), String> {
    let start = Instant::now();
    let (kernel, mut disk) = match kernel_of(round).and_then(|kernel| Ok((kernel, disk(round.fs)?))) {
        Ok((Some(kernel), disk)) => (kernel, disk),
        Ok((None, _)) => {
            eprintln!(
                "{NAME}: {}: not run, as the patched kernel is not built here (make kernel)",
                round.name()
            );
            return Ok(());
        }
        Err(skip) => {
            skip::note(NAME, &skip.0);
            return Ok(());
        }
    };
    let [a, b] = guests_on(setting, &disk)?;
    let before = Snapshot::take(&b).map_err(text)?;
    if compare(setting.guests, expected, &a).is_ok() {
        return Err("the guest is as upgraded already".into());
    }
    let said = disk.lend(|device| work(setting, round, device, kernel)).map_err(text)??;
    unchanged(&before, &b)?;
    let after = Snapshot::take(&b).map_err(text)?;
    let shared = after.nodes.values().filter(|node| node.nlink > 1 && node.digest.is_some()).count();
    if shared < 1000 {
        return Err(format!("only {shared} files were shared"));
    }
    compare(setting.guests, expected, &a)?;
    let times = said.lines().find(|line| line.starts_with("times:")).unwrap_or_default();
    let packages = if round.packages == ALL { "all packages" } else { "some packages" };
    let whole = start.elapsed().as_secs();
    eprintln!("{NAME}: {}: {packages}, {shared} shared files; {times}, {whole} s with all", round.name());
    Ok(())
}

fn kernel_of(round: &Round) -> Result<Option<Kernel>, Skip> {
    if round.kernel == PATCHED { Kernel::patched() } else { Kernel::stock(round.kernel).map(Some) }
}

fn disk(fs: FsKind) -> Result<LoopFs, Skip> {
    LoopFs::with(&Options { kind: fs, size: 4 << 30, mkfs: &[], mount: "" })
}

fn work(setting: &Setting, round: &Round, device: &Path, kernel: Kernel) -> Result<String, String> {
    let share = tempfile::tempdir().map_err(text)?;
    let vm = Vm { disks: vec![device.to_owned()], limit: Duration::from_mins(25), ..Vm::new(kernel) };
    let agent = std::env::current_exe().map_err(text)?;
    let script = setting.script(round.packages, "/run/guests/a");
    let is_patched = if round.kernel == PATCHED { "yes" } else { "" };
    let job = format!(
        "FS={} AGENT={} VUNIFY={VUNIFY} IS_PATCHED={is_patched}\n{script}{JOB}",
        round.fs.name(),
        agent.display()
    );
    let done = vm.run(share.path(), &job).map_err(text)?;
    if done.status == 0 {
        Ok(done.output)
    } else {
        Err(format!("{}\n{}\n{}", done.status, done.output, done.console))
    }
}

/// Content and metadata of everything; times where packages bring them along. Of rpm's database, which has
/// times in it, what its tool says.
fn compare(guests: Distribution, expected: &Path, guest: &Path) -> Result<(), String> {
    let logs = [
        "--exclude=/var/log",
        "--exclude=/var/cache",
        "--exclude=/var/lib/dnf",
        "--exclude=/usr/lib/sysimage",
    ];
    let records = [&logs[..], &["--no-times"]].concat();
    let programs = ["--omit-dir-times", "--exclude=/var", "--exclude=/etc", "--exclude=/usr/lib/sysimage"];
    for options in [&records[..], &programs[..]] {
        let mut rsync = Command::new("rsync");
        rsync.args(["-aHAX", "--numeric-ids", "--checksum", "--dry-run", "--delete", "--itemize-changes"]);
        let found = succeed(rsync.args(options).args([expected.join(""), guest.join("")]))?;
        if !found.is_empty() {
            return Err(format!("the guest differs from its unshared copy:\n{found}"));
        }
    }
    if guests == Debian {
        return Ok(());
    }
    let says = |root: &Path, options: &[&str]| {
        // It fails where anything differs from the packages, as edited configuration does.
        let output = guests::rpm_command(root).env("LC_ALL", "C").args(options).output().map_err(text)?;
        Ok::<_, String>(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    for options in [&["-qa", "--qf", "%{NAME} %{VERSION}\n"][..], &["-Va", "--nodeps"]] {
        let (one, other) = (says(expected, options)?, says(guest, options)?);
        if one != other || !one.contains("login") {
            return Err(format!("rpm says of the unshared copy:\n{one}\nand of the guest:\n{other}"));
        }
    }
    Ok(())
}
