//! Laws about IPv6, raw sockets and broadcasts.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;

use libc::{
    AF_INET, AF_INET6, EADDRNOTAVAIL, ENETUNREACH, EPERM, EPROTONOSUPPORT, IPPROTO_ICMP, IPPROTO_RAW,
    IPPROTO_UDP, SOCK_DGRAM, SOCK_RAW, SOCK_STREAM, SOL_SOCKET,
};

use crate::ensure;
use crate::ipv4root::case::{Fault, LONG, Law, home, refused, refused_by, same};
use crate::ipv4root::laws::{
    ANY, bound_as, caller, datagram, hears, is_reached, is_silent, mapped, not_bound, own_server,
    refused_or_own, sender, tcp, udp,
};
use crate::ipv4root::net::{A, B, HOST, HOST6, NET_BROADCAST, PEER, PEER6, at, many};
use crate::ipv4root::raw;

pub(crate) const IPV6: &[Law] = &[
    Law::enforced(":: is the mapped first address", |c| bound_as(c, Ipv6Addr::UNSPECIFIED, mapped(A))),
    Law::enforced("::1 is the mapped first address", |c| bound_as(c, Ipv6Addr::LOCALHOST, mapped(A)))
        .of_programs("the patch refuses ::1 as it does all of IPv6"),
    Law::enforced("::ffff:0.0.0.0 is the mapped first address", |c| bound_as(c, mapped(ANY), mapped(A))),
    Law::enforced("an address of IPv6 is refused", |c| not_bound(c, HOST6)),
    Law::enforced("the host's mapped address is refused", |c| not_bound(c, mapped(HOST))),
    Law::enforced("the mapped second address is there, and no third", |c| {
        bound_as(c, mapped(B), mapped(B))?;
        not_bound(c, mapped(many(1)[0]))
    }),
    Law::enforced(":: without IPv4 is refused", |c| {
        let only = c.guest(&[A], || {
            let socket = raw::socket(AF_INET6, SOCK_STREAM, 0)?;
            raw::option(&socket, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
            raw::bind(&socket, at(Ipv6Addr::UNSPECIFIED, 8000)).map(|()| socket)
        });
        refused_by(only, &[libc::EINVAL, EADDRNOTAVAIL])
    }),
    Law::enforced("a server on :: and one on 0.0.0.0 of another guest, side by side", |c| {
        let _a = c.guest(&[A], || tcp(Ipv6Addr::UNSPECIFIED, 8000))?;
        let _b = c.guest(&[B], || tcp(ANY, 8000))?;
        ensure!(is_reached(A, 8000) && is_reached(B, 8000), "not reached");
        ensure!(!is_reached(HOST, 8000) && !is_reached(HOST6, 8000), "reached at the host's");
        Ok(())
    }),
    Law::enforced("TCP to a mapped address leaves from the first address", |c| {
        let from = caller(c, |to| {
            let socket = raw::socket(AF_INET6, SOCK_STREAM, 0)?;
            raw::connect(&socket, at(mapped(PEER), to.port())).map(|()| socket)
        })?;
        same(from, A.into())
    }),
    Law::enforced("UDP to a mapped address leaves from the first address", |c| {
        let from = sender(c, |to| {
            let socket = raw::socket(AF_INET6, SOCK_DGRAM, 0)?;
            raw::send_to(&socket, b"x", at(mapped(PEER), to.port()), 0).map(|()| socket)
        })?;
        same(from, A.into())?;
        let from = sender(c, |to| {
            let socket = UdpSocket::from(raw::socket(AF_INET6, SOCK_DGRAM, 0)?);
            raw::connect(&socket, at(mapped(PEER), to.port()))?;
            socket.send(b"x").map(|_| socket)
        })?;
        same(from, A.into())
    }),
    Law::enforced("a mapped datagram may not say that it comes from the host", |c| {
        for (source, outcome) in [(mapped(HOST), Err(EADDRNOTAVAIL)), (mapped(B), Ok(()))] {
            let said = c.guest(&[A, B], || {
                let socket = raw::socket(AF_INET6, SOCK_DGRAM, 0)?;
                raw::send_from(&socket, source, Some(at(mapped(PEER), 9))).map(|()| socket)
            });
            match outcome {
                Ok(()) => drop(said?),
                Err(errno) => refused(said, errno)?,
            }
        }
        Ok(())
    }),
    Law::enforced("UDP of an IPv6 socket to an IPv4 name leaves from the first address", |c| {
        let from = sender(c, |to| {
            let socket = UdpSocket::from(raw::socket(AF_INET6, SOCK_DGRAM, 0)?);
            raw::connect(&socket, to)?;
            socket.send(b"x").map(|_| socket)
        })?;
        same(from, A.into())
    }),
    Law::enforced("there is no way to another host by IPv6", |c| {
        let far = at(PEER6, 9);
        refused(c.guest(&[A], || TcpStream::connect(far)), ENETUNREACH)?;
        for connected in [true, false] {
            let sent = c.guest(&[A], || {
                let socket = raw::socket(AF_INET6, SOCK_DGRAM, 0)?;
                if connected { raw::connect(&socket, far) } else { raw::send_to(&socket, b"x", far, 0) }
                    .map(|()| socket)
            });
            refused(sent, ENETUNREACH)?;
        }
        Ok(())
    }),
    Law::enforced("connecting to ::1 reaches the guest's own server", |c| {
        let (ours, _theirs) = own_server(c, Ipv6Addr::LOCALHOST, 8104)?;
        let _client = c.guest(&[A], || TcpStream::connect(at(Ipv6Addr::LOCALHOST, 8104)))?;
        same(ours.accept()?.1.ip(), A.into())
    })
    .of_programs("the patch refuses ::1 as it does all of IPv6"),
    Law::enforced("listen by IPv6 without bind is heard at its own addresses only", |c| {
        let server = c.guest(&[A], || {
            let socket = raw::socket(AF_INET6, SOCK_STREAM, 0)?;
            raw::listen(&socket).map(|()| socket)
        })?;
        let port = home(&server)?.port();
        ensure!(is_reached(A, port), "not reached at its own address");
        ensure!(!is_reached(HOST, port) && !is_reached(HOST6, port), "reached at the host's");
        ensure!(!is_reached(Ipv6Addr::LOCALHOST, port), "reached at ::1");
        Ok(())
    }),
    Law::enforced("there are no raw sockets of IPv6, nor such for pings", |c| {
        for kind in [SOCK_RAW, SOCK_DGRAM] {
            let made = c.guest(&[A], || raw::socket(AF_INET6, kind, libc::IPPROTO_ICMPV6));
            refused_by(made, &[EPROTONOSUPPORT, EPERM])?;
        }
        Ok(())
    }),
];

/// A datagram of UDP with its IPv4 header, from any port to port 9.
fn packet(source: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 29, 0, 0, 0, 0, 64, IPPROTO_UDP as u8, 0, 0];
    packet.extend(source.octets());
    packet.extend(to.octets());
    packet.extend([0, 9, 0, 9, 0, 9, 0, 0, b'x']);
    packet
}

