//! `attestctl publish`: the tree as files for a web server, and the check of what others serve.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use super::cli::Publish;
use super::text::{count_of, grouped, printable, printable_message};
use super::{Failure, Outcome, connect, print, print_line, progress, unexpected};
use crate::client::{ClientError, decode};
use crate::ledger::key::PublicKey;
use crate::publish::{self, PublishError, Published, Publisher, TreeFault, Trust};

/// A PEM file of a P-256 key has 178 bytes.
const MAX_PEM_BYTES: u64 = 16 << 10;
/// How long a web server may take to accept a connection, and to answer a request altogether.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// Unexpected files that are named; the others are counted.
const UNEXPECTED_SHOWN: usize = 20;

pub(super) async fn run(socket: &Path, args: &Publish) -> Result<Outcome, Failure> {
    let keys = args.key.iter().map(|path| read_key(path)).collect::<Result<Vec<_>, _>>()?;
    if args.check {
        let (args, keys) = (args.clone(), keys);
        // It reads from the disk or the network and blocks in both.
        return blocking(move || check(&args, &keys)).await;
    }
    write(socket, args, keys).await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|panicked| Err(Failure::local("publish", io::Error::other(panicked))))
}

fn read_key(path: &Path) -> Result<PublicKey, Failure> {
    let mut pem = String::new();
    File::open(path)
        .and_then(|file| file.take(MAX_PEM_BYTES).read_to_string(&mut pem))
        .map_err(|source| Failure::local(format!("read the key {}", path.display()), source))?;
    PublicKey::from_pem(&pem).map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))
}

/// Of `GET /v1/keys`, what is needed here.
#[derive(Deserialize)]
struct Keys {
    origin: String,
    keys: Vec<Key>,
}

#[derive(Deserialize)]
struct Key {
    public_key_pem: String,
}

async fn write(socket: &Path, args: &Publish, mut keys: Vec<PublicKey>) -> Result<Outcome, Failure> {
    let doing = "publish";
    let dir = Path::new(&args.target).to_owned();
    if is_url(&args.target) {
        return Err(Failure::Usage("only a directory can be published into; --check reads a URL".into()));
    }
    let mut client = connect(socket, doing).await?;
    let told: Keys = client.keys().await.and_then(|keys| decode(&keys)).map_err(Failure::daemon(doing))?;
    if keys.is_empty() {
        let parse = |key: &Key| {
            PublicKey::from_pem(&key.public_key_pem).map_err(|error| unexpected(doing, error.to_string()))
        };
        keys = told.keys.iter().map(parse).collect::<Result<_, _>>()?;
    }
    let origin = args.origin.clone().unwrap_or(told.origin);
    let handle = Handle::current();
    let published = blocking(move || {
        let fetch = |path: &str, _| match handle.block_on(client.get_json(&format!("/v1/{path}"))) {
            Ok(bytes) => Ok(Some(bytes.to_vec())),
            Err(ClientError::Refused(problem)) if problem.code == "not-found" => Ok(None),
            Err(error) => Err(error),
        };
        let bar = progress(Some(0), "publishing");
        let trust = Trust { keys: &keys, origin: Some(&origin) };
        let published = Publisher::new(&dir).publish(trust, fetch, |done, of| {
            bar.set_length(of);
            bar.set_position(done);
        });
        bar.finish_and_clear();
        published.map_err(failure)
    })
    .await?;
    if args.json {
        print_line(&to_json(&Report::from(published)))?;
        return Ok(Outcome::Done);
    }
    let (before, now) = (published.before.leaves(), published.root.size.leaves());
    let target = printable(&args.target);
    print(&match published.files {
        0 => format!("nothing to publish: {target} has all {}\n", count_of(now, "entry", "entries")),
        files => format!(
            "published {} of {} to {target}, in {}\n",
            grouped(now - before),
            count_of(now, "entry", "entries"),
            count_of(files, "file", "files"),
        ),
    })?;
    Ok(Outcome::Done)
}

/// What was published, for programs.
#[derive(Serialize)]
struct Report {
    size: u64,
    root: String,
    before: u64,
    files: u64,
}

impl From<Published> for Report {
    fn from(published: Published) -> Self {
        Report {
            size: published.root.size.leaves(),
            root: published.root.hash.0.to_hex(),
            before: published.before.leaves(),
            files: published.files,
        }
    }
}

fn failure(error: PublishError<ClientError>) -> Failure {
    match error {
        PublishError::Source(TreeFault::Read { path, source }) => {
            Failure::daemon(format!("publish {path}"))(source)
        }
        PublishError::Io { doing, path, source } => {
            Failure::local(format!("{doing} {}", path.display()), source)
        }
        PublishError::Busy => Failure::Usage(error.to_string()),
        fault => Failure::Check(fault.to_string()),
    }
}

/// What a check found, for programs.
#[derive(Serialize)]
struct Verdict {
    ok: bool,
    origin: Option<String>,
    size: Option<u64>,
    root: Option<String>,
    key_id: Option<String>,
    files: Option<u64>,
    unexpected: Vec<String>,
    unexpected_count: u64,
    fault: Option<String>,
}

