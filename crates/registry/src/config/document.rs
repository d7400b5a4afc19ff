//! A TOML document as keys that are asked for by name; what nobody asked for is unknown.

use std::borrow::Cow;
use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::mistake::{At, Mistakes, Place, Wrong, wrong};

/// The text that a document was read from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source<'d> {
    pub(super) name: &'d str,
    pub(super) text: &'d str,
}

impl Source<'_> {
    /// Where the bytes `span` stand, under the key `key`.
    pub(super) fn at(&self, span: Range<usize>, key: Option<String>) -> At {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line = 1 + before.matches('\n').count();
        At { place: Place::File { name: self.name.to_owned(), line }, key }
    }
}

/// A table whose keys are asked for by name.
#[derive(Debug)]
pub(super) struct Section<'d> {
    source: Source<'d>,
    path: String,
    table: &'d DeTable<'d>,
    known: Vec<&'static str>,
}

/// A value of the document.
#[derive(Clone, Debug)]
pub(super) struct Node<'d> {
    source: Source<'d>,
    pub(super) at: At,
    value: &'d DeValue<'d>,
}

// === impl Section ===

impl<'d> Section<'d> {
    /// The whole document.
    pub(super) fn root(source: Source<'d>, table: &'d DeTable<'d>) -> Self {
        Self { source, path: String::new(), table, known: Vec::new() }
    }

    /// The value of `key`, which is known from now on.
    pub(super) fn take(&mut self, key: &'static str) -> Option<Node<'d>> {
        self.known.push(key);
        let (found, value) = self.table.get_key_value(key)?;
        Some(self.node(found.get_ref(), found.span(), value.get_ref()))
    }

    /// All entries, each with its name; none is unknown.
    pub(super) fn entries(self) -> Vec<(&'d str, Node<'d>)> {
        let node = |(name, value): (&'d toml::Spanned<Cow<'d, str>>, &'d toml::Spanned<_>)| {
            (name.get_ref().as_ref(), self.node(name.get_ref(), name.span(), value.get_ref()))
        };
        self.table.iter().map(node).collect()
    }

    /// Notes the keys that nobody asked for.
    pub(super) fn finish(self, mistakes: &mut Mistakes) {
        for (name, value) in self.table {
            if self.known.iter().any(|known| *known == name.get_ref().as_ref()) {
                continue;
            }
            let node = self.node(name.get_ref(), name.span(), value.get_ref());
            let unknown = wrong("there is no such key");
            mistakes.note(
                &node.at,
                match nearest(name.get_ref(), &self.known) {
                    Some(known) => unknown.write(known),
                    None => unknown.advise(format!("known here are {}", self.known.join(", "))),
                },
            );
        }
    }

    fn node(&self, name: &str, span: Range<usize>, value: &'d DeValue<'d>) -> Node<'d> {
        let path = match self.path.as_str() {
            "" => quoted(name),
            path => format!("{path}.{}", quoted(name)),
        };
        Node { source: self.source, at: self.source.at(span, Some(path)), value }
    }
}

// === impl Node ===

impl<'d> Node<'d> {
    pub(super) fn text(&self) -> Result<&'d str, Wrong> {
        self.value.as_str().ok_or_else(|| self.must_be("text", "it in quotes"))
    }

    pub(super) fn boolean(&self) -> Result<bool, Wrong> {
        self.value.as_bool().ok_or_else(|| self.must_be("a truth value", "true or false"))
    }

    /// A whole number. `None`: something else.
    pub(super) fn integer(&self) -> Option<i64> {
        let integer = self.value.as_integer()?;
        i64::from_str_radix(integer.as_str(), integer.radix()).ok()
    }

    pub(super) fn section(&self) -> Result<Section<'d>, Wrong> {
        let table = self.value.as_table();
        let table = table.ok_or_else(|| self.must_be("a table", "{ KEY = VALUE, … }"))?;
        let path = self.at.key.clone().unwrap_or_default();
        Ok(Section { source: self.source, path, table, known: Vec::new() })
    }

    /// The values of a list. What is not in a list stands for a list of its own.
    pub(super) fn items(&self) -> Vec<Node<'d>> {
        let Some(items) = self.value.as_array() else {
            return vec![self.clone()];
        };
        let key = self.at.key.as_deref().unwrap_or_default();
        let item = |(index, item): (usize, &'d toml::Spanned<DeValue<'d>>)| Node {
            source: self.source,
            at: self.source.at(item.span(), Some(format!("{key}[{index}]"))),
            value: item.get_ref(),
        };
        items.iter().enumerate().map(item).collect()
    }

    fn must_be(&self, wanted: &str, instead: &str) -> Wrong {
        let found = match self.value {
            DeValue::String(_) => "text",
            DeValue::Integer(_) | DeValue::Float(_) => "a number",
            DeValue::Boolean(_) => "a truth value",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        wrong(format!("must be {wanted}, and is {found}")).write(instead)
    }
}

/// A key as TOML writes it.
pub(super) fn quoted(key: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    match !key.is_empty() && key.chars().all(is_bare) {
        true => key.to_owned(),
        false => format!("{key:?}"),
    }
}

/// The one of `known` that was probably meant by `name`.
fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    let lower = name.to_ascii_lowercase().replace('-', "_");
    let distances = known.iter().map(|known| (distance(&lower, known), *known));
    let (distance, known) = distances.min()?;
    (distance <= 1 + known.len() / 4).then_some(known)
}

/// How many letters must be put in, taken out or exchanged to make `one` of `other`.
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.chars().count()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in other.chars().enumerate() {
            let exchanged = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = exchanged.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[other.chars().count()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_key_is_recognised_and_another_is_not() {
        let known = ["freshness", "urls", "tls_cert", "data"];
        assert_eq!(nearest("url", &known), Some("urls"));
        assert_eq!(nearest("fresness", &known), Some("freshness"));
        assert_eq!(nearest("TLS-cert", &known), Some("tls_cert"));
        assert_eq!(nearest("colour", &known), None);
        assert_eq!(nearest("", &known), None);
    }

    #[test]
    fn the_distance_counts_letters() {
        for (one, other, n) in
            [("", "", 0), ("", "ab", 2), ("kitten", "sitting", 3), ("ab", "ba", 2)]
        {
            assert_eq!(distance(one, other), n, "{one} {other}");
        }
    }

    #[test]
    fn keys_are_quoted_where_toml_needs_it() {
        assert_eq!(quoted("tls_cert"), "tls_cert");
        assert_eq!(quoted("ghcr.io"), "\"ghcr.io\"");
        assert_eq!(quoted(""), "\"\"");
    }
}
