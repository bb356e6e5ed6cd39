//! The only thing that prints.
//!
//! # JSON
//!
//! With `--json`, standard output holds JSON Lines and nothing else. Each line is an object that begins
//! with `type` and `version` (of that type's fields; a field's meaning never changes within a version, and
//! readers ignore fields they don't know). `error` and `warning` have `message`, and `path` and `cure`
//! where they are known. The last line, and no other, is the `summary`: `command`, `exit` (the exit
//! status), `outcome` (its name), `errors`, `warnings`, `seconds`, and the command's own figures. It comes
//! even after errors in the command line and bugs; only a killed command has none. Sizes are in bytes.
//! Characters that could drive a terminal are written as `\uXXXX`.
//!
//! # Colours
//!
//! None, so `NO_COLOR` holds whether it is set or not.

use std::fmt;
use std::io::{self, BufWriter, ErrorKind, IsTerminal as _, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::text::{defuse, defuse_json};
use crate::{Bars, CommonArgs, Exit, Problem, ProgressMode};

/// The version of events that belong to every command, and the default of others.
const VERSION: u32 = 1;
/// How long a line may wait in the buffer while further lines come. A terminal gets each line at once.
const LATENCY: Duration = Duration::from_millis(200);

/// Where output goes.
pub struct Streams {
    /// Results.
    pub stdout: Box<dyn Write + Send>,
    /// Whether a person looks at results as they come.
    pub stdout_is_terminal: bool,
    /// Problems.
    pub stderr: Box<dyn Write + Send>,
    /// Progress, where it can't be bars; the same place as problems.
    pub progress: Box<dyn Write + Send>,
    /// Whether progress can be bars.
    pub stderr_is_terminal: bool,
}

impl Streams {
    /// Those of this process.
    pub fn of_process() -> Self {
        Self {
            stdout: Box::new(io::stdout()),
            stdout_is_terminal: io::stdout().is_terminal(),
            stderr: Box::new(io::stderr()),
            progress: Box::new(io::stderr()),
            stderr_is_terminal: io::stderr().is_terminal(),
        }
    }
}

/// The output of one command. Threads may share it; a line is never torn.
///
/// Text for people is given as a closure, run only if it is shown. Names from guests belong in a
/// [`crate::PathText`]; what slips through can still not drive a terminal.
pub struct Out {
    command: String,
    json: bool,
    level: Level,
    live: bool,
    bars: Bars,
    began: Instant,
    inner: Mutex<Inner>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Quiet,
    Normal,
    Verbose,
    Debug,
}

struct Inner {
    stdout: BufWriter<Box<dyn Write + Send>>,
    stderr: Box<dyn Write + Send>,
    flushed: Option<Instant>,
    /// Why nothing more goes to standard output.
    broken: Option<ErrorKind>,
    errors: u64,
    warnings: u64,
    bug: bool,
    summary: Map<String, Value>,
}

/// What is around the fields of each event.
#[derive(Serialize)]
struct Envelope<'a, T> {
    r#type: &'a str,
    version: u32,
    #[serde(flatten)]
    body: &'a T,
}

/// The last line.
#[derive(Serialize)]
struct Summary<'a> {
    command: &'a str,
    exit: u8,
    outcome: &'static str,
    errors: u64,
    warnings: u64,
    seconds: f64,
    #[serde(flatten)]
    figures: Map<String, Value>,
}

impl Out {
    /// Output of `command`, as its options say.
    pub fn new(command: &str, common: &CommonArgs, streams: Streams) -> Self {
        let level = match common {
            CommonArgs { debug: true, .. } => Level::Debug,
            CommonArgs { verbose: true, .. } => Level::Verbose,
            CommonArgs { quiet: true, .. } => Level::Quiet,
            _ => Level::Normal,
        };
        let shown = match common.progress {
            ProgressMode::Auto => !common.quiet,
            ProgressMode::Always => true,
            ProgressMode::Never => false,
        };
        let bars = match (shown, streams.stderr_is_terminal) {
            (false, _) => Bars::silent(),
            (true, true) => Bars::on_terminal(),
            (true, false) => Bars::plain(command, streams.progress),
        };
        let inner = Inner {
            stdout: BufWriter::new(streams.stdout),
            stderr: streams.stderr,
            flushed: None,
            broken: None,
            errors: 0,
            warnings: 0,
            bug: false,
            summary: Map::new(),
        };
        let (live, json) = (streams.stdout_is_terminal, common.json);
        let (began, inner) = (Instant::now(), Mutex::new(inner));
        Self { command: command.into(), json, level, live, bars, began, inner }
    }

