//! What the shared tier promises, against a real PostgreSQL and a real S3 server.

mod keeping;

use std::time::{Instant, SystemTime};

use larder_core::eviction::{Order, Queue};
use larder_testkit::blackhole::Blackhole;
use larder_testkit::{Postgres, Rgw, patiently};
use tempfile::TempDir;

use super::*;
use crate::index::turns::FIRST;
use crate::index::{References, Stored};
use crate::{Settings, Store};

const MIB: usize = 1 << 20;

#[tokio::test]
async fn what_one_replica_stores_the_others_find() {
    let tier = Tier::start().await;
    let (one, two) = (tier.replica().await, tier.replica().await);
    let (small, large) = (bytes(1, 1000), bytes(2, 20 * MIB + 1));
    let manifest = Bytes::from(format!(
        r#"{{"schemaVersion":2,"config":{{"digest":"{}","size":1000}},"layers":[{{"digest":"{}","size":5}}]}}"#,
        Digest::sha256_of(&small),
        Digest::sha256_of(&large)
    ));
    let digests = [one.put(&small).await, one.put(&large).await, one.put_manifest(&manifest).await];
    for digest in &digests {
        one.uploaded(digest).await;
    }
    for (digest, bytes) in digests.iter().zip([&small, &large]) {
        let blob = two.finds(digest).await;
        assert_eq!(blob.len, bytes.len() as u64);
        assert!(whole(blob.read(None).await.unwrap()).await == *bytes);
        let part = blob.read(Some((10, Some(19)))).await.unwrap();
        assert_eq!((part.start, part.remaining, part.length), (10, 10, bytes.len() as u64));
        assert_eq!(whole(part).await, bytes.slice(10..20));
        assert!(whole(blob.read(Some((990, None))).await.unwrap()).await == bytes.slice(990..));
        patiently("the other one knows who may serve it", async {
            while !two.store.is_member(&named("a.io/b"), digest).await.unwrap() {}
        })
        .await;
        assert!(!two.store.is_member(&named("a.io/c"), digest).await.unwrap());
    }
    let found = patiently("the manifest is found", async {
        loop {
            if let Some(found) = two.store.manifest(&digests[2]).await.unwrap() {
                break found;
            }
        }
    })
    .await;
    assert_eq!((found.media_type.as_str(), &found.bytes), ("x/y", &manifest));
    assert_eq!(tier.uploads().await, 0);
}

#[tokio::test]
async fn a_blob_that_several_replicas_have_is_uploaded_by_one_of_them() {
    let tier = Tier::start().await;
    let (one, two) = (tier.replica().await, tier.replica().await);
    let content = bytes(3, 9 * MIB);
    let (digest, _) = tokio::join!(one.put(&content), two.put(&content));
    one.uploaded(&digest).await;
    two.uploaded(&digest).await;
    let uploaded = [&one, &two].map(|it| it.shared().status().uploaded.0);
    assert_eq!(uploaded.iter().sum::<u64>(), 1, "{uploaded:?}");
}

#[tokio::test]
async fn what_was_stored_during_an_outage_is_uploaded_after_a_restart() {
    let tier = Tier::start().await;
    let directory = tempfile::tempdir().unwrap();
    let hole = Blackhole::refusing();
    let mut settings = tier.settings();
    settings.s3.endpoint = Some(hole.url().parse().unwrap());
    let before = Replica::open(directory, settings).await;
    let digest = before.put(&bytes(4, 1000)).await;
    before.store.close().await;
    let Replica { store, directory } = before;
    drop(store);
    let after = Replica::open(directory, tier.settings()).await;
    after.uploaded(&digest).await;
}

