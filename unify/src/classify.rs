//! Whether a file of a guest may be shared, and why not.
//!
//! A pure function of the file's place, its metadata, its owner and the policy. In order:
//!
//! 1. Only regular, non-empty files; setuid and setgid ones only if the policy's options say so, because
//!    package managers change their mode in place.
//! 2. The last rule of the policy that matches decides, but none shares config unless it says so itself.
//! 3. Without a rule: what a package delivered is shared wherever it lies; its config, and what it
//!    generates while it runs, is not. What no package owns is shared below /usr, /lib*, /bin, /sbin, /opt
//!    and /boot, except for the places in [`WRITTEN_IN_PLACE`]; in /etc it is taken for config; elsewhere it
//!    is data. Without any package database nothing is owned.
//! 4. Files below the policy's `min-size` are not worth a link.
//!
//! Everything about the directory is settled once in [`Policy::in_dir`]; a file then costs a few
//! comparisons and, unless a rule with wildcards reaches into the directory, no allocation.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;

use kernel::{Kind, Stat};

use crate::packages::{Owner, Packages, Role};
use crate::policy::{Pattern, Policy, Rule};

/// What becomes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// It may be shared.
    Candidate,
    /// It stays the guest's own.
    Private(Reason),
}

/// Why a file stays private. One byte; [`explain`] adds the package or the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Reason {
    /// No regular file.
    NotRegular,
    /// Size 0.
    Empty,
    /// Setuid or setgid.
    Setid,
    /// Config, says its package.
    Config,
    /// In /etc, and no package's.
    UnownedConfig,
    /// Rewritten while the system runs, says its package.
    Generated,
    /// No package's, and outside the system's trees.
    Unowned,
    /// No package's, and one of [`WRITTEN_IN_PLACE`].
    WrittenInPlace,
    /// A rule of the policy says so.
    Rule,
    /// Below `min-size`.
    TooSmall,
    /// Above `max-size`.
    TooLarge,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 11] = [
        Self::NotRegular,
        Self::Empty,
        Self::Setid,
        Self::Config,
        Self::UnownedConfig,
        Self::Generated,
        Self::Unowned,
        Self::WrittenInPlace,
        Self::Rule,
        Self::TooSmall,
        Self::TooLarge,
    ];

    /// A short name that stays the same from version to version, for JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotRegular => "not-regular",
            Self::Empty => "empty",
            Self::Setid => "setid",
            Self::Config => "config",
            Self::UnownedConfig => "unowned-config",
            Self::Generated => "generated",
            Self::Unowned => "unowned",
            Self::WrittenInPlace => "written-in-place",
            Self::Rule => "rule",
            Self::TooSmall => "too-small",
            Self::TooLarge => "too-large",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::NotRegular => "not a regular file",
            Self::Empty => "empty: a file is often made before it is filled",
            Self::Setid => "setuid or setgid: package managers change its mode in place",
            Self::Config => "a config file of a package",
            Self::UnownedConfig => "in /etc and owned by no package: taken for config",
            Self::Generated => "rewritten while the system runs, says its package",
            Self::Unowned => "not owned by a package and outside the system's trees",
            Self::WrittenInPlace => "not owned by a package and written in place by the system",
            Self::Rule => "excluded by a rule of the policy",
            Self::TooSmall => "smaller than the policy's min-size",
            Self::TooLarge => "larger than the policy's max-size",
        })
    }
}

/// Below the system's trees, files and directories that programs write in place, so that sharing them,
/// unless a package delivered them, would stop those programs; each with the program. A rule can say
/// otherwise.
pub const WRITTEN_IN_PLACE: [(&str, &str); 10] = [
    ("usr/lib/sysimage", "the package manager's database"),
    ("usr/share/rpm", "rpm's database"),
    ("lib/apk", "apk's database"),
    ("usr/lib/apk", "apk's database"),
    ("usr/lib/locale/locale-archive", "localedef"),
    ("usr/local/etc", "the administrator: it is config"),
    ("usr/local/var", "locally installed programs: it is their data"),
    ("boot/grub/grubenv", "the boot loader"),
    ("boot/grub2/grubenv", "the boot loader"),
    ("boot/loader", "the boot loader's tools"),
];

