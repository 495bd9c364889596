//! The table at the end: step, seconds, MB/s, where the bytes came from.
//!
//! Plain text, aligned by the widest entry of each column. MB are 10^6 bytes, as disks and networks count.

use std::fmt;
use std::time::Duration;

/// One line.
#[derive(Clone, Debug)]
struct Row {
    step: String,
    duration: Duration,
    bytes: Option<u64>,
    source: String,
}

/// All lines so far.
#[derive(Clone, Debug, Default)]
pub struct Table(Vec<Row>);

impl Table {
    /// Adds a step; `bytes` is `None` for one that moves none.
    pub fn add(&mut self, step: &str, duration: Duration, bytes: Option<u64>, source: &str) {
        self.0.push(Row { step: step.to_owned(), duration, bytes, source: source.to_owned() });
    }
}

impl fmt::Display for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let step_width = self.0.iter().map(|row| row.step.chars().count()).max().unwrap_or(0).max(4);
        writeln!(out, "{:step_width$}  {:>8}  {:>7}  bytes came from", "step", "seconds", "MB/s")?;
        for Row { step, duration, bytes, source } in &self.0 {
            let rate = bytes.map_or(String::new(), |bytes| megabytes_per_second(bytes, *duration));
            let line = format!("{step:step_width$}  {:>8.3}  {rate:>7}  {source}", duration.as_secs_f64());
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

fn megabytes_per_second(bytes: u64, duration: Duration) -> String {
    let millionths = u128::from(bytes) * 1_000_000 / duration.as_nanos().max(1);
    format!("{:.0}", millionths as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::default();
        table.add("copy in", Duration::from_millis(500), Some(1_000_000_000), "this machine");
        table.add("rm", Duration::from_millis(2), None, "");
        let text = table.to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "step      seconds     MB/s  bytes came from");
        assert_eq!(lines[1], "copy in     0.500     2000  this machine");
        assert_eq!(lines[2], "rm          0.002");
    }
}
