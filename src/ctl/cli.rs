//! The command line of attestctl: its options, its help, and what its exit codes mean.

use std::path::PathBuf;

use clap::builder::{OsStringValueParser, PossibleValuesParser, TypedValueParser};
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};

use crate::cli::{ExitCodes, exit_help};
use crate::client::DEFAULT_SOCKET;
use crate::ledger::entry::{ActorType, EventCategory, EventType, ExecutionStatus, MAX_SEVERITY};

/// What attestctl's exit codes mean.
pub const EXIT_CODES: ExitCodes = &[
    (0, "done"),
    (1, "refused by the daemon, or a check failed"),
    (2, "wrong usage, or something on this side could not be read or written"),
    (3, "the daemon could not be reached, or the connection broke off"),
    (4, "the daemon cannot do it for now (busy queue, token away, disk full, not ready): try again"),
    (5, "part of a batch was refused"),
];

/// Appends to, reads and checks the ledger of a running attestd.
#[derive(Debug, Parser)]
#[command(name = "attestctl", version, after_help = exit_help(EXIT_CODES))]
#[command(arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    /// The daemon's socket.
    #[arg(long, global = true, env = "ATTESTD_SOCKET", hide_env_values = true, default_value = DEFAULT_SOCKET,
          value_parser = socket_path(), value_name = "PATH")]
    pub socket: PathBuf,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one of it in the life of the program")]
pub enum Command {
    /// Append one event, given by options or as JSON, or a batch of them.
    ///
    /// The event is durable and signed when the command ends with 0. It is too where only the
    /// answer could not be written: the command ends with 2 then, and names the entry on standard
    /// error.
    Append(Append),
    /// Show one entry.
    Get(Get),
    /// List entries, the newest first.
    List(List),
    /// Export entries as a bundle that attest-verify checks.
    Export(Export),
    /// Get the receipt of an entry, which proves to anyone that it is in the ledger.
    ///
    /// Ends with 4 while no checkpoint has the entry in it yet, which takes a second or so.
    Proof(Proof),
    /// Publish the tree as files that any static web server can serve, or check such files.
    ///
    /// The layout is that of c2sp.org/tlog-tiles. Nothing of an entry but its hash is in it.
    Publish(Publish),
    /// Check, show, compare, try out or apply rules.
    Rules(Rules),
    /// Propose an action that the rules want approved.
    Propose(Propose),
    /// List the proposals that are open, or show one in full.
    Proposals(Proposals),
    /// Show what is proposed, and approve or reject it by signature.
    ///
    /// What is signed is computed here, from what is shown and from the entry that opened the
    /// proposal; that entry has to be readable for whoever runs this. To sign on another machine,
    /// --statement-out writes the very bytes, and --signature brings back what
    /// `ssh-keygen -Y sign -n attestd-approval -f KEY s.json` or
    /// `openssl dgst -sha256 -sign KEY.pem -out s.sig s.json` made of them.
    Approve(Approve),
    /// Seal a proposal that has its approvals, with the outcome of the action.
    Seal(Seal),
    /// Withdraw a proposal.
    Withdraw(Withdraw),
    /// Have the daemon check its whole ledger.
    ///
    /// This is the daemon's own word. For evidence that needs no trust in the daemon, export a
    /// bundle and run attest-verify elsewhere.
    Verify(Verify),
    /// Show how the daemon is doing.
    ///
    /// Ends with 4 when it cannot append at the moment.
    Status(Status),
    /// Measure how fast the daemon, its token and its disk are.
    ///
    /// Every append is a real entry that stays in the ledger for ever. The raw figures need root
    /// or the daemon's own user, and a daemon that is idle.
    Bench(Bench),
    /// List the ledger's keys, hand over to another one, or revoke one of the past.
    Key(Key),
    /// Look at everything that a ledger needs, and say what is wrong and what to do about it.
    ///
    /// Run it as the daemon's user, on the daemon's machine. It changes nothing; where no daemon runs it logs in to
    /// the token once, as the daemon would. Ends with 1 when something is wrong, with 2 when it could not read the
    /// configuration.
    Doctor(Doctor),
    /// Copy the ledger file, while the daemon runs or not, for evidence and for successors.
    ///
    /// Run it as the daemon's user. `attestd verify` and `attestd export` work on the copy. Never put it back as
    /// the ledger: what was acknowledged since would be lost, and anchors refuse it.
    Backup(Backup),
    /// The clock that entries get their time from.
    #[command(subcommand)]
    Clock(Clock),
    /// The latch that keeps a PIN which the token refused from being tried again.
    Pin(Pin),
    /// Make the ledger's key before witnesses, or check that it was made so.
    ///
    /// Neither needs a daemon. docs/ceremony.md is the runbook.
    #[command(subcommand)]
    Ceremony(Ceremony),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write those of all the programs into a directory.
    Man {
        /// Where to write attestd.1, attestctl.1, attest-verify.1, attestctl-append.1 and so on.
        dir: Option<PathBuf>,
    },
}

