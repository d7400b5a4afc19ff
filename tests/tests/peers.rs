//! Real clients pull through the program from a real registry.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::collections::{BTreeMap, BTreeSet};

use larder_core::Digest;
use larder_testkit::Image;
use larder_tests::docker_registry::Access;
use larder_tests::scratch::digests_below;
use larder_tests::{Containerd, Docker, DockerRegistry, Larder, Podman, Skopeo};

/// What clients call the upstream. Nobody could reach it by this name.
const HOST: &str = "registry.test";
const REFERENCE: &str = "registry.test/team/app:1";

#[tokio::test]
async fn containerd_pulls_through_a_mirror_and_again_when_upstream_is_gone() {
    let mut upstream = DockerRegistry::start().await;
    let image = Image::from_seed(1).layers(&[3 << 20, 5 << 20, 100]).unpackable().build();
    upstream.push("team/app", "1", &image).await;
    let n_pushed = upstream.requests().await.len();
    let larder = Larder::with_upstream(HOST, &upstream.url()).await;

    let first = Containerd::start().await;
    first.mirror(HOST, &upstream.url(), &larder.url(""));
    first.pull(REFERENCE).await.unwrap();
    assert_eq!(first.files(REFERENCE).await, files_of(&image));
    assert_each_blob_was_asked_for_once(&upstream.requests().await[n_pushed..], &image);
    let by_containerd = larder.metric("larder_requests_total", &[("upstream", HOST)]).await;
    assert!(
        by_containerd >= 6.0,
        "a manifest, a configuration, three layers and a tag: {by_containerd}"
    );

    upstream.stop();
    let second = Containerd::start().await;
    second.mirror(HOST, &upstream.url(), &larder.url(""));
    second.pull(REFERENCE).await.unwrap();
    assert_eq!(second.files(REFERENCE).await, files_of(&image));
}

#[tokio::test]
async fn containerd_knows_what_it_pulled_and_forgets_what_it_is_told_to() {
    let upstream = DockerRegistry::start().await;
    let image = Image::from_seed(2).layers(&[1000]).unpackable().build();
    upstream.push("team/app", "1", &image).await;
    let larder = Larder::with_upstream(HOST, &upstream.url()).await;
    let containerd = Containerd::start().await;
    containerd.mirror(HOST, &upstream.url(), &larder.url(""));
    let cri = containerd.cri();
    assert_eq!(cri.version().await.unwrap().name, "containerd");
    assert_eq!(cri.image_status(REFERENCE).await.unwrap(), None);

    containerd.pull(REFERENCE).await.unwrap();
    let status = cri.image_status(REFERENCE).await.unwrap().unwrap();
    assert_eq!(status.id, image.config.unwrap().digest.to_string());
    assert_eq!(status.digests, [format!("registry.test/team/app@{}", image.manifest.digest)]);
    assert_eq!(cri.list_images().await.unwrap(), [status]);

    cri.remove_image(REFERENCE).await.unwrap();
    assert_eq!(cri.list_images().await.unwrap(), []);
    assert!(containerd.pull("registry.test/team/missing:1").await.is_err());
}

#[tokio::test]
async fn ctr_pulls_an_index_for_its_platform_through_a_mirror() {
    let upstream = DockerRegistry::start().await;
    let index = two_platforms(3);
    upstream.push("team/app", "1", &index).await;
    let n_pushed = upstream.requests().await.len();
    let larder = Larder::with_upstream(HOST, &upstream.url()).await;
    let containerd = Containerd::start().await;
    containerd.mirror(HOST, &upstream.url(), &larder.url(""));

    containerd.pull_by_ctr(REFERENCE).await;
    let ours = &index.images[if cfg!(target_arch = "x86_64") { 0 } else { 1 }];
    assert_eq!(containerd.files(REFERENCE).await, files_of(ours));
    assert_each_blob_was_asked_for_once(&upstream.requests().await[n_pushed..], ours);
}

