//! The negotiation under a simulated network, and the decoders of foreign bytes.

mod corpus;
mod federation;
mod job;
mod message;
mod observer;
mod scenarios;
mod world;
