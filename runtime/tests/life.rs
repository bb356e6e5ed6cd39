//! The life of the eBPF provider on stock kernels, in QEMU: loaded, asked, reloaded under attack, cut off, outdated,
//! refused to go, forced out.
#![allow(clippy::unwrap_used)] // a test's helpers fail with it

use fixtures::Skip;
use fixtures::vm::{Kernel, Vm};

/// Boots a kernel with further words on its command line, runs the job, and returns how many steps went well.
fn live(version: &str, words: &str, what: &str) -> Result<usize, Skip> {
    let mut machine = Vm::new(Kernel::stock(version)?);
    words.clone_into(&mut machine.words);
    let share = tempfile::tempdir().unwrap();
    let vkernel = env!("CARGO_BIN_EXE_vkernel");
    let job = format!("VKERNEL={vkernel}\nWHAT={what}\n{}", include_str!("life/job.sh"));
    let ran = machine.run(share.path(), &job).unwrap();
    let failed: Vec<&str> = ran.output.lines().filter(|line| line.starts_with("FAILED")).collect();
    assert!(failed.is_empty(), "{version} {words}: {}\n{}", failed.join("\n"), ran.output);
    Ok(ran.output.lines().filter(|line| line.starts_with("ok ")).count())
}

/// The steps that a job has, by its text.
fn steps(what: &str) -> usize {
    let job = include_str!("life/job.sh");
    let part = match what {
        "whole" => job.split_once("esac").unwrap().1,
        other => job.split_once(&format!("\n{other})\n")).unwrap().1.split_once(";;").unwrap().0,
    };
    let is_step = |line: &str| ["expect ", "sealed "].iter().any(|word| line.starts_with(word));
    part.lines().filter(|line| is_step(line.trim_start())).count() + usize::from(what == "whole") // the attack
}

#[test]
fn a_whole_life_on_6_1() {
    assert_eq!(fixtures::need!("a_whole_life_on_6_1", live("6.1", "", "whole")), steps("whole"));
}

#[test]
fn a_whole_life_on_6_12() {
    assert_eq!(fixtures::need!("a_whole_life_on_6_12", live("6.12", "", "whole")), steps("whole"));
}

#[test]
fn where_programs_are_never_asked() {
    const NAME: &str = "where_programs_are_never_asked";
    let words = "lsm=lockdown,capability,landlock,yama,apparmor";
    assert_eq!(fixtures::need!(NAME, live("6.12", words, "no-lsm")), steps("no-lsm"));
}

#[test]
fn under_lockdown() {
    const NAME: &str = "under_lockdown";
    let count = fixtures::need!(NAME, live("6.12", "lockdown=confidentiality", "lockdown"));
    assert_eq!(count, steps("lockdown"));
}
