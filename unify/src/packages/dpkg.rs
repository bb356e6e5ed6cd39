//! dpkg's database: `/var/lib/dpkg` (dpkg(1), deb-conffiles(5), dpkg-divert(1)).

use std::collections::{BTreeMap, HashMap};

use kernel::{Dir, Errno};

use super::build::{Build, TEXT, absent, lines, text};
use super::{Malformed, Manager, Package, PackageId, Problem, Role};

const ADMIN: &[u8] = b"var/lib/dpkg";

/// Files in `status.d` or `updates`: a distroless image has dozens of the former, an interrupted dpkg some
/// hundreds of the latter.
const FILES: usize = 1 << 16;

/// Bytes of the diversions: a hundred diversions make 10 KB. Smaller than other texts because all are held
/// at once.
const DIVERSIONS: u64 = 4 << 20;

/// One package's entry in the status file. Values are as written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stanza<'a> {
    /// `Package`.
    pub name: &'a [u8],
    /// `Version`.
    pub version: &'a [u8],
    /// `Architecture`.
    pub arch: &'a [u8],
    /// The third word of `Status`; empty without the field.
    pub state: &'a [u8],
    /// `Multi-Arch` is `same`: several architectures may be installed beside each other.
    pub same: bool,
    /// The lines of `Conffiles`, for [`conffiles`].
    pub conffiles: &'a [u8],
}

impl Stanza<'_> {
    /// Whether the package's files are in place, at least in part. `config-files` and `not-installed`
    /// packages own nothing but conffiles.
    pub fn owns_files(&self) -> bool {
        !matches!(self.state, b"config-files" | b"not-installed")
    }
}

/// The entries of a status file, one after the other; ends after the first malformed one.
pub fn stanzas(text: &[u8]) -> impl Iterator<Item = Result<Stanza<'_>, Malformed>> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let (stanza, after) = next_block(rest?)?;
        let parsed = stanza_of(stanza);
        rest = if parsed.is_ok() { Some(after) } else { None };
        Some(parsed)
    })
}

/// The lines up to the next empty one, and what follows.
fn next_block(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let start = text.iter().position(|&byte| byte != b'\n')?;
    let text = &text[start..];
    let end = text.windows(2).position(|pair| pair == b"\n\n").unwrap_or(text.len());
    Some(text.split_at(end))
}

fn stanza_of(block: &[u8]) -> Result<Stanza<'_>, Malformed> {
    let mut stanza = Stanza::default();
    let mut at = 0;
    let mut conffiles: Option<usize> = None; // where the field being read starts, if it is that
    for line in block.split_inclusive(|&byte| byte == b'\n') {
        let start = at;
        at += line.len();
        if line.starts_with(b" ") || line.starts_with(b"\t") {
            if let Some(from) = conffiles {
                stanza.conffiles = &block[from..at];
            }
            continue;
        }
        let colon = line.iter().position(|&byte| byte == b':').ok_or(Malformed("a line without a field"))?;
        let (field, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        conffiles = None;
        match field.to_ascii_lowercase().as_slice() {
            b"package" => stanza.name = value,
            b"version" => stanza.version = value,
            b"architecture" => stanza.arch = value,
            b"multi-arch" => stanza.same = value == b"same",
            b"status" => {
                let mut words = value.split(|&byte| byte == b' ').filter(|word| !word.is_empty());
                stanza.state = words.nth(2).ok_or(Malformed("a Status of less than three words"))?;
            }
            b"conffiles" => {
                conffiles = Some(start + colon + 1);
                stanza.conffiles = &block[start + colon + 1..at];
            }
            _ => {}
        }
    }
    let plain = |&byte: &u8| byte.is_ascii_alphanumeric() || b"+-._".contains(&byte);
    if stanza.name.is_empty() || stanza.name.len() > 200 || !stanza.name.iter().all(plain) {
        return Err(Malformed("an entry without a valid package name"));
    }
    Ok(stanza)
}

