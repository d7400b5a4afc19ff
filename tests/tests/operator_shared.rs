//! A cache on real nodes that keeps its blobs in a bucket and a database.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::Api;
use kube::api::ListParams;
use larder_testkit::{Image, Postgres, Rgw, Upstream};
use larder_tests::kubernetes::installation::NAMESPACE;
use larder_tests::kubernetes::objects::apply_secret;
use larder_tests::kubernetes::{Cluster, Installation, until};
use larder_tests::metrics;
use serde_json::json;

/// A registry that can be found by nobody but nodes that have been told.
const HOST: &str = "registry.test";
const CACHE: &str = "hub";

/// What one replica has stored, replicas have that never saw it: others at the same places, with
/// nothing on their volumes. Upstream is not asked for it again, and neither need it be there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_have_lost_their_volumes_serve_what_is_in_the_bucket() {
    let (mut cluster, rgw, postgres) =
        tokio::join!(Cluster::start(2), Rgw::start(), Postgres::start_on_loopback());
    let mut upstream = Upstream::start().await;
    let image = Image::from_seed(1).unpackable().layers(&[5 << 20, 1000]).build();
    upstream.push("team/app", "1", &image);
    let registry = format!("http://{}", cluster.expose(&upstream.host()));
    let bucket_server = cluster.expose(rgw.endpoint().trim_start_matches("http://"));
    let database_server = cluster.expose(&postgres.address());
    cluster.nodes().iter().for_each(|node| node.find_registry(HOST, &registry));
    Installation::prepare(cluster.nodes()).await;
    let api_server = format!("agent.apiServer={}", cluster.api_server());
    let larder = Installation::by_chart(&cluster, &[&api_server]).await;

    let secret = async |name: &str, texts: &[(&str, &str)]| {
        apply_secret(cluster.client(), NAMESPACE, name, texts).await;
    };
    let (id, key) = rgw.keys();
    secret("bucket", &[("AWS_ACCESS_KEY_ID", id), ("AWS_SECRET_ACCESS_KEY", key)]).await;
    secret("database", &[("url", &postgres.database_at(&database_server).await)]).await;
    let spec = json!({
        "upstreams": [{"upstream": HOST, "remoteURL": registry, "freshness": "24h"}],
        "highAvailability": {"enabled": true},
        "volume": {"size": "1Gi"},
        "storage": {
            "s3": {
                "endpoint": format!("http://{bucket_server}"),
                "bucket": rgw.bucket().await,
                "pathStyle": true,
                "secretRef": {"name": "bucket"},
            },
            "postgresql": {"secretRef": {"name": "database"}},
        },
    });
    larder.apply(CACHE, spec).await;
    larder.settles(CACHE).await;
    assert_eq!(larder.cache(CACHE).await["status"]["readyReplicas"], 2);
    for node in cluster.nodes() {
        larder.is_used(node, HOST).await;
    }

    let name = format!("{HOST}/team/app:1");
    for node in cluster.nodes() {
        node.pull(&name, None).await.expect(&name);
    }
    let layer = &image.layers[0];
    assert_eq!(upstream.n_fetches(&layer.digest), 1);
    // The layers, the configuration and the manifest.
    let n_content = image.blobs().count() + 1;
    let uploads = async || sum(&cluster, &larder, "larder_shared_uploads_total").await;
    until("all of it is in the bucket", async || uploads().await >= n_content as f64).await;

    // A claim goes when its pod does, and whoever comes next is given an empty one.
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(cluster.client(), NAMESPACE);
    let (pods, volumes) = (larder.uids(CACHE).await, volumes(&claims).await);
    assert_eq!((pods.len(), volumes.len()), (2, 2));
    let delete = async |what: &str| {
        let of_cache = format!("app.kubernetes.io/instance=larder-{CACHE}");
        let delete = ["delete", what, "--selector", &of_cache, "--wait=false"];
        Installation::kubectl(&cluster, &delete).await.expect("kubectl");
    };
    delete("persistentvolumeclaims").await;
    delete("pods").await;
    let are_others = async || {
        let now = larder.uids(CACHE).await;
        now.len() == 2 && pods.iter().all(|uid| !now.contains(uid))
    };
    until("both replicas are other pods", are_others).await;
    larder.settles(CACHE).await;
    let now = self::volumes(&claims).await;
    assert!(volumes.iter().all(|it| !now.contains(it)), "{volumes:?} {now:?}");

    // Whatever a node could still have of its own is gone, and so is the registry.
    upstream.stop().await;
    upstream.forget_requests();
    for node in cluster.nodes() {
        node.forget(&name).await.expect("the image is removed");
        until("it is pulled from the cache", async || {
            let pulled = node.pull(&name, None).await;
            pulled.code == Some(0)
        })
        .await;
    }
    assert_eq!(upstream.requests().len(), 0);
    let sent = sum(&cluster, &larder, "larder_client_bytes_total").await;
    assert!(sent >= 2.0 * layer.bytes.len() as f64, "{sent} bytes came by the cache");
}

/// The volumes of the claims of replicas.
async fn volumes(claims: &Api<PersistentVolumeClaim>) -> Vec<String> {
    let claims = claims.list(&ListParams::default()).await.unwrap();
    claims.into_iter().filter_map(|it| it.spec?.volume_name).collect()
}

/// The sum of a metric over all replicas.
async fn sum(cluster: &Cluster, larder: &Installation, name: &str) -> f64 {
    let mut sum = 0.0;
    for page in larder.metrics(cluster, CACHE).await {
        sum += metrics::sum(&page, name, &[]);
    }
    sum
}
