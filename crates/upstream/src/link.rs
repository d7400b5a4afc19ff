//! Where the next page of a list is.
//!
//! Source: RFC 8288, section 3, "Link Serialisation in HTTP Headers"; OCI distribution-spec 1.1,
//! "Listing Tags".

use url::Url;

/// The most links that are looked at; registries send one.
const MAX_LINKS: usize = 16;

/// How to ask for the page that the `Link` header's lines call next, given the address `page` of
/// the one they came with. `None`: this is the last page.
///
/// The answer is the link's `last` parameter. Registries that continue by another parameter (Quay
/// has `next_page`) get `?` and the link's whole query, which no tag can begin with; give it to
/// [`query`] as it is.
pub(crate) fn next_page<'a>(
    lines: impl IntoIterator<Item = &'a str>,
    page: &Url,
) -> Option<String> {
    let target = lines.into_iter().find_map(next_target)?;
    let url = page.join(target).ok()?;
    match url.query_pairs().find(|(key, _)| key == "last") {
        Some((_, last)) if !last.is_empty() => Some(last.into_owned()),
        _ => url.query().filter(|query| !query.is_empty()).map(|query| format!("?{query}")),
    }
}

/// The query that asks for `n` tags after `last`. `None` if it is empty.
pub(crate) fn query(n: Option<u32>, last: Option<&str>) -> Option<String> {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    let (last, other) = match last.and_then(|last| last.strip_prefix('?')) {
        Some(other) => (None, Some(other)),
        None => (last, None),
    };
    if let Some(n) = n {
        query.append_pair("n", &n.to_string());
    }
    if let Some(last) = last {
        query.append_pair("last", last);
    }
    for (key, value) in url::form_urlencoded::parse(other.unwrap_or_default().as_bytes()) {
        if key != "n" {
            query.append_pair(&key, &value);
        }
    }
    Some(query.finish()).filter(|query| !query.is_empty())
}

/// The target of the first link in `line` whose relation is `next`.
fn next_target(line: &str) -> Option<&str> {
    let mut rest = line;
    for _ in 0..MAX_LINKS {
        let (target, after) = rest.split_once('<')?.1.split_once('>')?;
        let (is_next, after) = take_parameters(after);
        if is_next {
            return Some(target.trim());
        }
        rest = after;
    }
    None
}

/// Whether the parameters of one link say `rel=next`, and what follows them.
fn take_parameters(text: &str) -> (bool, &str) {
    let mut is_next = false;
    let mut rest = text;
    loop {
        rest = rest.trim_start();
        let Some(parameter) = rest.strip_prefix(';') else {
            return (is_next, rest);
        };
        let end = parameter.find(['=', ';', ',']).unwrap_or(parameter.len());
        let (name, after) = parameter.split_at(end);
        let Some(value) = after.strip_prefix('=') else {
            rest = after;
            continue;
        };
        let (value, after) = take_value(value.trim_start());
        if name.trim().eq_ignore_ascii_case("rel") {
            is_next |= value.split_ascii_whitespace().any(|rel| rel.eq_ignore_ascii_case("next"));
        }
        rest = after;
    }
}

/// A value, quoted or not, and what follows it. Relations need no escapes, so none are undone.
fn take_value(text: &str) -> (&str, &str) {
    match text.strip_prefix('"') {
        Some(quoted) => {
            let end = quoted.find('"').unwrap_or(quoted.len());
            (&quoted[..end], quoted.get(end + 1..).unwrap_or_default())
        }
        None => text.split_at(text.find([';', ',']).unwrap_or(text.len())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_next_page_begins_after_the_last_tag() {
        for line in [
            r#"</v2/a/tags/list?last=v%2B1&n=2>; rel="next""#,
            r#"<list?n=2&last=v%2B1>;rel=next"#,
            r#"<https://r.example/v2/a/tags/list?last=v%2B1>; title="a, <b>"; REL="last Next""#,
            r#"</x>; rel="prev", </v2/a/tags/list?last=v%2B1>; rel="next""#,
            r#"</x>, </v2/a/tags/list?last=v%2B1>; a; rel = next ; b=c"#,
        ] {
            assert_eq!(next(&[line]).as_deref(), Some("v+1"), "{line}");
        }
        assert_eq!(next(&["</x>; rel=prev", "<?last=b>; rel=next"]).as_deref(), Some("b"));
    }

    #[test]
    fn without_a_next_link_this_is_the_last_page() {
        for line in
            ["", "</x?last=a>", r#"</x?last=a>; rel="prev""#, "</x?last=a", "</x>; rel=next"]
        {
            assert_eq!(next(&[line]), None, "{line}");
        }
    }

    #[test]
    fn a_page_that_is_known_by_another_parameter_can_be_asked_for() {
        let cursor = next(&["</v2/a/tags/list?n=50&next_page=gAA%3D>; rel=next"]).unwrap();
        assert_eq!(query(Some(7), Some(&cursor)).as_deref(), Some("n=7&next_page=gAA%3D"));
    }

    #[test]
    fn a_query_holds_what_was_asked_for() {
        assert_eq!(query(None, None), None);
        assert_eq!(query(Some(2), Some("v+1 ")).as_deref(), Some("n=2&last=v%2B1+"));
    }

    fn next(lines: &[&str]) -> Option<String> {
        let page = Url::parse("https://r.example/v2/a/tags/list?n=2").unwrap();
        next_page(lines.iter().copied(), &page)
    }

    proptest! {
        #[test]
        fn no_header_makes_the_parser_panic(line in "((<|>|;|,|rel|=|\"|next|last=)|\\PC){0,40}") {
            if let Some(cursor) = next(&[&line]) {
                let _ = query(None, Some(&cursor));
            }
        }

        #[test]
        fn any_tag_survives_being_linked_to(tag in "[A-Za-z0-9_][A-Za-z0-9._-]{0,127}") {
            let line = format!("</v2/a/tags/list?{}>; rel=\"next\"", query(Some(1), Some(&tag)).unwrap());
            prop_assert_eq!(next(&[&line]), Some(tag));
        }
    }
}
