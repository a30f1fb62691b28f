//! subs.dat: what became of each subscription of a channel.
//!
//! Record types: 1 new, 2 update (both SubState), 3 delete, 4 ack, 5 sent.

use super::damage::Damage;
use super::files::StoreFile;
use super::replay::TypedRecord;
use super::typed_log::{Kinds, TypedLog};
use super::{FileOptions, is_sync};
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
    marks: &[ACK, SENT],
};

#[derive(Clone, Default, PartialEq)]
struct Live {
    state: pb::SubState,
    pending: BTreeSet<Seq>,
}

/// What the records add up to.
#[derive(Clone, Default)]
struct State {
    live: BTreeMap<u64, Live>,
    last_id: u64,
    /// Records that a rewritten file would have, and all there are.
    records: u64,
    /// At the start: messages before this one are not there any more.
    first: Option<Seq>,
    /// At the start: the highest number sent to members of a group.
    groups: BTreeMap<String, Seq>,
}

pub struct SubsLog {
    log: TypedLog,
    state: State,
    scratch: Vec<u8>,
}

impl State {
    fn apply(&mut self, kind: u8, payload: &[u8]) -> Result<(), String> {
        let bad = |error: prost::DecodeError| format!("record of type {kind}: {error}");
        self.records += 1;
        match kind {
            NEW | UPDATE => {
                let state = pb::SubState::decode(payload).map_err(bad)?;
                self.last_id = self.last_id.max(state.id);
                let id = state.id;
                let known = self.live.contains_key(&id);
                let sent = state.last_sent;
                let live = self.live.entry(id).or_default();
                let before = live.state.last_sent;
                let last_sent = before.max(sent);
                live.state = pb::SubState { last_sent, ..state };
                // A change of one that is not known: its beginning is lost.
                let before = (known || kind == UPDATE).then_some(before);
                self.fill_gap(id, before, sent);
            }
            DELETE => {
                let delete = pb::SubStateDelete::decode(payload).map_err(bad)?;
                self.last_id = self.last_id.max(delete.id);
                let gone = self.live.remove(&delete.id);
                if self.first.is_some()
                    && let Some(group) = gone.map(|live| live.state.queue_group)
                    && !self
                        .live
                        .values()
                        .any(|live| live.state.queue_group == group)
                {
                    self.groups.remove(&group);
                }
            }
            ACK | SENT => {
                let update = pb::SubStateUpdate::decode(payload).map_err(bad)?;
                self.mark(kind, &update);
            }
            other => return Err(format!("unexpected record type: {other}")),
        }
        Ok(())
    }

    fn mark(&mut self, kind: u8, update: &pb::SubStateUpdate) {
        self.last_id = self.last_id.max(update.id);
        let Some(live) = self.live.get_mut(&update.id) else {
            return;
        };
        if kind == ACK {
            live.pending.remove(&update.sequence);
        } else {
            let before = live.state.last_sent;
            live.pending.insert(update.sequence);
            live.state.last_sent = before.max(update.sequence);
            self.fill_gap(update.id, Some(before), update.sequence);
        }
    }

    /// Marks are not synced one by one, so a loss of power may take some and leave later ones. Messages are sent in order:
    /// those that were passed over count as sent and not acknowledged, which at worst repeats them.
    fn fill_gap(&mut self, id: u64, before: Option<Seq>, sent: Seq) {
        let (Some(first), Some(live)) = (self.first, self.live.get_mut(&id)) else {
            return;
        };
        let group = &live.state.queue_group;
        let before = match (group.is_empty(), self.groups.get_mut(group)) {
            (true, _) => before,
            (false, Some(last)) => Some(std::mem::replace(last, sent.max(*last))),
            (false, None) => {
                self.groups.insert(group.clone(), sent);
                before
            }
        };
        if let Some(before) = before {
            live.pending.extend((before + 1).max(first)..sent);
            // That a record of a whole subscription knows of `sent` does not say that its mark is there.
            if before < sent && first <= sent {
                live.pending.insert(sent);
            }
        }
    }

    fn needed(&self) -> u64 {
        let pending: usize = self.live.values().map(|live| 1 + live.pending.len()).sum();
        pending as u64
    }
}

