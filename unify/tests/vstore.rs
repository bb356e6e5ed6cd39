//! The `vstore` command on real stores: small guests, unified by the library without protection, then
//! damaged on purpose.
#![allow(clippy::disallowed_methods)] // builds and damages trees of its own
#![allow(clippy::unwrap_used)] // helpers of tests end the test

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use fixtures::{Fault, Faulty, LoopFs, Manifest, Op, Script, Snapshot, need, require_root};
use kernel::{Dir, Errno, Fs, Protection, Real, Seal};
use serde_json::Value;
use store::index::Index;
use store::journal::{Batch, Journal, RunEnd, RunKind};
use store::{Access, IdentityPolicy, STORE_NAME, Store};
use unify::maintain::{Scrub, Scrubbed, known_guests};
use unify::{Guest, Judge, Session, Silent, Surroundings, policy::Policy};

const TOOLS: &str = "f usr/bin/one *5000:1\nf usr/bin/two *5000:2\nh usr/bin/deux usr/bin/two\nd etc";

/// A child of one test has, between its fork and its exec, every descriptor of the others too: files open
/// for writing, and locks. So none is started while another test has such.
static SPAWNING: RwLock<()> = RwLock::new(());

fn undisturbed() -> RwLockReadGuard<'static, ()> {
    SPAWNING.read().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a command and waits for its end.
fn output(command: &mut Command) -> std::process::Output {
    let alone = SPAWNING.write().unwrap_or_else(PoisonError::into_inner);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(alone);
    child.wait_with_output().unwrap()
}

fn image() -> Result<LoopFs, fixtures::Skip> {
    require_root()?;
    let _alone = SPAWNING.write().unwrap_or_else(PoisonError::into_inner);
    LoopFs::ext4(256 << 20)
}

fn write(manifest: &str, root: &Path) {
    let _undisturbed = undisturbed();
    Manifest::parse(manifest).unwrap().write(root).unwrap();
}

static GO_ON: AtomicBool = AtomicBool::new(false);

fn around(fs: &dyn Fs) -> Surroundings<'_> {
    Surroundings { fs, observer: &Silent, stop: &GO_ON }
}

/// Guests beside a store.
struct World {
    base: PathBuf,
    store: PathBuf,
    _dir: Option<tempfile::TempDir>,
}

impl World {
    fn new(guests: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        Self::at(base, Some(dir), guests)
    }

    fn at(base: PathBuf, dir: Option<tempfile::TempDir>, guests: &[(&str, &str)]) -> Self {
        for (name, manifest) in guests {
            write(manifest, &base.join(name));
        }
        let store = base.join(STORE_NAME);
        Store::create(&Real, &store, IdentityPolicy::Full).unwrap();
        Self { base, store, _dir: dir }
    }

    /// Three guests with the same tools, shared.
    fn shared(seal: Seal) -> Self {
        let world = Self::new(&[("a", TOOLS), ("b", TOOLS), ("c", TOOLS)]);
        world.unify(&["a", "b", "c"], seal);
        world
    }

    fn open(&self) -> Store {
        Store::open(&Real, &self.store, Access::Write, Some(&|| true)).unwrap()
    }

    fn unify(&self, guests: &[&str], seal: Seal) {
        let _undisturbed = undisturbed();
        let store = self.open();
        let mut journal = Journal::open(&store).unwrap();
        let paths: Vec<PathBuf> = guests.iter().map(|name| self.base.join(name)).collect();
        let judge = |guest: &Guest| Ok(Judge::new(guest.root.reopen().unwrap(), Arc::new(Policy::default())));
        let around = around(&Real);
        let session = Session::open(&around, store.place(), &paths, judge).unwrap();
        let report = session.unify(&store, &mut journal, seal, "vunify in a test").unwrap();
        assert_eq!(report.end, Some(RunEnd::Complete), "{:?}", report.skipped_files);
    }

    fn path(&self, path: &str) -> PathBuf {
        self.base.join(path)
    }

    fn ino(&self, path: &str) -> u64 {
        std::fs::metadata(self.path(path)).unwrap().ino()
    }

