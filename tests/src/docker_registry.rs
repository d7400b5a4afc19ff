//! Debian's docker-registry as a real upstream.

use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use larder_testkit::{Content, Image};

use crate::http::{self, Request, Response};
use crate::process::{Process, Stream, peer};
use crate::scratch::Scratch;

/// A running docker-registry with storage of its own.
#[derive(Debug)]
pub struct DockerRegistry {
    process: Process,
    /// `127.0.0.1:PORT`
    pub host: String,
    /// What is shown to it, if it wants to know who pushes.
    shown: Option<String>,
    n_marks: AtomicUsize,
    _scratch: Scratch,
}

/// A line of its access log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// `GET`, `HEAD`, …
    pub method: String,
    /// With the query.
    pub target: String,
    /// What was answered.
    pub status: u16,
    /// How many bytes of body were answered.
    pub n_bytes: u64,
}

impl DockerRegistry {
    /// Starts an empty one.
    ///
    /// # Panics
    ///
    /// If it is not installed or does not start.
    pub async fn start() -> Self {
        Self::start_with("").await
    }

    /// Starts an empty one as a cache (`proxy`) before the registry at `url`, which must be up.
    ///
    /// # Panics
    ///
    /// As [`Self::start`].
    pub async fn start_before(url: &str) -> Self {
        Self::start_with(&format!("proxy: {{remoteurl: '{url}'}}\n")).await
    }

    /// Starts an empty one that lets in only who has this name and password, of which `hash` is the
    /// line of a `htpasswd` file (bcrypt).
    ///
    /// # Panics
    ///
    /// As [`Self::start`].
    pub async fn start_for(username: &str, password: &str, hash: &str) -> Self {
        let scratch = Scratch::new();
        let file = scratch.write("htpasswd", &format!("{username}:{hash}\n"));
        let auth = format!("auth: {{htpasswd: {{realm: tests, path: {}}}}}\n", file.display());
        let shown = BASE64_STANDARD.encode(format!("{username}:{password}"));
        let registry = Self::start_in(scratch, &auth).await;
        Self { shown: Some(format!("Basic {shown}")), ..registry }
    }

    async fn start_with(more: &str) -> Self {
        Self::start_in(Scratch::new(), more).await
    }

    async fn start_in(scratch: Scratch, more: &str) -> Self {
        let storage = scratch.folder("registry");
        let config = scratch.write(
            "registry.yml",
            &format!(
                "version: 0.1\n\
                 log: {{level: info, accesslog: {{disabled: false}}}}\n\
                 storage:\n  filesystem: {{rootdirectory: {}}}\n\
                 http: {{addr: '127.0.0.1:0', secret: tests}}\n{more}",
                storage.display()
            ),
        );
        let mut command = peer("docker-registry", "docker-registry");
        let process = Process::start("docker-registry", command.arg("serve").arg(config));
        let listening = |lines: &[String]| {
            let rest = lines.iter().find_map(|line| line.split("msg=\"listening on ").nth(1))?;
            rest.split('"').next().map(str::to_owned)
        };
        let host = process.find(Stream::Stderr, "it listens", listening).await;
        let n_marks = AtomicUsize::new(0);
        Self { process, host, shown: None, n_marks, _scratch: scratch }
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("http://{}", self.host)
    }

    /// Pushes `image`, with everything it refers to.
    ///
    /// # Panics
    ///
    /// If the registry does not take it.
    pub async fn push(&self, repository: &str, tag: &str, image: &Image) {
        for image in image.images.iter().chain([image]) {
            for blob in image.blobs() {
                self.push_blob(repository, blob).await;
            }
            self.put_manifest(repository, &image.digest().to_string(), &image.manifest).await;
        }
        self.put_manifest(repository, tag, &image.manifest).await;
    }

    async fn push_blob(&self, repository: &str, blob: &Content) {
        let begin = format!("{}/v2/{repository}/blobs/uploads/", self.url());
        let begun = self.request("POST", &begin).send().await;
        assert_eq!(begun.status, 202);
        let location = begun.header("location");
        let separator = if location.contains('?') { '&' } else { '?' };
        let finish = format!("{location}{separator}digest={}", blob.digest);
        let request = self.request("PUT", &finish).body(blob.bytes.clone());
        expect_created(request.send().await).await;
    }

    async fn put_manifest(&self, repository: &str, reference: &str, manifest: &Content) {
        let url = format!("{}/v2/{repository}/manifests/{reference}", self.url());
        let request = self
            .request("PUT", &url)
            .header("content-type", &manifest.media_type)
            .body(manifest.bytes.clone());
        expect_created(request.send().await).await;
    }

    fn request(&self, method: &str, url: &str) -> Request {
        let request = http::request(method, url);
        match &self.shown {
            Some(shown) => request.header("authorization", shown),
            None => request,
        }
    }

    /// Every request that was answered so far, in the order the answers ended; without the one that
    /// this sends itself.
    pub async fn requests(&self) -> Vec<Access> {
        let mark = format!("/v2/?mark={}", self.n_marks.fetch_add(1, Ordering::Relaxed));
        http::get(&format!("{}{mark}", self.url())).send().await;
        let until_mark = |lines: &[String]| {
            let accesses: Vec<Access> = lines.iter().filter_map(|line| parse(line)).collect();
            let end = accesses.iter().position(|access| access.target == mark)?;
            Some(accesses[..end].to_vec())
        };
        let what = "its access log has the last request";
        let mut requests = self.process.find(Stream::Stdout, what, until_mark).await;
        requests.retain(|access| !access.target.contains("?mark="));
        requests
    }

    /// Kills it. Connections are refused from then on.
    pub fn stop(&mut self) {
        self.process.kill();
    }
}

async fn expect_created(response: Response) {
    let status = response.status;
    let body = response.bytes().await.unwrap();
    assert_eq!(status, 201, "{}", String::from_utf8_lossy(&body));
}

/// Reads a line of the combined log format: `… "GET /v2/ HTTP/1.1" 200 2 …`.
fn parse(line: &str) -> Option<Access> {
    let mut quoted = line.split('"').skip(1);
    let (request, rest) = (quoted.next()?, quoted.next()?);
    let (mut request, mut rest) = (request.split(' '), rest.split_whitespace());
    Some(Access {
        method: request.next()?.to_owned(),
        target: request.next()?.to_owned(),
        status: rest.next()?.parse().ok()?,
        n_bytes: rest.next()?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_access_log_is_read() {
        let line = r#"127.0.0.1 - - [21/Nov/2026:06:06:56 +0000] "GET /v2/ HTTP/1.1" 200 2 "" "c""#;
        let access =
            Access { method: "GET".to_owned(), target: "/v2/".to_owned(), status: 200, n_bytes: 2 };
        assert_eq!(parse(line), Some(access));
        assert_eq!(parse("time=\"2026\" level=info msg=\"listening\""), None);
    }
}
