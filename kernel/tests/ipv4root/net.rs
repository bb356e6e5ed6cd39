//! The network that laws are tried in: a host and a neighbour, each in a network namespace of its own.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Duration;

use crate::ipv4root::raw;

/// The host's own address, from which everything leaves that is not told otherwise.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
/// The addresses of two guests.
pub(crate) const A: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 11);
pub(crate) const B: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 12);
/// The neighbour.
pub(crate) const PEER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 254);
pub(crate) const NET_BROADCAST: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 255);
pub(crate) const HOST6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 1);
pub(crate) const PEER6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 0xfe);

/// As many addresses of the host as asked for, none of which is named above.
pub(crate) fn many(count: u8) -> Vec<Ipv4Addr> {
    (0..count).map(|n| Ipv4Addr::new(10, 9, 0, 20 + n)).collect()
}

pub(crate) fn at(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}

/// Both namespaces. This process is in the host's.
#[derive(Debug)]
pub(crate) struct Net {
    home: File,
    peer: File,
}

impl Net {
    /// Moves the process into fresh namespaces of mounts and networks.
    pub(crate) fn make() -> io::Result<Self> {
        Command::new("modprobe").args(["-q", "veth"]).status().ok(); // built in, or there is none
        raw::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWNET)?;
        ip("link set lo up")?;
        let peer = File::open("/proc/thread-self/ns/net")?;
        raw::unshare(libc::CLONE_NEWNET)?;
        let net = Self { home: File::open("/proc/thread-self/ns/net")?, peer };
        ip("link set lo up")?;
        let beyond = format!("/proc/{}/fd/{}", std::process::id(), net.peer.as_raw_fd());
        ip(&format!("link add v0 type veth peer name v1 netns {beyond}"))?;
        for address in [HOST, A, B].into_iter().chain(many(17)) {
            ip(&format!("address add {address}/24 broadcast {NET_BROADCAST} dev v0"))?;
        }
        ip(&format!("-6 address add {HOST6}/64 dev v0 nodad"))?;
        ip("link set v0 up")?;
        net.outside(|| {
            ip(&format!("address add {PEER}/24 broadcast {NET_BROADCAST} dev v1"))?;
            ip(&format!("-6 address add {PEER6}/64 dev v1 nodad"))?;
            ip("link set v1 up")
        })?;
        // What is sent before the link has come up is lost.
        for _ in 0..50 {
            let knock = TcpStream::connect_timeout(&at(PEER, 9), Duration::from_millis(100));
            if knock.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
                break;
            }
        }
        // Ping sockets for everybody, as distributions have it.
        std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")?;
        std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", "3")?;
        Ok(net)
    }

    /// Does something in the neighbour's namespace; sockets made there stay there.
    pub(crate) fn outside<T>(&self, job: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        raw::enter(&self.peer)?;
        let done = job();
        raw::enter(&self.home)?;
        done
    }
}

fn ip(arguments: &str) -> io::Result<()> {
    let done = Command::new("ip").args(arguments.split(' ')).output()?;
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
    Err(io::Error::other(format!("ip {arguments}: {said}")))
}
