//! Calls that fail, with effect or without, or that are made twice; and a disk that is full.
#![allow(clippy::disallowed_methods)] // what fills a disk up lies beside guests

use std::io::Write;

use fixtures::faulty::{Fault, Faulty, Op, Script};
use fixtures::{LoopFs, need};
use kernel::{Errno, Seal};

use crate::common::REAL;
use crate::scene::{Act, Scene, assert_none, in_order, quick_place, try_all};

/// What befalls one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mishap {
    Fail(Errno),
    FailAfter(Errno),
    Repeat,
}

impl Mishap {
    const ALL: [Self; 4] =
        [Self::Fail(Errno::NOSPC), Self::Fail(Errno::IO), Self::FailAfter(Errno::IO), Self::Repeat];

    fn fault(self) -> Fault<'static> {
        match self {
            Self::Fail(errno) => Fault::Fail(errno),
            Self::FailAfter(errno) => Fault::FailAfter(errno),
            Self::Repeat => Fault::Repeat,
        }
    }
}

fn at_every_call(act: Act) {
    let rehearsal = quick_place();
    let (opening, ops) = in_order(|| Scene::rehearse(rehearsal.path(), act, Seal::None));
    let points: Vec<(usize, Op, Mishap)> =
        (opening..ops.len()).flat_map(|at| Mishap::ALL.map(|mishap| (at + 1, ops[at], mishap))).collect();
    let problems = try_all(vec![(); 4], &points, |(), &(n, op, mishap)| {
        let place = quick_place();
        let scene = Scene::new(place.path(), act, Seal::None);
        let faulty = Faulty::new(&REAL, Script::new().nth(n, mishap.fault()));
        let ran = scene.run(act, &faulty);
        drop(faulty);
        let mut problems = Vec::new();
        // A directory's time is all that is lost where it cannot be given back.
        let time_only = op == Op::SetDirMtime && mishap != Mishap::Repeat;
        let told = ran.as_ref().map_or(true, |report| report.done.not_done > 0);
        if matches!(mishap, Mishap::Fail(_)) && !told && !time_only {
            problems.push(format!("nobody was told: {ran:?}"));
        }
        problems.extend(scene.aftermath());
        problems.retain(|line| !(time_only && line.contains(": mtime was ")));
        problems
    });
    assert_none(&problems);
}

#[test]
fn at_every_call_of_unify() {
    at_every_call(Act::Unify);
}

#[test]
fn at_every_call_of_undo() {
    at_every_call(Act::Undo);
}

/// The disk has so many bytes left when the run begins: it fails here or there, or not at all.
#[test]
fn on_a_full_disk() {
    for act in [Act::Unify, Act::Undo] {
        let mut failed = 0;
        for left in [0, 8 << 10, 64 << 10, 128 << 10, 192 << 10, 1 << 20] {
            let disk = need!("errors::on_a_full_disk", LoopFs::ext4(16 << 20));
            let base = disk.path().join("trial");
            std::fs::create_dir(&base).unwrap();
            let scene = Scene::new(&base, act, Seal::None);
            let filler = disk.path().join("filler");
            fill(&filler, left);
            let ran = scene.run(act, &REAL);
            failed += usize::from(ran.map_or(true, |report| report.done.not_done > 0));
            let mut problems = scene.damage();
            std::fs::remove_file(&filler).unwrap();
            problems.extend(scene.aftermath());
            let problems: Vec<_> =
                problems.into_iter().map(|what| format!("{act:?} {left}: {what}")).collect();
            assert_none(&problems);
        }
        assert!(failed > 1, "the disk was not full enough");
    }
}

/// Fills a file system up but for so many bytes.
fn fill(path: &std::path::Path, left: u64) {
    let mut file = std::fs::File::create(path).unwrap();
    let block = [1; 4096];
    let error = loop {
        if let Err(error) = file.write_all(&block).and_then(|()| file.sync_data()) {
            break error;
        }
    };
    assert_eq!(error.raw_os_error(), Some(Errno::NOSPC.raw_os_error()));
    let size = file.metadata().unwrap().len();
    file.set_len(size.saturating_sub(left)).unwrap();
    file.sync_all().unwrap();
}
