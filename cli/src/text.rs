//! Names of any bytes, in JSON and on terminals.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt::{self, Write as _};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A path or any other text that comes from a guest, to be shown.
///
/// - In JSON it is a string where it is valid UTF-8, and otherwise `{"hex":"2f61ff"}`: its bytes, two
///   lower-case digits each. No string stands for two names, so reading gives back the same bytes.
/// - `Display` is for people: control characters, characters that reorder or hide text, and bytes that
///   aren't UTF-8 are escaped (`\n`, `\x1b`, `\u{202e}`, `\xff`), and the backslash is doubled, so two
///   names never look alike because of an escape, and no name can drive the terminal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PathText<'a>(Cow<'a, [u8]>);

impl<'a> PathText<'a> {
    /// Of a path or a string.
    pub fn new<P: AsRef<OsStr> + ?Sized>(path: &'a P) -> Self {
        Self(Cow::Borrowed(path.as_ref().as_bytes()))
    }

    /// Of bytes, as the kernel gives names.
    pub const fn from_bytes(bytes: &'a [u8]) -> Self {
        Self(Cow::Borrowed(bytes))
    }

    /// The bytes themselves.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As a path.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// One that borrows nothing.
    pub fn into_owned(self) -> PathText<'static> {
        PathText(Cow::Owned(self.0.into_owned()))
    }
}

impl From<PathBuf> for PathText<'static> {
    fn from(path: PathBuf) -> Self {
        Self(Cow::Owned(path.into_os_string().into_vec()))
    }
}

impl fmt::Display for PathText<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                if c == '\\' { out.write_str("\\\\")? } else { show(c, out)? }
            }
            chunk.invalid().iter().try_for_each(|byte| write!(out, "\\x{byte:02x}"))?;
        }
        Ok(())
    }
}

impl Serialize for PathText<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let Ok(text) = std::str::from_utf8(&self.0) {
            return serializer.serialize_str(text);
        }
        let mut hex = String::with_capacity(2 * self.0.len());
        for byte in self.0.iter() {
            // Writing to a String can't fail.
            write!(hex, "{byte:02x}").ok();
        }
        Hex { hex }.serialize(serializer)
    }
}

/// A name that isn't UTF-8, in JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Hex {
    hex: String,
}

impl<'de> Deserialize<'de> for PathText<'static> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Text(String),
            Bytes(Hex),
        }
        let bytes = match Form::deserialize(deserializer)? {
            Form::Text(text) => text.into_bytes(),
            Form::Bytes(Hex { hex }) => {
                from_hex(hex.as_bytes()).ok_or_else(|| D::Error::custom("bad hex"))?
            }
        };
        Ok(Self(Cow::Owned(bytes)))
    }
}

fn from_hex(hex: &[u8]) -> Option<Vec<u8>> {
    let digit = |d: u8| char::from(d).to_digit(16);
    let (pairs, []) = hex.as_chunks::<2>() else { return None };
    pairs.iter().map(|[high, low]| Some((digit(*high)? * 16 + digit(*low)?) as u8)).collect()
}

/// Whether a character can move the cursor, reorder a line or hide in it.
pub(crate) fn is_hostile(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Writes a character, escaped if it is hostile.
fn show(c: char, out: &mut impl fmt::Write) -> fmt::Result {
    match c {
        '\n' => out.write_str("\\n"),
        '\t' => out.write_str("\\t"),
        '\r' => out.write_str("\\r"),
        c if c.is_ascii_control() => write!(out, "\\x{:02x}", u32::from(c)),
        c if is_hostile(c) => write!(out, "\\u{{{:x}}}", u32::from(c)),
        c => out.write_char(c),
    }
}

/// Text for a terminal: hostile characters escaped, except those in `keep`. The last line of defence; it
/// leaves backslashes alone, so what [`PathText`] escaped stays as it is.
pub(crate) fn defuse<'a>(text: &'a str, keep: &[char]) -> Cow<'a, str> {
    let passes = |c: char| keep.contains(&c) || !is_hostile(c);
    if text.chars().all(passes) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if passes(c) {
            safe.push(c);
        } else {
            // Writing to a String can't fail.
            show(c, &mut safe).ok();
        }
    }
    Cow::Owned(safe)
}

