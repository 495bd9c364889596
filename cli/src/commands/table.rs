//! Tables for people: columns as wide as their widest cell, numbers to the right.

use std::fmt::Write;

/// A table with a head.
pub struct Table<const COLUMNS: usize> {
    /// Names of the columns, and whether they hold numbers.
    head: [(&'static str, bool); COLUMNS],
    rows: Vec<[String; COLUMNS]>,
}

impl<const COLUMNS: usize> Table<COLUMNS> {
    /// A table without rows.
    pub fn new(head: [(&'static str, bool); COLUMNS]) -> Table<COLUMNS> {
        Table { head, rows: Vec::new() }
    }

    /// Adds a row.
    pub fn push(&mut self, row: [String; COLUMNS]) {
        self.rows.push(row);
    }

    /// The lines, without a line end behind the last one.
    pub fn render(&self) -> String {
        let head = self.head.map(|(name, _)| name.to_string());
        let rows = || std::iter::once(&head).chain(&self.rows);
        let widths: [usize; COLUMNS] =
            std::array::from_fn(|column| rows().map(|row| row[column].chars().count()).max().unwrap_or(0));
        let lines = rows().map(|row| {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let (width, is_number) = (widths[column], self.head[column].1);
                let gap = if column == 0 { "" } else { "  " };
                let _ = match is_number {
                    true => write!(line, "{gap}{cell:>width$}"),
                    false => write!(line, "{gap}{cell:<width$}"),
                };
            }
            line.trim_end().to_string()
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_must_be() {
        let mut table = Table::new([("NAME", false), ("N", true), ("LAST", false)]);
        table.push(["a".into(), "100".into(), "x".into()]);
        table.push(["\u{fc}\u{fc}\u{fc}\u{fc}\u{fc}".into(), "7".into(), String::new()]);
        assert_eq!(table.render(), "NAME     N  LAST\na      100  x\n\u{fc}\u{fc}\u{fc}\u{fc}\u{fc}    7");
    }
}
