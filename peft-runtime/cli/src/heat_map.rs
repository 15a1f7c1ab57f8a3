//! A heat map of an adapter: a column for each block, a row for each module, darker for larger updates.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt::Display;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::failure::Failure;
use crate::files::new_file;

const CELL: i32 = 26;
const MARGIN: i32 = 16;
const TITLE: i32 = 34;
const LEGEND: i32 = 44;
/// The approximate width of a letter in the labels.
const LETTER: i32 = 7;
/// The most rows that are drawn.
const MOST_ROWS: usize = 400;

/// The values by row and column.
struct Grid {
    rows: Vec<String>,
    columns: Vec<usize>,
    cells: Vec<(usize, usize, f64)>,
}

/// Draws `cells`, each with the path of its layer, as a PNG file.
///
/// # Errors
/// If the file cannot be written.
pub fn draw<'c>(
    path: &Path,
    title: &str,
    cells: impl Iterator<Item = (&'c str, f64)>,
) -> Result<(), Failure> {
    let failed = |error: &dyn Display| Failure::write(path, error);
    if register_font("sans-serif", FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT).is_err() {
        return Err(failed(&"the embedded font is damaged"));
    }
    let grid = Grid::new(cells);
    if grid.rows.len() > MOST_ROWS {
        return Err(failed(&format!(
            "the adapter has {} kinds of modules, and at most {MOST_ROWS} fit in the picture",
            grid.rows.len()
        )));
    }
    // plotters takes the format from the name.
    let temporary = new_file(path, ".png")?;
    {
        let area = BitMapBackend::new(temporary.path(), grid.size()).into_drawing_area();
        paint(&area, title, &grid).map_err(|error| failed(&error))?;
    }
    temporary.persist(path).map_err(|error| failed(&error))?;
    Ok(())
}

impl Grid {
    fn new<'c>(cells: impl Iterator<Item = (&'c str, f64)>) -> Self {
        let placed: Vec<(String, usize, f64)> = cells
            .map(|(path, value)| {
                let (row, column) = place(path);
                (row, column, value)
            })
            .collect();
        let mut rows: Vec<String> = Vec::new();
        for (row, _, _) in &placed {
            if !rows.contains(row) {
                rows.push(row.clone());
            }
        }
        let columns: BTreeSet<usize> = placed.iter().map(|(_, column, _)| *column).collect();
        let columns: Vec<usize> = columns.into_iter().collect();
        let cells = placed.iter().filter_map(|(row, column, value)| {
            let row = rows.iter().position(|known| known == row)?;
            Some((row, columns.binary_search(column).ok()?, *value))
        });
        let cells = cells.collect();
        Self { rows, columns, cells }
    }

    /// The space for the row labels.
    fn label_width(&self) -> i32 {
        let longest = self.rows.iter().map(|row| row.chars().count()).max().unwrap_or_default();
        pixels(longest.min(60)) * LETTER + MARGIN
    }

    fn size(&self) -> (u32, u32) {
        let width = self.label_width() + CELL * pixels(self.columns.len()).max(12) + 2 * MARGIN;
        let height = TITLE + CELL * (pixels(self.rows.len()) + 1) + LEGEND + 2 * MARGIN;
        (width.unsigned_abs(), height.unsigned_abs())
    }
}

/// The row and the column of a layer: its path with `*` for the first number, and that number.
fn place(path: &str) -> (String, usize) {
    let mut column = None;
    let segment = |segment: &str| match segment.parse::<usize>() {
        Ok(number) if column.is_none() => {
            column = Some(number);
            "*".to_owned()
        }
        _ => segment.to_owned(),
    };
    let segments: Vec<String> = path.split('.').map(segment).collect();
    (segments.join("."), column.unwrap_or_default())
}

fn pixels(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX / 64).min(i32::MAX / 64)
}

type Area<'a> = DrawingArea<BitMapBackend<'a>, Shift>;

