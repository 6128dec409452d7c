#![no_main]

libfuzzer_sys::fuzz_target!(|film: &[u8]| storage_fuzz::probe(film));