/// `attestctl key`
#[derive(Debug, Args)]
pub struct Key {
    /// What to do.
    #[command(subcommand)]
    pub command: KeyCommand,
}

/// What can be done with the ledger's keys.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// List the keys, and the entries that each signed.
    List {
        /// Print what the daemon answers.
        #[arg(long)]
        json: bool,
    },
    /// Hand over to another key: on another token, or on the same one.
    ///
    /// The daemon opens the new token beside the one that it has. From then on the new key signs; the
    /// daemon's configuration must name it before the next start.
    Rotate(RotateKey),
    /// Say from where on a key of the past is not trusted.
    ///
    /// The key in force can't be revoked: hand over to another one first.
    Revoke {
        /// The key, as `list` names it.
        key_id: String,
        /// Why; it stays in the ledger.
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// Trust it up to its checkpoint of so many entries; all that it signed, where nothing is said.
        #[arg(long, value_name = "ENTRIES")]
        size: Option<u64>,
        /// Print the entry.
        #[arg(long)]
        json: bool,
    },
}

/// `attestctl key rotate`
#[derive(Debug, Args)]
pub struct RotateKey {
    /// The new key, as an RFC 7512 URI that names its token.
    #[arg(long, value_name = "URI")]
    pub to: String,
    /// The PKCS#11 module of its token, where it is another one; the daemon's configuration must name it
    /// in token.other_modules.
    #[arg(long, value_name = "PATH")]
    pub module: Option<PathBuf>,
    /// A file on the daemon's machine that holds the PIN of its token, where it is another one.
    #[arg(long, value_name = "FILE", conflicts_with = "pin_credential")]
    pub pin_file: Option<PathBuf>,
    /// The systemd credential of the daemon that holds the PIN.
    #[arg(long, value_name = "NAME")]
    pub pin_credential: Option<String>,
    /// Refuse any key but this one: the hex SHA-256 of its SPKI DER.
    #[arg(long, value_name = "HEX")]
    pub key_id: Option<String>,
    /// Print the entry.
    #[arg(long)]
    pub json: bool,
}

/// `attestctl backup`
#[derive(Debug, Args)]
pub struct Backup {
    /// Where to write ledger.db and manifest.json: a directory that is new or empty.
    pub dir: PathBuf,
    /// The daemon's configuration, which says where the ledger is.
    #[arg(long, value_name = "FILE", default_value = crate::config::DEFAULT_PATH)]
    pub config: PathBuf,
    /// Print the manifest.
    #[arg(long)]
    pub json: bool,
}

/// `attestctl clock`
#[derive(Debug, Subcommand)]
pub enum Clock {
    /// Say that the daemon's clock is right after it jumped forward, so that it takes entries again.
    ///
    /// The daemon refuses entries when the wall clock jumps forward by more than an hour, because the ledger's
    /// time cannot be taken back. Look at the clock first: the ledger says for ever who confirmed it.
    Confirm {
        /// Print the daemon's answer.
        #[arg(long)]
        json: bool,
    },
}

/// `attestctl doctor`
#[derive(Debug, Args)]
pub struct Doctor {
    /// The daemon's configuration.
    #[arg(long, value_name = "FILE", default_value = crate::config::DEFAULT_PATH)]
    pub config: PathBuf,
    /// Print {"ok":…,"findings":[…],"caller":…}.
    #[arg(long)]
    pub json: bool,
    /// Append a test event, `doctor.test`, and show what the kernel said of its caller. It stays in the ledger.
    #[arg(long)]
    pub append: bool,
}

