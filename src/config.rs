//! The configuration file: what an operator may set, what it is when it is not set, and why.
//!
//! It reads one TOML file and decides nothing else: no file named in it is opened here. An
//! option that does not exist is refused by name, so that a misspelt limit is never a missing one.
//!
//! ```text
//! origin = "ledger.example.org/build-7"
//! [token]
//! module = "/usr/lib/softhsm/libsofthsm2.so"
//! uri = "pkcs11:token=attestd;object=ledger"
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use crate::ledger::entry::SignatureAlgorithm;
use crate::ledger::key::is_origin;

/// Where the daemon looks when it is not told.
pub const DEFAULT_PATH: &str = "/etc/attestd/attestd.toml";

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The whole configuration, checked; every path in it is absolute or relative to the working
/// directory, as the path of the file was.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What the ledger is called, in everything that it signs.
    #[serde(deserialize_with = "origin")]
    pub origin: String,
    /// URLs that each entry names as places where the ledger is replicated.
    #[serde(default, deserialize_with = "urls")]
    pub replicas: Vec<String>,
    /// The least important kind of message that is logged.
    #[serde(default)]
    pub log_level: LogLevel,
    /// The ledger and the files beside it.
    #[serde(default)]
    pub ledger: Ledger,
    /// The PKCS#11 token that holds the key.
    pub token: Token,
    /// The socket and its connections.
    #[serde(default)]
    pub server: Server,
    /// How much of anything.
    #[serde(default)]
    pub limits: Limits,
    /// What a signature covers.
    #[serde(default)]
    pub signing: Signing,
    /// Where the tree is published.
    #[serde(default)]
    pub publish: Publish,
    /// Where the newest checkpoint is kept beside the ledger.
    #[serde(default)]
    pub anchor: Anchor,
    /// Who may do what, and what it needs.
    #[serde(default)]
    pub rules: Rules,
}

/// `log_level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What went wrong.
    Error,
    /// And what looks wrong.
    Warn,
    /// And what an operator wants to know.
    #[default]
    Info,
    /// And what a developer wants to know.
    Debug,
    /// And everything else.
    Trace,
}

impl LogLevel {
    /// The name, as it stands in the file.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        }
    }
}

/// `[ledger]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ledger {
    /// The ledger itself, which `attestd init` makes.
    pub path: PathBuf,
    /// The disposable index; `index.db` beside the ledger when not given.
    pub index: PathBuf,
    /// Where `attestd init` writes the public key; `public-key.pem` beside the ledger when not given.
    pub public_key: PathBuf,
    /// Appends are refused while the ledger's file system has less room than this. The default
    /// holds the largest commits in flight, twice over, and leaves an operator time to react.
    #[serde(deserialize_with = "within::<_, 0, 1_125_899_906_842_624>")]
    pub min_free_bytes: u64,
}

impl Default for Ledger {
    fn default() -> Self {
        Ledger {
            path: "/var/lib/attestd/ledger.db".into(),
            index: PathBuf::new(),
            public_key: PathBuf::new(),
            min_free_bytes: 64 * MIB,
        }
    }
}

/// `[token]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// The PKCS#11 module, a shared library.
    #[serde(deserialize_with = "given_path")]
    pub module: PathBuf,
    /// Modules beside `module` whose tokens may be rotated to: whoever has a module loaded runs code in
    /// the daemon, so it is not enough to ask for it.
    #[serde(default)]
    pub other_modules: Vec<PathBuf>,
    /// An RFC 7512 URI that names the token and the key.
    #[serde(deserialize_with = "pkcs11_uri")]
    pub uri: String,
    /// Name of the systemd credential that holds the PIN; empty for none.
    #[serde(default)]
    pub pin_credential: String,
    /// A file that holds the PIN, readable by the daemon alone; empty for none.
    #[serde(default)]
    pub pin_file: PathBuf,
    /// Sessions that sign in parallel. Two keep a token busy while the daemon verifies; network
    /// HSMs gain from more, and none is known to allow a single client over 64 cheaply.
    #[serde(default = "Token::default_sessions", deserialize_with = "within::<_, 1, 64>")]
    pub sessions: u64,
    /// What becomes of entries while the token is away.
    #[serde(default)]
    pub on_token_loss: OnTokenLoss,
    /// How many entries are held at most while it is away. Each takes about 2 KB of memory, and its
    /// signature once the token is back: a few thousand keep a token of 14 signatures a second busy for
    /// minutes in mode `each`.
    #[serde(default = "Token::default_hold_entries", deserialize_with = "within::<_, 1, 65536>")]
    pub hold_entries: u64,
    /// A call of the module that takes longer hangs, and only the end of the process ends it. A token
    /// of six signatures a second with all its sessions busy answers within seconds.
    #[serde(default = "Token::default_hang_timeout", deserialize_with = "within::<_, 1, 3600>")]
    pub hang_timeout_seconds: u64,
}

