//! Guests that write all the time while they are unified and undone again and again.
//!
//! Writers replace by rename, unlink and create, truncate and rewrite in place, append, write through a
//! shared mapping whose descriptor is closed, and swap files and directories for symbolic links to a place
//! outside. Each file is written by one thread, with a number that rises by one each time, so that after a
//! write that was acknowledged its name must give exactly that content.
//!
//! Nothing enforces seals here, and a write in place into a shared inode would change other guests' files.
//! So writers keep a protocol that stands for the enforcement: open for writing without changing anything,
//! then look whether the inode is an object. Where it is, the open would have been refused: the file is
//! replaced by rename instead, as package managers do. Where it is not, it can't become one any more, for no
//! read lease can be had on it while the descriptor or a mapping of it exists; and that is what is tested.
//!
//! Half of the time the machine has more to do than it has cores: threads that are kept waiting at any point
//! make other races than threads that run.
//!
//! `RACE_SECONDS` says how long it lasts, 60 if not set.
#![allow(clippy::unwrap_used)] // a fixture that fails is a test that fails
#![allow(clippy::disallowed_methods)] // guests change their own files without our door
#![allow(unsafe_code)] // a write through a mapping is the test

mod common;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use common::{REAL, World};
use fixtures::{Call, Compare, Fault, Faulty, LoopFs, Manifest, Op, Rng, Script, Snapshot, When};
use kernel::Errno;
use unify::Scope;

const WRITERS: usize = 4;
const FILES: usize = 6;

/// Long enough for a writer to be found at it, short enough for many of them.
fn pause(rng: &mut Rng, millis: usize) {
    std::thread::sleep(Duration::from_micros(rng.below(millis * 1000) as u64));
}

/// What a file holds after its n-th write. Every third goes back to the start, which the guests that do not
/// write have, so that there is something to share with them; every fourth only appends.
fn content(file: usize, n: u64) -> Vec<u8> {
    match n {
        n if n.is_multiple_of(3) => format!("file {file} as it was delivered\n").repeat(100).into_bytes(),
        n if appends(n) => [content(file, n - 1), format!("appended {n}\n").into_bytes()].concat(),
        n => format!("file {file} write {n}\n").repeat(50 + (n % 100) as usize).into_bytes(),
    }
}

fn appends(n: u64) -> bool {
    n % 4 == 2 && !n.is_multiple_of(3)
}

fn mtime(n: u64) -> SystemTime {
    let n = if n.is_multiple_of(3) { 0 } else { n };
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000 + n)
}

/// One thread's files: the same directory in both guests that write.
struct Writer<'a> {
    world: &'a World,
    outside: &'a Path,
    number: usize,
    rng: Rng,
    written: BTreeMap<&'static str, u64>,
}

