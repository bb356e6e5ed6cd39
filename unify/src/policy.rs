//! What the administrator wants shared.
//!
//! A policy is a few options and a list of rules, from `/etc/vservers/unify.toml` and then, for one guest,
//! `/etc/vservers/NAME.unify.toml`; both on the host, never inside a guest:
//!
//! ```toml
//! version = 1
//!
//! [options]
//! setid = false          # never share setuid and setgid files
//! mtime = "keep"         # or "relax": files that differ in their time alone become one
//! min-size = 0           # bytes; smaller files stay private
//! max-size = 68719476736 # bytes; larger files stay private, and are not read
//!
//! [[rule]]
//! paths = ["/opt/*/data/**"]
//! share = false
//! why = "written in place"
//!
//! [[rule]]
//! paths = ["/etc/ssl/certs/**"]
//! share = true
//! config = true          # this rule may share config files too
//! ```
//!
//! Of all rules that match a file the last decides, so a rule below an exclude can share part of it again.
//! `*` and `?` stop at `/`, `**` stands for any number of directories; `[…]`, `{a,b}` and `\` work as in a
//! shell. Patterns match files, so all below a directory is `/dir/**`. Names are bytes; what is not UTF-8
//! is reached by wildcards.
//!
//! What no rule matches is decided by the built-in policy (see [`mod@crate::classify`]). No rule shares
//! empty, setuid or setgid files, and none shares config (what a package calls config, and whatever in
//! /etc no package owns) unless it says `config = true` itself.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use globset::{GlobBuilder, GlobSet};
use serde::Deserialize;
use toml::Spanned;

/// Where the host keeps policies.
pub const DIRECTORY: &str = "/etc/vservers";

/// Bytes of a policy file, and patterns in it: nobody writes more by hand.
const BYTES: u64 = 1 << 20;
const PATTERNS: usize = 4096;

/// Why a policy can't be used. Nothing is unified by half a policy.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The file is there and can't be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The policy file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file says something a policy can't say.
    #[error("{}:{line}: {what}", path.display())]
    Invalid {
        /// The policy file.
        path: PathBuf,
        /// Line, counted from 1.
        line: usize,
        /// What is wrong, and how it would be right.
        what: String,
    },
}

/// Whether the modification time is part of a file's identity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mtime {
    /// Files with different times stay apart.
    #[default]
    Keep,
    /// They become one; the run records each name's time, so that undo restores it.
    Relax,
}

/// What is not decided file by file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Share setuid and setgid files.
    pub setid: bool,
    /// Whether times must be equal.
    pub mtime: Mtime,
    /// Files below this many bytes stay private.
    pub min_size: u64,
    /// Files above this many bytes stay private. A guest that can clone extents makes files of any size out of
    /// nothing; this bounds what it can make a run read.
    pub max_size: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { setid: false, mtime: Mtime::default(), min_size: 0, max_size: 64 << 30 }
    }
}

/// A policy ready for use.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    pub(crate) options: Options,
    pub(crate) rules: Vec<Rule>,
    texts: blake3::Hasher,
}

/// One `[[rule]]`.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) file: Arc<Path>,
    /// In its file, from 1.
    pub(crate) number: usize,
    pub(crate) why: Option<String>,
    pub(crate) share: bool,
    pub(crate) config: bool,
    pub(crate) patterns: Vec<Pattern>,
}

