//! The certificates of a cache: an authority of its own, and what it signs.
//!
//! ```text
//! authority   current ───────────────┬─ previous ─┬─ gone
//!                     next ──────────┴─ current ──┴───────
//! trusted     {current} {current, next} {previous, current} {current}
//! signed by   current   current          next, now current
//!                       └── settling ──┘└── keeping ──┘
//! ```
//!
//! Whoever trusts hears of an authority before anything is signed by it, and trusts the old one until
//! everything has been signed anew. So a connection never meets a certificate that its other end does
//! not know.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};
use x509_parser::extensions::GeneralName;
use x509_parser::pem::parse_x509_pem;

use crate::names::short_hash;

const DAY: i64 = 24 * 3600;

/// By how much certificates are dated back, for clocks that are behind.
const SKEW: i64 = 3600;

/// A certificate and its private key, both PEM.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) cert: String,
    pub(crate) key: String,
}

/// Shows no key.
impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pair").field("cert", &self.cert).finish_non_exhaustive()
    }
}

/// Whom a certificate is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sans {
    pub(crate) names: BTreeSet<String>,
    pub(crate) addresses: BTreeSet<IpAddr>,
}

impl Sans {
    fn is_part_of(&self, other: &Self) -> bool {
        self.names.is_subset(&other.names) && self.addresses.is_subset(&other.addresses)
    }
}

/// How long things last, in seconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    /// How long an authority can be used.
    pub(crate) authority: i64,
    /// How long before its end the next one is made: longer than what it signs lasts.
    pub(crate) lead: i64,
    /// How long a replicas' certificate can be used; it is renewed when a third of that is left.
    pub(crate) leaf: i64,
    /// How long a new authority is told about before it signs: agents hear of it at once, and kubelets
    /// take up to two minutes to write it into the replicas' files.
    pub(crate) settling: i64,
    /// How long an old one is trusted after everything has been signed anew.
    pub(crate) keeping: i64,
}

impl Default for Policy {
    fn default() -> Self {
        Self { authority: 730 * DAY, lead: 180 * DAY, leaf: 90 * DAY, settling: 600, keeping: 3600 }
    }
}

/// What there is, as the secrets have it. What cannot be read counts as not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Certificates {
    /// The authority that signs.
    pub(crate) current: Option<Pair>,
    /// The one that will.
    pub(crate) next: Option<Pair>,
    /// The certificate of the one that did.
    pub(crate) previous: Option<String>,
    /// What replicas show.
    pub(crate) leaf: Option<Pair>,
}

/// Certificates as they are to be.
#[derive(Debug)]
pub(crate) struct Renewed {
    pub(crate) certificates: Certificates,
    /// What happened, for people.
    pub(crate) news: Vec<&'static str>,
    /// When to look again, in seconds since 1970.
    pub(crate) due: i64,
}

