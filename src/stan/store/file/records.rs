//! Records of the file store, as nats-streaming-server 0.9.2 writes them. All numbers are
//! little-endian; every file begins with the version, 1.
//!
//! ```text
//!   untyped (msgs.N.dat, server.dat):      size u32 | crc u32 | payload
//!   typed (subs.dat, clients.dat):         type u8 << 24 or size u32 | crc u32 | payload
//!   index (msgs.N.idx): seq u64 | offset i64 | timestamp i64 | size u32 | crc u32 of the 28 bytes before
//! ```
//!
//! The checksum is that of the payload alone.

pub const VERSION: [u8; 4] = [1, 0, 0, 0];
pub const HEADER_BYTES: usize = 8;
pub const INDEX_BYTES: usize = 32;
/// What a message costs beside its payload, for limits.
pub const OVERHEAD_BYTES: u64 = (HEADER_BYTES + INDEX_BYTES) as u64;
/// Payloads of typed records are smaller than this.
const TYPED_SIZE_MAX: u32 = (1 << 24) - 1;

/// CRC-32 with the polynomial of the configuration.
#[derive(Clone, Debug)]
pub struct Crc {
    /// None: the usual one, for which there is something faster.
    table: Option<Box<[u32; 256]>>,
}

impl Crc {
    /// `polynomial` in the reversed form, as Go's MakeTable takes it.
    pub fn new(polynomial: u32) -> Self {
        if polynomial == 0xEDB8_8320 {
            return Self { table: None };
        }
        let entry = |index: usize| {
            (0..8).fold(index as u32, |crc, _| match crc & 1 {
                1 => (crc >> 1) ^ polynomial,
                _ => crc >> 1,
            })
        };
        Self {
            table: Some(Box::new(std::array::from_fn(entry))),
        }
    }

    pub fn of(&self, bytes: &[u8]) -> u32 {
        match &self.table {
            None => crc32fast::hash(bytes),
            Some(table) => {
                let step = |crc: u32, byte: &u8| {
                    table[((crc ^ u32::from(*byte)) & 0xff) as usize] ^ (crc >> 8)
                };
                !bytes.iter().fold(!0, step)
            }
        }
    }
}

pub fn put_untyped(out: &mut Vec<u8>, crc: &Crc, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&crc.of(payload).to_le_bytes());
    out.extend_from_slice(payload);
}

/// Payloads are subscriptions and clients; larger ones than the format can hold are refused before.
pub fn put_typed(out: &mut Vec<u8>, crc: &Crc, kind: u8, payload: &[u8]) {
    assert!(
        payload.len() as u32 <= TYPED_SIZE_MAX,
        "a record too large for the format"
    );
    let word = u32::from(kind) << 24 | payload.len() as u32;
    out.extend_from_slice(&word.to_le_bytes());
    out.extend_from_slice(&crc.of(payload).to_le_bytes());
    out.extend_from_slice(payload);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    pub seq: u64,
    /// Of the record's header in the data file.
    pub offset: u64,
    pub timestamp: i64,
    /// Of the payload.
    pub size: u32,
}

impl IndexEntry {
    pub fn put(&self, out: &mut Vec<u8>, crc: &Crc) {
        let at = out.len();
        out.extend_from_slice(&self.seq.to_le_bytes());
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.timestamp.to_le_bytes());
        out.extend_from_slice(&self.size.to_le_bytes());
        let sum = crc.of(&out[at..]);
        out.extend_from_slice(&sum.to_le_bytes());
    }

    /// None when the checksum does not fit, or nothing was written there.
    pub fn read(bytes: &[u8; INDEX_BYTES], crc: &Crc) -> Option<Self> {
        let number = |at: usize| {
            let bytes = bytes[at..at + 8].first_chunk().expect("8 bytes");
            u64::from_le_bytes(*bytes)
        };
        let word = |at: usize| {
            let bytes = bytes[at..at + 4].first_chunk().expect("4 bytes");
            u32::from_le_bytes(*bytes)
        };
        let entry = Self {
            seq: number(0),
            offset: number(8),
            timestamp: number(16) as i64,
            size: word(24),
        };
        (entry.seq > 0 && crc.of(&bytes[..28]) == word(28)).then_some(entry)
    }
}

