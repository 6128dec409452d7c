//! The negotiation under a simulated network, and the decoders of foreign bytes.

mod federation;
mod job;
mod observer;
mod scenarios;
mod world;
