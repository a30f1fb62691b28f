//! Monitoring: models and rendering of snapshots.
