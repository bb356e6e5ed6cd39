//! The user's wish to stop.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::Exit;

/// Set by SIGINT and SIGTERM. Libraries poll [`Interrupt::flag`] between steps and end in order; the
/// command then gives [`Exit::Interrupted`].
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Handles the signals from now on: the first sets the flag, the second ends the process at once with
    /// status 130, which the journal must survive as it survives a crash. Fails as `sigaction` does.
    pub fn install() -> io::Result<Self> {
        let this = Self::default();
        for signal in [SIGINT, SIGTERM] {
            // In this order, or the first signal would find the flag that it has just set.
            flag::register_conditional_shutdown(signal, Exit::Interrupted.code().into(), this.0.clone())?;
            flag::register(signal, this.0.clone())?;
        }
        Ok(this)
    }

    /// Whether a signal came.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// What libraries poll.
    pub fn flag(&self) -> &AtomicBool {
        &self.0
    }
}
