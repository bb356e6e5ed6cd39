//! Progress on standard error: bars on a terminal, a plain line now and then elsewhere.

use std::fmt;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use crate::{Count, HumanBytes, HumanDuration};

/// How often a bar is drawn.
const FRAME: Duration = Duration::from_millis(100);
/// How often a plain line is written: often enough to see that it lives, rare enough for a log.
const PACE: Duration = Duration::from_secs(10);

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes, shown as sizes.
    Bytes,
    /// Files, names, objects, …
    Items,
}

/// The progress of one command, phase by phase. Clones are the same progress; all threads may use them.
/// [`Bars::inc`] is one relaxed addition and never draws: a thread of its own does that.
#[derive(Clone, Default)]
pub struct Bars(Option<Arc<Shared>>);

struct Shared {
    done: AtomicU64,
    state: Mutex<State>,
    changed: Condvar,
    every: Duration,
}

struct State {
    /// Counts phases begun and ended, so that the drawing thread of an earlier phase ends itself.
    turn: u64,
    sink: Sink,
}

enum Sink {
    Bar(ProgressBar),
    Lines { command: String, to: Box<dyn Write + Send> },
}

impl fmt::Debug for Bars {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(if self.0.is_some() { "Bars(shown)" } else { "Bars(silent)" })
    }
}

/// What one phase does, known at its beginning.
#[derive(Clone, Copy)]
struct Phase {
    name: &'static str,
    total: u64,
    unit: Unit,
}

impl Bars {
    /// Shows nothing.
    pub fn silent() -> Self {
        Self(None)
    }

    /// Bars on standard error, which is a terminal.
    pub(crate) fn on_terminal() -> Self {
        Self::bar(ProgressDrawTarget::stderr(), FRAME)
    }

    /// A plain line every 10 seconds.
    pub(crate) fn plain(command: &str, to: Box<dyn Write + Send>) -> Self {
        Self::lines(command, to, PACE)
    }

    fn bar(target: ProgressDrawTarget, every: Duration) -> Self {
        Self::with(Sink::Bar(ProgressBar::with_draw_target(None, target)), every)
    }

    fn lines(command: &str, to: Box<dyn Write + Send>, every: Duration) -> Self {
        Self::with(Sink::Lines { command: command.into(), to }, every)
    }

    fn with(sink: Sink, every: Duration) -> Self {
        let state = Mutex::new(State { turn: 0, sink });
        Self(Some(Arc::new(Shared { done: AtomicU64::new(0), state, changed: Condvar::new(), every })))
    }

    /// Begins a phase and ends the one before. `total` is in `unit`; 0 means that it isn't known.
    pub fn phase(&self, name: &'static str, total: u64, unit: Unit) {
        let Some(shared) = &self.0 else { return };
        let phase = Phase { name, total, unit };
        let mut state = shared.lock();
        state.turn += 1;
        shared.done.store(0, Ordering::Relaxed);
        if let Sink::Bar(bar) = &state.sink {
            begin(bar, phase);
        }
        let (turn, shared) = (state.turn, shared.clone());
        drop(state);
        let draw = move || shared.draw_until_over(turn, phase);
        // Without a thread there is no progress to see; the work itself doesn't suffer.
        std::thread::Builder::new().name("progress".into()).spawn(draw).ok();
    }

    /// `n` more are done.
    pub fn inc(&self, n: u64) {
        if let Some(shared) = &self.0 {
            shared.done.fetch_add(n, Ordering::Relaxed);
        }
    }

    /// Ends the phase; a bar vanishes. Nothing more is drawn once this returns.
    pub fn finish(&self) {
        let Some(shared) = &self.0 else { return };
        let mut state = shared.lock();
        state.turn += 1;
        if let Sink::Bar(bar) = &state.sink {
            bar.finish_and_clear();
        }
        shared.changed.notify_all();
    }

