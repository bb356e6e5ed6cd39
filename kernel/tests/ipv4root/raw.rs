//! What the standard library has no call for.
#![allow(unsafe_code)] // forks, namespaces, and sockets with every option that a guest could try

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

pub(crate) fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: takes a number, and this process has one thread.
    check(unsafe { libc::unshare(flags) }).map(drop)
}

/// Moves the caller into a network namespace.
pub(crate) fn enter(namespace: &File) -> io::Result<()> {
    // SAFETY: takes numbers.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}

/// A bpf file system of our own: what is pinned in it goes with the namespace of mounts.
pub(crate) fn mount_bpf(at: &std::path::Path) -> io::Result<()> {
    let at = std::ffi::CString::new(at.as_os_str().as_encoded_bytes())?;
    let none = std::ptr::null();
    // SAFETY: all pointers are to strings that end in NUL, or null where that is allowed.
    unsafe {
        check(libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, std::ptr::null()))?;
        check(libc::mount(c"bpf".as_ptr(), at.as_ptr(), c"bpf".as_ptr(), 0, std::ptr::null()))?;
    }
    Ok(())
}

/// Takes away what is mounted at a place, if anything is.
pub(crate) fn unmount(at: &std::path::Path) {
    if let Ok(at) = std::ffi::CString::new(at.as_os_str().as_encoded_bytes()) {
        // SAFETY: the pointer is to a string that ends in NUL.
        unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) };
    }
}

pub(crate) fn become_nobody() -> io::Result<()> {
    // SAFETY: takes numbers, and this process has one thread.
    check(unsafe { libc::setgid(65534) | libc::setuid(65534) }).map(drop)
}

/// A child that says one line and stays until its other end of `stay` is closed.
#[derive(Debug)]
pub(crate) struct Child {
    pid: libc::pid_t,
    said: File,
    stay: Option<File>,
}

fn pipe() -> io::Result<(File, File)> {
    let (read, write) = io::pipe()?;
    Ok((File::from(OwnedFd::from(read)), File::from(OwnedFd::from(write))))
}

/// Runs `job` in a child, which ends after `seconds` at the latest.
pub(crate) fn fork(seconds: u32, job: impl FnOnce() -> String) -> io::Result<Child> {
    fork_with(0, seconds, job)
}

/// The same with flags of clone(2), such as `CLONE_PARENT`.
pub(crate) fn fork_with(flags: i32, seconds: u32, job: impl FnOnce() -> String) -> io::Result<Child> {
    let ((said, say), (stay, leave)) = (pipe()?, pipe()?);
    // SAFETY: as fork(2), as there is no stack; this process has one thread, so the child may do anything.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags | libc::SIGCHLD, 0, 0, 0, 0) };
    let pid = check(pid as libc::c_int)?;
    if pid != 0 {
        return Ok(Child { pid, said, stay: Some(leave) });
    }
    drop((said, leave));
    // SAFETY: takes a number; the default action of SIGALRM ends the child.
    unsafe { libc::alarm(seconds) };
    let words = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
    let words = words.unwrap_or_else(|_| "panicked".into());
    (&say).write_all(words.as_bytes()).ok();
    drop(say);
    (&stay).read_exact(&mut [0]).ok();
    // SAFETY: ends the child without running what its parent registered.
    unsafe { libc::_exit(0) }
}

/// What many children say that all live at once.
pub(crate) fn crowd(count: usize, job: impl Fn() -> String) -> io::Result<Vec<String>> {
    let ((said, say), (stay, leave)) = (pipe()?, pipe()?);
    let mut born = Vec::new();
    for _ in 0..count {
        // SAFETY: this process has one thread, so the child may do anything.
        let pid = check(unsafe { libc::fork() })?;
        if pid != 0 {
            born.push(pid);
            continue;
        }
        drop(leave);
        (&say).write_all(format!("{}\n", job()).as_bytes()).ok();
        (&stay).read_exact(&mut [0]).ok();
        // SAFETY: ends the child without running what its parent registered.
        unsafe { libc::_exit(0) }
    }
    drop(say);
    let words = io::BufRead::lines(io::BufReader::new(said)).take(count).collect();
    drop(leave);
    for pid in born {
        // SAFETY: the child is ours, and its status is not asked for.
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
    }
    words
}

