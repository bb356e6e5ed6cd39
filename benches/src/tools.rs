//! The tools to compare, read from `tools.toml`.

use std::path::{Path, PathBuf};

use crate::{Context, Result, shell};

/// One tool and how it is run.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// Name in the tables.
    pub name: String,
    /// Shell command of a run; `{guests}` and `{work}` are filled in.
    run: String,
    /// The command of a run over unchanged guests, if it is another.
    again: Option<String>,
    /// The command that takes it all back, if there is one.
    undo: Option<String>,
    /// Shell command that prints the version, and fails where the tool is missing.
    version: String,
    /// A version that must not be measured.
    refuse: Option<String>,
}

#[derive(serde::Deserialize)]
struct List {
    tool: Vec<Tool>,
}

/// Reads a list of tools.
pub fn load(path: &Path) -> Result<Vec<Tool>> {
    let text = std::fs::read_to_string(path).context(format!("reading {}", path.display()))?;
    Ok(toml::from_str::<List>(&text)?.tool)
}

impl Tool {
    /// The version installed, or why the tool can't be measured.
    pub fn version(&self) -> std::result::Result<String, String> {
        let printed = shell(&self.version).unwrap_or_default();
        let version = printed.lines().next().unwrap_or_default().trim().to_owned();
        match &self.refuse {
            _ if version.is_empty() => Err(format!("{} is not installed", self.name)),
            Some(refused) if version.contains(refused.as_str()) => {
                Err(format!("{version} is not to be compared with; install another release"))
            }
            _ => Ok(version),
        }
    }

    /// The command line of a first run, and of a run over unchanged guests.
    pub fn commands(&self, guests: &[PathBuf], work: &Path) -> (String, String) {
        (fill(&self.run, guests, work), fill(self.again.as_ref().unwrap_or(&self.run), guests, work))
    }

    /// The command line that makes everything private again, of tools that can.
    pub fn undo(&self, guests: &[PathBuf], work: &Path) -> Option<String> {
        self.undo.as_ref().map(|command| fill(command, guests, work))
    }

    /// The command line as it stands in the list, for reports.
    pub fn template(&self) -> &str {
        &self.run
    }
}

fn fill(command: &str, guests: &[PathBuf], work: &Path) -> String {
    let guests: Vec<_> = guests.iter().map(|path| path.display().to_string()).collect();
    command.replace("{guests}", &guests.join(" ")).replace("{work}", &work.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_in_the_repository_is_sound() {
        let tools = load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tools.toml")).unwrap();
        assert_eq!(tools[0].name, "vunify");
        for tool in tools {
            let (first, again) = tool.commands(&["/g/1".into(), "/g/2".into()], Path::new("/w"));
            assert!(first.contains("/g/1 /g/2") && !first.contains('{') && !again.contains('{'), "{first}");
        }
    }

    #[test]
    fn a_missing_and_a_refused_tool_say_so() {
        let tool = |version: &str| Tool {
            name: "x".into(),
            run: String::new(),
            again: None,
            undo: None,
            version: version.into(),
            refuse: Some("2.41".into()),
        };
        assert!(tool("no-such-program --version").version().unwrap_err().contains("not installed"));
        assert!(tool("echo x 2.41").version().unwrap_err().contains("another release"));
        assert_eq!(tool("echo x 2.42").version().unwrap(), "x 2.42");
    }
}
