//! The round trip: share, look again, undo.
#![allow(clippy::unwrap_used)] // a fixture that fails is a test that fails

mod common;

use common::{REAL, World};
use fixtures::Manifest;
use unify::Scope;

const GUEST: &str = r#"
d usr 755
d usr/bin 755
f usr/bin/ls 755 @1000000000.5 *20000:1
f usr/bin/cat 755 @1000000000.5 *30000:2
h usr/bin/concatenate usr/bin/cat
d etc 755
f etc/hostname 644 @1000000000.5 "same everywhere"
"#;

fn world() -> (tempfile::TempDir, World) {
    let place = tempfile::tempdir().unwrap();
    let guest = Manifest::parse(GUEST).unwrap();
    let world = World::new(place.path(), &[guest.clone(), guest]);
    (place, world)
}

#[test]
fn shares_what_is_the_same_and_nothing_else() {
    let (_place, world) = world();
    let before = world.snapshots();
    let report = world.unify(&REAL).unwrap();
    assert_eq!((report.done.admitted, report.done.linked), (2, 2), "{report:?}");
    assert!(world.shares("usr/bin/ls") && world.shares("usr/bin/cat") && world.shares("usr/bin/concatenate"));
    assert!(!world.shares("etc/hostname"));
    assert_eq!(world.differences(&before), [""; 0]);
    assert!(world.is_tidy());
}

#[test]
fn a_second_run_has_nothing_to_do() {
    let (_place, world) = world();
    world.unify(&REAL).unwrap();
    let report = world.unify(&REAL).unwrap();
    assert_eq!((report.run, report.read.0, report.unified), (None, 0, 6), "{report:?}");
}

#[test]
fn undo_gives_back_the_first_state() {
    let (_place, world) = world();
    let before = world.snapshots();
    let run = world.unify(&REAL).unwrap().run;
    let report = world.undo(&REAL, &Scope { run, paths: vec![] }).unwrap();
    assert_eq!((report.done.detached, report.done.removed), (4, 2), "{report:?}");
    assert!(!world.shares("usr/bin/ls"));
    assert_eq!(world.differences(&before), [""; 0]);
    assert!(world.is_tidy());
    let again = world.unify(&REAL).unwrap();
    assert_eq!((again.done.admitted, again.done.linked), (2, 2), "{again:?}");
}

#[test]
fn every_subdirectory_of_a_wide_directory_is_walked() {
    const WIDTH: u64 = 100;
    let place = tempfile::tempdir().unwrap();
    let entries = (0..WIDTH)
        .map(|at| format!("d usr/wide/{at} 755\nf usr/wide/{at}/file 644 @1000000000.5 \"{at}\"\n"));
    let text = format!("d usr 755\nd usr/wide 755\n{}", entries.collect::<String>());
    let guest = Manifest::parse(&text).unwrap();
    let world = World::new(place.path(), &[guest.clone(), guest]);
    let report = world.unify(&REAL).unwrap();
    assert_eq!((report.done.admitted, report.done.linked), (WIDTH, WIDTH), "{report:?}");
    let again = world.unify(&REAL).unwrap();
    assert_eq!((again.run, again.dirs), (None, 2 * (WIDTH + 3)), "{again:?}");
}
