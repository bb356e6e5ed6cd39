//! From bytes to programs that are attached and pinned, or to nothing at all.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use aya::maps::{MapData, MapInfo};
use aya::programs::{Program, ProgramError, ProgramFd};
use aya::{Btf, Ebpf, EbpfError, EbpfLoader, Endianness};
use aya_obj::ProgramSection;
use aya_obj::generated::bpf_attach_type;

use super::btf::{Hooks, hooks};
use super::pins::{Held, Pins, State, sign};
use super::{BpfError, Host, Object, objects, sys};
use crate::Errno;

/// What a load has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// The programs that are attached, by name.
    pub attached: Vec<String>,
    /// The hooks that this kernel does not have.
    pub left_out: Vec<String>,
    /// Whether this build was there before, so that nothing was done.
    pub already: bool,
}

/// Brings an object into the kernel. Its maps are those that are pinned, if there are any.
pub fn load(host: &Host, object: &'static Object) -> Result<Loaded, BpfError> {
    host.check()?;
    let pins = Pins::of(host);
    let held = pins.take()?;
    match pins.state(object)? {
        State::Loaded => Ok(Loaded { attached: pins.attached(object), already: true, ..Loaded::default() }),
        State::Other { version } => Err(BpfError::OtherVersion { object: object.name, found: version }),
        State::Absent => {
            if let Some(state) = object.state {
                empty(&pins.map(state))?;
            }
            let loaded = bring(host, &held, object, None)?;
            for other in relying_on(&held, object) {
                // Another build's is not ours to replace here. What is left out now is asked twice otherwise, and
                // nothing worse.
                if matches!(pins.state(other), Ok(State::Loaded)) {
                    bring(host, &held, other, None).ok();
                }
            }
            Ok(loaded)
        }
    }
}

/// The loaded objects that leave a hook to this one.
fn relying_on(held: &Held<'_>, object: &'static Object) -> impl Iterator<Item = &'static Object> {
    let relies = |other: &Object| {
        other.left_to.is_some_and(|(_, whom)| std::ptr::eq(whom, object))
            && !matches!(held.pins.state(other), Ok(State::Absent))
    };
    objects::ALL.iter().copied().filter(move |other| relies(other))
}

/// Empties a map of tasks that outlasted the programs which keep it, as others use it, too: tasks have ended
/// since, and their addresses may be those of new ones.
fn empty(path: &Path) -> Result<(), BpfError> {
    if !path.exists() {
        return Ok(());
    }
    let fault = |_| BpfError::at("empty", path)(Errno::PERM);
    let data = MapData::from_pin(path).map_err(fault)?;
    sys::clear(&data.fd().as_fd()).map_err(BpfError::at("empty", path))
}

/// Replaces the programs of a loaded object, of whatever version, by this build's; maps stay. The old ones
/// are attached until the new ones are.
pub fn reload(host: &Host, object: &'static Object) -> Result<Loaded, BpfError> {
    host.check()?;
    let pins = Pins::of(host);
    let held = pins.take()?;
    match pins.state(object)? {
        State::Absent => Err(BpfError::NotLoaded(object.name)),
        State::Loaded | State::Other { .. } => bring(host, &held, object, None),
    }
}

/// Takes an object out of the kernel, with the maps that no other needs.
pub fn unload(host: &Host, object: &'static Object) -> Result<(), BpfError> {
    host.check()?;
    let pins = Pins::of(host);
    let held = pins.take()?;
    let loaded = pins.state(object)? != State::Absent;
    if loaded {
        for other in relying_on(&held, object) {
            bring(host, &held, other, Some(object))?;
        }
        held.retire(object)?;
        wait_until_gone(object);
    }
    sweep(&held, object.maps)?;
    if loaded { Ok(()) } else { Err(BpfError::NotLoaded(object.name)) }
}

