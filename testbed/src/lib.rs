pub mod bench;
pub mod simulate;
