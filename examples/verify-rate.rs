//! How fast the auditor's tool is, as a share of what the signatures alone cost.
//!
//! ```text
//! cargo run --release --example verify-rate -- DIR [ENTRIES] [each|commit] [THREADS]
//! ```
//!
//! Makes a bundle in DIR (which must not exist), of entries of 1.76 kB sealed with a throw-away key,
//! then times bare verifications and the whole check, each on THREADS threads. The key stays beside
//! it as DIR.pem, to run `attest-verify` itself on it.

use std::borrow::Cow;
use std::error::Error;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use attestd::audit::{Expectations, TrustedKeys};
use attestd::bundle::{Bundle, Contents, DirectoryWriter};
use attestd::ledger::chain::Head;
use attestd::ledger::checkpoint::{Checkpoint, Note};
use attestd::ledger::entry::{
    ActorType, EntryId, EntryView, EventCategory, EventType, ExecutionStatus, Sequence, SignatureAlgorithm,
};
use attestd::ledger::hash::{Digest, encode_hex};
use attestd::ledger::key::{KeyId, PublicKey, Signature};
use attestd::ledger::merkle::Frontier;
use attestd::ledger::score::{Pillars, Scale, Score};
use attestd::ledger::timestamp::Timestamp;
use p256::ecdsa::signature::Signer;

const ORIGIN: &str = "rate.example/ledger";

fn main() -> Result<(), Box<dyn Error>> {
    let usage = "usage: verify-rate DIR [ENTRIES] [each|commit] [THREADS]";
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().filter(|dir| !dir.starts_with('-')).ok_or(usage)?);
    let entries: u64 = arguments.next().map_or(Ok(20_000), |n| n.parse())?;
    let algorithm = match arguments.next().as_deref() {
        None | Some("each") => SignatureAlgorithm::EntryP256,
        Some("commit") => SignatureAlgorithm::TreeP256,
        Some(_) => return Err(usage.into()),
    };
    let threads: NonZeroUsize = arguments
        .next()
        .map_or_else(std::thread::available_parallelism, |n| n.parse().map_err(std::io::Error::other))?;

    let secret = p256::ecdsa::SigningKey::from_slice(&[9; 32])?;
    let key = PublicKey::from_sec1(secret.verifying_key().to_sec1_point(false).as_bytes())?;
    let signatures = make_bundle(&dir, entries, algorithm, &secret, &key)?;
    std::fs::write(dir.with_extension("pem"), key.to_pem())?;

    let bare = bare_rate(&key, &signatures, threads.get(), Duration::from_secs(5));
    let expectations =
        Expectations { threads: Some(threads), ..Expectations::trusting(TrustedKeys::only(key.clone())) };
    let start = Instant::now();
    let verdict = Bundle::open(&dir)?.verify(&expectations, |_| {})?;
    let whole = entries as f64 / start.elapsed().as_secs_f64();
    let again = bare_rate(&key, &signatures, threads.get(), Duration::from_secs(5));
    if !verdict.ok {
        return Err(verdict.to_string().into());
    }
    println!("bare verification, {threads} threads: {bare:.0}/s before, {again:.0}/s after");
    println!("whole check of {entries} entries:     {whole:.0}/s");
    println!("ratio:                               {:.2}", whole / ((bare + again) / 2.0));
    Ok(())
}

/// Verifications per second of some of the signatures, over and over, with nothing around them.
fn bare_rate(key: &PublicKey, signed: &[(Digest, Signature)], threads: usize, time: Duration) -> f64 {
    let start = Instant::now();
    let count: usize = std::thread::scope(|scope| {
        let count = || {
            let verified = signed.iter().cycle().map(|(hash, signature)| {
                assert!(key.verifies(&hash.0, signature));
            });
            verified.take_while(|()| start.elapsed() < time).count()
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(count)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap_or(0)).sum()
    });
    count as f64 / start.elapsed().as_secs_f64()
}

/// Entries that share a checkpoint's signature in mode `commit`.
const COMMIT: u64 = 2_000;

fn make_bundle(
    dir: &std::path::Path,
    entries: u64,
    algorithm: SignatureAlgorithm,
    secret: &p256::ecdsa::SigningKey,
    key: &PublicKey,
) -> Result<Vec<(Digest, Signature)>, Box<dyn Error>> {
    // A bundle names its checkpoint first, so everything is made twice, and the same each time.
    let mut notes = Vec::new();
    make_entries(entries, algorithm, secret, key, |_| Ok(()), &mut notes)?;
    let checkpoint = notes.last().ok_or("a bundle has at least one entry")?.clone();
    let contents = Contents { origin: ORIGIN.into(), key: key.clone(), first: 0, checkpoint, proofs: None };
    let mut writer = DirectoryWriter::create(dir, contents)?;
    let signed = make_entries(entries, algorithm, secret, key, |line| writer.append(line), &mut Vec::new())?;
    if algorithm == SignatureAlgorithm::TreeP256 {
        notes.iter().try_for_each(|note| writer.append_checkpoint(note))?;
    }
    writer.finish()?;
    Ok(signed)
}

