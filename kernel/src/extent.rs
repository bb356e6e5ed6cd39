//! Where a file lies on its device.

use std::path::Path;

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
/// order.
pub fn first_extent(file: &File) -> Result<Option<Extent>> {
    Ok(sys::first_extent(file)?.map(|(physical, length)| Extent { physical, length }))
}

/// Whether the device with this number has to move a head to read elsewhere, as its driver says; a
/// partition's disk, a loop device itself. `false` where no driver says: btrfs has numbers of its own.
/// (Documentation/ABI/stable/sysfs-block, `queue/rotational`.)
pub fn is_rotational(dev: u64) -> bool {
    let numbers = format!("{}:{}", rustix::fs::major(dev), rustix::fs::minor(dev));
    let block = Path::new("/sys/dev/block").join(numbers);
    // The link leads to the device's own directory; a partition's lies in its disk's.
    let disk = if block.join("partition").exists() { block.join("..") } else { block };
    // A virtio disk says so whatever is behind it: its protocol has no word for the other answer.
    let driver = disk.join("device/driver").canonicalize().ok();
    let virtio = driver.is_some_and(|driver| driver.ends_with("virtio_blk"));
    !virtio && std::fs::read_to_string(disk.join("queue/rotational")).is_ok_and(|flag| flag.trim() == "1")
}

/// Extents of one file that are kept in a [`Layout`]; beyond that, comparing costs more than it tells.
const MOST_EXTENTS: usize = 4096;

/// Where all of a file's bytes are on the device. Two files of one size with equal layouts share every
/// extent, and so have the same content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout(Vec<(u64, Extent)>);

impl Layout {
    /// Offset in the file and place on the device, in order of the offset; neighbours are joined.
    pub fn extents(&self) -> &[(u64, Extent)] {
        &self.0
    }

    fn push(&mut self, logical: u64, physical: u64, length: u64) {
        if let Some((start, last)) = self.0.last_mut()
            && *start + last.length == logical
            && last.physical + last.length == physical
        {
            last.length += length;
        } else {
            self.0.push((logical, Extent { physical, length }));
        }
    }
}

/// The layout of a file's first `size` bytes (`FS_IOC_FIEMAP`); none if it cannot be told: bytes without
/// a place of their own on the device (btrfs keeps small files in its metadata), or too many extents. What
/// is not written out yet is written first.
pub fn layout(file: &File, size: u64) -> Result<Option<Layout>> {
    let mut layout = Layout(Vec::new());
    let mut at = 0;
    while at < size {
        let some = sys::extents(file, at, size - at)?;
        for extent in &some {
            let end = extent.logical.saturating_add(extent.length).min(size);
            if !extent.is_placed() || layout.0.len() == MOST_EXTENTS {
                return Ok(None);
            }
            if end > extent.logical {
                layout.push(extent.logical, extent.physical, end - extent.logical);
            }
        }
        match some.last() {
            Some(last) if !last.is_last() && last.logical + last.length > at => {
                at = last.logical + last.length;
            }
            _ => break,
        }
    }
    Ok(Some(layout))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_driver_has_no_head() {
        assert!(!is_rotational(rustix::fs::makedev(0, 5)));
    }

    #[test]
    fn neighbours_are_joined() {
        let mut layout = Layout(Vec::new());
        layout.push(0, 4096, 4096);
        layout.push(4096, 8192, 4096);
        layout.push(16384, 20480, 4096); // behind a hole
        layout.push(20480, 40960, 4096); // elsewhere
        let of = |logical, physical, length| (logical, Extent { physical, length });
        assert_eq!(layout.extents(), [of(0, 4096, 8192), of(16384, 20480, 4096), of(20480, 40960, 4096)]);
    }
}