impl Token {
    fn default_sessions() -> u64 {
        2
    }

    fn default_hold_entries() -> u64 {
        4096
    }

    fn default_hang_timeout() -> u64 {
        60
    }
}

/// `token.on_token_loss`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnTokenLoss {
    /// They are refused until it is back.
    #[default]
    Refuse,
    /// They are reserved, answered so, and signed when it is back.
    Hold,
}

/// `[server]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// The Unix socket.
    pub socket: PathBuf,
    /// Its permission bits. Who cannot write to the socket cannot connect.
    #[serde(deserialize_with = "octal_mode")]
    pub socket_mode: u32,
    /// The group that owns the socket, whose members may append and read; empty for the daemon's own.
    pub socket_group: String,
    /// Connections at once. Each costs a descriptor and up to 64 KiB of buffers.
    #[serde(deserialize_with = "within::<_, 1, 65536>")]
    pub max_connections: u64,
    /// Connections at once of one uid: half of them all, so that one caller cannot shut out the rest.
    #[serde(deserialize_with = "within::<_, 1, 65536>")]
    pub max_connections_per_caller: u64,
    /// From the first byte of a request's head to its last. A local client needs microseconds.
    #[serde(deserialize_with = "within::<_, 1, 3600>")]
    pub header_timeout_seconds: u64,
    /// How long a connection may be quiet between requests, a body may pause, and a client may
    /// leave an answer unread. Long enough for a person at a keyboard.
    #[serde(deserialize_with = "within::<_, 1, 3600>")]
    pub idle_timeout_seconds: u64,
    /// How long requests in flight may go on after SIGTERM; below systemd's 90 s.
    #[serde(deserialize_with = "within::<_, 1, 3600>")]
    pub shutdown_timeout_seconds: u64,
}

impl Default for Server {
    fn default() -> Self {
        Server {
            socket: "/run/attestd/attestd.sock".into(),
            socket_mode: 0o660,
            socket_group: String::new(),
            max_connections: 1024,
            max_connections_per_caller: 512,
            header_timeout_seconds: 5,
            idle_timeout_seconds: 60,
            shutdown_timeout_seconds: 30,
        }
    }
}

impl Server {
    /// [`Server::idle_timeout_seconds`] as a duration.
    #[must_use]
    pub fn idle_timeout(&self) -> Duration {
        Duration::from_secs(self.idle_timeout_seconds)
    }
}

/// `[limits]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The largest entry in canonical form. Forty times the ordinary entry; what is larger
    /// belongs in a store of its own, with its hash in the entry.
    #[serde(deserialize_with = "within::<_, 1024, 1_048_576>")]
    pub entry_bytes: u64,
    /// The largest request body, and the largest line of a batch: an entry whose every character
    /// is escaped (`\u0041`) is six times as long as its canonical form, with blanks longer still.
    #[serde(deserialize_with = "within::<_, 1024, 16_777_216>")]
    pub request_bytes: u64,
    /// Bodies, batches, the queue and unsent answers together: a third of the 100 MiB that the
    /// daemon may take.
    #[serde(deserialize_with = "within::<_, 4_194_304, 4_294_967_296>")]
    pub memory_bytes: u64,
    /// A request that would wait longer than this for the token is refused at once. As long as
    /// a client ought to wait for an answer.
    #[serde(deserialize_with = "within::<_, 1, 3600>")]
    pub queue_wait_seconds: u64,
    /// Entries in the largest commit. Beyond a few thousand a commit gains nothing and each waits longer.
    #[serde(deserialize_with = "within::<_, 1, 65536>")]
    pub commit_entries: u64,
    /// Acknowledgements of one batch that wait for their client: those of about 12,000 entries, so
    /// that a client may write a batch of that size before it reads.
    #[serde(deserialize_with = "within::<_, 65536, 1_073_741_824>")]
    pub batch_answer_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            entry_bytes: 64 * KIB,
            request_bytes: MIB,
            memory_bytes: 32 * MIB,
            queue_wait_seconds: 30,
            commit_entries: 8192,
            batch_answer_bytes: 4 * MIB,
        }
    }
}

