//! subs.dat: what became of each subscription of a channel.
//!
//! Record types: 1 new, 2 update (both SubState), 3 delete, 4 ack, 5 sent.

use super::damage::Damage;
use super::files::StoreFile;
use super::records::RECORD_BYTES_MAX;
use super::replay::TypedRecord;
use super::typed_log::{Kinds, TypedLog};
use super::{FileOptions, is_sync};
use crate::stan::pb;
use crate::stan::store::{RecoveredSub, Seq, StoreError};
use prost::Message;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

const NEW: u8 = 1;
const UPDATE: u8 = 2;
const DELETE: u8 = 3;
const ACK: u8 = 4;
const SENT: u8 = 5;

/// Every payload begins with the field of an id; updates have two numbers and no more.
const KINDS: Kinds = Kinds {
    sizes_max: &[RECORD_BYTES_MAX, RECORD_BYTES_MAX, 22, 22, 22],
    first_byte: 0x08,
    marks: &[ACK, SENT],
};
/// Of all strings of a subscription: there is room for its numbers, whatever they become.
const STRINGS_BYTES_MAX: usize = RECORD_BYTES_MAX as usize - 256;

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
    /// All there are, with those that are of no use any more.
    records: u64,
}

pub struct SubsLog {
    log: TypedLog,
    state: State,
    scratch: Vec<u8>,
}

impl State {
    /// Returns where it stood before, if it was known.
    fn set(&mut self, state: pb::SubState) -> Option<Seq> {
        let id = state.id;
        self.last_id = self.last_id.max(id);
        let known = self.live.contains_key(&id);
        let live = self.live.entry(id).or_default();
        let before = live.state.last_sent;
        let last_sent = before.max(state.last_sent);
        live.state = pb::SubState { last_sent, ..state };
        known.then_some(before)
    }

    fn delete(&mut self, id: u64) -> Option<Live> {
        self.last_id = self.last_id.max(id);
        self.live.remove(&id)
    }

    /// Returns where a subscription stood before it was sent a message.
    fn mark(&mut self, kind: u8, update: &pb::SubStateUpdate) -> Option<Seq> {
        self.last_id = self.last_id.max(update.id);
        let live = self.live.get_mut(&update.id)?;
        if kind == ACK {
            live.pending.remove(&update.sequence);
            return None;
        }
        let before = live.state.last_sent;
        live.pending.insert(update.sequence);
        live.state.last_sent = before.max(update.sequence);
        Some(before)
    }

    fn members<'a>(&'a self, group: &'a str) -> impl Iterator<Item = &'a Live> {
        let live = self.live.values();
        live.filter(move |live| live.state.queue_group == group)
    }

    fn needed(&self) -> u64 {
        let pending: usize = self.live.values().map(|live| 1 + live.pending.len()).sum();
        pending as u64
    }
}

/// Where the start found a record.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    File,
    /// The shared log, which has all records of its time but marks.
    Log,
}

/// What a server that was not stopped left of a channel's subscriptions.
#[derive(Clone, Copy, Default)]
pub struct Crash<'a> {
    /// Records that the shared log has.
    pub logged: &'a [TypedRecord],
    /// The power may have gone: marks that were written may be missing, and later ones there.
    pub may_lack_marks: bool,
}

/// The records on their way to a state, at the start. A loss of power may have taken any of those that were not synced.
struct Replay {
    state: State,
    may_lack_marks: bool,
    /// Marks seem to be missing, whether they may be or not.
    has_gaps: bool,
    /// Messages before this one are not there any more.
    first: Seq,
    /// The highest number sent to members of a group.
    groups: BTreeMap<String, Seq>,
    /// Subscriptions whose end the file has.
    ended: BTreeSet<u64>,
    /// Marks that the log asks for and nobody wrote.
    handed_over: Vec<pb::SubStateUpdate>,
}

impl Replay {
    fn new(first: Seq, may_lack_marks: bool) -> Self {
        Self {
            state: State::default(),
            may_lack_marks,
            has_gaps: false,
            first,
            groups: BTreeMap::new(),
            ended: BTreeSet::new(),
            handed_over: Vec::new(),
        }
    }

