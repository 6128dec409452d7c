//! What is published decodes to the film, checked by ffmpeg and by the DTD of the W3C, none of which is ours.

use std::process::Command;

use testbed::film::{Expected, Rate, Report, verify_any};

use super::shelf::{self, Shelf};

const THIRTY: Rate = Rate { num: 30, den: 1 };
const NTSC: Rate = Rate { num: 30_000, den: 1001 };

fn assert_right(report: &Report, expected: Expected, renditions: usize, what: &str) {
    assert_eq!(report.video.len(), renditions, "{what}: {report:?}");
    for video in &report.video {
        assert_eq!(video.frames, expected.frames, "{what}: {video:?}");
        assert_eq!((video.missing, video.repeated, video.out_of_order), (0, 0, 0), "{what}: {video:?}");
        assert!(video.pts_error_ms < 0.01, "{what}: {video:?}");
    }
    let sound = report.audio.as_ref().unwrap_or_else(|| panic!("{what} has no sound"));
    assert!(sound.broken_seconds.is_empty() && sound.gap_ms < 1.0, "{what}: {sound:?}");
    assert!(sound.lag_ms_max - sound.lag_ms_min < 1.0, "{what}: {sound:?}");
}

#[tokio::test]
async fn every_document_decodes_to_every_frame_once_with_whole_sound() {
    for (rate, heights) in [(THIRTY, &[240, 180][..]), (NTSC, &[240][..])] {
        let shelf = Shelf::fill(12, rate, heights);
        let served = shelf.serve().await;
        shelf.publish(&shelf.film, &served.base);
        for key in ["master.m3u8", "manifest.mpd", "movie.smil"] {
            let report = verify_any(&format!("{}{key}", served.base), shelf.expected).await.unwrap();
            assert_right(&report, shelf.expected, heights.len(), &format!("{key} at {rate}"));
        }
    }
}

#[tokio::test]
async fn two_parts_of_four_decode_to_exactly_their_frames() {
    let shelf = Shelf::fill(12, THIRTY, &[180]);
    let served = shelf.serve().await;
    let film = shelf.after(2, true);
    let frames: u64 = film.renditions[0].parts.iter().flatten().map(|chunk| chunk.summary.samples).sum();
    assert!(frames < shelf.expected.frames);
    let film_so_far = shelf.publish(&film, &served.base);
    // ffmpeg waits for more of an unfinished playlist, so it decodes a copy that ends here.
    let playlist = film_so_far.iter().find(|document| document.key == "180p.m3u8").unwrap();
    shelf.put("so-far.m3u8", format!("{}#EXT-X-ENDLIST\n", playlist.body));
    for key in ["manifest.mpd", "so-far.m3u8"] {
        let url = format!("{}{key}", served.base);
        let output = tokio::task::spawn_blocking(move || {
            let args = ["-nostdin", "-v", "error", "-i", &url, "-map", "0:v:0", "-f", "framemd5", "-"];
            Command::new("ffmpeg").args(args).output().unwrap()
        })
        .await
        .unwrap();
        let lines = String::from_utf8(output.stdout).unwrap();
        let decoded = lines.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(decoded as u64, frames, "{key}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn the_smil_is_valid_by_the_dtd_of_the_w3c() {
    let shelf = Shelf::fill(6, THIRTY, &[240, 180]);
    for (parts, sound) in [(1, false), (2, true)] {
        let dir = tempfile::tempdir().unwrap();
        shelf::write(&shelf.publish(&shelf.after(parts, sound), "https://s3.example/films/out/"), dir.path());
        let output = Command::new("xmllint")
            .args(["--nonet", "--noout", "--valid"])
            .arg(dir.path().join("movie.smil"))
            .env("XML_CATALOG_FILES", "/usr/share/xml/w3c-sgml-lib/schema/dtd/catalog.xml")
            .output()
            .expect("xmllint; `make setup` installs it (Debian packages libxml2-utils and w3c-sgml-lib)");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && errors.is_empty(), "{errors}");
    }
}
