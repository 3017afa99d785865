//! The check of a finished ceremony, offline, by its files and nothing else.
//!
//! It follows the transcript once, step by step, and stops at the first fault. What a token said is
//! taken as what it said; that the new key signed the end, and every witness after it, is recomputed.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::plan::Terms;
use super::transcript::{
    Begin, Closed, FORMAT, FactoryPin, Fingerprint, Generated, KeySeen, Line, Object, Objects, Outcome,
    Possession, Step, TokenSeen, closing, possession,
};
use super::{NAMESPACE, PLAN, PUBLIC_KEY, Record, SIGNATURE_ENDING, TRANSCRIPT, WITNESSES, words};
use crate::governance::key::Algorithm;
use crate::ledger::hash::Digest;
use crate::ledger::json;
use crate::ledger::key::{KeyId, PublicKey, Signable, Signature};
use crate::ledger::timestamp::Timestamp;

macro_rules! fault_codes {
    ($($variant:ident = $text:literal, $title:literal;)*) => {
        /// What is wrong with a ceremony, as a stable code.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum FaultCode { $(#[doc = $title] $variant,)* }

        impl FaultCode {
            /// Every code, in the order of the table in `docs/ceremony.md`.
            pub const ALL: &'static [FaultCode] = &[$(FaultCode::$variant,)*];

            /// The text, which never changes once released.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(FaultCode::$variant => $text,)* }
            }

            /// What it means, in a few words.
            #[must_use]
            pub fn title(self) -> &'static str {
                match self { $(FaultCode::$variant => $title,)* }
            }
        }
    };
}

fault_codes! {
    FileMissing = "file-missing", "a file of the ceremony is missing or empty";
    LineMalformed = "line-malformed", "a line of the transcript is not one in canonical form";
    ChainBroken = "chain-broken", "a line does not follow the one before it";
    TimeBack = "time-back", "a step ended before the one before it";
    StepFailed = "step-failed", "the ceremony failed";
    StepOrder = "step-order", "another step is due here";
    NotClosed = "not-closed", "the transcript ends before its closing line";
    AfterClose = "after-close", "something follows the closing line";
    OtherFormat = "other-format", "another format";
    PlanHash = "plan-hash", "the plan is not the one that the ceremony followed";
    PlanTerms = "plan-terms", "the transcript's terms are not the plan's";
    TokenUnfit = "token-unfit", "no key should be made on such a token";
    RehearsalUnmarked = "rehearsal-unmarked", "a rehearsal that is not marked as one";
    KeyOrdered = "key-ordered", "another key was made than the plan orders";
    KeyAttributes = "key-attributes", "the token does not protect the key as it should";
    ObjectsDiffer = "objects-differ", "the token gained or lost something else than the key";
    PublicKeyDiffers = "public-key-differs", "the public key is not the transcript's";
    OtherKey = "other-key", "not the key that you trust";
    NotPossessed = "not-possessed", "the key's signature over its nonce does not hold";
    FactoryPin = "factory-pin", "the factory PIN was not seen to fail";
    FingerprintDiffers = "fingerprint-differs", "the fingerprint is not the key's";
    ClosingSignature = "closing-signature", "the key's closing signature does not hold";
    WitnessMissing = "witness-missing", "a witness has not signed";
    WitnessUnknown = "witness-unknown", "a signature of nobody that the plan names";
    WitnessIsKey = "witness-is-key", "a witness signs with the new key itself";
    WitnessSignature = "witness-signature", "a witness's signature does not hold";
    Rehearsal = "rehearsal", "all holds, but it was a rehearsal";
}

impl fmt::Display for FaultCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for FaultCode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// The first thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// What, for programs.
    pub code: FaultCode,
    /// The file.
    pub file: String,
    /// The line of the transcript, from 1.
    pub line: Option<u64>,
    /// What, in plain words. It may quote what was read.
    pub detail: String,
}

impl Fault {
    fn new(code: FaultCode, file: &str, detail: impl fmt::Display) -> Self {
        Fault { code, file: file.into(), line: None, detail: format!("{}: {detail}", code.title()) }
    }
}

/// A witness, and whether the signature holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WitnessSeen {
    /// The name.
    pub name: String,
    /// What they stand for.
    pub role: String,
    /// The id of their key.
    pub key_id: String,
    /// Whether they signed.
    pub signed: bool,
}

