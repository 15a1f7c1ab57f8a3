//! Curves as PNG files.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use plotters::prelude::*;
use plotters::style::register_font;

/// One curve: its name, and its points.
pub struct Curve {
    /// The name in the legend.
    pub name: String,
    /// The points, by x.
    pub points: Vec<(f64, f64)>,
}

/// One panel of a figure: a title, the name of the x axis, and curves.
pub struct Panel {
    /// The title.
    pub title: String,
    /// The name of the x axis.
    pub x: String,
    /// The curves.
    pub curves: Vec<Curve>,
}

/// The running mean over `window` values, for losses of single batches.
pub fn smoothed(values: &[f64], window: usize) -> Vec<f64> {
    let window = window.max(1);
    (0..values.len())
        .map(|end| {
            let part = &values[(end + 1).saturating_sub(window)..=end];
            part.iter().sum::<f64>() / part.len() as f64
        })
        .collect()
}

/// Draws the panels one below the other.
///
/// # Errors
/// If the file cannot be written.
pub fn draw(path: &Path, panels: &[Panel]) -> Result<()> {
    let font = epaint_default_fonts::UBUNTU_LIGHT;
    register_font("sans-serif", FontStyle::Normal, font)
        .map_err(|_| anyhow!("the embedded font is damaged"))?;
    let area = BitMapBackend::new(path, (900, 380 * panels.len() as u32)).into_drawing_area();
    area.fill(&WHITE)?;
    for (panel, area) in panels.iter().zip(area.split_evenly((panels.len(), 1))) {
        draw_panel(panel, &area).with_context(|| format!("drawing `{}`", panel.title))?;
    }
    area.present().with_context(|| format!("writing {}", path.display()))
}

fn draw_panel<'a>(
    panel: &Panel,
    area: &DrawingArea<BitMapBackend<'a>, plotters::coord::Shift>,
) -> Result<()> {
    let points = || panel.curves.iter().flat_map(|curve| &curve.points);
    let range = |of: fn(&(f64, f64)) -> f64| {
        let (low, high) = points().map(of).fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
        let margin = if high > low { (high - low) * 0.05 } else { 0.5 };
        if low > high { 0.0..1.0 } else { low - margin..high + margin }
    };
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, ("sans-serif", 22))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(56)
        .build_cartesian_2d(range(|point| point.0), range(|point| point.1))?;
    chart.configure_mesh().x_desc(&panel.x).label_style(("sans-serif", 14)).draw()?;
    for (index, curve) in panel.curves.iter().enumerate() {
        let colour = Palette99::pick(index).mix(0.9);
        let line = LineSeries::new(curve.points.iter().copied(), colour.stroke_width(2));
        let series = chart.draw_series(line)?;
        series
            .label(&curve.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart.configure_series_labels().label_font(("sans-serif", 14)).background_style(WHITE.mix(0.8)).draw()?;
    Ok(())
}
