//! Draws what a bench found: throughput and latency against the number that wait together, or rivals
//! beside ours.

use std::ops::Range;
use std::path::Path;

use plotters::prelude::*;

use crate::harness::{Bench, OURS, Point, Ratio};

/// Writes an SVG: lines where the bench has batches, else bars.
pub(crate) fn draw(bench: &Bench, path: &Path) -> Result<(), String> {
    let (points, ratios) = (bench.points(), bench.ratios());
    let drawn = if !points.is_empty() {
        let area = SVGBackend::new(path, (1000, 500)).into_drawing_area();
        area.fill(&WHITE).map_err(|error| error.to_string()).and_then(|()| {
            let (left, right) = area.split_horizontally(500);
            chart(&left, points, "operations per second", |point| point.per_second)?;
            chart(&right, points, "latency, us", |point| point.latency_us)?;
            area.present().map_err(|error| error.to_string())
        })
    } else if !ratios.is_empty() {
        let height = 100 + 18 * ratios.len();
        let height = u32::try_from(height).map_err(|error| error.to_string())?;
        let area = SVGBackend::new(path, (1000, height)).into_drawing_area();
        area.fill(&WHITE).map_err(|error| error.to_string()).and_then(|()| {
            bars(&area, &ratios)?;
            area.present().map_err(|error| error.to_string())
        })
    } else {
        return Err("nothing was measured beside ours that could be drawn".to_owned());
    };
    drawn.map_err(|error| format!("{}: {error}", path.display()))
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// One line for each series; both axes are logarithmic, since series differ by orders of magnitude.
fn chart(
    area: &Area<'_>,
    points: &[Point],
    title: &str,
    value: fn(&Point) -> f64,
) -> Result<(), String> {
    let values = || points.iter().map(value);
    let (low, high) = (values().fold(f64::MAX, f64::min), values().fold(0.0, f64::max));
    let batches = points.iter().map(|point| point.batch as f64).fold(1.0, f64::max);
    let text = |error: DrawingAreaErrorKind<_>| format!("{error:?}");
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(35)
        .y_label_area_size(75)
        .build_cartesian_2d((1.0..batches * 1.1).log_scale(), (low * 0.8..high * 1.25).log_scale())
        .map_err(text)?;
    chart
        .configure_mesh()
        .x_desc("waiting together")
        .light_line_style(WHITE)
        .draw()
        .map_err(text)?;
    let mut names: Vec<&str> = points.iter().map(|point| point.series.as_str()).collect();
    names.dedup();
    for (index, name) in names.into_iter().enumerate() {
        let color = Palette99::pick(index).to_rgba();
        let line: Vec<_> = points
            .iter()
            .filter(|point| point.series == name)
            .map(|point| (point.batch as f64, value(point)))
            .collect();
        chart
            .draw_series(LineSeries::new(line, color.stroke_width(2)).point_size(3))
            .map_err(text)?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
    }
    chart.configure_series_labels().background_style(WHITE).border_style(BLACK).draw().map_err(text)
}

/// A bar for each rival in each case, from ours (1) to where it is: to the right it is better.
fn bars(area: &Area<'_>, ratios: &[Ratio<'_>]) -> Result<(), String> {
    let text = |error: DrawingAreaErrorKind<_>| format!("{error:?}");
    let reach = ratios.iter().map(|ratio| ratio.better.max(ratio.better.recip()));
    let reach = reach.fold(2.0, f64::max) * 1.3;
    // From the top down.
    let row = |index: usize| -> Range<f64> {
        let bottom = (ratios.len() - 1 - index) as f64;
        bottom + 0.1..bottom + 0.9
    };
    let mut chart = ChartBuilder::on(area)
        .caption(format!("times {OURS}; to the right is better"), ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(35)
        .margin_left(330)
        .build_cartesian_2d((reach.recip()..reach).log_scale(), 0.0..ratios.len() as f64)
        .map_err(text)?;
    chart.configure_mesh().disable_y_mesh().disable_y_axis().draw().map_err(text)?;
    let mut systems: Vec<&str> = Vec::new();
    for (index, Ratio { case, system, better }) in ratios.iter().enumerate() {
        let known = systems.iter().position(|known| known == system);
        let color = known.unwrap_or_else(|| {
            systems.push(system);
            systems.len() - 1
        });
        let Range { start, end } = row(index);
        let bar = Rectangle::new([(1.0, start), (*better, end)], Palette99::pick(color).filled());
        chart.draw_series([bar]).map_err(text)?;
        let (_, y) = chart.backend_coord(&(1.0, f64::midpoint(start, end)));
        let label = format!("{case}: {system} {better:.2}");
        area.draw(&Text::new(label, (12, y - 6), ("sans-serif", 13))).map_err(text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::{Effort, OURS, System, Unit};

    #[test]
    fn every_rival_is_drawn() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("bars.svg");
        let mut bench = Bench::new("test", Effort::Quick);
        for (system, value) in [(OURS, 10.0), ("faster", 30.0), ("slower", 5.0)] {
            bench.record("copy", Unit::Mbps, system, vec![value]);
        }
        draw(&bench, &path).expect("it is drawn");
        let drawn = std::fs::read_to_string(&path).expect("written");
        for label in ["copy: faster 3.00", "copy: slower 0.50"] {
            assert!(drawn.contains(label), "{label} in {drawn}");
        }
    }

    #[test]
    fn every_series_is_drawn() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("plot.svg");
        let mut bench = Bench::new("test", Effort::Quick);
        assert!(draw(&bench, &path).is_err(), "there is nothing to draw");
        for (series, batch) in [("one", 1), ("one", 8), ("other", 1), ("other", 64)] {
            let case = format!("{series} {batch}");
            bench.measure(&case, Unit::Us, 1, vec![System::new(OURS, || 10.0)]);
            bench.point(series, &case, batch);
        }
        draw(&bench, &path).expect("it is drawn");
        let drawn = std::fs::read_to_string(&path).expect("written");
        // In both charts, and on the axis how many there are.
        for (text, times) in [(">one<", 2), (">other<", 2), ("waiting together", 2)] {
            let flat: String = drawn.split_whitespace().collect::<Vec<_>>().join("");
            let text = text.replace(' ', "");
            assert_eq!(flat.matches(text.as_str()).count(), times, "{text}");
        }
    }
}
