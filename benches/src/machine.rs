//! The machine that gave the numbers, without its name.

use std::fs::read_to_string;
use std::thread::available_parallelism;

use crate::{Result, shell};

/// Today, as `YYYY-MM-DD` in UTC.
pub fn date() -> Result<String> {
    Ok(shell("date -u +%F")?.trim().to_owned())
}

/// Lines of Markdown: processor, memory, kernel, and the tools that make file systems.
pub fn describe() -> Result<String> {
    let cores = available_parallelism().map_or(1, usize::from);
    let kernel = shell("uname -sr")?;
    let libc = shell("getconf GNU_LIBC_VERSION || true")?;
    let mkfs = shell("mkfs.ext4 -V 2>&1 | head -n 1; mkfs.xfs -V 2>&1 | head -n 1")?;
    Ok(format!(
        "- processor: {}, {cores} cores\n- memory: {} GiB\n- system: {}, {}\n- file systems: {}\n",
        field("/proc/cpuinfo", "model name"),
        field("/proc/meminfo", "MemTotal")
            .trim_end_matches(" kB")
            .parse()
            .map_or(0_u64, |kib: u64| (kib + (1 << 19)) >> 20),
        kernel.trim(),
        libc.trim(),
        mkfs.trim().replace('\n', ", "),
    ))
}

/// The first value of a key in a file of `key : value` lines, or a question mark.
fn field(path: &str, key: &str) -> String {
    let text = read_to_string(path).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(key));
    line.and_then(|line| line.split_once(':')).map_or("?", |(_, value)| value.trim()).to_owned()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_machine_is_described_and_not_named() {
        let text = super::describe().unwrap();
        assert!(text.contains("Linux") && !text.contains("memory: 0 GiB"), "{text}");
        let name = super::shell("uname -n").unwrap();
        assert!(name.trim().len() < 3 || !text.contains(name.trim()), "{text}");
    }
}
