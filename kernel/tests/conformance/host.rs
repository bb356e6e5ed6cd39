//! The suite outside: boots machines, gathers findings, compares.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use fixtures::loopfs::FsKind;
use fixtures::vm::{Kernel, Vm};
use fixtures::{Skip, require_command, require_root};

use crate::agent::{self, Provider};
use crate::laws;
use crate::matrix::{self, Finding, HASH_LINE, HOST_COLUMN, Kept, Matrix};
use crate::overhead::{self, Cost};

/// A kernel, and the columns that it gives.
struct Boot {
    kernel: &'static str,
    columns: &'static [(&'static str, Provider)],
}

const PATCHED: &str = "patched 6.12";
const OLDEST: &str = "6.1";

/// In place of a kernel to boot: the machine itself.
const HOST: &str = "host";

const BOOTS: &[Boot] = &[
    Boot { kernel: HOST, columns: &[(HOST_COLUMN, Provider::Bpf)] },
    Boot { kernel: OLDEST, columns: &[("none 6.1", Provider::None), ("bpf 6.1", Provider::Bpf)] },
    Boot {
        kernel: "6.12",
        columns: &[
            ("none 6.12", Provider::None),
            ("immutable 6.12", Provider::Immutable),
            ("bpf 6.12", Provider::Bpf),
        ],
    },
    Boot {
        kernel: PATCHED,
        columns: &[("patch 6.12", Provider::Patch), ("patch-tag 6.12", Provider::PatchTag)],
    },
];

const INTRO: &str = "# Conformance

What each provider keeps, law by law. This file is written by the suite
(`CONFORMANCE_UPDATE=1 cargo test -p kernel --test conformance`), and a cell that gets worse fails it.

`✓` the law holds, `✗` it does not, `–` it could not be tried; three marks are ext4, xfs and btrfs in that
order, or one for all. What is `✗` or `–` and not explained by the column is listed below its table.

| column | what stands behind the seal |
|---|---|
| none | nothing: whatever is denied must be `✗` here, or the suite would prove nothing |
| immutable | the plain immutable flag: whatever replaces a name must be `✗` here |
| bpf | the eBPF programs, on Debian's stock kernels |
| patch | the patched kernel, with its own flag |
| patch-tag | the patched kernel, honouring the eBPF provider's tag |
| host | the eBPF programs that the machine which wrote this file can load itself, `–` for the others; the laws of files and contexts are tried in virtual machines only |

";

