//! Orders of eviction, each over a store that holds no bytes.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use larder_core::eviction::{self, Queue, Standing, Verdict};

/// A store with an order.
pub trait Order {
    /// Asks for a blob of `size` bytes; whether it was at hand. If not, it is now, and others may
    /// have gone for it; unless it is larger than the store.
    fn ask(&mut self, blob: usize, size: u64) -> bool;
}

/// What goes first: lowest rank first, then longest unused. Ranks are not negative, so their bits
/// are in their order.
type Place = (u64, u64, usize);

fn place(rank: f64, time: u64, blob: usize) -> Place {
    (rank.to_bits(), time, blob)
}

/// larder's own.
#[derive(Debug)]
pub struct Ours {
    budget: u64,
    order: eviction::Order,
    time: u64,
    held: HashMap<usize, Held>,
    probation: Line,
    main: Line,
    gone: VecDeque<(usize, u64)>,
    gone_bytes: u64,
    remembered: HashMap<usize, u32>,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    size: u64,
    standing: Standing,
    place: Place,
}

#[derive(Debug, Default)]
struct Line {
    places: BTreeMap<Place, ()>,
    bytes: u64,
}

impl Ours {
    /// An empty one of so many bytes.
    pub fn new(budget: u64) -> Self {
        Self {
            budget,
            order: eviction::Order::default(),
            time: 0,
            held: HashMap::new(),
            probation: Line::default(),
            main: Line::default(),
            gone: VecDeque::new(),
            gone_bytes: 0,
            remembered: HashMap::new(),
        }
    }

    fn line(&mut self, queue: Queue) -> &mut Line {
        match queue {
            Queue::Probation => &mut self.probation,
            Queue::Main => &mut self.main,
        }
    }

    fn put(&mut self, blob: usize, size: u64, standing: Standing) {
        self.time += 1;
        let place = place(standing.rank, self.time, blob);
        let line = self.line(standing.queue);
        line.places.insert(place, ());
        line.bytes += size;
        self.held.insert(blob, Held { size, standing, place });
    }

    fn take(&mut self, blob: usize) -> Option<Held> {
        let held = self.held.remove(&blob)?;
        let line = self.line(held.standing.queue);
        line.places.remove(&held.place);
        line.bytes -= held.size;
        Some(held)
    }

    fn make_room(&mut self, size: u64) {
        while self.probation.bytes + self.main.bytes + size > self.budget {
            let (probation, main) = (self.probation.bytes, self.main.bytes);
            let Some(queue) = eviction::Order::turn(probation, main, self.budget) else { return };
            let Some((&(_, _, blob), ())) = self.line(queue).places.first_key_value() else {
                return;
            };
            let Some(held) = self.take(blob) else { return };
            match self.order.judge(held.standing) {
                Verdict::Stay(standing) => self.put(blob, held.size, standing),
                Verdict::Go { uses } => self.remember(blob, held.size, uses),
            }
        }
    }

    fn remember(&mut self, blob: usize, size: u64, uses: u32) {
        self.remembered.insert(blob, uses);
        self.gone.push_back((blob, size));
        self.gone_bytes += size;
        while self.gone_bytes > eviction::Order::memory(self.budget) {
            let Some((blob, size)) = self.gone.pop_front() else { return };
            self.gone_bytes -= size;
            self.remembered.remove(&blob);
        }
    }
}

impl Order for Ours {
    fn ask(&mut self, blob: usize, size: u64) -> bool {
        if let Some(held) = self.held.get(&blob).copied() {
            let standing = self.order.touch(held.standing);
            match held.standing.queue {
                // Where it stands on probation is when it came.
                Queue::Probation => {
                    self.held.insert(blob, Held { standing, ..held });
                }
                Queue::Main => {
                    self.take(blob);
                    self.put(blob, size, standing);
                }
            }
            return true;
        }
        if size <= self.budget {
            self.make_room(size);
            let remembered = self.remembered.remove(&blob);
            self.put(blob, size, self.order.admit(remembered));
        }
        false
    }
}

/// What was used longest ago goes first.
#[derive(Debug)]
pub struct Lru {
    budget: u64,
    bytes: u64,
    time: u64,
    held: HashMap<usize, (u64, u64)>,
    line: BTreeMap<u64, usize>,
}

impl Lru {
    /// An empty one of so many bytes.
    pub fn new(budget: u64) -> Self {
        Self { budget, bytes: 0, time: 0, held: HashMap::new(), line: BTreeMap::new() }
    }
}

impl Order for Lru {
    fn ask(&mut self, blob: usize, size: u64) -> bool {
        self.time += 1;
        let before = self.held.get(&blob).map(|(time, _)| *time);
        match before {
            Some(time) => {
                self.line.remove(&time);
            }
            None if size > self.budget => return false,
            None => {
                while self.bytes + size > self.budget {
                    let Some((_, blob)) = self.line.pop_first() else { break };
                    self.bytes -= self.held.remove(&blob).map_or(0, |(_, size)| size);
                }
                self.bytes += size;
            }
        }
        self.line.insert(self.time, blob);
        self.held.insert(blob, (self.time, size));
        before.is_some()
    }
}

/// Greedy-Dual-Size-Frequency: what was used least often for its size goes first, with aging.
///
/// Source: Cherkasova, "Improving WWW proxies performance with Greedy-Dual-Size-Frequency caching
/// policy", 1998, with a cost of 1.
#[derive(Debug)]
pub struct Gdsf {
    budget: u64,
    bytes: u64,
    age: f64,
    time: u64,
    held: HashMap<usize, (u64, u32, Place)>,
    line: BTreeMap<Place, ()>,
}

