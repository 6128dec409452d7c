//! The agent inside a machine: given the URL of a part's order it fetches the bytes, encodes them, checks the result with
//! its own box parser and uploads it. It holds no key and knows no room; whoever has its token may use it.
//!
//! [`runner`] owns the tasks and their limits, `video` and `audio` are the two kinds of work, [`encoder`] is the one
//! place that starts a child process, [`server`] is the HTTP face.

mod audio;
pub mod encoder;
pub mod fault;
mod output;
pub mod runner;
pub mod server;
mod swarm;
pub mod task;
mod video;
pub mod work_dir;