fn check(args: &Publish, keys: &[PublicKey]) -> Result<Outcome, Failure> {
    let trust = Trust { keys, origin: args.origin.as_deref() };
    let bar = progress(Some(0), "checking");
    let advance = |done, of| {
        bar.set_length(of);
        bar.set_position(done);
    };
    let (target, dir) = (args.target.as_str(), Path::new(&args.target));
    let checked = if is_url(target) {
        let site = Site::new(target)?;
        publish::check(trust, |path, limit| site.fetch(path, limit), advance)
    } else {
        dir.read_dir().map_err(|source| Failure::local(format!("read {target}"), source))?;
        publish::check(trust, |path, limit| publish::read(dir, path, limit), advance)
    };
    bar.finish_and_clear();
    let checked = match checked {
        // A link or a pipe in the place of a file is the tree's fault; all else is that of the way there.
        Err(TreeFault::Read { path, source }) if source.kind() != io::ErrorKind::InvalidInput => {
            return Err(Failure::local(format!("read {path} of {target}"), source));
        }
        checked => checked,
    };
    let mut verdict = Verdict {
        ok: checked.is_ok(),
        origin: None,
        size: None,
        root: None,
        key_id: None,
        files: None,
        unexpected: Vec::new(),
        unexpected_count: 0,
        fault: None,
    };
    match checked {
        Ok(checked) => {
            let root = checked.note.checkpoint().root();
            verdict.origin = Some(checked.note.checkpoint().origin().to_owned());
            verdict.size = Some(root.size.leaves());
            verdict.root = Some(root.hash.0.to_hex());
            verdict.key_id = Some(checked.key.to_string());
            verdict.files = Some(checked.files);
            if !is_url(target) {
                publish::unexpected(dir, root.size, &mut |path| {
                    verdict.unexpected_count += 1;
                    if verdict.unexpected.len() < UNEXPECTED_SHOWN {
                        verdict.unexpected.push(path.to_owned());
                    }
                })
                .map_err(|source| Failure::local(format!("look through {target}"), source))?;
            }
        }
        Err(fault) => verdict.fault = Some(fault.to_string()),
    }
    if args.json {
        print_line(&to_json(&verdict))?;
    } else {
        tell(&verdict, args)?;
    }
    Ok(if verdict.ok { Outcome::Done } else { Outcome::Wrong })
}

fn tell(verdict: &Verdict, args: &Publish) -> Result<(), Failure> {
    let target = printable(&args.target);
    if let Some(fault) = &verdict.fault {
        return print(&printable_message(&format!("WRONG: {target}: {fault}\n")));
    }
    for path in &verdict.unexpected {
        eprintln!("warning: {} does not belong there", printable(path));
    }
    let more = verdict.unexpected_count.saturating_sub(verdict.unexpected.len() as u64);
    if more > 0 {
        eprintln!("warning: nor do {} others", grouped(more));
    }
    let text = |value: &Option<String>| printable(value.as_deref().unwrap_or_default()).into_owned();
    print(&format!(
        "OK: {target} is the tree of {} of {}\n  root       {}\n  signed by  {}\n  checked    the signature, and {} down to each entry's hash\n{}",
        count_of(verdict.size.unwrap_or_default(), "entry", "entries"),
        text(&verdict.origin),
        text(&verdict.root),
        text(&verdict.key_id),
        count_of(verdict.files.unwrap_or_default(), "file", "files"),
        if args.origin.is_some() {
            ""
        } else {
            "  not checked that this is the ledger that you mean: no --origin\n"
        },
    ))
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("strings and numbers can be written")
}

fn is_url(target: &str) -> bool {
    target.starts_with("http://") || target.starts_with("https://")
}

/// A published tree on a web server.
struct Site {
    base: String,
    agent: ureq::Agent,
}

impl Site {
    fn new(base: &str) -> Result<Self, Failure> {
        let mut tls = ureq::tls::TlsConfig::builder()
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
        if base.starts_with("https://") {
            // One of many that can't be read is no reason to do without the others.
            let found = rustls_native_certs::load_native_certs().certs;
            if found.is_empty() {
                return Err(Failure::Usage("the system has no certificates to trust for https".into()));
            }
            let roots: Vec<_> =
                found.iter().map(|cert| ureq::tls::Certificate::from_der(cert).to_owned()).collect();
            tls = tls.root_certs(ureq::tls::RootCerts::new_with_certs(&roots));
        }
        let config = ureq::Agent::config_builder()
            .timeout_connect(Some(CONNECT_WITHIN))
            .timeout_global(Some(ANSWER_WITHIN))
            .http_status_as_error(false)
            .max_redirects(3)
            .user_agent(concat!("attestctl/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls.build())
            .build();
        Ok(Site { base: base.trim_end_matches('/').to_owned(), agent: config.into() })
    }

    /// No more than one byte over `limit`, whatever the server sends.
    fn fetch(&self, path: &str, limit: usize) -> io::Result<Option<Vec<u8>>> {
        let answer = self.agent.get(format!("{}/{path}", self.base)).call();
        let mut answer = answer.map_err(ureq::Error::into_io)?;
        match answer.status().as_u16() {
            200 => {}
            404 | 410 => return Ok(None),
            status => return Err(io::Error::other(format!("the server answers with status {status}"))),
        }
        let mut bytes = Vec::new();
        answer.body_mut().as_reader().take(limit as u64 + 1).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }
}
