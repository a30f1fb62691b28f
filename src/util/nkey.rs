//! Keys of users in the text form of NATS. A public one is base32 of a prefix byte, 32 bytes of Ed25519 key and a
//! CRC16, 56 letters that begin with `U`; a seed has two bytes of prefix. Nonces and signatures are base64.

const PREFIX_USER: u8 = 20 << 3;
const PREFIX_SEED: u8 = 18 << 3;
const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
/// Prefix, key and checksum; 35 bytes are exactly 56 letters of five bits.
const RAW_BYTES: usize = 1 + 32 + 2;
/// A seed has two bytes of prefix: that it is one, and of what.
const SEED_RAW_BYTES: usize = 2 + 32 + 2;

pub type PublicKey = [u8; 32];

/// The key, or None where the text is no public user key.
pub fn decode_user(text: &str) -> Option<PublicKey> {
    if text.len() != RAW_BYTES * 8 / 5 {
        return None;
    }
    let raw = decode_base32(text)?;
    let body = without_checksum(&raw, RAW_BYTES)?;
    (body[0] == PREFIX_USER).then(|| body[1..].try_into().expect("33 bytes less one"))
}

/// The text form of a public user key.
pub fn encode_user(key: &PublicKey) -> String {
    let mut raw = vec![PREFIX_USER];
    raw.extend_from_slice(key);
    raw.extend_from_slice(&crc16(&raw).to_le_bytes());
    let (mut bits, mut count) = (0u32, 0);
    let mut text = String::new();
    for byte in raw {
        bits = bits << 8 | u32::from(byte);
        count += 8;
        while count >= 5 {
            count -= 5;
            text.push(char::from(ALPHABET[(bits >> count) as usize & 31]));
        }
    }
    text
}

/// The secret of a user (`SU...`), or None where the text is none.
pub fn decode_seed(text: &str) -> Option<[u8; 32]> {
    let raw = decode_base32(text)?;
    let body = without_checksum(&raw, SEED_RAW_BYTES)?;
    // Five bits of each prefix; those of the second one stand across the two bytes.
    let (first, second) = (body[0] & 0xf8, body[0] << 5 | (body[1] & 0xf8) >> 3);
    let good = first == PREFIX_SEED && second == PREFIX_USER;
    good.then(|| body[2..].try_into().expect("34 bytes less two"))
}

fn decode_base32(text: &str) -> Option<Vec<u8>> {
    let (mut bits, mut count) = (0u32, 0);
    let mut raw = Vec::with_capacity(text.len() * 5 / 8);
    for letter in text.bytes() {
        let value = ALPHABET.iter().position(|known| *known == letter)?;
        bits = bits << 5 | value as u32;
        count += 5;
        if count >= 8 {
            count -= 8;
            raw.push((bits >> count) as u8);
        }
    }
    Some(raw)
}

fn without_checksum(raw: &[u8], len: usize) -> Option<&[u8]> {
    let (body, checksum) = raw.split_at_checked(len - 2)?;
    (checksum == crc16(body).to_le_bytes()).then_some(body)
}

/// CRC-16/XMODEM.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| match crc >> 15 {
            0 => crc << 1,
            _ => crc << 1 ^ 0x1021,
        })
    })
}

/// base64 in the URL alphabet or the standard one, with padding or without.
pub fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let (mut bits, mut count) = (0u32, 0);
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    for letter in text.trim_end_matches('=').bytes() {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'-' | b'+' => 62,
            b'_' | b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// base64 in the URL alphabet, without padding.
pub fn encode_base64(bytes: &[u8]) -> String {
    let letter = |bits: u32, at: usize| char::from(LETTERS[(bits >> (18 - at * 6)) as usize & 63]);
    let group = |group: &[u8]| {
        let byte = |at: usize| group.get(at).copied().unwrap_or(0);
        let bits = u32::from_be_bytes([0, byte(0), byte(1), byte(2)]);
        (0..=group.len()).map(move |at| letter(bits, at))
    };
    bytes.chunks(3).flat_map(group).collect()
}

/// 11 bytes as 15 letters of base64 for URLs, without padding: the shape of a nonce.
pub fn encode_nonce(bytes: [u8; 11]) -> [u8; 15] {
    let mut padded = [0; 12];
    padded[..11].copy_from_slice(&bytes);
    std::array::from_fn(|i| {
        let group = &padded[i / 4 * 3..][..3];
        let bits = u32::from_be_bytes([0, group[0], group[1], group[2]]);
        LETTERS[(bits >> (18 - i % 4 * 6)) as usize & 63]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_keys() {
        // From the documentation of nats.io.
        let key = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4";
        assert!(decode_user(key).is_some());
        let other = key.replace("CNF4", "CNF5");
        for bad in ["", "U", &key[1..], &key.to_lowercase(), &other] {
            assert_eq!(decode_user(bad), None, "{bad}");
        }
        // A server's key is none of a user.
        assert_eq!(decode_user(&key.replacen('U', "N", 1)), None);
    }

    #[test]
    fn seeds() {
        // Of the nkeys library's own examples.
        let seed = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";
        assert!(decode_seed(seed).is_some());
        let server = seed.replacen("SU", "SN", 1);
        for bad in ["", "SU", &seed[1..], &server, &seed.replace("U3VY", "U4VY")] {
            assert_eq!(decode_seed(bad), None, "{bad}");
        }
        let key = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4";
        assert_eq!(encode_user(&decode_user(key).unwrap()), key);
    }

    #[test]
    fn base64_in_all_forms() {
        for length in 0..8 {
            let bytes = &b"\xfb\xff\x31hello"[..length];
            assert_eq!(decode_base64(&encode_base64(bytes)).as_deref(), Some(bytes));
        }
        for text in ["-_8x", "+/8x"] {
            assert_eq!(decode_base64(text), Some(vec![0xfb, 0xff, 0x31]), "{text}");
        }
        assert_eq!(decode_base64("YQ=="), Some(b"a".to_vec()));
        assert_eq!(decode_base64("YQ"), Some(b"a".to_vec()));
        assert_eq!(decode_base64("Y Q"), None);
    }

    #[test]
    fn a_nonce_reads_back() {
        let bytes = *b"hello world";
        let text = encode_nonce(bytes);
        assert_eq!(&text, b"aGVsbG8gd29ybGQ");
        let text = std::str::from_utf8(&text).unwrap();
        assert_eq!(decode_base64(text), Some(bytes.to_vec()));
    }
}