#[tokio::test]
async fn what_has_not_been_uploaded_is_the_last_to_go_and_goes_if_it_must() {
    let hole = Blackhole::refusing();
    let mut settings = Tier::start().await.settings();
    settings.s3.endpoint = Some(hole.url().parse().unwrap());
    settings.database = DatabaseUrl(format!("postgres://postgres@{}/x", hole.address()));
    let directory = tempfile::tempdir().unwrap();
    let usual = Settings::new(directory.path().to_owned());
    let budget = Some(5 * MIB as u64 / 2);
    let settings = Settings { shared: Some(settings), budget, ..usual };
    let replica = Replica { store: Store::open(settings).await.unwrap(), directory };
    let is_there =
        async |digest: &Digest| replica.store.index().blob(digest).await.unwrap().is_some();
    let gone = async |digest: &Digest| {
        patiently("it goes", async { while is_there(digest).await {} }).await;
    };
    let first = replica.put(&bytes(21, MIB)).await;
    let second = replica.put(&bytes(22, MIB)).await;
    replica.store.index().set_shared(&second, true).await.unwrap();
    let third = replica.put(&bytes(23, MIB)).await;
    gone(&second).await;
    assert!(is_there(&first).await);
    replica.put(&bytes(24, MIB)).await;
    gone(&first).await;
    assert!(is_there(&third).await);
}

#[tokio::test]
async fn tags_are_known_to_all_and_the_one_that_was_asked_for_last_counts() {
    let tier = Tier::start().await;
    let (one, two) = (tier.replica().await, tier.replica().await);
    let (name, tag, variant) = (named("a.io/b"), "1".parse::<Tag>().unwrap(), Arc::from(""));
    let record = |content: &[u8], seconds| TagRecord {
        digest: Digest::sha256_of(content),
        media_type: "x/y".to_owned(),
        size: 1,
        checked_at: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
    };
    one.store.put_tag(&name, &tag, &variant, record(b"new", 20)).await.unwrap();
    patiently("the tag is known", async {
        while two.store.tag(&name, &tag, &variant).await.unwrap().is_none() {}
    })
    .await;
    two.store.put_tag(&name, &tag, &variant, record(b"old", 10)).await.unwrap();
    two.store.put_tag(&name, &"2".parse().unwrap(), &variant, record(b"x", 1)).await.unwrap();
    patiently("later notes are written", async {
        let later = "2".parse().unwrap();
        while one.store.tag(&name, &later, &variant).await.unwrap().is_none() {}
    })
    .await;
    let time = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let found = two.store.newer_tag(&name, &tag, &variant, time(10)).await.unwrap();
    assert_eq!(found.digest, Digest::sha256_of(b"new"));
    assert!(two.store.newer_tag(&name, &tag, &variant, time(20)).await.is_none());
}

#[tokio::test]
async fn an_object_that_somebody_removed_is_forgotten() {
    let tier = Tier::start().await;
    let (one, two) = (tier.replica().await, tier.replica().await);
    let digest = one.put(&bytes(5, 1000)).await;
    one.uploaded(&digest).await;
    let blob = two.finds(&digest).await;
    let (algorithm, hex) = (digest.algorithm(), digest.hex());
    let path = format!("{}/some/prefix/{algorithm}/{}/{hex}", tier.bucket, &hex[..2]);
    tier.rgw.request("DELETE", &path).await;
    assert!(matches!(blob.read(None).await, Err(SharedError::Missing)));
    assert!(two.shared().blob(&digest).await.is_none());
}