/// `[signing]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Signing {
    /// What a signature covers.
    pub mode: SigningMode,
    /// In mode `each`: how often a checkpoint is signed while entries come.
    #[serde(deserialize_with = "within::<_, 1, 3600>")]
    pub checkpoint_interval_seconds: u64,
}

impl Default for Signing {
    fn default() -> Self {
        // Often enough that a receipt is not waited for, seldom enough that a token of six
        // signatures a second spends most of them on entries.
        Signing { mode: SigningMode::Each, checkpoint_interval_seconds: 1 }
    }
}

impl Signing {
    /// The algorithm that the mode signs with.
    #[must_use]
    pub fn algorithm(self) -> SignatureAlgorithm {
        match self.mode {
            SigningMode::Each => SignatureAlgorithm::EntryP256,
            SigningMode::Commit => SignatureAlgorithm::TreeP256,
        }
    }
}

/// `signing.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SigningMode {
    /// Every entry has a signature of its own.
    #[default]
    Each,
    /// All entries of a commit have that of the checkpoint with which it ends.
    Commit,
}

/// `[publish]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Publish {
    /// Where the tree is published, continuously; empty for nowhere.
    pub directory: PathBuf,
    /// How often it is looked whether there is a newer checkpoint to publish.
    #[serde(deserialize_with = "within::<_, 1, 86_400>")]
    pub interval_seconds: u64,
}

impl Default for Publish {
    fn default() -> Self {
        // Each round leaves up to a partial tile a level, with 255 of which a full one is reached.
        Publish { directory: PathBuf::new(), interval_seconds: 10 }
    }
}

/// `[anchor]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Anchor {
    /// A file for the newest checkpoint, on another medium where there is one; empty for none.
    pub file: PathBuf,
    /// How often it is written while entries come. It is a few hundred bytes and two `fsync`s.
    #[serde(deserialize_with = "within::<_, 1, 3600>")]
    pub file_interval_seconds: u64,
    /// Whether the newest checkpoint is kept in a data object on the token.
    pub token: bool,
    /// How often that is written while entries come. Flash that takes 100,000 writes of one block
    /// lasts eleven years at one an hour.
    #[serde(deserialize_with = "within::<_, 1, 604_800>")]
    pub token_interval_seconds: u64,
}

impl Default for Anchor {
    fn default() -> Self {
        Anchor { file: PathBuf::new(), file_interval_seconds: 1, token: false, token_interval_seconds: 3600 }
    }
}

/// `[rules]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// A file of rules, which a start and SIGHUP put in force; empty for none: then those stay that
    /// are in force in the ledger.
    pub file: PathBuf,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("couldn't read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file says something that is not allowed.
    #[error("{}{}: {problem}", path.display(), line.map(|n| format!(":{n}")).unwrap_or_default())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line, from 1, where one line is to blame.
        line: Option<usize>,
        /// The option and what is allowed.
        problem: String,
    },
}