/// What the check came to. Its JSON form is what `attestctl ceremony verify --json` prints. Members
/// stay null as long as nothing vouches for them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Whether everything holds, and it was what was asked for: no rehearsal, unless that was allowed.
    pub ok: bool,
    /// Whether it was a rehearsal.
    pub rehearsal: Option<bool>,
    /// The ledger that the key is for.
    pub origin: Option<String>,
    /// The key's id.
    pub key_id: Option<String>,
    /// SHA-256 of the transcript, which a genesis names.
    pub hash: Option<String>,
    /// SHA-256 of the plan.
    pub plan_sha256: Option<String>,
    /// When it began.
    pub began: Option<String>,
    /// When it was closed.
    pub closed: Option<String>,
    /// The token's model and serial number.
    pub token: Option<TokenName>,
    /// What becomes of the key when the token is lost.
    pub backup: Option<String>,
    /// Everybody who must sign.
    pub witnesses: Vec<WitnessSeen>,
    /// What was checked, in plain words.
    pub checked: Vec<String>,
    /// What was not, in plain words.
    pub not_checked: Vec<String>,
    /// The first fault.
    pub fault: Option<Fault>,
}

/// How a token is told from others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TokenName {
    /// Its model.
    pub model: String,
    /// Its serial number.
    pub serial: String,
}

/// Checks a ceremony. `trusted` is a key known from elsewhere that it must be of; `rehearsals` says
/// that a rehearsal will do.
#[must_use]
pub fn verify(record: &Record, trusted: Option<&PublicKey>, rehearsals: bool) -> Verdict {
    let mut verdict = Verdict::default();
    if let Err(fault) = check(record, trusted, &mut verdict) {
        verdict.fault = Some(fault);
    } else if verdict.rehearsal != Some(false) && !rehearsals {
        verdict.fault = Some(Fault::new(
            FaultCode::Rehearsal,
            TRANSCRIPT,
            "a key of a rehearsal is for no ledger that anybody should rely on",
        ));
    }
    verdict.ok = verdict.fault.is_none();
    verdict
}

fn check(record: &Record, trusted: Option<&PublicKey>, verdict: &mut Verdict) -> Result<(), Fault> {
    let must_be_there = |file: &str, bytes: &[u8]| {
        if bytes.is_empty() { Err(Fault::new(FaultCode::FileMissing, file, file)) } else { Ok(()) }
    };
    must_be_there(TRANSCRIPT, &record.transcript)?;
    must_be_there(PLAN, &record.plan)?;
    let lines = chain(&record.transcript)?;
    verdict.checked.push(format!("{} lines, each canonical and chained to the one before", lines.len()));
    let mut steps = Steps { lines: lines.iter(), line: 0 };

    let begin = begun(&mut steps, &record.plan, verdict)?;
    let terms = begin.terms;
    let token = seen_token(&mut steps, &terms, verdict)?;
    steps.take("log-in", |step| if let Step::LogIn(_) = step { Some(()) } else { None })?;
    let before = steps.take("objects-before", |step| match step {
        Step::ObjectsBefore(Objects { objects }) => Some(objects),
        _ => None,
    })?;
    let key = made_key(&mut steps, &terms, verdict)?;
    compare_objects(&mut steps, before, &terms)?;
    verdict.checked.push("the token gained the key pair and nothing else".into());
    verdict.key_id = Some(key.id().to_string());
    proven(&mut steps, &terms.origin, &key)?;
    verdict.checked.push("the key signed a nonce of the ceremony's".into());
    factory_pin(&mut steps, &terms, verdict)?;
    fingerprint(&mut steps, &key)?;
    verdict.checked.push("the fingerprint and its words are the key's".into());

    let head = steps.head();
    let (closed, at) = steps.take_timed("close", |step| match step {
        Step::Close(closed) => Some(closed),
        _ => None,
    })?;
    // Every line's time was parsed on the way here.
    let time = Timestamp::parse(at.as_bytes()).unwrap_or(Timestamp::EPOCH);
    let end = closing(&terms.origin, token.rehearsal, key.id(), Digest::of(&record.plan), head, time);
    let Closed { signature } = closed;
    if !signed(&key, &end, signature) {
        return Err(steps.fault(FaultCode::ClosingSignature, "by the new key, over closing.txt"));
    }
    verdict.checked.push("the new key signed the end of the transcript".into());
    if steps.lines.next().is_some() {
        steps.line += 1;
        return Err(steps.fault(FaultCode::AfterClose, "a line too many"));
    }
    verdict.closed = Some(at.to_owned());

    must_be_there(PUBLIC_KEY, &record.public_key)?;
    let pem = std::str::from_utf8(&record.public_key).ok().and_then(|pem| PublicKey::from_pem(pem).ok());
    if pem.as_ref() != Some(&key) {
        return Err(Fault::new(FaultCode::PublicKeyDiffers, PUBLIC_KEY, "it is of another key, or of none"));
    }
    match trusted {
        Some(trusted) if *trusted != key => {
            let detail = format!("the ceremony made {}, you trust {}", key.id(), trusted.id());
            return Err(Fault::new(FaultCode::OtherKey, TRANSCRIPT, detail));
        }
        Some(_) => verdict.checked.push("it is the key that you trust".into()),
        None => verdict.not_checked.push(
            "that this is the key you mean: compare its id with what was read aloud, or give --key".into(),
        ),
    }
    verdict.not_checked.push(
        "that plan and witnesses are those that were agreed on: compare the plan's SHA-256 with yours".into(),
    );
    let witnessed = witnesses(record, &terms, &key, &end, verdict);
    verdict.hash = Some(Digest::of(&record.transcript).to_hex());
    witnessed?;
    verdict.not_checked.push("that the clock was right, and that the token told the truth of itself".into());
    Ok(())
}

