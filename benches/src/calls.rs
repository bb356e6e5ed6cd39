//! Calls on many files at once, as the micro benchmarks and the bare run make them.

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};

use kernel::Dir;

use crate::{Context, Result};

/// Runs `work(item)` for all items on `threads` threads, each taking the next as it is done with one. Returns what
/// they returned, in no order.
pub fn spread_over<T: Sync, R: Send>(
    threads: usize,
    items: &[T],
    work: impl Fn(&T) -> kernel::Result<R> + Sync,
) -> Result<Vec<R>> {
    let next = AtomicUsize::new(0);
    let share = || -> kernel::Result<Vec<R>> {
        let mine = std::iter::from_fn(|| items.get(next.fetch_add(1, Ordering::Relaxed)));
        mine.map(&work).collect()
    };
    let shares: kernel::Result<Vec<Vec<R>>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(share)).collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    Ok(shares.context("working on many files")?.into_iter().flatten().collect())
}

/// Reads a file in pieces of at most 1 MiB into a buffer kept for each thread.
pub fn read_file(dir: &Dir, name: &[u8], mut each: impl FnMut(&[u8])) -> kernel::Result<()> {
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; 1 << 20]);
    }
    let file = dir.open_any(name)?;
    BUFFER.with_borrow_mut(|buffer| {
        let mut at = 0;
        loop {
            let count = file.read_at(buffer, at)?;
            each(&buffer[..count]);
            at += count as u64;
            if count < buffer.len() {
                return Ok(());
            }
        }
    })
}
