//! Films in object storage: what is in them, how they are cut, and how a cut piece is made decodable.
//!
//! The home domain reads only the index of a film and cuts it into parts; each [`part::PartSpec`] then says, without any
//! further knowledge of the container, which bytes to fetch and how to encode them. Guests stay simple.
//!
//! Nothing here touches a socket, a file or a clock: [`probe::Probe`] says which bytes it wants, [`ffmpeg`] gives argument
//! vectors, [`fragment`] reads what came out.

mod cut;
mod error;
pub mod ffmpeg;
pub mod fragment;
mod mkv;
mod mp4;
pub mod part;
pub mod plan;
pub mod probe;
mod rate;
mod sparse;
mod ts;

pub use error::FilmError;
pub use plan::{AudioInfo, AudioSpan, Container, FilmInfo, Plan, PlanOptions, PlannedPart};
pub use probe::{Probe, Step};
