//! What goes to standard output: tables, objects in the format asked for, sizes and ages. A reader that goes away
//! (`sheaf vm list | head -1`) is no error.

use std::io::{ErrorKind, IsTerminal, Write};

use anyhow::Result;
use clap::ValueEnum;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use sheaf_meta::object;

use super::api::Kind;
use super::fail::Exit;

/// Events that are shown: the latest.
const EVENTS_MAX: usize = 12;

/// Format of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// The objects as JSON, as the server has them.
    Json,
    /// The objects as YAML.
    Yaml,
    /// KIND/NAME, one per line.
    Name,
    /// A table with more columns.
    Wide,
}

/// Writes to standard output.
pub(crate) fn put(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Exit::error(0, "")),
        Err(error) => Err(anyhow::Error::new(error).context("writing to standard output")),
    }
}

/// A line for people, on standard error; whether anyone reads it does not matter.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Prints objects as JSON, YAML or names. Tables are their kinds' own. As with kubectl, who wrote which field is left out.
pub(crate) fn objects(kind: Kind, items: &[Value], format: Format, single: bool) -> Result<()> {
    let plain = |object: &Value| {
        let mut object = object.clone();
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
        object
    };
    let whole = || match items {
        [one] if single => plain(one),
        all => {
            let all: Vec<Value> = all.iter().map(plain).collect();
            json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": all})
        }
    };
    match format {
        Format::Json => put(&format!("{:#}\n", whole())),
        Format::Yaml => put(&yaml(&whole())?),
        Format::Name | Format::Wide => {
            put(&items.iter().map(|o| format!("{}/{}\n", kind.short, object::name(o))).collect::<String>())
        }
    }
}

/// An object as YAML.
pub(crate) fn yaml(value: &Value) -> Result<String> {
    // Long strings stay on one line: certificates are cut out with grep and base64.
    let options = serde_saphyr::ser_options! { folded_wrap_chars: 1 << 30 };
    let mut text = serde_saphyr::to_string_with_options(value, options)?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// How a cell is coloured on a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Tone {
    #[default]
    Plain,
    Good,
    Busy,
    Bad,
}

/// Whether standard output takes colours: a terminal, and NO_COLOR not set.
pub(crate) fn coloured() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    std::io::stdout().is_terminal()
        && !set("NO_COLOR")
        && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
}

/// Text in its colour.
pub(crate) fn paint(text: &str, tone: Tone, colours: bool) -> String {
    let code = match tone {
        Tone::Good => "32",
        Tone::Busy => "33",
        Tone::Bad => "31",
        Tone::Plain => return text.to_owned(),
    };
    if colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// A table: columns are as wide as their widest cell, three blanks lie between them.
#[derive(Debug, Default)]
pub(crate) struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<(String, Tone)>>,
}

