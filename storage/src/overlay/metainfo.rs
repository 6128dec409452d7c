//! What a swarm is about: names, lengths, and the hashes that make every group provable.
//!
//! One pass over the bytes gives a BEP-3 v1 torrent (SHA-1 pieces, for ordinary clients) and, in a `starling` dictionary
//! beside `info`, one BLAKE3 root per chunk; where `info` is given without its pieces, its hash, too. The hashes of a chunk's groups are not carried here (they would be 50 MB for
//! 100 GB): peers pass them on, and [`Metainfo::check_hashes`] proves them against the root.

mod parts;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use blake3::hazmat::{ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};
use sha1::{Digest, Sha1};

use super::bencode::{self, Value};
use super::layout::{GROUP_MAX, Layout};

/// A metainfo of more bytes is refused before it is read.
pub const METAINFO_MAX: usize = 64 << 20;
const FILES_MAX: usize = 1 << 20;
const COMPONENTS_MAX: usize = 64;
/// Bytes of a dataset's name: file systems have 255, and `.NAME.I-of-N.starling` is one of a node's.
pub const NAME_MAX: usize = 224;

pub type InfoHash = [u8; 20];
/// Hash of one group as a BLAKE3 subtree of its chunk (the chunk's root itself when the chunk has one group).
pub type GroupHash = ChainingValue;

/// One file of the dataset, in the order in which they are joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Components below the dataset's own directory; empty when the dataset is a single file.
    pub path: Vec<String>,
    pub len: u64,
}

