//! Extended attributes of an open file: ACLs, file capabilities, security labels, user attributes.

use rustix::fs::{fgetxattr, flistxattr};

use crate::{Errno, File, Result};

/// Names and values in the order of their names. Nearly always empty.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// A hostile guest can give one file hundreds of megabytes of attributes (xfs): more than this is `E2BIG`.
const MAX_TOTAL: usize = 1 << 20;

impl File {
    /// Every extended attribute the caller may see; root sees all. Empty where the file system has none.
    pub fn xattrs(&self) -> Result<Xattrs> {
        let names = match self.xattr_names() {
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            other => other?,
        };
        let (mut found, mut total) = (Vec::new(), 0);
        for name in names.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
            match self.xattr(name) {
                Ok(value) => {
                    total += name.len() + value.len();
                    if total > MAX_TOTAL {
                        return Err(Errno::TOOBIG);
                    }
                    found.push((name.to_vec(), value));
                }
                Err(Errno::NODATA) => {} // removed meanwhile: as if it had never been
                Err(other) => return Err(other),
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    fn xattr_names(&self) -> Result<Vec<u8>> {
        grow(256, |buffer| flistxattr(self, buffer))
    }

    /// The value of one extended attribute; `ENODATA` without it.
    pub fn xattr(&self, name: &[u8]) -> Result<Vec<u8>> {
        grow(256, |buffer| fgetxattr(self, name, buffer))
    }
}

/// Calls with a buffer that grows until the answer fits; 64 KiB is the kernel's own limit.
fn grow(start: usize, mut call: impl FnMut(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    let mut stack = [0; 256];
    if let Ok(count) = call(&mut stack[..start]) {
        return Ok(stack[..count].to_vec());
    }
    let mut buffer = vec![0; 64 * 1024];
    let count = call(&mut buffer)?;
    buffer.truncate(count);
    Ok(buffer)
}
