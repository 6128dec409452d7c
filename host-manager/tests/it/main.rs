//! Integration tests of `host-manager`, one module per topic. Guests are the real binary; the store is a small file server
//! with ranges, ETags and PUT (the test against the S3 server lives in `testbed`, which depends on this crate).

mod guest;
mod machines;
mod support;