impl Writer<'_> {
    fn dir(&self, guest: usize) -> PathBuf {
        self.world.guests[guest].join(format!("usr/w{}", self.number))
    }

    fn path(&self, guest: usize, file: usize) -> PathBuf {
        self.dir(guest).join(format!("f{file}"))
    }

    /// Writes until it is told to stop; returns the last number of each file.
    fn work(mut self, stop: &AtomicBool) -> (Vec<u64>, BTreeMap<&'static str, u64>) {
        let mut last = vec![0; FILES];
        while !stop.load(Ordering::Relaxed) {
            let file = self.rng.below(FILES);
            last[file] += 1;
            for guest in [0, 1] {
                self.write(guest, file, last[file]);
                self.expect(guest, file, last[file]);
            }
            if self.rng.below(3) == 0 {
                let guest = self.rng.below(2);
                self.swap(guest, file);
                self.expect(guest, file, last[file]);
            }
            // Long enough at times for a run to find the two the same.
            pause(&mut self.rng, 60);
            [0, 1].into_iter().for_each(|guest| self.expect(guest, file, last[file]));
        }
        (last, self.written)
    }

    fn write(&mut self, guest: usize, file: usize, n: u64) {
        let path = self.path(guest, file);
        let how = match self.rng.below(5) {
            0 => self.replace(&path, file, n),
            1 => Self::make_anew(&path, file, n),
            2 if appends(n) => self.in_place("append", &path, file, n),
            2 | 3 => self.in_place("rewrite", &path, file, n),
            _ => self.in_place("map", &path, file, n),
        };
        *self.written.entry(how).or_default() += 1;
    }

    fn replace(&mut self, path: &Path, file: usize, n: u64) -> &'static str {
        let draft = path.with_extension("draft");
        std::fs::write(&draft, content(file, n)).unwrap();
        File::open(&draft).unwrap().set_modified(mtime(n)).unwrap();
        pause(&mut self.rng, 2);
        std::fs::rename(&draft, path).unwrap();
        "replace"
    }

    fn make_anew(path: &Path, file: usize, n: u64) -> &'static str {
        std::fs::remove_file(path).unwrap();
        let mut made = File::create_new(path).unwrap();
        std::io::Write::write_all(&mut made, &content(file, n)).unwrap();
        made.set_modified(mtime(n)).unwrap();
        "make anew"
    }

    /// Writes into the inode that is there, if it is the guest's own.
    fn in_place(&mut self, how: &'static str, path: &Path, file: usize, n: u64) -> &'static str {
        // Before too: between the open and the look, an object may have been made another guest's own.
        let before = std::fs::metadata(path).unwrap().ino();
        let refused = is_object(self.world, before);
        let opened = File::options().read(true).write(true).open(path).unwrap();
        let ino = opened.metadata().unwrap().ino();
        if refused || ino != before || is_object(self.world, ino) {
            drop(opened);
            self.replace(path, file, n);
            return "refused";
        }
        let new = content(file, n);
        match how {
            "append" => {
                let old = content(file, n - 1).len();
                opened.write_all_at(&new[old..], old as u64).unwrap();
            }
            "map" => {
                opened.set_len(new.len() as u64).unwrap();
                // The descriptor is closed: only the mapping says that somebody may write.
                let mapping = Mapping::new(opened, new.len());
                for (at, piece) in new.chunks(new.len().div_ceil(3)).enumerate() {
                    pause(&mut self.rng, 15);
                    mapping.write(at * new.len().div_ceil(3), piece);
                    // What was stored shows under the name at once, if the name is still this inode's.
                    let seen = std::fs::read(path).unwrap();
                    let end = at * new.len().div_ceil(3) + piece.len();
                    assert_eq!(seen[..end], new[..end], "{}: a store is lost", path.display());
                }
                set_time_of(path, ino, n);
                drop(mapping);
                return how;
            }
            _ => {
                opened.set_len(0).unwrap();
                pause(&mut self.rng, 5);
                let half = new.len() / 2;
                opened.write_all_at(&new[..half], 0).unwrap();
                pause(&mut self.rng, 5);
                opened.write_all_at(&new[half..], half as u64).unwrap();
            }
        }
        opened.set_modified(mtime(n)).unwrap();
        how
    }

    /// A symbolic link to the outside takes the file's or the directory's place for a while.
    fn swap(&mut self, guest: usize, file: usize) {
        let whole = self.rng.below(2) == 0;
        let (name, target) = if whole {
            (self.dir(guest), self.outside.to_owned())
        } else {
            (self.path(guest, file), self.outside.join(format!("f{file}")))
        };
        let away = name.with_extension("away");
        std::fs::rename(&name, &away).unwrap();
        symlink(&target, &name).unwrap();
        pause(&mut self.rng, 10);
        if whole {
            std::fs::remove_file(&name).unwrap();
        }
        std::fs::rename(&away, &name).unwrap();
        *self.written.entry(if whole { "swap directory" } else { "swap file" }).or_default() += 1;
    }

    /// The name gives this content. For the instant between an exchange and its being taken back it may give
    /// what was planned to be there, so it may take a few looks.
    fn expect(&self, guest: usize, file: usize, n: u64) {
        let path = self.path(guest, file);
        let wanted = content(file, n);
        let began = Instant::now();
        loop {
            let seen = std::fs::read(&path);
            if seen.as_ref().is_ok_and(|seen| *seen == wanted) {
                break;
            }
            let text = seen.map(|seen| String::from_utf8_lossy(&seen).chars().take(80).collect::<String>());
            assert!(began.elapsed() < Duration::from_secs(5), "{} lost write {n}: {text:?}", path.display());
            std::thread::yield_now();
        }
    }
}

