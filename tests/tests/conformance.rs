//! What the distribution specification requires of a registry that is pulled from, each test named
//! by its requirement; before docker-registry, and before a stand-in that has the referrers API.
//!
//! Source: OCI distribution-spec 1.1, "Pull", "Content Discovery" and "Error Codes". `end-N` are the
//! ids of its table of endpoints.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use larder_core::media::OCI_INDEX;
use larder_core::{Digest, referrer};
use larder_testkit::{Image, Upstream};
use larder_tests::http::{self, Response};
use larder_tests::{DockerRegistry, Larder, Scene};
use serde_json::Value;

const HOST: &str = "registry.test";
const NAME: &str = "conformance/app";
const SIGNATURE: &str = "application/x-signature";

/// What is upstream, and the program before it.
struct Subject {
    larder: Larder,
    image: Image,
    signature: Image,
    _upstream: Behind,
}

enum Behind {
    StandIn { _upstream: Upstream },
    DockerRegistry { _upstream: DockerRegistry },
}

/// The program before each upstream, which has an image with tags `a`, `b`, `c` and a signature.
async fn subjects() -> [Subject; 2] {
    let image = Image::from_seed(7).layers(&[1000, 2 << 20]).build();
    let signature = Image::artifact(SIGNATURE, b"signed", Some(&image));
    let list = Image::index(vec![signature.clone()]);
    let tag = referrer::fallback_tag(image.digest()).unwrap().to_string();

    let stand_in = Upstream::start().await;
    let docker_registry = DockerRegistry::start().await;
    for name in ["b", "c", "a"] {
        stand_in.push(NAME, name, &image);
        docker_registry.push(NAME, name, &image).await;
    }
    stand_in.push_untagged(NAME, &signature);
    docker_registry.push(NAME, &tag, &list).await;

    let before = async |url: &str| {
        let config = format!("[upstreams.\"{HOST}\"]\nurls = [\"{url}\"]\n");
        Larder::settings().config(&config).start().await
    };
    let (image, signature) = (&image, &signature);
    let subject = |larder, _upstream| {
        let (image, signature) = (image.clone(), signature.clone());
        Subject { larder, image, signature, _upstream }
    };
    let (url, other_url) = (stand_in.url(), docker_registry.url());
    [
        subject(before(&url).await, Behind::StandIn { _upstream: stand_in }),
        subject(before(&other_url).await, Behind::DockerRegistry { _upstream: docker_registry }),
    ]
}

impl Subject {
    async fn get(&self, rest: &str) -> Response {
        self.larder.get(&format!("/v2/{HOST}/{NAME}/{rest}")).await
    }

    async fn head(&self, rest: &str) -> Response {
        self.larder.head(&format!("/v2/{HOST}/{NAME}/{rest}")).await
    }
}

#[tokio::test]
async fn end_1_determining_support_answers_200() {
    for it in subjects().await {
        assert_eq!(it.larder.get("/v2/").await.status, 200);
    }
}

