use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::LazyLock;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::config::{Access, TagFreshness};

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
fn all_mistakes_are_found_at_once_in_the_order_of_the_file() {
    let mistakes = mistakes(
        "listen = 5000\noffline = \"yes\"\n[upstreams.\"ghcr.io\"]\nfreshness = 60\nurl = \"x\"\n",
    );
    assert_eq!(
        mistakes,
        [
            "f.toml:1: listen: must be text, and is a number; write it in quotes",
            "f.toml:2: offline: must be a truth value, and is text; write true or false",
            "f.toml:4: upstreams.\"ghcr.io\".freshness: must be text, and is a number; write it in quotes",
            "f.toml:5: upstreams.\"ghcr.io\".url: there is no such key; write urls",
        ]
    );
}

/// One mistake each: the file, and what is said about it.
#[test]
fn a_mistake_says_where_it_is_what_is_wrong_and_what_to_do() {
    let long = "x".repeat(500);
    let table = [
        (
            "listen = []",
            "1: listen: without an address nobody is served; write one as in \"127.0.0.1:5000\"",
        ),
        (
            "listen = \":80\"",
            "1: listen: `:80` is not an IP address with a port; write it as in 0.0.0.0:80",
        ),
        (
            "listen = [\"127.0.0.1:1\",\n \"x\"]",
            "2: listen[1]: `x` is not an IP address with a port; write it as in 127.0.0.1:5000",
        ),
        (
            "listen = \"127.0.0.1:1=\"",
            "1: listen: no upstream follows the `=`; write the address alone, or ADDRESS:PORT=HOST",
        ),
        (
            "listen = \"127.0.0.1:1=nowhere.io\"",
            "1: listen: `nowhere.io` is no upstream and no alias of one; write one that is, or add [upstreams.\"nowhere.io\"]",
        ),
        (
            "listen = [\"1.1.1.1:1\", \"1.1.1.1:1\"]",
            "1: listen[1]: 1.1.1.1:1 is listened on already; write another port",
        ),
        (
            "admin = \"127.0.0.1:5000\"",
            "1: admin: 127.0.0.1:5000 is listened on already; write another port",
        ),
        (
            "listen = \"127.0.0.1:5001\"",
            "1: listen: 127.0.0.1:5001 is listened on already; write another port",
        ),
        ("data = \"\"", "1: data: is empty; write a path"),
        (
            "public_url = \"https://x\"",
            "1: public_url: is not available in this version; remove it; links in answers are relative",
        ),
        (
            "budget = \"lots\"",
            "1: budget: `lots` is not an amount of bytes; write bytes as in 100GB, or 1% to 100% of the disk",
        ),
        (
            "budget = 0",
            "1: budget: a store of 0 bytes holds nothing; write bytes as in 100GB, or 1% to 100% of the disk",
        ),
        (
            "ttl = \"forever\"",
            "1: ttl: `forever` is not a duration; write a number with its unit, as in 500ms, 90s, 10m or 1h",
        ),
        (
            "low_watermark = \"0%\"",
            "1: low_watermark: `0%` is no share of the budget; write 1% to 100%",
        ),
        (
            "pins = [\"docker.io/library/alpine\", \"alpine:3\"]",
            "1: pins[1]: `alpine:3` does not begin with a registry's host, as docker.io/library/alpine:3.* does; write HOST/NAME, HOST/NAME:TAG or HOST/NAME@DIGEST, with * for any part of it",
        ),
        (
            "storage = \"tape\"",
            "1: storage: `tape` is no kind of storage; write \"disk\" or \"s3\"",
        ),
        (
            "index = \"postgres\"",
            "1: index: is not the URL of a database; write \"sqlite\", or it as in \"postgres://USER@HOST:5432/DATABASE\"",
        ),
        (
            "storage = \"s3\"\n[s3]\nbucket = \"blobs\"",
            "1: storage: replicas that share a bucket share an index, too; add index = \"postgres://HOST/DATABASE\"",
        ),
        (
            "index = \"postgres://h/d\"",
            "1: index: replicas that share an index share a bucket, too; add storage = \"s3\" and [s3], or remove it",
        ),
        (
            "storage = \"s3\"\nindex = \"postgres://h/d\"",
            "1: storage: nothing says which bucket; add [s3] with bucket = \"NAME\"",
        ),
        ("[s3]\nbucket = \"blobs\"", "1: s3: has no effect; add storage = \"s3\""),
        ("[s3]\nregion = \"x\"", "1: s3: nothing says which bucket; add bucket = \"NAME\""),
        (
            "[s3]\nbucket = \"a b\"",
            "2: s3.bucket: `a b` cannot be the name of a bucket; write 3 to 255 letters, digits, -, . and _",
        ),
        (
            "[s3]\nbucket = \"blobs\"\nprefix = \"a/../b\"",
            "3: s3.prefix: `a/../b` cannot begin a key; write parts of letters, digits, -, . and _, with / between them",
        ),
        (
            "[s3]\nbucket = \"blobs\"\ncredentials_file = \"token\"",
            "3: s3.credentials_file: the file has no keys under [default]; write a file with aws_access_key_id and aws_secret_access_key",
        ),
        (
            "index_password_file = \"password\"",
            "1: index_password_file: there is no database; remove it",
        ),
        (
            "advertise = \"http://a:1\"",
            "1: advertise: has no effect; remove it, or add storage = \"s3\"",
        ),
        (
            "colour = 1",
            "1: colour: there is no such key; known here are public_url, builtin_upstreams, listen, admin, admin_token_file, data, offline, budget, low_watermark, ttl, untagged_ttl, pins, scrub, tls_cert, tls_key, default_upstream, hosts, peers, peers_ca, storage, index, index_password_file, s3, advertise, upstreams",
        ),
        (
            "scrub = \"5m\"",
            "1: scrub: `5m` is less than an hour; write at least 1h, or 0 for never",
        ),
        (
            "admin_token_file = \"absent\"",
            "1: admin_token_file: reading `absent`: entity not found; write a path that can be read",
        ),
        (
            "admin_token_file = \"password\"",
            "1: admin_token_file: the token has fewer than 16 characters; write a file with a token, such as `openssl rand -hex 32` prints",
        ),
        (
            "default_upstream = \"nowhere\"",
            "1: default_upstream: `nowhere` is no upstream and no alias of one; write one that is, or add [upstreams.nowhere]",
        ),
        (
            "hosts = { \"a.b:80\" = \"docker.io\" }",
            "1: hosts.\"a.b:80\": `a.b:80` is not the name of a host; write the name in the `Host` header, without port",
        ),
        (
            "[hosts]\nx = \"nowhere\"",
            "2: hosts.x: `nowhere` is no upstream and no alias of one; write one that is, or add [upstreams.nowhere]",
        ),
        (
            "tls_cert = \"cert.pem\"",
            "1: tls_cert: a certificate alone is no use; set its key with `tls_key`",
        ),
        (
            "tls_key = \"key.pem\"",
            "1: tls_key: a key alone is no use; set its certificate with `tls_cert`",
        ),
        (
            "tls_cert = \"absent\"\ntls_key = \"key.pem\"",
            "1: tls_cert: reading `absent`: entity not found; write a path that can be read",
        ),
        (
            "tls_cert = \"cert.pem\"\ntls_key = \"password\"",
            "2: tls_key: password has no private key in it; it must be PEM (`-----BEGIN …-----`)",
        ),
        (
            "tls_cert = \"key.pem\"\ntls_key = \"key.pem\"",
            "1: tls_cert: key.pem has no certificate in it; it must be PEM (`-----BEGIN …-----`)",
        ),
        (
            "tls_cert = \"cert.pem\"\ntls_key = \"other-key.pem\"",
            "1: tls_cert: the key in other-key.pem is not that of the first certificate in cert.pem",
        ),
        ("peers = []", "1: peers: is empty; remove it, or write one"),
        (
            "peers = \"10.0.0.1:5000\"",
            "1: peers: `10.0.0.1:5000` is not a URL (relative URL without a base); write it as in https://HOST or https://HOST:PORT",
        ),
        (
            "peers = \"dns+http://127.0.0.1:5000\"",
            "1: peers: `http://127.0.0.1:5000` is an address, and no name; write http://127.0.0.1:5000/ without dns+",
        ),
        (
            "peers = [\"http://localhost:1\",\n \"http://localhost:1\"]",
            "2: peers[1]: http://localhost:1/ is there already; remove it",
        ),
        (
            "peers = \"dns+http://larder:5000\"",
            "1: peers: no other replica can reach this one, which listens on loopback only; set `listen` to an address that they reach",
        ),
        (
            "peers_ca = \"cert.pem\"",
            "1: peers_ca: no peer is asked by https; remove it, or write https URLs in `peers`",
        ),
        (
            "upstreams = 1",
            "1: upstreams: must be a table, and is a number; write { KEY = VALUE, … }",
        ),
        (
            "[upstreams.\"https://ghcr.io\"]",
            "1: upstreams.\"https://ghcr.io\": `https://ghcr.io` is not a registry's host; write HOST, HOST:PORT, * for a whole label as in *.gcr.io, or * alone for any host",
        ),
        (
            "[upstreams.\"xn--a.io\"]",
            "1: upstreams.\"xn--a.io\": `xn--a.io` is not a registry's host; write HOST, HOST:PORT, * for a whole label as in *.gcr.io, or * alone for any host",
        ),
        (
            "[upstreams.hub]",
            "1: upstreams.hub: `hub` has no dot and no port, so no image can name it; write HOST.DOMAIN or HOST:PORT, and the short name as its alias",
        ),
        (
            "[upstreams.\"docker.io\"]\n[upstreams.\"index.docker.io\"]",
            "2: upstreams.\"index.docker.io\": docker.io is configured at f.toml:1 already; put both into one",
        ),
        (
            "[upstreams.\"*.x.io\"]\nurls = \"https://y\"",
            "2: upstreams.\"*.x.io\".urls: `urls` cannot stand for several hosts at once; remove it, or configure one host by its name",
        ),
        (
            "[upstreams.\"*.x.io\"]\nalias = \"y\"",
            "2: upstreams.\"*.x.io\".alias: `alias` cannot stand for several hosts at once; remove it, or configure one host by its name",
        ),
        (
            "[upstreams.\"x.io\"]\nurls = []",
            "2: upstreams.\"x.io\".urls: is empty; remove it, or write one",
        ),
        (
            &format!("[upstreams.\"x.io\"]\nurls = {:?}", ["https://x.io"; 9]),
            "1: upstreams.\"x.io\": has 9 URLs, and each is tried while a client waits; write at most 8",
        ),
        (
            "[upstreams.\"x.io\"]\nurls = \"x.io\"",
            "2: upstreams.\"x.io\".urls: `x.io` is not a URL (relative URL without a base); write it as in https://HOST or https://HOST:PORT",
        ),
        (
            "[upstreams.\"x.io\"]\nurls = \"https://u:hunter2@x.io\"",
            "2: upstreams.\"x.io\".urls: a URL must not have a user name or password in it; write it as in https://HOST or https://HOST:PORT",
        ),
        (
            "[upstreams.\"x.io\"]\nalias = \"a.b\"",
            "2: upstreams.\"x.io\".alias: `a.b` reads as a host; write a word without dot and colon, such as hub",
        ),
        (
            "[upstreams.\"x.io\"]\nalias = \"\"",
            "2: upstreams.\"x.io\".alias: an alias must not be empty; write a word such as hub",
        ),
        (
            "[upstreams.\"x.io\"]\nalias = [\"a\", \"a\"]",
            "2: upstreams.\"x.io\".alias[1]: `a` is an alias at f.toml:2 already; write another name",
        ),
        (
            "[upstreams.\"x.io\"]\nfreshness = \"60\"",
            "2: upstreams.\"x.io\".freshness: `60` is not a duration; write it with its unit, as in 60s",
        ),
        (
            "[upstreams.\"x.io\"]\ndeadline = \"0s\"",
            "2: upstreams.\"x.io\".deadline: with no time at all, upstream is never heard; write 2s",
        ),
        (
            "[upstreams.\"x.io\"]\naccess = \"caller\"",
            "2: upstreams.\"x.io\".access: `caller` is not available in this version; write \"shared\"",
        ),
        (
            "[upstreams.\"x.io\"]\nquota = \"1 lot\"",
            "2: upstreams.\"x.io\".quota: `1 lot` is not an amount of bytes; write bytes as in 100GB",
        ),
        (
            "[upstreams.\"x.io\"]\nrepositories = [{ match = \"library/*\" }]",
            "2: upstreams.\"x.io\".repositories[0]: must say which repositories, and how long their content may go unused; write { match = \"library/*\", ttl = \"30d\" }",
        ),
        (
            "[upstreams.\"x.io\"]\nparallel = 17",
            "2: upstreams.\"x.io\".parallel: must be a whole number; write 1 to 16",
        ),
        (
            "[upstreams.\"x.io\"]\nmax_rate = 0",
            "2: upstreams.\"x.io\".max_rate: must be a whole number; write 1 to 100000",
        ),
        (
            "[upstreams.\"x.io\"]\nread_timeout = \"1h\"",
            "2: upstreams.\"x.io\".read_timeout: `1h` is too short or too long; write 1s to 5m",
        ),
        (
            "[upstreams.\"x.io\"]\ntags = [{ match = \"v*\" }]",
            "2: upstreams.\"x.io\".tags[0]: must say which tags, and how long their answers count; write { match = \"v*\", freshness = \"forever\" }",
        ),
        (
            "[upstreams.\"x.io\"]\naddresses = \"10.0.0.0/8\"",
            "2: upstreams.\"x.io\".addresses: only the upstream \"*\" is kept from private addresses; remove it: this one may be anywhere",
        ),
        (
            "[upstreams.\"*\"]\naddresses = \"10.0.0.0/33\"",
            "2: upstreams.\"*\".addresses: `10.0.0.0/33` is no network; write an address, or a network as in 10.0.0.0/8 or fd00::/8",
        ),
        (
            "[upstreams.\"*\"]\ncredentials = { username = \"u\", password = \"p\" }",
            "2: upstreams.\"*\".credentials: would be shown to every registry that anybody asks for; write { docker_config }, which has a login for each registry",
        ),
        (
            "[upstreams.\"x.io\"]\nca = \"absent\"",
            "2: upstreams.\"x.io\".ca: reading `absent`: entity not found; write a path that can be read",
        ),
        (
            "[upstreams.\"x.io\"]\nca = \"password\"",
            "2: upstreams.\"x.io\".ca: password has no certificate in it; it must be PEM (`-----BEGIN …-----`)",
        ),
        (
            "[upstreams.\"x.io\"]\nclient_cert = \"cert.pem\"",
            "2: upstreams.\"x.io\".client_cert: a certificate alone is no use; set its key with `client_key`",
        ),
        (
            "[upstreams.\"x.io\"]\nclient_key = \"key.pem\"",
            "2: upstreams.\"x.io\".client_key: a key alone is no use; set its certificate with `client_cert`",
        ),
        (
            "[upstreams.\"x.io\"]\nclient_cert = \"cert.pem\"\nclient_key = \"absent\"",
            "3: upstreams.\"x.io\".client_key: reading `absent`: entity not found; write a path that can be read",
        ),
        (
            "[upstreams.\"x.io\"]\nclient_cert = \"cert.pem\"\nclient_key = \"other-key.pem\"",
            "2: upstreams.\"x.io\".client_cert: the key in other-key.pem is not that of the first certificate in cert.pem",
        ),
        (
            "[upstreams.\"x.io\"]\nallow = \"A\"",
            "2: upstreams.\"x.io\".allow: `A` matches no repository; write a name, with * for any part of it, as in library/*",
        ),
        (
            "[upstreams.\"x.io\"]\ncredentials = \"u:p\"",
            "2: upstreams.\"x.io\".credentials: must be a table, and is text; write { KEY = VALUE, … }",
        ),
        (
            "[upstreams.\"x.io\"]\ncredentials = {}",
            "2: upstreams.\"x.io\".credentials: must be one way to log in; write { username, password }, { username, password_file } or { docker_config }",
        ),
        (
            "[upstreams.\"x.io\"]\ncredentials = { username = \"u\", password = \"\" }",
            "2: upstreams.\"x.io\".credentials.password: is empty; remove `credentials` to ask as nobody",
        ),
        (
            "[upstreams.\"x.io\"]\ncredentials = { username = \"u\", pasword = \"hunter2\" }",
            "2: upstreams.\"x.io\".credentials.pasword: there is no such key; write password",
        ),
        (
            "[upstreams.\"x.io\"]\ncredentials = { username = \"u\", password_file = \"absent\" }",
            "2: upstreams.\"x.io\".credentials: reading absent: entity not found; write a file that can be read and holds them",
        ),
        (
            "[upstreams.\"x.io\"]\ncredentials = { username = \"u\", password_file = \"empty\" }",
            "2: upstreams.\"x.io\".credentials: reading empty: the file is empty; write a file that can be read and holds them",
        ),
        (
            "[upstreams.\"*.x.io\"]\ncredentials = { docker_config = \"password\" }",
            "2: upstreams.\"*.x.io\".credentials: reading password: not docker's config.json: wrong at line 1, column 1; write a file that can be read and holds them",
        ),
        (
            "[upstreams.\"x.io\"]\ncredentials = { docker_config = \"docker.json\" }",
            "2: upstreams.\"x.io\".credentials: the file has no login for x.io (credential helpers are not asked); log in with `docker login x.io`",
        ),
        (
            "[upstreams.\"x.io\"]\nurls = \"http://x.io\"\ncredentials = { username = \"u\", password = \"hunter2\" }",
            "3: upstreams.\"x.io\".credentials: would be sent to http://x.io/ for anyone to read; write an https URL, or insecure_skip_verify = true if that is acceptable",
        ),
        (
            &format!("data = \"a\"\nbudget = \"{long}\""),
            &format!(
                "2: budget: `{}` is not an amount of bytes; write bytes as in 100GB, or 1% to 100% of the disk",
                &long[..80]
            ),
        ),
    ];
    for (text, wanted) in table {
        assert_eq!(mistakes(text), [format!("f.toml:{wanted}")], "{text}");
    }
}

