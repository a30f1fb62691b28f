#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| drop(midge::monitor::http::parse(data)));
