//! Everybody's interest, as one event loop sees it.
//!
//! Every pattern stands in one hash table under its own text; a published subject finds its literal
//! subscriptions there with one lookup. Patterns with wildcards stand in a trie as well. There is no
//! cache of results: both lookups are cheap enough, and nothing has to be thrown away when a
//! subscription comes or goes.

pub use super::interest::{Group, Interest};
use super::names::Names;
pub use super::names::QueueId;
use super::token;
use super::trie::Trie;
use foldhash::fast::FixedState;
use hashbrown::HashTable;
use slab::Slab;
use std::hash::{BuildHasher, Hasher};

/// A pattern with at least one member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct InterestId(u32);

/// Where a member stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub interest: InterestId,
    /// Among the members of its kind (plain, or of its queue group) at that pattern.
    pub index: u32,
}

#[derive(Debug)]
pub struct Sublist {
    hash: FixedState,
    by_pattern: HashTable<u32>,
    interests: Slab<Interest>,
    trie: Trie,
    names: Names,
}

#[inline(always)]
fn hash(state: &FixedState, pattern: &[u8]) -> u64 {
    let mut hasher = state.build_hasher();
    hasher.write(pattern);
    hasher.finish()
}

impl Sublist {
    /// The seed keeps clients from choosing subjects that collide.
    pub fn new(seed: u64) -> Self {
        Self {
            hash: FixedState::with_seed(seed),
            by_pattern: HashTable::new(),
            interests: Slab::new(),
            trie: Trie::new(seed),
            names: Names::new(seed),
        }
    }

    /// Adds a member (the caller's number) to a pattern; `weight` is the number of subscriptions it
    /// stands for in its queue group. The pattern must be valid.
    pub fn insert(
        &mut self,
        pattern: &[u8],
        queue: Option<&[u8]>,
        member: u32,
        weight: u32,
    ) -> (Place, Option<QueueId>) {
        let queue = queue.map(|name| self.names.acquire(name));
        let hashed = hash(&self.hash, pattern);
        let id = match self.find(hashed, pattern) {
            Some(id) => id,
            None => self.add_pattern(hashed, pattern),
        };
        let index = self.interests[id as usize].insert(queue, member, weight);
        (
            Place {
                interest: InterestId(id),
                index,
            },
            queue,
        )
    }

    #[inline(always)]
    fn find(&self, hashed: u64, pattern: &[u8]) -> Option<u32> {
        self.by_pattern
            .find(hashed, |id| {
                *self.interests[*id as usize].pattern == *pattern
            })
            .copied()
    }

    fn add_pattern(&mut self, hashed: u64, pattern: &[u8]) -> u32 {
        let id = self.interests.insert(Interest::new(pattern)) as u32;
        if token::has_wildcard(pattern) {
            self.interests[id as usize].trie_node = Some(self.trie.insert(pattern, id));
        }
        let Self {
            hash: state,
            interests,
            by_pattern,
            ..
        } = self;
        by_pattern.insert_unique(hashed, id, |id| {
            hash(state, &interests[*id as usize].pattern)
        });
        id
    }

    /// Removes a member. The last of its kind takes its place and is returned, so that the caller
    /// can correct where it stands.
    pub fn remove(&mut self, place: Place, queue: Option<QueueId>) -> Option<u32> {
        let id = place.interest.0;
        let interest = &mut self.interests[id as usize];
        let moved = interest.remove(queue, place.index);
        if interest.is_empty() {
            let interest = self.interests.remove(id as usize);
            if let Some(node) = interest.trie_node {
                self.trie.remove(node, id);
            }
            let hashed = hash(&self.hash, &interest.pattern);
            match self.by_pattern.find_entry(hashed, |other| *other == id) {
                Ok(entry) => drop(entry.remove()),
                Err(_) => unreachable!("every pattern stands in the table"),
            }
        }
        if let Some(queue) = queue {
            self.names.release(queue);
        }
        moved
    }

    pub fn set_weight(&mut self, place: Place, queue: QueueId, weight: u32) {
        self.interests[place.interest.0 as usize].set_weight(queue, place.index, weight);
    }

    #[inline(always)]
    pub fn has_wildcards(&self) -> bool {
        !self.trie.is_empty()
    }

    /// The subscriptions to exactly this subject.
    #[inline(always)]
    pub fn literal(&self, subject: &[u8]) -> Option<InterestId> {
        let id = self.find(hash(&self.hash, subject), subject)?;
        // A subject that looks like a pattern is found by the trie.
        self.interests[id as usize]
            .trie_node
            .is_none()
            .then_some(InterestId(id))
    }

    /// Every pattern that matches, each once; `out` is cleared first.
    #[inline]
    pub fn matches(&mut self, subject: &[u8], out: &mut Vec<InterestId>) {
        out.clear();
        out.extend(self.literal(subject));
        if self.has_wildcards() {
            self.trie.matches(subject, |id| out.push(InterestId(id)));
        }
    }

