//! What a real API server is told by the controller before it takes a cache.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::{DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use larder_tests::Controller;
use larder_tests::kubernetes::wire::Forward;
use larder_tests::kubernetes::{Cluster, objects, until};
use larder_tests::process::Ended;
use larder_tests::repository;
use larder_tests::scratch::Scratch;
use serde_json::{Value, json};

#[tokio::test]
async fn what_is_wrong_is_refused_and_what_may_come_is_warned_about() {
    let scene = Scene::new().await;
    let controller = scene.controller(&[]).await;
    let _way = scene.ask(&[&controller], "Ignore").await;
    scene.secret("empty", &[("username", "robot"), ("password", "")]).await;
    scene.secret("login", &[("username", "robot"), ("password", "hush")]).await;
    let google = [("username", "_json_key"), ("password", "hush")];
    scene.secret("google", &google).await;
    let upstream = |more: Value| {
        let mut upstream = json!({"upstream": "ghcr.io"});
        upstream.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"upstreams": [upstream]})
    };
    let storage = json!({
        "upstreams": [{"upstream": "ghcr.io"}],
        "storage": {
            "s3": {"bucket": "images", "secretRef": {"name": "login"}},
            "postgresql": {"secretRef": {"name": "later"}},
        },
    });
    for (spec, said) in [
        (
            upstream(json!({"secretRef": {"name": "empty"}})),
            "spec.upstreams[0].secretRef: ghcr.io: secret `empty`: `password` is empty",
        ),
        (
            upstream(json!({"secretRef": {"name": "google"}})),
            "spec.upstreams[0].secretRef: ghcr.io: secret `google`: `username` is _json_key, but `password` is not JSON",
        ),
        (storage, "spec.storage.s3.secretRef: secret `login`: the key `AWS_ACCESS_KEY_ID`"),
        (
            upstream(json!({"quota": "much"})),
            "spec.upstreams[0].quota: ghcr.io: quota `much` is no amount of bytes; write it as in 100Gi",
        ),
        (
            upstream(json!({"quota": 0})),
            "spec.upstreams[0].quota: ghcr.io: quota `0` is no amount of bytes",
        ),
        // What `larder serve` says.
        (
            upstream(json!({"proxy": {"httpsProxy": "ftp://proxy"}})),
            "spec.upstreams[0].proxy: ghcr.io: `ftp://proxy` is not for http or https",
        ),
        (upstream(json!({"caBundle": "hello"})), "has no certificate in it; it must be PEM"),
        (
            upstream(json!({"mirrors": ["https://a.b", "https://a.b/path"]})),
            "spec.upstreams[0].mirrors[1]: ghcr.io: `https://a.b/path` has more than a host and port",
        ),
        (
            json!({"upstreams": [{"upstream": "ghcr"}]}),
            "spec.upstreams[0].upstream: ghcr: `ghcr` has no dot and no port",
        ),
        (
            json!({"upstreams": [{"upstream": "ghcr.io"}], "garbageCollection": {"budget": "much"}}),
            "spec.garbageCollection.budget: `much`",
        ),
        (
            json!({"upstreams": [{"upstream": "docker.io"}, {"upstream": "index.docker.io"}]}),
            "spec.upstreams[1]: index.docker.io: is another name of docker.io",
        ),
    ] {
        for arguments in [&["--dry-run=server"][..], &[]] {
            let ended = scene.apply(&spec, arguments).await;
            assert_ne!(ended.code, Some(0), "{spec}: {}", ended.stderr);
            assert!(ended.stderr.contains(said), "{spec}: {}", ended.stderr);
            assert!(!ended.stderr.contains("hush"), "{}", ended.stderr);
        }
    }
    assert!(scene.caches().get_opt("cache").await.unwrap().is_none());
    assert!(
        controller.metric("larder_webhook_reviews_total", &[("outcome", "refused")]).await >= 22.0
    );

    let later = upstream(json!({"secretRef": {"name": "later"}}));
    let ended = scene.apply(&later, &[]).await;
    let warning = "Warning: spec.upstreams[0].secretRef: ghcr.io: there is no secret `later`";
    assert!(ended.code == Some(0) && ended.stderr.contains(warning), "{}", ended.stderr);
    let ended = scene.apply(&upstream(json!({"secretRef": {"name": "login"}})), &[]).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    let ended = controller.stop().await;
    assert_eq!(ended.code, Some(0));
    assert!(!ended.stderr.contains("hush"), "{}", ended.stderr);
}