/// One pattern of a rule.
#[derive(Clone, Debug)]
pub(crate) struct Pattern {
    /// The directory, with its final slash, below which everything lies that can match.
    pub(crate) below: Box<[u8]>,
    /// `None` for `DIR/**`: everything below matches.
    pub(crate) glob: Option<GlobSet>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFile {
    version: Spanned<u64>,
    #[serde(default)]
    options: OptionsTable,
    #[serde(default, rename = "rule")]
    rules: Vec<Spanned<RuleTable>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct OptionsTable {
    setid: Option<bool>,
    mtime: Option<Mtime>,
    min_size: Option<u64>,
    max_size: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleTable {
    paths: Vec<Spanned<String>>,
    share: bool,
    #[serde(default)]
    config: bool,
    why: Option<String>,
}

impl Policy {
    /// Reads the host's policy in `directory`, and a guest's own there. Files that don't exist say nothing.
    /// `guest` is a guest's name; one given by path has no file of its own.
    pub fn load(directory: &Path, guest: Option<&str>) -> Result<Self, PolicyError> {
        let mut policy = Self::default();
        if directory != Path::new(DIRECTORY) {
            // Whoever names another means one that is there.
            std::fs::read_dir(directory)
                .map_err(|source| PolicyError::Read { path: directory.into(), source })?;
        }
        policy.add_file(&directory.join("unify.toml"))?;
        if let Some(guest) = guest.filter(|guest| !guest.contains('/')) {
            policy.add_file(&directory.join(format!("{guest}.unify.toml")))?;
        }
        Ok(policy)
    }

    fn add_file(&mut self, path: &Path) -> Result<(), PolicyError> {
        // A link that leads nowhere is no policy that isn't there.
        if path.symlink_metadata().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
            return Ok(());
        }
        let text = read(path).map_err(|source| PolicyError::Read { path: path.into(), source })?;
        self.add(&text, path)
    }

    /// Adds what `text` says: its options replace earlier ones, its rules come after earlier ones. `file`
    /// is named in errors and explanations.
    pub fn add(&mut self, text: &str, file: &Path) -> Result<(), PolicyError> {
        let parsed = parse(text, file).map_err(|(at, what)| {
            let line = text.get(..at).unwrap_or(text).matches('\n').count() + 1;
            PolicyError::Invalid { path: file.into(), line, what }
        })?;
        let (options, rules) = parsed;
        self.options.setid = options.setid.unwrap_or(self.options.setid);
        self.options.mtime = options.mtime.unwrap_or(self.options.mtime);
        self.options.min_size = options.min_size.unwrap_or(self.options.min_size);
        self.options.max_size = options.max_size.unwrap_or(self.options.max_size);
        self.rules.extend(rules);
        self.texts.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
        Ok(())
    }

    /// The options in force.
    pub fn options(&self) -> Options {
        self.options
    }

    /// A digest of all that was added: while it is the same, files are classified as before.
    pub fn digest(&self) -> u64 {
        let digest = self.texts.finalize();
        digest.as_bytes().first_chunk().map_or(0, |head| u64::from_le_bytes(*head))
    }
}

/// Not of pipes and devices, which may never end.
fn read(path: &Path) -> std::io::Result<String> {
    if !path.metadata()?.is_file() {
        return Err(std::io::Error::other("not a regular file"));
    }
    let mut text = String::new();
    std::fs::File::open(path)?.take(BYTES + 1).read_to_string(&mut text)?;
    Ok(text)
}

/// What is wrong, and at which byte of the text.
type Invalid = (usize, String);

fn parse(text: &str, file: &Path) -> Result<(OptionsTable, Vec<Rule>), Invalid> {
    if text.len() as u64 > BYTES {
        return Err((0, format!("longer than {BYTES} bytes; wildcards say more with less")));
    }
    let parsed: PolicyFile = toml::from_str(text)
        .map_err(|error| (error.span().map_or(0, |span| span.start), plainly(error.message())))?;
    if *parsed.version.get_ref() != 1 {
        let what =
            "this program reads policies of `version = 1`; update it, or write the policy for version 1";
        return Err((parsed.version.span().start, what.into()));
    }
    let file: Arc<Path> = file.into();
    let count: usize = parsed.rules.iter().map(|rule| rule.get_ref().paths.len()).sum();
    if count > PATTERNS {
        return Err((
            0,
            format!("{count} patterns, where {PATTERNS} are allowed; wildcards say more with less"),
        ));
    }
    let rules = parsed.rules.into_iter().enumerate();
    let rules = rules.map(|(at, rule)| compile(rule, at + 1, &file)).collect::<Result<_, _>>()?;
    Ok((parsed.options, rules))
}

/// The parser's message, with what to write instead of the names of its types.
fn plainly(message: &str) -> String {
    let cures = [
        ("missing field `version`", "missing field `version`; write version = 1 in the first line"),
        ("missing field `share`", "missing field `share`; write share = true or share = false"),
        ("missing field `paths`", "missing field `paths`; write paths = [\"/some/dir/**\"]"),
        ("expected u64", "expected a whole number, such as 4096, without quotes"),
        ("expected a boolean", "expected true or false, without quotes"),
        ("expected a sequence", "expected a list, such as [\"/some/dir/**\"], and [[rule]] for a rule"),
    ];
    let message = message.trim_end().replace('\n', "; ");
    cures.iter().fold(message, |message, (said, meant)| message.replace(said, meant))
}

fn compile(rule: Spanned<RuleTable>, number: usize, file: &Arc<Path>) -> Result<Rule, Invalid> {
    let start = rule.span().start;
    let RuleTable { paths, share, config, why } = rule.into_inner();
    if paths.is_empty() {
        return Err((start, "a rule without paths; write paths = [\"/some/dir/**\"]".into()));
    }
    if config && !share {
        let what = "config = true belongs to share = true; config files are private without any rule";
        return Err((start, what.into()));
    }
    let patterns = paths.iter().map(|path| {
        Pattern::new(path.get_ref())
            .map_err(|what| (path.span().start, format!("{:?} {what}", path.get_ref())))
    });
    Ok(Rule {
        file: Arc::clone(file),
        number,
        why,
        share,
        config,
        patterns: patterns.collect::<Result<_, _>>()?,
    })
}

impl Pattern {
    fn new(pattern: &str) -> Result<Self, String> {
        if !pattern.starts_with('/') {
            return Err("does not start at the guest's root; write /… or /**/…".into());
        }
        if pattern.ends_with('/') {
            return Err(format!("names a directory; for all files below it write \"{pattern}**\""));
        }
        if pattern.split('/').skip(1).any(|part| matches!(part, "" | "." | "..")) {
            return Err("has an empty component, `.` or `..`, which no file's path has".into());
        }
        if pattern.split('/').any(|part| part != "**" && part.contains("**")) {
            return Err("has `**` beside other characters; it stands alone between slashes".into());
        }
        let literal = pattern.find(['*', '?', '[', '{', '\\']).unwrap_or(pattern.len());
        let cut = pattern[..literal].rfind('/').map_or(1, |slash| slash + 1);
        let (below, rest) = pattern.split_at(cut);
        let glob = if rest == "**" { None } else { Some(compile_glob(pattern)?) };
        Ok(Self { below: below.as_bytes().into(), glob })
    }
}

/// A set of one: unlike a matcher, it refuses a pattern that grows too large instead of panicking.
fn compile_glob(pattern: &str) -> Result<GlobSet, String> {
    let glob = GlobBuilder::new(pattern).literal_separator(true).backslash_escape(true).build();
    // The kind says what; the whole message repeats the pattern.
    let say = |error: globset::Error| format!("is no valid pattern: {}", error.kind());
    GlobSet::builder().add(glob.map_err(say)?).build().map_err(say)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Policy::default().add(text, Path::new("/etc/vservers/unify.toml")).unwrap_err().to_string()
    }

    #[test]
    fn errors_name_the_line_and_the_cure() {
        let starts = |text: &str, start: &str| {
            let message = error(text);
            assert!(message.starts_with(&format!("/etc/vservers/unify.toml:{start}")), "{message}");
            assert!(!message.contains('\n'), "{message}");
        };
        starts("", "1: missing field `version`; write version = 1");
        starts("version = \"1\"", "1: invalid type: string \"1\", expected a whole number");
        starts("version = 1\n[[rule]]\nshare = true", "2: missing field `paths`; write paths = [");
        starts("version = 1\n[[rule]]\npaths = [\"/x\"]", "2: missing field `share`; write share = true");
        let rule = "version = 1\n[[rule]]\nshare = false\npaths = \"/x\"";
        starts(rule, "4: invalid type: string \"/x\", expected a list, such as [\"/some/dir/**\"]");
        starts("version = 1\n[rule]\nshare = false", "2: invalid type: map, expected a list");
        starts("version = 2", "1: this program reads policies of `version = 1`; update it");
        starts("version = 1\n\n[option]\n", "3: unknown field `option`, expected one of");
        starts(
            "version = 1\n[options]\nmtime = \"some\"",
            "3: unknown variant `some`, expected `keep` or `relax`",
        );
        starts("version = 1\n[options]\nmin-size = -1", "3: invalid value");
        starts("version = 1\n[[rule]]\nshare = true\npaths = []", "2: a rule without paths");
        let rule =
            |path: &str| format!("version = 1\n[[rule]]\nshare = false\npaths = [\n\"/ok\",\n\"{path}\"]");
        starts(&rule("etc/x"), "6: \"etc/x\" does not start at the guest's root");
        starts(&rule("/var/www/"), "6: \"/var/www/\" names a directory; for all files below it write");
        starts(&rule("/a/../b"), "6: \"/a/../b\" has an empty component");
        starts(&rule("/a**"), "6: \"/a**\" has `**` beside other characters");
        starts(&rule("/a[x"), "6: \"/a[x\" is no valid pattern");
        starts(
            "version = 1\n[[rule]]\npaths = [\"/x\"]\nshare = false\nconfig = true",
            "2: config = true belongs",
        );
    }

    /// The parser lists the keys it knows, those of each table in turn.
    #[test]
    fn the_man_page_has_each_key() {
        let page = include_str!("../../packaging/vservers-policy.5").replace("\\-", "-");
        for table in ["", "[options]", "[[rule]]"] {
            let unknown = error(&format!("version = 1\n{table}\nx = 1"));
            let keys: Vec<&str> = unknown.split('`').skip(3).step_by(2).collect();
            assert!(keys.len() > 2, "{unknown}");
            for key in keys {
                assert!(page.contains(key), "{key}");
            }
        }
        let example = page.split_once(".SH EXAMPLE\n.nf\n").unwrap().1.split_once(".fi").unwrap().0;
        Policy::default().add(example, Path::new("unify.toml")).unwrap();
    }

    #[test]
    fn a_guests_options_replace_the_hosts_one_by_one() {
        let mut policy = Policy::default();
        let empty = policy.digest();
        policy.add("version = 1\n[options]\nsetid = true\nmin-size = 4096", Path::new("host")).unwrap();
        let host = policy.digest();
        policy.add("version = 1\n[options]\nmtime = \"relax\"\nsetid = false", Path::new("guest")).unwrap();
        assert_eq!(policy.options(), Options { mtime: Mtime::Relax, min_size: 4096, ..Options::default() });
        assert!(empty != host && host != policy.digest());
    }

    #[test]
    #[allow(clippy::disallowed_methods)] // files of the host, in a directory of the test
    fn files_that_are_not_there_say_nothing() {
        let place = tempfile::tempdir().unwrap();
        assert_eq!(Policy::load(place.path(), Some("web1")).unwrap().digest(), Policy::default().digest());
        std::fs::write(place.path().join("unify.toml"), "version = 1\n[options]\nmin-size = 1").unwrap();
        std::fs::write(place.path().join("web1.unify.toml"), "version = 1\n[options]\nmin-size = 2").unwrap();
        assert_eq!(Policy::load(place.path(), None).unwrap().options().min_size, 1);
        assert_eq!(Policy::load(place.path(), Some("web1")).unwrap().options().min_size, 2);
        assert_eq!(Policy::load(place.path(), Some("../web1")).unwrap().options().min_size, 1);
        std::fs::write(place.path().join("unify.toml"), b"\xff").unwrap();
        assert!(Policy::load(place.path(), None).unwrap_err().to_string().contains("unify.toml: "));
    }
}