/// The lines, each in its one form and naming the hash of the one before.
fn chain(transcript: &[u8]) -> Result<Vec<Line>, Fault> {
    let mut lines: Vec<Line> = Vec::new();
    let mut head = Digest::ZERO;
    let mut last = None;
    let body = transcript.strip_suffix(b"\n");
    for (number, bytes) in (0u64..).zip(body.unwrap_or(transcript).split(|b| *b == b'\n')) {
        let fault = |code, detail: &dyn fmt::Display| {
            let mut fault = Fault::new(code, TRANSCRIPT, detail);
            fault.line = Some(number + 1);
            fault
        };
        let malformed = |detail: &dyn fmt::Display| fault(FaultCode::LineMalformed, detail);
        let canonical = json::canonicalize(bytes).map_err(|wrong| malformed(&wrong))?;
        if canonical.as_bytes() != bytes {
            return Err(malformed(&"it is spelled otherwise than RFC 8785 has it"));
        }
        let line: Line = serde_json::from_str(&canonical).map_err(|wrong| malformed(&wrong))?;
        // What the reader skipped, such as a member that there is not, does not come back.
        if line.to_canonical() != canonical {
            return Err(malformed(&"it has a member that its step has not"));
        }
        let at = Timestamp::parse(line.at.as_bytes()).ok_or_else(|| malformed(&"`at` is not a timestamp"))?;
        if line.prev != head.to_hex() || line.number != number {
            return Err(fault(FaultCode::ChainBroken, &"`prev` or `number` is of another place"));
        }
        if last.is_some_and(|last| at < last) {
            return Err(fault(FaultCode::TimeBack, &line.at));
        }
        (head, last) = (Digest::of(bytes), Some(at));
        lines.push(line);
    }
    if body.is_none() {
        return Err(Fault::new(FaultCode::LineMalformed, TRANSCRIPT, "the last line has no end"));
    }
    Ok(lines)
}

/// The steps that are still to come.
struct Steps<'a> {
    lines: std::slice::Iter<'a, Line>,
    /// The line that was taken last, from 1.
    line: u64,
}

impl<'a> Steps<'a> {
    /// The hash of the line before the next.
    fn head(&self) -> Digest {
        let next = self.lines.as_slice().first();
        next.and_then(|line| Digest::from_hex(line.prev.as_bytes())).unwrap_or(Digest::ZERO)
    }

    fn take<T>(&mut self, name: &str, read: impl FnOnce(&'a Step) -> Option<T>) -> Result<T, Fault> {
        self.take_timed(name, read).map(|(detail, _)| detail)
    }

    fn take_timed<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&'a Step) -> Option<T>,
    ) -> Result<(T, &'a str), Fault> {
        let Some(line) = self.lines.next() else {
            return Err(Fault::new(FaultCode::NotClosed, TRANSCRIPT, format!("`{name}` is due")));
        };
        self.line += 1;
        if let Step::Failed(failure) = &line.step {
            return Err(self.fault(FaultCode::StepFailed, format!("{}: {}", failure.during, failure.reason)));
        }
        let may_be_skipped = line.step.name() == "factory-pin";
        match line.outcome {
            Outcome::Done => {}
            Outcome::Skipped if may_be_skipped => {}
            _ => return Err(self.fault(FaultCode::StepFailed, line.step.name())),
        }
        match read(&line.step) {
            Some(detail) => Ok((detail, &line.at)),
            None => Err(self.fault(FaultCode::StepOrder, format!("`{name}`, not `{}`", line.step.name()))),
        }
    }