/// The name is that of an inode that is mapped for writing, so nobody may move it.
fn set_time_of(path: &Path, ino: u64, n: u64) {
    let file = File::options().write(true).open(path).unwrap();
    assert_eq!(file.metadata().unwrap().ino(), ino, "{} was moved while it was mapped", path.display());
    file.set_modified(mtime(n)).unwrap();
}

/// A shared mapping of a whole file, without a descriptor.
struct Mapping {
    start: *mut u8,
    len: usize,
}

impl Mapping {
    fn new(file: File, len: usize) -> Self {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let start = unsafe { mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, &file, 0) };
        drop(file);
        Self { start: start.unwrap().cast(), len }
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.len);
        // SAFETY: within the mapping, which nobody else of this process has; the file is as long as it, for
        // only this thread changes its length.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.add(at), bytes.len()) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by `new` with this length, and nothing refers to it any more.
        unsafe { rustix::mm::munmap(self.start.cast(), self.len) }.unwrap();
    }
}

/// Whether the store holds an inode, or is about to: whether a seal would forbid writing into it.
fn is_object(world: &World, ino: u64) -> bool {
    let Ok(shards) = std::fs::read_dir(world.store_path().join("objects")) else { return false };
    shards.flatten().filter_map(|shard| std::fs::read_dir(shard.path()).ok()).any(|mut objects| {
        objects.any(|object| object.is_ok_and(|object| std::os::unix::fs::DirEntryExt::ino(&object) == ino))
    })
}

/// Unifies twice and undoes, again and again; returns what was done and what was met, counted.
fn run_for(world: &World, time: Duration, go_on: impl Fn() -> bool) -> BTreeMap<&'static str, u64> {
    let mut sums: BTreeMap<&'static str, u64> = BTreeMap::new();
    let began = Instant::now();
    let mut turn = 0;
    while began.elapsed() < time && go_on() {
        turn += 1;
        let report =
            if turn % 3 == 0 { world.undo(&REAL, &Scope::default()) } else { world.unify(&REAL) }.unwrap();
        assert!(!report.has_failures(), "{report:?}");
        let done = report.done;
        let counts = [
            ("runs", 1),
            ("admitted", done.admitted),
            ("linked", done.linked),
            ("detached", done.detached),
            ("removed", done.removed),
        ];
        for (what, count) in counts.into_iter().chain(report.skipped) {
            *sums.entry(what).or_default() += count;
        }
    }
    sums
}

