//! One pass over what is stored: what goes, and why.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use larder_core::Digest;
use larder_core::eviction::{Order, Queue, Standing, Verdict};
use larder_core::name::Named;
use larder_core::retention::{Retention, Ttl};

use super::{Limits, Tier};
use crate::index::turns::{Beginning, Candidate, FIRST, Place};

/// How many candidates are asked for at once, and the most that go in one transaction. Whoever
/// stores a blob meanwhile waits for one of them, some 10 ms.
const BATCH: usize = 64;

/// How many kept beginnings are looked at.
const MAX_BEGINNINGS: u32 = 10_000;

/// How long after its manifest the last part of an image is asked for, in one pull.
const PULL: Duration = Duration::from_secs(60 * 60);

/// How many of those that went are named; of the others only the sum is known.
const MAX_NAMED: usize = 10_000;

/// What went, or would.
#[derive(Clone, Debug, Default)]
pub struct Swept {
    /// The first 10,000 of them.
    pub named: Vec<Gone>,
    count: u64,
    bytes: u64,
}

/// One that went, or would.
#[derive(Clone, Debug)]
pub struct Gone {
    /// The blob, or the blob that a beginning was of.
    pub digest: Digest,
    /// The bytes that it took on the disk.
    pub room: u64,
    /// A repository that it was in.
    pub repository: Option<Named>,
    /// Why.
    pub reason: Reason,
}

/// Why something goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It has gone unused for longer than it may.
    Unused {
        /// How long it may.
        ttl: Duration,
    },
    /// No tag names it any more, and nobody has used it since.
    Superseded,
    /// Its upstream has more than its quota.
    Quota,
    /// It is first in the order, and more is stored than may be.
    Budget,
    /// It belonged to an image that goes, and to no other.
    Part {
        /// The image's manifest.
        of: Digest,
    },
    /// It is the beginning of a blob, which nobody has gone on with.
    Beginning,
}

impl Swept {
    /// How many.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// How many bytes of the disk.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// How a pass is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// What goes is only named.
    Dry,
    /// It is removed.
    Real,
    /// It is removed, its bytes first: the disk is full.
    Urgent,
}

pub(crate) struct Sweep<'t, T> {
    tier: &'t T,
    retention: Arc<Retention>,
    pinned: HashSet<i64>,
    /// Those that nobody else could give, which are the last to go for the budget.
    unshared: HashSet<i64>,
    now: SystemTime,
    kind: Kind,
    order: Order,
    /// Those that go, and have not been removed yet.
    waiting: Vec<(Candidate, Option<u32>)>,
    /// Those that stay, elsewhere in the order, which is not written down yet.
    moved: Vec<(i64, Standing)>,
    /// All that go in this sweep.
    gone: HashSet<i64>,
    swept: Swept,
}

impl<'t, T: Tier> Sweep<'t, T> {
    pub(crate) async fn begin(tier: &'t T, kind: Kind) -> Result<Self, T::Error> {
        let pins = tier.pins().await?;
        let pinned = tier.ask(tier.index().pinned(&pins)).await?;
        Ok(Self {
            tier,
            retention: tier.retention(),
            pinned,
            unshared: HashSet::new(),
            now: SystemTime::now(),
            kind,
            order: tier.order(),
            waiting: Vec::new(),
            moved: Vec::new(),
            gone: HashSet::new(),
            swept: Swept::default(),
        })
    }

    fn is_dry(&self) -> bool {
        self.kind == Kind::Dry
    }

    pub(crate) async fn end(mut self) -> Result<Swept, T::Error> {
        self.flush().await?;
        Ok(self.swept)
    }

    // === what has gone unused ===

    pub(crate) async fn expire(&mut self) -> Result<(), T::Error> {
        if let Ttl::After(shortest) = self.retention.shortest() {
            self.expire_unused(before(self.now, shortest)).await?;
        }
        if let Ttl::After(ttl) = self.retention.superseded {
            self.expire_superseded(before(self.now, ttl)).await?;
        }
        self.flush().await
    }

    async fn expire_unused(&mut self, time: SystemTime) -> Result<(), T::Error> {
        let mut after = FIRST;
        loop {
            let batch = self.tier.index().unused_since(time, after, BATCH as u32);
            let batch = self.tier.ask(batch).await?;
            let Some(last) = batch.last() else { return Ok(()) };
            after = last.place();
            for candidate in batch {
                let unused = self.now.duration_since(candidate.used_at).unwrap_or_default();
                let names = self.tier.index().names_of(candidate.content);
                let names = self.tier.ask(names).await?;
                let ttl = self.retention.ttl(&names);
                if let Ttl::After(longest) = ttl
                    && ttl.is_over(unused)
                {
                    self.let_go(candidate, None, Reason::Unused { ttl: longest }).await?;
                }
            }
            self.flush().await?;
        }
    }

    async fn expire_superseded(&mut self, time: SystemTime) -> Result<(), T::Error> {
        let mut after = 0;
        loop {
            let batch = self.tier.index().superseded(time, after, BATCH as u32);
            let batch = self.tier.ask(batch).await?;
            let Some(last) = batch.last() else { return Ok(()) };
            after = last.content;
            for candidate in batch {
                self.let_go(candidate, None, Reason::Superseded).await?;
            }
            self.flush().await?;
        }
    }