#[tokio::test]
async fn end_2_get_of_an_existing_blob_is_200_with_its_bytes_and_digest() {
    for it in subjects().await {
        for blob in it.image.blobs() {
            for _ in ["cold", "warm"] {
                let response = it.get(&format!("blobs/{}", blob.digest)).await;
                assert_eq!(response.status, 200);
                assert_eq!(response.header("docker-content-digest"), blob.digest.to_string());
                response.expect_body(&blob.bytes).await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn end_2_head_of_an_existing_blob_is_200_with_its_length() {
    for it in subjects().await {
        for blob in it.image.blobs() {
            for _ in ["cold", "warm"] {
                let response = it.head(&format!("blobs/{}", blob.digest)).await;
                assert_eq!(response.status, 200);
                assert_eq!(response.header("content-length"), blob.bytes.len().to_string());
                assert_eq!(response.header("docker-content-digest"), blob.digest.to_string());
                it.get(&format!("blobs/{}", blob.digest)).await.bytes().await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn end_2_get_and_head_of_a_missing_blob_are_404() {
    for it in subjects().await {
        let rest = format!("blobs/{}", Digest::sha256_of(b"nobody has this"));
        assert_eq!(it.head(&rest).await.status, 404);
        let response = it.get(&rest).await;
        assert_eq!((response.status, response.error_code().await.as_str()), (404, "BLOB_UNKNOWN"));
    }
}

#[tokio::test]
async fn end_2_a_range_of_a_blob_is_206_with_those_bytes() {
    for it in subjects().await {
        let blob = &it.image.layers[1];
        for _ in ["cold", "warm"] {
            let path = format!("/v2/{HOST}/{NAME}/blobs/{}", blob.digest);
            let request = it.larder.request(&path).header("range", "bytes=100-199");
            let response = request.send().await;
            assert_eq!(response.status, 206);
            let range = format!("bytes 100-199/{}", blob.bytes.len());
            assert_eq!(response.header("content-range"), range);
            response.expect_body(&blob.bytes[100..200]).await.unwrap();
            it.get(&format!("blobs/{}", blob.digest)).await.bytes().await.unwrap();
        }
    }
}

#[tokio::test]
async fn end_3_get_of_an_existing_manifest_is_200_byte_for_byte_with_its_type_and_digest() {
    for it in subjects().await {
        for reference in ["a".to_owned(), it.image.digest().to_string()] {
            for _ in ["cold", "warm"] {
                let response = it.get(&format!("manifests/{reference}")).await;
                assert_eq!(response.status, 200);
                assert_eq!(response.header("content-type"), it.image.manifest.media_type);
                let digest = response.header("docker-content-digest");
                assert_eq!(digest, it.image.digest().to_string());
                response.expect_body(&it.image.manifest.bytes).await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn end_3_head_of_an_existing_manifest_is_200_with_its_length() {
    for it in subjects().await {
        for reference in ["a".to_owned(), it.image.digest().to_string()] {
            for _ in ["cold", "warm"] {
                let response = it.head(&format!("manifests/{reference}")).await;
                assert_eq!(response.status, 200);
                let length = it.image.manifest.bytes.len().to_string();
                assert_eq!(response.header("content-length"), length);
                let digest = response.header("docker-content-digest");
                assert_eq!(digest, it.image.digest().to_string());
                it.get(&format!("manifests/{reference}")).await.bytes().await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn end_3_get_and_head_of_a_missing_manifest_are_404() {
    for it in subjects().await {
        for reference in ["missing".to_owned(), Digest::sha256_of(b"nobody has this").to_string()] {
            assert_eq!(it.head(&format!("manifests/{reference}")).await.status, 404);
            let response = it.get(&format!("manifests/{reference}")).await;
            let code = (response.status, response.error_code().await);
            assert_eq!(code, (404, "MANIFEST_UNKNOWN".to_owned()));
        }
    }
}

#[tokio::test]
async fn end_8a_tags_are_listed_with_the_name_in_lexical_order() {
    for it in subjects().await {
        let response = it.get("tags/list").await;
        assert_eq!(response.status, 200);
        let list = response.json().await;
        assert_eq!(list["name"], format!("{HOST}/{NAME}"));
        let tags = names(&list);
        assert!(tags.is_sorted(), "{tags:?}");
        assert!(tags.starts_with(&["a".to_owned(), "b".to_owned(), "c".to_owned()]), "{tags:?}");
    }
}

#[tokio::test]
async fn end_8a_tags_of_a_missing_repository_are_404() {
    for it in subjects().await {
        let response = it.larder.get(&format!("/v2/{HOST}/conformance/missing/tags/list")).await;
        assert_eq!((response.status, response.error_code().await.as_str()), (404, "NAME_UNKNOWN"));
    }
}

#[tokio::test]
async fn end_8b_at_most_n_tags_are_listed_those_after_last() {
    for it in subjects().await {
        let first = it.get("tags/list?n=2").await;
        assert!(first.has_header("link"));
        assert_eq!(names(&first.json().await), ["a", "b"]);
        assert_eq!(names(&it.get("tags/list?n=1&last=a").await.json().await), ["b"]);
        let none = it.get("tags/list?n=0").await;
        assert_eq!((none.status, none.has_header("link")), (200, false));
        assert!(names(&none.json().await).is_empty());
    }
}

#[tokio::test]
async fn end_8b_the_link_of_a_page_leads_to_the_next_one_and_the_last_page_has_none() {
    for it in subjects().await {
        let mut path = format!("/v2/{HOST}/{NAME}/tags/list?n=1");
        let mut found = Vec::new();
        loop {
            let response = it.larder.get(&path).await;
            let link = response.has_header("link").then(|| response.header("link").to_owned());
            found.extend(names(&response.json().await));
            let Some(link) = link else { break };
            assert!(link.ends_with(">; rel=\"next\""), "{link}");
            path = link.strip_prefix('<').unwrap().split_once('>').unwrap().0.to_owned();
        }
        assert_eq!(found, names(&it.get("tags/list").await.json().await));
    }
}

#[tokio::test]
async fn end_12a_referrers_are_200_with_an_image_index_of_descriptors() {
    for it in subjects().await {
        // Before a registry without the API, what was pulled is described by itself.
        it.get(&format!("manifests/{}", it.signature.digest())).await.bytes().await.unwrap();
        let response = it.get(&format!("referrers/{}", it.image.digest())).await;
        assert_eq!((response.status, response.header("content-type")), (200, OCI_INDEX));
        let list = response.json().await;
        assert_eq!(
            (&list["schemaVersion"], list["mediaType"].as_str().unwrap()),
            (&2.into(), OCI_INDEX)
        );
        let descriptors = list["manifests"].as_array().unwrap();
        assert_eq!(descriptors.len(), 1, "{list}");
        assert_eq!(descriptors[0]["digest"], it.signature.digest().to_string());
        assert_eq!(descriptors[0]["size"], it.signature.manifest.bytes.len());
        assert_eq!(descriptors[0]["mediaType"], it.signature.manifest.media_type);
    }
}

#[tokio::test]
async fn end_12a_referrers_of_what_is_not_there_are_an_empty_list_and_never_404() {
    for it in subjects().await {
        let digest = Digest::sha256_of(b"nobody has this");
        let response = it.get(&format!("referrers/{digest}")).await;
        assert_eq!((response.status, response.header("content-type")), (200, OCI_INDEX));
        assert_eq!(response.json().await["manifests"], serde_json::json!([]));
    }
}

#[tokio::test]
async fn end_12a_referrers_of_what_is_no_digest_are_400() {
    for it in subjects().await {
        for bad in ["latest", "sha256:xyz", "md5:00"] {
            assert_eq!(it.get(&format!("referrers/{bad}")).await.status, 400, "{bad}");
        }
    }
}

#[tokio::test]
async fn end_12b_a_filter_that_was_applied_is_named() {
    for it in subjects().await {
        let rest = format!("referrers/{}?artifactType=application%2Fx-other", it.image.digest());
        let response = it.get(&rest).await;
        assert_eq!(
            (response.status, response.header("oci-filters-applied")),
            (200, "artifactType")
        );
        assert_eq!(response.json().await["manifests"], serde_json::json!([]));
    }
}

#[tokio::test]
async fn error_codes_are_json_with_codes_of_the_specification() {
    let scene = Scene::new().await;
    for (path, status, code) in [
        (format!("/v2/{HOST}/a/manifests/missing"), 404, "MANIFEST_UNKNOWN"),
        (format!("/v2/{HOST}/a/blobs/sha256:xyz"), 400, "DIGEST_INVALID"),
        (format!("/v2/{HOST}/A/manifests/1"), 400, "NAME_INVALID"),
        ("/v2/unknown.test/a/manifests/1".to_owned(), 404, "NAME_UNKNOWN"),
    ] {
        let response = scene.larder.get(&path).await;
        assert_eq!(
            (response.status, response.header("content-type")),
            (status, "application/json")
        );
        let body = response.json().await;
        let errors = body["errors"].as_array().unwrap();
        assert_eq!(errors[0]["code"], code, "{path}");
        assert!(errors[0]["message"].is_string(), "{path}");
    }
}

#[tokio::test]
async fn what_a_registry_that_is_only_pulled_from_does_not_do_is_405_unsupported() {
    let scene = Scene::new().await;
    let digest = Digest::sha256_of(b"");
    for (endpoint, method, rest) in [
        ("end-4a", "POST", "blobs/uploads/".to_owned()),
        ("end-5", "PATCH", "blobs/uploads/1".to_owned()),
        ("end-6", "PUT", format!("blobs/uploads/1?digest={digest}")),
        ("end-7", "PUT", "manifests/1".to_owned()),
        ("end-9", "DELETE", "manifests/1".to_owned()),
        ("end-10", "DELETE", format!("blobs/{digest}")),
        ("end-11", "POST", format!("blobs/uploads/?mount={digest}&from=b")),
        ("end-13", "GET", "blobs/uploads/1".to_owned()),
    ] {
        let url = scene.larder.url(&format!("/v2/{HOST}/a/{rest}"));
        let response = http::request(method, &url).send().await;
        let answer = (response.status, response.error_code().await);
        assert_eq!(answer, (405, "UNSUPPORTED".to_owned()), "{endpoint}");
    }
}

fn names(list: &Value) -> Vec<String> {
    let tags = list["tags"].as_array().unwrap();
    tags.iter().map(|tag| tag.as_str().unwrap().to_owned()).collect()
}
