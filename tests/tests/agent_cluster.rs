//! The agent of a node before a real API server, which says where the cache is.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::fs;

use larder_testkit::patiently;
use larder_tests::kubernetes::objects;
use larder_tests::{Agent, Cluster};

/// As a kubelet's does, when its certificate is renewed.
#[tokio::test]
async fn a_credential_that_is_replaced_is_used() {
    let cluster = Cluster::shared().await;
    objects::apply_definitions(&cluster).await;
    let good = fs::read_to_string(cluster.kubeconfig()).unwrap();
    let settings = Agent::settings();
    let others = good.split_once("users:").unwrap().0;
    let bad = format!("{others}users: [{{name: user, user: {{token: wrong}}}}]\n");
    let path = settings.scratch().write("kubeconfig", &bad);
    let settings = settings.arguments(&["--kubernetes"]);
    let agent = settings.variable("KUBECONFIG", path.to_str().unwrap()).start().await;
    agent.logged(&["watching the cluster's caches", "Unauthorized"]).await;
    assert_eq!(agent.admin("/readyz").await.status, 503);
    fs::write(&path, good).unwrap();
    let is_ready = async {
        while agent.admin("/readyz").await.status != 200 {
            tokio::task::yield_now().await;
        }
    };
    patiently("it has heard that there is no cache", is_ready).await;
}
