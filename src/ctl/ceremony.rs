//! `attestctl ceremony`: making the ledger's key before witnesses, and checking afterwards that it was done.
//!
//! Each step is in the transcript, and on the disk, before the next begins: whatever stops the
//! ceremony, what was done up to there is written down. What the steps are worth is judged by
//! [`crate::ceremony::verify`], which also has the last word here.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::cli::{CeremonyRun, CeremonyVerify};
use super::text::{Style, count_of, printable};
use super::{Failure, Outcome, print, print_line};
use crate::ceremony::plan::{HowToSign, MAX_PLAN_BYTES, Plan, Terms, Witness};
use crate::ceremony::transcript::{
    self, Begin, Closed, FORMAT, FactoryPin, Failure as FailedStep, Fingerprint, Generated, KeySeen, LogIn,
    Object, Objects, Possession, Step, TokenSeen, Transcript, closing, possession,
};
use crate::ceremony::{
    CLOSING, FaultCode, NAMESPACE, PLAN, PUBLIC_KEY, Record, SIGNATURE_ENDING, TRANSCRIPT, Verdict,
    WITNESSES, gained_the_key_alone, verify, words,
};
use crate::governance::key::{Algorithm, MAX_KEY_TEXT};
use crate::ledger::hash::{Digest, encode_hex};
use crate::ledger::key::{PublicKey, Signable, Signature};
use crate::ledger::timestamp::Timestamp;
use crate::sequencer::now;
use crate::token::{FactoryPinTried, PinSource, Workbench};

/// `attestctl ceremony run`.
pub(super) fn run(args: &CeremonyRun) -> Result<Outcome, Failure> {
    let text = read_plan(&args.plan)?;
    let base = args.plan.parent().unwrap_or(Path::new(""));
    let plan = Plan::parse(&text, base)
        .map_err(|error| Failure::Usage(format!("{}: {error}", args.plan.display())))?;
    let dir = args.dir.clone().unwrap_or_else(|| args.plan.with_extension("ceremony"));
    let hash = Digest::of(text.as_bytes());
    print(&introduction(&plan, hash, &dir))?;
    if args.dry_run {
        return Ok(Outcome::Done);
    }
    let unattended = args.yes;
    if !unattended && !ask_whether_to_begin()? {
        return Err(Failure::Usage("nothing was begun".into()));
    }

    let mut ceremony = Ceremony::prepare(&plan, &dir, &text, unattended)?;
    let begun = ceremony.note(Step::Begin(Begin {
        format: FORMAT.into(),
        plan_sha256: hash.to_hex(),
        program: format!("attestctl {}", crate::VERSION_WITH_COMMIT),
        terms: plan.terms.clone(),
    }));
    begun.map_err(Stop::into_failure)?;
    match ceremony.conduct(hash) {
        Ok(end) => {
            let mut failed = false;
            for (witness, how) in plan.terms.witnesses.iter().zip(&plan.signing) {
                // The others can sign all the same.
                if let Err(failure) = ceremony.have_signed(witness, how, &end) {
                    failure.report();
                    failed = true;
                }
            }
            let outcome = conclude(&plan, &dir)?;
            Ok(if failed { Outcome::Wrong } else { outcome })
        }
        Err(stop) => Err(ceremony.stopped(stop)),
    }
}

/// `attestctl ceremony verify`.
pub(super) fn check(args: &CeremonyVerify) -> Result<Outcome, Failure> {
    let trusted = args.key.as_deref().map(read_key).transpose()?;
    let record = read_record(&args.dir)?;
    let verdict = verify(&record, trusted.as_ref(), args.rehearsal);
    if args.json {
        let json =
            serde_json::to_vec(&verdict).map_err(|error| Failure::local("write JSON", error.into()))?;
        print_line(&json)?;
    } else {
        print(&shown(&verdict))?;
    }
    Ok(if verdict.ok { Outcome::Done } else { Outcome::Wrong })
}

fn read_record(dir: &Path) -> Result<Record, Failure> {
    Record::read(dir).map_err(|error| Failure::Usage(error.to_string()))
}

