//! A context's share of the processors: a control group of the `cpu` controller, which weighs as much as one process.
//!
//! Weights are told among neighbours, and a group that nobody has given a weight has that of one process. So all that
//! is needed is a group, for the context alone, below the one that the caller is in: whatever limits the caller holds
//! there (its service's, its session's) hold on.
//!
//! - In version 1 of control groups that is a directory.
//! - In version 2 a group other than the first can't both have processes and hand controllers down, unless the group
//!   below is *threaded*: the two are one then for all controllers but a few, and `cpu` is of those. So the caller's
//!   group keeps its processes, and its limits of memory and the like count for the context, too.
//!
//! Who comes to a context that shares joins its group, and whoever is there already is not moved: the first who enters
//! asks for a share. Groups that are empty are removed by the next who makes one beside them. Nobody is told when a
//! context ends.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use super::ContextError;
use crate::bpf::unescape;
use crate::{At, Dir, Errno, Fs, Real};

const SHARE: &str = "give the context one share of the processors";
const CONTROLLER: &str = "cpu";

/// Files of a group: its processes, of its threads those of version 1 and of 2, and what version 2 has besides.
const PROCESSES: &str = "cgroup.procs";
const THREADS_V1: &str = "tasks";
const THREADS_V2: &str = "cgroup.threads";
const CONTROLLERS: &str = "cgroup.controllers";
const HANDED_DOWN: &str = "cgroup.subtree_control";
/// All groups but the first of the host have it.
const TYPE: &str = "cgroup.type";

/// How often a group is made that somebody else has removed before anybody was in it.
const TRIES: u32 = 16;

/// What a group is named after.
#[derive(Clone, Copy, Debug)]
pub(super) enum Name {
    /// A context's number, which an administrator has given: whoever asks for it means the same group.
    Number(u32),
    /// This process: nobody else is in the group when it is made.
    Caller,
}

impl Name {
    fn text(self, attempt: u32) -> String {
        match (self, attempt) {
            (Self::Number(number), _) => format!("vserver-{number}"),
            (Self::Caller, 0) => format!("vserver-of-{}", std::process::id()),
            // Somebody who had this number before has left processes in it.
            (Self::Caller, attempt) => format!("vserver-of-{}-{attempt}", std::process::id()),
        }
    }
}

