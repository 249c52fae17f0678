//! The shell of the DHCP server: owns the leases and their file, moves packets between a socket and the core.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::net::UdpSocket;
use tokio::sync::watch;

use super::leases::write_atomically;
use super::{CLIENT_PORT, Clients, Config, Destination, Leases, LeasesError, Reply, on_packet};
use crate::Mac;

/// Larger than any packet of a client that fits into an Ethernet frame.
const MAX_PACKET: usize = 2048;

/// Leases and clients of one node's management network. Cheap to ask at any time.
#[derive(Debug)]
pub struct Server {
    file: PathBuf,
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    leases: Leases,
    clients: Clients,
    config: Option<Config>,
    saved_generation: u64,
}

impl Server {
    /// Reads the leases from the file. A file that cannot be read is put aside (`.unreadable`), as guests must get
    /// addresses all the same; the error is returned beside the server, to be told.
    #[must_use]
    pub fn open(file: &Path) -> (Self, Option<LeasesError>) {
        let (leases, error) = match Leases::load(file) {
            Ok(leases) => (leases, None),
            Err(error) => {
                // If it cannot be renamed, the next save replaces it or fails and says so.
                let _ = std::fs::rename(file, file.with_extension("unreadable"));
                (Leases::default(), Some(error))
            }
        };
        let saved_generation = leases.generation();
        let state = State { leases, clients: Clients::new(), config: None, saved_generation };
        let server = Self { file: file.to_owned(), state: Mutex::new(state), changed: watch::Sender::new(0) };
        (server, error)
    }

    /// Says what clients are told; without, nobody is answered.
    pub fn set_config(&self, config: Option<Config>) {
        self.lock().config = config;
    }

    /// Says which NICs are served.
    pub fn set_clients(&self, clients: Clients) {
        let mut state = self.lock();
        if state.clients != clients {
            state.clients = clients;
            drop(state);
            self.changed.send_modify(|n| *n += 1);
        }
    }

    /// The address that an attached NIC has now.
    #[must_use]
    pub fn address_of(&self, mac: Mac) -> Option<Ipv4Addr> {
        let state = self.lock();
        state.clients.get(&mac)?;
        state.leases.bound(unix_now(), mac)
    }

    /// Host name and address of every attached NIC that has one.
    #[must_use]
    pub fn bindings(&self) -> Vec<(String, Ipv4Addr)> {
        let now = unix_now();
        let state = self.lock();
        let bound = state
            .clients
            .iter()
            .filter_map(|(mac, hostname)| Some((hostname.clone(), state.leases.bound(now, *mac)?)));
        bound.collect()
    }

    /// Changes whenever a lease or the set of clients does.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Answers a packet. What the answer promises is on disk when this returns.
    async fn answer(&self, packet: &[u8]) -> Result<Option<Reply>, LeasesError> {
        let (reply, unsaved) = {
            let mut state = self.lock();
            let State { leases, clients, config, saved_generation } = &mut *state;
            let Some(config) = config.as_ref() else { return Ok(None) };
            let reply = on_packet(unix_now(), config, clients, leases, packet);
            let unsaved = leases.generation() != *saved_generation;
            (reply, unsaved.then(|| (leases.generation(), leases.to_json())))
        };
        if let Some((generation, json)) = unsaved {
            let file = self.file.clone();
            let write = move || {
                let json = json.map_err(|source| LeasesError::Format { path: file.clone(), source })?;
                write_atomically(&file, &json)
            };
            let written = tokio::task::spawn_blocking(write).await;
            // A panic in there, or a runtime that shuts down: either way nothing was promised.
            let Ok(written) = written else { return Ok(None) };
            written?;
            self.lock().saved_generation = generation;
            self.changed.send_modify(|n| *n += 1);
        }
        Ok(reply)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is consistent between any two statements under the lock, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves on a socket of [`crate::socket::udp_on_device`] until it fails or the future is dropped.
pub async fn serve(server: &Server, socket: &UdpSocket) -> std::io::Error {
    let mut buffer = [0; MAX_PACKET];
    loop {
        let len = match socket.recv_from(&mut buffer).await {
            Ok((len, _)) => len,
            Err(error) => return error,
        };
        let packet = buffer.get(..len).unwrap_or_default();
        match server.answer(packet).await {
            Ok(None) => {}
            Ok(Some(Reply { packet, to })) => {
                let address = match to {
                    Destination::Broadcast => Ipv4Addr::BROADCAST,
                    Destination::Unicast(address) => address,
                };
                let to = SocketAddr::new(IpAddr::V4(address), CLIENT_PORT);
                // The client asks again.
                if let Err(error) = socket.send_to(&packet, to).await {
                    tracing::warn!(%error, %to, "DHCP reply could not be sent");
                }
            }
            // No promise without a record of it; the client asks again.
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "DHCP request not answered")
            }
        }
    }
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
