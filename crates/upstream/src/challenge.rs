//! What a registry asks for in `WWW-Authenticate`.
//!
//! Source: RFC 9110, section 11.6.1, "WWW-Authenticate"; distribution, "Token Authentication
//! Specification".

use url::Url;

/// One way to authenticate that a server offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// A token of the service at `realm`.
    Bearer {
        /// The token service's address, as it was written.
        realm: String,
        /// What the token service knows the registry as.
        service: Option<String>,
        /// What the token is to be good for; several are separated by spaces.
        scope: Option<String>,
    },
    /// A user name and password with each request.
    Basic,
}

/// The most parameters that are read of one header; a challenge has four.
const MAX_PARAMETERS: usize = 64;

/// The challenge to answer, of all that the header's lines hold: the first Bearer with a realm,
/// else Basic if it is there. `None`: nothing that we can answer.
pub(crate) fn choose<'a>(lines: impl IntoIterator<Item = &'a str>) -> Option<Challenge> {
    let offered: Vec<Offer> = lines.into_iter().flat_map(parse).collect();
    let bearer = offered.iter().find_map(Offer::as_bearer);
    let basic = || offered.iter().any(|offer| offer.scheme.eq_ignore_ascii_case("basic"));
    bearer.or_else(|| basic().then_some(Challenge::Basic))
}

/// The challenge to pass on to a caller, who answers it as they would answer upstream: the one that
/// [`choose`] takes, written anew. `None`: there is none, or it would have the caller's secret sent
/// unencrypted (unless upstream itself is asked so, by `is_plain`).
pub(crate) fn to_pass_on<'a>(
    lines: impl IntoIterator<Item = &'a str>,
    is_plain: bool,
) -> Option<String> {
    let offered: Vec<Offer> = lines.into_iter().flat_map(parse).collect();
    let is_safe = |offer: &&Offer| {
        // Looked at as it will be written: without some of its letters it would be another address.
        let realm = offer.parameter("realm").filter(|realm| realm.chars().all(may_be_written));
        let realm = realm.and_then(|realm| Url::parse(&realm).ok());
        realm.is_some_and(|it| it.scheme() == "https" || it.scheme() == "http" && is_plain)
    };
    let mut bearers = offered.iter().filter(|offer| offer.as_bearer().is_some());
    if let Some(bearer) = bearers.next() {
        let bearer = Some(bearer).filter(is_safe)?;
        // Clients that ask for a token of another name than upstream's go by `error` and `scope`.
        let known = ["realm", "service", "scope", "error"].into_iter();
        let parameters = known.filter_map(|name| Some((name, bearer.parameter(name)?)));
        return Some(format!("Bearer {}", written(parameters)));
    }
    let basic = offered.iter().find(|offer| offer.scheme.eq_ignore_ascii_case("basic"))?;
    let realm = basic.parameter("realm").unwrap_or_else(|| "registry".to_owned());
    Some(format!("Basic {}", written([("realm", realm)].into_iter())))
}

