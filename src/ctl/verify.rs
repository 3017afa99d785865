//! `attestctl verify`: the daemon checks its own ledger.

use std::path::Path;

use super::cli::Verify;
use super::{Failure, Outcome, connect, print, print_line, spinner};
use crate::audit::Verdict;
use crate::client::decode;

pub(super) async fn run(socket: &Path, args: &Verify) -> Result<Outcome, Failure> {
    let doing = "verify the ledger";
    let mut client = connect(socket, doing).await?;
    let waiting = spinner("the daemon is checking its ledger");
    let answer = client.verify().await;
    waiting.finish_and_clear();
    let answer = answer.map_err(Failure::daemon(doing))?;
    let verdict: Verdict = decode(&answer).map_err(Failure::daemon(doing))?;
    if args.json {
        print_line(&answer)?;
    } else {
        print(&verdict.to_string())?;
    }
    Ok(if verdict.ok { Outcome::Done } else { Outcome::Wrong })
}