/// What a directory is to the built-in policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Area {
    System,
    Etc,
    Data,
    WrittenInPlace,
}

fn area(dir: &[u8]) -> Area {
    let top = dir.split(|&byte| byte == b'/').next().unwrap_or_default();
    let inside = |place: &str| {
        dir.strip_prefix(place.as_bytes()).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    };
    match top {
        b"etc" => Area::Etc,
        _ if !(matches!(top, b"usr" | b"bin" | b"sbin" | b"opt" | b"boot") || top.starts_with(b"lib")) => {
            Area::Data
        }
        _ if WRITTEN_IN_PLACE.iter().any(|(place, _)| inside(place)) => Area::WrittenInPlace,
        _ => Area::System,
    }
}

/// Whether a file directly in `dir` is itself one of [`WRITTEN_IN_PLACE`].
fn is_listed(dir: &[u8], name: &[u8]) -> bool {
    WRITTEN_IN_PLACE.iter().any(|(place, _)| {
        let rest = place.as_bytes().strip_prefix(dir).and_then(|rest| rest.strip_prefix(b"/"));
        rest == Some(name)
    })
}

/// The policy for the files of one directory.
#[derive(Debug)]
pub struct DirPolicy<'p> {
    policy: &'p Policy,
    area: Area,
    /// Some file in this directory is named in [`WRITTEN_IN_PLACE`].
    listed: bool,
    /// Wildcards that may match a file here, with the number of their rule; the last rule first.
    globs: Vec<(usize, &'p Pattern)>,
    /// The last rule that matches every file here; rules before it don't count.
    whole: Option<usize>,
    /// The directory; with slashes at both ends, and room for a name, if there are globs.
    path: Vec<u8>,
}

impl Policy {
    /// The policy for the files directly in one directory, given by its real path relative to the guest's
    /// root (`usr/bin`; empty for the root).
    pub fn in_dir<'p>(&'p self, dir: &[u8]) -> DirPolicy<'p> {
        let listed = WRITTEN_IN_PLACE.iter().any(|(place, _)| {
            let parent = place.rsplit_once('/').map_or("", |(parent, _)| parent);
            parent.as_bytes() == dir
        });
        let mut found = DirPolicy {
            policy: self,
            area: area(dir),
            listed,
            globs: Vec::new(),
            whole: None,
            path: Vec::new(),
        };
        if listed || !self.rules.is_empty() {
            found.path = if dir.is_empty() { b"/".to_vec() } else { [b"/", dir, b"/"].concat() };
        }
        for (number, rule) in self.rules.iter().enumerate().rev() {
            let mut here = rule.patterns.iter().filter(|pattern| found.path.starts_with(&pattern.below));
            if here.clone().any(|pattern| pattern.glob.is_none()) {
                found.whole = Some(number);
                break;
            }
            found.globs.extend(here.by_ref().map(|pattern| (number, pattern)));
        }
        found
    }
}