    fn bytes(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.path(path)).unwrap()
    }

    /// Flips a byte and gives the modification time back, as bad memory would.
    fn damage(&self, path: &str) {
        let _undisturbed = undisturbed();
        let path = self.path(path);
        let mtime = std::fs::metadata(&path).unwrap().modified().unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[2000] ^= 1;
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
        file.set_modified(mtime).unwrap();
    }

    fn snapshot(&self) -> Vec<Snapshot> {
        ["a", "b", "c"].iter().map(|guest| Snapshot::take(&self.path(guest)).unwrap()).collect()
    }

    /// Content, metadata and link groups of each guest are as they were.
    fn assert_same(&self, before: &[Snapshot]) {
        for (before, after) in before.iter().zip(self.snapshot()) {
            assert_eq!(before.diff(&after), Vec::<String>::new());
        }
    }

    fn run(&self, args: &[&str]) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vstore"));
        let output = output(command.args(args).args(["--json"]).env("VSERVERS", &self.base));
        let text = String::from_utf8(output.stdout).unwrap();
        let events = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let errors = String::from_utf8(output.stderr).unwrap();
        Ran { code: output.status.code(), events, errors }
    }

    fn kept(&self) -> Vec<String> {
        let dir = std::fs::read_dir(self.store.join("quarantine")).unwrap();
        let mut names: Vec<String> =
            dir.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

struct Ran {
    code: Option<i32>,
    events: Vec<Value>,
    errors: String,
}

impl Ran {
    fn summary(&self) -> &Value {
        self.events.last().expect("a summary")
    }

    fn events(&self, kind: &str) -> Vec<&Value> {
        self.events.iter().filter(|event| event["type"] == kind).collect()
    }
}

/// `guest/path` of each name in an event of corruption.
fn holders(event: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let names = event["names"].as_array().unwrap();
    names.iter().map(|name| format!("{}/{}", text(&name["guest"]), text(&name["path"]))).collect()
}

#[test]
fn status_counts_what_is_shared() {
    let world = World::shared(Seal::None);
    let ran = world.run(&["status"]);
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    let summary = ran.summary();
    assert_eq!((summary["objects"].as_u64(), summary["links"].as_u64()), (Some(2), Some(9)));
    let allocated = std::fs::metadata(world.path("a/usr/bin/one")).unwrap().blocks() * 512;
    // Two more names of the one, five more of the other.
    assert_eq!(summary["saved_bytes"], allocated * 7);
    assert_eq!((summary["garbage"].as_u64(), summary["unfinished"].as_bool()), (Some(0), Some(false)));
    assert_eq!(summary["seals"]["none"], 2);
    let offers = ran.events("protection");
    let seals: Vec<&str> = offers.iter().map(|offer| offer["seal"].as_str().unwrap()).collect();
    assert_eq!(seals, ["patch", "bpf", "verity", "immutable"]);
    assert!(offers.iter().all(|offer| offer["verdict"] == "enforced" || offer["cure"] != ""));
    assert_eq!(ran.events("run")[0]["command"], "vunify in a test");
}

#[test]
fn a_store_is_named_by_itself_by_a_guest_or_not_at_all() {
    let world = World::shared(Seal::None);
    let (guest, store) = (world.path("b"), world.store.clone());
    let [guest, store] = [&guest, &store].map(|path| path.to_str().unwrap());
    for args in [&["status"][..], &["status", "a"], &["status", guest], &["status", store]] {
        let ran = world.run(args);
        assert_eq!(ran.code, Some(0), "{args:?}: {}", ran.errors);
        assert_eq!(ran.events("store")[0]["path"], store);
    }
    assert_eq!(world.run(&["log", "--store", store]).code, Some(0));
}

#[test]
fn what_cannot_be_used_is_refused_with_its_code() {
    let world = World::shared(Seal::None);
    for (args, code) in [
        (&["status", "nobody"][..], 2),
        (&["status", "/proc"], 2),
        (&["log", "77"], 2),
        (&["scrub", "--sample", "101%"], 2),
        (&["scrub", "--repair", "--dry-run"], 2),
    ] {
        let ran = world.run(args);
        assert_eq!(ran.code, Some(code), "{args:?}: {}", ran.errors);
        assert!(!ran.errors.is_empty());
    }
    let format = world.store.join("format.toml");
    let text = std::fs::read_to_string(&format).unwrap();
    std::fs::write(&format, text.replace("version = 1", "version = 99")).unwrap();
    for command in ["status", "log", "gc", "recover", "scrub", "rebuild"] {
        let ran = world.run(&[command]);
        assert_eq!(ran.code, Some(4), "{command}: {}", ran.errors);
        assert!(ran.errors.contains("newer format (version 99)"), "{}", ran.errors);
    }
}

#[test]
fn a_guest_that_looks_like_a_store_is_none() {
    let world = World::shared(Seal::None);
    std::fs::copy(world.store.join("format.toml"), world.path("a/format.toml")).unwrap();
    let ran = world.run(&["status", "a"]);
    assert_eq!(ran.events("store")[0]["path"], world.store.to_str().unwrap());
}

#[test]
fn a_busy_store_names_its_holder() {
    let world = World::shared(Seal::None);
    let held = world.open();
    for command in ["status", "gc"] {
        let ran = world.run(&[command]);
        assert_eq!(ran.code, Some(5), "{command}: {}", ran.errors);
        assert!(ran.errors.contains(&format!("process {}", std::process::id())), "{}", ran.errors);
    }
    drop(held);
    let _reader = Store::open(&Real, &world.store, Access::Read, None).unwrap();
    assert_eq!(world.run(&["status"]).code, Some(0));
    assert_eq!(world.run(&["gc"]).code, Some(5));
}

#[test]
fn a_read_only_file_system_can_be_looked_at() {
    let test = "a_read_only_file_system_can_be_looked_at";
    let image = need!(test, image());
    let world = World::at(image.path().canonicalize().unwrap(), None, &[("a", TOOLS), ("b", TOOLS)]);
    world.unify(&["a", "b"], Seal::None);
    let mount = |how: &str| {
        let done = output(Command::new("mount").args(["-o", how]).arg(&world.base));
        assert!(done.status.success());
    };
    mount("remount,ro");
    for args in [&["status"][..], &["log"], &["log", "1"], &["gc", "--dry-run"], &["scrub", "--dry-run"]] {
        let ran = world.run(args);
        assert_eq!(ran.code, Some(0), "{args:?}: {}", ran.errors);
    }
    assert_eq!(world.run(&["status"]).summary()["runs"], 1);
    for command in ["gc", "scrub", "rebuild", "recover"] {
        let ran = world.run(&[command]);
        assert_eq!(ran.code, Some(4), "{command}: {}", ran.errors);
        assert!(ran.errors.contains("read-only"), "{}", ran.errors);
    }
    mount("remount,rw");
}

#[test]
fn log_takes_a_place_and_a_run() {
    let world = World::shared(Seal::None);
    let guest = world.path("a").into_os_string().into_string().unwrap();
    let store = world.store.to_str().unwrap();
    for args in [&["log", "1"][..], &["log", "a", "1"], &["log", store, "1"], &["log", "--store", store, "1"]]
    {
        assert_eq!(world.run(args).events("action").len(), 9, "{args:?}");
    }
    assert_eq!(world.run(&["log", &guest]).events("run").len(), 1);
    for (args, words) in [
        (&["log", "a", "web"][..], "expected the number of a run"),
        (&["log", "web"], "no such guest"),
        (&["log", "--limit", "x"], "expected a number of runs"),
        (&["status", "a", "--store", store], "--store names the store already: a: leave out"),
        (&["status", "--store", "/nowhere/x"], "there is no such directory: /nowhere/x: give the path"),
    ] {
        let ran = world.run(args);
        assert_eq!(ran.code, Some(2));
        assert!(ran.errors.contains(words), "{}", ran.errors);
    }
}

#[test]
fn log_tells_runs_and_what_each_did() {
    let world = World::shared(Seal::None);
    let ran = world.run(&["log"]);
    let run = ran.events("run")[0];
    assert_eq!((run["run"].as_i64(), run["kind"].as_str()), (Some(1), Some("unify")));
    assert_eq!(run["outcome"], "complete");
    assert_eq!(world.run(&["log", "--limit", "0"]).events("run").len(), 0);
    let ran = world.run(&["log", "1"]);
    let actions = ran.events("action");
    assert_eq!(actions.len(), 9);
    let linked = |event: &&&Value| event["verb"] == "link" && event["guest"] == "c";
    let mut paths: Vec<&str> =
        actions.iter().filter(linked).map(|event| event["path"].as_str().unwrap()).collect();
    paths.sort_unstable();
    assert_eq!(paths, ["usr/bin/deux", "usr/bin/one", "usr/bin/two"]);
}

#[test]
fn gc_removes_what_no_guest_has() {
    let world = World::shared(Seal::None);
    for guest in ["a", "b", "c"] {
        std::fs::remove_file(world.path(guest).join("usr/bin/one")).unwrap();
    }
    let ran = world.run(&["gc", "--dry-run"]);
    assert_eq!((ran.code, ran.summary()["removed"].as_u64()), (Some(0), Some(1)));
    assert_eq!(world.run(&["status"]).summary()["garbage"], 1);
    let ran = world.run(&["gc"]);
    assert_eq!((ran.code, ran.summary()["removed"].as_u64()), (Some(0), Some(1)));
    assert_eq!(world.run(&["status"]).summary()["objects"], 1);
}

#[test]
fn gc_empties_quarantine_of_what_nobody_needs() {
    let world = World::shared(Seal::None);
    world.damage("a/usr/bin/one");
    world.damage("a/usr/bin/two");
    assert_eq!(world.run(&["scrub"]).code, Some(1));
    for guest in ["a", "b", "c"] {
        std::fs::remove_file(world.path(guest).join("usr/bin/one")).unwrap();
    }
    std::fs::write(world.store.join("quarantine/unclear.0.0"), "a guest's only copy").unwrap();
    assert_eq!(world.kept().len(), 3);
    assert_eq!(world.run(&["gc"]).code, Some(0));
    assert_eq!(world.run(&["gc", "--quarantine", "--dry-run"]).summary()["quarantine_removed"], 1);
    assert_eq!(world.kept().len(), 3, "nothing goes unasked");
    let ran = world.run(&["gc", "--quarantine"]);
    let summary = ran.summary();
    assert_eq!((ran.code, summary["quarantine_removed"].as_u64()), (Some(0), Some(1)));
    assert_eq!(
        (summary["quarantine_held"].as_u64(), summary["quarantine_unclear"].as_u64()),
        (Some(1), Some(1))
    );
    let kept = world.kept();
    assert!(kept.len() == 2 && kept[1] == "unclear.0.0", "{kept:?}");
}

#[test]
fn recover_settles_a_run_that_was_cut_off() {
    let world = World::shared(Seal::None);
    let store = world.open();
    let journal = Journal::open(&store).unwrap();
    let run = journal.begin(RunKind::Unify, "vunify that died", Seal::None).unwrap();
    journal.intend(run, 0, &Batch::default()).unwrap();
    drop((journal, store));
    let ran = world.run(&["status"]);
    assert_eq!(ran.summary()["unfinished"], true);
    assert!(ran.errors.contains("run 2 was cut off"), "{}", ran.errors);
    let ran = world.run(&["recover"]);
    assert_eq!((ran.code, ran.summary()["run"].as_i64()), (Some(0), Some(2)));
    assert_eq!(world.run(&["log"]).events("run")[0]["outcome"], "recovered");
    assert_eq!(world.run(&["recover"]).summary()["run"], Value::Null);
}

#[test]
fn scrub_of_a_sound_store_finds_nothing() {
    let world = World::shared(Seal::None);
    let before = world.snapshot();
    let ran = world.run(&["scrub", "--repair"]);
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    assert_eq!(
        (ran.summary()["checked"].as_u64(), ran.summary()["checked_bytes"].as_u64()),
        (Some(2), Some(10_000))
    );
    world.assert_same(&before);
}

#[test]
fn a_sample_reads_about_so_many() {
    use std::fmt::Write;
    let mut many = String::new();
    for number in 0..400 {
        writeln!(many, "f usr/lib/{number} \"number {number}\"").unwrap();
    }
    let world = World::new(&[("a", &many), ("b", &many)]);
    world.unify(&["a", "b"], Seal::None);
    let ran = world.run(&["scrub", "--sample", "25%"]);
    let checked = ran.summary()["checked"].as_u64().unwrap();
    // 100 expected, standard deviation 8.7.
    assert!((40..=160).contains(&checked), "{checked}");
    assert_eq!(ran.summary()["objects"], 400);
}

#[test]
fn a_corrupt_object_is_found_named_and_taken_out_of_use() {
    let world = World::shared(Seal::None);
    world.damage("b/usr/bin/two");
    let bad = world.ino("a/usr/bin/two");
    let ran = world.run(&["scrub", "--dry-run"]);
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    assert_eq!(world.kept(), Vec::<String>::new());
    let ran = world.run(&["scrub"]);
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    let [corrupt] = ran.events("corrupt")[..] else { panic!("{:?}", ran.events) };
    assert_eq!(corrupt["fault"], "altered");
    let expected: Vec<String> = ["a", "b", "c"]
        .iter()
        .flat_map(|g| [format!("{g}/usr/bin/deux"), format!("{g}/usr/bin/two")])
        .collect();
    assert_eq!(holders(corrupt), expected);
    assert_eq!((corrupt["elsewhere"].as_u64(), corrupt["left"].as_u64()), (Some(0), Some(6)));
    assert_eq!(world.kept().len(), 1);
    assert_eq!(world.ino("a/usr/bin/two"), bad, "without --repair no guest's name is touched");
    let ran = world.run(&["scrub"]);
    assert_eq!((ran.code, ran.events("corrupt")[0]["fault"].as_str()), (Some(1), Some("known-before")));
}

#[test]
fn changed_metadata_is_corruption_too() {
    let world = World::shared(Seal::None);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o4755);
    std::fs::set_permissions(world.path("a/usr/bin/one"), mode).unwrap();
    let ran = world.run(&["scrub"]);
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    assert_eq!(holders(ran.events("corrupt")[0]), ["a/usr/bin/one", "b/usr/bin/one", "c/usr/bin/one"]);
}

