use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::LazyLock;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use larder_core::access::Bounds;

use crate::config::{Access, TagFreshness};

mod document;
mod mistakes;

/// The files that configurations here may name.
static FILES: LazyLock<BTreeMap<PathBuf, String>> = LazyLock::new(|| {
    let ours = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let other = rcgen::KeyPair::generate().unwrap();
    let files = [
        ("cert.pem", ours.cert.pem()),
        ("key.pem", ours.signing_key.serialize_pem()),
        ("other-key.pem", other.serialize_pem()),
        ("password", "it\n".to_owned()),
        ("empty", "\n".to_owned()),
        ("token", "0123456789abcdef\n".to_owned()),
        (
            "aws",
            "[default]\naws_access_key_id = one\n\n[ours]\naws_access_key_id=two\n\
             aws_secret_access_key = hunter2\n"
                .to_owned(),
        ),
        ("docker.json", r#"{"auths":{"y.io":{"username":"u","password":"p"}}}"#.to_owned()),
    ];
    files.into_iter().map(|(path, text)| (path.into(), text)).collect()
});

#[test]
fn callers_rights_count_as_long_as_is_said() {
    let access = |more: &str| {
        let text = format!("[upstreams.\"x.io\"]\naccess = \"caller\"\n{more}");
        let config = config(&text);
        config.upstreams.iter().find(|it| it.host.as_str() == "x.io").unwrap().access
    };
    let bounds = |memory, grace| {
        let (memory, grace) = (Duration::from_secs(memory), Duration::from_secs(grace));
        Access::Caller(Bounds { memory, grace })
    };
    assert_eq!(access(""), bounds(60, 600));
    assert_eq!(access("access_memory = \"0s\"\naccess_grace = \"0s\""), bounds(0, 0));
    assert_eq!(access("access_memory = \"5m\"\naccess_grace = \"1d\""), bounds(300, 86_400));
    access("urls = \"http://127.0.0.1:1\"");
    access("urls = \"http://x.io\"\ninsecure_skip_verify = true");
}

#[test]
fn an_empty_file_is_a_whole_configuration() {
    let config = config("");
    assert_eq!(config.listen, [listener("127.0.0.1:5000", None)]);
    assert_eq!(config.admin.to_string(), "127.0.0.1:5001");
    assert_eq!(config.data, PathBuf::from("/default"));
    assert_eq!(config.scrub, Some(Duration::from_secs(30 * 24 * 3600)));
    assert_eq!(config.admin_token_file, None);
    assert_eq!(config.default_upstream.as_deref(), Some("docker.io"));
    assert!(!config.offline && config.budget.is_none() && config.tls.is_none());
    assert_eq!(config.upstreams.len(), 13);
    let docker_hub = &config.upstreams[0];
    assert_eq!(docker_hub.host.as_str(), "docker.io");
    assert_eq!(docker_hub.urls[0].as_str(), "https://registry-1.docker.io/");
    assert_eq!(docker_hub.freshness, Duration::from_secs(60));
    assert_eq!(docker_hub.deadline, Duration::from_secs(2));
    assert_eq!(docker_hub.parallel, 1);
    let last: Vec<&str> = config.upstreams[11..].iter().map(|it| it.host.as_str()).collect();
    assert_eq!(last, ["*.gcr.io", "*.pkg.dev"]);
    assert!(config.upstreams[12].urls.is_empty());
}

#[test]
fn every_key_is_understood() {
    let config = config(
        r#"
        listen = ["0.0.0.0:5000", "127.0.0.1:5002=hub"]
        admin = "0.0.0.0:5003"
        admin_token_file = "token"
        data = "/var/lib/larder"
        offline = true
        storage = "disk"
        index = "sqlite"
        budget = "80%"
        scrub = "7d"
        default_upstream = "ghcr.io"
        tls_cert = "cert.pem"
        tls_key = "key.pem"
        peers = ["https://10.0.0.1:5000", "dns+https://larder-headless:5000"]
        peers_ca = "cert.pem"

        [hosts]
        "Mirror.Example.org" = "hub"

        [upstreams."docker.io"]
        urls = ["http://127.0.0.1:1", "https://registry-1.docker.io"]
        alias = ["hub", "dockerhub"]
        freshness = "0s"
        deadline = "500ms"
        access = "shared"
        serve_deleted = true
        credentials = { username = "u", password_file = "password" }
        proxy = "socks5://proxy.example.org:1080"
        ca = "cert.pem"
        client_cert = "cert.pem"
        client_key = "key.pem"
        insecure_skip_verify = true
        parallel = 4
        tags = [{ match = "v*", freshness = "forever" }, { match = "latest", freshness = "5s" }]
        read_timeout = "10s"
        max_requests = 20
        max_rate = 5
        allow = ["library/*"]
        deny = "library/secret"
        description = "Docker Hub"
        "#,
    );
    assert_eq!(
        config.listen,
        [listener("0.0.0.0:5000", None), listener("127.0.0.1:5002", Some("hub"))]
    );
    assert_eq!(config.data, PathBuf::from("/var/lib/larder"));
    assert!(config.offline);
    assert_eq!(config.budget, Some(Budget::Percent(80)));
    assert_eq!(config.default_upstream.as_deref(), Some("ghcr.io"));
    assert_eq!(config.hosts["mirror.example.org"], "hub");
    let peers: Vec<String> = config.peers.iter().map(ToString::to_string).collect();
    assert_eq!(peers, ["https://10.0.0.1:5000/", "dns+https://larder-headless:5000/"]);
    assert_eq!(config.peers_ca, Some(PathBuf::from("cert.pem")));
    assert_eq!(config.tls.unwrap().key, PathBuf::from("key.pem"));
    assert_eq!(config.upstreams.len(), 13);
    let upstream = &config.upstreams[0];
    let urls: Vec<&str> = upstream.urls.iter().map(Url::as_str).collect();
    assert_eq!(urls, ["http://127.0.0.1:1/", "https://registry-1.docker.io/"]);
    assert_eq!(upstream.alias, ["hub", "dockerhub"]);
    assert_eq!(
        (upstream.freshness, upstream.deadline),
        (Duration::ZERO, Duration::from_millis(500))
    );
    assert_eq!((upstream.access, upstream.parallel), (Access::Shared, 4));
    let forever = TagFreshness { matching: "v*".to_owned(), freshness: Duration::MAX };
    assert_eq!((upstream.tags.len(), &upstream.tags[0]), (2, &forever));
    assert_eq!(upstream.read_timeout, Duration::from_secs(10));
    assert_eq!((upstream.max_requests, upstream.max_rate), (20, NonZeroU32::new(5)));
    assert!(upstream.serve_deleted && upstream.insecure_skip_verify);
    assert_eq!(upstream.ca, Some(PathBuf::from("cert.pem")));
    let client_certificate = upstream.client_certificate.as_ref().unwrap();
    assert_eq!(client_certificate.key, PathBuf::from("key.pem"));
    assert_eq!(upstream.proxy.as_ref().unwrap().as_str(), "socks5://proxy.example.org:1080");
    assert_eq!(
        (&*upstream.allow, &*upstream.deny),
        (&["library/*".to_owned()][..], &["library/secret".to_owned()][..])
    );
    assert_eq!(upstream.description.as_deref(), Some("Docker Hub"));
}

#[test]
fn an_upstream_of_the_file_replaces_the_one_that_is_known() {
    let config = config("[upstreams.\"*.gcr.io\"]\nfreshness = \"1h\"\n[upstreams.\"a.io\"]\n");
    assert_eq!(config.upstreams.len(), 14);
    let gcr = config.upstreams.iter().find(|it| it.host.as_str() == "*.gcr.io").unwrap();
    assert_eq!(gcr.freshness, Duration::from_secs(3600));
}

#[test]
fn without_known_upstreams_there_are_only_those_of_the_file() {
    let config = config("builtin_upstreams = false\n[upstreams.\"a.io\"]\n");
    assert_eq!(config.upstreams.len(), 1);
    assert_eq!(config.default_upstream, None);
}

#[test]
fn a_default_upstream_may_be_an_alias_a_host_of_a_wildcard_or_nothing() {
    for name in ["eu.gcr.io", "a", "a.io", "registry-1.docker.io"] {
        let text = format!("default_upstream = \"{name}\"\n[upstreams.\"a.io\"]\nalias = \"a\"");
        assert_eq!(config(&text).default_upstream.as_deref(), Some(name));
    }
    assert_eq!(config("default_upstream = \"\"").default_upstream, None);
}

#[test]
fn flags_and_variables_override_the_file() {
    let given = |origin: &str, text: &str| given_by(origin, text);
    let overrides = Overrides {
        listen: vec![given("--listen", "127.0.0.1:0=a.io"), given("--listen", "[::1]:0")],
        data: Some(given("LARDER_DATA", "/flag")),
        upstreams: vec![
            given("--upstream", "a.io=http://127.0.0.1:7"),
            given("--upstream", "docker.io=https://one.example.org"),
            given("--upstream", "docker.io=https://two.example.org"),
        ],
        offline: Some(given("--offline", "false")),
        budget: Some(given("--budget", "1Ti")),
        ..Overrides::default()
    };
    let text = "listen = \"1.1.1.1:1\"\ndata = \"/file\"\noffline = true\nbudget = \"1%\"\n\
        [upstreams.\"docker.io\"]\nfreshness = \"1h\"";
    let config = read(text, overrides).unwrap();
    assert_eq!(config.listen, [listener("127.0.0.1:0", Some("a.io")), listener("[::1]:0", None)]);
    assert_eq!(config.data, PathBuf::from("/flag"));
    assert!(!config.offline);
    assert_eq!(config.budget, Some(Budget::Bytes(1 << 40)));
    let urls = |host: &str| -> Vec<String> {
        let upstream = config.upstreams.iter().find(|it| it.host.as_str() == host).unwrap();
        upstream.urls.iter().map(ToString::to_string).collect()
    };
    assert_eq!(urls("a.io"), ["http://127.0.0.1:7/"]);
    assert_eq!(urls("docker.io"), ["https://one.example.org/", "https://two.example.org/"]);
    let docker_hub = config.upstreams.iter().find(|it| it.host.as_str() == "docker.io").unwrap();
    assert_eq!(docker_hub.freshness, Duration::from_secs(3600));
}

#[test]
fn a_mistake_in_a_flag_or_variable_names_it() {
    let overrides = Overrides {
        listen: vec![given_by("LARDER_LISTEN", "x")],
        upstreams: vec![
            given_by("--upstream", "a.io"),
            given_by("--upstream", "*.a.io=https://b"),
            given_by("--upstream", "a=https://b"),
        ],
        offline: Some(given_by("LARDER_OFFLINE", "maybe")),
        ..Overrides::default()
    };
    let mistakes = read("data = 1", overrides).unwrap_err();
    let lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "f.toml:1: data: must be text, and is a number; write it in quotes",
            "--upstream: `a.io` is not HOST=URL; write it as in docker.io=https://mirror.example.org",
            "--upstream: *.a.io cannot be asked at one URL; write one host's name",
            "--upstream: `a` has no dot and no port, so no image can name it; write HOST.DOMAIN or HOST:PORT, and the short name as its alias",
            "LARDER_LISTEN: `x` is not an IP address with a port; write it as in 127.0.0.1:5000",
            "LARDER_OFFLINE: `maybe` is not a truth value; write true or false",
        ]
    );
}