/// The verdict with nothing in it that a terminal would obey: it quotes files that anybody can write.
fn shown(verdict: &Verdict) -> String {
    let style = Style::of_stdout();
    let mut out = String::new();
    for (index, line) in verdict.to_string().lines().enumerate() {
        let line = super::text::printable_message(line);
        let line = match index {
            0 if !verdict.ok => style.bad(&line),
            0 if verdict.rehearsal == Some(true) => style.bold(&line),
            0 => style.good(&line),
            _ => line,
        };
        out.push_str(&line);
        out.push('\n');
    }
    out
}

fn read_plan(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(MAX_PLAN_BYTES as u64 + 1).read_to_string(&mut text))
        .map_err(|source| Failure::local(format!("read the plan {}", path.display()), source))?;
    Ok(text)
}

fn read_key(path: &Path) -> Result<PublicKey, Failure> {
    let mut pem = String::new();
    File::open(path)
        .and_then(|file| file.take(MAX_KEY_TEXT as u64).read_to_string(&mut pem))
        .map_err(|source| Failure::local(format!("read the key {}", path.display()), source))?;
    PublicKey::from_pem(&pem).map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))
}

/// What everybody at the table should know before it begins.
fn introduction(plan: &Plan, hash: Digest, dir: &Path) -> String {
    let terms = &plan.terms;
    let style = Style::of_stdout();
    let kind = if terms.rehearsal { "REHEARSAL of a key ceremony" } else { "KEY CEREMONY" };
    let mut out = format!("{} for {}\n\n", style.bold(kind), printable(&terms.origin));
    let mut row = |name: &str, value: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "  {name:<12} {value}");
    };
    row("token", &printable(&plan.uri.to_string()));
    row("module", &printable(&plan.module.display().to_string()));
    row("key", &format!("P-256, label {}, id {}", printable(&terms.key_label), terms.key_id));
    row("backup", &printable(&terms.backup.replace('\n', " ")));
    row("factory PIN", if terms.tests_factory_pin { "is tried, and must fail" } else { "is not tried" });
    for (index, person) in terms.people.iter().enumerate() {
        let name = if index == 0 { "people" } else { "" };
        row(name, &format!("{} ({})", printable(&person.name), printable(&person.role)));
    }
    for (index, (witness, how)) in terms.witnesses.iter().zip(&plan.signing).enumerate() {
        let name = if index == 0 { "witnesses" } else { "" };
        let how = match how {
            HowToSign::Ssh(_) => "signs here, with ssh-keygen",
            HowToSign::OpenSsl(_) => "signs here, with openssl",
            HowToSign::ByHand => "signs elsewhere, by hand",
        };
        row(name, &format!("{} ({}) {how}", witness.name, printable(&witness.role)));
    }
    row("record", &printable(&dir.display().to_string()));
    row("plan SHA-256", &hash.to_hex());
    out.push('\n');
    out
}

fn ask_whether_to_begin() -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::Usage("nobody can be asked whether to begin: give --yes".into()));
    }
    print("Everybody: is this the plan that you reviewed? Compare its SHA-256.\nType yes to begin: ")?;
    Ok(read_answer()?.trim() == "yes")
}

fn read_answer() -> Result<String, Failure> {
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(|source| Failure::local("read the answer", source))?;
    Ok(answer)
}

/// Why the ceremony goes no further.
enum Stop {
    /// The step failed, and the transcript can say so.
    Step { during: &'static str, reason: String },
    /// The record itself could not be written, or nobody could be asked.
    Here(Failure),
}

impl Stop {
    fn into_failure(self) -> Failure {
        match self {
            Stop::Here(failure) => failure,
            Stop::Step { during, reason } => Failure::Check(format!("{during}: {reason}")),
        }
    }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Stop::Here(failure)
    }
}

/// A failure of the step `during`, told with all its causes.
fn stop<E: std::error::Error>(during: &'static str) -> impl FnOnce(E) -> Stop {
    move |error| {
        let mut reason = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let _ = write!(reason, ": {cause}");
            source = cause.source();
        }
        Stop::Step { during, reason }
    }
}

fn wrong(during: &'static str, reason: impl Into<String>) -> Stop {
    Stop::Step { during, reason: reason.into() }
}

