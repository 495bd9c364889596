//! Figures of runs in pairs: on a machine whose speed drifts, only the ratio of two runs of the same minute counts.

use std::fmt;
use std::time::Duration;

/// One run: how fast, and how much CPU time it took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Run {
    /// 10^9 bytes per second.
    pub gb_per_second: f64,
    /// CPU seconds per 10^9 bytes.
    pub cpu_seconds_per_gb: f64,
}

impl Run {
    /// So many bytes in this time, with this CPU time.
    pub fn of(bytes: u64, took: Duration, cpu: Duration) -> Run {
        let gigabytes = bytes as f64 / 1e9;
        Run { gb_per_second: gigabytes / took.as_secs_f64(), cpu_seconds_per_gb: cpu.as_secs_f64() / gigabytes }
    }
}

/// Runs of a subject and of its reference, in turn.
#[derive(Clone, Debug, Default)]
pub struct Pairs(Vec<(Run, Run)>);

impl Pairs {
    /// Adds a run of the subject and the run of the reference beside it.
    pub fn add(&mut self, subject: Run, reference: Run) {
        self.0.push((subject, reference));
    }

    /// First quartile, median and third quartile of the ratio of subject to reference.
    pub fn ratio(&self) -> Quartiles {
        self.quartiles(|(subject, reference)| subject.gb_per_second / reference.gb_per_second)
    }

    fn quartiles(&self, figure: impl Fn(&(Run, Run)) -> f64) -> Quartiles {
        Quartiles::of(self.0.iter().map(figure).collect())
    }
}

impl fmt::Display for Pairs {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{:18} {:>8} {:>8} {:>8}", "", "q1", "median", "q3")?;
        let rows: [(&str, Quartiles); 5] = [
            ("ratio", self.ratio()),
            ("subject GB/s", self.quartiles(|(subject, _)| subject.gb_per_second)),
            ("reference GB/s", self.quartiles(|(_, reference)| reference.gb_per_second)),
            ("subject CPU s/GB", self.quartiles(|(subject, _)| subject.cpu_seconds_per_gb)),
            ("reference CPU s/GB", self.quartiles(|(_, reference)| reference.cpu_seconds_per_gb)),
        ];
        for (name, Quartiles { first, median, third }) in rows {
            writeln!(out, "{name:18} {first:>8.3} {median:>8.3} {third:>8.3}")?;
        }
        Ok(())
    }
}

/// The middle of a set of figures, and how far it spreads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quartiles {
    /// A quarter of the figures lies below.
    pub first: f64,
    /// Half of the figures lies below.
    pub median: f64,
    /// A quarter of the figures lies above.
    pub third: f64,
}

impl Quartiles {
    /// Of these figures, between which it interpolates; not a number when there are none.
    pub fn of(mut figures: Vec<f64>) -> Quartiles {
        figures.sort_by(f64::total_cmp);
        let at = |quarters: usize| {
            let Some(last) = figures.len().checked_sub(1) else { return f64::NAN };
            let (index, rest) = (last * quarters / 4, last * quarters % 4);
            let low = figures[index];
            let high = figures[(index + 1).min(last)];
            low + (high - low) * rest as f64 / 4.0
        };
        Quartiles { first: at(1), median: at(2), third: at(3) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_interpolate() {
        let found = Quartiles::of(vec![4.0, 1.0, 3.0, 2.0]);
        assert_eq!(found, Quartiles { first: 1.75, median: 2.5, third: 3.25 });
        assert_eq!(Quartiles::of(vec![7.0]).third, 7.0);
    }

    #[test]
    fn ratio_is_of_pairs_not_of_medians() {
        let run = |gb_per_second| Run { gb_per_second, cpu_seconds_per_gb: 0.5 };
        let mut pairs = Pairs::default();
        for (subject, reference) in [(1.0, 2.0), (4.0, 4.0), (1.0, 4.0)] {
            pairs.add(run(subject), run(reference));
        }
        assert_eq!(pairs.ratio().median, 0.5);
        assert!(pairs.to_string().contains("ratio"));
    }
}
