//! Text for people: aligned columns, and numbers of a few characters.

use std::fmt::Write;
use std::time::Duration;

/// How a column stands in its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

/// Lines with aligned columns under a heading, two spaces apart, none at the end.
#[derive(Debug)]
pub(super) struct Table<const N: usize> {
    align: [Align; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// A table with nothing below its heading.
    pub(super) fn new(heading: [(&str, Align); N]) -> Table<N> {
        let rows = vec![heading.map(|(title, _)| title.to_owned())];
        Table { align: heading.map(|(_, align)| align), rows }
    }

    pub(super) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }

    pub(super) fn lines(&self) -> Vec<String> {
        let mut widths = [0; N];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let line = |row: &[String; N]| {
            let mut line = String::new();
            for ((cell, width), align) in row.iter().zip(widths).zip(self.align) {
                let cell = printable(cell);
                // A String takes whatever is written to it.
                let _ = match align {
                    Align::Left => write!(line, "{cell:<width$}  "),
                    Align::Right => write!(line, "{cell:>width$}  "),
                };
            }
            line.truncate(line.trim_end().len());
            line
        };
        self.rows.iter().map(line).collect()
    }

    /// All lines, each ended.
    pub(super) fn text(&self) -> String {
        self.lines().into_iter().map(|line| line + "\n").collect()
    }
}

/// The text without characters that would make a terminal do something.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Bytes or packets in at most five characters: `999`, `1.2k`, `345M`.
pub(super) fn count(number: u64) -> String {
    const UNITS: [&str; 7] = ["", "k", "M", "G", "T", "P", "E"];
    let mut value = number as f64;
    let mut unit = 0;
    // What would be rounded to 1000 is 1.0 of the next unit.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => number.to_string(),
        _ if value < 9.95 => format!("{value:.1}{}", UNITS[unit]),
        _ => format!("{value:.0}{}", UNITS[unit]),
    }
}

/// A time in at most six characters: `0.5s`, `59s`, `12m05s`, `3h07m`, `15d02h`.
pub(super) fn time(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..10 => format!("{:.1}s", duration.as_millis() as f64 / 1000.0),
        10..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{:02}s", seconds % 60),
        3600..86_400 => format!("{hours}h{:02}m", minutes % 60),
        86_400.. => format!("{days}d{:02}h", hours % 24),
    }
}

/// A round-trip time: `85us`, `1.3ms`, `210ms`.
pub(super) fn round_trip(micros: u32) -> String {
    match micros {
        0..1000 => format!("{micros}us"),
        1000..10_000 => format!("{:.1}ms", f64::from(micros) / 1000.0),
        10_000.. => format!("{}ms", micros / 1000),
    }
}

/// A value that may be absent.
pub(super) fn or_dash<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), show)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_with_text() {
        let mut table = Table::new([("A", Align::Left), ("BB", Align::Right), ("C", Align::Left)]);
        table.row(["x".into(), "12345".into(), String::new()]);
        table.row(["long\x1b[2J".into(), "6".into(), "end".into()]);
        let expected = ["A            BB  C", "x         12345", "long?[2J      6  end"];
        assert_eq!(table.lines(), expected);
    }

    #[test]
    fn counts_are_short() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1.0k"),
            (9949, "9.9k"),
            (9950, "10k"),
            (99_950, "100k"),
            (999_499, "999k"),
            (999_500, "1.0M"),
            (u64::MAX, "18E"),
        ] {
            assert_eq!(count(number), text);
        }
    }

    #[test]
    fn times_are_short() {
        for (millis, text) in [
            (0, "0.0s"),
            (9940, "9.9s"),
            (59_999, "59s"),
            (725_000, "12m05s"),
            (11_220_000, "3h07m"),
            (1_303_200_000, "15d02h"),
        ] {
            assert_eq!(time(Duration::from_millis(millis)), text);
        }
        assert_eq!(round_trip(85), "85us");
        assert_eq!(round_trip(1250), "1.2ms");
        assert_eq!(round_trip(210_900), "210ms");
    }
}
