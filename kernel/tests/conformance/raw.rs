//! System calls as an attacker makes them: by number, with whatever arguments.
#![allow(unsafe_code)] // the suite must reach every system call, and no library wraps them all

use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use io_uring::{IoUring, squeue};
use kernel::Errno;

pub(crate) type Call<T = ()> = Result<T, Errno>;

/// Calls the kernel. Pointers among `arguments` must be to buffers that the caller holds and that are as
/// large as the call demands.
pub(crate) fn call(number: libc::c_long, arguments: &[usize]) -> Call<usize> {
    let mut a = [0; 6];
    a[..arguments.len()].copy_from_slice(arguments);
    // SAFETY: whether the kernel writes anywhere but to the caller's own buffers is up to the arguments,
    // which are written next to their call in a law and run in a child of its own.
    let result = unsafe { libc::syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]) };
    check(result).map(|value| value as usize)
}

fn check(result: libc::c_long) -> Call<libc::c_long> {
    if result < 0 { Err(last_errno()) } else { Ok(result) }
}

fn last_errno() -> Errno {
    errno(std::io::Error::last_os_error())
}

/// The errno in an error of the standard library.
pub(crate) fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

pub(crate) fn text(path: impl AsRef<Path>) -> CString {
    CString::new(path.as_ref().as_os_str().as_bytes()).expect("a path of ours has no NUL")
}

/// The address of a buffer, as an argument.
pub(crate) fn at<T: ?Sized>(buffer: &T) -> usize {
    std::ptr::from_ref(buffer).cast::<()>() as usize
}

/// The address of a buffer that the kernel will change.
pub(crate) fn into<T: ?Sized>(buffer: &mut T) -> usize {
    std::ptr::from_mut(buffer).cast::<()>() as usize
}

/// A descriptor as an argument.
pub(crate) fn num(fd: &impl AsRawFd) -> usize {
    fd.as_raw_fd() as usize
}

/// `AT_FDCWD` as an argument.
pub(crate) const HERE: usize = libc::AT_FDCWD as usize;

pub(crate) fn owned(fd: usize) -> OwnedFd {
    // SAFETY: a call has just returned this descriptor to us and nothing else has seen it.
    unsafe { OwnedFd::from_raw_fd(fd as RawFd) }
}

pub(crate) fn open(path: impl AsRef<Path>, flags: i32) -> Call<OwnedFd> {
    let path = text(path);
    call(libc::SYS_openat, &[HERE, at(path.as_bytes_with_nul()), flags as usize, 0o644]).map(owned)
}

/// An ioctl whose argument is a structure, as bytes.
pub(crate) fn ioctl(fd: &impl AsRawFd, request: u32, argument: &mut [u8]) -> Call<usize> {
    call(libc::SYS_ioctl, &[num(fd), request as usize, into(argument)])
}

/// An ioctl whose argument is a number.
pub(crate) fn ioctl_value(fd: &impl AsRawFd, request: u32, argument: usize) -> Call<usize> {
    call(libc::SYS_ioctl, &[num(fd), request as usize, argument])
}

/// Bytes of a structure: fields one after the other, little endian.
#[macro_export]
macro_rules! bytes {
    ($($field:expr),* $(,)?) => {{
        let mut all = Vec::<u8>::new();
        $(all.extend_from_slice(&$field.to_le_bytes());)*
        all
    }};
}

/// How a child ended that ran something.
#[derive(Debug)]
pub(crate) enum Ended {
    Said(String),
    Killed(i32),
}

/// Runs `job` in a child, which is killed after `seconds`, and returns what it said.
pub(crate) fn in_child(seconds: u32, job: impl FnOnce() -> String) -> Ended {
    let (read, write) = std::io::pipe().expect("a pipe");
    // SAFETY: this process has one thread, so the child may do anything.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    if pid == 0 {
        drop(read);
        // SAFETY: alarm takes a number; the default action of SIGALRM ends the child.
        unsafe { libc::alarm(seconds) };
        let said = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job))
            .unwrap_or_else(|_| "panicked".to_owned());
        std::io::Write::write_all(&mut &write, said.as_bytes()).ok();
        exit_now(0);
    }
    match wait(pid) {
        status if libc::WIFSIGNALED(status) => Ended::Killed(libc::WTERMSIG(status)),
        _ => Ended::Said(said(&read)),
    }
}

/// What a child that has ended left in a pipe. Others may still hold its other end, so nobody waits for that.
pub(crate) fn said(pipe: &std::io::PipeReader) -> String {
    let flags = libc::O_NONBLOCK as usize;
    call(libc::SYS_fcntl, &[num(pipe), libc::F_SETFL as usize, flags]).expect("a pipe can be set so");
    let mut bytes = [0; 4096];
    let count = std::io::Read::read(&mut &*pipe, &mut bytes).unwrap_or(0);
    String::from_utf8_lossy(&bytes[..count]).into_owned()
}

/// A second process beside the law's own, with its own copy of everything.
pub(crate) fn fork(job: impl FnOnce() -> i32) -> i32 {
    // SAFETY: as in `in_child`.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    if pid == 0 {
        // Nobody outlives the law.
        call(libc::SYS_prctl, &[libc::PR_SET_PDEATHSIG as usize, libc::SIGKILL as usize]).ok();
        exit_now(job());
    }
    pid
}

