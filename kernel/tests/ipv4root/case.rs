//! A law, and the guests that try to break it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use kernel::Ipv4Root;

use crate::ipv4root::net::{NET_BROADCAST, Net};
use crate::ipv4root::raw;

/// Something that has to hold.
#[derive(Clone, Copy)]
pub(crate) struct Law {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) run: fn(&Case<'_>) -> Res,
    /// Why it is no law for the patched kernel.
    pub(crate) unpatched: Option<&'static str>,
}

/// Who enforces roots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// Nobody: laws are tried by guests that have none.
    Nobody,
    /// The eBPF programs.
    Bpf,
    /// The patched kernel.
    Patch,
}

/// What is to be seen without any program.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// That it does not hold.
    Enforced,
    /// That it holds, too: nothing changes for those without a root.
    Neutral,
}

impl Law {
    pub(crate) const fn enforced(name: &'static str, run: fn(&Case<'_>) -> Res) -> Self {
        Self { name, kind: Kind::Enforced, run, unpatched: None }
    }

    pub(crate) const fn neutral(name: &'static str, run: fn(&Case<'_>) -> Res) -> Self {
        Self { name, kind: Kind::Neutral, run, unpatched: None }
    }

    /// It states a limit of the programs, or a way of theirs, that the patched kernel does not have.
    pub(crate) const fn of_programs(self, why: &'static str) -> Self {
        Self { unpatched: Some(why), ..self }
    }
}

/// Why a law does not hold.
#[derive(Debug)]
pub(crate) enum Fault {
    /// It was seen not to.
    Broken(String),
    /// This kernel can't do what it is about.
    Lacks(String),
}

pub(crate) type Res<T = ()> = Result<T, Fault>;

impl From<io::Error> for Fault {
    #[track_caller]
    fn from(error: io::Error) -> Self {
        Self::Broken(format!("{error} at {}", std::panic::Location::caller()))
    }
}

/// `Err` with the words that follow, unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($words:tt)*) => {
        if !$condition {
            return Err($crate::ipv4root::case::Fault::Broken(format!($($words)*)));
        }
    };
}

/// `Err` unless the call was refused with this errno.
#[track_caller]
pub(crate) fn refused<T>(call: io::Result<T>, errno: i32) -> Res {
    refused_by(call, &[errno])
}

/// `Err` unless the call was refused with one of these errnos: providers ask at different places.
#[track_caller]
pub(crate) fn refused_by<T>(call: io::Result<T>, errnos: &[i32]) -> Res {
    let line = std::panic::Location::caller().line();
    match call {
        Err(error) if error.raw_os_error().is_some_and(|errno| errnos.contains(&errno)) => Ok(()),
        Err(error) => Err(Fault::Broken(format!("line {line}: {error}, not one of {errnos:?}"))),
        Ok(_) => Err(Fault::Broken(format!("line {line}: went through"))),
    }
}

/// `Err` unless both are the same.
#[track_caller]
pub(crate) fn same<T: PartialEq + std::fmt::Debug>(seen: T, wanted: T) -> Res {
    let line = std::panic::Location::caller().line();
    ensure!(seen == wanted, "line {line}: {seen:?}, not {wanted:?}");
    Ok(())
}

/// How long nothing has to come before it is taken for nothing.
pub(crate) const SILENCE: Duration = Duration::from_millis(250);
/// How long is waited for what has to come; virtual machines are slow.
pub(crate) const LONG: Duration = Duration::from_secs(3);
/// Seconds until something that hangs is given up.
const PATIENCE: u32 = 60;

/// Where a law is tried.
#[derive(Debug)]
pub(crate) struct Case<'a> {
    pub(crate) net: &'a Net,
    /// With nobody, guests are not confined: the control.
    pub(crate) who: Who,
}

/// Gives the caller a root, by the door that everybody uses.
pub(crate) fn confine(addresses: &[Ipv4Addr]) -> io::Result<()> {
    confine_with(addresses, NET_BROADCAST)
}