    /// Something happened: an event for machines, a line for people. `value` serialises to an object
    /// without the fields `type` and `version`.
    pub fn event<T: Serialize, D: fmt::Display>(&self, kind: &str, value: &T, human: impl FnOnce() -> D) {
        if self.json {
            self.emit(&mut self.lock(), kind, value);
        } else {
            self.line(human);
        }
    }

    /// As [`Out::event`], but people see it with `--verbose` only.
    pub fn detail<T: Serialize, D: fmt::Display>(&self, kind: &str, value: &T, human: impl FnOnce() -> D) {
        if self.json || self.level >= Level::Verbose {
            self.event(kind, value, human);
        }
    }

    /// A line, or several, for people only.
    pub fn line<D: fmt::Display>(&self, human: impl FnOnce() -> D) {
        if !self.json && self.level > Level::Quiet {
            let text = human().to_string();
            self.print(&mut self.lock(), &defuse(&text, &['\n']));
        }
    }

    /// Why something was decided; with `--debug` only, on standard error.
    pub fn debug<D: fmt::Display>(&self, human: impl FnOnce() -> D) {
        if self.level == Level::Debug {
            let text = format!("debug: {}", human());
            self.complain(&mut self.lock(), &text);
        }
    }

    /// Something the user should know or do, though nothing failed. Shown with `--quiet` too.
    pub fn warn(&self, problem: &Problem) {
        let mut inner = self.lock();
        inner.warnings += 1;
        self.report(&mut inner, "warning", "warning: ", problem);
    }

    /// Something failed. It is counted; the exit code is the command's to choose.
    pub fn error(&self, problem: &Problem) {
        let mut inner = self.lock();
        inner.errors += 1;
        self.report(&mut inner, "error", "", problem);
    }

    /// An error of the command line, with a usage text of several lines for people.
    pub(crate) fn usage_error(&self, message: &str, usage: &str) {
        let problem = Problem::new(message.trim_end());
        let mut inner = self.lock();
        inner.errors += 1;
        if self.json {
            self.emit(&mut inner, "error", &problem);
        }
        let gap = if usage.is_empty() { "" } else { "\n\n" };
        self.complain(&mut inner, &format!("{}{gap}{}", message.trim_end(), usage.trim_end()));
    }

    /// The figures of the whole: fields of the JSON summary, and text for people at once, below which no bar is
    /// drawn again. `value` serialises to an object; given again, its fields are added.
    pub fn summary<T: Serialize, D: fmt::Display>(&self, value: &T, human: impl FnOnce() -> D) {
        self.bars.finish();
        self.line(human);
        let mut inner = self.lock();
        match serde_json::to_value(value) {
            Ok(Value::Object(figures)) => inner.summary.extend(figures),
            Ok(_) => self.broken_event(&mut inner, "summary", &"not an object"),
            Err(error) => self.broken_event(&mut inner, "summary", &error),
        }
    }

    /// Progress, as the options say.
    pub fn bars(&self) -> Bars {
        self.bars.clone()
    }

    /// Whether the reader of standard output has gone. Work that changes something goes on; a mere listing
    /// may stop.
    pub fn closed(&self) -> bool {
        self.lock().broken.is_some()
    }

