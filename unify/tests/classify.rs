//! Which files may be shared, by the built-in policy and by rules.

#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use kernel::{Kind, Stat, Time};
use proptest::prelude::*;
use unify::classify::{Class, Reason, WRITTEN_IN_PLACE, explain};
use unify::packages::{Owner, Packages, Role};
use unify::policy::Policy;

fn stat() -> Stat {
    let time = Time::default();
    Stat {
        dev: 1,
        ino: 2,
        mode: 0o644,
        kind: Kind::File,
        uid: 0,
        gid: 0,
        nlink: 1,
        size: 100,
        blocks: 8,
        mtime: time,
        ctime: time,
        immutable: false,
        verity: false,
    }
}

/// A guest with one package, whose files' owners the tests borrow.
fn packages() -> Packages {
    let guest = tempfile::tempdir().unwrap();
    let dir = guest.path().join("var/lib/pacman/local/bash-1");
    #[allow(clippy::disallowed_methods)] // a guest of the test's own
    {
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("desc"), "%NAME%\nbash\n\n%VERSION%\n1\n").unwrap();
        let files =
            "%FILES%\nusr/bin/bash\nvar/lib/bash\netc/profile\netc/bashrc\n\n%BACKUP%\netc/bashrc\t0\n";
        std::fs::write(dir.join("files"), files).unwrap();
    }
    Packages::read(&kernel::Dir::open_host(guest.path()).unwrap())
}

#[allow(clippy::unnecessary_wraps)] // what classify takes
fn owner(role: Role) -> Option<Owner> {
    let owner = packages().in_dir(b"usr/bin").owner(b"bash").unwrap();
    Some(Owner { role, ..owner })
}

fn split(path: &str) -> (&[u8], &[u8]) {
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    (dir.as_bytes(), name.as_bytes())
}

fn class(policy: &Policy, path: &str, owner: Option<Owner>) -> String {
    let (dir, name) = split(path);
    name_of(policy.in_dir(dir).classify(name, &stat(), owner))
}

fn name_of(class: Class) -> String {
    match class {
        Class::Candidate => "shared".into(),
        Class::Private(reason) => reason.name().into(),
    }
}

/// A policy of rules written `+pattern`, `-pattern`, or `!pattern` for one that shares config.
fn policy(rules: &[&str]) -> Policy {
    let mut text = "version = 1\n".to_string();
    for rule in rules {
        let (sign, path) = rule.split_at(1);
        let config = if sign == "!" { "config = true\n" } else { "" };
        writeln!(text, "[[rule]]\npaths = ['{path}']\nshare = {}\n{config}why = 'w'", sign != "-").unwrap();
    }
    let mut policy = Policy::default();
    policy.add(&text, Path::new("/etc/vservers/unify.toml")).unwrap();
    policy
}

#[test]
fn the_built_in_policy() {
    let policy = Policy::default();
    for (path, unowned, content) in [
        ("usr/bin/x", "shared", "shared"),
        ("bin/x", "shared", "shared"),
        ("lib32/a/b/x", "shared", "shared"),
        ("opt/app/x", "shared", "shared"),
        ("boot/vmlinuz", "shared", "shared"),
        ("usr/x", "shared", "shared"),
        ("x", "unowned", "shared"),
        ("user/x", "unowned", "shared"),
        ("usrlocal", "unowned", "shared"),
        ("etc/x", "unowned-config", "shared"),
        ("etc/a/x", "unowned-config", "shared"),
        ("etcetera/x", "unowned", "shared"),
        ("var/lib/x", "unowned", "shared"),
        ("home/u/x", "unowned", "shared"),
        ("root/x", "unowned", "shared"),
        ("srv/x", "unowned", "shared"),
        ("tmp/x", "unowned", "shared"),
        ("run/x", "unowned", "shared"),
        ("dev/x", "unowned", "shared"),
        ("proc/x", "unowned", "shared"),
        ("sys/x", "unowned", "shared"),
        ("usr/lib/sysimage/rpm/rpmdb.sqlite", "written-in-place", "shared"),
        ("usr/lib/sysimages/x", "shared", "shared"),
        ("lib/apk/db/installed", "written-in-place", "shared"),
        ("usr/lib/locale/locale-archive", "written-in-place", "shared"),
        ("usr/lib/locale/other", "shared", "shared"),
        ("boot/grub/grubenv", "written-in-place", "shared"),
        ("usr/local/etc/x", "written-in-place", "shared"),
    ] {
        assert_eq!(class(&policy, path, None), unowned, "{path}");
        assert_eq!(class(&policy, path, owner(Role::Content)), content, "{path}");
        assert_eq!(class(&policy, path, owner(Role::Config)), "config", "{path}");
        assert_eq!(class(&policy, path, owner(Role::Generated)), "generated", "{path}");
    }
    for (place, _) in WRITTEN_IN_PLACE {
        assert_eq!(class(&policy, place, None), "written-in-place", "{place}");
    }
}

