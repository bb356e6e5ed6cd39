//! How full the table of tasks with an IPv4 root is, and what did not fit.

use std::path::Path;

use aya::maps::{Array, HashMap, Map, MapData, MapError, MapInfo};

use super::{BpfError, Host, Pins, Root};
use crate::Errno;

/// `VS_LOSS_...` of `kernel/bpf/ipv4root.bpf.c`.
const SPILLED: u32 = 0;
const LOST: u32 = 1;

/// `struct vs_root` as bytes.
type Bytes = [u8; size_of::<Root>()];

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
        let info = MapInfo::from_pin(&table).map_err(|error| fault(&table)(error.into()))?;
        let tasks: HashMap<_, u64, Bytes> = open(&table)?.try_into().map_err(fault(&table))?;
        let counts: Array<_, u64> = open_array(&losses)?.try_into().map_err(fault(&losses))?;
        let count = |which| counts.get(&which, 0).map_err(fault(&losses));
        Ok(Some(Self {
            tasks: tasks.keys().filter(Result::is_ok).count(),
            capacity: info.max_entries() as usize,
            spilled: count(SPILLED)?,
            lost: count(LOST)?,
        }))
    }
}

fn data(path: &Path) -> Result<MapData, BpfError> {
    MapData::from_pin(path).map_err(fault(path))
}

fn open(path: &Path) -> Result<Map, BpfError> {
    data(path).map(Map::HashMap)
}

fn open_array(path: &Path) -> Result<Map, BpfError> {
    data(path).map(Map::Array)
}

fn fault(path: &Path) -> impl Fn(MapError) -> BpfError + '_ {
    move |error| {
        let errno = match &error {
            MapError::SyscallError(error) => Errno::from_io_error(&error.io_error),
            _ => None,
        };
        BpfError::at("read the map", path)(errno.unwrap_or(Errno::IO))
    }
}