    fn fault(&self, code: FaultCode, detail: impl fmt::Display) -> Fault {
        Fault { line: Some(self.line), ..Fault::new(code, TRANSCRIPT, detail) }
    }
}

fn begun(steps: &mut Steps<'_>, plan: &[u8], verdict: &mut Verdict) -> Result<Begin, Fault> {
    let (begin, at) = steps.take_timed("begin", |step| match step {
        Step::Begin(begin) => Some(begin),
        _ => None,
    })?;
    if begin.format != FORMAT {
        return Err(steps.fault(FaultCode::OtherFormat, &begin.format));
    }
    let hash = Digest::of(plan);
    if begin.plan_sha256 != hash.to_hex() {
        return Err(Fault::new(FaultCode::PlanHash, PLAN, format!("the file's hash is {hash}")));
    }
    begin.terms.check().map_err(|wrong| steps.fault(FaultCode::PlanTerms, wrong))?;
    #[cfg(feature = "daemon")]
    {
        let text = std::str::from_utf8(plan).unwrap_or_default();
        let plan = super::plan::Plan::parse(text, std::path::Path::new(""))
            .map_err(|wrong| Fault::new(FaultCode::PlanTerms, PLAN, wrong))?;
        if plan.terms != begin.terms {
            return Err(steps.fault(FaultCode::PlanTerms, "it began on others than plan.toml says"));
        }
        verdict
            .checked
            .push("the plan is the one that was followed, and says what the transcript says".into());
    }
    #[cfg(not(feature = "daemon"))]
    {
        verdict.checked.push("the plan is the one that was followed".into());
        verdict.not_checked.push("that the transcript says what plan.toml says: read both".into());
    }
    verdict.origin = Some(begin.terms.origin.clone());
    verdict.plan_sha256 = Some(begin.plan_sha256.clone());
    verdict.backup = Some(begin.terms.backup.clone());
    verdict.began = Some(at.to_owned());
    Ok(begin.clone())
}

fn seen_token(steps: &mut Steps<'_>, terms: &Terms, verdict: &mut Verdict) -> Result<TokenSeen, Fault> {
    let seen = steps.take("token", |step| match step {
        Step::Token(seen) => Some(seen),
        _ => None,
    })?;
    let notes = seen.device.check(terms.tests_factory_pin);
    let notes = notes.map_err(|unfit| steps.fault(FaultCode::TokenUnfit, unfit))?;
    if seen.rehearsal != (terms.rehearsal || seen.device.is_software()) {
        return Err(steps.fault(FaultCode::RehearsalUnmarked, "by the plan or by the token it was one"));
    }
    verdict.rehearsal = Some(seen.rehearsal);
    verdict.token = Some(TokenName { model: seen.device.model.clone(), serial: seen.device.serial.clone() });
    verdict.not_checked.extend(notes);
    Ok(seen.clone())
}

/// `generate` and `attributes`.
fn made_key(steps: &mut Steps<'_>, terms: &Terms, verdict: &mut Verdict) -> Result<PublicKey, Fault> {
    let Generated { curve, id, label, .. } = steps.take("generate", |step| match step {
        Step::Generate(generated) => Some(generated),
        _ => None,
    })?;
    if (curve.as_str(), id, label) != ("P-256", &terms.key_id, &terms.key_label) {
        return Err(steps.fault(FaultCode::KeyOrdered, format!("{curve}, id {id}, label {label}")));
    }
    let KeySeen { attributes, key_id, public_key_pem } = steps.take("attributes", |step| match step {
        Step::Attributes(seen) => Some(seen),
        _ => None,
    })?;
    let unsaid = attributes.check().map_err(|wrong| steps.fault(FaultCode::KeyAttributes, wrong))?;
    verdict
        .checked
        .push("by the token's word the key was made on it and can neither be read nor be wrapped".into());
    if !unsaid.is_empty() {
        verdict.not_checked.push(format!("what the token did not say of the key: {}", unsaid.join(", ")));
    }
    let key = PublicKey::from_pem(public_key_pem)
        .map_err(|wrong| steps.fault(FaultCode::PublicKeyDiffers, wrong))?;
    if key.to_pem() != *public_key_pem || key.id().to_string() != *key_id {
        return Err(steps.fault(FaultCode::PublicKeyDiffers, "`key_id` is not the id of `public_key_pem`"));
    }
    Ok(key)
}

