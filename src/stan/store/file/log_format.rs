//! Batches of the shared log: what one commit wrote, in blocks of 4 KiB.
//!
//! ```text
//!   batch:  magic 4 | crc u32 of all that follows | generation u64 | number u64 | bytes of the entries u32 | 0 u32 | entries | zeros
//!   entry:  kind u8 | bytes of the name u8 | a u64 | b u64 | bytes of the content u32 | name | content
//!
//!   kind         name      a       b              content
//!   1 data       channel   slice   place in it    records of messages, as in msgs.N.dat
//!   2 end        channel   slice   its length     nothing: what was logged behind this place was taken back
//!   3 created    channel                          nothing
//!   4 sub        channel   type                   a record of subs.dat
//!   5 client               type                   a record of clients.dat
//! ```
//!
//! A log is used again from its beginning: batches belong together when they have the generation of the first one
//! and follow each other by number.

pub const BLOCK_BYTES: usize = 4096;
const MAGIC: [u8; 4] = *b"MWL1";
pub const BATCH_HEADER_BYTES: usize = 32;
pub const ENTRY_HEADER_BYTES: usize = 22;

const DATA: u8 = 1;
const END: u8 = 2;
const CREATED: u8 = 3;
const SUB: u8 = 4;
const CLIENT: u8 = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    Data {
        channel: &'a str,
        slice: u64,
        at: u64,
        bytes: &'a [u8],
    },
    End {
        channel: &'a str,
        slice: u64,
        len: u64,
    },
    Created {
        channel: &'a str,
    },
    Sub {
        channel: &'a str,
        kind: u8,
        payload: &'a [u8],
    },
    Client {
        kind: u8,
        payload: &'a [u8],
    },
}

impl Entry<'_> {
    pub fn put(&self, out: &mut Vec<u8>) {
        let (kind, name, a, b, content): (u8, &str, u64, u64, &[u8]) = match *self {
            Entry::Data {
                channel,
                slice,
                at,
                bytes,
            } => (DATA, channel, slice, at, bytes),
            Entry::End {
                channel,
                slice,
                len,
            } => (END, channel, slice, len, &[]),
            Entry::Created { channel } => (CREATED, channel, 0, 0, &[]),
            Entry::Sub {
                channel,
                kind,
                payload,
            } => (SUB, channel, u64::from(kind), 0, payload),
            Entry::Client { kind, payload } => (CLIENT, "", u64::from(kind), 0, payload),
        };
        let name_bytes = u8::try_from(name.len()).expect("a channel's name is a file name");
        out.push(kind);
        out.push(name_bytes);
        out.extend_from_slice(&a.to_le_bytes());
        out.extend_from_slice(&b.to_le_bytes());
        out.extend_from_slice(&(content.len() as u32).to_le_bytes());
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(content);
    }

    /// The channel it is about.
    pub fn channel(&self) -> Option<&str> {
        match self {
            Self::Data { channel, .. }
            | Self::End { channel, .. }
            | Self::Created { channel }
            | Self::Sub { channel, .. } => Some(channel),
            Self::Client { .. } => None,
        }
    }

    /// Takes the first entry off; None where there is none that this version knows.
    fn take<'a>(rest: &mut &'a [u8]) -> Option<Entry<'a>> {
        let (&[kind, name_bytes], after) = rest.split_first_chunk()?;
        let (a, after) = after.split_first_chunk()?;
        let (b, after) = after.split_first_chunk()?;
        let (bytes, after) = after.split_first_chunk()?;
        let (a, b) = (u64::from_le_bytes(*a), u64::from_le_bytes(*b));
        let (name, after) = after.split_at_checked(usize::from(name_bytes))?;
        let (content, after) = after.split_at_checked(u32::from_le_bytes(*bytes) as usize)?;
        let channel = std::str::from_utf8(name).ok()?;
        let typed = u8::try_from(a);
        let entry = match kind {
            DATA => Entry::Data {
                channel,
                slice: a,
                at: b,
                bytes: content,
            },
            END => Entry::End {
                channel,
                slice: a,
                len: b,
            },
            CREATED => Entry::Created { channel },
            SUB => Entry::Sub {
                channel,
                kind: typed.ok()?,
                payload: content,
            },
            CLIENT => Entry::Client {
                kind: typed.ok()?,
                payload: content,
            },
            _ => return None,
        };
        *rest = after;
        Some(entry)
    }
}

/// What of these entries is not about this channel.
pub fn without(mut entries: &[u8], channel: &str) -> Vec<u8> {
    let mut kept = Vec::with_capacity(entries.len());
    while !entries.is_empty() {
        let all = entries;
        let entry = Entry::take(&mut entries).expect("we put it there");
        if entry.channel() != Some(channel) {
            kept.extend_from_slice(&all[..all.len() - entries.len()]);
        }
    }
    kept
}

/// Makes room for the header of a batch whose entries are to follow.
pub fn begin(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0; BATCH_HEADER_BYTES]);
}

