//! Draws what a bench found: throughput and latency against the number that wait together.

use std::path::Path;

use plotters::prelude::*;

use crate::harness::{Bench, Point};

/// Writes an SVG with both charts.
pub(crate) fn draw(bench: &Bench, path: &Path) -> Result<(), String> {
    let points = bench.points();
    if points.is_empty() {
        return Err("this bench has no batches to plot; rsa, kx and queue have".to_owned());
    }
    let area = SVGBackend::new(path, (1000, 500)).into_drawing_area();
    let drawn = area.fill(&WHITE).map_err(|error| error.to_string()).and_then(|()| {
        let (left, right) = area.split_horizontally(500);
        chart(&left, points, "operations per second", |point| point.per_second)?;
        chart(&right, points, "latency, us", |point| point.latency_us)?;
        area.present().map_err(|error| error.to_string())
    });
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::{Effort, OURS, System, Unit};

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