/// A link is let go of some time after its last name is gone: by the kernel's own worker, milliseconds later.
fn wait_until_gone(object: &Object) {
    let begun = Instant::now();
    while (object.is_live)() && begun.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Removes those of the maps that no loaded object needs.
fn sweep(held: &Held<'_>, maps: &[&str]) -> Result<(), BpfError> {
    let is_loaded = |object: &Object| !matches!(held.pins.state(object), Ok(State::Absent));
    let loaded: Vec<&Object> = objects::ALL.iter().copied().filter(|object| is_loaded(object)).collect();
    for map in maps {
        if !loaded.iter().any(|object| object.maps.contains(map)) {
            held.forget_map(map)?;
        }
    }
    Ok(())
}

/// Attaches an object's programs; those that it leaves to another are left out, unless that one is `going`.
fn bring(
    host: &Host,
    held: &Held<'_>,
    object: &'static Object,
    going: Option<&'static Object>,
) -> Result<Loaded, BpfError> {
    let is_at_hand = |other: &'static Object| {
        !going.is_some_and(|going| std::ptr::eq(going, other))
            && matches!(held.pins.state(other), Ok(State::Loaded))
    };
    let left = object.left_to.filter(|(_, whom)| is_at_hand(whom)).map(|(hook, _)| hook);
    let attached = stage(host, held, object, left);
    if attached.is_err() {
        // What could not be taken back shows as debris, and is cleared by the next call.
        let left = held.pins.debris();
        left.iter().for_each(|path| held.clear(path).unwrap_or(()));
        sweep(held, object.maps).unwrap_or(());
    }
    attached
}

/// Everything up to the rename that makes it count.
fn stage(
    host: &Host,
    held: &Held<'_>,
    object: &'static Object,
    left: Option<&str>,
) -> Result<Loaded, BpfError> {
    let mut fitting = Fitting::of(host, object)?;
    fitting.programs.retain(|one| Some(hook_of(&one.name)) != left);
    fitting.check_maps(held.pins)?;
    let btf = Btf::parse_file(&host.btf, Endianness::default())
        .map_err(|error| BpfError::BadTypes(error.to_string()))?;
    let mut ebpf = fitting.maps(host, held.pins, &btf)?;
    let stage = held.stage(object)?;
    for one in &fitting.programs {
        let link = one.attach(host, object, &mut ebpf, &btf)?;
        let path = stage.join(&one.name);
        sys::pin(&link, &path).map_err(BpfError::at("pin", path))?;
    }
    sign(object, fitting.programs.len(), &stage)?;
    if !(object.is_live)() {
        return Err(BpfError::Silent { object: object.name });
    }
    held.publish(object, &stage)?;
    let mut attached: Vec<String> = fitting.programs.into_iter().map(|one| one.name).collect();
    attached.sort_unstable();
    Ok(Loaded { attached, left_out: fitting.left_out, already: false })
}

/// The mode of lockdown in which programs may not read the kernel's memory through helpers.
const CONFIDENTIALITY: &str = "confidentiality";
/// Variants of programs that do without.
const BLIND: &str = "__blind";

/// The programs of an object that fit this kernel, in the order in which they are attached.
struct Fitting {
    object: &'static Object,
    parsed: aya_obj::Object,
    programs: Vec<Chosen>,
    left_out: Vec<String>,
}

struct Chosen {
    name: String,
    place: Place,
}

/// Where a program is attached.
enum Place {
    Lsm,
    Tracepoint,
    Cgroup(u32),
}

/// The hook that a program is for: its name up to `__`.
pub(super) fn hook_of(program: &str) -> &str {
    program.split_once("__").map_or(program, |(hook, _)| hook)
}

/// The number of arguments that a variant is for: `inode_setattr__args3`.
fn arguments_of(program: &str) -> Option<usize> {
    program.split_once("__args")?.1.parse().ok()
}

