//! A small film made the way a job makes it (planned, cut, encoded part by part, sound once), on a shelf from which the
//! tests serve it over HTTP with ranges and CORS.

use std::{
    path::Path,
    process::Command,
    sync::{Arc, RwLock},
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, Response, StatusCode, header},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use cluster_manager::results::{self, Chunk, Document, Film, Links, RenditionTrack, Sound, SoundTrack};
use storage::{
    film::{
        FilmError, PlanOptions, Probe, ffmpeg, fragment,
        part::{AudioCut, AudioWork, Rendition, RenditionOutput, Source, VideoWork},
    },
    range::ByteRange,
};
use testbed::film::{self, Expected, Rate};

type Files = std::collections::BTreeMap<String, Vec<u8>>;

/// Everything is on it from the start but the documents, which are put as a job would.
#[derive(Clone)]
pub struct Shelf {
    files: Arc<RwLock<Files>>,
    pub film: Film,
    pub expected: Expected,
}

pub struct Served {
    pub base: String,
    _task: tokio::task::JoinSet<()>,
}

impl Shelf {
    /// `seconds` of film in parts of three seconds, one rendition a height.
    pub fn fill(seconds: u32, rate: Rate, heights: &[u32]) -> Self {
        Self::fill_with(&film::Film { seconds, rate, height: 360, ..film::Film::default() }, heights)
    }

    pub fn fill_with(source: &film::Film, heights: &[u32]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("source.mp4");
        film::make(source, &path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let plan = plan(&bytes, &PlanOptions { chunk_seconds: 3.0, ..PlanOptions::default() });

        let mut files = Files::new();
        let mut tracks: Vec<_> =
            heights.iter().map(|h| RenditionTrack { name: format!("{h}p"), parts: Vec::new() }).collect();
        let mut packets = Vec::new();
        let sound_format = plan.film.audio.as_ref().expect("the film has sound").format.clone();
        for (n, part) in plan.parts.iter().enumerate() {
            let work = VideoWork {
                source: Source { url: String::new(), etag: String::new(), size: bytes.len() as u64 },
                input: part.input.clone(),
                clip: part.clip,
                renditions: heights.iter().map(|&height| output(height, n)).collect(),
                audio: part.audio.clone().map(|span| AudioCut {
                    lo: span.lo,
                    hi: span.hi,
                    format: span.format,
                    key: String::new(),
                    put: String::new(),
                }),
            };
            let input = dir.path().join("part");
            std::fs::write(&input, rebuild(&work, &bytes)).unwrap();
            let outputs: Vec<_> = heights.iter().map(|h| dir.path().join(format!("{h}.mp4"))).collect();
            run(&ffmpeg::video_args(&work, &input, &outputs));
            for ((track, path), output) in tracks.iter_mut().zip(&outputs).zip(&work.renditions) {
                let made = std::fs::read(path).unwrap();
                let inspection = fragment::inspect(&made).unwrap();
                fragment::check(&inspection.summary, &work.clip).unwrap();
                let (key, size) = (output.key.clone(), made.len() as u64);
                track.parts.push(Some(Chunk { key: key.clone(), size, summary: inspection.summary }));
                files.insert(key, made);
            }
            let cut = dir.path().join("cut");
            run(&ffmpeg::audio_copy_args(&work, &input, &cut).unwrap());
            packets.extend(std::fs::read(&cut).unwrap());
        }
        let work = AudioWork {
            format: sound_format,
            pieces: Vec::new(),
            offset_seconds: plan.audio_offset_seconds,
            bit_rate: 96_000,
            key: String::new(),
            put: String::new(),
        };
        let (joined, voice) = (dir.path().join("joined"), dir.path().join("voice.mp4"));
        std::fs::write(&joined, packets).unwrap();
        run(&ffmpeg::audio_encode_args(&work, &joined, &voice));
        let made = std::fs::read(&voice).unwrap();
        let fragment::Inspection { summary, fragments } = fragment::inspect(&made).unwrap();
        let key = "audio/sound & all.mp4".to_owned();
        let sound = Sound::Ready(SoundTrack { key: key.clone(), size: made.len() as u64, summary, fragments });
        files.insert(key, made);

        let film = Film {
            title: "Numbers & tones".into(),
            duration_seconds: plan.film.duration,
            longest_part_seconds: plan.parts.iter().map(|part| part.duration_seconds).fold(0.0, f64::max),
            renditions: tracks,
            sound,
        };
        let expected = Expected { frames: source.frames(), rate: source.rate };
        Self { files: Arc::new(RwLock::new(files)), film, expected }
    }

    /// The film as it was when only `parts` parts had landed; with all of them it is whole.
    pub fn after(&self, parts: usize, sound: bool) -> Film {
        let mut film = self.film.clone();
        for track in &mut film.renditions {
            track.parts.iter_mut().skip(parts).for_each(|part| *part = None);
        }
        if !sound {
            film.sound = Sound::Pending;
        }
        film
    }

    /// Stores the documents, as home does whenever a part lands.
    pub fn publish(&self, film: &Film, base: &str) -> Vec<Document> {
        let documents = results::documents(film, &Links::Relative { base }).unwrap();
        let mut files = self.files.write().unwrap();
        files.extend(documents.iter().map(|document| (document.key.clone(), document.body.clone().into_bytes())));
        documents
    }

    pub fn put(&self, key: &str, text: String) {
        self.files.write().unwrap().insert(key.to_owned(), text.into_bytes());
    }

    /// Until the answer is dropped.
    pub async fn serve(&self) -> Served {
        let router = Router::new().fallback(get).with_state(self.files.clone());
        serve(router).await
    }
}

pub async fn serve(router: Router) -> Served {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}/", listener.local_addr().unwrap());
    let mut task = tokio::task::JoinSet::new();
    task.spawn(async move { axum::serve(listener, router).await.unwrap() });
    Served { base, _task: task }
}

