//! The patched kernel: two system calls, whose numbers it says itself.

use super::{
    ContextError, Contexts, ENTER, Entry, Ipv4Root, LOOK, Provider, SET_ROOT, Status, refused, status,
};
use crate::{Errno, sys};

/// The revision of the calls that is spoken here.
const REVISION: u32 = 1;

const CURE: &str = "boot a kernel with the vserver patch, of the revision that this version knows";

/// The numbers of the calls.
#[derive(Clone, Copy, Debug)]
pub struct Patch {
    new_s_context: i64,
    set_ipv4root: i64,
}

impl Patch {
    /// The running kernel's calls, if it has them.
    pub fn find() -> Result<Self, ContextError> {
        Self::of(&read(None)?)
    }

    fn of(text: &str) -> Result<Self, ContextError> {
        let call = |name, what| match status::call(text, name) {
            Some((number, REVISION)) => Ok(number),
            _ => Err(ContextError::NotSupported { what, cure: CURE }),
        };
        Ok(Self {
            new_s_context: call("new_s_context", ENTER)?,
            set_ipv4root: call("set_ipv4root", SET_ROOT)?,
        })
    }
}

/// `/proc/PID/status` of a process, or of the caller.
fn read(pid: Option<u32>) -> Result<String, ContextError> {
    let name = pid.map_or_else(|| "self".to_owned(), |pid| pid.to_string());
    std::fs::read_to_string(format!("/proc/{name}/status")).map_err(|error| {
        match (Errno::from_io_error(&error).unwrap_or(Errno::IO), pid) {
            (Errno::NOENT | Errno::SRCH, Some(pid)) => ContextError::NoProcess(pid),
            (errno, _) => ContextError::Kernel { what: LOOK, errno },
        }
    })
}

impl Contexts for Patch {
    fn provider(&self) -> Provider {
        Provider::Patch
    }

    fn enter(&self, entry: &Entry) -> Result<u32, ContextError> {
        let number = entry.which.number().ok_or_else(|| refused(ENTER, Errno::INVAL, CURE))?;
        let (remove, flags) = (entry.remove.0, entry.properties.bits());
        sys::new_s_context(self.new_s_context, number, remove, flags)
            .map_err(|errno| refused(ENTER, errno, CURE))?;
        Ok(self.status(None)?.context)
    }

    fn set_ipv4root(&self, root: &Ipv4Root) -> Result<(), ContextError> {
        let addresses: Vec<u32> =
            root.addresses().iter().map(|address| u32::from_ne_bytes(address.octets())).collect();
        let broadcast = u32::from_ne_bytes(root.broadcast().octets());
        sys::set_ipv4root(self.set_ipv4root, &addresses, broadcast)
            .map_err(|errno| refused(SET_ROOT, errno, CURE))
    }

    fn status(&self, pid: Option<u32>) -> Result<Status, ContextError> {
        let unknown = ContextError::NotSupported { what: LOOK, cure: CURE };
        status::status(&read(pid)?).ok_or(unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_revision_is_not_spoken() {
        let text = "__NR_new_s_context:\t463 rev1\n__NR_set_ipv4root:\t464 rev1\n";
        let patch = Patch::of(text).unwrap();
        assert_eq!((patch.new_s_context, patch.set_ipv4root), (463, 464));
        assert!(matches!(
            Patch::of(&text.replace("464 rev1", "464 rev2")),
            Err(ContextError::NotSupported { .. })
        ));
        assert!(matches!(Patch::of("Name:\tx\n"), Err(ContextError::NotSupported { .. })));
    }

    #[test]
    fn a_process_that_is_not_there() {
        assert_eq!(read(Some(u32::MAX)).unwrap_err(), ContextError::NoProcess(u32::MAX));
    }
}
