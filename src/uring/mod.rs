//! The kernel interface: ring, registered memory, completions. May import util. Knows no NATS.
