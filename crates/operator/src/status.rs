//! What a cache says about itself: from what was seen to conditions, endpoints and usage.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use larder_k8s::cache::{Endpoint, RegistryCacheStatus};

use crate::render::Problem;
use crate::render::services::{Place, url};
use crate::replica::Replica;

/// The longest message of a condition: people read it, and the API server takes 32 KiB.
const MAX_MESSAGE: usize = 2000;

/// By how much usage has to change to be worth an update that all agents are sent.
const USAGE_STEP: f64 = 0.01;

/// What was seen of a cache.
#[derive(Debug)]
pub(crate) struct Seen<'a> {
    /// Of the resource that this is about.
    pub(crate) generation: Option<i64>,
    /// How it is reached.
    pub(crate) scheme: &'a str,
    /// How many replicas there are to be.
    pub(crate) wanted: u32,
    /// Those that there are.
    pub(crate) replicas: &'a [Replica],
    /// Their services.
    pub(crate) places: &'a BTreeMap<u32, Place>,
    /// What they call each other.
    pub(crate) peers: &'a BTreeMap<u32, String>,
    /// The zones of nodes that say theirs.
    pub(crate) zones: &'a BTreeMap<String, String>,
    /// The revision that replicas are to be of; `None` if there are none yet.
    pub(crate) revision: Option<&'a str>,
    /// Whom to trust, PEM.
    pub(crate) bundle: Option<String>,
    /// What is on its way besides replicas, for people.
    pub(crate) progress: Vec<String>,
    /// What a person has to put right.
    pub(crate) problems: Vec<Problem>,
    /// Bytes stored, if all replicas said so.
    pub(crate) used: Option<u64>,
}

/// The status of a cache that is to stay. `before` is the status until now.
pub(crate) fn of(
    seen: Seen<'_>,
    before: &RegistryCacheStatus,
    now: Timestamp,
) -> RegistryCacheStatus {
    let staying: Vec<&Replica> = seen.replicas.iter().filter(|it| !it.is_leaving).collect();
    let n_ready = staying.iter().filter(|it| it.is_ready).count();
    let endpoints = staying.iter().filter_map(|replica| endpoint(replica, &seen)).collect();
    let mut problems = seen.problems.clone();
    problems.extend(staying.iter().filter_map(|it| it.trouble.clone()));
    problems.sort();
    problems.dedup();
    let progress = progress(&seen, &staying);

    let degraded = match &problems[..] {
        [] => ("False", "AsExpected", "everything is as it is to be".to_owned()),
        [first, ..] => {
            ("True", first.reason, joined(problems.iter().map(|it| it.message.as_str())))
        }
    };
    let progressing = match &progress[..] {
        [] => ("False", "Settled", "nothing is being changed".to_owned()),
        some => ("True", "RollingOut", joined(some.iter().map(String::as_str))),
    };
    let ready = match n_ready {
        0 if problems.is_empty() => {
            ("False", "Starting", format!("none of {} replicas answers yet", seen.wanted))
        }
        0 => ("False", degraded.1, degraded.2.clone()),
        n => ("True", "Serving", format!("{n} of {} replicas answer", seen.wanted)),
    };
    let conditions = [("Ready", ready), ("Progressing", progressing), ("Degraded", degraded)];
    RegistryCacheStatus {
        observed_generation: seen.generation,
        conditions: conditions
            .into_iter()
            .map(|(kind, it)| condition(kind, it, seen.generation, before, now))
            .collect(),
        endpoints,
        ready_replicas: i32::try_from(n_ready).unwrap_or(i32::MAX),
        ca_bundle: seen.bundle,
        mirrored: true,
        used_bytes: usage(seen.used, before.used_bytes),
    }
}

