//! `larder check`: what it says of upstreams that work and of those that do not.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use larder_testkit::blackhole::Blackhole;
use larder_testkit::upstream::Listener;
use larder_testkit::{Fault, Image, Login, On, Upstream};
use larder_tests::docker_registry::DockerRegistry;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, date_time_ymd};
use serde_json::Value;
use tempfile::TempDir;

const HOST: &str = "registry.example.com";
const PASSED: [&str; 7] = ["configuration", "dns", "tcp", "registry", "token", "image", "blob"];

#[tokio::test(flavor = "multi_thread")]
async fn of_a_registry_that_works_everything_is_said() {
    let registry = DockerRegistry::start().await;
    let image = Image::random(1, &[300_000, 10]);
    registry.push("team/app", "1", &image).await;
    let report = Report::of(&[&at(&registry.url()), HOST, "team/app:1"]);
    report.expect("image", "passed", &image.digest().to_string());
    assert_eq!(report.step("image")["found"]["digest"], image.digest().to_string());
    assert_eq!(report.step("blob")["found"]["digest"], image.layers[0].digest.to_string());
    assert_eq!(report.step("blob")["found"]["has_ranges"], true);
    report.expect("tls", "skipped", "http");
    report.expect("token", "skipped", "nobody is asked");
    assert_eq!(
        (report.code, &report.json["ok"], &report.json["version"]),
        (0, &true.into(), &1.into())
    );
    assert_eq!(report.json["host"], HOST);

    let output = larder(&[&at(&registry.url()), HOST, "team/app:1"]).output().unwrap();
    let said = text(&output.stdout);
    assert!(said.contains(&format!("{}/\n  ok      dns ", registry.url())), "{said}");
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_followed_to_the_bytes_of_an_image_and_a_redirect_to_storage() {
    let upstream = Upstream::start().await;
    let image =
        |architecture| Image::from_seed(1).layers(&[1000]).platform("linux", architecture).build();
    let index = Image::index(vec![image("arm64"), image("amd64")]);
    upstream.push("team/app", "latest", &index);
    upstream.require(Login::Anonymous);
    upstream.fault(On::blobs().at(Listener::Registry), Fault::Redirect);
    let report = Report::of(&[&at(&upstream.url()), HOST, &format!("{HOST}/team/app")]);
    assert_eq!(report.code, 0, "{}", report.json);
    for step in PASSED {
        report.expect(step, "passed", "");
    }
    let platforms = report.step("image")["found"]["platforms"].clone();
    assert_eq!(platforms, serde_json::json!(["linux/arm64", "linux/amd64"]));
    assert_eq!(
        report.step("blob")["found"]["digest"],
        index.images[1].layers[0].digest.to_string()
    );
    assert_eq!(report.step("blob")["found"]["is_redirected"], true);
    report.expect("token", "passed", "gives a token to nobody in particular");
}

#[test]
fn a_closed_port_is_a_connection_that_is_refused() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let report = Report::of(&[&at(&format!("http://{closed}")), HOST]);
    report.expect("dns", "passed", "no looking up");
    report.expect("tcp", "failed", "Connection refused");
    report.expect_advice("tcp", "nobody listens there");
    for step in ["registry", "token"] {
        report.expect(step, "skipped", "tcp did not work");
    }
    report.expect("image", "skipped", "no image was named");
    assert_eq!((report.code, &report.json["ok"]), (1, &false.into()));
}

#[test]
fn a_black_hole_costs_a_bounded_time_and_says_where_it_swallowed_us() {
    let (dead, silent) = (Blackhole::unreachable(), Blackhole::silent());
    let report = Report::of(&["--timeout", "1", &at(&dead.url()), HOST]);
    report.expect("tcp", "failed", "nothing came of it within 1 s");
    report.expect_advice("tcp", "firewall");
    let report = Report::of(&["--timeout", "1", &at(&silent.url()), HOST]);
    report.expect("tcp", "passed", "");
    report.expect("registry", "failed", "nothing came of it within 1 s");
    let https = silent.url().replace("http:", "https:");
    let report = Report::of(&["--timeout", "1", &at(&https), HOST]);
    report.expect("tls", "failed", "nothing came of it within 1 s");
}

