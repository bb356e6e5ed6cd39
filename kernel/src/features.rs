//! What this host can enforce, by whom, what that leaves open, and how to get the better.

use std::os::fd::BorrowedFd;

use crate::bpf::{self, BpfError, Host, Object, Pins, State, objects, scope};
use crate::{Patch, Verdict, seal};

/// What a kernel can do for guests that share a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Feature {
    /// Shared files that can be replaced and not changed.
    LinkInvert,
    /// Groups of processes that see each other only.
    Contexts,
    /// Addresses that a group of processes is confined to.
    Ipv4Root,
}

impl Feature {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::LinkInvert, Self::Contexts, Self::Ipv4Root];

    /// The word used in options and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::LinkInvert => "link-invert",
            Self::Contexts => "contexts",
            Self::Ipv4Root => "ipv4root",
        }
    }

    /// The feature of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|feature| feature.name() == name)
    }

    /// The eBPF object that gives it, if one is built in.
    pub fn object(self) -> Option<&'static Object> {
        let name = self.name().replace('-', "_");
        objects::ALL.iter().copied().find(|object| object.name == name)
    }
}

/// What a host says of one feature.
#[derive(Clone, Debug)]
pub struct Standing {
    /// The feature in question.
    pub feature: Feature,
    /// Whether it is had.
    pub verdict: Verdict,
    /// Who gives it, if anybody does: `patch` or `bpf`.
    pub provider: Option<&'static str>,
    /// What is enforced, if it is had.
    pub enforces: &'static str,
    /// What stays open even so.
    pub leaves_open: &'static str,
    /// How to get it, or the better one.
    pub cure: &'static str,
}

/// What link-invert through eBPF leaves open.
pub(crate) const LINK_INVERT_LEAVES_OPEN: &str =
    "a boot without the programs; the raw disk; root of guests in context 0 with CAP_LINUX_IMMUTABLE";

/// What is better than the eBPF provider.
const BETTER: &str = "boot a kernel with the vserver patch (make kernel), which leaves less open";

/// Asks about every feature. `sample` is open on the file system that link-invert is wanted for; without one it
/// counts as had wherever it is loaded.
pub fn survey(host: &Host, sample: Option<BorrowedFd<'_>>) -> Vec<Standing> {
    let patched = Patch::find().is_ok();
    Feature::ALL.into_iter().map(|feature| standing(host, feature, patched, sample)).collect()
}

fn standing(host: &Host, feature: Feature, patched: bool, sample: Option<BorrowedFd<'_>>) -> Standing {
    let (enforces, bpf_leaves_open) = match feature {
        Feature::LinkInvert => {
            ("tagged files can be linked, renamed and removed, and not changed", LINK_INVERT_LEAVES_OPEN)
        }
        Feature::Contexts => (
            "processes see, signal and trace those of their own context only; lost capabilities stay lost",
            "numbers of foreign processes in /proc and by errno, their nice values and limits; SysV IPC keys are \
             barred, not private; POSIX message queues and abstract sockets; fakeinit is noted, not enforced (PID, \
             IPC and network namespaces close all of it); who is chrooted in the host's mount namespace can't \
             chroot again (pivot_root lets it)",
        ),
        Feature::Ipv4Root => (
            "sockets bind to, connect from and listen on the addresses of their root only",
            "broadcasts to UDP servers on 0.0.0.0, which hear the first address only, and raw sockets that are not \
             bound (a network namespace closes these); packet sockets (keep CAP_NET_RAW back)",
        ),
    };
    if patched {
        let (verdict, leaves_open, cure) = by_patch(feature, sample);
        let provider = (verdict == Verdict::Enforced).then_some("patch");
        return Standing { feature, verdict, provider, enforces, leaves_open, cure };
    }
    let (verdict, cure) = by_bpf(host, feature, sample);
    let had = verdict == Verdict::Enforced;
    Standing {
        feature,
        verdict,
        provider: had.then_some("bpf"),
        enforces,
        leaves_open: bpf_leaves_open,
        cure,
    }
}

/// What a patched kernel enforces, leaves open, and how to get more.
fn by_patch(feature: Feature, sample: Option<BorrowedFd<'_>>) -> (Verdict, &'static str, &'static str) {
    match feature {
        Feature::LinkInvert => {
            let (verdict, cure) = seal::by_patch(sample);
            (verdict, "a boot of another kernel; the raw disk", cure)
        }
        Feature::Contexts => (
            Verdict::Enforced,
            "abstract sockets, keyrings and load figures (network and user namespaces close these)",
            "",
        ),
        Feature::Ipv4Root => {
            (Verdict::Enforced, "the routing table is to be seen; IPv6 and packet sockets are refused", "")
        }
    }
}

fn by_bpf(host: &Host, feature: Feature, sample: Option<BorrowedFd<'_>>) -> (Verdict, &'static str) {
    if feature == Feature::LinkInvert
        && let Some(sample) = sample
    {
        return match scope::ask(&sample) {
            Ok(scope::Answer::Inside) => loaded(host, feature),
            Ok(scope::Answer::Outside) => (
                Verdict::Inactive("it is loaded, but the file system in question is not in its scope".into()),
                "run vkernel scope add with a directory of that file system",
            ),
            Ok(scope::Answer::OtherVersion) => other("another version is loaded"),
            Ok(scope::Answer::None) => absent(host, feature),
            Err(errno) => (Verdict::Unknown(crate::explain(errno)), "run it as root"),
        };
    }
    match feature.object() {
        Some(object) if (object.is_live)() => loaded(host, feature),
        _ => absent(host, feature),
    }
}

