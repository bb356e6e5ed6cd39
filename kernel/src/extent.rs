//! Where a file lies on its device.

use crate::{File, Result, sys};

/// A run of bytes on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Extent {
    /// Byte offset on the device.
    pub physical: u64,
    /// Length in bytes.
    pub length: u64,
}

/// The first extent of a file (`FS_IOC_FIEMAP`); none where no blocks are allocated. For reading in disk
/// order and for telling whether two files share their extents.
pub fn first_extent(file: &File) -> Result<Option<Extent>> {
    Ok(sys::first_extent(file)?.map(|(physical, length)| Extent { physical, length }))
}