impl Config {
    /// Reads and checks the file at `path`. Relative paths in it are taken from its directory.
    ///
    /// # Errors
    /// When the file cannot be read, is not TOML, lacks an option that has no default, has one
    /// that does not exist, or gives one a value that is not allowed.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// [`Config::load`] for a `text` that stands, or would stand, at `path`.
    ///
    /// # Errors
    /// As [`Config::load`], but for reading.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let invalid = |line, problem| ConfigError::Invalid { path: path.to_owned(), line, problem };
        let mut config: Config = toml::from_str(text).map_err(|error| {
            let (line, problem) = explain(text, &error);
            invalid(line, problem)
        })?;
        config.check().map_err(|(option, problem)| {
            invalid(line_of(text, option), format!("option `{option}` {problem}"))
        })?;
        config.place(path.parent().unwrap_or(Path::new("")));
        Ok(config)
    }

    /// What no single option can be blamed for alone.
    fn check(&self) -> Result<(), (&'static str, String)> {
        let Limits { entry_bytes, request_bytes, memory_bytes, batch_answer_bytes, .. } = self.limits;
        let at_most = |option, value: u64, limit: u64, named: &str| {
            (value <= limit)
                .then_some(())
                .ok_or_else(|| (option, format!("is {value}, and must be at most {limit}, {named}")))
        };
        if !self.token.pin_credential.is_empty() && !self.token.pin_file.as_os_str().is_empty() {
            return Err((
                "token.pin_file",
                "is given beside `token.pin_credential`: give one of them".into(),
            ));
        }
        if self.token.pin_credential.contains('/') {
            return Err(("token.pin_credential", "is the name of a credential, without a slash".into()));
        }
        at_most(
            "server.max_connections_per_caller",
            self.server.max_connections_per_caller,
            self.server.max_connections,
            "`server.max_connections`",
        )?;
        at_most("limits.entry_bytes", entry_bytes, request_bytes, "`limits.request_bytes`")?;
        // One caller alone may hold half of the budget, and a request must fit.
        at_most(
            "limits.request_bytes",
            request_bytes,
            memory_bytes / 4,
            "a quarter of `limits.memory_bytes`",
        )?;
        at_most(
            "limits.batch_answer_bytes",
            batch_answer_bytes,
            memory_bytes / 4,
            "a quarter of `limits.memory_bytes`",
        )
    }

    fn place(&mut self, base: &Path) {
        let Config { ledger, token, server, publish, anchor, rules, .. } = self;
        for path in [
            &mut ledger.path,
            &mut ledger.index,
            &mut ledger.public_key,
            &mut token.module,
            &mut token.pin_file,
            &mut server.socket,
            &mut publish.directory,
            &mut anchor.file,
            &mut rules.file,
        ]
        .into_iter()
        .chain(&mut token.other_modules)
        {
            if !path.as_os_str().is_empty() {
                *path = base.join(&path);
            }
        }
        for (path, name) in [(&mut ledger.index, "index.db"), (&mut ledger.public_key, "public-key.pem")] {
            if path.as_os_str().is_empty() {
                *path = ledger.path.with_file_name(name);
            }
        }
    }
}

/// The line, where one is to blame, and what is wrong with a TOML text, without a value out of it.
pub(crate) fn explain(text: &str, error: &toml::de::Error) -> (Option<usize>, String) {
    let problem = without_value(error.message().trim_end());
    // What is missing altogether is missing from the whole text.
    let span = error.span().filter(|span| *span != (0..text.len()));
    let Some(before) = span.and_then(|span| text.get(..span.start)) else {
        return (None, problem);
    };
    let (line, column) = place_of(before);
    // The line itself is not shown: a PIN that somebody put there would be in the log.
    let problem = match text.lines().nth(line - 1).and_then(option_of) {
        Some(option) => format!("option `{option}`, column {column}: {problem}"),
        None => format!("column {column}: {problem}"),
    };
    (Some(line), problem)
}

/// The line and the column, both from 1, at which `before` ends.
fn place_of(before: &str) -> (usize, usize) {
    let start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[start..].chars().count() + 1)
}

/// The option that `line` sets, where it is written in the plain way.
fn option_of(line: &str) -> Option<&str> {
    let (name, _) = line.split_once('=')?;
    let name = name.trim();
    let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b == b'-');
    plain.then_some(name)
}

/// What serde or the parser says, without the value of which it says it.
fn without_value(message: &str) -> String {
    let names_value = ["invalid type: ", "invalid value: ", "invalid length ", "unknown variant "];
    match message.rsplit_once(", expected ") {
        Some((_, expected)) if names_value.iter().any(|start| message.starts_with(start)) => {
            format!("expected {expected}")
        }
        _ => message.to_owned(),
    }
}

/// The line, from 1, on which `section.key` is set, where it is written in the plain way.
fn line_of(text: &str, option: &str) -> Option<usize> {
    let (wanted_section, wanted_key) = option.split_once('.').unwrap_or(("", option));
    let mut section = "";
    for (index, line) in text.lines().map(str::trim).enumerate() {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.split(']').next()) {
            section = name.trim();
        } else if section == wanted_section && line.split('=').next().map(str::trim) == Some(wanted_key) {
            return Some(index + 1);
        }
    }
    None
}

fn within<'de, D: Deserializer<'de>, const MIN: u64, const MAX: u64>(from: D) -> Result<u64, D::Error> {
    i64::deserialize(from)
        .ok()
        .and_then(|value| u64::try_from(value).ok())
        .filter(|value| (MIN..=MAX).contains(value))
        .ok_or_else(|| serde::de::Error::custom(format!("must be a whole number from {MIN} to {MAX}")))
}

