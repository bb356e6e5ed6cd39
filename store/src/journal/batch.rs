//! What one batch does: the unit of intent.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use kernel::Time;

use crate::wire::{Reader, Writer};
use crate::{ObjectId, ObjectName};

/// Version of a batch's encoding, its first byte after decompression.
const VERSION: u8 = 1;

/// A verb of earlier builds: an object became its last guest's own inode again. Read as a `Detach`, of which it was the
/// case that needed no copy: where it was cut off, its names have what they had before.
const RETIRE: u8 = 1;

/// Largest batch that is decoded, in bytes; a batch has some thousand actions of about 100 bytes.
const MAX_BATCH: u64 = 1 << 30;

/// What an action does. A `Detach` takes either of the others back; what a `Repair` takes away nobody wants back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// A guest's inode becomes an object; its names stay as they are.
    Admit = 0,
    /// Names of a private inode become names of an object.
    Link = 2,
    /// Names of an object become names of a private copy of it.
    Detach = 3,
    /// Names of a corrupt inode that was an object become names of the object that takes its place.
    Repair = 4,
}

impl Verb {
    const ALL: [Self; 4] = [Self::Admit, Self::Link, Self::Detach, Self::Repair];

    /// The word in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Admit => "admit",
            Self::Link => "link",
            Self::Detach => "detach",
            Self::Repair => "repair",
        }
    }
}

/// A directory of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirRef {
    /// Index into [`Batch::guests`].
    pub guest: u32,
    /// Path within the guest, empty for its root.
    pub path: Vec<u8>,
    /// Its modification time, given back after names in it were exchanged.
    pub mtime: Time,
}

/// A name in a directory of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameRef {
    /// Index into [`Batch::dirs`].
    pub dir: u32,
    /// The name.
    pub name: Vec<u8>,
}

/// One thing to be done to one inode and all of its names, as a whole or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    /// What is done.
    pub verb: Verb,
    /// The object in question.
    pub object: ObjectName,
    /// Number of the inode that the names have before.
    pub ino: u64,
    /// That inode's change time in nanoseconds ([`Time::to_nanos`]): if it differs, nothing is done.
    pub ctime: i64,
    /// Size in bytes.
    pub size: u64,
    /// Where identity leaves it out: the modification time that a `Link` takes away, or that a `Detach`
    /// gives back.
    pub mtime: Option<Time>,
    /// Every name of the inode.
    pub names: Vec<NameRef>,
}

/// A list of actions that become durable together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The guests, by their path relative to the store's base.
    pub guests: Vec<PathBuf>,
    /// The directories in which names are.
    pub dirs: Vec<DirRef>,
    /// What is to be done.
    pub actions: Vec<Action>,
}

/// What became of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It was done, with this overflow of the object's twin.
    Done {
        /// See [`ObjectName`].
        overflow: u16,
    },
    /// Nothing was changed, or everything was taken back.
    NotDone,
    /// A `Link` found every inode of its object full and became an `Admit` of this overflow.
    Admitted {
        /// See [`ObjectName`].
        overflow: u16,
    },
}

impl Batch {
    /// The guest a name belongs to and its path in it.
    pub fn place(&self, name: &NameRef) -> (&Path, PathBuf) {
        let dir = &self.dirs[name.dir as usize];
        let path = Path::new(OsStr::from_bytes(&dir.path)).join(OsStr::from_bytes(&name.name));
        (&self.guests[dir.guest as usize], path)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u8(VERSION);
        out.u32(self.guests.len() as u32);
        for guest in &self.guests {
            out.bytes(guest.as_os_str().as_bytes());
        }
        out.u32(self.dirs.len() as u32);
        for dir in &self.dirs {
            out.u32(dir.guest);
            put_time(&mut out, dir.mtime);
            out.bytes(&dir.path);
        }
        out.u32(self.actions.len() as u32);
        for action in &self.actions {
            action.encode(&mut out);
        }
        zstd::bulk::compress(&out.0, 1).expect("compressing into memory")
    }

