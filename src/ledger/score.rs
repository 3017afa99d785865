//! Pillar scores, the composite score and the safety floor, in integers of 1/10,000.
//!
//! Scores never pass through floating-point arithmetic, so the daemon and every verifier in any
//! language come to the same composite to the last digit. `7.25` is `Score(72_500)`.

use std::fmt;

/// One unit of a score, as a fraction of 1.
pub const SCALE: u32 = 10_000;

/// A number from 0 to 10 with at most four decimals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Score(u32);

impl Score {
    /// The lowest score, and the composite of an entry that is not scored.
    pub const ZERO: Score = Score(0);
    /// The highest score.
    pub const MAX: Score = Score(10 * SCALE);

    /// A score of `units` ten-thousandths; `None` over 10.
    #[must_use]
    pub fn from_units(units: u32) -> Option<Self> {
        (units <= Self::MAX.0).then_some(Score(units))
    }

    /// The score in ten-thousandths.
    #[must_use]
    pub fn units(self) -> u32 {
        self.0
    }

    /// Reads the canonical (RFC 8785) text of a number; `None` for a number that is negative,
    /// over 10 or has more than four decimals.
    #[must_use]
    pub fn from_canonical(text: &str) -> Option<Self> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
        let dangling = text.ends_with('.');
        if whole.is_empty()
            || whole.len() > 2
            || fraction.len() > 4
            || !digits(whole)
            || !digits(fraction)
            || dangling
        {
            return None;
        }
        let mut units: u32 = whole.parse().ok()?;
        for place in 0..4 {
            units = units * 10 + u32::from(fraction.as_bytes().get(place).map_or(0, |b| b - b'0'));
        }
        Self::from_units(units)
    }

    /// Appends the canonical text.
    pub fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.to_string().as_bytes());
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fraction = format!("{:04}", self.0 % SCALE);
        let fraction = fraction.trim_end_matches('0');
        write!(f, "{}", self.0 / SCALE)?;
        if fraction.is_empty() { Ok(()) } else { write!(f, ".{fraction}") }
    }
}

/// The four pillars in the order of their canonical names.
pub const PILLAR_NAMES: [&str; 4] = ["an_toan", "duong_dai", "han_che_rui_ro", "tin_vao_so_lieu"];

/// The four scores, in the order of [`PILLAR_NAMES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pillars(pub [Score; 4]);

impl Pillars {
    /// Appends the canonical object.
    pub fn write(self, out: &mut Vec<u8>) {
        for (index, (name, score)) in PILLAR_NAMES.iter().zip(self.0).enumerate() {
            out.extend_from_slice(if index == 0 { b"{\"" } else { b",\"" });
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b"\":");
            score.write(out);
        }
        out.push(b'}');
    }
}

/// How scores are weighed and where the floor lies. The default is one weight for each pillar
/// and a floor of 7.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scale {
    /// Positive weights in the order of [`PILLAR_NAMES`], each at most [`Scale::MAX_WEIGHT`].
    pub weights: [u32; 4],
    /// The lowest composite that meets the safety floor.
    pub floor: Score,
}

impl Default for Scale {
    fn default() -> Self {
        Scale { weights: [1; 4], floor: Score(7 * SCALE) }
    }
}

impl Scale {
    /// Keeps Σ weight·score in 64 bits with room to spare.
    pub const MAX_WEIGHT: u32 = 1_000_000;

    /// The composite score (weighted mean, rounded half up to four decimals) and whether the
    /// *unrounded* mean is at or over the floor. Without scores: 0 and false.
    #[must_use]
    pub fn judge(&self, pillars: Option<Pillars>) -> (Score, bool) {
        let Some(Pillars(scores)) = pillars else {
            return (Score::ZERO, false);
        };
        let weighed: u64 =
            self.weights.iter().zip(scores).map(|(w, s)| u64::from(*w) * u64::from(s.units())).sum();
        let total: u64 = self.weights.iter().map(|w| u64::from(*w)).sum();
        let rounded = (2 * weighed + total) / (2 * total);
        let composite = u32::try_from(rounded).ok().and_then(Score::from_units).unwrap_or(Score::MAX);
        (composite, weighed >= u64::from(self.floor.units()) * total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pillars(units: [u32; 4]) -> Option<Pillars> {
        Some(Pillars(units.map(|u| Score::from_units(u).expect("in range"))))
    }

    #[test]
    fn text_and_units_are_one_to_one() {
        for units in [0, 1, 10, 100, 1_000, 10_000, 72_500, 99_999, 100_000] {
            let score = Score::from_units(units).expect("in range");
            assert_eq!(Score::from_canonical(&score.to_string()), Some(score));
        }
        assert_eq!(Score::from_units(72_500).expect("in range").to_string(), "7.25");
        for text in ["10.0001", "11", "-1", "1.23456", "1e-7", "", "100", "7."] {
            assert_eq!(Score::from_canonical(text), None, "{text}");
        }
    }

    #[test]
    fn a_mean_that_only_rounds_up_to_the_floor_does_not_meet_it() {
        let scale = Scale::default();
        let (composite, met) = scale.judge(pillars([70_000, 70_000, 70_000, 69_998]));
        assert_eq!((composite.to_string().as_str(), met), ("7", false));
        assert!(scale.judge(pillars([70_000; 4])).1);
    }

    #[test]
    fn halves_round_up() {
        let (composite, _) = Scale::default().judge(pillars([1, 1, 0, 0]));
        assert_eq!(composite.units(), 1);
        let (composite, _) = Scale::default().judge(pillars([1, 0, 0, 0]));
        assert_eq!(composite.units(), 0);
    }
}
