//! Tables for the terminal.

use std::fmt::Write as _;

/// Rows of cells below a header. The first column is text, aligned left; the others are numbers, aligned right.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    pub fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(|cell| (*cell).to_owned()).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The table as text, one line per row.
    pub fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(widths.iter().copied()).enumerate() {
                // Writing to a string cannot fail.
                let _ = match column {
                    0 => write!(line, "{cell:<width$}"),
                    _ => write!(line, "  {cell:>width$}"),
                };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// A number with four significant digits, or a dash.
pub fn number(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(0.0) => "0".to_owned(),
        Some(value) if !value.is_finite() => format!("{value}"),
        Some(value) if value.abs() >= 1e5 || value.abs() < 1e-3 => format!("{value:.2e}"),
        Some(value) => {
            #[expect(clippy::cast_possible_truncation, reason = "between -3 and 4")]
            let magnitude = value.abs().log10().floor() as i32;
            let decimals = usize::try_from(3 - magnitude).unwrap_or_default();
            let text = format!("{value:.decimals$}");
            match text.contains('.') {
                true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
                false => text,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Table, number};

    #[test]
    fn numbers_have_four_significant_digits() {
        let all = [0.0, 1.0, 0.5, 123.456, 0.001_234, 12_345.6, 1e-9, f64::NAN, 9.99996];
        let texts = all.map(|value| number(Some(value)));
        assert_eq!(texts, ["0", "1", "0.5", "123.5", "0.001234", "12346", "1.00e-9", "NaN", "10"]);
        assert_eq!(number(None), "-");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["module", "rank"]);
        table.row(["a".to_owned(), "8".to_owned()]);
        table.row(["longer.path".to_owned(), "16".to_owned()]);
        assert_eq!(table.text(), "module       rank\na               8\nlonger.path    16\n");
    }
}
