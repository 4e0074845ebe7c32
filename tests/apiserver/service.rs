//! What kube-proxy does for one Service: its address on loopback leads to the pods that are ready. And what
//! a network does to connections.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// How long a pod that is gone may take to be noticed.
const CONNECT: Duration = Duration::from_secs(1);

/// A Service's address; new connections go to its endpoints in turn. Those that are open stay where they
/// are, as with kube-proxy.
#[derive(Debug)]
pub(crate) struct Service {
    address: SocketAddr,
    endpoints: Arc<Mutex<Vec<SocketAddr>>>,
    open: Arc<Mutex<Vec<TcpStream>>>,
    stopped: Arc<AtomicBool>,
}

impl Service {
    /// Listens on the Service's address.
    pub(crate) fn listen(address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address)
            .with_context(|| format!("cannot listen on the Service's address {address}"))?;
        let service = Self {
            address: listener.local_addr()?,
            endpoints: Arc::default(),
            open: Arc::default(),
            stopped: Arc::default(),
        };
        let (endpoints, stopped) = (Arc::clone(&service.endpoints), Arc::clone(&service.stopped));
        let open = Arc::clone(&service.open);
        thread::spawn(move || {
            let turn = AtomicUsize::new(0);
            for client in listener.incoming().map_while(Result::ok) {
                if stopped.load(Ordering::Acquire) {
                    break;
                }
                let all = endpoints
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clone();
                let next = turn.fetch_add(1, Ordering::Relaxed);
                // One that is not there resets the connection, as an address without a pod does.
                let server = all
                    .get(next.checked_rem(all.len()).unwrap_or_default())
                    .and_then(|endpoint| TcpStream::connect_timeout(endpoint, CONNECT).ok());
                if let Some(server) = server {
                    let both = [client.try_clone(), server.try_clone()];
                    let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
                    // Not those that have ended.
                    open.retain(|stream| stream.peer_addr().is_ok());
                    open.extend(both.into_iter().flatten());
                    drop(open);
                    let _ = join(client, server);
                }
            }
        });
        Ok(service)
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends every connection that is open, in the middle of whatever is said.
    pub(crate) fn cut(&self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        for stream in open.drain(..) {
            // It may have ended by itself.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Where new connections go from now on.
    pub(crate) fn lead_to(&self, endpoints: Vec<SocketAddr>) {
        *self
            .endpoints
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = endpoints;
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Release);
        // Wakes the listener, which lets the address go.
        let _ = TcpStream::connect_timeout(&self.address, CONNECT);
    }
}

/// Carries bytes both ways until either side ends.
fn join(client: TcpStream, server: TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    for (mut from, mut to) in [(client.try_clone()?, server.try_clone()?), (server, client)] {
        thread::spawn(move || {
            let copied = io::copy(&mut from, &mut to);
            // A side that was killed takes the other with it; one that has said all is let finish.
            let how = if copied.is_ok() {
                Shutdown::Write
            } else {
                Shutdown::Both
            };
            let _ = to.shutdown(how);
        });
    }
    Ok(())
}
