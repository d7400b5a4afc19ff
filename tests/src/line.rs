//! A line between two programs that can be broken, as if what is behind it were.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// What becomes of what is said on the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It arrives.
    None,
    /// Connections are refused, and those that were there are closed: the process has ended.
    Refusing,
    /// Nothing arrives any more, and no new connection is accepted: the host is gone.
    Blackholed,
    /// The heads of answers arrive, and nothing after them.
    Stalling,
    /// Everything is answered with 500.
    Failing,
}

impl Fault {
    /// All that is broken.
    pub const ALL: [Self; 4] = [Self::Refusing, Self::Blackholed, Self::Stalling, Self::Failing];
}

/// A line to one address.
#[derive(Debug)]
pub struct Line {
    address: SocketAddr,
    fault: Arc<watch::Sender<Fault>>,
    is_listening: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

impl Line {
    /// A line to `to` (`HOST:PORT`) that works.
    ///
    /// # Panics
    ///
    /// If loopback has no free port.
    pub async fn to(to: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let fault = Arc::new(watch::Sender::new(Fault::None));
        let (listening, is_listening) = watch::channel(true);
        let task = tokio::spawn(serve(listener, address, to.to_owned(), fault.clone(), listening));
        Self { address, fault, is_listening, task }
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Breaks the line, or mends it, and returns when it is so.
    ///
    /// # Panics
    ///
    /// After [`larder_testkit::PATIENCE`].
    pub async fn set(&mut self, fault: Fault) {
        self.fault.send_replace(fault);
        let is_so = self.is_listening.wait_for(|it| *it == (fault != Fault::Refusing));
        larder_testkit::patiently("the line changes", is_so).await.unwrap();
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    listener: TcpListener,
    address: SocketAddr,
    to: String,
    fault: Arc<watch::Sender<Fault>>,
    listening: watch::Sender<bool>,
) {
    let mut changes = fault.subscribe();
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        let now = *changes.borrow_and_update();
        if now == Fault::Refusing {
            listener = None;
            connections.shutdown().await;
        } else if listener.is_none() {
            listener = Some(TcpListener::bind(address).await.unwrap());
        }
        listening.send_replace(listener.is_some());
        let accept = async {
            match &listener {
                Some(listener) if now != Fault::Blackholed => listener.accept().await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            accepted = accept => {
                let Ok((stream, _)) = accepted else { continue };
                connections.spawn(carry(stream, to.clone(), fault.subscribe()));
            }
        }
    }
}

async fn carry(stream: TcpStream, to: String, fault: watch::Receiver<Fault>) {
    let Ok(behind) = TcpStream::connect(&to).await else { return };
    let (mut from_client, mut to_client) = stream.into_split();
    let (mut from_behind, mut to_behind) = behind.into_split();
    let (refuse, mut refused) = tokio::sync::mpsc::channel::<()>(1);
    let up = async {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let n = from_client.read(&mut buffer).await.unwrap_or(0);
            let now = *fault.borrow();
            match now {
                _ if n == 0 => return,
                Fault::Failing => drop(refuse.send(()).await),
                Fault::Blackholed | Fault::Refusing => return std::future::pending().await,
                Fault::None | Fault::Stalling => {
                    if to_behind.write_all(&buffer[..n]).await.is_err() {
                        return;
                    }
                }
            }
        }
    };
    let down = async {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let n = tokio::select! {
                n = from_behind.read(&mut buffer) => n.unwrap_or(0),
                Some(()) = refused.recv() => {
                    let answer = "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n";
                    if to_client.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                    continue;
                }
            };
            let now = *fault.borrow();
            let passed = match now {
                Fault::None | Fault::Failing => &buffer[..n],
                Fault::Stalling => {
                    let end = buffer[..n].windows(4).position(|it| it == b"\r\n\r\n");
                    &buffer[..end.map_or(0, |end| end + 4)]
                }
                Fault::Blackholed | Fault::Refusing => &[],
            };
            if n == 0 || to_client.write_all(passed).await.is_err() {
                return;
            }
            if passed.len() < n {
                return std::future::pending().await;
            }
        }
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}