/// Keeps the processors busy for a second, and leaves them alone for a second.
fn crowd(stop: &AtomicBool) {
    let began = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        if began.elapsed().as_secs().is_multiple_of(2) {
            std::hint::spin_loop();
        } else {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn no_write_is_lost_and_nothing_outside_is_touched() {
    let seconds = std::env::var("RACE_SECONDS").ok().and_then(|value| value.parse().ok()).unwrap_or(60);
    // Of its own, if that can be had: the barriers then wait for nobody else.
    let disk = LoopFs::ext4(256 << 20);
    let place = tempfile::tempdir().unwrap();
    let base = disk.as_ref().map_or(place.path(), LoopFs::path);
    let line = |at: usize| {
        let (writer, file) = (at / FILES, at % FILES);
        let delivered = String::from_utf8(content(file, 0)).unwrap().replace('\n', "\\n");
        format!("f usr/w{writer}/f{file} @1000000000 \"{delivered}\"\n")
    };
    let tree = (0..WRITERS * FILES).map(line).collect::<Vec<_>>().concat();
    let guest = Manifest::parse(&tree).unwrap();
    let world = World::new(base, &[guest.clone(), guest.clone(), guest]);
    let outside = world.base.join("outside");
    Manifest::parse(&tree.replace("usr/w0/", "")).unwrap().write(&outside).unwrap();
    let outside_before = Snapshot::take(&outside).unwrap();
    let idle_before = Snapshot::take(&world.guests[2]).unwrap();

    let stop = AtomicBool::new(false);
    let mut sums: BTreeMap<&'static str, u64> = BTreeMap::new();
    let last: Vec<Vec<u64>> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|number| {
                let rng = Rng::new(number as u64);
                let written = BTreeMap::new();
                let writer = Writer { world: &world, outside: &outside, number, rng, written };
                let stop = &stop;
                scope.spawn(move || writer.work(stop))
            })
            .collect();
        let cores = std::thread::available_parallelism().unwrap().get();
        (0..3 * cores).for_each(|_| drop(scope.spawn(|| crowd(&stop))));
        // A panic here must not leave the writers running for ever.
        let runs = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            run_for(&world, Duration::from_secs(seconds), || {
                writers.iter().all(|writer| !writer.is_finished())
            })
        }));
        stop.store(true, Ordering::Relaxed);
        let ended: Vec<_> = writers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        sums.extend(runs.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        let ended = ended.into_iter().map(|end| end.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        ended
            .map(|(last, written)| {
                written.into_iter().for_each(|(how, count)| *sums.entry(how).or_default() += count);
                last
            })
            .collect()
    });
    println!("{sums:?}");

    for guest in 0..2 {
        for (number, files) in last.iter().enumerate() {
            for (file, &n) in files.iter().enumerate() {
                let path = world.guests[guest].join(format!("usr/w{number}/f{file}"));
                assert!(
                    std::fs::read(&path).unwrap() == content(file, n),
                    "{} is not write {n}",
                    path.display()
                );
                assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), mtime(n));
            }
            let dir = world.guests[guest].join(format!("usr/w{number}"));
            assert_eq!(std::fs::read_dir(dir).unwrap().count(), FILES);
        }
    }
    let compare = Compare { inodes: true, flags: true, links: true };
    assert_eq!(outside_before.diff_with(&Snapshot::take(&outside).unwrap(), compare), [""; 0]);
    assert_eq!(idle_before.diff(&Snapshot::take(&world.guests[2]).unwrap()), [""; 0]);
    assert!(world.is_tidy());
    // It was a race, not a walk: everything that can happen did.
    for what in ["linked", "detached", "replace", "rewrite", "map", "refused", "swap file", "swap directory"]
    {
        assert!(sums.get(what).is_some_and(|&count| count > 0), "no {what}: {sums:?}");
    }
    let met = ["busy", "changed", "vanished"].iter().filter_map(|why| sums.get(why)).sum::<u64>();
    assert!(met > 0, "never met: {sums:?}");
}

// ---- moments that the writers above seldom meet, made to happen ----

/// Two guests with the same tree, in a directory that goes with the first of the pair.
fn twins(guest: &str) -> (tempfile::TempDir, World) {
    let place = tempfile::tempdir().unwrap();
    let guest = Manifest::parse(guest).unwrap();
    let world = World::new(place.path(), &[guest.clone(), guest]);
    (place, world)
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// Waits until somebody who wants to write the file of this number waits for its lease.
fn await_break(ino: u64) {
    let file = format!(":{ino} ");
    let waits = |lock: &str| lock.contains("BREAKING") && lock.contains(&file);
    let began = Instant::now();
    while !std::fs::read_to_string("/proc/locks").unwrap().lines().any(waits) {
        assert!(began.elapsed() < Duration::from_secs(20), "nobody waits to write inode {ino}");
        std::thread::yield_now();
    }
}

/// A process that has looked a name up, and not opened what it has found. Descriptors of names alone break no
/// lease.
struct LookedUp(File);

impl LookedUp {
    fn new(path: &Path) -> Self {
        let flags = rustix::fs::OFlags::PATH.bits() as i32;
        Self(File::options().read(true).custom_flags(flags).open(path).unwrap())
    }

    /// Opens the file for writing in a thread, and writes `text` when it may. Returns as soon as it waits.
    fn write<'s>(self, scope: &'s std::thread::Scope<'s, '_>, text: &'static [u8]) {
        let ino = self.0.metadata().unwrap().ino();
        scope.spawn(move || {
            let path = format!("/proc/self/fd/{}", self.0.as_raw_fd());
            let file = File::options().write(true).open(path).unwrap();
            file.write_all_at(text, 0).unwrap();
        });
        await_break(ino);
    }
}

