//! Bursts of interest, told in portions: a message waits for one of them at most, not for all.
//!
//! A client may make or end a hundred thousand subscriptions at once, or leave with that many. Each
//! change costs this loop, the other loops and other servers some time, and a message behind all of
//! them would wait for it. So:
//!
//! - what a connection with many subscriptions had is taken out a portion per turn when it leaves;
//!   meanwhile it gets nothing, and its slot stays taken. Its members of queue groups go at once: a
//!   group on another loop would choose among them as if they were there;
//! - every so many bytes of lines for the routes there is a PING, a *mark*. When a whole window is on its
//!   way, and until all routes have answered all marks, a client that brings changes in bulk is not
//!   read from, and connections that leave stand still.
//!
//! Nothing changes its place: lines go to the routes when the change happens, and what a client says
//! behind its changes is read behind them. `PATIENCE` after the window was full all go on in any case, so
//! a route that takes nothing, or is far away, slows bursts down and stops nobody.
//!
//! ```text
//!   told ------ mark ------ mark ------ mark --->   bytes of lines, of one loop
//!                 |<-------- window ------->|
//!            answered by all routes      behind: bursts wait
//! ```
//!
//! The other loops of the process are waited for in the same way, by how many changes they have not worked off
//! yet; without patience, since a loop works off its mail as long as the process lives, and whatever is read from it
//! meanwhile waits behind that mail.
//!
//! The routes, and so the answers, are on loop 0; a mark of another loop goes there by mail behind the
//! lines, and the answer comes back by mail.

use super::client::Phase;
use super::deliver::Receivers;
use super::effect::Effect;
use super::peers::Peer;
use super::propagate::ROUTE_LOOP;
use super::route::Asked;
use super::{Broker, Slot};
use crate::wire::encode;
use crate::wire::parser::Kind;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Some 1500 lines, and the 3000 one read of a client may cause come on top: a millisecond or two for
/// midge, about 20 for gnatsd 1.1.0. Tests have small bursts.
const WINDOW_BYTES: u64 = if cfg!(test) { 4 << 10 } else { 32 << 10 };
const MARK_BYTES: u64 = WINDOW_BYTES / 4;
/// Changes in one read of a client that are a burst.
const BULK_CHANGES: u64 = if cfg!(test) { 4 } else { 24 };

/// Subscriptions of those that leave, taken out per turn: half a millisecond. Who has no more goes at once.
const PORTION: usize = if cfg!(test) { 16 } else { 1024 };

/// Without all answers, bursts go on after this time.
pub(super) const PATIENCE: Duration = Duration::from_millis(50);

/// Connections with many subscriptions that leave and wait for routes; more of them do not wait.
const LEAVERS_WAITING_MAX: usize = 16;

/// Marks a route has not answered; it is not asked for more.
const MARKS_ASKED_MAX: usize = 256;

/// Changes another loop has not worked off, above which bursts wait for it until it is about through: a few
/// milliseconds of its time.
const CHANGES_AHEAD_MAX: usize = if cfg!(test) { 64 } else { 1024 };
const CHANGES_AHEAD_MIN: usize = 64;

/// The part of one of so many loops: what all others have for one is taken in in one turn.
pub(super) fn changes_ahead_max(loops: u16) -> usize {
    let others = usize::from(loops.max(2)) - 1;
    (CHANGES_AHEAD_MAX / others).max(CHANGES_AHEAD_MIN)
}

/// Subscriptions that came and went in one turn, above which nothing more is read in it: output and mail go first.
const CHANGES_PER_TURN: u64 = if cfg!(test) { 64 } else { 2048 };

/// Clients that go on in one turn; each may bring a burst.
const RESUMED_MAX: usize = 1;

#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Bytes of lines for routes so far: all, up to the last mark, and taken in by all routes.
    told: u64,
    marked: u64,
    taken_in: u64,
    /// Changes clients of this loop made so far.
    changes: u64,
    /// Since a window's worth was not taken in, until all marks are answered.
    behind_since: Option<Instant>,
    /// Another loop has many changes ahead of it.
    loops_behind: bool,
    /// Subscriptions that had come and gone when the turn began.
    changed_before: u64,
    /// Clients that are not read from, by slot and cid.
    waiting: VecDeque<(Slot, u64)>,
    /// Closed connections that still have subscriptions.
    leaving: VecDeque<Slot>,
    /// Subscriptions taken out in this turn.
    taken_out: usize,
    /// On the loop of the routes: marks of all loops that some routes have not answered.
    open_marks: Vec<OpenMark>,
}

