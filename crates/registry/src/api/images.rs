//! What is stored, as people name it.

use std::collections::HashSet;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use globset::{Glob, GlobMatcher};
use larder_api_types::images::{self, Image, Images, MAX_PAGE, PAGE};
use larder_core::Digest;
use larder_core::manifest::Manifest;
use larder_store::{Listed, Place, Store, StoreError};

use super::Api;
use super::answer::{Refused, Told};

/// The most manifests that one page looks at, so that a pattern which matches little answers soon.
const MAX_LOOKED_AT: usize = 5_000;

/// How many questions to the index one page may cost, at some 50 µs each. A page ends with the image
/// that exceeds it.
const MAX_QUESTIONS: usize = 20_000;

/// Manifests of one image are read until this much content has been seen: an index of 50 images with
/// 100 layers each.
const MAX_PARTS: usize = 5_000;

/// The most tags of one image that are told.
const MAX_TAGS: u32 = 1_000;

/// `GET /images`
pub(super) async fn list(
    State(api): State<Api>,
    query: Result<Query<images::Query>, QueryRejection>,
) -> Result<Told<Images>, Refused> {
    let Query(query) = query?;
    let limit = query.limit.unwrap_or(PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(Refused::bad_request(format!("`limit` must be 1 to {MAX_PAGE}")));
    }
    let after = query.after.as_deref().map(str::parse).transpose().map_err(|_| {
        Refused::bad_request("`after` must be the `next` of the page before, or not be there")
    })?;
    let matching = query.matching.as_deref().map(glob).transpose()?;
    let page = page(&api.registry.store, after.unwrap_or_default(), limit, matching.as_ref());
    Ok(Told(page.await?))
}

fn glob(text: &str) -> Result<GlobMatcher, Refused> {
    let glob = Glob::new(text).map_err(|error| {
        Refused::bad_request(format!("`matching` is not a pattern: {}", error.kind()))
    });
    Ok(glob?.compile_matcher())
}

async fn page(
    store: &Store,
    after: Place,
    limit: u32,
    matching: Option<&GlobMatcher>,
) -> Result<Images, StoreError> {
    let (mut page, mut place) = (Images::default(), after);
    let (mut n_looked_at, mut n_questions) = (0, 0);
    loop {
        let batch = store.manifests(place, limit).await?;
        let is_last = batch.len() < limit as usize;
        for listed in batch {
            let is_full = page.images.len() >= limit as usize;
            if is_full || n_looked_at >= MAX_LOOKED_AT || n_questions >= MAX_QUESTIONS {
                page.next = Some(place.to_string());
                return Ok(page);
            }
            place = listed.place;
            n_looked_at += 1;
            let tags = store.tags_of(place, MAX_TAGS).await?;
            if matching.is_none_or(|glob| names(&listed, &tags).any(|name| glob.is_match(name))) {
                let parts = Parts::of(store, &listed).await?;
                n_questions += parts.seen.len();
                page.images.push(image(listed, tags, parts));
            }
        }
        if is_last {
            return Ok(page);
        }
    }
}

/// What people may call an image.
fn names<'a>(listed: &'a Listed, tags: &'a [String]) -> impl Iterator<Item = String> {
    let Listed { repository, digest, .. } = listed;
    let with_tags = tags.iter().map(move |tag| format!("{repository}:{tag}"));
    with_tags.chain([repository.to_string(), format!("{repository}@{digest}")])
}

fn image(listed: Listed, tags: Vec<String>, parts: Parts) -> Image {
    Image {
        host: listed.repository.host.to_string(),
        repository: listed.repository.repository.to_string(),
        tags,
        digest: listed.digest,
        media_type: listed.media_type,
        stored_bytes: parts.stored,
        missing_bytes: parts.missing,
        last_used: listed.used_at,
        images: parts.images,
    }
}

/// What an image is made of.
#[derive(Debug, Default)]
struct Parts {
    /// Each counts once.
    seen: HashSet<Digest>,
    stored: u64,
    missing: u64,
    images: Vec<Digest>,
}

impl Parts {
    async fn of(store: &Store, listed: &Listed) -> Result<Self, StoreError> {
        let mut parts = Self { stored: listed.size, ..Self::default() };
        parts.seen.insert(listed.digest.clone());
        let mut to_read = vec![listed.digest.clone()];
        while let Some(digest) = to_read.pop()
            && parts.seen.len() < MAX_PARTS
        {
            let Some(bytes) = store.peek_manifest(&digest).await? else { continue };
            let Ok(manifest) = Manifest::parse(&bytes) else { continue };
            for child in &manifest.manifests {
                // Nobody has to have all images of an index.
                if let Some(size) = parts.size_of(store, &child.digest).await? {
                    parts.stored += size;
                    parts.images.push(child.digest.clone());
                    to_read.push(child.digest.clone());
                }
            }
            for blob in &manifest.blobs {
                if parts.seen.contains(&blob.digest) {
                    continue;
                }
                match parts.size_of(store, &blob.digest).await? {
                    Some(size) => parts.stored += size,
                    None => parts.missing = parts.missing.saturating_add(blob.size),
                }
            }
        }
        Ok(parts)
    }

    /// The stored bytes of something that was not seen before.
    async fn size_of(&mut self, store: &Store, digest: &Digest) -> Result<Option<u64>, StoreError> {
        if !self.seen.insert(digest.clone()) {
            return Ok(None);
        }
        Ok(store.blob_record(digest).await?.map(|record| record.size))
    }
}
