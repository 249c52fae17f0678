//! Metrics of machines under KubeVirt's names, so that its dashboards and alerts read them. Pure: numbers in, text out.
//!
//! [`Families`] is the text form of Prometheus; [`instance`] makes the families of a running machine, [`cluster`] those of what
//! the API knows. A node renders its own; the API server merges all nodes' with the cluster's.

pub mod cluster;
pub mod instance;

use std::collections::BTreeMap;
use std::fmt::Write;

/// What is kept of one node's text; a node that sends more is cut off.
const TEXT_MAX: usize = 16 << 20;

/// How a value behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Family {
    head: String,
    samples: Vec<String>,
}

/// Families of samples, by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Families(BTreeMap<String, Family>);

/// Labels of a sample.
pub type Labels<'a> = Vec<(&'a str, &'a str)>;

impl Families {
    /// Adds a sample.
    pub fn add(&mut self, name: &str, kind: Kind, help: &str, labels: &[(&str, &str)], value: f64) {
        let family = self.0.entry(name.to_owned()).or_default();
        if family.head.is_empty() {
            let kind = match kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
            };
            family.head = format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
        }
        let mut line = name.to_owned();
        for (i, (key, value)) in labels.iter().enumerate() {
            let _ = write!(line, "{}{key}=\"{}\"", if i == 0 { '{' } else { ',' }, escaped(value));
        }
        if !labels.is_empty() {
            line.push('}');
        }
        let _ = write!(line, " {value}");
        family.samples.push(line);
    }

    /// Adds the families of a text. Lines that are none are left out.
    pub fn merge(&mut self, text: &str) {
        let text = text.get(..TEXT_MAX.min(text.len())).unwrap_or_default();
        let (mut name, mut head) = (String::new(), String::new());
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# ") {
                let mut words = rest.split(' ');
                let (word, of) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
                if matches!(word, "HELP" | "TYPE") {
                    if name != of {
                        (name, head) = (of.to_owned(), String::new());
                    }
                    head.push_str(line);
                    head.push('\n');
                }
            } else if !name.is_empty() && line.starts_with(name.as_str()) {
                let family = self.0.entry(name.clone()).or_default();
                if family.head.is_empty() {
                    family.head.clone_from(&head);
                }
                family.samples.push(line.to_owned());
            }
        }
    }

    /// The text form.
    pub fn render(&self) -> String {
        let mut out = String::new();
        for family in self.0.values() {
            out.push_str(&family.head);
            for sample in &family.samples {
                out.push_str(sample);
                out.push('\n');
            }
        }
        out
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_rendered_can_be_merged() {
        let mut a = Families::default();
        a.add("x_total", Kind::Counter, "All x.", &[("name", "a\"b"), ("node", "n1")], 1.0);
        a.add("y", Kind::Gauge, "Some y.", &[], 0.5);
        let text = a.render();
        assert!(text.contains("# TYPE x_total counter\nx_total{name=\"a\\\"b\",node=\"n1\"} 1\n"), "{text}");
        let mut b = Families::default();
        b.merge(&text);
        assert_eq!(a, b);
        b.merge("nonsense\n# HELP x_total All x.\n# TYPE x_total counter\nx_total{node=\"n2\"} 2\nother 3\n");
        assert_eq!(b.render().matches("# TYPE x_total").count(), 1);
        assert!(b.render().contains("x_total{node=\"n2\"} 2"));
        assert!(!b.render().contains("other"));
    }
}
