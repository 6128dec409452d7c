//! One domain's coordinator: what it decides, what it publishes and what a person sees of it.

pub mod results;
pub mod timeline;
pub mod web;