impl File {
    /// Where it lies if the dataset is at `root`.
    pub fn under(&self, root: &Path) -> PathBuf {
        self.path.iter().fold(root.to_owned(), |path, part| path.join(part))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metainfo {
    pub name: String,
    pub files: Vec<File>,
    pub layout: Layout,
    pub info_hash: InfoHash,
    pub roots: Vec<[u8; 32]>,
    /// Info hashes of torrents of equal parts, where there are any.
    pub parts: Vec<InfoHash>,
    /// Bearer secret of the swarm; whoever has the metainfo may take part.
    pub token: String,
    /// The torrent's `info` dictionary, perhaps without its `pieces`.
    info: Vec<u8>,
}

/// Why a metainfo was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("metainfo is not bencode")]
    Bencode(#[from] bencode::Error),
    #[error("metainfo lacks `{0}` or has it in another form")]
    Missing(&'static str),
    #[error("metainfo lengths do not agree: {0}")]
    Lengths(&'static str),
    #[error("metainfo names an unsafe path {0:?}")]
    Path(String),
    #[error("metainfo of {0} bytes is too large")]
    TooLarge(usize),
    #[error("the name {0:?} is longer than {NAME_MAX} bytes, with which nodes can begin; serve it under a shorter one")]
    LongName(String),
}

impl Error {
    pub fn code(&self) -> &'static str {
        match self {
            Error::Bencode(_) => "metainfo-not-bencode",
            Error::Missing(_) => "metainfo-incomplete",
            Error::Lengths(_) => "metainfo-lengths",
            Error::Path(_) => "metainfo-unsafe-path",
            Error::TooLarge(_) => "metainfo-too-large",
            Error::LongName(_) => "metainfo-long-name",
        }
    }
}

impl Metainfo {
    /// Reads a torrent file with our `starling` dictionary.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() > METAINFO_MAX {
            return Err(Error::TooLarge(bytes.len()));
        }
        let whole = bencode::decode(bytes)?;
        let info_raw = bencode::raw_entry(bytes, b"info")?.ok_or(Error::Missing("info"))?;
        let info = whole.get("info").ok_or(Error::Missing("info"))?;
        let ours = whole.get("starling").ok_or(Error::Missing("starling"))?;
        let name = component(info.get("name").and_then(Value::as_bytes).ok_or(Error::Missing("name"))?)?;
        let files = read_files(info)?;
        let total =
            files.iter().try_fold(0u64, |sum, f| sum.checked_add(f.len)).ok_or(Error::Lengths("sum of files"))?;
        let piece = length(info.get("piece length")).ok_or(Error::Missing("piece length"))?;
        let chunk = length(ours.get("chunk length")).ok_or(Error::Missing("chunk length"))?;
        let group = match ours.get("group length") {
            None => GROUP_MAX,
            told => length(told).ok_or(Error::Missing("group length"))?,
        };
        let layout = Layout::new(total, group, piece, chunk).ok_or(Error::Lengths("group, piece or chunk length"))?;
        let info_hash = match info.get("pieces") {
            Some(pieces) => {
                if pieces.as_bytes().ok_or(Error::Missing("pieces"))?.len() != layout.pieces() as usize * 20 {
                    return Err(Error::Lengths("number of pieces"));
                }
                Sha1::digest(info_raw).into()
            }
            None => {
                let told = ours.get("info hash").and_then(Value::as_bytes).ok_or(Error::Missing("pieces"))?;
                told.try_into().map_err(|_| Error::Missing("info hash"))?
            }
        };
        let roots = ours.get("roots").and_then(Value::as_bytes).ok_or(Error::Missing("roots"))?;
        if roots.len() != layout.chunks() as usize * 32 {
            return Err(Error::Lengths("number of chunk roots"));
        }
        let roots = roots.as_chunks::<32>().0.to_vec();
        let parts = ours.get("parts").and_then(Value::as_bytes).unwrap_or_default();
        if !parts.len().is_multiple_of(20) || parts.len() / 20 > layout.pieces() as usize {
            return Err(Error::Lengths("number of parts"));
        }
        let parts = parts.as_chunks::<20>().0.to_vec();
        let token = ours.get("token").and_then(Value::as_str).ok_or(Error::Missing("token"))?.to_owned();
        Ok(Self { name, files, layout, info_hash, roots, parts, token, info: info_raw.to_vec() })
    }

    /// The same without the SHA-1 of its pieces, which ordinary clients alone need: 20 bytes for each, which all nodes would ask
    /// of one controller.
    pub fn without_pieces(&self) -> Self {
        let info = match bencode::decode(&self.info) {
            Ok(Value::Dict(entries)) => {
                Value::Dict(entries.into_iter().filter(|(key, _)| key.as_ref() != b"pieces").collect()).encode()
            }
            _ => self.info.clone(),
        };
        Self { info, ..self.clone() }
    }

    /// The torrent file: `announce` is the tracker's URL for ordinary clients.
    pub fn encode(&self, announce: &str) -> Vec<u8> {
        let roots = self.roots.concat();
        let whole = self.info_hash == *Sha1::digest(&self.info);
        let told = (!whole).then(|| ("info hash", Value::bytes(self.info_hash.to_vec())));
        let ours = [
            ("chunk length", Value::Int(self.layout.chunk_len_max() as i64)),
            ("group length", Value::Int(self.layout.group_len_max() as i64)),
            ("roots", Value::bytes(roots)),
            ("token", Value::text(&self.token)),
        ];
        let parts = (!self.parts.is_empty()).then(|| ("parts", Value::bytes(self.parts.concat())));
        let ours = Value::dict(ours.into_iter().chain(told).chain(parts)).encode();
        let mut out = b"d".to_vec();
        for (key, raw) in [("announce", &Value::text(announce).encode()), ("info", &self.info), ("starling", &ours)] {
            out.extend_from_slice(&Value::text(key).encode());
            out.extend_from_slice(raw);
        }
        out.push(b'e');
        out
    }

    /// Whether `hashes` are the groups of chunk `c`: they must hash together to its root.
    pub fn check_hashes(&self, c: u32, hashes: &[GroupHash]) -> bool {
        let groups = self.layout.chunk_groups(c);
        let bytes = self.layout.chunk_bytes(c);
        let root = self.roots.get(c as usize);
        hashes.len() == groups.len()
            && !hashes.is_empty()
            && root == Some(&root_of(hashes, &self.layout, bytes.end - bytes.start))
    }

    /// Whether `data` is group `g`, given the proven hashes of its chunk.
    pub fn check_group(&self, g: u32, data: &[u8], hashes: &[GroupHash]) -> bool {
        let bytes = self.layout.group_bytes(g);
        let groups = self.layout.chunk_groups(self.layout.chunk_of(g));
        let Some(expected) = g.checked_sub(groups.start).and_then(|i| hashes.get(i as usize)) else { return false };
        data.len() as u64 == bytes.end - bytes.start
            && *expected == group_hash(groups.len(), u64::from(g - groups.start) * self.layout.group_len_max(), data)
    }
}

/// Hash of the group at `offset` of a chunk that has `groups` of them.
fn group_hash(groups: usize, offset: u64, data: &[u8]) -> GroupHash {
    if groups == 1 {
        return *blake3::hash(data).as_bytes();
    }
    blake3::Hasher::new().set_input_offset(offset).update(data).finalize_non_root()
}

fn root_of(hashes: &[GroupHash], layout: &Layout, len: u64) -> [u8; 32] {
    let [first, _, ..] = hashes else { return hashes.first().copied().unwrap_or_default() };
    debug_assert!(len > layout.group_len_max(), "{first:?}");
    let (left, right) = hashes.split_at(left_groups(layout, len));
    *merge_subtrees_root(
        &subtree(left, layout, left_subtree_len(len)),
        &subtree(right, layout, len - left_subtree_len(len)),
        Mode::Hash,
    )
    .as_bytes()
}

fn subtree(hashes: &[GroupHash], layout: &Layout, len: u64) -> GroupHash {
    if let [only] = hashes {
        return *only;
    }
    let left_len = left_subtree_len(len);
    let (left, right) = hashes.split_at(left_groups(layout, len));
    merge_subtrees_non_root(&subtree(left, layout, left_len), &subtree(right, layout, len - left_len), Mode::Hash)
}

fn left_groups(layout: &Layout, len: u64) -> usize {
    layout.group_at(left_subtree_len(len)) as usize
}

/// The `info` dictionary of a torrent; `shape` is its `length` or its `files`.
fn info(shape: (&str, Value), name: &str, layout: &Layout, pieces: Vec<u8>) -> Vec<u8> {
    Value::dict([
        shape,
        ("name", Value::text(name)),
        ("piece length", Value::Int(layout.piece_len_max() as i64)),
        ("pieces", Value::bytes(pieces)),
        // No DHT and no peer exchange: only the controller names peers (BEP-27).
        ("private", Value::Int(1)),
    ])
    .encode()
}

fn length(value: Option<&Value>) -> Option<u64> {
    value.and_then(Value::as_int).and_then(|n| u64::try_from(n).ok())
}

fn component(raw: &[u8]) -> Result<String, Error> {
    let text = String::from_utf8_lossy(raw);
    let forbidden = |c: char| c == '/' || c == '\\' || c.is_control() || c == char::REPLACEMENT_CHARACTER;
    if text.is_empty() || text.len() > 255 || text == "." || text == ".." || text.contains(forbidden) {
        return Err(Error::Path(text.into_owned()));
    }
    Ok(text.into_owned())
}

fn read_files(info: &Value) -> Result<Vec<File>, Error> {
    let Some(list) = info.get("files") else {
        let len = length(info.get("length")).ok_or(Error::Missing("length"))?;
        return Ok(vec![File { path: Vec::new(), len }]);
    };
    let list = list.as_list().ok_or(Error::Missing("files"))?;
    if list.is_empty() || list.len() > FILES_MAX {
        return Err(Error::Lengths("number of files"));
    }
    let mut seen = BTreeSet::new();
    let mut files = Vec::with_capacity(list.len());
    for item in list {
        let len = length(item.get("length")).ok_or(Error::Missing("length"))?;
        let parts = item.get("path").and_then(Value::as_list).ok_or(Error::Missing("path"))?;
        if parts.is_empty() || parts.len() > COMPONENTS_MAX {
            return Err(Error::Lengths("components of a path"));
        }
        let path: Vec<String> =
            parts.iter().map(|p| component(p.as_bytes().unwrap_or_default())).collect::<Result<_, _>>()?;
        if !seen.insert(path.clone()) {
            return Err(Error::Path(path.join("/")));
        }
        files.push(File { path, len });
    }
    apart(&seen)?;
    Ok(files)
}

/// No file may also be a directory: in sorted order its first child follows it at once.
fn apart(paths: &BTreeSet<Vec<String>>) -> Result<(), Error> {
    let sorted: Vec<_> = paths.iter().collect();
    match sorted.windows(2).find(|pair| pair[1].starts_with(pair[0])) {
        Some(pair) => Err(Error::Path(pair[0].join("/"))),
        None => Ok(()),
    }
}

/// Whether `files` can lie in one directory called `name`: what [`Metainfo::decode`] or a node's disk refuses is found before a byte is read.
pub fn check_names(name: &str, files: &[File]) -> Result<(), Error> {
    component(name.as_bytes())?;
    if name.len() > NAME_MAX {
        return Err(Error::LongName(name.to_owned()));
    }
    if files.len() > FILES_MAX || files.iter().any(|f| f.path.len() > COMPONENTS_MAX) {
        return Err(Error::Lengths("number of files or components of a path"));
    }
    let mut seen = BTreeSet::new();
    for file in files {
        file.path.iter().try_for_each(|part| component(part.as_bytes()).map(drop))?;
        if !seen.insert(file.path.clone()) {
            return Err(Error::Path(file.path.join("/")));
        }
    }
    apart(&seen)
}

/// Makes a metainfo from the dataset's bytes, given once and in order.
pub struct Maker {
    layout: Layout,
    at: u64,
    buffer: Vec<u8>,
    sha1: Sha1,
    pieces: Vec<u8>,
    hashes: Vec<GroupHash>,
    roots: Vec<[u8; 32]>,
    all: Vec<Vec<GroupHash>>,
}

impl Maker {
    pub fn new(layout: Layout) -> Self {
        let (pieces, roots) = (Vec::new(), Vec::new());
        let buffer = Vec::with_capacity(layout.group_len_max() as usize);
        Self { layout, at: 0, buffer, sha1: Sha1::new(), pieces, hashes: Vec::new(), roots, all: Vec::new() }
    }