struct Ceremony<'a> {
    plan: &'a Plan,
    dir: &'a Path,
    transcript: Transcript,
    file: File,
    unattended: bool,
    /// Once the token has the key, a failure leaves it there.
    made: bool,
}

impl<'a> Ceremony<'a> {
    /// Makes the directory with the plan's copy and an empty transcript.
    fn prepare(plan: &'a Plan, dir: &'a Path, text: &str, unattended: bool) -> Result<Self, Failure> {
        let failed = |source| Failure::local(format!("make the record in {}", dir.display()), source);
        fs::create_dir_all(dir).map_err(failed)?;
        if fs::read_dir(dir).map_err(failed)?.next().is_some() {
            return Err(Failure::Usage(format!(
                "{} is not empty: a ceremony begins in a new directory, and what an earlier one left is kept",
                dir.display()
            )));
        }
        fs::create_dir(dir.join(WITNESSES)).map_err(failed)?;
        write_new(&dir.join(PLAN), text.as_bytes())?;
        let file =
            File::options().append(true).create_new(true).open(dir.join(TRANSCRIPT)).map_err(failed)?;
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)?;
        Ok(Ceremony { plan, dir, transcript: Transcript::default(), file, unattended, made: false })
    }

    /// Writes the step down, durably, and shows it.
    fn note(&mut self, step: Step) -> Result<(), Stop> {
        self.note_at(self.transcript.time(now()), step)
    }

    fn note_at(&mut self, at: Timestamp, step: Step) -> Result<(), Stop> {
        let outcome = match &step {
            Step::Failed(_) => transcript::Outcome::Failed,
            Step::FactoryPin(FactoryPin { answer: None, .. }) => transcript::Outcome::Skipped,
            _ => transcript::Outcome::Done,
        };
        let (name, told) = (step.name(), told(&step));
        let line = self.transcript.add(at, outcome, step);
        self.file
            .write_all(line)
            .and_then(|()| self.file.sync_data())
            .map_err(|source| Failure::local("write the transcript", source))?;
        if outcome == transcript::Outcome::Failed {
            // Its reason is what the command ends with.
            return Ok(());
        }
        let at = at.to_string();
        say(&format!("  {}  {name:<15} {told}\n", &at[11..19]));
        Ok(())
    }

    /// Everything from the token's check to the closing line; gives what the witnesses sign.
    fn conduct(&mut self, hash: Digest) -> Result<Signable, Stop> {
        let Plan { terms, module, uri, pin_file, factory_pin, .. } = self.plan;
        let pin = pin_file.clone().map_or(PinSource::Terminal, PinSource::File);
        let typed = if pin_file.is_some() { "file" } else { "terminal" };

        let mut token = Workbench::find(module, uri, pin).map_err(stop("token"))?;
        let device = token.device().map_err(stop("token"))?;
        let notes = device.check(terms.tests_factory_pin).map_err(stop("token"))?;
        let rehearsal = terms.rehearsal || device.is_software();
        self.note(Step::Token(TokenSeen { device, notes, rehearsal }))?;

        token.log_in().map_err(stop("log-in"))?;
        self.note(Step::LogIn(LogIn { pin: typed.into() }))?;

        let objects = token.objects().map_err(stop("objects-before"))?;
        let taken = objects.iter().find(|object| self.is_named_like_ours(object)).cloned();
        self.note(Step::ObjectsBefore(Objects { objects: objects.clone() }))?;
        let before = objects;
        if let Some(taken) = taken {
            let reason = format!("there is a {} with this id or label on the token already", taken.class);
            return Err(wrong("objects-before", reason));
        }

        // From here on a key may be there, whatever the token answers.
        self.made = true;
        token.generate().map_err(stop("generate"))?;
        self.note(Step::Generate(Generated {
            curve: "P-256".into(),
            id: terms.key_id.clone(),
            label: terms.key_label.clone(),
            mechanism: "CKM_EC_KEY_PAIR_GEN".into(),
        }))?;

        let (key, attributes) = token.key().map_err(stop("attributes"))?;
        write_new(&self.dir.join(PUBLIC_KEY), key.to_pem().as_bytes())?;
        self.note(Step::Attributes(KeySeen {
            attributes,
            key_id: key.id().to_string(),
            public_key_pem: key.to_pem(),
        }))?;
        attributes.check().map_err(|reason| wrong("attributes", reason))?;

        let objects = token.objects().map_err(stop("objects-after"))?;
        self.note(Step::ObjectsAfter(Objects { objects: objects.clone() }))?;
        gained_the_key_alone(&before, &objects, terms).map_err(|reason| wrong("objects-after", reason))?;

        let nonce = uuid::Uuid::new_v4().simple().to_string();
        let challenge = possession(&terms.origin, &nonce);
        let signature = token.sign(&challenge, &key).map_err(stop("possession"))?;
        let verified_by = self.verified_by(&key, &challenge, &signature)?;
        self.note(Step::Possession(Possession { nonce, signature: hex_der(&signature), verified_by }))?;

        let tried = match factory_pin {
            None => FactoryPin { answer: None, right_pin_works: None },
            Some(pin) => match self.try_factory_pin(&mut token, pin)? {
                FactoryPinTried::Refused(answer) => {
                    FactoryPin { answer: Some(answer), right_pin_works: Some(true) }
                }
                FactoryPinTried::Opened => {
                    return Err(wrong(
                        "factory-pin",
                        "the token opens with its factory PIN: set another one",
                    ));
                }
            },
        };
        self.note(Step::FactoryPin(tried))?;

        let id = key.id().0;
        self.note(Step::Fingerprint(Fingerprint {
            hex: id.to_hex(),
            words: words(&id.0).into_iter().map(str::to_owned).collect(),
        }))?;
        self.read_aloud(id)?;

        let at = self.transcript.time(now());
        let end = closing(&terms.origin, rehearsal, key.id(), hash, self.transcript.head(), at);
        let signature = token.sign(&end, &key).map_err(stop("close"))?;
        write_new(&self.dir.join(CLOSING), end.message())?;
        self.note_at(at, Step::Close(Closed { signature: hex_der(&signature) }))?;
        Ok(end)
    }

    fn try_factory_pin(&self, token: &mut Workbench, pin: &str) -> Result<FactoryPinTried, Stop> {
        if self.plan.pin_file.is_none() {
            print(
                "The factory PIN is tried now, and the right one at once after it. It is asked for first.\n",
            )?;
        }
        token.try_factory_pin(pin).map_err(stop("factory-pin"))
    }

    fn is_named_like_ours(&self, object: &Object) -> bool {
        let terms = &self.plan.terms;
        let is_key = object.class == "private-key" || object.class == "public-key";
        is_key
            && (object.id.as_ref() == Some(&terms.key_id) || object.label.as_ref() == Some(&terms.key_label))
    }

    /// The implementations that find the signature good, each another's: those in this program, and
    /// openssl where it is installed.
    fn verified_by(
        &self,
        key: &PublicKey,
        message: &Signable,
        signature: &Signature,
    ) -> Result<Vec<String>, Stop> {
        let during = "possession";
        let mut by = Vec::new();
        #[cfg(feature = "fast")]
        if key.verifies(message.message(), signature) {
            by.push("aws-lc-rs".to_owned());
        }
        if key.verifies_portably(message.message(), signature) {
            by.push("p256 (RustCrypto)".to_owned());
        }
        if let Some(version) = openssl_version() {
            let file = self.dir.join(".possession");
            write_new(&file, &signature.to_der())?;
            let mut openssl = Command::new("openssl");
            openssl.args(["dgst", "-sha256", "-verify"]).arg(self.dir.join(PUBLIC_KEY));
            openssl.arg("-signature").arg(&file).stderr(Stdio::null());
            let said = fed(&mut openssl, message.message());
            fs::remove_file(&file).map_err(stop(during))?;
            let said = said.map_err(stop(during))?;
            if said.is_none() {
                return Err(wrong(during, format!("{version} finds the signature wrong")));
            }
            by.push(version);
        }
        if by.len() < 2 {
            return Err(wrong(during, "two implementations were to verify the signature: install openssl"));
        }
        Ok(by)
    }

    fn read_aloud(&self, id: Digest) -> Result<(), Failure> {
        let words = words(&id.0);
        let mut out = String::from(
            "\nThe key's fingerprint. One reads it aloud, all compare it with what they see, and write it down:\n\n",
        );
        for (bytes, words) in id.0.chunks(4).zip(words.chunks(4)) {
            let _ = writeln!(out, "    {}   {}", encode_hex(bytes), words.join(" "));
        }
        out.push('\n');
        say(&out);
        if !self.unattended {
            say("Press Enter when it was read and compared. ");
            read_answer()?;
            say("\n");
        }
        Ok(())
    }

    /// Has a witness sign here, and verifies it. What is signed by hand comes later.
    fn have_signed(&self, witness: &Witness, how: &HowToSign, end: &Signable) -> Result<(), Failure> {
        let (mut command, program) = match how {
            HowToSign::ByHand => return Ok(()),
            HowToSign::Ssh(key) => {
                let mut command = Command::new("ssh-keygen");
                command.args(["-q", "-Y", "sign", "-n", NAMESPACE, "-f"]).arg(key);
                (command, "ssh-keygen")
            }
            HowToSign::OpenSsl(key) => {
                let mut command = Command::new("openssl");
                command.args(["dgst", "-sha256", "-sign"]).arg(key);
                (command, "openssl")
            }
        };
        let refused = |reason: String| Failure::Ceremony {
            what: format!("witness `{}` has not signed: {reason}", witness.name),
            advice: "the key is made and the transcript closed: they can sign it by hand".into(),
        };
        let signature =
            fed(&mut command, end.message()).map_err(|source| refused(format!("{program}: {source}")))?;
        let signature = signature.ok_or_else(|| refused(format!("{program} said no")))?;
        let text = match how {
            HowToSign::OpenSsl(_) => encode_hex(&signature),
            _ => String::from_utf8(signature).unwrap_or_default(),
        };
        let key = witness.key().ok_or_else(|| refused("their key is none".into()))?;
        key.verify(end.message(), &text, NAMESPACE).map_err(|why| refused(why.to_string()))?;
        let ending = if text.ends_with('\n') { "" } else { "\n" };
        write_new(&signature_path(self.dir, &witness.name), format!("{text}{ending}").as_bytes())?;
        say(&format!("  {} ({}) signed\n", witness.name, printable(&witness.role)));
        Ok(())
    }

    /// Writes down what failed, and says what that means.
    fn stopped(&mut self, stop: Stop) -> Failure {
        let what = match stop {
            Stop::Here(failure) => return failure,
            Stop::Step { during, reason } => {
                let failed = FailedStep { during: during.into(), reason: transcript::printable(&reason) };
                let what = format!("the ceremony came to nothing, at `{during}`: {reason}");
                if let Err(Stop::Here(failure)) = self.note(Step::Failed(failed)) {
                    eprintln!("attestctl: {}", printable(&what));
                    return failure;
                }
                what
            }
        };
        let mut advice = format!(
            "keep {} as the record of it; the next attempt wants a new directory",
            self.dir.display()
        );
        if self.made {
            let Terms { key_label, key_id, .. } = &self.plan.terms;
            let _ = write!(
                advice,
                ". The token may hold the key with label {key_label} and id {key_id}, of no finished ceremony: \
                 never use it, and destroy it before the next attempt (docs/ceremony.md says how)"
            );
        }
        Failure::Ceremony { what, advice }
    }
}

