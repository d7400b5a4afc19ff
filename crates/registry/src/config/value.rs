//! Single values: what each may be, whether it stands in the file or came by a flag.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use larder_core::name::{Host, Repository};
use larder_core::retention::{ImagePattern, ParseImagePatternError, RepositoryPattern, Ttl};
use larder_core::size::parse_size;
use url::Url;

use super::mistake::{Wrong, wrong};
use super::{Budget, Listener};

/// The longest duration that makes sense anywhere here.
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// `ADDRESS:PORT`
pub(super) fn address(text: &str) -> Result<SocketAddr, Wrong> {
    text.parse().map_err(|_| {
        let port = text.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        let host = match text.split_once(':') {
            Some(("", _)) => "0.0.0.0",
            _ => "127.0.0.1",
        };
        let port = port.map_or_else(|| "5000".to_owned(), |port| port.to_string());
        wrong(format!("`{}` is not an IP address with a port", shown(text)))
            .write(format!("it as in {host}:{port}"))
    })
}

/// `ADDRESS:PORT` or `ADDRESS:PORT=UPSTREAM`
pub(super) fn listener(text: &str) -> Result<Listener, Wrong> {
    match text.split_once('=') {
        None => Ok(Listener { address: address(text)?, default_upstream: None }),
        Some((_, "")) => {
            Err(wrong("no upstream follows the `=`")
                .write("the address alone, or ADDRESS:PORT=HOST"))
        }
        Some((before, upstream)) => {
            Ok(Listener { address: address(before)?, default_upstream: Some(upstream.to_owned()) })
        }
    }
}

/// `100GB` or `80%`
pub(super) fn budget(text: &str) -> Result<Budget, Wrong> {
    let advise = |wrong: Wrong| wrong.write("bytes as in 100GB, or 1% to 100% of the disk");
    if let Some(percent) = text.trim().strip_suffix('%') {
        return match percent.trim().parse() {
            Ok(percent @ 1..=100) => Ok(Budget::Percent(percent)),
            _ => Err(advise(wrong(format!("`{}` is no share of a disk", shown(text))))),
        };
    }
    match parse_size(text) {
        Ok(0) => Err(advise(wrong("a store of 0 bytes holds nothing"))),
        Ok(bytes) => Ok(Budget::Bytes(bytes)),
        Err(_) => Err(advise(wrong(format!("`{}` is not an amount of bytes", shown(text))))),
    }
}

/// `90%`
pub(super) fn percent(text: &str) -> Result<u8, Wrong> {
    let number = text.trim().strip_suffix('%').and_then(|percent| percent.trim().parse().ok());
    number.filter(|percent| (1..=100).contains(percent)).ok_or_else(|| {
        wrong(format!("`{}` is no share of the budget", shown(text))).write("1% to 100%")
    })
}

/// `100GB`
pub(super) fn quota(text: &str) -> Result<u64, Wrong> {
    let bytes = parse_size(text).ok().filter(|bytes| *bytes > 0);
    bytes.ok_or_else(|| {
        wrong(format!("`{}` is not an amount of bytes", shown(text))).write("bytes as in 100GB")
    })
}

/// How long content may go unused; `0` is for ever.
pub(super) fn ttl(text: &str) -> Result<Ttl, Wrong> {
    match text.trim() {
        "0" => Ok(Ttl::Never),
        _ => duration(text).map(Ttl::from_duration),
    }
}

/// `HOST/NAME`, `HOST/NAME:TAG`, `HOST/NAME@DIGEST`
pub(super) fn image_pattern(text: &str) -> Result<ImagePattern, Wrong> {
    text.parse().map_err(|error: ParseImagePatternError| {
        let advice = "HOST/NAME, HOST/NAME:TAG or HOST/NAME@DIGEST, with * for any part of it";
        wrong(shown_all(&error.to_string())).write(advice)
    })
}

/// `90s`, `1h 30m`
pub(super) fn duration(text: &str) -> Result<Duration, Wrong> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration <= YEAR => Ok(duration),
        Ok(_) => Err(wrong(format!("`{}` is more than a year", shown(text))).write("at most 365d")),
        Err(_) => {
            let wrong = wrong(format!("`{}` is not a duration", shown(text)));
            Err(match text.trim().parse::<u64>() {
                Ok(number) => wrong.write(format!("it with its unit, as in {number}s")),
                Err(_) => wrong.write("a number with its unit, as in 500ms, 90s, 10m or 1h"),
            })
        }
    }
}

