//! What we asked the kernel, packed into the 64 bits it hands back with every completion.
//!
//! ```text
//! 63    56 55                    32 31                            0
//! +-------+------------------------+-------------------------------+
//! | kind  |       generation       |             slot              |
//! +-------+------------------------+-------------------------------+
//! ```
//!
//! The slot names a place in a table of the caller, the generation the tenant of that place: a
//! completion whose generation is not the present one belongs to a tenant that has left.

/// The operation a completion answers. Closed: the event loop matches on it and nothing else.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
#[repr(u8)]
pub enum Kind {
    Accept = 1,
    Recv = 2,
    Write = 3,
    /// The outcome of a cancel request; the cancelled operation completes by itself as well.
    Cancel = 4,
    /// A close that failed. One that succeeds completes silently.
    Close = 5,
    /// Another ring rang.
    Doorbell = 6,
    /// Our ring of another's doorbell failed. One that succeeds completes silently.
    DoorbellSent = 7,
    /// A watched descriptor is readable.
    Watch = 8,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        Some(match byte {
            1 => Kind::Accept,
            2 => Kind::Recv,
            3 => Kind::Write,
            4 => Kind::Cancel,
            5 => Kind::Close,
            6 => Kind::Doorbell,
            7 => Kind::DoorbellSent,
            8 => Kind::Watch,
            _ => return None,
        })
    }
}

/// Names one operation in flight. At most one operation with a given token may be in flight.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Token {
    pub kind: Kind,
    pub slot: u32,
    /// At most [`Token::GENERATION_MAX`].
    pub generation: u32,
}

impl Token {
    /// Generations have 24 bits; a counter wraps to 0 after this one.
    pub const GENERATION_MAX: u32 = (1 << 24) - 1;

    pub const fn new(kind: Kind, slot: u32, generation: u32) -> Token {
        Token {
            kind,
            slot,
            generation,
        }
    }

    /// The same slot and tenant, another operation.
    pub const fn with_kind(self, kind: Kind) -> Token {
        Token { kind, ..self }
    }

    pub fn pack(self) -> u64 {
        assert!(
            self.generation <= Token::GENERATION_MAX,
            "generation does not fit 24 bits"
        );
        u64::from(self.kind as u8) << 56 | u64::from(self.generation) << 32 | u64::from(self.slot)
    }

    /// `None` for a kind that does not exist.
    pub fn unpack(packed: u64) -> Option<Token> {
        Some(Token {
            kind: Kind::from_byte((packed >> 56) as u8)?,
            slot: packed as u32,
            generation: (packed >> 32) as u32 & Token::GENERATION_MAX,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_packing() {
        let mut kinds = 0;
        for byte in 0..=u8::MAX {
            let Some(kind) = Kind::from_byte(byte) else {
                assert_eq!(Token::unpack(u64::from(byte) << 56), None);
                continue;
            };
            kinds += 1;
            assert_eq!(kind as u8, byte);
            for slot in [0, 1, u32::MAX] {
                for generation in [0, 1, Token::GENERATION_MAX] {
                    let token = Token::new(kind, slot, generation);
                    assert_eq!(Token::unpack(token.pack()), Some(token));
                }
            }
        }
        assert_eq!(kinds, 8);
    }

    #[test]
    #[should_panic(expected = "24 bits")]
    fn a_generation_that_does_not_fit_is_refused() {
        Token::new(Kind::Recv, 0, Token::GENERATION_MAX + 1).pack();
    }
}
