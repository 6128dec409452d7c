//! Torrents of the parts of a dataset, for ordinary clients: part K of N becomes the file `NAME.K-of-N`, as with `swarm get --part`.
//!
//! Parts begin where pieces do, so the SHA-1 pieces of a part are some of the whole's: nothing is read or hashed for them, and whoever
//! takes a part is a member of the one swarm. What tells the parts' torrents apart, their info hashes, is told to all nodes.

use std::ops::Range;

use sha1::{Digest, Sha1};

use super::{InfoHash, Metainfo, info};
use crate::overlay::bencode::{self, Value};
use crate::overlay::layout::Layout;
use crate::overlay::partition::{Binary, Error};

impl Metainfo {
    /// The same with torrents of `count` equal parts.
    pub fn with_parts(mut self, count: usize) -> Result<Self, Error> {
        let infos: Option<Vec<_>> = (0..count).map(|k| self.part_info(k, count)).collect();
        self.parts = infos.unwrap_or_default().iter().map(|info| Sha1::digest(info).into()).collect();
        if self.parts.is_empty() { Err(Error::Parts(count)) } else { Ok(self) }
    }

    /// The torrent file of the part that becomes the file `name`.
    pub fn encode_part(&self, name: &str, announce: &str) -> Option<Vec<u8>> {
        let count = self.parts.len();
        let k = (0..count).find(|k| self.part_name(*k, count) == name)?;
        let (mut out, announce) = (b"d8:announce".to_vec(), Value::text(announce).encode());
        out.extend([&announce[..], b"4:info", &self.part_info(k, count)?, b"e"].concat());
        Some(out)
    }

    /// The pieces that the torrent with this info hash has, of the whole or of a part.
    pub fn pieces_of(&self, info_hash: &InfoHash) -> Option<Range<u32>> {
        if *info_hash == self.info_hash {
            return Some(0..self.layout.pieces());
        }
        let k = self.parts.iter().position(|part| part == info_hash)?;
        part_pieces(&self.layout, k, self.parts.len())
    }

    fn part_name(&self, k: usize, count: usize) -> String {
        format!("{}.{}-of-{count}", self.name, k + 1)
    }

    /// None without the whole's pieces, or where the part would have none.
    fn part_info(&self, k: usize, count: usize) -> Option<Vec<u8>> {
        let whole = bencode::decode(&self.info).ok()?;
        let hashes = whole.get("pieces")?.as_bytes()?;
        let pieces = part_pieces(&self.layout, k, count)?;
        let len = self.layout.piece_bytes(pieces.end - 1).end - self.layout.piece_bytes(pieces.start).start;
        let hashes = hashes.get(pieces.start as usize * 20..pieces.end as usize * 20)?;
        Some(info(("length", Value::Int(len as i64)), &self.part_name(k, count), &self.layout, hashes.to_vec()))
    }
}

fn part_pieces(layout: &Layout, k: usize, count: usize) -> Option<Range<u32>> {
    let parts = Binary { align: layout.piece_len_max() }.of_length(layout.total(), count).ok()?;
    let (start, end, _) = *parts.get(k)?.pieces(layout).first()?;
    Some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::metainfo::{File, Maker};

    fn meta(len: usize) -> (Vec<u8>, Metainfo) {
        let data: Vec<u8> = (0..len).map(|i| (i * 31 % 251) as u8).collect();
        let mut maker = Maker::new(Layout::for_total(len as u64).unwrap());
        maker.update(&data);
        (data, maker.finish("set", vec![File { path: vec![], len: len as u64 }], "t").unwrap().0)
    }

    #[test]
    fn torrents_of_parts_have_the_hashes_of_the_parts_bytes() {
        let (data, meta) = meta(300_000);
        let meta = meta.with_parts(3).unwrap();
        let mut joined: Vec<u8> = Vec::new();
        for k in 1..=3 {
            let torrent = meta.encode_part(&format!("set.{k}-of-3"), "u").unwrap();
            let whole = bencode::decode(&torrent).unwrap();
            let info = whole.get("info").unwrap();
            let (length, piece) = (info.get("length").unwrap().as_int(), info.get("piece length").unwrap().as_int());
            let part = &data[joined.len()..joined.len() + length.unwrap() as usize];
            let hashes: Vec<u8> = part.chunks(piece.unwrap() as usize).flat_map(Sha1::digest).collect();
            assert_eq!(info.get("pieces").unwrap().as_bytes(), Some(&hashes[..]));
            let hash = Sha1::digest(bencode::raw_entry(&torrent, b"info").unwrap().unwrap()).into();
            let pieces = meta.pieces_of(&hash).unwrap();
            assert_eq!(meta.layout.piece_bytes(pieces.start).start, joined.len() as u64);
            joined.extend(part);
        }
        assert!(joined == data, "the parts are not the whole");
        assert_eq!(meta.pieces_of(&meta.info_hash), Some(0..meta.layout.pieces()));
        assert_eq!(meta.pieces_of(&[0; 20]), None);
        for name in ["set", "set.0-of-3", "set.4-of-3", "set.01-of-3", "set.1-of-4"] {
            assert_eq!(meta.encode_part(name, "u"), None, "{name}");
        }
    }

    #[test]
    fn nodes_are_told_of_parts_and_more_parts_than_pieces_are_refused() {
        let (_, meta) = meta(300_000);
        let pieces = meta.layout.pieces() as usize;
        for count in [0, pieces + 1] {
            assert_eq!(meta.clone().with_parts(count).unwrap_err().code(), "partition-count");
        }
        let mut meta = meta.with_parts(pieces).unwrap();
        for told in [meta.clone(), meta.without_pieces()] {
            assert_eq!(Metainfo::decode(&told.encode("u")).unwrap(), told);
        }
        meta.parts.push([0; 20]);
        assert_eq!(Metainfo::decode(&meta.encode("u")).unwrap_err().code(), "metainfo-lengths");
    }
}