#[test]
fn names_outside_the_guests_at_hand_are_counted() {
    let world = World::shared(Seal::None);
    std::fs::hard_link(world.path("a/usr/bin/one"), world.path("stray")).unwrap();
    world.damage("a/usr/bin/one");
    let ran = world.run(&["scrub"]);
    assert_eq!(ran.events("corrupt")[0]["elsewhere"], 1);
}

/// A guest that was not there when the others were unified has the files too.
fn with_good_copy(world: &World) {
    write(TOOLS, &world.path("d"));
}

#[test]
fn guests_are_repaired_from_a_private_file_of_another() {
    let world = World::shared(Seal::None);
    let before = world.snapshot();
    with_good_copy(&world);
    world.damage("a/usr/bin/two");
    let ran = world.run(&["scrub", "--repair"]);
    assert_eq!(ran.summary()["repaired"], 0, "d is not known: {}", ran.errors);
    let ran = world.run(&["scrub", "--repair", "d"]);
    assert_eq!((ran.code, ran.summary()["repaired"].as_u64()), (Some(1), Some(1)), "{}", ran.errors);
    world.assert_same(&before);
    assert_eq!(world.ino("a/usr/bin/two"), world.ino("c/usr/bin/deux"));
    assert_ne!(world.ino("a/usr/bin/two"), world.ino("d/usr/bin/two"), "a source is copied, not taken");
    assert_eq!(world.run(&["scrub"]).code, Some(0));
    assert_eq!(world.kept().len(), 1, "the corrupt inode stays until it is removed");
    assert_eq!(world.run(&["gc", "--quarantine"]).summary()["quarantine_removed"], 1);
    assert_eq!(world.run(&["log"]).events("run")[0]["kind"], "repair");
}

