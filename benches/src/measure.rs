//! Commands under the stopwatch.
//!
//! The kernel sums resources over all children a process ever had, so each command gets a parent of its
//! own: the `measure` binary, which runs one command and prints one [`Usage`].

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use kernel::{Dir, Fs, Real};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use crate::{Context, Error, Result};

/// What one command took.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Usage {
    /// Seconds from the start to the end of the command.
    pub run: f64,
    /// Seconds that `syncfs(2)` took after it.
    pub sync: f64,
    /// Seconds of processor time in user space, all threads and subprocesses.
    pub user: f64,
    /// Seconds of processor time in the kernel on the command's behalf.
    pub system: f64,
    /// Largest resident set of any of its processes, in KiB.
    pub rss: u64,
    /// Exit code; -1 if a signal ended it.
    pub status: i32,
}

impl Usage {
    /// Seconds until the result was durable.
    pub fn wall(&self) -> f64 {
        self.run + self.sync
    }
}

/// Runs a shell command in a process of its own; its output goes to `output`, and the file system at
/// `on` is synced inside the measured time.
pub fn measure(command: &str, on: &Path, output: &Path) -> Result<Usage> {
    let wrapper = std::env::current_exe().context("own path")?.with_file_name("measure");
    let what = format!("running {}", wrapper.display());
    let mut child = Command::new(&wrapper);
    let done = child.arg(on).arg(output).arg(command).stderr(Stdio::inherit()).output().context(what)?;
    Ok(serde_json::from_slice(&done.stdout)?)
}

/// The wrapper's side of [`measure`].
pub fn wrapper(command: &str, on: &Path, output: &Path) -> Result<Usage> {
    let dir = Dir::open_host(on).context(format!("opening {}", on.display()))?;
    let out = File::create(output).context(format!("making {}", output.display()))?;
    let err = out.try_clone().context("output")?;
    let mut child = Command::new("sh");
    child.arg("-c").arg(command).stdin(Stdio::null()).stdout(out).stderr(err);
    let start = Instant::now();
    let status = child.status().context("running sh")?;
    let run = start.elapsed().as_secs_f64();
    Real.sync(&dir).context("syncfs")?;
    let sync = start.elapsed().as_secs_f64() - run;
    let used = getrusage(UsageWho::RUSAGE_CHILDREN).context("getrusage")?;
    Ok(Usage {
        run,
        sync,
        user: used.user_time().num_microseconds() as f64 / 1e6,
        system: used.system_time().num_microseconds() as f64 / 1e6,
        rss: used.max_rss() as u64,
        status: status.code().unwrap_or(-1),
    })
}

/// Runs a shell command that is not measured and returns what it printed.
pub fn shell(command: &str) -> Result<String> {
    let done = Command::new("sh").arg("-c").arg(command).output().context("running sh")?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    let printed = [done.stdout, done.stderr].concat();
    let tail = &printed[printed.len().saturating_sub(2000)..];
    Err(Error::Command { command: command.into(), output: String::from_utf8_lossy(tail).trim().into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_charged_for_all_its_processes() {
        let place = tempfile::tempdir().unwrap();
        let output = place.path().join("output");
        let busy = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done";
        let usage =
            wrapper(&format!("sh -c '{busy}; echo said' & wait; exit 3"), place.path(), &output).unwrap();
        assert_eq!(usage.status, 3);
        assert!(usage.user + usage.system > 0.005 && usage.run >= 0.01, "{usage:?}");
        assert!((500..200_000).contains(&usage.rss), "{usage:?}");
        assert_eq!(std::fs::read_to_string(output).unwrap(), "said\n");
    }

    #[test]
    fn a_failing_command_tells_what_it_printed() {
        let error = shell("echo one; echo two >&2; false").unwrap_err().to_string();
        assert!(error.contains("one") && error.contains("two"), "{error}");
    }
}