/// What stands at a place in a file of records.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a> {
    Record {
        kind: u8,
        payload: &'a [u8],
        next: usize,
    },
    /// The length is plausible, the checksum is wrong; `next` is where another record may begin.
    BadChecksum {
        next: usize,
    },
    /// The file ends inside a record.
    Torn,
    /// Zeros to the end: room that was never written to.
    Zeros,
    End,
}

/// Looks at `bytes[at..]`; `typed` as in the table above.
pub fn look<'a>(bytes: &'a [u8], at: usize, typed: bool, crc: &Crc) -> Found<'a> {
    let rest = &bytes[at..];
    if rest.is_empty() {
        return Found::End;
    }
    let Some(header) = rest.first_chunk::<HEADER_BYTES>() else {
        return if rest.iter().all(|byte| *byte == 0) {
            Found::Zeros
        } else {
            Found::Torn
        };
    };
    let [a, b, c, d, sum @ ..] = *header;
    let word = u32::from_le_bytes([a, b, c, d]);
    let (kind, size) = match typed {
        true => ((word >> 24) as u8, (word & 0x00ff_ffff) as usize),
        false => (0, word as usize),
    };
    if word == 0 && rest.iter().all(|byte| *byte == 0) {
        return Found::Zeros;
    }
    let Some(payload) = rest[HEADER_BYTES..].get(..size) else {
        return Found::Torn;
    };
    let next = at + HEADER_BYTES + size;
    match crc.of(payload) == u32::from_le_bytes(sum) && (!typed || kind > 0) {
        true => Found::Record {
            kind,
            payload,
            next,
        },
        false => Found::BadChecksum { next },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_the_originals() {
        let crc = Crc::new(0xEDB8_8320);
        let mut out = Vec::new();
        let payload = b"\x08\x01\x12\x03foo";
        put_untyped(&mut out, &crc, payload);
        assert_eq!(out[..4], [7, 0, 0, 0]);
        assert_eq!(out[4..8], crc32fast::hash(payload).to_le_bytes());
        assert_eq!(
            look(&out, 0, false, &crc),
            Found::Record {
                kind: 0,
                payload,
                next: 15
            }
        );
        let entry = IndexEntry {
            seq: 1,
            offset: 4,
            timestamp: -5,
            size: 21,
        };
        let mut index = Vec::new();
        entry.put(&mut index, &crc);
        let bytes: [u8; INDEX_BYTES] = index.try_into().unwrap();
        assert_eq!(IndexEntry::read(&bytes, &crc), Some(entry));
        assert_eq!(IndexEntry::read(&[0; INDEX_BYTES], &crc), None);
    }

    #[test]
    fn both_ways_to_compute_agree() {
        let slow = Crc {
            table: Crc::new(0x82F6_3B78).table,
        };
        assert_eq!(slow.of(b"123456789"), 0xE306_9283, "CRC-32C's check value");
        assert_eq!(Crc::new(0xEDB8_8320).of(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn damage_is_told_apart() {
        let crc = Crc::new(0xEDB8_8320);
        let mut out = Vec::new();
        put_typed(&mut out, &crc, 4, b"abc");
        assert_eq!(
            look(&out, 0, true, &crc),
            Found::Record {
                kind: 4,
                payload: b"abc",
                next: 11
            }
        );
        assert_eq!(look(&out, 11, true, &crc), Found::End);
        for end in 1..out.len() {
            assert_eq!(look(&out[..end], 0, true, &crc), Found::Torn);
        }
        out[9] ^= 1;
        assert_eq!(look(&out, 0, true, &crc), Found::BadChecksum { next: 11 });
        assert_eq!(look(&[0; 20], 3, true, &crc), Found::Zeros);
    }
}
