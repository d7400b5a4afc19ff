//! Fetching images before anybody asks for them.
//!
//! An image is asked for as a client would, so freshness, fallbacks and what may be served count as
//! they do for clients; its blobs are fills as any other, and not one byte of them comes here.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::header::HeaderMap;
use http_body_util::BodyExt as _;
use larder_api_types::warm::{Image, State, Warming};
use larder_core::address::Asked;
use larder_core::image::DEFAULT_UPSTREAM;
use larder_core::manifest::{Descriptor, Manifest};
use larder_core::platform::Platforms;
use larder_core::{Digest, ImageName, Reference};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, info, info_span};

use crate::fill::Phase;
use crate::refusal::{Asking, Refusal};
use crate::respond::{Body, DOCKER_CONTENT_DIGEST};
use crate::service::{Ask, Registry};

/// How many are under way at a time.
const MAX_RUNNING: usize = 8;

/// How many are remembered, those under way among them.
const MAX_REMEMBERED: usize = 32;

/// How many images of one warming are fetched at a time, and how many blobs of each image: together
/// no more than a few nodes would ask for, so that these find places to be filled, too.
const IMAGES_AT_A_TIME: usize = 3;
const BLOBS_AT_A_TIME: usize = 4;

/// The most manifests that belong to one image. Indexes have some dozen, and referrers a few for each.
const MAX_MANIFESTS: usize = 1000;

/// All warmings since the start that are remembered.
pub(crate) struct Warmer {
    jobs: Mutex<VecDeque<Arc<Job>>>,
    next: AtomicU64,
    stopping: CancellationToken,
    tasks: TaskTracker,
}

struct Job {
    id: u64,
    now: Mutex<Warming>,
    cancel: CancellationToken,
}

/// What is to be fetched.
pub(crate) struct Order {
    /// At least one, each as it was named and as it is read.
    pub(crate) images: Vec<(String, ImageName)>,
    pub(crate) platforms: Platforms,
    pub(crate) referrers: bool,
}

/// Too many are under way.
#[derive(Debug)]
pub(crate) struct TooMany;