#[test]
fn guests_are_repaired_from_a_twin() {
    let twins = "f usr/bin/one *5000:1\nf usr/bin/same *5000:1\nd etc";
    let world = World::new(&[("a", twins), ("b", twins), ("c", twins)]);
    world.unify(&["a", "b", "c"], Seal::None);
    assert_ne!(world.ino("a/usr/bin/one"), world.ino("a/usr/bin/same"));
    let before = world.snapshot();
    world.damage("a/usr/bin/one");
    let ran = world.run(&["scrub", "--repair"]);
    assert_eq!((ran.code, ran.summary()["repaired"].as_u64()), (Some(1), Some(1)), "{}", ran.errors);
    world.assert_same(&before);
    assert_ne!(world.ino("a/usr/bin/one"), world.ino("a/usr/bin/same"), "two inodes stay two");
    assert_eq!(world.run(&["scrub"]).code, Some(0));
}

#[test]
fn altered_metadata_is_repaired() {
    let world = World::shared(Seal::None);
    let before = world.snapshot();
    with_good_copy(&world);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(world.path("a/usr/bin/one"), mode).unwrap();
    // The index knows the class that the object had.
    let ran = world.run(&["scrub", "--repair", "d"]);
    assert_eq!(ran.summary()["repaired"], 1, "{}", ran.errors);
    world.assert_same(&before);
}

