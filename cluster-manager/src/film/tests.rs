use storage::film::part::{Clip, PartInput, Ratio};
use storage::film::plan::{AudioInfo, AudioSpan, Container, FilmInfo, PlannedPart};

use super::*;

pub(crate) const XML: &str = "<job xmlns='urn:starling:job:1' kind='transcode'><source>s3://films/in</source>\
                              <target>s3://films/out/</target><rendition height='90' codec='h264'/></job>";

pub(crate) fn film() -> FilmJob {
    FilmJob::new("j-1", Job::parse(XML).unwrap()).unwrap()
}

/// Parts of four seconds, with sound.
pub(crate) fn prepared(parts: u32) -> Prepared {
    let rate = Ratio { num: 25, den: 1 };
    let part = |n: u32| PlannedPart {
        input: PartInput { format: "matroska".into(), head: String::new(), ranges: Vec::new() },
        clip: Clip {
            lo: 0,
            hi: 4_000,
            time_base: Ratio { num: 1, den: 1_000 },
            first_frame: u64::from(n) * 100,
            frames: 100,
            rate,
            constant: true,
            origin: 0,
        },
        audio: Some(AudioSpan { lo: None, hi: None, format: "adts".into() }),
        start_seconds: f64::from(n) * 4.0,
        duration_seconds: 4.0,
    };
    let audio = AudioInfo { codec: "aac".into(), format: "adts".into(), sample_rate: 48_000, channels: 2 };
    let film = FilmInfo {
        container: Container::Matroska,
        width: 160,
        height: 90,
        duration: f64::from(parts) * 4.0,
        rate,
        constant: true,
        frames: u64::from(parts) * 100,
        audio: Some(audio),
    };
    Prepared {
        etag: "\"1\"".into(),
        size: 1_000,
        plan: Plan { film, parts: (0..parts).map(part).collect(), audio_offset_seconds: 0.0 },
        options: PlanOptions::default(),
        heads: OnceCell::new(),
        claimed: OnceCell::new(),
    }
}

pub(crate) fn output(key: &str, bytes: &[u8]) -> Output {
    Output { key: key.into(), size: bytes.len() as u64, sha256: hex(&Sha256::digest(bytes)), fragments: None }
}

#[test]
fn pieces_of_any_size_that_a_domain_may_say_are_called_out() {
    let huge = Output { size: u64::MAX, ..output("k", b"") };
    let pieces = BTreeMap::from([(0, huge.clone()), (1, huge)]);
    assert_eq!(film().audio_call(&prepared(2), &pieces).unwrap().bytes, u64::MAX);
}

#[test]
fn only_the_sound_that_was_ordered_is_given_to_be_read() {
    let film = film();
    let said = [output("other/secret", b"a"), output("out/.starling/j-1/sound-00001-2", b"b")];
    assert_eq!(film.sound_piece(1, 2, &said), Some(&said[1]));
    assert_eq!(film.sound_piece(1, 2, &said[..1]), None);
    assert_eq!((film.sound_piece(0, 2, &said), film.sound_piece(1, 1, &said)), (None, None));
}
