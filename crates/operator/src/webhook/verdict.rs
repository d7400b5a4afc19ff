//! Whether a cache may be as somebody wants it: what its schema cannot say.
//!
//! That is whatever `larder serve` would refuse of the configuration that comes of it, and what is
//! wrong with secrets that it names. The reconciler says the same in the cache's status, later.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use larder_k8s::RegistryCache;

use crate::credentials::{doubt, login};
use crate::names::Names;
use crate::render::check::{self, ConfigCheck};
use crate::render::{Problem, Scope};
use crate::storage::Storage;

/// What comes of a review. If there is a refusal, the change is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Where, what, and what to write instead; without secrets.
    pub(crate) refusals: Vec<String>,
    /// What a person should know. The change is made.
    pub(crate) warnings: Vec<String>,
}

/// The secrets of a namespace that a cache names, as far as they exist.
pub(crate) type Secrets = BTreeMap<String, Secret>;

/// Whether `cache` may take the place of `old`, or be made if there is none. Without `secrets`, as
/// they could not be read, nothing is said of them.
pub(crate) fn validate(
    cache: &RegistryCache,
    old: Option<&RegistryCache>,
    secrets: Option<&Secrets>,
    check: ConfigCheck,
) -> Verdict {
    // What is there may be refused by now. That must keep nobody from labelling it, nor from removing
    // a finalizer; and what is on its way out is to go.
    if cache.metadata.deletion_timestamp.is_some() || old.is_some_and(|it| it.spec == cache.spec) {
        return Verdict::default();
    }
    let before = old.map(|old| problems(old, secrets, check)).unwrap_or_default();
    let before: BTreeSet<&str> = before.iter().map(|it| it.message.as_str()).collect();
    let mut verdict = Verdict::default();
    for problem in problems(cache, secrets, check) {
        // Whoever applies a folder of files (Flux, Argo CD, kubectl) does so in any order, the secret
        // after the cache, too; and may bring secrets by another way, much later. The cache asks
        // without credentials until then, and takes them up at once.
        let may_come = problem.reason == "SecretMissing";
        // Nobody has to put right first what was there before, when the change is about something else.
        let was_there = before.contains(problem.message.as_str());
        let list =
            if may_come || was_there { &mut verdict.warnings } else { &mut verdict.refusals };
        list.push(said(&problem));
    }
    if secrets.is_none() {
        let unread = "the secrets that it names could not be read, so nobody has looked at them";
        verdict.warnings.push(unread.to_owned());
    }
    verdict
}

/// `spec.upstreams[0].secretRef: ghcr.io: secret …`
fn said(problem: &Problem) -> String {
    let Problem { field, message, .. } = problem;
    if field.is_empty() {
        return format!("spec: {message}");
    }
    let message = message.strip_prefix(&format!("{field}: ")).unwrap_or(message);
    format!("spec.{field}: {message}")
}

/// What of `cache` cannot be done, or not yet.
fn problems(cache: &RegistryCache, secrets: Option<&Secrets>, check: ConfigCheck) -> Vec<Problem> {
    let names = Names::of(cache.metadata.name.as_deref().unwrap_or_default());
    let scope = Scope { cache, names: &names };
    let mut problems = Vec::new();
    let mut logins = BTreeMap::new();
    for (index, upstream) in cache.spec.upstreams.iter().enumerate() {
        let Some(named) = &upstream.secret_ref else { continue };
        let field = format!("upstreams[{index}].secretRef");
        let read = secrets.map(|secrets| {
            let secret = secrets.get(&named.name);
            problems.extend(secret.and_then(|it| doubt(upstream, it)).map(|it| it.at(&*field)));
            login(upstream, secret)
        });
        // The rest of the upstream is looked at as if there were a login.
        let login = match read {
            Some(Ok(login)) => Ok(login),
            Some(Err(problem)) => {
                problems.push(problem.at(field));
                login(upstream, Some(&any_secret()))
            }
            None => login(upstream, Some(&any_secret())),
        };
        logins.extend(login.ok().map(|login| (upstream.upstream.clone(), login)));
    }
    let storage = storage(cache, secrets, &mut problems);
    problems.extend(check::problems(scope, &logins, storage.as_ref(), check));
    problems
}

fn storage(
    cache: &RegistryCache,
    secrets: Option<&Secrets>,
    problems: &mut Vec<Problem>,
) -> Option<Storage> {
    let storage = cache.spec.storage.as_ref()?;
    let (s3, database) = (storage.s3.as_ref()?, storage.postgresql.as_ref()?);
    let any = any_secret();
    let read =
        |keys, database_secret| Storage::read(s3, keys, &database.secret_ref.name, database_secret);
    let (mut keys, mut url) = (Some(&any), Some(&any));
    if let Some(secrets) = secrets {
        // Each beside another one that is good: what is wrong with both is said at once.
        let found = s3.secret_ref.as_ref().and_then(|it| secrets.get(&it.name));
        match read(found, Some(&any)) {
            Ok(_) => keys = found,
            Err(problem) => problems.push(problem),
        }
        let found = secrets.get(&database.secret_ref.name);
        match read(Some(&any), found) {
            Ok(_) => url = found,
            Err(problem) => problems.push(problem),
        }
    }
    read(keys, url).ok()
}

/// A secret in which everybody finds what they need, beside that of a person, which is not there or is
/// wrong.
fn any_secret() -> Secret {
    let keys = [
        ("username", "nobody"),
        ("password", "nothing"),
        ("AWS_ACCESS_KEY_ID", "nobody"),
        ("AWS_SECRET_ACCESS_KEY", "nothing"),
        ("url", "postgres://nobody:nothing@nowhere.invalid/nothing"),
    ];
    let data = keys.map(|(key, text)| (key.to_owned(), ByteString(text.as_bytes().to_vec())));
    Secret { data: Some(data.into()), ..Secret::default() }
}

#[cfg(test)]
mod tests;
