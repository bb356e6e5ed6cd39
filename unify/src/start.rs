//! What comes before any thread is started.

use kernel::confine;
use store::{Access, Store};

/// For those who ask for details, where [`start`] could not confine the process.
pub const UNCONFINED: &str =
    "no Landlock here: guests that are only chrooted should be down while names are exchanged";

/// Gives up what no command needs that changes guests (see [`kernel::confine`]), then starts the threads,
/// which inherit that. A pool that is there already is as good, but for its size. Returns `false` if the
/// process should be confined and this kernel can't.
pub fn start(store: &Store, access: Access, threads: usize) -> bool {
    let confined = access == Access::Read || confine(store.place().root(), store.dir());
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().ok();
    confined
}
