use storage::range::ByteRange;

use super::*;

fn chunk(rendition: u32, n: u64, frames: u64) -> Chunk {
    Chunk {
        key: format!("{rendition}p/v{n:04}-1.mp4"),
        size: 100_817 + n,
        summary: FragmentSummary {
            init_bytes: 817,
            init_sha256: format!("{rendition:064}"),
            timescale: 90_000,
            start: n * 300 * 3003,
            duration: frames * 3003,
            samples: frames,
            width: rendition * 16 / 9,
            height: rendition,
            codecs: "avc1.64001f".into(),
        },
    }
}

/// Three parts of 300, 300 and 100 frames at 29.97 frames a second, in two sizes, with sound.
fn film() -> Film {
    let track = |height: u32| RenditionTrack {
        name: format!("{height}p"),
        parts: [300, 300, 100].into_iter().zip(0..).map(|(frames, n)| Some(chunk(height, n, frames))).collect(),
    };
    let fragment = |n: u64| Fragment {
        range: ByteRange::new(737 + n * 48_000, 737 + (n + 1) * 48_000).unwrap(),
        start: n * 192_000,
        duration: 192_000,
        samples: 188,
    };
    Film {
        title: "A film".into(),
        duration_seconds: 700.0 * 1001.0 / 30_000.0,
        longest_part_seconds: 10.01,
        renditions: vec![track(240), track(480)],
        sound: Sound::Ready(SoundTrack {
            key: "audio/a.mp4".into(),
            size: 737 + 6 * 48_000,
            summary: FragmentSummary {
                init_bytes: 737,
                init_sha256: "a".repeat(64),
                timescale: 48_000,
                start: 0,
                duration: 6 * 192_000,
                samples: 6 * 188,
                width: 0,
                height: 0,
                codecs: "mp4a.40.2".into(),
            },
            fragments: (0..6).map(fragment).collect(),
        }),
    }
}

const BASE: Links<'static> = Links::Relative { base: "https://s3.example/bucket/out/" };

fn body(film: &Film, key: &str) -> String {
    let documents = documents(film, &BASE).unwrap();
    documents.into_iter().find(|document| document.key == key).unwrap_or_else(|| panic!("no {key}")).body
}

#[test]
fn a_finished_film_is_published_whole_with_the_best_rendition_first() {
    let film = film();
    let playlist = body(&film, "480p.m3u8");
    assert!(playlist.ends_with("480p/v0002-1.mp4\n#EXT-X-ENDLIST\n"));
    assert!(playlist.contains("#EXT-X-PLAYLIST-TYPE:VOD\n"));
    assert!(playlist.contains("#EXT-X-MAP:URI=\"480p/v0000-1.mp4\",BYTERANGE=\"817@0\"\n"));
    assert!(playlist.contains("#EXTINF:10.010000,\n#EXT-X-BYTERANGE:100001@817\n480p/v0001-1.mp4\n"));
    assert!(playlist.contains("#EXTINF:3.336667,"));
    assert!(playlist.contains("#EXT-X-TARGETDURATION:11\n"));
    let master = body(&film, HLS_KEY);
    assert!(master.find("480p.m3u8").unwrap() < master.find("240p.m3u8").unwrap());
    assert!(master.contains("FRAME-RATE=29.970,CODECS=\"avc1.64001f,mp4a.40.2\",AUDIO=\"sound\"\n"));
    let manifest = body(&film, DASH_KEY);
    assert!(manifest.contains("frameRate=\"30000/1001\""));
    assert!(manifest.contains("mediaRange=\"817-100816\""));
    assert!(manifest.contains("mediaPresentationDuration=\"PT23.356667S\""));
}

#[test]
fn only_the_run_of_parts_that_all_renditions_have_is_published() {
    let mut film = film();
    film.renditions[0].parts[1] = None;
    let playlist = body(&film, "480p.m3u8");
    assert!(playlist.contains("#EXT-X-PLAYLIST-TYPE:EVENT\n") && !playlist.contains("ENDLIST"));
    assert!(playlist.contains("v0000") && !playlist.contains("v0001") && !playlist.contains("v0002"));
    assert!(playlist.contains("#EXT-X-TARGETDURATION:11\n"), "the target duration must not change later");
    let smil = body(&film, SMIL_KEY);
    assert!(smil.contains("starling-parts\" content=\"1/3\"") && smil.contains("par dur=\"10.01s\""));
    assert!(!smil.contains("v0001") && !smil.contains("v0002"));
    let sound = body(&film, "audio.m3u8");
    assert_eq!(sound.matches("#EXTINF").count(), 2, "sound goes as far as the picture: {sound}");
    assert!(!body(&film, DASH_KEY).contains("v0002"));
}