#[test]
fn syntax_errors_have_their_lines() {
    let mistakes = mistakes("offline = 1\ndata = /x\n");
    assert_eq!(mistakes.len(), 1, "{mistakes:?}");
    assert!(mistakes[0].starts_with("f.toml:2: "), "{mistakes:?}");
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
         endpoint = \"http://s3:9000\"\nprefix = \"/some/where/\"\nregion = \"r\"\nredirect = true\n\
         budget = \"1TB\"\ncredentials_file = \"aws\"\nprofile = \"ours\""
    );
    let config = config(&text);
    let shared = config.shared.as_ref().unwrap();
    assert_eq!(shared.database.0, "postgres://u:it@h:1/d?sslmode=require");
    assert_eq!(shared.advertise.as_ref().unwrap().as_str(), "http://10.0.0.1:5000/");
    assert!(shared.redirect && shared.s3.path_style);
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

const DOCUMENT: &str = include_str!("../../../../../docs/configuration.md");

#[test]
fn every_key_is_in_the_document() {
    for (header, key) in known_keys() {
        let in_heading = DOCUMENT.contains(&format!("\n### `{key}`\n"));
        let in_table = DOCUMENT.contains(&format!("\n| `{key}` "));
        assert!(in_heading || in_table, "{header} {key}");
    }
}