#[test]
fn a_password_is_sent_openly_only_within_this_machine_or_by_choice() {
    let with = |url: &str, more: &str| {
        format!(
            "[upstreams.\"x.io\"]\nurls = \"{url}\"\n{more}\ncredentials = {{ username = \"u\", password = \"p\" }}"
        )
    };
    assert!(read(&with("http://127.0.0.1:5", ""), Overrides::default()).is_ok());
    assert!(
        read(&with("http://x.io", "insecure_skip_verify = true"), Overrides::default()).is_ok()
    );
    assert_eq!(mistakes(&with("http://x.io", "")).len(), 1);
}

#[test]
fn no_secret_is_in_a_mistake_or_in_debug_output() {
    let text = r#"[upstreams."x.io"]
        credentials = { username = "u", password = "hunter2" }
        proxy = "http://u:hunter2@proxy"
        urls = ["https://hunter2@x.io/v2", "ftp://hunter2@x"]
        [upstreams."y.io"]
        credentials = { password = "hunter2" }"#;
    assert!(!mistakes(text).iter().any(|it| it.contains("hunter2")), "{:?}", mistakes(text));
    let config =
        config("[upstreams.\"x.io\"]\ncredentials = { username = \"u\", password = \"hunter2\" }");
    assert!(!format!("{config:?}").contains("hunter2"));
}

