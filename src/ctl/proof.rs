//! `attestctl proof`: the receipt of an entry, which proves without the ledger that it is in it.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use super::cli::Proof;
use super::{Failure, Outcome, connect, print, unexpected};
use crate::ledger::proof::Receipt;

pub(super) async fn run(socket: &Path, args: &Proof) -> Result<Outcome, Failure> {
    let doing = format!("get a receipt for entry {}", args.reference);
    let mut client = connect(socket, &doing).await?;
    let receipt = client.proof(&args.reference).await.map_err(Failure::daemon(&doing))?;
    let parsed = Receipt::parse(&receipt).map_err(|fault| unexpected(&doing, fault.to_string()))?;
    match &args.out {
        None => print(&parsed.to_string())?,
        Some(file) => write_receipt(file, &receipt)?,
    }
    Ok(Outcome::Done)
}

/// Writes a receipt into a new file, so that none is lost to a slip of the hand.
pub(super) fn write_receipt(file: &Path, receipt: &[u8]) -> Result<(), Failure> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(file)
        .and_then(|mut opened| opened.write_all(receipt))
        .map_err(|source| Failure::local(format!("write {}", file.display()), source))
}
