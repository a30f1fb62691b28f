//! What the engine asks of the NATS connection it is served through.

/// Which of the engine's subscriptions a message came in on. Numbers above `FIRST_ACK` are ack inboxes
/// of their own, from data of other versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Inlet(pub u32);

impl Inlet {
    pub const CONNECT: Self = Self(1);
    pub const PUBLISH: Self = Self(2);
    pub const SUBSCRIBE: Self = Self(3);
    pub const UNSUBSCRIBE: Self = Self(4);
    pub const SUB_CLOSE: Self = Self(5);
    pub const CLOSE: Self = Self(6);
    pub const ACK: Self = Self(7);
    pub const PING: Self = Self(8);
    /// Answers to heartbeats and to probes.
    pub const ANSWER: Self = Self(9);
    pub const ADMIN: Self = Self(10);
    pub const FIRST_ACK: u32 = 100;
}

/// Everything is kept in order.
pub trait Outlet {
    fn publish(&mut self, subject: &str, reply: Option<&str>, payload: &[u8]);
    fn subscribe(&mut self, inlet: Inlet, subject: &str);
    fn unsubscribe(&mut self, inlet: Inlet);
    /// Deliveries had better wait; they are as many as subscribers let them be, so nothing else bounds them. Answers do not:
    /// while it is full nothing comes in that asks for one.
    fn is_full(&self) -> bool {
        false
    }
}
