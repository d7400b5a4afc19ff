//! Contenders that take turns.

use super::progress;

/// What each contender's rounds gave, in the order of the contenders.
pub(crate) type Rounds<T> = Vec<Vec<T>>;

/// Lets each of `contenders` measure once per round; in each round another one begins, so that
/// none always runs in the wake of the same other.
///
/// # Errors
///
/// The first error of a contender ends it all.
pub(crate) fn take_turns<C, T>(
    what: &str,
    rounds: usize,
    contenders: &mut [C],
    mut measure: impl FnMut(&mut C) -> anyhow::Result<T>,
) -> anyhow::Result<Rounds<T>> {
    let mut results: Rounds<T> = contenders.iter().map(|_| Vec::with_capacity(rounds)).collect();
    for round in 0..rounds {
        progress(&format!("{what}: round {} of {rounds}", round + 1));
        for turn in 0..contenders.len() {
            let index = (turn + round) % contenders.len();
            results[index].push(measure(&mut contenders[index])?);
        }
    }
    Ok(results)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everyone_measures_in_every_round_and_another_one_begins_it() {
        let mut order = String::new();
        let results = take_turns("test", 3, &mut ['a', 'b', 'c'], |contender| {
            order.push(*contender);
            Ok(order.len())
        });
        assert_eq!(results.unwrap(), [[1, 6, 8], [2, 4, 9], [3, 5, 7]]);
        assert_eq!(order, "abcbcacab");
    }
}