/// Whether it is the name of a group that is made here.
fn is_ours(group: &Path) -> bool {
    let name = group.file_name().unwrap_or_default().to_string_lossy();
    let numbers = name.strip_prefix("vserver-").map(|rest| rest.strip_prefix("of-").unwrap_or(rest));
    numbers.is_some_and(|rest| rest.split('-').all(|number| number.parse::<u32>().is_ok()))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// What was tried on a file, and what the kernel said.
#[derive(Debug)]
struct Fault(PathBuf, Errno);

impl From<Fault> for ContextError {
    fn from(Fault(path, errno): Fault) -> Self {
        match errno {
            Errno::PERM | Errno::ACCESS | Errno::ROFS => Self::NotPermitted {
                what: SHARE,
                why: "that takes a control group below the caller's own: be root of the host, or start in a group \
                      that is delegated (systemd-run --user --scope --property=Delegate=yes)",
            },
            errno => Self::Group { path, errno },
        }
    }
}

/// The control groups that have the controller, as the caller sees them.
#[derive(Debug)]
pub(super) struct Groups {
    version: Version,
    /// The topmost of those that are seen.
    top: PathBuf,
    /// The one that the caller is in.
    own: PathBuf,
}

/// The caller in the group of a context, and how to take that back.
#[derive(Debug)]
pub(super) struct Joined {
    group: PathBuf,
    /// The caller's group before.
    from: PathBuf,
    /// Whether the group was not there before.
    is_new: bool,
    /// The groups that did not hand the controller down before, the topmost first.
    enabled: Vec<PathBuf>,
}

impl Groups {
    /// Those of the process that `proc`, a file system of processes, has as `self`.
    pub(super) fn find(proc: &Path) -> Result<Self, ContextError> {
        Self::find_if(proc, is_group)
    }

    fn find_if(proc: &Path, is_group: fn(&Path) -> bool) -> Result<Self, ContextError> {
        let read = |name: &str| std::fs::read_to_string(proc.join("self").join(name)).unwrap_or_default();
        let none = ContextError::NotSupported {
            what: SHARE,
            cure: "mount control groups with the cpu controller, so that the caller's own is seen (mount -t cgroup2 \
                   cgroup2 /sys/fs/cgroup)",
        };
        let groups = Self::of(&read("cgroup"), &read("mountinfo"), is_group).ok_or_else(|| none.clone())?;
        // No controller is handed down to who is not offered it at the top.
        if groups.version == Version::V2 && !groups.ancestors().any(|group| lists(&group.join(CONTROLLERS))) {
            return Err(none);
        }
        Ok(groups)
    }

    /// By `cgroups(7)` and `proc_pid_mountinfo(5)`.
    fn of(memberships: &str, mounts: &str, is_group: fn(&Path) -> bool) -> Option<Self> {
        let (version, path) = membership(memberships)?;
        let seen_at = |mount: Mount| {
            // Both are told from the caller's cgroup namespace, and may climb out of it alike.
            let below = path.strip_prefix(&mount.root).ok()?;
            let is_below = below.components().all(|part| matches!(part, Component::Normal(_)));
            let own = mount.point.join(below);
            // Another mount may hide it, or something else be there by now.
            (is_below && is_group(&own)).then_some(Self { version, top: mount.point, own })
        };
        // The first is the host's own; later ones may be a guest's.
        mounts.lines().filter_map(|line| Mount::of(line, version)).find_map(seen_at)
    }

    /// The caller's group and those above it, the topmost last.
    fn ancestors(&self) -> impl Iterator<Item = &Path> {
        self.own.ancestors().take_while(|group| group.starts_with(&self.top))
    }

    /// Moves the caller into a group below its own, which is made if it isn't there.
    pub(super) fn make(&self, name: Name) -> Result<Joined, ContextError> {
        // Where the caller may not come back, it may not go; and nothing has been changed so far.
        open(&self.own, PROCESSES)?;
        self.sweep();
        let mut joined = self.joined(self.own.clone());
        match self.try_make(name, &mut joined) {
            Ok(()) => Ok(joined),
            Err(error) => {
                joined.leave();
                Err(error.into())
            }
        }
    }

    fn try_make(&self, name: Name, joined: &mut Joined) -> Result<(), Fault> {
        self.hand_down(&mut joined.enabled)?;
        for attempt in 0..TRIES {
            joined.group = self.own.join(name.text(attempt));
            match (make(&joined.group), name) {
                (Ok(()), _) => joined.is_new = true,
                (Err(Fault(_, Errno::EXIST)), Name::Number(_)) => {}
                (Err(Fault(_, Errno::EXIST)), Name::Caller) => continue,
                (Err(fault), _) => return Err(fault),
            }
            match self.begin(joined) {
                // Somebody else has swept it away before the caller was in it.
                Err(Fault(_, Errno::NOENT | Errno::NODEV)) => {}
                done => return done,
            }
        }
        Err(Fault(self.own.clone(), Errno::AGAIN))
    }

    /// Moves the caller to where the context of a number shares the processors, by its name or by `members`.
    pub(super) fn join(&self, number: u32, members: &BTreeSet<u32>) -> Result<Joined, ContextError> {
        for _ in 0..TRIES {
            let Some(group) = self.group_of(number, members) else { break };
            match write(&group, PROCESSES, CALLER) {
                Ok(()) => return Ok(self.joined(group)),
                // The last who was in it has gone.
                Err(Fault(_, Errno::NOENT | Errno::NODEV)) => {}
                Err(fault) => return Err(fault.into()),
            }
        }
        Err(ContextError::NotPermitted {
            what: SHARE,
            why: "its processes share the processors in a control group that root of the host does not own, or that \
                  is not seen from here: enter where they were started",
        })
    }

    fn joined(&self, group: PathBuf) -> Joined {
        Joined { group, from: self.own.clone(), is_new: false, enabled: Vec::new() }
    }

    /// The group of a context that others are in. It has to be root's, all the way: whoever may write to it ends or
    /// stops what is in it.
    fn group_of(&self, number: u32, members: &BTreeSet<u32>) -> Option<PathBuf> {
        let named = Name::Number(number).text(0);
        let (mut by_name, mut groups) = (None, vec![self.top.clone()]);
        while let Some(group) = groups.pop() {
            if !std::fs::metadata(&group).is_ok_and(|group| group.uid() == ROOT) {
                continue;
            }
            if is_ours(&group) {
                let threads = self.threads(&group);
                if !threads.is_disjoint(members) {
                    return Some(group);
                }
                // A process whose first thread has ended is not told by its number.
                if !threads.is_empty() && group.ends_with(&named) {
                    by_name = Some(group.clone());
                }
            }
            groups.extend(children(&group));
        }
        by_name
    }

    /// Version 2: lets groups above the caller's hand the controller down to it, where they don't, and notes them.
    fn hand_down(&self, enabled: &mut Vec<PathBuf>) -> Result<(), Fault> {
        if self.version == Version::V1 {
            return Ok(());
        }
        let lacking = self.ancestors().take_while(|group| !lists(&group.join(CONTROLLERS)));
        let above: Vec<_> = lacking.filter_map(Path::parent).collect();
        above.into_iter().rev().try_for_each(|group| enable(group, enabled))
    }

    /// Makes a group ready, and moves the caller into it.
    fn begin(&self, joined: &mut Joined) -> Result<(), Fault> {
        if self.version == Version::V2 {
            // Before the controller: a group with processes hands it down to threaded ones only.
            if self.own.join(TYPE).exists() {
                write(&joined.group, TYPE, "threaded")?;
            }
            enable(&self.own, &mut joined.enabled)?;
        }
        write(&joined.group, PROCESSES, CALLER)
    }

    /// Removes the groups beside the new one that nobody is in, but for those with a context's number, which are used
    /// again, and may have been given a weight. The kernel refuses to remove others.
    fn sweep(&self) {
        for group in children(&self.own).filter(|group| is_ours(group)) {
            if group.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"vserver-of-")) {
                remove(&group).ok();
            }
        }
    }

    /// The threads of a group, and not of those below. A process has the number of its first thread.
    fn threads(&self, group: &Path) -> BTreeSet<u32> {
        let name = if self.version == Version::V1 { THREADS_V1 } else { THREADS_V2 };
        let text = std::fs::read_to_string(group.join(name)).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }
}