/// The status of a cache that is being removed: nodes ask it no more. `what` is what is waited for.
pub(crate) fn leaving(
    what: (&'static str, String),
    generation: Option<i64>,
    before: &RegistryCacheStatus,
    now: Timestamp,
) -> RegistryCacheStatus {
    let mut status = before.clone();
    let others = status.conditions.drain(..).filter(|it| it.type_ != "Progressing").collect();
    status.conditions = others;
    let progressing = condition("Progressing", ("True", what.0, what.1), generation, before, now);
    status.conditions.push(progressing);
    status.mirrored = false;
    status.observed_generation = generation;
    status
}

/// Since when a condition is as it is, for this reason.
pub(crate) fn since(status: &RegistryCacheStatus, kind: &str, reason: &str) -> Option<Timestamp> {
    let mut conditions = status.conditions.iter();
    let found = conditions.find(|it| it.type_ == kind && it.reason == reason)?;
    Some(found.last_transition_time.0)
}

fn endpoint(replica: &Replica, seen: &Seen<'_>) -> Option<Endpoint> {
    let place = seen.places.get(&replica.ordinal)?;
    let address = replica.node_address?.to_string();
    Some(Endpoint {
        url: url(seen.scheme, &address, place.node_port),
        zone: replica.node.as_ref().and_then(|node| seen.zones.get(node)).cloned(),
        node: replica.node.clone(),
        peer: seen.peers.get(&replica.ordinal).cloned(),
    })
}

/// What is on its way, for people.
fn progress(seen: &Seen<'_>, staying: &[&Replica]) -> Vec<String> {
    let mut progress = Vec::new();
    let wanted = usize::try_from(seen.wanted).unwrap_or(usize::MAX);
    let n_there = seen.replicas.len();
    if n_there != wanted {
        progress.push(format!("{n_there} of {wanted} replicas are there"));
    }
    if let Some(revision) = seen.revision {
        let n_new = staying.iter().filter(|it| it.revision == revision).count();
        if n_new < staying.len() {
            progress.push(format!("{n_new} of {wanted} replicas are as they are to be"));
        }
    }
    let starting = staying.iter().filter(|it| !it.is_ready && it.trouble.is_none());
    progress.extend(starting.map(|it| format!("{} is starting", it.name)));
    let leaving = seen.replicas.iter().filter(|it| it.is_leaving);
    progress.extend(leaving.map(|it| format!("{} is ending", it.name)));
    progress.extend(seen.progress.iter().cloned());
    progress
}

/// Both a new reason and a new state count as a transition: since when it waits for what it says is
/// what people want to know.
fn condition(
    kind: &str,
    (status, reason, message): (&str, &str, String),
    generation: Option<i64>,
    before: &RegistryCacheStatus,
    now: Timestamp,
) -> Condition {
    let last = before.conditions.iter().find(|it| it.type_ == kind);
    let same = last.filter(|it| it.status == status && it.reason == reason);
    Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.chars().take(MAX_MESSAGE).collect(),
        observed_generation: generation,
        last_transition_time: same.map_or_else(|| Time(now), |it| it.last_transition_time.clone()),
    }
}

/// The last figure, until it is off by a hundredth.
fn usage(now: Option<u64>, before: Option<i64>) -> Option<i64> {
    let Some(now) = now.and_then(|it| i64::try_from(it).ok()) else { return before };
    match before {
        Some(before) if ((now - before).abs() as f64) < now as f64 * USAGE_STEP => Some(before),
        _ => Some(now),
    }
}

