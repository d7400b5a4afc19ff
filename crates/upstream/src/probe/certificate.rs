//! What a server's certificate says of itself.

use std::time::{SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use serde::Serialize;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The names that are shown at most; some certificates have hundreds.
const MAX_NAMES: usize = 20;

/// A certificate, as people look at it. Nothing of it is verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Certificate {
    /// Whom it is for: `CN=registry.example.com`. Modern certificates leave it empty.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// The names and addresses it is good for; the first 20.
    pub names: Vec<String>,
    /// Whether it is an authority's (`CA:TRUE`), which no server may show as its own.
    pub is_authority: bool,
    /// In how many whole days it runs out; negative if it has.
    pub expires_in_days: i64,
}

impl Certificate {
    /// Reads a certificate. `None`: it cannot be read.
    pub(super) fn read(der: &CertificateDer<'_>, now: SystemTime) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let names = certificate.subject_alternative_name().ok().flatten();
        let names = names.map(|names| names.value.general_names.iter().filter_map(name));
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let left = certificate.validity().not_after.timestamp() - i64::try_from(now).ok()?;
        Some(Self {
            subject: certificate.subject().to_string(),
            issuer: certificate.issuer().to_string(),
            names: names.into_iter().flatten().take(MAX_NAMES).collect(),
            is_authority: certificate.is_ca(),
            expires_in_days: left.div_euclid(24 * 3600),
        })
    }

    /// Whom it is for, in a few words.
    pub(super) fn holder(&self) -> String {
        match self.names.as_slice() {
            [] => self.subject.clone(),
            names => names.join(", "),
        }
    }
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => Some(std::net::IpAddr::from(<[u8; 4]>::try_from(*bytes).ok()?).to_string()),
            16 => Some(std::net::IpAddr::from(<[u8; 16]>::try_from(*bytes).ok()?).to_string()),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_certificate_says_whom_it_is_for_and_how_long() {
        let names = ["registry.example.com".to_owned(), "127.0.0.1".to_owned()];
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.not_after = rcgen::date_time_ymd(2030, 1, 1);
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "ours");
        let made = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        // 2029-12-30T12:00:00Z
        let now = UNIX_EPOCH + Duration::from_secs(1_893_326_400);
        let read = |now| Certificate::read(made.der(), now).unwrap();
        let certificate = read(now);
        assert_eq!(
            (certificate.subject.as_str(), certificate.issuer.as_str()),
            ("CN=ours", "CN=ours")
        );
        assert_eq!(certificate.holder(), "registry.example.com, 127.0.0.1");
        assert_eq!(certificate.expires_in_days, 1);
        assert_eq!(read(now + Duration::from_secs(2 * 24 * 3600)).expires_in_days, -1);
    }
}
