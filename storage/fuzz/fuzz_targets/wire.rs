#![no_main]

use bytes::BytesMut;
use storage::overlay::wire;

// A stream of frames: never a panic, and what is understood reads back the same.
libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let mut buffer = BytesMut::from(input);
    while let Ok(Some(message)) = wire::decode(&mut buffer) {
        if matches!(message, wire::Message::Ignored | wire::Message::Hello(_)) {
            continue;
        }
        let mut again = BytesMut::new();
        wire::encode(&message, &mut again);
        assert_eq!(wire::decode(&mut again), Ok(Some(message)));
    }
});