/// `attestctl pin`
#[derive(Debug, Args)]
pub struct Pin {
    /// What to do.
    #[command(subcommand)]
    pub command: PinCommand,
}

/// What can be done with the latch.
#[derive(Debug, Subcommand)]
pub enum PinCommand {
    /// Have the PIN tried once more, after it was put right.
    Clear {
        /// The daemon's configuration, which says where the latch is.
        #[arg(long, value_name = "FILE", default_value = crate::config::DEFAULT_PATH)]
        config: PathBuf,
    },
}

/// `attestctl append`
#[derive(Debug, Args)]
pub struct Append {
    /// A file that holds one event as a JSON object, sent as it is; `-` for standard input.
    #[arg(long, value_name = "FILE")]
    pub event: Option<PathBuf>,

    /// A file of events, one JSON object a line; `-` for standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "event")]
    pub batch: Option<PathBuf>,

    /// Print the sealed entry, or for a batch each answer, as a line of JSON.
    #[arg(long)]
    pub json: bool,

    /// Write the receipt of the entry into a new file; the answer takes up to a second longer.
    #[arg(long, value_name = "FILE", conflicts_with = "batch")]
    pub receipt: Option<PathBuf>,

    /// The event itself.
    #[command(flatten)]
    pub draft: Draft,
}

/// The members of an event. What is left out is null, empty, or the schema's default.
#[derive(Debug, Args)]
#[group(id = "draft", multiple = true, conflicts_with_all = ["event", "batch"])]
#[command(next_help_heading = "The event")]
pub struct Draft {
    /// What kind of thing happened.
    #[arg(long, required_unless_present_any = ["event", "batch"], value_name = "TYPE", ignore_case = true,
          value_parser = words(client_event_types()))]
    pub event_type: Option<String>,
    /// What was done: 1 to 128 of letters, digits and `_.:/-`.
    #[arg(long, required_unless_present_any = ["event", "batch"], value_name = "NAME")]
    pub action_type: Option<String>,
    /// How it ended.
    #[arg(long = "status", required_unless_present_any = ["event", "batch"], value_name = "STATUS", ignore_case = true,
          value_parser = words(ExecutionStatus::ALL.iter().map(|w| w.as_str())))]
    pub execution_status: Option<String>,
    /// What kind of actor did it.
    #[arg(long, required_unless_present_any = ["event", "batch"], value_name = "TYPE", ignore_case = true,
          value_parser = words(ActorType::ALL.iter().map(|w| w.as_str())))]
    pub actor_type: Option<String>,
    /// Who did it; stored as uid:N/ID.
    #[arg(long, value_name = "ID")]
    pub actor_id: Option<String>,
    /// More about the actor: a JSON object, or @FILE.
    #[arg(long, value_name = "JSON|@FILE")]
    pub actor_context: Option<String>,
    /// The particulars: a JSON object, or @FILE (@- for standard input).
    #[arg(long = "payload", value_name = "JSON|@FILE", default_value = "{}")]
    pub action_payload: String,
    /// How bad it is; NORMAL when left out.
    #[arg(long = "category", value_name = "CATEGORY", ignore_case = true,
          value_parser = words(EventCategory::ALL.iter().map(|w| w.as_str())))]
    pub event_category: Option<String>,
    /// How bad it is, from 0 to 10; by category when left out.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(..=i64::from(MAX_SEVERITY)))]
    pub severity: Option<u8>,
    /// A UUID of version 4 that makes the append safe to repeat.
    #[arg(long, value_name = "UUID")]
    pub entry_id: Option<String>,
    /// Something about the surroundings; may be given again.
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    pub environment: Vec<(String, String)>,
    /// The state of the system: a JSON object, or @FILE.
    #[arg(long, value_name = "JSON|@FILE")]
    pub system_state_snapshot: Option<String>,
    /// The id of an earlier entry that this one depends on; may be given again.
    #[arg(long = "depends-on", value_name = "UUID")]
    pub dependencies: Vec<String>,
    /// The four scores, each from 0 to 10:
    /// an_toan=N,duong_dai=N,han_che_rui_ro=N,tin_vao_so_lieu=N.
    #[arg(long = "pillars", value_name = "NAME=SCORE,…", value_delimiter = ',', value_parser = key_value)]
    pub pillars_scores: Vec<(String, String)>,
    /// The k state; 1 when left out.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub k_state: Option<i64>,
    /// A conflict that was detected; may be given again.
    #[arg(long = "conflict", value_name = "TEXT")]
    pub conflicts_detected: Vec<String>,
    /// A proof that must be valid; may be given again.
    #[arg(long = "require-proof", value_name = "TYPE")]
    pub required_proofs: Vec<String>,
    /// The proofs: a JSON array, or @FILE.
    #[arg(long, value_name = "JSON|@FILE")]
    pub provided_proofs: Option<String>,
    /// How many approvals there must be.
    #[arg(long, value_name = "N")]
    pub required_approvals: Option<u32>,
    /// What came of it: a JSON object, or @FILE.
    #[arg(long = "result", value_name = "JSON|@FILE")]
    pub result_data: Option<String>,
    /// What went wrong: a JSON object, or @FILE.
    #[arg(long = "error", value_name = "JSON|@FILE")]
    pub error_details: Option<String>,
    /// It can be rolled back.
    #[arg(long)]
    pub rollback_available: bool,
    /// It was rolled back.
    #[arg(long)]
    pub rollback_executed: bool,
    /// The SHA-256 of the snapshot to go back to, in lower-case hex.
    #[arg(long, value_name = "HEX")]
    pub rollback_snapshot_hash: Option<String>,
}