    /// Bytes taken in, as far as their chunks are whole: where a pass that was broken off goes on.
    pub fn whole(&self) -> u64 {
        self.layout.chunk_bytes((self.all.len() as u32).wrapping_sub(1)).end.min(self.at)
    }

    /// What was found of chunk `c`: its group hashes, then its SHA-1 pieces. `None` until the chunk is whole.
    pub fn record(&self, c: u32) -> Option<Vec<u8>> {
        let groups = self.all.get(c as usize)?;
        let first = (self.layout.chunk_bytes(c).start / self.layout.piece_len_max()) as usize * 20;
        let pieces = self.pieces.get(first..(first + self.pieces_of(c) * 20))?;
        Some([groups.concat().as_slice(), pieces].concat())
    }

    /// Bytes of the record of chunk `c`.
    pub fn record_len(&self, c: u32) -> usize {
        self.layout.chunk_groups(c).len() * 32 + self.pieces_of(c) * 20
    }

    fn pieces_of(&self, c: u32) -> usize {
        let bytes = self.layout.chunk_bytes(c);
        (bytes.end - bytes.start).div_ceil(self.layout.piece_len_max()) as usize
    }

    /// Takes a record of an earlier pass in place of the next chunk's bytes. False if it does not fit there.
    pub fn adopt(&mut self, record: &[u8]) -> bool {
        let chunk = self.all.len() as u32;
        let bytes = self.layout.chunk_bytes(chunk);
        let fits = self.at == bytes.start && self.buffer.is_empty() && record.len() == self.record_len(chunk);
        if bytes.is_empty() || !fits {
            return false;
        }
        let (groups, pieces) = record.split_at(self.layout.chunk_groups(chunk).len() * 32);
        let groups = groups.as_chunks::<32>().0.to_vec();
        self.roots.push(root_of(&groups, &self.layout, bytes.end - bytes.start));
        self.all.push(groups);
        self.pieces.extend_from_slice(pieces);
        self.at = bytes.end;
        true
    }

