//! How fast a caller may append: no faster than its rule says.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A caller of the rules whose rate is limited, and its limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pace {
    /// The rule's name.
    pub caller: String,
    /// Entries a second; as many may come at once.
    pub per_second: u32,
}

/// What callers have left. Of those without a limit nothing is kept, so the rules bound its size.
#[derive(Debug, Default)]
pub struct Rates {
    buckets: Mutex<HashMap<String, Bucket>>,
}

#[derive(Debug)]
struct Bucket {
    /// Entries that may come now; less than none where a batch has gone ahead.
    left: f64,
    at: Instant,
}

impl Rates {
    /// Takes one entry of what the caller has left.
    ///
    /// # Errors
    /// After how long there is one, when there is none now.
    pub fn take(&self, pace: &Pace) -> Result<(), Duration> {
        self.with(pace, |left| {
            if *left < 1.0 {
                return Err(1.0 - *left);
            }
            *left -= 1.0;
            Ok(())
        })
    }

    /// The same for who can wait: after how long the next one may come.
    pub fn charge(&self, pace: &Pace) -> Duration {
        self.with(pace, |left| {
            *left -= 1.0;
            if *left >= 0.0 { Ok(()) } else { Err(-*left) }
        })
        .err()
        .unwrap_or_default()
    }

    fn with(&self, pace: &Pace, spend: impl FnOnce(&mut f64) -> Result<(), f64>) -> Result<(), Duration> {
        let rate = f64::from(pace.per_second);
        let now = Instant::now();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = buckets.entry(pace.caller.clone()).or_insert(Bucket { left: rate, at: now });
        bucket.left = (bucket.left + now.duration_since(bucket.at).as_secs_f64() * rate).min(rate);
        bucket.at = now;
        spend(&mut bucket.left).map_err(|missing| Duration::from_secs_f64(missing / rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_its_rate_may_come_at_once() {
        let rates = Rates::default();
        let pace = |caller: &str| Pace { caller: caller.into(), per_second: 3 };
        for _ in 0..3 {
            assert_eq!(rates.take(&pace("a")), Ok(()));
        }
        let wait = rates.take(&pace("a")).expect_err("none left");
        assert!(wait <= Duration::from_secs(1) / 3, "{wait:?}");
        assert_eq!(rates.take(&pace("b")), Ok(()), "each has its own");
        for _ in 0..3 {
            rates.charge(&pace("a"));
        }
        let wait = rates.charge(&pace("a"));
        assert!(wait > Duration::from_secs(1) && wait <= Duration::from_secs(2), "{wait:?}");
    }
}
