//! Making a ledger: on purpose, once, and never over anything that exists.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::anchors::{Planted, off_token, on_token};
use super::ceremony::Ceremony;
use super::successor::Predecessor;
use super::{Fault, genesis, host, io};
use crate::config::Config;
use crate::governance::Policy;
use crate::ledger::chain::Head;
use crate::ledger::checkpoint::{Checkpoint, Note};
use crate::ledger::entry::{EntryId, EventCategory, EventType};
use crate::ledger::hash::Digest;
use crate::ledger::key::KeyId;
use crate::ledger::tile::Edge;
use crate::sequencer::now;
use crate::store::{Reservation, Reserved, Store, mode_of};
use crate::token::{Identity, Keeper, Pool, SignError, Token, TokenOptions};

/// What was made.
#[derive(Debug)]
pub struct Made {
    /// The ledger.
    pub ledger: PathBuf,
    /// The public key as PEM.
    pub public_key: PathBuf,
    /// The key's id.
    pub key: KeyId,
    /// The token.
    pub token: Identity,
    /// `entry_hash` of the genesis, which auditors should know from elsewhere.
    pub genesis: Digest,
    /// Whether the key is one of a rehearsal; `None` where it is of no ceremony.
    pub rehearsal: Option<bool>,
}

/// What of another ledger was reserved and never signed, beside the ledger that follows it.
const UNSEALED: &str = "unsealed.jsonl";

/// Makes the ledger that `config` describes, with its entry 0 and its anchors, and the public key
/// beside it. It follows `predecessor` where there is one. Its key must be that of `ceremony`, where
/// there was one.
///
/// The ledger is made under another name and appears whole. After an error there is none, except
/// when only the public key could not be written, which any start mends.
///
/// # Errors
/// When anything exists already, or the key can't be used.
pub fn init(
    config: &Config,
    ceremony: Option<&Ceremony>,
    mut predecessor: Option<Predecessor>,
) -> Result<Made, Fault> {
    let ledger = &config.ledger.path;
    // SQLite would take a WAL that another ledger left behind for this one's.
    let wal = beside(ledger, "-wal");
    let unsealed = ledger.with_file_name(UNSEALED);
    let mut wanted = vec![ledger, &wal, &config.ledger.public_key, &config.ledger.index, &config.anchor.file];
    wanted.extend(predecessor.as_ref().map(|_| &unsealed));
    for path in wanted {
        if !path.as_os_str().is_empty() && path.symlink_metadata().is_ok() {
            return Err(Fault::Exists(path.clone()));
        }
    }
    // The token of the ceremony, before the PIN is shown to another. Somebody is there who knows that the
    // PIN was refused, and there is no ledger yet to keep a latch by.
    let expected = ceremony.map(Ceremony::token);
    let options = TokenOptions::configured(&config.token, None, expected)?;
    let mut token = Token::open(&options)?;
    token.prove_possession(&config.origin)?;
    let key = token.public_key().clone();
    let identity = token.identity().clone();
    let attributes = *token.key_attributes();
    if let Some(ceremony) = ceremony {
        ceremony.check(&config.origin, &key, &identity)?;
    }
    // Once it is open, it is the token that it must be.
    let keeper = Arc::new(Keeper::new(options, key.clone(), &config.origin));
    let pool = keeper.take(token)?;
    let anchors = [off_token(config), on_token(config, &keeper)].concat();
    let mut planted = Planted::none_yet(&anchors)?;
    if let Some(predecessor) = &mut predecessor {
        predecessor.heed_token(&keeper)?;
    }
    let payload = genesis::payload(
        &config.origin,
        &key,
        &identity,
        &attributes,
        mode_of(config.signing.algorithm()),
        ceremony.map(Ceremony::member).as_deref(),
        predecessor.as_ref().map(Predecessor::member).as_deref(),
    );

    let limit = usize::try_from(config.limits.entry_bytes).unwrap_or(usize::MAX);
    let admitted = Policy::new(&host(config), limit).own(
        EventType::Change,
        EventCategory::Normal,
        genesis::ACTION_TYPE,
        payload,
        EntryId(*uuid::Uuid::new_v4().as_bytes()),
    );
    let algorithm = config.signing.algorithm();
    let mut head = Head::EMPTY;
    let entry = head.extend(admitted.view(), now(), algorithm, key.id());
    let genesis = entry.hash();
    let mut edge = Edge::new();
    let tiles = edge.extend([genesis].into_iter()).expect("an empty tree has room for a leaf");
    let checkpoint = Checkpoint::new(&config.origin, edge.root())
        .expect("the configuration's origin is one, which was checked when it was read");
    let reservation = Reservation {
        first: Head::EMPTY.next,
        key: key.id(),
        algorithm,
        entries: vec![Reserved { entry, idempotency: None }],
        tiles,
        checkpoint: Some(checkpoint),
    };

    let directory = parent(ledger);
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(directory)
        .map_err(io(format!("make the directory {}", directory.display())))?;
    let unborn = Unborn::at(ledger);
    let note = seal(&mut Store::create(&unborn.0)?, reservation, &pool)?;
    if let Some(predecessor) = &predecessor {
        write_whole(&unsealed, &predecessor.unsealed(), 0o640)?;
    }
    for anchor in anchors {
        planted.plant(anchor, &note)?;
    }
    // A link, because renaming would replace what has appeared meanwhile.
    std::fs::hard_link(&unborn.0, ledger).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => Fault::Exists(ledger.clone()),
        _ => io(format!("put the ledger at {}", ledger.display()))(error),
    })?;
    planted.stay();
    drop(unborn);
    sync_directory(directory)?;
    write_public_key(&config.ledger.public_key, &key.to_pem())?;
    Ok(Made {
        ledger: ledger.clone(),
        public_key: config.ledger.public_key.clone(),
        key: key.id(),
        token: identity,
        genesis,
        rehearsal: ceremony.map(Ceremony::is_rehearsal),
    })
}