/// A place in the lines of a loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub loop_index: u16,
    pub position: u64,
}

#[derive(Debug)]
struct OpenMark {
    mark: Mark,
    routes_missing: usize,
}

impl Pace {
    pub fn changes(&self) -> u64 {
        self.changes
    }

    pub fn note_change(&mut self) {
        self.changes += 1;
    }

    fn on_their_way(&self) -> u64 {
        self.told - self.taken_in
    }

    fn is_behind(&self) -> bool {
        self.behind_since.is_some() || self.loops_behind
    }

    /// Whether something is to go on when other loops are through with their mail.
    pub fn waits_for_loops(&self) -> bool {
        self.loops_behind && !(self.waiting.is_empty() && self.leaving.is_empty())
    }

    /// When something is to be done, if it is not brought about by an answer.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        if self.loops_behind || self.waiting.is_empty() && self.leaving.is_empty() {
            return None;
        }
        match self.behind_since {
            Some(since) if !self.has_too_many_leavers() => Some(since + PATIENCE),
            _ => Some(now),
        }
    }

    fn has_too_many_leavers(&self) -> bool {
        self.leaving.len() > LEAVERS_WAITING_MAX
    }
}

impl Broker {
    /// The next turn has a portion of its own.
    pub(super) fn end_turn_of_pace(&mut self) {
        // Before the carrier asks whether anybody waits for other loops, which tell then.
        self.look_at_loops();
        self.pace.taken_out = 0;
        self.pace.changed_before = self.subscriptions_changed();
    }

    fn subscriptions_changed(&self) -> u64 {
        self.totals.inserts + self.totals.removes
    }

    /// So much has changed, or another loop got so much, that what was received has to wait for the next turn.
    pub fn turn_is_full(&self) -> bool {
        self.mail_is_full
            || self.subscriptions_changed() - self.pace.changed_before >= CHANGES_PER_TURN
    }

    /// Other loops may have got more to do.
    fn look_at_loops(&mut self) {
        let mut ahead = self.peers.iter().map(Peer::changes_ahead);
        self.pace.loops_behind |= ahead.any(|changes| changes >= self.changes_ahead_max);
    }

    /// The carrier has told what all other loops have ahead of them.
    pub fn backlogs_are_set(&mut self) {
        let mut ahead = self.peers.iter().map(Peer::changes_ahead);
        let most = match self.pace.loops_behind {
            true => self.changes_ahead_max / 4,
            false => self.changes_ahead_max,
        };
        self.pace.loops_behind = ahead.any(|changes| changes >= most);
    }

    /// Bursts that may go on do so.
    pub(super) fn keep_pace(&mut self) {
        let pace = &mut self.pace;
        let late = |since: Instant| self.now >= since + PATIENCE;
        if pace.behind_since.is_some_and(late) {
            pace.taken_in = pace.told;
            pace.behind_since = None;
        }
        for _ in 0..RESUMED_MAX {
            if self.pace.is_behind() {
                break;
            }
            let Some((slot, cid)) = self.pace.waiting.pop_front() else {
                break;
            };
            let client = self.receivers.clients.get_mut(slot as usize);
            if let Some(client) = client.filter(|client| client.cid == cid) {
                client.paced = false;
                self.effects.push(Effect::Resume { slot });
            }
        }
        self.take_out_leavers();
    }

    // ---- connections that leave

    /// A connection was closed: its subscriptions go, at once where they are few. No other connection is
    /// touched.
    pub(super) fn leave(&mut self, slot: Slot) {
        self.look_at_loops();
        let few_max = match self.pace.loops_behind {
            true => BULK_CHANGES as usize,
            false => PORTION,
        };
        let Receivers {
            clients,
            subscriptions,
            ..
        } = &mut self.receivers;
        let client = &mut clients[slot as usize];
        let few = client.subscriptions.len() <= few_max;
        let mut first = Vec::new();
        if few || client.members > 0 {
            let goes = |id: &mut u32| few || subscriptions[*id as usize].queue.is_some();
            first.extend(client.subscriptions.extract_if(goes));
        }
        for id in first {
            self.forget_subscription(id);
        }
        let client = &mut self.receivers.clients[slot as usize];
        match client.subscriptions.is_empty() {
            true => self.has_left(slot),
            false => {
                client.leaving = true;
                self.pace.leaving.push_back(slot);
            }
        }
    }

