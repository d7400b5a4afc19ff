//! PostgreSQL and S3 by TLS, with certificates of an authority of one's own.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use larder_testkit::{Image, Postgres, Rgw, Upstream, patiently};
use larder_tests::larder::Settings;
use larder_tests::scene::{REPOSITORY, blob_path};
use larder_tests::{Larder, Scene};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use serde_json::Value;

const MIB: usize = 1 << 20;

#[tokio::test]
async fn services_are_asked_by_tls_and_believed_if_the_authority_that_is_named_has_signed_them() {
    let services = Services::start().await;
    let ours = services.authority.pem();
    let image = Image::random(1, &[9 * MIB, 1000]);
    services.upstream.push(REPOSITORY, "1", &image);

    // Who believes another authority says what is wrong, and passes through.
    let other = authority("other").pem();
    for (authorities, away, said) in [
        ([&other, &ours], "PostgreSQL is away", "going on without PostgreSQL"),
        ([&ours, &other], "S3 is away", "S3 is away"),
    ] {
        let stranger = services.settings(authorities).start().await;
        expect(&stranger, &image, "miss").await;
        let is_away = async || shared(&stranger).await["reason"] == away;
        patiently(away, async { while !is_away().await {} }).await;
        assert_eq!(stranger.admin("/readyz").await.status, 200);
        stranger.logged(&[said, "UnknownIssuer"]).await;
    }

    let one = services.settings([&ours; 2]).start().await;
    expect(&one, &image, "miss").await;
    let n_uploaded = async || one.metric("larder_shared_uploads_total", &[]).await;
    patiently("it is shared", async { while n_uploaded().await < 2.0 {} }).await;
    assert_eq!(shared(&one).await["reason"], Value::Null);
    // The next one has it from there.
    services.upstream.forget_requests();
    let two = services.settings([&ours; 2]).start().await;
    expect(&two, &image, "hit").await;
    assert_eq!(services.upstream.requests().len(), 0);
    assert!(two.metric("larder_shared_read_bytes_total", &[]).await >= 9.0 * MIB as f64);
}

/// Servers with certificates of one authority.
struct Services {
    authority: CertifiedIssuer<'static, KeyPair>,
    rgw: Rgw,
    bucket: String,
    database: String,
    _postgres: Postgres,
    upstream: Upstream,
}

impl Services {
    async fn start() -> Self {
        let authority = authority("ours");
        let key = KeyPair::generate().unwrap();
        // A name that is an address is taken for one.
        let params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap().pem();
        let key = key.serialize_pem();
        let (rgw, postgres) = tokio::join!(
            Rgw::start_with_tls(&certificate, &key),
            Postgres::start_with_tls(&certificate, &key)
        );
        let database = postgres.database_at(&postgres.address()).await;
        let bucket = rgw.bucket().await;
        let upstream = Upstream::start().await;
        Self { authority, rgw, bucket, database, _postgres: postgres, upstream }
    }

    /// A replica that believes whom these authorities (PEM) have signed: that of the index, that of the
    /// bucket.
    fn settings(&self, authorities: [&String; 2]) -> Settings {
        let (id, secret) = self.rgw.keys();
        let settings = Scene::settings(&self.upstream, "");
        let (database, bucket) = (&self.database, &self.bucket);
        let [index_ca, ca] = [("index.pem", 0), ("s3.pem", 1)].map(|(name, n)| {
            let path = settings.scratch().write(name, authorities[n]);
            path.to_str().unwrap().to_owned()
        });
        let index = format!("{database}?sslmode=verify-full&sslrootcert={index_ca}");
        let endpoint = self.rgw.tls_endpoint();
        settings
            .config_first(&format!("storage = \"s3\"\nindex = \"{index}\""))
            .config(&format!(
                "[s3]\nendpoint = \"{endpoint}\"\nbucket = \"{bucket}\"\nca = \"{ca}\""
            ))
            .variable("AWS_ACCESS_KEY_ID", id)
            .variable("AWS_SECRET_ACCESS_KEY", secret)
    }
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    // Authorities of one name would be taken for one another until a signature is checked.
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Asks for all layers, whole and right.
async fn expect(larder: &Larder, image: &Image, outcome: &str) {
    for layer in &image.layers {
        let response = larder.get(&blob_path(&layer.digest)).await;
        assert_eq!((response.status, response.outcome()), (200, outcome));
        response.expect_body(&layer.bytes).await.unwrap();
    }
}

/// What it says of the services to who watches it.
async fn shared(larder: &Larder) -> Value {
    larder.admin("/readyz").await.json().await["components"]["shared"].clone()
}