#[test]
fn what_a_file_is_comes_before_where_it_is() {
    let decide = |policy: &Policy, change: fn(&mut Stat)| {
        let mut stat = stat();
        change(&mut stat);
        name_of(policy.in_dir(b"usr/bin").classify(b"x", &stat, None))
    };
    let rules = policy(&["!/**"]);
    for policy in [&Policy::default(), &rules] {
        assert_eq!(decide(policy, |stat| stat.size = 0), "empty");
        assert_eq!(decide(policy, |stat| stat.mode = 0o4755), "setid");
        assert_eq!(decide(policy, |stat| stat.mode = 0o2755), "setid");
        assert_eq!(decide(policy, |stat| stat.mode = 0o1755), "shared");
        for kind in
            [Kind::Symlink, Kind::Fifo, Kind::Socket, Kind::CharDevice, Kind::Directory, Kind::Unknown]
        {
            let stat = Stat { kind, ..stat() };
            assert_eq!(name_of(policy.in_dir(b"usr").classify(b"x", &stat, None)), "not-regular");
        }
    }
    let mut options = Policy::default();
    options.add("version = 1\n[options]\nsetid = true\nmin-size = 101", Path::new("p")).unwrap();
    assert_eq!(decide(&options, |stat| stat.mode = 0o4755), "too-small");
    assert_eq!(decide(&options, |stat| (stat.mode, stat.size) = (0o4755, 101)), "shared");
    assert_eq!(decide(&options, |stat| stat.size = (64 << 30) + 1), "too-large");
    options.add("version = 1\n[options]\nmax-size = 4096", Path::new("q")).unwrap();
    assert_eq!(decide(&options, |stat| stat.size = 4096), "shared");
    assert_eq!(decide(&options, |stat| stat.size = 4097), "too-large");
}

#[test]
fn the_last_match_wins() {
    let rules = policy(&[
        "-/usr/**",
        "+/usr/share/**",
        "-/usr/share/doc/*",
        "+/usr/share/doc/keep",
        "+/srv/*/lib/**",
    ]);
    for (path, wanted) in [
        ("usr/bin/x", "rule"),
        ("usr/share/x", "shared"),
        ("usr/share/doc/x", "rule"),
        ("usr/share/doc/keep", "shared"),
        ("usr/share/doc/deep/x", "shared"), // `*` does not cross
        ("srv/a/lib/x", "shared"),
        ("srv/a/lib/b/x", "shared"),
        ("srv/a/b/lib/x", "unowned"),
        ("opt/x", "shared"),
    ] {
        assert_eq!(class(&rules, path, None), wanted, "{path}");
    }
}

#[test]
fn config_is_shared_only_by_a_rule_that_says_so() {
    let rules = policy(&["+/etc/**", "!/etc/ssl/**", "+/etc/ssl/private/**"]);
    assert_eq!(class(&rules, "etc/x", None), "unowned-config");
    assert_eq!(class(&rules, "etc/x", owner(Role::Config)), "config");
    assert_eq!(class(&rules, "etc/x", owner(Role::Content)), "shared");
    assert_eq!(class(&rules, "etc/ssl/x", None), "shared");
    assert_eq!(class(&rules, "etc/ssl/x", owner(Role::Config)), "shared");
    assert_eq!(class(&rules, "etc/ssl/private/x", owner(Role::Config)), "config");
    assert_eq!(class(&policy(&["+/var/**"]), "var/x", owner(Role::Generated)), "shared");
    assert_eq!(class(&policy(&["+/usr/lib/sysimage/**"]), "usr/lib/sysimage/x", None), "shared");
}