/// Gives each line to `take`, and the checkpoint of each commit to `notes`. Returns the first of
/// what was signed.
fn make_entries(
    entries: u64,
    algorithm: SignatureAlgorithm,
    secret: &p256::ecdsa::SigningKey,
    key: &PublicKey,
    mut take: impl FnMut(&[u8]) -> std::io::Result<()>,
    notes: &mut Vec<Note>,
) -> Result<Vec<(Digest, Signature)>, Box<dyn Error>> {
    let sign = |message: &[u8]| {
        let raw: p256::ecdsa::Signature = secret.sign(message);
        Signature::from_token(&raw.to_bytes()).ok_or("a signature out of range")
    };
    let mode = if algorithm == SignatureAlgorithm::TreeP256 { "commit" } else { "each" };
    let mut head = Head::EMPTY;
    let mut tree = Frontier::new();
    let mut commit = Vec::new();
    let mut signed = Vec::new();
    let genesis = format!(
        r#"{{"ceremony":null,"key_attributes":{{"always_sensitive":null,"extractable":null,"local":null,"never_extractable":null,"sensitive":null}},"key_id":"{}","origin":"{ORIGIN}","predecessor":null,"public_key_pem":{},"rules":null,"signature_mode":"{mode}","token":{{"label":"","manufacturer":"","model":"","serial":""}}}}"#,
        key.id(),
        serde_json::to_string(&key.to_pem())?,
    );
    for sequence in 0..entries {
        let view = if sequence == 0 {
            EntryView {
                action_hash: Digest::of(genesis.as_bytes()),
                action_payload: &genesis,
                action_type: "ledger.genesis",
                actor_context: "{}",
                actor_id: Cow::Borrowed("attestd"),
                actor_type: ActorType::System,
                event_type: EventType::Change,
                ..client(0, "{}")
            }
        } else {
            client(sequence, r#"{"to":"v2"}"#)
        };
        let now = Timestamp::from_micros(1_795_573_782_000_000 + i64::try_from(sequence)?);
        let entry = head.extend(view, now, algorithm, key.id());
        tree.push(entry.hash())?;
        commit.push(entry);
        if (sequence + 1) % COMMIT != 0 && sequence + 1 != entries {
            continue;
        }
        let checkpoint = Checkpoint::new(ORIGIN, tree.root())?;
        let of_tree = sign(checkpoint.text().as_bytes())?;
        notes.push(Note::new(checkpoint, key.id(), &of_tree));
        for entry in commit.drain(..) {
            let signature = match algorithm {
                SignatureAlgorithm::EntryP256 => sign(&entry.hash().0)?,
                SignatureAlgorithm::TreeP256 => of_tree,
            };
            take(&entry.unsigned().seal(encode_hex(&signature.to_der()).as_bytes()))?;
            if signed.len() < 10_000 {
                signed.push((entry.hash(), sign(&entry.hash().0)?));
            }
        }
    }
    Ok(signed)
}

fn client(sequence: u64, payload: &str) -> EntryView<'_> {
    let mut id = *Digest::of(&sequence.to_be_bytes()).0.first_chunk::<16>().unwrap_or(&[0; 16]);
    id[0] ^= 1;
    let pillars = Some(Pillars([Score::MAX; 4]));
    let (composite_score, safety_floor_met) = Scale::default().judge(pillars);
    EntryView {
        action_hash: Digest::of(payload.as_bytes()),
        action_payload: payload,
        action_type: "bench.append",
        actor_context: r#"{"peer":{"caller":null,"exe":"/usr/bin/attestctl","exe_sha256":null,"gid":1000,"groups":[27,1000],"pid":4711,"start_time":"2026-11-25T02:00:00.000000Z","uid":1000,"unit":"bench.service","user":"ann"}}"#,
        actor_id: Cow::Borrowed("uid:1000/bench"),
        actor_type: ActorType::AutonomousAgent,
        composite_score,
        conflicts_detected: "[]",
        dependencies: Cow::Owned(Vec::new()),
        entry_hash: Digest::ZERO,
        entry_id: EntryId::from_random(id),
        environment: r#"{"attestd.boot_id":"9a6f6f0e-3c0e-4b34-9f0e-000000000000","attestd.host":"rate","attestd.rules":"default","attestd.version":"0.1.0"}"#,
        error_details: "null",
        event_category: EventCategory::Normal,
        event_type: EventType::Action,
        execution_status: ExecutionStatus::Success,
        hsm_signature: "",
        k_state: 1,
        pillars_scores: pillars,
        prev_entry_hash: Digest::ZERO,
        proofs_valid: true,
        provided_proofs: "[]",
        quorum_met: true,
        received_approvals: "[]",
        replicas: "[]",
        required_approvals: 0,
        required_proofs: "[]",
        result_data: "null",
        rollback_available: false,
        rollback_executed: false,
        rollback_snapshot_hash: None,
        safety_floor_met,
        sequence_number: Sequence(0),
        severity: 0,
        signature_algorithm: SignatureAlgorithm::EntryP256,
        signing_key_id: KeyId(Digest::ZERO),
        system_state_snapshot: "{}",
        timestamp: Timestamp::EPOCH,
    }
}