/// `attestctl get`
#[derive(Debug, Args)]
pub struct Get {
    /// A sequence number or an entry id.
    pub reference: String,
    /// Print the canonical line exactly as it is stored, which is what was hashed and signed.
    #[arg(long, visible_alias = "raw")]
    pub json: bool,
}

/// `attestctl list`
#[derive(Debug, Args)]
pub struct List {
    /// Only this event type.
    #[arg(long, value_name = "TYPE", ignore_case = true,
          value_parser = words(EventType::ALL.iter().map(|w| w.as_str())), help_heading = "Filters")]
    pub event_type: Option<String>,
    /// Only this category.
    #[arg(long = "category", value_name = "CATEGORY", ignore_case = true,
          value_parser = words(EventCategory::ALL.iter().map(|w| w.as_str())), help_heading = "Filters")]
    pub event_category: Option<String>,
    /// Only this actor, in the form that is stored: uid:N/ID for what a client called ID.
    #[arg(long, value_name = "ID", help_heading = "Filters")]
    pub actor_id: Option<String>,
    /// Only this action type.
    #[arg(long, value_name = "NAME", conflicts_with = "action_type_prefix", help_heading = "Filters")]
    pub action_type: Option<String>,
    /// Only action types that begin so.
    #[arg(long, value_name = "PREFIX", help_heading = "Filters")]
    pub action_type_prefix: Option<String>,
    /// Only what ended so.
    #[arg(long = "status", value_name = "STATUS", ignore_case = true,
          value_parser = words(ExecutionStatus::ALL.iter().map(|w| w.as_str())), help_heading = "Filters")]
    pub execution_status: Option<String>,
    /// Only this severity.
    #[arg(long, value_name = "N", conflicts_with = "severity_min", help_heading = "Filters",
          value_parser = clap::value_parser!(u8).range(..=i64::from(MAX_SEVERITY)))]
    pub severity: Option<u8>,
    /// Only this severity and over.
    #[arg(long, value_name = "N", help_heading = "Filters",
          value_parser = clap::value_parser!(u8).range(..=i64::from(MAX_SEVERITY)))]
    pub severity_min: Option<u8>,
    /// Only entries of this time and later: RFC 3339, or a span before now such as 90m, 24h or 7d.
    #[arg(long, value_name = "TIME", value_parser = super::list::instant, help_heading = "Filters")]
    pub since: Option<String>,
    /// Only entries before this time.
    #[arg(long, value_name = "TIME", value_parser = super::list::instant, help_heading = "Filters")]
    pub until: Option<String>,
    /// Only this sequence number and later.
    #[arg(long, value_name = "N", help_heading = "Filters")]
    pub from: Option<u64>,
    /// Only entries before this sequence number.
    #[arg(long, value_name = "N", help_heading = "Filters")]
    pub to: Option<u64>,
    /// Which end to begin at.
    #[arg(long, value_enum, default_value_t = Order::Desc)]
    pub order: Order,
    /// How many entries at most.
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub limit: u64,
    /// All of them.
    #[arg(long, conflicts_with = "limit")]
    pub all: bool,
    /// Print each entry as a line of JSON.
    #[arg(long)]
    pub json: bool,
}

