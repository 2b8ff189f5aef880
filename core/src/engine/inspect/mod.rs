//! A look at a data directory at rest, without changing a byte of it: what an opening would find, whether each batch is
//! sound, what a file says.
//!
//! Nobody may own the directory meanwhile: whoever calls this holds its lock.

mod dump;
mod verify;
mod walk;

pub use dump::dump;
pub use verify::{PartitionReport, VerifyReport, verify};
