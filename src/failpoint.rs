//! Exact places at which a test has the daemon die, as a power cut or `kill -9` might: without a
//! destructor, an answer or another write. Debug builds only; in a release build [`reach`] is
//! empty and nothing reads the environment.
//!
//! `ATTESTD_CRASH_AT=after-reserve` aborts the process there, `ATTESTD_CRASH_AT=after-reserve:3`
//! when it gets there for the third time. The places, in the order of a commit:
//!
//! | name | what is on the disk |
//! |---|---|
//! | `before-reserve` | nothing of the commit |
//! | `after-reserve` | its entries, unsigned; the token has not been asked |
//! | `after-sign` | its entries, unsigned; the signatures are lost |
//! | `after-commit` | all of it; nobody has an answer |
//! | `after-rotate` | a change of the key, and nothing that the new one signed |
//! | `after-signing-again` | at a start: the entries found reserved, still unsigned |
//! | `within-index-write` | all of it; the index's transaction is half done |
//!
//! `ATTESTD_CLOCK_SET=FILE` sets the wall clock of this process alone: the file says by how many seconds,
//! and may be written again at any time.

/// Aborts the process when this place is the one that was asked for.
#[cfg(debug_assertions)]
pub(crate) fn reach(place: &str) {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    static WANTED: LazyLock<Option<(String, AtomicU32)>> = LazyLock::new(|| {
        let wanted = std::env::var("ATTESTD_CRASH_AT").ok()?;
        let (place, nth) = wanted.split_once(':').unwrap_or((&wanted, "1"));
        Some((place.to_owned(), AtomicU32::new(nth.parse().ok()?)))
    });
    if let Some((wanted, left)) = &*WANTED
        && wanted == place
        && left.fetch_sub(1, Ordering::Relaxed) == 1
    {
        std::process::abort();
    }
}

/// Does nothing.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub(crate) fn reach(_place: &str) {}

/// By how much a test has set the wall clock.
#[cfg(debug_assertions)]
pub(crate) fn clock_set_nanos() -> i128 {
    use std::sync::LazyLock;

    static FILE: LazyLock<Option<std::path::PathBuf>> =
        LazyLock::new(|| std::env::var_os("ATTESTD_CLOCK_SET").map(Into::into));
    let seconds = FILE.as_ref().and_then(|file| std::fs::read_to_string(file).ok());
    seconds
        .and_then(|seconds| seconds.trim().parse::<i64>().ok())
        .map_or(0, |s| i128::from(s) * 1_000_000_000)
}

/// Nothing sets it.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub(crate) fn clock_set_nanos() -> i128 {
    0
}