#[test]
fn a_file_that_only_looks_alike_is_no_good_copy() {
    let world = World::shared(Seal::None);
    write("f usr/bin/one *5000:99\nd etc", &world.path("d"));
    world.damage("a/usr/bin/one");
    let bad = world.bytes("a/usr/bin/one");
    let ran = world.run(&["scrub", "--repair", "d"]);
    assert_eq!((ran.code, ran.events("corrupt")[0]["replaced"].as_bool()), (Some(1), Some(false)));
    assert_eq!(world.bytes("b/usr/bin/one"), bad, "guests keep what they have");
    assert_eq!(std::fs::read_dir(world.store.join("staged")).unwrap().count(), 0);
}

#[test]
fn a_guest_that_writes_keeps_its_file() {
    let world = World::shared(Seal::None);
    with_good_copy(&world);
    world.damage("a/usr/bin/one");
    let writer = std::fs::File::options().write(true).open(world.path("a/usr/bin/one")).unwrap();
    let ran = world.run(&["scrub", "--repair", "d"]);
    let corrupt = ran.events("corrupt")[0];
    assert_eq!((corrupt["replaced"].as_bool(), corrupt["left"].as_u64()), (Some(true), Some(3)));
    drop(writer);
    let ran = world.run(&["scrub", "--repair", "d"]);
    assert_eq!(ran.summary()["repaired"], 1, "{}", ran.errors);
    assert_eq!(world.run(&["status"]).summary()["garbage"], 0, "the object of the first try is used");
}

