//! How full the table of tasks with an IPv4 root is, and what did not fit.

use aya::maps::{Array, Map, MapData, MapError, MapInfo};

use super::{BpfError, Host, Pins, entries};
use crate::Errno;

/// `VS_LOSS_...` of `kernel/bpf/ipv4root.bpf.c`.
const SPILLED: u32 = 0;
const LOST: u32 = 1;

/// What is known of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roots {
    /// Tasks (threads) that have a root; some may have ended a moment ago.
    pub tasks: usize,
    /// How many there can be. It is the limit of threads (kernel.threads-max) when the programs were first
    /// loaded, and a quarter.
    pub capacity: usize,
    /// How often a new task was put beside the table, because that was full. Its root is kept there, unless
    /// thousands come after it.
    pub spilled: u64,
    /// How often a new task has found no place at all and runs without a root.
    pub lost: u64,
}

impl Roots {
    /// Looks at the pinned maps, for root of the host. `None` if ipv4root is not loaded.
    pub fn of(host: &Host) -> Result<Option<Self>, BpfError> {
        let pins = Pins::of(host);
        let (table, losses) = (pins.map("root_tasks"), pins.map("root_losses"));
        if !table.exists() || !losses.exists() {
            return Ok(None);
        }
        let fault = |error: &MapError| BpfError::at("read", &losses)(errno(error));
        let counts = MapData::from_pin(&losses).and_then(|data| Array::<_, u64>::try_from(Map::Array(data)));
        let counts = counts.map_err(|error| fault(&error))?;
        let count = |which| counts.get(&which, 0).map_err(|error| fault(&error));
        let info = MapInfo::from_pin(&table);
        Ok(Some(Self {
            tasks: entries(host, "root_tasks")?,
            capacity: info.map_or(0, |info| info.max_entries() as usize),
            spilled: count(SPILLED)?,
            lost: count(LOST)?,
        }))
    }
}

fn errno(error: &MapError) -> Errno {
    match error {
        MapError::SyscallError(error) => Errno::from_io_error(&error.io_error).unwrap_or(Errno::IO),
        _ => Errno::IO,
    }
}