/// The paths in a `Conffiles` field: `path digest [obsolete] [remove-on-upgrade]` a line. All are config,
/// whatever words follow.
pub fn conffiles(field: &[u8]) -> impl Iterator<Item = &[u8]> {
    lines(field).filter_map(|line| {
        let mut line = line.trim_ascii();
        while let Some((rest, b"obsolete" | b"remove-on-upgrade")) = last_word(line) {
            line = rest;
        }
        last_word(line).map(|(path, _digest)| path).filter(|path| !path.is_empty())
    })
}

fn last_word(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let cut = line.iter().rposition(|&byte| byte == b' ')?;
    Some((line[..cut].trim_ascii_end(), &line[cut + 1..]))
}

/// A path that packages deliver, and where it really is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Diversion<'a> {
    /// The path in the packages' lists.
    pub from: &'a [u8],
    /// Where dpkg puts it.
    pub to: &'a [u8],
    /// The package whose own file stays at `from`; `:` where the administrator diverted, and then every
    /// package's file is at `to`.
    pub by: &'a [u8],
}

/// The diversions file: three lines each.
pub fn diversions(text: &[u8]) -> Result<Vec<Diversion<'_>>, Malformed> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let all: Vec<&[u8]> = lines(text).collect();
    let (triples, rest) = all.as_chunks::<3>();
    if !rest.is_empty() || triples.iter().any(|[from, to, by]| [from, to, by].iter().any(|l| l.is_empty())) {
        return Err(Malformed("a diversion that is not three lines"));
    }
    Ok(triples.iter().map(|&[from, to, by]| Diversion { from, to, by }).collect())
}

/// The paths in a package's `.list`.
pub fn list(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    lines(text).filter(|line| !line.is_empty())
}

/// The paths in a package's `.md5sums`: relative, after a digest and two spaces.
pub fn md5sums(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    lines(text).filter_map(|line| line.get(34..).filter(|_| line[32..34] == *b"  "))
}

pub(super) fn read(build: &mut Build<'_>) {
    build.database(Manager::Dpkg, b"var/lib/dpkg/status", read_status);
    build.database(Manager::Dpkg, b"var/lib/dpkg/status.d", read_status_d);
}

fn read_status(build: &mut Build<'_>) -> Result<(), Problem> {
    let Some(admin) = build.open(ADMIN)? else { return Ok(()) };
    let Some(status) = absent(build.budget.read(&admin, b"status"))? else { return Ok(()) };
    let updates = read_updates(build, &admin)?;
    let mut all = BTreeMap::new();
    for text in std::iter::once(&status).chain(&updates) {
        for stanza in stanzas(text) {
            let stanza = stanza?;
            let arch = if stanza.same { stanza.arch } else { b"" };
            all.insert((stanza.name, arch), stanza);
            if all.len() > FILES * 4 {
                return Err(Problem::TooMany("packages"));
            }
        }
    }
    let diverted = absent(admin.read(b"diversions", DIVERSIONS).map_err(Problem::from))?.unwrap_or_default();
    let diverted: HashMap<&[u8], Diversion<'_>> =
        diversions(&diverted)?.into_iter().map(|diversion| (diversion.from, diversion)).collect();
    let info = absent(admin.open_dir(b"info").map_err(Problem::from))?;
    for stanza in all.values().filter(|stanza| stanza.state != b"not-installed") {
        add_package(build, stanza, &diverted, info.as_ref())?;
    }
    Ok(())
}

/// Changes that an interrupted dpkg has not merged into the status file yet, oldest first.
fn read_updates(build: &mut Build<'_>, admin: &Dir) -> Result<Vec<Vec<u8>>, Problem> {
    let Some(dir) = absent(admin.open_dir(b"updates").map_err(Problem::from))? else { return Ok(Vec::new()) };
    let mut names = some_names(&dir)?;
    names.retain(|name| name.iter().all(u8::is_ascii_digit));
    let (mut texts, mut bytes) = (Vec::new(), 0);
    for name in names {
        texts.push(build.budget.read(&dir, &name)?);
        bytes += texts.last().map_or(0, Vec::len) as u64;
        if bytes > TEXT {
            return Err(Problem::TooMany("updates"));
        }
    }
    Ok(texts)
}

