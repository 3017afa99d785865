//! `attestctl key`: the ledger's keys, and their change.

use std::path::Path;

use serde::Deserialize;
use serde_json::json;

use super::cli::{KeyCommand, RotateKey};
use super::text::printable;
use super::{Failure, Outcome, connect, print, print_line};
use crate::client::decode;

pub(super) async fn run(socket: &Path, command: &KeyCommand) -> Result<Outcome, Failure> {
    match command {
        KeyCommand::List { json } => list(socket, *json).await,
        KeyCommand::Rotate(args) => rotate(socket, args).await,
        KeyCommand::Revoke { key_id, reason, size, json } => {
            let mut body = json!({ "reason": reason });
            if let Some(size) = size {
                body["size"] = (*size).into();
            }
            let path = format!("/v1/keys/{key_id}/revoke");
            let entry = post(socket, "revoke the key", &path, &body.to_string()).await?;
            if *json {
                print_line(&entry)?;
            } else {
                let entry: Sealed = decode(&entry).map_err(Failure::daemon("revoke the key"))?;
                print(&format!("revoked in entry {}\n", entry.sequence_number))?;
            }
            Ok(Outcome::Done)
        }
    }
}

async fn rotate(socket: &Path, args: &RotateKey) -> Result<Outcome, Failure> {
    let mut to = json!({ "uri": args.to });
    let path = |path: &Path| -> Result<String, Failure> {
        let path = std::path::absolute(path).map_err(|source| Failure::local("find the file", source))?;
        path.into_os_string()
            .into_string()
            .map_err(|_| Failure::Usage("a path that is not UTF-8 can't be sent".into()))
    };
    if let Some(module) = &args.module {
        to["module"] = path(module)?.into();
    }
    if let Some(pin_file) = &args.pin_file {
        to["pin_file"] = path(pin_file)?.into();
    }
    if let Some(pin_credential) = &args.pin_credential {
        to["pin_credential"] = pin_credential.as_str().into();
    }
    if let Some(key_id) = &args.key_id {
        to["key_id"] = key_id.as_str().into();
    }
    let doing = "rotate the key";
    let entry = post(socket, doing, "/v1/keys:rotate", &json!({ "to": to }).to_string()).await?;
    if args.json {
        print_line(&entry)?;
        return Ok(Outcome::Done);
    }
    let Sealed { sequence_number, action_payload } = decode(&entry).map_err(Failure::daemon(doing))?;
    let key_id = action_payload.key_id.unwrap_or_default();
    print(&format!(
        "the ledger's key is {} from entry {} on\nname it in the daemon's configuration before the next start: \
         token.uri, token.module and where its PIN is\n",
        printable(&key_id),
        sequence_number + 1
    ))?;
    Ok(Outcome::Done)
}

async fn post(socket: &Path, doing: &str, path: &str, body: &str) -> Result<Vec<u8>, Failure> {
    let mut client = connect(socket, doing).await?;
    let answer = client.post_json(path, body.to_owned()).await.map_err(Failure::daemon(doing))?;
    Ok(answer.to_vec())
}

#[derive(Deserialize)]
struct Sealed {
    sequence_number: u64,
    action_payload: Payload,
}

#[derive(Deserialize)]
struct Payload {
    key_id: Option<String>,
}

#[derive(Deserialize)]
struct Keys {
    origin: String,
    keys: Vec<Key>,
}

#[derive(Deserialize)]
struct Key {
    key_id: String,
    first: u64,
    last: Option<u64>,
    revoked: Option<Revoked>,
    token: Token,
}

#[derive(Deserialize)]
struct Revoked {
    at: u64,
    reason: String,
    size: u64,
}

#[derive(Deserialize)]
struct Token {
    label: String,
    serial: String,
}

async fn list(socket: &Path, json: bool) -> Result<Outcome, Failure> {
    let doing = "list the keys";
    let mut client = connect(socket, doing).await?;
    let answer = client.keys().await.map_err(Failure::daemon(doing))?;
    if json {
        print_line(&answer)?;
        return Ok(Outcome::Done);
    }
    let Keys { origin, keys } = decode(&answer).map_err(Failure::daemon(doing))?;
    let mut out = format!("{}\n", printable(&origin));
    for Key { key_id, first, last, revoked, token } in keys {
        let range = match last {
            Some(last) => format!("entries {first} to {last}"),
            None => format!("entries {first} and on"),
        };
        out.push_str(&format!(
            "{}  {range}, on the token {} (serial {})\n",
            printable(&key_id),
            printable(&token.label),
            printable(&token.serial)
        ));
        if let Some(Revoked { at, reason, size }) = revoked {
            out.push_str(&format!(
                "  revoked in entry {at}, trusted up to its checkpoint of {size} entries: {}\n",
                printable(&reason)
            ));
        }
    }
    print(&out)?;
    Ok(Outcome::Done)
}
