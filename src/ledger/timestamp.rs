//! Ledger time: RFC 3339 in UTC with exactly six fractional digits and a `Z`.
//!
//! ```text
//! 2026-11-25T02:29:42.000123Z
//! ```

use std::fmt;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// Bytes of the text form.
pub const TEXT_BYTES: usize = 27;

/// Microseconds since 1970-01-01T00:00:00Z, from the year 0000 to [`Timestamp::MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// 1970-01-01T00:00:00Z, earlier than any entry.
    pub const EPOCH: Timestamp = Timestamp(0);
    /// 9999-12-30T21:59:59.999999Z, the end of the last hour that exists in every time zone within the
    /// four digits of a year, and the last that an entry may have.
    pub const MAX: Timestamp = Timestamp(253_402_207_199_999_999);
    const MIN: i64 = -62_167_219_200_000_000;

    /// The instant `micros` microseconds after the epoch, brought into the range of the format.
    #[must_use]
    pub fn from_micros(micros: i64) -> Self {
        Timestamp(micros.clamp(Self::MIN, Self::MAX.0))
    }

    /// Microseconds after the epoch.
    #[must_use]
    pub fn as_micros(self) -> i64 {
        self.0
    }

    /// Reads exactly the canonical text form; `None` for any other spelling, for a date that
    /// does not exist and for a leap second.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let shape = b"dddd-dd-ddTdd:dd:dd.ddddddZ";
        let fits = text.len() == TEXT_BYTES
            && text.iter().zip(shape).all(|(b, s)| if *s == b'd' { b.is_ascii_digit() } else { b == s });
        if !fits {
            return None;
        }
        let number =
            |from: usize, to: usize| text[from..to].iter().fold(0i32, |n, b| n * 10 + i32::from(b - b'0'));
        let small = |from: usize, to: usize| i8::try_from(number(from, to)).ok();
        let year = i16::try_from(number(0, 4)).ok()?;
        let civil = DateTime::new(
            year,
            small(5, 7)?,
            small(8, 10)?,
            small(11, 13)?,
            small(14, 16)?,
            small(17, 19)?,
            number(20, 26) * 1_000,
        )
        .ok()?;
        let instant = Timestamp(TimeZone::UTC.to_timestamp(civil).ok()?.as_microsecond());
        (instant <= Self::MAX).then_some(instant)
    }

    /// Appends the text form.
    pub fn write(self, out: &mut Vec<u8>) {
        let civil = self.civil();
        let mut text = *b"0000-00-00T00:00:00.000000Z";
        let year = u32::from(civil.year().unsigned_abs());
        let fields = [
            (0, 4, year),
            (5, 2, u32::from(civil.month().unsigned_abs())),
            (8, 2, u32::from(civil.day().unsigned_abs())),
            (11, 2, u32::from(civil.hour().unsigned_abs())),
            (14, 2, u32::from(civil.minute().unsigned_abs())),
            (17, 2, u32::from(civil.second().unsigned_abs())),
            (20, 6, civil.subsec_nanosecond().unsigned_abs() / 1_000),
        ];
        for (at, width, mut value) in fields {
            for place in (at..at + width).rev() {
                text[place] = b'0' + (value % 10) as u8;
                value /= 10;
            }
        }
        out.extend_from_slice(&text);
    }

    fn civil(self) -> DateTime {
        jiff::Timestamp::from_microsecond(self.0)
            .map(|instant| TimeZone::UTC.to_datetime(instant))
            .unwrap_or(DateTime::ZERO)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Vec::with_capacity(TEXT_BYTES);
        self.write(&mut text);
        f.write_str(&String::from_utf8_lossy(&text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_spelling_for_each_instant() {
        for micros in [0, 1, 999_999, 1_795_573_782_000_123, Timestamp::MAX.0, Timestamp::MIN] {
            let instant = Timestamp::from_micros(micros);
            assert_eq!(Timestamp::parse(instant.to_string().as_bytes()), Some(instant), "{instant}");
        }
        assert_eq!(Timestamp::from_micros(1).to_string(), "1970-01-01T00:00:00.000001Z");
    }

    #[test]
    fn other_spellings_are_refused() {
        for text in [
            "2026-11-25T02:29:42Z",
            "2026-11-25T02:29:42.123Z",
            "2026-11-25t02:29:42.000123Z",
            "2026-11-25T02:29:42.000123z",
            "2026-11-25T02:29:42.000123+00:00",
            "2026-02-29T02:29:42.000123Z",
            "2026-13-01T02:29:42.000123Z",
            "2026-11-25T24:00:00.000000Z",
            "2026-11-25T23:59:60.000000Z",
            "9999-12-31T23:59:59.999999Z",
            "+026-11-25T02:29:42.000123Z",
        ] {
            assert_eq!(Timestamp::parse(text.as_bytes()), None, "{text}");
        }
    }
}
