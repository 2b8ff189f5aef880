//! The engine against a disk that crashes, lies and rots; against real threads; and against a plain `Vec`. The seam: its
//! contract.

mod backup;
mod compact;
mod contract;
mod crash;
mod damage;
mod durability;
mod fixtures;
mod groups;
mod harness;
mod history;
mod housekeeping;
mod inspect;
#[cfg(feature = "kafka")]
mod kafka;
mod many;
mod model;
mod producers;
mod real;
mod retention;
#[cfg(feature = "kafka")]
#[expect(clippy::unwrap_used, reason = "test code, as in the crate it belongs to")]
#[path = "../../../connect/tests/it/servers/mod.rs"]
mod servers;
mod settings;
mod sim;
mod sync;
mod times;
mod topics;
mod transactions;
mod whole;
