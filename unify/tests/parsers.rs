//! Every parser of a guest's bytes, over arbitrary bytes, damaged samples, and samples made from what they
//! must say. The entry points are those of the fuzz targets in `fuzz/`.
#![allow(clippy::disallowed_methods)] // guests are built in directories of the test's own
#![allow(clippy::unwrap_used, clippy::format_collect, clippy::format_push_string)] // plain texts matter more than speed

use std::collections::BTreeMap;
use std::fs;

use proptest::collection::vec;
use proptest::prelude::*;
use unify::packages::{Packages, Role, apk, dpkg, pacman, rpm};

#[path = "../fuzz/entry.rs"]
#[allow(missing_docs, unreachable_pub)] // shared with the fuzz targets, which are another workspace
mod entry;

const PARSERS: [fn(&[u8]); 8] = [
    entry::dpkg_status,
    entry::dpkg_list,
    entry::dpkg_diversions,
    entry::rpm_header,
    entry::sqlite_log,
    entry::apk_installed,
    entry::pacman_files,
    entry::policy,
];

/// Something valid for each parser.
fn samples() -> Vec<Vec<u8>> {
    let files = [("/usr/bin/".to_string(), "x".to_string(), 0), ("/etc/".into(), "y".into(), 1)];
    vec![
        b"Package: a\nStatus: install ok installed\nMulti-Arch: same\nConffiles:\n /etc/a 0 obsolete\n\nPackage: b\n".to_vec(),
        b"/.\n/usr\n/usr/bin/x\n0123456789abcdef0123456789abcdef  usr/x\n".to_vec(),
        b"/usr/bin/x\n/usr/bin/x.real\nother\n/a\n/b\n:\n".to_vec(),
        header("a", Some(1), &files),
        log(),
        b"P:a\nV:1\nF:usr/bin\nR:x\na:0:0:755\nZ:Q1\n\n+etc\n-etc/*.d\n@etc/[a]?\n".to_vec(),
        b"%NAME%\na\n\n%FILES%\nusr/\nusr/x\n\n%BACKUP%\netc/x\t0\n".to_vec(),
        b"version = 1\n[options]\nsetid = true\nmtime = 'relax'\nmin-size = 9\n[[rule]]\npaths = ['/a/**', '/{a,b}/*/[c-d]?']\nshare = true\nconfig = true\nwhy = 'w'\n".to_vec(),
    ]
}

/// A write-ahead log with a commit, as SQLite writes it.
fn log() -> Vec<u8> {
    let place = tempfile::tempdir().unwrap();
    let database = rusqlite::Connection::open(place.path().join("db")).unwrap();
    database.pragma_update(None, "page_size", 512).unwrap();
    database.pragma_update(None, "journal_mode", "wal").unwrap();
    database.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES (1)").unwrap();
    fs::read(place.path().join("db-wal")).unwrap()
}

/// A header as rpm stores it, of files (directory, name, flags).
fn header(name: &str, epoch: Option<u32>, files: &[(String, String, u32)]) -> Vec<u8> {
    let mut tags: Vec<(u32, u32, usize, Vec<u8>)> = Vec::new();
    let strings =
        |all: Vec<&str>| all.iter().flat_map(|text| [text.as_bytes(), b"\0"].concat()).collect::<Vec<u8>>();
    for (tag, value) in [(1000, name), (1001, "1.0"), (1002, "2"), (1022, "noarch")] {
        tags.push((tag, 6, 1, strings(vec![value])));
    }
    if let Some(epoch) = epoch {
        tags.push((1003, 4, 1, epoch.to_be_bytes().to_vec()));
    }
    if !files.is_empty() {
        let numbers = |all: Vec<u32>| all.into_iter().flat_map(u32::to_be_bytes).collect::<Vec<u8>>();
        let dirs: BTreeMap<&str, u32> = files
            .iter()
            .map(|(dir, ..)| (dir.as_str(), 0))
            .collect::<BTreeMap<_, _>>()
            .into_keys()
            .zip(0..)
            .collect();
        let count = files.len();
        tags.push((1117, 8, count, strings(files.iter().map(|(_, name, _)| name.as_str()).collect())));
        tags.push((1116, 4, count, numbers(files.iter().map(|(dir, ..)| dirs[dir.as_str()]).collect())));
        tags.push((1118, 8, dirs.len(), strings(dirs.into_keys().collect())));
        tags.push((1037, 4, count, numbers(files.iter().map(|(_, _, flags)| *flags).collect())));
    }
    let (mut index, mut data) = (Vec::new(), Vec::new());
    for (tag, kind, count, value) in tags {
        for number in [tag, kind, data.len() as u32, count as u32] {
            index.extend(u32::to_be_bytes(number));
        }
        data.extend(value);
    }
    [&((index.len() / 16) as u32).to_be_bytes()[..], &(data.len() as u32).to_be_bytes(), &index, &data]
        .concat()
}

