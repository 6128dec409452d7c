//! Every frame once, every sound packet once, for every container.

use std::path::Path;
use std::process::Command;

use storage::film::part::{AudioPiece, AudioWork};
use storage::film::{Container, Plan, PlanOptions, ffmpeg, fragment};

use super::films::{Picture, film};
use super::tools::{self, Cost, framemd5, frames, numbered, probe, rebuild, run, work};

const COPY: &str = "-map 0 -c copy";
const FIRST: &str = "-map 0 -c copy -movflags +faststart";
const FRAGMENTED: &str = "-map 0 -c copy -movflags +frag_keyframe+empty_moov+default_base_moof";

fn planned(path: &Path) -> (Vec<u8>, Plan, Cost) {
    let film = std::fs::read(path).unwrap();
    let (plan, cost) = probe(&film, PlanOptions { chunk_seconds: 3.0, ..PlanOptions::default() }).unwrap();
    let share = plan.bytes() as f64 / film.len() as f64 * 100.0;
    println!("{}: {cost:?}, parts {} of {share:.1} %", path.display(), plan.parts.len());
    (film, plan, cost)
}

/// Probe, rebuild, decode each part, compare with the whole.
fn frames_are_exact(path: &Path) -> (Vec<u8>, Plan, Cost) {
    let (film, plan, cost) = planned(path);
    assert!(plan.parts.len() >= 3, "{} parts", plan.parts.len());
    let dir = tempfile::tempdir().unwrap();
    let mut joined = Vec::new();
    for (number, part) in plan.parts.iter().enumerate() {
        let input = numbered(dir.path(), "in", number);
        rebuild(&film, part, &input);
        let trim = format!("trim=start_pts={}:end_pts={}", part.clip.lo, part.clip.hi);
        let found = frames(Some(&part.input.format), &input, &trim);
        assert_eq!(found.len() as u64, part.clip.frames, "frames of part {number}");
        assert_eq!(joined.len() as u64, part.clip.first_frame, "first frame of part {number}");
        joined.extend(found);
    }
    let whole = frames(None, path, "null");
    assert_eq!(whole.len() as u64, plan.film.frames);
    assert!(joined == whole, "frames differ");
    (film, plan, cost)
}

/// Everything a guest and the home do, and then what a player sees.
fn result_is_exact(path: &Path) -> Plan {
    let (film, plan, _) = frames_are_exact(path);
    let dir = tempfile::tempdir().unwrap();
    let (mut video, mut sound, mut inits) = (Vec::new(), Vec::new(), Vec::new());
    for (number, part) in plan.parts.iter().enumerate() {
        let input = numbered(dir.path(), "in", number);
        rebuild(&film, part, &input);
        let work = work(part, &[120, 90]);
        let outputs = [numbered(dir.path(), "a", number), numbered(dir.path(), "b", number)];
        tools::ffmpeg(&ffmpeg::video_args(&work, &input, &outputs));
        for (output, height) in outputs.iter().zip([120, 90]) {
            let bytes = std::fs::read(output).unwrap();
            let inspection = fragment::inspect(&bytes).unwrap();
            fragment::check(&inspection.summary, &part.clip).unwrap();
            assert_eq!(inspection.summary.height, height);
            assert_eq!(inspection.summary.width % 2, 0);
            assert!(inspection.summary.codecs.starts_with("avc1."), "{}", inspection.summary.codecs);
            assert_eq!(inspection.fragments.last().unwrap().range.end(), bytes.len() as u64);
            if height == 120 {
                inits.push(inspection.summary.init_sha256.clone());
                let from = if number == 0 { 0 } else { inspection.summary.init_bytes as usize };
                video.extend_from_slice(&bytes[from..]);
            }
        }
        if let Some(args) = ffmpeg::audio_copy_args(&work, &input, &numbered(dir.path(), "s", number)) {
            tools::ffmpeg(&args);
            sound.extend(std::fs::read(numbered(dir.path(), "s", number)).unwrap());
        }
    }
    inits.dedup();
    assert_eq!(inits.len(), 1, "one init segment");
    times_are_exact(&dir.path().join("joined.mp4"), &video, &plan, path);
    if plan.film.audio.is_some() {
        sound_is_exact(dir.path(), &sound, &plan, path);
    }
    plan
}

fn times_are_exact(joined: &Path, video: &[u8], plan: &Plan, source: &Path) {
    std::fs::write(joined, video).unwrap();
    let timescale = f64::from(ffmpeg::timescale(&plan.parts[0].clip));
    let shown = framemd5(None, joined, "null");
    assert_eq!(shown.len() as u64, plan.film.frames);
    let rate = f64::from(plan.film.rate.num) / f64::from(plan.film.rate.den);
    let wanted: Vec<f64> = if plan.film.constant {
        (0..plan.film.frames).map(|n| n as f64 / rate).collect()
    } else {
        let tick = plan.parts[0].clip.time_base;
        let times = framemd5(None, source, "null");
        times.iter().map(|(pts, _)| (pts - times[0].0) as f64 * f64::from(tick.num) / f64::from(tick.den)).collect()
    };
    for ((pts, _), wanted) in shown.iter().zip(wanted) {
        let error = (*pts as f64 / timescale - wanted).abs();
        assert!(error < 1e-5, "{pts} is {error} s off");
    }
}