#[test]
fn what_reads_right_again_is_back_in_use() {
    let world = World::shared(Seal::None);
    world.damage("a/usr/bin/one");
    assert_eq!(world.run(&["scrub"]).code, Some(1));
    world.damage("a/usr/bin/one"); // flips the same bit back
    let ran = world.run(&["scrub", "--repair"]);
    assert_eq!(ran.summary()["restored"], 1, "{}", ran.errors);
    assert_eq!(world.kept(), Vec::<String>::new());
    assert_eq!(world.run(&["scrub"]).code, Some(0));
}

fn object_of(world: &World, path: &str) -> (Dir, Vec<u8>) {
    let path = world.path(path);
    let dir = Dir::open_host(path.parent().unwrap()).unwrap();
    (dir, path.file_name().unwrap().as_encoded_bytes().to_vec())
}

/// Puts a seal on or takes it off; `false` where the file system has no such tags.
fn set_seal(world: &World, path: &str, seal: Seal, on: bool) -> bool {
    let (dir, name) = object_of(world, path);
    let file = dir.open_file(&name).unwrap();
    let done = if on { Real.seal(&file, seal) } else { Real.unseal(&file, seal) };
    match done {
        Ok(()) => true,
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::PERM) => false,
        Err(errno) => panic!("{errno}"),
    }
}

