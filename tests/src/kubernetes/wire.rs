//! Connections between this computer and a network of its own, which no packet crosses.
//!
//! A socket belongs for ever to the network it was made in, so that it is enough to make it there.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::sync::{Arc, mpsc};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// How many connections may wait to be taken.
const BACKLOG: u32 = 128;

/// A way into a network.
#[derive(Clone, Debug)]
pub struct Wire(Arc<File>);

/// Where a connection leads to.
#[derive(Clone, Debug)]
enum End {
    Here(SocketAddr),
    There(Wire, SocketAddr),
}

/// An address that leads elsewhere, until this is dropped. Whoever shares it need not share a
/// runtime: it has its own.
#[derive(Debug)]
pub struct Forward {
    /// Where it is.
    pub address: SocketAddr,
    // Closed when this is dropped, which ends it.
    _end: oneshot::Sender<()>,
}

impl Wire {
    /// Into the network that `link`, below `/proc`, names.
    pub(super) fn into(link: &str) -> Self {
        Self(Arc::new(File::open(link).unwrap()))
    }

    /// A loopback address of this computer that leads to `address` there.
    ///
    /// # Panics
    ///
    /// If loopback has no free port.
    pub fn forward(&self, address: SocketAddr) -> Forward {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        Forward::start(socket, End::There(self.clone(), address))
    }

    /// `address` there (with port 0: any free one), which leads to `to` on this computer.
    ///
    /// # Panics
    ///
    /// If the address cannot be had.
    pub fn expose(&self, address: SocketAddr, to: SocketAddr) -> Forward {
        let socket = self.socket();
        socket.bind(address).unwrap();
        Forward::start(socket, End::Here(to))
    }

    /// A socket there.
    fn socket(&self) -> TcpSocket {
        let network = self.0.clone();
        // By a thread that ends, as it can do nothing else any more.
        let made = thread::spawn(move || {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            TcpSocket::new_v4().unwrap()
        });
        made.join().unwrap()
    }
}

impl Forward {
    fn start(socket: TcpSocket, to: End) -> Self {
        let address = socket.local_addr().unwrap();
        let (end, ended) = oneshot::channel();
        let (listening, is_listening) = mpsc::channel();
        thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_io().build().unwrap();
            runtime.block_on(async {
                let listener = socket.listen(BACKLOG).unwrap();
                let _ = listening.send(());
                tokio::select! {
                    () = serve(listener, to) => {}
                    _ = ended => {}
                }
            });
        });
        is_listening.recv().expect("it listens");
        Self { address, _end: end }
    }
}

impl End {
    async fn connect(&self) -> io::Result<TcpStream> {
        match self {
            Self::Here(address) => TcpStream::connect(address).await,
            Self::There(wire, address) => wire.socket().connect(*address).await,
        }
    }
}

async fn serve(listener: TcpListener, to: End) {
    // They end with the task.
    let mut connections = JoinSet::new();
    while let Ok((mut from, _)) = listener.accept().await {
        let to = to.clone();
        connections.spawn(async move {
            // A connection that cannot be made is seen by who wanted it: it is closed.
            if let Ok(mut to) = to.connect().await {
                let _ = copy_bidirectional(&mut from, &mut to).await;
            }
        });
        while connections.try_join_next().is_some() {}
    }
}
