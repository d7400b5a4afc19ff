//! Where content comes from, and how each is doing.

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use http::StatusCode;
use humantime::format_duration;
use larder_api_types::upstreams::{
    Access, Host, Made, Origin, Standing, Step, StepOutcome, Upstream, Upstreams,
};
use larder_upstream::{Credentials, probe};
use serde::Deserialize;
use tracing::error;
use url::Url;

use super::Api;
use super::answer::{self, Refused, Told};
use crate::roster::ChangeError;
use crate::upstreams::Hosts;
use crate::{config, upstream};

const EXAMPLE: &str = r#"{"urls": "https://registry.example.com", "alias": "example"}"#;

/// The query of `PUT /upstreams/HOST`.
#[derive(Debug, Deserialize)]
pub(super) struct How {
    /// Whether it is tested first.
    #[serde(default = "yes")]
    test: bool,
}

fn yes() -> bool {
    true
}

/// `GET /upstreams`
pub(super) async fn list(State(api): State<Api>) -> Told<Upstreams> {
    let listed = api.registry.upstreams.list();
    let upstreams = listed.iter().map(|(settings, hosts)| told(settings.config(), hosts));
    Told(Upstreams { upstreams: upstreams.collect() })
}

/// `PUT /upstreams/HOST`
pub(super) async fn make(
    State(api): State<Api>,
    host: Result<Path<String>, PathRejection>,
    how: Result<Query<How>, QueryRejection>,
    body: Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Told<Made>), Refused> {
    let (Path(host), Query(how)) = (host?, how?);
    let table = answer::read(body, Some(toml::Table::new()), EXAMPLE)?;
    let made = api.registry.make_upstream(&host, table, how.test).await;
    let (upstream, is_new, steps) = made.map_err(refused)?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    let upstream = told(&upstream, &Vec::new());
    Ok((status, Told(Made { upstream, steps: steps.iter().map(step).collect() })))
}

/// `DELETE /upstreams/HOST`
pub(super) async fn remove(
    State(api): State<Api>,
    host: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Refused> {
    let Path(host) = host?;
    api.registry.remove_upstream(&host).await.map_err(refused)?;
    Ok(StatusCode::NO_CONTENT)
}

fn refused(error: ChangeError) -> Refused {
    let status = match &error {
        ChangeError::Mistakes(_) | ChangeError::SecretFile(_) | ChangeError::TooLong => {
            StatusCode::BAD_REQUEST
        }
        ChangeError::TooMany | ChangeError::Configured(_) | ChangeError::AliasTaken { .. } => {
            StatusCode::CONFLICT
        }
        ChangeError::Unknown(_) => StatusCode::NOT_FOUND,
        ChangeError::Failed(_) => StatusCode::UNPROCESSABLE_ENTITY,
        ChangeError::Setup(_) | ChangeError::Save(..) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    if status.is_server_error() {
        error!(error = &error as &dyn std::error::Error, "changing the upstreams");
    }
    let refused = Refused::new(status, error.to_string());
    match error {
        ChangeError::Failed(steps) => refused.tested(steps.iter().map(step).collect()),
        _ => refused,
    }
}

fn step(step: &probe::Step) -> Step {
    Step {
        check: step.check.name().to_owned(),
        url: step.url.clone(),
        outcome: match step.outcome {
            probe::Outcome::Passed => StepOutcome::Passed,
            probe::Outcome::Failed => StepOutcome::Failed,
            probe::Outcome::Skipped => StepOutcome::Skipped,
        },
        ms: step.ms,
        what: step.what.clone(),
        advice: step.advice.clone(),
    }
}

fn told(config: &config::Upstream, hosts: &Hosts) -> Upstream {
    let hosts = hosts.iter().map(|(host, upstream)| Host {
        host: host.to_string(),
        standing: standing(&upstream.standing),
    });
    Upstream {
        host: config.host.to_string(),
        origin: match config.origin {
            config::Origin::BuiltIn => Origin::BuiltIn,
            config::Origin::Api => Origin::Api,
            config::Origin::Configuration => Origin::Configuration,
        },
        alias: config.alias.clone(),
        urls: config.urls.iter().map(Url::to_string).collect(),
        freshness: format_duration(config.freshness).to_string(),
        deadline: format_duration(config.deadline).to_string(),
        access: match config.access {
            config::Access::Shared => Access::Shared,
            config::Access::Caller(_) => Access::Caller,
        },
        has_credentials: !matches!(config.credentials, Credentials::Anonymous),
        description: config.description.clone(),
        hosts: hosts.collect(),
    }
}

fn standing(standing: &upstream::Standing) -> Standing {
    match (standing.is_left_alone(), standing.is_suspect()) {
        (true, _) => Standing::LeftAlone,
        (false, true) => Standing::Suspect,
        (false, false) => Standing::Well,
    }
}
