//! The command lines of the programs, apart from what they do, so that manual pages are made from what
//! parses them. That of `attestctl` stands with its commands, in `ctl`.

pub mod auditor;
#[cfg(feature = "daemon")]
pub mod daemon;

/// A program's exit codes and what each means.
pub type ExitCodes = &'static [(u8, &'static str)];

/// The exit codes as the last part of `--help`.
#[must_use]
pub fn exit_help(codes: ExitCodes) -> String {
    let lines: Vec<String> = codes.iter().map(|(code, meaning)| format!("  {code:>2}  {meaning}")).collect();
    format!("Exit codes:\n{}", lines.join("\n"))
}
