//! Choosing the seal of a run: nothing is shared unprotected unless the user says so.

use std::path::Path;

use kernel::{Errno, File, Offer, Protection as _, Real, Seal, Verdict, probe, sample_file};

use crate::{Error, Result};

/// What the user wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// `--noflags`: no protection, the guests are trusted.
    pub noflags: bool,
    /// `--immutable`: names may not be unlinked either.
    pub immutable: bool,
    /// `--immutable-mayunlink`: content and metadata protected, names free.
    pub mayunlink: bool,
}

/// The seal for a run on the file system of `sample`, or why there is none. `place` is a directory there.
pub fn choose(wish: Wish, sample: &File, place: &Path) -> Result<Seal> {
    let offers = probe(sample);
    let seal =
        pick(wish, &offers).ok_or_else(|| Error::NoProtection { place: place.to_path_buf(), offers })?;
    if may_seal(place, seal) { Ok(seal) } else { Err(Error::MayNotSeal { place: place.to_path_buf(), seal }) }
}

/// Whether this process is allowed to put the seal on, and to take it off: tried on a file without a name. Where
/// that can't be had, files will tell.
fn may_seal(place: &Path, seal: Seal) -> bool {
    if !seal.can_be_lifted() {
        return true;
    }
    let sealed = |file: File| Real.seal(&file, seal).and_then(|()| Real.unseal(&file, seal));
    let tried = sample_file(place).and_then(File::reopen_to_read).and_then(sealed);
    !matches!(tried, Err(Errno::PERM | Errno::ACCESS))
}

/// The original options were two flags, both on by default; `--noflags` took both off, and a flag named
/// after it came back alone. Immutable alone locks names; may-unlink alone is link-invert.
fn pick(wish: Wish, offers: &[Offer]) -> Option<Seal> {
    let enforced = |seal: Seal| offers.iter().any(|offer| offer.seal == seal && offer.is_enforced());
    let first = |seals: &[Seal]| seals.iter().copied().find(|seal| enforced(*seal));
    match wish {
        Wish { immutable: true, mayunlink: false, .. } => {
            let immutable = offers.iter().find(|offer| offer.seal == Seal::Immutable);
            let possible = immutable.is_some_and(|offer| matches!(offer.verdict, Verdict::Inactive(_)));
            possible.then_some(Seal::Immutable)
        }
        Wish { mayunlink: true, .. } => first(&[Seal::Patch, Seal::Bpf]),
        Wish { noflags: true, .. } => Some(Seal::None),
        Wish { .. } => first(&[Seal::Patch, Seal::Bpf, Seal::Verity]),
    }
}

/// One line for a seal that cannot be had, with its cure.
pub fn describe(offer: &Offer) -> String {
    let why = match &offer.verdict {
        Verdict::Enforced => "enforced",
        Verdict::Unsupported(why)
        | Verdict::NotPermitted(why)
        | Verdict::Inactive(why)
        | Verdict::Unknown(why) => why,
    };
    format!("{}: {why}; to have it, {}", offer.seal.name(), offer.cure)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offers(enforced: &[Seal]) -> Vec<Offer> {
        let verdict = |seal| match seal {
            seal if enforced.contains(&seal) => Verdict::Enforced,
            Seal::Immutable => Verdict::Inactive(String::new()),
            _ => Verdict::Unsupported(String::new()),
        };
        [Seal::Patch, Seal::Bpf, Seal::Verity, Seal::Immutable]
            .map(|seal| Offer { seal, verdict: verdict(seal), leaves_open: "", cure: "" })
            .to_vec()
    }

    #[test]
    fn options_mean_what_they_meant() {
        let wish = |noflags, immutable, mayunlink| Wish { noflags, immutable, mayunlink };
        let none = offers(&[]);
        let all = offers(&[Seal::Patch, Seal::Bpf, Seal::Verity]);
        assert_eq!(pick(wish(false, false, false), &none), None);
        assert_eq!(pick(wish(false, false, false), &all), Some(Seal::Patch));
        assert_eq!(pick(wish(false, true, true), &all), Some(Seal::Patch));
        assert_eq!(pick(wish(false, false, false), &offers(&[Seal::Verity])), Some(Seal::Verity));
        assert_eq!(pick(wish(false, false, true), &offers(&[Seal::Verity])), None);
        assert_eq!(pick(wish(true, false, false), &all), Some(Seal::None));
        assert_eq!(pick(wish(true, true, false), &none), Some(Seal::Immutable));
        assert_eq!(pick(wish(false, true, false), &none), Some(Seal::Immutable));
        assert_eq!(pick(wish(true, false, true), &offers(&[Seal::Bpf])), Some(Seal::Bpf));
        assert_eq!(pick(wish(true, false, true), &none), None);
    }
}
