//! What doctor has to say, before it has a form.

use serde::Serialize;

/// How well something works here. Ordered from good to bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// All of it works.
    Ok,
    /// Guests run without what [`Check::lost`] names.
    Degraded,
    /// `tapway run` cannot start a guest.
    Missing,
}

impl Verdict {
    /// The word in text and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Degraded => "degraded",
            Verdict::Missing => "missing",
        }
    }
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// The stable name.
    pub name: &'static str,
    /// How it stands.
    pub verdict: Verdict,
    /// What was found.
    pub seen: String,
    /// What does not work because of it; absent when the verdict is ok.
    pub lost: Option<String>,
    /// The command, or where there is none the deed, that mends it.
    pub mend: Option<String>,
    /// What makes the mend last over a reboot, where it does not by itself.
    pub keep: Option<String>,
}

/// The remedy of a [`Check`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mend {
    pub(super) now: String,
    pub(super) keep: Option<String>,
}

impl Mend {
    /// A remedy that lasts by itself.
    pub(super) fn once(now: impl Into<String>) -> Mend {
        Mend { now: now.into(), keep: None }
    }

    /// A remedy for this boot or session, and what makes it last.
    pub(super) fn kept(now: impl Into<String>, keep: impl Into<String>) -> Mend {
        Mend { now: now.into(), keep: Some(keep.into()) }
    }

    /// A kernel setting.
    pub(super) fn sysctl(key: &str, value: &str) -> Mend {
        let quoted = if value.contains(' ') { format!("\"{value}\"") } else { value.to_owned() };
        Mend::kept(
            format!("sudo sysctl -w {key}={quoted}"),
            format!("echo '{key}={value}' | sudo tee -a /etc/sysctl.d/60-tapway.conf"),
        )
    }
}

impl Check {
    pub(super) fn ok(name: &'static str, seen: impl Into<String>) -> Check {
        let seen = seen.into();
        Check { name, verdict: Verdict::Ok, seen, lost: None, mend: None, keep: None }
    }

    pub(super) fn degraded(
        name: &'static str,
        seen: impl Into<String>,
        lost: impl Into<String>,
        mend: Mend,
    ) -> Check {
        Check {
            name,
            verdict: Verdict::Degraded,
            seen: seen.into(),
            lost: Some(lost.into()),
            mend: Some(mend.now),
            keep: mend.keep,
        }
    }

    pub(super) fn missing(
        name: &'static str,
        seen: impl Into<String>,
        lost: impl Into<String>,
        mend: Mend,
    ) -> Check {
        Check { verdict: Verdict::Missing, ..Check::degraded(name, seen, lost, mend) }
    }
}

/// All checks, in the order in which setting up a guest meets them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The lines.
    pub checks: Vec<Check>,
}

impl Report {
    /// The worst verdict.
    pub fn verdict(&self) -> Verdict {
        self.checks.iter().map(|check| check.verdict).max().unwrap_or(Verdict::Ok)
    }

    /// How many checks have this verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.checks.iter().filter(|check| check.verdict == verdict).count()
    }

    /// The exit status for scripts; the table is in the [module](super).
    pub fn exit_status(&self, strict: bool) -> u8 {
        match self.verdict() {
            Verdict::Missing => 1,
            Verdict::Degraded if strict => 3,
            Verdict::Ok | Verdict::Degraded => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(verdicts: &[Verdict]) -> Report {
        let check = |&verdict| Check { verdict, ..Check::ok("x", "y") };
        Report { checks: verdicts.iter().map(check).collect() }
    }

    #[test]
    fn the_worst_verdict_decides_and_degraded_fails_only_when_strict() {
        use Verdict::{Degraded, Missing, Ok};
        for (verdicts, worst, status, strict) in [
            (&[][..], Ok, 0, 0),
            (&[Ok, Ok][..], Ok, 0, 0),
            (&[Degraded, Ok][..], Degraded, 0, 3),
            (&[Ok, Missing, Degraded][..], Missing, 1, 1),
        ] {
            let report = report(verdicts);
            assert_eq!(report.verdict(), worst);
            assert_eq!(report.exit_status(false), status);
            assert_eq!(report.exit_status(true), strict);
        }
    }

    #[test]
    fn a_kernel_setting_with_a_blank_is_quoted_for_the_shell() {
        let mend = Mend::sysctl("net.ipv4.ping_group_range", "0 2147483647");
        assert_eq!(mend.now, "sudo sysctl -w net.ipv4.ping_group_range=\"0 2147483647\"");
        assert_eq!(
            mend.keep.as_deref(),
            Some(
                "echo 'net.ipv4.ping_group_range=0 2147483647' | \
                 sudo tee -a /etc/sysctl.d/60-tapway.conf"
            )
        );
    }
}
