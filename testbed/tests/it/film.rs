//! The film and its check, on real ffmpeg.

use testbed::film::{self, Container, Expected, Film, Rate};

fn film(container: Container) -> Film {
    Film { seconds: 3, rate: Rate { num: 30000, den: 1001 }, height: 180, container, open_gop: true }
}

#[test]
fn each_frame_of_a_film_bears_its_number_in_every_container() {
    let dir = tempfile::tempdir().unwrap();
    for container in Container::ALL {
        let film = film(container);
        let path = dir.path().join(format!("{container:?}"));
        film::make(&film, &path).unwrap();
        let expected = Expected { frames: film.frames(), rate: film.rate };
        let report = film::verify(path.to_str().unwrap(), expected).unwrap();
        let [video] = &report.video[..] else { panic!("{container:?}: {report}") };
        assert_eq!((video.frames, video.missing, video.repeated, video.out_of_order), (89, 0, 0, 0), "{container:?}");
        // Matroska counts in milliseconds.
        assert!(video.pts_error_ms < 0.51, "{container:?}: {report}");
        let sound = report.audio.unwrap();
        assert!(
            sound.broken_seconds.is_empty() && sound.lag_ms_max - sound.lag_ms_min < 0.1,
            "{container:?}: {sound:?}"
        );
    }
}

#[test]
fn a_film_that_lost_a_second_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, cut) = (dir.path().join("whole.mp4"), dir.path().join("cut.mp4"));
    let film = Film { seconds: 4, open_gop: false, rate: Rate { num: 30, den: 1 }, ..film(Container::Mp4) };
    film::make(&film, &whole).unwrap();
    let expected = Expected { frames: film.frames(), rate: film.rate };
    assert_eq!(film::verify(whole.to_str().unwrap(), expected).unwrap().problems(expected), Vec::<String>::new());

    let lose = "[0:v]select='not(between(n,45,74))',setpts=N/30/TB[v];[0:a]aselect='not(between(t,1.5,2.5))',asetpts=N/SR/TB[a]";
    let status = testbed::process::tied("ffmpeg")
        .args(["-v", "error", "-i", whole.to_str().unwrap(), "-filter_complex", lose, "-map", "[v]", "-map", "[a]"])
        .arg(&cut)
        .status();
    assert!(status.unwrap().success());
    let report = film::verify(cut.to_str().unwrap(), expected).unwrap();
    assert_eq!((report.video[0].frames, report.video[0].missing), (90, 30));
    assert!(!report.audio.unwrap().broken_seconds.is_empty());
}