fn other(why: &str) -> (Verdict, &'static str) {
    (Verdict::Inactive(why.into()), "run vkernel reload")
}

/// Of an object that answers: enforced, unless the pins show that part of it is missing. Who may not see the
/// pins takes the answer for it.
pub(crate) fn loaded(host: &Host, feature: Feature) -> (Verdict, &'static str) {
    let Some(object) = feature.object() else { return (Verdict::Enforced, BETTER) };
    let pins = Pins::of(host);
    match pins.state(object) {
        Ok(State::Other { version }) => other(&format!("what is loaded is {version}")),
        Ok(State::Absent) => other("its programs answer, but are not pinned: they end with their loader"),
        Ok(State::Loaded) => match pins.let_down(object) {
            Some(whom) => {
                other(&format!("the program that it leaves a hook to, {}'s, is gone", bpf::spoken(whom)))
            }
            None => (Verdict::Enforced, BETTER),
        },
        Err(_) => (Verdict::Enforced, BETTER),
    }
}

/// Of an object that does not answer: what stands in the way.
pub(crate) fn absent(host: &Host, feature: Feature) -> (Verdict, &'static str) {
    let Some(object) = feature.object() else {
        return (Verdict::Unsupported("nothing that is built in gives it".into()), "boot a patched kernel");
    };
    let from = |error: &BpfError, verdict: fn(String) -> Verdict| {
        (verdict(error.to_string()), error.cure().unwrap_or("run vkernel load, which says more"))
    };
    if object.needs_lsm && host.is_lsm_active() == Some(false) {
        return from(&BpfError::NotActive, Verdict::Inactive);
    }
    match host.check() {
        Err(error @ BpfError::NotPrivileged) => {
            let (_, cure) = from(&error, Verdict::NotPermitted);
            (Verdict::NotPermitted("it is not loaded, and this user can't load it".into()), cure)
        }
        Err(error @ BpfError::NoBpffs(_)) => {
            (Verdict::Inactive(error.to_string()), "mount -t bpf bpf /sys/fs/bpf, then run vkernel load")
        }
        Err(error) => from(&error, Verdict::Unsupported),
        Ok(()) => match Pins::of(host).state(object) {
            Ok(State::Absent) => (Verdict::Inactive("it is not loaded".into()), "run vkernel load"),
            Ok(_) => (
                Verdict::Inactive("it is pinned, but does not answer".into()),
                "run vkernel reload; see whether `bpf` is in /sys/kernel/security/lsm",
            ),
            Err(error) => from(&error, Verdict::Unknown),
        },
    }
}

/// What relies on the programs of an object, in the user's words; `None` if nothing does. `stores` are stores
/// whose objects may be sealed.
pub fn reliance(host: &Host, feature: Feature, stores: &[crate::Dir]) -> Option<String> {
    if matches!(Pins::of(host).state(feature.object()?), Ok(State::Absent)) {
        return None;
    }
    match feature {
        Feature::LinkInvert => stores.iter().find_map(|store| match bpf::scope::first_sealed(store) {
            Ok(sealed) => {
                Some(format!("a store holds sealed objects, such as {}", String::from_utf8_lossy(&sealed?)))
            }
            Err(errno) => Some(format!("a store that can't be looked at: {}", crate::explain(errno))),
        }),
        Feature::Contexts | Feature::Ipv4Root => match bpf::entries(host, feature.object()?.state?) {
            Ok(0) => None,
            Ok(count) => Some(format!("{count} running tasks rely on {}", feature.name())),
            Err(error) => Some(format!("tasks that can't be counted: {error}")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::of_files::{host, put};

    #[test]
    fn permission_support_and_sleep_are_told_apart() {
        let place = tempfile::tempdir().unwrap();
        let host = host(place.path());
        let verdict = || absent(&host, Feature::LinkInvert);
        assert!(matches!(verdict(), (Verdict::NotPermitted(_), cure) if cure.contains("root")));
        put(place.path(), "status", "CapEff:\t000001ffffffffff\n");
        assert!(matches!(verdict(), (Verdict::Unsupported(_), cure) if cure.contains("BTF")));
        put(place.path(), "btf", "");
        assert!(matches!(verdict(), (Verdict::Inactive(_), cure) if cure.contains("mount")));
        put(place.path(), "lsm", "capability,apparmor\n");
        assert!(matches!(verdict(), (Verdict::Inactive(_), cure) if cure.contains("lsm=")));
    }

    #[test]
    fn links_that_are_missing_are_no_protection() {
        let place = tempfile::tempdir().unwrap();
        let host = host(place.path());
        let (verdict, cure) = loaded(&host, Feature::LinkInvert);
        assert!(matches!(verdict, Verdict::Inactive(_)) && cure.contains("reload"));
    }

    #[test]
    fn names_are_their_own_inverse() {
        for feature in Feature::ALL {
            assert_eq!(Feature::from_name(feature.name()), Some(feature));
        }
        assert_eq!(Feature::LinkInvert.object().map(|object| object.name), Some("link_invert"));
    }
}