impl Joined {
    /// Takes the caller back to where it was, and away what is there for it alone.
    pub(super) fn leave(self) {
        write(&self.from, PROCESSES, CALLER).ok();
        if self.is_new {
            remove(&self.group).ok();
        }
        // Somebody else may have come to rely on it: on that of the lowest group, which the kernel then needs above.
        for group in self.enabled.iter().rev().filter(|group| !children(group).any(|group| is_ours(&group))) {
            write(group, HANDED_DOWN, &format!("-{CONTROLLER}")).ok();
        }
    }
}

const ROOT: u32 = 0;

/// Instead of its number, in whatever PID namespace.
const CALLER: &str = "0";

/// Which version has the controller, and the path of the caller's group: lines are `number:controllers:path`, and
/// version 2 has number 0 and what version 1 leaves.
fn membership(text: &str) -> Option<(Version, &Path)> {
    let lines = text.lines().filter_map(|line| {
        let (number, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let version = match (number, controllers) {
            ("0", "") => Version::V2,
            _ if controllers.split(',').any(|name| name == CONTROLLER) => Version::V1,
            _ => return None,
        };
        Some((version, Path::new(path)))
    });
    lines.min_by_key(|(version, _)| *version == Version::V2)
}

/// A mount of control groups.
struct Mount {
    /// Which group is the topmost here.
    root: PathBuf,
    point: PathBuf,
}

impl Mount {
    /// By a line of `mountinfo`, if it is one with the controller: `36 25 0:32 /root /point rw shared:9 - type source
    /// options`.
    fn of(line: &str, version: Version) -> Option<Self> {
        let (mount, super_block) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3).map(unescape);
        let (root, point) = (fields.next()?.into(), fields.next()?.into());
        let is_writable = fields.next()?.split(',').any(|word| word == "rw");
        let mut words = super_block.split(' ');
        let (kind, options) = (words.next()?, words.nth(1)?);
        let has_it = match version {
            Version::V1 => kind == "cgroup" && options.split(',').any(|word| word == CONTROLLER),
            Version::V2 => kind == "cgroup2",
        };
        (has_it && is_writable).then_some(Self { root, point })
    }
}

/// Whether a file of words has the controller among them.
fn lists(path: &Path) -> bool {
    std::fs::read_to_string(path).is_ok_and(|text| text.split_whitespace().any(|word| word == CONTROLLER))
}

