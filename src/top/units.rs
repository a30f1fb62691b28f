//! Numbers as nats-top writes them: bytes by 1024, counts by 1000, one decimal.

/// Bytes: `512`, `1.5K`, `8.6M`, `3.0G`.
pub fn bytes(raw: bool, size: u64) -> String {
    const KIBI: f64 = 1024.0;
    let value = size as f64;
    match () {
        () if raw || value < KIBI => size.to_string(),
        () if value < KIBI * KIBI => format!("{:.1}K", value / KIBI),
        () if value < KIBI * KIBI * KIBI => format!("{:.1}M", value / KIBI / KIBI),
        () => format!("{:.1}G", value / KIBI / KIBI / KIBI),
    }
}

/// Counts: `999`, `1.5K`, `8.6M`, `3.0B`, `1.0T`.
pub fn count(raw: bool, number: u64) -> String {
    let value = number as f64;
    match () {
        () if raw || value < 1e3 => number.to_string(),
        () if value < 1e6 => format!("{:.1}K", value / 1e3),
        () if value < 1e9 => format!("{:.1}M", value / 1e6),
        () if value < 1e12 => format!("{:.1}B", value / 1e9),
        () => format!("{:.1}T", value / 1e12),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (size, expect) in [
            (0, "0"),
            (1023, "1023"),
            (1024, "1.0K"),
            (9_017_754, "8.6M"),
            (3 << 30, "3.0G"),
            (5 << 40, "5120.0G"),
        ] {
            assert_eq!(bytes(false, size), expect);
            assert_eq!(bytes(true, size), size.to_string());
        }
        for (number, expect) in [
            (999, "999"),
            (1000, "1.0K"),
            (568_700, "568.7K"),
            (1_600_000, "1.6M"),
            (2_000_000_000, "2.0B"),
            (u64::MAX, "18446744.1T"),
        ] {
            assert_eq!(count(false, number), expect);
            assert_eq!(count(true, number), number.to_string());
        }
    }
}