#[test]
fn every_example_of_the_document_is_a_configuration() {
    let examples = examples();
    assert!(examples.len() > 20, "{examples:?}");
    for example in examples {
        if let Err(mistakes) = read_in_etc(example) {
            panic!("{mistakes:?} in {example}");
        }
    }
}

#[test]
fn the_documents_complete_example_has_every_key_that_has_an_effect() {
    let (_, end) = DOCUMENT.split_once("\n## A complete example\n").unwrap();
    let example = *examples_in(end).first().unwrap();
    for (header, key) in known_keys() {
        if key == "public_url" {
            continue;
        }
        let is_there = ["\n", "[", "{ ", ", "].iter().any(|before| {
            [" =", "]", "."].iter().any(|after| example.contains(&format!("{before}{key}{after}")))
        });
        assert!(is_there || example.starts_with(&format!("{key} =")), "{header} {key}");
    }
}

/// All keys, each with the table that it is in, as the reader itself lists them.
fn known_keys() -> Vec<(&'static str, String)> {
    let tables = ["", "[s3]\n", "[upstreams.\"x.io\"]\n", "[upstreams.\"x.io\".credentials]\n"];
    let keys_of = |header: &'static str| {
        let mistakes = mistakes(&format!("{header}unlike_any_other = 1"));
        let (_, known) = mistakes[0].split_once("known here are ").unwrap();
        known.split(", ").map(|key| (header, key.to_owned())).collect::<Vec<_>>()
    };
    tables.into_iter().flat_map(keys_of).collect()
}

