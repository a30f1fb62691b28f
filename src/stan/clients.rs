//! Registered clients and their heartbeats.
//!
//! ```text
//!   Idle --interval--> Beat sent --answer--> Idle (failures: 0)
//!                          '-----timeout---> Idle (failures + 1), or closed when that is too many
//! ```

use crate::stan::pb::ClientInfo;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Where a channel stands in the engine's list.
pub type ChannelIndex = usize;

#[derive(Debug)]
pub struct Client {
    pub info: ClientInfo,
    /// Names it in heartbeats; an answer to an earlier client of the same id is not its.
    pub serial: u64,
    pub failures: u32,
    /// A heartbeat was sent and is not answered.
    pub beat_out: bool,
    /// When the next one is due; timers for other times are stale.
    pub beat_at: i64,
    /// When the one that is out has failed.
    pub beat_over_at: i64,
    pub subs: BTreeSet<(ChannelIndex, u64)>,
    /// A connect request that waits for this client to show that it is gone.
    pub challenger: Option<Challenger>,
}

#[derive(Debug)]
pub struct Challenger {
    pub info: ClientInfo,
    pub reply: Box<str>,
    /// How long it waits.
    pub until: i64,
}

#[derive(Debug, Default)]
pub struct Clients {
    by_id: BTreeMap<String, Client>,
    by_serial: HashMap<u64, String>,
    by_connection: HashMap<Bytes, String>,
    last_serial: u64,
}

impl Clients {
    pub fn insert(&mut self, info: ClientInfo) -> u64 {
        self.last_serial += 1;
        let (serial, id) = (self.last_serial, info.id.clone());
        self.by_serial.insert(serial, id.clone());
        if !info.conn_id.is_empty() {
            self.by_connection.insert(info.conn_id.clone(), id.clone());
        }
        let client = Client {
            info,
            serial,
            failures: 0,
            beat_out: false,
            beat_at: 0,
            beat_over_at: 0,
            subs: BTreeSet::new(),
            challenger: None,
        };
        self.by_id.insert(id, client);
        serial
    }

    pub fn remove(&mut self, id: &str) -> Option<Client> {
        let client = self.by_id.remove(id)?;
        self.by_serial.remove(&client.serial);
        if self
            .by_connection
            .get(&client.info.conn_id)
            .is_some_and(|known| known == id)
        {
            self.by_connection.remove(&client.info.conn_id);
        }
        Some(client)
    }

    pub fn count(&self) -> usize {
        self.by_id.len()
    }

    /// All of them, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Client> {
        self.by_id.values()
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Client> {
        self.by_id.values_mut()
    }

    pub fn get(&self, id: &str) -> Option<&Client> {
        self.by_id.get(id)
    }

    pub fn get_mut(&mut self, id: &str) -> Option<&mut Client> {
        self.by_id.get_mut(id)
    }

    pub fn with_serial(&mut self, serial: u64) -> Option<&mut Client> {
        let id = self.by_serial.get(&serial)?;
        self.by_id.get_mut(id)
    }

    /// Whether publishes of this client are taken: by its connection, if it names one and was registered with one, so that
    /// one whose place was taken by another is refused.
    pub fn is_valid(&self, id: &str, connection: &[u8]) -> bool {
        if self.by_connection.contains_key(connection) {
            return true;
        }
        // nats-streaming-server 0.9.2 keeps no connections, and its clients go on to name theirs when we take its place.
        let takes_any = |client: &Client| connection.is_empty() || client.info.conn_id.is_empty();
        self.by_id.get(id).is_some_and(takes_any)
    }

    /// For pings, which name nothing else. Whoever was registered at 0.9.2 sends none. One that was registered here, and then
    /// lost its connection to the rewriting of clients.dat there, cannot be told from one that was replaced.
    pub fn with_connection(&self, connection: &[u8]) -> Option<&Client> {
        self.by_id.get(self.by_connection.get(connection)?)
    }

    pub fn is_healthy(&self, id: &str) -> bool {
        self.by_id.get(id).is_none_or(|client| client.failures == 0)
    }
}
