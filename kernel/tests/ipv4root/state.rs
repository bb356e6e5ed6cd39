//! Laws about the root itself: how it is set, and who has it.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::Command;

use kernel::{Bpf, Ipv4Root};
use libc::{AF_INET, AF_UNIX, EINVAL, EPERM, SOCK_DGRAM};

use crate::ensure;
use crate::ipv4root::case::{Case, Law, Res, Who, child, confine, refused, same};
use crate::ipv4root::net::{A, B, HOST, NET_BROADCAST, at, many};
use crate::ipv4root::raw;

/// The call itself, with whatever bytes; `kernel/bpf/abi.h` has the numbers and the structure, of which the
/// patched kernel has the members for arguments.
fn set(case: &Case<'_>, bytes: &[u8]) -> io::Result<()> {
    if case.who == Who::Patch {
        return raw::set_ipv4root(bytes);
    }
    raw::option_bytes(&raw::socket(AF_INET, SOCK_DGRAM, 0)?, 0x5653, 1, bytes)
}

fn structure(count: u32, address: Ipv4Addr) -> Vec<u8> {
    let mut bytes = [count.to_ne_bytes(), NET_BROADCAST.octets()].concat();
    (0..16).for_each(|_| bytes.extend(address.octets()));
    bytes
}

/// The caller's root, as the door tells it.
fn own_root(case: &Case<'_>) -> io::Result<Option<Ipv4Root>> {
    let told = match case.who {
        Who::Patch => kernel::contexts().status(None).map(|status| status.root),
        // A whole status would take the programs for contexts.
        Who::Nobody | Who::Bpf => Bpf::own_root(),
    };
    told.map_err(io::Error::other)
}

/// What 0.0.0.0 means to the caller.
pub(crate) fn whereabouts() -> io::Result<String> {
    Ok(UdpSocket::bind(at(Ipv4Addr::UNSPECIFIED, 0))?.local_addr()?.ip().to_string())
}

/// What it means in another program.
fn executed() -> io::Result<String> {
    let said = Command::new(std::env::current_exe()?).arg("whereabouts").output()?.stdout;
    Ok(String::from_utf8_lossy(&said).trim().to_owned())
}

/// What it means to a late descendant.
fn generations(more: u32) -> io::Result<String> {
    if more == 0 { whereabouts() } else { child(|| generations(more - 1)) }
}

/// A descendant of the guest, made in some way, has the guest's root.
fn inherits(c: &Case<'_>, way: impl FnOnce() -> io::Result<String>) -> Res {
    same(c.told(&[A], way)?, A.to_string())
}

