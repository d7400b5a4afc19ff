//! Who may read what, where upstream says so for each caller: the one place that is asked before
//! anything of such an upstream is given to anybody.
//!
//! A caller's right to a repository is proved by upstream's own answer to what is asked for, made with
//! what the caller shows. From then on the request is answered as any other, and whatever has to be
//! asked of upstream for it is asked in the same caller's name. What upstream refuses meanwhile, be it
//! to this caller or to one for whom the same was asked, has the right proved anew before anything is
//! given.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::HeaderMap;
use larder_core::access::{Plan, Said, Situation, Verdict, plan, settle};
use larder_core::media::Accept;
use larder_core::name::Named;
use larder_upstream::{Caller, Error};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::flights::{Flights, Waiting};
use crate::refusal::{Asking, Refusal};
use crate::rights::{Asker, CallerId};
use crate::service::{Answer, Ask, Registry, What};
use crate::upstream::Upstream;

/// How often one request is answered anew when upstream refuses somebody in the middle: once for
/// whoever else began what it waited for.
const TRIES: usize = 2;

/// How long a caller waits to have their right proved: with what is asked of upstream after that, about
/// as long as others wait in all. A registry that takes longer for a HEAD is as good as away.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long it is remembered that nobody in particular may not read something: most logins begin by
/// asking, and to hear what upstream wants to see takes some requests each time.
const CHALLENGE_MEMORY: Duration = Duration::from_secs(5);

/// For how many repositories: some 2 MiB.
const MAX_CHALLENGES: u64 = 5_000;

/// What is being found out about callers' rights.
pub(crate) struct Callers {
    challenges: moka::sync::Cache<Arc<Named>, String>,
    proofs: Flights<Proof, Result<(), Error>>,
    tasks: TaskTracker,
}

/// Who wants to read what. What is asked for is a part of it, since upstream may have none of one
/// thing and let the caller read another.
type Proof = (CallerId, Arc<Named>, What);

impl Callers {
    pub(crate) fn new() -> Self {
        let tasks = TaskTracker::new();
        let challenges = moka::sync::Cache::builder()
            .time_to_live(CHALLENGE_MEMORY)
            .max_capacity(MAX_CHALLENGES)
            .build();
        Self { challenges, proofs: Flights::new(tasks.clone()), tasks }
    }

