//! Options: one table for file, flags, help and docs. May import util and subject.
