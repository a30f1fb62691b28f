//! Subjects: validity, and matching of subscriptions. May import util. Must not know clients or the wire.
