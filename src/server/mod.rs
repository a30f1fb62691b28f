//! Glue between ring and broker.