fn sound_is_exact(dir: &Path, pieces: &[u8], plan: &Plan, source: &Path) {
    let audio = plan.film.audio.as_ref().unwrap();
    let (joined, encoded) = (dir.join("pieces"), dir.join("sound.mp4"));
    std::fs::write(&joined, pieces).unwrap();
    let mut copy = Command::new("ffmpeg");
    copy.args("-v error -i".split(' ')).arg(source).args(["-map", "0:a:0", "-c", "copy", "-f", &audio.format, "-"]);
    let whole = run(&mut copy);
    if audio.format == "matroska" {
        assert!(packets("matroska", &joined) == packets_of(&whole, dir), "sound packets");
    } else {
        assert!(pieces == whole, "sound packets: {} bytes, not {}", pieces.len(), whole.len());
    }
    let work = AudioWork {
        format: audio.format.clone(),
        pieces: Vec::<AudioPiece>::new(),
        offset_seconds: plan.audio_offset_seconds,
        bit_rate: 96_000,
        key: String::new(),
        put: String::new(),
    };
    tools::ffmpeg(&ffmpeg::audio_encode_args(&work, &joined, &encoded));
    let inspection = fragment::inspect(&std::fs::read(&encoded).unwrap()).unwrap();
    assert_eq!(inspection.summary.codecs, "mp4a.40.2");
    assert!(inspection.fragments.len() > 3, "{} fragments", inspection.fragments.len());
    let is_mp4 = matches!(plan.film.container, Container::Mp4 | Container::FragmentedMp4);
    assert_eq!(plan.audio_end_seconds.is_some(), is_mp4);
    if let Some(end) = plan.audio_end_seconds {
        fragment::check_sound(&inspection.summary, end).unwrap();
        let summary = &inspection.summary;
        let error = (summary.start + summary.duration) as f64 / f64::from(summary.timescale) - end;
        assert!(error.abs() < 0.1, "sound ends {error} s late");
    }
    let lag = lag(source, &encoded);
    assert!(lag.abs() < 0.004, "sound is {lag} s late");
}

fn packets(format: &str, path: &Path) -> Vec<String> {
    let mut hash = Command::new("ffmpeg");
    hash.args(["-v", "error", "-f", format, "-i"]).arg(path).args("-map 0:a:0 -c copy -f framemd5 -".split(' '));
    let text = String::from_utf8(run(&mut hash)).unwrap();
    let last = |line: &str| line.rsplit(',').next().unwrap_or_default().trim().to_string();
    text.lines().filter(|line| !line.starts_with('#')).map(last).collect()
}

fn packets_of(whole: &[u8], dir: &Path) -> Vec<String> {
    std::fs::write(dir.join("whole"), whole).unwrap();
    packets("matroska", &dir.join("whole"))
}

/// Seconds by which the chirp in `made` is later than in `source`, both against their own first video frame or zero.
fn lag(source: &Path, made: &Path) -> f64 {
    let (source, made) = (waveform(source), waveform(made));
    let difference = |shift: i64| {
        let pairs = (20_000..60_000i64).step_by(97).map(|i| (source[i as usize], made[(i + shift) as usize]));
        pairs.map(|(a, b)| f64::from((i32::from(a) - i32::from(b)).abs())).sum::<f64>()
    };
    let best = (-6000..6000).min_by(|&a, &b| difference(a).total_cmp(&difference(b))).unwrap();
    best as f64 / 44_100.0
}

/// Mono samples from the time of the first video frame on, or from time 0 where there is no video.
fn waveform(path: &Path) -> Vec<i16> {
    let mut first = Command::new("ffprobe");
    first.args("-v error -select_streams v:0 -read_intervals %+#1 -show_entries frame=pts_time -of csv=p=0".split(' '));
    let first = String::from_utf8(run(first.arg(path))).unwrap();
    let start: f64 = first.trim().trim_end_matches(',').parse().unwrap_or(0.0);
    let mut decode = Command::new("ffmpeg");
    decode.args("-v error -copyts -i".split(' ')).arg(path).args(["-map", "0:a:0", "-af"]);
    decode.arg(format!("asetpts=PTS-({start})/TB,aresample=44100:async=1:first_pts=0"));
    decode.args("-ac 1 -f s16le -".split(' '));
    run(&mut decode).chunks_exact(2).map(|pair| i16::from_le_bytes([pair[0], pair[1]])).collect()
}

#[test]
fn mp4_with_its_index_first_is_exact_and_fetched_once() {
    let (film, plan, cost) = frames_are_exact(&film(Picture::Closed30, "first.mp4", FIRST));
    assert!(cost.gets <= 2, "{cost:?}");
    assert!(plan.bytes() as f64 <= 1.02 * film.len() as f64);
}

