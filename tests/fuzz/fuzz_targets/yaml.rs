#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gangplank_fuzz::run("yaml", data));