impl Child {
    /// What it says; waits for it.
    pub(crate) fn said(&mut self) -> String {
        let mut words = String::new();
        self.said.read_to_string(&mut words).ok();
        words
    }

    /// A copy of one of its descriptors.
    pub(crate) fn descriptor(&self, number: RawFd) -> io::Result<OwnedFd> {
        // SAFETY: these take numbers, and return descriptors that nobody else knows.
        unsafe {
            let pidfd = check(libc::syscall(libc::SYS_pidfd_open, self.pid, 0) as libc::c_int)?;
            let pidfd = OwnedFd::from_raw_fd(pidfd);
            let fd = libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0);
            Ok(OwnedFd::from_raw_fd(check(fd as libc::c_int)?))
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        drop(self.stay.take());
        // SAFETY: the child is ours, and its status is not asked for.
        unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), 0) };
    }
}

pub(crate) fn socket(family: libc::c_int, kind: libc::c_int, protocol: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers, and returns a descriptor that nobody else knows.
    unsafe { Ok(OwnedFd::from_raw_fd(check(libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol))?)) }
}

/// An address as the kernel has it.
pub(crate) fn name(address: SocketAddr) -> Vec<u8> {
    let port = address.port().to_be_bytes();
    match address {
        SocketAddr::V4(v4) => {
            let family = (libc::AF_INET as u16).to_ne_bytes();
            [&family[..], &port, &v4.ip().octets(), &[0; 8]].concat()
        }
        SocketAddr::V6(v6) => {
            let family = (libc::AF_INET6 as u16).to_ne_bytes();
            [&family[..], &port, &[0; 4], &v6.ip().octets(), &[0; 4]].concat()
        }
    }
}

pub(crate) fn bind(socket: &impl AsRawFd, address: SocketAddr) -> io::Result<()> {
    let name = name(address);
    // SAFETY: the kernel reads as many bytes as there are.
    check(unsafe { libc::bind(socket.as_raw_fd(), name.as_ptr().cast(), name.len() as u32) }).map(drop)
}

pub(crate) fn connect(socket: &impl AsRawFd, address: SocketAddr) -> io::Result<()> {
    connect_name(socket, &name(address))
}

fn connect_name(socket: &impl AsRawFd, name: &[u8]) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes as there are.
    check(unsafe { libc::connect(socket.as_raw_fd(), name.as_ptr().cast(), name.len() as u32) }).map(drop)
}

/// Dissolves a connection: `connect(2)` to `AF_UNSPEC`.
pub(crate) fn disconnect(socket: &impl AsRawFd) -> io::Result<()> {
    connect_name(socket, &[0; 16])
}

pub(crate) fn listen(socket: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: takes numbers.
    check(unsafe { libc::listen(socket.as_raw_fd(), 8) }).map(drop)
}

pub(crate) fn send_to(
    socket: &impl AsRawFd,
    bytes: &[u8],
    address: SocketAddr,
    flags: libc::c_int,
) -> io::Result<()> {
    let (fd, name) = (socket.as_raw_fd(), name(address));
    // SAFETY: the kernel reads as many bytes as there are.
    let sent = unsafe {
        libc::sendto(fd, bytes.as_ptr().cast(), bytes.len(), flags, name.as_ptr().cast(), name.len() as u32)
    };
    check(sent as libc::c_int).map(drop)
}

