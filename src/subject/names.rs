//! Names of queue groups, each kept once and known by a number, so that groups of several patterns
//! are merged by comparing numbers.

use foldhash::fast::FixedState;
use hashbrown::HashTable;
use slab::Slab;
use std::hash::{BuildHasher, Hasher};
use std::num::NonZeroU32;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct QueueId(NonZeroU32);

impl QueueId {
    fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

#[derive(Debug)]
pub struct Names {
    hash: FixedState,
    by_name: HashTable<QueueId>,
    names: Slab<(Box<[u8]>, u32)>,
}

impl Names {
    pub fn new(seed: u64) -> Self {
        Self {
            hash: FixedState::with_seed(seed),
            by_name: HashTable::new(),
            names: Slab::new(),
        }
    }

    fn hash(&self, name: &[u8]) -> u64 {
        let mut hasher = self.hash.build_hasher();
        hasher.write(name);
        hasher.finish()
    }

    pub fn find(&self, name: &[u8]) -> Option<QueueId> {
        self.by_name
            .find(self.hash(name), |id| &*self.names[id.index()].0 == name)
            .copied()
    }

    pub fn get(&self, id: QueueId) -> &[u8] {
        &self.names[id.index()].0
    }

    /// The number of a name, with one more user.
    pub fn acquire(&mut self, name: &[u8]) -> QueueId {
        if let Some(id) = self.find(name) {
            self.names[id.index()].1 += 1;
            return id;
        }
        let index = self.names.insert((name.into(), 1));
        let id = QueueId(NonZeroU32::new(index as u32 + 1).expect("one more than an index"));
        let (hash, state, names) = (self.hash(name), &self.hash, &self.names);
        self.by_name.insert_unique(hash, id, |id| {
            let mut hasher = state.build_hasher();
            hasher.write(&names[id.index()].0);
            hasher.finish()
        });
        id
    }

    /// One user less; the last one takes the name along.
    pub fn release(&mut self, id: QueueId) {
        let users = &mut self.names[id.index()].1;
        *users -= 1;
        if *users == 0 {
            let hash = self.hash(self.get(id));
            match self.by_name.find_entry(hash, |other| *other == id) {
                Ok(entry) => drop(entry.remove()),
                Err(_) => unreachable!("every name stands in the table"),
            }
            self.names.remove(id.index());
        }
    }

    pub fn len(&self) -> usize {
        self.names.len()
    }

    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}
