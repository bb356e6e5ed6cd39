//! The command, run on guests in a directory of their own.
#![allow(dead_code, unreachable_pub)] // each test binary uses its part
#![allow(clippy::disallowed_methods)] // builds trees that are no guests of anybody
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)] // a fixture that fails is a test that fails

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fixtures::{Compare, Manifest, Snapshot};
use serde_json::Value;

use crate::common::World;

/// A guest with a dpkg database: two packages, one with a conffile, and files of nobody.
pub const GUEST: &str = r#"
d etc 755
f etc/hostname 644 @1000000000 "same everywhere"
f etc/tool.conf 644 @1000000000 "setting = 1"
f usr/bin/tool 755 @1000000000.5 *20000:1
f usr/bin/shell 755 @1000000000.5 *30000:2
h usr/bin/sh usr/bin/shell
f usr/local/bin/own 755 @1000000000.5 *10000:3
f var/lib/data 644 @1000000000 *5000:4
f var/lib/dpkg/status "Package: tool\nStatus: install ok installed\nArchitecture: all\nVersion: 1.0\nConffiles:\n /etc/tool.conf 00000000000000000000000000000000\n\nPackage: shell\nStatus: install ok installed\nArchitecture: all\nVersion: 2.0\n\n"
f var/lib/dpkg/info/tool.list "/.\n/etc\n/etc/tool.conf\n/usr\n/usr/bin\n/usr/bin/tool\n"
f var/lib/dpkg/info/shell.list "/.\n/usr\n/usr/bin\n/usr/bin/shell\n/usr/bin/sh\n"
"#;

/// A directory of guests, as `$VSERVERS`, with an empty directory of policies beside it.
pub struct Host {
    _place: Option<tempfile::TempDir>,
    pub world: World,
    pub policy: PathBuf,
}

impl Host {
    pub fn new() -> Self {
        Self::with(&[GUEST, GUEST])
    }

    pub fn with(guests: &[&str]) -> Self {
        let place = tempfile::tempdir().unwrap();
        let host = Self::at(place.path(), guests);
        Self { _place: Some(place), ..host }
    }

    pub fn at(place: &Path, guests: &[&str]) -> Self {
        let (base, policy) = (place.join("guests"), place.join("policy"));
        std::fs::create_dir(&base).unwrap();
        std::fs::create_dir(&policy).unwrap();
        let manifests: Vec<Manifest> = guests.iter().map(|text| Manifest::parse(text).unwrap()).collect();
        Self { _place: None, world: World::new(&base, &manifests), policy }
    }

    pub fn base(&self) -> &Path {
        &self.world.base
    }

    pub fn guest(&self, number: usize) -> &Path {
        &self.world.guests[number]
    }

    pub fn command<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vunify"));
        command.env("VSERVERS", self.base()).env_remove("RUST_BACKTRACE").arg("--policy").arg(&self.policy);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn run<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Ran {
        let output = self.command(arguments).output().unwrap();
        Ran {
            code: output.status.code().expect("not killed"),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    pub fn unify(&self) {
        self.run(&["--noflags", "g0", "g1"]).expect(0);
    }

    /// All there is, with inode numbers.
    pub fn state(&self) -> Snapshot {
        Snapshot::take(self.base()).unwrap()
    }

    /// Runs a command that is to fail with this code, in one message that has these words in it, and to
    /// change nothing.
    #[track_caller]
    pub fn refuses<A: AsRef<OsStr>>(&self, arguments: &[A], code: i32, words: &[&str]) {
        let before = self.state();
        let ran = self.run(arguments);
        ran.expect(code);
        assert_eq!(ran.out, "");
        ran.has_one_message(words);
        assert_eq!(changes(&before, &self.state()), [""; 0]);
    }
}

#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    #[track_caller]
    pub fn expect(&self, code: i32) -> &Self {
        assert_eq!(self.code, code, "{}{}", self.out, self.err);
        self
    }

    #[track_caller]
    pub fn has_one_message(&self, words: &[&str]) {
        assert_eq!(self.err.lines().count(), 1, "{}", self.err);
        assert!(self.err.starts_with("vunify: "), "{}", self.err);
        for word in words {
            assert!(self.err.contains(word), "no `{word}` in: {}", self.err);
        }
    }

    /// The lines of `--json`, which end with the one summary.
    #[track_caller]
    pub fn json(&self) -> Vec<Value> {
        let lines: Vec<Value> = self.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let last = lines.last().expect("a summary");
        assert_eq!(last["type"], "summary", "{last}");
        assert_eq!(last["exit"], self.code, "{last}");
        assert_eq!(lines.iter().filter(|line| line["type"] == "summary").count(), 1);
        assert!(lines.iter().all(|line| line["version"].is_u64()), "{lines:?}");
        lines
    }
}

/// What changed, apart from who holds the store and how the databases in it are shared between processes.
pub fn changes(before: &Snapshot, after: &Snapshot) -> Vec<String> {
    let of_no_account = |line: &str| {
        let (path, what) = line.split_once(": ").unwrap();
        path == ".store/lock"
            || path.ends_with(".db-shm")
            || path.ends_with(".db-wal")
            || (path == ".store" && what.starts_with("mtime"))
    };
    let mut lines = before.diff_with(after, Compare { inodes: true, flags: true, links: true });
    lines.retain(|line| !of_no_account(line));
    lines
}
