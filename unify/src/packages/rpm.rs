//! rpm's database: one header for each package, in SQLite (rpm's manual, "Package format").

use kernel::{Dir, Errno};
use rusqlite::Connection;
use rusqlite::types::ValueRef;

use super::build::{Build, text};
use super::resolve::PATH;
use super::{Malformed, Manager, Package, Problem, Role, sqlite};

/// Where distributions keep it: traditionally, Fedora and SUSE today, image based systems.
const PLACES: [&str; 3] = ["var/lib/rpm", "usr/lib/sysimage/rpm", "usr/share/rpm"];

/// Files, or directories, of one package. The largest packages (kernel sources, TeX) have 100,000.
const FILES: usize = 1 << 20;

/// Tags of one header: rpm's own bound (`HEADER_TAGS_MAX`).
const TAGS: u32 = 0xffff;

// Tags and types: rpm's lib/rpmtag.h.
const NAME: u32 = 1000;
const VERSION: u32 = 1001;
const RELEASE: u32 = 1002;
const EPOCH: u32 = 1003;
const ARCH: u32 = 1022;
const FILE_STATES: u32 = 1029;
const FILE_MODES: u32 = 1030;
const FILE_FLAGS: u32 = 1037;
const FILE_VERIFY: u32 = 1045;
const DIR_INDEXES: u32 = 1116;
const BASE_NAMES: u32 = 1117;
const DIR_NAMES: u32 = 1118;
const CHAR: u32 = 1;
const INT16: u32 = 3;
const INT32: u32 = 4;
const STRING: u32 = 6;
const STRING_ARRAY: u32 = 8;

/// A package's header: an index of tags, sixteen bytes each, and the data they point into.
#[derive(Clone, Copy, Debug)]
pub struct Header<'a> {
    index: &'a [[u8; 16]],
    data: &'a [u8],
}

/// A file in a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderFile<'a> {
    /// Its directory, with slashes at both ends.
    pub dir: &'a [u8],
    /// Its name.
    pub name: &'a [u8],
    /// What it is to the package; `None` for what the package does not have in place: directories, and
    /// files that were not installed or that another package replaced.
    pub role: Option<Role>,
}

/// Reads a header as the database stores it: lengths of index and data, index, data.
pub fn header(blob: &[u8]) -> Result<Header<'_>, Malformed> {
    const SHORT: Malformed = Malformed("a header that ends too early");
    let (&tags, rest) = blob.split_first_chunk::<4>().ok_or(SHORT)?;
    let (&bytes, rest) = rest.split_first_chunk::<4>().ok_or(SHORT)?;
    let tags = u32::from_be_bytes(tags);
    if tags > TAGS {
        return Err(Malformed("a header of more tags than rpm allows"));
    }
    let (index, rest) = rest.split_at_checked(tags as usize * 16).ok_or(SHORT)?;
    let data = rest.get(..u32::from_be_bytes(bytes) as usize).ok_or(SHORT)?;
    Ok(Header { index: index.as_chunks().0, data })
}

impl<'a> Header<'a> {
    /// The data of a tag from its start on, and the number of values; `None` without the tag.
    fn tag(&self, tag: u32, kind: u32) -> Result<Option<(&'a [u8], usize)>, Malformed> {
        let number = |entry: &[u8; 16], at: usize| {
            u32::from_be_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]])
        };
        let Some(entry) = self.index.iter().find(|entry| number(entry, 0) == tag) else { return Ok(None) };
        if number(entry, 4) != kind {
            return Err(Malformed("a tag of another type than rpm gives it"));
        }
        let start = number(entry, 8) as usize;
        let data = self.data.get(start..).ok_or(Malformed("a tag that points past the header"))?;
        Ok(Some((data, number(entry, 12) as usize)))
    }

    fn string(&self, tag: u32) -> Result<Option<&'a [u8]>, Malformed> {
        self.tag(tag, STRING)?.map(|(data, _)| terminated(data).map(|(value, _)| value)).transpose()
    }

    fn strings(&self, tag: u32) -> Result<Vec<&'a [u8]>, Malformed> {
        let Some((mut data, count)) = self.tag(tag, STRING_ARRAY)? else { return Ok(Vec::new()) };
        if count > FILES || count > data.len() {
            return Err(Malformed("more strings than a header can hold"));
        }
        let mut found = Vec::with_capacity(count);
        for _ in 0..count {
            let (value, rest) = terminated(data)?;
            found.push(value);
            data = rest;
        }
        Ok(found)
    }

    /// `count` values of `N` bytes; `None` without the tag.
    fn numbers<const N: usize>(
        &self,
        tag: u32,
        kind: u32,
        count: usize,
    ) -> Result<Option<&'a [[u8; N]]>, Malformed> {
        let Some((data, have)) = self.tag(tag, kind)? else { return Ok(None) };
        let values = data.as_chunks().0.get(..count).filter(|_| have == count);
        values.map(Some).ok_or(Malformed("file attributes of another number than files"))
    }

    /// The package itself, without its files.
    pub fn package(&self) -> Result<Package, Malformed> {
        let name = self.string(NAME)?.filter(|name| !name.is_empty());
        let name = name.ok_or(Malformed("a package without a name"))?;
        let (version, release) = (self.string(VERSION)?, self.string(RELEASE)?);
        let epoch = match self.numbers::<4>(EPOCH, INT32, 1)? {
            Some([epoch]) => format!("{}:", u32::from_be_bytes(*epoch)),
            _ => String::new(),
        };
        let part = |value: Option<&[u8]>| text(value.unwrap_or_default());
        Ok(Package {
            name: text(name),
            version: format!("{epoch}{}-{}", part(version), part(release)).into(),
            arch: part(self.string(ARCH)?),
            manager: Manager::Rpm,
            installed: true,
        })
    }

    /// The package's files, in the header's order.
    pub fn files(&self) -> Result<impl Iterator<Item = HeaderFile<'a>>, Malformed> {
        let names = self.strings(BASE_NAMES)?;
        let dirs = self.strings(DIR_NAMES)?;
        let count = names.len();
        let wanting = Malformed("files without directories");
        let which = self.numbers::<4>(DIR_INDEXES, INT32, count)?.unwrap_or_default();
        let flags = self.numbers::<4>(FILE_FLAGS, INT32, count)?;
        let modes = self.numbers::<2>(FILE_MODES, INT16, count)?;
        let states = self.numbers::<1>(FILE_STATES, CHAR, count)?;
        let verify = self.numbers::<4>(FILE_VERIFY, INT32, count)?;
        if which.len() != count || which.iter().any(|at| u32::from_be_bytes(*at) as usize >= dirs.len()) {
            return Err(wanting);
        }
        Ok(names.into_iter().zip(which).enumerate().map(move |(at, (name, dir))| HeaderFile {
            dir: dirs[u32::from_be_bytes(*dir) as usize],
            name,
            role: role(
                flags.map_or(0, |all| u32::from_be_bytes(all[at])),
                modes.map_or(0, |all| u16::from_be_bytes(all[at])),
                states.map_or(0, |all| all[at][0]),
                verify.map_or(u32::MAX, |all| u32::from_be_bytes(all[at])),
            ),
        }))
    }
}