    /// False: it is of a subscription whose end the file has already, and says nothing any more.
    fn apply(&mut self, source: Source, kind: u8, payload: &[u8]) -> Result<bool, String> {
        let bad = |error: prost::DecodeError| format!("record of type {kind}: {error}");
        match kind {
            NEW | UPDATE => {
                let state = pb::SubState::decode(payload).map_err(bad)?;
                let (id, sent) = (state.id, state.last_sent);
                if self.ended.contains(&id) {
                    if source == Source::Log {
                        return Ok(false);
                    }
                    self.ended.remove(&id);
                }
                let before = self.state.set(state);
                // A change of one that is not known: its beginning is lost. Number 0 is of a subscription that
                // nats-streaming-server refused, which never had a beginning.
                let before = before.or((kind == UPDATE && id > 0).then_some(0));
                self.fill_gap(id, before, sent);
            }
            DELETE => {
                let id = pb::SubStateDelete::decode(payload).map_err(bad)?.id;
                match source {
                    Source::Log if self.ended.contains(&id) => return Ok(false),
                    Source::Log => {}
                    Source::File => {
                        self.ended.insert(id);
                    }
                }
                if let Some(leaver) = self.state.delete(id) {
                    self.leave(source, &leaver);
                }
            }
            ACK | SENT => {
                let update = pb::SubStateUpdate::decode(payload).map_err(bad)?;
                if let Some(before) = self.state.mark(kind, &update) {
                    self.fill_gap(update.id, Some(before), update.sequence);
                }
            }
            other => return Err(format!("unexpected record type: {other}")),
        }
        self.state.records += 1;
        Ok(true)
    }

    /// Marks are not synced one by one, so a loss of power may take some and leave later ones. Messages are sent in order:
    /// those that were passed over count as sent and not acknowledged, which at worst repeats them. nats-streaming-server leaves
    /// files that look like that without any loss, so it is believed only of our own (see `Crash`).
    fn fill_gap(&mut self, id: u64, before: Option<Seq>, sent: Seq) {
        let Some(live) = self.state.live.get_mut(&id) else {
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
        let Some(before) = before else {
            return;
        };
        // That a record of a whole subscription knows of `sent` does not say that its mark is there.
        let lacks = |seq: &Seq| !live.pending.contains(seq);
        let mut passed_over = (before + 1).max(self.first)..=sent;
        self.has_gaps |= passed_over.any(|seq| lacks(&seq));
        if self.may_lack_marks {
            live.pending.extend((before + 1).max(self.first)..=sent);
        }
    }

    /// What a member of a group left pending was given to the others before its end was recorded. Where the marks of that are
    /// lost, nobody has it: it goes to one of those who are left. nats-streaming-server records the end first where
    /// a group is not durable, so in a file that says nothing.
    fn leave(&mut self, source: Source, leaver: &Live) {
        let group = &leaver.state.queue_group;
        if group.is_empty() {
            return;
        }
        // A place that is only kept waits until somebody takes it.
        let is_away = |live: &&Live| live.state.is_closed || live.state.client_id.is_empty();
        let Some(heir) = self.state.members(group).min_by_key(is_away) else {
            self.groups.remove(group);
            return;
        };
        if source == Source::File && !leaver.state.is_durable {
            return;
        }
        let id = heir.state.id;
        // The smaller one of both is gone through: there may be many members, and many ends.
        let mut lost = leaver.pending.clone();
        for live in self.state.members(group) {
            if live.pending.len() < lost.len() {
                for seq in &live.pending {
                    lost.remove(seq);
                }
            } else {
                lost.retain(|seq| !live.pending.contains(seq));
            }
        }
        for sequence in lost {
            let update = pb::SubStateUpdate { id, sequence };
            self.state.mark(SENT, &update);
            if source == Source::Log {
                self.handed_over.push(update);
            }
        }
    }
}

impl SubsLog {
    /// `first`: of the messages of the channel.
    pub fn open(
        file: Arc<StoreFile>,
        options: &FileOptions,
        damage: &Damage,
        first: Seq,
        crash: Crash<'_>,
    ) -> Result<Self, StoreError> {
        let mut replay = Replay::new(first, crash.may_lack_marks);
        let log = TypedLog::open(file, &options.crc, damage, &KINDS, |kind, payload| {
            replay.apply(Source::File, kind, payload).map(|_| ())
        })?;
        let mut subs = Self {
            log,
            state: State::default(),
            scratch: Vec::new(),
        };
        let has_gaps = subs.redo(replay, crash.logged)?;
        if has_gaps && (crash.may_lack_marks || options.sync) {
            subs.close_gaps(crash.may_lack_marks)?;
        }
        Ok(subs)
    }

