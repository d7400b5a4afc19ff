//! The client against peers on real sockets: fakes that misbehave in one way each, and Debian's
//! `docker-registry`.

#![expect(clippy::unwrap_used, reason = "what a test cannot do without ends it")]

mod authentication;
mod bodies;
mod docker_registry;
mod fake;
mod http2;
mod limits;
mod proxies;
mod redirects;
mod replicas;
mod retries;
mod tls;
mod verbs;
