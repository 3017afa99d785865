//! `attestctl clock`: an operator's word on the daemon's clock.

use std::path::Path;

use serde::Deserialize;

use super::text::{duration, printable};
use super::{Failure, Outcome, connect, print, print_line, unexpected};

/// Of the answer, what is shown: the entry's place, or that there was nothing to confirm.
#[derive(Deserialize)]
struct Confirmed {
    sequence_number: Option<u64>,
    action_payload: Option<Payload>,
}

#[derive(Deserialize)]
struct Payload {
    clock: String,
    jumped_microseconds: u64,
}

/// Has the daemon take the wall clock to be right after a jump.
pub(super) async fn confirm(socket: &Path, json: bool) -> Result<Outcome, Failure> {
    let doing = "confirm the clock";
    let mut client = connect(socket, doing).await?;
    let answer = client.post_json("/v1/clock:confirm", "").await.map_err(Failure::daemon(doing))?;
    if json {
        return print_line(&answer).map(|()| Outcome::Done);
    }
    let confirmed: Confirmed =
        serde_json::from_slice(&answer).map_err(|error| unexpected(doing, error.to_string()))?;
    match (confirmed.sequence_number, confirmed.action_payload) {
        (Some(sequence), Some(Payload { clock, jumped_microseconds })) => print(&format!(
            "confirmed: the clock jumped forward by {} and said {}; entry {sequence} says so\n",
            duration(jumped_microseconds as f64 / 1e6),
            printable(&clock)
        ))?,
        (Some(sequence), None) => {
            print(&format!("confirmed: entry {sequence} is reserved, and signed when the token is back\n"))?;
        }
        (None, _) => {
            print("there is nothing to confirm: the clock has not jumped, or was confirmed already\n")?;
        }
    }
    Ok(Outcome::Done)
}
