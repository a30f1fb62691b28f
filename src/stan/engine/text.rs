//! Error texts of the original, which client libraries show.

pub const INVALID_CONNECT: &str = "stan: invalid connection request";
pub const INVALID_CLIENT_ID: &str =
    "stan: invalid clientID: only alphanumeric and `-` or `_` characters allowed";
pub const ID_IN_USE: &str = "stan: clientID already registered";
pub const INVALID_CLOSE: &str = "stan: invalid close request";
pub const UNKNOWN_CLIENT: &str = "stan: unknown clientID";
pub const INVALID_SUBSCRIBE: &str = "stan: invalid subscription request";
pub const CLIENT_MISSING: &str = "stan: clientID missing";
pub const INVALID_ACK_WAIT: &str = "stan: invalid ack wait time, should be >= 1s";
pub const INVALID_IN_FLIGHT: &str = "stan: invalid MaxInflight, should be >= 1";
pub const INVALID_START: &str = "stan: invalid start position";
pub const INVALID_SUBJECT: &str = "stan: invalid subject";
pub const INVALID_DURABLE_NAME: &str =
    "stan: durable name of a durable queue subscriber can't contain the character ':'";
pub const DURABLE_IN_USE: &str = "stan: duplicate durable registration";
pub const TOO_MANY_SUBS: &str = "too many subscriptions per channel";
pub const INVALID_UNSUBSCRIBE: &str = "stan: invalid unsubscribe request";
pub const INVALID_SUB: &str = "stan: invalid subscription";
pub const REPLACED: &str = "client has been replaced or is no longer registered";