    #[inline(always)]
    pub fn interest(&self, id: InterestId) -> &Interest {
        &self.interests[id.0 as usize]
    }

    pub fn pattern(&self, id: InterestId) -> &[u8] {
        &self.interests[id.0 as usize].pattern
    }

    pub fn queue_name(&self, id: QueueId) -> &[u8] {
        self.names.get(id)
    }

    pub fn queue_id(&self, name: &[u8]) -> Option<QueueId> {
        self.names.find(name)
    }

    /// Number of different patterns.
    pub fn pattern_count(&self) -> usize {
        self.interests.len()
    }
}

/// The table against a list and the naive matcher.
#[doc(hidden)]
pub mod model {
    use super::*;
    use std::collections::HashSet;

    const TOKENS: [&[u8]; 8] = [b"a", b"b", b"c", b"*", b">", b"", b"a*", b"long.er"];
    /// As wide as the words that a hash takes and around that, and what is like another token.
    const WIDE: [&[u8]; 8] = [
        b"12345678",
        b"123456789",
        b"1234567890123456",
        b"12345678901234567",
        b"longe",
        b"aa",
        b">>",
        &[b'x'; 70],
    ];
    /// Levels of a deep subject.
    const DEEP: usize = 40;
    /// With more of them each lookup takes the longer, and there are fewer scripts in an hour.
    const ENTRIES_MAX: usize = 200;

    struct Entry {
        pattern: Vec<u8>,
        queue: Option<Vec<u8>>,
        weight: u32,
        place: Place,
        queue_id: Option<QueueId>,
    }