#[test]
fn a_missing_seal_is_found_and_put_on_again() {
    let test = "a_missing_seal_is_found_and_put_on_again";
    let image = need!(test, image());
    let world = World::at(image.path().canonicalize().unwrap(), None, &[("a", TOOLS), ("b", TOOLS)]);
    world.unify(&["a", "b"], Seal::Bpf);
    assert_eq!(world.run(&["scrub"]).code, Some(0));
    assert!(set_seal(&world, "a/usr/bin/one", Seal::Bpf, false));
    let ran = world.run(&["status"]);
    assert_eq!(ran.summary()["seals"], serde_json::json!({ "bpf": 1, "none": 1 }));
    assert!(ran.errors.contains("1 of 2 objects lack the seal"), "{}", ran.errors);
    let ran = world.run(&["scrub"]);
    assert_eq!((ran.code, ran.summary()["unsealed"].as_u64()), (Some(1), Some(1)));
    assert_eq!(world.run(&["scrub", "--repair"]).summary()["resealed"], 1);
    assert_eq!(world.run(&["scrub"]).code, Some(0));
}

#[test]
fn immutable_objects_are_repaired_and_stay_immutable() {
    let test = "immutable_objects_are_repaired_and_stay_immutable";
    let image = need!(test, image());
    let guests = [("a", TOOLS), ("b", TOOLS), ("c", TOOLS)];
    let world = World::at(image.path().canonicalize().unwrap(), None, &guests);
    world.unify(&["a", "b", "c"], Seal::Immutable);
    let before = world.snapshot();
    with_good_copy(&world);
    assert!(set_seal(&world, "a/usr/bin/two", Seal::Immutable, false));
    world.damage("a/usr/bin/two");
    assert!(set_seal(&world, "a/usr/bin/two", Seal::Immutable, true));
    assert_eq!(world.run(&["scrub"]).code, Some(1));
    let sealed = |path: &str| {
        let (dir, name) = object_of(&world, path);
        Seal::Immutable.is_on(&dir.open_file(&name).unwrap()).unwrap()
    };
    assert!(sealed("a/usr/bin/two"), "still shared, so still sealed");
    let ran = world.run(&["scrub", "--repair", "d"]);
    assert_eq!(ran.summary()["repaired"], 1, "{}", ran.errors);
    world.assert_same(&before);
    assert!(sealed("a/usr/bin/two") && sealed("c/usr/bin/deux") && !sealed("d/usr/bin/two"));
    assert_eq!(world.run(&["scrub"]).code, Some(0));
    assert_eq!(world.run(&["gc", "--quarantine"]).summary()["quarantine_removed"], 1);
    for path in ["a/usr/bin/one", "a/usr/bin/two"] {
        set_seal(&world, path, Seal::Immutable, false); // or the image could not be cleared
    }
}

fn scrub(world: &World, fs: &dyn Fs, seal: Option<Seal>) -> unify::Result<Scrubbed> {
    let _undisturbed = undisturbed();
    let store = world.open();
    let mut journal = Journal::open(&store)?;
    unify::recover(&around(fs), &store, &mut journal)?;
    let known = known_guests(&store, Some(&journal), &[world.path("d")])?;
    let what = Scrub { sample: 100.0, seal, quarantine: true, repair: true };
    unify::maintain::scrub(&around(fs), &store, Some(&mut journal), &known.guests, what, "a test")
}

/// Whatever call fails: every name is there and holds good or bad bytes, whole; and doing it again ends well.
#[test]
fn a_repair_that_fails_anywhere_can_be_done_again() {
    let probe = World::shared(Seal::None);
    with_good_copy(&probe);
    let good = probe.bytes("a/usr/bin/two");
    probe.damage("a/usr/bin/two");
    let bad = probe.bytes("a/usr/bin/two");
    let counted = Faulty::new(&Real, Script::new());
    assert_eq!(scrub(&probe, &counted, None).unwrap().corrupt[0].left, 0);
    let calls = counted.count();
    assert!(calls > 20, "{calls}");
    for n in 1..=calls {
        let world = World::shared(Seal::None);
        let before = world.snapshot();
        with_good_copy(&world);
        world.damage("a/usr/bin/two");
        let faulty = Faulty::new(&Real, Script::new().nth(n, Fault::Fail(Errno::IO)));
        drop(scrub(&world, &faulty, None));
        for guest in ["a", "b", "c"] {
            for name in ["two", "deux"] {
                let bytes = world.bytes(&format!("{guest}/usr/bin/{name}"));
                assert!(bytes == good || bytes == bad, "call {n}: {guest}/{name}");
            }
        }
        scrub(&world, &Real, None).unwrap_or_else(|error| panic!("call {n}: {error}"));
        // Where a directory's time could not be set back, that time is lost and nothing else.
        if faulty.ops().get(n - 1) != Some(&Op::SetDirMtime) {
            world.assert_same(&before);
        }
        assert_eq!(world.run(&["scrub"]).code, Some(0), "call {n}");
        assert_eq!(std::fs::read_dir(world.store.join("staged")).unwrap().count(), 0, "call {n}");
        assert_eq!(std::fs::read_dir(world.store.join("parked")).unwrap().count(), 0, "call {n}");
    }
}