/// `objects-after`: what was there, and a private and a public key of the ordered name.
fn compare_objects(steps: &mut Steps<'_>, before: &[Object], terms: &Terms) -> Result<(), Fault> {
    let after = steps.take("objects-after", |step| match step {
        Step::ObjectsAfter(Objects { objects }) => Some(objects),
        _ => None,
    })?;
    gained_the_key_alone(before, after, terms).map_err(|wrong| steps.fault(FaultCode::ObjectsDiffer, wrong))
}

/// Holds `after` to be `before` and the key pair of the ordered name, and nothing else.
///
/// # Errors
/// In words, what is otherwise.
pub fn gained_the_key_alone(before: &[Object], after: &[Object], terms: &Terms) -> Result<(), String> {
    let ordered = |class: &str| Object {
        class: class.into(),
        id: Some(terms.key_id.clone()),
        label: Some(terms.key_label.clone()),
    };
    let mut expected: Vec<Object> = before.to_vec();
    expected.extend([ordered("private-key"), ordered("public-key")]);
    if counted(&expected) == counted(after) {
        return Ok(());
    }
    Err(format!(
        "{} objects before and {} after, which are not those and the key pair",
        before.len(),
        after.len()
    ))
}

fn counted(objects: &[Object]) -> BTreeMap<&Object, usize> {
    let mut counted = BTreeMap::new();
    for object in objects {
        *counted.entry(object).or_default() += 1;
    }
    counted
}

fn proven(steps: &mut Steps<'_>, origin: &str, key: &PublicKey) -> Result<(), Fault> {
    let Possession { nonce, signature, verified_by } = steps.take("possession", |step| match step {
        Step::Possession(possession) => Some(possession),
        _ => None,
    })?;
    if nonce.len() < 32 || verified_by.len() < 2 || !signed(key, &possession(origin, nonce), signature) {
        return Err(steps.fault(FaultCode::NotPossessed, "recomputed here"));
    }
    Ok(())
}

/// By both implementations that this program has.
fn signed(key: &PublicKey, message: &Signable, signature: &str) -> bool {
    Signature::from_hex_der(signature.as_bytes()).is_ok_and(|signature| {
        key.verifies(message.message(), &signature) && key.verifies_portably(message.message(), &signature)
    })
}

fn factory_pin(steps: &mut Steps<'_>, terms: &Terms, verdict: &mut Verdict) -> Result<(), Fault> {
    let FactoryPin { answer, right_pin_works } = steps.take("factory-pin", |step| match step {
        Step::FactoryPin(tried) => Some(tried),
        _ => None,
    })?;
    match (terms.tests_factory_pin, answer, right_pin_works) {
        (true, Some(_), Some(true)) => {
            verdict.checked.push("by the token's word the factory PIN does not open it".into());
            Ok(())
        }
        (false, None, None) => {
            verdict
                .not_checked
                .push("that the factory PIN does not open the token: the plan did not ask for it".into());
            Ok(())
        }
        _ => Err(steps.fault(FaultCode::FactoryPin, "the plan and the step do not agree")),
    }
}

fn fingerprint(steps: &mut Steps<'_>, key: &PublicKey) -> Result<(), Fault> {
    let Fingerprint { hex, words: spoken } = steps.take("fingerprint", |step| match step {
        Step::Fingerprint(fingerprint) => Some(fingerprint),
        _ => None,
    })?;
    let KeyId(id) = key.id();
    if *hex != id.to_hex() || *spoken != words(&id.0) {
        return Err(steps.fault(FaultCode::FingerprintDiffers, "in hex or in words"));
    }
    Ok(())
}

