//! purged.dat: how far a channel was purged; and given.dat, of the same form: which numbers were given that damage took.
//!
//! Messages go from the front of a channel by purging alone without a rule that would remove them again
//! at the next start, so it is written down: one untyped record that holds the number of the first message
//! left, u64. It is complete and on the disk before it takes its name. The original ignores the file.

use super::damage::Damage;
use super::disk::Folder;
use super::records::{Crc, VERSION, payload_of, put_untyped};
use super::{io_error, sync_error};
use crate::stan::store::{Seq, StoreError};
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// A number that must not be forgotten.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// The first message that was left.
    Purged,
    /// The last one that somebody was given and damage took with the files: none of up to there is given again.
    Given,
}

impl Mark {
    /// The file, and the same while it is written.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Purged => ("purged.dat", "purged.new"),
            Self::Given => ("given.dat", "given.new"),
        }
    }
}

/// 0 when there is none.
pub fn read(folder: &Path, mark: Mark, crc: &Crc, damage: &Damage) -> Result<Seq, StoreError> {
    let path = folder.join(mark.names().0);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(io_error("reading", &path, error)),
    };
    let record = bytes.strip_prefix(&VERSION);
    let payload = record.and_then(|record| payload_of(record, crc));
    if let Some(first) = payload.and_then(|payload| payload.try_into().ok()) {
        return Ok(Seq::from_le_bytes(first));
    }
    // Serving what was purged is the lesser harm beside refusing what was not.
    let why = match mark {
        Mark::Purged => "what was purged may be back: purge it again",
        Mark::Given => "numbers may be given again",
    };
    damage.found(&path, VERSION.len() as u64, why)?;
    Ok(0)
}

/// Durable when it returns.
pub fn write(folder: &Path, mark: Mark, crc: &Crc, first: Seq) -> Result<(), StoreError> {
    let (name, temporary) = mark.names();
    let (path, temporary) = (folder.join(name), folder.join(temporary));
    let mut bytes = VERSION.to_vec();
    put_untyped(&mut bytes, crc, &first.to_le_bytes());
    let make = || {
        let names = Folder::open(folder)?;
        let mut file = File::create(&temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, &path)?;
        Ok(names)
    };
    let names = make().map_err(|error| io_error("writing", &path, error))?;
    let synced = names.sync();
    synced.map_err(|error| sync_error("syncing", folder, error))
}