impl Fitting {
    fn of(host: &Host, object: &'static Object) -> Result<Self, BpfError> {
        let unfit = |why: String| BpfError::Unfit { object: object.name, why };
        let parsed = aya_obj::Object::parse(object.bytes).map_err(|error| unfit(error.to_string()))?;
        let blob = std::fs::read(&host.btf).map_err(|_| BpfError::NoTypes(host.btf.clone()))?;
        let hooks = hooks(&blob).map_err(BpfError::BadTypes)?;
        let mut fitting = Self { object, parsed, programs: Vec::new(), left_out: Vec::new() };
        let mut names: Vec<String> = fitting.parsed.programs.keys().cloned().collect();
        names.sort_unstable();
        if host.lockdown().as_deref() == Some(CONFIDENTIALITY) {
            let blind: Vec<String> =
                names.iter().filter_map(|name| name.strip_suffix(BLIND)).map(str::to_owned).collect();
            names.retain(|name| !blind.contains(name));
        } else {
            names.retain(|name| !name.ends_with(BLIND));
        }
        for name in names {
            fitting.choose(&hooks, name)?;
        }
        if fitting.programs.iter().any(|one| matches!(one.place, Place::Lsm))
            && host.is_lsm_active() == Some(false)
        {
            return Err(BpfError::NotActive);
        }
        let rank = |one: &Chosen| object.last.iter().position(|last| *last == hook_of(&one.name));
        fitting.programs.sort_by_key(rank); // None, the others, comes first
        Ok(fitting)
    }

    fn choose(&mut self, hooks: &Hooks, name: String) -> Result<(), BpfError> {
        let place = match self.parsed.programs[&name].section {
            ProgramSection::Lsm { .. } => {
                let hook = hook_of(&name);
                match (hooks.get(hook), arguments_of(&name)) {
                    (Some(has), Some(wants)) if *has != wants => return Ok(()),
                    (Some(_), _) => Place::Lsm,
                    (None, _) if self.object.optional.contains(&hook) => {
                        self.left_out.push(hook.to_owned());
                        return Ok(());
                    }
                    (None, _) => {
                        return Err(BpfError::NoHook { object: self.object.name, hook: hook.to_owned() });
                    }
                }
            }
            ProgramSection::RawTracePoint => Place::Tracepoint,
            ProgramSection::CgroupSockAddr { attach_type } => cgroup(attach_type),
            ProgramSection::CgroupSockopt { attach_type } => cgroup(attach_type),
            ProgramSection::CgroupSock { attach_type } => cgroup(attach_type),
            ProgramSection::CgroupSkb { attach_type: Some(attach_type) } => cgroup(attach_type),
            ref other => {
                let why = format!("{name} is of a type that the loader does not know: {other:?}");
                return Err(BpfError::Unfit { object: self.object.name, why });
            }
        };
        self.programs.push(Chosen { name, place });
        Ok(())
    }

    /// Pinned maps must have the layout of ours.
    fn check_maps(&self, pins: &Pins) -> Result<(), BpfError> {
        for (name, ours) in &self.parsed.maps {
            let Ok(theirs) = MapInfo::from_pin(pins.map(name)) else { continue };
            if (theirs.key_size(), theirs.value_size()) != (ours.key_size(), ours.value_size()) {
                return Err(BpfError::OtherShape { map: name.clone() });
            }
        }
        Ok(())
    }

    /// Fits the object to the kernel, opens the maps that are pinned and makes and pins the others.
    fn maps(&self, host: &Host, pins: &Pins, btf: &Btf) -> Result<Ebpf, BpfError> {
        let mut loader = EbpfLoader::new();
        loader.btf(Some(btf));
        for map in self.object.maps {
            loader.map_pin_path(map, pins.map(map));
        }
        for (map, quarters) in objects::SIZED_BY_THREADS {
            if self.object.maps.contains(map) {
                loader.map_max_entries(map, host.threads_max() / 4 * quarters);
            }
        }
        loader.load(self.object.bytes).map_err(|error| {
            if permission_denied(&error) {
                return BpfError::NotPrivileged;
            }
            BpfError::Unfit { object: self.object.name, why: chain(&error) }
        })
    }
}

