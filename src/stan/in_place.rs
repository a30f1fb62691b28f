//! The protobuf messages that every publish takes, without an allocation for each field: read where they lie, and written from where their parts lie.
//!
//! The bytes are those of the messages of the same kind in `pb`, and what is refused there is refused here (`fuzz::read_both_ways` holds the two against each other).

use super::arena::Arena;
use super::store::Seq;
use bytes::{BufMut, Bytes};
// Public for what prost derives; that it goes on to do the same is what the tests and the fuzzer are for.
use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint,
    encoded_len_varint, skip_field,
};

/// A `pb::PubMsg`.
#[derive(Debug, Default, PartialEq)]
pub struct Publish<'a> {
    pub client_id: &'a str,
    pub guid: &'a [u8],
    pub subject: &'a str,
    pub reply: &'a str,
    pub data: &'a [u8],
    pub conn_id: &'a [u8],
}

impl<'a> Publish<'a> {
    /// None: it is none.
    pub fn read(mut bytes: &'a [u8]) -> Option<Self> {
        let mut read = Self::default();
        while !bytes.is_empty() {
            let (tag, kind) = decode_key(&mut bytes).ok()?;
            match tag {
                1 => read.client_id = text(kind, &mut bytes)?,
                2 => read.guid = field(kind, &mut bytes)?,
                3 => read.subject = text(kind, &mut bytes)?,
                4 => read.reply = text(kind, &mut bytes)?,
                5 => read.data = field(kind, &mut bytes)?,
                6 => read.conn_id = field(kind, &mut bytes)?,
                _ => skip(tag, kind, &mut bytes)?,
            }
        }
        Some(read)
    }
}

/// A `pb::Ack`.
#[derive(Debug, Default, PartialEq)]
pub struct Ack<'a> {
    pub subject: &'a str,
    pub sequence: Seq,
}

impl<'a> Ack<'a> {
    /// None: it is none.
    pub fn read(mut bytes: &'a [u8]) -> Option<Self> {
        let mut read = Self::default();
        while !bytes.is_empty() {
            let (tag, kind) = decode_key(&mut bytes).ok()?;
            match tag {
                1 => read.subject = text(kind, &mut bytes)?,
                2 if kind == WireType::Varint => read.sequence = decode_varint(&mut bytes).ok()?,
                2 => return None,
                _ => skip(tag, kind, &mut bytes)?,
            }
        }
        Some(read)
    }
}

fn field<'a>(kind: WireType, bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    if kind != WireType::LengthDelimited {
        return None;
    }
    let length = usize::try_from(decode_varint(bytes).ok()?).ok()?;
    let (field, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(field)
}

fn text<'a>(kind: WireType, bytes: &mut &'a [u8]) -> Option<&'a str> {
    std::str::from_utf8(field(kind, bytes)?).ok()
}

fn skip(tag: u32, kind: WireType, bytes: &mut &[u8]) -> Option<()> {
    skip_field(kind, tag, bytes, DecodeContext::default()).ok()
}

/// A message on its way into a store, which gives it its number: a `pb::MsgProto`.
#[derive(Clone, Copy, Debug, Default)]
pub struct NewMessage<'a> {
    /// Nanoseconds since the epoch.
    pub timestamp: i64,
    pub subject: &'a str,
    pub reply: &'a str,
    pub data: &'a [u8],
}

impl NewMessage<'_> {
    fn encoded_bytes(&self, sequence: Seq) -> usize {
        let parts = [self.subject.as_bytes(), self.reply.as_bytes(), self.data];
        let parts = parts.into_iter().map(part_bytes);
        number_bytes(sequence) + parts.sum::<usize>() + number_bytes(self.timestamp as u64)
    }

    /// In an arena whose owner keeps so many bytes.
    pub fn encoded(&self, sequence: Seq, arena: &mut Arena, kept: usize) -> Bytes {
        let bytes = self.encoded_bytes(sequence);
        arena.piece(bytes, kept, |block| self.put(sequence, block))
    }

    fn put(&self, sequence: Seq, encoded: &mut impl BufMut) {
        put_number(encoded, 1, sequence);
        put_part(encoded, 2, self.subject.as_bytes());
        put_part(encoded, 3, self.reply.as_bytes());
        put_part(encoded, 4, self.data);
        put_number(encoded, 5, self.timestamp as u64);
    }
}

/// A `pb::PubAck` without an error.
pub fn put_ack(encoded: &mut impl BufMut, guid: &[u8]) {
    put_part(encoded, 1, guid);
}

// Fields that say nothing are left out; keys up to 15 have one byte.

fn part_bytes(part: &[u8]) -> usize {
    match part.len() {
        0 => 0,
        length => 1 + encoded_len_varint(length as u64) + length,
    }
}

fn put_part(encoded: &mut impl BufMut, tag: u32, part: &[u8]) {
    if !part.is_empty() {
        encode_key(tag, WireType::LengthDelimited, encoded);
        encode_varint(part.len() as u64, encoded);
        encoded.put_slice(part);
    }
}

