//! The process is killed: at every call, and the real command at random times.
#![allow(clippy::disallowed_methods)] // commands are the test's own

use std::fmt::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fixtures::faulty::{Fault, Faulty, Op, Script, When};
use fixtures::{Manifest, Rng, Snapshot, rerun_test};
use kernel::Seal;

use crate::common::{REAL, World};
use crate::scene::{Act, Scene, assert_none, in_order, quick_place, try_all};

const BASE: &str = "CRASH_KILL_BASE";
const CALL: &str = "CRASH_KILL_CALL";
const WHEN: &str = "CRASH_KILL_WHEN";

/// In the child: runs into the fault.
fn die(base: &str, act: Act) {
    let base = PathBuf::from(base);
    let guests = vec![base.join("g0"), base.join("g1")];
    let scene = Scene { world: World::around(base, guests), before: Vec::new() };
    let when = if std::env::var(WHEN).unwrap() == "before" { When::Before } else { When::After };
    let n = std::env::var(CALL).unwrap().parse().unwrap();
    let faulty = Faulty::new(&REAL, Script::new().nth(n, Fault::Kill(when)));
    in_order(|| scene.run(act, &faulty)).unwrap();
}

fn at_every_call(test: &str, act: Act) {
    if let Ok(base) = std::env::var(BASE) {
        return die(&base, act);
    }
    let rehearsal = quick_place();
    let (opening, ops) = in_order(|| Scene::rehearse(rehearsal.path(), act, Seal::None));
    let points: Vec<(usize, &str)> =
        (opening + 1..=ops.len()).flat_map(|n| ["before", "after"].map(|when| (n, when))).collect();
    let problems = try_all(vec![(); 4], &points, |(), &(n, when)| {
        let place = quick_place();
        let scene = Scene::new(place.path(), act, Seal::None);
        let base = scene.world.base.to_str().unwrap();
        let child = rerun_test(test, &[(BASE, base), (CALL, &n.to_string()), (WHEN, when)]);
        assert_eq!(child.status.signal(), Some(9), "{}", String::from_utf8_lossy(&child.stdout));
        scene.aftermath()
    });
    assert_none(&problems);
}

#[test]
fn at_every_call_of_unify() {
    at_every_call("kill::at_every_call_of_unify", Act::Unify);
}

/// Recovery gives a directory its time back, unless its guest has changed the directory since.
#[test]
fn what_a_guest_did_since_keeps_its_time() {
    if let Ok(base) = std::env::var(BASE) {
        return die(&base, Act::Unify);
    }
    let rehearsal = quick_place();
    let (_, ops) = in_order(|| Scene::rehearse(rehearsal.path(), Act::Unify, Seal::None));
    let exchanged = ops.iter().position(|op| *op == Op::Exchange).unwrap() + 1;
    let place = quick_place();
    let scene = Scene::new(place.path(), Act::Unify, Seal::None);
    let base = scene.world.base.to_str().unwrap();
    let test = "kill::what_a_guest_did_since_keeps_its_time";
    rerun_test(test, &[(BASE, base), (CALL, &exchanged.to_string()), (WHEN, "after")]);
    std::thread::sleep(Duration::from_millis(60)); // the stamps of a tick are the same
    let time = |dir: &PathBuf| std::fs::metadata(dir).unwrap().modified().unwrap();
    let dirs: Vec<PathBuf> = (scene.world.guests.iter())
        .flat_map(|guest| ["usr/bin", "usr/lib", "usr/share"].map(|dir| guest.join(dir)))
        .collect();
    for dir in &dirs {
        std::fs::write(dir.join("since"), "the guest's").unwrap();
    }
    let before: Vec<_> = dirs.iter().map(time).collect();
    let outcome = scene.world.recover(&REAL).unwrap();
    assert!(outcome.run.is_some() && outcome.completed > 0, "{outcome:?}");
    assert_eq!(dirs.iter().map(time).collect::<Vec<_>>(), before);
}

#[test]
fn at_every_call_of_undo() {
    at_every_call("kill::at_every_call_of_undo", Act::Undo);
}

/// Deaths of the command that are wanted.
const DEATHS: usize = 200;

/// Directories of a guest, and files in each.
const SIZE: (usize, usize) = (8, 25);

fn guest() -> Manifest {
    let mut lines = String::new();
    for dir in 0..SIZE.0 {
        writeln!(lines, "d usr/lib/{dir} 755 @1000000000.{dir}").unwrap();
        for file in 0..SIZE.1 {
            writeln!(lines, "f usr/lib/{dir}/{file} 644 *{}:{}", 100 + 37 * file, dir * 100 + file).unwrap();
        }
        writeln!(lines, "h usr/lib/same.{dir} usr/lib/{dir}/0").unwrap();
    }
    Manifest::parse(&lines).unwrap()
}

fn command(world: &World, act: Act) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vunify"));
    command.args(if act == Act::Unify { ["--quiet", "--noflags"] } else { ["--quiet", "--undo"] });
    command.args(&world.guests).stdout(Stdio::null());
    command
}

#[track_caller]
fn complete(world: &World, act: Act) -> Duration {
    let began = Instant::now();
    let output = command(world, act).stderr(Stdio::piped()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    began.elapsed()
}

/// Unify and undo by turns, each killed after a while, on the same guests: each begins with what the one
/// before it has left.
#[test]
fn the_command_at_random_times() {
    let mut rng = Rng::new(20);
    let place = quick_place();
    let world = World::new(place.path(), &[guest(), guest(), guest()]);
    let before = world.snapshots();
    let durations = [complete(&world, Act::Unify), complete(&world, Act::Undo)];
    let mut deaths = 0;
    for round in 0..5 * DEATHS {
        if deaths == DEATHS {
            break;
        }
        let act = if round % 2 == 0 { Act::Unify } else { Act::Undo };
        let longest = durations[round % 2].as_micros() as usize;
        let mut child = command(&world, act).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(rng.below(longest) as u64));
        child.kill().unwrap();
        deaths += usize::from(child.wait().unwrap().signal() == Some(9));
        assert_none(&contents_changed(&world, &before));
        if round % 20 == 19 {
            complete(&world, act);
            assert_eq!(world.differences(&before), [""; 0], "round {round}");
            assert!(world.is_tidy(), "round {round}");
        }
    }
    assert_eq!(deaths, DEATHS, "the command was too fast to be killed");
    complete(&world, Act::Unify);
    assert_eq!(world.differences(&before), [""; 0]);
    assert!(is_empty(&world.store_path().join("quarantine")));
    for dir in 0..SIZE.0 {
        (0..SIZE.1).for_each(|file| assert!(world.shares(&format!("usr/lib/{dir}/{file}"))));
    }
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).unwrap().next().is_none()
}

/// Differences that recovery is not there for.
fn contents_changed(world: &World, before: &[Snapshot]) -> Vec<String> {
    let lines = world.differences(before).into_iter();
    let mends = |line: &String| {
        line.contains(": was one inode with ") || line.starts_with("usr/lib") && line.contains("mtime was")
    };
    lines.filter(|line| !mends(line)).collect()
}
