//! Reading in the order of the disk, where a head has to move.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)] // the test sets a device's flag; a panic is a failed test

mod common;

use std::os::unix::fs::MetadataExt;

use common::{REAL, World};
use fixtures::{LoopFs, Manifest, Skip, need};

/// More files than are read at once, in several directories, some with two names, some alone.
fn guest(seed: usize) -> Manifest {
    let mut lines = vec![format!("f usr/lib/own 644 *7000:{seed}")];
    for file in 0..200 {
        let dir = file % 7;
        lines.push(format!("f usr/lib/{dir}/{file} 644 *{}:{file}", 5000 + file));
        if file % 50 == 0 {
            lines.push(format!("h usr/lib/{dir}/{file}.too usr/lib/{dir}/{file}"));
        }
    }
    Manifest::parse(&lines.join("\n")).unwrap()
}

#[test]
fn the_order_of_reading_changes_nothing() {
    const NAME: &str = "the_order_of_reading_changes_nothing";
    let disk = need!(NAME, LoopFs::ext4(64 << 20));
    let world = World::new(disk.path(), &[guest(1000), guest(1001)]);
    let dev = world.base.metadata().unwrap().dev();
    assert!(!kernel::is_rotational(dev));
    let name = disk.device().file_name().unwrap().to_str().unwrap();
    let flag = format!("/sys/block/{name}/queue/rotational");
    need!(NAME, std::fs::write(&flag, "1").map_err(|error| Skip::kernel(format!("{flag}: {error}"))));
    assert!(kernel::is_rotational(dev));
    let before = world.snapshots();
    let report = world.unify(&REAL).unwrap();
    std::fs::write(&flag, "0").unwrap();
    assert_eq!((report.done.admitted, report.done.linked), (200, 200), "{report:?}");
    assert_eq!(report.skipped.len(), 0, "{report:?}");
    assert_eq!(world.differences(&before), [""; 0]);
    assert!(world.is_tidy());
}
