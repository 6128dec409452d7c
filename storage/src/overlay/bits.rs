//! A fixed-length set of small indices, by words: 1.6 million groups (100 GB) take 200 KB and scan in microseconds.

use crate::hex::{hex, unhex};

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Bits {
    words: Vec<u64>,
    len: u32,
    ones: u32,
}

impl Bits {
    pub fn new(len: u32) -> Self {
        Self { words: vec![0; len.div_ceil(64) as usize], len, ones: 0 }
    }

    pub fn full(len: u32) -> Self {
        let mut bits = Self::new(len);
        bits.set_range(0..len);
        bits
    }

    pub fn len(&self) -> u32 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.ones == 0
    }

    pub fn count(&self) -> u32 {
        self.ones
    }

    pub fn is_full(&self) -> bool {
        self.ones == self.len
    }

    pub fn get(&self, i: u32) -> bool {
        i < self.len && self.words[(i / 64) as usize] >> (i % 64) & 1 == 1
    }

    /// Sets bit `i`; true if it was clear. Out of range is ignored: indices come from peers.
    pub fn set(&mut self, i: u32) -> bool {
        if i >= self.len || self.get(i) {
            return false;
        }
        self.words[(i / 64) as usize] |= 1 << (i % 64);
        self.ones += 1;
        true
    }

    pub fn clear(&mut self, i: u32) -> bool {
        if !self.get(i) {
            return false;
        }
        self.words[(i / 64) as usize] &= !(1 << (i % 64));
        self.ones -= 1;
        true
    }

    pub fn set_range(&mut self, range: std::ops::Range<u32>) {
        range.for_each(|i| {
            self.set(i);
        });
    }

    pub fn words(&self) -> &[u64] {
        &self.words
    }

    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.words.iter().enumerate().flat_map(|(w, word)| ones(*word).map(move |b| w as u32 * 64 + b))
    }

    /// First set bit at or after `from`, else the first one of all.
    pub fn next_cyclic(&self, from: u32) -> Option<u32> {
        self.next_from(from).or_else(|| self.next_from(0))
    }

    pub fn next_from(&self, from: u32) -> Option<u32> {
        if from >= self.len {
            return None;
        }
        let mut w = (from / 64) as usize;
        let mut word = self.words[w] & (!0 << (from % 64));
        loop {
            if word != 0 {
                return Some(w as u32 * 64 + word.trailing_zeros());
            }
            w += 1;
            word = *self.words.get(w)?;
        }
    }

    /// BEP-3 order: the first index is the highest bit of the first byte.
    pub fn to_wire(&self) -> Vec<u8> {
        let mut out = vec![0; self.len.div_ceil(8) as usize];
        self.iter().for_each(|i| out[(i / 8) as usize] |= 0x80 >> (i % 8));
        out
    }

    /// `None` if the length is wrong or a spare bit is set (BEP-3 demands both).
    pub fn from_wire(len: u32, data: &[u8]) -> Option<Self> {
        if data.len() != len.div_ceil(8) as usize {
            return None;
        }
        let mut bits = Self::new(len);
        for (at, byte) in data.iter().enumerate() {
            for bit in (0..8).filter(|bit| byte & (0x80 >> bit) != 0) {
                let index = at as u32 * 8 + bit;
                if index >= len {
                    return None;
                }
                bits.set(index);
            }
        }
        Some(bits)
    }

    /// The same as lower-case hex, for JSON.
    pub fn to_hex(&self) -> String {
        hex(&self.to_wire())
    }

    pub fn from_hex(len: u32, text: &str) -> Option<Self> {
        Self::from_wire(len, &unhex(text)?)
    }
}

/// Positions of the ones of a word, lowest first.
pub fn ones(mut word: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let bit = (word != 0).then(|| word.trailing_zeros())?;
        word &= word - 1;
        Some(bit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_form_round_trips_and_refuses_spare_bits() {
        let mut bits = Bits::new(11);
        let _ = [0, 7, 10].map(|i| bits.set(i));
        assert_eq!(bits.to_wire(), [0x81, 0x20]);
        assert_eq!(Bits::from_wire(11, &bits.to_wire()), Some(bits.clone()));
        assert_eq!(Bits::from_wire(11, &[0, 1]), None);
        assert_eq!(Bits::from_wire(11, &[0]), None);
        assert_eq!(Bits::from_hex(11, &bits.to_hex()), Some(bits));
    }

    #[test]
    fn the_next_one_is_found_across_words_and_around() {
        let mut bits = Bits::new(200);
        let _ = [3, 130].map(|i| bits.set(i));
        assert_eq!(bits.next_from(4), Some(130));
        assert_eq!(bits.next_from(131), None);
        assert_eq!(bits.next_cyclic(131), Some(3));
        assert!(!bits.set(999) && !bits.get(999));
    }
}