#[tokio::test]
async fn what_is_not_what_it_is_called_is_neither_uploaded_nor_kept() {
    let tier = Tier::start().await;
    let (one, two) = (tier.replica().await, tier.replica().await);
    let (content, other) = (bytes(6, 9 * MIB), bytes(7, 9 * MIB));
    let blob = one.store_only(&content).await;
    let wrong = Digest::sha256_of(&other);
    let bucket = &two.shared().0.bucket;
    let upload = bucket.begin(&wrong).await.unwrap();
    let mut parts = bucket.parts(&wrong, &upload, &blob.file, blob.len);
    while !parts.is_over() {
        parts.send_next().await.unwrap();
    }
    assert!(matches!(parts.complete().await, Err(BucketError::Local(_))));
    bucket.abort(&wrong, &upload).await.unwrap();
    assert!(matches!(bucket.get(&wrong, None).await, Err(BucketError::Missing)));
    assert!(bucket.put_small(&wrong, &blob.file, 1000).await.is_err());

    // One that got there all the same is found by reading it again.
    one.uploaded(&blob.digest).await;
    bucket.put_unchecked(&wrong, content).await;
    let (len, order) = (blob.len, Order::default());
    let stored = Stored { len, room: len, now: at(1), order, fits: true };
    two.shared().0.index.put_blob(&wrong, stored, &named("a.io/b"), None).await.unwrap();
    two.finds(&wrong).await;
    two.shared().verify(SystemTime::now() - Duration::from_secs(3600)).await.unwrap();
    assert!(two.shared().blob(&wrong).await.is_none());
    two.finds(&blob.digest).await;
}

#[tokio::test]
async fn what_a_crash_has_left_is_collected() {
    let tier = Tier::start().await;
    let replica = tier.replica().await;
    let blob = replica.store_only(&bytes(8, 9 * MIB)).await;
    replica.uploaded(&blob.digest).await;
    let (digest, shared) = (Digest::sha256_of(b"never ends"), replica.shared());
    let (bucket, index) = (&shared.0.bucket, &shared.0.index);

    // A replica dies while it uploads.
    let upload = bucket.begin(&digest).await.unwrap();
    let mut parts = bucket.parts(&digest, &upload, &blob.file, blob.len);
    parts.send_next().await.unwrap();
    drop(parts);
    index.claim(&digest, "dead", Duration::from_secs(60)).await.unwrap().unwrap();
    index.keep_claim(&digest, "dead", Some(&upload), Duration::ZERO).await.unwrap();
    assert_eq!(tier.uploads().await, 1);
    shared.collect().await.unwrap();
    assert_eq!(tier.uploads().await, 0);

    // And one between uploading and recording.
    let orphan = bytes(9, 1000);
    let file = replica.store_only(&orphan).await;
    replica.uploaded(&file.digest).await;
    index.remove_blob(&file.digest).await.unwrap();
    shared.remove_unknown(SystemTime::now() - Duration::from_secs(3600)).await.unwrap();
    assert!(bucket.get(&file.digest, None).await.is_ok(), "it may be being stored");
    shared.remove_unknown(SystemTime::now() + Duration::from_secs(3600)).await.unwrap();
    assert!(matches!(bucket.get(&file.digest, None).await, Err(BucketError::Missing)));
    assert!(bucket.get(&blob.digest, None).await.is_ok());
}

#[tokio::test]
async fn a_replica_is_there_as_long_as_it_says_so() {
    let tier = Tier::start().await;
    let replica = tier.replica().await;
    let shared = replica.shared();
    assert_eq!(shared.heartbeat("http://b:1").await.unwrap(), ["http://b:1"]);
    assert_eq!(shared.heartbeat("http://a:1").await.unwrap(), ["http://a:1", "http://b:1"]);
    shared.leave("http://b:1").await;
    assert_eq!(shared.heartbeat("http://a:1").await.unwrap(), ["http://a:1"]);
    assert!(shared.0.index.replicas(Duration::ZERO).await.unwrap().is_empty());
}