    // === quotas ===

    pub(crate) async fn keep_quotas(&mut self) -> Result<(), T::Error> {
        if self.retention.upstreams.iter().all(|upstream| upstream.quota.is_none()) {
            return Ok(());
        }
        let rooms = self.tier.ask(self.tier.index().room_by_host()).await?;
        let retention = Arc::clone(&self.retention);
        for upstream in &retention.upstreams {
            let Some(quota) = upstream.quota else { continue };
            // The first entry that matches counts, also where another one would.
            let is_of = |host: &str| {
                let host = host.parse().ok();
                let of = host.as_ref().and_then(|host| retention.of(host));
                of.is_some_and(|of| std::ptr::eq(of, upstream))
            };
            let hosts: Vec<_> = rooms.iter().filter(|(host, _)| is_of(host)).collect();
            let used: u64 = hosts.iter().map(|(_, room)| room).sum();
            if used <= quota {
                continue;
            }
            let low = self.tier.low_watermark(quota);
            let mut excess = used - low;
            for (host, _) in hosts {
                excess = self.keep_quota(host, excess).await?;
            }
        }
        self.flush().await
    }

    /// Lets go of what was fetched from one host, up to `excess` bytes; returns what is left of it.
    async fn keep_quota(&mut self, host: &str, mut excess: u64) -> Result<u64, T::Error> {
        let mut n_spared = 0;
        while excess > 0 {
            let batch = self.tier.index().turns_of_host(host, BATCH as u32, n_spared);
            let batch = self.tier.ask(batch).await?;
            if batch.is_empty() {
                break;
            }
            for candidate in batch {
                if excess == 0 {
                    break;
                }
                let room = candidate.room;
                let uses = Some(candidate.standing.uses / 2);
                match self.let_go(candidate, uses, Reason::Quota).await? {
                    true => excess = excess.saturating_sub(room),
                    false => n_spared += 1,
                }
                // Nothing leaves the index in a dry run, so those that would go are passed over.
                n_spared += u32::from(self.is_dry());
            }
            self.flush().await?;
        }
        Ok(excess)
    }

    // === the budget ===

    pub(crate) async fn keep_budget(&mut self, limits: Limits) -> Result<(), T::Error> {
        if self.used() > limits.high {
            self.unshared = self.tier.unshared().await?;
        }
        if !self.unshared.is_empty() {
            self.make_room(limits).await?;
            // More than is allowed is not to be kept for an upload that may never be.
            self.unshared.clear();
        }
        self.make_room(limits).await
    }

    async fn make_room(&mut self, limits: Limits) -> Result<(), T::Error> {
        let mut used = self.used();
        if used <= limits.high {
            return Ok(());
        }
        let (mut probation, mut main) = self.tier.ask(self.tier.index().room_by_queue()).await?;
        let mut lines = [Line::new(Queue::Probation), Line::new(Queue::Main)];
        let beginnings = self.tier.index().beginnings(MAX_BEGINNINGS);
        let mut beginnings: VecDeque<_> = self.tier.ask(beginnings).await?.into();
        while used > limits.low {
            let Some(queue) = Order::turn(probation, main, limits.low) else {
                // Nothing is left but beginnings.
                let Some(beginning) = beginnings.pop_front() else { break };
                self.drop_beginning(&beginning).await?;
                used = self.used();
                continue;
            };
            let line = &mut lines[usize::from(queue == Queue::Main)];
            let room = if queue == Queue::Main { &mut main } else { &mut probation };
            if line.batch.is_empty() {
                // Those that moved are to be found where they are now.
                self.flush().await?;
            }
            let Some(first) = line.peek(self.tier).await? else {
                *room = 0;
                continue;
            };
            if queue == Queue::Probation
                && let Some(beginning) = beginnings.front()
                && millis(beginning.parked_at) <= first.standing.rank
            {
                let beginning = beginning.clone();
                beginnings.pop_front();
                self.drop_beginning(&beginning).await?;
                used = self.used();
                continue;
            }
            let Some(first) = line.pop() else { continue };
            *room = room.saturating_sub(first.room);
            if self.is_spared(&first) {
                continue;
            }
            let verdict = self.order.judge(first.standing);
            match verdict {
                Verdict::Stay(standing) => {
                    main += first.room;
                    self.moved.push((first.content, standing));
                    let mut first = first;
                    first.standing = standing;
                    lines[1].join(first, self.is_dry());
                }
                Verdict::Go { uses } => {
                    self.let_go(first, Some(uses), Reason::Budget).await?;
                }
            }
            if self.waiting.len() + self.moved.len() >= BATCH {
                self.flush().await?;
            }
            used = self.used();
        }
        self.flush().await
    }

    /// What would be used if all were removed that goes.
    fn used(&self) -> u64 {
        let waiting: u64 = match self.is_dry() {
            true => self.swept.bytes,
            false => self.waiting.iter().map(|(candidate, _)| candidate.room).sum(),
        };
        self.tier.used().saturating_sub(waiting)
    }

