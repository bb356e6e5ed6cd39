//! One writer: law 9.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use kernel::{At, Dir, Errno, File, Fs, LockMode, OfdLock};

use crate::{Error, Result};

/// What a store is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Looking only; others may look too.
    Read,
    /// Changing; nobody else may do anything.
    Write,
}

/// Who holds a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Process id, if the holder has written it down.
    pub pid: Option<u32>,
    /// Its command line, escaped.
    pub command: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "process {pid} ({})", self.command),
            None => f.write_str("other processes that read it"),
        }
    }
}

/// How often a waiting process looks whether the lock is free.
const PATIENCE: Duration = Duration::from_millis(100);

/// Longest command line that is written down, in bytes.
const MAX_COMMAND: usize = 200;

const LOCK_NAME: &[u8] = b"lock";

/// Takes the store's lock. `wait`, if given, is asked before each further try whether to go on waiting.
pub(crate) fn take(
    fs: &dyn Fs,
    store: &Dir,
    path: &Path,
    access: Access,
    wait: Option<&dyn Fn() -> bool>,
) -> Result<OfdLock> {
    let mode = if access == Access::Write { LockMode::Exclusive } else { LockMode::Shared };
    let mut file = open(fs, store, access).map_err(Error::at("open the lock of", path))?;
    loop {
        match OfdLock::try_take(file, mode).map_err(Error::at("lock", path))? {
            Ok(lock) => {
                if access == Access::Write {
                    write_holder(fs, lock.file()).map_err(Error::at("write the lock of", path))?;
                }
                return Ok(lock);
            }
            Err(still_open) => file = still_open,
        }
        match wait {
            None => return Err(Error::Busy { path: path.to_path_buf(), holder: read_holder(&file) }),
            Some(go_on) if go_on() => std::thread::sleep(PATIENCE),
            Some(_) => return Err(Error::Interrupted),
        }
    }
}

fn open(fs: &dyn Fs, store: &Dir, access: Access) -> kernel::Result<File> {
    let opened = match fs.create(At::new(store, LOCK_NAME)) {
        Err(Errno::EXIST) => store.open_writable(LOCK_NAME),
        other => other,
    };
    match opened {
        // A store on a read-only file system can still be looked at.
        Err(Errno::ROFS) if access == Access::Read => store.open_file(LOCK_NAME),
        other => other,
    }
}

/// `pid command`, padded to one width so that a shorter holder leaves nothing of a longer one behind.
fn write_holder(fs: &dyn Fs, file: &File) -> kernel::Result<()> {
    let words: Vec<_> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    let command = words.join(" ");
    let command: String = command.escape_debug().collect();
    let mut text = format!("{} {command}", std::process::id()).into_bytes();
    text.truncate(MAX_COMMAND);
    text.resize(MAX_COMMAND, b' ');
    fs.write_at(file, &text, 0)
}

fn read_holder(file: &File) -> Holder {
    let mut text = [0; MAX_COMMAND];
    let count = file.read_at(&mut text, 0).unwrap_or(0);
    let text = String::from_utf8_lossy(&text[..count]);
    let (pid, command) = text.trim_end().split_once(' ').unwrap_or_default();
    // The text of a writer that is gone may still stand there while readers hold the lock.
    let pid = pid.parse().ok().filter(|pid| Path::new(&format!("/proc/{pid}")).exists());
    Holder { pid, command: command.to_string() }
}