fn paint(area: &Area<'_>, title: &str, grid: &Grid) -> Result<(), Box<dyn Error>> {
    let label =
        |size: i32, h: HPos, v: VPos| TextStyle::from(("sans-serif", size).into_font()).pos(Pos::new(h, v));
    area.fill(&WHITE)?;
    let heading = format!("{title}: norms of the updates");
    area.draw(&Text::new(heading, (MARGIN, MARGIN), label(18, HPos::Left, VPos::Top)))?;
    let (left, top) = (MARGIN + grid.label_width(), MARGIN + TITLE + CELL);
    let finite = grid.cells.iter().map(|(_, _, value)| *value).filter(|value| value.is_finite());
    let largest = finite.fold(0.0, f64::max);
    for (row, name) in grid.rows.iter().enumerate() {
        let y = top + CELL * pixels(row) + CELL / 2;
        area.draw(&Text::new(name.clone(), (left - 6, y), label(13, HPos::Right, VPos::Center)))?;
    }
    // Draw only as many numbers as there is room for.
    let step = grid.columns.len().div_ceil(40).max(1);
    for (column, number) in grid.columns.iter().enumerate().step_by(step) {
        let x = left + CELL * pixels(column) + CELL / 2;
        let style = label(12, HPos::Center, VPos::Bottom);
        area.draw(&Text::new(number.to_string(), (x, top - 4), style))?;
    }
    for (row, column, value) in &grid.cells {
        let (x, y) = (left + CELL * pixels(*column), top + CELL * pixels(*row));
        let corners = [(x, y), (x + CELL - 1, y + CELL - 1)];
        area.draw(&Rectangle::new(corners, colour(*value, largest).filled()))?;
    }
    legend(area, (left, top + CELL * pixels(grid.rows.len()) + 14), largest)?;
    area.present()?;
    Ok(())
}

fn legend(area: &Area<'_>, (x, y): (i32, i32), largest: f64) -> Result<(), Box<dyn Error>> {
    const STEPS: i32 = 100;
    for step in 0..STEPS {
        let share = f64::from(step) / f64::from(STEPS - 1);
        let corners = [(x + 2 * step, y), (x + 2 * step + 2, y + 12)];
        area.draw(&Rectangle::new(corners, colour(share, 1.0).filled()))?;
    }
    let style = TextStyle::from(("sans-serif", 12).into_font());
    area.draw(&Text::new("0", (x, y + 16), style.clone()))?;
    let end = style.pos(Pos::new(HPos::Right, VPos::Top));
    area.draw(&Text::new(format!("{largest:.3e}"), (x + 2 * STEPS, y + 16), end))?;
    Ok(())
}

/// From light grey to dark blue; red where the value is not finite.
fn colour(value: f64, largest: f64) -> RGBColor {
    if !value.is_finite() {
        return RGBColor(200, 30, 30);
    }
    let share = if largest > 0.0 { (value / largest).clamp(0.0, 1.0) } else { 0.0 };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 255")]
    let mix = |light: f64, dark: f64| (light + (dark - light) * share).round() as u8;
    RGBColor(mix(236.0, 8.0), mix(239.0, 48.0), mix(242.0, 107.0))
}

#[cfg(test)]
mod tests {
    use super::{Grid, colour, place};
    use plotters::style::RGBColor;

    #[test]
    fn blocks_are_columns_and_modules_are_rows() {
        assert_eq!(
            place("model.layers.3.self_attn.q_proj"),
            ("model.layers.*.self_attn.q_proj".to_owned(), 3)
        );
        assert_eq!(place("lm_head"), ("lm_head".to_owned(), 0));
        let grid = Grid::new([("h.2.a", 1.0), ("h.10.a", 2.0), ("h.2.b", 3.0)].into_iter());
        assert_eq!((grid.rows.len(), grid.columns.as_slice()), (2, &[2, 10][..]));
        assert_eq!(grid.cells, [(0, 0, 1.0), (0, 1, 2.0), (1, 0, 3.0)]);
    }

    #[test]
    fn values_that_are_not_finite_are_red() {
        assert_eq!(colour(f64::NAN, 1.0), RGBColor(200, 30, 30));
        assert_eq!(colour(0.0, 0.0), RGBColor(236, 239, 242));
    }
}