    pub fn update(&mut self, mut data: &[u8]) {
        let group = self.layout.group_len_max() as usize;
        while !data.is_empty() {
            let take = data.len().min(group - self.buffer.len());
            self.buffer.extend_from_slice(&data[..take]);
            data = &data[take..];
            if self.buffer.len() == group {
                self.group();
            }
        }
    }

    fn group(&mut self) {
        let chunk = self.layout.chunk_of(self.layout.group_at(self.at));
        let chunk_bytes = self.layout.chunk_bytes(chunk);
        let groups = self.layout.chunk_groups(chunk).len();
        self.hashes.push(group_hash(groups, self.at - chunk_bytes.start, &self.buffer));
        self.sha1.update(&self.buffer);
        self.at += self.buffer.len() as u64;
        self.buffer.clear();
        if self.at.is_multiple_of(self.layout.piece_len_max()) || self.at == self.layout.total() {
            self.pieces.extend_from_slice(&self.sha1.finalize_reset());
        }
        if self.at == chunk_bytes.end {
            self.roots.push(root_of(&self.hashes, &self.layout, chunk_bytes.end - chunk_bytes.start));
            self.all.push(std::mem::take(&mut self.hashes));
        }
    }

    /// Takes the bytes in hand as the last ones.
    pub fn flush(&mut self) {
        if !self.buffer.is_empty() {
            self.group();
        }
    }