#[tokio::test]
async fn one_holder_at_a_time_has_a_lease_or_a_claim() {
    let tier = Tier::start().await;
    let replica = tier.replica().await;
    let (index, minute) = (&replica.shared().0.index, Duration::from_secs(60));
    assert!(index.lease("work", "one", minute).await.unwrap());
    assert!(index.lease("work", "one", minute).await.unwrap());
    assert!(!index.lease("work", "two", minute).await.unwrap());
    assert!(index.lease("work", "one", Duration::ZERO).await.unwrap());
    assert!(index.lease("work", "two", minute).await.unwrap());
    index.release_leases("two").await.unwrap();
    assert!(index.lease("work", "one", minute).await.unwrap());

    let digest = Digest::sha256_of(b"it");
    let claimed = index.claim(&digest, "one", minute).await.unwrap().unwrap();
    assert_eq!(claimed.upload, None);
    assert!(index.claim(&digest, "two", minute).await.unwrap().is_none());
    assert!(!index.keep_claim(&digest, "two", None, minute).await.unwrap());
    assert!(index.keep_claim(&digest, "one", Some("u"), Duration::ZERO).await.unwrap());
    assert_eq!(index.abandoned(9).await.unwrap(), std::slice::from_ref(&digest));
    let taken = index.claim(&digest, "two", minute).await.unwrap().unwrap();
    assert_eq!(taken.upload.as_deref(), Some("u"));
    assert!(!index.keep_claim(&digest, "one", None, minute).await.unwrap());
    index.release_claim(&digest, "two").await.unwrap();
    assert!(index.claim(&digest, "one", minute).await.unwrap().is_some());
}

#[tokio::test]
async fn services_that_are_silent_cost_a_bounded_time_once() {
    let tier = Tier::start().await;
    let hole = Blackhole::silent();
    let mut settings = tier.settings();
    settings.s3.endpoint = Some(hole.url().parse().unwrap());
    let replica = Replica::open(tempfile::tempdir().unwrap(), settings).await;
    let digest = Digest::sha256_of(b"it");
    let bucket = &replica.shared().0.bucket;
    let since = Instant::now();
    assert!(matches!(bucket.get(&digest, None).await, Err(BucketError::Away(_))));
    assert!(since.elapsed() < ANSWER * 3, "{:?}", since.elapsed());
    let since = Instant::now();
    assert!(replica.shared().blob(&digest).await.is_none());
    assert!(since.elapsed() < ANSWER / 2, "{:?}", since.elapsed());
    assert!(!replica.shared().status().bucket);

    let mut settings = tier.settings();
    settings.database = DatabaseUrl(format!("postgres://postgres@{}/x", hole.address()));
    let since = Instant::now();
    let replica = Replica::open(tempfile::tempdir().unwrap(), settings).await;
    assert!(replica.shared().blob(&digest).await.is_none());
    assert!(since.elapsed() < PREPARE_AT_START + ANSWER * 2, "{:?}", since.elapsed());
    assert!(!replica.shared().status().index);
}

#[tokio::test]
async fn an_address_for_others_is_good_without_credentials() {
    let tier = Tier::start().await;
    let replica = tier.replica().await;
    let content = bytes(14, 1000);
    let digest = replica.put(&content).await;
    replica.uploaded(&digest).await;
    let blob = replica.finds(&digest).await;
    let url = blob.url(Duration::from_secs(60)).await.unwrap();
    let got = larder_testkit::process::run(std::process::Command::new("curl").args([
        "-sSf",
        "--noproxy",
        "*",
        "-o",
        "-",
        url.as_str(),
    ]))
    .await;
    assert_eq!(got.code, Some(0), "{}", got.stderr);
}

/// Services with nothing in them.
struct Tier {
    rgw: Arc<Rgw>,
    bucket: String,
    url: String,
    _postgres: Arc<Postgres>,
}

impl Tier {
    async fn start() -> Self {
        let (rgw, postgres) = tokio::join!(Rgw::shared(), Postgres::shared());
        let (bucket, url) = (rgw.bucket().await, postgres.database().await);
        Self { rgw, bucket, url, _postgres: postgres }
    }

