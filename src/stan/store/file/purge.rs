//! purged.dat: how far a channel was purged.
//!
//! Messages go from the front of a channel by purging alone without a rule that would remove them again
//! at the next start, so it is written down: one untyped record that holds the number of the first message
//! left, u64. It is complete and on the disk before it takes its name. The original ignores the file.

use super::damage::Damage;
use super::disk::sync_folder;
use super::io_error;
use super::records::{Crc, VERSION, payload_of, put_untyped};
use crate::stan::store::{Seq, StoreError};
use std::fs::File;
use std::io::Write;
use std::path::Path;

const NAME: &str = "purged.dat";

/// The first message that was left; 0 when the channel was never purged.
pub fn read(folder: &Path, crc: &Crc, damage: &Damage) -> Result<Seq, StoreError> {
    let path = folder.join(NAME);
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
    damage.found(
        &path,
        VERSION.len() as u64,
        "what was purged may be back: purge it again",
    )?;
    Ok(0)
}

/// Durable when it returns.
pub fn write(folder: &Path, crc: &Crc, first: Seq) -> Result<(), StoreError> {
    let (path, temporary) = (folder.join(NAME), folder.join("purged.new"));
    let mut bytes = VERSION.to_vec();
    put_untyped(&mut bytes, crc, &first.to_le_bytes());
    let make = || {
        let mut file = File::create(&temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, &path)?;
        sync_folder(folder)
    };
    make().map_err(|error| io_error("writing", &path, error))
}
