use serde_json::{Value, json};

use super::*;
use crate::render::check::Mistake;

const SERVICE_ACCOUNT: &str =
    r#"{"type": "service_account", "client_email": "a@b", "private_key": "hush"}"#;

#[test]
fn what_is_right_is_neither_refused_nor_warned_about() {
    let spec = json!({
        "upstreams": [
            {"upstream": "docker.io", "secretRef": {"name": "login"}, "quota": "10Gi", "ttl": "1h"},
            {"upstream": "gcr.io", "secretRef": {"name": "google"}},
            {"upstream": "quay.io"},
        ],
        "replicas": 2,
    });
    assert_eq!(verdict(&spec), Verdict::default());
    assert_eq!(verdict(&with_storage("keys", "database")), Verdict::default());
}

#[test]
fn each_rule_says_where_what_and_what_to_write_instead() {
    let of_upstream = |more: Value| {
        let mut upstream = json!({"upstream": "ghcr.io"});
        upstream.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"upstreams": [{"upstream": "quay.io"}, upstream]})
    };
    let login = |name: &str| of_upstream(json!({"secretRef": {"name": name}}));
    for (spec, said) in [
        (
            login("no-password"),
            "spec.upstreams[1].secretRef: ghcr.io: secret `no-password`: the key `password` is missing; write it, or all of it under `.dockerconfigjson`",
        ),
        (
            login("empty"),
            "spec.upstreams[1].secretRef: ghcr.io: secret `empty`: `password` is empty",
        ),
        (
            login("spaced"),
            "spec.upstreams[1].secretRef: ghcr.io: secret `spaced`: `username` has white space in it; remove it",
        ),
        (
            login("not-google"),
            "spec.upstreams[1].secretRef: ghcr.io: secret `not-google`: `username` is _json_key, but `password` is not JSON; write the JSON file of a service account's key",
        ),
        (
            login("docker"),
            "spec.upstreams[1].secretRef: ghcr.io: secret `docker`: it has no login for ghcr.io; add one to `auths`",
        ),
        (
            of_upstream(json!({"secretRef": {"name": "login"}, "remoteURL": "http://10.0.0.9"})),
            "spec.upstreams[1].secretRef: ghcr.io: its password would be sent without encryption, so it is asked without; write https:// in remoteURL and mirrors, or set insecureSkipVerify",
        ),
        (
            of_upstream(json!({"quota": "much"})),
            "spec.upstreams[1].quota: ghcr.io: quota `much` is no amount of bytes; write it as in 100Gi",
        ),
        (
            of_upstream(json!({"freshness": "9000h"})),
            "spec.upstreams[1].freshness: ghcr.io: freshness: `9000h` is no duration of at most a year; write it as in 90s or 168h",
        ),
        (
            of_upstream(json!({"access": "caller", "secretRef": {"name": "login"}})),
            "spec.upstreams[1].secretRef: ghcr.io: with access `caller` each caller's own credential counts, and this one is never used; remove it, or write `shared`",
        ),
        (
            of_upstream(json!({"access": "caller", "remoteURL": "http://10.0.0.9:5000"})),
            "spec.upstreams[1].access: ghcr.io: callers' credentials would be sent without encryption, so it is not served; write https:// in remoteURL and mirrors, or set insecureSkipVerify",
        ),
        (
            json!({"upstreams": [{"upstream": "*.gcr.io", "mirrors": ["https://m.example"]}]}),
            "spec.upstreams[0].mirrors: *.gcr.io: each of its hosts is asked at https://HOST; remove remoteURL and mirrors",
        ),
        (
            json!({"upstreams": [{"upstream": "docker.io"}, {"upstream": "index.docker.io"}]}),
            "spec.upstreams[1]: index.docker.io: is another name of docker.io, which is upstreams[0] already; put both into one",
        ),
        (
            json!({
                "upstreams": [{"upstream": "docker.io"}], "garbageCollection": {"ttl": "9000h"},
            }),
            "spec.garbageCollection.ttl: `9000h` is no duration of at most a year; write it as in 90s or 168h",
        ),
        (
            json!({
                "upstreams": [{"upstream": "docker.io"}], "garbageCollection": {"budget": "much"},
            }),
            "spec.garbageCollection.budget: that is no budget; write 90%",
        ),
        (
            with_storage("login", "database"),
            "spec.storage.s3.secretRef: secret `login`: the key `AWS_ACCESS_KEY_ID` must be one line of text",
        ),
        (
            with_storage("keys", "login"),
            "spec.storage.postgresql.secretRef: secret `login`: the key `url` must be one line of text",
        ),
        (
            with_storage("keys", "mysql"),
            "spec.storage.postgresql.secretRef: secret `mysql`: `url` must be as in postgres://USER:PASSWORD@HOST:5432/NAME",
        ),
    ] {
        let verdict = verdict(&spec);
        assert_eq!((&verdict.refusals[..], verdict.warnings.len()), (&[said.to_owned()][..], 0));
        assert!(!verdict.refusals[0].contains("hush"), "{verdict:?}");
    }
}

