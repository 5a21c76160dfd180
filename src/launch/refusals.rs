//! Ports that follow who listens and could not be opened, as they are told in the log.
//!
//! Hostile input: the guest decides how many ports there are and how often they come and go, so a
//! round's refusals take a bounded number of lines.

use crate::setup::chain;
use crate::setup::listen::ListenError;

/// Refusals of one round that are told one by one.
const TOLD: usize = 4;

/// The refusals of one round.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    lines: Vec<String>,
    more: usize,
}

impl Refusals {
    /// A port was not opened.
    pub(super) fn add(&mut self, error: &ListenError) {
        if self.lines.len() < TOLD {
            self.lines.push(chain(error));
        } else {
            self.more += 1;
        }
    }

    /// Writes them to the log.
    pub(super) fn tell(self) {
        for line in self.lines() {
            tracing::warn!("not published: {line}");
        }
    }

    fn lines(self) -> impl Iterator<Item = String> {
        let rest = (self.more > 0).then(|| format!("{} more ports", self.more));
        self.lines.into_iter().chain(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_cannot_fill_the_log() {
        let refuse = |count| {
            let mut refusals = Refusals::default();
            (1..=count).for_each(|port| {
                let rule = format!("0.0.0.0:{port}:{port}/tcp");
                refusals.add(&ListenError::Privileged { rule, port, first: 1024 });
            });
            refusals.lines().collect::<Vec<_>>()
        };
        assert!(refuse(0).is_empty());
        assert!(refuse(1)[0].contains("0.0.0.0:1:1/tcp"));
        let crowd = refuse(1023);
        assert_eq!((crowd.len(), &crowd[TOLD][..]), (TOLD + 1, "1019 more ports"));
    }
}