fn crate_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn suite() -> Result<(), String> {
    matrix::check_itself(laws::ALL)?;
    for needed in [require_root(), require_command("qemu-system-x86_64"), require_command("mkfs.btrfs")] {
        if let Err(skip) = needed {
            fixtures::skip::note("conformance", &skip.0);
            return Ok(());
        }
    }
    if std::env::var_os("CONFORMANCE_UNUSED").is_some() {
        return unused();
    }
    let file = crate_dir().join("CONFORMANCE.md");
    let kept = Kept::parse(&std::fs::read_to_string(&file).unwrap_or_default());
    let hash = hash_of_patch()?;
    let boots: Vec<_> = BOOTS.iter().filter(|boot| is_wanted(boot, &kept, &hash)).collect();
    // The machine itself before others make it slow.
    let (itself, boots): (Vec<_>, Vec<_>) = boots.into_iter().partition(|boot| boot.kernel == HOST);
    let mut ran: Vec<_> = itself.into_iter().map(findings_of).collect();
    ran.extend(std::thread::scope(|scope| {
        let threads: Vec<_> = boots.iter().map(|boot| scope.spawn(|| findings_of(boot))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a boot panicked")).collect::<Vec<_>>()
    }));
    let (mut matrix, mut costs) = (Matrix::default(), Vec::new());
    for findings in ran {
        match findings {
            Ok((findings, measured)) => {
                findings.into_iter().for_each(|finding| matrix.add(finding));
                costs.extend(measured);
            }
            Err(Trouble::Skip(skip)) => fixtures::skip::note("conformance", &skip.0),
            Err(Trouble::Fault(why)) => return Err(why),
        }
    }
    conclude(&matrix, &costs, &kept, &hash, &file)
}

/// Builds the patched kernel with its option and without, and prints what the option costs where it is not used.
fn unused() -> Result<(), String> {
    let costs_of = |options: &[&str]| -> Result<Vec<Cost>, String> {
        let image = scripts_kernel(options).map_err(|trouble| trouble.to_string())?;
        let kernel = Kernel::image(&image).map_err(|skip| skip.0)?;
        let share = tempfile::tempdir().map_err(|error| error.to_string())?;
        let disks = FsKind::ALL
            .into_iter()
            .map(|fs| make_disk(share.path(), fs, PATCHED))
            .collect::<Result<_, _>>()?;
        let vm = Vm { disks, memory: 2048, limit: Duration::from_mins(12), counted: true, ..Vm::new(kernel) };
        overhead::costs(&vm, share.path(), PATCHED, true)
    };
    let (off, on) = (costs_of(&["--off"])?, costs_of(&[])?);
    println!("{}", overhead::render_unused(&off, &on));
    Ok(())
}

fn conclude(matrix: &Matrix, costs: &[Cost], kept: &Kept, hash: &str, file: &Path) -> Result<(), String> {
    let columns: Vec<_> = BOOTS.iter().flat_map(|boot| boot.columns).map(|column| column.0).collect();
    let tables = matrix.render(&columns, laws::ALL, kept);
    let measured = if costs.is_empty() { kept.overhead().to_owned() } else { overhead::render(costs) };
    println!("{tables}{measured}");
    let update = std::env::var_os("CONFORMANCE_UPDATE").is_some();
    if update && (!is_partial() || is_of_groups()) {
        let patched = matrix.columns().contains("patch 6.12") && !is_partial();
        let hash = if patched { Some(hash) } else { kept.hash() };
        let noted = hash.map(|hash| format!("{HASH_LINE}`{hash}`.\n\n")).unwrap_or_default();
        std::fs::write(file, format!("{INTRO}{noted}{tables}{}\n", measured.trim_end()))
            .map_err(|error| format!("{}: {error}", file.display()))?;
    }
    let unproven = matrix.unproven(laws::ALL);
    if !unproven.is_empty() {
        return Err(format!("laws that prove nothing:\n{}", unproven.join("\n")));
    }
    if update || is_partial() {
        return Ok(());
    }
    let mut worse = matrix.worse_than(kept);
    worse.extend(overhead::too_dear(costs));
    if worse.is_empty() {
        Ok(())
    } else {
        Err(format!("worse than CONFORMANCE.md:\n{}", worse.into_iter().collect::<Vec<_>>().join("\n")))
    }
}

/// Whether only some laws are asked for, so that nothing can be compared.
fn is_partial() -> bool {
    std::env::var_os("CONFORMANCE_ONLY").is_some()
}

/// Whether all that is asked for are whole groups.
fn is_of_groups() -> bool {
    std::env::var("CONFORMANCE_ONLY").is_ok_and(|only| agent::are_groups(&only))
}

fn is_measured() -> bool {
    !is_partial() && std::env::var_os("CONFORMANCE_NO_OVERHEAD").is_none()
}

/// The patched kernel takes long to build, so it is booted only when something has changed.
fn is_wanted(boot: &Boot, kept: &Kept, hash: &str) -> bool {
    let only = std::env::var("CONFORMANCE_COLUMNS").unwrap_or_default();
    if !boot.columns.iter().any(|(name, _)| name.contains(&only)) {
        return false;
    }
    let unchanged = boot.kernel == PATCHED && kept.hash() == Some(hash);
    if unchanged && std::env::var_os("CONFORMANCE_PATCH").is_none() {
        eprintln!(
            "conformance: patch, configuration and suite are as noted ({hash}): CONFORMANCE.md is relied on"
        );
        return false;
    }
    true
}

/// Of everything that the patched kernel's columns come from.
fn hash_of_patch() -> Result<String, String> {
    let mut files = Vec::new();
    for part in ["patch", "tests/conformance", "tests/ipv4root"] {
        gather(&crate_dir().join(part), &mut files);
    }
    files.sort();
    let mut hasher = blake3::Hasher::new();
    for path in files {
        let content = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        hasher.update(path.strip_prefix(crate_dir()).unwrap_or(&path).as_os_str().as_encoded_bytes());
        hasher.update(&content.len().to_le_bytes());
        hasher.update(&content);
    }
    Ok(hasher.finalize().to_hex()[..16].to_owned())
}

fn gather(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { gather(&path, files) } else { files.push(path) }
    }
}

enum Trouble {
    Skip(Skip),
    Fault(String),
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Skip(skip) => skip.fmt(f),
            Self::Fault(why) => f.write_str(why),
        }
    }
}

impl From<Skip> for Trouble {
    fn from(skip: Skip) -> Self {
        Self::Skip(skip)
    }
}

impl From<String> for Trouble {
    fn from(why: String) -> Self {
        Self::Fault(why)
    }
}

/// Boots twice, the second time only to see what the first has left; and once more to measure.
fn findings_of(boot: &Boot) -> Result<(Vec<Finding>, Vec<Cost>), Trouble> {
    let start = Instant::now();
    if boot.kernel == HOST {
        return Ok((machine_itself()?, Vec::new()));
    }
    let kernel = kernel_of(boot)?;
    let share = tempfile::tempdir().map_err(|error| error.to_string())?;
    let disks = FsKind::ALL
        .into_iter()
        .map(|fs| make_disk(share.path(), fs, boot.kernel))
        .collect::<Result<_, _>>()?;
    // Where the kernel is our own, a warning of its is a fault of ours.
    let words = if boot.kernel == PATCHED { "panic_on_warn=1" } else { "" }.to_owned();
    let vm = Vm { disks, memory: 2048, limit: Duration::from_mins(12), words, ..Vm::new(kernel) };
    let mut findings = agent(&vm, share.path(), "before", boot)?;
    if agent::is_wanted(laws::REBOOT, laws::REBOOT_LAW) {
        findings.extend(agent(&vm, share.path(), "after", boot)?);
    }
    let mut costs = Vec::new();
    if boot.columns.iter().any(|(_, provider)| *provider == Provider::Bpf) && is_measured() {
        let vm = Vm { counted: true, ..vm };
        costs = overhead::costs(&vm, share.path(), boot.kernel, false)?;
        // What is too dear is so each time; what disturbs a kernel is not.
        for _ in 0..3 {
            if overhead::too_dear(&costs).is_empty() {
                break;
            }
            let again = overhead::costs(&vm, share.path(), boot.kernel, false)?;
            costs.iter_mut().zip(&again).for_each(|(cost, again)| cost.lower(again));
        }
    }
    eprintln!("conformance: {} in {} s", boot.kernel, start.elapsed().as_secs());
    Ok((findings, costs))
}

