//! What fuzz targets do with parsers that are private here. A property that does not hold is a
//! panic.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use larder_core::Host;
use url::Url;

use crate::caller::Caller;
use crate::challenge::{self, Challenge};
use crate::credentials::Login;
use crate::{docker_config, header, link, token};

/// `WWW-Authenticate`, one line of the header per line: what was read is read again when it is
/// written properly; what is passed on is a header, and sends no secret where it can be read.
pub fn challenges(bytes: &[u8]) {
    let text = &*String::from_utf8_lossy(bytes);
    if let Some(passed) = challenge::to_pass_on(text.split('\n'), false) {
        assert!(HeaderValue::from_str(&passed).is_ok(), "{passed:?}");
        if let Some(Challenge::Bearer { realm, .. }) = challenge::choose([passed.as_str()]) {
            assert!(Url::parse(&realm).is_ok_and(|it| it.scheme() == "https"), "{passed}");
        }
    }
    let Some(chosen) = challenge::choose(text.split('\n')) else { return };
    let Challenge::Bearer { realm, service, scope } = &chosen else { return };
    assert!(!realm.is_empty());
    let mut line = format!("Bearer realm={}", quoted(realm));
    for (name, value) in [("service", service), ("scope", scope)] {
        if let Some(value) = value {
            line.push_str(&format!(",{name}={}", quoted(value)));
        }
    }
    assert_eq!(challenge::choose([line.as_str()]), Some(chosen), "{line}");
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// `Link`, one line of the header per line: the next page can be asked for, and is the same one
/// when it is linked to again.
pub fn links(bytes: &[u8]) {
    let text = &*String::from_utf8_lossy(bytes);
    let page = Url::parse("https://registry.example.com/v2/a/tags/list?n=2").expect("it is a url");
    let Some(cursor) = link::next_page(text.split('\n'), &page) else { return };
    assert!(!cursor.is_empty());
    let query = link::query(Some(7), Some(&cursor)).expect("it has an `n`");
    assert!(query.starts_with("n=7"), "{query}");
    if !cursor.starts_with('?') {
        let line = format!("</v2/a/tags/list?{query}>; rel=\"next\"");
        assert_eq!(link::next_page([line.as_str()], &page), Some(cursor), "{line}");
    }
}

/// Docker's `config.json`: a login that was found can be shown, and none is in an error.
pub fn docker_config(bytes: &[u8]) {
    for host in ["docker.io", "ghcr.io", "localhost:5000"] {
        let host: Host = host.parse().expect("it is a host");
        if let Ok(login) = docker_config::login_for(&host, bytes) {
            let _ = login.basic_header();
            let shown = format!("{login:?}");
            match &login {
                // A name is shown, whatever it is.
                Login::Password { username, .. } if username.contains("hunter2") => {}
                _ => assert!(!shown.contains("hunter2"), "{shown}"),
            }
        }
    }
}

/// What a token service says, and the headers that are numbers: a token lasts for a day at most. And
/// when a caller's token says that it ends.
pub fn tokens(bytes: &[u8]) {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    if let Ok(token) = token::parse(bytes) {
        assert!(token.lifetime <= DAY && token.header.is_sensitive());
    }
    let text = &*String::from_utf8_lossy(bytes);
    let wait = header::retry_after(text, SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 30));
    assert!(wait.is_none_or(|wait| wait <= DAY));
    let shown = format!("Bearer e30.{}.", BASE64_URL_SAFE_NO_PAD.encode(bytes));
    if let Ok(shown) = HeaderValue::try_from(shown) {
        let caller = Caller::of(&HeaderMap::from_iter([(AUTHORIZATION, shown)]));
        let _ = caller.expect("it is a token").ends_at();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The seeds are in the repository, and so is what a fuzzer has once found.
    #[test]
    fn every_target_here_takes_every_seed() {
        type Target = (&'static str, fn(&[u8]));
        let targets: [Target; 4] = [
            ("challenges", challenges),
            ("links", links),
            ("docker_config", docker_config),
            ("tokens", tokens),
        ];
        let corpus = "../../fuzz/corpus";
        for (name, target) in targets {
            let seeds = std::fs::read_dir(format!("{corpus}/{name}")).unwrap();
            let seeds: Vec<_> = seeds.map(|seed| seed.unwrap().path()).collect();
            assert!(!seeds.is_empty(), "{name}");
            seeds.iter().for_each(|seed| target(&std::fs::read(seed).unwrap()));
        }
    }
}
