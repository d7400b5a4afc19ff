//! Requests for blobs, made up.

use std::fmt;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::Order;

/// How many of a hundred blobs many images share, three by three.
const SHARED: usize = 3;

/// How the images are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// By popularity, which stays as it is.
    Steady,
    /// By popularity, and images become popular or fall out of use all the time.
    Drift,
    /// By popularity, and every now and then a long run of images that nobody asks for again.
    Scans,
    /// Mostly what was released lately.
    Releases,
    /// By popularity, often by many nodes at once.
    Fleets,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Steady, Self::Drift, Self::Scans, Self::Releases, Self::Fleets];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Steady => "steady",
            Self::Drift => "drift",
            Self::Scans => "scans",
            Self::Releases => "releases",
            Self::Fleets => "fleets",
        })
    }
}

/// Requests, in order.
#[derive(Debug)]
pub struct Trace {
    /// The bytes of each blob.
    sizes: Vec<u64>,
    /// The blobs that are asked for.
    requests: Vec<usize>,
}

impl Trace {
    /// Some requests for some blobs (at least 100). The same ones give the same trace.
    pub fn generate(kind: Kind, n_blobs: usize, n_requests: usize, seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let sizes: Vec<u64> = (0..n_blobs).map(|_| size(&mut random)).collect();
        let mut maker = Maker::new(n_blobs, random);
        let mut requests = Vec::with_capacity(n_requests + 1000);
        for step in 0_u64.. {
            if requests.len() >= n_requests {
                break;
            }
            let done = requests.len() as f64 / n_requests as f64;
            maker.step(kind, step, done, &mut requests);
        }
        requests.truncate(n_requests);
        Self { sizes, requests }
    }

    /// The same requests for blobs of other sizes.
    #[must_use]
    pub fn resized(mut self, size: impl Fn(u64) -> u64) -> Self {
        self.sizes.iter_mut().for_each(|it| *it = size(*it));
        self
    }

    /// The bytes of each blob.
    pub fn sizes(&self) -> &[u64] {
        &self.sizes
    }

    /// The blobs that are asked for: places in [`Trace::sizes`].
    pub fn requests(&self) -> &[usize] {
        &self.requests
    }

    /// Bytes of all blobs.
    pub fn total(&self) -> u64 {
        self.sizes.iter().sum()
    }

    /// The share of the requested bytes that was at hand.
    pub fn byte_hit_ratio(&self, order: &mut dyn Order) -> f64 {
        let (mut hits, mut all) = (0, 0);
        for &blob in &self.requests {
            let size = self.sizes[blob];
            all += size;
            if order.ask(blob, size) {
                hits += size;
            }
        }
        hits as f64 / all as f64
    }
}

/// A configuration of some KB, or a layer: 5 MB in the middle, a few of gigabytes.
fn size(random: &mut SmallRng) -> u64 {
    match random.random_bool(0.25) {
        true => 200 + (2000.0 * (0.5 * normal(random)).exp()) as u64,
        false => ((5e6 * (1.8 * normal(random)).exp()) as u64).clamp(1000, 4_000_000_000),
    }
}

/// A number of the standard normal distribution, by Box and Muller.
fn normal(random: &mut SmallRng) -> f64 {
    let (one, other): (f64, f64) = (random.random(), random.random());
    (-2.0 * (1.0 - one).ln()).sqrt() * (std::f64::consts::TAU * other).cos()
}

struct Maker {
    random: SmallRng,
    /// The blobs of each image.
    images: Vec<Vec<usize>>,
    /// Images, the most popular first.
    ranking: Vec<usize>,
    popularity: Zipf,
    n_scanned: usize,
}

impl Maker {
    fn new(n_blobs: usize, mut random: SmallRng) -> Self {
        let n_bases = n_blobs / 100 * SHARED / 3;
        let bases = Zipf::new(n_bases, 0.8);
        let (mut images, mut next) = (Vec::new(), 3 * n_bases);
        while next + 5 <= n_blobs {
            let base = 3 * bases.pick(&mut random);
            let own = next..next + random.random_range(2..=5);
            next = own.end;
            images.push((base..base + 3).chain(own).collect::<Vec<usize>>());
        }
        let mut ranking: Vec<usize> = (0..images.len()).collect();
        for last in (1..ranking.len()).rev() {
            ranking.swap(last, random.random_range(0..=last));
        }
        let popularity = Zipf::new(images.len(), 0.9);
        Self { random, images, ranking, popularity, n_scanned: 0 }
    }

    fn step(&mut self, kind: Kind, step: u64, done: f64, requests: &mut Vec<usize>) {
        let n_images = self.images.len();
        let popular = self.ranking[self.popularity.pick(&mut self.random)];
        let (image, times) = match kind {
            Kind::Steady => (popular, 1),
            Kind::Drift => {
                if step.is_multiple_of(40) {
                    let top = self.random.random_range(0..n_images / 20);
                    let other = self.random.random_range(0..n_images);
                    self.ranking.swap(top, other);
                }
                (popular, 1)
            }
            // Half of the time, from the least popular on.
            Kind::Scans if step % 3000 < 1500 => {
                self.n_scanned += 1;
                (self.ranking[n_images - 1 - self.n_scanned % (n_images * 3 / 4)], 1)
            }
            Kind::Scans => (popular, 1),
            Kind::Releases if self.random.random_bool(0.3) => (popular, 1),
            Kind::Releases => {
                let newest = (done * n_images as f64) as usize;
                let behind = -60.0 * (1.0 - self.random.random::<f64>()).ln();
                (newest.saturating_sub(behind as usize).min(n_images - 1), 1)
            }
            Kind::Fleets if self.random.random_bool(0.1) => {
                (popular, self.random.random_range(1..=40))
            }
            Kind::Fleets if self.random.random_bool(0.2) => {
                (self.random.random_range(0..n_images), 1)
            }
            Kind::Fleets => (popular, 1),
        };
        for _ in 0..times {
            requests.extend(&self.images[image]);
        }
    }
}

/// Numbers of which the first are the most frequent, by a power law.
struct Zipf(Vec<f64>);

impl Zipf {
    fn new(n: usize, exponent: f64) -> Self {
        let mut sum = 0.0;
        let mut cumulated: Vec<f64> = Vec::with_capacity(n);
        for rank in 1..=n {
            sum += (rank as f64).powf(-exponent);
            cumulated.push(sum);
        }
        Self(cumulated.into_iter().map(|upto| upto / sum).collect())
    }

    fn pick(&self, random: &mut SmallRng) -> usize {
        let at: f64 = random.random();
        self.0.partition_point(|&upto| upto < at).min(self.0.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_the_same_each_time_and_as_long_as_asked_for() {
        let generate = |kind| Trace::generate(kind, 1000, 5000, 1);
        for kind in Kind::ALL {
            let (one, other) = (generate(kind), generate(kind));
            assert_eq!(one.requests.len(), 5000, "{kind}");
            assert_eq!(one.requests, other.requests, "{kind}");
            assert!(one.requests.iter().all(|&blob| blob < 1000));
        }
    }
}