/// The order of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Order {
    /// Oldest first.
    Asc,
    /// Newest first.
    Desc,
}

/// `attestctl export`
#[derive(Debug, Args)]
pub struct Export {
    /// Where to put the bundle; must not exist, or be empty.
    pub dir: PathBuf,
    /// The first sequence number.
    #[arg(long, value_name = "N")]
    pub from: Option<u64>,
    /// The sequence number to stop before.
    #[arg(long, value_name = "N")]
    pub to: Option<u64>,
}

/// `attestctl proof`
#[derive(Debug, Args)]
pub struct Proof {
    /// A sequence number or an entry id.
    pub reference: String,
    /// Write it into a new file instead of to standard output.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// `attestctl publish`
#[derive(Debug, Clone, Args)]
pub struct Publish {
    /// The directory; with --check also an http:// or https:// URL.
    #[arg(value_name = "DIR|URL")]
    pub target: String,
    /// Check what is published there, without the daemon.
    #[arg(long, requires = "key")]
    pub check: bool,
    /// The ledger's public key, a PEM file; may be given again. Without --check, where left out, what the daemon says.
    #[arg(long, value_name = "FILE")]
    pub key: Vec<PathBuf>,
    /// The ledger that it must be of.
    #[arg(long, value_name = "NAME")]
    pub origin: Option<String>,
    /// Print what was done or found as JSON.
    #[arg(long)]
    pub json: bool,
}

/// `attestctl rules`
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub struct Rules {
    /// What to do with them.
    #[command(subcommand)]
    pub command: RulesCommand,
}

/// The commands about rules.
#[derive(Debug, Subcommand)]
pub enum RulesCommand {
    /// Check a file of rules and say in plain words what it means, without the daemon.
    Check {
        /// The rules, in TOML.
        file: PathBuf,
    },
    /// Say in plain words what the rules in force mean.
    Show {
        /// Print the daemon's answer as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Say what a file would change of the rules in force, or of those in another file.
    Diff {
        /// The new rules; with a second file the old ones.
        file: PathBuf,
        /// The new rules, where the old ones come from a file and not from the daemon.
        new: Option<PathBuf>,
    },
    /// Put the rules of a file in force.
    ///
    /// Where the rules in force want approvals for that, it has to be proposed.
    Apply {
        /// The rules, in TOML.
        file: PathBuf,
        /// Propose them if they cannot be applied at once.
        #[arg(long)]
        propose: bool,
        /// As whom to propose them, where the rules leave a choice.
        #[arg(long, value_name = "ID", requires = "propose")]
        actor_id: Option<String>,
        /// As what kind of actor to propose them.
        #[arg(long, value_name = "TYPE", requires = "propose", ignore_case = true, default_value = "HUMAN",
              value_parser = words(ActorType::ALL.iter().map(|w| w.as_str())))]
        actor_type: String,
        /// Print the entry as a line of JSON.
        #[arg(long)]
        json: bool,
    },
    /// Say what would become of an event, and why, without appending it.
    ///
    /// Ends with 1 where it would be refused.
    Test(RulesTest),
}

/// `attestctl rules test`
#[derive(Debug, Args)]
pub struct RulesTest {
    /// The event, a JSON object as for `append`; `-` for standard input.
    #[arg(long, value_name = "FILE")]
    pub event: PathBuf,
    /// The caller of the rules that would append it.
    #[arg(long = "as", value_name = "NAME")]
    pub caller: String,
    /// Rules in TOML, in place of those in force; the daemon is not asked then.
    #[arg(long, value_name = "FILE")]
    pub rules: Option<PathBuf>,
    /// The ledger that provers signed for, where the daemon is not asked.
    #[arg(long, value_name = "NAME", requires = "rules")]
    pub origin: Option<String>,
}

