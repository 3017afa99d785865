//! Latencies in bounded memory, to within 2 %.

use std::time::Duration;

/// Each power of two is cut into this many buckets, so a bucket is at most 1/64 wide.
const STEPS: u64 = 64;
const STEP_BITS: u32 = STEPS.trailing_zeros();
/// Up to 2^36 µs, which is 19 hours.
const BUCKETS: usize = (STEPS as usize) * (37 - STEP_BITS as usize);

/// A histogram of microseconds with logarithmic buckets.
#[derive(Debug, Clone)]
pub(crate) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    max: u64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Histogram { buckets: vec![0; BUCKETS], count: 0, max: 0 }
    }

    /// Records `count` events that took `time` each.
    pub(crate) fn record(&mut self, time: Duration, count: u64) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.buckets[bucket(micros)] += count;
        self.count += count;
        self.max = self.max.max(micros);
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The longest time in µs, exactly.
    pub(crate) fn max(&self) -> u64 {
        self.max
    }

    /// The time in µs that a fraction `quantile` of the events did not exceed; 0 without events.
    pub(crate) fn quantile(&self, quantile: f64) -> u64 {
        let rank = ((self.count as f64 * quantile).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return upper_end(index).min(self.max);
            }
        }
        self.max
    }

    pub(crate) fn merge(&mut self, other: &Histogram) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
        self.max = self.max.max(other.max);
    }
}

/// Below `2 * STEPS` a bucket is one microsecond; from there each octave has `STEPS` buckets.
fn bucket(micros: u64) -> usize {
    let shift = (u64::BITS - micros.leading_zeros()).saturating_sub(STEP_BITS + 1);
    let index = u64::from(shift) * STEPS + (micros >> shift);
    usize::try_from(index).map_or(BUCKETS - 1, |index| index.min(BUCKETS - 1))
}

fn upper_end(index: usize) -> u64 {
    let index = index as u64;
    let shift = (index / STEPS).saturating_sub(1);
    ((index - shift * STEPS + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_contiguous_and_narrow() {
        let mut last = 0;
        for micros in (0..10_000).chain((14..36).map(|power| 1 << power)) {
            let at = bucket(micros);
            assert!(at == last || at == last + 1 || micros > 10_000, "{micros}");
            let end = upper_end(at);
            assert!(end >= micros && end - micros <= micros / STEPS, "{micros} ends at {end}");
            last = at;
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_and_maximum() {
        let mut histogram = Histogram::new();
        assert_eq!((histogram.quantile(0.5), histogram.max()), (0, 0));
        for micros in 1..=1_000 {
            histogram.record(Duration::from_micros(micros), 1);
        }
        let mut other = Histogram::new();
        other.record(Duration::from_micros(123_456), 10);
        histogram.merge(&other);
        assert_eq!((histogram.count(), histogram.max()), (1_010, 123_456));
        let p50 = histogram.quantile(0.5);
        assert!((505..=513).contains(&p50), "{p50}");
        assert_eq!(histogram.quantile(1.0), 123_456);
        assert!((976..=1_000).contains(&histogram.quantile(0.98)));
    }
}
