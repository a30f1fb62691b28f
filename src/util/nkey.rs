//! Public user keys in the text form of NATS: base32 of a prefix byte, 32 bytes of Ed25519 key and a
//! CRC16, 56 letters that begin with `U`.

const PREFIX_USER: u8 = 20 << 3;
const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
/// Prefix, key and checksum; 35 bytes are exactly 56 letters of five bits.
const RAW_BYTES: usize = 1 + 32 + 2;

pub type PublicKey = [u8; 32];

/// The key, or None where the text is no public user key.
pub fn decode_user(text: &str) -> Option<PublicKey> {
    if text.len() != RAW_BYTES * 8 / 5 {
        return None;
    }
    let (mut bits, mut count) = (0u32, 0);
    let mut raw = Vec::with_capacity(RAW_BYTES);
    for letter in text.bytes() {
        let value = ALPHABET.iter().position(|known| *known == letter)?;
        bits = bits << 5 | value as u32;
        count += 5;
        if count >= 8 {
            count -= 8;
            raw.push((bits >> count) as u8);
        }
    }
    let (body, checksum) = raw.split_at(RAW_BYTES - 2);
    let good = body[0] == PREFIX_USER && checksum == crc16(body).to_le_bytes();
    good.then(|| body[1..].try_into().expect("33 bytes less one"))
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

/// 11 bytes as 15 letters of base64 for URLs, without padding: the shape of a nonce.
pub fn encode_nonce(bytes: [u8; 11]) -> [u8; 15] {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
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
    fn base64_in_all_forms() {
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
