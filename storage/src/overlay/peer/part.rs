//! Who takes part by a torrent of some of the pieces counts them from 0; within, a piece has its number in the whole.

use std::ops::Range;

use crate::overlay::bits::Bits;
use crate::overlay::layout::Layout;
use crate::overlay::wire::{Block, Message};

/// What such a client says, as if it had the whole's torrent. `None`: it speaks of a piece that its own does not have.
pub fn to_whole(pieces: &Range<u32>, layout: &Layout, message: Message) -> Option<Message> {
    let at = |piece: u32| pieces.start.checked_add(piece).filter(|piece| pieces.contains(piece));
    renumber(message, at, pieces.len() as u32, layout.pieces())
}

/// What is said to it. `None`: it is of pieces that its torrent does not have.
pub fn to_part(pieces: &Range<u32>, layout: &Layout, message: Message) -> Option<Message> {
    let at = |piece: u32| pieces.contains(&piece).then(|| piece - pieces.start);
    renumber(message, at, layout.pieces(), pieces.len() as u32)
}

/// `from`, `to`: pieces in all before and after.
fn renumber(message: Message, at: impl Fn(u32) -> Option<u32>, from: u32, to: u32) -> Option<Message> {
    let block = |block: Block| Some(Block { piece: at(block.piece)?, ..block });
    Some(match message {
        Message::Have(piece) => Message::Have(at(piece)?),
        Message::Request(of) => Message::Request(block(of)?),
        Message::Cancel(of) => Message::Cancel(block(of)?),
        Message::Piece { piece, begin, data } => Message::Piece { piece: at(piece)?, begin, data },
        Message::Bitfield(told) => {
            let mut bits = Bits::new(to);
            Bits::from_wire(from, &told)?.iter().filter_map(&at).for_each(|piece| {
                bits.set(piece);
            });
            Message::Bitfield(bits.to_wire().into())
        }
        message => message,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_a_part_are_counted_from_its_first_and_others_are_not_spoken_of() {
        let layout = Layout::for_total(300_000).unwrap();
        let pieces = 5..9;
        let block = |piece| Block { piece, begin: 0, len: 9 };
        let bits = |len, set: &[u32]| {
            let mut bits = Bits::new(len);
            set.iter().for_each(|bit| {
                bits.set(*bit);
            });
            Message::Bitfield(bits.to_wire().into())
        };
        for (part, whole) in [
            (Message::Have(0), Message::Have(5)),
            (Message::Request(block(3)), Message::Request(block(8))),
            (Message::Cancel(block(1)), Message::Cancel(block(6))),
            (bits(4, &[0, 3]), bits(layout.pieces(), &[5, 8])),
            (Message::Choke, Message::Choke),
        ] {
            assert_eq!(to_whole(&pieces, &layout, part.clone()), Some(whole.clone()));
            assert_eq!(to_part(&pieces, &layout, whole), Some(part));
        }
        assert_eq!(to_part(&pieces, &layout, bits(layout.pieces(), &[4, 9])), Some(bits(4, &[])));
        let data = bytes::Bytes::new();
        for stray in [
            Message::Have(4),
            Message::Have(u32::MAX),
            Message::Request(block(4)),
            Message::Piece { piece: 4, begin: 0, data },
            bits(layout.pieces(), &[]),
        ] {
            assert_eq!(to_whole(&pieces, &layout, stray), None);
        }
        assert_eq!([4, 9].map(|piece| to_part(&pieces, &layout, Message::Have(piece))), [None, None]);
    }
}
