//! Who owns a path: three flat arrays, twelve bytes a path.
//!
//! A path is kept as a 64-bit hash (SipHash with a random key for each index), so a guest can't arrange
//! collisions; by chance one of ten million look-ups against 300,000 paths goes wrong with a probability
//! of 2·10⁻⁷.

use std::hash::{BuildHasher, DefaultHasher, Hasher, RandomState};

use super::{PackageId, Role};

/// An owner packed into 32 bits: two bits of role, thirty of package.
fn pack(package: PackageId, role: Role) -> u32 {
    (package.0 << 2) | role as u32
}

fn unpack(packed: u32) -> (PackageId, Role) {
    let role = match packed & 3 {
        0 => Role::Content,
        1 => Role::Generated,
        _ => Role::Config,
    };
    (PackageId(packed >> 2), role)
}

/// The beginning of a path, hashed as far as its directory.
#[derive(Clone)]
pub(crate) struct Prefix(DefaultHasher);

impl Prefix {
    fn hash(&self, name: &[u8]) -> u64 {
        let mut hasher = self.0.clone();
        hasher.write(name);
        hasher.finish()
    }
}

/// Collects owners, then becomes an [`Index`].
#[derive(Default)]
pub(crate) struct Collect {
    keys: RandomState,
    entries: Vec<(u64, u32)>,
}

impl Collect {
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn truncate(&mut self, length: usize) {
        self.entries.truncate(length);
    }

    pub(crate) fn add(&mut self, dir: &[u8], name: &[u8], package: PackageId, role: Role) {
        self.entries.push((prefix(&self.keys, dir).hash(name), pack(package, role)));
    }

    /// Sorts. Of several owners the first is named, with the strictest role any of them gives.
    pub(crate) fn finish(mut self) -> Index {
        self.entries.sort_unstable();
        self.entries.dedup_by(|later, first| {
            let same = later.0 == first.0;
            if same {
                first.1 = (first.1 & !3) | (first.1 & 3).max(later.1 & 3);
            }
            same
        });
        let bits = self.entries.len().checked_ilog2().unwrap_or(0).saturating_sub(2);
        let mut starts = vec![0; (1 << bits) + 1];
        for (hash, _) in &self.entries {
            starts[bucket(*hash, bits) + 1] += 1;
        }
        for at in 1..starts.len() {
            starts[at] += starts[at - 1];
        }
        let (hashes, owners) = self.entries.into_iter().unzip();
        Index { keys: self.keys, bits, starts, hashes, owners }
    }
}

/// The bucket of a hash: its uppermost bits.
fn bucket(hash: u64, bits: u32) -> usize {
    hash.checked_shr(64 - bits).unwrap_or(0) as usize
}

fn prefix(keys: &RandomState, dir: &[u8]) -> Prefix {
    let mut hasher = keys.build_hasher();
    hasher.write(dir);
    hasher.write(b"/");
    Prefix(hasher)
}

/// Owners by path; four to eight paths a bucket.
pub(crate) struct Index {
    keys: RandomState,
    bits: u32,
    starts: Vec<u32>,
    hashes: Vec<u64>,
    owners: Vec<u32>,
}

impl Index {
    pub(crate) fn len(&self) -> usize {
        self.hashes.len()
    }

    pub(crate) fn prefix(&self, dir: &[u8]) -> Prefix {
        prefix(&self.keys, dir)
    }

    pub(crate) fn owner(&self, prefix: &Prefix, name: &[u8]) -> Option<(PackageId, Role)> {
        if self.hashes.is_empty() {
            return None;
        }
        let hash = prefix.hash(name);
        let at = bucket(hash, self.bits);
        let (start, end) = (self.starts[at] as usize, self.starts[at + 1] as usize);
        let found = self.hashes[start..end].iter().position(|&known| known == hash)?;
        Some(unpack(self.owners[start + found]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_added_and_nothing_else() {
        for count in [0_u32, 1, 2, 3, 7, 8, 1000, 40_000] {
            let mut collect = Collect::default();
            for n in 0..count {
                collect.add(b"usr/bin", format!("f{n}").as_bytes(), PackageId(n), Role::Content);
            }
            let index = collect.finish();
            let prefix = index.prefix(b"usr/bin");
            for n in 0..count {
                let owner = index.owner(&prefix, format!("f{n}").as_bytes());
                assert_eq!(owner, Some((PackageId(n), Role::Content)));
            }
            assert_eq!(index.owner(&prefix, b"g"), None);
            assert_eq!(index.owner(&index.prefix(b"usr"), b"f0"), None);
        }
    }

    #[test]
    fn the_strictest_role_of_several_owners_counts() {
        let mut collect = Collect::default();
        collect.add(b"etc", b"x", PackageId(4), Role::Config);
        collect.add(b"etc", b"x", PackageId(2), Role::Content);
        collect.add(b"etc", b"x", PackageId(9), Role::Generated);
        let index = collect.finish();
        assert_eq!(index.owner(&index.prefix(b"etc"), b"x"), Some((PackageId(2), Role::Config)));
        assert_eq!(index.len(), 1);
    }
}
