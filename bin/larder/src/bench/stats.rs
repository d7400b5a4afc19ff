//! Medians, extremes and percentiles.

use serde::Serialize;

/// What is printed of the measurements of one thing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Summary {
    /// The middle one; of an even number the mean of the two middle ones.
    pub(crate) median: f64,
    /// The smallest.
    pub(crate) min: f64,
    /// The largest.
    pub(crate) max: f64,
    /// How many there were.
    pub(crate) rounds: usize,
}

impl Summary {
    /// The summary of `samples`, in any order; `None` if there are none.
    pub(crate) fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
            _ => sorted[middle],
        };
        Some(Self { median, min, max, rounds: sorted.len() })
    }

    /// The summary of one measurement.
    pub(crate) fn once(sample: f64) -> Self {
        Self { median: sample, min: sample, max: sample, rounds: 1 }
    }
}

/// Times of single requests, kept in nanoseconds; 4.29 s and more count as 4.29 s.
#[derive(Debug, Default)]
pub(crate) struct Latencies {
    nanoseconds: Vec<u32>,
}

impl Latencies {
    /// Room for `n` requests, so that recording does not allocate while it measures.
    pub(crate) fn with_capacity(n: usize) -> Self {
        Self { nanoseconds: Vec::with_capacity(n) }
    }

    /// Adds one request.
    pub(crate) fn record(&mut self, time: std::time::Duration) {
        self.nanoseconds.push(u32::try_from(time.as_nanos()).unwrap_or(u32::MAX));
    }

    /// Adds others.
    pub(crate) fn extend(&mut self, others: Self) {
        self.nanoseconds.extend(others.nanoseconds);
    }

    /// How many requests were recorded.
    pub(crate) fn len(&self) -> usize {
        self.nanoseconds.len()
    }

    /// The times, in milliseconds, that `percents` of the requests did not exceed (nearest rank),
    /// in the order of `percents`. All 0 if there were no requests.
    pub(crate) fn percentiles<const N: usize>(&mut self, percents: [f64; N]) -> [f64; N] {
        self.nanoseconds.sort_unstable();
        percents.map(|percent| f64::from(nearest_rank(&self.nanoseconds, percent)) / 1e6)
    }
}

/// The smallest element of `sorted` that at least `percent` of all elements do not exceed.
fn nearest_rank(sorted: &[u32], percent: f64) -> u32 {
    // In whole tenths: 99.9 / 100 × 1000 is a little more than 999.
    let per_mille = (percent * 10.0).round() as usize;
    let rank = (per_mille * sorted.len()).div_ceil(1000);
    let index = rank.clamp(1, sorted.len().max(1)) - 1;
    sorted.get(index).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_median_is_the_middle_whatever_the_order() {
        let summary = Summary::of(&[9.0, 1.0, 2.0]).unwrap();
        assert_eq!(summary, Summary { median: 2.0, min: 1.0, max: 9.0, rounds: 3 });
        assert_eq!(Summary::of(&[4.0, 1.0, 2.0, 8.0]).unwrap().median, 3.0);
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn a_percentile_is_a_time_that_was_measured() {
        let mut latencies = Latencies::default();
        for milliseconds in (1..=1000).rev() {
            latencies.record(Duration::from_millis(milliseconds));
        }
        assert_eq!(latencies.percentiles([50.0, 99.0, 99.9, 100.0]), [500.0, 990.0, 999.0, 1000.0]);
    }

    #[test]
    fn one_slow_request_of_a_hundred_is_beyond_the_99th_percentile() {
        let mut latencies = Latencies::default();
        for _ in 0..99 {
            latencies.record(Duration::from_millis(1));
        }
        latencies.record(Duration::from_secs(60));
        assert_eq!(latencies.percentiles([99.0, 99.9]), [1.0, 4294.967295]);
    }

    #[test]
    fn without_requests_every_percentile_is_zero() {
        assert_eq!(Latencies::default().percentiles([50.0]), [0.0]);
    }
}