fn exit_now(status: i32) -> ! {
    // SAFETY: ends the process without running what its parent registered.
    unsafe { libc::_exit(status) }
}

/// Waits for a child and returns its wait status.
pub(crate) fn wait(pid: i32) -> i32 {
    let mut status = 0;
    // SAFETY: the status is ours.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    status
}

/// Whether a child has ended.
pub(crate) fn is_gone(pid: i32) -> bool {
    // SAFETY: no status is asked for, and the child stays to be waited for.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: the structure is ours.
    let result = unsafe { libc::waitid(libc::P_PID, pid as libc::id_t, &raw mut info, flags) };
    // SAFETY: the field of a child's end, which stays 0 where there was none.
    result != 0 || unsafe { info.si_pid() } != 0
}

/// Mapped memory.
#[derive(Debug)]
pub(crate) struct Mapping {
    address: usize,
    length: usize,
}

impl Mapping {
    pub(crate) fn of(fd: &impl AsRawFd, protection: i32, flags: i32) -> Call<Self> {
        let length = 4096;
        let address = call(libc::SYS_mmap, &[0, length, protection as usize, flags as usize, num(fd), 0])?;
        Ok(Self { address, length })
    }

    /// Memory that a 32-bit call can address.
    pub(crate) fn low() -> Call<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let length = 8192;
        let address = call(libc::SYS_mmap, &[0, length, protection as usize, flags as usize, usize::MAX, 0])?;
        Ok(Self { address, length })
    }

    pub(crate) fn protect(&self, protection: i32) -> Call {
        call(libc::SYS_mprotect, &[self.address, self.length, protection as usize]).map(drop)
    }

    pub(crate) fn advise(&self, advice: i32) -> Call {
        call(libc::SYS_madvise, &[self.address, self.length, advice as usize]).map(drop)
    }

    /// Writes to the memory, which may kill the process.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        for (index, &byte) in bytes.iter().enumerate() {
            assert!(offset + index < self.length);
            // SAFETY: inside the mapping; where the kernel forbids it, the child ends by a signal.
            unsafe { ((self.address + offset + index) as *mut u8).write_volatile(byte) };
        }
    }

    pub(crate) fn read(&self, offset: usize) -> u8 {
        assert!(offset < self.length);
        // SAFETY: inside the mapping.
        unsafe { ((self.address + offset) as *const u8).read_volatile() }
    }

    pub(crate) fn sync(&self) -> Call {
        call(libc::SYS_msync, &[self.address, self.length, libc::MS_SYNC as usize]).map(drop)
    }

    pub(crate) fn address(&self) -> usize {
        self.address
    }
}

/// A call by the 32-bit entry, with its numbers and structures.
#[cfg(target_arch = "x86_64")]
pub(crate) fn compat(number: u32, arguments: [u32; 3]) -> Call<usize> {
    // Where the kernel has no such entry, the attempt is a fault: found out by a child, with getpid.
    let probe = fork(|| i32::from(enter(20, [0; 3]).is_err()));
    if wait(probe) != 0 {
        return Err(Errno::NOSYS);
    }
    enter(number, arguments)
}

#[cfg(target_arch = "x86_64")]
fn enter(number: u32, arguments: [u32; 3]) -> Call<usize> {
    let result: u32;
    let [first, second, third] = arguments.map(u64::from);
    // SAFETY: the entry keeps all registers but eax (and r8 to r11 on older kernels); ebx is put back.
    unsafe {
        std::arch::asm!(
            "xchg rbx, {first}", "int 0x80", "xchg rbx, {first}",
            first = inout(reg) first => _,
            inout("eax") number => result,
            in("rcx") second, in("rdx") third,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    check_negated(result as i32)
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn compat(_number: u32, _arguments: [u32; 3]) -> Call<usize> {
    Err(Errno::NOSYS)
}

/// Submits entries that may be linked, and returns the result of the one whose user data is 1.
pub(crate) struct Ring(IoUring);

impl Ring {
    pub(crate) fn new() -> Call<Self> {
        IoUring::new(8).map(Self).map_err(errno)
    }

    pub(crate) fn register(&self, fds: &[RawFd]) -> Call {
        self.0.submitter().register_files(fds).map_err(errno)
    }

    pub(crate) fn submit(&mut self, entries: &[squeue::Entry]) -> Call {
        for entry in entries {
            // SAFETY: what entries point to lives in the law until it has waited.
            unsafe { self.0.submission().push(entry) }.expect("a ring of eight has room");
        }
        self.0.submit().map(drop).map_err(errno)
    }

    pub(crate) fn wait(&mut self) -> Call<usize> {
        loop {
            self.0.submit_and_wait(1).map_err(errno)?;
            for done in self.0.completion() {
                if done.user_data() == 1 {
                    return check_negated(done.result());
                }
            }
        }
    }

    pub(crate) fn one(&mut self, entry: squeue::Entry) -> Call<usize> {
        self.submit(&[entry.user_data(1)])?;
        self.wait()
    }
}

/// A result as `io_uring` and AIO give it.
pub(crate) fn check_negated(result: i32) -> Call<usize> {
    if result < 0 { Err(Errno::from_raw_os_error(-result)) } else { Ok(result as usize) }
}
