//! Which repositories are stored.

use http::StatusCode;
use http::header::{HeaderValue, LINK};
use larder_core::name::Named;
use larder_core::route::query_value;
use serde_json::json;

use crate::metrics::Outcome;
use crate::refusal::Refusal;
use crate::respond::{self, X_LARDER_CACHE, encoded, header_value};
use crate::service::{Answer, Registry};

/// The most names on one page: some 100 KiB.
const MAX_PAGE: u32 = 1000;

impl Registry {
    /// Answers a request for the catalog: the repositories of every upstream that have a stored
    /// manifest, each by the name under which it can be pulled from here.
    ///
    /// Upstreams are not asked: the big ones have no catalog, and none has room for theirs.
    pub(crate) async fn catalog(&self, query: Option<&str>) -> Result<Answer, Refusal> {
        let n = query_value(query, "n").and_then(|n| n.parse::<u32>().ok());
        let n = n.unwrap_or(MAX_PAGE).min(MAX_PAGE) as usize;
        let last = query_value(query, "last").unwrap_or_default();
        let mut names = self.stored_repositories(&last, n + 1).await?;
        let has_more = names.len() > n && n > 0;
        names.truncate(n);

        let mut response = respond::json(StatusCode::OK, &json!({ "repositories": names }));
        let headers = response.headers_mut();
        let outcome = Outcome::Hit;
        headers.insert(X_LARDER_CACHE, HeaderValue::from_static(outcome.as_str()));
        if let Some(last) = names.last().filter(|_| has_more) {
            let link = format!("</v2/_catalog?last={}&n={n}>; rel=\"next\"", encoded(last));
            headers.insert(LINK, header_value(link));
        }
        Ok(Answer::new(response, outcome))
    }

    /// At most `n` names after `last`. Those that the configuration does not serve any more, or not to
    /// everybody, are passed over.
    async fn stored_repositories(&self, last: &str, n: usize) -> Result<Vec<String>, Refusal> {
        let mut names = Vec::new();
        let mut last = last.to_owned();
        while names.len() < n {
            let batch = self.store.repositories(&last, MAX_PAGE).await;
            let batch = self.found(batch.map(Some)).ok_or_else(Refusal::internal)?;
            let Some(end) = batch.last().map(Named::to_string) else { break };
            let served = batch.iter().filter(|name| self.upstreams.serves_to_all(name));
            names.extend(served.take(n - names.len()).map(Named::to_string));
            last = end;
        }
        Ok(names)
    }
}
