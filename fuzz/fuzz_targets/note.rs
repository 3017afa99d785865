//! What parses as a signed note is the one spelling of what it says.

#![no_main]

use attestd::ledger::checkpoint::{Checkpoint, Note};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let Ok(note) = Note::parse(text) else { return };
    assert_eq!(note.as_str().as_bytes(), text);
    let checkpoint = note.checkpoint();
    assert!(checkpoint.text().len() >= 49);
    assert_eq!(Checkpoint::new(checkpoint.origin(), checkpoint.root()).as_ref(), Ok(checkpoint));
    let lines: String = note.lines().iter().map(|line| format!("{line}\n")).collect();
    assert_eq!(format!("{}\n{lines}", checkpoint.text()).as_bytes(), text);
});