fn witnesses(
    record: &Record,
    terms: &Terms,
    key: &PublicKey,
    end: &Signable,
    verdict: &mut Verdict,
) -> Result<(), Fault> {
    let mut first = Ok(());
    for witness in &terms.witnesses {
        let judged = witness_signed(record, witness, key, end);
        verdict.witnesses.push(WitnessSeen {
            name: witness.name.clone(),
            role: witness.role.clone(),
            key_id: witness.key().map(|key| key.id().to_hex()).unwrap_or_default(),
            signed: judged.is_ok(),
        });
        first = first.and(judged);
    }
    first?;
    let named = |name: &&String| terms.witnesses.iter().any(|witness| witness.name == **name);
    let stray =
        record.signatures.keys().find(|name| !named(name)).map(|name| format!("{name}{SIGNATURE_ENDING}"));
    if let Some(stray) = stray.or_else(|| record.strays.first().cloned()) {
        return Err(Fault::new(
            FaultCode::WitnessUnknown,
            &format!("{WITNESSES}/{stray}"),
            "it must not be there",
        ));
    }
    verdict.checked.push(match terms.witnesses.len() {
        1 => "the witness that the plan names signed it".into(),
        count => format!("all {count} witnesses that the plan names signed it"),
    });
    Ok(())
}

fn witness_signed(
    record: &Record,
    witness: &super::plan::Witness,
    key: &PublicKey,
    end: &Signable,
) -> Result<(), Fault> {
    let file = format!("{WITNESSES}/{}{SIGNATURE_ENDING}", witness.name);
    let fault = |code, detail: &dyn fmt::Display| Fault::new(code, &file, detail);
    let theirs = witness.key().ok_or_else(|| fault(FaultCode::WitnessSignature, &"their key is none"))?;
    if theirs.is(key) {
        return Err(fault(FaultCode::WitnessIsKey, &witness.name));
    }
    let Some(bytes) = record.signatures.get(&witness.name) else {
        return Err(fault(FaultCode::WitnessMissing, &witness.name));
    };
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    // An editor's or `echo`'s line feed after the hex does no harm; armour has its own.
    let text = match theirs.algorithm() {
        Algorithm::EcdsaP256 => text.strip_suffix('\n').unwrap_or(text),
        _ => text,
    };
    theirs
        .verify(end.message(), text, NAMESPACE)
        .map_err(|why| fault(FaultCode::WitnessSignature, &format!("{}: {why}", witness.name)))
}

impl fmt::Display for Verdict {
    /// For people. The first line says what it was.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.rehearsal == Some(true) { "REHEARSAL" } else { "CEREMONY" };
        let only_rehearsal = self.fault.as_ref().is_some_and(|fault| fault.code == FaultCode::Rehearsal);
        match &self.fault {
            None if self.rehearsal == Some(true) => {
                writeln!(f, "{kind}: all holds, and none of it makes a key for real use")?;
            }
            None => writeln!(f, "{kind}: all holds")?,
            Some(_) if only_rehearsal => {
                writeln!(f, "{kind}: all holds, but this was no ceremony")?;
            }
            Some(_) => writeln!(f, "{kind}: DOES NOT HOLD")?,
        }
        let mut row = |name: &str, value: &Option<String>| match value {
            Some(value) => writeln!(f, "  {name:<11} {value}"),
            None => Ok(()),
        };
        row("origin", &self.origin)?;
        row("key id", &self.key_id)?;
        row("token", &self.token.as_ref().map(|token| format!("{}, serial {}", token.model, token.serial)))?;
        row("backup", &self.backup.as_ref().map(|text| text.replace('\n', " ")))?;
        row("began", &self.began)?;
        row("closed", &self.closed)?;
        row("plan", &self.plan_sha256)?;
        row("hash", &self.hash)?;
        for (index, witness) in self.witnesses.iter().enumerate() {
            let name = if index == 0 { "witnesses" } else { "" };
            let signed = if witness.signed { "signed" } else { "HAS NOT SIGNED" };
            writeln!(f, "  {name:<11} {} ({}): {signed}", witness.name, witness.role)?;
        }
        if let Some(fault) = &self.fault {
            let line = fault.line.map(|line| format!(":{line}")).unwrap_or_default();
            writeln!(f, "\nFault ({}) in {}{line}\n  {}", fault.code, fault.file, fault.detail)?;
        }
        for (title, list) in [("Checked", &self.checked), ("Not checked", &self.not_checked)] {
            if !list.is_empty() {
                writeln!(f, "\n{title}")?;
            }
            for item in list {
                writeln!(f, "  - {item}")?;
            }
        }
        if let (Some(hash), None) = (&self.hash, &self.fault) {
            writeln!(f, "\nA ledger begun with it names this in its genesis, as `ceremony.hash`:\n  {hash}")?;
        }
        Ok(())
    }
}