    pub(super) fn decode(blob: &[u8]) -> Option<Self> {
        let mut bytes = Vec::new();
        zstd::Decoder::new(blob).ok()?.take(MAX_BATCH).read_to_end(&mut bytes).ok()?;
        let mut input = Reader(&bytes);
        if input.u8()? != VERSION {
            return None;
        }
        let guests: Vec<PathBuf> = (0..input.count(4)?)
            .map(|_| Some(PathBuf::from(OsStr::from_bytes(input.bytes()?))))
            .collect::<Option<_>>()?;
        let dirs: Vec<DirRef> = (0..input.count(20)?)
            .map(|_| {
                let guest = input.u32().filter(|&guest| (guest as usize) < guests.len())?;
                Some(DirRef { guest, mtime: get_time(&mut input)?, path: input.bytes()?.to_vec() })
            })
            .collect::<Option<_>>()?;
        let actions =
            (0..input.count(66)?).map(|_| Action::decode(&mut input, dirs.len())).collect::<Option<_>>()?;
        input.0.is_empty().then_some(Self { guests, dirs, actions })
    }
}

impl Action {
    fn encode(&self, out: &mut Writer) {
        out.u8(self.verb as u8);
        out.raw(&self.object.id.0);
        out.u32(u32::from(self.object.twin) << 16 | u32::from(self.object.overflow));
        out.u64(self.ino);
        out.i64(self.ctime);
        out.u64(self.size);
        out.u8(u8::from(self.mtime.is_some()));
        if let Some(mtime) = self.mtime {
            put_time(out, mtime);
        }
        out.u32(self.names.len() as u32);
        for name in &self.names {
            out.u32(name.dir);
            out.bytes(&name.name);
        }
    }

    fn decode(input: &mut Reader<'_>, dirs: usize) -> Option<Self> {
        let verb = match input.u8()? {
            RETIRE => Verb::Detach,
            code => Verb::ALL.into_iter().find(|verb| *verb as u8 == code)?,
        };
        let id = ObjectId(input.array()?);
        let slot = input.u32()?;
        let object = ObjectName { id, twin: (slot >> 16) as u16, overflow: slot as u16 };
        let (ino, ctime, size) = (input.u64()?, input.i64()?, input.u64()?);
        let mtime = match input.u8()? {
            0 => None,
            _ => Some(get_time(input)?),
        };
        let names = (0..input.count(8)?)
            .map(|_| {
                let dir = input.u32().filter(|&dir| (dir as usize) < dirs)?;
                Some(NameRef { dir, name: input.bytes()?.to_vec() })
            })
            .collect::<Option<_>>()?;
        Some(Self { verb, object, ino, ctime, size, mtime, names })
    }
}

impl Settled {
    const NOT_DONE: u32 = u32::MAX;
    const ADMITTED: u32 = 1 << 16;

    pub(super) fn encode_all(all: &[Self]) -> Vec<u8> {
        let mut out = Writer::default();
        for settled in all {
            out.u32(match *settled {
                Self::Done { overflow } => u32::from(overflow),
                Self::Admitted { overflow } => Self::ADMITTED | u32::from(overflow),
                Self::NotDone => Self::NOT_DONE,
            });
        }
        out.0
    }

    pub(super) fn decode_all(blob: &[u8], count: usize) -> Option<Vec<Self>> {
        let mut input = Reader(blob);
        let all = (0..count)
            .map(|_| {
                Some(match input.u32()? {
                    Self::NOT_DONE => Self::NotDone,
                    code if code >> 16 == 0 => Self::Done { overflow: code as u16 },
                    code if code >> 16 == 1 => Self::Admitted { overflow: code as u16 },
                    _ => return None,
                })
            })
            .collect::<Option<_>>()?;
        input.0.is_empty().then_some(all)
    }
}

fn put_time(out: &mut Writer, time: Time) {
    out.i64(time.seconds);
    out.u32(time.nanos);
}

fn get_time(input: &mut Reader<'_>) -> Option<Time> {
    Some(Time { seconds: input.i64()?, nanos: input.u32()? })
}
