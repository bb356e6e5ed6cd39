//! Laws about binding, listening and connecting by IPv4.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use libc::{AF_INET, AF_INET6, EADDRNOTAVAIL, IPPROTO_IP, SOCK_DGRAM, SOCK_STREAM, SOL_SOCKET};

use crate::ensure;
use crate::ipv4root::case::{Case, Fault, LONG, Law, Res, SILENCE, home, refused, same};
use crate::ipv4root::net::{A, B, HOST, HOST6, PEER, PEER6, at, many};
use crate::ipv4root::raw;

pub(crate) const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

pub(crate) fn mapped(address: Ipv4Addr) -> Ipv6Addr {
    address.to_ipv6_mapped()
}

pub(crate) fn tcp(address: impl Into<IpAddr>, port: u16) -> io::Result<TcpListener> {
    TcpListener::bind(at(address, port))
}

pub(crate) fn udp(address: impl Into<IpAddr>, port: u16) -> io::Result<UdpSocket> {
    UdpSocket::bind(at(address, port))
}

/// Binding to an address is refused, by both transports.
pub(crate) fn not_bound(case: &Case<'_>, address: impl Into<IpAddr> + Copy) -> Res {
    refused(case.guest(&[A], || tcp(address, 8000)), EADDRNOTAVAIL)?;
    refused(case.guest(&[A], || udp(address, 8000)), EADDRNOTAVAIL)
}

/// Binding to an address becomes binding to another, by both transports.
pub(crate) fn bound_as(
    case: &Case<'_>,
    address: impl Into<IpAddr> + Copy,
    becomes: impl Into<IpAddr> + Copy,
) -> Res {
    same(home(&case.guest(&[A, B], || tcp(address, 8000))?)?, at(becomes, 8000))?;
    same(home(&case.guest(&[A, B], || udp(address, 8000))?)?, at(becomes, 8000))
}