/// `attestctl propose`
#[derive(Debug, Args)]
pub struct Propose {
    /// A file that holds the event as a JSON object, as for `append`; `-` for standard input.
    #[arg(long, value_name = "FILE")]
    pub event: PathBuf,
    /// Print the entry that opens the proposal as a line of JSON.
    #[arg(long)]
    pub json: bool,
}

/// `attestctl proposals`
#[derive(Debug, Args)]
pub struct Proposals {
    /// One of them: its id, or the beginning of it.
    pub id: Option<String>,
    /// Print the daemon's answer as JSON.
    #[arg(long)]
    pub json: bool,
}

/// `attestctl approve`
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("how").required(true).args(["key", "token", "ssh", "statement_out", "signature"]))]
pub struct Approve {
    /// The proposal: its id, or the beginning of it.
    pub id: String,
    /// Say no.
    #[arg(long)]
    pub reject: bool,
    /// The approver's name in the rules; where left out, the one whose key it is.
    #[arg(long, value_name = "NAME")]
    pub signer: Option<String>,
    /// Sign with this P-256 key, a PEM file without a passphrase.
    #[arg(long, value_name = "FILE", help_heading = "How to sign")]
    pub key: Option<PathBuf>,
    /// Sign with this key on a PKCS#11 token of the approver's own, a pkcs11: URI.
    #[arg(long, value_name = "URI", help_heading = "How to sign")]
    pub token: Option<String>,
    /// The token's PKCS#11 library, where the URI has no module-path.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["key", "ssh", "statement_out", "signature"], help_heading = "How to sign")]
    pub module: Option<PathBuf>,
    /// The file that holds the token's PIN, where the URI has no pin-source.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["key", "ssh", "statement_out", "signature"], help_heading = "How to sign")]
    pub pin_file: Option<PathBuf>,
    /// Sign with this SSH key through ssh-keygen: the file of the public key where an agent or a
    /// security key holds the private one.
    #[arg(long, value_name = "FILE", help_heading = "How to sign")]
    pub ssh: Option<PathBuf>,
    /// Write the bytes to sign into a new file, and sign nothing.
    #[arg(long, value_name = "FILE", requires = "signer", help_heading = "How to sign")]
    pub statement_out: Option<PathBuf>,
    /// Bring the signature that was made elsewhere: armoured by ssh-keygen, or DER by openssl.
    #[arg(long, value_name = "FILE", help_heading = "How to sign")]
    pub signature: Option<PathBuf>,
    /// The bytes that were signed, to be held against what is proposed.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["key", "token", "ssh", "statement_out"], help_heading = "How to sign")]
    pub statement: Option<PathBuf>,
    /// Sign without asking.
    #[arg(long)]
    pub yes: bool,
    /// Print the entry as a line of JSON, and not what is proposed.
    #[arg(long)]
    pub json: bool,
}

/// `attestctl seal`
#[derive(Debug, Args)]
pub struct Seal {
    /// The proposal: its id, or the beginning of it.
    pub id: String,
    /// How the action ended.
    #[arg(long = "status", value_name = "STATUS", ignore_case = true,
          value_parser = words(ExecutionStatus::ALL.iter().map(|w| w.as_str())))]
    pub execution_status: String,
    /// What came of it: a JSON object, or @FILE.
    #[arg(long = "result", value_name = "JSON|@FILE")]
    pub result_data: Option<String>,
    /// What went wrong: a JSON object, or @FILE.
    #[arg(long = "error", value_name = "JSON|@FILE")]
    pub error_details: Option<String>,
    /// It was rolled back.
    #[arg(long)]
    pub rollback_executed: bool,
    /// As whom to seal it, where the rules leave a choice.
    #[arg(long, value_name = "ID")]
    pub actor_id: Option<String>,
    /// Print the sealed entry as a line of JSON.
    #[arg(long)]
    pub json: bool,
}

