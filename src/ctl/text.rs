//! Text for people: what an entry says, shown so that it cannot play tricks on the terminal.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::IsTerminal as _;

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// Whether `c` would act on the terminal, or on how its neighbours are shown, instead of being
/// shown: controls, bidirectional and other invisible format characters, and line separators.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{AD}' | '\u{600}'..='\u{605}' | '\u{61C}' | '\u{6DD}' | '\u{70F}' | '\u{8E2}' | '\u{180B}'..='\u{180E}'
            | '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2060}'..='\u{206F}' | '\u{FE00}'..='\u{FE0F}'
            | '\u{FEFF}' | '\u{FFF9}'..='\u{FFFB}' | '\u{E0000}'..='\u{E0FFF}')
}

fn escape(c: char, out: &mut String) {
    for unit in c.encode_utf16(&mut [0; 2]) {
        // Writing to a string cannot fail.
        let _ = write!(out, "\\u{unit:04x}");
    }
}

/// `text` with what is hidden, and the backslash that would be mistaken for it, escaped.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(|c| is_hidden(c) || c == '\\') {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            c if is_hidden(c) => escape(c, &mut out),
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// A message of the daemon's with what is hidden escaped, but backslashes as they are: such a
/// message quotes JSON.
pub(crate) fn printable_message(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hidden(c) { escape(c, &mut out) } else { out.push(c) }
    }
    out
}

/// Canonical JSON laid out over several lines, `indent` being that of the lines after the first.
/// Spelling is kept; what is hidden is escaped the way JSON itself does it.
pub(crate) fn pretty(json: &str, indent: usize) -> String {
    let mut out = String::with_capacity(json.len() * 2);
    let mut depth = 0usize;
    let mut chars = json.chars().peekable();
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', indent + 2 * depth));
    };
    while let Some(c) = chars.next() {
        match c {
            '"' => {
                out.push('"');
                while let Some(c) = chars.next() {
                    if is_hidden(c) {
                        escape(c, &mut out);
                    } else {
                        out.push(c);
                    }
                    match c {
                        '\\' => out.extend(chars.next()),
                        '"' => break,
                        _ => {}
                    }
                }
            }
            '{' | '[' if matches!(chars.peek(), Some('}' | ']')) => {
                out.push(c);
                out.extend(chars.next());
            }
            '{' | '[' => {
                out.push(c);
                depth += 1;
                line(&mut out, depth);
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            c if is_hidden(c) => escape(c, &mut out),
            c => out.push(c),
        }
    }
    out
}

/// `text` broken between words where a terminal of `width` would break it within them; the lines
/// after the first are indented by `indent`.
pub(crate) fn wrapped(text: &str, width: Option<usize>, indent: usize) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    let mut used = 0;
    for (index, word) in text.split(' ').enumerate() {
        let needed = word.width();
        if index == 0 {
            used = needed;
        } else if width.is_some_and(|width| used + 1 + needed > width) {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent));
            used = indent + needed;
        } else {
            out.push(' ');
            used += 1 + needed;
        }
        out.push_str(word);
    }
    out
}

/// `number` with a comma after each group of three digits.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `count` of a thing, in the plural unless it is one.
pub(crate) fn count_of(count: u64, one: &str, many: &str) -> String {
    format!("{} {}", grouped(count), if count == 1 { one } else { many })
}

