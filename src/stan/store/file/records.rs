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
/// No larger ones are taken: behind damage, what looks like one is none.
pub const RECORD_BYTES_MAX: u32 = 1 << 16;
/// Larger messages are not taken: a batch of the log, with whatever else comes in its turn, has a length of 32 bits.
pub const MESSAGE_BYTES_MAX: usize = 1 << 30;

/// CRC-32 with the polynomial of the configuration.
#[derive(Clone, Debug)]
pub struct Crc {
    /// None: the usual one, for which there is something faster.
    table: Option<std::sync::Arc<[u32; 256]>>,
    /// Whether what is read is checked; what is written always has its checksum.
    check: bool,
}

/// A checksum under way.
pub struct Sum<'a> {
    crc: &'a Crc,
    fast: crc32fast::Hasher,
    slow: u32,
}

impl Sum<'_> {
    pub fn add(&mut self, bytes: &[u8]) {
        match &self.crc.table {
            None => self.fast.update(bytes),
            Some(table) => self.slow = fold(table, self.slow, bytes),
        }
    }

    pub fn fits(self, sum: u32) -> bool {
        let own = match &self.crc.table {
            None => self.fast.finalize(),
            Some(_) => !self.slow,
        };
        !self.crc.check || own == sum
    }
}

fn fold(table: &[u32; 256], begin: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(begin, |crc, byte| {
        table[((crc ^ u32::from(*byte)) & 0xff) as usize] ^ (crc >> 8)
    })
}

impl Crc {
    /// `polynomial` in the reversed form, as Go's MakeTable takes it.
    pub fn new(polynomial: u32, check: bool) -> Self {
        if polynomial == 0xEDB8_8320 {
            return Self { table: None, check };
        }
        let entry = |index: usize| {
            (0..8).fold(index as u32, |crc, _| match crc & 1 {
                1 => (crc >> 1) ^ polynomial,
                _ => crc >> 1,
            })
        };
        Self {
            table: Some(std::sync::Arc::new(std::array::from_fn(entry))),
            check,
        }
    }

    /// Whether the checksum is that of the bytes, or nobody wants to know.
    pub fn fits(&self, bytes: &[u8], sum: u32) -> bool {
        !self.check || self.of(bytes) == sum
    }

    pub fn is_checked(&self) -> bool {
        self.check
    }

    pub fn begin(&self) -> Sum<'_> {
        Sum {
            crc: self,
            fast: crc32fast::Hasher::new(),
            slow: !0,
        }
    }

    pub fn of(&self, bytes: &[u8]) -> u32 {
        match &self.table {
            None => crc32fast::hash(bytes),
            Some(table) => !fold(table, !0, bytes),
        }
    }
}

pub fn put_untyped(out: &mut Vec<u8>, crc: &Crc, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&crc.of(payload).to_le_bytes());
    out.extend_from_slice(payload);
}

/// The records that these bytes consist of: kind, and all of it.
pub fn typed_records(mut bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let word = u32::from_le_bytes(*bytes.first_chunk()?);
        let len = HEADER_BYTES + (word & TYPED_SIZE_MAX) as usize;
        let (record, after) = bytes.split_at_checked(len)?;
        bytes = after;
        Some(((word >> 24) as u8, record))
    })
}

/// Payloads are subscriptions and clients; larger ones than the format can hold are refused before.
pub fn put_typed(out: &mut Vec<u8>, crc: &Crc, kind: u8, payload: &[u8]) {
    assert!(
        payload.len() <= TYPED_SIZE_MAX as usize,
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

/// The payload of a message's record, whose size is known from elsewhere: None when it does not fit its checksum.
/// A wrong size in the header does no harm then.
pub fn payload_of<'a>(record: &'a [u8], crc: &Crc) -> Option<&'a [u8]> {
    let (header, payload) = record.split_first_chunk::<HEADER_BYTES>()?;
    let [size @ .., a, b, c, d] = *header;
    // Without checksums the size is all there is to go by.
    let same_size = u32::from_le_bytes(size) as usize == payload.len();
    let fits = crc.fits(payload, u32::from_le_bytes([a, b, c, d]));
    (fits && (same_size || crc.is_checked())).then_some(payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_the_originals() {
        let crc = Crc::new(0xEDB8_8320, true);
        let mut out = Vec::new();
        let payload = b"\x08\x01\x12\x03foo";
        put_untyped(&mut out, &crc, payload);
        assert_eq!(out[..4], [7, 0, 0, 0]);
        assert_eq!(out[4..8], crc32fast::hash(payload).to_le_bytes());
        assert_eq!(payload_of(&out, &crc), Some(&payload[..]));
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
            table: Crc::new(0x82F6_3B78, true).table,
            check: true,
        };
        assert_eq!(slow.of(b"123456789"), 0xE306_9283, "CRC-32C's check value");
        assert_eq!(Crc::new(0xEDB8_8320, true).of(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn damage_is_told_from_a_wrong_size() {
        for check in [true, false] {
            let crc = Crc::new(0xEDB8_8320, check);
            let mut out = Vec::new();
            put_untyped(&mut out, &crc, b"abc");
            assert_eq!(payload_of(&out, &crc), Some(&b"abc"[..]));
            out[8] ^= 1;
            assert_eq!(payload_of(&out, &crc).is_some(), !check);
            out[8] ^= 1;
            out[1] ^= 1;
            assert_eq!(payload_of(&out, &crc).is_some(), check);
            assert_eq!(payload_of(&out[..7], &crc), None);
        }
    }

    #[test]
    fn sums_in_pieces_are_the_same() {
        for polynomial in [0xEDB8_8320, 0x82F6_3B78] {
            let crc = Crc::new(polynomial, true);
            let mut sum = crc.begin();
            sum.add(b"1234");
            sum.add(b"56789");
            assert!(sum.fits(crc.of(b"123456789")));
            assert!(!crc.begin().fits(5));
        }
    }
}
