//! The channels of a store, by their ids. A deleted one leaves an empty place: nobody else gets its id, which commits under
//! way and completions may still name.

use super::ChannelId;

pub struct Channels<Channel>(Vec<Option<Box<Channel>>>);

impl<Channel> Default for Channels<Channel> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<Channel> Channels<Channel> {
    pub fn push(&mut self, channel: Channel) -> ChannelId {
        self.0.push(Some(Box::new(channel)));
        self.0.len() as ChannelId - 1
    }

    /// None: it was deleted.
    pub fn get(&self, id: ChannelId) -> Option<&Channel> {
        self.0[id as usize].as_deref()
    }

    pub fn get_mut(&mut self, id: ChannelId) -> Option<&mut Channel> {
        self.0[id as usize].as_deref_mut()
    }

    /// One that is there for certain.
    pub fn at(&self, id: ChannelId) -> &Channel {
        self.get(id).expect("the channel was not deleted")
    }

    pub fn at_mut(&mut self, id: ChannelId) -> &mut Channel {
        self.get_mut(id).expect("the channel was not deleted")
    }

    /// With everything that is kept of it in memory.
    pub fn remove(&mut self, id: ChannelId) {
        self.0[id as usize] = None;
    }

    /// All there ever were.
    pub fn ids(&self) -> std::ops::Range<ChannelId> {
        0..self.0.len() as ChannelId
    }

    pub fn iter(&self) -> impl Iterator<Item = &Channel> {
        self.0.iter().filter_map(Option::as_deref)
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Channel> {
        self.0.iter_mut().filter_map(Option::as_deref_mut)
    }
}
