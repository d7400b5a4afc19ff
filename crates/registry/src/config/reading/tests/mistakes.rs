//! Each mistake with its line and what to write instead.

use super::*;

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
            "[s3]\nbucket = \"blobs\"\nca = \"no.pem\"",
            "3: s3.ca: reading `no.pem`: entity not found; write a path that can be read",
        ),
        (
            "[s3]\nbucket = \"blobs\"\nca = \"token\"",
            "3: s3.ca: token has no certificate in it; it must be PEM (`-----BEGIN …-----`)",
        ),
        (
            "[s3]\nbucket = \"blobs\"\nendpoint = \"http://a\"\nca = \"cert.pem\"",
            "4: s3.ca: the server is not asked by https; remove it, or write an https URL in `endpoint`",
        ),
        (
            "index = \"postgres://h/d?sslmode=on\"",
            "1: index: has an unknown `sslmode`; write one of disable, allow, prefer, require, verify-ca, verify-full",
        ),
        (
            "index = \"postgres://h/d?sslmode=verify-full&sslrootcert=no.pem\"",
            "1: index: sslrootcert: reading `no.pem`: entity not found; write a path that can be read",
        ),
        (
            "index = \"postgres://h/d?sslmode=verify-full&sslrootcert=token\"",
            "1: index: sslrootcert: token has no certificate in it; it must be PEM (`-----BEGIN …-----`)",
        ),
        (
            "index = \"postgres://h/d?sslmode=require&sslrootcert=cert.pem\"",
            "1: index: has an `sslrootcert` that is not asked for; add sslmode=verify-full, or remove it",
        ),
        (
            "index = \"postgres://h/d?sslcert=cert.pem\"",
            "1: index: has one of `sslcert` and `sslkey`; add the other one",
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
            "[upstreams.\"x.io\"]\naccess = \"callers\"\naccess_memory = \"1m\"",
            "2: upstreams.\"x.io\".access: `callers` is no kind of access; write \"shared\" or \"caller\"",
        ),
        (
            "[upstreams.\"x.io\"]\naccess = \"caller\"\naccess_memory = \"6m\"",
            "3: upstreams.\"x.io\".access_memory: 6m is longer than a right may count; write 0s to 5m",
        ),
        (
            "[upstreams.\"x.io\"]\naccess = \"caller\"\naccess_grace = \"25h\"",
            "3: upstreams.\"x.io\".access_grace: 1day 1h is longer than a right may count; write 0s to 1day",
        ),
        (
            "[upstreams.\"x.io\"]\naccess_grace = \"1h\"",
            "2: upstreams.\"x.io\".access_grace: has no effect where everyone may read; remove it, or add access = \"caller\"",
        ),
        (
            "[upstreams.\"x.io\"]\naccess = \"caller\"\ncredentials = { username = \"u\", password = \"p\" }",
            "3: upstreams.\"x.io\".credentials: are never used with access = \"caller\": each caller's own are; remove them, or write access = \"shared\"",
        ),
        (
            "[upstreams.\"x.io\"]\naccess = \"caller\"\nclient_cert = \"cert.pem\"\nclient_key = \"key.pem\"",
            "2: upstreams.\"x.io\".access: would let every caller in where our client certificate is let in; remove client_cert and client_key",
        ),
        (
            "[upstreams.\"x.io\"]\naccess = \"caller\"\nserve_deleted = true",
            "2: upstreams.\"x.io\".access: leaves nobody a right to what upstream has no more; remove serve_deleted",
        ),
        (
            "[upstreams.\"x.io\"]\nurls = \"http://x.io\"\naccess = \"caller\"",
            "3: upstreams.\"x.io\".access: has callers' credentials sent to http://x.io/ for anyone to read; write an https URL, or insecure_skip_verify = true if that is acceptable",
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