impl DirPolicy<'_> {
    /// Decides about one file in the directory. Takes `&mut self` for a buffer only.
    pub fn classify(&mut self, name: &[u8], stat: &Stat, owner: Option<Owner>) -> Class {
        self.decide(name, stat, owner).0
    }

    /// The class, and the rule of the policy that led to it.
    fn decide(&mut self, name: &[u8], stat: &Stat, owner: Option<Owner>) -> (Class, Option<usize>) {
        if let Some(reason) = unfit(stat, self.policy.options.setid) {
            return (Class::Private(reason), None);
        }
        let number = self.rule(name);
        let rule = number.map(|number| &self.policy.rules[number]);
        let reason = self.reason(name, owner, rule);
        let size = match stat.size {
            size if size < self.policy.options.min_size => Some(Reason::TooSmall),
            size if size > self.policy.options.max_size => Some(Reason::TooLarge),
            _ => None,
        };
        (reason.or(size).map_or(Class::Candidate, Class::Private), number)
    }

    /// The last rule that matches.
    fn rule(&mut self, name: &[u8]) -> Option<usize> {
        if self.globs.is_empty() {
            return self.whole;
        }
        let length = self.path.len();
        self.path.extend_from_slice(name);
        let path = OsStr::from_bytes(&self.path);
        let is_match = |pattern: &Pattern| pattern.glob.as_ref().is_some_and(|glob| glob.is_match(path));
        let found = self.globs.iter().find(|(_, pattern)| is_match(pattern)).map(|(number, _)| *number);
        self.path.truncate(length);
        found.or(self.whole)
    }

    fn reason(&self, name: &[u8], owner: Option<Owner>, rule: Option<&Rule>) -> Option<Reason> {
        let config = match owner.map(|owner| owner.role) {
            Some(Role::Config) => Some(Reason::Config),
            None if self.area == Area::Etc => Some(Reason::UnownedConfig),
            _ => None,
        };
        match rule {
            Some(rule) if !rule.share => Some(Reason::Rule),
            Some(rule) if rule.config => None,
            Some(_) => config,
            None => config.or_else(|| self.built_in(name, owner)),
        }
    }

    /// What the built-in policy says of a file that is no config.
    fn built_in(&self, name: &[u8], owner: Option<Owner>) -> Option<Reason> {
        match owner {
            Some(owner) => (owner.role == Role::Generated).then_some(Reason::Generated),
            None if self.area == Area::Data => Some(Reason::Unowned),
            None if self.area == Area::WrittenInPlace || self.is_listed(name) => Some(Reason::WrittenInPlace),
            None => None,
        }
    }

    fn is_listed(&self, name: &[u8]) -> bool {
        let dir = self.path.strip_prefix(b"/").and_then(|dir| dir.strip_suffix(b"/"));
        self.listed && is_listed(dir.unwrap_or_default(), name)
    }
}

/// What no rule can change.
fn unfit(stat: &Stat, setid: bool) -> Option<Reason> {
    match stat {
        _ if stat.kind != Kind::File => Some(Reason::NotRegular),
        _ if stat.size == 0 => Some(Reason::Empty),
        _ if stat.is_setid() && !setid => Some(Reason::Setid),
        _ => None,
    }
}

/// The class of one file and, in words, why: with the package, the rule and its file, and what the user
/// could write to change it. Names are as the guest has them; who prints them escapes them.
pub fn explain(
    policy: &Policy,
    packages: &Packages,
    dir: &[u8],
    name: &[u8],
    stat: &Stat,
) -> (Class, String) {
    let owner = packages.in_dir(dir).owner(name);
    let (class, rule) = policy.in_dir(dir).decide(name, stat, owner);
    let rule = rule.map(|number| &policy.rules[number]);
    let package = owner.map_or("", |owner| &packages.get(owner.package).name);
    let text = match class {
        Class::Candidate => shared(owner.map(|_| package), rule),
        Class::Private(Reason::Config) => format!("a config file of package {package}{}", config_hint(rule)),
        Class::Private(Reason::UnownedConfig) => format!("{}{}", Reason::UnownedConfig, config_hint(rule)),
        Class::Private(Reason::Generated) => {
            format!("rewritten while the system runs, says package {package}")
        }
        Class::Private(Reason::Rule) => {
            rule.map_or_else(String::new, |rule| format!("excluded by {}", named(rule)))
        }
        Class::Private(Reason::Unowned) if !packages.has_database() => {
            "outside the system's trees, and the guest has no package database that was read".into()
        }
        Class::Private(Reason::TooSmall) => {
            format!("{} bytes: smaller than min-size = {}", stat.size, policy.options.min_size)
        }
        Class::Private(Reason::TooLarge) => {
            format!("{} bytes: larger than max-size = {}", stat.size, policy.options.max_size)
        }
        Class::Private(reason) => reason.to_string(),
    };
    (class, text)
}

fn shared(package: Option<&str>, rule: Option<&Rule>) -> String {
    match (rule, package) {
        (Some(rule), _) => format!("may be shared by {}", named(rule)),
        (None, Some(package)) => format!("may be shared: part of package {package}"),
        (None, None) => "may be shared: in one of the system's trees".into(),
    }
}

/// A rule that would have shared a config file does so only when it says so.
fn config_hint(rule: Option<&Rule>) -> String {
    rule.map_or_else(String::new, |rule| format!("; {} would share it with config = true", named(rule)))
}

fn named(rule: &Rule) -> String {
    let why = rule.why.as_ref().map_or_else(String::new, |why| format!(" ({why})"));
    format!("rule {}{why} in {}", rule.number, rule.file.display())
}