/// `attestctl withdraw`
#[derive(Debug, Args)]
pub struct Withdraw {
    /// The proposal: its id, or the beginning of it.
    pub id: String,
    /// Why.
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// As whom to withdraw it, where the rules leave a choice.
    #[arg(long, value_name = "ID")]
    pub actor_id: Option<String>,
    /// Print the entry as a line of JSON.
    #[arg(long)]
    pub json: bool,
}

/// `attestctl verify`
#[derive(Debug, Args)]
pub struct Verify {
    /// Print the verdict as JSON.
    #[arg(long)]
    pub json: bool,
}

/// `attestctl status`
#[derive(Debug, Args)]
pub struct Status {
    /// Print {"stats":…,"ready":…}.
    #[arg(long)]
    pub json: bool,
}

/// `attestctl bench`
#[derive(Debug, Args)]
pub struct Bench {
    /// How many connections send single appends at once.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub clients: u32,
    /// How long each phase lasts.
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub seconds: u64,
    /// Which phases to run; may be given again. All of them when left out.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub mode: Vec<Mode>,
    /// Over how many connections batches go.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub batch_connections: u32,
    /// How many entries of all batches together are under way at a time.
    #[arg(long, value_name = "N", default_value_t = 4_096, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub window: u32,
    /// Print the figures as JSON.
    #[arg(long)]
    pub json: bool,
}

/// A phase of the bench.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// One client, one append at a time.
    Alone,
    /// Many clients, one append at a time each.
    Single,
    /// Batches.
    Batch,
}

/// `attestctl ceremony`
#[derive(Debug, Subcommand)]
pub enum Ceremony {
    /// Make the key on the token, as a reviewed plan says, and write down every step.
    ///
    /// Ends with 0 when the key is made and every witness who signs here has signed. Whoever signs by
    /// hand does so afterwards.
    Run(CeremonyRun),
    /// Check what a ceremony left behind, offline.
    Verify(CeremonyVerify),
}

/// `attestctl ceremony run`
#[derive(Debug, Args)]
pub struct CeremonyRun {
    /// The plan, a TOML file.
    pub plan: PathBuf,
    /// A new or empty directory for the record; by default the plan's path with the ending `.ceremony`.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Say what the plan means, and do nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Ask nobody whether to begin, nor whether the fingerprint was read aloud.
    #[arg(long)]
    pub yes: bool,
}

/// `attestctl ceremony verify`
#[derive(Debug, Args)]
pub struct CeremonyVerify {
    /// The directory that the ceremony left.
    pub dir: PathBuf,
    /// The public key that it must be of, a PEM file that comes from elsewhere.
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// Be content with a rehearsal; without this it ends with 1.
    #[arg(long)]
    pub rehearsal: bool,
    /// Print the verdict as JSON.
    #[arg(long)]
    pub json: bool,
}

/// A parser for the path of the socket. `ATTESTD_SOCKET=` is as good as none.
fn socket_path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(|path| if path.is_empty() { DEFAULT_SOCKET.into() } else { path.into() })
}

/// A parser for one of `all`, in upper or lower case.
fn words(all: impl Iterator<Item = &'static str>) -> impl TypedValueParser<Value = String> {
    PossibleValuesParser::new(all).map(|word| word.to_uppercase())
}

