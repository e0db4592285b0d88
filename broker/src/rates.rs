//! How often a rule lets something through.
//!
//! Runs in the broker, which sees all requests of all channels. A rule with a rate has a bucket that holds as many requests as come in
//! ten seconds; each takes one, and it fills at that rate. All that is kept of a bucket is the moment when it will be full.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Duration;

use authorize::Origin;
use tokio::time::Instant;

/// How long an empty bucket takes to fill, whatever the rate.
const BUCKET: Duration = Duration::from_secs(10);
/// Buckets that are kept before the full ones are looked for: rules come and go with each policy.
const KEPT: usize = 1024;

/// The buckets of all rules, by where these are written; when each is full again.
#[derive(Default)]
pub(crate) struct Rates(RefCell<HashMap<Origin, Instant>>);

impl Rates {
    /// Takes a request out of a rule's bucket.
    ///
    /// # Errors
    /// The bucket is empty; for so long.
    pub(crate) fn take(&self, rule: &Origin, per_second: u32, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.0.borrow_mut();
        let full =
            buckets.get(rule).map_or(now, |full| now.max(*full)) + Duration::from_secs(1) / per_second.max(1);
        match full.checked_duration_since(now + BUCKET) {
            None | Some(Duration::ZERO) => {}
            Some(wait) => return Err(wait),
        }
        if let Some(bucket) = buckets.get_mut(rule) {
            *bucket = full;
            return Ok(());
        }
        if buckets.len() >= KEPT {
            buckets.retain(|_, full| *full > now);
        }
        buckets.insert(rule.clone(), full);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(line: u32) -> Origin {
        Origin { place: "p.toml".into(), line }
    }

    #[test]
    fn ten_times_the_rate_may_come_at_once_and_then_the_rate() {
        let (rates, begin) = (Rates::default(), Instant::now());
        let at = |milliseconds| rates.take(&rule(1), 2, begin + Duration::from_millis(milliseconds));
        for _ in 0..20 {
            assert_eq!(at(0), Ok(()));
        }
        assert_eq!(at(0), Err(Duration::from_millis(500)));
        assert_eq!(at(400), Err(Duration::from_millis(100)));
        assert_eq!(at(500), Ok(()));
        assert_eq!(at(500), Err(Duration::from_millis(500)));
    }

    #[test]
    fn a_bucket_that_nobody_has_used_for_long_is_full_and_no_more_than_that() {
        let (rates, begin) = (Rates::default(), Instant::now());
        let later = begin + Duration::from_secs(3600);
        assert_eq!(rates.take(&rule(1), 1, begin), Ok(()));
        let through = (0..100).filter(|_| rates.take(&rule(1), 1, later).is_ok()).count();
        assert_eq!(through, 10);
    }

    #[test]
    fn each_rule_has_its_own_bucket() {
        let (rates, now) = (Rates::default(), Instant::now());
        let through = |line| (0..100).filter(|_| rates.take(&rule(line), 3, now).is_ok()).count();
        assert_eq!((through(1), through(2), through(1)), (30, 30, 0));
    }

    #[test]
    fn buckets_of_rules_that_are_gone_do_not_pile_up() {
        let (rates, begin) = (Rates::default(), Instant::now());
        for line in 0..2000 {
            rates
                .take(&rule(line), 1, begin + Duration::from_secs(60 * u64::from(line)))
                .expect("it is full");
        }
        assert!(rates.0.borrow().len() <= KEPT);
    }
}