/// In which time everything is read once: at least an hour, or `0` for never
pub(super) fn scrub(text: &str) -> Result<Duration, Wrong> {
    const HOUR: Duration = Duration::from_secs(3600);
    match text.trim() {
        "0" => Ok(Duration::ZERO),
        _ => match duration(text)? {
            period if period.is_zero() || period >= HOUR => Ok(period),
            _ => Err(wrong(format!("`{}` is less than an hour", shown(text)))
                .write("at least 1h, or 0 for never")),
        },
    }
}

/// How long an answer counts: a duration, or `forever`
pub(super) fn freshness(text: &str) -> Result<Duration, Wrong> {
    match text.trim() {
        "forever" => Ok(Duration::MAX),
        _ => duration(text),
    }
}

/// `10.0.0.0/8`, or one address
pub(super) fn network(text: &str) -> Result<IpNet, Wrong> {
    let one = text.parse::<IpAddr>().map(IpNet::from);
    text.parse::<IpNet>().or(one).map_err(|_| {
        wrong(format!("`{}` is no network", shown(text)))
            .write("an address, or a network as in 10.0.0.0/8 or fd00::/8")
    })
}

/// `true` or `false`
pub(super) fn boolean(text: &str) -> Result<bool, Wrong> {
    text.parse().map_err(|_| {
        wrong(format!("`{}` is not a truth value", shown(text))).write("true or false")
    })
}

/// A path, not empty.
pub(super) fn path(text: &str) -> Result<PathBuf, Wrong> {
    match text {
        "" => Err(wrong("is empty").write("a path")),
        path => Ok(PathBuf::from(path)),
    }
}

/// Scheme, host and port, in one of `schemes`. Nothing else: what follows would not be asked.
pub(super) fn base_url(text: &str, schemes: &[&str]) -> Result<Url, Wrong> {
    let example = format!("it as in {}://HOST or {}://HOST:PORT", schemes[0], schemes[0]);
    // Shows nothing that may be a password.
    let it = match text.contains('@') {
        true => "the URL".to_owned(),
        false => format!("`{}`", shown(text)),
    };
    let url = Url::parse(text)
        .map_err(|error| wrong(format!("{it} is not a URL ({error})")).write(&example))?;
    if !schemes.contains(&url.scheme()) {
        let schemes = schemes.join(" or ");
        return Err(wrong(format!("{it} is not for {schemes}")).write(example));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("a URL must not have a user name or password in it").write(example));
    }
    if !url.has_host() || url.host_str() == Some("") {
        return Err(wrong(format!("{it} has no host")).write(example));
    }
    if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
        return Err(wrong(format!("{it} has more than a host and port"))
            .write(&url[..url::Position::BeforePath]));
    }
    Ok(url)
}

/// Whether what is sent to `url` can be read on the way.
pub(super) fn is_readable_on_the_way(url: &Url) -> bool {
    url.scheme() == "http" && !is_on_loopback(url)
}

/// Whether `url` leads to this machine, whichever that is.
pub(super) fn is_on_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(ip)) => IpAddr::from(ip).is_loopback(),
        Some(url::Host::Ipv6(ip)) => IpAddr::from(ip).is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// Another name for an upstream: one path component that cannot be taken for a host.
pub(super) fn alias(text: &str) -> Result<String, Wrong> {
    if text.is_empty() {
        return Err(wrong("an alias must not be empty").write("a word such as hub"));
    }
    if Host::looks_like(text) {
        return Err(wrong(format!("`{}` reads as a host", shown(text)))
            .write("a word without dot and colon, such as hub"));
    }
    if text.contains('/') || text.parse::<Repository>().is_err() {
        return Err(wrong(format!("`{}` cannot begin a repository's name", shown(text)))
            .write("lower-case letters, digits and single dashes or underscores"));
    }
    Ok(text.to_owned())
}

