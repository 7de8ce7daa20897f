//! One run: rounds in which every system of a case is measured once, in turn, so that whatever
//! else the machine does falls on all of them; then medians.

use std::fmt;
use std::fs;

use serde_json::{Value, json};

/// How long to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    /// Some seconds.
    Quick,
    /// Ten times the rounds.
    Full,
}

/// The name of what is ours in every table.
pub(crate) const OURS: &str = "warpcore";

/// A bench and what it has found.
#[derive(Debug)]
pub(crate) struct Bench {
    name: String,
    effort: Effort,
    rows: Vec<Row>,
    points: Vec<Point>,
    /// What a reader has to know beside the numbers.
    notes: Vec<String>,
}

/// One system in one case.
#[derive(Debug)]
struct Row {
    case: String,
    system: String,
    samples: Samples,
    unit: Unit,
    /// The least that physics allows, in the same unit.
    limit: Option<f64>,
}

/// What so many at a time come to: for the plot.
#[derive(Debug)]
pub(crate) struct Point {
    pub(crate) series: String,
    pub(crate) batch: usize,
    /// From submission until all are there.
    pub(crate) latency_us: f64,
    pub(crate) per_second: f64,
}

/// A rival in a case.
#[derive(Debug)]
pub(crate) struct Ratio<'a> {
    pub(crate) case: &'a str,
    pub(crate) system: &'a str,
    pub(crate) better: f64,
}

/// What is measured, and what is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Of memory: less is better.
    Bytes,
    /// Standard deviations between two means: less is better.
    Deviations,
    /// Megabytes (10^6) of plain bytes for each second of a processor: more is better.
    MbPerCpuSecond,
    /// Megabytes (10^6) of plain bytes a second: more is better.
    Mbps,
    /// Nanoseconds: less is better.
    Ns,
    /// Operations for each second of a processor: more is better.
    PerCpuSecond,
    /// Operations or files a second: more is better.
    PerSecond,
    /// Of something else.
    Percent,
    /// Of all processors, for 10^9 plain bytes: less is better.
    SecondsPerGb,
    /// How many times less room it takes: more is better.
    Times,
    /// Microseconds: less is better.
    Us,
}

impl Unit {
    fn more_is_better(self) -> bool {
        matches!(
            self,
            Self::MbPerCpuSecond
                | Self::Mbps
                | Self::PerCpuSecond
                | Self::PerSecond
                | Self::Percent
                | Self::Times
        )
    }

    fn name(self) -> &'static str {
        match self {
            Self::Bytes => "B",
            Self::Deviations => "|t|",
            Self::MbPerCpuSecond => "MB/CPU-s",
            Self::Mbps => "MB/s",
            Self::Ns => "ns",
            Self::PerCpuSecond => "1/CPU-s",
            Self::PerSecond => "1/s",
            Self::Percent => "%",
            Self::SecondsPerGb => "s/GB",
            Self::Times => "x",
            Self::Us => "us",
        }
    }
}

/// Values of many cases and systems that are measured in turns, in the order of cases.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    rows: Vec<(String, Unit, &'static str, Vec<f64>)>,
}

impl Gathered {
    pub(crate) fn add(&mut self, case: &str, unit: Unit, system: &'static str, value: f64) {
        let known = self.rows.iter_mut().find(|row| row.0 == case && row.2 == system);
        match known {
            Some((.., values)) => values.push(value),
            None => {
                let after = self.rows.iter().rposition(|row| row.0 == case);
                let place = after.map_or(self.rows.len(), |after| after + 1);
                self.rows.insert(place, (case.to_owned(), unit, system, vec![value]));
            }
        }
    }

    pub(crate) fn median(&self, case: &str, system: &str) -> Option<f64> {
        let row = self.rows.iter().find(|row| row.0 == case && row.2 == system)?;
        Some(Samples::of(row.3.clone()).median)
    }

