//! The calls that programs answer, and those that attach and pin. With `kernel/src/sys.rs`, the only unsafe code.
#![allow(unsafe_code)] // this module is an edge; each block states why it is sound

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::abi;
use crate::{Errno, Result};

// enum bpf_cmd of linux/bpf.h
const BPF_MAP_GET_NEXT_KEY: libc::c_int = 4;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_RAW_TRACEPOINT_OPEN: libc::c_int = 17;
const BPF_LINK_CREATE: libc::c_int = 28;
/// `BPF_F_ALLOW_MULTI` does not apply to links: they always are.
const NO_FLAGS: u32 = 0;

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> Result<libc::c_long> {
    // SAFETY: every caller pairs `command` with the `repr(C)` prefix of `union bpf_attr` that it reads; the
    // kernel takes a shorter one than its own as zero-filled. The reference outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if result < 0 { Err(last_errno()) } else { Ok(result) }
}

fn owned(fd: libc::c_long) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) }
}

#[repr(C)]
struct Tracepoint {
    name: u64,
    program: u32,
    reserved: u32,
}

/// Attaches to the LSM hook that a program was loaded for (no name), or to a raw tracepoint.
pub(super) fn attach_tracepoint(program: &impl AsFd, name: Option<&str>) -> Result<OwnedFd> {
    let name = name.map(|name| CString::new(name).map_err(|_| Errno::INVAL)).transpose()?;
    let pointer = name.as_ref().map_or(0, |name| name.as_ptr() as u64);
    let attributes = Tracepoint { name: pointer, program: program.as_fd().as_raw_fd() as u32, reserved: 0 };
    bpf(BPF_RAW_TRACEPOINT_OPEN, &attributes).map(owned)
}

#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// Attaches to a control group and all below it.
pub(super) fn attach_cgroup(program: &impl AsFd, cgroup: &impl AsFd, attach_type: u32) -> Result<OwnedFd> {
    let attributes = LinkCreate {
        program: program.as_fd().as_raw_fd() as u32,
        target: cgroup.as_fd().as_raw_fd() as u32,
        attach_type,
        flags: NO_FLAGS,
    };
    bpf(BPF_LINK_CREATE, &attributes).map(owned)
}

#[repr(C)]
struct ObjectPath {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Gives a link a name in the bpf file system, so that it outlives its descriptors.
pub(super) fn pin(link: &impl AsFd, path: &Path) -> Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)?;
    let attributes = ObjectPath { path: path.as_ptr() as u64, fd: link.as_fd().as_raw_fd() as u32, flags: 0 };
    bpf(BPF_OBJ_PIN, &attributes).map(drop)
}

#[repr(C)]
struct NextKey {
    map: u32,
    reserved: u32,
    key: u64,
    next: u64,
}

/// Keys counted at most: as many as there can be tasks.
const MANY: usize = 1 << 22;

/// How many entries a pinned map has whose keys are addresses. It may change meanwhile.
pub(super) fn count_keys(path: &Path) -> Result<usize> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)?;
    let map = bpf(BPF_OBJ_GET, &ObjectPath { path: path.as_ptr() as u64, fd: 0, flags: 0 }).map(owned)?;
    let (mut key, mut next) = (0_u64, 0_u64);
    for count in 0..MANY {
        let attributes = NextKey {
            map: map.as_raw_fd() as u32,
            reserved: 0,
            key: if count == 0 { 0 } else { &raw const key as u64 }, // none: the first
            next: &raw mut next as u64,
        };
        match bpf(BPF_MAP_GET_NEXT_KEY, &attributes) {
            Ok(_) => key = next,
            Err(Errno::NOENT) => return Ok(count),
            Err(errno) => return Err(errno),
        }
    }
    Ok(MANY)
}

/// What a call that our programs answer came back with: `Ok(payload)` if one did.
fn answer(result: libc::c_int) -> Result<u32> {
    if result >= 0 {
        return Err(Errno::NOSYS); // something else knows this call
    }
    let errno = last_errno();
    let payload = errno.raw_os_error() - abi::ANSWER;
    if (0..1 << abi::ANSWER_BITS).contains(&payload) { Ok(payload as u32) } else { Err(errno) }
}

/// A private call by `prctl(2)`. `EINVAL`: no program is loaded that knows it.
pub(crate) fn prctl_answer(what: u64, a: u64, b: u64, c: u64) -> Result<u32> {
    // SAFETY: the kernel gets numbers, never an address.
    answer(unsafe { libc::prctl(abi::PRCTL, what, a, b, c) })
}

/// A private call by `ioctl(2)`. `ENOTTY`: no program is loaded that knows it.
pub(crate) fn ioctl_answer(file: &impl AsFd, request: libc::c_ulong) -> Result<u32> {
    // SAFETY: these requests take no argument.
    answer(unsafe { libc::ioctl(file.as_fd().as_raw_fd(), request, 0) })
}

/// Gives the calling thread its addresses.
pub(crate) fn setsockopt_root(socket: &impl AsFd, root: &abi::Root) -> Result<()> {
    // SAFETY: the kernel reads as many bytes as the structure has; the reference outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            abi::SOL,
            abi::SO_SET_ROOT,
            std::ptr::from_ref(root).cast(),
            size_of::<abi::Root>() as libc::socklen_t,
        )
    };
    if result < 0 { Err(last_errno()) } else { Ok(()) }
}

/// The addresses of the calling thread.
pub(crate) fn getsockopt_root(socket: &impl AsFd) -> Result<abi::Root> {
    let mut root = abi::Root::default();
    getsockopt(socket, abi::SO_GET_ROOT, &mut root).map(|()| root)
}

/// The version that programs for roots speak. `ENOPROTOOPT`: none are loaded.
pub(crate) fn getsockopt_abi() -> Result<u32> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    let mut version = 0_u32;
    getsockopt(&socket, abi::SO_GET_ABI, &mut version).map(|()| version)
}

/// `T` is a number or made of numbers, so that any bytes are valid in it.
fn getsockopt<T: Copy>(socket: &impl AsFd, option: libc::c_int, value: &mut T) -> Result<()> {
    let mut size = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `size` bytes, which is the size of `T`; any bytes are valid in it.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            abi::SOL,
            option,
            std::ptr::from_mut(value).cast(),
            &raw mut size,
        )
    };
    if result < 0 { Err(last_errno()) } else { Ok(()) }
}