fn cgroup(attach_type: impl Into<bpf_attach_type>) -> Place {
    Place::Cgroup(attach_type.into() as u32)
}

impl Chosen {
    fn attach(
        &self,
        host: &Host,
        object: &'static Object,
        ebpf: &mut Ebpf,
        btf: &Btf,
    ) -> Result<OwnedFd, BpfError> {
        let missing = || BpfError::Unfit { object: object.name, why: format!("{} got lost", self.name) };
        let program = ebpf.program_mut(&self.name).ok_or_else(missing)?;
        let loaded = match program {
            Program::Lsm(program) => program.load(hook_of(&self.name), btf),
            Program::RawTracePoint(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            Program::CgroupSockopt(program) => program.load(),
            Program::CgroupSock(program) => program.load(),
            Program::CgroupSkb(program) => program.load(),
            _ => return Err(missing()),
        };
        let fd: &ProgramFd =
            loaded.and_then(|()| program.fd()).map_err(|error| refusal(host, object, &self.name, &error))?;
        let attached = match self.place {
            Place::Lsm => sys::attach_tracepoint(&fd.as_fd(), None),
            Place::Tracepoint => sys::attach_tracepoint(&fd.as_fd(), Some(hook_of(&self.name))),
            Place::Cgroup(attach_type) => {
                let path = host.cgroup()?;
                let root = open(&path)?;
                sys::attach_cgroup(&fd.as_fd(), &root, attach_type)
            }
        };
        attached.map_err(|errno| match errno {
            Errno::PERM => BpfError::Refused { object: object.name, program: self.name.clone() },
            errno => BpfError::at("attach", object.name)(errno),
        })
    }
}

fn open(path: &Path) -> Result<File, BpfError> {
    let failed = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    File::open(path).map_err(|error| BpfError::at("open", path)(failed(error)))
}

/// Why a program was not loaded: who said no.
fn refusal(host: &Host, object: &'static Object, program: &str, error: &ProgramError) -> BpfError {
    let (object, program) = (object.name, program.to_owned());
    if let Some(mode) = host.lockdown().filter(|mode| mode == CONFIDENTIALITY) {
        return BpfError::LockedDown { mode, object, program };
    }
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            if io_error.raw_os_error() == Some(libc::EPERM) && log.trim().is_empty() {
                return BpfError::Refused { object, program };
            }
            BpfError::Verifier { object, program, why: format!("{io_error}: {}", last_words(&log)) }
        }
        other => BpfError::Verifier { object, program, why: chain(other) },
    }
}

/// The end of a verifier's log, without its statistics.
fn last_words(log: &str) -> String {
    let telling = |line: &&str| !line.trim().is_empty() && !line.starts_with("processed ");
    let mut lines: Vec<&str> = log.lines().filter(telling).rev().take(3).collect();
    lines.reverse();
    lines.join("; ")
}

/// An error with all its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn permission_denied(error: &EbpfError) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return error.kind() == std::io::ErrorKind::PermissionDenied;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_hook_and_variant() {
        assert_eq!(hook_of("inode_setattr__args3"), "inode_setattr");
        assert_eq!(hook_of("file_open"), "file_open");
        assert_eq!(arguments_of("inode_setattr__args3"), Some(3));
        assert_eq!(arguments_of("inode_setattr"), None);
    }

    #[test]
    fn the_verifier_is_quoted_without_its_statistics() {
        let log = "0: (bf) r6 = r1\nR1 invalid mem access\nprocessed 1 insns (limit 1000000)\n\n";
        assert_eq!(last_words(log), "0: (bf) r6 = r1; R1 invalid mem access");
        assert_eq!(last_words(""), "");
    }
}
