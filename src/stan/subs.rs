//! One subscription: what it was sent, and what of that it has not acknowledged.
//!
//! ```text
//!             new message                    ack
//!   Ready --------------------> Pending -----------> (forgotten)
//!     ^                          |    ^ AckWait over: sent again, to a member of the group
//!     |                          '----'
//!     |  pending >= MaxInFlight: stalled, until an ack
//!
//!   durable: active <--resume / close--> offline (keeps its place and what is pending)
//! ```

use crate::stan::pb::SubState;
use crate::stan::store::Seq;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

pub const SECOND: i64 = 1_000_000_000;
/// Stale deadlines there may be before somebody looks for them, beside one for each message that is pending.
const STALE_ALWAYS_OK: usize = 64;

/// When a pending message is to be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Due {
    At(i64),
    /// It is on its way to the dead letters, and not sent meanwhile.
    Leaving,
}

#[derive(Clone, Copy, Debug)]
pub struct Pending {
    pub due: Due,
    /// How often it was sent beyond the first time.
    pub redeliveries: u32,
    /// When this subscription was sent it first, since the server's start.
    pub first_sent: i64,
    /// Its deadline was over when the server started, and it was not sent again since.
    pub due_at_start: bool,
    /// It was to go to the dead letters, and could not: when it is due it is sent again first.
    pub unburied: bool,
}

impl Pending {
    pub fn is_leaving(&self) -> bool {
        self.due == Due::Leaving
    }
}

#[derive(Debug)]
pub struct Sub {
    pub state: SubState,
    /// Its queue group, as in `state`; empty: none.
    pub group: Arc<str>,
    pub pending: BTreeMap<Seq, Pending>,
    /// Deadlines in order; entries whose message was acknowledged or sent since are stale.
    due: VecDeque<(i64, Seq)>,
    /// The timer that is set.
    pub timer_at: Option<i64>,
    /// False: a durable, or a durable group's place, that waits for its client.
    pub active: bool,
    /// Answers about this subscription that wait for the disk. Until they are out nothing is delivered: its
    /// client does not know yet that it has it.
    pub unanswered: u32,
}

impl Sub {
    pub fn new(state: SubState, active: bool) -> Self {
        Self {
            group: state.queue_group.as_str().into(),
            state,
            pending: BTreeMap::new(),
            due: VecDeque::new(),
            timer_at: None,
            active,
            unanswered: 0,
        }
    }

    pub fn id(&self) -> u64 {
        self.state.id
    }

    pub fn ack_wait(&self) -> i64 {
        i64::from(self.state.ack_wait_seconds) * SECOND
    }

    /// Whether anything may be sent to it.
    pub fn is_open(&self) -> bool {
        self.active && self.unanswered == 0
    }

    pub fn is_stalled(&self) -> bool {
        self.pending.len() >= self.state.max_in_flight.max(1) as usize
    }

    /// When the message that waits longest for its ack was sent first.
    pub fn oldest_unacked(&self) -> Option<i64> {
        let (_, oldest) = self.pending.first_key_value()?;
        Some(oldest.first_sent)
    }

    /// Notes a message as sent, to be acknowledged until `due`.
    pub fn note_sent(&mut self, seq: Seq, due: i64, redeliveries: u32, now: i64) {
        // One entry for a deadline, or the message would be sent twice then.
        let mut listed = false;
        let renew = |pending: &mut Pending| {
            listed = pending.due == Due::At(due);
            (pending.due, pending.redeliveries) = (Due::At(due), redeliveries);
            (pending.due_at_start, pending.unburied) = (false, false);
        };
        self.pending
            .entry(seq)
            .and_modify(renew)
            .or_insert(Pending {
                due: Due::At(due),
                redeliveries,
                first_sent: now,
                due_at_start: false,
                unburied: false,
            });
        self.state.last_sent = self.state.last_sent.max(seq);
        if !listed {
            self.list(seq, due);
        }
    }

    fn list(&mut self, seq: Seq, due: i64) {
        // One message that nobody acknowledges keeps those behind it from coming to the front and being dropped there.
        if self.due.len() > 2 * self.pending.len() + STALE_ALWAYS_OK {
            let pending = &self.pending;
            self.due.retain(|(at, seq)| is_due_at(pending, *seq, *at));
        }
        let at = self.due.partition_point(|(other, _)| *other <= due);
        self.due.insert(at, (due, seq));
    }

    /// Notes a message as pending since before the server's start.
    pub fn note_recovered(&mut self, seq: Seq, due: i64, now: i64) {
        self.note_sent(seq, due, 0, now);
        if let Some(pending) = self.pending.get_mut(&seq) {
            pending.due_at_start = due <= now;
        }
    }

    /// A message is on its way to the dead letters: pending, and not sent again meanwhile.
    pub fn note_leaving(&mut self, seq: Seq) {
        if let Some(pending) = self.pending.get_mut(&seq) {
            pending.due = Due::Leaving;
        }
    }

    /// Notes a message that another member of the group had, and that is leaving.
    pub fn note_taken_over_leaving(&mut self, seq: Seq, redeliveries: u32, now: i64) {
        self.note_sent(seq, now + self.ack_wait(), redeliveries, now);
        self.note_leaving(seq);
    }

    /// A message could not go to the dead letters.
    pub fn note_unburied(&mut self, seq: Seq) {
        if let Some(pending) = self.pending.get_mut(&seq) {
            pending.unburied = true;
        }
    }

