//! The two forms of a report: aligned text for people, one line of JSON for programs.

use std::io::{self, Write};

use serde::Serialize;

use super::report::{Check, Report, Verdict};

/// Writes one line for each check, two or three more for each that is not ok, and a summary.
pub(super) fn text(report: &Report, colour: bool, out: &mut dyn Write) -> io::Result<()> {
    let width = report.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    for check in &report.checks {
        let (on, off) = paint(check.verdict, colour);
        // Padded inside the colour, so that invisible bytes do not spoil the columns.
        writeln!(
            out,
            "{on}{:<8}{off}  {:<width$}  {}",
            check.verdict.name(),
            check.name,
            check.seen
        )?;
        for (label, line) in
            [("lost:", &check.lost), ("mend:", &check.mend), ("keep:", &check.keep)]
        {
            if let Some(line) = line {
                writeln!(out, "            {label} {line}")?;
            }
        }
    }
    let (on, off) = paint(report.verdict(), colour);
    writeln!(out, "\n{on}{}{off}: {}", report.verdict().name(), summary(report))
}

/// Writes the JSON that the [module](super) documents.
pub(super) fn json(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    #[derive(Serialize)]
    struct Document<'a> {
        version: u32,
        verdict: Verdict,
        checks: &'a [Check],
    }
    let document = Document { version: 1, verdict: report.verdict(), checks: &report.checks };
    serde_json::to_writer(&mut *out, &document)?;
    writeln!(out)
}

fn summary(report: &Report) -> String {
    let (degraded, missing) = (report.count(Verdict::Degraded), report.count(Verdict::Missing));
    match (missing, degraded) {
        (0, 0) => "everything works".to_owned(),
        (0, n) => format!("guests run, with less in {n} of {} checks", report.checks.len()),
        (n, _) => format!("`tapway run` cannot start a guest: see the {n} checks that say missing")
            .replace("the 1 checks that say", "the check that says"),
    }
}

/// SGR sequences (ECMA-48 §8.3.117): green, yellow, red.
fn paint(verdict: Verdict, colour: bool) -> (&'static str, &'static str) {
    match verdict {
        _ if !colour => ("", ""),
        Verdict::Ok => ("\x1b[32m", "\x1b[0m"),
        Verdict::Degraded => ("\x1b[33m", "\x1b[0m"),
        Verdict::Missing => ("\x1b[31m", "\x1b[0m"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Mend;
    use super::*;

    fn report() -> Report {
        Report {
            checks: vec![
                Check::ok("kernel", "6.1"),
                Check::degraded("low-ports", "1024", "port 80", Mend::sysctl("a.b", "0")),
                Check::missing("tun", "\"none\"", "all", Mend::once("sudo modprobe tun")),
            ],
        }
    }

    fn rendered(report: &Report, colour: bool) -> String {
        let mut out = Vec::new();
        text(report, colour, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn text_is_aligned_and_remedies_are_indented() {
        let expected = "\
ok        kernel     6.1
degraded  low-ports  1024
            lost: port 80
            mend: sudo sysctl -w a.b=0
            keep: echo 'a.b=0' | sudo tee -a /etc/sysctl.d/60-tapway.conf
missing   tun        \"none\"
            lost: all
            mend: sudo modprobe tun

missing: `tapway run` cannot start a guest: see the check that says missing
";
        assert_eq!(rendered(&report(), false), expected);
    }

    #[test]
    fn colours_change_nothing_but_colours() {
        let coloured = rendered(&report(), true);
        assert!(coloured.contains("\x1b[31mmissing \x1b[0m  tun"));
        let mut plain = coloured;
        for code in ["\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[0m"] {
            plain = plain.replace(code, "");
        }
        assert_eq!(plain, rendered(&report(), false));
    }

    #[test]
    fn json_has_every_field_on_one_line() {
        let mut out = Vec::new();
        json(&report(), &mut out).unwrap();
        let expected = concat!(
            r#"{"version":1,"verdict":"missing","checks":["#,
            r#"{"name":"kernel","verdict":"ok","seen":"6.1","lost":null,"mend":null,"keep":null},"#,
            r#"{"name":"low-ports","verdict":"degraded","seen":"1024","lost":"port 80","#,
            r#""mend":"sudo sysctl -w a.b=0","#,
            r#""keep":"echo 'a.b=0' | sudo tee -a /etc/sysctl.d/60-tapway.conf"},"#,
            r#"{"name":"tun","verdict":"missing","seen":"\"none\"","lost":"all","#,
            r#""mend":"sudo modprobe tun","keep":null}]}"#,
            "\n"
        );
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
