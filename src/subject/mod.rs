//! Subjects: what is valid, what matches, and the table of everybody's interest.
//!
//! May import util. Must not know clients or the wire: members of the table are plain numbers.

pub mod interest;
pub mod names;
pub mod set;
pub mod sublist;
pub mod token;
mod trie;
