//! The chart, by Helm itself, without a cluster.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::fs;
use std::path::PathBuf;

use larder_tests::kubernetes::program;
use larder_tests::process::{Ended, run};
use larder_tests::repository;
use larder_tests::scratch::Scratch;

/// What the manifests begin with: Helm makes no namespace.
const NAMESPACE: &str = "\
# The chart with its defaults, for clusters without Helm:
# kubectl apply --server-side -f deploy/crds -f deploy/manifests/install.yaml
---
apiVersion: v1
kind: Namespace
metadata:
  name: larder-system
  labels:
    # For the agent alone, which edits files of its node; everything else is restricted.
    pod-security.kubernetes.io/enforce: privileged
    pod-security.kubernetes.io/warn: restricted
";

/// `LARDER_GOLDEN=write` writes them anew.
#[tokio::test]
async fn the_manifests_are_those_of_the_chart() {
    let rendered = template(&["--no-hooks"]).await.expect("helm template");
    let rendered = format!("{NAMESPACE}{rendered}");
    let path = repository::path("deploy/manifests/install.yaml");
    if std::env::var_os("LARDER_GOLDEN").is_some_and(|it| it == "write") {
        fs::write(&path, &rendered).unwrap();
    }
    assert!(
        fs::read_to_string(&path).unwrap_or_default() == rendered,
        "{} is not what the chart renders; if that is meant, run with LARDER_GOLDEN=write",
        path.display()
    );
}

#[tokio::test]
async fn the_chart_has_no_mistakes() {
    let chart = chart();
    let ended = helm(&["lint", "--strict", chart.to_str().unwrap()]).await;
    ended.expect("helm lint");
}

#[tokio::test]
async fn values_that_cannot_be_are_refused() {
    for (value, complaint) in [
        ("agent.listen=0.0.0.0:5050", "listen"),
        ("agent.apiServer=10.0.0.1", "apiServer"),
        ("controller.replicas=-1", "replicas"),
        ("typo=1", "typo"),
        ("webhook.enabled=maybe", "enabled"),
        ("image.digest=latest", "digest"),
        ("caches.hub.volume.size=1Gi", "upstreams"),
    ] {
        let ended = template(&["--set", value]).await;
        assert_ne!(ended.code, Some(0), "{value}");
        assert!(ended.stderr.contains(complaint), "{value}: {}", ended.stderr);
    }
}

#[tokio::test]
async fn what_is_said_by_values_is_rendered() {
    let values = "
image: {digest: 'sha256:0000000000000000000000000000000000000000000000000000000000000000'}
imagePullSecrets: [pull]
taintNewNodes: true
podMonitor: {enabled: true}
controller: {tolerations: [{operator: Exists}], extraEnv: [{name: A, value: b}]}
agent: {admin: '[::1]:5051', extraArgs: ['--zone=a'], apiServer: '[fd00::1]:6443', onHosts: true}
caches: {hub: {upstreams: [{upstream: docker.io}]}}
";
    let scratch = Scratch::new();
    let file = scratch.write("values.yaml", values);
    let rendered = template(&["--values", file.to_str().unwrap()]).await.expect("helm template");
    for part in [
        "larder@sha256:0000",
        "- name: pull",
        "- --image-pull-secret=pull",
        "- --taint-new-nodes",
        "verbs: [get, list, watch, patch]",
        "kind: PodMonitor",
        "host: \"::1\"",
        "\"--zone=a\"",
        "value: \"fd00::1\"",
        "value: \"6443\"",
        "name: system:nodes",
        "kind: RegistryCache",
        "helm.sh/hook: pre-delete",
        "resourceNames: [larder-webhook]",
        "kubernetes.io/metadata.name: larder-system",
    ] {
        assert!(rendered.contains(part), "{part} is not in:\n{rendered}");
    }
    let without = template(&["--set", "agent.enabled=false"]).await.expect("helm template");
    assert!(!without.contains("DaemonSet"));
    let without = template(&["--set", "webhook.enabled=false"]).await.expect("helm template");
    assert!(!without.contains("webhook"), "{without}");
}

/// Of an agent whose supervisor hangs, the kubelet alone can find out.
#[tokio::test]
async fn an_agent_that_hangs_is_replaced_within_half_a_minute() {
    let rendered = template(&[]).await.expect("helm template");
    let agent = rendered.split("\n---\n").find(|it| it.contains("kind: DaemonSet")).unwrap();
    let probe = agent.split_once("livenessProbe:").unwrap().1.split_once("resources:").unwrap().0;
    let number = |key: &str| {
        let line = probe.lines().find_map(|line| line.trim().strip_prefix(key)).expect(key);
        line.trim_start_matches(':').trim().parse::<u64>().unwrap()
    };
    assert!(probe.contains("path: /healthz"), "{probe}");
    let found = number("periodSeconds") * number("failureThreshold") + number("timeoutSeconds");
    let ended = number("terminationGracePeriodSeconds");
    assert!(found + ended <= 30, "{probe}");
}

/// Nothing but the agent has more rights in a pod than the restricted standard gives.
#[tokio::test]
async fn only_the_agent_is_privileged() {
    let rendered = template(&[]).await.expect("helm template");
    for document in rendered.split("\n---\n") {
        let is_agent = document.contains("kind: DaemonSet");
        for word in ["hostNetwork: true", "hostPath:", "runAsUser: 0", "add: ["] {
            assert_eq!(document.contains(word), is_agent, "{word} in {document}");
        }
        if document.contains("kind: Deployment") || document.contains("kind: Job") {
            for word in ["runAsNonRoot: true", "drop: [ALL]", "type: RuntimeDefault"] {
                assert!(document.contains(word), "{word} not in {document}");
            }
        }
    }
}

async fn template(arguments: &[&str]) -> Ended {
    let chart = chart();
    let begin = ["template", "larder", chart.to_str().unwrap(), "--namespace", "larder-system"];
    helm(&[&begin[..], arguments].concat()).await
}

async fn helm(arguments: &[&str]) -> Ended {
    let scratch = Scratch::new();
    run(program("helm").args(arguments).env("HOME", scratch.folder("home"))).await
}

fn chart() -> PathBuf {
    repository::path("deploy/helm/larder")
}