const SHARED: &str = "storage = \"s3\"\nindex = \"postgres://u@h:1/d?sslmode=require\"\n";
const BUCKET: &str = "[s3]\nbucket = \"blobs\"\n";

#[test]
fn what_replicas_share_is_understood() {
    let text = format!(
        "{SHARED}index_password_file = \"password\"\nadvertise = \"http://10.0.0.1:5000\"\n{BUCKET}\
         endpoint = \"https://s3:9000\"\nca = \"cert.pem\"\nprefix = \"/some/where/\"\nregion = \"r\"\nredirect = true\n\
         budget = \"1TB\"\ncredentials_file = \"aws\"\nprofile = \"ours\""
    );
    let config = config(&text);
    let shared = config.shared.as_ref().unwrap();
    assert_eq!(shared.database.0, "postgres://u:it@h:1/d?sslmode=require");
    assert_eq!(shared.advertise.as_ref().unwrap().as_str(), "http://10.0.0.1:5000/");
    assert!(shared.redirect && shared.s3.path_style);
    assert!(shared.s3.ca.as_ref().unwrap().starts_with("-----BEGIN CERTIFICATE-----"));
    assert_eq!((shared.budget, shared.s3.prefix.as_str()), (Some(1_000_000_000_000), "some/where"));
    let keys = shared.s3.keys.as_ref().unwrap();
    assert_eq!((keys.id.as_str(), keys.secret.as_str()), ("two", "hunter2"));
    let shown = format!("{config:?}");
    assert!(!shown.contains("hunter2") && !shown.contains(":it@"), "{shown}");
    assert!(self::config("").shared.is_none());
    let usual = self::config(&format!("{SHARED}{BUCKET}")).shared.unwrap();
    assert!(!usual.s3.path_style && !usual.redirect && usual.s3.keys.is_none());
    assert_eq!(usual.s3.region, "us-east-1");
}

