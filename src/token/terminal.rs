//! Asking for a PIN on the terminal, without showing it.
//!
//! `/dev/tty` and not standard input, which a script may have taken. Signals from the keyboard are
//! off meanwhile, so that Ctrl-C cannot end us while the terminal is silent: it is read as a byte.

use std::fs::File;
use std::io::{self, Read, Write};

use nix::sys::termios::{LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr};
use secrecy::{ExposeSecretMut, SecretBox};

const CTRL_C: u8 = 3;
const CTRL_D: u8 = 4;
const CTRL_U: u8 = 21;
const BACKSPACE: [u8; 2] = [8, 127];

/// Asks for at most `limit` bytes and gives what was typed up to the end of the line, at least one.
pub(super) fn ask(prompt: &str, limit: usize) -> io::Result<SecretBox<Vec<u8>>> {
    let terminal = File::options().read(true).write(true).open("/dev/tty")?;
    let _silence = Silence::over(&terminal)?;
    (&terminal).write_all(prompt.as_bytes())?;
    let typed = read_line(&mut &terminal, limit);
    (&terminal).write_all(b"\n")?;
    typed
}

fn read_line(terminal: &mut impl Read, limit: usize) -> io::Result<SecretBox<Vec<u8>>> {
    // Whole from the start, so that it never moves and leaves a copy behind.
    let mut typed = SecretBox::new(Box::new(Vec::with_capacity(limit)));
    let bytes = typed.expose_secret_mut();
    let mut byte = [0];
    loop {
        if terminal.read(&mut byte)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match byte[0] {
            b'\n' | b'\r' => break,
            CTRL_C | CTRL_D => return Err(io::Error::other("it was broken off")),
            CTRL_U => bytes.clear(),
            key if BACKSPACE.contains(&key) => drop(bytes.pop()),
            key if bytes.len() < limit => bytes.push(key),
            _ => return Err(io::Error::other(format!("it has more than {limit} bytes"))),
        }
    }
    if bytes.is_empty() { Err(io::Error::other("nothing was typed")) } else { Ok(typed) }
}

/// A terminal that shows nothing until this is dropped.
struct Silence<'a> {
    terminal: &'a File,
    before: Termios,
}

impl<'a> Silence<'a> {
    fn over(terminal: &'a File) -> io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut silent = before.clone();
        silent
            .local_flags
            .remove(LocalFlags::ECHO | LocalFlags::ECHONL | LocalFlags::ICANON | LocalFlags::ISIG);
        silent.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
        silent.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
        // What was typed before the question is no answer to it.
        tcsetattr(terminal, SetArg::TCSAFLUSH, &silent)?;
        Ok(Silence { terminal, before })
    }
}

impl Drop for Silence<'_> {
    fn drop(&mut self) {
        // A terminal that has gone needs no restoring.
        let _ = tcsetattr(self.terminal, SetArg::TCSAFLUSH, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;

    fn typed(keys: &[u8]) -> Result<Vec<u8>, String> {
        read_line(&mut &*keys, 8).map(|pin| pin.expose_secret().clone()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_line_is_read_as_it_is_edited() {
        assert_eq!(typed(b"1234\nrest"), Ok(b"1234".to_vec()));
        assert_eq!(typed(b"12345678\r"), Ok(b"12345678".to_vec()));
        assert_eq!(typed(b"19\x7f\x0823\x7f\x7f2\r"), Ok(b"2".to_vec()));
        assert_eq!(typed(b"wrong\x15right\n"), Ok(b"right".to_vec()));
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        for keys in [&b"\n"[..], b"", b"12", b"12\x03", b"\x04", b"123456789\n", b"1\x7f\n"] {
            assert!(typed(keys).is_err(), "{keys:?}");
        }
    }
}
