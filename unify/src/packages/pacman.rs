//! pacman's database: `/var/lib/pacman/local`, a directory for each package.

use kernel::{Dir, EntryBuffer, Kind};

use super::build::{Build, absent, lines, text};
use super::{Manager, Package, Problem, Role};

/// Packages: ten times the distribution's offer.
const DIRECTORIES: usize = 1 << 18;

/// The lines of `desc` and `files`, each with the section it is in: `%NAME%`, then lines up to the next.
pub fn sections(text: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut section: &[u8] = b"";
    let mut fresh = true; // a header follows an empty line, so that a file named %FILES% is none
    lines(text).filter_map(move |line| match line {
        [] => {
            fresh = true;
            None
        }
        [b'%', .., b'%'] if fresh => {
            section = line;
            fresh = false;
            None
        }
        value => Some((section, value)),
    })
}

/// The path in a line of `%BACKUP%`, without the digest after the tab.
pub fn backup(line: &[u8]) -> &[u8] {
    let cut = line.iter().rposition(|&byte| byte == b'\t').unwrap_or(line.len());
    &line[..cut]
}

pub(super) fn read(build: &mut Build<'_>) {
    build.database(Manager::Pacman, b"var/lib/pacman/local", read_local);
}

fn read_local(build: &mut Build<'_>) -> Result<(), Problem> {
    let Some(local) = build.open(b"var/lib/pacman/local")? else { return Ok(()) };
    let mut names = Vec::new();
    local.for_each(&mut EntryBuffer::default(), |entry| {
        if matches!(entry.kind, Kind::Directory | Kind::Unknown) {
            names.push(entry.name.to_vec());
        }
        if names.len() > DIRECTORIES { Err(Problem::TooMany("packages")) } else { Ok(()) }
    })?;
    names.sort_unstable();
    for name in names {
        if let Some(dir) = absent(local.open_dir(&name).map_err(Problem::from))? {
            read_package(build, &dir)?;
        }
    }
    Ok(())
}

fn read_package(build: &mut Build<'_>, dir: &Dir) -> Result<(), Problem> {
    let Some(desc) = absent(build.budget.read(dir, b"desc"))? else { return Ok(()) };
    let files = absent(build.budget.read(dir, b"files"))?.unwrap_or_default();
    let value =
        |wanted| sections(&desc).find(|(section, _)| *section == wanted).map(|(_, value)| text(value));
    let name = value(b"%NAME%".as_slice()).ok_or(Problem::Malformed("a package without a name"))?;
    let id = build.add(Package {
        name,
        version: value(b"%VERSION%").unwrap_or_default(),
        arch: value(b"%ARCH%").unwrap_or_default(),
        manager: Manager::Pacman,
        installed: true,
    })?;
    for (section, line) in sections(&files) {
        match section {
            b"%FILES%" => build.own(id, line, Role::Content)?, // directories end in a slash: none to own
            b"%BACKUP%" => build.own(id, backup(line), Role::Config)?,
            _ => {}
        }
    }
    Ok(())
}
