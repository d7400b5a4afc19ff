use std::error::Error as _;
use std::os::unix::fs::symlink;

use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::test_files::{Authority, Pair};
use super::*;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn an_error_says_which_file_and_what_is_wrong() {
    let authority = Authority::new();
    let (good, other) = (authority.sign(), authority.sign());
    let broken = "-----BEGIN CERTIFICATE-----\n%%\n-----END CERTIFICATE-----\n";
    let nonsense = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    let no_cert = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (cert, key, wanted) in [
        (None, Some(&*good.key), "reading tls.crt: No such file or directory"),
        (Some(&*good.cert), None, "reading tls.key: No such file or directory"),
        (Some("text"), Some(&*good.key), "tls.crt has no certificate in it"),
        (Some(&*good.key), Some(&*good.key), "tls.crt has no certificate in it"),
        (Some(&*good.cert), Some(&*good.cert), "tls.key has no private key in it"),
        (Some(broken), Some(&*good.key), "reading tls.crt as PEM: "),
        (Some(&*good.cert), Some(nonsense), "using the key in tls.key: "),
        (Some(no_cert), Some(&*good.key), "using the certificate in tls.crt: "),
        (
            Some(&*good.cert),
            Some(&*other.key),
            "the key in tls.key is not that of the first certificate in tls.crt",
        ),
    ] {
        let directory = TempDir::new().unwrap();
        let files =
            Files { cert: directory.path().join("tls.crt"), key: directory.path().join("tls.key") };
        let write =
            |path: &Path, text: Option<&str>| text.map(|text| fs::write(path, text).unwrap());
        write(&files.cert, cert);
        write(&files.key, key);
        let error = ServerCertificate::load(files).unwrap_err();
        let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        let said =
            format!("{error}{cause}").replace(&format!("{}/", directory.path().display()), "");
        assert!(said.starts_with(wanted), "{said}\n{wanted}");
    }
}

#[test]
fn a_certificate_that_cannot_be_used_leaves_the_old_one_in_place() {
    let authority = Authority::new();
    let directory = TempDir::new().unwrap();
    let first = authority.sign();
    let certificate = ServerCertificate::load(first.write(directory.path())).unwrap();
    let before = shown(&certificate);
    fs::write(directory.path().join("tls.key"), authority.sign().key).unwrap();
    assert!(matches!(certificate.reload(), Err(LoadError::Mismatch { .. })));
    assert_eq!(shown(&certificate), before);
    authority.sign().write(directory.path());
    certificate.reload().unwrap();
    assert_ne!(shown(&certificate), before);
}

#[test]
fn files_are_read_again_only_when_they_changed() {
    let authority = Authority::new();
    let directory = TempDir::new().unwrap();
    let certificate = ServerCertificate::load(authority.sign().write(directory.path())).unwrap();
    let seen = certificate.loaded;
    let before = Arc::as_ptr(&certificate.current.read());
    assert_eq!(certificate.look(seen), seen);
    assert_eq!(Arc::as_ptr(&certificate.current.read()), before);
    fs::remove_file(directory.path().join("tls.crt")).unwrap();
    assert_ne!(certificate.look(seen), seen);
    assert_eq!(Arc::as_ptr(&certificate.current.read()), before);
}

/// Kubernetes renews a mounted secret by exchanging the link `..data` for one to a new directory.
#[tokio::test]
async fn a_renewed_certificate_is_shown_to_the_next_client() {
    let authority = Authority::new();
    let mount = TempDir::new().unwrap();
    let write = |name: &str, pair: &Pair| {
        fs::create_dir(mount.path().join(name)).unwrap();
        pair.write(&mount.path().join(name));
        symlink(name, mount.path().join("new")).unwrap();
        fs::rename(mount.path().join("new"), mount.path().join("..data")).unwrap();
    };
    let (first, second) = (authority.sign(), authority.sign());
    write("1", &first);
    let data = mount.path().join("..data");
    let files = Files { cert: data.join("tls.crt"), key: data.join("tls.key") };
    let certificate = Arc::new(ServerCertificate::load(files).unwrap());
    let stopping = CancellationToken::new();
    let watching =
        tokio::spawn(Arc::clone(&certificate).watch(Duration::from_millis(5), stopping.clone()));
    assert_eq!(shown_to_client(&authority, &certificate).await, der(&first));
    write("2", &second);
    let renewed = async {
        while shown_to_client(&authority, &certificate).await != der(&second) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, renewed).await.unwrap();
    stopping.cancel();
    watching.await.unwrap();
}

/// What a client is shown in a handshake over a socket.
async fn shown_to_client(authority: &Authority, certificate: &Arc<ServerCertificate>) -> Vec<u8> {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(server_config(Arc::clone(certificate)));
    let server = async { acceptor.accept(tcp.accept().await.unwrap().0).await.unwrap() };
    let client = async {
        let socket = TcpStream::connect(address).await.unwrap();
        let name = "localhost".try_into().unwrap();
        let config = Arc::new(authority.client_config());
        TlsConnector::from(config).connect(name, socket).await.unwrap()
    };
    let (_server, client) = tokio::join!(server, client);
    client.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

fn der(pair: &Pair) -> Vec<u8> {
    CertificateDer::from_pem_slice(pair.cert.as_bytes()).unwrap().to_vec()
}

fn shown(certificate: &ServerCertificate) -> Vec<u8> {
    certificate.current.read().cert[0].to_vec()
}