    /// Puts off, until `until`, what would be due before that.
    pub fn postpone(&mut self, until: i64, which: impl Fn(&Pending) -> bool) {
        let early = |pending: &Pending| pending.due < Due::At(until) && which(pending);
        let early: Vec<Seq> = self
            .pending
            .iter()
            .filter(|(_, pending)| early(pending))
            .map(|(seq, _)| *seq)
            .collect();
        for seq in early {
            self.set_due(seq, until);
        }
    }

    /// Puts off, until `until`, what is due at `at`; false: nothing was.
    pub fn put_off(&mut self, at: i64, until: i64) -> bool {
        let due: Vec<(i64, Seq)> = std::iter::from_fn(|| self.take_due(at)).collect();
        for (_, seq) in &due {
            self.set_due(*seq, until);
        }
        !due.is_empty()
    }

    /// A pending message gets another deadline; all else about it stays.
    pub fn set_due(&mut self, seq: Seq, due: i64) {
        if let Some(pending) = self.pending.get_mut(&seq)
            && pending.due != Due::At(due)
        {
            pending.due = Due::At(due);
            self.list(seq, due);
        }
    }

    /// The earliest deadline.
    pub fn next_due(&mut self) -> Option<i64> {
        while let Some((due, seq)) = self.due.front() {
            if is_due_at(&self.pending, *seq, *due) {
                return Some(*due);
            }
            self.due.pop_front();
        }
        None
    }

    /// Takes the next message whose deadline is over by then, with that.
    pub fn take_due(&mut self, until: i64) -> Option<(i64, Seq)> {
        let due = self.next_due()?;
        if due > until {
            return None;
        }
        self.due.pop_front()
    }
}

fn is_due_at(pending: &BTreeMap<Seq, Pending>, seq: Seq, at: i64) -> bool {
    pending
        .get(&seq)
        .is_some_and(|pending| pending.due == Due::At(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_come_in_order_and_stale_ones_do_not() {
        let mut sub = Sub::new(SubState::default(), true);
        sub.note_sent(1, 30, 0, 0);
        sub.note_sent(2, 10, 0, 0);
        sub.note_sent(3, 20, 0, 0);
        sub.pending.remove(&3);
        assert_eq!(sub.take_due(5), None);
        assert_eq!(sub.take_due(100), Some((10, 2)));
        sub.note_sent(2, 40, 1, 0);
        assert_eq!(sub.take_due(100), Some((30, 1)));
        sub.pending.remove(&1);
        assert_eq!(sub.take_due(100), Some((40, 2)));
        assert_eq!(sub.take_due(100), None);
        assert_eq!(sub.state.last_sent, 3);
    }

    #[test]
    fn a_deadline_noted_twice_is_one() {
        let mut sub = Sub::new(SubState::default(), true);
        sub.note_sent(1, 10, 0, 0);
        sub.note_sent(1, 10, 1, 0);
        assert_eq!((sub.take_due(10), sub.take_due(10)), (Some((10, 1)), None));
    }

    #[test]
    fn one_message_without_an_ack_keeps_no_deadlines_of_others() {
        let mut sub = Sub::new(SubState::default(), true);
        sub.note_sent(1, 1, 0, 0);
        for seq in 2..100_000 {
            sub.note_sent(seq, seq as i64, 0, 0);
            sub.pending.remove(&seq);
            // While the second one was pending.
            let listed = sub.due.len();
            assert!(listed <= 2 * 2 + STALE_ALWAYS_OK + 1, "{listed}");
        }
        // And with many pending, none is forgotten.
        for seq in 100_000..100_500 {
            sub.note_sent(seq, seq as i64, 0, 0);
        }
        for seq in 100_500..110_000 {
            sub.note_sent(seq, seq as i64, 0, 0);
            sub.pending.remove(&seq);
        }
        let due = std::iter::from_fn(|| sub.take_due(i64::MAX));
        let due: Vec<Seq> = due.map(|(_, seq)| seq).collect();
        let expected: Vec<Seq> = std::iter::once(1).chain(100_000..100_500).collect();
        assert_eq!(due, expected);
    }

    #[test]
    fn what_is_put_off_stays_what_it_was() {
        let mut sub = Sub::new(SubState::default(), true);
        sub.note_recovered(1, 10, 10);
        for seq in [2, 3] {
            sub.note_sent(seq, 10 * seq as i64, 3, 5);
            sub.note_unburied(seq);
        }
        assert!(sub.put_off(20, 100) && !sub.put_off(20, 100));
        let dues = [1, 2, 3].map(|seq| sub.pending[&seq].due);
        assert_eq!(dues, [Due::At(100), Due::At(100), Due::At(30)]);
        sub.postpone(50, |_| true);
        let due = std::iter::from_fn(|| sub.take_due(i64::MAX));
        assert_eq!(due.collect::<Vec<_>>(), [(50, 3), (100, 1), (100, 2)]);
        assert!(sub.pending[&1].due_at_start);
        for seq in [2, 3] {
            let pending = sub.pending[&seq];
            assert!(pending.unburied && pending.redeliveries == 3 && pending.first_sent == 5);
        }
    }

    #[test]
    fn what_is_leaving_is_not_due() {
        let mut sub = Sub::new(SubState::default(), true);
        sub.note_sent(1, 10, 0, 0);
        sub.note_leaving(1);
        sub.note_taken_over_leaving(2, 3, 0);
        sub.postpone(50, |_| true);
        assert!(!sub.put_off(100, 200));
        assert_eq!((sub.take_due(i64::MAX), sub.pending.len()), (None, 2));
        assert!(sub.pending.values().all(Pending::is_leaving));
    }
}
