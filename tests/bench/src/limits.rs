//! What each row must reach and what it aims at.

use std::fmt;

/// What a row is held against.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Measure {
    /// A divided by B; a rate, so more is better.
    RatioAtLeast,
    /// A divided by B.
    RatioAtMost,
    /// A alone, in the row's unit.
    ValueAtMost,
}

pub struct Limit {
    /// The figure that gives the rows, to know what was left out by choice.
    pub figure: &'static str,
    pub row: &'static str,
    pub measure: Measure,
    pub must: f64,
    pub aim: f64,
    /// Holds whatever else the machine does.
    pub steady: bool,
    /// Only where the machine allows it: as root, with cgroups.
    pub optional: bool,
}

use Measure::{RatioAtLeast, RatioAtMost, ValueAtMost};

const fn limit(figure: &'static str, row: &'static str, measure: Measure, must: f64, aim: f64) -> Limit {
    Limit { figure, row, measure, must, aim, steady: false, optional: false }
}

const fn steady(limit: Limit) -> Limit {
    Limit { steady: true, ..limit }
}

const fn optional(limit: Limit) -> Limit {
    Limit { optional: true, ..limit }
}

/// Four to seven processes do here what qemu-ga does in one, so equal is good and less is the aim.
pub static LIMITS: &[Limit] = &[
    limit("start", "start.median", RatioAtMost, 1.5, 1.0),
    steady(limit("memory", "memory.start.pss", RatioAtMost, 1.5, 1.0)),
    steady(limit("memory", "memory.peak-48M.rss-sum", RatioAtMost, 0.1, 0.1)),
    steady(limit("memory", "memory.peak-48M.pss-sampled", RatioAtMost, 0.1, 0.1)),
    steady(optional(limit("memory", "memory.peak-48M.cgroup", RatioAtMost, 0.1, 0.1))),
    steady(limit("memory", "memory.kept.private-dirty", RatioAtMost, 0.1, 0.1)),
    steady(limit("idle", "idle.all-switches", ValueAtMost, 0.0, 0.0)),
    steady(limit("liveness", "liveness.ping-during-fifo-open", ValueAtMost, 50.0, 50.0)),
    steady(limit("liveness", "liveness.ping-during-fifo-read", ValueAtMost, 50.0, 50.0)),
    steady(optional(limit("liveness", "liveness.ping-during-hung-open", ValueAtMost, 50.0, 50.0))),
    steady(optional(limit("liveness", "liveness.read-during-hung-open", ValueAtMost, 50.0, 50.0))),
    steady(optional(limit("liveness", "liveness.ping-during-hung-exec", ValueAtMost, 50.0, 50.0))),
    steady(optional(limit("liveness", "liveness.read-during-hung-exec", ValueAtMost, 50.0, 50.0))),
    limit("ping", "ping.p50", RatioAtMost, 0.8, 0.5),
    limit("ping", "ping.cpu", RatioAtMost, 0.8, 0.5),
    limit("poll", "guest-info.cpu", RatioAtMost, 1.0, 0.6),
    limit("poll", "guest-get-osinfo.cpu", RatioAtMost, 1.5, 1.0),
    limit("poll", "guest-network-get-interfaces.cpu", RatioAtMost, 1.0, 0.6),
    limit("poll", "guest-get-fsinfo.cpu", RatioAtMost, 1.0, 0.6),
    limit("poll", "guest-get-vcpus.cpu", RatioAtMost, 1.0, 0.6),
    limit("pipeline", "pipeline.rate", RatioAtLeast, 1.5, 8.0),
    limit("exec", "exec.p50", RatioAtMost, 1.1, 0.8),
    limit("read", "read.4K.rate", RatioAtLeast, 1.0, 1.7),
    limit("read", "read.64K.rate", RatioAtLeast, 2.0, 5.0),
    limit("read", "read.1M.rate", RatioAtLeast, 3.0, 12.0),
    limit("read", "read.16M.rate", RatioAtLeast, 3.0, 12.0),
    limit("read", "read.48M.rate", RatioAtLeast, 3.0, 12.0),
    limit("write", "write.4K.rate", RatioAtLeast, 1.3, 3.0),
    limit("write", "write.64K.rate", RatioAtLeast, 6.0, 25.0),
    limit("write", "write.1M.rate", RatioAtLeast, 6.0, 25.0),
    limit("write", "write.16M.rate", RatioAtLeast, 6.0, 25.0),
    limit("open", "open-close.p50", RatioAtMost, 0.6, 0.2),
];

/// How a row stands against its limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    Aim,
    Must,
    Missed,
}

impl Verdict {
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Aim => "aim",
            Verdict::Must => "must",
            Verdict::Missed => "missed",
        }
    }
}

impl Limit {
    pub fn of(row: &str) -> Option<&'static Limit> {
        LIMITS.iter().find(|limit| limit.row == row)
    }

    /// Nothing for a ratio without a second agent. A value that is not finite (blocked) has missed.
    pub fn judge(&self, value: f64, ratio: Option<f64>) -> Option<Verdict> {
        let reached = |bound: f64, measured: f64| match self.measure {
            RatioAtLeast => measured >= bound,
            RatioAtMost | ValueAtMost => measured <= bound,
        };
        let measured = if self.measure == ValueAtMost { value } else { ratio? };
        Some(match (reached(self.aim, measured), reached(self.must, measured)) {
            (true, _) => Verdict::Aim,
            (false, true) => Verdict::Must,
            (false, false) => Verdict::Missed,
        })
    }
}

/// As in "A/B <= 0.8, aim 0.5".
impl fmt::Display for Limit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let measure = match self.measure {
            RatioAtLeast => "A/B >=",
            RatioAtMost => "A/B <=",
            ValueAtMost => "A <=",
        };
        write!(out, "{measure} {}", self.must)?;
        if self.aim == self.must { Ok(()) } else { write!(out, ", aim {}", self.aim) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::FIGURES;

    #[test]
    fn a_rate_must_be_high_and_a_time_low() {
        let pipeline = Limit::of("pipeline.rate").unwrap();
        let judged = [9.0, 2.0, 1.0].map(|ratio| pipeline.judge(0.0, Some(ratio)).unwrap());
        assert_eq!(judged, [Verdict::Aim, Verdict::Must, Verdict::Missed]);
        let ping = Limit::of("ping.p50").unwrap();
        let judged = [0.4, 0.7, 0.9].map(|ratio| ping.judge(0.0, Some(ratio)).unwrap());
        assert_eq!(judged, [Verdict::Aim, Verdict::Must, Verdict::Missed]);
    }

    #[test]
    fn an_agent_that_stays_blocked_misses_whatever_the_other_does() {
        let fifo = Limit::of("liveness.ping-during-fifo-open").unwrap();
        assert_eq!(fifo.judge(f64::INFINITY, None), Some(Verdict::Missed));
        assert_eq!(fifo.judge(26.0, None), Some(Verdict::Aim));
    }

    #[test]
    fn a_ratio_needs_two_agents() {
        assert_eq!(Limit::of("ping.p50").unwrap().judge(10.0, None), None);
    }

    #[test]
    fn every_limit_belongs_to_a_figure() {
        let unknown: Vec<&str> = LIMITS
            .iter()
            .filter(|limit| !FIGURES.iter().any(|figure| figure.name == limit.figure))
            .map(|limit| limit.row)
            .collect();
        assert_eq!(unknown, [""; 0]);
    }
}
