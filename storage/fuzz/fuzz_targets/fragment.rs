#![no_main]

libfuzzer_sys::fuzz_target!(|object: &[u8]| {
    let _ = storage::film::fragment::inspect(object);
});