/// Completes the batch that begins at `from`: its header, and zeros up to a whole block.
pub fn finish(out: &mut Vec<u8>, from: usize, generation: u64, number: u64) {
    let entries = out.len() - from - BATCH_HEADER_BYTES;
    let entries = u32::try_from(entries).expect("a batch is bounded");
    let header = &mut out[from..from + BATCH_HEADER_BYTES];
    header[..4].copy_from_slice(&MAGIC);
    header[8..16].copy_from_slice(&generation.to_le_bytes());
    header[16..24].copy_from_slice(&number.to_le_bytes());
    header[24..28].copy_from_slice(&entries.to_le_bytes());
    let crc = crc32fast::hash(&out[from + 8..]);
    out[from + 4..from + 8].copy_from_slice(&crc.to_le_bytes());
    let len = (out.len() - from).next_multiple_of(BLOCK_BYTES);
    out.resize(from + len, 0);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch<'a> {
    pub generation: u64,
    pub number: u64,
    entries: &'a [u8],
    /// Where another one may begin.
    pub next: usize,
}

/// What the first batch of a log says it is of, torn as it may be; None: the log is empty.
pub fn generation(log: &[u8]) -> Option<u64> {
    let header = log.first_chunk::<BATCH_HEADER_BYTES>()?;
    let generation = header[8..].first_chunk()?;
    (header[..4] == MAGIC).then(|| u64::from_le_bytes(*generation))
}

/// That of a log whose first batch is whole but for what it says of its generation; None: it is not.
pub fn mended_generation(log: &[u8]) -> Option<u64> {
    let length = log.get(24..)?.first_chunk()?;
    let crc = log.get(4..)?.first_chunk()?;
    let end = BATCH_HEADER_BYTES + u32::from_le_bytes(*length) as usize;
    let rest = log.get(16..end)?;
    let fits = |generation: &u64| {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&generation.to_le_bytes());
        hasher.update(rest);
        hasher.finalize() == u32::from_le_bytes(*crc)
    };
    // Those behind it have it right; among them may be batches of earlier uses.
    let places = (BLOCK_BYTES..log.len()).step_by(BLOCK_BYTES);
    let batches = places.filter_map(|at| Batch::read(log, at));
    let mut generations: Vec<u64> = batches.map(|batch| batch.generation).collect();
    generations.dedup();
    generations.into_iter().find(fits)
}

/// Whether a log that begins with no batch is one that was emptied, or never written to.
pub fn is_empty(log: &[u8]) -> bool {
    let mut header = log.iter().take(BATCH_HEADER_BYTES);
    header.all(|byte| *byte == 0)
}

impl<'a> Batch<'a> {
    /// The batch at this place of a log, if there is a whole one.
    pub fn read(log: &'a [u8], at: usize) -> Option<Self> {
        let rest = log.get(at..)?;
        let header = rest.first_chunk::<BATCH_HEADER_BYTES>()?;
        let long = |at: usize| u64::from_le_bytes(*header[at..].first_chunk().expect("8 bytes"));
        let word = |at: usize| u32::from_le_bytes(*header[at..].first_chunk().expect("4 bytes"));
        if header[..4] != MAGIC {
            return None;
        }
        let end = BATCH_HEADER_BYTES + word(24) as usize;
        let entries = rest.get(BATCH_HEADER_BYTES..end)?;
        let whole = crc32fast::hash(&rest[8..end]) == word(4);
        whole.then_some(Self {
            generation: long(8),
            number: long(16),
            entries,
            next: at + end.next_multiple_of(BLOCK_BYTES),
        })
    }

    /// What it holds; an error where this version cannot read it.
    pub fn entries(&self) -> impl Iterator<Item = Result<Entry<'a>, &'static str>> {
        let mut rest = self.entries;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let entry = Entry::take(&mut rest);
            if entry.is_none() {
                rest = &[];
            }
            Some(entry.ok_or("an entry that this version does not know"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> [Entry<'static>; 5] {
        [
            Entry::Client {
                kind: 1,
                payload: b"me",
            },
            Entry::Created { channel: "foo" },
            Entry::Sub {
                channel: "foo",
                kind: 2,
                payload: &[7; 300],
            },
            Entry::Data {
                channel: "foo",
                slice: 3,
                at: 4,
                bytes: &[1; 5000],
            },
            Entry::End {
                channel: "foo",
                slice: 3,
                len: 4,
            },
        ]
    }

    #[test]
    fn what_is_written_is_read() {
        let mut log = Vec::new();
        for number in 0..2 {
            let from = log.len();
            begin(&mut log);
            sample().iter().for_each(|entry| entry.put(&mut log));
            finish(&mut log, from, 9, number);
            assert_eq!(log.len() % BLOCK_BYTES, 0);
        }
        let first = Batch::read(&log, 0).unwrap();
        let second = Batch::read(&log, first.next).unwrap();
        assert_eq!((first.generation, first.number, second.number), (9, 0, 1));
        let entries: Result<Vec<_>, _> = second.entries().collect();
        assert_eq!(entries.unwrap(), sample());
        assert_eq!(Batch::read(&log, second.next), None);
    }

    #[test]
    fn nothing_changed_passes_for_a_batch() {
        let mut log = Vec::new();
        begin(&mut log);
        sample()[..3].iter().for_each(|entry| entry.put(&mut log));
        let end = log.len();
        finish(&mut log, 0, 1, 0);
        for at in 0..end {
            log[at] ^= 4;
            assert_eq!(Batch::read(&log, 0), None, "byte {at}");
            log[at] ^= 4;
        }
        for len in 0..end {
            assert_eq!(Batch::read(&log[..len], 0), None, "{len} bytes");
        }
        assert!(Batch::read(&log, 0).is_some());
    }
}