fn text_that<'de, D: Deserializer<'de>>(
    from: D,
    fits: impl Fn(&str) -> bool,
    allowed: &str,
) -> Result<String, D::Error> {
    let text = String::deserialize(from)?;
    if fits(&text) { Ok(text) } else { Err(serde::de::Error::custom(allowed)) }
}

fn origin<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let allowed = "must be 1 to 255 printable ASCII characters without blanks or `+`, \
                   and must not begin with `{` or `attestd-`";
    text_that(from, is_origin, allowed)
}

fn urls<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let urls = Vec::<String>::deserialize(from)?;
    let is_url = |url: &String| {
        let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
        // Every entry repeats the list, and with it what would be a password.
        let has_user = |rest: &str| rest.split(['/', '?', '#']).next().is_some_and(|host| host.contains('@'));
        rest.is_some_and(|rest| {
            !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_graphic()) && !has_user(rest)
        })
    };
    if urls.len() <= MAX_REPLICAS && urls.iter().all(is_url) {
        Ok(urls)
    } else {
        Err(serde::de::Error::custom(
            "must be at most 16 URLs that begin with `https://` or `http://`, without a user or a password",
        ))
    }
}

/// Every entry repeats the list, so it must stay short.
const MAX_REPLICAS: usize = 16;

fn given_path<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
    text_that(from, |text| !text.is_empty(), "must be the path of a PKCS#11 module").map(PathBuf::from)
}

fn pkcs11_uri<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    // A PIN in the configuration would be in every backup of it.
    let fits = |text: &str| text.starts_with("pkcs11:") && !text.contains("pin-value");
    text_that(from, fits, "must be a URI that begins with `pkcs11:`, without `pin-value`")
}