    // === letting go ===

    /// Whether it stays in this pass, whatever the order says.
    fn is_spared(&self, candidate: &Candidate) -> bool {
        self.gone.contains(&candidate.content)
            || self.pinned.contains(&candidate.content)
            || self.unshared.contains(&candidate.content)
            || self.tier.is_held(candidate)
    }

    /// Lets one go, unless it is spared, and with a manifest what it alone is made of, unless that
    /// was used without it. Returns whether it goes.
    async fn let_go(
        &mut self,
        candidate: Candidate,
        uses: Option<u32>,
        reason: Reason,
    ) -> Result<bool, T::Error> {
        if self.is_spared(&candidate) {
            return Ok(false);
        }
        let mut manifests = Vec::new();
        if candidate.is_manifest {
            manifests.push((candidate.content, candidate.digest.clone()));
        }
        let (pulled, standing) = (candidate.used_at + PULL, candidate.standing);
        self.note(candidate, uses, reason).await?;
        while let Some((content, of)) = manifests.pop() {
            for part in self.tier.ask(self.tier.index().own_parts(content)).await? {
                let is_wanted = part.used_at > pulled || part.standing.uses > standing.uses;
                if is_wanted || self.is_spared(&part) {
                    continue;
                }
                if part.is_manifest {
                    manifests.push((part.content, part.digest.clone()));
                }
                self.note(part, uses, Reason::Part { of: of.clone() }).await?;
            }
        }
        Ok(true)
    }

    async fn note(
        &mut self,
        candidate: Candidate,
        uses: Option<u32>,
        reason: Reason,
    ) -> Result<(), T::Error> {
        self.gone.insert(candidate.content);
        self.swept.count += 1;
        self.swept.bytes += candidate.room;
        // Names are for people who ask first; else this would be one more query for each.
        if self.is_dry() && self.swept.named.len() < MAX_NAMED {
            let repositories = self.tier.index().names_of(candidate.content);
            let repositories = self.tier.ask(repositories).await?;
            let repository = repositories.into_iter().next();
            let (digest, room) = (candidate.digest.clone(), candidate.room);
            self.swept.named.push(Gone { digest, room, repository, reason });
        }
        if !self.is_dry() {
            self.waiting.push((candidate, uses));
        }
        Ok(())
    }

    async fn drop_beginning(&mut self, beginning: &Beginning) -> Result<(), T::Error> {
        let room = match self.is_dry() {
            true => beginning.room,
            false => self.tier.drop_beginning(&beginning.digest).await?,
        };
        self.swept.count += 1;
        self.swept.bytes += room;
        if self.is_dry() && self.swept.named.len() < MAX_NAMED {
            let (digest, reason) = (beginning.digest.clone(), Reason::Beginning);
            self.swept.named.push(Gone { digest, room, repository: None, reason });
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), T::Error> {
        let moved = std::mem::take(&mut self.moved);
        let waiting = std::mem::take(&mut self.waiting);
        if self.is_dry() {
            return Ok(());
        }
        let has_changed = !moved.is_empty() || !waiting.is_empty();
        // These first: on a full disk they make the room that the rest needs.
        for batch in waiting.chunks(BATCH) {
            self.tier.remove(batch, self.kind == Kind::Urgent).await?;
        }
        if has_changed {
            self.tier.set_order(self.order);
            self.tier.ask(self.tier.index().set_standings(&moved, self.order)).await?;
        }
        Ok(())
    }
}

/// The blobs of one queue, the first to go first.
struct Line {
    queue: Queue,
    after: Place,
    batch: VecDeque<Candidate>,
    /// Those that joined in a dry run, which the index does not know of.
    joined: VecDeque<Candidate>,
    /// Whether some have joined that may stand before `after`.
    is_stale: bool,
}

impl Line {
    fn new(queue: Queue) -> Self {
        let (batch, joined) = (VecDeque::new(), VecDeque::new());
        Self { queue, after: FIRST, batch, joined, is_stale: false }
    }

    fn join(&mut self, candidate: Candidate, is_dry: bool) {
        match is_dry {
            true => self.joined.push_back(candidate),
            false => self.is_stale = true,
        }
    }

    async fn peek<T: Tier>(&mut self, tier: &T) -> Result<Option<&Candidate>, T::Error> {
        while self.batch.is_empty() {
            let batch = tier.index().turns(self.queue, self.after, BATCH as u32);
            self.batch = tier.ask(batch).await?.into();
            match self.batch.back() {
                Some(last) => self.after = last.place(),
                None if self.is_stale => {
                    (self.after, self.is_stale) = (FIRST, false);
                }
                None if self.joined.is_empty() => return Ok(None),
                None => self.batch = std::mem::take(&mut self.joined),
            }
        }
        Ok(self.batch.front())
    }

    fn pop(&mut self) -> Option<Candidate> {
        self.batch.pop_front()
    }
}

fn before(now: SystemTime, ttl: Duration) -> SystemTime {
    now.checked_sub(ttl).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn millis(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as f64
}