pub(crate) const BIND: &[Law] = &[
    Law::enforced("two TCP servers on 0.0.0.0 and the same port, side by side", |c| {
        let a = TcpListener::from(c.guest(&[A], || tcp(ANY, 8000))?);
        let b = TcpListener::from(c.guest(&[B], || tcp(ANY, 8000))?);
        for (server, address) in [(&a, A), (&b, B)] {
            let client = c.net.outside(|| TcpStream::connect(at(address, 8000)))?;
            same(server.accept()?.1, client.local_addr()?)?;
        }
        Ok(())
    }),
    Law::enforced("two UDP servers on 0.0.0.0 and the same port, side by side", |c| {
        let a = UdpSocket::from(c.guest(&[A], || udp(ANY, 8000))?);
        let b = UdpSocket::from(c.guest(&[B], || udp(ANY, 8000))?);
        let client = c.net.outside(|| udp(PEER, 0))?;
        for (server, address) in [(&a, A), (&b, B)] {
            client.send_to(b"x", at(address, 8000))?;
            same(server.recv_from(&mut [0])?.1, client.local_addr()?)?;
        }
        Ok(())
    }),
    Law::enforced("0.0.0.0 is the first address", |c| bound_as(c, ANY, A)),
    Law::enforced("127.0.0.1 is the first address", |c| bound_as(c, LOCALHOST, A)),
    Law::enforced("the host's address is refused", |c| not_bound(c, HOST)),
    Law::enforced("another guest's address is refused", |c| not_bound(c, B)),
    Law::enforced("127.0.0.2 is refused, or the first address", |c| {
        let other = Ipv4Addr::new(127, 0, 0, 2);
        refused_or_own(c.guest(&[A], || tcp(other, 8000)), EADDRNOTAVAIL)?;
        refused_or_own(c.guest(&[A], || udp(other, 8000)), EADDRNOTAVAIL)
    }),
    Law::enforced("a multicast group is refused", |c| not_bound(c, Ipv4Addr::new(224, 0, 0, 251)))
        .of_programs("the patch lets groups be bound and joined"),
    Law::enforced("an address that was lent (IP_FREEBIND, IP_TRANSPARENT) is refused", |c| {
        let stranger = Ipv4Addr::new(192, 0, 2, 7);
        for option in [libc::IP_FREEBIND, libc::IP_TRANSPARENT] {
            let lent = c.guest(&[A], || {
                let socket = raw::socket(AF_INET, SOCK_STREAM, 0)?;
                raw::option(&socket, IPPROTO_IP, option, 1)?;
                raw::bind(&socket, at(stranger, 8000)).map(|()| socket)
            });
            refused(lent, EADDRNOTAVAIL)?;
        }
        Ok(())
    }),
    Law::enforced("an address that is shared (SO_REUSEADDR, SO_REUSEPORT) or of a device is refused", |c| {
        let shared = c.guest(&[A], || {
            let socket = raw::socket(AF_INET, SOCK_DGRAM, 0)?;
            raw::option(&socket, SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
            raw::option(&socket, SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
            raw::option_bytes(&socket, SOL_SOCKET, libc::SO_BINDTODEVICE, b"v0")?;
            raw::bind(&socket, at(HOST, 8000)).map(|()| socket)
        });
        refused(shared, EADDRNOTAVAIL)
    }),
    Law::enforced("each of 16 addresses is there, and no 17th", |c| {
        let all = many(17);
        for address in &all[..16] {
            same(home(&c.guest(&all[..16], || udp(*address, 8000))?)?, at(*address, 8000))?;
        }
        refused(c.guest(&all[..16], || udp(all[16], 8000)), EADDRNOTAVAIL)
    }),
    Law::enforced("a socket from before the root was set is bound by it", |c| {
        let early = raw::socket(AF_INET, SOCK_DGRAM, 0)?;
        refused(c.told(&[A], || raw::bind(&early, at(HOST, 8000)).map(|()| 0)), EADDRNOTAVAIL)?;
        let unbound = raw::socket(AF_INET, SOCK_DGRAM, 0)?;
        c.told(&[A], || raw::bind(&unbound, at(ANY, 8000)).map(|()| 0))?;
        same(home(&unbound)?, at(A, 8000))
    }),
    Law::enforced("a socket from before the root was set hears by it, once it is used", |c| {
        let early = raw::socket(AF_INET, SOCK_DGRAM, 0)?;
        c.told(&[A], || raw::send_to(&early, b"x", at(PEER, 9), 0).map(|()| 0))?;
        let client = c.net.outside(|| udp(PEER, 0))?;
        client.send_to(b"x", at(HOST, home(&early)?.port()))?;
        ensure!(is_silent(&early)?, "heard what was said to the host");
        Ok(())
    }),
    Law::enforced("a guest that makes itself a network namespace keeps its root", |c| {
        let own = c.told(&[A], || {
            raw::unshare(libc::CLONE_NEWNET)?;
            std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
            udp(Ipv4Addr::new(127, 0, 0, 2), 8000)?.local_addr()
        });
        refused(own, EADDRNOTAVAIL)
    }),
];

/// Whether a connection is made within some time.
pub(crate) fn is_reached(address: impl Into<IpAddr>, port: u16) -> bool {
    TcpStream::connect_timeout(&at(address, port), LONG).is_ok()
}

pub(crate) fn is_silent(socket: &OwnedFd) -> io::Result<bool> {
    is_silent_for(socket, SILENCE)
}

/// Whether anything comes, however slow the machine is.
pub(crate) fn hears(socket: &OwnedFd) -> io::Result<bool> {
    Ok(!is_silent_for(socket, LONG)?)
}

fn is_silent_for(socket: &OwnedFd, time: Duration) -> io::Result<bool> {
    raw::patience(socket, time)?;
    match raw::receive(socket) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}

pub(crate) const LISTEN: &[Law] = &[
    Law::enforced("a server on 0.0.0.0 is heard at its own address only", |c| {
        let server = c.guest(&[A], || tcp(ANY, 8000))?;
        ensure!(is_reached(A, 8000), "not reached at its own address");
        ensure!(!is_reached(HOST, 8000), "reached at the host's");
        ensure!(!is_reached(LOCALHOST, 8000), "reached at 127.0.0.1");
        drop(server);
        Ok(())
    }),
    Law::enforced("listen without bind is heard at its own addresses only", |c| {
        let server = c.guest(&[A, B], || {
            let socket = raw::socket(AF_INET, SOCK_STREAM, 0)?;
            raw::listen(&socket).map(|()| socket)
        })?;
        let port = home(&server)?.port();
        ensure!(is_reached(A, port), "not reached at its own address");
        ensure!(!is_reached(HOST, port), "reached at the host's");
        ensure!(!is_reached(LOCALHOST, port), "reached at 127.0.0.1");
        Ok(())
    }),
    Law::neutral("listen without bind is heard at each of its addresses", |c| {
        let server = c.guest(&[A, B], || {
            let socket = raw::socket(AF_INET, SOCK_STREAM, 0)?;
            raw::listen(&socket).map(|()| socket)
        })?;
        let port = home(&server)?.port();
        ensure!(is_reached(A, port) && is_reached(B, port), "not reached");
        Ok(())
    })
    .of_programs("the patch binds to the first address"),
    Law::enforced("a port that the kernel picked hears its own addresses only", |c| {
        let socket = c.guest(&[A], || {
            let socket = raw::socket(AF_INET, SOCK_DGRAM, 0)?;
            raw::send_to(&socket, b"x", at(PEER, 9), 0).map(|()| socket)
        })?;
        let (port, client) = (home(&socket)?.port(), c.net.outside(|| udp(PEER, 0))?);
        client.send_to(b"ours", at(A, port))?;
        raw::patience(&socket, LONG)?;
        same(raw::receive(&socket)?, b"ours".to_vec())?;
        client.send_to(b"theirs", at(HOST, port))?;
        ensure!(is_silent(&socket)?, "heard what was said to the host");
        Ok(())
    }),
    Law::enforced("a port that the kernel picked does not hear IPv6", |c| {
        let socket = c.guest_of(&[A], ANY, || {
            let socket = raw::socket(AF_INET6, SOCK_DGRAM, 0)?;
            raw::send_to(&socket, b"x", at(mapped(PEER), 9), 0).map(|()| socket)
        })?;
        let client = c.net.outside(|| udp(PEER6, 0))?;
        client.send_to(b"x", at(HOST6, home(&socket)?.port()))?;
        ensure!(is_silent(&socket)?, "heard");
        Ok(())
    }),
    Law::enforced("multicast is not heard", |c| {
        let group = Ipv4Addr::new(239, 1, 2, 3);
        let socket = c.guest(&[A], || {
            let socket = UdpSocket::from(raw::socket(AF_INET, SOCK_DGRAM, 0)?);
            socket.join_multicast_v4(&group, &A)?;
            raw::send_to(&socket, b"x", at(PEER, 9), 0).map(|()| socket)
        })?;
        let client = c.net.outside(|| udp(PEER, 0))?;
        client.send_to(b"x", at(group, home(&socket)?.port()))?;
        ensure!(is_silent(&socket)?, "heard");
        Ok(())
    })
    .of_programs("the patch lets groups be heard by those who join them"),
];

/// A server outside, and the address that a guest reached it from.
pub(crate) fn caller(c: &Case<'_>, job: impl FnOnce(SocketAddr) -> io::Result<OwnedFd>) -> Res<IpAddr> {
    let server = c.net.outside(|| tcp(PEER, 0))?;
    let to = server.local_addr()?;
    let client = c.guest(&[A, B], || job(to))?;
    server.set_nonblocking(true)?;
    let deadline = std::time::Instant::now() + LONG;
    loop {
        match server.accept() {
            Ok((_, from)) => return Ok(from.ip()),
            Err(_) if std::time::Instant::now() < deadline => std::thread::sleep(SILENCE / 10),
            Err(error) => {
                drop(client);
                return Err(error.into());
            }
        }
    }
}

/// The address that a guest's datagram comes from.
pub(crate) fn sender<T: Into<OwnedFd>>(
    c: &Case<'_>,
    job: impl FnOnce(SocketAddr) -> io::Result<T>,
) -> Res<IpAddr> {
    let server = c.net.outside(|| udp(PEER, 0))?;
    server.set_read_timeout(Some(LONG))?;
    let to = server.local_addr()?;
    c.guest(&[A, B], || job(to))?;
    Ok(server.recv_from(&mut [0; 64])?.1.ip())
}

/// Refused with this errno, as the programs have to; or the socket has the first address.
pub(crate) fn refused_or_own(socket: io::Result<OwnedFd>, errno: i32) -> Res {
    match socket {
        Ok(socket) => same(home(&socket)?.ip(), A.into()),
        refusal => refused(refusal, errno),
    }
}

pub(crate) fn datagram() -> io::Result<OwnedFd> {
    raw::socket(AF_INET, SOCK_DGRAM, 0)
}

/// Servers of the same port: the guest's own, and the host's at 127.0.0.1. Returns the guest's.
pub(crate) fn own_server(
    c: &Case<'_>,
    host: impl Into<IpAddr>,
    port: u16,
) -> io::Result<(TcpListener, TcpListener)> {
    let theirs = tcp(host, port)?;
    let ours = TcpListener::from(c.guest(&[A], || tcp(A, port))?);
    ours.set_nonblocking(true)?;
    Ok((ours, theirs))
}

pub(crate) const CLIENT: &[Law] = &[
    Law::enforced("TCP leaves from the first address", |c| {
        same(caller(c, |to| Ok(TcpStream::connect(to)?.into()))?, A.into())
    }),
    Law::enforced("TCP leaves from the first address by fast open, too", |c| {
        let from = caller(c, |to| {
            let socket = raw::socket(AF_INET, SOCK_STREAM, 0)?;
            raw::send_to(&socket, b"x", to, libc::MSG_FASTOPEN).map(|()| socket)
        })?;
        same(from, A.into())
    }),
    Law::enforced("a client that binds 0.0.0.0 first leaves from the first address", |c| {
        let from = caller(c, |to| {
            let socket = raw::socket(AF_INET, SOCK_STREAM, 0)?;
            raw::bind(&socket, at(ANY, 0))?;
            raw::connect(&socket, to).map(|()| socket)
        })?;
        same(from, A.into())
    }),
    Law::enforced("UDP leaves from the first address", |c| {
        let from = sender(c, |to| {
            let socket = datagram()?;
            raw::send_to(&socket, b"x", to, 0).map(|()| socket)
        })?;
        same(from, A.into())
    }),
    Law::enforced("connected UDP leaves from the first address", |c| {
        let from = sender(c, |to| {
            let socket = UdpSocket::from(datagram()?);
            raw::connect(&socket, to)?;
            socket.send(b"x").map(|_| socket)
        })?;
        same(from, A.into())
    }),
    Law::enforced("UDP that is connected again leaves from the first address", |c| {
        let from = sender(c, |to| {
            let socket = UdpSocket::from(datagram()?);
            raw::connect(&socket, at(PEER, 9))?;
            raw::disconnect(&socket)?;
            raw::connect(&socket, to)?;
            socket.send(b"x").map(|_| socket)
        })?;
        same(from, A.into())
    }),
    Law::enforced("UDP that sends and then connects is not given the host's address", |c| {
        let connected = c.guest(&[A], || {
            let socket = datagram()?;
            raw::send_to(&socket, b"x", at(PEER, 9), 0)?;
            raw::connect(&socket, at(PEER, 9)).map(|()| socket)
        });
        refused_or_own(connected, EADDRNOTAVAIL)
    }),
    Law::enforced("a datagram may say that it comes from the second address, not from the host's", |c| {
        let say = |source| {
            move |to| {
                let socket = datagram()?;
                raw::send_from(&socket, source, Some(to)).map(|()| socket)
            }
        };
        same(sender(c, say(B))?, B.into())?;
        refused(c.guest(&[A], || say(HOST)(at(PEER, 9))), EADDRNOTAVAIL)
    }),
    Law::enforced("a datagram that says it comes from 127.0.0.1 leaves from the first address", |c| {
        let say = |to| {
            let socket = datagram()?;
            raw::send_from(&socket, LOCALHOST, Some(to)).map(|()| socket)
        };
        same(sender(c, say)?, A.into())
    })
    .of_programs("the patch refuses such a datagram"),
    Law::enforced("a datagram of a connected socket may not say that it comes from the host", |c| {
        let said = c.guest(&[A], || {
            let socket = datagram()?;
            raw::connect(&socket, at(PEER, 9))?;
            raw::send_from(&socket, HOST, None).map(|()| socket)
        });
        refused(said, EADDRNOTAVAIL)
    }),
    Law::enforced("connecting to 127.0.0.1 reaches the guest's own server", |c| {
        let (ours, _theirs) = own_server(c, LOCALHOST, 8100)?;
        let _client = c.guest(&[A], || TcpStream::connect(at(LOCALHOST, 8100)))?;
        same(ours.accept()?.1.ip(), A.into())
    }),
    Law::enforced("connecting to 0.0.0.0 reaches the guest's own server", |c| {
        let (ours, _theirs) = own_server(c, LOCALHOST, 8101)?;
        let _client = c.guest(&[A], || TcpStream::connect(at(ANY, 8101)))?;
        same(ours.accept()?.1.ip(), A.into())
    }),
    Law::enforced("a datagram to 127.0.0.1 reaches the guest's own server", |c| {
        let _theirs = udp(LOCALHOST, 8102)?;
        let ours = c.guest(&[A], || udp(A, 8102))?;
        c.told(&[A], || raw::send_to(&datagram()?, b"x", at(LOCALHOST, 8102), 0).map(|()| 0))?;
        ensure!(hears(&ours)?, "not heard");
        Ok(())
    }),
    Law::enforced("a socket keeps its root when it is handed on", |c| {
        let server = c.net.outside(|| tcp(PEER, 0))?;
        let socket = c.guest(&[A], || raw::socket(AF_INET, SOCK_STREAM, 0))?;
        raw::connect(&socket, server.local_addr()?)?;
        same(server.accept()?.1.ip(), A.into())
    })
    .of_programs("the patch holds processes, not sockets"),
    Law::enforced("what was accepted has the root of what listened", |c| {
        let server = TcpListener::from(c.guest(&[A], || tcp(A, 8103))?);
        let _client = TcpStream::connect(at(A, 8103))?;
        let accepted = server.accept()?.0;
        refused(raw::bind(&accepted, at(HOST, 0)), EADDRNOTAVAIL)
    })
    .of_programs("the patch holds processes, not sockets"),
    Law::enforced("TCP leaves from the first address by io_uring's workers, too", |c| {
        if io_uring::IoUring::new(4).is_err() {
            return Err(Fault::Lacks("io_uring".into()));
        }
        let from = caller(c, |to| {
            let socket = raw::socket(AF_INET, SOCK_STREAM, 0)?;
            raw::connect_by_worker(&socket, to).map(|()| socket)
        })?;
        same(from, A.into())
    }),
];
