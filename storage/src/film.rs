//! Films in object storage: what is in them, how they are cut, and how a cut piece is made decodable.
//!
//! The home domain reads only the index of a film and cuts it into parts; each [`part::PartSpec`] then says, without any
//! further knowledge of the container, which bytes to fetch and how to encode them. Guests stay simple.

pub mod part;