fn number_bytes(number: u64) -> usize {
    match number {
        0 => 0,
        _ => 1 + encoded_len_varint(number),
    }
}

fn put_number(encoded: &mut impl BufMut, tag: u32, number: u64) {
    if number != 0 {
        encode_key(tag, WireType::Varint, encoded);
        encode_varint(number, encoded);
    }
}

#[cfg(test)]
mod tests {
    use super::super::pb;
    use super::*;
    use crate::stan::fuzz::read_both_ways as same;
    use crate::util::random::Random;
    use prost::Message;

    #[test]
    fn what_is_read_in_place_is_what_prost_reads() {
        let publish = pb::PubMsg {
            client_id: "me".into(),
            guid: vec![0xff, 1],
            subject: "foo.\u{fc}".into(),
            reply: "to".into(),
            data: vec![7; 200].into(),
            conn_id: vec![9; 22].into(),
        };
        let ack = pb::Ack {
            subject: "foo".into(),
            sequence: u64::MAX,
        };
        assert_eq!(same(&publish.encode_to_vec()), [true, false]);
        let long = pb::PubMsg {
            data: vec![7; 20_000].into(),
            ..publish.clone()
        };
        assert_eq!(same(&long.encode_to_vec()), [true, false]);
        assert_eq!(same(&ack.encode_to_vec()), [false, true]);
        assert_eq!(same(b""), [true, true]);
        // Twice the same field, one that is not known, a group of them, and keys that are none.
        assert_eq!(
            same(b"\x0a\x01a\x0a\x01b\x38\x05\x3b\x08\x01\x3c"),
            [true, true]
        );
        // Groups in groups, as deep as prost goes and deeper, and one that ends another.
        let nested = |depth| [vec![0x3b; depth], vec![0x3c; depth]].concat();
        let known = [99, 100, 101, 102].map(|depth| same(&nested(depth))[0]);
        assert!(known[0] && !known[3], "{known:?}");
        same(b"\x3b\x44");
        // Lengths, numbers and keys of ten bytes and more, and kinds that there are not.
        let many = |count, last| [vec![0xff; count], vec![last]].concat();
        for rest in [many(9, 1), many(9, 2), many(10, 1)] {
            same(&[b"\x10", &rest[..]].concat());
            same(&[b"\x0a", &rest[..]].concat());
            same(&rest);
        }
        same(b"\x0e\x01");
        same(b"\x0f\x01");
        for none in [
            &b"\x0a\x05ab"[..],
            b"\x0a\x01\xff",
            b"\x08\x01",
            b"\x00",
            b"\x3b\x08",
            b"\x0a",
        ] {
            assert_eq!(same(none), [false, false], "{none:?}");
        }
        let mut random = Random::new(7);
        let mut seen = [0; 2];
        for _ in 0..20_000 {
            let mut bytes = match random.below(2) {
                0 => publish.encode_to_vec(),
                _ => ack.encode_to_vec(),
            };
            for _ in 0..random.below(4) {
                let at = random.below(bytes.len() as u32) as usize;
                match random.below(3) {
                    0 => bytes[at] = random.below(256) as u8,
                    1 => bytes.insert(at, random.below(16) as u8),
                    _ => bytes.truncate(at.max(1)),
                }
            }
            let known = same(&bytes);
            seen = [0, 1].map(|kind| seen[kind] + u32::from(known[kind]));
        }
        assert!(seen.iter().all(|seen| *seen > 1000), "{seen:?}");
    }

    #[test]
    fn what_is_written_is_what_prost_writes() {
        for guid in ["", "abc", &"x".repeat(200)] {
            let ack = pb::PubAck {
                guid: guid.into(),
                error: String::new(),
            };
            let mut encoded = Vec::new();
            put_ack(&mut encoded, guid.as_bytes());
            assert_eq!(encoded, ack.encode_to_vec());
        }
        let long = |bytes| "x".repeat(bytes);
        let (a, b, c) = (long(127), long(128), long(16_384));
        let numbers = [
            (0, 0),
            (1, 0),
            (128, -1),
            (u64::MAX, i64::MAX),
            (300, 1 << 60),
        ];
        for (sequence, timestamp) in numbers {
            let parts = [["", "", ""], ["foo", "", "1"], [&a, &b, &c], [&c, &a, &b]];
            for [subject, reply, data] in parts {
                let data = data.as_bytes();
                let message = NewMessage {
                    timestamp,
                    subject,
                    reply,
                    data,
                };
                let expected = pb::MsgProto {
                    sequence,
                    subject: subject.into(),
                    reply: reply.into(),
                    data: data.to_vec().into(),
                    timestamp,
                    ..pb::MsgProto::default()
                };
                let mut encoded = Vec::new();
                message.put(sequence, &mut encoded);
                assert_eq!(encoded, expected.encode_to_vec());
                assert_eq!(message.encoded_bytes(sequence), encoded.len());
            }
        }
    }
}