#[tokio::test]
async fn a_cache_that_was_there_before_can_be_changed_and_deleted() {
    let scene = Scene::new().await;
    scene.secret("empty", &[("username", "robot"), ("password", "")]).await;
    let bad = |replicas: u32| {
        json!({
            "upstreams": [{"upstream": "ghcr.io", "secretRef": {"name": "empty"}}],
            "replicas": replicas,
        })
    };
    scene.apply(&bad(1), &[]).await.expect("nobody is asked yet");
    let controller = scene.controller(&[]).await;
    let _way = scene.ask(&[&controller], "Fail").await;
    // What the controller writes itself, a finalizer and a status, is let through as well.
    scene.says("`password` is empty").await;

    let label = ["label", "registrycache", "cache", "a=b"];
    assert_eq!(scene.kubectl(&label).await.code, Some(0));
    let ended = scene.apply(&bad(2), &[]).await;
    let warning = "Warning: spec.upstreams[0].secretRef: ghcr.io: secret `empty`";
    assert!(ended.code == Some(0) && ended.stderr.contains(warning), "{}", ended.stderr);
    let mut worse = bad(2);
    worse["garbageCollection"] = json!({"budget": "much"});
    let ended = scene.apply(&worse, &[]).await;
    assert!(ended.code != Some(0) && ended.stderr.contains("budget"), "{}", ended.stderr);

    let delete = ["delete", "registrycache", "cache", "--timeout=120s"];
    let ended = scene.kubectl(&delete).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

#[tokio::test]
async fn an_authority_is_replaced_and_no_question_goes_unanswered_meanwhile() {
    let scene = Scene::new().await;
    let controller = scene.controller(&["--ca-settling", "2s"]).await;
    // So that one that is not trusted for a moment is seen.
    let _way = scene.ask(&[&controller], "Fail").await;
    let old = scene.bundle().await;
    assert_eq!(old.matches("BEGIN").count(), 1);
    let leaf = async || scene.certificates().await["tls.crt"].clone();
    let old_leaf = leaf().await;
    let annotations = json!({"metadata": {"annotations": {"larder.dev/rotate-ca": "1"}}});
    let patch = Patch::Merge(annotations);
    scene.configurations().patch(&scene.namespace, &PatchParams::default(), &patch).await.unwrap();

    let mut seen = BTreeSet::new();
    let mut n_asked = 0;
    let begin = Instant::now();
    loop {
        scene.try_one().await.expect("it is asked and trusted");
        n_asked += 1;
        let bundle = scene.bundle().await;
        seen.insert((bundle.matches("BEGIN").count(), leaf().await == old_leaf));
        if !bundle.contains(old.trim()) {
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(120), "{seen:?}");
    }
    assert!(n_asked > 20, "{n_asked}");
    // Both are trusted before the new one signs, and after.
    assert!(seen.contains(&(2, true)) && seen.contains(&(2, false)), "{seen:?}");
    assert_ne!(leaf().await, old_leaf);
    // Asked once, done once.
    let new = scene.bundle().await;
    let reviews = async || controller.metric("larder_webhook_reviews_total", &[]).await;
    let before = reviews().await;
    scene.try_one().await.expect("it is trusted by the new authority alone");
    assert_eq!((scene.bundle().await, reviews().await), (new, before + 1.0));
}

#[tokio::test]
async fn a_controller_that_is_gone_keeps_nobody_from_changing_caches() {
    let scene = Scene::new().await;
    scene.secret("empty", &[("username", "robot"), ("password", "")]).await;
    let controller = scene.controller(&[]).await;
    let way = scene.ask(&[&controller], "Ignore").await;
    let bad = json!({"upstreams": [{"upstream": "ghcr.io", "secretRef": {"name": "empty"}}]});
    assert_ne!(scene.apply(&bad, &[]).await.code, Some(0));
    let (bundle, address) = (scene.bundle().await, controller.webhook().await);
    controller.kill();
    let begin = Instant::now();
    let ended = scene.apply(&bad, &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    println!("without a controller: {:?}", begin.elapsed());

    // The next one says it in the status, and is trusted as the last one was.
    let _controller = scene.controller(&["--webhook-listen", &address]).await;
    scene.says("`password` is empty").await;
    let worse = json!({"upstreams": [{"upstream": "quay.io", "secretRef": {"name": "empty"}}]});
    let refused = async || scene.apply(&worse, &["--dry-run=server"]).await.code != Some(0);
    until("the next one is asked", refused).await;
    assert_eq!(scene.bundle().await, bundle);
    drop(way);
}

#[tokio::test]
async fn several_controllers_agree_on_one_certificate() {
    let scene = Scene::new().await;
    let (one, other) = tokio::join!(scene.controller(&[]), scene.controller(&[]));
    // Each question goes to both, and counts only if both are trusted.
    let _ways = scene.ask(&[&one, &other], "Fail").await;
    for _ in 0..5 {
        scene.try_one().await.expect("both answer");
    }
    for controller in [&one, &other] {
        assert!(controller.metric("larder_webhook_reviews_total", &[]).await >= 5.0);
    }
    // One of them gone, its certificate is as good.
    let certificates = scene.certificates().await;
    other.stop().await;
    let third = scene.controller(&[]).await;
    let _ways = scene.ask(&[&one, &third], "Fail").await;
    assert_eq!(scene.certificates().await, certificates);
}

/// Helm writes all of the configuration but whom to trust, and the controller that alone.
#[tokio::test]
async fn an_upgrade_of_the_chart_leaves_whom_to_trust_as_it_is() {
    let scene = Scene::new().await;
    let chart = repository::path("deploy/helm/larder");
    let helm = async |act: &str, more: &[&str]| {
        let mut arguments = vec![act, "larder"];
        if act != "uninstall" {
            let parts = ["controller.replicas=0,agent.enabled=false", chart.to_str().unwrap()];
            arguments.extend(["--set", parts[0], parts[1]]);
        }
        arguments.extend(["--namespace", &scene.namespace]);
        arguments.extend(more);
        scene.cluster.run("helm", &arguments).await.expect(act)
    };
    helm("install", &[]).await;
    let name = "larder-webhook";
    let account = format!("--as=system:serviceaccount:{}:larder-controller", scene.namespace);
    let may = async |verb: &str, name: &str| {
        let object = format!("validatingwebhookconfigurations/{name}");
        scene.kubectl(&["auth", "can-i", verb, &object, &account]).await.code == Some(0)
    };
    assert!(may("get", name).await && may("patch", name).await && !may("patch", "others").await);
    let _controller = scene.controller(&["--webhook-configuration", name]).await;
    let configuration = async || scene.configurations().get(name).await.unwrap();
    let bundle = async || bundle_of(&configuration().await);
    until("it is told whom to trust", async || !bundle().await.is_empty()).await;
    let (before, generation) = (bundle().await, configuration().await.metadata.generation);
    assert!(scene.certificates().await.contains_key("tls.crt"));
    helm("upgrade", &["--set", "controller.logLevel=debug"]).await;
    assert_eq!((bundle().await, configuration().await.metadata.generation), (before, generation));

    // What the chart takes away takes the secret with it.
    helm("uninstall", &["--no-hooks"]).await;
    let secrets: Api<Secret> = Api::namespaced(scene.cluster.client(), &scene.namespace);
    let is_gone = async || secrets.get_opt(name).await.unwrap().is_none();
    until("the certificates are gone", is_gone).await;
}

// === the scene ===

/// A namespace of its own, and a configuration of the same name.
struct Scene {
    cluster: Arc<Cluster>,
    namespace: String,
    scratch: Scratch,
}

impl Scene {
    async fn new() -> Self {
        let cluster = Cluster::shared().await;
        objects::apply_definitions(&cluster).await;
        let scratch = Scratch::new();
        let unique = scratch.path().file_name().unwrap().to_str().unwrap().to_lowercase();
        let namespace: String = unique.chars().filter(char::is_ascii_alphanumeric).collect();
        let object = json!({"metadata": {"name": namespace}});
        let object: Namespace = serde_json::from_value(object).unwrap();
        let namespaces: Api<Namespace> = Api::all(cluster.client());
        namespaces.create(&PostParams::default(), &object).await.unwrap();
        let scene = Self { cluster, namespace, scratch };
        let caches = scene.caches();
        let served = async || caches.list(&ListParams::default()).await.is_ok();
        until("caches are served", served).await;
        scene
    }

    async fn controller(&self, more: &[&str]) -> Controller {
        let mut arguments = Vec::new();
        for (flag, default) in
            [("--webhook-listen", "127.0.0.1:0"), ("--webhook-configuration", &self.namespace)]
        {
            if !more.contains(&flag) {
                arguments.extend([flag, default]);
            }
        }
        arguments.extend(more);
        Controller::start(&self.cluster, &self.namespace, &arguments).await
    }

    /// Has the API server ask all of `controllers`, and returns once each has been asked.
    async fn ask(&self, controllers: &[&Controller], failure_policy: &str) -> Vec<Forward> {
        let mut ways = Vec::new();
        let mut webhooks = Vec::new();
        for (n, controller) in controllers.iter().enumerate() {
            let way = self.cluster.lead_to(controller.webhook().await.parse().unwrap());
            webhooks.push(json!({
                "name": format!("n{n}.larder.dev"),
                "admissionReviewVersions": ["v1"],
                "clientConfig": {"url": format!("https://{}/validate", way.address)},
                "rules": [{
                    "apiGroups": ["larder.dev"], "apiVersions": ["v1alpha1"],
                    "operations": ["CREATE", "UPDATE"], "resources": ["registrycaches"],
                }],
                "namespaceSelector": {
                    "matchLabels": {"kubernetes.io/metadata.name": self.namespace},
                },
                "sideEffects": "None",
                "failurePolicy": failure_policy,
                "timeoutSeconds": 5,
            }));
            ways.push(way);
        }
        let object = json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": self.namespace},
            "webhooks": webhooks,
        });
        let params = PatchParams::apply("person");
        let patch = Patch::Apply(object);
        self.configurations().patch(&self.namespace, &params, &patch).await.unwrap();
        let are_asked = async || {
            let mut n_asked = Vec::new();
            for controller in controllers {
                n_asked.push(controller.metric("larder_webhook_reviews_total", &[]).await);
            }
            // One that is not trusted fails it, or is passed over.
            let answered = self.try_one().await.is_ok();
            let mut are_asked = answered;
            for (controller, before) in controllers.iter().zip(n_asked) {
                let now = controller.metric("larder_webhook_reviews_total", &[]).await;
                are_asked &= now > before;
            }
            are_asked
        };
        until("the API server asks", are_asked).await;
        ways
    }

    fn configurations(&self) -> Api<ValidatingWebhookConfiguration> {
        Api::all(self.cluster.client())
    }

    fn caches(&self) -> Api<DynamicObject> {
        objects::caches(self.cluster.client(), &self.namespace)
    }

    /// Tries whether a cache would be made that is right. Nothing is stored.
    async fn try_one(&self) -> kube::Result<()> {
        let cache = json!({
            "apiVersion": "larder.dev/v1alpha1", "kind": "RegistryCache",
            "metadata": {"generateName": "tried-"},
            "spec": {"upstreams": [{"upstream": "docker.io"}]},
        });
        let cache = serde_json::from_value(cache).unwrap();
        let params = PostParams { dry_run: true, ..PostParams::default() };
        self.caches().create(&params, &cache).await.map(drop)
    }

    /// What becomes of `kubectl apply` of the scene's cache.
    async fn apply(&self, spec: &Value, more: &[&str]) -> Ended {
        let cache = json!({
            "apiVersion": "larder.dev/v1alpha1", "kind": "RegistryCache",
            "metadata": {"name": "cache"}, "spec": spec,
        });
        let file = self.scratch.write("cache.json", &cache.to_string());
        let apply = ["apply", "-f", file.to_str().unwrap()];
        self.kubectl(&[&apply[..], more].concat()).await
    }

    async fn kubectl(&self, arguments: &[&str]) -> Ended {
        let namespace = ["--namespace", &self.namespace];
        self.cluster.run("kubectl", &[arguments, &namespace].concat()).await
    }

    async fn secret(&self, name: &str, texts: &[(&str, &str)]) {
        objects::apply_secret(self.cluster.client(), &self.namespace, name, texts).await;
    }

    /// Whom the API server trusts.
    async fn bundle(&self) -> String {
        bundle_of(&self.configurations().get(&self.namespace).await.unwrap())
    }

    /// What is in the controllers' secret.
    async fn certificates(&self) -> BTreeMap<String, String> {
        let api: Api<Secret> = Api::namespaced(self.cluster.client(), &self.namespace);
        let data = api.get("larder-webhook").await.unwrap().data.unwrap_or_default();
        data.into_iter().map(|(key, it)| (key, String::from_utf8(it.0).unwrap())).collect()
    }

    /// Returns once the cache's status says that something is wrong.
    async fn says(&self, part: &str) {
        let says = async || {
            let cache = serde_json::to_value(self.caches().get("cache").await.unwrap()).unwrap();
            let conditions = cache["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let degraded = conditions.into_iter().find(|it| it["type"] == "Degraded");
            let degraded = degraded.unwrap_or_default();
            degraded["message"].as_str().is_some_and(|it| it.contains(part))
        };
        until(format!("it says: {part}"), says).await;
    }
}

/// The same for all that are asked.
fn bundle_of(configuration: &ValidatingWebhookConfiguration) -> String {
    let webhooks = configuration.webhooks.iter().flatten();
    let bundles: BTreeSet<String> = webhooks
        .map(|it| it.client_config.ca_bundle.as_ref().map(|it| it.0.clone()).unwrap_or_default())
        .map(|it| String::from_utf8(it).unwrap())
        .collect();
    assert_eq!(bundles.len(), 1, "{}", configuration.name_any());
    bundles.into_iter().next().unwrap()
}
