//! The NATS text protocol as bytes: parser, encoder, JSON bodies, error texts. May import util. Must not know sockets, clocks or clients.
