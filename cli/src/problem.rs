//! What went wrong, where, and what to do about it.

use std::ffi::OsStr;
use std::fmt;

use serde::Serialize;

use crate::text::defuse;
use crate::{Exit, PathText};

/// A problem in the user's words. A crate's error enum turns into this at the edge, in the binary.
///
/// Shown as `COMMAND: what: where: cure`; in JSON as an event `error` or `warning` with `message`, `path`
/// and `cure`.
#[derive(Clone, Debug, Serialize)]
pub struct Problem {
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<PathText<'static>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cure: Option<String>,
    #[serde(skip)]
    exit: Exit,
}

impl Problem {
    /// What went wrong, without a final period. The exit code is [`Exit::Partly`] unless told otherwise.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), path: None, cure: None, exit: Exit::Partly }
    }

    /// Where.
    #[must_use]
    pub fn at<P: AsRef<OsStr> + ?Sized>(mut self, path: &P) -> Self {
        self.path = Some(PathText::new(path).into_owned());
        self
    }

    /// What the user can do about it.
    #[must_use]
    pub fn cure(mut self, cure: impl Into<String>) -> Self {
        self.cure = Some(cure.into());
        self
    }

    /// How a command that ends because of it ends.
    #[must_use]
    pub fn exit(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }

    /// How a command that ends because of it ends.
    pub fn exit_code(&self) -> Exit {
        self.exit
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&defuse(&self.message, &[]))?;
        if let Some(path) = &self.path {
            write!(out, ": {path}")?;
        }
        match &self.cure {
            Some(cure) => write!(out, ": {}", defuse(cure, &[])),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Problem {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_where_cure() {
        let problem = Problem::new("not permitted").at("/vservers/a\nb").cure("run as root");
        assert_eq!(problem.to_string(), r"not permitted: /vservers/a\nb: run as root");
        assert_eq!(problem.exit_code(), Exit::Partly);
        let json = serde_json::to_string(&problem).unwrap();
        assert_eq!(json, r#"{"message":"not permitted","path":"/vservers/a\nb","cure":"run as root"}"#);
        assert_eq!(Problem::new("x").exit(Exit::Busy).exit_code(), Exit::Busy);
    }
}