impl Warmer {
    pub(crate) fn new() -> Self {
        Self {
            jobs: Mutex::default(),
            next: AtomicU64::new(1),
            stopping: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// How far one is, if it is remembered.
    pub(crate) fn tell(&self, id: u64) -> Option<Warming> {
        self.find(id).map(|job| job.now.lock().clone())
    }

    /// Ends one early. Returns whether there is one.
    pub(crate) fn cancel(&self, id: u64) -> bool {
        self.find(id).map(|job| job.cancel.cancel()).is_some()
    }

    fn find(&self, id: u64) -> Option<Arc<Job>> {
        self.jobs.lock().iter().find(|job| job.id == id).cloned()
    }

    fn begin(&self, images: Vec<Image>) -> Result<Arc<Job>, TooMany> {
        let mut jobs = self.jobs.lock();
        if jobs.iter().filter(|job| !job.now.lock().is_over()).count() >= MAX_RUNNING {
            return Err(TooMany);
        }
        if jobs.len() >= MAX_REMEMBERED
            && let Some(oldest) = jobs.iter().position(|job| job.now.lock().is_over())
        {
            jobs.remove(oldest);
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let now = Warming { id, started_at: SystemTime::now(), ended_at: None, images };
        let cancel = self.stopping.child_token();
        let job = Arc::new(Job { id, now: Mutex::new(now), cancel });
        jobs.push_back(Arc::clone(&job));
        Ok(job)
    }

    /// Ends all.
    pub(crate) async fn close(&self) {
        self.stopping.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Registry {
    /// Begins to fetch images.
    pub(crate) fn start_warming(self: &Arc<Self>, order: Order) -> Result<Warming, TooMany> {
        let images = order.images.iter().map(|(image, _)| Image {
            image: image.clone(),
            state: State::Waiting,
            digest: None,
            blobs: 0,
            total_blobs: 0,
            bytes: 0,
            total_bytes: 0,
            error: None,
        });
        let job = self.warmer.begin(images.collect())?;
        let begun = job.now.lock().clone();
        let span = info_span!("warming", id = job.id);
        let registry = Arc::clone(self);
        self.warmer.tasks.spawn(async move { registry.warm(&order, &job).await }.instrument(span));
        Ok(begun)
    }

    async fn warm(self: &Arc<Self>, order: &Order, job: &Job) {
        let warm_one = async |n: usize| {
            let (_, name) = &order.images[n];
            let place = Place { job, n };
            place.update(|image| image.state = State::Running);
            let warmed = tokio::select! {
                warmed = self.warm_image(name, order, place) => warmed,
                () = job.cancel.cancelled() => Err("it was ended early".to_owned()),
            };
            place.update(|image| match warmed {
                Ok(()) => image.state = State::Done,
                Err(error) => {
                    info!("{} was not fetched: {error}", image.image);
                    (image.state, image.error) = (State::Failed, Some(error));
                }
            });
        };
        let images = stream::iter(0..order.images.len()).map(warm_one);
        images.buffer_unordered(IMAGES_AT_A_TIME).collect::<()>().await;
        job.now.lock().ended_at = Some(SystemTime::now());
    }

    /// Fetches one image. Says why it could not.
    async fn warm_image(
        self: &Arc<Self>,
        image: &ImageName,
        order: &Order,
        place: Place<'_>,
    ) -> Result<(), String> {
        let asked = Asked { name: &image.name, ns: None, default_upstream: Some(DEFAULT_UPSTREAM) };
        let found = self.upstreams.resolve(asked).map_err(|error| error.to_string())?;
        let upstream = found.upstream().map_err(|error| error.to_string())?;
        if !upstream.settings.allows(&found.name.repository) {
            return Err(say(Refusal::not_allowed(&found.name)));
        }
        let headers = HeaderMap::new();
        let ask = Ask {
            name: Arc::new(found.name),
            upstream,
            path_name: &image.name,
            query: None,
            headers: &headers,
            is_head: false,
            is_from_peer: false,
        };
        let (digest, manifest) = self.manifest_for_us(&ask, &image.reference).await?;
        place.update(|image| image.digest = Some(digest.clone()));
        let mut parts = Parts::default();
        parts.seen.insert(digest.clone());
        parts.add(&manifest, &order.platforms, true)?;
        let mut about = vec![digest];
        while let Some(digest) = parts.manifests.pop_front() {
            let reference = Reference::Digest(digest.clone());
            let (_, manifest) = self.manifest_for_us(&ask, &reference).await?;
            parts.add(&manifest, &order.platforms, false)?;
            about.push(digest);
        }
        if order.referrers {
            for subject in about {
                self.add_referrers(&ask, &subject, &mut parts).await?;
            }
        }
        place.update(|image| {
            image.total_blobs = parts.blobs.len() as u64;
            image.total_bytes = parts.blobs.values().sum();
        });
        let ask = &ask;
        let blobs = stream::iter(parts.blobs)
            .map(|(digest, size)| async move { self.warm_blob(ask, &digest, size, place).await });
        let mut blobs = std::pin::pin!(blobs.buffer_unordered(BLOBS_AT_A_TIME));
        while let Some(blob) = blobs.next().await {
            blob?;
        }
        Ok(())
    }

    /// A manifest, as a client would get it.
    async fn manifest_for_us(
        self: &Arc<Self>,
        ask: &Ask<'_>,
        reference: &Reference,
    ) -> Result<(Digest, Manifest), String> {
        let answer = self.manifest(ask, reference).await.map_err(say)?;
        let digest = answer.response.headers().get(&DOCKER_CONTENT_DIGEST);
        let digest = digest.and_then(|it| it.to_str().ok()?.parse().ok());
        let manifest = Manifest::parse(&whole(answer.response.into_body()).await?);
        let manifest = manifest.map_err(|error| format!("{reference}: {error}"))?;
        Ok((digest.ok_or_else(|| say(Refusal::internal()))?, manifest))
    }

    /// Adds what refers to a manifest, and what that is made of.
    async fn add_referrers(
        self: &Arc<Self>,
        ask: &Ask<'_>,
        subject: &Digest,
        parts: &mut Parts,
    ) -> Result<(), String> {
        let list = self.referrers(ask, subject).await.map_err(say)?;
        let list = Manifest::parse(&whole(list.response.into_body()).await?);
        for referrer in list.into_iter().flat_map(|list| list.manifests) {
            if parts.seen.len() >= MAX_MANIFESTS || !parts.seen.insert(referrer.digest.clone()) {
                continue;
            }
            let reference = Reference::Digest(referrer.digest);
            let (_, manifest) = self.manifest_for_us(ask, &reference).await?;
            parts.blobs.extend(manifest.blobs.into_iter().map(|blob| (blob.digest, blob.size)));
        }
        Ok(())
    }

    /// Has a blob stored.
    async fn warm_blob(
        self: &Arc<Self>,
        ask: &Ask<'_>,
        digest: &Digest,
        size: u64,
        place: Place<'_>,
    ) -> Result<(), String> {
        let asking = Asking::Blob(&ask.name, digest);
        if self.found(self.store.blob(digest).await).is_none() {
            let shared = self.shared_blob(ask, digest, true).await.map_err(say)?;
            if self.offline && shared.is_none() {
                return Err(say(Refusal::offline(asking)));
            }
            let wanted = self.wanted(ask, digest, shared.as_ref());
            let mut progress = self.fills.join(wanted).progress;
            let mut counted = 0;
            loop {
                let (phase, visible) = {
                    let now = progress.borrow_and_update();
                    (now.phase.clone(), now.visible)
                };
                // A fill that begins anew has to come this far again.
                let more = visible.min(size).saturating_sub(counted);
                counted += more;
                place.update(|image| image.bytes += more);
                match phase {
                    Phase::Opening | Phase::Streaming(_) => {}
                    Phase::Done(_) => break,
                    Phase::Failed(error) => {
                        return Err(say(Refusal::of_upstream(&error, asking)));
                    }
                    Phase::Unstored { .. } => {
                        return Err(format!("{digest} could not be stored; see larder's log"));
                    }
                    Phase::Stopped => return Err("larder is stopping".to_owned()),
                }
                if progress.changed().await.is_err() {
                    return Err("larder is stopping".to_owned());
                }
            }
            place.update(|image| image.bytes += size - counted.min(size));
        } else {
            place.update(|image| image.bytes += size);
        }
        place.update(|image| image.blobs += 1);
        Ok(())
    }
}

/// One image of a warming.
#[derive(Clone, Copy)]
struct Place<'j> {
    job: &'j Job,
    n: usize,
}

impl Place<'_> {
    fn update(&self, change: impl FnOnce(&mut Image)) {
        change(&mut self.job.now.lock().images[self.n]);
    }
}

/// What an image is made of, as far as it is known.
#[derive(Debug, Default)]
struct Parts {
    /// Manifests that have been read, or will be.
    seen: HashSet<Digest>,
    /// Manifests still to be read.
    manifests: VecDeque<Digest>,
    /// Each once, with its length in bytes.
    blobs: HashMap<Digest, u64>,
}

impl Parts {
    /// Adds what a manifest refers to. What is `named` itself must have something that is wanted.
    fn add(
        &mut self,
        manifest: &Manifest,
        platforms: &Platforms,
        is_named: bool,
    ) -> Result<(), String> {
        let blobs = manifest.blobs.iter().filter(|blob| !blob.is_foreign());
        self.blobs.extend(blobs.map(|blob| (blob.digest.clone(), blob.size)));
        let wanted: Vec<&Descriptor> =
            manifest.manifests.iter().filter(|entry| platforms.want(entry)).collect();
        if is_named && wanted.is_empty() && !manifest.manifests.is_empty() {
            let there = manifest.manifests.iter().filter_map(|entry| entry.platform.as_ref());
            let there: Vec<String> = there.map(ToString::to_string).collect();
            return Err(format!("it is not there for {platforms}, but for {}", there.join(", ")));
        }
        for entry in wanted {
            if self.seen.len() >= MAX_MANIFESTS {
                return Err(format!("it has more than {MAX_MANIFESTS} manifests"));
            }
            if self.seen.insert(entry.digest.clone()) {
                self.manifests.push_back(entry.digest.clone());
            }
        }
        Ok(())
    }
}

/// The bytes of an answer's body, which is no longer than manifests are.
async fn whole(body: Body) -> Result<Bytes, String> {
    let collected = body.collect().await.map_err(|error| error.to_string())?;
    Ok(collected.to_bytes())
}

fn say(refusal: Refusal) -> String {
    refusal.message().to_owned()
}