/// What a line on the screen says of a step.
fn told(step: &Step) -> String {
    match step {
        Step::Begin(begin) => printable(&begin.program).into_owned(),
        Step::Token(TokenSeen { device, notes, rehearsal }) => {
            let mut told = format!(
                "{} of {}, serial {}, firmware {}",
                printable(&device.model),
                printable(&device.manufacturer),
                printable(&device.serial),
                printable(&device.firmware)
            );
            for note in notes {
                let _ = write!(told, "\n{:28}note: {note}", "");
            }
            if *rehearsal {
                let _ = write!(told, "\n{:28}this is a REHEARSAL", "");
            }
            told
        }
        Step::LogIn(log_in) => format!("PIN from a {}", log_in.pin),
        Step::ObjectsBefore(objects) | Step::ObjectsAfter(objects) => {
            count_of(objects.objects.len() as u64, "object", "objects")
        }
        Step::Generate(made) => format!("{}, label {}, id {}", made.curve, printable(&made.label), made.id),
        Step::Attributes(seen) => {
            let word = |said: Option<bool>| said.map_or("unsaid", |yes| if yes { "yes" } else { "no" });
            let a = &seen.attributes;
            format!(
                "sensitive {}, always sensitive {}, made on the token {}\n{:28}extractable {}, never extractable {}",
                word(a.sensitive),
                word(a.always_sensitive),
                word(a.local),
                "",
                word(a.extractable),
                word(a.never_extractable)
            )
        }
        Step::Possession(possession) => format!("verified by {}", possession.verified_by.join(", ")),
        Step::FactoryPin(FactoryPin { answer: Some(answer), .. }) => {
            format!("refused ({}), the right one works", printable(answer))
        }
        Step::FactoryPin(_) => "not asked for".into(),
        Step::Fingerprint(fingerprint) => fingerprint.hex.clone(),
        Step::Close(_) => "signed by the new key".into(),
        Step::Failed(failure) => failure.during.clone(),
    }
}

