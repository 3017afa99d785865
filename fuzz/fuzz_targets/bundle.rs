//! Any bytes as a bundle's tar, and any files in a tar that is sound: a verdict and no panic. The key
//! that is trusted is that of the seeds, so that sound bundles are verified to the end.

#![no_main]

use std::num::NonZeroUsize;

use attestd::audit::{Expectations, TrustedKeys};
use attestd::bundle::Bundle;
use attestd::ledger::key::PublicKey;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|tar: &[u8]| {
    let key = PublicKey::from_pem(include_str!("../key.pem")).expect("a key");
    let expectations =
        Expectations { threads: NonZeroUsize::new(1), ..Expectations::trusting(TrustedKeys::only(key)) };
    // A tar is read by place, so it must be a file.
    let path = std::env::temp_dir().join(format!("attestd-fuzz-{}.tar", std::process::id()));
    std::fs::write(&path, mended(tar)).expect("written");
    let verdict = Bundle::open(&path).and_then(|bundle| bundle.verify(&expectations, |_| {}));
    std::fs::remove_file(&path).expect("removed");
    let verdict = verdict.expect("a file that is there can be read");
    assert_eq!(verdict.ok, verdict.fault.is_none());
});

/// The same with the checksums of headers put right, which no fuzzer finds by chance.
fn mended(tar: &[u8]) -> Vec<u8> {
    const CHECKSUM: std::ops::Range<usize> = 148..156;
    let mut tar = tar.to_vec();
    for block in tar.as_chunks_mut::<512>().0 {
        if &block[257..262] == b"ustar" {
            block[CHECKSUM].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    tar
}
