//! What goes from what is shared, and what stays.

use larder_core::retention::{ImagePattern, OfUpstream, Retention, Ttl};

use super::*;

#[tokio::test]
async fn what_was_used_again_outlives_what_came_after_it_once() {
    let tier = Tier::start().await;
    let budget = 5500;
    let replica = tier.of_budget(budget).await;
    let shared = replica.shared();
    let index = &shared.0.index;
    let mut digests = Vec::new();
    for seed in 0..10 {
        let digest = replica.put(&bytes(100 + seed, 1000)).await;
        replica.uploaded(&digest).await;
        if seed == 0 {
            // Long ago, so that it would be the first to go by its last use.
            index.set_used(&[(digest.clone(), at(1))], Order::default()).await.unwrap();
        }
        digests.push(digest);
    }
    // Another task of this replica may be at it, too.
    patiently("there is room", async {
        while index.total().await.unwrap() > budget {
            let _ = shared.keep_budget(&replica.store).await;
        }
    })
    .await;
    let total = index.total().await.unwrap();
    assert!(total > budget / 2 && total <= budget / 100 * 90, "{total}");
    replica.finds(&digests[0]).await;
    replica.finds(&digests[9]).await;
    assert!(shared.blob(&digests[1]).await.is_none());
    assert!(matches!(shared.0.bucket.get(&digests[1], None).await, Err(BucketError::Missing)));
    // What comes back is known to be wanted, by all replicas.
    let (len, now) = (1000, SystemTime::now());
    let stored = Stored { len, room: len, now, order: shared.order().await, fits: true };
    assert!(shared.blob(&digests[5]).await.is_none());
    index.put_blob(&digests[5], stored, &named("a.io/b"), None).await.unwrap();
    let main = index.turns(Queue::Main, FIRST, 99).await.unwrap();
    assert!(main.iter().any(|it| it.digest == digests[5]), "{main:?}");
}

#[tokio::test]
async fn a_quota_counts_what_is_shared_of_one_upstream() {
    let tier = Tier::start().await;
    let replica = tier.replica().await;
    let (shared, index) = (replica.shared(), &replica.shared().0.index);
    let mut digests = Vec::new();
    for (seed, name) in ["a.io/b", "c.io/d", "a.io/c", "a.io/b"].into_iter().enumerate() {
        let blob = replica.store_for(name, &bytes(200 + seed as u64, 1000)).await;
        replica.uploaded(&blob.digest).await;
        index
            .set_used(&[(blob.digest.clone(), at(10 + seed as u64))], Order::default())
            .await
            .unwrap();
        digests.push(blob.digest);
    }
    // Within its quota, nothing goes.
    replica.store.set_retention(quota(3000));
    shared.expire(&replica.store).await.unwrap();
    assert_eq!(index.total().await.unwrap(), 4000);
    replica.store.set_retention(quota(2500));
    patiently("one has gone", async {
        while shared.blob(&digests[0]).await.is_some() {
            let _ = shared.expire(&replica.store).await;
        }
    })
    .await;
    for digest in &digests[1..] {
        replica.finds(digest).await;
    }
    assert_eq!(
        index.room_by_host().await.unwrap(),
        [("a.io".to_owned(), 2000), ("c.io".to_owned(), 1000)]
    );
}

#[tokio::test]
async fn what_has_gone_unused_for_too_long_goes_unless_it_is_pinned() {
    let tier = Tier::start().await;
    let replica = tier.replica().await;
    let (shared, index) = (replica.shared(), &replica.shared().0.index);
    let mut digests = Vec::new();
    for (seed, name) in ["a.io/old", "a.io/new", "a.io/pinned"].into_iter().enumerate() {
        let blob = replica.store_for(name, &bytes(300 + seed as u64, 1000)).await;
        replica.uploaded(&blob.digest).await;
        if name != "a.io/new" {
            index.set_used(&[(blob.digest.clone(), at(1))], Order::default()).await.unwrap();
        }
        digests.push(blob.digest);
    }
    let ttl = Ttl::After(Duration::from_secs(24 * 60 * 60));
    replica.store.set_retention(Retention { ttl, ..Retention::default() });
    replica.store.pin(&"a.io/pinned".parse().unwrap()).await.unwrap();
    patiently("it has gone", async {
        while shared.blob(&digests[0]).await.is_some() {
            let _ = shared.expire(&replica.store).await;
        }
    })
    .await;
    replica.finds(&digests[1]).await;
    replica.finds(&digests[2]).await;
}

#[tokio::test]
async fn what_one_replica_is_told_to_keep_all_keep() {
    let tier = Tier::start().await;
    let (one, two) = (tier.replica().await, tier.replica().await);
    let pin: ImagePattern = "a.io/pinned".parse().unwrap();
    one.store.pin(&pin).await.unwrap();
    let digest = one.store_for("a.io/pinned", &bytes(310, 1000)).await.digest;
    one.uploaded(&digest).await;
    assert_eq!(two.store.pins().await.unwrap(), std::slice::from_ref(&pin));
    let index = &two.shared().0.index;
    let expire_unused = async |replica: &Replica| {
        index.set_used(&[(digest.clone(), at(1))], Order::default()).await.unwrap();
        // It may be another replica's turn.
        patiently("what is unused goes", async {
            while replica.shared().expire(&replica.store).await.is_err() {}
        })
        .await;
    };
    let ttl = Ttl::After(Duration::from_secs(24 * 60 * 60));
    two.store.set_retention(Retention { ttl, ..Retention::default() });
    expire_unused(&two).await;
    two.finds(&digest).await;

    assert!(two.store.unpin(&pin).await.unwrap());
    assert!(one.store.pins().await.unwrap().is_empty());
    assert!(!one.store.unpin(&pin).await.unwrap());
    patiently("it goes", async {
        while two.shared().blob(&digest).await.is_some() {
            expire_unused(&two).await;
        }
    })
    .await;
}

#[tokio::test]
async fn who_has_lost_the_lease_removes_nothing() {
    let tier = Tier::start().await;
    let replica = tier.of_budget(1500).await;
    let (shared, index) = (replica.shared(), &replica.shared().0.index);
    let minute = Duration::from_secs(60);
    patiently("somebody else has it", async {
        while !index.lease(upkeep::KEEPING, "other", minute).await.unwrap() {
            index.release_leases(&shared.0.me).await.unwrap();
        }
    })
    .await;
    for seed in 400..402 {
        let digest = replica.put(&bytes(seed, 1000)).await;
        replica.uploaded(&digest).await;
    }
    assert!(matches!(shared.keep_budget(&replica.store).await, Err(SharedError::Away(_))));
    assert_eq!(index.total().await.unwrap(), 2000);
}

fn quota(bytes: u64) -> Retention {
    let hosts = "a.io".parse().unwrap();
    let of = OfUpstream { hosts, ttl: None, repositories: Vec::new(), quota: Some(bytes) };
    Retention { upstreams: vec![of], ..Retention::default() }
}
