//! The contract, seen from outside: a real process, its streams, its exit status.
#![allow(clippy::disallowed_methods)] // builds trees that are no guests of anybody
#![allow(clippy::unwrap_used)] // in helpers of tests, too, a failure is to end the test

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

fn sample() -> Command {
    let exe = std::env::current_exe().unwrap();
    let target: PathBuf = exe.ancestors().nth(2).unwrap().join("examples/sample");
    let mut command = Command::new(target);
    command.env_remove("RUST_BACKTRACE").env_remove("VSERVERS").stdin(Stdio::null());
    command
}

fn run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    sample().args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn events(output: &Output) -> Vec<Value> {
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The summary, after showing that it is the last line and the only one of its kind.
fn summary(output: &Output) -> Value {
    let events = events(output);
    let is_summary = |event: &&Value| event["type"] == "summary";
    assert_eq!(events.iter().filter(is_summary).count(), 1);
    let last = events.last().unwrap().clone();
    assert_eq!(last["type"], "summary");
    assert_eq!(Some(last["exit"].as_i64().unwrap()), output.status.code().map(i64::from));
    last
}

#[test]
fn help_has_examples_and_exit_status() {
    let output = run(["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let help = text(&output.stdout);
    assert!(help.contains("Examples:\n  sample guests web1 /srv/web2\n      Print where two"), "{help}");
    assert!(help.contains("Exit status:\n    0  everything"), "{help}");
    assert!(help.contains("--dry-run") && help.contains("(or --test)"), "{help}");
    assert!(!help.contains('\u{1b}') && output.stderr.is_empty());
}

#[test]
fn usage_errors_are_named_and_end_with_2() {
    let output = run(["lines", "many"]);
    assert_eq!(output.status.code(), Some(2));
    let problem = text(&output.stderr);
    assert!(problem.starts_with("sample: invalid value 'many' for '<COUNT>'"), "{problem}");
    assert!(output.stdout.is_empty());
    assert_eq!(run(["--nonsense"]).status.code(), Some(2));
    let nothing = run::<&str>([]);
    assert_eq!(nothing.status.code(), Some(2));
    assert!(text(&nothing.stderr).contains("Usage: sample"), "{}", text(&nothing.stderr));
}

#[test]
fn help_is_a_command_too() {
    let help = run(["help", "lines"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(text(&help.stdout).contains("Usage: sample lines"), "{}", text(&help.stdout));
}

#[test]
fn an_empty_rest_is_refused() {
    let output = run(["guests", "web1", "--"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).starts_with("sample: nothing stands behind --\n"), "{output:?}");
    assert!(!text(&run(["guests", "--nonsense"]).stderr).contains("tip: to pass"));
}

/// What bash's completion offers for a command line's last word.
fn offered(completions: &std::path::Path, base: &std::path::Path, words: &[&str]) -> Vec<String> {
    let script = r#"source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        _sample sample "${!#}" "${COMP_WORDS[COMP_CWORD - 1]}"; printf '%s\n' "${COMPREPLY[@]}""#;
    let mut command = Command::new("bash");
    let output =
        command.args(["-c", script, "bash"]).arg(completions).args(words).env("VSERVERS", base).output();
    text(&output.unwrap().stdout).split_whitespace().map(str::to_owned).collect()
}

#[test]
fn bash_offers_options_behind_a_hyphen_and_guests_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    run([OsStr::new("--write-docs"), dir.path().as_os_str()]);
    let script = dir.path().join("bash/sample.bash");
    let base = dir.path().join("guests");
    for name in ["web1", "web2", ".store"] {
        fs::create_dir_all(base.join(name)).unwrap();
    }
    let offered = |words: &[&str]| offered(&script, &base, words);
    assert_eq!(offered(&["sample", ""]), ["guests", "lines", "wait", "panic"]);
    assert_eq!(offered(&["sample", "guests", ""]), ["web1", "web2"]);
    assert_eq!(offered(&["sample", "guests", "web1", "web"]), ["web1", "web2"]);
    assert_eq!(offered(&["sample", "guests", "--th"]), ["--threads"]);
    assert_eq!(offered(&["sample", "guests", "--threads", "3"]), ["3"]);
}

#[test]
fn usage_errors_have_a_summary_in_json() {
    let output = run(["--json", "lines", "ma\u{1b}ny"]);
    assert_eq!(summary(&output)["outcome"], "usage");
    assert_eq!(events(&output)[0]["type"], "error");
    assert!(!text(&output.stderr).contains('\u{1b}'));
}

#[test]
fn json_is_whole_and_quiet_is_silent() {
    let output = run(["lines", "1000", "--json"]);
    assert_eq!(summary(&output)["outcome"], "done");
    assert_eq!(events(&output).len(), 1001);
    assert_eq!(events(&output)[7], serde_json::json!({"type": "line", "version": 1, "n": 7}));
    let quiet = run(["lines", "1000", "--quiet"]);
    assert!(quiet.status.success() && quiet.stdout.is_empty() && quiet.stderr.is_empty());
}

#[test]
fn a_bug_is_one_line_and_70() {
    let output = run(["panic", "--json"]);
    assert_eq!(output.status.code(), Some(70));
    let problem = text(&output.stderr);
    assert!(problem.starts_with("sample: this is a bug: index out of bounds"), "{problem}");
    assert!(problem.contains("sample.rs:") && problem.lines().count() == 1, "{problem}");
    assert_eq!(summary(&output)["outcome"], "bug");
    let backtrace = sample().arg("panic").env("RUST_BACKTRACE", "1").output().unwrap();
    assert!(text(&backtrace.stderr).contains("stack backtrace"));
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let mut child =
        sample().args(["lines", "200000"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::with_capacity(16, child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((line.as_str(), text(&output.stderr)), ("line 0\n", ""));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_full_disk_under_the_output_is_told() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output =
        sample().args(["lines", "3"]).stdout(full).stderr(Stdio::piped()).spawn().unwrap().wait_with_output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(text(&output.stderr), "sample: standard output is incomplete: no storage space\n");
}

/// Starts `sample wait`, and gives it once it is ready.
fn waiting(args: &[&str]) -> (std::process::Child, BufReader<std::process::ChildStdout>) {
    let mut command = sample();
    command.arg("wait").args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert!(line.contains("ready"), "{line}");
    (child, stdout)
}

fn signal(child: &std::process::Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn a_signal_ends_in_order_with_130() {
    for kind in [Signal::INT, Signal::TERM] {
        let (mut child, mut stdout) = waiting(&["--json"]);
        signal(&child, kind);
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130));
        let last: Value = serde_json::from_str(rest.lines().last().unwrap()).unwrap();
        assert_eq!((&last["type"], &last["outcome"]), (&"summary".into(), &"interrupted".into()));
    }
}

#[test]
fn a_second_signal_ends_at_once() {
    let (mut child, _stdout) = waiting(&["--stubborn"]);
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    signal(&child, Signal::TERM);
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    assert_eq!(line, "sample: warning: once more to end at once\n");
    signal(&child, Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn guests_by_name_path_or_all() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().canonicalize().unwrap();
    let hostile = OsStr::from_bytes(b"web\xff\n");
    for name in [OsStr::new("web1"), OsStr::new(".store"), hostile] {
        fs::create_dir_all(base.join(name).join("etc")).unwrap();
    }
    let guests = |args: &[&str]| {
        let output = sample().env("VSERVERS", &base).arg("guests").args(args).output().unwrap();
        (output.status.code(), text(&output.stdout).to_owned(), text(&output.stderr).to_owned())
    };
    let shown = base.display();
    let all = format!("{shown}/web1\n{shown}/web\\xff\\n\n");
    assert_eq!(guests(&[]), (Some(0), all, String::new()));
    assert_eq!(guests(&["web1"]).1, format!("{shown}/web1\n"));
    let (code, _, problem) = guests(&["web9"]);
    assert_eq!(code, Some(2));
    assert!(problem.starts_with(&format!("sample: no such guest: {shown}/web9: give its name")), "{problem}");
    let (code, lines, _) = guests(&["--json"]);
    assert_eq!((code, lines.lines().count()), (Some(0), 3));
    let paths: Vec<Value> =
        lines.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["path"].clone()).collect();
    let back: cli::PathText<'static> = serde_json::from_value(paths[1].clone()).unwrap();
    assert_eq!(back.as_path(), base.join(hostile));
}

#[test]
fn docs_have_exit_status_examples_and_completions() {
    let dir = tempfile::tempdir().unwrap();
    assert!(run([OsStr::new("--write-docs"), dir.path().as_os_str()]).status.success());
    let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
    let page = read("man8/sample.8");
    for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "\"EXIT STATUS\"", "EXAMPLES"] {
        assert!(page.contains(&format!(".SH {section}\n")), "{section} in {page}");
    }
    assert!(page.contains("sample lines 3 \\-\\-json") && page.contains("\\fB130\\fR"), "{page}");
    assert!(page.contains(".SH SYNOPSIS\nsample [OPTIONS] <COMMAND>\n"), "{page}");
    let sub = read("man8/sample-lines.8");
    assert!(sub.contains("\nsample lines [OPTIONS] <COUNT>\n"), "{sub}");
    let source = format!("\"sample {}\"", env!("CARGO_PKG_VERSION"));
    assert!(page.contains(&source) && sub.contains(&source), "{sub}");
    assert!(sub.contains("sample lines 3") && !sub.contains("sample guests web1"), "{sub}");
    for (shell, file) in [("bash", "bash/sample.bash"), ("zsh", "zsh/_sample"), ("fish", "fish/sample.fish")]
    {
        let text = read(file);
        assert!(text.contains("dry-run") && text.contains("guests"), "{shell}");
    }
    assert!(!page.contains("sample\\-help") && page.contains("sample\\-lines"), "{page}");
    run([OsStr::new("--write-docs"), dir.path().as_os_str()]);
    assert_eq!(read("man8/sample.8"), page);
    let nowhere = run(["--write-docs", "/dev/null/x"]);
    assert_eq!(nowhere.status.code(), Some(3));
    assert_eq!(text(&nowhere.stderr), "sample: Not a directory (os error 20): /dev/null/x\n");
}