/// The names in a directory of the guest, sorted; refused beyond [`FILES`].
fn some_names(dir: &Dir) -> Result<Vec<Vec<u8>>, Problem> {
    let mut names = Vec::new();
    dir.for_each(&mut kernel::EntryBuffer::default(), |entry| {
        names.push(entry.name.to_vec());
        if names.len() > FILES { Err(Problem::TooMany("files")) } else { Ok(()) }
    })?;
    names.sort_unstable();
    Ok(names)
}

fn package(stanza: &Stanza<'_>) -> Package {
    Package {
        name: text(stanza.name),
        arch: text(stanza.arch),
        version: text(stanza.version),
        manager: Manager::Dpkg,
        installed: stanza.owns_files(),
    }
}

fn add_package(
    build: &mut Build<'_>,
    stanza: &Stanza<'_>,
    diverted: &HashMap<&[u8], Diversion<'_>>,
    info: Option<&Dir>,
) -> Result<(), Problem> {
    let id = build.add(package(stanza))?;
    // Where dpkg put a path of this package.
    let place = |path| match diverted.get(path) {
        Some(diversion) if diversion.by != stanza.name => diversion.to,
        _ => path,
    };
    for path in conffiles(stanza.conffiles) {
        build.own(id, place(path), Role::Config)?;
    }
    if stanza.owns_files() {
        let list_text = read_list(build, stanza, info)?;
        for path in list(&list_text) {
            build.own(id, place(path), Role::Content)?;
        }
    }
    Ok(())
}

/// The package's list: `name:arch.list` for packages that coexist in several architectures, else
/// `name.list`. dpkg takes a package without one for empty, and so do we.
fn read_list(build: &mut Build<'_>, stanza: &Stanza<'_>, info: Option<&Dir>) -> Result<Vec<u8>, Problem> {
    let name = stanza.name;
    let with_arch = [name, b":", stanza.arch, b".list"].concat();
    let plain = [name, b".list"].concat();
    let names = if stanza.same { [&with_arch, &plain] } else { [&plain, &with_arch] };
    for name in names {
        let Some(info) = info else { break };
        if let Some(found) = absent(build.budget.read(info, name))? {
            return Ok(found);
        }
    }
    let what = "the package's file list is missing".to_string();
    let consequence = format!("files of {} count as owned by no package", String::from_utf8_lossy(name));
    build.warn(&[ADMIN, b"/info/", &plain].concat(), what, consequence);
    Ok(Vec::new())
}

/// Distroless images: a file with one entry for each package, beside the digests of its files.
fn read_status_d(build: &mut Build<'_>) -> Result<(), Problem> {
    let Some(dir) = build.open(b"var/lib/dpkg/status.d")? else { return Ok(()) };
    for name in some_names(&dir)?.iter().filter(|name| !name.ends_with(b".md5sums")) {
        let content = match build.budget.read(&dir, name) {
            Err(Problem::Kernel(Errno::INVAL)) => continue, // no regular file
            other => other?,
        };
        for stanza in stanzas(&content) {
            let stanza = stanza?;
            let id = build.add(package(&stanza))?;
            own_status_d(build, &dir, id, name, &stanza)?;
        }
    }
    Ok(())
}

fn own_status_d(
    build: &mut Build<'_>,
    dir: &Dir,
    id: PackageId,
    name: &[u8],
    stanza: &Stanza<'_>,
) -> Result<(), Problem> {
    for path in conffiles(stanza.conffiles) {
        build.own(id, path, Role::Config)?;
    }
    let sums = absent(build.budget.read(dir, &[name, b".md5sums"].concat()))?.unwrap_or_default();
    for path in md5sums(&sums) {
        build.own(id, path, Role::Content)?;
    }
    Ok(())
}
