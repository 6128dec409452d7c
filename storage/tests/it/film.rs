//! Films cut, rebuilt, encoded and compared with what real ffmpeg makes of the whole file.

mod bad;
mod exact;
mod films;
mod tools;
