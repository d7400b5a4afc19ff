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
        let page = ask.upstream.client.tags(&ask.name.repository, n, last.as_deref());
        let page = match timeout(PATIENCE, page).await {
            Ok(page) => page,
            Err(_) => Err(Error::TimedOut),
        };
        self.note(&ask.upstream, page.as_ref().err());
        match page {
            Ok(page) => Ok(answer(ask, n, page, Outcome::Pass)),
            Err(error @ (Error::NotFound | Error::Denied)) => {
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
        let has_more = tags.len() > limit as usize;
        tags.truncate(limit as usize);
        let next = has_more.then(|| tags.last().cloned()).flatten();
        Ok(answer(ask, Some(limit), TagPage { tags, next }, outcome))
    }
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