fn octal_mode<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    let text = String::deserialize(from)?;
    let digits = text.len() <= 4 && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
    digits
        .then(|| u32::from_str_radix(&text, 8).ok())
        .flatten()
        .filter(|mode| *mode <= 0o777)
        .ok_or_else(|| serde::de::Error::custom("must be octal permission bits in quotes, such as \"0660\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUIRED: &str =
        "origin = \"ledger.example.org\"\n[token]\nmodule = \"/m.so\"\nuri = \"pkcs11:token=t\"\n";
    const SHIPPED: &str = include_str!("../attestd.toml");

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("/etc/attestd/attestd.toml")).map_err(|e| e.to_string())
    }

    /// The shipped file with every commented option in force.
    fn uncommented() -> String {
        let is_option =
            |line: &str| line.starts_with(|c: char| c.is_ascii_lowercase()) && line.contains(" = ");
        let plain = |line| match str::strip_prefix(line, "#") {
            Some(option) if is_option(option) => option,
            _ => line,
        };
        SHIPPED.lines().map(plain).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_shipped_file_is_exactly_the_defaults() {
        let shipped = parse(SHIPPED).expect("as shipped");
        assert_eq!(parse(&uncommented()).expect("with every default written out"), shipped);
        let required = parse(REQUIRED).expect("only what has no default");
        let Config { origin, token: Token { module, uri, .. }, .. } = shipped.clone();
        let token = Token { module, uri, ..required.token.clone() };
        assert_eq!(shipped, Config { origin, token, ..required });
    }

    /// `Debug` prints every field of every struct, so no option can be forgotten.
    #[test]
    fn the_shipped_file_has_every_option() {
        let debug = format!("{:#?}", parse(REQUIRED).expect("valid"));
        let options = debug.lines().filter_map(|line| line.split_once(": ").map(|(name, _)| name.trim()));
        let text = uncommented();
        for option in options {
            let written = format!("\n{option} = ");
            assert!(text.contains(&written) || text.contains(&format!("\n[{option}]")), "{option}");
        }
    }

    #[test]
    fn errors_name_file_line_option_and_what_is_allowed() {
        let cases = [
            (
                "sessions = 65\n",
                "attestd.toml:5: option `sessions`, column 12: must be a whole number from 1 to 64",
            ),
            (
                "sessions = \"2\"\n",
                "attestd.toml:5: option `sessions`, column 12: must be a whole number from 1 to 64",
            ),
            (
                "[server]\nsoket = \"x\"\n",
                "attestd.toml:6: option `soket`, column 1: unknown field `soket`, expected one of `socket`",
            ),
            (
                "[server]\nsocket_mode = \"0888\"\n",
                "must be octal permission bits in quotes, such as \"0660\"",
            ),
            ("[server]\nsocket_mode = \"1777\"\n", "must be octal permission bits"),
            (
                "[server]\nmax_connections = 100\n",
                "option `server.max_connections_per_caller` is 512, and must be at most 100",
            ),
            (
                "[limits]\nrequest_bytes = 16777216\n",
                "attestd.toml:6: option `limits.request_bytes` is 16777216, and must be at most 8388608",
            ),
            ("[signing]\nmode = \"all\"\n", "option `mode`, column 8: expected `each` or `commit`"),
            ("[governance]\n", "unknown field `governance`"),
            (
                "pin_file = \"p\"\npin_credential = \"c\"\n",
                "attestd.toml:5: option `token.pin_file` is given beside",
            ),
            ("nonsense\n", "attestd.toml:5: "),
        ];
        for (more, expected) in cases {
            let error = parse(&format!("{REQUIRED}{more}")).expect_err(more);
            assert!(error.contains(expected), "{error}");
        }
        for (old, new, expected) in [
            ("origin = \"ledger.example.org\"\n", "", "missing field `origin`"),
            ("uri = \"pkcs11:token=t\"\n", "", "missing field `uri`"),
            (
                "ledger.example.org",
                "attestd-x",
                "attestd.toml:1: option `origin`, column 10: must be 1 to 255",
            ),
            ("token=t", "token=t?pin-value=1", "without `pin-value`"),
            (
                "origin",
                "log_level = \"loud\"\norigin",
                "option `log_level`, column 13: expected one of `error`",
            ),
            ("origin", "replicas = [\"ftp://x\"]\norigin", "must be at most 16 URLs"),
        ] {
            let error = parse(&REQUIRED.replace(old, new)).expect_err(expected);
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn what_a_line_says_is_not_in_its_error() {
        for line in [
            "pin = 73914628",
            "pin = \"73914628\"",
            "pin = '73914628",
            "pin: 73914628",
            "pin_file = 73914628",
            "pin_credential = [73914628]",
            "sessions = 73914628",
            "sessions = \"73914628\"",
            "uri = \"pkcs11:token=t?pin-value=73914628\"",
            "73914628",
            "= 73914628",
            "pin-value = 73914628 # 73914628",
            "[server]\nsocket = 73914628",
            "[signing]\nmode = \"73914628\"",
            "[server]\nsocket_mode = \"73914628\"",
        ] {
            let text = REQUIRED.replace("uri = \"pkcs11:token=t\"\n", "");
            for text in [format!("{REQUIRED}{line}\n"), format!("{text}{line}\n")] {
                let error = parse(&text).expect_err(line);
                assert!(!error.contains("73914628"), "{line}: {error}");
            }
        }
    }

    #[test]
    fn a_replica_has_no_password() {
        for url in ["https://u:p@host/", "http://u@host", "https://a:b@[::1]:8/x?y"] {
            let error = parse(&format!("replicas = [\"{url}\"]\n{REQUIRED}")).expect_err(url);
            assert!(error.contains("without a user or a password") && !error.contains(url), "{error}");
        }
        assert!(parse(&format!("replicas = [\"https://host/a@b\"]\n{REQUIRED}")).is_ok());
    }

    #[test]
    fn relative_paths_are_taken_from_the_directory_of_the_file() {
        let text = format!(
            "{REQUIRED}pin_file = \"pin\"\n[ledger]\npath = \"data/l.db\"\n[server]\nsocket = \"s\"\n"
        );
        let config = parse(&text).expect("valid");
        assert_eq!(config.ledger.path, Path::new("/etc/attestd/data/l.db"));
        assert_eq!(config.ledger.index, Path::new("/etc/attestd/data/index.db"));
        assert_eq!(config.ledger.public_key, Path::new("/etc/attestd/data/public-key.pem"));
        assert_eq!(config.token.pin_file, Path::new("/etc/attestd/pin"));
        assert_eq!(config.server.socket, Path::new("/etc/attestd/s"));
        assert_eq!(Config::parse(&text, Path::new("a.toml")).expect("valid").server.socket, Path::new("s"));
    }
}