/// A span of time in its two largest units; of whole ones in that.
pub(crate) fn duration(seconds: f64) -> String {
    // Negative or not a number counts as nothing; the cast saturates.
    let seconds = seconds.max(0.0) as u64;
    let (large, unit, small, rest) = match seconds {
        0..60 => return format!("{seconds} s"),
        60..3_600 => (seconds / 60, "min", seconds % 60, "s"),
        3_600..86_400 => (seconds / 3_600, "h", seconds % 3_600 / 60, "min"),
        _ => (seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
    };
    if small == 0 { format!("{large} {unit}") } else { format!("{large} {unit} {small} {rest}") }
}

/// Microseconds in the unit that suits them.
pub(crate) fn latency(micros: f64) -> String {
    match micros {
        m if m < 1_000.0 => format!("{m:.0} µs"),
        m if m < 100_000.0 => format!("{:.2} ms", m / 1_000.0),
        m => format!("{:.0} ms", m / 1_000.0),
    }
}

/// How wide stdout's terminal is; `None` when it is no terminal.
pub(crate) fn terminal_width() -> Option<usize> {
    if !std::io::stdout().is_terminal() {
        return None;
    }
    terminal_size::terminal_size_of(std::io::stdout()).map(|(width, _)| usize::from(width.0))
}

/// Emphasis, where the terminal has it and nobody objects (<https://no-color.org>).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Style(bool);

impl Style {
    /// For what is written to stdout.
    pub(crate) fn of_stdout() -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Style(std::io::stdout().is_terminal() && !set("NO_COLOR") && !dumb)
    }

    #[cfg(test)]
    pub(crate) fn plain() -> Self {
        Style(false)
    }

    pub(crate) fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    pub(crate) fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }

    pub(crate) fn good(self, text: &str) -> String {
        self.wrap("32", text)
    }

    pub(crate) fn bad(self, text: &str) -> String {
        self.wrap("1;31", text)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// A column of a [`Table`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    pub(crate) title: &'static str,
    /// Numbers are set to the right.
    pub(crate) right: bool,
    /// How narrow it may become where the terminal is; `None` keeps it whole.
    pub(crate) least: Option<usize>,
}

/// A table that grows page by page. Columns never become narrower again, so that the pages of a
/// long list stay under one heading.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<Column>,
    widths: Vec<usize>,
    terminal: Option<usize>,
    headed: bool,
}

const GAP: usize = 2;

impl Table {
    /// `terminal` is the width to fit into, if any.
    pub(crate) fn new(columns: Vec<Column>, terminal: Option<usize>) -> Self {
        let widths = columns.iter().map(|column| column.title.len()).collect();
        Table { columns, widths, terminal, headed: false }
    }

    /// Appends `rows`, whose cells are printable already; the heading goes before the first.
    pub(crate) fn render(&mut self, rows: &[Vec<String>], style: Style, out: &mut String) {
        for row in rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.width());
            }
        }
        let fitted = self.fitted();
        if !self.headed {
            self.headed = true;
            let titles: Vec<String> = self.columns.iter().map(|column| column.title.to_owned()).collect();
            out.push_str(&style.bold(&self.line(&titles, &fitted)));
            out.push('\n');
        }
        for row in rows {
            out.push_str(&self.line(row, &fitted));
            out.push('\n');
        }
    }

    /// The widths at which the table fits into the terminal: the widest column that may shrink
    /// goes first, until they are level.
    fn fitted(&self) -> Vec<usize> {
        let mut widths = self.widths.clone();
        let Some(terminal) = self.terminal else {
            return widths;
        };
        let total = |widths: &[usize]| widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1);
        while total(&widths) > terminal {
            let widest = (0..widths.len())
                .filter(|at| self.columns[*at].least.is_some_and(|least| widths[*at] > least))
                .max_by_key(|at| widths[*at]);
            match widest {
                Some(at) => widths[at] -= 1,
                None => break,
            }
        }
        widths
    }

    fn line(&self, cells: &[String], widths: &[usize]) -> String {
        let mut line = String::new();
        for (index, ((cell, width), column)) in cells.iter().zip(widths).zip(&self.columns).enumerate() {
            let cell = cut(cell, *width);
            let padding = " ".repeat(width.saturating_sub(cell.width()));
            if index > 0 {
                line.push_str(&" ".repeat(GAP));
            }
            if column.right {
                line.push_str(&padding);
                line.push_str(&cell);
            } else {
                line.push_str(&cell);
                line.push_str(&padding);
            }
        }
        line.truncate(line.trim_end().len());
        line
    }
}