    pub(crate) fn file(self, bench: &mut Bench) {
        for (case, unit, system, values) in self.rows {
            bench.record(&case, unit, system, values);
        }
    }
}

#[derive(Debug)]
struct Samples {
    median: f64,
    min: f64,
    max: f64,
}

/// A system under measurement: each call takes one sample.
pub(crate) struct System<'a> {
    name: String,
    sample: Box<dyn FnMut() -> f64 + 'a>,
}

impl<'a> System<'a> {
    pub(crate) fn new(name: impl Into<String>, sample: impl FnMut() -> f64 + 'a) -> Self {
        Self { name: name.into(), sample: Box::new(sample) }
    }
}

impl Bench {
    pub(crate) fn new(name: impl Into<String>, effort: Effort) -> Self {
        Self { name: name.into(), effort, rows: Vec::new(), points: Vec::new(), notes: Vec::new() }
    }

    pub(crate) fn effort(&self) -> Effort {
        self.effort
    }

    /// Said once, however often.
    pub(crate) fn note(&mut self, note: impl Into<String>) {
        let note = note.into();
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// Files one value of ours that was measured elsewhere.
    pub(crate) fn file(&mut self, case: &str, unit: Unit, value: f64) {
        self.record(case, unit, OURS, vec![value]);
    }

    /// Files samples that were taken elsewhere.
    pub(crate) fn record(&mut self, case: &str, unit: Unit, system: &str, samples: Vec<f64>) {
        self.rows.push(Row {
            case: case.to_owned(),
            system: system.to_owned(),
            samples: Samples::of(samples),
            unit,
            limit: None,
        });
    }

    /// Measures the systems of a case, `rounds` samples each (ten times that in a full run), after
    /// one round that does not count.
    pub(crate) fn measure(
        &mut self,
        case: &str,
        unit: Unit,
        rounds: usize,
        mut systems: Vec<System<'_>>,
    ) {
        let rounds = if self.effort == Effort::Full { rounds * 10 } else { rounds };
        let mut samples = vec![Vec::with_capacity(rounds); systems.len()];
        for round in 0..=rounds {
            for (system, samples) in systems.iter_mut().zip(&mut samples) {
                let sample = (system.sample)();
                if round > 0 {
                    samples.push(sample);
                }
            }
        }
        for (system, samples) in systems.into_iter().zip(samples) {
            self.record(case, unit, &system.name, samples);
        }
    }

    /// The least that our median of a case could be on this machine.
    pub(crate) fn limit(&mut self, case: &str, limit: f64) {
        let ours = |row: &&mut Row| row.case == case && row.system == OURS;
        if let Some(row) = self.rows.iter_mut().find(ours) {
            row.limit = Some(limit);
        }
    }

    /// Our median of a case, in which `batch` operations together took that long in nanoseconds or
    /// microseconds, is a point of a series of the plot.
    pub(crate) fn point(&mut self, series: &str, case: &str, batch: usize) {
        let Some(row) = self.rows.iter().find(|row| row.case == case && row.system == OURS) else {
            return;
        };
        let latency_us = match row.unit {
            // Of each, one after the other.
            Unit::Ns => row.samples.median * batch as f64 / 1e3,
            Unit::Us => row.samples.median,
            _ => return,
        };
        let per_second = batch as f64 / latency_us * 1e6;
        self.points.push(Point { series: series.to_owned(), batch, latency_us, per_second });
    }

    pub(crate) fn points(&self) -> &[Point] {
        &self.points
    }

    /// Each rival's median beside ours, in the order of cases: more than 1 is better than ours.
    pub(crate) fn ratios(&self) -> Vec<Ratio<'_>> {
        let rivals = self.rows.iter().filter(|row| row.system != OURS);
        rivals
            .filter_map(|row| {
                let ratio = row.samples.median / self.ours(&row.case)?;
                let better = if row.unit.more_is_better() { ratio } else { ratio.recip() };
                Some(Ratio { case: &row.case, system: &row.system, better })
            })
            .collect()
    }