#[test]
fn names_are_bytes() {
    let rules = policy(&["-/usr/?/*.o", r"-/usr/\*", "-/**/core"]);
    let decide = |dir: &[u8], name: &[u8]| name_of(rules.in_dir(dir).classify(name, &stat(), None));
    assert_eq!(decide(b"usr/\xff", b"\xfe\n.o"), "rule");
    assert_eq!(decide(b"usr/\xff\xff", b"\xfe.o"), "shared");
    assert_eq!(decide(b"usr", b"*"), "rule");
    assert_eq!(decide(b"usr", b"x"), "shared");
    assert_eq!(decide(b"usr/a/b\xff", b"core"), "rule");
    assert_eq!(decide(b"", b"core"), "rule");
    assert_eq!(decide(b"usr", b"core.x"), "shared");
}

#[test]
fn reasons_are_explained_with_names() {
    let packages = packages();
    let rules = policy(&["-/opt/**", "+/etc/**", "+/srv/**"]);
    let say = |packages: &Packages, path: &str| {
        let (dir, name) = split(path);
        explain(&rules, packages, dir, name, &stat()).1
    };
    let rule = |number: u32| format!("rule {number} (w) in /etc/vservers/unify.toml");
    for (path, wanted) in [
        ("usr/bin/bash", "may be shared: part of package bash".into()),
        ("usr/bin/x", "may be shared: in one of the system's trees".into()),
        ("srv/x", format!("may be shared by {}", rule(3))),
        ("opt/x", format!("excluded by {}", rule(1))),
        (
            "etc/bashrc",
            format!("a config file of package bash; {} would share it with config = true", rule(2)),
        ),
        ("var/x", "not owned by a package and outside the system's trees".into()),
    ] {
        assert_eq!(say(&packages, path), wanted, "{path}");
    }
    let none = say(&Packages::none(), "var/x");
    assert_eq!(none, "outside the system's trees, and the guest has no package database that was read");
}

#[test]
fn a_class_is_small_and_its_names_differ() {
    assert!(size_of::<Class>() <= 2 && size_of::<Reason>() == 1);
    let names: std::collections::BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
    let texts: std::collections::BTreeSet<_> = Reason::ALL.iter().map(ToString::to_string).collect();
    assert_eq!((names.len(), texts.len()), (Reason::ALL.len(), Reason::ALL.len()));
}

/// What the documentation promises, said the slow way: each pattern against the whole path, last rule first.
fn model(rules: &[(bool, String)], path: &str) -> Option<bool> {
    let path = Path::new("/").join(path);
    let matches = |pattern: &str| {
        let glob = globset::GlobBuilder::new(pattern).literal_separator(true).build().unwrap();
        glob.compile_matcher().is_match(std::ffi::OsStr::from_bytes(path.as_os_str().as_bytes()))
    };
    rules.iter().rev().find(|(_, pattern)| matches(pattern)).map(|(share, _)| *share)
}

proptest! {
    /// Settling rules by directory changes no answer.
    #[test]
    fn directories_agree_with_whole_paths(
        rules in prop::collection::vec((any::<bool>(), "(/(a|b|ab|\\*|\\*\\*|\\?|a\\*|\\{a,b\\})){1,4}"), 0..6),
        path in "(a|b|ab)(/(a|b|ab)){0,4}",
    ) {
        let text: Vec<String> =
            rules.iter().map(|(share, path)| format!("{}{path}", if *share { '!' } else { '-' })).collect();
        let policy = policy(&text.iter().map(String::as_str).collect::<Vec<_>>());
        let wanted = match model(&rules, &path) {
            Some(true) => "shared",
            Some(false) => "rule",
            None => "unowned",
        };
        prop_assert_eq!(class(&policy, &path, None), wanted);
    }
}
