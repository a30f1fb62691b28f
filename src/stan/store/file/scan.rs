//! Going through a file of records from its beginning, with one block of it in memory, and finding the next
//! whole record behind bytes that are none.

use super::disk::File;
use super::records::{Crc, HEADER_BYTES};
use crate::stan::pb;
use prost::Message;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

const BLOCK_BYTES: usize = 256 << 10;
/// Larger payloads are first summed up piece by piece: a damaged size must not take the memory it names.
const AT_ONCE_MAX: u64 = 4 << 20;
/// What a message begins with: its number, and the tag of its subject.
const SEQUENCE_TAG: u8 = 0x08;
const SUBJECT_TAG: u8 = 0x12;

pub struct Scanner {
    file: Arc<File>,
    len: u64,
    /// Bytes of the file from `start` on.
    block: Vec<u8>,
    start: u64,
}

/// A whole record: its kind (0 in a file of one kind) and its payload.
pub struct Whole<'a> {
    pub kind: u8,
    pub payload: &'a [u8],
    pub next: u64,
}

impl Scanner {
    pub fn new(file: Arc<File>) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self {
            file,
            len,
            block: Vec::new(),
            start: 0,
        })
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    /// The file was cut there.
    pub fn shrink(&mut self, len: u64) {
        self.len = self.len.min(len);
        self.block.clear();
    }

    /// The `count` bytes at `at`, or as many as there are.
    pub fn bytes(&mut self, at: u64, count: usize) -> io::Result<&[u8]> {
        let count = (count as u64).min(self.len.saturating_sub(at)) as usize;
        let within = at >= self.start && at + count as u64 <= self.start + self.block.len() as u64;
        if !within {
            let size = (count.max(BLOCK_BYTES) as u64).min(self.len - at);
            self.block.clear();
            self.block.resize(size as usize, 0);
            self.file.read_exact_at(&mut self.block, at)?;
            self.start = at;
        }
        let from = (at - self.start.min(at)) as usize;
        Ok(&self.block[from..from + count])
    }

    /// Whether there are only zeros from here to the end, as in room that was never written to.
    pub fn is_zero_from(&mut self, mut at: u64) -> io::Result<bool> {
        while at < self.len {
            let bytes = self.bytes(at, BLOCK_BYTES)?;
            if bytes.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            at += bytes.len() as u64;
        }
        Ok(true)
    }

    /// The record at `at`, if all of it is there before `end` and as it was written.
    pub fn record(
        &mut self,
        at: u64,
        end: u64,
        typed: bool,
        crc: &Crc,
    ) -> io::Result<Option<Whole<'_>>> {
        let end = end.min(self.len);
        if at + HEADER_BYTES as u64 > end {
            return Ok(None);
        }
        let (kind, size, sum) = header(self.bytes(at, HEADER_BYTES)?, typed);
        let from = at + HEADER_BYTES as u64;
        let next = from + u64::from(size);
        if next > end || (typed && kind == 0) {
            return Ok(None);
        }
        if u64::from(size) > AT_ONCE_MAX && !self.sum_fits(from, next, sum, crc)? {
            return Ok(None);
        }
        let payload = self.bytes(from, size as usize)?;
        Ok(crc.fits(payload, sum).then_some(Whole {
            kind,
            payload,
            next,
        }))
    }

    fn sum_fits(&mut self, mut at: u64, end: u64, sum: u32, crc: &Crc) -> io::Result<bool> {
        let mut so_far = crc.begin();
        while at < end {
            let bytes = self.bytes(at, BLOCK_BYTES.min((end - at) as usize))?;
            so_far.add(bytes);
            at += bytes.len() as u64;
        }
        Ok(so_far.fits(sum))
    }

    /// The first whole message of this channel that begins in `from..end` and whose number is above `above` and
    /// below `below`: where it is, and its number.
    pub fn find_message(
        &mut self,
        from: u64,
        end: u64,
        channel: &str,
        (above, below): (u64, u64),
        crc: &Crc,
    ) -> io::Result<Option<(u64, u64)>> {
        let looked_at = HEADER_BYTES + 1 + 10 + 1 + 2 + channel.len();
        let mut at = from;
        while at < end {
            let bytes = self.bytes(at, BLOCK_BYTES)?;
            let last = bytes.len() as u64 == end.saturating_sub(at).min(bytes.len() as u64)
                && at + bytes.len() as u64 >= end;
            // The end of a block is looked at again as the beginning of the next.
            let places = match last {
                true => bytes.len(),
                false => bytes.len().saturating_sub(looked_at).max(1),
            };
            let candidate = (0..places).find(|place| {
                bytes
                    .get(place + HEADER_BYTES..)
                    .and_then(|payload| message_start(payload, channel))
                    .is_some_and(|seq| seq > above && seq < below)
            });
            let Some(place) = candidate else {
                at += places as u64;
                continue;
            };
            let here = at + place as u64;
            if let Some(seq) = self
                .message(here, end, crc)?
                .map(|message| message.sequence)
            {
                return Ok(Some((here, seq)));
            }
            at = here + 1;
        }
        Ok(None)
    }

    /// The message at `at`, if it is whole.
    pub fn message(&mut self, at: u64, end: u64, crc: &Crc) -> io::Result<Option<pb::MsgProto>> {
        let record = self.record(at, end, false, crc)?;
        let message = record.and_then(|whole| pb::MsgProto::decode(whole.payload).ok());
        Ok(message.filter(|message| message.sequence > 0))
    }

    /// The first whole typed record that begins in `from..end` and that `is_likely` takes for one, by kind, size
    /// and first byte of the payload.
    pub fn find_typed(
        &mut self,
        from: u64,
        is_likely: impl Fn(u8, u32, u8) -> bool,
        crc: &Crc,
    ) -> io::Result<Option<u64>> {
        const LOOKED_AT: usize = HEADER_BYTES + 1;
        let end = self.len;
        let mut at = from;
        while at + LOOKED_AT as u64 <= end {
            let bytes = self.bytes(at, BLOCK_BYTES)?;
            let places = bytes.len() - LOOKED_AT + 1;
            let candidate = (0..places).find(|place| {
                let (kind, size, _) = header(&bytes[*place..], true);
                is_likely(kind, size, bytes[place + HEADER_BYTES])
            });
            let Some(place) = candidate else {
                at += places as u64;
                continue;
            };
            let here = at + place as u64;
            if self.record(here, end, true, crc)?.is_some() {
                return Ok(Some(here));
            }
            at = here + 1;
        }
        Ok(None)
    }
}

