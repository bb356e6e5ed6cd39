//! Guests that make a run do everything it can do.
#![allow(clippy::disallowed_methods)] // fixtures are built and broken without the door that they test

use std::fmt::Debug;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use fixtures::faulty::{Faulty, Op, Script};
use fixtures::{Manifest, Snapshot};
use kernel::{Fs, Kind, Seal};
use store::ObjectName;
use unify::{Report, Result, Scope};

use crate::common::{REAL, World};

/// What both guests share since an earlier run: a file, and a group of names.
const OLD: &str = r"
d usr 755 @1000000000.25
d usr/bin 755 @1000000001.5
f usr/bin/old 755 @1000000002.5 *9000:1
f usr/bin/cat 755 @1000000002.5 *30000:2
h usr/bin/concatenate usr/bin/cat
";

/// What came since: a file, a group across two directories, two equal inodes, and what must stay private.
const NEW: &str = r#"
d usr/lib 755 @1000000003.5
d usr/share 755 @1000000004.5
f usr/bin/ls 755 @1000000002.5 *5000:3
f usr/lib/one 644 @1000000002.5 *12000:4
h usr/share/one usr/lib/one
f usr/bin/twin 644 @1000000002.5 *4000:5
f usr/lib/twin 644 @1000000002.5 *4000:5
f usr/lib/empty 644 @1000000002.5
d etc 755
f etc/hostname 644 @1000000002.5 "the same everywhere"
"#;

/// Every name that ends up shared.
const SHARED: [&str; 8] = [
    "usr/bin/old",
    "usr/bin/cat",
    "usr/bin/concatenate",
    "usr/bin/ls",
    "usr/lib/one",
    "usr/share/one",
    "usr/bin/twin",
    "usr/lib/twin",
];

const TWINS: [&str; 2] = ["usr/bin/twin", "usr/lib/twin"];

/// What is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Unify,
    Undo,
}

/// Two guests and what they held before anything was done to them.
pub(crate) struct Scene {
    pub(crate) world: World,
    pub(crate) before: Vec<Snapshot>,
}

impl Scene {
    /// Guests below `base` in which `act` has everything to do. Durable.
    pub(crate) fn new(base: &Path, act: Act, seal: Seal) -> Self {
        let old = Manifest::parse(OLD).unwrap();
        let mut world = World::new(base, &[old.clone(), old.clone()]);
        world.seal = seal;
        world.unify(&REAL).unwrap();
        // A package that is installed again makes new inodes of the same content.
        let replaced = if act == Act::Unify { 1 } else { 2 };
        for guest in &world.guests[replaced..] {
            if !seal.leaves_names_free() {
                lift(guest);
            }
            old.write(guest).unwrap();
        }
        for guest in &world.guests {
            Manifest::parse(NEW).unwrap().write(guest).unwrap();
        }
        if act == Act::Undo {
            let report = world.unify(&REAL).unwrap();
            assert_eq!((report.done.admitted, report.done.linked), (4, 4), "{report:?}");
        }
        sync(base);
        let before = world.snapshots();
        Self { world, before }
    }

    pub(crate) fn run(&self, act: Act, fs: &dyn Fs) -> Result<Report> {
        match act {
            Act::Unify => self.world.unify(fs),
            Act::Undo => self.world.undo(fs, &Scope::default()),
        }
    }

    /// The calls that opening a store makes, in front of every run; then all that a run makes.
    pub(crate) fn rehearse(base: &Path, act: Act, seal: Seal) -> (usize, Vec<Op>) {
        let scene = Self::new(base, act, seal);
        let opening = Faulty::new(&REAL, Script::new());
        drop(scene.world.open(&opening).unwrap());
        let faulty = Faulty::new(&REAL, Script::new());
        let report = scene.run(act, &faulty).unwrap();
        assert_eq!(report.done.not_done, 0, "{report:?}");
        match act {
            Act::Unify => assert_eq!((report.done.admitted, report.done.linked), (4, 6), "{report:?}"),
            Act::Undo => assert_eq!((report.done.detached, report.done.removed), (12, 6), "{report:?}"),
        }
        (opening.count(), faulty.ops())
    }

    /// What is wrong with a name before recovery: it must refer to the right bytes at any moment. Times of
    /// directories, and which names are one inode, are recovery's to put right.
    pub(crate) fn damage(&self) -> Vec<String> {
        let mut damage = Vec::new();
        for (before, after) in self.before.iter().zip(self.world.snapshots()) {
            let known =
                |path: &[u8]| before.get(path).or(after.get(path)).map(|node| (node.kind, node.mtime));
            let mut after = after.clone();
            for (path, node) in &mut after.nodes {
                node.nlink = 1;
                if let Some((Kind::Directory, mtime)) = known(path) {
                    node.mtime = mtime;
                }
            }
            let mut before = before.clone();
            before.nodes.values_mut().for_each(|node| node.nlink = 1);
            damage.extend(before.diff(&after));
        }
        damage
    }