impl SubsLog {
    /// `first`: of the messages of the channel; `logged`: records that the shared log has.
    pub fn open(
        file: Arc<StoreFile>,
        options: &FileOptions,
        damage: &Damage,
        first: Seq,
        logged: &[TypedRecord],
    ) -> Result<Self, StoreError> {
        let mut state = State {
            first: Some(first),
            ..State::default()
        };
        let log = TypedLog::open(file, &options.crc, damage, &KINDS, |kind, payload| {
            state.apply(kind, payload)
        })?;
        let mut subs = Self {
            log,
            state,
            scratch: Vec::new(),
        };
        subs.redo(logged)?;
        (subs.state.first, subs.state.groups) = (None, BTreeMap::new());
        Ok(subs)
    }

    /// The highest number of a message that was sent to a subscription.
    pub fn highest_sent(&self) -> Seq {
        let sent = self.state.live.values().map(|live| live.state.last_sent);
        sent.max().unwrap_or(0)
    }

    /// Records the shared log has, all there are of their kind in the order in which they came. The file gets
    /// them once more if it lacks any.
    fn redo(&mut self, records: &[TypedRecord]) -> Result<(), StoreError> {
        let mut state = self.state.clone();
        for (kind, payload) in records {
            state.apply(*kind, payload).map_err(|why| {
                StoreError::Refused(format!("a record of subscriptions in the log: {why}"))
            })?;
        }
        if state.live == self.state.live && state.last_id == self.state.last_id {
            return Ok(());
        }
        log::warn!(
            "STREAM: {}: {} record(s) are restored from the log",
            self.log.file().path().display(),
            records.len()
        );
        for (kind, payload) in records {
            self.log.push(*kind, payload);
        }
        self.state = state;
        // On a full disk they wait until there is room.
        if let Err(error) = self.log.write() {
            log::error!("STREAM: {error}");
        }
        Ok(())
    }

    /// So that the next sync brings all of the file to the disk.
    pub fn rewrite(&self) -> Result<(), StoreError> {
        self.log.rewrite()
    }

    /// Whether the file lacks records that are here.
    pub fn has_unwritten(&self) -> bool {
        self.log.has_unwritten()
    }

    /// Those of them that must not be lost.
    pub fn unwritten(&self) -> impl Iterator<Item = (u8, &[u8])> {
        self.log.unwritten()
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

    /// A subscription is new, or has changed; returns the record.
    pub fn set(&mut self, state: &pb::SubState, new: bool) -> TypedRecord {
        let kind = if new { NEW } else { UPDATE };
        let payload = state.encode_to_vec();
        self.push(kind, &payload);
        (kind, payload)
    }

    pub fn delete(&mut self, id: u64) -> TypedRecord {
        let payload = pb::SubStateDelete { id }.encode_to_vec();
        self.push(DELETE, &payload);
        (DELETE, payload)
    }

    pub fn sent(&mut self, id: u64, sequence: Seq) {
        self.mark(SENT, pb::SubStateUpdate { id, sequence });
    }

    pub fn acked(&mut self, id: u64, sequence: Seq) {
        self.mark(ACK, pb::SubStateUpdate { id, sequence });
    }

    /// Twice for each message and subscriber, so without a detour.
    fn mark(&mut self, kind: u8, update: pb::SubStateUpdate) {
        self.scratch.clear();
        update.encode(&mut self.scratch).expect("a Vec grows");
        self.log.push(kind, &self.scratch);
        self.state.records += 1;
        self.state.mark(kind, &update);
    }

    pub fn write(&mut self, folder: &Path, options: &FileOptions) -> Result<(), StoreError> {
        let written = self.log.write();
        let needed = self.state.needed();
        let dead = self.state.records.saturating_sub(needed);
        if self.log.wants_compaction(dead, self.state.records, options) {
            // The file is whole without it.
            match self.compact(folder) {
                Ok(()) => return Ok(()),
                Err(error) if is_sync(&error) => return Err(error),
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

    pub fn file(&self) -> Arc<StoreFile> {
        self.log.file()
    }
}