/// An echo request, whose checksum is right for this identifier only on a raw socket.
const ECHO: [u8; 8] = [8, 0, 0xf7, 0xff, 0, 0, 0, 0];

/// A socket for pings, bound to an address, that asks the neighbour.
fn ping(kind: i32, from: Ipv4Addr) -> io::Result<OwnedFd> {
    let socket = raw::socket(AF_INET, kind, IPPROTO_ICMP)?;
    raw::bind(&socket, at(from, 0))?;
    raw::send_to(&socket, &ECHO, at(PEER, 0), 0).map(|()| socket)
}

pub(crate) const RAW: &[Law] = &[
    Law::enforced("a raw socket hears what is said to its own addresses only", |c| {
        let ears = c.guest(&[A], || raw::socket(AF_INET, SOCK_RAW, IPPROTO_UDP))?;
        let client = c.net.outside(|| udp(PEER, 0))?;
        client.send_to(b"x", at(A, 9))?;
        ensure!(hears(&ears)?, "did not hear its own");
        client.send_to(b"x", at(HOST, 9))?;
        ensure!(is_silent(&ears)?, "heard the host's");
        Ok(())
    }),
    Law::enforced("a header made by hand comes from an address of the root", |c| {
        let say = |source| {
            move || {
                let socket = raw::socket(AF_INET, SOCK_RAW, IPPROTO_RAW)?;
                raw::send_to(&socket, &packet(source, PEER), at(PEER, 0), 0).map(|()| socket)
            }
        };
        c.guest(&[A], say(A))?;
        refused_by(c.guest(&[A], say(HOST)), &[EPERM, EADDRNOTAVAIL])?;
        refused_by(c.guest(&[A], say(Ipv4Addr::new(192, 0, 2, 7))), &[EPERM, EADDRNOTAVAIL])
    }),
    Law::enforced("a raw socket that is bound to the host's address can't speak", |c| {
        c.guest(&[A], || ping(SOCK_RAW, A))?;
        refused_by(c.guest(&[A], || ping(SOCK_RAW, HOST)), &[EPERM, EADDRNOTAVAIL])
    }),
    Law::enforced("a raw socket that is not bound can't speak with the host's address", |c| {
        let sent = c.guest(&[A], || {
            let socket = raw::socket(AF_INET, SOCK_RAW, IPPROTO_ICMP)?;
            raw::send_to(&socket, &ECHO, at(PEER, 0), 0).map(|()| socket)
        });
        refused_or_own(sent, EPERM)
    }),
    Law::enforced("pings have answers at an address of the root, and leave from no other", |c| {
        let socket = c.guest(&[A], || ping(SOCK_DGRAM, A))?;
        ensure!(hears(&socket)?, "no answer");
        refused_by(c.guest(&[A], || ping(SOCK_DGRAM, HOST)), &[EPERM, EADDRNOTAVAIL])
    }),
    Law::enforced("transports whose calls can't be seen are refused", |c| {
        const IPPROTO_MPTCP: i32 = 262;
        for family in [AF_INET, AF_INET6] {
            if raw::socket(family, SOCK_STREAM, IPPROTO_MPTCP).is_err() {
                return Err(Fault::Lacks("MPTCP".into()));
            }
            let made = c.guest(&[A], || raw::socket(family, SOCK_STREAM, IPPROTO_MPTCP));
            refused(made, EPROTONOSUPPORT)?;
        }
        Ok(())
    })
    .of_programs("the patch lets MPTCP be used"),
];