/// Parameters as a header has them. What no header may have is left out.
fn written(parameters: impl Iterator<Item = (&'static str, String)>) -> String {
    let write = |(name, value): (&str, String)| {
        let value = value.replace(|c| !may_be_written(c), "");
        format!("{name}=\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
    };
    parameters.map(write).collect::<Vec<_>>().join(",")
}

/// Whether every client reads this in a header.
fn may_be_written(c: char) -> bool {
    matches!(c, ' '..='~')
}

/// A scheme and its parameters, as they are written.
#[derive(Debug, PartialEq, Eq)]
struct Offer {
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Offer {
    fn as_bearer(&self) -> Option<Challenge> {
        if !self.scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let realm = self.parameter("realm")?;
        let (service, scope) = (self.parameter("service"), self.parameter("scope"));
        Some(Challenge::Bearer { realm, service, scope })
    }

    /// The first parameter of this name that is not empty.
    fn parameter(&self, name: &str) -> Option<String> {
        let is_it =
            |(key, value): &&(String, String)| key.eq_ignore_ascii_case(name) && !value.is_empty();
        self.parameters.iter().find(is_it).map(|(_, value)| value.clone())
    }
}

/// Reads one line. What is malformed ends the reading; what came before it counts.
fn parse(line: &str) -> Vec<Offer> {
    let mut offers: Vec<Offer> = Vec::new();
    let mut rest = line;
    for _ in 0..MAX_PARAMETERS {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let Some((name, after)) = take_token(rest) else {
            break;
        };
        if let (Some(offer), Some((value, after))) = (offers.last_mut(), take_value(after)) {
            offer.parameters.push((name.to_owned(), value));
            rest = after;
            continue;
        }
        offers.push(Offer { scheme: name.to_owned(), parameters: Vec::new() });
        rest = skip_token68(after);
    }
    offers
}

/// A `token` of RFC 9110, 5.6.2, and what follows it.
fn take_token(text: &str) -> Option<(&str, &str)> {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let end = text.find(|c| !is_token(c)).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

/// `= value`, and what follows it. A value without quotes may hold anything but white space and
/// commas: some servers do not quote addresses.
fn take_value(text: &str) -> Option<(String, &str)> {
    let value = text.trim_start().strip_prefix('=')?.trim_start();
    if let Some(quoted) = value.strip_prefix('"') {
        return take_quoted(quoted);
    }
    let end = value.find([' ', '\t', ',']).unwrap_or(value.len());
    let (value, rest) = value.split_at(end);
    Some((value.to_owned(), rest))
}

/// The rest of a quoted string whose opening quote was taken, and what follows it.
fn take_quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            other => value.push(other),
        }
    }
    None
}

/// What follows the single value that some schemes have instead of parameters (`Negotiate
/// YII==`); all of `text` if there is none.
fn skip_token68(text: &str) -> &str {
    let is_token68 = |c: char| c.is_ascii_alphanumeric() || "-._~+/".contains(c);
    let rest = text.trim_start().trim_start_matches(is_token68).trim_start_matches('=');
    let is_whole = rest.trim_start().is_empty() || rest.trim_start().starts_with(',');
    if is_whole { rest } else { text }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn docker_hubs_challenge_is_understood() {
        let line = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/alpine:pull""#;
        let scope = Some("repository:library/alpine:pull");
        assert_eq!(
            choose([line]),
            Some(bearer("https://auth.docker.io/token", Some("registry.docker.io"), scope))
        );
    }

    #[test]
    fn bearer_is_preferred_wherever_it_stands() {
        let expected = Some(bearer("https://a/t", None, None));
        assert_eq!(choose([r#"Basic realm="x", Bearer realm="https://a/t""#]), expected);
        assert_eq!(choose([r#"Basic realm="x""#, r#"bearer  Realm = "https://a/t""#]), expected);
        assert_eq!(choose(["Bearer realm=https://a/t, Basic"]), expected);
        assert_eq!(choose([r#"Bearer realm="""#, r#"Bearer realm="https://a/t""#]), expected);
    }

    #[test]
    fn unknown_schemes_are_skipped() {
        assert_eq!(choose(["Negotiate YII==, basic"]), Some(Challenge::Basic));
        assert_eq!(choose([r#"Digest a="b, Basic", nonce=1"#]), None);
        assert_eq!(choose(["Negotiate", "NTLM"]), None);
        assert_eq!(choose(["", ",, ,", "\"", "Bearer"]), None);
    }

    #[test]
    fn quoted_strings_hold_commas_and_escapes() {
        let line = r#"Bearer realm="https://a/t",scope="repository:a:pull,push \"x\\",service=s"#;
        assert_eq!(
            choose([line]),
            Some(bearer("https://a/t", Some("s"), Some(r#"repository:a:pull,push "x\"#)))
        );
    }

    #[test]
    fn a_string_without_end_ends_the_reading() {
        let line = r#"Bearer realm="https://a/t", service="never closed, Basic"#;
        assert_eq!(choose([line]), Some(bearer("https://a/t", None, None)));
    }

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        }
    }

    #[test]
    fn a_caller_is_sent_where_upstream_would_send_them() {
        let pass = |line: &str| to_pass_on([line], false);
        let bearer = r#"Bearer realm="https://a/t",service="s",scope="repository:a/b:pull",error="insufficient_scope""#;
        assert_eq!(pass(bearer).as_deref(), Some(bearer));
        assert_eq!(pass(&format!("Basic realm=\"x\", {bearer}")).as_deref(), Some(bearer));
        assert_eq!(
            pass("Basic realm=\"my registry\"").as_deref(),
            Some("Basic realm=\"my registry\"")
        );
        assert_eq!(pass("basic").as_deref(), Some("Basic realm=\"registry\""));
        assert_eq!(pass("Negotiate"), None);
    }

    #[test]
    fn no_caller_is_sent_where_a_secret_can_be_read_on_the_way() {
        let bearer = |realm: &str| format!("Bearer realm=\"{realm}\"");
        for realm in ["http://a/t", "ftp://a/t", "/token", "javascript:alert(1)"] {
            assert_eq!(to_pass_on([bearer(realm).as_str()], false), None, "{realm}");
        }
        assert!(to_pass_on([bearer("http://127.0.0.1/t").as_str()], true).is_some());
    }

    #[test]
    fn no_caller_is_sent_to_another_address_because_a_header_has_no_letters_for_it() {
        for realm in ["https://ä.a/t", "https:\u{699}/a", "https://a\u{7}/t"] {
            let line = format!("Bearer realm=\"{realm}\"");
            assert_eq!(to_pass_on([line.as_str()], false), None, "{realm}");
        }
    }

    proptest! {
        #[test]
        fn what_is_passed_on_means_what_was_offered(scope in "[ -~]{1,60}") {
            let quoted = scope.replace('\\', "\\\\").replace('"', "\\\"");
            let line = format!(r#"Bearer realm="https://a/t",scope="{quoted}""#);
            let passed = to_pass_on([line.as_str()], false).unwrap();
            prop_assert_eq!(choose([passed.as_str()]), choose([line.as_str()]));
        }

        #[test]
        fn no_header_makes_the_parser_panic(
            line in "((Bearer|Basic|realm|=|\"|\\\\|,| |https://a)|\\PC){0,40}"
        ) {
            let _ = choose([line.as_str()]);
        }

        #[test]
        fn any_quoted_value_is_read_back(scope in "[ -~]{1,60}", service in "[ -~]{1,60}") {
            let quote = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
            let line = format!(
                r#"Basic realm="a, b", Bearer realm="https://a/t", scope="{}",service="{}""#,
                quote(&scope), quote(&service),
            );
            prop_assert_eq!(choose([line.as_str()]), Some(bearer("https://a/t", Some(&service), Some(&scope))));
        }
    }
}
