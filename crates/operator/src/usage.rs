//! How much replicas have stored, as they say it themselves.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::ResourceExt as _;
use larder_k8s::RegistryCache;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::render::ADMIN_PORT;
use crate::replica::Replica;

/// How often replicas are asked.
const EVERY: Duration = Duration::from_secs(50);

/// How long a replica may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// The longest page of metrics that is read.
const MAX_PAGE: u64 = 4 << 20;

/// The metric.
const STORED: &str = "larder_store_bytes";

/// The latest figures. Nobody waits for them: a turn takes what is there, and has them asked for.
#[derive(Default)]
pub(crate) struct Usage(Arc<Mutex<HashMap<String, Figure>>>);

struct Figure {
    asked: Instant,
    bytes: Option<u64>,
}

// === impl Usage ===

impl Usage {
    /// The bytes that all replicas of `cache` have stored, as they said last; `None` if not all did.
    pub(crate) fn of(&self, cache: &RegistryCache, replicas: &[Replica]) -> Option<u64> {
        let key = cache.uid().unwrap_or_default();
        let mut figures = self.0.lock();
        let known = figures.get(&key).map(|it| (it.asked, it.bytes));
        let bytes = known.and_then(|it| it.1);
        let is_due = known.is_none_or(|(asked, _)| asked.elapsed() >= EVERY);
        let ready = replicas.iter().filter(|it| it.is_ready && !it.is_leaving);
        let addresses: Vec<IpAddr> = ready.filter_map(|it| it.address).collect();
        if is_due && !addresses.is_empty() && addresses.len() == replicas.len() {
            figures.retain(|_, it| it.asked.elapsed() < EVERY * 10);
            figures.insert(key.clone(), Figure { asked: Instant::now(), bytes });
            let figures = Arc::clone(&self.0);
            tokio::spawn(async move {
                let bytes = sum(&addresses).await;
                figures.lock().insert(key, Figure { asked: Instant::now(), bytes });
            });
        }
        bytes
    }
}

async fn sum(addresses: &[IpAddr]) -> Option<u64> {
    let mut bytes = 0;
    for address in addresses {
        let page = timeout(PATIENCE, page(SocketAddr::new(*address, ADMIN_PORT))).await;
        bytes += stored(&page.ok()?.ok()?)?;
    }
    Some(bytes)
}

/// The page with metrics, with its head. HTTP 1.0, so that it ends with the connection.
async fn page(address: SocketAddr) -> io::Result<String> {
    let mut socket = TcpStream::connect(address).await?;
    let request = format!("GET /metrics HTTP/1.0\r\nhost: {address}\r\n\r\n");
    socket.write_all(request.as_bytes()).await?;
    let mut page = String::new();
    socket.take(MAX_PAGE).read_to_string(&mut page).await?;
    Ok(page)
}

fn stored(page: &str) -> Option<u64> {
    let samples = page.lines().filter_map(|line| line.rsplit_once(' '));
    let of_ours = samples.filter(|(name, _)| name.split('{').next() == Some(STORED)).map(|it| it.1);
    of_ours.map(|value| value.parse::<f64>().ok().map(|it| it as u64)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_read_of_a_page_of_metrics() {
        let page = "HTTP/1.0 200 OK\r\n\r\n# TYPE larder_store_bytes gauge\nlarder_store_bytes 12.0\nlarder_store_bytes_other 7\n# EOF\n";
        assert_eq!(stored(page), Some(12));
        assert_eq!(stored("larder_store_bytes x"), None);
    }
}
