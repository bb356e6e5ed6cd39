//! File system images in memory, loop mounted.

use std::path::{Path, PathBuf};

use crate::{Context, Result, shell};

/// How an image is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// ext4 with a distribution's defaults, but for background work: nothing is initialised lazily.
    Ext4,
    /// ext4 for millions of tiny files: their content lies in the inode, as many inodes as asked for.
    Ext4Tiny(u64),
    /// xfs with its defaults.
    Xfs,
}

impl Format {
    /// The command that makes the file system, less the image's path.
    pub fn command(self) -> String {
        const EAGER: &str = "lazy_itable_init=0,lazy_journal_init=0";
        match self {
            Self::Ext4 => format!("mkfs.ext4 -q -F -m 0 -E {EAGER}"),
            Self::Ext4Tiny(inodes) => {
                format!("mkfs.ext4 -q -F -m 0 -O inline_data -I 256 -N {inodes} -E {EAGER}")
            }
            Self::Xfs => "mkfs.xfs -q -f".into(),
        }
    }
}

/// A sparse file that holds a file system.
#[derive(Debug)]
pub struct Image(PathBuf);

impl Image {
    /// Makes an image of `size` bytes with an empty file system.
    pub fn make(path: &Path, format: Format, size: u64) -> Result<Self> {
        let what = format!("making {}", path.display());
        std::fs::File::create(path).and_then(|file| file.set_len(size)).context(what)?;
        let image = Self(path.into());
        shell(&format!("{} {}", format.command(), path.display()))?;
        Ok(image)
    }

    /// A second image, equal to the last byte; holes stay holes.
    pub fn copy(&self, path: &Path) -> Result<Self> {
        let copy = Self(path.into());
        shell(&format!("cp --sparse=always {} {}", self.0.display(), path.display()))?;
        Ok(copy)
    }

    /// Mounts the image until the handle is dropped.
    pub fn mount(&self, at: &Path) -> Result<Mounted> {
        std::fs::create_dir_all(at).context(format!("making {}", at.display()))?;
        shell(&format!("mount -o loop {} {}", self.0.display(), at.display()))?;
        Ok(Mounted(at.into()))
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // What is left behind lies in the scratch directory, which goes as a whole.
        std::fs::remove_file(&self.0).ok();
    }
}

/// A mounted image; unmounted when dropped.
#[derive(Debug)]
pub struct Mounted(PathBuf);

impl Mounted {
    /// The mount point.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The file system's type and mount options.
    pub fn options(&self) -> Result<String> {
        let found = shell(&format!("findmnt -n -o FSTYPE,OPTIONS {}", self.0.display()))?;
        Ok(found.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    /// Bytes in use.
    pub fn used(&self) -> Result<u64> {
        let dir = kernel::Dir::open_host(&self.0).context("opening the mount point")?;
        let (all, free, _) = dir.space().context("statfs")?;
        Ok(all - free)
    }

    /// Makes everything durable, so that a measurement pays for nothing but its own.
    pub fn sync(&self) -> Result<()> {
        shell(&format!("sync -f {}", self.0.display())).map(drop)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Whoever still looks at the tree keeps it until he leaves; the benchmark goes on.
        let at = self.0.display();
        shell(&format!("umount {at} || umount -l {at}")).ok();
    }
}