/// Verifies what there is now, and says who has still to sign.
fn conclude(plan: &Plan, dir: &Path) -> Result<Outcome, Failure> {
    let verdict = verify(&read_record(dir)?, None, true);
    let waits = verdict.fault.as_ref().is_some_and(|fault| fault.code == FaultCode::WitnessMissing);
    if !waits {
        say(&format!("\n{}", shown(&verdict)));
        return Ok(if verdict.ok { Outcome::Done } else { Outcome::Wrong });
    }
    let closing = dir.join(CLOSING);
    let mut out = String::from("\nThe key is made and the transcript closed. Still to sign, by hand:\n");
    for (witness, seen) in plan.terms.witnesses.iter().zip(&verdict.witnesses) {
        if seen.signed {
            continue;
        }
        let name = &witness.name;
        let command = match witness.key().map(|key| key.algorithm()) {
            Some(Algorithm::EcdsaP256) | None => {
                format!("openssl dgst -sha256 -sign KEY {CLOSING} | od -An -vtx1 | tr -d ' \\n' > {name}.sig")
            }
            Some(_) => {
                format!("ssh-keygen -Y sign -n {NAMESPACE} -f KEY {CLOSING} && mv {CLOSING}.sig {name}.sig")
            }
        };
        let _ = write!(
            out,
            "\n  {name} ({})\n    bring   {}\n    run     {command}\n    put     {name}.sig into {}\n",
            printable(&witness.role),
            closing.display(),
            dir.join(WITNESSES).display()
        );
    }
    let rehearsal = if verdict.rehearsal == Some(true) { " --rehearsal" } else { "" };
    let _ = writeln!(out, "\nThen: attestctl ceremony verify {}{rehearsal}", dir.display());
    say(&out);
    Ok(Outcome::Done)
}

/// Shows something of a ceremony that has begun. It goes on, and ends as it ends, although nobody
/// should be reading any more: what was done is in the transcript.
fn say(text: &str) {
    let _ = print(text);
}

fn signature_path(dir: &Path, witness: &str) -> PathBuf {
    dir.join(WITNESSES).join(format!("{witness}{SIGNATURE_ENDING}"))
}

fn hex_der(signature: &Signature) -> String {
    encode_hex(&signature.to_der())
}

/// Writes a file that must not be there, durably.
fn write_new(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    File::options()
        .write(true)
        .create_new(true)
        .open(path)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .map_err(|source| Failure::local(format!("write {}", path.display()), source))
}

fn openssl_version() -> Option<String> {
    let output = Command::new("openssl").arg("version").stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version: Vec<&str> = text.split_whitespace().take(2).collect();
    (output.status.success() && version.len() == 2).then(|| version.join(" "))
}

/// Runs `command` with `input` on its standard input; what it printed, or `None` where it failed.
fn fed(command: &mut Command, input: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // Less than a pipe holds, so it never waits for a reader; one that has gone says why itself.
        let _ = stdin.write_all(input);
    }
    let output = child.wait_with_output()?;
    Ok(output.status.success().then_some(output.stdout))
}