#[test]
fn replicas_that_share_an_index_are_not_configured_and_say_where_they_are() {
    let with = |more: &str| mistakes(&format!("{SHARED}{more}\n{BUCKET}"));
    assert_eq!(
        with("listen = \"0.0.0.0:5000\"\npeers = \"http://a:1\""),
        [
            "f.toml:1: storage: the other replicas cannot know which address of this machine is meant; add advertise = \"http://ADDRESS:PORT\"",
            "f.toml:4: peers: replicas that share an index find each other in it; remove `peers`",
        ]
    );
}

#[test]
fn a_database_url_with_something_unknown_is_refused_and_not_shown() {
    for url in [
        "postgres://u:hunter2@h/d?sslmode=require&hunter2=1",
        "postgres://h/d?password=hunter2",
        "mysql://u:hunter2@h/d",
        "postgres://u:hunter2@h:x/d",
    ] {
        let found = mistakes(&format!("index = \"{url}\""));
        assert!(found[0].starts_with("f.toml:1: index: ") && found.len() == 1, "{found:?}");
        assert!(!found[0].contains("hunter2"), "{found:?}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_reading_panic(text in "(\\PC|\n|\\[upstreams\\.\"|listen = |alias = \\[|credentials = \\{|\"){0,40}") {
        let _ = read(&text, Overrides::default());
    }

    #[test]
    fn no_value_makes_reading_panic(
        key in "listen|admin|admin_token_file|budget|scrub|default_upstream|upstreams|hosts|tls_cert",
        value in "(\"\\PC{0,20}\"|[0-9]{1,25}|\\[\\]|\\{\\}|true|1979-05-27)",
    ) {
        let _ = read(&format!("{key} = {value}"), Overrides::default());
    }
}

fn config(text: &str) -> Config {
    read(text, Overrides::default()).unwrap()
}

fn mistakes(text: &str) -> Vec<String> {
    let mistakes = read(text, Overrides::default()).unwrap_err();
    mistakes.iter().map(ToString::to_string).collect()
}

fn read(text: &str, overrides: Overrides) -> Result<Config, Vec<Mistake>> {
    let default_data = PathBuf::from("/default");
    parse(text, "f.toml", &Environment { overrides, default_data, files: &*FILES })
}

fn given_by(origin: &str, text: &str) -> Given {
    Given { origin: origin.to_owned(), text: text.to_owned() }
}

fn listener(address: &str, upstream: Option<&str>) -> Listener {
    let default_upstream = upstream.map(str::to_owned);
    Listener { address: address.parse().unwrap(), default_upstream }
}