pub(crate) const LAWS: &[Law] = &[
    Law::enforced("a root is set once", |c| {
        let again = c.told(&[A], || {
            set(c, &structure(1, B))?;
            Ok("")
        });
        refused(again, EPERM)?;
        refused(c.told(&[A], || child(|| set(c, &structure(1, A)).map(|()| ""))), EPERM)
    }),
    Law::enforced("a root is told as it was set", |c| {
        let told = c.told(&many(16), || {
            Ok(own_root(c)?
                .map_or_else(String::new, |root| format!("{:?} {}", root.addresses(), root.broadcast())))
        })?;
        same(told, format!("{:?} {NET_BROADCAST}", many(16)))
    }),
    Law::enforced("what is no root is refused, and changes nothing", |c| {
        let all = [
            structure(0, A),
            structure(17, A),
            structure(u32::MAX, A),
            structure(1, Ipv4Addr::UNSPECIFIED),
            structure(16, Ipv4Addr::BROADCAST),
            structure(1, A)[..71].to_vec(),
            [&structure(1, A)[..], &[0]].concat(),
            Vec::new(),
        ];
        for bytes in
            all.into_iter().filter(|bytes| c.who != Who::Patch || bytes.len() == structure(1, A).len())
        {
            refused(child(|| set(c, &bytes).map(|()| "")), EINVAL)?;
        }
        same(child(whereabouts)?, Ipv4Addr::UNSPECIFIED.to_string())
    }),
    Law::enforced("anybody may set a root", |c| {
        inherits(c, || child(whereabouts))?;
        let own = child(|| {
            raw::become_nobody()?;
            c.confine(&[A])?;
            whereabouts()
        })?;
        same(own, A.to_string())
    }),
    Law::enforced("a process with several threads sets no root", |c| {
        let several = child(|| {
            let (stop, stopped) = std::sync::mpsc::channel::<()>();
            let other = std::thread::spawn(move || stopped.recv().ok());
            let said = set(c, &structure(1, A));
            drop(stop);
            other.join().ok();
            said.map(|()| "")
        });
        refused(several, libc::EBUSY)
    }),
    Law::enforced("children have it", |c| inherits(c, || child(whereabouts))),
    Law::enforced("siblings have it (CLONE_PARENT)", |c| {
        inherits(c, || {
            let say = || whereabouts().unwrap_or_else(|error| error.to_string());
            Ok(raw::fork_with(libc::CLONE_PARENT, 10, say)?.said())
        })
    }),
    Law::enforced("threads have it", |c| {
        inherits(c, || {
            std::thread::spawn(whereabouts).join().map_err(|_| io::Error::other("the thread panicked"))?
        })
    }),
    Law::enforced("children of threads have it", |c| {
        inherits(c, || {
            let thread = std::thread::spawn(|| child(|| child(whereabouts)));
            thread.join().map_err(|_| io::Error::other("the thread panicked"))?
        })
    }),
    Law::enforced("other programs have it", |c| inherits(c, executed)),
    Law::enforced("daemons have it, in sessions of their own and without their parents", |c| {
        inherits(c, || {
            let mailbox = tempfile::NamedTempFile::new()?;
            let path = mailbox.path();
            // The middle one ends at once; the grandchild is init's then.
            let mut middle = raw::fork(10, || {
                let orphan = raw::fork(10, || {
                    raw::new_session().ok();
                    std::thread::sleep(std::time::Duration::from_millis(200));
                    let said = whereabouts().unwrap_or_else(|error| error.to_string());
                    std::fs::write(path, said).ok();
                    String::new()
                });
                std::mem::forget(orphan);
                String::new()
            })?;
            middle.said();
            drop(middle);
            for _ in 0..50 {
                std::thread::sleep(std::time::Duration::from_millis(20));
                let said = std::fs::read_to_string(path)?;
                if !said.is_empty() {
                    return Ok(said);
                }
            }
            Err(io::Error::other("the orphan said nothing"))
        })
    }),
    Law::enforced("the fiftieth generation has it", |c| inherits(c, || generations(50))),
    Law::neutral("the parent of a guest has no root", |c| {
        c.guest(&[A], || UdpSocket::bind(at(A, 0)))?;
        same(whereabouts()?, Ipv4Addr::UNSPECIFIED.to_string())?;
        same(child(executed)?, Ipv4Addr::UNSPECIFIED.to_string())
    }),
    Law::neutral("without a root all addresses and transports are there", |_| {
        for address in [HOST, A, B, Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2), NET_BROADCAST] {
            same(UdpSocket::bind(at(address, 8000))?.local_addr()?, at(address, 8000))?;
        }
        same(
            UdpSocket::bind(at(crate::ipv4root::net::HOST6, 8000))?.local_addr()?.ip(),
            crate::ipv4root::net::HOST6.into(),
        )?;
        raw::socket(AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)?;
        raw::socket(libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_ICMPV6)?;
        Ok(())
    }),
    Law::neutral("options of other levels are as ever, long ones too", |_| {
        let socket = raw::socket(AF_UNIX, SOCK_DGRAM, 0)?;
        raw::option(&socket, libc::SOL_SOCKET, libc::SO_PASSCRED, 1)?;
        let socket = raw::socket(AF_INET, SOCK_DGRAM, 0)?;
        // Longer than the page that programs are shown: the kernel looks at the first four bytes.
        let mut long = vec![0; 3 * 4096];
        long[0] = 1;
        raw::option_bytes(&socket, libc::SOL_SOCKET, libc::SO_BROADCAST, &long)?;
        ensure!(UdpSocket::from(socket).broadcast()?, "the option was not set");
        let socket: OwnedFd = raw::socket(AF_INET, SOCK_DGRAM, 0)?;
        refused(raw::option(&socket, 0x5654, 1, 1), libc::ENOPROTOOPT)
    }),
    Law::enforced("the door tells a second root from a first", |c| {
        let said = c.told(&[A], || {
            Ok(match confine(&[B]) {
                Ok(()) => "set again".to_owned(),
                Err(error) => error.to_string(),
            })
        })?;
        ensure!(said.starts_with("not permitted to set the IPv4 root"), "{said}");
        Ok(())
    }),
];