pub(crate) const BROADCASTS: &[Law] = &[
    Law::enforced("a socket on the broadcast address hears the net, and only its own is given", |c| {
        let ears = c.guest(&[A], || udp(NET_BROADCAST, 8000))?;
        let client = c.net.outside(|| udp(PEER, 0))?;
        client.set_broadcast(true)?;
        client.send_to(b"x", at(NET_BROADCAST, 8000))?;
        ensure!(hears(&ears)?, "not heard");
        refused_or_own(c.guest(&[A], || udp(Ipv4Addr::new(127, 255, 255, 255), 8000)), EADDRNOTAVAIL)
    }),
    Law::enforced("a socket on 255.255.255.255 hears that, and leaves from the first address", |c| {
        let ears = c.guest(&[A], || udp(Ipv4Addr::BROADCAST, 8001))?;
        let client = c.net.outside(|| udp(PEER, 0))?;
        client.set_broadcast(true)?;
        raw::option_bytes(&client, SOL_SOCKET, libc::SO_BINDTODEVICE, b"v1")?;
        client.send_to(b"x", at(Ipv4Addr::BROADCAST, 8001))?;
        ensure!(hears(&ears)?, "not heard");
        let from = sender(c, |to| {
            let socket = udp(Ipv4Addr::BROADCAST, 8002)?;
            socket.send_to(b"x", to).map(|_| socket)
        })?;
        same(from, A.into())
    }),
    Law::enforced("a socket on the broadcast address that connects is not given the host's address", |c| {
        let server = c.net.outside(|| udp(PEER, 0))?;
        server.set_read_timeout(Some(LONG))?;
        let to = server.local_addr()?;
        let connected = c.guest(&[A], || {
            let socket = udp(NET_BROADCAST, 8005)?;
            raw::connect(&socket, to)?;
            socket.send(b"x").map(|_| socket)
        });
        match connected {
            Ok(_) => same(server.recv_from(&mut [0])?.1.ip(), A.into()),
            refusal => refused(refusal, EADDRNOTAVAIL),
        }
    }),
    Law::enforced("a broadcast leaves from the first address", |c| {
        let server = c.net.outside(|| udp(ANY, 8003))?;
        server.set_read_timeout(Some(LONG))?;
        c.guest(&[A], || {
            let socket = UdpSocket::from(datagram()?);
            socket.set_broadcast(true)?;
            socket.send_to(b"x", at(NET_BROADCAST, 8003)).map(|_| socket)
        })?;
        same(server.recv_from(&mut [0])?.1.ip(), A.into())
    }),
    Law::enforced("a socket on 0.0.0.0 does not hear broadcasts (that takes a network namespace)", |c| {
        let ears = c.guest(&[A], || udp(ANY, 8004))?;
        let client = c.net.outside(|| udp(PEER, 0))?;
        client.set_broadcast(true)?;
        client.send_to(b"x", at(NET_BROADCAST, 8004))?;
        ensure!(is_silent(&ears)?, "heard");
        Ok(())
    })
    .of_programs("the patch lets such a socket hear the broadcasts of its root"),
];