fn machine_itself() -> Result<Vec<Finding>, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let done = Command::new(program).arg(HOST).output().map_err(|error| error.to_string())?;
    let [said, why] = [done.stdout, done.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    if done.status.success() {
        return Ok(said.lines().filter_map(Finding::parse).collect());
    }
    Err(format!("on the machine itself: {}\n{said}{why}", done.status))
}

fn kernel_of(boot: &Boot) -> Result<Kernel, Trouble> {
    if boot.kernel != PATCHED {
        return Ok(Kernel::stock(boot.kernel)?);
    }
    if let Some(image) = std::env::var_os("CONFORMANCE_BZIMAGE") {
        return Ok(Kernel::image(Path::new(&image))?);
    }
    // With its own assertions: on what no law is about, and on power cuts.
    Ok(Kernel::image(&scripts_kernel(&["--test"])?)?)
}

fn scripts_kernel(options: &[&str]) -> Result<PathBuf, Trouble> {
    let made = Command::new(crate_dir().join("../scripts/kernel"))
        .args(options)
        .output()
        .map_err(|error| Skip::needs(format!("scripts/kernel: {error}")))?;
    if !made.status.success() {
        let said = String::from_utf8_lossy(&made.stderr).into_owned();
        return Err(Trouble::Fault(format!(
            "the patched kernel could not be built, or fails its own assertions:\n{said}"
        )));
    }
    let said = String::from_utf8_lossy(&made.stdout).into_owned();
    Ok(said.lines().last().unwrap_or_default().into())
}

/// With what each kernel can mount: quotas of projects (ext4) only a distribution's, exchanges of ranges (xfs) not
/// the oldest.
fn make_disk(dir: &Path, fs: FsKind, kernel: &str) -> Result<PathBuf, String> {
    let path = dir.join(fs.name());
    // Without checksums of metadata, or ext4 would not let an inode's version be set.
    let features = if kernel == PATCHED {
        "verity,^metadata_csum,^metadata_csum_seed"
    } else {
        "verity,project,^metadata_csum,^metadata_csum_seed"
    };
    let (size, options): (u64, &[&str]) = match fs {
        FsKind::Ext4 => (192 << 20, &["-q", "-F", "-b", "4096", "-O", features]),
        FsKind::Xfs | FsKind::Btrfs => (320 << 20, &["-q", "-f"]),
    };
    let file = std::fs::File::create(&path).map_err(|error| error.to_string())?;
    file.set_len(size).map_err(|error| error.to_string())?;
    run(Command::new(format!("mkfs.{}", fs.name())).args(options).arg(&path))?;
    if fs == FsKind::Xfs && kernel != OLDEST {
        // Debian 12's mkfs doesn't know of them. The kernel needs nothing but the bit.
        run(Command::new("xfs_db")
            .args(["-x", "-c", "sb 0", "-c", "write -d features_incompat 0x4b"])
            .arg(&path))?;
    }
    Ok(path)
}

fn run(command: &mut Command) -> Result<(), String> {
    match command.output() {
        Ok(done) if done.status.success() => Ok(()),
        Ok(done) => Err(format!("{command:?}: {}", String::from_utf8_lossy(&done.stderr))),
        Err(error) => Err(format!("{command:?}: {error}")),
    }
}

fn agent(vm: &Vm, share: &Path, phase: &str, boot: &Boot) -> Result<Vec<Finding>, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let columns: Vec<_> =
        boot.columns.iter().map(|(name, provider)| format!("'{name}={}'", provider.name())).collect();
    let pass_on = ["CONFORMANCE_ONLY"]
        .into_iter()
        .filter_map(|name| std::env::var(name).ok().map(|value| format!("export {name}='{value}'\n")));
    let job = format!(
        "{}exec {} agent {phase} {}",
        pass_on.collect::<String>(),
        program.display(),
        columns.join(" ")
    );
    let done = vm.run(share, &job).map_err(|error| error.to_string())?;
    let findings: Vec<_> = done.output.lines().filter_map(Finding::parse).collect();
    if done.status == 0 {
        return Ok(findings);
    }
    Err(format!("{}: the agent ended with {}:\n{}\n{}", boot.kernel, done.status, done.output, done.console))
}
