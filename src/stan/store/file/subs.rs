//! subs.dat: what became of each subscription of a channel.
//!
//! Record types: 1 new, 2 update (both SubState), 3 delete, 4 ack, 5 sent.

use super::FileOptions;
use super::damage::Damage;
use super::files::StoreFile;
use super::typed_log::{Kinds, TypedLog};
use crate::stan::pb;
use crate::stan::store::{RecoveredSub, Seq, StoreError};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

const NEW: u8 = 1;
const UPDATE: u8 = 2;
const DELETE: u8 = 3;
const ACK: u8 = 4;
const SENT: u8 = 5;

/// Every payload begins with the field of an id; updates have two numbers and no more.
const KINDS: Kinds = Kinds {
    sizes_max: &[1 << 16, 1 << 16, 22, 22, 22],
    first_byte: 0x08,
};

#[derive(Default)]
struct Live {
    state: pb::SubState,
    pending: BTreeSet<Seq>,
}

/// What the records add up to.
#[derive(Default)]
struct State {
    live: BTreeMap<u64, Live>,
    last_id: u64,
    /// Records that a rewritten file would have, and all there are.
    records: u64,
}

pub struct SubsLog {
    log: TypedLog,
    state: State,
}

impl State {
    fn apply(&mut self, kind: u8, payload: &[u8]) -> Result<(), String> {
        let bad = |error: prost::DecodeError| format!("record of type {kind}: {error}");
        self.records += 1;
        match kind {
            NEW | UPDATE => {
                let state = pb::SubState::decode(payload).map_err(bad)?;
                self.last_id = self.last_id.max(state.id);
                let live = self.live.entry(state.id).or_default();
                let last_sent = live.state.last_sent.max(state.last_sent);
                live.state = pb::SubState { last_sent, ..state };
            }
            DELETE => {
                let delete = pb::SubStateDelete::decode(payload).map_err(bad)?;
                self.last_id = self.last_id.max(delete.id);
                self.live.remove(&delete.id);
            }
            ACK | SENT => {
                let update = pb::SubStateUpdate::decode(payload).map_err(bad)?;
                self.last_id = self.last_id.max(update.id);
                let Some(live) = self.live.get_mut(&update.id) else {
                    return Ok(());
                };
                if kind == ACK {
                    live.pending.remove(&update.sequence);
                } else {
                    live.pending.insert(update.sequence);
                    live.state.last_sent = live.state.last_sent.max(update.sequence);
                }
            }
            other => return Err(format!("unexpected record type: {other}")),
        }
        Ok(())
    }

    fn needed(&self) -> u64 {
        let pending: usize = self.live.values().map(|live| 1 + live.pending.len()).sum();
        pending as u64
    }
}

impl SubsLog {
    pub fn open(
        file: Arc<StoreFile>,
        options: &FileOptions,
        damage: &Damage,
    ) -> Result<Self, StoreError> {
        let mut state = State::default();
        let log = TypedLog::open(file, &options.crc, damage, &KINDS, |kind, payload| {
            state.apply(kind, payload)
        })?;
        Ok(Self { log, state })
    }

    /// The highest number of a message that was sent to a subscription.
    pub fn highest_sent(&self) -> Seq {
        let sent = self.state.live.values().map(|live| live.state.last_sent);
        sent.max().unwrap_or(0)
    }

    pub fn recovered(&self) -> Vec<RecoveredSub> {
        let live = self.state.live.values();
        live.map(|live| RecoveredSub {
            state: live.state.clone(),
            pending: live.pending.iter().copied().collect(),
        })
        .collect()
    }

    pub fn last_id(&self) -> u64 {
        self.state.last_id
    }

    fn push(&mut self, kind: u8, payload: &[u8]) {
        self.log.push(kind, payload);
        self.state
            .apply(kind, payload)
            .expect("what was just encoded can be decoded");
    }

    pub fn add(&mut self, state: &pb::SubState) {
        self.push(NEW, &state.encode_to_vec());
    }

    pub fn update(&mut self, state: &pb::SubState) {
        self.push(UPDATE, &state.encode_to_vec());
    }

    pub fn delete(&mut self, id: u64) {
        self.push(DELETE, &pb::SubStateDelete { id }.encode_to_vec());
    }

    pub fn sent(&mut self, id: u64, sequence: Seq) {
        self.push(SENT, &pb::SubStateUpdate { id, sequence }.encode_to_vec());
    }

    pub fn acked(&mut self, id: u64, sequence: Seq) {
        self.push(ACK, &pb::SubStateUpdate { id, sequence }.encode_to_vec());
    }

    pub fn write(&mut self, folder: &Path, options: &FileOptions) -> Result<(), StoreError> {
        let written = self.log.write();
        let needed = self.state.needed();
        let dead = self.state.records.saturating_sub(needed);
        if self.log.wants_compaction(dead, self.state.records, options) {
            // The file is whole without it.
            match self.compact(folder) {
                Ok(()) => return Ok(()),
                Err(error) => log::error!("STREAM: {error}"),
            }
        }
        written
    }

    fn compact(&mut self, folder: &Path) -> Result<(), StoreError> {
        // Beside the channels, where the original puts its own; a name no channel directory has.
        let unique = crate::util::random::Random::from_entropy().id();
        let parent = folder.parent().unwrap_or(folder);
        let state = &self.state;
        self.log
            .compact(&parent.join(format!("subs{unique}")), |put| {
                for live in state.live.values() {
                    put(NEW, &live.state.encode_to_vec());
                    for sequence in &live.pending {
                        let id = live.state.id;
                        let sequence = *sequence;
                        put(SENT, &pb::SubStateUpdate { id, sequence }.encode_to_vec());
                    }
                }
            })?;
        self.state.records = self.state.needed();
        Ok(())
    }

    /// The folder is about to be removed.
    pub fn forget(&mut self) {
        self.log.unsynced = false;
        self.log.file().forget();
    }

    /// The file, if it was written to since the last sync.
    pub fn take_unsynced(&mut self) -> Option<Arc<StoreFile>> {
        std::mem::take(&mut self.log.unsynced).then(|| self.log.file())
    }
}
