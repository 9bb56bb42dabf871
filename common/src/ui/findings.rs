//! What `doctor` found out: one type for a finding, one form for people and one for
//! programs.

use std::io::{IsTerminal, stdout};

use anyhow::bail;
use serde::Serialize;

use super::output::{print_result, print_styled};
use super::visible::visible;

/// The version of the JSON form. Fields may be added to a version.
const VERSION: u32 = 1;

/// What a finding means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be, or of no consequence.
    Ok,
    /// Training works, but slower, or not with everything.
    Warn,
    /// Training does not work like this.
    Fail,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// A few words; the same for every machine and run.
    pub name: String,
    /// What was found, with its unit.
    pub value: String,
    pub verdict: Verdict,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    pub fn ok(name: &str, value: impl Into<String>) -> Self {
        Self { name: name.to_owned(), value: value.into(), verdict: Verdict::Ok, advice: None }
    }

    pub fn warn(name: &str, value: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warn, advice: Some(advice.into()), ..Self::ok(name, value) }
    }

    pub fn fail(name: &str, value: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fail, advice: Some(advice.into()), ..Self::ok(name, value) }
    }
}

/// The findings of one command.
#[derive(Debug, Serialize)]
struct Report<'a> {
    version: u32,
    /// The version of the program.
    ringleader: &'static str,
    /// The worst of all findings.
    verdict: Verdict,
    findings: &'a [Finding],
}

/// Prints findings to stdout: a table for people, or JSON.
///
/// # Errors
/// One of them fails, or stdout takes nothing.
pub fn print_findings(findings: &[Finding], json: bool) -> anyhow::Result<()> {
    if json {
        print_result(&as_json(findings)?)?;
    } else {
        print_styled(as_table(findings, stdout().is_terminal() && console::colors_enabled()).trim_end())?;
    }
    match findings.iter().filter(|finding| finding.verdict == Verdict::Fail).count() {
        0 => Ok(()),
        1 => bail!("one finding fails"),
        n => bail!("{n} findings fail"),
    }
}

fn as_json(findings: &[Finding]) -> anyhow::Result<String> {
    let verdict = findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Ok);
    let report = Report { version: VERSION, ringleader: env!("CARGO_PKG_VERSION"), verdict, findings };
    Ok(serde_json::to_string_pretty(&report)?)
}

/// Names to the right of a column, verdicts in one, values in one, and advice below the
/// value. Values may quote others, whose characters do not act on a terminal.
fn as_table(findings: &[Finding], coloured: bool) -> String {
    let width = findings.iter().map(|finding| finding.name.chars().count()).max().unwrap_or(0);
    let mut table = String::new();
    for Finding { name, value, verdict, advice } in findings {
        let word = format!("{:4}", verdict.word());
        let style = match verdict {
            Verdict::Ok => console::Style::new().green(),
            Verdict::Warn => console::Style::new().yellow().bold(),
            Verdict::Fail => console::Style::new().red().bold(),
        };
        let word = if coloured { style.force_styling(true).apply_to(word).to_string() } else { word };
        table += &format!("{:>width$}  {word}  {}\n", visible(name), visible(value));
        if let Some(advice) = advice {
            table += &format!("{:width$}        {}\n", "", visible(advice));
        }
    }
    table
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn findings() -> Vec<Finding> {
        vec![
            Finding::ok("version", "0.1.0"),
            Finding::warn("round trip", "63.0 ms", "take nearer machines"),
            Finding::fail("x", "a\u{1b}[2Jb", "look\nhere"),
        ]
    }

    #[test]
    fn people_get_columns_and_the_verdict_as_a_word() {
        let table = as_table(&findings(), false);
        let expected = "   version  ok    0.1.0\nround trip  warn  63.0 ms\n                  take nearer machines\n         \
                        x  fail  a\\u{1b}[2Jb\n                  look\\nhere\n";
        assert_eq!(table, expected);
        let coloured = as_table(&findings(), true);
        assert!(coloured.contains("\u{1b}[32mok  \u{1b}[0m  0.1.0") && !coloured.contains("\u{1b}[2J"), "{coloured:?}");
        assert_eq!(console::strip_ansi_codes(&coloured), table, "colour alone differs");
    }

    #[test]
    fn programs_get_the_worst_verdict_first() {
        let json: serde_json::Value = serde_json::from_str(&as_json(&findings()).unwrap()).unwrap();
        assert_eq!((&json["version"], &json["verdict"]), (&1.into(), &"fail".into()));
        assert_eq!(json["findings"][0], serde_json::json!({ "name": "version", "value": "0.1.0", "verdict": "ok" }));
        assert_eq!(json["findings"][1]["advice"], "take nearer machines");
        assert_eq!(json["findings"][2]["value"], "a\u{1b}[2Jb", "as it is");
        assert!(as_json(&[]).unwrap().contains("\"verdict\": \"ok\""));
    }

    #[test]
    fn what_fails_is_an_error_and_a_warning_is_none() {
        assert!(print_findings(&findings()[..2], true).is_ok());
        assert_eq!(print_findings(&findings(), true).unwrap_err().to_string(), "one finding fails");
    }
}