pub(crate) fn confine_with(addresses: &[Ipv4Addr], broadcast: Ipv4Addr) -> io::Result<()> {
    let root = Ipv4Root::new(addresses.to_vec(), broadcast).expect("1 to 16 addresses");
    kernel::contexts().set_ipv4root(&root).map_err(io::Error::other)
}

impl Case<'_> {
    /// Confines the caller, but in the control.
    pub(crate) fn confine(&self, addresses: &[Ipv4Addr]) -> io::Result<()> {
        if self.who == Who::Nobody { Ok(()) } else { confine(addresses) }
    }

    /// The socket that a guest makes. The guest has ended when this returns.
    pub(crate) fn guest<T: Into<OwnedFd>>(
        &self,
        addresses: &[Ipv4Addr],
        job: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<OwnedFd> {
        self.guest_of(addresses, NET_BROADCAST, job)
    }

    /// The same with another address for broadcasts.
    pub(crate) fn guest_of<T: Into<OwnedFd>>(
        &self,
        addresses: &[Ipv4Addr],
        broadcast: Ipv4Addr,
        job: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<OwnedFd> {
        let mut child = raw::fork(PATIENCE, || {
            let confined = if self.who == Who::Nobody { Ok(()) } else { confine_with(addresses, broadcast) };
            let made = confined.and_then(|()| job());
            words(made.map(Into::into).map(|fd: OwnedFd| std::mem::ManuallyDrop::new(fd).as_raw_fd()))
        })?;
        let number = meaning(&child.said())?;
        child.descriptor(number.parse().map_err(io::Error::other)?)
    }

    /// What a guest comes to know.
    pub(crate) fn told<T: std::fmt::Display>(
        &self,
        addresses: &[Ipv4Addr],
        job: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<String> {
        let mut child = raw::fork(PATIENCE, || words(self.confine(addresses).and_then(|()| job())))?;
        meaning(&child.said())
    }
}

/// What a child of the caller comes to know.
pub(crate) fn child<T: std::fmt::Display>(job: impl FnOnce() -> io::Result<T>) -> io::Result<String> {
    meaning(&raw::fork(PATIENCE, || words(job()))?.said())
}

/// A result as words for a pipe.
fn words<T: std::fmt::Display>(result: io::Result<T>) -> String {
    match result {
        Ok(value) => format!("ok {value}"),
        Err(error) => match error.raw_os_error() {
            Some(errno) => format!("errno {errno}"),
            None => format!("failed {error}"),
        },
    }
}

fn meaning(words: &str) -> io::Result<String> {
    match words.split_once(' ') {
        Some(("ok", value)) => Ok(value.to_owned()),
        Some(("errno", errno)) => Err(io::Error::from_raw_os_error(errno.parse().map_err(io::Error::other)?)),
        Some((_, why)) => Err(io::Error::other(why.to_owned())),
        None => Err(io::Error::other("the child died")),
    }
}

/// Where a socket is bound to.
pub(crate) fn home(socket: &OwnedFd) -> io::Result<SocketAddr> {
    std::net::UdpSocket::from(socket.try_clone()?).local_addr()
}

impl Law {
    /// Tries it in a child, so that whatever goes wrong stays there.
    pub(crate) fn attempt(&self, case: &Case<'_>) -> Res {
        let said = raw::fork(PATIENCE * 3, || match (self.run)(case) {
            Ok(()) => "ok ".into(),
            Err(Fault::Broken(why)) => format!("broken {why}"),
            Err(Fault::Lacks(why)) => format!("lacks {why}"),
        })?
        .said();
        match said.split_once(' ') {
            Some(("ok", _)) => Ok(()),
            Some(("lacks", why)) => Err(Fault::Lacks(why.into())),
            Some((_, why)) => Err(Fault::Broken(why.into())),
            None => Err(Fault::Broken(format!("died: {said}"))),
        }
    }
}