/// `text` in at most `width` columns, with an ellipsis where something was cut off.
fn cut(text: &str, width: usize) -> Cow<'_, str> {
    if text.width() <= width {
        return Cow::Borrowed(text);
    }
    let mut out = String::new();
    let mut used = 1;
    for c in text.chars() {
        used += c.width().unwrap_or(0);
        if used > width {
            break;
        }
        out.push(c);
    }
    out.push('…');
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_on_a_terminal_is_escaped() {
        assert_eq!(printable("agent-7/é 漢"), "agent-7/é 漢");
        assert_eq!(printable("a\u{1b}[2Jb\r\n"), "a\\u001b[2Jb\\u000d\\u000a");
        assert_eq!(printable("x\u{202E}cod.exe\u{2066}"), "x\\u202ecod.exe\\u2066");
        assert_eq!(printable("\u{9b}31m\u{7f}\u{200b}\u{feff}"), "\\u009b31m\\u007f\\u200b\\ufeff");
        assert_eq!(printable("tag\u{E0041}"), "tag\\udb40\\udc41");
        assert_eq!(printable(r"\u202e"), r"\\u202e", "what looks like an escape is told from one");
        assert_eq!(printable_message("`\\u0000` \u{1b}"), "`\\u0000` \\u001b");
    }

    #[test]
    fn json_is_laid_out_without_a_change_of_spelling() {
        let text = "{\"a\":[1e+21,{}],\"b\":\"x,{\\\"\u{202e}\\\\\",\"c\":[]}";
        let expected = "{\n    \"a\": [\n      1e+21,\n      {}\n    ],\n    \"b\": \"x,{\\\"\\u202e\\\\\",\n    \"c\": []\n  }";
        assert_eq!(pretty(text, 2), expected);
        assert_eq!(pretty("null", 2), "null");
    }

    #[test]
    fn words_stay_whole_where_a_line_is_broken() {
        assert_eq!(wrapped("one two three", None, 2), "one two three");
        assert_eq!(wrapped("one two three", Some(8), 2), "one two\n  three");
        assert_eq!(wrapped("onetwothree four", Some(4), 2), "onetwothree\n  four");
        assert_eq!(wrapped("  a  b", None, 2), "  a  b", "what is aligned stays so");
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(count_of(1, "entry", "entries"), "1 entry");
        assert_eq!(
            [59.9, 61.0, 7_260.0, 90_000.0, 604_800.0].map(duration),
            ["59 s", "1 min 1 s", "2 h 1 min", "1 d 1 h", "7 d"]
        );
        assert_eq!([78.4, 1_234.0, 250_000.0].map(latency), ["78 µs", "1.23 ms", "250 ms"]);
    }

    fn columns() -> Vec<Column> {
        vec![
            Column { title: "SEQ", right: true, least: None },
            Column { title: "ACTOR", right: false, least: Some(6) },
            Column { title: "ID", right: false, least: None },
        ]
    }

    #[test]
    fn a_table_fits_the_terminal_and_keeps_what_must_stay_whole() {
        let rows = [["7", "uid:1000/agent", "abc"], ["1234", "漢字漢字漢字", "d"]]
            .map(|row| row.map(str::to_owned).to_vec());
        let mut out = String::new();
        Table::new(columns(), None).render(&rows, Style::plain(), &mut out);
        assert_eq!(out, " SEQ  ACTOR           ID\n   7  uid:1000/agent  abc\n1234  漢字漢字漢字    d\n");
        out.clear();
        Table::new(columns(), Some(19)).render(&rows, Style::plain(), &mut out);
        assert_eq!(out, " SEQ  ACTOR     ID\n   7  uid:100…  abc\n1234  漢字漢…   d\n");
        out.clear();
        Table::new(columns(), Some(3)).render(&rows, Style::plain(), &mut out);
        assert!(out.contains("1234  漢字…   d"), "{out}");
    }

    #[test]
    fn the_heading_comes_once() {
        let mut table = Table::new(columns(), None);
        let mut out = String::new();
        table.render(&[], Style::plain(), &mut out);
        table.render(&[vec!["1".into(), "a".into(), "b".into()]], Style::plain(), &mut out);
        assert_eq!(out.matches("SEQ").count(), 1);
    }
}