/// What a file is, by rpm's `rpmfileAttrs`, mode, `rpmfileState` and `rpmVerifyFlags`.
fn role(flags: u32, mode: u16, state: u8, verify: u32) -> Option<Role> {
    const CONFIG: u32 = 1;
    const GHOST: u32 = 64;
    const VERIFY_DIGEST: u32 = 1;
    const TYPE: u16 = 0o170_000;
    const DIRECTORY: u16 = 0o040_000;
    if mode & TYPE == DIRECTORY {
        return None;
    }
    if flags & CONFIG != 0 {
        return Some(Role::Config); // whatever has become of it
    }
    if matches!(state, 1 | 2 | 4) {
        return None; // replaced, not installed, of another architecture's colour
    }
    let generated = flags & GHOST != 0 || verify & VERIFY_DIGEST == 0;
    Some(if generated { Role::Generated } else { Role::Content })
}

fn terminated(data: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let end = data.iter().position(|&byte| byte == 0).ok_or(Malformed("a string without an end"))?;
    Ok((&data[..end], &data[end + 1..]))
}

pub(super) fn read(build: &mut Build<'_>) {
    for place in build.places(&PLACES) {
        let path = [&place, b"/rpmdb.sqlite".as_slice()].concat();
        build.database(Manager::Rpm, &path, |build| read_place(build, &place));
    }
}

fn read_place(build: &mut Build<'_>, place: &[u8]) -> Result<(), Problem> {
    let Some(dir) = build.open(place)? else { return Ok(()) };
    match sqlite::open(&dir, b"rpmdb.sqlite", build.budget.deadline())? {
        Some(connection) => read_headers(build, &connection),
        None => warn_of_old_formats(build, place, &dir),
    }
}

fn read_headers(build: &mut Build<'_>, connection: &Connection) -> Result<(), Problem> {
    check_schema(connection)?;
    let mut statement = connection.prepare("SELECT blob FROM Packages")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let ValueRef::Blob(blob) = row.get_ref(0)? else {
            return Err(Problem::Malformed("a package that is no header"));
        };
        build.budget.check_time()?; // rows may share pages, so their number is no measure of work
        read_header(build, blob)?;
    }
    Ok(())
}

/// `Packages` must be a plain table: a virtual one would run a module's code over the guest's data.
fn check_schema(connection: &Connection) -> Result<(), Problem> {
    let wanted = "SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = 'Packages' COLLATE NOCASE";
    let sql: String = connection.query_row(wanted, [], |row| row.get(0))?;
    let plain = sql.get(..13).is_some_and(|start| start.eq_ignore_ascii_case("CREATE TABLE "));
    if plain { Ok(()) } else { Err(Problem::Malformed("Packages is no plain table")) }
}

fn read_header(build: &mut Build<'_>, blob: &[u8]) -> Result<(), Problem> {
    let header = header(blob)?;
    let id = build.add(header.package()?)?;
    let mut path = Vec::new();
    for file in header.files()? {
        if let Some(role) = file.role.filter(|_| file.dir.len() + file.name.len() <= PATH) {
            path.clear();
            path.extend_from_slice(file.dir);
            path.extend_from_slice(file.name);
            build.own(id, &path, role)?;
        }
    }
    Ok(())
}

/// ndb and Berkeley DB are not read.
fn warn_of_old_formats(build: &mut Build<'_>, place: &[u8], dir: &Dir) -> Result<(), Problem> {
    for (name, format) in [("Packages.db", "ndb"), ("Packages", "Berkeley DB")] {
        match dir.stat(name.as_bytes()) {
            Ok(stat) if stat.size > 0 => {
                let path = [place, b"/", name.as_bytes()].concat();
                let consequence = "/etc and files no package owns are treated as config; \
                    rpmdb --rebuilddb with %_db_backend sqlite, in the guest, makes a database that is read";
                build.warn(&path, format!("rpm's {format} format is not read"), consequence.into());
            }
            Ok(_) | Err(Errno::NOENT) => {}
            Err(other) => return Err(other.into()),
        }
    }
    Ok(())
}
