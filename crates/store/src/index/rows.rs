//! Statements that are about many rows at once.

/// The most rows of one statement: each is a journey to another thread, or another machine.
pub(super) const MAX_ROWS: usize = 64;

/// `$3, $4, $5`: parameters of one row, from `first`.
pub(super) fn row(first: usize, n: usize) -> String {
    let names: Vec<String> = (first..first + n).map(|n| format!("${n}")).collect();
    names.join(", ")
}

/// `(CAST($1 AS BIGINT), …), (…)`: parameters of `n` rows of these types, which PostgreSQL does not
/// find out by itself.
pub(super) fn rows(n: usize, types: &[&str]) -> String {
    let row = |row: usize| {
        let parameters = types
            .iter()
            .enumerate()
            .map(|(column, kind)| format!("CAST(${} AS {kind})", row * types.len() + column + 1));
        format!("({})", parameters.collect::<Vec<_>>().join(", "))
    };
    (0..n).map(row).collect::<Vec<_>>().join(", ")
}
