//! The hooks that the running kernel has, from its own description of its types.
//!
//! The format is that of the kernel's `Documentation/bpf/btf.rst`. Only functions and their numbers of
//! parameters are looked at; what is wrong ends the reading, never the process.

use std::collections::HashMap;

/// How many arguments each LSM hook has, by the hook's name.
pub(crate) type Hooks = HashMap<String, usize>;

/// What the kernel calls the place where programs for a hook are attached.
const PREFIX: &str = "bpf_lsm_";
const MAGIC: u16 = 0xeb9f;

const KIND_INT: u32 = 1;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_ENUM64: u32 = 19;

/// The LSM hooks in a BTF blob.
pub(crate) fn hooks(blob: &[u8]) -> Result<Hooks, String> {
    let sections = Sections::of(blob).ok_or("its header is wrong")?;
    let mut functions = Vec::new();
    let mut parameters = HashMap::new();
    let mut at = 0;
    let mut id = 1_u32; // 0 is void
    while at < sections.types.len() {
        let one = Type::at(sections.types, at).ok_or("a type is cut off")?;
        match one.kind {
            KIND_FUNC => {
                if let Some(hook) = sections.name(one.name).and_then(|name| name.strip_prefix(PREFIX)) {
                    functions.push((hook.to_owned(), one.target));
                }
            }
            KIND_FUNC_PROTO => {
                parameters.insert(id, one.members);
            }
            _ => {}
        }
        at += one.size().ok_or("a type of an unknown kind")?;
        id += 1;
    }
    let count = |(hook, proto)| Some((hook, *parameters.get(&proto)?));
    Ok(functions.into_iter().filter_map(count).collect())
}

struct Sections<'a> {
    types: &'a [u8],
    strings: &'a [u8],
}

impl<'a> Sections<'a> {
    fn of(blob: &'a [u8]) -> Option<Self> {
        let magic = u16::from_ne_bytes(blob.get(..2)?.try_into().ok()?);
        if magic != MAGIC {
            return None;
        }
        let header = word(blob, 4)?;
        let body = blob.get(header..)?;
        let part = |at| {
            let start = word(blob, at)?;
            body.get(start..start.checked_add(word(blob, at + 4)?)?)
        };
        Some(Self { types: part(8)?, strings: part(16)? })
    }

    fn name(&self, at: usize) -> Option<&'a str> {
        let rest = self.strings.get(at..)?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        std::str::from_utf8(&rest[..end]).ok()
    }
}

struct Type {
    name: usize,
    kind: u32,
    members: usize,
    target: u32,
}

impl Type {
    fn at(types: &[u8], at: usize) -> Option<Self> {
        let (name, info, target) = (word(types, at)?, word(types, at + 4)?, word(types, at + 8)?);
        let kind = (info >> 24 & 0x1f) as u32;
        Some(Self { name, kind, members: info & 0xffff, target: target as u32 })
    }

    /// Bytes it takes, with what follows it.
    fn size(&self) -> Option<usize> {
        let rest = match self.kind {
            KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
            KIND_ARRAY => 12,
            KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => 12 * self.members,
            KIND_ENUM | KIND_FUNC_PROTO => 8 * self.members,
            2 | 7..=12 | 16 | 18 => 0, // pointers, typedefs, qualifiers, forwards, functions, floats, tags
            _ => return None,
        };
        Some(12 + rest)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A blob with one hook of two arguments.
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0bpf_lsm_path_chmod\0other\0";
        let mut types: Vec<u32> = vec![1, KIND_INT << 24, 4, 32]; // id 1
        types.extend([0, KIND_FUNC_PROTO << 24 | 2, 1, 0, 1, 0, 1]); // id 2
        types.extend([5, KIND_FUNC << 24, 2]); // id 3
        types.extend([24, KIND_FUNC << 24, 2]); // id 4
        let types: Vec<u8> = types.into_iter().flat_map(u32::to_ne_bytes).collect();
        let mut blob = [MAGIC.to_ne_bytes(), [1, 0]].concat();
        for word in [24, 0, types.len(), types.len(), strings.len()] {
            blob.extend((word as u32).to_ne_bytes());
        }
        blob.extend(types);
        blob.extend(strings);
        blob
    }

    #[test]
    fn hooks_have_arguments() {
        let hooks = hooks(&sample()).unwrap();
        assert_eq!(hooks, Hooks::from([("path_chmod".to_owned(), 2)]));
    }

    #[test]
    fn damage_is_an_error_or_harmless() {
        let whole = sample();
        for cut in 0..whole.len() {
            assert!(hooks(&whole[..cut]).is_err(), "cut at {cut}");
        }
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] = value;
                hooks(&damaged).ok();
            }
        }
    }

    #[test]
    fn the_running_kernel_is_understood() {
        // Where a kernel has types at all, they are read to their end.
        if let Ok(blob) = std::fs::read("/sys/kernel/btf/vmlinux") {
            hooks(&blob).unwrap();
        }
    }
}
