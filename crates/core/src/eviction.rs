//! Which content goes first when the budget is full.
//!
//! Two queues, as in S3-FIFO: what is new is on *probation*, a small queue in the order of arrival,
//! and only what was used again there is kept in the *main* queue. So a scan, many images that are
//! pulled once each, passes through without driving out what is in use. The main queue is ordered by
//! how often content was used, with dynamic aging: what joins or is used late starts ahead of what
//! was popular once, by as much as has been let go since. What has gone is remembered for a while,
//! by name only; if it comes back, it was on probation already.
//!
//! Sizes do not count in the order: what counts is how many bytes come from the store instead of
//! from upstream, and per byte that it takes a large blob saves as much as small ones do. Orders that
//! prefer small content (GDSF) save the most requests and the fewest bytes. `larder bench --only
//! eviction` compares them.
//!
//! Sources: Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023 (S3-FIFO);
//! Arlitt et al., "Evaluating content management techniques for Web proxy caches", 2000 (dynamic
//! aging).

/// The share of the budget, in percent, that content on probation keeps even when the main queue
/// wants it. More would help where mostly the newest is pulled, and cost where a few images are
/// pulled again and again; see `larder bench --only eviction`.
const PROBATION_PERCENT: u64 = 7;

/// The share of the budget, in percent, of which the names are remembered when it has gone.
const MEMORY_PERCENT: u64 = 90;

/// Uses beyond these do not count: content that was needed by a thousand nodes at once is not a
/// thousand times as likely to be needed again.
const MAX_USES: u32 = 6;

/// Where one piece of content stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Standing {
    /// Which queue it is in.
    pub queue: Queue,
    /// How often it was used, the first time included; at most 6.
    pub uses: u32,
    /// Its place in the main queue: the lowest goes first. Among equals, what was used longest ago.
    /// Meaningless on probation.
    pub rank: f64,
}

/// The queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Queue {
    /// What is new, in the order of arrival.
    Probation,
    /// What was used again, by rank.
    Main,
}

/// What becomes of content whose turn it is to go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// It stays, and stands there from now on.
    Stay(Standing),
    /// It goes. If it comes back soon, it was used this often before: see [`Order::admit`].
    Go {
        /// What to remember; at most 6.
        uses: u32,
    },
}

/// The order of one store.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Order {
    /// The rank of what went from the main queue last. Never falls. To be kept with the standings.
    pub age: f64,
}

impl Order {
    /// Where content stands that was just stored. `remembered`: how often it was used before it
    /// went, if it is one of those that went lately; [`Order::memory`] says how many those are.
    pub fn admit(self, remembered: Option<u32>) -> Standing {
        match remembered {
            Some(uses) => self.in_main(uses.saturating_add(1)),
            None => Standing { queue: Queue::Probation, uses: 1, rank: 0.0 },
        }
    }

    /// Where content stands that was used once more.
    pub fn touch(self, standing: Standing) -> Standing {
        let uses = (standing.uses.saturating_add(1)).min(MAX_USES);
        match standing.queue {
            Queue::Probation => Standing { uses, ..standing },
            Queue::Main => self.in_main(uses),
        }
    }

    /// Which queue's first is to be judged, given the bytes in both. `None`: there is nothing.
    pub fn turn(probation: u64, main: u64, budget: u64) -> Option<Queue> {
        match (probation, main) {
            (0, 0) => None,
            (_, 0) => Some(Queue::Probation),
            (probation, _) if probation > 0 && probation >= budget / 100 * PROBATION_PERCENT => {
                Some(Queue::Probation)
            }
            _ => Some(Queue::Main),
        }
    }

    /// Judges the first of the queue whose turn it is.
    pub fn judge(&mut self, first: Standing) -> Verdict {
        match first.queue {
            Queue::Probation if first.uses > 1 => Verdict::Stay(self.in_main(first.uses)),
            Queue::Probation => Verdict::Go { uses: first.uses },
            Queue::Main => {
                self.age = self.age.max(first.rank);
                Verdict::Go { uses: first.uses / 2 }
            }
        }
    }

    /// How many bytes of content that went are remembered by name, given the budget.
    pub fn memory(budget: u64) -> u64 {
        budget / 100 * MEMORY_PERCENT
    }

    fn in_main(self, uses: u32) -> Standing {
        let uses = uses.clamp(1, MAX_USES);
        Standing { queue: Queue::Main, uses, rank: self.age + f64::from(uses) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_used_once_goes_and_what_is_used_again_stays() {
        let mut order = Order::default();
        let once = order.admit(None);
        assert_eq!(order.judge(once), Verdict::Go { uses: 1 });
        let Verdict::Stay(kept) = order.judge(order.touch(once)) else { panic!("it was used") };
        assert_eq!((kept.queue, kept.uses), (Queue::Main, 2));
    }

    #[test]
    fn what_comes_back_was_on_probation_already() {
        assert_eq!(Order::default().admit(Some(1)).queue, Queue::Main);
    }

    #[test]
    fn what_was_popular_once_is_overtaken() {
        let mut order = Order::default();
        let mut old = order.admit(Some(1));
        for _ in 0..100 {
            old = order.touch(old);
        }
        assert_eq!(old.uses, MAX_USES);
        let mut n_gone = 0;
        while order.admit(Some(1)).rank <= old.rank {
            let next = order.admit(Some(1));
            order.judge(next);
            n_gone += 1;
        }
        assert!(n_gone < 20, "{n_gone}");
    }

    #[test]
    fn probation_gives_way_beyond_its_share() {
        assert_eq!(Order::turn(0, 0, 100), None);
        assert_eq!(Order::turn(5, 0, 100), Some(Queue::Probation));
        assert_eq!(Order::turn(6, 94, 100), Some(Queue::Main));
        assert_eq!(Order::turn(7, 93, 100), Some(Queue::Probation));
        assert_eq!(Order::turn(0, 90, 0), Some(Queue::Main));
    }

    proptest! {
        #[test]
        fn the_age_never_falls_and_ranks_are_above_it(
            steps in proptest::collection::vec((any::<bool>(), 0_u32..40), 1..200)
        ) {
            let mut order = Order::default();
            for (is_back, touches) in steps {
                let before = order.age;
                let mut standing = order.admit(is_back.then_some(touches));
                for _ in 0..touches {
                    standing = order.touch(standing);
                }
                prop_assert!(standing.queue == Queue::Probation || standing.rank > order.age);
                if let Verdict::Stay(standing) = order.judge(standing) {
                    prop_assert!(standing.rank > order.age);
                }
                prop_assert!(order.age >= before && order.age.is_finite());
            }
        }
    }
}