#[test]
fn all_that_is_wrong_is_said_at_once() {
    let mut spec = with_storage("login", "login");
    spec["upstreams"] = json!([{
        "upstream": "docker.io", "secretRef": {"name": "empty"}, "quota": "0",
        "remoteURL": "http://10.0.0.9",
    }]);
    let refusals = verdict(&spec).refusals.join("\n");
    for field in ["secretRef: docker.io: secret", "quota", "storage.s3", "storage.postgresql"] {
        assert!(refusals.contains(field), "{field}: {refusals}");
    }
    assert!(refusals.contains("without encryption"), "{refusals}");
}

#[test]
fn a_secret_that_does_not_exist_yet_is_only_worth_a_warning() {
    let spec = json!({"upstreams": [{"upstream": "ghcr.io", "secretRef": {"name": "later"}}]});
    let warning = "spec.upstreams[0].secretRef: ghcr.io: there is no secret `later`; until there is, it is asked without credentials";
    assert_eq!(verdict(&spec), warned(&[warning]));
    let warnings = [
        "spec.storage.s3.secretRef: there is no secret `later`, which `storage` needs; make it",
        "spec.storage.postgresql.secretRef: there is no secret `later`, which `storage` needs; make it",
    ];
    assert_eq!(verdict(&with_storage("later", "later")), warned(&warnings));
    // What it would be used for counts already.
    let mut spec = spec;
    spec["upstreams"][0]["remoteURL"] = json!("http://10.0.0.9");
    assert!(verdict(&spec).refusals[0].contains("without encryption"));
}

#[test]
fn secrets_that_cannot_be_read_are_not_judged() {
    let spec = json!({"upstreams": [
        {"upstream": "ghcr.io", "secretRef": {"name": "empty"}},
        {"upstream": "quay.io", "quota": "much"},
    ]});
    let verdict = validate(&cache(&spec), None, None, serve);
    assert_eq!(verdict.refusals.len(), 1);
    assert!(verdict.refusals[0].contains("quota") && verdict.warnings[0].contains("be read"));
}

#[test]
fn a_change_of_something_else_is_not_held_up() {
    let bad = json!({"upstreams": [{"upstream": "ghcr.io", "secretRef": {"name": "empty"}}]});
    let old = cache(&bad);
    let judge = |new: &RegistryCache| validate(new, Some(&old), Some(&secrets()), serve);
    let mut labelled = old.clone();
    labelled.metadata.labels = Some([("a".to_owned(), "b".to_owned())].into());
    assert_eq!(judge(&labelled), Verdict::default());

    // It is said again, but whoever wants more replicas now need not see to the secret first.
    let mut more = bad.clone();
    more["replicas"] = json!(3);
    let verdict = judge(&cache(&more));
    assert_eq!((verdict.refusals.len(), verdict.warnings.len()), (0, 1), "{verdict:?}");

    more["upstreams"][0]["secretRef"]["name"] = json!("spaced");
    assert_eq!(judge(&cache(&more)).refusals.len(), 1);
    let mut leaving = cache(&more);
    leaving.metadata.deletion_timestamp =
        Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
    assert_eq!(judge(&leaving), Verdict::default());
}

// === the scene ===

fn verdict(spec: &Value) -> Verdict {
    validate(&cache(spec), None, Some(&secrets()), serve)
}

fn warned(warnings: &[&str]) -> Verdict {
    let warnings = warnings.iter().map(|it| (*it).to_owned()).collect();
    Verdict { warnings, ..Verdict::default() }
}

fn cache(spec: &Value) -> RegistryCache {
    RegistryCache::new("hub", serde_json::from_value(spec.clone()).unwrap())
}

fn with_storage(keys: &str, database: &str) -> Value {
    json!({
        "upstreams": [{"upstream": "docker.io"}],
        "storage": {
            "s3": {"bucket": "images", "secretRef": {"name": keys}},
            "postgresql": {"secretRef": {"name": database}},
        },
    })
}

fn secrets() -> Secrets {
    let user = |username, password| vec![("username", username), ("password", password)];
    let secrets = [
        ("login", user("robot", "hush")),
        ("google", user("_json_key", SERVICE_ACCOUNT)),
        ("not-google", user("_json_key", "hush")),
        ("no-password", vec![("username", "robot")]),
        ("empty", user("robot", "\n")),
        ("spaced", user("a robot", "hush")),
        ("docker", vec![(".dockerconfigjson", r#"{"auths": {"a.b": {"auth": "hush"}}}"#)]),
        ("keys", vec![("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "hush")]),
        ("database", vec![("url", "postgres://larder:hush@db/larder")]),
        ("mysql", vec![("url", "mysql://larder:hush@db/larder")]),
    ];
    let secret = |texts: Vec<(&str, &str)>| {
        let texts = texts
            .into_iter()
            .map(|(key, text)| (key.to_owned(), ByteString(text.as_bytes().to_vec())));
        Secret { data: Some(texts.collect()), ..Secret::default() }
    };
    secrets.into_iter().map(|(name, texts)| (name.to_owned(), secret(texts))).collect()
}

/// What `larder serve` says, in small.
fn serve(text: &str, _: &BTreeMap<String, String>) -> Vec<Mistake> {
    let is_wrong = text.contains("budget = \"much\"");
    let what = "that is no budget; write 90%".to_owned();
    let mistake = Mistake { key: Some("budget".to_owned()), what };
    Vec::from_iter(is_wrong.then_some(mistake))
}