    /// The bytes that are not read yet; none are zeros.
    struct Script<'a>(std::slice::Iter<'a, u8>);

    impl Script<'_> {
        fn byte(&mut self) -> u8 {
            self.0.next().copied().unwrap_or(0)
        }

        fn token(&mut self) -> &'static [u8] {
            let byte = self.byte();
            let tokens = if byte < 192 { TOKENS } else { WIDE };
            tokens[usize::from(byte) % tokens.len()]
        }

        fn subject(&mut self) -> Vec<u8> {
            let parts: Vec<&[u8]> = match self.byte() {
                240.. => {
                    let two = [self.token(), self.token()];
                    two.into_iter().cycle().take(DEEP).collect()
                }
                count => (0..count % 4 + 1).map(|_| self.token()).collect(),
            };
            parts.join(&b'.')
        }
    }

    struct Model {
        sublist: Sublist,
        entries: Vec<Option<Entry>>,
    }

    /// Reads `data` as a script of insertions, removals, changes of weights and lookups over a small alphabet.
    pub fn check(data: &[u8]) {
        let mut script = Script(data.iter());
        let mut model = Model {
            sublist: Sublist::new(data.len() as u64),
            entries: Vec::new(),
        };
        while let Some(op) = script.0.next().copied() {
            match op % 4 {
                // Children of one node.
                0 if op >= 252 => {
                    for number in 0..script.byte() {
                        let pattern = format!("n.{number}.*");
                        model.insert(pattern.into_bytes(), None, 1);
                    }
                }
                0 | 1 => {
                    let pattern = script.subject();
                    let queue = match op / 4 % 4 {
                        0 | 1 => None,
                        2 => Some(vec![b'q', op / 64]),
                        // More of them than are searched one by one.
                        _ => Some(vec![b'r', script.byte() % 24]),
                    };
                    model.insert(pattern, queue, u32::from(op / 16 % 4) + 1);
                }
                2 => {
                    let index = usize::from(op / 4) * 7 % model.entries.len().max(1);
                    match op {
                        224.. => model.set_weight(index, u32::from(script.byte() % 8) + 1),
                        _ => model.remove(index),
                    }
                }
                _ => model.look_up(&script.subject()),
            }
        }
        model.end();
    }

    impl Model {
        fn insert(&mut self, pattern: Vec<u8>, queue: Option<Vec<u8>>, weight: u32) {
            if !token::is_valid_subscription(&pattern) || self.entries.len() == ENTRIES_MAX {
                return;
            }
            let member = self.entries.len() as u32;
            let (place, queue_id) = self
                .sublist
                .insert(&pattern, queue.as_deref(), member, weight);
            self.entries.push(Some(Entry {
                pattern,
                queue,
                weight,
                place,
                queue_id,
            }));
        }

        fn set_weight(&mut self, index: usize, weight: u32) {
            if let Some(Some(entry)) = self.entries.get_mut(index)
                && let Some(queue) = entry.queue_id
            {
                entry.weight = weight;
                self.sublist.set_weight(entry.place, queue, weight);
            }
        }

        fn remove(&mut self, index: usize) {
            let Some(entry) = self.entries.get_mut(index).and_then(Option::take) else {
                return;
            };
            if let Some(moved) = self.sublist.remove(entry.place, entry.queue_id) {
                let moved = self.entries[moved as usize]
                    .as_mut()
                    .expect("still a member");
                assert_eq!(moved.place.interest, entry.place.interest);
                moved.place.index = entry.place.index;
            }
        }

        fn look_up(&mut self, subject: &[u8]) {
            let mut found = Vec::new();
            self.sublist.matches(subject, &mut found);
            let (mut plain, mut queued) = (Vec::<u32>::new(), Vec::new());
            for id in &found {
                let interest = self.sublist.interest(*id);
                plain.extend(interest.plain());
                for group in interest.groups() {
                    let name = self.sublist.queue_name(group.id());
                    assert_eq!(interest.group(group.id()).map(Group::id), Some(group.id()));
                    assert_eq!(self.sublist.queue_id(name), Some(group.id()));
                    self.check_weights(group);
                    let members = (0..group.len()).filter_map(|index| group.member(index));
                    queued.extend(members.map(|member| (name.to_vec(), member)));
                }
            }
            let (mut plain_expected, mut queued_expected) = (Vec::new(), Vec::new());
            for (index, entry) in self.entries.iter().enumerate() {
                let Some(entry) = entry else { continue };
                if token::pattern_matches(&entry.pattern, subject) {
                    match &entry.queue {
                        None => plain_expected.push(index as u32),
                        Some(queue) => queued_expected.push((queue.clone(), index as u32)),
                    }
                }
            }
            plain.sort_unstable();
            queued.sort_unstable();
            queued_expected.sort_unstable();
            assert_eq!(plain, plain_expected, "{}", subject.escape_ascii());
            assert_eq!(queued, queued_expected, "{}", subject.escape_ascii());
        }

        /// Each member has as many picks as subscriptions, one after the other.
        fn check_weights(&self, group: &Group) {
            let mut sum = 0;
            for index in 0..group.len() {
                let member = group.member(index).expect("below the length");
                let entry = self.entries[member as usize].as_ref().expect("a member");
                assert_eq!(group.weight(index), Some(entry.weight));
                let first = sum;
                sum += u64::from(entry.weight);
                for mut pick in [first, sum - 1] {
                    assert_eq!(group.at_weight(&mut pick), Some(index));
                }
            }
            assert_eq!(group.total_weight(), sum);
            let mut beyond = sum + 3;
            assert_eq!((group.at_weight(&mut beyond), beyond), (None, 3));
        }

        /// Everybody goes, and nothing stays behind.
        fn end(mut self) {
            let patterns = self.entries.iter().flatten().map(|entry| &entry.pattern);
            let patterns: HashSet<_> = patterns.collect();
            assert_eq!(self.sublist.pattern_count(), patterns.len());
            for index in 0..self.entries.len() {
                self.remove(index);
            }
            let Sublist {
                by_pattern,
                interests,
                trie,
                names,
                ..
            } = &self.sublist;
            assert!(by_pattern.is_empty() && interests.is_empty());
            assert!(names.is_empty() && !self.sublist.has_wildcards() && trie.is_bare());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn behaves_as_the_naive_list(data in proptest::collection::vec(any::<u8>(), 0..600)) {
            model::check(&data);
        }
    }

    #[test]
    fn records_stay_small() {
        assert!(
            size_of::<Option<Interest>>() <= 48,
            "{}",
            size_of::<Interest>()
        );
    }

    #[test]
    fn churn_leaves_no_nodes_behind() {
        let mut sublist = Sublist::new(1);
        for round in 0..1000 {
            let pattern = format!("a.{round}.*.b.>");
            let (place, queue) = sublist.insert(pattern.as_bytes(), Some(b"q"), 1, 1);
            sublist.remove(place, queue);
        }
        assert!(sublist.trie.is_bare() && sublist.names.is_empty());
    }

    #[test]
    fn deep_subjects_and_patterns_end_in_reasonable_time() {
        let mut sublist = Sublist::new(1);
        let deep = vec!["*"; 2000].join(".");
        for cut in (1..deep.len()).step_by(20) {
            sublist.insert(format!("{}.>", &deep[..cut | 1]).as_bytes(), None, 0, 1);
        }
        let mut found = Vec::new();
        sublist.matches(vec!["a"; 3000].join(".").as_bytes(), &mut found);
        assert_eq!(found.len(), (1..deep.len()).step_by(20).count());
    }

    #[test]
    fn many_groups_and_members_at_one_pattern() {
        let mut sublist = Sublist::new(1);
        let mut places: Vec<_> = (0..20_000u32)
            .map(|i| sublist.insert(b"x", Some(format!("q{i}").as_bytes()), i, 1))
            .collect();
        let plain: Vec<_> = (0..20_000u32)
            .map(|i| sublist.insert(b"x", None, i, 1))
            .collect();
        for (place, queue) in places.drain(..) {
            assert_eq!(sublist.remove(place, queue), None);
        }
        // From the end, so that nobody moves.
        for (place, queue) in plain.into_iter().rev() {
            assert_eq!(sublist.remove(place, queue), None);
        }
        assert_eq!(sublist.pattern_count(), 0);
    }
}
