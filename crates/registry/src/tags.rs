//! Lists of tags.

use std::sync::Arc;

use http::StatusCode;
use http::header::{HeaderValue, LINK};
use larder_core::route::query_value;
use larder_upstream::{Error, TagPage};
use serde_json::json;
use tokio::time::timeout;

use crate::manifests::PATIENCE;
use crate::metrics::Outcome;
use crate::refusal::{Asking, Refusal};
use crate::respond::{self, X_LARDER_CACHE, encoded, header_value};
use crate::service::{Answer, Ask, Registry};

/// The most tags on one page of what is stored: some 100 KiB.
const MAX_PAGE: u32 = 1000;

impl Registry {
    /// Answers a request for the tags of a repository: upstream's page, or what is stored while
    /// upstream cannot be asked.
    pub(crate) async fn tags(self: &Arc<Self>, ask: &Ask<'_>) -> Result<Answer, Refusal> {
        let n = query_value(ask.query, "n").and_then(|n| n.parse::<u32>().ok());
        let last = query_value(ask.query, "last");
        if self.offline {
            return self.stored_tags(ask, n, last.as_deref(), Outcome::Hit).await;
        }
        // Who wants none wants to know whether there is such a repository; not every registry
        // understands that.
        let wants_none = n == Some(0);
        let at_least_one = n.map(|n| n.max(1));
        let page = ask.upstream.client.tags(&ask.name.repository, at_least_one, last.as_deref());
        let page = match timeout(PATIENCE, page).await {
            Ok(Ok(_)) if wants_none => Ok(TagPage { tags: Vec::new(), next: None }),
            Ok(page) => page,
            Err(_) => Err(Error::TimedOut),
        };
        self.note(&ask.upstream, &ask.name, page.as_ref().err());
        match page {
            Ok(page) => {
                let page = put_right(page, n, last.as_deref());
                Ok(answer(ask, n, page, Outcome::Pass))
            }
            Err(error @ (Error::NotFound | Error::Denied | Error::CallerRefused { .. })) => {
                Err(Refusal::of_upstream(&error, Asking::Tags(&ask.name)))
            }
            Err(error) => {
                let stored = self.stored_tags(ask, n, last.as_deref(), Outcome::Stale).await;
                stored.map_err(|_| Refusal::of_upstream(&error, Asking::Tags(&ask.name)))
            }
        }
    }

    async fn stored_tags(
        &self,
        ask: &Ask<'_>,
        n: Option<u32>,
        last: Option<&str>,
        outcome: Outcome,
    ) -> Result<Answer, Refusal> {
        let limit = n.unwrap_or(MAX_PAGE).min(MAX_PAGE);
        // One more than asked for tells whether there is another page.
        let tags = self.store.tags(&ask.name, last.unwrap_or(""), limit + 1).await;
        let mut tags = self.found(tags.map(Some)).unwrap_or_default();
        if tags.is_empty() && last.is_none() {
            return Err(Refusal::unknown(Asking::Tags(&ask.name)));
        }
        let has_more = tags.len() > limit as usize && limit > 0;
        tags.truncate(limit as usize);
        let next = has_more.then(|| tags.last().cloned()).flatten();
        Ok(answer(ask, Some(limit), TagPage { tags, next }, outcome))
    }
}

/// A page as the specification has it, of an upstream that may not: distribution before 2.8.3 sends
/// all tags, in any order, whatever was asked for.
fn put_right(mut page: TagPage, n: Option<u32>, last: Option<&str>) -> TagPage {
    let n = n.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
    let has_last = last.is_some_and(|last| page.tags.iter().any(|tag| tag == last));
    let is_all = page.next.is_none() && (last.is_none() || has_last || page.tags.len() > n);
    if !is_all {
        return page;
    }
    page.tags.sort_unstable();
    if let Some(last) = last {
        page.tags.retain(|tag| tag.as_str() > last);
    }
    if page.tags.len() > n {
        page.tags.truncate(n);
        page.next = page.tags.last().cloned();
    }
    page
}

/// Source: OCI distribution-spec 1.1, "Listing Tags".
fn answer(ask: &Ask<'_>, n: Option<u32>, page: TagPage, outcome: Outcome) -> Answer {
    let body = json!({"name": ask.path_name, "tags": page.tags});
    let mut response = respond::json(StatusCode::OK, &body);
    let headers = response.headers_mut();
    headers.insert(X_LARDER_CACHE, HeaderValue::from_static(outcome.as_str()));
    if let Some(next) = page.next {
        headers.insert(LINK, header_value(link(ask, n, &next)));
    }
    Answer::new(response, outcome)
}

fn link(ask: &Ask<'_>, n: Option<u32>, last: &str) -> String {
    let mut query = format!("last={}", encoded(last));
    if let Some(n) = n {
        query.push_str(&format!("&n={n}"));
    }
    if let Some(ns) = query_value(ask.query, "ns") {
        query.push_str(&format!("&ns={}", encoded(&ns)));
    }
    format!("</v2/{}/tags/list?{query}>; rel=\"next\"", ask.path_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_that_sends_everything_is_put_right() {
        assert_eq!(show("b c a", None, None, None), "a b c");
        assert_eq!(show("b c a", None, Some(2), None), "a b, next b");
        assert_eq!(show("b c a", None, Some(2), Some("b")), "c");
        assert_eq!(show("b c a", None, Some(1), Some("A")), "a, next a");
        assert_eq!(show("b c a", None, Some(3), None), "a b c");
    }

    #[test]
    fn a_page_is_passed_on_as_it_is() {
        assert_eq!(show("b a", Some("x"), Some(2), None), "b a, next x");
        assert_eq!(show("c B", None, Some(2), Some("a")), "c B");
        assert_eq!(show("c B", None, Some(2), Some("?cursor=1")), "c B");
    }

    fn show(tags: &str, next: Option<&str>, n: Option<u32>, last: Option<&str>) -> String {
        let tags = tags.split(' ').map(str::to_owned).collect();
        let page = put_right(TagPage { tags, next: next.map(str::to_owned) }, n, last);
        let next = page.next.map(|next| format!(", next {next}"));
        page.tags.join(" ") + &next.unwrap_or_default()
    }
}
