//! `format.toml`: which store this is and who may use it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The format this crate writes.
const VERSION: u32 = 1;

/// Largest `format.toml` that is read, in bytes.
pub(crate) const MAX_FORMAT: u64 = 64 * 1024;

/// Which metadata makes files different.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IdentityPolicy {
    /// All that a hard link shares.
    Full,
    /// All but the modification time, which the journal keeps so that undo gives it back.
    WithoutMtime,
}

/// The content of `format.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Format {
    /// Layout version.
    pub version: u32,
    /// Hash function of ids: `blake3`.
    pub hash: String,
    /// What is part of identity.
    pub identity: IdentityPolicy,
    /// Features that old tools may ignore.
    #[serde(default)]
    pub compat: Vec<String>,
    /// Features that old tools may ignore when they only read.
    #[serde(default)]
    pub ro_compat: Vec<String>,
    /// Features without which the store cannot be understood.
    #[serde(default)]
    pub incompat: Vec<String>,
}

impl Format {
    /// The format of a new store.
    pub fn new(identity: IdentityPolicy) -> Self {
        Self {
            version: VERSION,
            hash: "blake3".into(),
            identity,
            compat: vec![],
            ro_compat: vec![],
            incompat: vec![],
        }
    }

    /// Reads `format.toml` and refuses what is not understood. `store` is for messages.
    pub(crate) fn parse(text: &[u8], store: &Path, writing: bool) -> Result<Self> {
        let damaged = |why: String| Error::Damaged { path: store.join("format.toml"), why };
        let newer = |what: String| Error::Newer { path: store.to_path_buf(), what };
        let text = std::str::from_utf8(text).map_err(|error| damaged(error.to_string()))?;
        // The version is looked at alone first: a later format may have other fields.
        let table: toml::Table =
            toml::from_str(text).map_err(|error| damaged(error.message().to_string()))?;
        match table.get("version").and_then(toml::Value::as_integer) {
            Some(version) if version == i64::from(VERSION) => {}
            Some(version) if version > i64::from(VERSION) => return Err(newer(format!("version {version}"))),
            _ => return Err(damaged("no version".into())),
        }
        let format: Self = toml::from_str(text).map_err(|error| damaged(error.message().to_string()))?;
        if format.hash != "blake3" {
            return Err(newer(format!("hash {}", format.hash)));
        }
        if let Some(feature) = format.incompat.first() {
            return Err(newer(format!("feature {feature}")));
        }
        match format.ro_compat.first() {
            Some(feature) if writing => Err(newer(format!("feature {feature}, which allows reading only"))),
            _ => Ok(format),
        }
    }

    pub(crate) fn to_text(&self) -> String {
        toml::to_string(self).expect("a struct of strings and numbers is always TOML")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, writing: bool) -> Result<Format> {
        Format::parse(text.as_bytes(), Path::new("/store"), writing)
    }

    #[test]
    fn own_format_round_trips() {
        let format = Format::new(IdentityPolicy::WithoutMtime);
        assert_eq!(parse(&format.to_text(), true).unwrap(), format);
    }

    #[test]
    fn later_formats_are_refused_by_what_they_need() {
        let base = Format::new(IdentityPolicy::Full).to_text();
        let with = |from: &str, to: &str| base.replace(from, to);
        assert!(matches!(parse("version = 2\nnew = 1", false), Err(Error::Newer { .. })));
        assert!(matches!(
            parse(&with("incompat = []", "incompat = [\"x\"]"), false),
            Err(Error::Newer { .. })
        ));
        let read_only = with("ro-compat = []", "ro-compat = [\"x\"]");
        assert!(parse(&read_only, false).is_ok());
        assert!(matches!(parse(&read_only, true), Err(Error::Newer { .. })));
        assert!(parse(&base.replacen("compat = []", "compat = [\"x\"]", 1), true).is_ok());
        assert!(matches!(parse("", true), Err(Error::Damaged { .. })));
        assert!(matches!(parse("version = \"one\"", true), Err(Error::Damaged { .. })));
    }
}
