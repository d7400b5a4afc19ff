//! What an index promises, in SQLite and in PostgreSQL.

mod full_disk;
mod refusing_disk;

use std::sync::Arc;
use std::time::Duration;

use larder_core::eviction::{Order, Queue, Standing};
use larder_core::name::Named;
use larder_core::{Digest, Tag};
use larder_testkit::Postgres;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::turns::FIRST;
use super::*;

/// Each test, once for each kind of database.
macro_rules! in_each_database {
    ($($test:ident)*) => {
        mod sqlite {
            use super::Home;
            $(#[tokio::test] async fn $test() { super::$test(Home::sqlite()).await; })*
        }
        mod postgres {
            use super::Home;
            $(#[tokio::test] async fn $test() { super::$test(Home::postgres().await).await; })*
        }
    };
}

in_each_database! {
    a_stored_blob_is_found_with_its_size_and_media_type
    a_blob_that_is_stored_again_is_counted_once
    a_removed_blob_is_forgotten_and_its_memberships_are_not
    a_manifest_makes_what_it_refers_to_members_of_its_repository_alone
    a_manifest_that_is_stored_again_has_its_last_media_type_and_subject
    referrers_are_those_of_the_repository_in_the_order_in_which_they_came
    repositories_with_manifests_are_listed_in_the_order_of_their_bytes
    tags_are_listed_in_the_order_of_their_bytes
    a_tag_names_what_it_was_last_said_to_name
    a_removed_tag_is_gone_in_all_variants
    what_is_not_synced_is_listed_until_it_is
    a_blob_that_took_the_place_of_a_synced_one_still_has_to_be_synced
    what_came_first_has_its_turn_first_and_what_was_used_again_is_known
    what_comes_back_is_remembered_until_its_name_is_forgotten
    what_an_image_is_made_of_is_used_with_it_and_is_its_own_unless_shared
    a_manifest_is_superseded_when_its_last_tag_moves_on
    a_pin_means_an_image_with_all_that_it_is_made_of
    memberships_are_forgotten_of_what_nothing_refers_to_any_more
    quotas_count_what_was_fetched_from_each_host
    the_blobs_below_a_beginning_of_digests_are_found
    a_beginning_is_taken_once
    beginnings_are_old_when_they_were_parked_before_a_time
    blobs_and_beginnings_are_counted_together
    an_index_that_is_opened_again_has_what_was_put_into_it
    an_index_of_a_newer_version_is_refused
    writers_at_once_neither_fail_nor_count_anything_twice
}

async fn a_stored_blob_is_found_with_its_size_and_media_type(home: Home) {
    let index = home.open().await;
    put(&index, "blob", 5, "a.io/b").await;
    put_manifest(&index, "manifest", "a.io/b", "x/y", &[], None).await;
    assert_eq!(index.blob(&digest("blob")).await.unwrap(), Some((5, None)));
    let manifest = index.blob(&digest("manifest")).await.unwrap();
    assert_eq!(manifest, Some((1, Some("x/y".to_owned()))));
    assert_eq!(index.blob(&digest("other")).await.unwrap(), None);
}

async fn a_blob_that_is_stored_again_is_counted_once(home: Home) {
    let index = home.open().await;
    assert_eq!(put(&index, "blob", 5, "a.io/b").await, 5);
    assert_eq!(put(&index, "blob", 5, "a.io/c").await, 0);
    assert_eq!(index.total().await.unwrap(), 5);
}

async fn a_removed_blob_is_forgotten_and_its_memberships_are_not(home: Home) {
    let index = home.open().await;
    put_manifest(&index, "manifest", "a.io/b", "x/y", &[], None).await;
    assert_eq!(index.remove_blob(&digest("manifest")).await.unwrap(), Some(1));
    assert_eq!(index.remove_blob(&digest("manifest")).await.unwrap(), None);
    assert_eq!(index.blob(&digest("manifest")).await.unwrap(), None);
    assert!(index.is_member(&named("a.io/b"), &digest("manifest")).await.unwrap());
    put(&index, "manifest", 1, "a.io/b").await;
    assert_eq!(index.blob(&digest("manifest")).await.unwrap(), Some((1, None)));
}

async fn a_manifest_makes_what_it_refers_to_members_of_its_repository_alone(home: Home) {
    let index = home.open().await;
    put_manifest(&index, "manifest", "a.io/b", "x/y", &["one", "two"], Some("subject")).await;
    let is_member =
        async |repository, name| index.is_member(&named(repository), &digest(name)).await.unwrap();
    for name in ["manifest", "one", "two"] {
        assert!(is_member("a.io/b", name).await, "{name}");
        assert!(!is_member("a.io/c", name).await, "{name}");
    }
    assert!(!is_member("a.io/b", "subject").await);
    index.put_member(&named("a.io/c"), &digest("one")).await.unwrap();
    index.put_member(&named("a.io/c"), &digest("one")).await.unwrap();
    assert!(is_member("a.io/c", "one").await);
}

async fn a_manifest_that_is_stored_again_has_its_last_media_type_and_subject(home: Home) {
    let index = home.open().await;
    put_manifest(&index, "manifest", "a.io/b", "x/y", &[], None).await;
    put_manifest(&index, "manifest", "a.io/b", "x/z", &[], Some("subject")).await;
    let found = index.blob(&digest("manifest")).await.unwrap();
    assert_eq!(found, Some((1, Some("x/z".to_owned()))));
    assert_eq!(referrers(&index, "a.io/b", 9).await, [digest("manifest")]);
}

async fn referrers_are_those_of_the_repository_in_the_order_in_which_they_came(home: Home) {
    let index = home.open().await;
    for name in ["one", "two", "three"] {
        put_manifest(&index, name, "a.io/b", "x/y", &[], Some("subject")).await;
    }
    put_manifest(&index, "elsewhere", "a.io/c", "x/y", &[], Some("subject")).await;
    put_manifest(&index, "unrelated", "a.io/b", "x/y", &[], None).await;
    let all = ["one", "two", "three"].map(digest);
    assert_eq!(referrers(&index, "a.io/b", 9).await, all);
    assert_eq!(referrers(&index, "a.io/b", 2).await, all[..2]);
}

async fn repositories_with_manifests_are_listed_in_the_order_of_their_bytes(home: Home) {
    let index = home.open().await;
    // Another order would ignore what is neither letter nor digit.
    for repository in ["a.io/bb", "a.io/b_c", "a.io/b-d", "a-b.io/a"] {
        put_manifest(&index, repository, repository, "x/y", &[], None).await;
    }
    put(&index, "blob", 1, "a.io/without").await;
    let list = async |last, limit| {
        let found = index.repositories(last, limit).await.unwrap();
        found.iter().map(|it| format!("{}/{}", it.host, it.repository)).collect::<Vec<_>>()
    };
    assert_eq!(list("", 9).await, ["a-b.io/a", "a.io/b-d", "a.io/b_c", "a.io/bb"]);
    assert_eq!(list("a.io/b-d", 1).await, ["a.io/b_c"]);
}

async fn tags_are_listed_in_the_order_of_their_bytes(home: Home) {
    let index = home.open().await;
    for name in ["a", "B", "a.1", "a-1", "a1"] {
        put_tag(&index, name, "", "one", 1).await;
    }
    put_tag(&index, "a", "x/y", "two", 1).await;
    let list = async |last, limit| index.tags(&named("a.io/b"), last, limit).await.unwrap();
    assert_eq!(list("", 9).await, ["B", "a", "a-1", "a.1", "a1"]);
    assert_eq!(list("a", 2).await, ["a-1", "a.1"]);
}

async fn a_tag_names_what_it_was_last_said_to_name(home: Home) {
    let index = home.open().await;
    put_tag(&index, "v1", "", "old", 1).await;
    let record = put_tag(&index, "v1", "", "new", 2).await;
    let variant = put_tag(&index, "v1", "x/y", "old", 1).await;
    let find = async |tag, variant| index.tag(&named("a.io/b"), &tag, variant).await.unwrap();
    assert_eq!(find(tag("v1"), "").await, Some(record));
    assert_eq!(find(tag("v1"), "x/y").await, Some(variant));
    assert_eq!(find(tag("v2"), "").await, None);
    assert!(index.is_member(&named("a.io/b"), &digest("new")).await.unwrap());
}

async fn a_removed_tag_is_gone_in_all_variants(home: Home) {
    let index = home.open().await;
    for (name, variant) in [("v1", ""), ("v1", "x/y"), ("v2", "")] {
        put_tag(&index, name, variant, "one", 1).await;
    }
    index.remove_tag(&named("a.io/b"), &tag("v1"), at(1)).await.unwrap();
    assert_eq!(index.tag(&named("a.io/b"), &tag("v1"), "x/y").await.unwrap(), None);
    assert_eq!(index.tags(&named("a.io/b"), "", 9).await.unwrap(), ["v2"]);
}

async fn what_is_not_synced_is_listed_until_it_is(home: Home) {
    let index = home.open().await;
    for name in ["one", "two", "three"] {
        put(&index, name, 1, "a.io/b").await;
    }
    let first = index.unsynced(0, 2).await.unwrap();
    assert_eq!(first.len(), 2);
    let rest = index.unsynced(first[1].content, 2).await.unwrap();
    index.set_synced(&first).await.unwrap();
    let left: Vec<Digest> =
        index.unsynced(0, 9).await.unwrap().into_iter().map(|it| it.digest).collect();
    assert_eq!(left, [rest[0].digest.clone()]);
}

async fn a_blob_that_took_the_place_of_a_synced_one_still_has_to_be_synced(home: Home) {
    let index = home.open().await;
    let put = async |seconds| {
        let named = named("a.io/b");
        index.put_blob(&digest("blob"), stored(0, seconds), &named, None).await.unwrap();
        index.unsynced(0, 9).await.unwrap()
    };
    let first = put(1).await;
    let second = put(2).await;
    index.set_synced(&first).await.unwrap();
    assert_eq!(index.unsynced(0, 9).await.unwrap().len(), 1);
    index.set_synced(&second).await.unwrap();
    assert_eq!(index.unsynced(0, 9).await.unwrap().len(), 0);
}

async fn what_came_first_has_its_turn_first_and_what_was_used_again_is_known(home: Home) {
    let index = home.open().await;
    for (name, seconds) in [("two", 2), ("one", 1), ("three", 3)] {
        let named = named("a.io/b");
        index.put_blob(&digest(name), stored(7, seconds), &named, None).await.unwrap();
    }
    let uses = [(digest("one"), at(5)), (digest("unknown"), at(5))];
    index.set_used(&uses, Order::default()).await.unwrap();
    let found = index.turns(Queue::Probation, FIRST, 9).await.unwrap();
    let names = ["one", "two", "three"].map(digest);
    assert_eq!(found.iter().map(|it| it.digest.clone()).collect::<Vec<_>>(), names);
    assert_eq!(found.iter().map(|it| it.standing.uses).collect::<Vec<_>>(), [2, 1, 1]);
    assert_eq!((found[0].used_at, found[0].room), (at(5), 7));
    let behind = index.turns(Queue::Probation, found[0].place(), 1).await.unwrap();
    assert_eq!(behind[0].digest, digest("two"));
    assert!(index.turns(Queue::Main, FIRST, 9).await.unwrap().is_empty());
    assert_eq!(index.room_by_queue().await.unwrap(), (21, 0));

    let order = Order { age: 2.5 };
    let standing = Standing { queue: Queue::Main, uses: 3, rank: 5.5 };
    index.set_standings(&[(found[0].content, standing)], order).await.unwrap();
    assert_eq!(index.turns(Queue::Main, FIRST, 9).await.unwrap()[0].standing, standing);
    assert_eq!(index.room_by_queue().await.unwrap(), (14, 7));
    assert_eq!(index.order().await.unwrap(), order);
}

async fn what_comes_back_is_remembered_until_its_name_is_forgotten(home: Home) {
    let index = home.open().await;
    let uses = async |name| {
        put(&index, name, 10, "a.io/b").await;
        let [probation, main] = [Queue::Probation, Queue::Main];
        let mut found = index.turns(main, FIRST, 9).await.unwrap();
        found.extend(index.turns(probation, FIRST, 9).await.unwrap());
        let found = found.into_iter().find(|it| it.digest == digest(name)).unwrap();
        (found.content, found.standing.queue, found.standing.uses)
    };
    let remove = async |content, seconds| {
        let removed = index.remove_blobs(&[(content, Some(2))], at(seconds)).await.unwrap();
        assert_eq!(removed.len(), 1);
        assert_eq!(removed[0].room, 10);
    };
    let (one, queue, n) = uses("one").await;
    assert_eq!((queue, n), (Queue::Probation, 1));
    remove(one, 1).await;
    assert!(index.remove_blobs(&[(one, Some(2))], at(1)).await.unwrap().is_empty());
    assert_eq!(uses("one").await, (one, Queue::Main, 3));

    let (two, ..) = uses("two").await;
    remove(one, 1).await;
    remove(two, 2).await;
    index.trim_gone(10).await.unwrap();
    assert_eq!(uses("two").await.1, Queue::Main);
    assert_eq!(uses("one").await.1, Queue::Probation);
}

async fn what_an_image_is_made_of_is_used_with_it_and_is_its_own_unless_shared(home: Home) {
    let index = home.open().await;
    for name in ["own", "shared"] {
        put(&index, name, 1, "a.io/b").await;
    }
    put_manifest(&index, "image", "a.io/b", "x/y", &["own", "shared", "absent"], None).await;
    put_manifest(&index, "other", "a.io/c", "x/y", &["shared"], None).await;
    put_manifest(&index, "index", "a.io/b", "x/y", &["image"], None).await;
    index.set_used(&[(digest("index"), at(9))], Order::default()).await.unwrap();
    let unused = index.unused_since(at(9), FIRST, 9).await.unwrap();
    assert_eq!(unused.iter().map(|it| it.digest.clone()).collect::<Vec<_>>(), [digest("other")]);

    let all = index.turns(Queue::Probation, FIRST, 9).await.unwrap();
    let content = |name| all.iter().find(|it| it.digest == digest(name)).unwrap().content;
    let own = async |name| {
        let parts = index.own_parts(content(name)).await.unwrap();
        parts.into_iter().map(|it| it.digest).collect::<Vec<_>>()
    };
    assert_eq!(own("image").await, [digest("own")]);
    assert_eq!(own("index").await, [digest("image")]);
    index.remove_blobs(&[(content("other"), None)], at(1)).await.unwrap();
    let mut parts = own("image").await;
    parts.sort();
    let mut both = ["own", "shared"].map(digest);
    both.sort();
    assert_eq!(parts, both);
}

async fn a_manifest_is_superseded_when_its_last_tag_moves_on(home: Home) {
    let index = home.open().await;
    for name in ["old", "new"] {
        put_manifest(&index, name, "a.io/b", "x/y", &[], None).await;
    }
    put_tag(&index, "v1", "", "old", 2).await;
    put_tag(&index, "latest", "", "old", 2).await;
    let superseded = async || {
        let found = index.superseded(at(100), 0, 9).await.unwrap();
        found.into_iter().map(|it| it.digest).collect::<Vec<_>>()
    };
    put_tag(&index, "latest", "", "new", 3).await;
    assert_eq!(superseded().await, []);
    put_tag(&index, "v1", "", "new", 3).await;
    assert_eq!(superseded().await, [digest("old")]);
    put_tag(&index, "v1", "", "old", 4).await;
    assert_eq!(superseded().await, []);
    index.remove_tag(&named("a.io/b"), &tag("v1"), at(5)).await.unwrap();
    assert_eq!(superseded().await, [digest("old")]);
}

async fn a_pin_means_an_image_with_all_that_it_is_made_of(home: Home) {
    let index = home.open().await;
    put_manifest(&index, "index", "a.io/b", "x/y", &["image"], None).await;
    put_manifest(&index, "image", "a.io/b", "x/y", &["layer"], None).await;
    put(&index, "layer", 1, "a.io/b").await;
    put(&index, "other", 1, "a.io/b").await;
    put_tag(&index, "v1", "", "index", 1).await;
    let all = index.turns(Queue::Probation, FIRST, 9).await.unwrap();
    let pinned = async |patterns: &[String]| {
        let pins: Vec<_> = patterns.iter().map(|it| it.parse().unwrap()).collect();
        let pinned = index.pinned(&pins).await.unwrap();
        let found = ["index", "image", "layer", "other"].into_iter();
        let content = |name| all.iter().find(|it| it.digest == digest(name)).unwrap().content;
        found.filter(|name| pinned.contains(&content(name))).collect::<Vec<_>>()
    };
    assert_eq!(pinned(&[]).await, [""; 0]);
    assert_eq!(pinned(&["a.io/b:v*".to_owned()]).await, ["index", "image", "layer"]);
    assert_eq!(pinned(&["a.io/b:w*".to_owned()]).await, [""; 0]);
    assert_eq!(pinned(&["a.io/c".to_owned()]).await, [""; 0]);
    assert_eq!(pinned(&["a.io/*".to_owned()]).await, ["index", "image", "layer", "other"]);
    let by_digest = format!("a.io/b@{}", digest("image"));
    assert_eq!(pinned(&[by_digest]).await, ["image", "layer"]);

    let pin = "a.io/b:v*".parse().unwrap();
    index.put_pin(&pin, at(1)).await.unwrap();
    index.put_pin(&pin, at(2)).await.unwrap();
    assert_eq!(index.pins().await.unwrap().len(), 1);
    assert!(index.remove_pin(&pin).await.unwrap());
    assert!(!index.remove_pin(&pin).await.unwrap());
}

async fn memberships_are_forgotten_of_what_nothing_refers_to_any_more(home: Home) {
    let index = home.open().await;
    put_manifest(&index, "image", "a.io/b", "x/y", &["part"], None).await;
    put(&index, "stored", 1, "a.io/b").await;
    put_tag(&index, "v1", "", "tagged", 1).await;
    index.put_member(&named("a.io/b"), &digest("stray")).await.unwrap();
    index.forget_names(at(2), &CancellationToken::new()).await.unwrap();
    for (name, is_known) in
        [("image", true), ("part", true), ("stored", true), ("tagged", true), ("stray", false)]
    {
        let is_member = index.is_member(&named("a.io/b"), &digest(name)).await.unwrap();
        assert_eq!(is_member, is_known, "{name}");
    }
}

async fn quotas_count_what_was_fetched_from_each_host(home: Home) {
    let index = home.open().await;
    put(&index, "one", 5, "a.io/b").await;
    put(&index, "one", 5, "c.io/b").await;
    put(&index, "two", 7, "c.io/b").await;
    let by_host = [("a.io".to_owned(), 5), ("c.io".to_owned(), 7)];
    assert_eq!(index.room_by_host().await.unwrap(), by_host);
    let turns = index.turns_of_host("c.io", 9, 0).await.unwrap();
    assert_eq!(turns.iter().map(|it| it.digest.clone()).collect::<Vec<_>>(), [digest("two")]);
    assert!(index.turns_of_host("c.io", 9, 1).await.unwrap().is_empty());
}

async fn the_blobs_below_a_beginning_of_digests_are_found(home: Home) {
    let index = home.open().await;
    let names: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    for name in &names {
        put(&index, name, 1, "a.io/b").await;
    }
    let mut n_found = 0;
    for beginning in "0123456789abcdef".chars().map(|it| format!("sha256:{it}")) {
        let found = index.stored(&beginning).await.unwrap();
        assert!(found.iter().all(|it| it.to_string().starts_with(&beginning)), "{found:?}");
        n_found += found.len();
    }
    assert_eq!(n_found, names.len());
}

async fn a_beginning_is_taken_once(home: Home) {
    let index = home.open().await;
    assert_eq!(park(&index, "blob", 3, at(1)).await, 0);
    assert_eq!(park(&index, "blob", 7, at(2)).await, 3);
    assert!(index.is_parked(&digest("blob")).await.unwrap());
    let taken = index.take_parked(&digest("blob")).await.unwrap().unwrap();
    assert_eq!((taken.size, taken.prefix), (7, digest("7")));
    assert!(index.take_parked(&digest("blob")).await.unwrap().is_none());
    assert!(!index.is_parked(&digest("blob")).await.unwrap());
}

async fn beginnings_are_old_when_they_were_parked_before_a_time(home: Home) {
    let index = home.open().await;
    for (seconds, name) in [(3, "three"), (1, "one"), (2, "two")] {
        park(&index, name, 1, at(seconds)).await;
    }
    let old = async |limit| index.parked_before(at(3), limit).await.unwrap();
    assert_eq!(old(9).await, [digest("one"), digest("two")]);
    assert_eq!(old(1).await, [digest("one")]);
}

async fn blobs_and_beginnings_are_counted_together(home: Home) {
    let index = home.open().await;
    assert_eq!(index.total().await.unwrap(), 0);
    // Together more than 32 bits have.
    put(&index, "one", 3 << 30, "a.io/b").await;
    put(&index, "two", 3 << 30, "a.io/b").await;
    park(&index, "three", 5, at(1)).await;
    assert_eq!(index.total().await.unwrap(), (6 << 30) + 5);
}

async fn an_index_that_is_opened_again_has_what_was_put_into_it(home: Home) {
    let index = home.open().await;
    put(&index, "blob", 5, "a.io/b").await;
    index.close().await;
    assert!(index.total().await.is_err());
    assert_eq!(home.open().await.total().await.unwrap(), 5);
}

async fn an_index_of_a_newer_version_is_refused(home: Home) {
    let index = home.open().await;
    let later = "INSERT INTO _sqlx_migrations \
                 (version, description, success, checksum, execution_time) \
                 VALUES (9999, 'later', TRUE, '', 0)";
    sqlx::query(later).execute(&index.writer).await.unwrap();
    index.close().await;
    let error = home.try_open().await.unwrap_err();
    assert!(matches!(error, OpenIndexError::Newer), "{error}");
}

async fn writers_at_once_neither_fail_nor_count_anything_twice(home: Home) {
    let writers = match &home {
        Home::Sqlite(_) => vec![home.open().await],
        // Replicas.
        Home::Postgres { .. } => vec![home.open().await, home.open().await, home.open().await],
    };
    // The first rounds open connections, the later ones meet.
    for round in 0..5 {
        let mut tasks = JoinSet::new();
        for n in 0..15 {
            let index = writers[n % writers.len()].clone();
            tasks.spawn(async move { store_image(&index, round, n).await });
        }
        assert_eq!(tasks.join_all().await.into_iter().sum::<u64>(), 20 * 10);
        let total = writers[0].total().await.unwrap();
        assert_eq!(total, (round + 1) * (20 * 10 + 15));
    }
}

/// Stores a manifest and the layers of this round, 20 of 10 bytes, in an order that depends on `n`.
/// Returns the bytes of layers that were new.
async fn store_image(index: &Index, round: u64, n: usize) -> u64 {
    let mut layers: Vec<String> = (0..20).map(|layer| format!("{round} {layer}")).collect();
    layers.rotate_left(n * 7 % 20);
    if n.is_multiple_of(2) {
        layers.reverse();
    }
    let layers: Vec<&str> = layers.iter().map(String::as_str).collect();
    let repository = format!("a.io/{}", n / 3);
    let manifest = format!("manifest {round} {n}");
    put_manifest(index, &manifest, &repository, "x/y", &layers, Some("subject")).await;
    let mut added = 0;
    for layer in &layers {
        added += put(index, layer, 10, &repository).await;
    }
    let uses: Vec<_> = layers.iter().map(|it| (digest(it), at(n as u64))).collect();
    index.set_used(&uses, Order::default()).await.unwrap();
    added
}

#[tokio::test]
async fn replicas_that_open_an_empty_database_at_once_all_can_use_it() {
    let home = Arc::new(Home::postgres().await);
    let mut opening = JoinSet::new();
    for _ in 0..4 {
        let home = Arc::clone(&home);
        opening.spawn(async move { home.open().await });
    }
    let replicas = opening.join_all().await;
    for index in &replicas {
        put(index, "blob", 5, "a.io/b").await;
    }
    assert_eq!(replicas[0].total().await.unwrap(), 5);
}

#[tokio::test]
async fn a_server_that_was_killed_is_used_again_once_it_is_back() {
    let mut server = Postgres::start().await;
    let index = Index::attach(&server.database().await).unwrap();
    index.prepare().await.unwrap();
    put(&index, "blob", 5, "a.io/b").await;
    server.kill().await;
    assert!(index.blob(&digest("blob")).await.is_err());
    server.restart().await;
    assert_eq!(index.blob(&digest("blob")).await.unwrap(), Some((5, None)));
}

#[tokio::test]
async fn a_file_may_have_any_name_that_is_text() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["a b", "50%41", "what?mode=ro", "#1", "é", ":memory:", "a'b\"c"] {
        let path = directory.path().join(name);
        let index = Index::open(&path).await.unwrap();
        put(&index, "blob", 5, "a.io/b").await;
        index.close().await;
        assert!(path.is_file(), "{name}");
    }
}

/// Where an index is.
enum Home {
    Sqlite(TempDir),
    Postgres { url: String, _server: Arc<Postgres> },
}

impl Home {
    fn sqlite() -> Self {
        Self::Sqlite(tempfile::tempdir().unwrap())
    }

    async fn postgres() -> Self {
        let server = Postgres::shared().await;
        Self::Postgres { url: server.database().await, _server: server }
    }

    async fn open(&self) -> Index {
        self.try_open().await.unwrap()
    }

    async fn try_open(&self) -> Result<Index, OpenIndexError> {
        match self {
            Self::Sqlite(directory) => Index::open(&directory.path().join("index.sqlite")).await,
            Self::Postgres { url, .. } => {
                let index = Index::attach(url)?;
                index.prepare().await.map(|()| index)
            }
        }
    }
}

/// A blob of `size` bytes that takes as many of the disk.
fn stored(size: u64, seconds: u64) -> Stored {
    Stored { len: size, room: size, now: at(seconds), order: Order::default(), fits: true }
}

async fn put(index: &Index, name: &str, size: u64, repository: &str) -> u64 {
    index.put_blob(&digest(name), stored(size, 1), &named(repository), None).await.unwrap()
}

async fn put_manifest(
    index: &Index,
    name: &str,
    repository: &str,
    media_type: &str,
    children: &[&str],
    subject: Option<&str>,
) {
    let children = children.iter().map(|it| digest(it)).collect();
    let references = References { children, subject: subject.map(digest) };
    let manifest = Manifest { media_type: media_type.to_owned(), references };
    let (digest, named) = (digest(name), named(repository));
    index.put_blob(&digest, stored(1, 1), &named, Some(&manifest)).await.unwrap();
}

async fn referrers(index: &Index, repository: &str, limit: u32) -> Vec<Digest> {
    index.referrers(&named(repository), &digest("subject"), limit).await.unwrap()
}

async fn put_tag(index: &Index, name: &str, variant: &str, names: &str, seconds: u64) -> TagRecord {
    let record = TagRecord {
        digest: digest(names),
        media_type: "x/y".to_owned(),
        size: seconds,
        checked_at: at(seconds),
    };
    index.put_tag(&named("a.io/b"), &tag(name), variant, &record).await.unwrap();
    record
}

async fn park(index: &Index, name: &str, size: u64, now: SystemTime) -> u64 {
    let parked = Parked { size, room: size, prefix: digest(&size.to_string()) };
    index.put_parked(&digest(name), &parked, now).await.unwrap()
}

fn digest(name: &str) -> Digest {
    Digest::sha256_of(name.as_bytes())
}

fn named(text: &str) -> Named {
    let (host, repository) = text.split_once('/').unwrap();
    Named { host: host.parse().unwrap(), repository: repository.parse().unwrap() }
}

fn tag(text: &str) -> Tag {
    text.parse().unwrap()
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}
