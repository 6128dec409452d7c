#![no_main]

use storage::overlay::{bencode, metainfo::Metainfo};

// What is accepted is canonical; a metainfo that is accepted keeps its promises about lengths.
libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let Ok(value) = bencode::decode(input) {
        assert_eq!(value.encode(), input);
    }
    if let Ok(meta) = Metainfo::decode(input) {
        assert_eq!(meta.files.iter().map(|f| f.len).sum::<u64>(), meta.layout.total());
        assert_eq!(meta.roots.len(), meta.layout.chunks() as usize);
    }
});
