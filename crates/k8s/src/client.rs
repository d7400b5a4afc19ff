//! The way to an API server.

use std::time::Duration;

use kube::{Client, Config};

/// How long a connection, and an answer that is not a watch, may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Why there is no way to an API server.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nothing says where it is, or what says it cannot be read.
    #[error(
        "finding the cluster: neither a kubeconfig (KUBECONFIG) nor a service account says where it is"
    )]
    Unknown(#[source] kube::config::InferConfigError),
    /// What says where it is cannot be used.
    #[error("using the cluster's configuration")]
    Unusable(#[source] kube::Error),
}

/// A client of the API server that `KUBECONFIG` names, or else of the one whose service account this
/// pod has. Asks nothing of it yet.
///
/// In a pod the address is that of the variables `KUBERNETES_SERVICE_HOST` and
/// `KUBERNETES_SERVICE_PORT`, so that one that needs no service network can be given there.
///
/// # Errors
///
/// [`ConnectError`]: a person has to say where the cluster is.
pub async fn connect() -> Result<Client, ConnectError> {
    let mut config = Config::infer().await.map_err(ConnectError::Unknown)?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.write_timeout = Some(WRITE_TIMEOUT);
    Client::try_from(config).map_err(ConnectError::Unusable)
}
