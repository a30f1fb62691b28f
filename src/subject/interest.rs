//! The members at one pattern: plain ones, and queue groups.

use super::names::QueueId;
use std::collections::HashMap;

/// Up to this many groups are searched one by one.
const GROUPS_SEARCHED: usize = 8;

/// Most subjects are short, and an allocation costs 32 bytes and a miss of the cache.
const PATTERN_BYTES_INLINE: usize = 22;

#[derive(Debug)]
pub(super) enum Pattern {
    Short {
        len: u8,
        bytes: [u8; PATTERN_BYTES_INLINE],
    },
    Long(Box<[u8]>),
}

impl From<&[u8]> for Pattern {
    fn from(pattern: &[u8]) -> Self {
        let mut bytes = [0; PATTERN_BYTES_INLINE];
        match bytes.get_mut(..pattern.len()) {
            None => Self::Long(pattern.into()),
            Some(room) => {
                room.copy_from_slice(pattern);
                let len = pattern.len() as u8;
                Self::Short { len, bytes }
            }
        }
    }
}

impl std::ops::Deref for Pattern {
    type Target = [u8];

    #[inline(always)]
    fn deref(&self) -> &[u8] {
        match self {
            Self::Short { len, bytes } => &bytes[..usize::from(*len)],
            Self::Long(bytes) => bytes,
        }
    }
}

#[derive(Debug)]
pub struct Interest {
    pub(super) pattern: Pattern,
    members: Members,
    /// The trie node of a wildcard pattern.
    pub(super) trie_node: Option<u32>,
}

/// Most patterns have one plain member, kept without memory of its own.
#[derive(Debug)]
enum Members {
    One(u32),
    Many(Box<Many>),
}

#[derive(Debug, Default)]
struct Many {
    plain: Vec<u32>,
    groups: Vec<Group>,
    /// Index of each group, kept once there are more than a few.
    index: HashMap<QueueId, u32>,
}

#[derive(Debug)]
pub struct Group {
    id: QueueId,
    members: Vec<Member>,
    total_weight: u64,
}

#[derive(Clone, Copy, Debug)]
struct Member {
    id: u32,
    weight: u32,
}

impl Group {
    pub fn id(&self) -> QueueId {
        self.id
    }

    pub fn len(&self) -> usize {
        self.members.len()
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub fn member(&self, index: usize) -> Option<u32> {
        self.members.get(index).map(|member| member.id)
    }

    /// Number of subscriptions behind one member.
    pub fn weight(&self, index: usize) -> Option<u32> {
        self.members.get(index).map(|member| member.weight)
    }

    /// Number of subscriptions behind the members.
    pub fn total_weight(&self) -> u64 {
        self.total_weight
    }

    /// The member that the `pick`-th subscription belongs to; when there are not that many, `pick`
    /// is lowered by those there are.
    #[inline]
    pub fn at_weight(&self, pick: &mut u64) -> Option<usize> {
        if *pick >= self.total_weight {
            *pick -= self.total_weight;
            return None;
        }
        if self.total_weight == self.members.len() as u64 {
            return Some(*pick as usize);
        }
        self.members
            .iter()
            .position(|member| match pick.checked_sub(u64::from(member.weight)) {
                None => true,
                Some(rest) => {
                    *pick = rest;
                    false
                }
            })
    }
}

impl Interest {
    pub(super) fn new(pattern: &[u8]) -> Self {
        Self {
            pattern: pattern.into(),
            members: Members::Many(Box::default()),
            trie_node: None,
        }
    }

    #[inline(always)]
    pub fn plain(&self) -> &[u32] {
        match &self.members {
            Members::One(member) => std::slice::from_ref(member),
            Members::Many(many) => &many.plain,
        }
    }

    #[inline(always)]
    pub fn groups(&self) -> &[Group] {
        match &self.members {
            Members::One(_) => &[],
            Members::Many(many) => &many.groups,
        }
    }

    #[inline]
    pub fn group(&self, id: QueueId) -> Option<&Group> {
        match &self.members {
            Members::One(_) => None,
            Members::Many(many) => many.position(id).map(|index| &many.groups[index]),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.plain().is_empty() && self.groups().is_empty()
    }

    fn many(&mut self) -> &mut Many {
        if let Members::One(member) = self.members {
            self.members = Members::Many(Box::new(Many {
                plain: vec![member],
                ..Many::default()
            }));
        }
        match &mut self.members {
            Members::Many(many) => many,
            Members::One(_) => unreachable!("made many just now"),
        }
    }

    /// Returns the index of the new member.
    pub(super) fn insert(&mut self, queue: Option<QueueId>, member: u32, weight: u32) -> u32 {
        let Some(queue) = queue else {
            if self.is_empty() {
                self.members = Members::One(member);
                return 0;
            }
            let plain = &mut self.many().plain;
            plain.push(member);
            return plain.len() as u32 - 1;
        };
        let many = self.many();
        let index = many
            .position(queue)
            .unwrap_or_else(|| many.add_group(queue));
        let group = &mut many.groups[index];
        group.members.push(Member { id: member, weight });
        group.total_weight += u64::from(weight);
        group.members.len() as u32 - 1
    }

    /// Removes the member at `index`; the last one takes its place and is returned.
    pub(super) fn remove(&mut self, queue: Option<QueueId>, index: u32) -> Option<u32> {
        let index = index as usize;
        if let Members::One(_) = self.members {
            assert!(queue.is_none() && index == 0, "a member that is not here");
            self.members = Members::Many(Box::default());
            return None;
        }
        let many = self.many();
        let moved = match queue {
            None => {
                many.plain.swap_remove(index);
                many.plain.get(index).copied()
            }
            Some(queue) => {
                let at = many.position(queue).expect("the group of a member");
                let group = &mut many.groups[at];
                group.total_weight -= u64::from(group.members.swap_remove(index).weight);
                let moved = group.members.get(index).map(|member| member.id);
                if group.members.is_empty() {
                    many.remove_group(at);
                }
                moved
            }
        };
        if let ([member], []) = (&*many.plain, &*many.groups) {
            self.members = Members::One(*member);
        }
        moved
    }

    pub(super) fn set_weight(&mut self, queue: QueueId, index: u32, weight: u32) {
        let many = self.many();
        let at = many.position(queue).expect("the group of a member");
        let group = &mut many.groups[at];
        let member = &mut group.members[index as usize];
        group.total_weight = group.total_weight - u64::from(member.weight) + u64::from(weight);
        member.weight = weight;
    }
}

impl Many {
    #[inline]
    fn position(&self, id: QueueId) -> Option<usize> {
        if self.groups.len() <= GROUPS_SEARCHED {
            self.groups.iter().position(|group| group.id == id)
        } else {
            self.index.get(&id).map(|index| *index as usize)
        }
    }

    fn add_group(&mut self, id: QueueId) -> usize {
        self.groups.push(Group {
            id,
            members: Vec::new(),
            total_weight: 0,
        });
        let count = self.groups.len();
        if count == GROUPS_SEARCHED + 1 {
            self.index = self
                .groups
                .iter()
                .enumerate()
                .map(|(i, group)| (group.id, i as u32))
                .collect();
        } else if count > GROUPS_SEARCHED {
            self.index.insert(id, count as u32 - 1);
        }
        count - 1
    }

    fn remove_group(&mut self, at: usize) {
        let gone = self.groups.swap_remove(at);
        if self.groups.len() <= GROUPS_SEARCHED {
            self.index = HashMap::new();
        } else {
            self.index.remove(&gone.id);
            if let Some(moved) = self.groups.get(at) {
                self.index.insert(moved.id, at as u32);
            }
        }
    }
}
