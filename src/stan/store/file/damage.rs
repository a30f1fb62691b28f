//! What is done about damage that the start finds: it is told, with file, place and channel; a copy of the bytes is kept
//! beside the file; and the start goes on, or is refused if the operator wants it so.

use super::disk::File;
use crate::stan::store::{Seq, StoreError};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const PIECE_BYTES: u64 = 256 << 10;
/// Of one place.
const COPIES_MAX: u32 = 10;

/// How damage is dealt with, and whose it is.
#[derive(Clone, Copy)]
pub struct Damage<'a> {
    /// Refuse instead of going on.
    pub strict: bool,
    /// None: of the whole store.
    pub channel: Option<&'a str>,
}

/// Messages that were found damaged when somebody wanted them.
#[derive(Default)]
pub struct Damaged {
    numbers: BTreeSet<Seq>,
    /// How many, of each slice.
    of_slices: BTreeMap<u64, u64>,
}

/// Of one slice, messages that are told one by one; then only how many they are, from time to time.
const TOLD_ONE_BY_ONE: u64 = 10;

impl Damaged {
    /// Tells of one, if it is new.
    pub fn tell(&mut self, slice: u64, seq: Seq, error: &StoreError) {
        if let Some(line) = self.note(slice, seq, error) {
            log::error!("STREAM: {line}");
        }
    }

    fn note(&mut self, slice: u64, seq: Seq, error: &StoreError) -> Option<String> {
        if !self.numbers.insert(seq) {
            return None;
        }
        let count = self.of_slices.entry(slice).or_default();
        *count += 1;
        let count = *count;
        let is_round = count == 10u64.pow(count.ilog10());
        match count {
            0..=TOLD_ONE_BY_ONE => Some(format!("{error}; it will not be served")),
            _ if is_round => Some(format!(
                "{error}; it will not be served, nor {} others of that file so far",
                count - 1
            )),
            _ => None,
        }
    }
}

impl Damage<'_> {
    /// Tells of damage that a crash does not explain.
    pub fn found(
        &self,
        path: &Path,
        offset: u64,
        why: impl Into<String>,
    ) -> Result<(), StoreError> {
        let why = match self.channel {
            Some(channel) => format!("channel {channel:?}: {}", why.into()),
            None => why.into(),
        };
        let error = StoreError::Damaged {
            path: path.to_owned(),
            offset,
            why,
        };
        if self.strict {
            return Err(error);
        }
        log::error!("STREAM: {error}");
        Ok(())
    }

    /// The same, for bytes that will be cut off, written over or left out: a copy of them is kept.
    pub fn found_bytes(
        &self,
        file: &File,
        path: &Path,
        (from, to): (u64, u64),
        why: impl Into<String>,
    ) -> Result<(), StoreError> {
        self.found(path, from, why)?;
        keep_copy(file, path, from, to);
        Ok(())
    }
}

/// Keeps these bytes in a file beside, unless that was done before. Going on is worth more than the copy, so
/// that it cannot be made is only told.
pub fn keep_copy(file: &File, path: &Path, from: u64, to: u64) {
    let named = |more: String| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".damaged-{from}{more}"));
        PathBuf::from(name)
    };
    let mut beside = named(String::new());
    // The same place of a file that is used again may be damaged again.
    let mut others = (2..COPIES_MAX).map(|number| named(format!(".{number}")));
    while beside.exists() {
        // Where that cannot be known there are enough copies.
        if is_copy(file, &beside, from, to).unwrap_or(true) {
            return;
        }
        let Some(next) = others.next() else {
            return log::warn!("STREAM: no more copies of bytes from {from} on are kept");
        };
        beside = next;
    }
    match copy(file, &beside, from, to) {
        Ok(()) => log::warn!(
            "STREAM: bytes {from} to {to} of it are kept in {}",
            beside.display()
        ),
        Err(error) => {
            let _ = std::fs::remove_file(&beside);
            log::error!(
                "STREAM: no copy of bytes {from} to {to} of {} can be kept: {}: {error}",
                path.display(),
                beside.display()
            );
        }
    }
}

fn copy(file: &File, beside: &Path, from: u64, to: u64) -> io::Result<()> {
    let target = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(beside)?;
    let mut piece = Vec::new();
    let mut at = from;
    while at < to {
        piece.resize((to - at).min(PIECE_BYTES) as usize, 0);
        file.read_exact_at(&mut piece, at)?;
        target.write_all_at(&piece, at - from)?;
        at += piece.len() as u64;
    }
    target.sync_all()
}

fn is_copy(file: &File, beside: &Path, from: u64, to: u64) -> io::Result<bool> {
    let copy = std::fs::File::open(beside)?;
    if copy.metadata()?.len() != to - from {
        return Ok(false);
    }
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let mut at = from;
    while at < to {
        let piece = (to - at).min(PIECE_BYTES) as usize;
        ours.resize(piece, 0);
        theirs.resize(piece, 0);
        file.read_exact_at(&mut ours, at)?;
        copy.read_exact_at(&mut theirs, at - from)?;
        if ours != theirs {
            return Ok(false);
        }
        at += piece as u64;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_damaged_messages_are_few_lines() {
        let mut damaged = Damaged::default();
        let error = StoreError::Refused("bad".into());
        let mut lines = Vec::new();
        for seq in (1..=500_000).chain(1..=10) {
            lines.extend(damaged.note(1, seq, &error));
        }
        assert_eq!(lines.len(), 14);
        assert_eq!(lines[0], "bad; it will not be served");
        let last = "bad; it will not be served, nor 99999 others of that file so far";
        assert_eq!(lines[13], last);
        // Those of another file are told again.
        assert!(damaged.note(2, 1_000_000, &error).is_some());
    }
}