/// A guest looks its name up while it is that of a private copy, and writes what it has found: before the copy
/// is taken back for the sake of a writer of the object, or in the very moment that it is.
#[test]
fn a_private_copy_that_its_guest_writes_is_not_taken_back() {
    for late in [false, true] {
        let (_place, world) = twins("f usr/a \"as delivered\"\n");
        world.unify(&REAL).unwrap();
        let [copied, other] = [0, 1].map(|guest| world.guests[guest].join("usr/a"));
        let exchanges = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let looked_up = Mutex::new(None);
            let hook = |_: usize, _: &Call| match exchanges.fetch_add(1, Ordering::SeqCst) {
                0 => {
                    LookedUp::new(&other).write(scope, b"");
                    let copy = LookedUp::new(&copied);
                    if late {
                        *looked_up.lock().unwrap() = Some(copy);
                    } else {
                        copy.write(scope, b"AS");
                    }
                }
                1 if late => looked_up.lock().unwrap().take().unwrap().write(scope, b"AS"),
                _ => {}
            };
            let script = Script::new().every_of(Op::Exchange, Fault::Hook(When::After, Box::new(hook)));
            let scope = Scope { run: None, paths: vec![copied.clone()] };
            world.undo(&Faulty::new(&REAL, script), &scope).unwrap();
        });
        assert_eq!(exchanges.into_inner(), if late { 3 } else { 1 });
        assert_eq!([text(&copied), text(&other)], ["AS delivered", "as delivered"]);
        assert!(!world.shares("usr/a") && world.is_tidy());
    }
}

/// The same when an undo was cut off between two names of a file, and recovery takes the first back.
#[test]
fn a_private_copy_that_its_guest_writes_is_not_taken_back_by_recovery() {
    let (_place, world) = twins("f usr/a \"as delivered\"\nh usr/b usr/a\n");
    world.unify(&REAL).unwrap();
    let [copied, other] = ["usr/a", "usr/b"].map(|name| world.guests[0].join(name));
    let exchanges = AtomicUsize::new(0);
    let cut_off =
        (2..9).fold(Script::new(), |script, n| script.nth_of(Op::Exchange, n, Fault::Fail(Errno::IO)));
    world.undo(&Faulty::new(&REAL, cut_off), &Scope::default()).unwrap_err();
    assert!(!world.shares("usr/a") && world.shares("usr/b"));
    std::thread::scope(|scope| {
        let looked_up = Mutex::new(Some(LookedUp::new(&copied)));
        let hook = |_: usize, _: &Call| {
            exchanges.fetch_add(1, Ordering::SeqCst);
            if let Some(copy) = looked_up.lock().unwrap().take() {
                copy.write(scope, b"AS");
            }
        };
        let script = Script::new().every_of(Op::Exchange, Fault::Hook(When::After, Box::new(hook)));
        world.recover(&Faulty::new(&REAL, script)).unwrap();
    });
    assert_eq!(exchanges.into_inner(), 2);
    assert_eq!([text(&copied), text(&other)], ["AS delivered", "as delivered"]);
    assert!(world.shares("usr/b") && world.is_tidy());
}