    /// As the interface of scripts: one object.
    pub(crate) fn to_json(&self) -> Value {
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                json!({
                    "case": row.case,
                    "system": row.system,
                    "median": row.samples.median,
                    "min": row.samples.min,
                    "max": row.samples.max,
                    "unit": row.unit.name(),
                    "limit": row.limit,
                })
            })
            .collect();
        let machine = json!({
            "processor": processor(),
            "cores": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            "kernel": read("/proc/sys/kernel/osrelease"),
        });
        json!({ "bench": self.name, "machine": machine, "rows": rows, "notes": self.notes })
    }

    /// Our median in a case.
    fn ours(&self, case: &str) -> Option<f64> {
        let row = self.rows.iter().find(|row| row.case == case && row.system == OURS)?;
        Some(row.samples.median)
    }
}

impl fmt::Display for Bench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {}, Linux {}",
            self.name,
            processor(),
            read("/proc/sys/kernel/osrelease")
        )?;
        writeln!(
            f,
            "{:<28} {:<26} {:>12} {:>12} {:>12}  {:<4} ratio",
            "case", "system", "median", "min", "max", "unit"
        )?;
        for row in &self.rows {
            let Samples { median, min, max } = row.samples;
            let ratio = match (self.ours(&row.case), row.limit) {
                (Some(ours), _) if row.system != OURS => format!("{:.2} of ours", median / ours),
                (_, Some(limit)) => format!("{:.2} of the limit", limit / median),
                _ => String::new(),
            };
            writeln!(
                f,
                "{:<28} {:<26} {median:>12.1} {min:>12.1} {max:>12.1}  {:<4} {ratio}",
                row.case,
                row.system,
                row.unit.name(),
            )?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "{note}"))
    }
}

impl Samples {
    fn of(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let middle = samples.len() / 2;
        let median = if samples.len().is_multiple_of(2) {
            f64::midpoint(samples[middle - 1], samples[middle])
        } else {
            samples[middle]
        };
        Self { median, min: samples[0], max: samples[samples.len() - 1] }
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

fn processor() -> String {
    let text = read("/proc/cpuinfo");
    let line = text.lines().find_map(|line| line.strip_prefix("model name"));
    line.map_or_else(|| "unknown".to_owned(), |line| line.trim_matches([' ', '\t', ':']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_system_is_measured_in_every_round_and_the_first_is_thrown_away() {
        let log = std::cell::RefCell::new(Vec::new());
        let mut bench = Bench::new("test", Effort::Quick);
        let system = |name: &'static str, samples: [f64; 4]| {
            let (log, mut samples) = (&log, samples.into_iter());
            System::new(name, move || {
                log.borrow_mut().push(name);
                samples.next().expect("four rounds")
            })
        };
        let systems =
            vec![system(OURS, [1000.0, 4.0, 2.0, 3.0]), system("rival", [1.0, 12.0, 18.0, 30.0])];
        bench.measure("noop", Unit::Ns, 3, systems);
        assert_eq!(log.borrow().join(" "), [OURS, "rival"].repeat(4).join(" "));
        let rows = &bench.to_json()["rows"];
        assert_eq!(
            (&rows[0]["median"], &rows[0]["min"], &rows[0]["max"]),
            (&json!(3.0), &json!(2.0), &json!(4.0))
        );
        assert_eq!(rows[1]["median"], json!(18.0));
        assert!(bench.to_string().contains("6.00 of ours"), "{bench}");
        assert!((bench.ratios()[0].better - 1.0 / 6.0).abs() < 1e-9, "less is better");
    }

    #[test]
    fn the_median_of_two_lies_between_them() {
        let Samples { median, .. } = Samples::of(vec![4.0, 1.0]);
        assert!((median - 2.5).abs() < 1e-9);
    }
}