    /// Runs `print` with the bar out of the way.
    pub(crate) fn aside<T>(&self, print: impl FnOnce() -> T) -> T {
        let Some(shared) = &self.0 else { return print() };
        let state = shared.lock();
        match &state.sink {
            Sink::Bar(bar) => bar.suspend(print),
            Sink::Lines { .. } => print(),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn draw_until_over(&self, turn: u64, phase: Phase) {
        let mut state = self.lock();
        loop {
            let waited = self.changed.wait_timeout_while(state, self.every, |state| state.turn == turn);
            let timeout;
            (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            if !timeout.timed_out() || state.turn != turn {
                return;
            }
            let done = self.done.load(Ordering::Relaxed);
            match &mut state.sink {
                Sink::Bar(bar) => bar.set_position(done),
                // Nobody reads it: no reason to stop working.
                Sink::Lines { command, to } => drop(to.write_all(phase.line(command, done).as_bytes())),
            }
        }
    }
}

impl Phase {
    fn line(self, command: &str, done: u64) -> String {
        let show = |n| match self.unit {
            Unit::Bytes => HumanBytes(n).to_string(),
            Unit::Items => Count(n).to_string(),
        };
        let (name, total) = (self.name, self.total);
        match (u128::from(done) * 100).checked_div(u128::from(total)) {
            None => format!("{command}: {name}: {}\n", show(done)),
            Some(part) => {
                format!("{command}: {name}: {} of {} ({} %)\n", show(done), show(total), part.min(100))
            }
        }
    }
}

fn begin(bar: &ProgressBar, phase: Phase) {
    let template = match (phase.total, phase.unit) {
        (0, Unit::Bytes) => "{spinner} {msg} {decimal_bytes}",
        (0, Unit::Items) => "{spinner} {msg} {human_pos}",
        (_, Unit::Bytes) => "{msg} [{wide_bar}] {decimal_bytes} of {decimal_total_bytes}{left}",
        (_, Unit::Items) => "{msg} [{wide_bar}] {human_pos} of {human_len}{left}",
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let style = style.progress_chars("=> ").with_key("left", time_left);
    // The bar is drawn only once all of it is of this phase.
    let bar = bar.clone().with_style(style).with_message(phase.name);
    bar.update(|state| {
        state.set_pos(0);
        state.set_len(phase.total);
    });
    bar.reset();
}

/// How long it will take, once there is something to tell it from.
fn time_left(state: &ProgressState, out: &mut dyn fmt::Write) {
    if state.pos() > 0 && state.eta() >= Duration::from_secs(1) {
        // Writing to the line's buffer can't fail.
        write!(out, ", {} left", HumanDuration(state.eta())).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::out::tests::Shared as Buffer;
    use std::io;
    use std::time::Instant;

    /// A terminal that keeps what is written to it.
    #[derive(Clone, Debug, Default)]
    struct Screen(Buffer);

    impl indicatif::TermLike for Screen {
        fn width(&self) -> u16 {
            80
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, s: &str) -> io::Result<()> {
            self.0.clone().write_all(s.as_bytes())
        }
        fn write_str(&self, s: &str) -> io::Result<()> {
            self.0.clone().write_all(s.as_bytes())
        }
        fn clear_line(&self) -> io::Result<()> {
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    fn wait_for(buffer: &Buffer, text: &str) {
        let start = Instant::now();
        while !buffer.text().contains(text) {
            assert!(start.elapsed() < Duration::from_secs(20), "no {text:?} in {:?}", buffer.text());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn plain_lines_count_what_all_threads_did() {
        let buffer = Buffer::default();
        let bars = Bars::lines("vunify", Box::new(buffer.clone()), Duration::from_millis(10));
        bars.phase("hashing", 4_000_000, Unit::Bytes);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1_000).for_each(|_| bars.inc(250)));
            }
        });
        wait_for(&buffer, "vunify: hashing: 1.0 MB of 4.0 MB (25 %)\n");
        bars.phase("linking", 0, Unit::Items);
        bars.inc(1_234);
        wait_for(&buffer, "vunify: linking: 1,234\n");
        bars.finish();
        let length = buffer.text().len();
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(buffer.text().len(), length, "drawn after the end: {:?}", buffer.text());
    }

    #[test]
    fn a_quick_phase_writes_no_line() {
        let buffer = Buffer::default();
        let bars = Bars::plain("x", Box::new(buffer.clone()));
        bars.phase("walking", 10, Unit::Items);
        bars.inc(10);
        bars.finish();
        assert_eq!(buffer.text(), "");
    }

    #[test]
    fn bars_show_phase_and_figures_and_step_aside() {
        let screen = Screen::default();
        let target = ProgressDrawTarget::term_like(Box::new(screen.clone()));
        let bars = Bars::bar(target, Duration::from_millis(10));
        bars.phase("hashing", 2_000_000, Unit::Bytes);
        bars.inc(1_000_000);
        wait_for(&screen.0, "1.00 MB of 2.00 MB");
        assert!(screen.0.text().contains("hashing ["));
        assert_eq!(bars.aside(|| 7), 7);
        bars.phase("linking", 10, Unit::Items);
        let text = screen.0.text();
        let (before, after) = text.split_once("linking").unwrap();
        assert!(!before.contains("of 10") && !after.contains("MB") && after.contains("0 of 10"), "{text}");
        bars.finish();
    }

    #[test]
    fn silent_bars_do_nothing() {
        let bars = Bars::silent();
        bars.phase("x", 1, Unit::Items);
        bars.inc(1);
        bars.finish();
        assert_eq!(bars.aside(|| 7), 7);
    }

    #[test]
    fn figures_beyond_the_total_dont_lie_or_overflow() {
        let phase = Phase { name: "x", total: 10, unit: Unit::Items };
        assert_eq!(phase.line("c", u64::MAX), "c: x: 18,446,744,073,709,551,615 of 10 (100 %)\n");
    }
}
