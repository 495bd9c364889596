//! Metrics as a peer prints them (Prometheus text or OpenMetrics), parsed into samples that tests can add up.
//!
//! Owns no connection. Lines that are no samples are passed over; a value that is no number is an error.

use anyhow::{Context, Result};

/// One line: a name, its labels, a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Name, with suffixes such as `_total`, `_sum` or `_bucket`.
    pub name: String,
    /// Labels in the order they came.
    pub labels: Vec<(String, String)>,
    /// Value.
    pub value: f64,
}

/// One scrape.
#[derive(Clone, Debug, Default)]
pub struct Samples(pub Vec<Sample>);

impl Samples {
    /// Parses a scrape.
    pub fn parse(text: &str) -> Result<Samples> {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let samples = lines.map(|line| sample(line).with_context(|| format!("not a sample: {line:?}")));
        Ok(Samples(samples.collect::<Result<_>>()?))
    }

    /// Adds up the samples of this name that carry all these labels; zero when there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let carries = |sample: &Sample, (name, value): &(&str, &str)| {
            sample.labels.iter().any(|(label, found)| label == name && found == value)
        };
        let wanted = |sample: &&Sample| sample.name == name && labels.iter().all(|label| carries(sample, label));
        self.0.iter().filter(wanted).map(|sample| sample.value).sum()
    }

    /// Whether there is any sample of this name.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|sample| sample.name == name)
    }
}

fn sample(line: &str) -> Result<Sample> {
    let (name, labels, rest) = match line.split_once('{') {
        Some((name, rest)) => {
            let (labels, rest) = parse_labels(rest)?;
            (name, labels, rest)
        }
        None => {
            let (name, rest) = line.split_once(' ').context("no value")?;
            (name, Vec::new(), rest)
        }
    };
    // A timestamp or an exemplar may follow the value.
    let value = rest.split_whitespace().next().context("no value")?;
    let value = value.parse().with_context(|| format!("value {value:?}"))?;
    Ok(Sample { name: name.to_owned(), labels, value })
}

/// Labels up to the closing brace, and what follows it.
fn parse_labels(text: &str) -> Result<(Vec<(String, String)>, &str)> {
    let (mut labels, mut rest) = (Vec::new(), text);
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(after) = rest.strip_prefix('}') {
            return Ok((labels, after));
        }
        let (name, after) = rest.split_once("=\"").context("a label without a quoted value")?;
        let (value, after) = quoted(after)?;
        labels.push((name.to_owned(), value));
        rest = after;
    }
}

/// A label value up to its closing quote, unescaped, and what follows it.
fn quoted(text: &str) -> Result<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return Ok((value, &text[index + 1..])),
            '\\' => match characters.next().context("an escape at the end")?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    Err(anyhow::anyhow!("a label value without an end"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_up_samples_by_labels() {
        let text = "# TYPE b counter\nb_total{source=\"local\",shard=\"0\"} 3\nb_total{source=\"local\",shard=\"1\"} 4 # {} 1\n\
                    b_total{source=\"backend\",shard=\"0\"} 1e3\nplain 2.5\n# EOF\n";
        let samples = Samples::parse(text).expect("parses");
        assert_eq!(samples.sum("b_total", &[("source", "local")]), 7.0);
        assert_eq!(samples.sum("b_total", &[]), 1007.0);
        assert_eq!(samples.sum("plain", &[]), 2.5);
        assert!(!samples.has("b"));
    }

    #[test]
    fn unescapes_label_values() {
        let samples = Samples::parse("a{x=\"q\\\"}\\\\,\\n\"} 1\n").expect("parses");
        assert_eq!(samples.0[0].labels, [("x".to_owned(), "q\"}\\,\n".to_owned())]);
    }

    #[test]
    fn refuses_what_is_no_number() {
        assert!(Samples::parse("a one\n").is_err() && Samples::parse("a{x=1} 1\n").is_err());
    }
}