    /// What recovery has left different or lying about.
    pub(crate) fn traces(&self) -> Vec<String> {
        let mut traces = self.world.differences(&self.before);
        if !self.world.is_tidy() {
            traces.push("something is still parked".into());
        }
        for kept in std::fs::read_dir(self.world.store_path().join("quarantine")).unwrap() {
            traces.push(format!("kept {}", kept.unwrap().path().display()));
        }
        if self.world.open(&REAL).unwrap().1.open_run().unwrap().is_some() {
            traces.push("a run is still open".into());
        }
        traces.extend(self.useless_objects());
        traces
    }

    /// What keeps later runs from sharing everything that is to be shared, and from taking it all back.
    pub(crate) fn hindrances(&self) -> Vec<String> {
        let mut found = Vec::new();
        for act in [Act::Unify, Act::Undo] {
            match self.run(act, &REAL) {
                Ok(report) if report.done.not_done > 0 || report.has_failures() => {
                    found.push(format!("then {act:?}: {report:?}"));
                }
                Ok(_) => {}
                Err(error) => found.push(format!("then {act:?}: {error}")),
            }
            let wrong = self.sharing().into_iter().filter(|(_, shared)| *shared != (act == Act::Unify));
            found.extend(wrong.map(|(name, _)| format!("then {act:?}: {name}")));
            found.extend(self.traces().into_iter().map(|trace| format!("then {act:?}: {trace}")));
            found.extend(
                self.wrongly_sealed(act).into_iter().map(|name| format!("then {act:?}: seal of {name}")),
            );
        }
        found
    }

    /// Names whose immutable flag is on without reason, or off.
    fn wrongly_sealed(&self, act: Act) -> Vec<&'static str> {
        const IMMUTABLE: u32 = 0x10; // FS_IMMUTABLE_FL
        let wanted = act == Act::Unify && self.world.seal == Seal::Immutable;
        let trees = self.world.snapshots();
        let is_sealed =
            |tree: &Snapshot, name: &str| tree.get(name).is_some_and(|node| node.flags & IMMUTABLE != 0);
        let wrong = |name: &&str| trees.iter().any(|tree| is_sealed(tree, name) != wanted);
        SHARED.into_iter().filter(wrong).collect()
    }

    /// Whether each name is shared. Of equal inodes in one guest it does not matter which is shared with
    /// which of the other's.
    fn sharing(&self) -> Vec<(&'static str, bool)> {
        let there: Vec<u64> = SHARED.iter().map(|name| self.world.ino(1, name)).collect();
        let shared = |name: &str| {
            if TWINS.contains(&name) {
                there.contains(&self.world.ino(0, name))
            } else {
                self.world.shares(name)
            }
        };
        SHARED.iter().map(|name| (*name, shared(name))).collect()
    }

    fn useless_objects(&self) -> Vec<String> {
        let (store, _) = self.world.open(&REAL).unwrap();
        let mut objects = Vec::new();
        store.for_each_object(|name, _, _| objects.push(name), drop).unwrap();
        let useless = |name: &ObjectName| store.stat_object(*name).unwrap().unwrap().nlink < 2;
        objects.into_iter().filter(useless).map(|name| format!("{name} is nobody's")).collect()
    }

    /// After a crash and a boot: what went wrong, if anything.
    pub(crate) fn aftermath(&self) -> Vec<String> {
        let mut problems = self.damage();
        if let Err(error) = self.world.recover(&REAL) {
            problems.push(error.to_string());
        }
        problems.extend(self.traces());
        problems.extend(self.hindrances());
        problems
    }
}

/// Takes immutable flags off.
pub(crate) fn lift(tree: &Path) {
    let chattr = Command::new("chattr").args(["-R", "-f", "-i"]).arg(tree).status().unwrap();
    assert!(chattr.success(), "{chattr}");
}

/// What was written below `path` is durable.
pub(crate) fn sync(path: &Path) {
    REAL.sync(&kernel::Dir::open_host(path).unwrap()).unwrap();
}

/// One thread, so that the n-th call is the same in every run.
pub(crate) fn in_order<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(work)
}

/// All that went wrong is worth seeing at once.
#[track_caller]
pub(crate) fn assert_none(problems: &[String]) {
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

/// Tries every point, some at a time, each with a state of its own (a disk, say); returns what went wrong
/// at which.
pub(crate) fn try_all<S: Send, P: Sync + Debug>(
    states: Vec<S>,
    points: &[P],
    attempt: impl Fn(&mut S, &P) -> Vec<String> + Sync,
) -> Vec<String> {
    let (next, problems) = (Mutex::new(points.iter()), Mutex::new(Vec::new()));
    let work = |mut state: S| {
        in_order(|| {
            while let Some(point) = { next.lock().unwrap().next() } {
                let found = attempt(&mut state, point).into_iter();
                problems.lock().unwrap().extend(found.map(|what| format!("{point:?}: {what}")));
            }
        });
    };
    std::thread::scope(|scope| {
        states.into_iter().for_each(|state| drop(scope.spawn(|| work(state))));
    });
    problems.into_inner().unwrap()
}

/// A directory for trees that need not survive a power failure: in memory where that can be had.
pub(crate) fn quick_place() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}
