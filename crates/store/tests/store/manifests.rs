//! Manifests, and what they let a repository serve.

use std::sync::Arc;

use bytes::Bytes;
use larder_core::Digest;
use larder_store::{CommitError, References, Store, StoredManifest};

use crate::home::{Home, close, commit, content, repository};

const MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

#[tokio::test]
async fn a_manifest_has_its_bytes_and_media_type_also_after_reopening() {
    let home = Home::new();
    let store = home.open().await;
    let bytes = content(1, 1000);
    let put = put(&store, "ghcr.io/a/b", &bytes, &[]).await;
    assert_eq!((&put.bytes, put.media_type.as_str()), (&bytes, MEDIA_TYPE));
    close(store).await;
    let store = home.open().await;
    let found = store.manifest(&put.digest).await.unwrap().unwrap();
    assert_eq!((&found.bytes, found.media_type.as_str()), (&bytes, MEDIA_TYPE));
    assert_eq!(store.usage().bytes, home.room(1000));
}

#[tokio::test]
async fn children_may_be_served_under_the_manifests_repository_and_no_other() {
    let home = Home::new();
    let store = home.open().await;
    let (child, stranger) = (name(1), name(2));
    let manifest = put(&store, "ghcr.io/a/b", &content(3, 100), std::slice::from_ref(&child)).await;
    close(store).await;
    let store = home.open().await;
    let (named, other) = (repository("ghcr.io/a/b"), repository("ghcr.io/a/c"));
    for digest in [&child, &manifest.digest] {
        assert!(store.is_member(&named, digest).await.unwrap());
        assert!(!store.is_member(&other, digest).await.unwrap());
    }
    assert!(!store.is_member(&named, &stranger).await.unwrap());
    assert!(store.blob(&child).await.unwrap().is_none(), "a member need not be stored");
}

#[tokio::test]
async fn a_manifest_put_for_a_second_repository_lets_that_one_serve_its_children_too() {
    let home = Home::new();
    let store = home.open().await;
    let child = name(1);
    for repository in ["ghcr.io/a/b", "ghcr.io/a/c"] {
        put(&store, repository, &content(3, 100), std::slice::from_ref(&child)).await;
    }
    assert!(store.is_member(&repository("ghcr.io/a/c"), &child).await.unwrap());
    store.close().await;
    home.assert_agrees_with(&store).await;
}

#[tokio::test]
async fn bytes_that_are_not_the_named_manifest_are_refused() {
    let home = Home::new();
    let store = home.open().await;
    let (named, digest) = (repository("ghcr.io/a/b"), name(1));
    let none = References::default();
    let put = store.put_manifest(&named, &digest, MEDIA_TYPE, content(2, 10), none);
    let error = put.await.unwrap_err();
    assert!(matches!(error, CommitError::Digest { .. }), "{error}");
    assert!(store.manifest(&digest).await.unwrap().is_none());
    store.close().await;
    home.assert_agrees_with(&store).await;
}

#[tokio::test]
async fn a_blob_that_is_no_manifest_is_not_given_as_one() {
    let home = Home::new();
    let store = home.open().await;
    let digest = commit(&store, &content(1, 10)).await;
    assert!(store.manifest(&digest).await.unwrap().is_none());
}

#[tokio::test]
async fn a_manifest_with_changed_bytes_is_forgotten_and_can_be_stored_again() {
    let home = Home::new();
    let store = home.open().await;
    let bytes = content(1, 1000);
    let digest = put(&store, "ghcr.io/a/b", &bytes, &[]).await.digest.clone();
    close(store).await;
    std::fs::write(home.blob_path(&digest), content(2, 1000)).unwrap();
    let store = home.open().await;
    assert!(store.manifest(&digest).await.unwrap().is_none());
    assert_eq!(store.usage().bytes, 0);
    put(&store, "ghcr.io/a/b", &bytes, &[]).await;
    assert_eq!(store.manifest(&digest).await.unwrap().unwrap().bytes, bytes);
    store.close().await;
    home.assert_agrees_with(&store).await;
}

#[tokio::test]
async fn a_manifest_whose_file_has_become_huge_is_forgotten_without_reading_it() {
    let home = Home::new();
    let store = home.open().await;
    let digest = put(&store, "ghcr.io/a/b", &content(1, 1000), &[]).await.digest.clone();
    close(store).await;
    let file = std::fs::OpenOptions::new().write(true).open(home.blob_path(&digest)).unwrap();
    file.set_len(1 << 43).unwrap();
    let store = home.open().await;
    assert!(store.manifest(&digest).await.unwrap().is_none());
    store.close().await;
    home.assert_agrees_with(&store).await;
}

async fn put(
    store: &Store,
    named: &str,
    bytes: &Bytes,
    children: &[Digest],
) -> Arc<StoredManifest> {
    let digest = Digest::sha256_of(bytes);
    let named = repository(named);
    let references = References { children: children.to_vec(), subject: None };
    store.put_manifest(&named, &digest, MEDIA_TYPE, bytes.clone(), references).await.unwrap()
}

fn name(seed: u64) -> Digest {
    Digest::sha256_of(&seed.to_le_bytes())
}