    /// Ends the output, with the summary in JSON. Gives the exit code: as told, unless output was lost
    /// or was itself a bug. A reader that went away early is no loss.
    pub fn finish(self, exit: Exit) -> Exit {
        self.bars.finish();
        let mut inner = self.lock();
        let exit = if inner.bug { Exit::Bug } else { exit };
        if self.json {
            let summary = Summary {
                command: &self.command,
                exit: exit.code(),
                outcome: exit.name(),
                errors: inner.errors,
                warnings: inner.warnings,
                seconds: (self.began.elapsed().as_secs_f64() * 1e3).round() / 1e3,
                figures: std::mem::take(&mut inner.summary),
            };
            self.emit(&mut inner, "summary", &summary);
        }
        inner.flush();
        match inner.broken {
            None | Some(ErrorKind::BrokenPipe) => exit,
            Some(kind) => {
                let problem = Problem::new("standard output is incomplete").cure(kind.to_string());
                self.complain(&mut inner, &problem.to_string());
                if exit == Exit::Done { Exit::Partly } else { exit }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere still ends with a summary.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn emit<T: Serialize>(&self, inner: &mut Inner, kind: &str, body: &T) {
        match serde_json::to_string(&Envelope { r#type: kind, version: VERSION, body }) {
            Ok(line) => self.print(inner, &defuse_json(&line)),
            Err(error) => self.broken_event(inner, kind, &error),
        }
    }

    /// An event that can't be JSON (a map with keys that are no strings, a path that is no `PathText`).
    fn broken_event(&self, inner: &mut Inner, kind: &str, error: &dyn fmt::Display) {
        inner.bug = true;
        inner.errors += 1;
        let message = format!("this is a bug: event {kind} can't be written as JSON: {error}");
        self.report(inner, "error", "", &Problem::new(message));
    }

    fn report(&self, inner: &mut Inner, kind: &str, mark: &str, problem: &Problem) {
        if self.json {
            self.emit(inner, kind, problem);
        }
        self.complain(inner, &format!("{mark}{problem}"));
    }

    /// Writes to standard error, after what stands before it on standard output.
    fn complain(&self, inner: &mut Inner, text: &str) {
        inner.flush();
        let line = format!("{}: {}\n", self.command, defuse(text, &['\n']));
        // If even this can't be written there is nobody to tell; the exit code remains.
        self.bars.aside(|| inner.stderr.write_all(line.as_bytes()).ok());
    }

    fn print(&self, inner: &mut Inner, line: &str) {
        if self.live {
            self.bars.aside(|| inner.write(line, true));
        } else {
            let due = inner.flushed.is_none_or(|at| at.elapsed() > LATENCY);
            inner.write(line, due);
        }
    }
}

impl Inner {
    fn write(&mut self, line: &str, flush: bool) {
        if self.broken.is_some() {
            return;
        }
        let written = self.stdout.write_all(line.as_bytes()).and_then(|()| self.stdout.write_all(b"\n"));
        self.broken = written.err().map(|error| error.kind());
        if flush {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.broken.is_none() {
            self.broken = self.stdout.flush().err().map(|error| error.kind());
            self.flushed = Some(Instant::now());
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::PathText;
    use std::path::Path;
    use std::sync::Arc;

    /// A writer whose text can be looked at.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Shared {
        pub(crate) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }

        pub(crate) fn json(&self) -> Vec<Value> {
            self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        }
    }

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A writer that always fails.
    struct Failing(ErrorKind);

    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    pub(crate) fn streams(stdout: &Shared, stderr: &Shared) -> Streams {
        Streams {
            stdout: Box::new(stdout.clone()),
            stdout_is_terminal: false,
            stderr: Box::new(stderr.clone()),
            progress: Box::new(stderr.clone()),
            stderr_is_terminal: false,
        }
    }

    fn out(common: &CommonArgs) -> (Out, Shared, Shared) {
        let (stdout, stderr) = (Shared::default(), Shared::default());
        (Out::new("vunify", common, streams(&stdout, &stderr)), stdout, stderr)
    }

    fn json() -> CommonArgs {
        CommonArgs { json: true, ..CommonArgs::default() }
    }

    #[derive(Serialize)]
    struct File<'a> {
        path: PathText<'a>,
        bytes: u64,
    }

    fn file(path: &[u8]) -> File<'_> {
        File { path: PathText::from_bytes(path), bytes: 7 }
    }

    #[test]
    fn people_get_lines() {
        let (out, stdout, stderr) = out(&CommonArgs::default());
        out.event("file", &file(b"/a"), || "linked /a");
        out.detail("file", &file(b"/b"), || "linked /b");
        out.debug(|| "unseen");
        out.warn(&Problem::new("nearly full").at("/vservers"));
        out.error(&Problem::new("not permitted").at("/vservers/web1").cure("run as root"));
        out.summary(&file(b"/x"), || "1 file\n7 bytes");
        assert_eq!(out.finish(Exit::Partly), Exit::Partly);
        assert_eq!(stdout.text(), "linked /a\n1 file\n7 bytes\n");
        let problems = "vunify: warning: nearly full: /vservers\n\
                        vunify: not permitted: /vservers/web1: run as root\n";
        assert_eq!(stderr.text(), problems);
    }

    #[test]
    fn quiet_is_silent_but_for_problems() {
        let (out, stdout, stderr) = out(&CommonArgs { quiet: true, ..CommonArgs::default() });
        out.event("file", &file(b"/a"), || "linked /a");
        out.line(|| -> String { unreachable!("text that is not shown is not made") });
        out.error(&Problem::new("gone"));
        out.finish(Exit::Done);
        assert_eq!((stdout.text(), stderr.text()), (String::new(), "vunify: gone\n".into()));
    }

    #[test]
    fn verbose_and_debug_show_more() {
        let (out, stdout, stderr) = out(&CommonArgs { debug: true, ..CommonArgs::default() });
        out.detail("file", &file(b"/b"), || "linked /b");
        out.debug(|| "stamp unchanged");
        out.finish(Exit::Done);
        assert_eq!(stdout.text(), "linked /b\n");
        assert_eq!(stderr.text(), "vunify: debug: stamp unchanged\n");
    }

    #[test]
    fn machines_get_typed_lines_and_one_summary_at_the_end() {
        let (out, stdout, stderr) = out(&json());
        out.event("file", &file(b"/a\xff"), || "unseen");
        out.detail("file", &file("/\u{9b}31m".as_bytes()), || "unseen");
        out.line(|| "unseen");
        out.summary(&file(b"/x"), || "unseen");
        out.error(&Problem::new("gone").at("/y"));
        out.finish(Exit::Partly);
        let lines = stdout.json();
        let first = r#"{"type":"file","version":1,"path":{"hex":"2f61ff"},"bytes":7}"#;
        assert_eq!(stdout.text().lines().next(), Some(first));
        assert!(!stdout.text().contains('\u{9b}'));
        assert_eq!(lines[1]["path"], "/\u{9b}31m");
        assert_eq!(
            lines[2],
            serde_json::json!({"type": "error", "version": 1, "message": "gone", "path": "/y"})
        );
        let summary = &lines[3];
        assert_eq!(lines.len(), 4);
        assert_eq!((&summary["type"], &summary["command"]), (&"summary".into(), &"vunify".into()));
        assert_eq!((&summary["exit"], &summary["outcome"]), (&3.into(), &"partly".into()));
        assert_eq!((&summary["errors"], &summary["path"]), (&1.into(), &"/x".into()));
        assert_eq!(stderr.text(), "vunify: gone: /y\n");
    }

    #[test]
    fn hostile_text_cant_drive_the_terminal() {
        let (out, stdout, stderr) = out(&CommonArgs::default());
        out.line(|| "a\u{1b}[2Jb\rc\nd");
        out.error(&Problem::new("bad\nvunify: all is well"));
        out.finish(Exit::Done);
        assert_eq!(stdout.text(), "a\\x1b[2Jb\\rc\nd\n");
        assert_eq!(stderr.text(), "vunify: bad\\nvunify: all is well\n");
    }

    #[test]
    fn a_reader_that_went_away_is_no_error() {
        let (stdout, stderr) = (Shared::default(), Shared::default());
        let closed =
            Streams { stdout: Box::new(Failing(ErrorKind::BrokenPipe)), ..streams(&stdout, &stderr) };
        let out = Out::new("vdu", &json(), closed);
        assert!(!out.closed());
        out.event("file", &file(b"/a"), || "");
        assert!(out.closed());
        assert_eq!(out.finish(Exit::Done), Exit::Done);
        assert_eq!(stderr.text(), "");
    }

    #[test]
    fn lost_output_is_told() {
        let (stdout, stderr) = (Shared::default(), Shared::default());
        let full = Streams { stdout: Box::new(Failing(ErrorKind::StorageFull)), ..streams(&stdout, &stderr) };
        let out = Out::new("vdu", &CommonArgs::default(), full);
        out.line(|| "x");
        assert_eq!(out.finish(Exit::Done), Exit::Partly);
        assert_eq!(stderr.text(), "vdu: standard output is incomplete: no storage space\n");
    }

    #[test]
    fn an_event_that_is_no_json_is_a_bug_not_a_panic() {
        use std::os::unix::ffi::OsStrExt as _;
        #[derive(Serialize)]
        struct Raw<'a> {
            path: &'a Path,
        }
        let path = Path::new(std::ffi::OsStr::from_bytes(b"\xff"));
        let (out, stdout, stderr) = out(&json());
        out.event("file", &Raw { path }, || "");
        out.summary(&3, || "");
        assert_eq!(out.finish(Exit::Done), Exit::Bug);
        assert_eq!(stdout.json().len(), 3);
        assert_eq!(stdout.json()[2]["exit"], 70);
        assert!(stderr.text().starts_with("vunify: this is a bug: event file can't be written"));
    }

    #[test]
    fn lines_of_many_threads_are_whole() {
        let (out, stdout, _) = out(&json());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..500).for_each(|_| out.event("file", &file(b"/a"), || "")));
            }
        });
        out.finish(Exit::Done);
        assert_eq!(stdout.json().len(), 2001);
    }

    #[test]
    fn progress_follows_the_options() {
        let shown = |quiet, progress| {
            let (out, _, _) = out(&CommonArgs { quiet, progress, ..CommonArgs::default() });
            format!("{:?}", out.bars()) == "Bars(shown)"
        };
        assert!(shown(false, ProgressMode::Auto) && shown(true, ProgressMode::Always));
        assert!(!shown(true, ProgressMode::Auto) && !shown(false, ProgressMode::Never));
    }
}