    /// Waits for what is being found out.
    pub(crate) async fn close(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Registry {
    /// Answers a caller whose right upstream decides about.
    pub(crate) async fn answer_to_caller(
        self: &Arc<Self>,
        ask: &Ask<'_>,
        asker: &Asker,
        what: &What,
    ) -> Result<Answer, Refusal> {
        for _ in 0..TRIES {
            self.admit(ask, asker, what).await?;
            let answer = self.answer(ask, what).await;
            let was_refused = answer.as_ref().is_err_and(Refusal::is_denial);
            if !asker.take_refusal() && !was_refused {
                return answer;
            }
        }
        Err(Refusal::unproved(&ask.name, None))
    }

    /// Makes sure that the caller may read from the repository.
    async fn admit(
        self: &Arc<Self>,
        ask: &Ask<'_>,
        asker: &Asker,
        what: &What,
    ) -> Result<(), Refusal> {
        let (repository, bounds) = (&ask.name.repository, asker.bounds());
        let standing = &ask.upstream.standing;
        let situation = Situation {
            proved: asker.proved(repository, Instant::now()),
            offline: self.offline,
            upstream_suspect: standing.is_suspect(),
        };
        let patience = match plan(situation, bounds) {
            Plan::Serve => return Ok(()),
            Plan::Refuse => return Err(Refusal::unprovable(&ask.name)),
            Plan::ServeAndProve => {
                if !standing.is_left_alone() {
                    drop(self.prove(ask, asker, what));
                }
                return Ok(());
            }
            Plan::Prove => PATIENCE,
            Plan::ProveInTime => ask.upstream.settings.deadline(),
        };
        let refuse = |error: &Error| {
            let refusal = Refusal::of_upstream(error, asking(ask, what));
            Err(if asker.caller.is_nobody() { refusal.for_nobody() } else { refusal })
        };
        if asker.caller.is_nobody()
            && let Some(challenge) = self.callers.challenges.get(&ask.name)
        {
            return refuse(&Error::CallerRefused { challenge: Some(challenge) });
        }
        let proved = match timeout(patience, self.prove(ask, asker, what).result()).await {
            Ok(Ok(proved)) => proved,
            Ok(Err(_)) => return Err(Refusal::internal()),
            Err(_) => {
                standing.failed();
                Err(Error::TimedOut)
            }
        };
        let Err(error) = proved else { return Ok(()) };
        match settle(said(&error), asker.proved(repository, Instant::now()), bounds) {
            Verdict::Serve => Ok(()),
            Verdict::NotFound => Err(Refusal::unknown(asking(ask, what))),
            Verdict::Refuse => refuse(&error),
            Verdict::Unavailable => Err(Refusal::unproved(&ask.name, Some(&error))),
        }
    }

    /// Asks upstream for what the caller asks for, and remembers what that proves.
    fn prove(
        self: &Arc<Self>,
        ask: &Ask<'_>,
        asker: &Asker,
        what: &What,
    ) -> Waiting<Result<(), Error>> {
        let proof = (asker.id().clone(), Arc::clone(&ask.name), what.clone());
        self.callers.proofs.join(proof, || {
            let (registry, upstream) = (Arc::clone(self), Arc::clone(&ask.upstream));
            let (name, what) = (Arc::clone(&ask.name), what.clone());
            async move {
                let proved = ask_for(&upstream, &name, &what).await;
                registry.note(&upstream, &name, proved.as_ref().err());
                let Some(asker) = &upstream.asker else { return proved };
                match &proved {
                    Ok(()) => asker.prove(&name.repository, Instant::now()),
                    Err(Error::CallerRefused { challenge: Some(challenge) })
                        if asker.caller.is_nobody() =>
                    {
                        registry.callers.challenges.insert(name, challenge.clone());
                    }
                    Err(_) => {}
                }
                proved
            }
        })
    }

    /// Answers whether this is a registry, for the upstream that a request means which names none:
    /// some clients look here for how to log in, and nowhere else.
    pub(crate) async fn answer_base(
        &self,
        upstream: &Upstream,
        headers: &HeaderMap,
    ) -> Result<(), Refusal> {
        if upstream.asker.is_none() || self.offline {
            return Ok(());
        }
        let caller = Caller::of(headers)?;
        match timeout(upstream.settings.deadline(), upstream.client.ping_for(&caller)).await {
            Ok(Err(Error::CallerRefused { challenge: Some(challenge) })) => {
                let refusal = Refusal::login(challenge);
                Err(if caller.is_nobody() { refusal.for_nobody() } else { refusal })
            }
            // What is asked for next will hear what is wrong.
            _ => Ok(()),
        }
    }
}

/// Asks upstream for as little of it as proves the right to the rest.
async fn ask_for(upstream: &Upstream, name: &Named, what: &What) -> Result<(), Error> {
    let (client, repository) = (&upstream.client, &name.repository);
    match what {
        What::Manifest(reference) => {
            let accept = Accept::all_manifests();
            match client.head_manifest(repository, reference, &accept).await {
                // Some registries don't answer HEAD as they should.
                Err(Error::Protocol(_)) => {
                    client.manifest(repository, reference, &accept).await.map(drop)
                }
                head => head.map(drop),
            }
        }
        What::Blob(digest) => client.head_blob(repository, digest).await.map(drop),
        What::Tags => client.tags(repository, Some(1), None).await.map(drop),
        // An image need not be there to be referred to, and not every registry has the API.
        What::Referrers(subject) => match client.referrers(repository, subject).await? {
            Some(_) => Ok(()),
            None => client.tags(repository, Some(1), None).await.map(drop),
        },
    }
}

fn said(error: &Error) -> Said {
    match error {
        Error::CallerRefused { .. } | Error::Denied => Said::No,
        Error::NotFound => Said::Absent,
        _ => Said::Nothing,
    }
}

fn asking<'a>(ask: &'a Ask<'_>, what: &'a What) -> Asking<'a> {
    match what {
        What::Manifest(reference) => Asking::Manifest(&ask.name, reference),
        What::Blob(digest) => Asking::Blob(&ask.name, digest),
        What::Tags => Asking::Tags(&ask.name),
        What::Referrers(subject) => Asking::Referrers(&ask.name, subject),
    }
}