    fn settings(&self) -> SharedSettings {
        let (id, secret) = self.rgw.keys();
        let (id, secret) = (id.to_owned(), secret.to_owned());
        SharedSettings {
            database: DatabaseUrl(self.url.clone()),
            s3: S3Settings {
                endpoint: Some(self.rgw.endpoint().parse().unwrap()),
                ca: None,
                bucket: self.bucket.clone(),
                prefix: "some/prefix".to_owned(),
                region: "us-east-1".to_owned(),
                path_style: true,
                keys: Some(S3Keys { id, secret, token: None }),
            },
            budget: None,
            scrub: None,
        }
    }

    /// A replica that keeps what is shared within so many bytes.
    async fn of_budget(&self, budget: u64) -> Replica {
        let settings = SharedSettings { budget: Some(budget), ..self.settings() };
        Replica::open(tempfile::tempdir().unwrap(), settings).await
    }

    async fn replica(&self) -> Replica {
        Replica::open(tempfile::tempdir().unwrap(), self.settings()).await
    }

    /// How many uploads in parts are under way.
    async fn uploads(&self) -> usize {
        let listed = self.rgw.request("GET", &format!("{}?uploads=", self.bucket)).await;
        listed.matches("<UploadId>").count()
    }
}

struct Replica {
    store: Store,
    directory: TempDir,
}

impl Replica {
    async fn open(directory: TempDir, settings: SharedSettings) -> Self {
        let settings =
            Settings { shared: Some(settings), ..Settings::new(directory.path().to_owned()) };
        Self { store: Store::open(settings).await.unwrap(), directory }
    }

    fn shared(&self) -> &Shared {
        self.store.shared().unwrap()
    }

    async fn put(&self, content: &Bytes) -> Digest {
        self.store_only(content).await.digest
    }

    async fn store_only(&self, content: &Bytes) -> crate::Blob {
        self.store_for("a.io/b", content).await
    }

    async fn store_for(&self, name: &str, content: &Bytes) -> crate::Blob {
        let staging = self.store.stage(&Digest::sha256_of(content)).await.unwrap();
        let staging = staging.write(vec![content.clone()]).await.unwrap();
        staging.commit(None, &named(name)).await.unwrap()
    }

    async fn put_manifest(&self, content: &Bytes) -> Digest {
        let digest = Digest::sha256_of(content);
        let (name, references) = (named("a.io/b"), References::default());
        let put = self.store.put_manifest(&name, &digest, "x/y", content.clone(), references);
        put.await.unwrap();
        digest
    }

    /// Returns once this replica knows that all have it.
    async fn uploaded(&self, digest: &Digest) {
        let is_unshared = async || {
            let unshared = self.store.index().unshared(0, 100).await.unwrap();
            unshared.iter().any(|(_, it)| it == digest)
        };
        patiently("it is uploaded", async { while is_unshared().await {} }).await;
        self.finds(digest).await;
    }

    /// What is shared under that name. Asked again while the index is too busy to say, as it may be
    /// where all tests of this crate run at once: a lookup waits for a second, and then goes without.
    async fn finds(&self, digest: &Digest) -> SharedBlob {
        patiently("it is found", async {
            loop {
                if let Some(blob) = self.shared().blob(digest).await {
                    break blob;
                }
                tokio::task::yield_now().await;
            }
        })
        .await
    }
}

async fn whole(mut body: SharedBody) -> Bytes {
    let mut bytes = Vec::new();
    while let Some(piece) = body.body.try_next().await.unwrap() {
        bytes.extend_from_slice(&piece);
    }
    assert_eq!(bytes.len() as u64, body.remaining);
    bytes.into()
}

fn bytes(seed: u64, len: usize) -> Bytes {
    let mut numbers = larder_testkit::random::Numbers::new(seed);
    (0..len).map(|_| numbers.below(256) as u8).collect::<Vec<_>>().into()
}

fn named(text: &str) -> Arc<Named> {
    let (host, repository) = text.split_once('/').unwrap();
    let (host, repository) = (host.parse().unwrap(), repository.parse().unwrap());
    Arc::new(Named { host, repository })
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}
