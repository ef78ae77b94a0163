//! A way to a server that takes its time: each byte arrives so much later, in
//! both directions, however many are under way.

// Each test binary uses its own part of this file.
#![allow(dead_code)]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// The way; it is there as long as the test.
pub(crate) struct Slow {
    /// Where it begins.
    pub(crate) address: SocketAddr,
    delay: Arc<AtomicU64>,
}

/// A way from one unix socket to another.
pub(crate) struct SlowSocket {
    delay: Arc<AtomicU64>,
}

impl SlowSocket {
    /// From `begin`, which is made, to the server at `end`; not slow yet.
    pub(crate) fn between(begin: &Path, end: PathBuf) -> Self {
        let listener = UnixListener::bind(begin).unwrap();
        let delay = Arc::<AtomicU64>::default();
        let own = Arc::clone(&delay);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = UnixStream::connect(&end).await else { continue };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                tokio::spawn(pass(from_client, to_server, Arc::clone(&own)));
                tokio::spawn(pass(from_server, to_client, Arc::clone(&own)));
            }
        });
        Self { delay }
    }

    /// How much later each way's bytes arrive from now on.
    pub(crate) fn by(&self, delay: Duration) {
        self.delay.store(u64::try_from(delay.as_millis()).unwrap(), Ordering::SeqCst);
    }
}

impl Slow {
    /// To the server at that port of this host; not slow yet.
    pub(crate) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, delay) = (listener.local_addr().unwrap(), Arc::<AtomicU64>::default());
        let own = Arc::clone(&delay);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // The server may be away: so is the way.
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { continue };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                tokio::spawn(pass(from_client, to_server, Arc::clone(&own)));
                tokio::spawn(pass(from_server, to_client, Arc::clone(&own)));
            }
        });
        Self { address, delay }
    }

    /// How much later each way's bytes arrive from now on.
    pub(crate) fn by(&self, delay: Duration) {
        self.delay.store(u64::try_from(delay.as_millis()).unwrap(), Ordering::SeqCst);
    }
}

/// One direction; the bytes keep their order and do not wait for each other.
async fn pass(
    mut from: impl AsyncRead + Unpin + Send + 'static,
    mut to: impl AsyncWrite + Unpin,
    delay: Arc<AtomicU64>,
) {
    let (sender, mut under_way) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    tokio::spawn(async move {
        let mut bytes = vec![0; 16 * 1024];
        while let Ok(count @ 1..) = from.read(&mut bytes).await {
            let due = Instant::now() + Duration::from_millis(delay.load(Ordering::SeqCst));
            if sender.send((due, bytes[..count].to_vec())).is_err() {
                return;
            }
        }
    });
    while let Some((due, bytes)) = under_way.recv().await {
        tokio::time::sleep_until(due).await;
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}