fn client_event_types() -> impl Iterator<Item = &'static str> {
    EventType::ALL.iter().filter(|event| !event.is_reserved()).map(|event| event.as_str())
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use clap::error::ErrorKind;

    use super::*;

    fn parse(args: &[&str]) -> Result<Command, ErrorKind> {
        let args = ["attestctl"].iter().chain(args);
        Cli::try_parse_from(args).map(|cli| cli.command).map_err(|error| error.kind())
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_event_comes_from_options_or_from_a_file() {
        let whole = ["append", "--event-type", "action", "--action-type", "deploy.start"];
        let whole = [&whole[..], &["--status", "success", "--actor-type", "HUMAN"]].concat();
        let Ok(Command::Append(append)) = parse(&whole) else { panic!("valid") };
        assert_eq!(append.draft.event_type.as_deref(), Some("ACTION"));
        assert_eq!(append.draft.action_payload, "{}");

        assert!(parse(&["append", "--event", "-"]).is_ok());
        assert!(parse(&["append", "--batch", "x.ndjson", "--json"]).is_ok());
        assert_eq!(parse(&["append"]).err(), Some(ErrorKind::MissingRequiredArgument));
        assert_eq!(parse(&whole[..7]).err(), Some(ErrorKind::MissingRequiredArgument));
        for extra in [&["--event", "-"][..], &["--batch", "-"]] {
            assert_eq!(parse(&[&whole[..], extra].concat()).err(), Some(ErrorKind::ArgumentConflict));
        }
        assert_eq!(
            parse(&["append", "--event", "a", "--batch", "b"]).err(),
            Some(ErrorKind::ArgumentConflict)
        );
        assert_eq!(
            parse(&["append", "--event", "a", "--payload", "{}"]).err(),
            Some(ErrorKind::ArgumentConflict)
        );
    }

    #[test]
    fn values_outside_the_vocabulary_are_wrong_usage() {
        let base =
            ["append", "--action-type", "a", "--status", "SUCCESS", "--actor-type", "HUMAN", "--event-type"];
        assert_eq!(parse(&[&base[..], &["BOOT"]].concat()).err(), Some(ErrorKind::InvalidValue));
        assert_eq!(
            parse(&[&base[..], &["ACTION", "--severity", "11"]].concat()).err(),
            Some(ErrorKind::ValueValidation)
        );
        assert_eq!(
            parse(&[&base[..], &["ACTION", "--environment", "novalue"]].concat()).err(),
            Some(ErrorKind::ValueValidation)
        );
        for option in ["--severity", "--severity-min"] {
            assert_eq!(parse(&["list", option, "11"]).err(), Some(ErrorKind::ValueValidation));
            assert!(parse(&["list", option, "10"]).is_ok());
        }
        assert!(parse(&["list", "--event-type", "boot", "--since", "7d"]).is_ok());
        assert_eq!(parse(&["list", "--since", "tomorrow-ish"]).err(), Some(ErrorKind::ValueValidation));
        assert_eq!(parse(&["list", "--all", "--limit", "3"]).err(), Some(ErrorKind::ArgumentConflict));
        assert_eq!(parse(&["bench", "--clients", "0"]).err(), Some(ErrorKind::ValueValidation));
        assert!(parse(&["bench", "--mode", "single,batch"]).is_ok());
    }

    #[test]
    fn an_approval_is_signed_in_one_way() {
        for how in [&["--key", "k"][..], &["--ssh", "k"], &["--signature", "s"], &["--token", "pkcs11:"]] {
            assert!(parse(&[&["approve", "1"], how].concat()).is_ok(), "{how:?}");
            let two = [&["approve", "1"], how, &["--statement-out", "s", "--signer", "mai"]].concat();
            assert_eq!(parse(&two).err(), Some(ErrorKind::ArgumentConflict), "{how:?}");
        }
        assert_eq!(parse(&["approve", "1"]).err(), Some(ErrorKind::MissingRequiredArgument));
        let nameless = ["approve", "1", "--statement-out", "s"];
        assert_eq!(parse(&nameless).err(), Some(ErrorKind::MissingRequiredArgument));
        for stray in ["--statement", "--module", "--pin-file"] {
            let args = ["approve", "1", "--key", "k", stray, "s"];
            assert_eq!(parse(&args).err(), Some(ErrorKind::ArgumentConflict), "{stray}");
        }
    }

    #[test]
    fn an_empty_socket_is_the_default() {
        let socket = |path| {
            let cli = Cli::try_parse_from(["attestctl", "--socket", path, "status"]).expect("valid");
            cli.socket
        };
        assert_eq!(socket(""), std::path::Path::new(DEFAULT_SOCKET));
        assert_eq!(socket("/s"), std::path::Path::new("/s"));
    }

    #[test]
    fn help_tells_the_exit_codes() {
        let help = Cli::command().render_help().to_string();
        for (code, meaning) in EXIT_CODES {
            assert!(help.contains(&format!("  {code}  {meaning}")), "{help}");
        }
    }
}