/// Kind, size and checksum.
fn header(bytes: &[u8], typed: bool) -> (u8, u32, u32) {
    let word = |at: usize| {
        let bytes = bytes[at..].first_chunk().expect("a whole header");
        u32::from_le_bytes(*bytes)
    };
    match typed {
        true => ((word(0) >> 24) as u8, word(0) & 0x00ff_ffff, word(4)),
        false => (0, word(0), word(4)),
    }
}

/// The number of the message these bytes begin with, if they begin like one of this channel.
fn message_start(payload: &[u8], channel: &str) -> Option<u64> {
    let seq = sequence_of(payload)?;
    let rest = &payload[1..];
    let rest = &rest[varint(rest)?.1..];
    let (tag, rest) = rest.split_first()?;
    let (len, used) = varint(rest)?;
    let subject = rest.get(used..used + channel.len())?;
    (*tag == SUBJECT_TAG && len == channel.len() as u64 && subject == channel.as_bytes())
        .then_some(seq)
}

/// The number of the message with this payload, or of one that begins so.
pub fn sequence_of(payload: &[u8]) -> Option<u64> {
    let (tag, rest) = payload.split_first()?;
    (*tag == SEQUENCE_TAG)
        .then(|| varint(rest))?
        .map(|(seq, _)| seq)
}