/// Chromium asks pages of another origin to be let in, as with a real bucket.
async fn get(State(files): State<Arc<RwLock<Files>>>, headers: HeaderMap, request: Request) -> Response<Body> {
    let answer = Response::builder()
        .header(header::ACCESS_CONTROL_ALLOW_ORIGIN, "*")
        .header(header::ACCESS_CONTROL_ALLOW_HEADERS, "range")
        .header(header::ACCEPT_RANGES, "bytes");
    let key = request.uri().path().trim_start_matches('/').replace("%20", " ").replace("%26", "&");
    let Some(bytes) = files.read().unwrap().get(&key).cloned() else {
        let known = request.method() == axum::http::Method::OPTIONS;
        let status = if known { StatusCode::NO_CONTENT } else { StatusCode::NOT_FOUND };
        return answer.status(status).body(Body::empty()).unwrap();
    };
    let range =
        headers.get(header::RANGE).and_then(|value| value.to_str().ok()?.strip_prefix("bytes=")?.split_once('-'));
    let Some((start, end)) = range else { return answer.body(Body::from(bytes)).unwrap() };
    let (start, last) = (start.parse::<usize>().unwrap(), end.parse().unwrap_or(bytes.len() - 1).min(bytes.len() - 1));
    answer
        .status(StatusCode::PARTIAL_CONTENT)
        .header(header::CONTENT_RANGE, format!("bytes {start}-{last}/{}", bytes.len()))
        .body(Body::from(bytes[start..=last].to_vec()))
        .unwrap()
}

fn plan(bytes: &[u8], options: &PlanOptions) -> storage::film::Plan {
    let read = |range: ByteRange| Ok::<_, FilmError>(cut(bytes, range).to_vec());
    let (mut plan, heads) = Probe::new(bytes.len() as u64, options.clone()).run(read).unwrap();
    heads.fill(&mut plan);
    plan
}

fn cut(bytes: &[u8], range: ByteRange) -> &[u8] {
    &bytes[range.start() as usize..range.end() as usize]
}

fn rebuild(work: &VideoWork, bytes: &[u8]) -> Vec<u8> {
    let mut input = STANDARD.decode(&work.input.head).unwrap();
    for range in &work.input.ranges {
        input.extend_from_slice(cut(bytes, *range));
    }
    input
}

fn output(height: u32, part: usize) -> RenditionOutput {
    let rendition = Rendition { height, codec: "h264".into(), crf: 23, preset: "veryfast".into() };
    RenditionOutput { rendition, key: format!("{height}p/v{part:04}-1.mp4"), put: String::new() }
}

fn run(args: &[String]) {
    let output = Command::new("ffmpeg").args(args).output().expect("ffmpeg; `make setup` installs it");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Writes documents into a directory, for tools that read files.
pub fn write(documents: &[Document], dir: &Path) {
    for document in documents {
        std::fs::write(dir.join(&document.key), &document.body).unwrap();
    }
}