#[test]
fn who_waits_longer_than_two_seconds_is_told_for_what() {
    let silent = Blackhole::silent();
    let output = larder(&["--timeout", "3", &at(&silent.url()), HOST]).output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(said, format!("2 s: testing registry of {}/\n", silent.url()));
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn an_upstream_is_asked_at_each_of_its_addresses() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = Blackhole::silent();
    let urls = [at(&format!("http://{closed}")), at(&silent.url())];
    let report = Report::of(&["--timeout", "1", &urls[0], &urls[1], HOST]);
    let steps = report.json["steps"].as_array().unwrap();
    let tcp: Vec<&Value> = steps.iter().filter(|step| step["check"] == "tcp").collect();
    let outcomes: Vec<&str> = tcp.iter().map(|step| step["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["failed", "passed"]);
    assert_eq!(tcp[1]["url"], format!("{}/", silent.url()));
}

#[test]
fn a_certificate_is_refused_for_one_reason_which_is_said() {
    let serving = TlsServer::begin(certificate(&["127.0.0.1"], 2100));
    let report = Report::of(&[&at(&serving.url), HOST]);
    report.expect("tls", "failed", "signed by `CN=test`, whom this machine does not trust");
    report.expect_advice("tls", "set `ca` in [upstreams.\"registry.example.com\"]");
    assert_eq!(report.step("tls")["found"]["certificate"]["names"][0], "127.0.0.1");

    let trusting = |server: &TlsServer, more: &str| {
        let config = format!("[upstreams.\"{HOST}\"]\nurls = \"{}\"\n{more}", server.url);
        fs::write(server.file("larder.toml"), config).unwrap();
        Report::of(&["--config", &server.file("larder.toml"), HOST])
    };
    let ca = |server: &TlsServer| format!("ca = {:?}", server.file("cert.pem"));
    let report = trusting(&serving, &ca(&serving));
    report.expect("tls", "passed", "TLSv1_3, a certificate for 127.0.0.1 by CN=test, good for ");
    assert!(report.step("tls")["found"]["certificate"]["expires_in_days"].as_i64() > Some(20_000));
    report.expect("registry", "passed", "");
    let report = trusting(&serving, "insecure_skip_verify = true");
    report.expect("tls", "passed", "would be refused: invalid peer certificate: UnknownIssuer");

    let expired = TlsServer::begin(certificate(&["127.0.0.1"], 2020));
    let report = trusting(&expired, &ca(&expired));
    report.expect("tls", "failed", "the certificate ran out ");
    let other = TlsServer::begin(certificate(&["other.example.com"], 2100));
    let report = trusting(&other, &ca(&other));
    report.expect("tls", "failed", "the certificate is for other.example.com, not for 127.0.0.1");

    let mut params = parameters(&["127.0.0.1"], 2100);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = TlsServer::begin(pair(params));
    let report = trusting(&authority, &ca(&authority));
    report.expect("tls", "failed", "is an authority's, which no server may show as its own");
    report.expect_advice("tls", "CA:FALSE");

    let plain = serving.url.replace("https:", "http:");
    let report = Report::of(&[&at(&plain), HOST]);
    assert_eq!(report.failed(), "registry", "{}", report.json);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_without_tls_that_is_asked_with_it_is_known() {
    let registry = DockerRegistry::start().await;
    let report = Report::of(&[&at(&registry.url().replace("http:", "https:")), HOST]);
    report.expect("tls", "failed", "does not speak TLS");
    report.expect_advice("tls", "http://");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_server_is_no_registry() {
    let upstream = Upstream::start().await;
    upstream.fault(On::path("/v2/"), Fault::Status(404));
    let report = Report::of(&[&at(&upstream.url()), HOST]);
    report.expect("registry", "failed", "there is no registry here: ");
    report.expect_advice("registry", "write the registry's own address in `urls`");
    report.expect("token", "skipped", "registry did not work");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_said_without_showing_it() {
    let (username, password) = ("me".to_owned(), "right".to_owned());
    for (login, where_) in [
        (Login::Basic { username: username.clone(), password: password.clone() }, "basic"),
        (Login::Bearer { username, password }, "bearer"),
    ] {
        let upstream = Upstream::start().await;
        let image = Image::random(1, &[1000]);
        upstream.push("team/app", "1", &image);
        upstream.require(login);
        let directory = TempDir::new().unwrap();
        let with = |password: &str, image: &[&str]| {
            let config = format!(
                "[upstreams.\"{HOST}\"]\nurls = \"{}\"\n\
                 credentials = {{ username = \"me\", password = \"{password}\" }}",
                upstream.url()
            );
            let path = directory.path().join("larder.toml").display().to_string();
            fs::write(&path, config).unwrap();
            Report::of(&[&["--config", &path, HOST][..], image].concat())
        };
        for image in [&[][..], &["team/app:1"]] {
            let report = with("hunter2", image);
            report.expect("token", "failed", "does not accept the configured credential");
            report.expect_advice("token", "renew the user name and password");
            assert!(!report.json.to_string().contains("hunter2"), "{}", report.json);
        }
        let report = with("right", &["team/app:1"]);
        assert_eq!(report.code, 0, "{}", report.json);
        report.expect("token", "passed", "our credential");
        assert_eq!(report.step("registry")["found"]["authentication"], where_);
        let report = Report::of(&[&at(&upstream.url()), HOST, "team/app:1"]);
        report.expect("token", "failed", "");
        report.expect_advice("token", "set `credentials` in [upstreams.\"registry.example.com\"]");

        // Where each caller shows their own, ours would be refused.
        let config =
            format!("[upstreams.\"{HOST}\"]\nurls = \"{}\"\naccess = \"caller\"", upstream.url());
        let path = directory.path().join("callers.toml").display().to_string();
        fs::write(&path, config).unwrap();
        let report = Report::of(&["--config", &path, HOST, "team/app:1"]);
        report.expect("token", "failed", "");
        report.expect_advice("token", "pull it with a client that is logged in");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_does_not_exist_fails_alone() {
    let registry = DockerRegistry::start().await;
    let report = Report::of(&[&at(&registry.url()), HOST, "team/absent:1"]);
    report.expect("registry", "passed", "");
    report.expect("image", "failed", "no such image");
    report.expect("blob", "skipped", "image did not work");
    assert_eq!((report.failed(), report.code), ("image".to_owned(), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_proxy_it_is_the_proxy_that_is_connected_to() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (variable, url) in
        [("https_proxy", "https://x.invalid"), ("http_proxy", "http://x.invalid")]
    {
        let output = larder(&["--json", &at(url), HOST])
            .env(variable, format!("http://u:hunter2@{closed}"))
            .output()
            .unwrap();
        let report = Report::read(&output);
        report.expect("configuration", "passed", &format!("by the proxy http://{closed}/"));
        report.expect("tcp", "failed", &format!("cannot connect to the proxy {closed}"));
        assert!(!report.json.to_string().contains("hunter2"), "{}", report.json);
    }
    // A web server that knows no CONNECT.
    let upstream = Upstream::start().await;
    let output = larder(&["--json", &at("https://x.invalid"), HOST])
        .env("https_proxy", upstream.url())
        .output()
        .unwrap();
    let report = Report::read(&output);
    report.expect("proxy", "failed", "does not lead to x.invalid:443");
    report.expect("tls", "skipped", "proxy did not work");
}

#[test]
fn what_cannot_be_meant_is_exit_code_2() {
    for (arguments, wanted) in [
        (
            &["nowhere.io"][..],
            "`nowhere.io` is not a known upstream; add [upstreams.\"nowhere.io\"]",
        ),
        (&["docker.io", "UPPER"], "`library/UPPER`"),
        (&["docker.io", "--timeout", "0"], "--timeout"),
        (&["--upstream", "x", "docker.io"], "`x` is not HOST=URL"),
        (&[], "HOST"),
    ] {
        let output = larder(arguments).output().unwrap();
        let said = text(&output.stderr);
        let wanted = wanted.replace("library/", "");
        assert!(said.contains(&wanted), "{arguments:?}: {said}");
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(2), ""), "{arguments:?}");
    }
}

/// What `--json` said, and the exit code.
struct Report {
    json: Value,
    code: i32,
}

impl Report {
    fn of(arguments: &[&str]) -> Self {
        let output = larder(arguments).arg("--json").output().expect("the program can be started");
        Self::read(&output)
    }

    fn read(output: &Output) -> Self {
        let json = serde_json::from_slice(&output.stdout);
        let json = json.unwrap_or_else(|error| panic!("{error}: {}", text(&output.stderr)));
        Self { json, code: output.status.code().expect("it ends by itself") }
    }

    fn step(&self, check: &str) -> &Value {
        let steps = self.json["steps"].as_array().unwrap();
        let step = steps.iter().find(|step| step["check"] == check);
        step.unwrap_or_else(|| panic!("no {check} in {}", self.json))
    }

    fn expect(&self, check: &str, outcome: &str, what: &str) {
        let step = self.step(check);
        assert_eq!(step["outcome"], outcome, "{check}: {}", self.json);
        assert!(step["what"].as_str().unwrap().contains(what), "{what}: {step}");
        assert!(
            step["ms"].is_u64() && (outcome != "failed" || step["advice"].is_string()),
            "{step}"
        );
    }

    fn expect_advice(&self, check: &str, advice: &str) {
        let step = self.step(check);
        assert!(step["advice"].as_str().unwrap().contains(advice), "{advice}: {step}");
    }

    /// The check that failed.
    fn failed(&self) -> String {
        let steps = self.json["steps"].as_array().unwrap();
        let failed = steps.iter().find(|step| step["outcome"] == "failed");
        failed.unwrap_or(&Value::Null)["check"].as_str().unwrap_or_default().to_owned()
    }
}

/// `larder serve` with a certificate, which is a registry too.
struct TlsServer {
    child: Child,
    url: String,
    directory: TempDir,
}

impl TlsServer {
    fn begin((cert, key): (String, String)) -> Self {
        let directory = TempDir::new().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("cert.pem"), cert).unwrap();
        fs::write(at("key.pem"), key).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
        command.env_clear().args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        command.arg("--tls-cert").arg(at("cert.pem")).arg("--tls-key").arg(at("key.pem"));
        command.arg("--data").arg(at("data")).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("the program can be started");
        let mut line = String::new();
        let stdout = child.stdout.as_mut().expect("it is a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("the program writes UTF-8");
        let url = line.trim_end().strip_prefix("listening on ").expect("it serves").to_owned();
        Self { child, url, directory }
    }

    fn file(&self, name: &str) -> String {
        Path::new(self.directory.path()).join(name).display().to_string()
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A certificate for `names`, signed by itself as `CN=test`, that runs out at the beginning of
/// `year`; and its key.
fn certificate(names: &[&str], year: i32) -> (String, String) {
    pair(parameters(names, year))
}

fn parameters(names: &[&str], year: i32) -> CertificateParams {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.not_before = date_time_ymd(2000, 1, 1);
    params.not_after = date_time_ymd(year, 1, 1);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "test");
    params
}

fn pair(params: CertificateParams) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

/// `--upstream` for [`HOST`].
fn at(url: &str) -> String {
    format!("--upstream={HOST}={url}")
}

/// `larder check`, with nothing around it that could change what it does.
fn larder(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
    command.env_clear().arg("check").args(arguments);
    command
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("the program writes UTF-8")
}
