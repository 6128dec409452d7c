//! Argument vectors for ffmpeg. Nothing here runs it.
//!
//! Frames are chosen by exact presentation time and stamped anew from their number in the film, so that parts made apart
//! are continuous; sound is cut by whole packets and encoded once, because an encoder restarted at each cut adds its
//! priming samples at each cut.

use std::path::{Path, PathBuf};

use super::part::{AudioWork, Clip, RenditionOutput, VideoWork};

/// Units a second of the video made: 90000 where frames then fall on whole units, else a multiple of the rate. Were frame
/// times rounded, the reordering delay in the init segment would differ from part to part.
pub fn timescale(clip: &Clip) -> u32 {
    const USUAL: u64 = 90_000;
    let (num, den) = (u64::from(clip.rate.num.max(1)), u64::from(clip.rate.den));
    if !clip.constant || (USUAL * den).is_multiple_of(num) {
        return USUAL as u32;
    }
    let times = 10_000u64.div_ceil(num);
    u32::try_from(num * times).unwrap_or(clip.rate.num)
}

/// Frames from key frame to key frame: two seconds.
fn key_distance(clip: &Clip) -> u64 {
    let (num, den) = (u64::from(clip.rate.num), u64::from(clip.rate.den.max(1)));
    ((2 * num + den / 2) / den).max(1)
}

/// One decode, every rendition; `outputs` in the order of `work.renditions`. Progress comes on stdout as `key=value` lines.
pub fn video_args(work: &VideoWork, input: &Path, outputs: &[PathBuf]) -> Vec<String> {
    let mut args = words("-nostdin -y -v error -nostats -progress pipe:1 -filter_complex_threads 1 -threads 1 -copyts");
    args.extend(source(&work.input.format, input));
    args.extend(["-filter_complex".into(), graph(&work.clip, &work.renditions)]);
    for (i, (rendition, output)) in work.renditions.iter().zip(outputs).enumerate() {
        args.extend(["-map".into(), format!("[out{i}]")]);
        args.extend(encoder(&work.clip, rendition));
        args.push(local(output));
    }
    args
}

fn graph(clip: &Clip, renditions: &[RenditionOutput]) -> String {
    let stamp = if clip.constant {
        format!("settb={}/{},setpts=N+{}", clip.rate.den, clip.rate.num, clip.first_frame)
    } else {
        format!("setpts=PTS-({})", clip.origin)
    };
    let mut graph = format!("[0:v:0]trim=start_pts={}:end_pts={},{stamp}", clip.lo, clip.hi);
    graph += &format!(",split={}", renditions.len());
    (0..renditions.len()).for_each(|i| graph += &format!("[in{i}]"));
    for (i, output) in renditions.iter().enumerate() {
        graph += &format!(";[in{i}]scale=-2:{}[out{i}]", output.rendition.height);
    }
    graph
}

fn encoder(clip: &Clip, output: &RenditionOutput) -> Vec<String> {
    let (distance, timescale) = (key_distance(clip), timescale(clip));
    let mut args = words("-map_metadata -1 -map_chapters -1 -fps_mode passthrough -c:v libx264 -threads 1");
    args.extend(["-enc_time_base".into(), format!("1:{timescale}")]);
    args.extend(["-preset".into(), output.rendition.preset.clone(), "-crf".into(), output.rendition.crf.to_string()]);
    args.extend(words(&format!("-g {distance} -keyint_min {distance} -sc_threshold 0 -flags +cgop -pix_fmt yuv420p")));
    if !clip.constant {
        // With irregular times the reordering delay, and with it the init segment, would differ from part to part.
        args.extend(words("-bf 0"));
    }
    args.extend(words(&format!("-video_track_timescale {timescale} -avoid_negative_ts disabled")));
    args.extend(words("-movflags +frag_keyframe+default_base_moof+frag_discont+delay_moov+skip_trailer -f mp4"));
    args
}

/// Copies the part's sound packets out, unchanged; `None` if the part has no sound.
pub fn audio_copy_args(work: &VideoWork, input: &Path, output: &Path) -> Option<Vec<String>> {
    let cut = work.audio.as_ref()?;
    let mut args = words("-nostdin -y -v error -nostats -copyts");
    args.extend(source(&work.input.format, input));
    args.extend(words("-map 0:a:0 -vn -sn -dn -map_metadata -1 -c:a copy"));
    let bounds = [cut.lo.map(|lo| format!("lt(pts,{lo})")), cut.hi.map(|hi| format!("gte(pts,{hi})"))];
    let drop: Vec<String> = bounds.into_iter().flatten().collect();
    if !drop.is_empty() {
        args.extend(["-bsf:a".into(), format!("noise=amount=0:drop='{}'", drop.join("+"))]);
    }
    args.extend(words("-avoid_negative_ts disabled"));
    if cut.format == "adts" || cut.format == "mp3" {
        // Tags belong at the front of a file, and pieces are joined.
        args.extend(words("-write_id3v2 0"));
    }
    if cut.format == "mp3" {
        args.extend(words("-id3v2_version 0 -write_xing 0"));
    }
    if cut.format == "matroska" {
        // Live files may be joined. Their times are not used, but must not lie before 0, where an Opus encoder's first
        // packets are.
        args.extend(words("-live 1 -output_ts_offset 10"));
    }
    args.extend(["-f".into(), cut.format.clone(), local(output)]);
    Some(args)
}

/// Encodes the joined pieces once, as one fragmented MP4 whose sound stands at the film's own times from 0.
pub fn audio_encode_args(work: &AudioWork, joined: &Path, output: &Path) -> Vec<String> {
    let mut args = words("-nostdin -y -v error -nostats -progress pipe:1 -threads 1");
    args.extend(source(&work.format, joined));
    // Samples are counted: the joined pieces have no times of their own, or each its own.
    let mut filter = String::from("asetpts=N/SR/TB");
    if work.offset_seconds < 0.0 {
        filter += &format!(",atrim=start={:.6},asetpts=N/SR/TB", -work.offset_seconds);
    } else if work.offset_seconds > 0.0 {
        filter += &format!(",adelay=delays={:.3}:all=1", work.offset_seconds * 1000.0);
    }
    args.extend(["-map".into(), "0:a:0".into(), "-af".into(), filter]);
    args.extend(words("-map_metadata -1 -c:a aac -b:a"));
    args.push(work.bit_rate.to_string());
    args.extend(words("-movflags +default_base_moof+delay_moov+skip_trailer -frag_duration 2000000 -f mp4"));
    args.push(local(output));
    args
}

/// `format` names a muxer or demuxer (they differ for ADTS). The demuxer is named, and nothing but a plain file may be opened: a film cannot make ffmpeg follow a playlist.
fn source(format: &str, input: &Path) -> Vec<String> {
    let demuxer = if format == "adts" { "aac" } else { format };
    let mut args = words("-protocol_whitelist file -f");
    args.extend([demuxer.into(), "-i".into(), local(input)]);
    args
}

/// Paths that look like options or URLs stay paths.
fn local(path: &Path) -> String {
    format!("file:{}", path.display())
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(Into::into).collect()
}