/// Wherever a repair is cut off: recovery leaves no corrupt file without the seal that it had.
#[test]
fn a_repair_that_is_cut_off_leaves_nothing_unsealed() {
    let test = "a_repair_that_is_cut_off_leaves_nothing_unsealed";
    let image = need!(test, image());
    let base = image.path().canonicalize().unwrap();
    let seal = Some(Seal::Immutable);
    let broken = |n: usize| {
        let place = base.join(n.to_string());
        let world = World::at(place, None, &[("a", TOOLS), ("b", TOOLS)]);
        world.unify(&["a", "b"], Seal::Immutable);
        write(TOOLS, &world.path("d"));
        assert!(set_seal(&world, "a/usr/bin/two", Seal::Immutable, false));
        world.damage("a/usr/bin/two");
        assert!(set_seal(&world, "a/usr/bin/two", Seal::Immutable, true));
        world
    };
    let counted = Faulty::new(&Real, Script::new());
    scrub(&broken(0), &counted, seal).unwrap();
    let mut was_off = 0;
    let is_on = |world: &World| {
        let quarantine = Dir::open_host(&world.store.join("quarantine")).unwrap();
        let file = |name: &String| quarantine.open_file(name.as_bytes()).unwrap();
        world.kept().iter().all(|name| Seal::Immutable.is_on(&file(name)).unwrap())
    };
    for n in 1..=counted.count() {
        let world = broken(n);
        drop(scrub(&world, &Faulty::new(&Real, Script::new().from_nth(n, Fault::Fail(Errno::IO))), seal));
        was_off += usize::from(!is_on(&world));
        let settled = world.run(&["recover"]);
        assert_eq!((settled.code, is_on(&world)), (Some(0), true), "call {n}: {}", settled.errors);
        scrub(&world, &Real, seal).unwrap_or_else(|error| panic!("call {n}: {error}"));
        assert_eq!((world.run(&["scrub"]).code, is_on(&world)), (Some(0), true), "call {n}");
    }
    assert!(was_off > 3, "{was_off} of {}", counted.count());
}

#[test]
fn rebuild_makes_the_index_anew() {
    let world = World::shared(Seal::None);
    let guests = |world: &World| Index::open_read_only(&world.open()).map(|index| index.guests().unwrap());
    let names: Vec<PathBuf> = ["a", "b", "c"].map(PathBuf::from).to_vec();
    assert_eq!(guests(&world), Some(names.clone()));
    std::fs::write(world.store.join("index.db"), "no database").unwrap();
    assert_eq!(guests(&world), None);
    write("f usr/bin/own *100:7\nd etc", &world.path("d"));
    let ran = world.run(&["rebuild", "d"]);
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    assert_eq!((ran.summary()["objects"].as_u64(), ran.summary()["guests"].as_u64()), (Some(2), Some(4)));
    assert_eq!(guests(&world), Some([names, vec![PathBuf::from("d")]].concat()));
    let store = world.open();
    let index = Index::open_read_only(&store).unwrap();
    assert_eq!(index.objects().len(), 2);
    let census = index.census(Path::new("d")).unwrap();
    assert_eq!(census.files.len(), 1);
    drop((index, store));
    world.unify(&["a", "b", "c", "d"], Seal::None);
}
