//! apk's database: `/lib/apk/db/installed` (apk-tools, apk-protected_paths(5)).

use kernel::Dir;

use super::build::{Build, absent, lines, text};
use super::resolve::PATH;
use super::{Malformed, Manager, Package, PackageId, Problem, Role};

/// Protection rules: Alpine ships three, and no package adds more than a few. Bounded because every owned
/// file is held against each.
const RULES: usize = 256;

/// One line of the database: a letter and its value, or the empty line that ends a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// `P`, `V`, `A`, `F`, `R` and others.
    Field(u8, &'a [u8]),
    /// Between two packages.
    End,
}

/// The lines of `installed`.
pub fn installed(text: &[u8]) -> impl Iterator<Item = Result<Line<'_>, Malformed>> {
    lines(text).map(|line| match line {
        [] => Ok(Line::End),
        [letter, b':', value @ ..] => Ok(Line::Field(*letter, value)),
        _ => Err(Malformed("a line without a field")),
    })
}

/// A rule about paths whose changed files apk keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protection {
    /// Components of the pattern.
    pattern: Vec<Box<[u8]>>,
    protects: bool,
}

/// The rules apk is built with, then those of the files given, in order.
pub fn protections<'a>(files: impl IntoIterator<Item = &'a [u8]>) -> Vec<Protection> {
    let built_in = b"+etc\n@etc/init.d\n!etc/apk\n".as_slice();
    let all = std::iter::once(built_in).chain(files).flat_map(lines);
    all.filter_map(protection).take(RULES).collect()
}

/// `+` protects, `!` too; `-` does not; `@` protects symbolic links only, which are never shared anyway.
fn protection(line: &[u8]) -> Option<Protection> {
    let line = line.trim_ascii();
    let (protects, path) = match line.first()? {
        b'#' => return None,
        b'-' | b'@' => (false, &line[1..]),
        b'+' | b'!' => (true, &line[1..]),
        _ => (true, line),
    };
    let parts = path.split(|&byte| byte == b'/').filter(|part| !part.is_empty());
    let pattern: Vec<Box<[u8]>> = parts.map(Into::into).collect();
    (!pattern.is_empty()).then_some(Protection { pattern, protects })
}

/// Whether a path (relative to the root) is protected, that is config: the deepest rule that matches it or
/// a directory above it decides, of equals the last.
pub fn is_protected(rules: &[Protection], path: &[u8]) -> bool {
    let parts: Vec<&[u8]> = path.split(|&byte| byte == b'/').filter(|part| !part.is_empty()).collect();
    let deepest = rules.iter().filter(|rule| rule.matches(&parts)).max_by_key(|rule| rule.pattern.len());
    deepest.is_some_and(|rule| rule.protects)
}

impl Protection {
    fn matches(&self, parts: &[&[u8]]) -> bool {
        self.pattern.len() <= parts.len()
            && self.pattern.iter().zip(parts).all(|(pattern, part)| wildcard(pattern, part, self.protects))
    }
}

/// fnmatch(3) of one component, but for character classes: `[` stands for any byte and the rest of the
/// class for itself in a rule that protects nothing, and for anything in one that does. So a class errs
/// towards protection.
fn wildcard(pattern: &[u8], name: &[u8], generous: bool) -> bool {
    if pattern.contains(&b'[') {
        return generous;
    }
    let (mut p, mut n) = (0, 0);
    let mut star = None; // where to go on after a mismatch
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, n));
                p += 1;
            }
            Some(&byte) if byte == b'?' || byte == name[n] => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((after, from)) = star else { return false };
                p = after;
                n = from + 1;
                star = Some((after, n));
            }
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

pub(super) fn read(build: &mut Build<'_>) {
    for place in build.places(&["lib/apk/db", "usr/lib/apk/db"]) {
        let path = [&place, b"/installed".as_slice()].concat();
        build.database(Manager::Apk, &path, |build| read_installed(build, &place));
    }
}

fn read_installed(build: &mut Build<'_>, place: &[u8]) -> Result<(), Problem> {
    let Some(dir) = build.open(place)? else { return Ok(()) };
    let Some(content) = absent(build.budget.read(&dir, b"installed"))? else { return Ok(()) };
    let rules = read_protections(build)?;
    let mut current = None;
    let mut path = Vec::new();
    let mut dir_length = 0;
    for line in installed(&content) {
        match (line?, current) {
            (Line::End, _) => {
                current = None;
                dir_length = 0;
            }
            (Line::Field(b'P', name), None) => current = Some(build.add(named(name))?),
            (Line::Field(b'P', _), Some(_)) => return Err(Problem::Malformed("two names for one package")),
            (Line::Field(b'V', value), Some(id)) => package(build, id).version = text(value),
            (Line::Field(b'A', value), Some(id)) => package(build, id).arch = text(value),
            (Line::Field(b'F', value), _) if value.len() > PATH => {
                return Err(Malformed("a path beyond all limits").into());
            }
            (Line::Field(b'F', value), _) => {
                path.clear();
                path.extend_from_slice(value.strip_suffix(b"/").unwrap_or(value));
                path.push(b'/');
                dir_length = path.len();
            }
            (Line::Field(b'R', name), Some(id)) if dir_length > 0 => {
                path.truncate(dir_length);
                path.extend_from_slice(name);
                let role = if is_protected(&rules, &path) { Role::Config } else { Role::Content };
                build.own(id, &path, role)?;
            }
            (Line::Field(b'R', _), _) => {
                return Err(Problem::Malformed("a file without package or directory"));
            }
            (Line::Field(..), _) => {}
        }
    }
    Ok(())
}

fn named(name: &[u8]) -> Package {
    let (arch, version) = Default::default();
    Package { name: text(name), arch, version, manager: Manager::Apk, installed: true }
}

fn package<'a>(build: &'a mut Build<'_>, id: PackageId) -> &'a mut Package {
    &mut build.packages[id.0 as usize]
}

fn read_protections(build: &mut Build<'_>) -> Result<Vec<Protection>, Problem> {
    let mut files = Vec::new();
    if let Some(dir) = build.open(b"etc/apk/protected_paths.d")? {
        for name in list_names(&dir)? {
            files.push(build.budget.read(&dir, &name)?);
        }
    }
    Ok(protections(files.iter().map(Vec::as_slice)))
}

/// The `*.list` files, sorted as apk reads them.
pub(super) fn list_names(dir: &Dir) -> Result<Vec<Vec<u8>>, Problem> {
    let mut names = Vec::new();
    dir.for_each(&mut kernel::EntryBuffer::default(), |entry| {
        if entry.name.ends_with(b".list") && !entry.name.starts_with(b".") {
            names.push(entry.name.to_vec());
        }
        if names.len() > RULES { Err(Problem::TooMany("protected path lists")) } else { Ok(()) }
    })?;
    names.sort_unstable();
    Ok(names)
}
