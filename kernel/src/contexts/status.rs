//! What a patched kernel says of a process in `/proc/PID/status`.
//!
//! ```text
//! __NR_new_s_context:    463 rev1
//! __NR_set_ipv4root:    464 rev1
//! s_context:    2
//! ctxflags:    9
//! ctxceiling:    000001ffffffffff
//! initpid:    none
//! ipv4root:    10.0.0.1 10.0.0.2
//! ipv4root_bcast:    10.0.0.255
//! ```
//!
//! Lines that are not known are left alone. `ipv4root` and `ipv4root_bcast` are `0` where there is none. The ceiling
//! is what processes can still have; flags are counted in decimal.

use std::net::Ipv4Addr;

use super::{Capabilities, Ipv4Root, Properties, Status};

/// What follows the label of a line.
fn field<'a>(text: &'a str, label: &str) -> Option<&'a str> {
    let rest = text.lines().find_map(|line| line.strip_prefix(label)?.strip_prefix(':'))?;
    Some(rest.trim())
}

/// The number and the revision of a system call.
pub(super) fn call(text: &str, name: &str) -> Option<(i64, u32)> {
    let (number, revision) = field(text, &format!("__NR_{name}"))?.split_once(' ')?;
    Some((number.parse().ok()?, revision.trim().strip_prefix("rev")?.parse().ok()?))
}

/// Where the process belongs; `None` if the lines are missing or not understood.
pub(super) fn status(text: &str) -> Option<Status> {
    let first = |label| field(text, label)?.split_whitespace().next();
    let number = |label| first(label)?.parse::<u32>().ok();
    let root = addresses(field(text, "ipv4root").unwrap_or("0"))?;
    let broadcast = match first("ipv4root_bcast") {
        None | Some("0") => Ipv4Addr::UNSPECIFIED,
        Some(text) => text.parse().ok()?,
    };
    Some(Status {
        context: number("s_context")?,
        properties: Properties::from_bits(number("ctxflags")?),
        ceiling: Capabilities(u64::from_str_radix(first("ctxceiling")?, 16).ok()?),
        init_pid: number("initpid").filter(|pid| *pid != 0),
        root: if root.is_empty() { None } else { Some(Ipv4Root::new(root, broadcast)?) },
    })
}

/// Addresses in a row, none for `0`.
fn addresses(text: &str) -> Option<Vec<Ipv4Addr>> {
    let named = text.split_whitespace().filter(|word| !matches!(*word, "0" | "0.0.0.0"));
    named.map(|word| word.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "Name:\tsh\n__NR_new_s_context:\t463 rev1\n__NR_set_ipv4root:\t464 rev2\ns_context:\t12\n\
        ctxflags:\t9\nctxceiling:\t000001fffffffdff\ninitpid:\t77\nipv4root:\t10.0.0.1 10.0.0.2\n\
        ipv4root_bcast:\t10.0.0.255\n";

    #[test]
    fn calls_have_numbers_and_revisions() {
        assert_eq!(call(SAMPLE, "new_s_context"), Some((463, 1)));
        assert_eq!(call(SAMPLE, "set_ipv4root"), Some((464, 2)));
        assert_eq!(call(SAMPLE, "s_context"), None);
        assert_eq!(call("__NR_new_s_context:\t463\n", "new_s_context"), None);
    }

    #[test]
    fn a_status_is_read() {
        let status = status(SAMPLE).unwrap();
        assert_eq!(status.context, 12);
        assert_eq!(status.properties, Properties { lock: true, private: true, ..Properties::default() });
        assert_eq!(status.ceiling, Capabilities(0x0000_01ff_ffff_fdff));
        assert_eq!(status.init_pid, Some(77));
        let root = status.root.unwrap();
        assert_eq!(root.addresses(), [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)]);
        assert_eq!(root.broadcast(), Ipv4Addr::new(10, 0, 0, 255));
    }

    #[test]
    fn what_is_not_there_or_odd() {
        let plain = SAMPLE.replace("10.0.0.1 10.0.0.2", "0").replace("initpid:\t77", "initpid:\tnone");
        let plain = status(&plain).unwrap();
        assert_eq!((plain.root, plain.init_pid), (None, None));
        let silent = status(&SAMPLE.replace("10.0.0.255", "0")).unwrap();
        assert_eq!(silent.root.unwrap().broadcast(), Ipv4Addr::UNSPECIFIED);
        assert_eq!(status("Name:\tsh\n"), None);
        assert_eq!(status(&SAMPLE.replace("10.0.0.1", "10.0.0")), None);
        assert_eq!(status(&SAMPLE.replace("10.0.0.1", &"1.1.1.1 ".repeat(17))), None);
        assert_eq!(status(&SAMPLE.replace("s_context:\t12", "s_context:\t-1")), None);
    }
}