    fn take_out_leavers(&mut self) {
        while let Some(slot) = self.pace.leaving.front().copied() {
            self.look_at_loops();
            let client = &mut self.receivers.clients[slot as usize];
            let room = PORTION.saturating_sub(self.pace.taken_out);
            let routes_behind = self.pace.behind_since.is_some();
            let waits =
                self.pace.loops_behind || routes_behind && !self.pace.has_too_many_leavers();
            if room == 0 || waits {
                return;
            }
            let all = client.subscriptions.extract_if(|_| true);
            let portion: Vec<u32> = all.take(room).collect();
            self.pace.taken_out += portion.len();
            let was_last = client.subscriptions.is_empty();
            for id in portion {
                self.forget_subscription(id);
            }
            if was_last {
                self.pace.leaving.pop_front();
                self.has_left(slot);
            }
        }
    }

    /// A closed connection has no subscriptions any more.
    fn has_left(&mut self, slot: Slot) {
        let client = &mut self.receivers.clients[slot as usize];
        client.leaving = false;
        let (kind, cid, released) = (client.kind, client.cid, client.released);
        if kind == Kind::Client {
            self.slots.remove(&cid);
        }
        if released {
            self.receivers.clients.remove(slot as usize);
        }
    }

    // ---- clients that make many changes

    /// A client was read from when so many changes had been made: if it brought a burst, it may have to
    /// wait. What others changed in the same turn is not its own.
    pub(super) fn pace_client(&mut self, slot: Slot, changes_before: u64) {
        if self.pace.changes - changes_before < BULK_CHANGES {
            return;
        }
        self.look_at_loops();
        let pace = &mut self.pace;
        let client = &mut self.receivers.clients[slot as usize];
        if pace.is_behind()
            && !client.internal
            && client.kind == Kind::Client
            && client.phase == Phase::Open
            && !std::mem::replace(&mut client.paced, true)
        {
            pace.waiting.push_back((slot, client.cid));
        }
    }

    // ---- marks

    /// This loop caused a line for all routes.
    pub(super) fn note_told(&mut self, bytes: usize) {
        let pace = &mut self.pace;
        pace.told += bytes as u64;
        if pace.on_their_way() >= WINDOW_BYTES {
            pace.behind_since.get_or_insert(self.now);
        }
        if pace.told - pace.marked < MARK_BYTES {
            return;
        }
        pace.marked = pace.told;
        let position = pace.told;
        match self.loop_index {
            ROUTE_LOOP => self.set_mark(Mark {
                loop_index: ROUTE_LOOP,
                position,
            }),
            _ => self.outgoing(ROUTE_LOOP).push_mark(position),
        }
    }

    /// All routes are to say when they have taken in what stands before this.
    pub(super) fn set_mark(&mut self, mark: Mark) {
        let mut routes_missing = 0;
        for index in 0..self.routes.registered.len() {
            let slot = self.routes.registered[index];
            if self.route(slot).asked.len() < MARKS_ASKED_MAX {
                self.append(slot, encode::PING);
                self.route(slot).asked.push_back(Asked::Mark(mark));
                routes_missing += 1;
            }
        }
        match routes_missing {
            0 => self.mark_taken_in(mark),
            _ => self.pace.open_marks.push(OpenMark {
                mark,
                routes_missing,
            }),
        }
    }

    /// A route has answered a mark, or has gone.
    pub(super) fn mark_answered(&mut self, mark: Mark) {
        let marks = &mut self.pace.open_marks;
        let Some(index) = marks.iter().position(|open| open.mark == mark) else {
            return;
        };
        marks[index].routes_missing -= 1;
        if marks[index].routes_missing == 0 {
            marks.remove(index);
            self.mark_taken_in(mark);
        }
    }

    fn mark_taken_in(&mut self, mark: Mark) {
        match mark.loop_index == self.loop_index {
            true => self.note_taken_in(mark.position),
            false => self.outgoing(mark.loop_index).push_taken_in(mark.position),
        }
    }

    /// All routes have taken in what this loop told before this position.
    pub(super) fn note_taken_in(&mut self, position: u64) {
        let pace = &mut self.pace;
        if position > pace.taken_in {
            pace.taken_in = position;
            if pace.on_their_way() < MARK_BYTES {
                pace.behind_since = None;
            }
        }
    }
}

#[cfg(test)]
mod tests;
