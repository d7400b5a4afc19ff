//! Who is who in a cluster: its authority, and the certificates that it has signed.

use std::net::IpAddr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};

/// Signs the certificates of one cluster, and its tokens.
#[derive(Debug)]
pub(super) struct Keys {
    authority: CertifiedIssuer<'static, KeyPair>,
    /// What tokens are signed with.
    tokens: KeyPair,
}

/// A certificate and its key as PEM.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) certificate: String,
    pub(super) key: String,
}

impl Keys {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.distinguished_name.push(DnType::CommonName, "cluster");
        let key = KeyPair::generate().unwrap();
        let authority = CertifiedIssuer::self_signed(params, key).unwrap();
        Self { authority, tokens: KeyPair::generate().unwrap() }
    }

    /// The authority's own, with its key.
    pub(super) fn authority(&self) -> Pair {
        let key = self.authority.key().serialize_pem();
        Pair { certificate: self.authority.pem(), key }
    }

    /// The key that tokens are signed with, and what they are checked with.
    pub(super) fn tokens(&self) -> (String, String) {
        (self.tokens.serialize_pem(), self.tokens.public_key_pem())
    }

    /// For `user` of `group`, who may be asked at these names and addresses, too.
    pub(super) fn sign(
        &self,
        user: &str,
        group: Option<&str>,
        names: &[&str],
        addresses: &[IpAddr],
    ) -> Pair {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        let addresses = addresses.iter().copied().map(SanType::IpAddress);
        params.subject_alt_names.extend(addresses);
        params.distinguished_name.push(DnType::CommonName, user);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        Pair { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    /// A kubeconfig for `user` of `group`, who finds the API server at `server` (a URL).
    pub(super) fn kubeconfig(&self, user: &str, group: Option<&str>, server: &str) -> String {
        let Pair { certificate, key } = self.sign(user, group, &[], &[]);
        let [authority, certificate, key] =
            [self.authority.pem(), certificate, key].map(|pem| BASE64_STANDARD.encode(pem));
        format!(
            "apiVersion: v1
kind: Config
current-context: cluster
contexts: [{{name: cluster, context: {{cluster: cluster, user: user}}}}]
clusters: [{{name: cluster, cluster: {{server: '{server}', certificate-authority-data: {authority}}}}}]
users: [{{name: user, user: {{client-certificate-data: {certificate}, client-key-data: {key}}}}}]
"
        )
    }
}
