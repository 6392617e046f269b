//! Data for stdout: lines, tables, JSON.
//!
//! A table fits the terminal: its widest column gives way. What is not a terminal gets everything.

use std::io::{self, BufWriter, Write};

use serde::Serialize;

use super::failure::{Failure, printable};

/// Prints `text` and a line end.
pub(super) fn line(text: &str) -> Result<(), Failure> {
    write_all(&[text.as_bytes(), b"\n"].concat())
}

/// Tells people what is no data: on stderr, unless they asked for quiet.
pub(super) fn note(text: &str) {
    if tracing::enabled!(tracing::Level::WARN) {
        // Nothing is left to tell that stderr is gone.
        let _ = writeln!(io::stderr().lock(), "{}", printable(text));
    }
}

/// Prints `bytes` as they are.
pub(super) fn write_all(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    Ok(out.flush()?)
}

/// Prints `value` as JSON, for programs.
pub(super) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let mut out = BufWriter::new(io::stdout().lock());
    serde_json::to_writer_pretty(&mut out, value).map_err(io::Error::from)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

/// A number of things: `1 file`, `2 files`.
pub(super) fn count(number: u64, one: &str, more: &str) -> String {
    match number {
        1 => format!("1 {one}"),
        number => format!("{number} {more}"),
    }
}

/// Bytes for people, as the other Musher tools print them: powers of 1024, one decimal.
pub(super) fn size(bytes: u64) -> String {
    let units = ["KB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // In tenths, rounded, so that 1023.95 KB is 1.0 MB.
    let mut tenths = (u128::from(bytes) * 10 + 512) / 1024;
    let mut unit = 0;
    while tenths >= 10 * 1024 && unit + 1 < units.len() {
        tenths = (tenths + 512) / 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, units[unit])
}

/// Where a column's text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

/// Rows of text in columns.
#[derive(Debug)]
pub(super) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

/// What is between two columns.
const GAP: usize = 2;
/// A column that gives way keeps at least this width.
const NARROWEST: usize = 8;

impl Table {
    pub(super) fn new(columns: impl Into<Vec<(&'static str, Align)>>) -> Self {
        Self {
            columns: columns.into(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; there should be one cell a column.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows
            .push(cells.into_iter().map(|cell| printable(&cell)).collect());
    }

    /// Prints the table; without rows, nothing at all.
    pub(super) fn print(&self) -> Result<(), Failure> {
        let terminal = console::Term::stdout();
        let width = terminal
            .is_term()
            .then(|| terminal.size_checked())
            .flatten()
            .map(|(_, columns)| usize::from(columns));
        write_all(self.render(width).as_bytes())
    }

    fn render(&self, limit: Option<usize>) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let widths = self.widths(limit);
        let titles = self.columns.iter().map(|(title, _)| (*title).to_owned());
        let titles: Vec<String> = titles.collect();
        let mut text = String::new();
        for row in std::iter::once(&titles).chain(&self.rows) {
            let mut line = String::new();
            for ((cell, &width), (_, align)) in row.iter().zip(&widths).zip(&self.columns) {
                let cell = console::truncate_str(cell, width, "…");
                let padding = " ".repeat(width - console::measure_text_width(&cell).min(width));
                match align {
                    Align::Left => line.extend([&*cell, &padding]),
                    Align::Right => line.extend([&*padding, &cell]),
                }
                line.push_str(&" ".repeat(GAP));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    fn widths(&self, limit: Option<usize>) -> Vec<usize> {
        let mut widths: Vec<usize> = self.columns.iter().map(|(title, _)| title.len()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(console::measure_text_width(cell));
            }
        }
        if let Some(limit) = limit {
            let total = widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1);
            let excess = total.saturating_sub(limit);
            if let Some(widest) = widths.iter_mut().max() {
                let narrowest = NARROWEST.min(*widest);
                *widest = widest.saturating_sub(excess).max(narrowest);
            }
        }
        widths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new([("PATH", Align::Left), ("SIZE", Align::Right)]);
        table.row(["prompts/überprüfung.md".into(), size(1)]);
        table.row(["a".into(), size(123_456)]);
        table
    }

    #[test]
    fn columns_are_aligned_by_what_is_seen() {
        assert_eq!(
            table().render(None),
            "PATH                        SIZE\n\
             prompts/überprüfung.md       1 B\n\
             a                       120.6 KB\n"
        );
    }

    #[test]
    fn a_table_fits_the_terminal() {
        let text = table().render(Some(24));
        assert!(text.contains("prompts/überp…"), "{text}");
        for line in text.lines() {
            assert!(console::measure_text_width(line) <= 24, "{text}");
        }
        assert!(table().render(Some(1)).contains("prompts…"));
    }

    #[test]
    fn no_rows_are_no_output() {
        assert_eq!(Table::new([("PATH", Align::Left)]).render(None), "");
    }

    #[test]
    fn sizes_are_printed_as_by_the_other_tools() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KB"),
            (1536, "1.5 KB"),
            (1 << 20, "1.0 MB"),
            ((1 << 20) - 1, "1.0 MB"),
            (5 << 30, "5.0 GB"),
            (u64::MAX, "16.0 EB"),
        ] {
            assert_eq!(size(bytes), text, "{bytes}");
        }
    }
}
