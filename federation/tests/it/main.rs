//! The negotiation under a simulated network, and the decoders of foreign bytes.

mod federation;
mod observer;
mod scenarios;
mod world;