/// Reserves, signs and commits what ends with a checkpoint, which it gives.
pub(super) fn seal(store: &mut Store, reservation: Reservation, pool: &Pool) -> Result<Note, Fault> {
    store.write(None, Some(&reservation)).1?;
    let signatures = sign(pool, reservation.signables())?;
    let (committed, result) = store.write(Some((reservation, signatures)), None);
    result?;
    committed
        .and_then(|committed| committed.note())
        .ok_or_else(|| Fault::Stopped("what was sealed has no checkpoint".into()))
}

/// Signs and waits.
pub(super) fn sign(
    pool: &Pool,
    signables: Vec<crate::ledger::key::Signable>,
) -> Result<Vec<crate::ledger::key::Signature>, Fault> {
    let (sender, receiver) = std::sync::mpsc::channel();
    pool.sign(signables, Box::new(move |result| drop(sender.send(result))));
    Ok(receiver.recv().unwrap_or(Err(SignError::Panicked))?)
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut beside = path.as_os_str().to_owned();
    beside.push(suffix);
    beside.into()
}

/// The name of a ledger in the making, with what SQLite and the lock put beside it; all are
/// removed in the end. The ledger itself has its own name then, or was not made.
struct Unborn(PathBuf);

impl Unborn {
    fn at(ledger: &Path) -> Self {
        let unborn = Unborn(ledger.with_added_extension("unborn"));
        unborn.remove();
        unborn
    }

    fn remove(&self) {
        for suffix in ["", "-wal", "-shm", ".lock"] {
            // What is not there need not be removed; what can't be is in nobody's way.
            let _ = std::fs::remove_file(beside(&self.0, suffix));
        }
    }
}

impl Drop for Unborn {
    fn drop(&mut self) {
        self.remove();
    }
}

fn sync_directory(directory: &Path) -> Result<(), Fault> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(io(format!("sync the directory {}", directory.display())))
}

/// Writes the public key.
pub(super) fn write_public_key(path: &Path, pem: &str) -> Result<(), Fault> {
    write_whole(path, pem.as_bytes(), 0o644)
}

/// Writes a file so that it is there whole or not at all.
fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Fault> {
    let doing = || format!("write {}", path.display());
    let unborn = path.with_added_extension("unborn");
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&unborn)
        .map_err(io(doing()))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io(doing()))?;
    std::fs::rename(&unborn, path).map_err(io(doing()))?;
    sync_directory(parent(path))
}
