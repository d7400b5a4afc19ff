//! Where content comes from, and how each is doing.

use std::sync::Arc;

use axum::extract::State;
use humantime::format_duration;
use larder_api_types::upstreams::{Host, Standing, Upstream, Upstreams};
use larder_upstream::Credentials;
use url::Url;

use super::Api;
use super::answer::Told;
use crate::upstreams;

/// `GET /upstreams`
pub(super) async fn list(State(api): State<Api>) -> Told<Upstreams> {
    let listed = api.registry.upstreams.list();
    Told(Upstreams { upstreams: listed.iter().map(|(it, hosts)| told(it, hosts)).collect() })
}

fn told(
    settings: &upstreams::Settings,
    hosts: &[(larder_core::Host, Arc<upstreams::Upstream>)],
) -> Upstream {
    let config = settings.config();
    let host = |(host, upstream): &(larder_core::Host, Arc<upstreams::Upstream>)| Host {
        host: host.to_string(),
        standing: standing(&upstream.standing),
    };
    Upstream {
        host: config.host.to_string(),
        alias: config.alias.clone(),
        urls: config.urls.iter().map(Url::to_string).collect(),
        freshness: format_duration(config.freshness).to_string(),
        deadline: format_duration(config.deadline).to_string(),
        has_credentials: !matches!(config.credentials, Credentials::Anonymous),
        description: config.description.clone(),
        hosts: hosts.iter().map(host).collect(),
    }
}

fn standing(standing: &upstreams::Standing) -> Standing {
    match (standing.is_left_alone(), standing.is_suspect()) {
        (true, _) => Standing::LeftAlone,
        (false, true) => Standing::Suspect,
        (false, false) => Standing::Well,
    }
}