impl Gdsf {
    /// An empty one of so many bytes.
    pub fn new(budget: u64) -> Self {
        let (held, line) = (HashMap::new(), BTreeMap::new());
        Self { budget, bytes: 0, age: 0.0, time: 0, held, line }
    }
}

impl Order for Gdsf {
    fn ask(&mut self, blob: usize, size: u64) -> bool {
        self.time += 1;
        let before = self.held.remove(&blob);
        match &before {
            Some((_, _, place)) => {
                self.line.remove(place);
            }
            None if size > self.budget => return false,
            None => {
                while self.bytes + size > self.budget {
                    let Some(((rank, _, blob), ())) = self.line.pop_first() else { break };
                    self.age = f64::from_bits(rank);
                    self.bytes -= self.held.remove(&blob).map_or(0, |(size, ..)| size);
                }
                self.bytes += size;
            }
        }
        let uses = before.map_or(0, |(_, uses, _)| uses) + 1;
        let rank = self.age + f64::from(uses) / size as f64;
        let place = place(rank, self.time, blob);
        self.line.insert(place, ());
        self.held.insert(blob, (size, uses, place));
        before.is_some()
    }
}

/// S3-FIFO, its queues measured in bytes.
///
/// Source: Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023.
#[derive(Debug)]
pub struct S3Fifo {
    budget: u64,
    small: VecDeque<usize>,
    small_bytes: u64,
    main: VecDeque<usize>,
    main_bytes: u64,
    /// Size and uses, at most 3.
    held: HashMap<usize, (u64, u8)>,
    gone: VecDeque<(usize, u64)>,
    gone_bytes: u64,
    remembered: HashSet<usize>,
}

impl S3Fifo {
    /// An empty one of so many bytes.
    pub fn new(budget: u64) -> Self {
        Self {
            budget,
            small: VecDeque::new(),
            small_bytes: 0,
            main: VecDeque::new(),
            main_bytes: 0,
            held: HashMap::new(),
            gone: VecDeque::new(),
            gone_bytes: 0,
            remembered: HashSet::new(),
        }
    }

    fn evict(&mut self) {
        let is_turn_of_small = self.small_bytes >= self.budget / 10 || self.main.is_empty();
        match self.small.front().copied().filter(|_| is_turn_of_small) {
            Some(blob) => self.evict_of_small(blob),
            None => self.evict_of_main(),
        }
    }

    fn evict_of_small(&mut self, blob: usize) {
        self.small.pop_front();
        let (size, uses) = self.held[&blob];
        self.small_bytes -= size;
        if uses > 1 {
            self.main.push_back(blob);
            self.main_bytes += size;
            self.held.insert(blob, (size, 0));
            return;
        }
        self.held.remove(&blob);
        self.gone.push_back((blob, size));
        self.gone_bytes += size;
        self.remembered.insert(blob);
        while self.gone_bytes > self.budget / 10 * 9 {
            let Some((blob, size)) = self.gone.pop_front() else { return };
            self.gone_bytes -= size;
            self.remembered.remove(&blob);
        }
    }

    fn evict_of_main(&mut self) {
        let Some(blob) = self.main.pop_front() else { return };
        match self.held[&blob] {
            (size, 0) => {
                self.held.remove(&blob);
                self.main_bytes -= size;
            }
            (size, uses) => {
                self.held.insert(blob, (size, uses - 1));
                self.main.push_back(blob);
            }
        }
    }
}

impl Order for S3Fifo {
    fn ask(&mut self, blob: usize, size: u64) -> bool {
        if let Some((_, uses)) = self.held.get_mut(&blob) {
            *uses = (*uses + 1).min(3);
            return true;
        }
        if size > self.budget {
            return false;
        }
        while self.small_bytes + self.main_bytes + size > self.budget {
            self.evict();
        }
        match self.remembered.contains(&blob) {
            true => {
                self.main.push_back(blob);
                self.main_bytes += size;
            }
            false => {
                self.small.push_back(blob);
                self.small_bytes += size;
            }
        }
        self.held.insert(blob, (size, 0));
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_store_holds_more_than_its_budget_and_each_has_what_fits() {
        for mut order in all(10) {
            assert!(!order.ask(1, 4) && !order.ask(2, 4));
            assert!(order.ask(1, 4) && order.ask(2, 4));
            assert!(!order.ask(3, 11) && !order.ask(3, 11));
            assert!(!order.ask(4, 4) && order.ask(4, 4));
            let n_held = [1, 2, 4].into_iter().filter(|&blob| order.ask(blob, 4)).count();
            assert!(n_held <= 2, "{n_held}");
        }
    }

    #[test]
    fn what_was_used_longest_ago_goes_first_by_lru() {
        let mut lru = Lru::new(2);
        for blob in [1, 2, 1, 3] {
            lru.ask(blob, 1);
        }
        assert!(lru.ask(1, 1) && !lru.ask(2, 1));
    }

    #[test]
    fn a_scan_passes_through() {
        for mut order in [Box::new(Ours::new(100)) as Box<dyn Order>, Box::new(S3Fifo::new(100))] {
            for _ in 0..4 {
                for blob in 0..50 {
                    order.ask(blob, 1);
                }
            }
            for blob in 1000..2000 {
                order.ask(blob, 1);
            }
            let n_held = (0..50).filter(|&blob| order.ask(blob, 1)).count();
            assert_eq!(n_held, 50);
        }
    }

    fn all(budget: u64) -> [Box<dyn Order>; 4] {
        [
            Box::new(Ours::new(budget)),
            Box::new(S3Fifo::new(budget)),
            Box::new(Gdsf::new(budget)),
            Box::new(Lru::new(budget)),
        ]
    }
}
