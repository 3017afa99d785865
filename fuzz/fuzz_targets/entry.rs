//! What decodes as an entry is written again byte for byte, and its check takes anything.

#![no_main]

use attestd::audit::{TrustedKeys, check_entry};
use attestd::ledger::canonical;
use attestd::ledger::key::PublicKey;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &[u8]| {
    let key = PublicKey::from_pem(include_str!("../key.pem")).expect("a key");
    let _ = check_entry(line, &TrustedKeys::only(key));
    let Ok(decoded) = canonical::decode(line) else { return };
    // `encode` computes the hash, whatever the entry says of it.
    let again = canonical::encode(&decoded.entry);
    assert_eq!(again.hash, decoded.computed_hash);
    if decoded.entry.entry_hash == again.hash {
        assert_eq!(again.seal(decoded.entry.hsm_signature.as_bytes()), line);
    }
});
