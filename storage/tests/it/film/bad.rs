//! What is no film, or no longer whole, is refused with a reason.

use storage::film::{FilmError, PlanOptions};

use super::films::{Picture, film};
use super::tools::probe;

fn refused(bytes: &[u8]) -> FilmError {
    probe(bytes, PlanOptions::default()).unwrap_err()
}

#[test]
fn what_is_no_film_is_named_so() {
    assert_eq!(refused(b"").code(), "zero-bytes");
    assert_eq!(refused(b"<!DOCTYPE html><title>404</title>").code(), "not-a-film");
    assert_eq!(refused(&b"RIFF\x10\0\0\0AVI LIST".repeat(8)).code(), "unsupported-container");
    let noise: Vec<u8> = (0..100_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    assert_eq!(refused(&noise).code(), "not-a-film");
}

#[test]
fn an_mp4_cut_short_is_refused_wherever_its_index_stands() {
    for (name, options) in [("last.mp4", "-map 0 -c copy"), ("first.mp4", "-map 0 -c copy -movflags +faststart")] {
        let film = std::fs::read(film(Picture::Closed30, name, options)).unwrap();
        for keep in [film.len() / 10, film.len() / 2, film.len() - 1] {
            assert_eq!(refused(&film[..keep]).code(), "truncated-film", "{keep} bytes of {name}");
        }
    }
}