/// Whether a directory is a control group.
fn is_group(path: &Path) -> bool {
    /// `linux/magic.h`
    const MAGICS: [i64; 2] = [0x0027_e0eb, 0x6367_7270];
    rustix::fs::statfs(path).is_ok_and(|found| MAGICS.contains(&found.f_type))
}

/// Lets a group of version 2 hand the controller down, and notes it if it did not.
fn enable(group: &Path, enabled: &mut Vec<PathBuf>) -> Result<(), Fault> {
    if lists(&group.join(HANDED_DOWN)) {
        return Ok(());
    }
    write(group, HANDED_DOWN, &format!("+{CONTROLLER}"))?;
    enabled.push(group.into());
    Ok(())
}

fn children(group: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(group).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path())
}

fn write(group: &Path, name: &str, text: &str) -> Result<(), Fault> {
    let file = open(group, name)?;
    Real.write_at(&file, text.as_bytes(), 0).map_err(|errno| Fault(group.join(name), errno))
}

fn open(group: &Path, name: &str) -> Result<crate::File, Fault> {
    let opened = Dir::open_host(group).and_then(|group| group.open_writable(name.as_bytes()));
    opened.map_err(|errno| Fault(group.join(name), errno))
}

fn make(group: &Path) -> Result<(), Fault> {
    in_parent(group, |at| Real.make_dir(at, 0o755))
}

fn remove(group: &Path) -> Result<(), Fault> {
    in_parent(group, |at| Real.remove_dir(at))
}

