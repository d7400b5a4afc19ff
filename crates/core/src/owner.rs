//! Which of several replicas a blob belongs to.
//!
//! Rendezvous hashing: every replica has a weight for every digest, and the heaviest owns it. So all
//! who know the same replicas agree without asking each other, a replica that leaves hands each of
//! its blobs to the next in that blob's own order, and one that joins takes from each of the others
//! what it now owns, and nothing else moves.
//!
//! Source: Thaler, Ravishankar, "Using name-based mappings to increase hit rates", IEEE/ACM
//! Transactions on Networking 6(1), 1998.

use std::cmp::Reverse;

use sha2::{Digest as _, Sha256};

use crate::Digest;

/// How heavily a replica stands for a digest.
type Weight = [u8; 32];

/// `replicas` in the order in which they are to have `digest`, its owner first. What they are
/// `name`d decides: replicas agree if they write each other's names alike, in whatever order.
///
/// A weight is SHA-256 over the name, a byte 0, and the digest as text (`sha256:…`), as a number with
/// its highest byte first. This is a protocol between versions: it does not change.
pub fn order<R>(
    digest: &Digest,
    replicas: impl IntoIterator<Item = R>,
    name: impl Fn(&R) -> &str,
) -> Vec<R> {
    let digest = digest.to_string();
    let mut replicas: Vec<R> = replicas.into_iter().collect();
    replicas.sort_by_cached_key(|replica| Reverse(weight(&digest, name(replica))));
    replicas
}

fn weight(digest: &str, name: &str) -> Weight {
    Sha256::new().chain_update(name).chain_update([0]).chain_update(digest).finalize().into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::btree_set;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_order_is_the_one_that_other_versions_have() {
        let replicas = ["http://10.0.0.1:5000", "http://10.0.0.2:5000", "http://10.0.0.3:5000"];
        let owner = |text: &[u8]| order(&Digest::sha256_of(text), replicas, |it| it)[0];
        let owners = [b"a", b"b", b"c", b"d", b"e", b"f"].map(|text| owner(text));
        let places = owners.map(|owner| replicas.iter().position(|it| *it == owner).unwrap());
        assert_eq!(places, [1, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn a_third_replica_takes_about_a_third_and_a_tenth_a_tenth() {
        for n in 1..10 {
            let names: Vec<String> = (0..=n).map(|it| format!("http://10.0.0.{it}:5000")).collect();
            let moved = (0..3000).filter(|blob: &u32| {
                let digest = Digest::sha256_of(&blob.to_be_bytes());
                owner(&digest, &names) != owner(&digest, &names[..n])
            });
            let (share, fair) = (moved.count() as f64 / 3000.0, 1.0 / (n as f64 + 1.0));
            assert!((share - fair).abs() < 0.04, "{share} of what {n} replicas had, not {fair}");
        }
    }

    proptest! {
        #[test]
        fn every_replica_agrees_whatever_the_order_of_its_list(
            names in btree_set("[a-z]{1,8}", 1..8).prop_map(Vec::from_iter),
            shuffled in any::<prop::sample::Index>(),
            blob: u64,
        ) {
            let digest = Digest::sha256_of(&blob.to_be_bytes());
            let mut other = names.clone();
            other.rotate_left(shuffled.index(names.len()));
            other.reverse();
            prop_assert_eq!(order(&digest, &names, |it| it), order(&digest, &other, |it| it));
        }

        #[test]
        fn what_moves_to_a_new_replica_is_all_that_moves(
            names in btree_set("[a-z]{1,8}", 2..8),
            blob: u64,
        ) {
            let digest = Digest::sha256_of(&blob.to_be_bytes());
            let new = names.iter().next().unwrap();
            let before: BTreeSet<&String> = names.iter().filter(|it| *it != new).collect();
            let mut after = order(&digest, &names, |it| it);
            after.retain(|it| *it != new);
            prop_assert_eq!(after, order(&digest, before, |it| it));
        }
    }

    fn owner<'n>(digest: &Digest, names: &'n [String]) -> &'n str {
        order(digest, names, |it| it)[0]
    }
}
