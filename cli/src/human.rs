//! Figures for people. Machines get plain integers, and seconds as a number, in JSON.

use std::fmt;
use std::time::Duration;

/// A size in bytes. Units are decimal (1 kB = 1,000 bytes), as on disks' labels and in `--si` of other
/// tools. `{}` gives `1.4 GB`; `{:#}` adds the exact figure: `1.4 GB (1,400,123,456 bytes)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HumanBytes(pub u64);

const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];

impl fmt::Display for HumanBytes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = if self.0 == 1 { "byte" } else { "bytes" };
        if self.0 < 1000 {
            return out.pad(&format!("{} {bytes}", self.0));
        }
        // The first unit in which the figure, rounded to tenths, stays below 1,000.
        let mut unit = 1_000;
        let mut names = UNITS.iter();
        let mut name = names.next();
        while tenths(self.0, unit) >= 10_000 && names.len() > 0 {
            unit *= 1_000;
            name = names.next();
        }
        let figure = tenths(self.0, unit);
        let short = format!("{}.{} {}", figure / 10, figure % 10, name.unwrap_or(&""));
        if out.alternate() {
            out.pad(&format!("{short} ({} {bytes})", Count(self.0)))
        } else {
            out.pad(&short)
        }
    }
}

/// `n` in tenths of `unit`, rounded half up.
fn tenths(n: u64, unit: u64) -> u64 {
    ((u128::from(n) * 20 + u128::from(unit)) / (2 * u128::from(unit))) as u64
}

/// A count, with separators: `1,400,123`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Count(pub u64);

impl fmt::Display for Count {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        let mut text = String::with_capacity(digits.len() * 4 / 3);
        for (at, digit) in digits.chars().enumerate() {
            if at > 0 && (digits.len() - at).is_multiple_of(3) {
                text.push(',');
            }
            text.push(digit);
        }
        out.pad(&text)
    }
}

/// A count of things, with the word for one and for several: `1 guest`, `2,000 guests`.
#[derive(Clone, Copy, Debug)]
pub struct Many(pub u64, pub &'static str, pub &'static str);

impl fmt::Display for Many {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(count, one, several) = *self;
        write!(out, "{} {}", Count(count), if count == 1 { one } else { several })
    }
}

/// A time span, to two figures that matter: `340 ms`, `2.4 s`, `3 min 5 s`, `2 h 3 min`, `5 d 1 h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HumanDuration(pub Duration);

impl fmt::Display for HumanDuration {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        let seconds = self.0.as_secs();
        let two = |big: u64, unit: &str, small: u64, part: &str| match small {
            0 => format!("{big} {unit}"),
            _ => format!("{big} {unit} {small} {part}"),
        };
        out.pad(&match seconds {
            0 => format!("{millis} ms"),
            1..60 => format!("{}.{} s", seconds, millis % 1000 / 100),
            60..3_600 => two(seconds / 60, "min", seconds % 60, "s"),
            3_600..86_400 => two(seconds / 3_600, "h", seconds % 3_600 / 60, "min"),
            _ => two(seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let cases = [
            (0, "0 bytes"),
            (1, "1 byte"),
            (999, "999 bytes"),
            (1_000, "1.0 kB"),
            (1_049, "1.0 kB"),
            (1_050, "1.1 kB"),
            (999_949, "999.9 kB"),
            (999_950, "1.0 MB"),
            (1_400_123_456, "1.4 GB"),
            (u64::MAX, "18.4 EB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(HumanBytes(bytes).to_string(), text);
        }
    }

    #[test]
    fn exact_sizes() {
        assert_eq!(format!("{:#}", HumanBytes(1_400_123_456)), "1.4 GB (1,400,123,456 bytes)");
        assert_eq!(format!("{:#}", HumanBytes(12)), "12 bytes");
        assert_eq!(format!("{:>8}", HumanBytes(1_000)), "  1.0 kB");
    }

    #[test]
    fn counts() {
        let cases =
            [(0, "0"), (999, "999"), (1_000, "1,000"), (123_456, "123,456"), (1_234_567, "1,234,567")];
        for (count, text) in cases {
            assert_eq!(Count(count).to_string(), text);
        }
    }

    #[test]
    fn one_is_no_plural() {
        let text = [0, 1, 2_000].map(|count| Many(count, "guest", "guests").to_string());
        assert_eq!(text, ["0 guests", "1 guest", "2,000 guests"]);
    }

    #[test]
    fn durations() {
        let cases = [
            (0, "0 ms"),
            (340, "340 ms"),
            (2_490, "2.4 s"),
            (59_999, "59.9 s"),
            (60_000, "1 min"),
            (185_000, "3 min 5 s"),
            (7_380_000, "2 h 3 min"),
            (435_600_000, "5 d 1 h"),
        ];
        for (millis, text) in cases {
            assert_eq!(HumanDuration(Duration::from_millis(millis)).to_string(), text);
        }
    }
}