/// A certificate could not be made.
#[derive(Debug, thiserror::Error)]
#[error("making a certificate: {0}")]
pub(crate) struct MakeError(#[from] rcgen::Error);

// === impl Certificates ===

impl Certificates {
    /// All authorities that a certificate of a replica may be signed by, PEM.
    pub(crate) fn bundle(&self) -> String {
        let pair = |it: &Option<Pair>| it.as_ref().map(|pair| pair.cert.clone());
        let all = [self.previous.clone(), pair(&self.current), pair(&self.next)];
        all.into_iter().flatten().collect()
    }

    /// Whether one authority is being replaced by another.
    pub(crate) fn are_changing(&self) -> bool {
        self.next.is_some() || self.previous.is_some()
    }

    /// What is to be at `now`. `asked`: a new authority is wanted, whatever the old one's age.
    ///
    /// # Errors
    ///
    /// [`MakeError`]
    pub(crate) fn renew(
        self,
        called: &str,
        sans: &Sans,
        asked: bool,
        now: i64,
        policy: &Policy,
    ) -> Result<Renewed, MakeError> {
        let mut news = Vec::new();
        let is_good = |pair: &Pair| Read::of(&pair.cert).is_some_and(|it| now < it.until);
        let (mut current, mut next) = (self.current.filter(is_good), self.next.filter(is_good));
        let mut previous =
            self.previous.filter(|cert| Read::of(cert).is_some_and(|it| now < it.until));
        let mut signing = match current.take().or_else(|| next.take()) {
            Some(pair) => pair,
            None => {
                news.push("made an authority for certificates");
                authority(called, now, policy)?
            }
        };
        if next.is_none() && (asked || until(&signing) - now <= policy.lead) {
            news.push("made a new authority, which signs once everybody knows it");
            next = Some(authority(called, now, policy)?);
        }
        if let Some(pair) = next.take_if(|it| made(&it.cert) + policy.settling <= now) {
            news.push("the new authority signs from now on");
            previous = Some(std::mem::replace(&mut signing, pair).cert);
        }
        let leaf = match self.leaf.filter(|it| is_current(it, &signing, sans, now, policy)) {
            Some(leaf) => leaf,
            None => {
                news.push("made a certificate");
                leaf(called, &signing, sans, now, policy)?
            }
        };
        if previous.take_if(|_| made(&leaf.cert) + policy.keeping <= now).is_some() {
            news.push("the old authority is not trusted any more");
        }
        let due = [
            Some(until(&signing) - policy.lead).filter(|_| next.is_none()),
            next.as_ref().map(|it| made(&it.cert) + policy.settling),
            previous.as_ref().map(|_| made(&leaf.cert) + policy.keeping),
            Some(until(&leaf) - policy.leaf / 3),
        ];
        let due = due.into_iter().flatten().min().unwrap_or(now).max(now + 1);
        let certificates = Self { current: Some(signing), next, previous, leaf: Some(leaf) };
        Ok(Renewed { certificates, news, due })
    }
}

/// What of a certificate counts.
struct Read {
    subject: Vec<u8>,
    issuer: Vec<u8>,
    from: i64,
    until: i64,
    sans: Sans,
}

impl Read {
    /// `None`: it cannot be read.
    fn of(pem: &str) -> Option<Self> {
        let (_, pem) = parse_x509_pem(pem.as_bytes()).ok()?;
        let certificate = pem.parse_x509().ok()?;
        let mut sans = Sans::default();
        if let Ok(Some(names)) = certificate.subject_alternative_name() {
            for name in &names.value.general_names {
                match name {
                    GeneralName::DNSName(name) => drop(sans.names.insert((*name).to_owned())),
                    GeneralName::IPAddress(bytes) => sans.addresses.extend(address(bytes)),
                    _ => {}
                }
            }
        }
        Some(Self {
            subject: certificate.subject().as_raw().to_vec(),
            issuer: certificate.issuer().as_raw().to_vec(),
            from: certificate.validity().not_before.timestamp(),
            until: certificate.validity().not_after.timestamp(),
            sans,
        })
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn until(pair: &Pair) -> i64 {
    Read::of(&pair.cert).map_or(0, |it| it.until)
}

/// When it was made.
fn made(cert: &str) -> i64 {
    Read::of(cert).map_or(0, |it| it.from + SKEW)
}

fn is_current(leaf: &Pair, signing: &Pair, sans: &Sans, now: i64, policy: &Policy) -> bool {
    let (Some(leaf), Some(signing)) = (Read::of(&leaf.cert), Read::of(&signing.cert)) else {
        return false;
    };
    leaf.issuer == signing.subject
        && sans.is_part_of(&leaf.sans)
        && leaf.until - now > policy.leaf / 3
}

fn authority(called: &str, now: i64, policy: &Policy) -> Result<Pair, MakeError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    // Told apart by their names: a certificate says by its issuer's name which one signed it.
    let name = format!("larder {called} {}", short_hash(&key.public_key_pem()));
    params.distinguished_name = named(&name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    last(&mut params, now, now + policy.authority);
    let cert = params.self_signed(&key)?.pem();
    Ok(Pair { cert, key: key.serialize_pem() })
}

fn leaf(
    called: &str,
    signing: &Pair,
    sans: &Sans,
    now: i64,
    policy: &Policy,
) -> Result<Pair, MakeError> {
    let issuer = Issuer::from_ca_cert_pem(&signing.cert, KeyPair::from_pem(&signing.key)?)?;
    let key = KeyPair::generate()?;
    let names = sans.names.iter().map(|name| Ok(SanType::DnsName(name.as_str().try_into()?)));
    let mut params = CertificateParams::default();
    params.subject_alt_names = names.collect::<Result<_, rcgen::Error>>()?;
    params.subject_alt_names.extend(sans.addresses.iter().map(|it| SanType::IpAddress(*it)));
    params.distinguished_name = named(&format!("larder {called}"));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    last(&mut params, now, until(signing).min(now + policy.leaf));
    let cert = params.signed_by(&key, &issuer)?.pem();
    Ok(Pair { cert, key: key.serialize_pem() })
}

fn named(name: &str) -> DistinguishedName {
    let mut named = DistinguishedName::new();
    // The longest that X.520 allows.
    named.push(DnType::CommonName, name.chars().take(64).collect::<String>());
    named
}

fn last(params: &mut CertificateParams, now: i64, until: i64) {
    let at = |seconds: i64| {
        date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
    };
    (params.not_before, params.not_after) = (at(now - SKEW), at(until));
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    #[test]
    fn what_is_good_stays_as_it_is() {
        let first = renew(Certificates::default(), NOW);
        assert_eq!(first.news.len(), 2);
        let later = renew(first.certificates.clone(), NOW + 10 * DAY);
        assert_eq!(later.certificates, first.certificates);
        assert_eq!((later.news.len(), later.due), (0, NOW + 60 * DAY));
    }

    #[test]
    fn a_certificate_is_renewed_when_a_third_of_its_time_is_left() {
        let first = renew(Certificates::default(), NOW).certificates;
        let due = renew(first.clone(), NOW).due;
        let renewed = renew(first.clone(), due).certificates;
        assert_ne!(renewed.leaf, first.leaf);
        assert_eq!(renewed.current, first.current);
    }

    #[test]
    fn a_certificate_is_made_anew_for_an_address_that_it_lacks_and_not_for_one_it_has_too_many() {
        let policy = Policy::default();
        let more = sans(&["10.0.0.1", "fd00::1"]);
        let first = Certificates::default().renew("c", &more, false, NOW, &policy).unwrap();
        let fewer = first.certificates.clone();
        let fewer = fewer.renew("c", &sans(&["fd00::1"]), false, NOW, &policy).unwrap();
        assert_eq!(fewer.certificates, first.certificates);
        let other = sans(&["10.0.0.2"]);
        let other = first.certificates.clone().renew("c", &other, false, NOW, &policy).unwrap();
        assert_ne!(other.certificates.leaf, first.certificates.leaf);
    }

    /// The whole way of a rotation, as everybody sees it who connects: whatever a replica showed until
    /// a moment ago is trusted by whoever has the bundle of that moment.
    #[test]
    fn nobody_meets_a_certificate_that_they_do_not_trust() {
        let policy = Policy::default();
        let mut certificates = renew(Certificates::default(), NOW).certificates;
        let old = certificates.clone();
        let mut now = NOW + 1;
        let mut is_asked = true;
        let mut seen = Vec::new();
        for _ in 0..4 {
            let renewed = certificates
                .clone()
                .renew("c", &sans(&["10.0.0.1"]), is_asked, now, &policy)
                .unwrap();
            let shown = [&certificates, &renewed.certificates];
            for leaf in shown.map(|it| it.leaf.clone().unwrap()) {
                for bundle in shown.map(Certificates::bundle) {
                    assert!(is_trusted(&leaf, &bundle), "{:?}", renewed.news);
                }
            }
            seen.push((now - NOW, renewed.certificates.are_changing()));
            (certificates, now, is_asked) = (renewed.certificates, renewed.due, false);
        }
        assert_eq!(seen[..3], [(1, true), (601, true), (4201, false)]);
        assert!(!is_trusted(&certificates.leaf.unwrap(), &old.bundle()));
        assert_ne!(certificates.current, old.current);
    }

    #[test]
    fn an_authority_is_replaced_long_before_its_end() {
        let first = renew(Certificates::default(), NOW).certificates;
        let renewed = renew(first.clone(), NOW + 550 * DAY);
        assert_eq!(renewed.certificates.current, first.current);
        assert!(renewed.certificates.next.is_some());
        assert_eq!(renewed.due, NOW + 550 * DAY + 600);
    }

    #[test]
    fn what_is_damaged_or_over_is_made_anew() {
        let first = renew(Certificates::default(), NOW).certificates;
        let mut damaged = first.clone();
        damaged.current.as_mut().unwrap().cert = "-----BEGIN".to_owned();
        assert_ne!(renew(damaged, NOW).certificates.current, first.current);
        let over = renew(first.clone(), NOW + 1000 * DAY).certificates;
        assert_ne!(over.current, first.current);
        assert!(is_trusted(&over.leaf.clone().unwrap(), &over.bundle()));
    }

    #[test]
    fn keys_are_not_shown() {
        let made = renew(Certificates::default(), NOW).certificates;
        let shown = format!("{made:?}");
        assert!(shown.contains("BEGIN CERTIFICATE") && !shown.contains("PRIVATE"), "{shown}");
    }

    fn renew(certificates: Certificates, now: i64) -> Renewed {
        certificates.renew("c", &sans(&["10.0.0.1"]), false, now, &Policy::default()).unwrap()
    }

    fn sans(addresses: &[&str]) -> Sans {
        let addresses = addresses.iter().map(|it| it.parse().unwrap()).collect();
        Sans { names: ["larder-hub".to_owned()].into(), addresses }
    }

    /// Whether a client of rustls that trusts `bundle` would take `leaf`.
    fn is_trusted(leaf: &Pair, bundle: &str) -> bool {
        let leaf = Read::of(&leaf.cert).unwrap();
        let ends = bundle.match_indices("-----END CERTIFICATE-----").map(|(at, _)| at);
        let mut begin = 0;
        ends.map(|end| {
            let pem = &bundle[begin..end + 25];
            begin = end + 25;
            Read::of(pem.trim_start()).unwrap().subject
        })
        .any(|subject| subject == leaf.issuer)
    }
}