/// A pattern of repository names, as `globset` reads it.
pub(super) fn glob(text: &str) -> Result<String, Wrong> {
    let cannot_be = |c: char| c.is_ascii_uppercase() || c.is_whitespace() || c == ':';
    pattern(text, "repository", cannot_be, "a name, with * for any part of it, as in library/*")
}

/// The same, ready to be used.
pub(super) fn repository_pattern(text: &str) -> Result<RepositoryPattern, Wrong> {
    let text = glob(text)?;
    RepositoryPattern::parse(&text)
        .map_err(|error| wrong(format!("`{}` is not a pattern ({error})", shown(&text))))
}

/// A pattern of tags, which may have capital letters.
pub(super) fn tag_glob(text: &str) -> Result<String, Wrong> {
    let cannot_be = |c: char| c.is_whitespace() || c == ':' || c == '/';
    pattern(text, "tag", cannot_be, "a tag, with * for any part of it, as in v*")
}

/// A pattern for names of a kind, in which some characters cannot be.
fn pattern(
    text: &str,
    kind: &str,
    cannot_be: impl Fn(char) -> bool,
    instead: &str,
) -> Result<String, Wrong> {
    if text.is_empty() || text.contains(cannot_be) {
        return Err(wrong(format!("`{}` matches no {kind}", shown(text))).write(instead));
    }
    match globset::Glob::new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => {
            let error = error.kind();
            Err(wrong(format!("`{}` is not a pattern ({error})", shown(text))).write(instead))
        }
    }
}

/// A sentence of which nothing changes a terminal.
fn shown_all(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

/// At most 80 letters of `text`, none of which changes a terminal.
pub(super) fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_a_scheme_a_host_and_a_port() {
        let url = |text| base_url(text, &["https", "http"]);
        assert_eq!(url("https://ghcr.io").unwrap().as_str(), "https://ghcr.io/");
        assert_eq!(url("http://[::1]:5000/").unwrap().as_str(), "http://[::1]:5000/");
        for text in [
            "ghcr.io",
            "ftp://x",
            "https://",
            "https://x/v2",
            "https://x?y",
            "https://x#y",
            "",
            "https://a@x",
        ] {
            assert!(url(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_password_in_a_url_is_not_shown() {
        for text in
            ["https://u:hunter2@x", "hunter2@x", "ftp://u:hunter2@x", "https://u:hunter2@[x"]
        {
            let wrong = base_url(text, &["https"]).unwrap_err();
            assert!(!format!("{wrong:?}").contains("hunter2"), "{wrong:?}");
        }
    }

    #[test]
    fn a_budget_is_bytes_or_a_share_of_the_disk() {
        assert_eq!(budget("100GB"), Ok(Budget::Bytes(100_000_000_000)));
        assert_eq!(budget("80%"), Ok(Budget::Percent(80)));
        for text in ["", "0", "0%", "101%", "-1", "-1%", "%", "a lot"] {
            assert!(budget(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_scrub_takes_an_hour_at_least_or_is_never() {
        assert_eq!(scrub("0"), Ok(Duration::ZERO));
        assert_eq!(scrub("0s"), Ok(Duration::ZERO));
        assert_eq!(scrub("7d"), Ok(Duration::from_secs(7 * 24 * 3600)));
        for text in ["", "59m", "30", "never"] {
            assert!(scrub(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_alias_cannot_be_taken_for_a_host() {
        for text in ["hub", "cern_proxy", "a-b", "x1"] {
            assert_eq!(alias(text).as_deref(), Ok(text));
        }
        for text in ["", "a.b", "a:1", "localhost", "a/b", "A", "_a"] {
            assert!(alias(text).is_err(), "{text}");
        }
    }

    #[test]
    fn plain_http_can_be_read_on_the_way_except_within_this_machine() {
        let is_readable = |text: &str| is_readable_on_the_way(&text.parse().unwrap());
        assert!(is_readable("http://registry.local:5000") && is_readable("http://10.0.0.1"));
        for url in ["https://x", "http://127.0.0.1:5000", "http://[::1]", "http://localhost:1"] {
            assert!(!is_readable(url), "{url}");
        }
    }

    #[test]
    fn a_duration_has_a_unit_and_is_at_most_a_year() {
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        for text in ["", "60", "1 fortnight", "2y", "-1s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
