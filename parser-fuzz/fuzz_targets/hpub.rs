#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| midge::broker::fuzz::headers(data));