fn joined<'t>(texts: impl Iterator<Item = &'t str>) -> String {
    texts.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_that_answers_makes_a_cache_ready_and_one_in_trouble_makes_it_degraded() {
        let replicas = [replica(0, true), troubled(1)];
        let status = status(&replicas, &RegistryCacheStatus::default(), 1);
        assert_eq!(
            summary(&status),
            "Ready=True/Serving Progressing=False/Settled Degraded=True/Crashing"
        );
        assert_eq!((status.ready_replicas, status.mirrored), (1, true));
    }

    #[test]
    fn a_cache_without_an_answer_says_why() {
        let status = status(&[troubled(0)], &RegistryCacheStatus::default(), 1);
        assert!(summary(&status).starts_with("Ready=False/Crashing"), "{}", summary(&status));
        assert_eq!(status.conditions[0].message, "x-0 does not stay up");
    }

    #[test]
    fn endpoints_stay_while_a_replica_is_unready_and_go_with_it() {
        let mut leaving = replica(1, true);
        leaving.is_leaving = true;
        let status = status(&[replica(0, false), leaving], &RegistryCacheStatus::default(), 1);
        let urls: Vec<&str> = status.endpoints.iter().map(|it| it.url.as_str()).collect();
        assert_eq!(urls, ["https://10.0.0.10:30000"]);
        assert_eq!(status.endpoints[0].zone.as_deref(), Some("a"));
        assert_eq!(status.endpoints[0].peer.as_deref(), Some("https://10.96.0.10:5000"));
        let progressing = &status.conditions[1];
        assert_eq!(progressing.message, "x-0 is starting; x-1 is ending");
    }

    #[test]
    fn what_has_not_changed_keeps_its_time() {
        let first = status(&[replica(0, true)], &RegistryCacheStatus::default(), 1);
        let second = status(&[replica(0, true)], &first, 100);
        assert_eq!(second, first);
        let third = status(&[troubled(0)], &second, 200);
        assert_eq!(since(&third, "Degraded", "Crashing"), Some(at(200)));
        assert_eq!(since(&third, "Progressing", "RollingOut"), None);
    }

    #[test]
    fn a_rollout_is_told_from_the_revisions_of_replicas() {
        let mut old = replica(1, true);
        old.revision = "one".to_owned();
        let status = status(&[replica(0, true), old], &RegistryCacheStatus::default(), 1);
        assert_eq!(status.conditions[1].message, "1 of 2 replicas are as they are to be");
    }

    #[test]
    fn small_changes_of_usage_are_no_news() {
        assert_eq!(usage(Some(1000), Some(995)), Some(995));
        assert_eq!(usage(Some(1100), Some(995)), Some(1100));
        assert_eq!(usage(Some(0), Some(995)), Some(0));
        assert_eq!(usage(None, Some(995)), Some(995));
    }

    #[test]
    fn a_cache_on_its_way_out_is_no_longer_mirrored_and_remembers_since_when() {
        let before = status(&[replica(0, true)], &RegistryCacheStatus::default(), 1);
        let what = || ("Withdrawing", "agents".to_owned());
        let first = leaving(what(), Some(2), &before, at(50));
        assert!(!first.mirrored && first.endpoints == before.endpoints);
        assert_eq!(leaving(what(), Some(2), &first, at(60)), first);
        assert_eq!(since(&first, "Progressing", "Withdrawing"), Some(at(50)));
    }

    fn status(replicas: &[Replica], before: &RegistryCacheStatus, now: i64) -> RegistryCacheStatus {
        let place = |n: u32| {
            let cluster_ip = format!("10.96.0.1{n}");
            (n, Place { cluster_ip, node_port: 30000 + u16::try_from(n).unwrap() })
        };
        let places = [place(0), place(1)].into();
        let peers = [0, 1].map(|n| (n, format!("https://10.96.0.1{n}:5000"))).into();
        let zones = [("n0".to_owned(), "a".to_owned())].into();
        let seen = Seen {
            generation: Some(7),
            scheme: "https",
            wanted: u32::try_from(replicas.len()).unwrap(),
            replicas,
            places: &places,
            peers: &peers,
            zones: &zones,
            revision: Some("two"),
            bundle: None,
            progress: Vec::new(),
            problems: Vec::new(),
            used: None,
        };
        of(seen, before, at(now))
    }

    fn replica(n: u32, is_ready: bool) -> Replica {
        Replica {
            ordinal: n,
            name: format!("x-{n}"),
            is_ready,
            node: Some(format!("n{n}")),
            node_address: Some(format!("10.0.0.1{n}").parse().unwrap()),
            revision: "two".to_owned(),
            ..Replica::default()
        }
    }

    fn troubled(n: u32) -> Replica {
        let trouble = Problem::new("Crashing", format!("x-{n} does not stay up"));
        Replica { trouble: Some(trouble), ..replica(n, false) }
    }

    fn summary(status: &RegistryCacheStatus) -> String {
        let one = |it: &Condition| format!("{}={}/{}", it.type_, it.status, it.reason);
        status.conditions.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }
}