/// A number and the bytes it takes.
fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut number = 0u64;
    for (index, byte) in bytes.iter().take(10).enumerate() {
        number |= u64::from(byte & 0x7f).checked_shl(7 * index as u32)?;
        if byte & 0x80 == 0 {
            return Some((number, index + 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::records::{put_typed, put_untyped};
    use super::*;
    use std::io::Write;

    fn scanner(content: &[u8]) -> Scanner {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        Scanner::new(Arc::new(file.into())).unwrap()
    }

    fn message(sequence: u64, size: usize) -> Vec<u8> {
        pb::MsgProto {
            sequence,
            subject: "foo".into(),
            data: vec![7; size].into(),
            timestamp: 1,
            ..pb::MsgProto::default()
        }
        .encode_to_vec()
    }

    #[test]
    fn the_next_message_is_found_behind_anything() {
        let crc = Crc::new(0xEDB8_8320, true);
        let mut random = crate::util::random::Random::new(3);
        for garbage_len in (0..40).chain([
            BLOCK_BYTES - 30,
            BLOCK_BYTES - 5,
            BLOCK_BYTES,
            3 * BLOCK_BYTES,
        ]) {
            let mut content: Vec<u8> = (0..garbage_len).map(|_| random.below(256) as u8).collect();
            let begin = content.len() as u64;
            put_untyped(&mut content, &crc, &message(300, 20));
            put_untyped(&mut content, &crc, &message(301, 6 << 20));
            let end = content.len() as u64;
            let mut scanner = scanner(&content);
            let mut find =
                |from, range| scanner.find_message(from, end, "foo", range, &crc).unwrap();
            assert_eq!(find(0, (299, 302)), Some((begin, 300)), "{garbage_len}");
            assert_eq!(find(0, (300, u64::MAX)).unwrap().1, 301);
            assert_eq!(find(0, (5, 300)), None);
            assert_eq!(find(begin + 1, (299, 302)).unwrap().1, 301);
            assert!(
                scanner
                    .find_message(0, end, "fox", (1, 302), &crc)
                    .unwrap()
                    .is_none()
            );
        }
    }

    #[test]
    fn the_next_typed_record_is_found_behind_anything() {
        let crc = Crc::new(0xEDB8_8320, true);
        for garbage_len in (0..40).chain([BLOCK_BYTES - 5, BLOCK_BYTES]) {
            let mut content = vec![5; garbage_len];
            put_typed(&mut content, &crc, 4, b"\x08\x01");
            let mut scanner = scanner(&content);
            let likely = |kind, _, first| kind < 6 && first == 8;
            assert_eq!(
                scanner.find_typed(0, likely, &crc).unwrap(),
                Some(garbage_len as u64)
            );
            assert_eq!(
                scanner
                    .find_typed(garbage_len as u64 + 1, likely, &crc)
                    .unwrap(),
                None
            );
        }
    }

    #[test]
    fn a_size_nobody_wrote_takes_no_memory() {
        let crc = Crc::new(0xEDB8_8320, true);
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[0, 0, 0, 0x7f, 1, 2, 3, 4], 0).unwrap();
        file.set_len(64 << 20).unwrap();
        let mut scanner = Scanner::new(Arc::new(file.into())).unwrap();
        assert!(scanner.record(0, u64::MAX, false, &crc).unwrap().is_none());
        file_with_large_claim(&mut scanner, &crc);
    }

    fn file_with_large_claim(scanner: &mut Scanner, crc: &Crc) {
        // 32 MiB that are there, with another checksum.
        scanner.file.write_all_at(&[0, 0, 0, 2], 0).unwrap();
        scanner.block.clear();
        assert!(scanner.record(0, u64::MAX, false, crc).unwrap().is_none());
        assert!(scanner.block.capacity() < 8 << 20);
    }

    #[test]
    fn zeros_are_told_from_the_rest() {
        let mut content = vec![0; BLOCK_BYTES + 10];
        content[3] = 1;
        let mut all = scanner(&content);
        assert!(!all.is_zero_from(0).unwrap());
        assert!(all.is_zero_from(4).unwrap());
        content[BLOCK_BYTES + 9] = 1;
        assert!(!scanner(&content).is_zero_from(4).unwrap());
    }
}
