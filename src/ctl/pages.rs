//! Manual pages and completions, made from the same structs that parse the command line.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::cli::{self, ExitCodes};

/// Writes the manual page of `command` alone.
///
/// # Errors
/// When `out` cannot be written.
pub fn man_page(command: Command, codes: ExitCodes, out: &mut dyn Write) -> io::Result<()> {
    let command = built(command);
    page(&command, codes, out)
}

/// Writes the manual pages of all the programs.
///
/// # Errors
/// When a file cannot be written.
pub fn all_pages(dir: &Path) -> io::Result<()> {
    man_pages(super::cli::Cli::command(), super::cli::EXIT_CODES, dir)?;
    man_pages(cli::daemon::Arguments::command(), cli::daemon::EXIT_CODES, dir)?;
    man_pages(cli::auditor::Cli::command(), cli::auditor::EXIT_CODES, dir)
}

/// Writes the manual page of `command` and of each of its subcommands into `dir`, which is made
/// where it is missing.
///
/// # Errors
/// When a file cannot be written.
fn man_pages(command: Command, codes: ExitCodes, dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    pages_of(&built(command), codes, dir)
}

fn pages_of(command: &Command, codes: ExitCodes, dir: &Path) -> io::Result<()> {
    let mut text = Vec::new();
    page(command, codes, &mut text)?;
    fs::write(dir.join(Man::new(command.clone()).get_filename()), text)?;
    command.get_subcommands().try_for_each(|subcommand| pages_of(subcommand, codes, dir))
}

/// Writes the completion script of `command` for `shell`.
///
/// # Errors
/// When `out` cannot be written.
pub fn completions(mut command: Command, shell: Shell, out: &mut dyn Write) -> io::Result<()> {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    out.write_all(&script)
}

/// Global options and full names reach the subcommands only when the command is built.
fn built(command: Command) -> Command {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    command
}

/// clap's own page, with a section for the exit codes in place of one called EXTRA.
fn page(command: &Command, codes: ExitCodes, out: &mut dyn Write) -> io::Result<()> {
    let version = command.get_version().unwrap_or(env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone()).source(format!("attestd {version}")).manual("attestd");
    man.render_title(out)?;
    man.render_name_section(out)?;
    man.render_synopsis_section(out)?;
    man.render_description_section(out)?;
    man.render_options_section(out)?;
    if command.has_subcommands() {
        man.render_subcommands_section(out)?;
    }
    writeln!(out, ".SH \"EXIT STATUS\"")?;
    for (code, meaning) in codes {
        writeln!(out, ".TP\n\\fB{code}\\fR\n{meaning}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::ctl::cli::Cli;

    #[test]
    fn every_command_has_a_page_that_tells_the_exit_codes() {
        let dir = tempfile::tempdir().expect("a directory");
        let pages = dir.path().join("man1");
        all_pages(&pages).expect("written");
        for name in ["attestctl", "attestctl-append", "attestctl-bench", "attestctl-rules-check"] {
            let text = fs::read_to_string(pages.join(format!("{name}.1"))).expect(name);
            assert!(text.contains("EXIT STATUS") && text.contains("part of a batch"), "{name}");
            assert!(text.contains("socket"), "{name} lacks the global option");
        }
        for (name, said) in [
            ("attestd", "an operator is needed"),
            ("attestd-anchor-reset", "an operator is needed"),
            ("attest-verify", "it could not look"),
            ("attest-verify-compare", "it could not look"),
        ] {
            let text = fs::read_to_string(pages.join(format!("{name}.1"))).expect(name);
            assert!(text.contains("EXIT STATUS") && text.contains(said), "{name}");
        }
    }

    #[test]
    fn every_shell_gets_completions() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            completions(Cli::command(), shell, &mut script).expect("written");
            assert!(String::from_utf8_lossy(&script).contains("attestctl"));
        }
    }
}
