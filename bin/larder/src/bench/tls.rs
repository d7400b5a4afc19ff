//! TLS for the bench: a certificate of its own, and a client without copies.
//!
//! The client decrypts in place, in the buffer that the socket was read into (rustls's unbuffered
//! interface). The buffered one reads 4 KiB at a time and would be the bottleneck.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use rustls::client::UnbufferedClientConnection;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use rustls::{ClientConfig, RootCertStore};

use super::buffer::Buffer;

/// What a handshake may need to send at once: a client's flights are well below.
const OUTGOING: usize = 32 << 10;

/// A certificate for 127.0.0.1 that only the bench trusts.
#[derive(Debug)]
pub(crate) struct Certificate {
    /// The certificate, PEM.
    pub(crate) certificate: PathBuf,
    /// Its key, PEM.
    pub(crate) key: PathBuf,
    /// How to speak to servers that show it.
    pub(crate) client: Arc<ClientConfig>,
}

impl Certificate {
    /// Makes a certificate and writes it to `directory`.
    ///
    /// # Errors
    ///
    /// The disk refused.
    pub(crate) fn create(directory: &Path) -> anyhow::Result<Self> {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).context("making a certificate")?;
        let (certificate, key) = (directory.join("tls.crt"), directory.join("tls.key"));
        fs::write(&certificate, made.cert.pem()).context("writing the certificate")?;
        fs::write(&key, made.signing_key.serialize_pem()).context("writing the key")?;
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).context("trusting the certificate")?;
        Ok(Self { certificate, key, client: Arc::new(client_config(roots)?) })
    }
}

/// TLS 1.3 with AES-128-GCM only: left to choose, servers differ, and so would their cost.
fn client_config(roots: RootCertStore) -> anyhow::Result<ClientConfig> {
    let provider = CryptoProvider {
        cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
        ..aws_lc_rs::default_provider()
    };
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context("choosing TLS 1.3")?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

/// A connection over which one request is sent and one response read.
pub(crate) struct TlsStream {
    stream: TcpStream,
    tls: UnbufferedClientConnection,
    /// `incoming[start..end]` has come from the socket and was not decrypted yet.
    incoming: Buffer,
    start: usize,
    end: usize,
    /// What is to be sent.
    outgoing: Vec<u8>,
}

/// What the connection needs before it can go on.
enum Need {
    /// Nothing.
    Nothing,
    /// Bytes from the server.
    Read,
    /// `outgoing` to be sent.
    Write,
    /// The server is done.
    End,
}

impl TlsStream {
    /// A connection over `stream`; the handshake happens in [`TlsStream::exchange`].
    ///
    /// # Errors
    ///
    /// The configuration allows no connection.
    pub(crate) fn new(stream: TcpStream, config: &Arc<ClientConfig>) -> anyhow::Result<Self> {
        let name = stream.peer_addr()?.ip().into();
        let tls = UnbufferedClientConnection::new(Arc::clone(config), name)?;
        let incoming = Buffer::new();
        Ok(Self { stream, tls, incoming, start: 0, end: 0, outgoing: Vec::new() })
    }

    /// Sends `request` and hands what comes to `push`, until that says it is whole.
    ///
    /// # Errors
    ///
    /// TLS or the socket failed, or `push` did.
    pub(crate) fn exchange(
        mut self,
        request: &[u8],
        mut push: impl FnMut(&[u8]) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let mut unsent = Some(request);
        let mut whole = false;
        while !whole {
            let UnbufferedStatus { mut discard, state, .. } =
                self.tls.process_tls_records(&mut self.incoming[self.start..self.end]);
            let need = match state.context("speaking TLS")? {
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.context("decrypting")?;
                        discard += record.discard;
                        whole |= push(record.payload)?;
                    }
                    Need::Nothing
                }
                ConnectionState::EncodeTlsData(mut handshake) => {
                    append(&mut self.outgoing, |free| handshake.encode(free))?;
                    Need::Nothing
                }
                ConnectionState::TransmitTlsData(transmit) => {
                    transmit.done();
                    Need::Write
                }
                ConnectionState::WriteTraffic(mut traffic) => match unsent.take() {
                    Some(request) => {
                        append(&mut self.outgoing, |free| traffic.encrypt(request, free))?;
                        Need::Write
                    }
                    None => Need::Read,
                },
                ConnectionState::BlockedHandshake => Need::Read,
                ConnectionState::PeerClosed | ConnectionState::Closed => Need::End,
                other => bail!("the connection is in an unexpected state: {other:?}"),
            };
            self.start += discard;
            match need {
                Need::Nothing => {}
                Need::Read if self.fill()? => {}
                Need::Write => self.flush()?,
                Need::Read | Need::End => return Ok(()),
            }
        }
        Ok(())
    }

    /// Reads more from the socket, behind what is there. `false`: there is no more.
    fn fill(&mut self) -> anyhow::Result<bool> {
        self.incoming.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let n = self.stream.read(&mut self.incoming[self.end..]).context("reading the answer")?;
        self.end += n;
        Ok(n > 0)
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        self.stream.write_all(&self.outgoing).context("sending the request")?;
        self.outgoing.clear();
        Ok(())
    }
}

/// Appends to `outgoing` what `encode` writes into the room it is given.
fn append<E: std::error::Error + Send + Sync + 'static>(
    outgoing: &mut Vec<u8>,
    encode: impl FnOnce(&mut [u8]) -> Result<usize, E>,
) -> anyhow::Result<()> {
    let begin = outgoing.len();
    outgoing.resize(begin + OUTGOING, 0);
    let n = encode(&mut outgoing[begin..]).context("encrypting")?;
    outgoing.truncate(begin + n);
    Ok(())
}