    /// The file is made to say what counts now, or the next start might see it otherwise: gaps are filled only where there
    /// is a log, and a server that syncs makes one.
    fn close_gaps(&mut self, filled: bool) -> Result<(), StoreError> {
        let file = self.log.file();
        let folder = file.path().parent().unwrap_or(Path::new("."));
        match self.compact(folder) {
            Err(error) if is_sync(&error) => Err(error),
            Err(error) => {
                log::error!("STREAM: {error}");
                // Without what is filled in now, messages could be lost. The other way, some are repeated after a crash.
                if filled {
                    self.log.must_be_rewritten(kind_of(&error));
                }
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// The highest number of a message that was sent to a subscription.
    pub fn highest_sent(&self) -> Seq {
        let sent = self.state.live.values().map(|live| live.state.last_sent);
        sent.max().unwrap_or(0)
    }

    /// Records the shared log has, all there are of their kind in the order in which they came. The file gets
    /// them once more if it lacks any. Returns whether marks seem to be missing.
    fn redo(&mut self, mut replay: Replay, records: &[TypedRecord]) -> Result<bool, StoreError> {
        if records.is_empty() {
            self.state = replay.state;
            return Ok(replay.has_gaps);
        }
        let before = replay.state.clone();
        let mut restored = Vec::new();
        for (kind, payload) in records {
            let counts = replay.apply(Source::Log, *kind, payload).map_err(|why| {
                StoreError::Refused(format!("a record of subscriptions in the log: {why}"))
            })?;
            if counts {
                restored.push((*kind, payload));
            }
        }
        if replay.state.live == before.live && replay.state.last_id == before.last_id {
            self.state = before;
            return Ok(replay.has_gaps);
        }
        log::warn!(
            "STREAM: {}: {} record(s) are restored from the log",
            self.log.file().path().display(),
            restored.len()
        );
        for (kind, payload) in restored {
            self.log.push(kind, payload);
        }
        for update in &replay.handed_over {
            self.log.push(SENT, &update.encode_to_vec());
            replay.state.records += 1;
        }
        // On a full disk they wait until there is room.
        if let Err(error) = self.log.write() {
            log::error!("STREAM: {error}");
        }
        self.state = replay.state;
        Ok(replay.has_gaps)
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

    /// An error for one whose record would be too large; one that another server has taken may change all the same.
    pub fn check_size(&self, state: &pb::SubState) -> Result<(), StoreError> {
        let size = strings_bytes(state);
        let known = self.state.live.get(&state.id);
        let known = known.map_or(0, |live| strings_bytes(&live.state));
        if size <= STRINGS_BYTES_MAX.max(known) {
            return Ok(());
        }
        Err(StoreError::Refused(format!(
            "names and inboxes of the subscription have {size} bytes, {} takes {STRINGS_BYTES_MAX}: use shorter ones",
            self.log.file().path().display()
        )))
    }

    fn push(&mut self, kind: u8, payload: &[u8]) {
        self.log.push(kind, payload);
        self.state.records += 1;
    }

    /// A subscription is new, or has changed; returns the record.
    pub fn set(&mut self, state: &pb::SubState, new: bool) -> TypedRecord {
        let kind = if new { NEW } else { UPDATE };
        let payload = state.encode_to_vec();
        self.push(kind, &payload);
        self.state.set(state.clone());
        (kind, payload)
    }

    pub fn delete(&mut self, id: u64) -> TypedRecord {
        let payload = pb::SubStateDelete { id }.encode_to_vec();
        self.push(DELETE, &payload);
        self.state.delete(id);
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
        // Of a group, who stands furthest on comes first: behind others it would look as if the marks between were lost.
        let mut all: Vec<&Live> = self.state.live.values().collect();
        all.sort_by_key(|live| Reverse(live.state.last_sent));
        self.log
            .compact(&parent.join(format!("subs{unique}")), |put| {
                for live in all {
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

fn kind_of(error: &StoreError) -> ErrorKind {
    match error {
        StoreError::Io { error, .. } => error.kind(),
        _ => ErrorKind::Other,
    }
}

fn strings_bytes(state: &pb::SubState) -> usize {
    let strings = [
        &state.client_id,
        &state.queue_group,
        &state.inbox,
        &state.ack_inbox,
        &state.durable_name,
    ];
    strings.iter().map(|string| string.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::super::files::Files;
    use super::*;
    use crate::config::streaming::StreamingOptions;

    struct Folder {
        folder: tempfile::TempDir,
        options: FileOptions,
    }

    impl Folder {
        fn new(sync: bool) -> Self {
            let mut options = StreamingOptions::default().file;
            options.sync = sync;
            let folder = tempfile::tempdir().unwrap();
            std::fs::create_dir(folder.path().join("foo")).unwrap();
            Self {
                folder,
                options: FileOptions::new(&options),
            }
        }

        fn open(&self, may_lack_marks: bool) -> SubsLog {
            let file = Files::new(0).file(self.folder.path().join("foo/subs.dat"));
            let damage = Damage {
                strict: true,
                channel: Some("foo"),
            };
            let crash = Crash {
                may_lack_marks,
                ..Crash::default()
            };
            SubsLog::open(file, &self.options, &damage, 1, crash).unwrap()
        }

        /// What is pending, by subscription.
        fn pending(&self, may_lack_marks: bool) -> Vec<(u64, Vec<Seq>)> {
            let recovered = self.open(may_lack_marks).recovered();
            let pending = recovered.into_iter();
            pending.map(|sub| (sub.state.id, sub.pending)).collect()
        }

        fn write(&self, records: &[TypedRecord]) {
            let mut subs = self.open(false);
            for (kind, payload) in records {
                subs.log.push(*kind, payload);
            }
            subs.log.write().unwrap();
        }
    }

    fn member(id: u64, last_sent: Seq) -> TypedRecord {
        let state = pb::SubState {
            id,
            client_id: format!("client-{id}"),
            queue_group: "g".into(),
            last_sent,
            ..pb::SubState::default()
        };
        (NEW, state.encode_to_vec())
    }

    fn sent(id: u64, sequence: Seq) -> TypedRecord {
        let update = pb::SubStateUpdate { id, sequence };
        (SENT, update.encode_to_vec())
    }

    /// As nats-streaming-server rewrites its files: members in any order.
    #[test]
    fn what_was_acknowledged_elsewhere_is_not_repeated() {
        for sync in [true, false] {
            let folder = Folder::new(sync);
            folder.write(&[member(1, 5), sent(1, 4), member(2, 10), sent(2, 8)]);
            let expected = [(1, vec![4]), (2, vec![8])];
            assert_eq!(folder.pending(false), expected);
            // Nor after a crash of the server that has taken its place; without syncs there are no logs.
            assert_eq!(folder.pending(sync), expected);
        }
    }

    /// A durable that the original could not add leaves a record of its end, with number 0.
    #[test]
    fn a_refused_subscription_was_sent_nothing() {
        let state = pb::SubState {
            client_id: "me".into(),
            durable_name: "d".into(),
            is_durable: true,
            is_closed: true,
            last_sent: 1_000_000_000_000,
            ..pb::SubState::default()
        };
        for may_lack_marks in [false, true] {
            let folder = Folder::new(true);
            folder.write(&[(UPDATE, state.encode_to_vec())]);
            assert_eq!(folder.pending(may_lack_marks), [(0, vec![])]);
        }
    }

    #[test]
    fn marks_that_may_be_lost_are_made_up_for_and_stay() {
        let folder = Folder::new(true);
        folder.write(&[member(1, 0), sent(1, 1), sent(1, 4)]);
        // Before a clean stop, and after it.
        for may_lack_marks in [true, false] {
            assert_eq!(folder.pending(may_lack_marks), [(1, vec![1, 2, 3, 4])]);
        }
    }
}