#[tokio::test]
async fn podman_pulls_through_a_mirror_and_again_when_upstream_is_gone() {
    let mut upstream = DockerRegistry::start().await;
    let image = Image::from_seed(4).layers(&[3 << 20, 100]).unpackable().docker().build();
    upstream.push("team/app", "1", &image).await;
    let n_pushed = upstream.requests().await.len();
    let larder = Larder::with_upstream(HOST, &upstream.url()).await;
    // The host is in the path of what the mirror is asked for.
    let mirror = format!("{}/{HOST}", larder.host);

    let first = Podman::with_mirror(HOST, &upstream.host, &mirror);
    first.pull(REFERENCE).await.expect("podman pull");
    assert_eq!(first.files(REFERENCE).await, files_of(&image));
    assert_each_blob_was_asked_for_once(&upstream.requests().await[n_pushed..], &image);

    upstream.stop();
    let second = Podman::with_mirror(HOST, &upstream.host, &mirror);
    second.pull(REFERENCE).await.expect("podman pull, upstream gone");
    assert_eq!(second.files(REFERENCE).await, files_of(&image));
}

#[tokio::test]
async fn skopeo_copies_every_platform_and_again_when_upstream_is_gone() {
    let mut upstream = DockerRegistry::start().await;
    let index = two_platforms(5);
    upstream.push("team/app", "1", &index).await;
    let n_pushed = upstream.requests().await.len();
    let larder = Larder::with_upstream(HOST, &upstream.url()).await;
    let reference = format!("{}/{REFERENCE}", larder.host);

    let skopeo = Skopeo::default();
    skopeo.copy_all(&reference, "first").await.expect("skopeo copy");
    assert_copied(&skopeo, "first", &index);
    let requests = upstream.requests().await;
    for image in &index.images {
        assert_each_blob_was_asked_for_once(&requests[n_pushed..], image);
    }

    upstream.stop();
    skopeo.copy_all(&reference, "second").await.expect("skopeo copy, upstream gone");
    assert_copied(&skopeo, "second", &index);
}

#[tokio::test]
async fn dockerd_pulls_names_of_docker_hub_through_a_mirror_and_again_when_upstream_is_gone() {
    let mut upstream = DockerRegistry::start().await;
    let image = Image::from_seed(6).layers(&[3 << 20, 100]).unpackable().docker().build();
    upstream.push("team/app", "1", &image).await;
    let n_pushed = upstream.requests().await.len();
    let larder = Larder::with_upstream("docker.io", &upstream.url()).await;

    let docker = Docker::start(&[&larder.url("")]).await;
    docker.pull("team/app:1").await.unwrap();
    let expected: BTreeSet<Digest> = files_of(&image).into_values().collect();
    assert_eq!(docker.files("team/app:1").await, expected);
    assert_each_blob_was_asked_for_once(&upstream.requests().await[n_pushed..], &image);

    upstream.stop();
    docker.remove("team/app:1").await;
    docker.pull("team/app:1").await.unwrap();
    assert_eq!(docker.files("team/app:1").await, expected);
}

fn two_platforms(seed: u64) -> Image {
    let image = |n: u64, architecture| {
        let image = Image::from_seed(seed * 10 + n).layers(&[2 << 20, 300]).unpackable();
        image.platform("linux", architecture).build()
    };
    Image::index(vec![image(1, "amd64"), image(2, "arm64")])
}

fn files_of(image: &Image) -> BTreeMap<String, Digest> {
    image.files.iter().map(|(path, bytes)| (path.clone(), Digest::sha256_of(bytes))).collect()
}

/// Every manifest and blob of `index` is in the folder, called by its hash.
fn assert_copied(skopeo: &Skopeo, folder: &str, index: &Image) {
    let copied = digests_below(&skopeo.folder(folder));
    for image in &index.images {
        for blob in image.blobs() {
            assert_eq!(copied.get(&blob.digest.hex()), Some(&blob.digest), "{copied:?}");
        }
        let name = format!("{}.manifest.json", image.digest().hex());
        assert_eq!(copied.get(&name), Some(image.digest()), "{copied:?}");
    }
    assert_eq!(copied.get("manifest.json"), Some(index.digest()), "{copied:?}");
}

/// The upstream answered one GET, with the whole, for each blob of `image`.
fn assert_each_blob_was_asked_for_once(requests: &[Access], image: &Image) {
    for blob in image.blobs() {
        let digest = blob.digest.to_string();
        let fetches: Vec<&Access> = requests
            .iter()
            .filter(|access| access.method == "GET" && access.target.contains(&digest))
            .collect();
        let sizes: Vec<u64> = fetches.iter().map(|access| access.n_bytes).collect();
        assert_eq!(sizes, [blob.bytes.len() as u64], "{fetches:?}");
    }
}
