//! The suite inside a machine: tries every law in every column asked for.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use fixtures::loopfs::FsKind;
use kernel::{Errno, Protection, Seal};

use crate::case::{Cell, Place, spell};
use crate::laws::{self, Laws};
use crate::matrix::{Finding, NOWHERE};
use crate::{raw, roots};

/// What stands behind a seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Provider {
    /// Nothing: every law that denies something must fail.
    None,
    /// The plain immutable flag: every law that allows a name to change must fail.
    Immutable,
    /// The eBPF programs.
    Bpf,
    /// The patched kernel, with its own flag.
    Patch,
    /// The patched kernel, told to honour the eBPF provider's tag.
    PatchTag,
}

impl Provider {
    pub(crate) const ALL: [Self; 5] = [Self::None, Self::Immutable, Self::Bpf, Self::Patch, Self::PatchTag];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Immutable => "immutable",
            Self::Bpf => "bpf",
            Self::Patch => "patch",
            Self::PatchTag => "patch-tag",
        }
    }

    fn seal(self) -> Seal {
        match self {
            Self::None | Self::Bpf | Self::PatchTag => Seal::Bpf,
            Self::Immutable => Seal::Immutable,
            Self::Patch => Seal::Patch,
        }
    }

    /// Makes the kernel enforce.
    fn start(self) -> Result<(), String> {
        match self {
            Self::None | Self::Immutable | Self::Patch => Ok(()),
            Self::Bpf => load_programs(kernel::bpf::objects::ALL),
            Self::PatchTag => {
                let switch = "/proc/sys/fs/vserver/honour_tag";
                std::fs::write(switch, "1").map_err(|error| format!("{switch}: {error}"))
            }
        }
    }
}