impl Table {
    pub(crate) fn new(head: &[&'static str]) -> Self {
        Self { head: head.to_vec(), rows: Vec::new() }
    }

    /// Adds a row. Empty cells are shown as `-`, so that every column can be cut out.
    pub(crate) fn row(&mut self, cells: Vec<(String, Tone)>) {
        let filled =
            |(text, tone): (String, Tone)| if text.is_empty() { ("-".into(), tone) } else { (text, tone) };
        self.rows.push(cells.into_iter().map(filled).collect());
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table as text, each line with this many blanks before it.
    pub(crate) fn render(&self, indent: usize, colours: bool) -> String {
        let mut widths: Vec<usize> = self.head.iter().map(|h| h.chars().count()).collect();
        for row in &self.rows {
            for (width, (text, _)) in widths.iter_mut().zip(row) {
                *width = (*width).max(text.chars().count());
            }
        }
        let head: Vec<(String, Tone)> = self.head.iter().map(|h| ((*h).to_owned(), Tone::Plain)).collect();
        let mut out = String::new();
        for row in std::iter::once(&head).chain(&self.rows) {
            out.push_str(&" ".repeat(indent));
            let last = row.len().saturating_sub(1);
            for (at, ((text, tone), width)) in row.iter().zip(&widths).enumerate() {
                out.push_str(&paint(text, *tone, colours));
                if at < last {
                    out.push_str(&" ".repeat(width + 3 - text.chars().count()));
                }
            }
            out.push('\n');
        }
        out
    }
}

/// A table under a title, unless it is empty.
pub(crate) fn section(out: &mut String, title: &str, table: &Table, colours: bool) {
    if !table.is_empty() {
        out.push_str(&format!("\n{title}:\n{}", table.render(2, colours)));
    }
}

/// The conditions of an object.
pub(crate) fn conditions(object: &Value, now: Timestamp) -> Table {
    let mut table = Table::new(&["TYPE", "STATUS", "SINCE", "REASON", "MESSAGE"]);
    for condition in object.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten() {
        let get = |field: &str| condition[field].as_str().unwrap_or_default();
        table.row(vec![
            cell(get("type")),
            cell(get("status")),
            cell(age(get("lastTransitionTime"), now)),
            cell(get("reason")),
            cell(get("message")),
        ]);
    }
    table
}

/// The latest of these events.
pub(crate) fn events(mut about: Vec<&Value>, now: Timestamp) -> Table {
    about.sort_by_key(|event| event_time(event));
    let mut table = Table::new(&["AGE", "TYPE", "REASON", "MESSAGE"]);
    for event in &about[about.len().saturating_sub(EVENTS_MAX)..] {
        let get = |field: &str| event[field].as_str().unwrap_or_default();
        let tone = if get("type") == "Warning" { Tone::Busy } else { Tone::Plain };
        table.row(vec![
            cell(age(event_time(event), now)),
            (get("type").to_owned(), tone),
            cell(get("reason")),
            cell(get("message")),
        ]);
    }
    table
}

/// When an event was seen last.
pub(crate) fn event_time(event: &Value) -> &str {
    let places: [&[&str]; 4] = [
        &["lastTimestamp"],
        &["series", "lastObservedTime"],
        &["eventTime"],
        &["metadata", "creationTimestamp"],
    ];
    places.into_iter().map(|path| object::str_at(event, path)).find(|at| !at.is_empty()).unwrap_or("")
}

/// An uncoloured cell.
pub(crate) fn cell(text: impl Into<String>) -> (String, Tone) {
    (text.into(), Tone::Plain)
}

/// How long ago, as kubectl writes it; empty if the time is unknown.
pub(crate) fn age(timestamp: &str, now: Timestamp) -> String {
    let Ok(at) = timestamp.parse::<Timestamp>() else { return String::new() };
    sheaf_api::human_duration((now.as_second() - at.as_second()).max(0))
}

/// Bytes in the largest binary unit of which there is at least one.
pub(crate) fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = 0;
    let mut scaled = bytes as f64;
    while scaled >= 1024.0 && unit + 1 < units.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(unit > 0 && scaled < 100.0 && scaled.fract() > 0.05);
    format!("{scaled:.digits$} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["NAME", "STATUS", "AGE"]);
        table.row(vec![cell("a"), ("Running".into(), Tone::Good), cell("5m")]);
        table.row(vec![cell("größer"), ("Off".into(), Tone::Plain), cell("")]);
        let expected = "NAME     STATUS    AGE\na        Running   5m\ngrößer   Off       -\n";
        assert_eq!(table.render(0, false), expected);
        assert_eq!(
            table.render(2, true).lines().nth(1).unwrap(),
            "  a        \x1b[32mRunning\x1b[0m   5m",
            "colours do not count as width"
        );
    }

    #[test]
    fn sizes_and_ages() {
        for (bytes, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1 << 20, "1 MiB"),
            (1_610_612_736, "1.5 GiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(size(bytes), expected);
        }
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        assert_eq!(age("2026-01-01T00:00:00Z", now), "60m");
        assert_eq!(age("2026-01-01T02:00:00Z", now), "0s", "clocks differ");
        assert_eq!(age("", now), "");
    }

    #[test]
    fn yaml_of_an_object() {
        let object = json!({"kind": "A", "spec": {"b": [1, "2", "true"], "c": "x\ny\n"}});
        let text = yaml(&object).unwrap();
        let back: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(back, object, "{text}");
        let long = json!({"a": "x".repeat(200), "b": "y z ".repeat(50)});
        assert_eq!(yaml(&long).unwrap().lines().count(), 2);
        // kubectl reads YAML 1.1, in which more words than true and false are no strings.
        for word in
            ["yes", "on", "off", "n", "null", "~", "1e3", "0x1f", "0777", "1_000", "12:30:45", "2026-01-01"]
        {
            let text = yaml(&json!({"a": word})).unwrap();
            assert!(text.contains(['"', '\'']), "{text}");
        }
    }
}
