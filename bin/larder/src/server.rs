//! A running `larder serve`, asked by its REST API.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use clap::Args;
use larder_api_types::blobs::Blob;
use larder_api_types::{Answer, PREFIX, Problem, VERSION};
use larder_core::Digest;
use larder_registry::config::{Disk, Files as _};
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE};
use reqwest::{Body, Client, Method, RequestBuilder, Response, StatusCode, Url};
use rustls::crypto::aws_lc_rs;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime;

use crate::failure::Failure;

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the server may be silent. The longest that it works before it answers is a page of
/// images from a slow disk.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// The longest answer that is read: some thirty times the longest that is sent.
const MAX_ANSWER: usize = 64 << 20;

/// Where the server is, and how to prove that we may change something.
#[derive(Args, Debug)]
pub(crate) struct Address {
    /// The admin address of the larder to ask
    #[arg(long, value_name = "URL", env = "LARDER_SERVER", hide_env_values = true)]
    #[arg(default_value = "http://127.0.0.1:5001")]
    server: String,

    /// The file with the server's token, for changes from another machine
    #[arg(long, value_name = "FILE", env = "LARDER_TOKEN_FILE", hide_env_values = true)]
    token_file: Option<PathBuf>,
}

/// A server that can be asked.
#[derive(Debug)]
pub(crate) struct Server {
    http: Client,
    base: Url,
    token: Option<String>,
}

impl Address {
    /// Prepares to ask; asks nothing yet.
    pub(crate) fn open(&self) -> Result<Server, Failure> {
        let base = self.url().map_err(Failure::Usage)?;
        let token = self.token_file.as_ref().map(|path| {
            let bytes = Disk.read(path).map_err(anyhow::Error::new);
            let text = bytes.and_then(|it| String::from_utf8(it).context("it is not text"));
            text.with_context(|| format!("reading the token in {}", path.display()))
        });
        let token = token.transpose().map_err(Failure::Usage)?;
        // Somebody else may have been first; then there is one.
        let _ = aws_lc_rs::default_provider().install_default();
        let http = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            // It is ours and near; what the environment says is about upstreams.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .context("preparing to ask the server")?;
        let token = token.map(|text| text.trim().to_owned());
        Ok(Server { http, base, token })
    }

    fn url(&self) -> anyhow::Result<Url> {
        let advice = "--server must be a URL such as http://127.0.0.1:5001";
        let url = Url::parse(&self.server).context(advice)?;
        let is_base = matches!(url.path(), "" | "/") && url.query().is_none();
        ensure!(matches!(url.scheme(), "http" | "https") && url.has_host() && is_base, advice);
        Ok(url)
    }
}

impl Server {
    /// GETs `path`, below `/api/v1`.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &impl Serialize,
    ) -> anyhow::Result<T> {
        self.ask(self.request(Method::GET, path).query(query)).await
    }

    /// POSTs `body` to `path`, below `/api/v1`.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        let body = serde_json::to_vec(body).context("writing what to ask")?;
        self.ask(self.request(Method::POST, path).body(body)).await
    }

    /// DELETEs `path`, below `/api/v1`, with `body`.
    pub(crate) async fn delete<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        let body = serde_json::to_vec(body).context("writing what to ask")?;
        self.ask(self.request(Method::DELETE, path).body(body)).await
    }

    /// PUTs `body` to `path`, below `/api/v1`. Its length is said where it is known.
    pub(crate) async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &impl Serialize,
        media_type: Option<&str>,
        body: Body,
        len: Option<u64>,
    ) -> anyhow::Result<T> {
        let mut request = self.request(Method::PUT, path).query(query).body(body);
        if let Some(media_type) = media_type {
            request = request.header(CONTENT_TYPE, media_type);
        }
        if let Some(len) = len {
            request = request.header(CONTENT_LENGTH, len);
        }
        self.ask(request).await
    }

    /// POSTs `body` to `path`, below `/api/v1`, for an answer that is a file; and its length, if that
    /// is said.
    pub(crate) async fn download(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<(Response, Option<u64>)> {
        let body = serde_json::to_vec(body).context("writing what to ask")?;
        let request = self.request(Method::POST, path).body(body);
        let response = request.send().await.with_context(|| self.asking())?;
        if !response.status().is_success() {
            let status = response.status();
            let body = read(response).await.with_context(|| self.asking())?;
            return Err(self.refused(status, &body));
        }
        let length = response.content_length();
        Ok((response, length))
    }

    /// Whether a blob is stored.
    pub(crate) async fn has_blob(&self, digest: &Digest) -> anyhow::Result<bool> {
        let request = self.request(Method::GET, &format!("/blobs/{digest}"));
        let response = request.send().await.with_context(|| self.asking())?;
        let status = response.status();
        let body = read(response).await.with_context(|| self.asking())?;
        match status {
            StatusCode::NOT_FOUND => Ok(false),
            status if status.is_success() => {
                let blob: Answer<Blob> = serde_json::from_slice(&body)?;
                Ok(blob.body.stored.is_some())
            }
            status => Err(self.refused(status, &body)),
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let mut url = self.base.clone();
        url.set_path(&format!("{PREFIX}{path}"));
        let is_change = method != Method::GET;
        let request = self.http.request(method, url);
        match &self.token {
            Some(token) if is_change => request.bearer_auth(token),
            _ => request,
        }
    }

    async fn ask<T: DeserializeOwned>(&self, request: RequestBuilder) -> anyhow::Result<T> {
        let response = request.send().await.with_context(|| self.asking())?;
        let status = response.status();
        let body = read(response).await.with_context(|| self.asking())?;
        if !status.is_success() {
            return Err(self.refused(status, &body));
        }
        let answer: Answer<T> = serde_json::from_slice(&body).with_context(|| {
            format!(
                "understanding {}: it is no larder's admin address, or another version's",
                self.base
            )
        })?;
        match answer.version {
            VERSION => Ok(answer.body),
            other => {
                bail!("the server speaks version {other} of the API, and this larder {VERSION}")
            }
        }
    }
}

impl Server {
    fn asking(&self) -> String {
        let base = &self.base;
        format!("asking {base} (is `larder serve` running there? --server says where)")
    }

    fn refused(&self, status: StatusCode, body: &[u8]) -> anyhow::Error {
        match serde_json::from_slice::<Answer<Problem>>(body) {
            Ok(problem) => anyhow!("{}", problem.body.error),
            Err(_) => anyhow!("{} answered {status}: it is no larder's admin address", self.base),
        }
    }
}

async fn read(mut response: Response) -> anyhow::Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        ensure!(body.len() + chunk.len() <= MAX_ANSWER, "the answer is longer than 64 MiB");
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Runs what waits for a server.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("starting to wait for the network")?;
    let done = runtime.block_on(work);
    // A name that is still being looked up would be waited for.
    runtime.shutdown_background();
    done
}
