//! Integration tests of `storage`, one module per topic.

mod film;