#[test]
fn mp4_with_its_index_last_is_exact_end_to_end() {
    let plan = result_is_exact(&film(Picture::Closed30, "last.mp4", COPY));
    assert!(plan.film.constant);
    assert_eq!((plan.film.rate.num, plan.film.rate.den), (30, 1));
}

#[test]
fn mp4_with_open_groups_of_pictures_is_exact_end_to_end() {
    let path = film(Picture::Open2997, "last.mp4", COPY);
    let plan = result_is_exact(&path);
    assert_eq!((plan.film.rate.num, plan.film.rate.den), (30000, 1001));
    assert!(plan.bytes() as f64 <= 1.02 * std::fs::metadata(path).unwrap().len() as f64);
}

#[test]
fn fragmented_mp4_is_exact_end_to_end() {
    let plan = result_is_exact(&film(Picture::Closed30, "frag.mp4", FRAGMENTED));
    assert_eq!(plan.film.container, Container::FragmentedMp4);
    frames_are_exact(&film(Picture::Open2997, "frag.mp4", FRAGMENTED));
}

#[test]
fn fragmented_mp4_with_other_indexes_or_none_is_exact() {
    for (name, options) in [
        ("sidx.mp4", "-map 0 -c copy -movflags +frag_keyframe+default_base_moof+global_sidx"),
        ("bare.mp4", "-map 0 -c copy -movflags +frag_keyframe+skip_trailer+delay_moov"),
        ("old.mp4", "-map 0 -c copy -movflags +frag_keyframe+separate_moof"),
    ] {
        frames_are_exact(&film(Picture::Closed30, name, options));
    }
}

#[test]
fn film_rates_that_are_no_whole_ticks_still_give_one_init_segment() {
    let plan = result_is_exact(&film(Picture::Closed23976, "last.mp4", COPY));
    assert_eq!((plan.film.rate.num, plan.film.rate.den), (24000, 1001));
}

#[test]
fn uneven_frame_times_are_kept() {
    let plan = result_is_exact(&film(Picture::Variable, "last.mp4", COPY));
    assert!(!plan.film.constant);
}

#[test]
fn a_film_trimmed_by_its_edit_list_is_cut_as_it_is_shown() {
    let plan = result_is_exact(&film(Picture::Closed30, "trimmed.mp4", "-ss 1.5 -map 0 -c copy"));
    assert!(plan.film.frames < 360);
}

#[test]
fn matroska_is_exact_end_to_end() {
    let plan = result_is_exact(&film(Picture::Closed30, "film.mkv", COPY));
    assert_eq!(plan.film.container, Container::Matroska);
    result_is_exact(&film(Picture::Open2997, "film.mkv", COPY));
}

#[test]
fn webm_with_opus_is_exact_end_to_end() {
    let options = "-c:v libvpx -deadline realtime -cpu-used 8 -g 30 -b:v 400k -c:a libopus";
    let plan = result_is_exact(&film(Picture::Closed30, "film.webm", options));
    assert_eq!(plan.film.audio.unwrap().codec, "opus");
}

#[test]
fn transport_streams_are_exact_end_to_end() {
    let plan = result_is_exact(&film(Picture::Closed30, "film.ts", COPY));
    assert_eq!(plan.film.container, Container::MpegTs);
    result_is_exact(&film(Picture::Open2997, "film.ts", COPY));
    // Pictures that count on over a whole film, on from wherever a part begins.
    let open =
        "-c:v libx264 -preset ultrafast -sc_threshold 0 -x264-params open-gop=1:bframes=3:b-adapt=0 -t 7 -c:a copy";
    for keys in [20, 40, 60] {
        result_is_exact(&film(Picture::Open2997, &format!("every-{keys}.ts"), &format!("{open} -g {keys}")));
    }
    result_is_exact(&film(Picture::Open2997, "late.ts", "-c copy -output_ts_offset 90000"));
    let x265 = "-c:v libx265 -preset ultrafast -x265-params log-level=none:open-gop=1:keyint=40:min-keyint=40:bframes=3 -t 7 -c:a copy";
    result_is_exact(&film(Picture::Open2997, "hevc.ts", x265));
    result_is_exact(&film(Picture::Open2997, "mpeg2.ts", "-c:v mpeg2video -bf 2 -g 30 -q:v 3 -c:a copy"));
}

#[test]
fn sound_of_an_mp4_ends_when_its_packets_say_whatever_they_are() {
    for (name, options) in [
        ("opus.mp4", "-c:v copy -c:a libopus"),
        ("ac3.mp4", "-c:v copy -c:a ac3"),
        ("flac.mp4", "-c:v copy -c:a flac -strict -2"),
        ("short-sound.mp4", "-c:v copy -c:a aac -af atrim=end=8"),
        ("long-sound.mp4", "-c:v copy -c:a aac -af apad=pad_dur=5"),
        ("frag-opus.mp4", "-c:v copy -c:a libopus -movflags +frag_keyframe+empty_moov+default_base_moof"),
    ] {
        result_is_exact(&film(Picture::Closed30, name, options));
    }
}