fn examples() -> Vec<&'static str> {
    examples_in(DOCUMENT)
}

fn examples_in(document: &str) -> Vec<&str> {
    let blocks = document.split("\n```toml\n").skip(1);
    blocks.map(|block| block.split_once("\n```").unwrap().0).collect()
}

/// Reads an example, which names files as they are on a server.
fn read_in_etc(text: &str) -> Result<Config, Vec<Mistake>> {
    let login = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"}}}"#;
    let file = |name: &str| FILES[&PathBuf::from(name)].clone();
    let files = BTreeMap::from([
        (PathBuf::from("/etc/larder/tls.crt"), file("cert.pem")),
        (PathBuf::from("/etc/larder/tls.key"), file("key.pem")),
        (PathBuf::from("/etc/larder/ca.pem"), file("cert.pem")),
        (PathBuf::from("/etc/larder/client.crt"), file("cert.pem")),
        (PathBuf::from("/etc/larder/client.key"), file("key.pem")),
        (PathBuf::from("/etc/larder/password"), file("password")),
        (PathBuf::from("/etc/larder/admin-token"), file("token")),
        (PathBuf::from("/etc/larder/aws-credentials"), file("aws")),
        (PathBuf::from("/etc/larder/config.json"), login.to_owned()),
    ]);
    let (overrides, default_data) = (Overrides::default(), PathBuf::from("/default"));
    parse(text, "example", &Environment { overrides, default_data, files: &files })
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