#[test]
fn every_playlist_before_is_a_beginning_of_the_next() {
    let whole = film();
    let entries = |playlist: &str| {
        playlist.lines().filter(|line| !line.contains("PLAYLIST-TYPE")).map(str::to_owned).collect::<Vec<_>>()
    };
    let mut before: Vec<String> = Vec::new();
    for have in 1..=3 {
        let mut film = whole.clone();
        for rendition in &mut film.renditions {
            rendition.parts.iter_mut().skip(have).for_each(|part| *part = None);
        }
        let now = entries(&body(&film, "240p.m3u8"));
        assert_eq!(now[..before.len()], before[..]);
        before = now;
    }
}

#[test]
fn nothing_is_published_before_the_first_part() {
    let mut film = film();
    film.renditions[1].parts[0] = None;
    assert_eq!(documents(&film, &BASE).unwrap(), []);
}

#[test]
fn a_film_waits_for_its_sound_before_it_is_complete() {
    let mut film = film();
    film.sound = Sound::Pending;
    assert!(body(&film, SMIL_KEY).contains("starling-sound\" content=\"pending\""));
    assert!(!body(&film, "480p.m3u8").contains("ENDLIST"));
    film.sound = Sound::Silent;
    assert!(body(&film, "480p.m3u8").contains("ENDLIST"));
    assert!(!body(&film, HLS_KEY).contains("AUDIO"));
}

#[test]
fn chunks_of_another_encoder_are_refused() {
    let mut film = film();
    film.renditions[0].parts[2].as_mut().unwrap().summary.init_sha256 = "f".repeat(64);
    let error = documents(&film, &BASE).unwrap_err();
    assert_eq!(error.code(), "init-differs");
    assert!(error.to_string().contains("240p/v0002-1.mp4"));
}

#[test]
fn a_chunk_a_frame_early_or_late_or_in_the_wrong_place_is_refused() {
    for start in [300 * 3003 - 3003, 300 * 3003 + 3003, 0, 600 * 3003] {
        let mut film = film();
        film.renditions[1].parts[1].as_mut().unwrap().summary.start = start;
        assert_eq!(documents(&film, &BASE).unwrap_err().code(), "time-gap", "start {start}");
    }
}

#[test]
fn the_muxers_guess_of_the_last_frame_may_be_a_tick_off() {
    let mut film = film();
    film.renditions[0].parts[0].as_mut().unwrap().summary.duration -= 1;
    assert!(body(&film, "240p.m3u8").contains("#EXTINF:10.010000,"));
}

#[test]
fn hollow_chunks_unequal_renditions_and_repeated_names_are_refused() {
    let mut hollow = film();
    hollow.renditions[0].parts[0].as_mut().unwrap().summary.samples = 0;
    let mut unequal = film();
    unequal.renditions[0].parts.pop();
    let mut twice = film();
    twice.renditions[0].name = "480p".into();
    let mut reserved = film();
    reserved.renditions[0].name = "audio".into();
    let mut none = film();
    none.renditions.clear();
    let codes = [hollow, unequal, twice, reserved, none].map(|film| documents(&film, &BASE).unwrap_err().code());
    assert_eq!(codes, ["hollow-chunk", "part-count", "name-twice", "name-twice", "no-rendition"]);
}

#[test]
fn keys_and_titles_with_any_characters_stay_inside_their_quotes() {
    let mut film = film();
    film.title = "Tom & \"Jerry\" <3 \u{1} – ü".into();
    film.renditions[0].parts[0].as_mut().unwrap().key = "a b&c\"d:é\n.mp4".into();
    for document in documents(&film, &BASE).unwrap() {
        if document.content_type.ends_with("+xml") {
            let mut reader = quick_xml::Reader::from_str(&document.body);
            while !matches!(reader.read_event().unwrap(), quick_xml::events::Event::Eof) {}
        }
        assert!(!document.body.contains("b&c") && !document.body.contains('\u{1}'), "{}", document.key);
    }
    assert!(body(&film, "240p.m3u8").contains("\na%20b%26c%22d%3A%C3%A9%0A.mp4\n"));
}

#[test]
fn a_signed_copy_holds_no_relative_name() {
    let sign = |key: &str| format!("https://s3.example/b/{key}?X-Amz-Signature=0&X-Amz-Expires=60");
    for document in documents(&film(), &Links::Absolute(&sign)).unwrap() {
        let names = document.body.matches(".mp4").count() + document.body.matches("p.m3u8").count();
        assert_eq!(
            names,
            document.body.matches("https://s3.example/b/").count()
                - usize::from(document.key == HLS_KEY || document.key == XSPF_KEY),
            "{}",
            document.key
        );
        assert!(!document.body.contains("xml:base"));
    }
}