    /// The metainfo and, per chunk, its group hashes. `None` if the bytes were not as many as the files need.
    pub fn finish(mut self, name: &str, files: Vec<File>, token: &str) -> Option<(Metainfo, Vec<Vec<GroupHash>>)> {
        self.flush();
        if self.at != self.layout.total() || files.iter().map(|f| f.len).sum::<u64>() != self.at {
            return None;
        }
        let single = files.len() == 1 && files[0].path.is_empty();
        let shape = if single {
            ("length", Value::Int(self.at as i64))
        } else {
            let each = files.iter().map(|f| {
                let path = f.path.iter().map(|p| Value::text(p)).collect();
                Value::dict([("length", Value::Int(f.len as i64)), ("path", Value::List(path))])
            });
            ("files", Value::List(each.collect()))
        };
        let info = info(shape, name, &self.layout, self.pieces);
        let info_hash = Sha1::digest(&info).into();
        let meta = Metainfo {
            name: name.to_owned(),
            files,
            layout: self.layout,
            info_hash,
            roots: self.roots,
            parts: Vec::new(),
            token: token.to_owned(),
            info,
        };
        Some((meta, self.all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::layout::{CHUNK_MIN, GROUP_MIN};

    fn made(len: usize) -> (Vec<u8>, Metainfo, Vec<Vec<GroupHash>>) {
        cut(len, GROUP_MAX)
    }

    fn cut(len: usize, group: u64) -> (Vec<u8>, Metainfo, Vec<Vec<GroupHash>>) {
        let data: Vec<u8> = (0..len).map(|i| (i * 31 % 251) as u8).collect();
        let mut maker = Maker::new(Layout::new(len as u64, group, 256 << 10, CHUNK_MIN).unwrap());
        data.chunks(100_003).for_each(|part| maker.update(part));
        let (meta, hashes) = maker.finish("set", vec![File { path: vec![], len: len as u64 }], "t").unwrap();
        (data, meta, hashes)
    }

    #[test]
    fn chunk_roots_are_plain_blake3_whatever_the_length() {
        let lengths = [1, 16_384, 16_385, 65_536, 65_537, 200_000, 4 << 20, (4 << 20) + 1, (8 << 20) + 150_000];
        for (len, group) in
            lengths.into_iter().flat_map(|len| [GROUP_MIN, 2 * GROUP_MIN, GROUP_MAX].map(|group| (len, group)))
        {
            let (data, meta, hashes) = cut(len, group);
            for c in 0..meta.layout.chunks() {
                let bytes = meta.layout.chunk_bytes(c);
                let chunk = &data[bytes.start as usize..bytes.end as usize];
                assert_eq!(meta.roots[c as usize], *blake3::hash(chunk).as_bytes(), "{len} chunk {c}");
                assert!(meta.check_hashes(c, &hashes[c as usize]));
            }
            for g in 0..meta.layout.groups() {
                let bytes = meta.layout.group_bytes(g);
                let of_chunk = &hashes[meta.layout.chunk_of(g) as usize];
                assert!(
                    meta.check_group(g, &data[bytes.start as usize..bytes.end as usize], of_chunk),
                    "{len} {group} {g}"
                );
            }
        }
    }

    #[test]
    fn a_changed_group_or_hash_is_found() {
        let (mut data, meta, mut hashes) = made(300_000);
        let bytes = meta.layout.group_bytes(2);
        let group = &mut data[bytes.start as usize..bytes.end as usize];
        assert!(meta.check_group(2, group, &hashes[0]));
        assert!(!meta.check_group(1, group, &hashes[0]));
        group[17] ^= 1;
        assert!(!meta.check_group(2, group, &hashes[0]));
        hashes[0][1][0] ^= 1;
        assert!(!meta.check_hashes(0, &hashes[0]));
        assert!(!meta.check_hashes(9, &hashes[0]) && !meta.check_hashes(0, &[]));
    }

    #[test]
    fn a_metainfo_reads_back_as_written() {
        for group in [GROUP_MIN, GROUP_MAX] {
            let (_, meta, _) = cut(5 << 20, group);
            assert_eq!(Metainfo::decode(&meta.encode("http://x/announce")).unwrap(), meta);
        }
    }

    #[test]
    fn groups_whose_length_is_not_told_have_64_kib() {
        let (_, meta, _) = made(300_000);
        let bytes = meta.encode("u");
        let mut silent = bencode::decode(&bytes).unwrap();
        let Value::Dict(ours) = entry(&mut silent, "starling") else { panic!() };
        ours.retain(|(key, _)| key.as_ref() != b"group length");
        assert_eq!(Metainfo::decode(&silent.encode()).unwrap(), meta);
    }

    #[test]
    fn a_metainfo_without_pieces_is_short_and_of_the_same_swarm() {
        let (_, meta, _) = made(300 << 20 >> 2);
        let (long, short) = (meta.encode("u"), meta.without_pieces().encode("u"));
        assert!(long.len() > short.len() + 20 * meta.layout.pieces() as usize - 100, "{} {}", long.len(), short.len());
        let read = Metainfo::decode(&short).unwrap();
        assert_eq!(read, meta.without_pieces());
        assert_eq!(Metainfo { info: meta.info.clone(), ..read }, meta);
        let mut nameless = bencode::decode(&short).unwrap();
        let Value::Dict(ours) = entry(&mut nameless, "starling") else { panic!() };
        ours.retain(|(key, _)| key.as_ref() != b"info hash");
        assert_eq!(Metainfo::decode(&nameless.encode()).unwrap_err(), Error::Missing("pieces"));
    }

    fn hostile(edit: impl Fn(&mut Value)) -> Error {
        let (_, meta, _) = made(300_000);
        let bytes = meta.encode("u");
        let mut whole = bencode::decode(&bytes).unwrap();
        edit(&mut whole);
        Metainfo::decode(&whole.encode()).unwrap_err()
    }

    fn entry<'v, 'a>(value: &'v mut Value<'a>, key: &str) -> &'v mut Value<'a> {
        let Value::Dict(entries) = value else { panic!() };
        &mut entries.iter_mut().find(|(k, _)| k.as_ref() == key.as_bytes()).unwrap().1
    }

    #[test]
    fn lies_about_lengths_counts_and_names_are_refused() {
        for (key, lie) in [
            ("length", Value::Int(-1)),
            ("length", Value::Int(0)),
            ("length", Value::Int(i64::MAX)),
            ("length", Value::Int(600_000)),
            ("piece length", Value::Int(3)),
            ("piece length", Value::Int(i64::MAX)),
            ("pieces", Value::text("short")),
        ] {
            let error = hostile(|whole| *entry(entry(whole, "info"), key) = lie.clone());
            assert!(["metainfo-lengths", "metainfo-incomplete"].contains(&error.code()), "{key} {lie:?}: {error}");
        }
        for name in ["..", ".", "", "a/b", "a\\b", "a\0b", &"x".repeat(256)] {
            let error = hostile(|whole| *entry(entry(whole, "info"), "name") = Value::bytes(name.as_bytes().to_vec()));
            assert_eq!(error.code(), "metainfo-unsafe-path", "{name:?}");
        }
        for (key, lie) in [
            ("roots", Value::text("x")),
            ("group length", Value::Int(0)),
            ("group length", Value::Int(1 << 13)),
            ("group length", Value::Int(1 << 17)),
            ("group length", Value::Int(40_000)),
        ] {
            let error = hostile(|whole| *entry(entry(whole, "starling"), key) = lie.clone());
            assert_eq!(error.code(), "metainfo-lengths", "{key} {lie:?}");
        }
        for lie in [Value::Int(-1), Value::text("x")] {
            let error = hostile(|whole| *entry(entry(whole, "starling"), "group length") = lie.clone());
            assert_eq!(error.code(), "metainfo-incomplete", "{lie:?}");
        }
    }

    #[test]
    fn paths_that_climb_repeat_or_shadow_are_refused() {
        let with_files = |paths: &[&[&'static str]]| {
            let each = paths.iter().map(|path| {
                let path = path.iter().map(|p| Value::text(p)).collect();
                Value::dict([("length", Value::Int(100_000)), ("path", Value::List(path))])
            });
            let files = Value::List(each.collect());
            hostile(move |whole| {
                let Value::Dict(entries) = entry(whole, "info") else { panic!() };
                entries.retain(|(k, _)| k.as_ref() != b"length");
                entries.insert(0, (b"files".into(), files.clone()));
            })
        };
        for paths in
            [&[&["..", "etc"][..], &["a"], &["b"]][..], &[&["a"], &["a"], &["b"]], &[&["a"], &["a", "b"], &["c"]]]
        {
            assert_eq!(with_files(paths).code(), "metainfo-unsafe-path", "{paths:?}");
        }
    }
}