/// Sends a datagram that says by itself where it comes from (`IP_PKTINFO`, `IPV6_PKTINFO`); to where the socket is connected if
/// there is no destination.
pub(crate) fn send_from(
    socket: &impl AsRawFd,
    source: impl Into<IpAddr>,
    to: Option<SocketAddr>,
) -> io::Result<()> {
    let to = to.map(name).unwrap_or_default();
    let (level, kind, info) = match source.into() {
        // struct in_pktinfo: interface, source, and an address that is not looked at
        IpAddr::V4(v4) => (libc::IPPROTO_IP, libc::IP_PKTINFO, [&[0; 4][..], &v4.octets(), &[0; 4]].concat()),
        // struct in6_pktinfo: source, interface
        IpAddr::V6(v6) => (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, [&v6.octets()[..], &[0; 4]].concat()),
    };
    let part = libc::iovec { iov_base: b"x".as_ptr().cast_mut().cast(), iov_len: 1 };
    let mut control = [0_u64; 8];
    // SAFETY: every pointer in the message is to a buffer that lives until the call is over, with its length;
    // the control buffer is aligned and larger than the one header and the 12 or 20 bytes put into it.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        if !to.is_empty() {
            message.msg_name = to.as_ptr().cast_mut().cast();
            message.msg_namelen = to.len() as u32;
        }
        message.msg_iov = std::ptr::from_ref(&part).cast_mut();
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(info.len() as u32) as usize;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = level;
        (*header).cmsg_type = kind;
        (*header).cmsg_len = libc::CMSG_LEN(info.len() as u32) as usize;
        std::ptr::copy_nonoverlapping(info.as_ptr(), libc::CMSG_DATA(header), info.len());
        check(libc::sendmsg(socket.as_raw_fd(), &raw const message, 0) as libc::c_int).map(drop)
    }
}

/// Sets an option whose value is a number.
pub(crate) fn option(
    socket: &impl AsRawFd,
    level: libc::c_int,
    which: libc::c_int,
    value: i32,
) -> io::Result<()> {
    option_bytes(socket, level, which, &value.to_ne_bytes())
}

pub(crate) fn option_bytes(
    socket: &impl AsRawFd,
    level: libc::c_int,
    which: libc::c_int,
    value: &[u8],
) -> io::Result<()> {
    let fd = socket.as_raw_fd();
    // SAFETY: the kernel reads as many bytes as there are.
    check(unsafe { libc::setsockopt(fd, level, which, value.as_ptr().cast(), value.len() as u32) }).map(drop)
}

/// The patched kernel's call, with the members of the structure that the programs take: their number, the
/// address for broadcasts, and 16 addresses.
pub(crate) fn set_ipv4root(structure: &[u8]) -> io::Result<()> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let number = status.lines().find_map(|line| line.strip_prefix("__NR_set_ipv4root:"));
    let number = number.and_then(|rest| rest.split_whitespace().next()?.parse::<libc::c_long>().ok());
    let number = number.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOSYS))?;
    let word = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|n| structure[at + n]));
    let addresses = structure[8..].as_ptr();
    // SAFETY: the kernel reads 16 addresses at most, and so many are there.
    let done = unsafe { libc::syscall(number, addresses, word(0), word(4)) };
    check(done as libc::c_int).map(drop)
}

/// Gives up receiving after this.
pub(crate) fn patience(socket: &impl AsRawFd, time: Duration) -> io::Result<()> {
    let time = libc::timeval { tv_sec: time.as_secs() as i64, tv_usec: i64::from(time.subsec_micros()) };
    let bytes = [time.tv_sec.to_ne_bytes(), time.tv_usec.to_ne_bytes()].concat();
    option_bytes(socket, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &bytes)
}

pub(crate) fn receive(socket: &impl AsRawFd) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 2048];
    // SAFETY: the kernel writes at most as many bytes as there is room for.
    let got = unsafe { libc::recv(socket.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    bytes.truncate(check(got as libc::c_int)? as usize);
    Ok(bytes)
}

/// Connects by a kernel thread on our behalf.
pub(crate) fn connect_by_worker(socket: &impl AsRawFd, address: SocketAddr) -> io::Result<()> {
    let name = name(address);
    let mut ring = io_uring::IoUring::new(4)?;
    let socket = io_uring::types::Fd(socket.as_raw_fd());
    let entry = io_uring::opcode::Connect::new(socket, name.as_ptr().cast(), name.len() as u32).build();
    // SAFETY: the name lives until the request is complete.
    unsafe {
        ring.submission().push(&entry.flags(io_uring::squeue::Flags::ASYNC)).map_err(io::Error::other)?;
    };
    ring.submit_and_wait(1)?;
    let done = ring.completion().next().map_or(-libc::EIO, |entry| entry.result());
    if done < 0 { Err(io::Error::from_raw_os_error(-done)) } else { Ok(()) }
}

/// Leaves the session of the caller.
pub(crate) fn new_session() -> io::Result<()> {
    // SAFETY: takes nothing.
    check(unsafe { libc::setsid() }).map(drop)
}
