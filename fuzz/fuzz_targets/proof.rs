//! What parses as a receipt is the one spelling of what it says, and the proofs of a range are read
//! without a panic.

#![no_main]

use attestd::bundle::Proofs;
use attestd::ledger::hash::Digest;
use attestd::ledger::proof::Receipt;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    if let Ok(receipt) = Receipt::parse(text) {
        assert_eq!(receipt.to_string().as_bytes(), text);
        // Without a trusted key nothing verifies.
        assert!(receipt.verify(receipt.sequence(), Digest::ZERO, &[]).is_err());
    }
    let _ = Proofs::parse(text);
});