/// Damage: a byte changed, a piece cut out, a piece repeated, in that proportion of the whole.
fn damaged(mut bytes: Vec<u8>, edits: &[(u8, f64, u8)]) -> Vec<u8> {
    for &(kind, place, value) in edits {
        let at = (place * bytes.len() as f64) as usize;
        let end = (at + value as usize).min(bytes.len());
        match kind % 3 {
            0 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = value),
            1 => drop(bytes.drain(at..end)),
            _ => bytes.splice(at..at, bytes[at..end].to_vec()).for_each(drop),
        }
    }
    bytes
}

/// What `Packages::read` makes of a guest with these files.
fn read(files: &[(&str, &[u8])]) -> Packages {
    let guest = tempfile::tempdir().unwrap();
    for (path, content) in files {
        let path = guest.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    Packages::read(&kernel::Dir::open_host(guest.path()).unwrap())
}

/// rpm's database with these headers.
fn rpm_database(headers: &[Vec<u8>]) -> Vec<u8> {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("rpmdb.sqlite");
    let database = rusqlite::Connection::open(&path).unwrap();
    database.pragma_update(None, "page_size", 512).unwrap();
    database.pragma_update(None, "journal_mode", "wal").unwrap();
    database
        .execute_batch("CREATE TABLE Packages(hnum INTEGER PRIMARY KEY AUTOINCREMENT, blob BLOB NOT NULL)")
        .unwrap();
    for header in headers {
        database.execute("INSERT INTO Packages(blob) VALUES (?)", [header]).unwrap();
    }
    drop(database);
    fs::read(path).unwrap()
}

fn edits() -> impl Strategy<Value = Vec<(u8, f64, u8)>> {
    vec((any::<u8>(), 0.0..1.0, any::<u8>()), 1..12)
}

const WORD: &str = "[a-z0-9][a-z0-9+.-]{0,12}";
const PATH: &str = "(/[a-zé ._%+-]{1,8}[a-z]){1,4}";

proptest! {
    #[test]
    fn arbitrary_bytes_harm_no_parser(bytes in vec(any::<u8>(), 0..2000)) {
        for parser in PARSERS {
            parser(&bytes);
        }
    }

    #[test]
    fn damaged_samples_harm_no_parser(edits in edits()) {
        for (parser, sample) in PARSERS.iter().zip(samples()) {
            parser(&sample);
            parser(&damaged(sample, &edits));
        }
    }

    #[test]
    fn dpkg_says_what_was_written(
        packages in vec((WORD, WORD, prop::sample::select(vec!["installed", "config-files"]), vec((PATH, 0..3_u8), 0..4)), 0..6),
    ) {
        let mut text = String::new();
        for (name, version, state, conffiles) in &packages {
            text += &format!("\nPackage: {name}\nStatus: install ok {state}\nConffiles:\n");
            for (path, end) in conffiles {
                text += &format!(" {path} 0123{}\n", ["", " obsolete", " obsolete remove-on-upgrade"][*end as usize]);
            }
            text += &format!("Version: {version}\nDescription: x\n .\n");
        }
        let parsed: Vec<_> = dpkg::stanzas(text.as_bytes()).collect::<Result<_, _>>().unwrap();
        prop_assert_eq!(parsed.len(), packages.len());
        for (stanza, (name, version, state, conffiles)) in parsed.iter().zip(&packages) {
            prop_assert_eq!(stanza.name, name.as_bytes());
            prop_assert_eq!(stanza.version, version.as_bytes());
            prop_assert_eq!(stanza.owns_files(), state == &"installed");
            let found: Vec<_> = dpkg::conffiles(stanza.conffiles).collect();
            prop_assert_eq!(found, conffiles.iter().map(|(path, _)| path.as_bytes()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn diversions_say_what_was_written(all in vec((PATH, PATH, WORD), 0..6)) {
        let text: String = all.iter().map(|(from, to, by)| format!("{from}\n{to}\n{by}\n")).collect();
        let found = dpkg::diversions(text.as_bytes()).unwrap();
        let wanted = all.iter().map(|(from, to, by)| (from.as_bytes(), to.as_bytes(), by.as_bytes()));
        prop_assert!(found.iter().map(|one| (one.from, one.to, one.by)).eq(wanted));
    }

    #[test]
    fn rpm_headers_say_what_was_written(
        name in WORD,
        epoch in any::<Option<u32>>(),
        files in vec((PATH.prop_map(|dir| dir + "/"), "[a-z]{1,9}", prop::sample::select(vec![0_u32, 1, 17, 64, 65])), 0..9),
    ) {
        let blob = header(&name, epoch, &files);
        let parsed = rpm::header(&blob).unwrap();
        let package = parsed.package().unwrap();
        prop_assert_eq!(&*package.name, &name);
        prop_assert_eq!(&*package.version, epoch.map_or("1.0-2".into(), |epoch| format!("{epoch}:1.0-2")));
        let role = |flags| match flags {
            0 => Role::Content,
            64 => Role::Generated,
            _ => Role::Config,
        };
        let found: Vec<_> = parsed.files().unwrap().map(|file| (file.dir, file.name, file.role)).collect();
        let wanted: Vec<_> =
            files.iter().map(|(dir, name, flags)| (dir.as_bytes(), name.as_bytes(), Some(role(*flags)))).collect();
        prop_assert_eq!(found, wanted);
    }

    #[test]
    fn apk_and_pacman_say_what_was_written(files in vec(PATH, 0..9)) {
        let text: String = files.iter().map(|path| format!("R:{path}\n")).collect();
        let fields: Vec<_> = apk::installed(text.as_bytes()).collect::<Result<_, _>>().unwrap();
        let wanted = files.iter().map(|path| apk::Line::Field(b'R', path.as_bytes())).chain([apk::Line::End]);
        prop_assert!(fields.into_iter().eq(wanted));
        let text: String = files.iter().map(|path| format!("{path}\t0f\n")).collect();
        let text = format!("%FILES%\nx\n\n%BACKUP%\n{text}\n");
        let backups = pacman::sections(text.as_bytes()).filter(|(section, _)| *section == b"%BACKUP%");
        let backups: Vec<_> = backups.map(|(_, line)| pacman::backup(line)).collect();
        prop_assert_eq!(backups, files.iter().map(String::as_bytes).collect::<Vec<_>>());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))] // each builds a guest

    #[test]
    fn a_damaged_rpm_database_is_read_or_refused(edits in edits(), log_edits in edits(), size in 0..200_usize) {
        let files: Vec<_> = (0..size).map(|at| (format!("/usr/d{}/", at % 7), format!("f{at}"), 0)).collect();
        let good = rpm_database(&[header("a", None, &files), header("b", Some(1), &[])]);
        let packages = read(&[("var/lib/rpm/rpmdb.sqlite", &good)]);
        prop_assert_eq!((packages.warnings().len(), packages.list().count(), packages.paths()), (0, 2, size));
        let packages = read(&[("var/lib/rpm/rpmdb.sqlite", &damaged(good.clone(), &edits))]);
        prop_assert!(packages.has_database() || packages.warnings().len() == 1 || packages.paths() == 0);
        let log = damaged(log(), &log_edits);
        let packages = read(&[("var/lib/rpm/rpmdb.sqlite", &good), ("var/lib/rpm/rpmdb.sqlite-wal", &log)]);
        prop_assert!(packages.paths() <= size);
    }

    #[test]
    fn damaged_databases_side_by_side_are_read_or_refused(edits in edits()) {
        let samples: Vec<_> = samples().into_iter().map(|sample| damaged(sample, &edits)).collect();
        let packages = read(&[
            ("var/lib/dpkg/status", &samples[0]),
            ("var/lib/dpkg/info/a.list", &samples[1]),
            ("var/lib/dpkg/diversions", &samples[2]),
            ("lib/apk/db/installed", &samples[5]),
            ("var/lib/pacman/local/a/desc", &samples[6]),
            ("var/lib/pacman/local/a/files", &samples[6]),
        ]);
        prop_assert!(packages.warnings().iter().all(|warning| !warning.to_string().is_empty()));
        for (id, package) in packages.list() {
            prop_assert_eq!(packages.get(id), package);
        }
    }
}
