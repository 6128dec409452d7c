//! What is no film, or no longer whole, is refused with a reason; foreign bytes never panic.

use proptest::prelude::*;
use storage::film::{FilmError, PlanOptions, fragment};

use super::films::{Picture, film};
use super::tools::probe;

fn refused(bytes: &[u8]) -> FilmError {
    probe(bytes, PlanOptions::default()).unwrap_err()
}

fn closed(name: &str, options: &str) -> Vec<u8> {
    std::fs::read(film(Picture::Closed30, name, options)).unwrap()
}

fn last() -> Vec<u8> {
    closed("last.mp4", "-map 0 -c copy")
}

/// One small film of each kind.
fn kinds() -> [Vec<u8>; 4] {
    const FRAGMENTED: &str = "-t 2 -map 0 -c copy -movflags +frag_keyframe+empty_moov+default_base_moof";
    [
        closed("short.mp4", "-t 2 -map 0 -c copy"),
        closed("short-frag.mp4", FRAGMENTED),
        closed("short.mkv", "-t 2 -map 0 -c copy"),
        closed("short.ts", "-t 2 -map 0 -c copy"),
    ]
}

#[test]
fn what_is_no_film_is_named_so() {
    assert_eq!(refused(b"").code(), "zero-bytes");
    assert_eq!(refused(b"<!DOCTYPE html><title>404</title>").code(), "not-a-film");
    assert_eq!(refused(b"RIFF\x10\0\0\0AVI LIST").code(), "unsupported-container");
    let noise: Vec<u8> = (0..100_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    assert_eq!(refused(&noise).code(), "not-a-film");
}

#[test]
fn a_film_cut_short_is_refused_wherever_its_index_stands() {
    let first = closed("first.mp4", "-map 0 -c copy -movflags +faststart");
    let fragmented = closed("fragmented.mp4", "-map 0 -c copy -movflags +frag_keyframe+empty_moov");
    let mkv = closed("film.mkv", "-map 0 -c copy");
    let webm = closed("film.webm", "-c:v libvpx -deadline realtime -cpu-used 8 -g 30 -b:v 400k -c:a libopus");
    for film in [last(), first, fragmented, mkv, webm] {
        for keep in [film.len() / 10, film.len() / 2, film.len() - 1] {
            assert_eq!(refused(&film[..keep]).code(), "truncated-film", "{keep} of {}", film.len());
        }
    }
    let ts = closed("film.ts", "-map 0 -c copy");
    assert_eq!(refused(&ts[..ts.len() / 2 / 188 * 188 + 100]).code(), "truncated-film");
}

#[test]
fn sound_alone_is_no_film_to_transcode() {
    for (name, options) in
        [("sound.mp4", "-vn -c copy"), ("sound.mka", "-vn -c copy -f matroska"), ("sound.ts", "-vn -c copy")]
    {
        assert_eq!(refused(&closed(name, options)).code(), "no-video", "{name}");
    }
}

#[test]
fn sound_that_cannot_be_joined_is_refused() {
    assert_eq!(refused(&closed("pcm.mkv", "-c:v copy -c:a pcm_s16le")).code(), "unsupported-audio");
    assert_eq!(refused(&closed("pcm.mov", "-c:v copy -c:a pcm_s16le")).code(), "unsupported-audio");
}

#[test]
fn matroska_with_uneven_times_is_refused_with_a_way_out() {
    let film = std::fs::read(film(Picture::Variable, "film.mkv", "-map 0 -c copy")).unwrap();
    let error = refused(&film);
    assert_eq!(error.code(), "irregular-times");
    assert!(error.hint().contains("-c copy"));
}

#[test]
fn an_index_that_claims_too_much_is_stopped_by_a_limit() {
    let film = last();
    let few = PlanOptions { samples_max: 100, ..PlanOptions::default() };
    assert_eq!(probe(&film, few).unwrap_err().code(), "film-limit");
    let little = PlanOptions { index_bytes_max: 70_000, ..PlanOptions::default() };
    assert_eq!(probe(&film, little).unwrap_err().code(), "film-limit");
}

#[test]
fn hostile_boxes_are_errors_and_cost_no_memory() {
    let ftyp = b"\0\0\0\x10ftypisom\0\0\0\0";
    let moov = |body: &[u8]| [&ftyp[..], &(body.len() as u32 + 8).to_be_bytes(), b"moov", body].concat();
    // Sizes that are no sizes, and sizes beyond what holds them.
    for size in [1u32, 2, 7, 0x7fff_ffff, u32::MAX] {
        let body = [&size.to_be_bytes()[..], b"mvhd", &[0; 64]].concat();
        assert_eq!(refused(&moov(&body)).code(), "damaged-index", "size {size}");
    }
    let endless = [&ftyp[..], b"\0\0\0\x01mdat\xff\xff\xff\xff\xff\xff\xff\xff"].concat();
    assert!(["damaged-index", "truncated-film"].contains(&refused(&endless).code()));
    // A box in a box in a box.
    let mut nested = Vec::new();
    for _ in 0..1000 {
        nested = [&(nested.len() as u32 + 8).to_be_bytes()[..], b"trak", &nested].concat();
    }
    assert_eq!(refused(&moov(&nested)).code(), "damaged-index");
    // A table of four thousand million samples with no bytes behind it.
    let mut film = last();
    let at = film.windows(4).position(|kind| kind == b"stsz").unwrap();
    film[at + 8..at + 16].copy_from_slice(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(refused(&film).code(), "film-limit");
}

#[test]
fn an_object_shorter_than_it_was_said_to_be_is_a_truncated_film() {
    use storage::film::{Probe, Step};
    let mut probe = Probe::new(1 << 30, PlanOptions::default());
    let Step::Need(ranges) = probe.step().unwrap() else { panic!("done without a byte") };
    probe.supply(ranges[0], vec![0; 10]);
    assert_eq!(probe.step().unwrap_err().code(), "truncated-film");
}

#[test]
fn a_part_that_is_not_whole_or_not_the_right_one_is_found_out() {
    let options = "-t 2 -an -c copy -movflags +frag_keyframe+default_base_moof+frag_discont+delay_moov+skip_trailer";
    let bytes = closed("part.mp4", options);
    let summary = fragment::inspect(&bytes).unwrap().summary;
    assert!(fragment::inspect(&bytes[..bytes.len() - 1]).is_err());
    assert!(fragment::inspect(&[&bytes[..], b"junk"].concat()).is_err());
    assert!(fragment::inspect(&bytes[summary.init_bytes as usize..]).is_err());
    let (plan, _) = probe(&last(), PlanOptions::default()).unwrap();
    assert_eq!(fragment::check(&summary, &plan.parts[0].clip).unwrap_err().code(), "fragment-timescale");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn changed_bytes_never_panic(
        kind in 0usize..4,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        near_index in any::<bool>(),
    ) {
        static KINDS: std::sync::LazyLock<[Vec<u8>; 4]> = std::sync::LazyLock::new(kinds);
        let mut film = KINDS[kind].clone();
        // The index of the MP4 stands at its end, all others have theirs at the start.
        let window = if near_index { 4096.min(film.len()) } else { film.len() };
        let start = if kind == 0 { film.len() - window } else { 0 };
        for (index, byte) in changes {
            film[start + index.index(window)] = byte;
        }
        let options = PlanOptions { index_bytes_max: 4 << 20, ..PlanOptions::default() };
        if let Ok((plan, _)) = probe(&film, options) {
            prop_assert!(!plan.parts.is_empty());
        }
        let _ = fragment::inspect(&film);
    }
}