/// JSON for a terminal. Hostile characters can stand in strings only, where `\uXXXX` means the same.
pub(crate) fn defuse_json(json: &str) -> Cow<'_, str> {
    if !json.chars().any(is_hostile) {
        return Cow::Borrowed(json);
    }
    let mut safe = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if is_hostile(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(safe, "\\u{unit:04x}").ok();
            }
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn json(bytes: &[u8]) -> String {
        serde_json::to_string(&PathText::from_bytes(bytes)).unwrap()
    }

    /// Undoes `Display`, to show that nothing was lost.
    fn unescape(mut text: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Some(c) = text.chars().next() {
            text = &text[c.len_utf8()..];
            if c != '\\' {
                bytes.extend(c.encode_utf8(&mut [0; 4]).bytes());
                continue;
            }
            let (kind, rest) = text.split_at(1);
            text = rest;
            match kind {
                "\\" => bytes.push(b'\\'),
                "n" => bytes.push(b'\n'),
                "t" => bytes.push(b'\t'),
                "r" => bytes.push(b'\r'),
                "x" => {
                    bytes.push(u8::from_str_radix(&text[..2], 16).unwrap());
                    text = &text[2..];
                }
                "u" => {
                    let (number, rest) = text[1..].split_once('}').unwrap();
                    let c = char::from_u32(u32::from_str_radix(number, 16).unwrap()).unwrap();
                    bytes.extend(c.encode_utf8(&mut [0; 4]).bytes());
                    text = rest;
                }
                other => panic!("escape {other:?}"),
            }
        }
        bytes
    }

    #[test]
    fn examples() {
        assert_eq!(json(b"/etc/motd"), r#""/etc/motd""#);
        assert_eq!(json("/\u{e4}".as_bytes()), "\"/\u{e4}\"");
        assert_eq!(json(b"/a\xff"), r#"{"hex":"2f61ff"}"#);
        assert_eq!(PathText::new("/a b\\c").to_string(), r"/a b\\c");
        assert_eq!(PathText::from_bytes(b"\x1b[2J\n\xff\x7f").to_string(), r"\x1b[2J\n\xff\x7f");
        assert_eq!(PathText::new("\u{202e}gpj.exe\u{9b}").to_string(), r"\u{202e}gpj.exe\u{9b}");
    }

    #[test]
    fn wrong_json_is_refused() {
        for bad in [r#"{"hex":"0"}"#, r#"{"hex":"0g"}"#, r#"{"hex":"00","x":1}"#, "3", "null"] {
            assert!(serde_json::from_str::<PathText<'static>>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn each_single_byte_survives() {
        for byte in 0..=u8::MAX {
            let name = [b'/', byte];
            let back: PathText<'static> = serde_json::from_str(&defuse_json(&json(&name))).unwrap();
            assert_eq!(back.as_bytes(), name);
            assert_eq!(unescape(&PathText::from_bytes(&name).to_string()), name);
        }
    }

    /// Bytes that are likely to be nearly UTF-8, nearly escapes, nearly control sequences.
    fn names() -> impl Strategy<Value = Vec<u8>> {
        let text = any::<String>().prop_map(String::into_bytes);
        let escapes =
            "(\\\\|x|u|\\{|\\}|[0-9a-f]|\u{9b}|\u{202e}|\u{e0041}|\n)*".prop_map(String::into_bytes);
        prop_oneof![prop::collection::vec(any::<u8>(), 0..64), text, escapes]
    }

    proptest! {
        #[test]
        fn json_loses_nothing(name in names()) {
            let line = json(&name);
            let safe = defuse_json(&line);
            prop_assert!(!safe.chars().any(is_hostile));
            let back: PathText<'static> = serde_json::from_str(&safe).unwrap();
            prop_assert_eq!(back.as_bytes(), &name[..]);
        }

        #[test]
        fn the_shown_form_is_harmless_and_loses_nothing(name in names()) {
            let shown = PathText::from_bytes(&name).to_string();
            prop_assert!(!shown.chars().any(is_hostile));
            prop_assert_eq!(defuse(&shown, &[]), &shown[..]);
            prop_assert_eq!(unescape(&shown), name);
        }

        #[test]
        fn defused_text_is_harmless(text in any::<String>()) {
            prop_assert!(!defuse(&text, &['\n']).chars().any(|c| c != '\n' && is_hostile(c)));
        }
    }
}
