//! What the product relies on in a store, asked over the wire: of the embedded server always, of `versitygw` where it is found
//! (`STARLING_VERSITYGW` or PATH).

mod conformance;
mod fetch;
pub mod place;
mod server;