/// Loads link-invert, unless an earlier run on this machine has, and puts every file system into its scope.
pub(crate) fn load_programs(wanted: &[&'static kernel::bpf::Object]) -> Result<(), String> {
    let host = kernel::bpf::Host::default();
    for object in wanted {
        kernel::bpf::load(&host, object).map_err(|error| error.to_string())?;
    }
    for (_, _, mount) in mounts() {
        let dir = kernel::Dir::open_host(&mount).map_err(spell)?;
        kernel::bpf::scope::add(&dir).map_err(spell)?;
    }
    Ok(())
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let done =
        Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    if done.status.success() {
        return Ok(());
    }
    let said = [done.stdout, done.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    Err(format!("{program} {}: {}: {}", arguments.join(" "), done.status, said.trim()))
}

/// Where file systems are mounted: `/dev/vda` and on are ext4, xfs, btrfs.
const MOUNTS: &str = "/run/conformance";

pub(crate) fn mounts() -> Vec<(FsKind, PathBuf, PathBuf)> {
    let devices = ["/dev/vda", "/dev/vdb", "/dev/vdc"].map(PathBuf::from);
    let mount = |fs: FsKind| Path::new(MOUNTS).join(fs.name());
    FsKind::ALL.into_iter().zip(devices).map(|(fs, device)| (fs, device, mount(fs))).collect()
}

/// Mounts everything. A kernel without modules needs none loaded.
pub(crate) fn prepare() -> Result<(), String> {
    for module in ["loop", "ext4", "xfs", "btrfs"] {
        run("modprobe", &["-q", module]).ok();
    }
    for (fs, device, mount) in mounts() {
        std::fs::create_dir_all(&mount).map_err(|error| error.to_string())?;
        crate::laws::mount(&device, &mount, fs.name(), 0, "")
            .map_err(|errno| format!("mounting {}: {}", fs.name(), spell(errno)))?;
    }
    Ok(())
}

/// Runs in the machine: `agent before|after COLUMN=PROVIDER...`, and prints findings.
pub(crate) fn agent(arguments: &[String]) -> Result<(), String> {
    let after_reboot = arguments.first().is_some_and(|word| word == "after");
    prepare()?;
    for argument in &arguments[1..] {
        let (column, name) = argument.split_once('=').ok_or("a column has no provider")?;
        let provider =
            Provider::ALL.into_iter().find(|known| known.name() == name).ok_or("an unknown provider")?;
        let started = provider.start();
        for (fs, device, mount) in mounts() {
            let enforced = !matches!(provider, Provider::None | Provider::Immutable);
            let place = Place { mount, device, fs, seal: provider.seal(), enforced };
            let why_not = unusable(provider, fs, &started);
            let findings = if after_reboot {
                vec![reboot_finding(&place, provider, why_not)]
            } else {
                try_all(&place, why_not)
            };
            report(column, fs.name(), findings);
            if !after_reboot {
                leave(&place, provider).ok();
            }
        }
        if !after_reboot && matches!(provider, Provider::None | Provider::Bpf | Provider::Patch) {
            try_contexts(column, provider, started.as_ref().err());
            try_processes(column, provider, started.as_ref().err());
            roots::try_roots(column, provider, started.as_ref().err());
        }
    }
    raw::call(libc::SYS_sync, &[]).ok();
    Ok(())
}

/// Why nothing can be tried here.
fn unusable(provider: Provider, fs: FsKind, started: &Result<(), String>) -> Option<String> {
    if provider == Provider::Patch && fs != FsKind::Ext4 {
        return Some("the patch has no flag of its own there".into());
    }
    started.as_ref().err().cloned()
}

pub(crate) type Found = (&'static str, &'static str, Cell);

/// Whether a law or its group is asked for: several words are separated by commas.
pub(crate) fn is_wanted(group: &str, law: &str) -> bool {
    let Ok(only) = std::env::var("CONFORMANCE_ONLY") else { return true };
    let by_law = |word| !are_groups(&only) && (group.contains(word) || law.contains(word));
    only.split(',').any(|word| word == group || by_law(word))
}

/// Whether all words are names of groups, which are what is asked for then.
pub(crate) fn are_groups(only: &str) -> bool {
    only.split(',').all(|word| laws::ALL.iter().any(|group| group.name == word))
}

fn try_all(place: &Place, why_not: Option<String>) -> Vec<Found> {
    let mut all = Vec::new();
    for group in laws::ALL.iter().filter(|group| group.name != laws::REBOOT) {
        let Laws::Files(table) = group.laws else { continue };
        for law in table.iter().filter(|law| is_wanted(group.name, law.name)) {
            let cell = match &why_not {
                Some(why) => Cell::Skipped(why.clone()),
                None => place.try_law(law),
            };
            all.push((group.name, law.name, cell));
        }
    }
    all
}

/// The laws of contexts, which know of no file system. Each is told at once: one that hangs is seen.
fn try_contexts(column: &str, provider: Provider, why_not: Option<&String>) {
    for group in laws::ALL {
        let Laws::Contexts(table) = group.laws else { continue };
        for law in table.iter().filter(|law| is_wanted(group.name, law.name)) {
            let cell = match why_not {
                Some(why) => Cell::Skipped(why.clone()),
                None => law.try_it(provider != Provider::None),
            };
            report(column, NOWHERE, vec![(group.name, law.name, cell)]);
        }
    }
}

/// The laws of processes that enter contexts by themselves.
fn try_processes(column: &str, provider: Provider, why_not: Option<&String>) {
    let Some((fs, device, mount)) = mounts().into_iter().next() else { return };
    let place = Place { mount, device, fs, seal: provider.seal(), enforced: provider != Provider::None };
    for group in laws::ALL {
        let Laws::Processes(table) = group.laws else { continue };
        for law in table.iter().filter(|law| is_wanted(group.name, law.name)) {
            let cell = why_not.map_or_else(|| place.try_law(law), |why| Cell::Skipped(why.clone()));
            report(column, NOWHERE, vec![(group.name, law.name, cell)]);
        }
    }
}

/// Where the file stays that the next boot looks for.
fn left(place: &Place, provider: Provider) -> PathBuf {
    place.mount.join(format!("left-{}", provider.name()))
}

fn leave(place: &Place, provider: Provider) -> Result<(), Errno> {
    let path = left(place, provider);
    std::fs::write(&path, "sealed").map_err(raw::errno)?;
    let file = kernel::File::from(raw::open(&path, libc::O_RDONLY)?);
    kernel::Real.seal(&file, place.seal)
}

fn reboot_finding(place: &Place, provider: Provider, why_not: Option<String>) -> Found {
    let path = left(place, provider);
    let cell = match (why_not, raw::open(&path, libc::O_RDONLY), raw::open(&path, libc::O_RDWR)) {
        (Some(why), _, _) => Cell::Skipped(why),
        (None, Err(errno), _) => Cell::Fail(format!("not there: {}", spell(errno))),
        (None, Ok(_), Err(Errno::PERM)) => Cell::Pass,
        (None, Ok(_), Err(errno)) => Cell::Fail(spell(errno)),
        (None, Ok(_), Ok(_)) => Cell::Fail("went through".into()),
    };
    (laws::REBOOT, laws::REBOOT_LAW, cell)
}

#[allow(clippy::print_stdout)] // an agent's findings are its output
pub(crate) fn report(column: &str, fs: &str, findings: Vec<Found>) {
    let mut text = String::new();
    for (group, law, cell) in findings {
        let (column, fs) = (column.to_owned(), fs.to_owned());
        let finding = Finding { column, group: group.into(), law: law.into(), fs, cell };
        writeln!(text, "{}", finding.line()).ok();
    }
    print!("{text}");
}
