//! The link ceiling of a file system.

use fixtures::faulty::{Fault, Faulty, Op, Script};
use fixtures::{LoopFs, Manifest, need};
use kernel::{At, Dir, Errno, Fs};
use unify::Scope;

use crate::common::{REAL, World};

/// What ext4 gives an inode (`EXT4_LINK_MAX`).
const CEILING: u32 = 65_000;

const FILE: &str = "usr/bin/file";

fn manifest() -> Manifest {
    Manifest::parse("d usr/bin 755\nf usr/bin/file 755 *1000:1").unwrap()
}

/// The object of two guests, given names outside of them until no more than one has room.
fn nearly_full(disk: &LoopFs) -> World {
    let mut world = World::new(disk.path(), &[manifest(), manifest()]);
    let report = world.unify(&REAL).unwrap();
    assert_eq!(report.done.admitted, 1);
    let base = Dir::open_host(&world.base).unwrap();
    REAL.make_dir(At::new(&base, b"names"), 0o700).unwrap();
    let (names, bin) = (base.open_dir(b"names").unwrap(), base.open_dir(b"g0/usr/bin").unwrap());
    for n in bin.stat(b"file").unwrap().nlink + 1..CEILING {
        REAL.link(At::new(&bin, b"file"), At::new(&names, n.to_string().as_bytes())).unwrap();
    }
    for n in 2..6 {
        let guest = world.base.join(format!("g{n}"));
        manifest().write(&guest).unwrap();
        world.guests.push(guest);
    }
    world
}

fn inodes(world: &World) -> Vec<u64> {
    (0..world.guests.len()).map(|guest| world.ino(guest, FILE)).collect()
}

#[test]
fn a_full_object_opens_its_overflow() {
    let disk = need!("ceiling::a_full_object_opens_its_overflow", LoopFs::ext4(64 << 20));
    let world = nearly_full(&disk);
    let before = world.snapshots();

    // A crash after names have moved to both inodes.
    let faulty = Faulty::new(&REAL, Script::new().nth_of(Op::Sync, 2, Fault::Fail(Errno::IO)));
    world.unify(&faulty).unwrap_err();
    assert_eq!(world.differences(&before), [""; 0]);
    let outcome = world.recover(&REAL).unwrap();
    assert_eq!((outcome.completed, outcome.taken_back, outcome.kept.len()), (4, 0, 0), "{outcome:?}");

    let inos = inodes(&world);
    assert!(inos[1] == inos[0] && inos[2..].iter().filter(|ino| **ino == inos[0]).count() == 1, "{inos:?}");
    let overflow: Vec<u64> = inos.iter().copied().filter(|ino| *ino != inos[0]).collect();
    assert!(overflow.len() == 3 && overflow.iter().all(|ino| *ino == overflow[0]), "{inos:?}");
    assert_eq!(world.unify(&REAL).unwrap().run, None);

    // An equal file in a guest that has the overflow stays another inode.
    let guest = inos.iter().position(|ino| *ino == overflow[0]).unwrap();
    let second = Manifest::parse("f usr/bin/second 755 *1000:1").unwrap();
    second.write(&world.guests[guest]).unwrap();
    let with_second = world.snapshots();
    world.unify(&REAL).unwrap();
    assert_eq!(world.differences(&with_second), [""; 0]);
    assert_ne!(world.ino(guest, "usr/bin/second"), overflow[0]);

    let report = world.undo(&REAL, &Scope::default()).unwrap();
    assert_eq!(report.done.not_done, 0, "{report:?}");
    assert_eq!(world.differences(&with_second), [""; 0]);
    let mut inos = inodes(&world);
    inos.sort_unstable();
    inos.dedup();
    assert_eq!(inos.len(), world.guests.len(), "{inos:?}");
    assert!(world.is_tidy());
}