fn in_parent(group: &Path, change: impl FnOnce(At<'_>) -> crate::Result<()>) -> Result<(), Fault> {
    let parent = group.parent().unwrap_or(group);
    let name = group.file_name().unwrap_or_default().as_encoded_bytes();
    let changed = Dir::open_host(parent).and_then(|parent| change(At::new(&parent, name)));
    changed.map_err(|errno| Fault(group.into(), errno))
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // fixtures outside any guest
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    /// A file system of processes, and groups, made of files: paths of groups, each with files and what they say.
    struct Fake(tempfile::TempDir);

    impl Fake {
        /// `mountinfo` has `@` for where the groups are.
        fn new(membership: &str, mountinfo: &str, groups: &[(&str, &[(&str, &str)])]) -> Self {
            let fake = Self(tempfile::tempdir().unwrap());
            fs::create_dir_all(fake.proc().join("self")).unwrap();
            let put = |name: &str, text: &str| fs::write(fake.proc().join("self").join(name), text).unwrap();
            put("cgroup", membership);
            put("mountinfo", &mountinfo.replace('@', &fake.at("").to_string_lossy()));
            for (group, files) in groups {
                fs::create_dir_all(fake.at(group)).unwrap();
                for (name, text) in [(PROCESSES, "")].iter().chain(*files) {
                    fs::write(fake.at(group).join(name), text).unwrap();
                }
            }
            fake
        }

        fn proc(&self) -> PathBuf {
            self.0.path().join("proc")
        }

        fn at(&self, group: &str) -> PathBuf {
            self.0.path().join("cgroup").join(group)
        }

        fn find(&self) -> Result<Groups, ContextError> {
            Groups::find_if(&self.proc(), |group| group.join(PROCESSES).exists())
        }
    }

    const HYBRID: &str = "31 23 0:28 / @ rw - tmpfs tmpfs rw\n\
        32 31 0:29 / @/cpu,cpuacct rw,relatime shared:9 master:2 - cgroup cgroup rw,cpu,cpuacct\n\
        34 31 0:31 / @/cpuset rw - cgroup cgroup rw,cpuset\n\
        41 31 0:38 / @/unified rw - cgroup2 cgroup2 rw\n";
    const UNIFIED: &str = "41 31 0:38 / @ rw - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn the_hierarchy_with_the_controller_is_taken() {
        let membership = "9:cpuset:/set\n4:cpu,cpuacct:/system.slice/a:b.service\n0::/elsewhere\n";
        let own = "cpu,cpuacct/system.slice/a:b.service";
        let fake = Fake::new(membership, HYBRID, &[(own, &[]), ("unified/elsewhere", &[])]);
        let groups = fake.find().unwrap();
        assert_eq!((groups.version, groups.top), (Version::V1, fake.at("cpu,cpuacct")));
        assert_eq!(groups.own, fake.at(own));
        let fake = Fake::new("0::/a\n", UNIFIED, &[("", &[(CONTROLLERS, "io cpu\n")]), ("a", &[])]);
        let groups = fake.find().unwrap();
        assert_eq!((groups.version, groups.own), (Version::V2, fake.at("a")));
    }

    #[test]
    fn a_mount_may_show_a_part_from_elsewhere() {
        let part = "1 1 0:1 /docker/one @/with\\040blank rw - cgroup2 none rw\n";
        let files: &[_] = &[(CONTROLLERS, "cpu\n")];
        let fake = Fake::new("0::/docker/one/below\n", part, &[("with blank/below", files)]);
        assert_eq!(fake.find().unwrap().own, fake.at("with blank/below"));
        // Seen from a cgroup namespace, mount and process may both be above it.
        let above = part.replace("/docker/one", "/../..");
        let fake = Fake::new("0::/../../below\n", &above, &[("with blank/below", files)]);
        assert_eq!(fake.find().unwrap().own, fake.at("with blank/below"));
        for outside in ["0::/docker/another\n", "0::/docker/one/../another\n", "0::/docker/one/hidden\n"] {
            let fake = Fake::new(outside, part, &[("with blank/below", files), ("another", files)]);
            assert!(matches!(fake.find(), Err(ContextError::NotSupported { .. })), "{outside}");
        }
    }

    #[test]
    fn without_the_controller_nothing_is_begun() {
        let without: &[_] = &[(CONTROLLERS, "cpuset io\n")];
        for (membership, mounts) in
            [("0::/\n", UNIFIED), ("0::/\n", ""), ("", UNIFIED), ("3:cpu:/\n", UNIFIED)]
        {
            let error = Fake::new(membership, mounts, &[("", without)]).find().unwrap_err();
            assert!(error.to_string().contains("mount -t cgroup2"), "{error}");
        }
    }

    #[test]
    fn the_controller_is_handed_down_as_far_as_it_lacks() {
        let has: &[_] = &[(CONTROLLERS, "cpu io\n"), (HANDED_DOWN, "")];
        let lacks: &[_] = &[(CONTROLLERS, "io\n"), (HANDED_DOWN, "")];
        let fake =
            Fake::new("0::/a/b/c\n", UNIFIED, &[("", has), ("a", has), ("a/b", lacks), ("a/b/c", lacks)]);
        let mut enabled = Vec::new();
        let groups = fake.find().unwrap();
        groups.hand_down(&mut enabled).unwrap();
        assert_eq!(enabled, ["a", "a/b"].map(|group| fake.at(group)));
        let handed = |group| fs::read_to_string(fake.at(group).join(HANDED_DOWN)).unwrap();
        assert_eq!(["", "a", "a/b", "a/b/c"].map(handed), ["", "+cpu", "+cpu", ""]);
        // And no more, but where a context has come meanwhile.
        fs::create_dir(fake.at("a/vserver-8")).unwrap();
        Joined { enabled, ..groups.joined(fake.at("a")) }.leave();
        assert_eq!(["a", "a/b"].map(handed), ["+cpu", "-cpu"]);
    }

    #[test]
    fn only_groups_made_here_are_swept_away() {
        let ours = ["vserver-of-812", "vserver-of-812-3"];
        let others =
            ["vserver-7", "vserver-", "vserver-of-", "vserver-web", "vserver-7.slice", "vserver-7-", "seven"];
        let fake = Fake::new("1:cpu:/\n", HYBRID, &[("cpu,cpuacct", &[])]);
        let groups = fake.find().unwrap();
        for name in ours.iter().chain(&others) {
            fs::create_dir(groups.own.join(name)).unwrap();
        }
        groups.sweep();
        let left: BTreeSet<_> = children(&groups.own).collect();
        assert_eq!(left, others.map(|name| groups.own.join(name)).into());
    }

    #[test]
    fn a_share_is_found_by_who_is_in_it_or_by_its_number() {
        fixtures::need!("a_share_is_found", fixtures::require_root());
        let group = |threads: &'static str| [(THREADS_V2, threads)];
        let fake = Fake::new(
            "0::/a\n",
            UNIFIED,
            &[
                ("", &[(CONTROLLERS, "cpu"), (THREADS_V2, "1\n2\n")]),
                ("a", &group("3\n")),
                ("a/vserver-of-4", &group("4\n5\n")),
                ("b/vserver-7", &group("8\n")),
                ("b/vserver-9", &group("")),
                ("user/vserver-of-6", &group("6\n")),
            ],
        );
        std::os::unix::fs::chown(fake.at("user"), Some(65534), None).unwrap();
        let groups = fake.find().unwrap();
        let of = |number, members: &[u32]| groups.group_of(number, &members.iter().copied().collect());
        assert_eq!(of(70000, &[2, 5]), Some(fake.at("a/vserver-of-4")));
        assert_eq!(of(7, &[77]), Some(fake.at("b/vserver-7")), "its first thread has ended");
        assert_eq!(of(9, &[77]), None, "nobody is there");
        assert_eq!(of(70000, &[3]), None, "it does not share");
        assert_eq!(of(70000, &[6]), None, "it is a user's");
        let joined = groups.join(7, &BTreeSet::new()).unwrap();
        assert_eq!(fs::read_to_string(fake.at("b/vserver-7").join(PROCESSES)).unwrap(), CALLER);
        joined.leave();
        assert_eq!(fs::read_to_string(fake.at("a").join(PROCESSES)).unwrap(), CALLER);
        let refused = groups.join(9, &BTreeSet::new()).unwrap_err();
        assert!(refused.to_string().contains("enter where they were started"), "{refused}");
    }

    #[test]
    fn a_mount_that_is_read_only_or_later_is_not_the_hosts() {
        let mounts = "1 0 0:1 / @/chroot ro - cgroup2 none rw\n\
            2 0 0:1 / @/host rw - cgroup2 none rw\n\
            3 0 0:1 / @/guest rw - cgroup2 none rw\n";
        let files: &[_] = &[(CONTROLLERS, "cpu\n")];
        let fake = Fake::new("0::/\n", mounts, &[("chroot", files), ("host", files), ("guest", files)]);
        assert_eq!(fake.find().unwrap().own, fake.at("host"));
        // What is no control group is none whatever is in it.
        assert!(Groups::find(&fake.proc()).is_err());
    }

    #[test]
    fn refusals_say_where_and_what_to_do() {
        let denied = ContextError::from(Fault("/g".into(), Errno::ROFS)).to_string();
        assert!(denied.starts_with("not permitted") && denied.contains("Delegate"), "{denied}");
        let other = ContextError::from(Fault("/g".into(), Errno::OPNOTSUPP)).to_string();
        assert!(other.contains("/g: ") && other.contains("systemd-run"), "{other}");
    }

    /// Set in the process that is moved about.
    const MOVED: &str = "MOVED_INTO_A_SHARE";

    #[test]
    fn a_share_of_this_machine() {
        const NAME: &str = "contexts::share::tests::a_share_of_this_machine";
        fixtures::need!("a_share_of_this_machine", fixtures::require_root());
        let lacks = |error: ContextError| fixtures::Skip::needs(error.to_string());
        fixtures::need!("a_share_of_this_machine", Groups::find(Path::new("/proc")).map_err(lacks));
        if std::env::var_os(MOVED).is_some() {
            return moved_about();
        }
        let done = fixtures::rerun_test(NAME, &[(MOVED, "1")]);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    /// A process with a child from before, and one from after.
    fn moved_about() {
        let here = |pid: u32| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let me = std::process::id();
        let before = here(me);
        let sleep = || Command::new("sleep").arg("20").spawn().unwrap();
        let mut first = sleep();
        let groups = Groups::find(Path::new("/proc")).unwrap();
        let joined = groups.make(Name::Caller).unwrap();
        let mut second = sleep();
        let own = format!("/vserver-of-{me}");
        assert!([me, second.id()].iter().all(|pid| here(*pid).contains(&own)), "{}", here(me));
        assert_eq!(here(first.id()), before);
        // By one of its processes the group is found, and not made again.
        let again = groups.join(70000, &[second.id()].into()).unwrap();
        assert_eq!(again.group, joined.group);
        for child in [&mut first, &mut second] {
            child.kill().and_then(|()| child.wait()).unwrap();
        }
        let group = joined.group.clone();
        joined.leave();
        assert_eq!(here(me), before);
        assert!(!group.exists());
    }
}
